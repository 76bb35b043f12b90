"""Unusual images, far from all that is labelled: what nobody has named yet.

`curate/select/anomaly.py` tells how unusual an image's most unusual window is (after PatchCore, Roth et al., 2022):
small defects show there. The vectors tell how far the whole image lies from the nearest labelled or chosen one, as in a
core-set (Sener and Savarese, 2018): other kinds of surface show there, however ordinary each of their windows is, and
one kind of stain does not fill a round. Images are picked greedily by the sum of both.
"""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select.anomaly import EVERYWHERE, anomaly, banks
from curate.select.pool import Floats, Pick, Picks, Pool, Rows
from curate.strategies._common import top
from curate.strategies.nearest import window_name

SPREAD = 3.0  # chosen on the dev settings of tests/bench/proof/PROTOCOL-2.md; 2 to 4 differ little
CONSIDERED = 16_384  # images of each kind, most unusual and evenly spread, that are compared with each other
BLOCK = 256  # images whose distances are brought up to date together
FARTHEST = 2.0  # of two unit vectors
TINY = 1e-6
SAMPLE = 20_000  # images that tell how far two of them usually lie apart


def select(pool: Pool, budget: int, rng: np.random.Generator, *, spread: float = SPREAD) -> Picks:
    """Pick unusual images far from labelled and chosen ones, one a group while groups last.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.
        spread: the weight of the distance to the nearest labelled or chosen image (1: as far as two images usually
            are), against how unusual an image is (0: as the median image, 1: as the 99th percentile).

    Returns:
        One pick an image, best first, with its most unusual window.
    """
    if not 0 <= spread < np.inf:
        raise CurateError(f"option 'spread' of strategy anomaly is {spread:g}; allowed: 0 or more")
    most = max(CONSIDERED, 8 * budget)
    rows = np.union1d(top(pool, anomaly(pool).score, most), pool.open[:: max(1, len(pool.open) // most)])
    rows, worth, distance = _greedy(pool, rows, budget, spread)
    return tuple(
        Pick(pool.ids[row], "anomaly", float(value), _reason(pool, row, far), tile=int(anomaly(pool).tile[row]))
        for row, value, far in zip(rows.tolist(), worth, distance, strict=True)
    )


def _greedy(pool: Pool, rows: Rows, budget: int, spread: float) -> tuple[Rows, Floats, Floats]:
    """The picks, what each was worth, and its distance to the nearest image before it.

    Distances only fall as picks are made, so that what an image was last worth is an upper bound: only images at the
    top are compared with the latest picks.
    """
    vectors, near = pool.vectors[rows], _distances(pool, rows)
    weight = spread / pool.once("usual distance", lambda: _usual_distance(pool.vectors))
    score = pool.per_effort(anomaly(pool).score)[rows]  # not the distance: nearly every image has some
    searched = np.isfinite(score)
    score = np.where(searched, score, score[searched].min(initial=0) - 1)  # images that were not searched come last
    worth = score + weight * near
    groups, compared = np.unique(pool.groups[rows], return_inverse=True)[1], np.zeros(len(rows), np.int64)
    left, times = np.ones(len(rows), bool), np.zeros(len(rows), np.int64)  # times: picks of a group
    picks = np.empty(min(budget, len(rows)), np.int64)
    values, far = (np.empty(len(picks), np.float32) for _ in range(2))
    for step in range(len(picks)):
        free = left & (times[groups] == times[groups[left]].min())
        while compared[best := int(np.where(free, worth, -np.inf).argmax())] < step:
            block = np.append(np.argpartition(np.where(free, -worth, np.inf), min(BLOCK, len(rows) - 1))[:BLOCK], best)
            latest = vectors[picks[compared[block].min() : step]]
            near[block] = np.minimum(near[block], _apart((vectors[block] @ latest.T).max(axis=1)))
            worth[block], compared[block] = score[block] + weight * near[block], step
        picks[step], values[step], far[step], left[best] = best, worth[best], near[best], False
        times[groups[best]] += 1
    return rows[picks], values, far


def _distances(pool: Pool, rows: Rows) -> Floats:
    """Distance of each of these rows to the nearest labelled or chosen one."""
    known = pool.once("distance to labelled", lambda: np.full(len(pool), np.nan, np.float32))
    todo = rows[np.isnan(known[rows])]
    known[todo] = _nearest(pool, todo, np.flatnonzero(pool.labelled))
    return np.minimum(known[rows], _nearest(pool, rows, pool.rows_of([pick.id for pick in pool.chosen])))


def _nearest(pool: Pool, rows: Rows, others: Rows) -> Floats:
    if not len(others) or not len(rows):
        return np.full(len(rows), FARTHEST, np.float32)
    from curate.greedy.neighbours import best_match  # its kernels take half a second to load

    return _apart(best_match(pool.vectors[rows], pool.vectors[others])[0])


def _apart(cosine: Floats) -> Floats:
    return np.asarray(np.sqrt(np.maximum(2 - 2 * cosine, 0)), np.float32)


def _usual_distance(vectors: Floats) -> float:
    """How far two images lie apart, in the quadratic mean."""
    mean = vectors[:: max(1, len(vectors) // SAMPLE)].mean(axis=0, dtype=np.float64)
    return float(np.sqrt(max(2 - 2 * mean @ mean, TINY)))


def _reason(pool: Pool, row: int, distance: float) -> str:
    """Why it was picked: how many windows lie nearer to their own kind, and how far it lies from what is known."""
    unusual = anomaly(pool)
    apart = f"; distance {distance:.2f} to the nearest labelled or chosen image" if distance < FARTHEST else ""
    if unusual.window[row] < 0:
        return f"none of its windows lies far from the mean of all{apart}"
    stratum = pool.stratum_names[pool.strata[row]] if banks(pool)[row] != EVERYWHERE else ""
    steel = f"all other steel of {stratum}" if stratum else "all other steel"
    share = np.floor(1000 * unusual.share[row]) / 10  # never rounded up to 100 %
    return f"farther from {steel} than {share:g} % of windows, {window_name(int(unusual.tile[row]))}{apart}"
