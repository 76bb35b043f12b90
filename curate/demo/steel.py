"""Painting of the demo plant: a coil's views, their defects with exact masks, and marks that are no defects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = ("scratches", "patches", "inclusion", "rolled_in_scale", "blister", "edge_crack")
SIZE = (512, 128)
SHAPE = (SIZE[1], SIZE[0])
SMALLEST = 16  # pixels of a defect

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class View:
    """One image: `index` seeds its pixels, `path` is relative to the plant's folder."""

    index: int
    path: str
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coil:
    """One physical piece and its consecutive views; `edge`: the camera sees where the strip ends."""

    index: int
    name: str
    library: bool
    line: str
    camera: str
    folder: str
    edge: bool
    views: tuple[View, ...]


# --- steel: one long sheet a coil, cut into views -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineAppearance:
    """Look of a line's images: grey level, its slope along x and y, vignetting, noise, and the grain."""

    level: float
    slope: tuple[float, float]
    vignette: float
    noise: float
    tilt: float
    stretch: float
    fineness: float
    light: tuple[float, float]


LINES = {
    "A": LineAppearance(132, (-0.10, 0.12), 0.10, 2.0, 0.0, 60, 0.7, (-0.6, -0.8)),
    "B": LineAppearance(104, (0.13, -0.20), 0.24, 3.4, 0.05, 26, 1.2, (0.9, 0.4)),
}
# Rows above a view that its tilted grain is sheared in from.
MARGIN = 32


@dataclass(frozen=True, slots=True)
class CoilAppearance:
    """Look that the views of one coil share. With `flipped` the image is turned: the strip's edge is at the bottom."""

    line: LineAppearance
    level: float
    flipped: bool
    edge_row: float
    marks: str | None
    sheet: Image


@dataclass(frozen=True, slots=True)
class DefectTrait:
    """Properties of a defect over neighbouring views: its place across the strip, strength, and slant."""

    lane: float
    vigour: float
    bright: bool
    slant: float


@dataclass(frozen=True, slots=True)
class DefectPlace:
    """Surroundings of a defect: the row of the strip's edge in each column, and the direction of the light."""

    edge: Image
    light: tuple[float, float]


def paint(coil: Coil, seed: int) -> Iterator[tuple[NDArray[np.uint8], dict[str, Mask]]]:
    """Paint the pixels and masks of a coil's views. Without its classes a view is the same steel without defects."""
    piece = _piece(coil, np.random.default_rng([seed, 1, coil.index]))
    for n, view in enumerate(coil.views):
        yield _paint_view(piece, coil, view, n, seed)


def _piece(coil: Coil, rng: Rng) -> CoilAppearance:
    line = LINES[coil.line]
    level = line.level * (0.9 if coil.camera == "bottom" else 1.0) + rng.normal(0, 7)
    edge_row = rng.uniform(7, 20) if coil.edge else -40.0
    kinds = ("water", "oil", "roll", "smudge")
    marks = str(rng.choice(kinds)) if rng.random() < 0.4 else None
    return CoilAppearance(line, level, bool(rng.random() < 0.5), edge_row, marks, _sheet(line, len(coil.views), rng))


def _sheet(line: LineAppearance, views: int, rng: Rng) -> Image:
    """Rolled steel around grey level zero: grain in two sizes, lanes along the strip, clouds of scale, roll marks."""
    shape = (SIZE[1] + MARGIN, SIZE[0] * views)
    grain = _noise(shape, (line.stretch, line.fineness), rng) * rng.uniform(2.5, 5.0)
    grain += _noise(shape, (line.stretch / 8, line.fineness * 0.8), rng) * rng.uniform(2.0, 3.5)
    lanes = _noise(shape, (400, 1.5), rng) * rng.uniform(1.0, 3.0) + _noise(shape, (900, 12), rng) * 3
    clouds = _noise(shape, (60, 16), rng) * rng.uniform(1.5, 5.0) + _noise(shape, (14, 6), rng) * rng.uniform(0.5, 2.0)
    hairs = _cubed(_noise(shape, (line.stretch * 1.5, 0.6), rng)) * rng.uniform(0.2, 0.7)
    pits = _cubed(np.minimum(_noise(shape, (2.0, 0.8), rng), 0)) * rng.uniform(0.1, 0.6)
    return np.asarray(grain + lanes + clouds + hairs + pits + _roll_marks(shape[1], rng), dtype=np.float32)


def _noise(shape: tuple[int, int], size: tuple[float, float], rng: Rng) -> Image:
    """Smooth noise of unit variance whose features have `size` (x, y) pixels; fast at any size."""
    shrink = [max(1, int(s / 2)) for s in size]
    small = rng.standard_normal((shape[0] // shrink[1] + 4, shape[1] // shrink[0] + 4), dtype=np.float32)
    small = cv2.GaussianBlur(small, (0, 0), sigmaX=size[0] / shrink[0], sigmaY=size[1] / shrink[1])
    large = cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large / (large.std() + 1e-6), dtype=np.float32)


def _cubed(noise: Image) -> Image:
    """The noise cubed, for few but strong features: hairlines, pits. (`noise**3` takes fifty times as long.)"""
    return noise * noise * noise


def _roll_marks(length: int, rng: Rng) -> Image:
    """The faint band that a worn roll prints once a turn."""
    period, phase, width = rng.uniform(150, 420), rng.uniform(0, 400), rng.uniform(6, 20)
    strength = rng.uniform(1.0, 4.0) * (rng.random() < 0.4)
    away = (np.arange(length) + phase) % period - period / 2
    return np.asarray(strength * np.exp(-((away / width) ** 2)), dtype=np.float32)[None]


def _paint_view(
    piece: CoilAppearance, coil: Coil, view: View, number: int, seed: int
) -> tuple[NDArray[np.uint8], dict[str, Mask]]:
    # Steel, marks and noise have their own random stream: without its defects a view has the same other pixels.
    rng = np.random.default_rng([seed, 2, view.index])
    edge = piece.edge_row + _noise((1, SIZE[0]), (90, 1), rng)[0] * 0.8
    turn = -1 if piece.flipped else 1
    spot = DefectPlace(edge, (piece.line.light[0], piece.line.light[1] * turn))
    surface = _cut(piece, number) + _harmless(piece.marks, spot, rng)
    masks = {}
    for label in view.classes:
        kind = CLASSES.index(label)
        trait = _trait(np.random.default_rng([seed, 3, coil.index, kind]), piece.edge_row)
        delta, mask = _defect(label, trait, spot, np.random.default_rng([seed, 4, view.index, kind]))
        surface += delta
        masks[label] = np.ascontiguousarray(mask[::turn])
    lit = _end_of_strip(surface + piece.level, edge, rng)[::turn] * _lighting(piece.line, coil.camera, rng)
    return _expose(lit, piece.line.noise, rng), masks


def _cut(piece: CoilAppearance, number: int) -> Image:
    """One view of the sheet, sheared by the line's tilt."""
    window = piece.sheet[:, number * SIZE[0] : (number + 1) * SIZE[0]]
    shear = np.array([[1, 0, 0], [piece.line.tilt, 1, -MARGIN]], dtype=np.float32)
    return np.asarray(cv2.warpAffine(window, shear, SIZE, borderMode=cv2.BORDER_REFLECT), dtype=np.float32)


def _depth(edge: Image) -> Image:
    """Depth in pixels inside the strip, for each pixel."""
    return np.asarray(np.arange(SIZE[1])[:, None] - edge[None], dtype=np.float32)


def _end_of_strip(surface: Image, edge: Image, rng: Rng) -> Image:
    depth = _depth(edge)
    inside = np.clip(depth + 0.5, 0, 1)
    rim = np.exp(-((depth - 1.5) ** 2) / 3) * rng.uniform(4, 22)
    beyond = rng.uniform(10, 30)
    return np.asarray((surface + rim) * inside + beyond * (1 - inside), dtype=np.float32)


def _lighting(line: LineAppearance, camera: str, rng: Rng) -> Image:
    y, x = np.mgrid[-1 : 1 : SIZE[1] * 1j, -1 : 1 : SIZE[0] * 1j].astype(np.float32)
    along, across = line.slope[0], line.slope[1] * (-1 if camera == "bottom" else 1)
    light = 1 + along * x + across * y - line.vignette * (0.7 * x**2 + 0.3 * y**2)
    return np.asarray(light * rng.normal(1, 0.015), dtype=np.float32)


def _expose(lit: Image, noise: float, rng: Rng) -> NDArray[np.uint8]:
    """Blur as a slightly soft lens does, and add sensor noise: brighter pixels are noisier."""
    soft = cv2.GaussianBlur(lit, (0, 0), 0.5)
    grains = rng.standard_normal(soft.shape, dtype=np.float32) * noise * np.sqrt(np.clip(soft, 1, None) / 120)
    return np.asarray(np.clip(np.rint(soft + grains), 0, 255), dtype=np.uint8)


# --- marks that are no defects ------------------------------------------------------------------------------------


def _harmless(kind: str | None, spot: DefectPlace, rng: Rng) -> Image:
    """Marks that look like defects: now and then on any coil, often on one that is prone to them."""
    if rng.random() < 0.1:
        kind = str(rng.choice(["water", "oil", "roll", "smudge"]))
    elif rng.random() < 0.45:
        kind = None
    match kind:
        case "water":
            return _water(rng)
        case "oil":
            return _oil(rng)
        case "roll":
            return _dents_of_roll(rng)
        case "smudge":
            return _smudge(spot, rng)
    return _blank()


def _water(rng: Rng) -> Image:
    """Dried water drops: a pale rim around a barely darker disc."""
    out, (cx, cy) = _blank(), (rng.uniform(60, 450), rng.uniform(30, 100))
    for _ in range(rng.integers(2, 10)):
        radius = rng.uniform(4, 13)
        r = _radius(cx + rng.normal(0, 45), cy + rng.normal(0, 18), radius * rng.uniform(0.9, 1.5), radius)
        out += 9 * np.exp(-(((r - 1) / 0.14) ** 2)) - 4 * (r < 1)
    return out * np.float32(rng.uniform(0.5, 1.1))


def _oil(rng: Rng) -> Image:
    """A soft dark stain without any border."""
    r = _radius(rng.uniform(20, 490), rng.uniform(20, 108), rng.uniform(25, 90), rng.uniform(12, 30))
    wobble = 1 + 0.25 * _noise(SHAPE, (24, 12), rng)
    return np.asarray(-rng.uniform(12, 32) * np.exp(-((r * wobble) ** 2)), dtype=np.float32)


def _dents_of_roll(rng: Rng) -> Image:
    """Short pale dashes at even distances, from a nick in a roll."""
    canvas, step = np.zeros(SHAPE, np.uint8), int(rng.integers(70, 190))
    y, tall = int(rng.integers(20, 100)), int(rng.integers(3, 10))
    for x in range(int(rng.integers(0, step)), SIZE[0], step):
        cv2.line(canvas, (x, y), (x + 1, y + tall), 255, 2, cv2.LINE_AA)
    return _soft(canvas, 0.9) * np.float32(rng.uniform(9, 22))


def _smudge(spot: DefectPlace, rng: Rng) -> Image:
    """Dirt carried by the guide: soft and dark, at the edge where there is one."""
    x, out = rng.uniform(30, 480), _blank()
    row = float(np.clip(spot.edge[int(x)], 4, None))
    for _ in range(rng.integers(1, 4)):
        r = _radius(x + rng.normal(0, 25), row + rng.uniform(0, 10), rng.uniform(4, 16), rng.uniform(3, 9))
        out -= np.asarray(rng.uniform(12, 34) * np.exp(-(r**2)), dtype=np.float32)
    return out


# --- defects: their change of the surface, and their mask ---------------------------------------------------------


def _trait(rng: Rng, edge_row: float) -> DefectTrait:
    top = max(edge_row, 0) + 16
    vigour = float(np.clip(rng.normal(1, 0.22), 0.6, 1.5))
    return DefectTrait(rng.uniform(top, SIZE[1] - 18), vigour, bool(rng.random() < 0.55), rng.normal(0, 0.06))


def _defect(label: str, trait: DefectTrait, spot: DefectPlace, rng: Rng) -> tuple[Image, Mask]:
    """One class of defect on one view; painted anew in the rare case that almost nothing of it lies on the strip."""
    while True:
        delta, mask = PAINTERS[label](trait, spot, rng)
        mask &= _depth(spot.edge) > 0
        if mask.sum() >= SMALLEST:
            return delta, mask


def _scratches(trait: DefectTrait, spot: DefectPlace, rng: Rng) -> tuple[Image, Mask]:
    """Long and thin lines, nearly along the strip, of varying brightness."""
    canvas, edge_row = np.zeros(SHAPE, np.uint8), max(float(spot.edge.mean()), 0)
    for _ in range(rng.integers(1, 5)):
        t = np.linspace(0, 1, 24)
        x = rng.uniform(-40, 330) + t * rng.uniform(90, 420)
        lean = (trait.slant + rng.normal(0, 0.02)) * (x - x.mean()) + rng.normal(0, 5) * (t - 0.5) ** 2
        y = np.clip(trait.lane + rng.normal(0, 10), edge_row + 6, SIZE[1] - 6) + lean
        width, strengths = int(rng.choice([1, 1, 2])), rng.uniform(0.7, 1) * np.minimum(1, 0.35 + 5 * t * (1 - t))
        for i in range(len(t) - 1):
            _stroke(canvas, x[i : i + 2], y[i : i + 2], float(strengths[i]), width)
    alpha = _soft(canvas, 0.55)
    fading = np.clip(0.8 + 0.22 * _noise((1, SIZE[0]), (30, 1), rng), 0.55, 1.2)
    return alpha * fading * np.float32((54 if trait.bright else -50) * trait.vigour), alpha > 0.22


def _patches(trait: DefectTrait, spot: DefectPlace, rng: Rng) -> tuple[Image, Mask]:
    """Dark, ragged areas, mottled inside."""
    alpha = _blank()
    for _ in range(rng.integers(1, 3)):
        size = (rng.uniform(18, 60), rng.uniform(9, 26))
        alpha = np.maximum(alpha, _region(_anywhere(trait, rng), size, (14, 7), rng))
    mottle = np.clip(0.9 + 0.2 * _noise(SHAPE, (7, 2), rng), 0.3, 1.4)
    return alpha * mottle * np.float32(-25 * trait.vigour), alpha > 0.4


def _inclusion(trait: DefectTrait, spot: DefectPlace, rng: Rng) -> tuple[Image, Mask]:
    """Dark specks, drawn out along the strip, in one lane."""
    canvas, (cx, cy) = np.zeros(SHAPE, np.uint8), _anywhere(trait, rng)
    for _ in range(rng.integers(3, 12)):
        at = (np.clip(cx + rng.normal(0, 40), 12, SIZE[0] - 12), cy + rng.normal(0, 4))
        half = (rng.uniform(3, 13), rng.uniform(0.8, 2.1))
        centre, axes = (np.rint(np.array(pair) * 16).astype(int).tolist() for pair in (at, half))
        shade = int(rng.uniform(150, 255))
        cv2.ellipse(canvas, centre, axes, float(rng.normal(0, 4)), 0, 360, shade, -1, cv2.LINE_AA, shift=4)
    alpha = _soft(canvas, 0.6)
    ragged = np.clip(0.95 + 0.2 * _noise(SHAPE, (4, 2), rng), 0.5, 1.3)
    return alpha * ragged * np.float32(-50 * trait.vigour), alpha > 0.25


def _rolled_in_scale(trait: DefectTrait, spot: DefectPlace, rng: Rng) -> tuple[Image, Mask]:
    """Blobs of coarse, flaky texture, hardly darker than the steel around them."""
    alpha = _blank()
    for _ in range(rng.integers(1, 4)):
        size = (rng.uniform(12, 42), rng.uniform(7, 20))
        alpha = np.maximum(alpha, _region(_anywhere(trait, rng), size, (9, 6), rng))
    flakes = np.tanh(1.4 * _noise(SHAPE, (2.6, 1.3), rng)) - 0.45
    return alpha * flakes * np.float32(19 * trait.vigour), alpha > 0.4


def _blister(trait: DefectTrait, spot: DefectPlace, rng: Rng) -> tuple[Image, Mask]:
    """Small bumps: bright towards the light, dark away from it, with a thin shadow around."""
    delta, mask = _blank(), np.zeros(SHAPE, np.bool_)
    for _ in range(rng.integers(1, 4)):
        x, y = _anywhere(trait, rng)
        x, y = x + rng.normal(0, 8), float(np.clip(y, max(spot.edge.mean(), 0) + 10, SIZE[1] - 10))
        rx, ry = rng.uniform(5, 11), rng.uniform(4, 7.5)
        r = _radius(x, y, rx, ry)
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
        towards = (spot.light[0] * (columns - x) / rx + spot.light[1] * (rows - y) / ry).astype(np.float32)
        delta += towards * np.exp(-((r / 0.62) ** 2)) * 62 - 9 * np.exp(-(((r - 0.95) / 0.16) ** 2))
        mask |= r < 1.08
    return delta * np.float32(trait.vigour), mask


def _edge_crack(trait: DefectTrait, spot: DefectPlace, rng: Rng) -> tuple[Image, Mask]:
    """Short, jagged, dark cracks from the edge inwards, narrowing; one to three close to each other."""
    wide, narrow = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    first = rng.uniform(40, SIZE[0] - 40)
    for _ in range(rng.integers(1, 4)):
        x = np.clip(first + rng.normal(0, 18), 8, SIZE[0] - 9)
        steps, depth = 9, rng.uniform(9, 24)
        xs = x + np.cumsum(rng.normal(trait.slant * 6, 1.1, steps))
        ys = spot.edge[int(x)] + np.linspace(-1, depth, steps)
        _stroke(narrow, xs, ys, 0.8, 1)
        _stroke(wide, xs[: steps // 2], ys[: steps // 2], 1.0, 2)
    alpha = _soft(np.maximum(wide, narrow), 0.6)
    lip = np.roll(alpha, 2, axis=1) * (1 - alpha)
    return (9 * lip - 58 * alpha) * np.float32(trait.vigour), alpha > 0.22


PAINTERS: dict[str, Callable[[DefectTrait, DefectPlace, Rng], tuple[Image, Mask]]] = {
    "scratches": _scratches,
    "patches": _patches,
    "inclusion": _inclusion,
    "rolled_in_scale": _rolled_in_scale,
    "blister": _blister,
    "edge_crack": _edge_crack,
}


# --- brushes ------------------------------------------------------------------------------------------------------


def _blank() -> Image:
    return np.zeros(SHAPE, np.float32)


def _soft(canvas: NDArray[np.uint8], sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), sigma), dtype=np.float32)


def _stroke(canvas: NDArray[np.uint8], x: NDArray[Any], y: NDArray[Any], strength: float, width: int) -> None:
    points = np.rint(np.stack([x, y], axis=1) * 16).astype(np.int32)
    cv2.polylines(canvas, [points], False, int(255 * strength), width, cv2.LINE_AA, shift=4)


def _radius(cx: float, cy: float, rx: float, ry: float) -> Image:
    """Distance from a centre, where 1 is the ellipse's border."""
    y, x = np.ogrid[: SIZE[1], : SIZE[0]]
    return np.asarray(np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2), dtype=np.float32)


def _anywhere(trait: DefectTrait, rng: Rng) -> tuple[float, float]:
    return rng.uniform(30, SIZE[0] - 30), trait.lane + rng.normal(0, 4)


def _region(at: tuple[float, float], size: tuple[float, float], rough: tuple[float, float], rng: Rng) -> Image:
    """An ellipse with a border made ragged by coarse and fine noise: 1 inside, 0 outside, soft over a few pixels."""
    noise = 0.45 * np.clip(_noise(SHAPE, rough, rng), -1.6, 1.6) + 0.13 * _noise(SHAPE, (4, 1.6), rng)
    torn = 1 - _radius(*at, *size) + noise
    return np.asarray(np.clip(torn * min(size) / 4, 0, 1), dtype=np.float32)
