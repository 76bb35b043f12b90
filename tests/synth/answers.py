"""Made-up answers to test images, so good as a test wants them."""

from __future__ import annotations

import numpy as np

from tests.train.conftest import CLASSES
from train.evaluate import metrics
from train.evaluate.metrics import EvaluatedImages, PixelCounts


def judged(
    hits: dict[str, float], groups: int = 12, seed: int = 0, alarms: float = 0.0, missed: tuple[str, ...] = ()
) -> EvaluatedImages:
    """Every group shows each class once, of which this share of pixels is found, more or less; and one clean image."""
    random = np.random.default_rng(seed)
    n, count = groups * 3, len(CLASSES)
    present, counts = np.zeros((n, count), bool), np.zeros((n, count, 3), np.int64)
    for row in range(n):
        if row % 3 < count:
            hit = int(np.clip(1000 * hits[CLASSES[row % 3]] + random.normal(0, 20), 0, 1000))
            present[row, row % 3], counts[row, row % 3] = True, (hit, 0, 1000 - hit)
    decided = present | (~present.any(axis=1, keepdims=True) & (random.random((n, 1)) < alarms))
    decided[:, [CLASSES.index(name) for name in missed]] = False
    histogram = np.ones((n, count, 2, metrics.BINS), np.int64)
    pixels = PixelCounts(counts, histogram, np.zeros((n, count, len(metrics.THRESHOLDS)), np.int64))
    names = tuple(f"g{row // 3}" for row in range(n))
    return EvaluatedImages(CLASSES, tuple(map(str, range(n))), names, present, decided * 1.0, decided, False, pixels)
