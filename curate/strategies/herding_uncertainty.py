"""Coverage weighted by uncertainty: images typical of many uncertain ones (Bae et al., 2025)."""

from __future__ import annotations

import numpy as np

from curate.select import uncertainty
from curate.select.pool import Picks, Pool
from curate.strategies._common import likelihood, picks, wanted
from curate.strategies.maxherding import covering


def select(pool: Pool, budget: int, rng: np.random.Generator, *, most: int = 30_000) -> Picks:
    """Of more than `most` images an even sample is looked at."""
    likely = likelihood(pool, "herding_uncertainty")
    doubt = uncertainty.predictive_entropy_multilabel(likely[:, wanted(pool)])
    weights = np.nan_to_num(np.asarray(doubt, np.float32))
    found, gain = covering(pool, budget, weights, most)

    def reason(row: int) -> str:
        return f"typical of images whose entropies add up to {gain[row]:.1f}; its own entropy {weights[row]:.2f}"

    return picks(pool, found, "herding_uncertainty", gain, reason)
