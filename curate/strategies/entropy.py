"""Highest predictive entropy over all classes (Lewis and Gale, 1994)."""

from __future__ import annotations

import numpy as np

from curate.select import uncertainty
from curate.select.pool import Picks, Pool
from curate.strategies._common import likeliest, likelihood, picks, source, top, wanted


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    likely = likelihood(pool, "entropy")
    score = uncertainty.predictive_entropy_multilabel(likely[:, wanted(pool)])

    def reason(row: int) -> str:
        return f"entropy {score[row]:.2f} by the {source(pool)}; {likeliest(pool, likely, row)}"

    return picks(pool, top(pool, score, budget), "entropy", score, reason)
