"""The synthetic images of a trial: made for one fold and budget, from its own train part alone.

A lot is a folder `lots/<key>/` with images and `rows.json`, whole or not there. The bank, the generator
(`models/<key>/`) and the gates' standard come from the same few real images; a bank that is given one of the test part
raises.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.data import Defect, Item, Label
from curate.embed._base import Encoder
from curate.errors import CurateError
from curate.hashing import key_of, seeded_number
from curate.masks.shapes import defect_from_mask
from curate.paths import safe_join
from synth import check, generate, masks
from synth.nouns import CandidateImage, MaskBank, Scene, Site
from train.data.dataset import masks_of
from train.data.pixels import with_channels
from train.predict.predictor import Predictor

STEP = 2  # raise it when the same bank gives another lot than before
TRIES = 10  # draws for each image that is wanted: a defect that finds no place gives way to another
WINDOWS = 400  # that a generator learns from
ROWS, MODELS, LOTS = "rows.json", "models", "lots"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BatchOrder:
    """Order for a batch from a mask bank. `counts`: images of each class."""

    synthesiser: str
    counts: Mapping[str, int]
    size: int
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    device: str = "cpu"

    def of(self, function: str) -> dict[str, Any]:
        """The options that this function of the synthesiser knows."""
        known = inspect.signature(getattr(generate.MAKE.load(self.synthesiser), function)).parameters
        return {name: value for name, value in self.options if name in known}


def mark(order: BatchOrder) -> str:
    """Changes with all but the bank that makes other images."""
    module = generate.MAKE.load(order.synthesiser)
    steps = [STEP, masks.STEP, module.STEP]
    return key_of([order.synthesiser, dict(order.counts), order.size, order.seed, list(order.options), steps])


@dataclass(frozen=True)
class GateModels:
    """Models that the gates use. `segmenter` is called only where it is needed; `key` changes with it."""

    encoder: Encoder
    key: str
    segmenter: Callable[[], Predictor]


@dataclass(frozen=True)
class SyntheticItem:
    """A synthetic image as training sees it, with what gates need; `parents` are groups."""

    item: Item
    name: str
    window: tuple[int, int, int, int]
    parents: tuple[str, str]


def made(home: Path, bank: MaskBank, order: BatchOrder, progress: Progress) -> list[SyntheticItem]:
    """The lot, from disk where it is there."""
    target = home / LOTS / key_of([bank.digest, mark(order)])
    if not (target / ROWS).is_file():
        files.remove(target)
        model = fitted(home, bank, order, progress)
        with files.written_aside(target) as aside:
            _write(aside, bank, order, model, progress)
    return _read(target)


def fitted(home: Path, bank: MaskBank, order: BatchOrder, progress: Progress) -> Path:
    """The generator's folder; a killed fit goes on."""
    module = generate.MAKE.load(order.synthesiser)
    options = order.of("fit")
    folder = home / MODELS / key_of([order.synthesiser, bank.digest, order.size, order.seed, options, module.STEP])
    if not (folder / "done.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        learns = generate.learns(order.synthesiser)
        windows = masks.examples(bank, order.size, np.random.default_rng(order.seed), WINDOWS) if learns else []
        about = module.fit(
            windows, bank.classes, folder, progress=progress, device=order.device, seed=order.seed, **options
        )
        files.write_json(folder / "done.json", about)
    return folder


# --- a lot on disk --------------------------------------------------------------------------------------------------


def _write(folder: Path, bank: MaskBank, order: BatchOrder, model: Path, progress: Progress) -> None:
    (folder / "images").mkdir(parents=True)
    module, rows = generate.MAKE.load(order.synthesiser), []
    for name, count in order.counts.items():
        asked = _scenes(bank, name, count, order)
        windows = (
            module.generate([scene for scene, _ in asked], model, device=order.device, **order.of("generate"))
            if asked
            else []
        )
        for number, ((scene, site), window) in enumerate(zip(asked, windows, strict=True)):
            rows.append(_saved(folder, f"images/{name}-{number:04d}.png", bank, scene, site, window))
            progress(f"make {order.synthesiser}", 1, sum(order.counts.values()))
    files.write_json(folder / ROWS, rows)


def _scenes(bank: MaskBank, name: str, count: int, order: BatchOrder) -> list[tuple[Scene, Site]]:
    """Draw as many scenes as wanted, or as find a place: none where the class's defects do not fit or have no mask."""
    scenes: list[tuple[Scene, Site]] = []
    for number in range(TRIES * count):
        if len(scenes) == count:
            break
        with suppress(CurateError):
            scenes.append(masks.scene(bank, name, order.size, seeded_number(order.seed, name, number) % 2**31))
    return scenes


def _saved(folder: Path, file: str, bank: MaskBank, scene: Scene, site: Site, window: Any) -> dict[str, Any]:
    """The whole ground with the window put back."""
    from PIL import Image

    image = generate.put_back(bank, site, window)
    whole = generate.whole_mask(site, scene.mask).view(np.uint8)
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(folder / file)
    defect = defect_from_mask(scene.name, whole)
    assert defect is not None
    return {
        "id": hashlib.sha256((folder / file).read_bytes()).hexdigest(),
        "file": file,
        "size": [image.shape[1], image.shape[0]],
        "defect": defect.to_json(),
        "window": list(site.window),
        "groups": [site.ground.group, site.donor.group],
    }


def _read(folder: Path) -> list[SyntheticItem]:
    return [_sample(folder, row) for row in files.read_json(folder / ROWS)]


def _sample(folder: Path, row: Mapping[str, Any]) -> SyntheticItem:
    defect = Defect.from_json(row["defect"])
    label, ground = Label("labelled", (defect,)), row["groups"][0]
    path = safe_join(folder, row["file"])
    width, height = row["size"]
    item = Item(row["id"], path, width, height, label, "train", ground, source="synthetic")
    left, top, wide, high = row["window"]
    return SyntheticItem(item, defect.label, (left, top, wide, high), (ground, row["groups"][1]))


# --- through the gates ----------------------------------------------------------------------------------------------


def looks(bank: MaskBank, lot: Sequence[SyntheticItem]) -> Iterator[CandidateImage]:
    """Yield the images in the form that the gates check."""
    for image in lot:
        pixels = with_channels(masks.pixels_of(image.item, bank.max_pixels), bank.channels)
        mask = masks_of(image.item, [image.name])[0].astype(bool)
        yield CandidateImage(image.item.id, image.name, pixels, mask, image.window, int(mask.sum()))


def judged(
    home: Path, bank: MaskBank, order: BatchOrder, judge: GateModels, progress: Progress
) -> list[dict[str, Any]]:
    """Results of the gates for each image of a lot (`id`, `name`, `reasons`), kept beside it."""
    lot = made(home, bank, order, progress)
    folder = home / LOTS / key_of([bank.digest, mark(order)])
    file = folder / f"gates-{key_of([judge.key, judge.encoder.key, check.STEP])}.json"
    if not file.is_file():
        standard = check.standard_of(bank, judge.encoder)
        checked = check.inspected(looks(bank, lot), standard, judge.segmenter(), (), progress)
        files.write_json(file, [{"id": row.id, "name": row.name, "reasons": row.reasons} for row in checked.rows])
    rows: list[dict[str, Any]] = files.read_json(file)
    return rows
