"""Gates that a synthetic image must pass, and metrics of a batch as a whole: pure functions of arrays.

A gate takes one metric of every image and gives every image a reason to be refused, or nothing (''). The usual range is
learnt from the real defects of train alone (`Limits`), and from pairs of different groups where it is about similarity:
exposures of one piece are more similar than any two defects.

References: Kynkäänniemi et al. 2019 (precision and recall); Naeem et al. 2020 (density and coverage); Bińkowski et al.
2018 (the kernel distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Reasons = list[str]
ENCODER = "texture"  # the encoder of curate embed that looks at defects: a crop of one is too small for a network
AGREEMENT = 0.6  # IoU of the label with what a segmenter sees there
FAR = 0.99  # of real defects have a real neighbour of another group nearer than the limit
SLACK = 1.5  # how far beyond the real defects' range a size, a shape or a seam may be
INSIDE = 0.99  # of the mask lies on steel
RIM = 2  # pixels on either side of a mask's border
NEIGHBOURS = 5


class ValueRange(NamedTuple):
    """Range of a metric over real defects, with some room. NaN: not known, so nothing is refused."""

    low: float
    high: float


@dataclass(frozen=True)
class Limits:
    """Usual ranges of one class. `near`: distance to the nearest real defect."""

    near: ValueRange
    area: ValueRange
    aspect: ValueRange
    seam: ValueRange


# --- gates ----------------------------------------------------------------------------------------------------------


def sound(area: Floats, told: Floats, outside: Floats) -> Reasons:
    """`area` of the mask file, as the manifest has it, and pixels of it outside the window."""
    empty = ["the mask is empty" if value == 0 else "" for value in area]
    wrong = ["" if a == b else f"the mask has {a:.0f} pixels, the manifest says {b:.0f}" for a, b in _pairs(area, told)]
    beyond = [f"{value:.0f} pixels of the mask lie outside the window" if value > 0 else "" for value in outside]
    return [a or b or c for a, b, c in zip(empty, wrong, beyond, strict=True)]


def agreed(iou: Floats, least: float = AGREEMENT) -> Reasons:
    """A segmenter that knows real defects alone sees the defect where the label says it is."""
    return [f"IoU {value:.2f}, at least {least:g} is needed" if value < least else "" for value in iou]


def new(near: Floats, spans: Sequence[ValueRange]) -> Reasons:
    """No copy: not nearer to a real defect than real ones of different groups are to each other."""
    text = "{:.3f} from a real defect; real ones of different groups are at least {:.3f} apart"
    return [text.format(value, span.low) if value < span.low else "" for value, span in zip(near, spans, strict=True)]


def likely(near: Floats, spans: Sequence[ValueRange]) -> Reasons:
    """No nonsense: not further from all real defects than these are from each other."""
    text = "{:.3f} from the nearest real defect; these have another within {:.3f}"
    return [text.format(value, span.high) if value > span.high else "" for value, span in zip(near, spans, strict=True)]


def usual(values: Floats, spans: Sequence[ValueRange]) -> Reasons:
    """A size, a shape or a seam within what real defects show."""
    text = "{:.4g} is outside {:.4g} to {:.4g}"
    return [text.format(value, *span) if _off(value, span) else "" for value, span in zip(values, spans, strict=True)]


def on_steel(inside: Floats, least: float = INSIDE) -> Reasons:
    return [f"only {value:.0%} of the mask lie on steel" if value < least else "" for value in inside]


def gathered(*gates: Reasons) -> list[tuple[str, ...]]:
    """Each image's reasons."""
    return [tuple(reason for reason in of_one if reason) for of_one in zip(*gates, strict=True)]


def _off(value: float, span: ValueRange) -> bool:
    return value < span.low or value > span.high


def _pairs(a: Floats, b: Floats) -> list[tuple[float, float]]:
    return list(zip(a.tolist(), b.tolist(), strict=True))


# --- what is usual --------------------------------------------------------------------------------------------------

UNKNOWN = ValueRange(float("nan"), float("nan"))


def nearness(features: Floats, groups: Sequence[str]) -> ValueRange:
    """Range of distances to the nearest real defect of another group, from train alone. Needs two groups."""
    other = np.asarray(groups)[:, None] != np.asarray(groups)
    if not other.any():
        return UNKNOWN
    apart = np.where(other, distances(features, features), np.inf)
    nearest = apart.min(axis=1)
    return ValueRange(float(apart.min()), float(np.quantile(nearest[np.isfinite(nearest)], FAR)))


def span(values: Floats) -> ValueRange:
    known = values[np.isfinite(values)]
    return ValueRange(float(known.min()) / SLACK, float(known.max()) * SLACK) if len(known) else UNKNOWN


def distances(a: Floats, b: Floats) -> Floats:
    """Euclidean, (len(a), len(b))."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(square, 0)), np.float64)


# --- figures of one defect ------------------------------------------------------------------------------------------


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 0.0


def elongation(mask: NDArray[np.bool_]) -> float:
    """Length by width, whichever way it lies: from second moments, so that turning changes nothing. NaN if empty."""
    y, x = np.nonzero(mask)
    if not len(y):
        return float("nan")
    spread = np.cov(np.stack([y, x]), bias=True) + np.eye(2) / 12  # a pixel has a width of its own
    small, large = np.linalg.eigvalsh(spread)
    return float(np.sqrt(large / small))


def seam(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Mean gradient of the grey values along the mask's border: a hard seam stands out. NaN without a border."""
    grey = pixels.reshape(*pixels.shape[:2], -1).mean(axis=2).astype(np.float32)
    steep = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8))
    rim = border(mask)
    return float(steep[rim].mean()) if rim.any() else float("nan")


def border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels near the mask's edge, on both sides."""
    kernel = np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)
    wide, thin = (change(mask.astype(np.uint8), kernel) for change in (cv2.dilate, cv2.erode))
    return np.asarray(wide > thin)


# --- figures of a batch ---------------------------------------------------------------------------------------------


def kernel_distance(a: Floats, b: Floats) -> float:
    """Unbiased squared distance of two samples under the kernel (x y / d + 1)^3; around 0 for similar ones."""
    if len(a) < 2 or len(b) < 2:
        return float("nan")
    within = [(_kernel(x, x).sum() - np.trace(_kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(within[0] + within[1] - 2 * _kernel(a, b).mean())


def _kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def prdc(real: Floats, synthetic: Floats, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """Precision, recall, density and coverage. A real defect's ball reaches to its k-th real neighbour."""
    k = min(neighbours, len(real) - 1, len(synthetic) - 1)
    if k < 1:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), float("nan"))
    between = distances(real, synthetic)
    inside = between < _reach(real, k)[:, None]
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((between < _reach(synthetic, k)).any(axis=1).mean()),
        "density": float(inside.sum() / (k * len(synthetic))),
        "coverage": float(inside.any(axis=1).mean()),
    }


def _reach(points: Floats, k: int) -> Floats:
    """Distance of each to its k-th neighbour, itself not counted."""
    apart = distances(points, points)
    np.fill_diagonal(apart, 0.0)
    return np.asarray(np.sort(apart, axis=1)[:, k])


def plain(figures: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN by None, for JSON."""
    return {
        name: plain(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not np.isfinite(value)
        else value
        for name, value in figures.items()
    }
