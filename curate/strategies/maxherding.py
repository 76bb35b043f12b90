"""Coverage with a kernel (Bae et al., 2024): images typical of many that no labelled image resembles."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.greedy.coverage import coverage
from curate.select.pool import Floats, Picks, Pool, Rows
from curate.strategies._common import picks, thinned


def select(pool: Pool, budget: int, rng: np.random.Generator, *, most: int = 30_000) -> Picks:
    """Of more than `most` images an even sample is looked at."""
    found, gain = covering(pool, budget, None, most)

    def reason(row: int) -> str:
        return typical_of(gain[row])

    return picks(pool, found, "maxherding", gain, reason)


def typical_of(count: float) -> str:
    number = max(1, round(float(count)))
    return f"typical of about {number} unlabelled image{'' if number == 1 else 's'}"


def covering(pool: Pool, budget: int, weights: Floats | None, most: int) -> tuple[Rows, Floats]:
    """The rows that cover most, in order, and what each adds, as a number of the pool's images."""
    if most < 1:
        raise CurateError(f"option 'most' is {most}; allowed: 1 or more images")
    rows, candidates, covered = thinned(pool, max(most, 20 * budget))
    if candidates.sum() < budget:
        rows, candidates, covered = thinned(pool, len(pool))
    worth = None if weights is None else weights[rows]
    found = coverage(pool.vectors[rows], budget, weights=worth, covered=covered, candidates=candidates)
    gain = np.zeros(len(pool), np.float32)
    gain[rows[found.picks]] = found.gains * (len(pool) / len(rows))
    return np.asarray(rows[found.picks], np.int64), gain
