"""Diverse gradients: images that would change the last layer most, in different directions (Ash et al., 2020)."""

from __future__ import annotations

import numpy as np

from curate.greedy import badge
from curate.select.pool import Picks, Pool
from curate.strategies._common import likeliest, likelihood, picks


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    likely = likelihood(pool, "badge")
    # Classes are not exclusive: a class's gradient is its probability less the likelier of shown and not shown.
    residuals = np.asarray(likely - (likely > 0.5), np.float32)
    rows = badge.badge(pool.vectors, residuals, budget, rng, candidates=pool.candidates)
    norm = np.linalg.norm(residuals, axis=1)

    def reason(row: int) -> str:
        return f"gradient {norm[row]:.2f}, in a direction of its own; {likeliest(pool, likely, row)}"

    return picks(pool, rows, "badge", norm, reason)
