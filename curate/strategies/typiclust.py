"""Typical images of clusters that hold no label yet (Hacohen et al., 2022): for the first few labels."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.greedy.typical import typiclust
from curate.select.pool import Picks, Pool
from curate.strategies._common import picks_of


def select(pool: Pool, budget: int, rng: np.random.Generator, *, neighbours: int = 20) -> Picks:
    """Pick the most typical image of each large cluster without a label.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the first centres of k-means.
        neighbours: typicality is 1 / the mean distance to this many nearest images of the cluster.

    Returns:
        One pick an image, best first.
    """
    if neighbours < 1:
        raise CurateError(f"option 'neighbours' of strategy typiclust is {neighbours}; allowed: 1 or more")
    result = typiclust(
        pool.vectors, budget, covered=pool.covered, candidates=pool.candidates, rng=rng, neighbours=neighbours
    )
    typicality = np.zeros(len(pool), np.float32)
    typicality[result.picks] = np.minimum(result.typicality, np.finfo(np.float32).max)  # among copies it is infinite

    def reason(row: int) -> str:
        return f"typical of cluster {result.cluster[row]}, in which no image is labelled"

    return picks_of(pool, result.picks, "typiclust", typicality, reason)
