"""Uniformly random: the baseline. With --plain the probabilities of its picks are known, as those of an audit are."""

from __future__ import annotations

import numpy as np

from curate.select.pool import Pick, Picks, Pool


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Draw images at random.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the images.

    Returns:
        Picks in random order, each with its propensity.
    """
    rows = pool.open
    drawn = rng.permutation(rows)[:budget]
    chance = len(drawn) / max(1, len(rows))
    return tuple(Pick(pool.ids[row], "random", 1.0, "drawn at random", propensity=chance) for row in drawn)
