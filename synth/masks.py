"""The mask bank and placement: real defects of the train split, warped, and put where steel is on clean images.

Nothing of val or test can get in: `bank_of` refuses an image whose id or group is among those that it must not see.
The mask that comes out of the warp is the label of what a synthesiser makes of the scene.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.data import Defect, Item
from curate.errors import CurateError, LabelProblem
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.masks import shapes
from synth.nouns import FEATHER, Donor, Ground, Mask, MaskBank, Pixels, Scene, Site, TrainingWindow, extent_of
from train.data.dataset import masks_of
from train.data.pixels import read, with_channels

STEP = 1  # raise it when the same images and seed give other scenes than before

GAP = 8  # parts of a mask that are nearer than this are one defect
SPECK = 4  # pixels; less is a slip of the pen
MOST = 500  # donors of a class that are kept in memory
MARGIN, LEAST_MARGIN = 0.5, 8  # around a donor: a share of its larger side, pixels
RIM = FEATHER + 4  # pixels of good steel that a window shows on every side of the mask
BLACK, RIM_SHARE, LEAST_STEEL = 12, 0.01, 0.2  # the dark beside a strip
ELASTIC = 0.05  # of the larger side
TURN = 15.0  # degrees
LEAST_SHARE = 32  # of 255: how little of a defect makes a pixel one
SHIFT = 0.1  # of the steel's room
SMALLER, LARGER, STRETCH = 0.4, 2.5, 1.5  # bounds of area and aspect, against the donor's own
LONGEST = 50  # times as long as wide, by hand
DRAWS = 30  # places and grounds that are tried for one mask

Rng = np.random.Generator
Progress = Callable[[str, int, int], None]
Place = tuple[float, float]
T = TypeVar("T")
N = TypeVar("N", np.uint8, np.bool_)


# --- the bank -------------------------------------------------------------------------------------------------------


def bank(index: Index, progress: Progress = lambda stage, done, total: None) -> MaskBank:
    """The bank of a project: labelled real images of train, and all ids and groups of val and test as forbidden."""
    rows = list(index.rows("status", "split", "source", "missing"))
    train = [id for id, *row in rows if row[0] == "labelled" and row[1] == "train" and _is_real(row[2], row[3])]
    ids, groups = blocked(index)
    items = index.items(sorted(train))
    return _bank(
        list(items), ids, groups, index.project.active_classes, index.project.config.limits.max_pixels, progress
    )


def blocked(index: Index) -> tuple[frozenset[str], frozenset[str]]:
    """Ids and groups that are in val or test today."""
    judged = [(id, group or id) for id, split, group in index.rows("split", "group") if split in ("val", "test")]
    return frozenset(id for id, _ in judged), frozenset(group for _, group in judged)


def bank_of(items: Sequence[Item], blocked: Sequence[Item], classes: Sequence[str], max_pixels: int) -> MaskBank:
    """The same from images alone: `items` may be learnt from, `blocked` never."""
    ids = frozenset(item.id for item in blocked)
    return _bank(items, ids, frozenset(item.group or item.id for item in blocked), classes, max_pixels)


def _is_real(source: str | None, missing: bool | None) -> bool:
    return source != "synthetic" and not missing


def _bank(
    items: Sequence[Item],
    ids: AbstractSet[str],
    groups: AbstractSet[str],
    classes: Sequence[str],
    max_pixels: int,
    progress: Progress = lambda stage, done, total: None,
) -> MaskBank:
    leaks = [item.id for item in items if item.id in ids or (item.group or item.id) in groups]
    if leaks:
        raise CurateError(f"{len(leaks)} images to learn from are in val or test, by id or group (first: {leaks[0]})")
    notes: list[str] = []
    ordered = sorted((item for item in items if item.source != "synthetic"), key=lambda item: item.id)
    clean = [item for item in ordered if item.label.clean]
    donors = tuple(_donors([item for item in ordered if item.label.defects], classes, max_pixels, notes, progress))
    grounds = tuple(Ground(item.id, item.group or item.id, item) for item in clean)
    channels = max([donor.pixels.shape[2] for donor in donors] + _channels(clean[:DRAWS], max_pixels), default=1)
    rows = sorted((item.id, item.group, item.label.digest) for item in ordered)
    digest = key_of([rows, list(classes), STEP])
    same = tuple(_with(donor, channels) for donor in donors)
    return MaskBank(
        tuple(classes), same, grounds, channels, digest, max_pixels, frozenset(ids), frozenset(groups), tuple(notes)
    )


def _donors(
    items: Sequence[Item], classes: Sequence[str], max_pixels: int, notes: list[str], progress: Progress
) -> Iterator[Donor]:
    """Donors image by image (ids are hashes, so their order is as good as drawn), until every class has enough."""
    counts: Counter[str] = Counter()
    for item in items:
        progress("mask bank", 1, len(items))
        shown = {defect.label for defect in item.label.defects if defect.rle and counts[defect.label] < MOST}
        wanted = shown & set(classes)
        for donor in _readable(item, wanted, max_pixels, notes) if wanted else ():
            counts[donor.name] += 1
            yield donor


def _readable(item: Item, wanted: AbstractSet[str], max_pixels: int, notes: list[str]) -> list[Donor]:
    try:
        return [donor for donor in donors_of(item, pixels_of(item, max_pixels)) if donor.name in wanted]
    except LabelProblem as problem:
        notes.append(f"{item.path}: {problem}")
        return []


def _channels(items: Sequence[Item], max_pixels: int) -> list[int]:
    channels = []
    for item in items:
        try:
            channels.append(pixels_of(item, max_pixels).shape[2])
        except LabelProblem:
            continue  # it is no ground then, see `_opened`
    return channels


def _with(donor: Donor, channels: int) -> Donor:
    if donor.pixels.shape[2] == channels:
        return donor
    return Donor(**vars(donor) | {"pixels": with_channels(donor.pixels, channels)})


def pixels_of(item: Item, max_pixels: int) -> Pixels:
    """An image as (H, W, 1) or (H, W, 3). Raises LabelProblem where it is not what the index saw."""
    return _read(item.id, item.path, max_pixels)


@lru_cache(maxsize=4)
def _read(id: str, path: Path, max_pixels: int) -> Pixels:
    pixels = read(id, path, max_pixels)
    pixels = with_channels(pixels, 1 if pixels.ndim == 2 or pixels.shape[2] == 1 else 3)
    pixels.setflags(write=False)
    return pixels


def donors_of(item: Item, pixels: Pixels) -> list[Donor]:
    """The defects of an image that have pixels, part by part."""
    steel = _box(region_of(pixels))
    parts = [(defect, part) for defect in item.label.defects if defect.rle for part in _parts(defect, item)]
    return [_donor(f"{item.id}:{number}", item, pixels, steel, *part) for number, part in enumerate(parts)]


def _parts(defect: Defect, item: Item) -> Iterator[Mask]:
    """Whole-image masks of the parts of a defect that lie apart: one label often marks several."""
    mask = shapes.mask_of(defect, item.width, item.height)
    _, near = cv2.connectedComponents(cv2.dilate(mask, np.ones((GAP + 1, GAP + 1), np.uint8)))
    numbers = near * mask
    for number in range(1, int(numbers.max()) + 1):
        part = numbers == number
        if int(part.sum()) >= SPECK:
            yield part


def _donor(key: str, item: Item, pixels: Pixels, steel: tuple[int, int, int, int], defect: Defect, part: Mask) -> Donor:
    left, top, width, height = _box(part)
    place = _share(left - steel[0], steel[2] - width), _share(top - steel[1], steel[3] - height)
    margin = max(LEAST_MARGIN, round(MARGIN * max(width, height)))
    x, y = max(0, left - margin), max(0, top - margin)
    crop = np.s_[y : top + height + margin, x : left + width + margin]
    own = np.ascontiguousarray(pixels[crop]), np.ascontiguousarray(part[crop])
    return Donor(key, defect.label, item.group or item.id, *own, item, (x, y), place, defect.severity)


def _share(before: int, room: int) -> float:
    """0: at the left or upper end of the steel, 1: at the other end."""
    return min(max(before / room, 0.0), 1.0) if room > 0 else 0.5


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Left, top, width, height of what a mask holds."""
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    return int(columns[0]), int(rows[0]), *extent_of(mask)


def region_of(pixels: Pixels) -> Mask:
    """Mask of the steel: all of the image but the black that begins at its border, if there is enough of it."""
    grey = cv2.medianBlur(np.ascontiguousarray(pixels.max(axis=2)), 5)
    closed = cv2.morphologyEx((grey > BLACK).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    _, dark = cv2.connectedComponents(1 - closed)
    ends = np.unique(np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]]))
    rim = np.isin(dark, ends[ends > 0])
    return np.ones_like(rim) if rim.mean() < RIM_SHARE or rim.mean() > 1 - LEAST_STEEL else ~rim


# --- what networks learn from ---------------------------------------------------------------------------------------


def examples(bank: MaskBank, size: int, rng: Rng, count: int, clean: float = 0.25) -> list[TrainingWindow]:
    """`count` windows of `size` pixels: around donors (every class alike, shifted, mirrored), and of clean steel."""
    names = [name for name in bank.classes if bank.of(name)]
    grounds, donors = _grounds(bank, size), {name: _windowed(bank, name, size) for name in names}
    names = [name for name in names if donors[name]]
    if not names:
        raise CurateError(
            f"no image of train with a drawn defect is {size}x{size} pixels or larger: choose a smaller size"
        )
    chosen = [rng.random() < clean and len(grounds) > 0 for _ in range(count)]
    windows: list[TrainingWindow] = []
    for place, is_clean in enumerate(chosen):
        name = names[place % len(names)]
        window = _clean(bank, grounds, size, rng) if is_clean else _around(_pick(donors[name], rng), bank, size, rng)
        windows.append(window)
    return windows


def _windowed(bank: MaskBank, name: str, size: int) -> list[Donor]:
    return [donor for donor in bank.of(name) if min(donor.item.width, donor.item.height) >= size]


def _around(donor: Donor, bank: MaskBank, size: int, rng: Rng) -> TrainingWindow:
    """A window that holds the defect, or the part of it around one of its pixels where it is larger."""
    pixels = with_channels(pixels_of(donor.item, bank.max_pixels), bank.channels)
    left, top, width, height = _box(donor.mask)
    if max(width, height) > size:
        ys, xs = np.nonzero(donor.mask)
        at = int(rng.integers(len(xs)))
        left, top, width, height = int(xs[at]), int(ys[at]), 1, 1
    x = _start(left + donor.corner[0], width, size, pixels.shape[1], rng)
    y = _start(top + donor.corner[1], height, size, pixels.shape[0], rng)
    mask = masks_of(donor.item, [donor.name])[0].astype(bool)
    cut = np.s_[y : y + size, x : x + size]
    return _mirrored(TrainingWindow(pixels[cut], mask[cut], donor.name, donor.group), rng)


def _clean(bank: MaskBank, grounds: Sequence[Ground], size: int, rng: Rng) -> TrainingWindow:
    ground, pixels = _opened(bank, grounds, rng)
    y, x = (int(rng.integers(side - size + 1)) for side in pixels.shape[:2])
    window = pixels[y : y + size, x : x + size]
    return _mirrored(TrainingWindow(window, np.zeros((size, size), bool), "", ground.group), rng)


def _start(first: int, length: int, size: int, whole: int, rng: Rng) -> int:
    """Start of a window that holds `first..first+length`, with good steel on both sides where there is any."""
    spare = max(0, size - length)
    rim = min(RIM, spare // 2)
    return min(max(first - int(rng.integers(rim, spare - rim + 1)), 0), whole - size)


def _mirrored(example: TrainingWindow, rng: Rng) -> TrainingWindow:
    flips = _flips(rng)
    pixels, mask = np.ascontiguousarray(example.pixels[flips]), np.ascontiguousarray(example.mask[flips])
    return TrainingWindow(pixels, mask, example.name, example.group)


def _flips(rng: Rng) -> tuple[slice, slice]:
    down, across = (slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(2))
    return down, across


def _pick(values: Sequence[T], rng: Rng) -> T:
    return values[int(rng.integers(len(values)))]


# --- warping --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Warp:
    """Change of a donor's shape; the same warp at another scale is the same shape."""

    scale: float
    stretch: float  # width grows by it, height shrinks
    turn: float  # degrees
    bend: NDArray[np.float32]  # (4, 4, 2), in shares of the larger side

    def grown(self, by: float) -> Warp:
        return replace(self, scale=self.scale * by)


def warped(donor: Donor, warp: Warp) -> tuple[Pixels, Mask, Mask]:
    """The donor's pixels, its mask, and where its pixels reach, all by the same map."""
    high, wide = donor.mask.shape
    turn = math.radians(warp.turn)
    sizes = wide * warp.scale * warp.stretch, high * warp.scale / warp.stretch
    width = math.ceil(sizes[0] * abs(math.cos(turn)) + sizes[1] * abs(math.sin(turn)))
    height = math.ceil(sizes[0] * abs(math.sin(turn)) + sizes[1] * abs(math.cos(turn)))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    x, y = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    bend = cv2.resize(warp.bend, (width, height), interpolation=cv2.INTER_CUBIC) * max(extent_of(donor.mask))
    x = x / (warp.scale * warp.stretch) + (wide - 1) / 2 + bend[..., 0]
    y = y / (warp.scale / warp.stretch) + (high - 1) / 2 + bend[..., 1]
    fine = [_softened(array, warp.scale) for array in (donor.pixels, donor.mask.astype(np.uint8) * 255)]
    pixels = _mapped(fine[0], x, y, cv2.BORDER_REPLICATE).reshape(height, width, -1)
    share, reach = (_mapped(array, x, y) for array in (fine[1], np.full_like(donor.mask, 255, np.uint8)))
    return pixels, share > _cut(share, donor, warp.scale), reach == 255


def _softened(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Blurred as much as shrinking needs, so that thin lines do not fall apart."""
    if scale >= 1:
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5 * math.sqrt(scale**-2 - 1) + 1e-3), np.uint8)


def _cut(share: NDArray[np.uint8], donor: Donor, scale: float) -> int:
    """Half; of a line so thin that it would fall apart less: it becomes about a pixel and a half wide."""
    thick = 2 * float(cv2.distanceTransform(np.pad(donor.mask, 1).astype(np.uint8), cv2.DIST_L2, 3).max()) - 1
    if thick * scale >= 2:
        return 127
    area = min(round(1.5 * donor.area * scale * max(scale, 1 / thick)), share.size - 1)
    return min(max(int(np.partition(share, -area - 1, axis=None)[-area - 1]), LEAST_SHARE), 127)


def _mapped(
    image: NDArray[Any], x: NDArray[np.float32], y: NDArray[np.float32], border: int = cv2.BORDER_CONSTANT
) -> NDArray[np.uint8]:
    where = x.astype(np.float32), y.astype(np.float32)
    return np.asarray(cv2.remap(image.astype(np.uint8), *where, cv2.INTER_LINEAR, borderMode=border), np.uint8)


def _sized(donor: Donor, warp: Warp, area: float) -> Warp:
    """The warp whose mask comes near this area: measured, corrected, measured again."""
    for _ in range(3):
        _, mask, _ = warped(donor, warp)
        warp = warp.grown(math.sqrt(area / mask.sum()) if mask.any() else 1.5)
    return warp


# --- scenes ---------------------------------------------------------------------------------------------------------


def scene(
    bank: MaskBank,
    name: str,
    size: int,
    seed: int,
    *,
    area: float | None = None,
    aspect: float | None = None,
    place: Place | None = None,
    severity: str | None = None,
    strength: float = 1.0,
) -> tuple[Scene, Site]:
    """One defect to be made, and where: drawn as the train split has them, save for what is set by hand.

    `area` in pixels, `aspect` as width to height, `place` as shares of the steel (across, down). The same bank, name,
    size and seed give the same scene.
    """
    if aspect is not None and not 1 / LONGEST <= aspect <= LONGEST:
        raise CurateError(f"an aspect of {aspect:g} does not exist; allowed: 1/{LONGEST} to {LONGEST}")
    rng = np.random.default_rng([seed, size])
    donors = _fitting(bank, name, size, severity, area)
    grounds = _grounds(bank, size)
    if not grounds:
        raise CurateError(_no_ground(bank, size))
    for _ in range(DRAWS):
        donor = _pick(donors, rng)
        pixels, mask, reach = _drawn(donor, bank.of(name), size, area, aspect, rng)
        if not mask.any() or max(extent_of(mask)) > size - 2 * RIM:
            continue
        ground, image = _opened(bank, grounds, rng)
        flips = _flips(rng)
        corner = _spot(image, mask[flips], _places(donor, flips, place, rng))
        if corner is not None:
            parts = pixels[flips], mask[flips], reach[flips]
            return _assembled(ground, donor, image, parts, corner, size, seed, strength, rng)
    raise CurateError(_no_place(name, size, area, place))


def _fitting(bank: MaskBank, name: str, size: int, severity: str | None, area: float | None) -> Sequence[Donor]:
    """The donors that a window of this size can hold, shrunk within bounds."""
    require(bank, name)
    room = size - 2 * RIM
    donors = [donor for donor in bank.of(name) if severity is None or donor.severity == severity]
    if not donors:
        known = sorted({donor.severity for donor in bank.of(name) if donor.severity})
        raise CurateError(f"no defect '{name}' of train has severity '{severity}'; known: {', '.join(known) or 'none'}")
    if area is not None and not SPECK <= area <= room * room:
        raise CurateError(
            f"an area of {area:g} pixels does not fit: allowed {SPECK} to {max(room, 0) ** 2} in {size}x{size}"
        )
    fits = [donor for donor in donors if holds(size, donor)] if area is None else donors
    if not fits:
        least = min(max(donor.extent) for donor in donors)
        raise CurateError(
            f"the smallest '{name}' is {least} pixels long, a window of {size} holds {room}: "
            f"--window {_window_for(least)} or more"
        )
    return fits


def holds(size: int, donor: Donor) -> bool:
    """Tell whether a window of this size can hold the donor, shrunk within bounds."""
    return max(donor.extent) * math.sqrt(SMALLER) <= size - 2 * RIM


def _window_for(extent: int) -> int:
    return math.ceil(extent * math.sqrt(SMALLER)) + 2 * RIM


def left_out(donors: Sequence[Donor], grounds: Sequence[Ground], size: int) -> str | None:
    """Describe the real defects that are too large for a window of this size; None where all are used."""
    longest = [max(donor.extent) for donor in donors if not holds(size, donor)]
    if not longest:
        return None
    used, needed = len(donors) - len(longest), _window_for(max(longest))
    widest = max((min(ground.item.width, ground.item.height) for ground in grounds), default=needed)
    remedy = f"--window {needed} holds all"
    if needed > widest:
        remedy = f"all would need --window {needed}, but no clean image of train holds more than {widest}"
    return (
        f"{used} of {len(donors)} real defects are used: {len(longest)} are too large for a window of {size} px "
        f"(up to {max(longest)} px long), so what is made is smaller than the real ones; {remedy}"
    )


def require(bank: MaskBank, name: str) -> None:
    """The class has donors, or the reason why not."""
    if name not in bank.classes:
        raise CurateError(f"unknown class '{name}'; allowed: {', '.join(bank.classes)}")
    if not bank.of(name):
        raise CurateError(
            f"class '{name}' has no defect with a mask in the train split: draw masks (boxes are not enough)"
        )


def _grounds(bank: MaskBank, size: int) -> list[Ground]:
    return [ground for ground in bank.grounds if min(ground.item.width, ground.item.height) >= size]


def _no_ground(bank: MaskBank, size: int) -> str:
    if not bank.grounds:
        return "no clean labelled image in the train split to put defects on: label some as clean (no defects)"
    largest = max((ground.item for ground in bank.grounds), key=lambda item: min(item.width, item.height))
    return (
        f"every clean image of train is smaller than the window of {size}x{size} pixels"
        f" (the largest is {largest.width}x{largest.height}): choose a smaller size"
    )


def _no_place(name: str, size: int, area: float | None, place: Place | None) -> str:
    by_hand = " as set by hand" if area is not None or place is not None else ""
    return (
        f"found no place on steel for a '{name}'{by_hand} in {DRAWS} draws: choose another size than {size}, or place"
    )


def _drawn(
    donor: Donor, others: Sequence[Donor], size: int, area: float | None, aspect: float | None, rng: Rng
) -> tuple[Pixels, Mask, Mask]:
    """The donor with the size and aspect of another defect of its class, within bounds; bent and turned."""
    model = _pick(others, rng)
    own = donor.extent[0] / donor.extent[1]
    target = _within(model.extent[0] / model.extent[1], own / STRETCH, own * STRETCH) if aspect is None else aspect
    wanted = _within(model.area, donor.area * SMALLER, donor.area * LARGER) if area is None else area
    bend = rng.normal(0, ELASTIC, (4, 4, 2)).astype(np.float32)
    turn = float(rng.uniform(-TURN, TURN)) if aspect is None else 0.0  # a turn changes the aspect
    warp = _sized(donor, Warp(1.0, math.sqrt(target / own), turn, bend), wanted)
    result = warped(donor, warp)
    over = max(extent_of(result[1])) / (size - 2 * RIM) if result[1].any() else 1.0
    return warped(donor, warp.grown(0.97 / over)) if over > 1 and area is None else result


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _opened(bank: MaskBank, grounds: Sequence[Ground], rng: Rng) -> tuple[Ground, Pixels]:
    """A clean image that can be read and has no more channels than the bank."""
    for _ in range(DRAWS):
        ground = _pick(grounds, rng)
        try:
            pixels = pixels_of(ground.item, bank.max_pixels)
        except LabelProblem:
            continue
        if pixels.shape[2] <= bank.channels:
            return ground, with_channels(pixels, bank.channels)
    raise CurateError(
        f"clean images of train cannot be read ({DRAWS} tried, the last: {ground.item.path}). Run: curate index"
    )


def _places(donor: Donor, flips: tuple[slice, slice], place: Place | None, rng: Rng) -> Iterator[Place]:
    """Positions of the defect, as shares of the room that the steel leaves: about where the donor lay, mirrored as the
    donor is. A donor that touched an end of the steel still does."""
    down, across = (1 - own if flip.step else own for own, flip in zip(donor.place[::-1], flips, strict=True))
    for _ in range(1 if place else DRAWS):
        yield place or (_near(across, rng), _near(down, rng))


def _near(share: float, rng: Rng) -> float:
    return share if share in (0.0, 1.0) else float(np.clip(share + rng.normal(0, SHIFT), 0, 1))


def _spot(image: Pixels, mask: Mask, places: Iterator[Place]) -> tuple[int, int] | None:
    """Left and top of the mask's box in the image, all of the mask on steel; None where no place will do."""
    steel = region_of(image)
    left, top, width, height = _box(steel)
    part = _tight(mask)
    high, wide = part.shape
    for across, down in places:
        x, y = left + round(across * max(0, width - wide)), top + round(down * max(0, height - high))
        if y + high <= image.shape[0] and x + wide <= image.shape[1] and steel[y : y + high, x : x + wide][part].all():
            return x, y
    return None


def _tight(mask: Mask) -> Mask:
    left, top, width, height = _box(mask)
    return mask[top : top + height, left : left + width]


def _assembled(
    ground: Ground,
    donor: Donor,
    image: Pixels,
    warped: tuple[Pixels, Mask, Mask],
    corner: tuple[int, int],
    size: int,
    seed: int,
    strength: float,
    rng: Rng,
) -> tuple[Scene, Site]:
    """The window around the place, and the warped donor moved into it."""
    left, top, width, height = _box(warped[1])
    x = _start(corner[0], width, size, image.shape[1], rng)
    y = _start(corner[1], height, size, image.shape[0], rng)
    shift = corner[0] - left - x, corner[1] - top - y
    window = np.ascontiguousarray(image[y : y + size, x : x + size])
    pixels, mask, reach = warped
    mask = _moved(mask, shift, size)
    scene = Scene(window, mask, donor.name, seed, _moved(pixels, shift, size), _moved(reach, shift, size), strength)
    return scene, Site(ground, donor, (x, y, size, size), int(mask.sum()), donor.severity)


def _moved(image: NDArray[N], shift: tuple[int, int], size: int) -> NDArray[N]:
    """The image in an empty window, its corner at `shift` (across, down); what leaves the window is cut off."""
    moved = np.zeros((size, size, *image.shape[2:]), image.dtype)
    x, y = shift
    part = image[max(0, -y) : size - y, max(0, -x) : size - x]
    moved[max(0, y) : max(0, y) + part.shape[0], max(0, x) : max(0, x) + part.shape[1]] = part
    return moved
