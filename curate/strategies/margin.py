"""Smallest margin: images about whose most doubtful class the model can least decide (Scheffer et al., 2001)."""

from __future__ import annotations

import numpy as np

from curate.select.pool import Picks, Pool
from curate.strategies._common import likelihood, picks, source, top, wanted


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    likely = likelihood(pool, "margin")
    # Classes are not exclusive: each has its own margin between shown and not shown.
    doubt = 1 - np.abs(2 * likely - 1)[:, wanted(pool)]
    score = doubt.max(axis=1)
    names = [pool.classes[wanted(pool)[i]] for i in doubt.argmax(axis=1)]

    def reason(row: int) -> str:
        return f"the {source(pool)} gives {names[row]} {likely[row, pool.classes.index(names[row])]:.2f}: undecided"

    return picks(pool, top(pool, score, budget), "margin", score, reason)
