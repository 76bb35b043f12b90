"""Diverse gradients: images that would change the last layer most, in different directions (Ash et al., 2020)."""

from __future__ import annotations

import numpy as np

from curate.greedy import badge
from curate.select.pool import Picks, Pool
from curate.strategies._common import class_probabilities, likeliest_class, picks_of


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick images with large and different gradients of the last layer (k-means++ on gradients).

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws each pick by its squared distance to the picks before it.

    Returns:
        One pick an image, best first.
    """
    likely = class_probabilities(pool, "badge")
    # Classes are not exclusive: a class's gradient is its probability less 1 where it is above one half.
    residuals = np.asarray(likely - (likely > 0.5), np.float32)
    rows = badge.badge(pool.vectors, residuals, budget, rng, candidates=pool.candidates)
    norm = np.linalg.norm(residuals, axis=1)

    def reason(row: int) -> str:
        return f"gradient {norm[row]:.2f}, in a direction of its own; {likeliest_class(pool, likely, row)}"

    return picks_of(pool, rows, "badge", norm, reason)
