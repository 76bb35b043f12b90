"""Nearest to the exemplars: windows ranked by plain cosine similarity."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select.pool import Pick, Picks, Pool
from curate.strategies._common import top


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick the images with the window most similar to an exemplar.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.

    Returns:
        One pick an image, best first, with the window and its exemplar.
    """
    exemplars = pool.exemplars.of(pool.wanted or pool.classes)
    if not len(exemplars):
        raise CurateError("strategy 'nearest' needs exemplars: give --exemplars VIEW|TAG|IDS, or label a few")
    best = np.full(len(pool), -np.inf, np.float32)
    tile, like = np.full(len(pool), -1, np.int16), np.zeros(len(pool), np.int64)
    for part in pool.all_windows():
        similarity = part.vectors @ exemplars.vectors.T
        nearest, which = similarity.max(axis=1), similarity.argmax(axis=1)
        order = np.argsort(nearest, kind="stable")  # of one image's windows the best is written last
        better = order[nearest[order] > best[part.rows[order]]]
        best[part.rows[better]], tile[part.rows[better]] = nearest[better], part.tiles[better]
        like[part.rows[better]] = which[better]
    rows = top(pool, best, budget)
    return tuple(
        Pick(
            pool.ids[row],
            "nearest",
            float(best[row]),
            f"similarity {best[row]:.2f} to exemplar {exemplars.ids[like[row]][:8]}, {window_name(int(tile[row]))}",
            like=exemplars.ids[like[row]],
            tile=int(tile[row]),
        )
        for row in rows
    )


def window_name(tile: int) -> str:
    return f"tile {tile}" if tile >= 0 else "the whole image"
