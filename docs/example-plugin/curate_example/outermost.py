"""Outliers first: the images whose vectors are least like the mean of all."""

from __future__ import annotations

import numpy as np

from curate.select.pool import Pick, Picks, Pool


def select(pool: Pool, budget: int, rng: np.random.Generator, *, power: float = 1.0) -> Picks:
    """Pick the images farthest from the mean vector.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.
        power: of the distance, which becomes the score.

    Returns:
        One pick an image, best first.
    """
    distance = np.linalg.norm(pool.vectors - pool.vectors.mean(axis=0), axis=1)
    rows = pool.open[np.argsort(-distance[pool.open], kind="stable")][:budget]
    return tuple(
        Pick(pool.ids[row], "outermost", float(distance[row] ** power), f"distance {distance[row]:.2f} to the mean")
        for row in rows
    )
