"""Greedy core-set: always the image farthest from all that is labelled or chosen (Sener and Savarese, 2018)."""

from __future__ import annotations

import numpy as np

from curate.greedy.kcenter import CoverBounds, kcenter
from curate.select.pool import Picks, Pool
from curate.strategies._common import picks_of


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick the image farthest from all labelled and chosen ones, again and again.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.

    Returns:
        One pick an image, best first.
    """
    bounds = pool.once("kcenter bounds", list[CoverBounds])
    result = kcenter(pool.vectors, budget, covered=pool.covered, candidates=pool.candidates, bounds=bounds)
    distance = np.zeros(len(pool), np.float32)
    distance[result.picks] = result.radius

    def reason(row: int) -> str:
        if not np.isfinite(distance[row]):
            return "the most central image: nothing was labelled or chosen before"
        return f"distance {distance[row]:.2f} to the nearest labelled or chosen image"

    return picks_of(pool, result.picks, "kcenter", distance, reason)
