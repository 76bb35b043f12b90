"""Counts that add up over batches, and what follows from them. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (classes, 3): found, false, missed


def counts(predicted: Any, target: Any) -> Counts:
    """Of boolean tensors or arrays with the class axis at 1."""
    axes = tuple(axis for axis in range(predicted.ndim) if axis != 1)
    found, false, missed = predicted & target, predicted & ~target, ~predicted & target
    return np.stack([np.asarray(one.sum(axes), np.int64) for one in (found, false, missed)], axis=1)


def f1(found: Counts, names: Sequence[str]) -> dict[str, float | None]:
    """2 TP / (2 TP + FP + FN) of each class: of pixels it is Dice. None where nothing was there and nothing found."""
    return {name: _ratio(*row.tolist()) for name, row in zip(names, found, strict=True)}


def _ratio(found: int, false: int, missed: int) -> float | None:
    total = 2 * found + false + missed
    return 2 * found / total if total else None
