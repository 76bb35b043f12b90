"""Coverage with a kernel (Bae et al., 2024): images typical of many that no labelled image resembles."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.greedy.coverage import coverage
from curate.select.pool import Floats, Picks, Pool, Rows
from curate.strategies._common import even_sample, picks_of

SPARE = 8  # rows that are ranked beyond those asked for, or a quarter of these


def select(pool: Pool, budget: int, rng: np.random.Generator, *, most: int = 30_000) -> Picks:
    """Pick images that are similar to many others, while no labelled or chosen image is.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.
        most: in a larger pool an even sample of about this many images is considered.

    Returns:
        One pick an image, best first.
    """
    rows, gain = _kept(pool, budget) or _kept_anew(pool, budget, most)

    def reason(row: int) -> str:
        return typical_of(gain[row])

    return picks_of(pool, rows, "maxherding", gain, reason)


def _kept(pool: Pool, budget: int) -> tuple[Rows, Floats] | None:
    """The next of the rows that were ranked earlier in this round, where enough of them are left."""
    rows, gain, asked = pool.memo.get("maxherding", (None, None, 0))
    chosen = pool.rows_of([pick.id for pick in pool.chosen])
    if rows is None or not np.isin(rows[:asked], chosen).any():
        return None
    left = rows[pool.candidates[rows] & ~np.isin(rows, chosen)]
    return (left[:budget], gain) if len(left) >= budget else None


def _kept_anew(pool: Pool, budget: int, most: int) -> tuple[Rows, Floats]:
    """Rank some rows more than are asked for: they stand in for picks that the rules refuse."""
    rows, gain = covering(pool, budget + max(SPARE, budget // 4), None, most)
    pool.memo["maxherding"] = rows, gain, budget
    return rows[:budget], gain


def typical_of(count: float) -> str:
    number = max(1, round(float(count)))
    return f"typical of about {number} unlabelled image{'' if number == 1 else 's'}"


def covering(pool: Pool, budget: int, weights: Floats | None, most: int) -> tuple[Rows, Floats]:
    """The rows that cover most, in order, and the number of the pool's images that each adds."""
    if most < 1:
        raise CurateError(f"option 'most' is {most}; allowed: 1 or more images")
    rows, candidates, covered = even_sample(pool, max(most, 20 * budget))
    if candidates.sum() < budget:
        rows, candidates, covered = even_sample(pool, len(pool))
    worth = None if weights is None else weights[rows]
    chosen = coverage(pool.vectors[rows], budget, weights=worth, covered=covered, candidates=candidates)
    gain = np.zeros(len(pool), np.float32)
    gain[rows[chosen.picks]] = chosen.gains * (len(pool) / len(rows))
    return np.asarray(rows[chosen.picks], np.int64), gain
