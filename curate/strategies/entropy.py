"""Highest predictive entropy over all classes (Lewis and Gale, 1994)."""

from __future__ import annotations

import numpy as np

from curate.select import uncertainty
from curate.select.pool import Picks, Pool
from curate.strategies._common import class_probabilities, likeliest_class, picks_of, predictor, top, wanted_classes


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick the images with the highest entropy of their class probabilities.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.

    Returns:
        One pick an image, best first.
    """
    likely = class_probabilities(pool, "entropy")
    score = uncertainty.predictive_entropy_multilabel(likely[:, wanted_classes(pool)])

    def reason(row: int) -> str:
        return f"entropy {score[row]:.2f} by the {predictor(pool)}; {likeliest_class(pool, likely, row)}"

    return picks_of(pool, top(pool, score, budget), "entropy", score, reason)
