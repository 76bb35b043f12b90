"""Smallest margin: images with a class whose probability is closest to one half (Scheffer et al., 2001)."""

from __future__ import annotations

import numpy as np

from curate.select.pool import Picks, Pool
from curate.strategies._common import class_probabilities, picks_of, predictor, top, wanted_classes


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick the images whose most doubtful class has a probability closest to one half.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.

    Returns:
        One pick an image, best first.
    """
    likely = class_probabilities(pool, "margin")
    # Classes are not exclusive: each has its own margin between shown and not shown.
    doubt = 1 - np.abs(2 * likely - 1)[:, wanted_classes(pool)]
    score = doubt.max(axis=1)
    names = [pool.classes[wanted_classes(pool)[i]] for i in doubt.argmax(axis=1)]

    def reason(row: int) -> str:
        return f"the {predictor(pool)} gives {names[row]} {likely[row, pool.classes.index(names[row])]:.2f}: undecided"

    return picks_of(pool, top(pool, score, budget), "margin", score, reason)
