"""Confusion counts that add up over batches, and F1 from them. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (classes, 3): hits, false alarms, misses


def confusion_counts(predicted: Any, target: Any) -> Counts:
    """Count hits, false alarms and misses per class in boolean tensors or arrays with the class axis at 1."""
    axes = tuple(axis for axis in range(predicted.ndim) if axis != 1)
    hits, false, missed = predicted & target, predicted & ~target, ~predicted & target
    return np.stack([np.asarray(flags.sum(axes), np.int64) for flags in (hits, false, missed)], axis=1)


def f1(counts: Counts, names: Sequence[str]) -> dict[str, float | None]:
    """Return 2 TP / (2 TP + FP + FN) per class (of pixels: Dice); None for a class neither present nor predicted."""
    return {name: _f1(*row.tolist()) for name, row in zip(names, counts, strict=True)}


def _f1(hits: int, false: int, missed: int) -> float | None:
    total = 2 * hits + false + missed
    return 2 * hits / total if total else None
