"""Uniformly random: the honest baseline. With --plain its picks have known chances, as those of an audit have."""

from __future__ import annotations

import numpy as np

from curate.select.pool import Pick, Picks, Pool


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    rows = pool.open
    drawn = rng.permutation(rows)[:budget]
    chance = len(drawn) / max(1, len(rows))
    return tuple(Pick(pool.ids[row], "random", 1.0, "drawn at random", propensity=chance) for row in drawn)
