"""Greedy core-set: always the image farthest from all that is labelled or chosen (Sener and Savarese, 2018)."""

from __future__ import annotations

import numpy as np

from curate.greedy.kcenter import kcenter
from curate.select.pool import Picks, Pool
from curate.strategies._common import picks


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    found = kcenter(pool.vectors, budget, covered=pool.covered, candidates=pool.candidates)
    far = np.zeros(len(pool), np.float32)
    far[found.picks] = found.radius

    def reason(row: int) -> str:
        if not np.isfinite(far[row]):
            return "the most central image: nothing was labelled or chosen before"
        return f"distance {far[row]:.2f} to the nearest labelled or chosen image"

    return picks(pool, found.picks, "kcenter", far, reason)
