"""Typical images of clusters that hold no label yet (Hacohen et al., 2022): for the first few labels."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.greedy.typical import typiclust
from curate.select.pool import Picks, Pool
from curate.strategies._common import picks


def select(pool: Pool, budget: int, rng: np.random.Generator, *, neighbours: int = 20) -> Picks:
    if neighbours < 1:
        raise CurateError(f"option 'neighbours' of strategy typiclust is {neighbours}; allowed: 1 or more")
    found = typiclust(
        pool.vectors, budget, covered=pool.covered, candidates=pool.candidates, rng=rng, neighbours=neighbours
    )
    typical = np.zeros(len(pool), np.float32)
    typical[found.picks] = np.minimum(found.typicality, np.finfo(np.float32).max)  # among copies it is infinite

    def reason(row: int) -> str:
        return f"typical of cluster {found.cluster[row]}, in which no image is labelled"

    return picks(pool, found.picks, "typiclust", typical, reason)
