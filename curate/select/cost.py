"""Budgets as a person writes them, and seconds per image as learned from lead times."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curate.errors import CurateError

Floats = npt.NDArray[np.float64]

SECONDS = 30.0  # for an image, while there are no lead times
SHORTEST = 1.0  # below, a budget of time would buy any number of images
PRIOR = 5.0  # the start values count as much as so many images
HUBER = 1.345  # 95 % efficient on normal errors (Huber 1964)
STEPS = 50

_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_TIME = re.compile(rf"(?:{_NUMBER}\s*h)?\s*(?:{_NUMBER}\s*m)?\s*(?:{_NUMBER}\s*s)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ImageBudget:
    """A budget in images."""

    count: int


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """A budget in seconds of a person's time."""

    seconds: float


def parse_budget(text: str) -> ImageBudget | TimeBudget:
    """Parse a budget: `500` is images; `4h`, `90m`, `45s` and `2h30m` are time."""
    plain = text.strip().lower()
    if re.fullmatch(r"[0-9]{1,9}", plain):
        budget: ImageBudget | TimeBudget = ImageBudget(int(plain))
    else:
        budget = TimeBudget(_seconds(plain))
    if budget in (ImageBudget(0), TimeBudget(0.0)):
        raise CurateError(
            f"budget '{text}' is not usable; allowed: a number of images (500) or a time (4h, 90m, 45s, 2h30m) above 0."
            " Say how much you want to label, for example --budget 200 or --budget 1h"
        )
    return budget


def _seconds(text: str) -> float:
    """Seconds of a time such as `2h30m`; 0 where the text is none."""
    match = _TIME.fullmatch(text)
    parts = match.groups(default="0") if match else ("0", "0", "0")
    return sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds for an image: `base` plus `per_region` of its class for each region."""

    classes: tuple[str, ...]
    base: float
    per_region: tuple[float, ...]
    images: int = 0  # lead times it was fitted on

    @classmethod
    def constant(cls, classes: Sequence[str], seconds: float = SECONDS) -> CostModel:
        return cls(tuple(classes), seconds, (0.0,) * len(classes))

    @classmethod
    def fit(
        cls, lead_times: npt.ArrayLike, class_counts: npt.ArrayLike, classes: Sequence[str], seconds: float = SECONDS
    ) -> CostModel:
        """Fit on Label Studio's lead times (n,) in seconds and each image's regions of each class (n, C).

        Non-negative least squares with Huber weights, since a lead time may include a break. While there is little
        data the fit is drawn towards the constant `seconds`, and a rare class towards the mean region of any class.
        """
        times, counts = _usable(lead_times, class_counts, len(classes))
        if not times.size:
            return cls.constant(classes, seconds)
        _, region = _robust(times, counts.sum(axis=1, keepdims=True), np.array([seconds, 0.0]))
        fitted = _robust(times, counts, np.array([seconds, *[region] * len(classes)]))
        return cls(tuple(classes), float(fitted[0]), tuple(map(float, fitted[1:])), times.size)

    def seconds(self, expected_counts: npt.ArrayLike) -> Floats:
        """Expected seconds (n,) of images with so many expected regions (n, C)."""
        counts = np.asarray(expected_counts, dtype=np.float64)
        if counts.ndim != 2 or counts.shape[1] != len(self.classes):
            raise ValueError(f"expected counts of {len(self.classes)} classes, not an array of shape {counts.shape}")
        result: Floats = np.maximum(self.base + counts @ np.array(self.per_region, dtype=np.float64), SHORTEST)
        return result

    def to_json(self) -> dict[str, Any]:
        return {"base": self.base, "per_region": dict(zip(self.classes, self.per_region, strict=True))} | {
            "images": self.images
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> CostModel:
        regions = entry["per_region"]
        return cls(tuple(regions), float(entry["base"]), tuple(map(float, regions.values())), int(entry["images"]))


def effort(seconds: npt.NDArray[np.floating], candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The seconds of each image in those of the median candidate, and at least 1.

    Value is divided by it: an image that takes twice as long must be worth twice as much. One that is quicker than
    usual is not preferred for that, or trivial clean images, the quickest of all, would fill a round.
    """
    usual = float(np.median(seconds[candidates])) if candidates.any() else 1.0
    return np.asarray(np.maximum(seconds / max(usual, SHORTEST), 1), np.float32)


def _usable(lead_times: npt.ArrayLike, class_counts: npt.ArrayLike, classes: int) -> tuple[Floats, Floats]:
    times = np.asarray(lead_times, dtype=np.float64)
    counts = np.asarray(class_counts, dtype=np.float64).reshape(len(times), classes)
    good = np.isfinite(times) & (times > 0) & np.isfinite(counts).all(axis=1)
    return times[good], counts[good]


def _robust(times: Floats, counts: Floats, start: Floats) -> Floats:
    """Huber's M-estimate of (base, per region), drawn towards `start`, by iteratively reweighted least squares."""
    features = np.column_stack([np.ones(len(times)), counts])
    weight: Floats = np.ones(len(times))
    fitted = start
    for _ in range(STEPS):
        previous, fitted = fitted, _ridge(features, times, weight, start)
        if np.allclose(fitted, previous, rtol=1e-5, atol=1e-5):
            break
        weight = _trust(times, np.maximum(features @ fitted, SHORTEST))
    return fitted


def _trust(times: Floats, expected: Floats) -> Floats:
    """Huber weights of relative errors: by absolute ones each defect would be an outlier among quick clean images."""
    errors = np.abs(times / expected - 1)
    scale = 1.4826 * float(np.median(errors))
    trust: Floats = np.minimum(1, HUBER * max(scale, 1e-3) / np.maximum(errors, 1e-9))
    return trust


def _ridge(features: Floats, times: Floats, weight: Floats, start: Floats) -> Floats:
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    root = np.sqrt(weight)
    pull = math.sqrt(PRIOR) * np.eye(len(start))
    fitted, _ = nnls(np.vstack([features * root[:, None], pull]), np.concatenate([times * root, pull @ start]))
    return np.asarray(fitted, dtype=np.float64)
