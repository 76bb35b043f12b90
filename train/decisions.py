"""A model's decision for each class: from which probability, and from how many pixels on, an image shows it.

Decisions are fitted on val after training and stored in the model's manifest; without them the recipe's hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Decision(NamedTuple):
    """`min_area` counts for a segmenter alone: the fewest pixels of a region."""

    threshold: float
    min_area: int = 1


def from_manifest(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Decision]:
    """Return the decisions by class. Raises ValueError where an entry is not as `curate train` writes it."""
    return {name: _decision(entry) for name, entry in entries.items()}


def _decision(entry: Any) -> Decision:
    threshold, area = (entry.get(name) if isinstance(entry, Mapping) else None for name in ("threshold", "min_area"))
    if not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise ValueError("a threshold is not above 0 and at most 1")
    if area is not None and (not isinstance(area, int) or area < 1):
        raise ValueError("an area is not a number of pixels")
    return Decision(float(threshold), area or 1)


def decide(p: NDArray[Any], thresholds: Sequence[float], single: bool) -> NDArray[np.bool_]:
    """Return the outcomes (n, outputs) that are decided on, from a classifier's probabilities (n, outputs).

    Independent classes are decided one by one. Of a single choice, the outcome wins whose probability is the highest
    multiple of its threshold; with equal thresholds that is the most likely one.
    """
    limits = np.asarray(thresholds, p.dtype)
    if not single:
        return np.asarray(p >= limits)
    return np.asarray(np.arange(p.shape[1]) == (p / limits).argmax(axis=1)[:, None])
