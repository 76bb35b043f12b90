"""Coverage with a kernel (Bae et al., 2024): images that stand for many which nothing labelled stands for."""

from __future__ import annotations

import numpy as np

from curate.greedy.coverage import coverage
from curate.pool import Picks, Pool
from curate.strategies._common import picks


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    found = coverage(pool.vectors, budget, covered=pool.covered, candidates=pool.candidates)
    gain = np.zeros(len(pool), np.float32)
    gain[found.picks] = found.gains

    def reason(row: int) -> str:
        return f"stands for about {gain[row]:.0f} images that nothing labelled stands for"

    return picks(pool, found.picks, "maxherding", gain, reason)
