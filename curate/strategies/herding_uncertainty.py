"""Coverage weighted by uncertainty: images that stand for many doubtful ones (Bae et al., 2025)."""

from __future__ import annotations

import numpy as np

from curate import scores
from curate.greedy.coverage import coverage
from curate.pool import Picks, Pool
from curate.strategies._common import likelihood, picks, wanted


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    likely = likelihood(pool, "herding_uncertainty")
    doubt = scores.predictive_entropy_multilabel(likely[:, wanted(pool)])
    weights = np.nan_to_num(np.asarray(doubt, np.float32))
    found = coverage(pool.vectors, budget, weights=weights, covered=pool.covered, candidates=pool.candidates)
    gain = np.zeros(len(pool), np.float32)
    gain[found.picks] = found.gains

    def reason(row: int) -> str:
        return f"stands for doubt worth {gain[row]:.1f}; its own entropy {weights[row]:.2f}"

    return picks(pool, found.picks, "herding_uncertainty", gain, reason)
