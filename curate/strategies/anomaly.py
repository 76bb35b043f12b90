"""The most unusual images, each unlike the others: what nobody has named yet (after PatchCore, Roth et al., 2022).

How unusual an image is tells `curate/select/anomaly.py`. Similarity to images that are labelled or chosen lowers it, so
that one kind of stain does not fill a round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from curate.errors import CurateError
from curate.greedy.neighbours import best_match
from curate.select.anomaly import EVERYWHERE, anomaly, banks, neighbours
from curate.select.pool import Floats, Pick, Picks, Pool, Rows
from curate.strategies._common import top
from curate.strategies.nearest import window_name

CONSIDERED = 4096  # images, the most unusual ones, that are compared with each other


def select(pool: Pool, budget: int, rng: np.random.Generator, *, diversity: float = 1.0) -> Picks:
    """Pick unusual images that resemble no labelled or chosen one, one a group while groups last.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.
        diversity: the weight of the similarity to the nearest labelled or chosen image (a cosine of the most unusual
            windows, whitened), against how unusual it is (0: as the median image, 1: as the 99th percentile).

    Returns:
        One pick an image, best first, with the window.
    """
    if not 0 <= diversity < np.inf:
        raise CurateError(f"option 'diversity' of strategy anomaly is {diversity:g}; allowed: 0 or more")
    unusual = anomaly(pool)
    rows = top(pool, pool.per_effort(unusual.score), max(CONSIDERED, 4 * budget))
    rows, value = _spread(pool, rows, budget, diversity)
    return tuple(
        Pick(pool.ids[row], "anomaly", float(value[i]), reason(pool, row), tile=int(unusual.tile[row]))
        for i, row in enumerate(rows.tolist())
    )


def _spread(pool: Pool, rows: Rows, budget: int, diversity: float) -> tuple[Rows, Floats]:
    """Pick greedily by unusualness less similarity; the picks and their values."""
    score, white = pool.per_effort(anomaly(pool).score)[rows], _windows(pool, rows)
    finite = np.isfinite(score)
    score = np.where(finite, score, score[finite].min(initial=0) - 1)  # images that were not searched come last
    near = pool.once("anomaly near labelled", lambda: _near_labelled(pool))[rows]
    if pool.chosen:
        chosen = _windows(pool, pool.rows_of([pick.id for pick in pool.chosen]))
        near = np.maximum(near, best_match(white, chosen)[0])
    groups, numbers = np.unique(pool.groups[rows], return_inverse=True)
    times, left = np.zeros(len(groups), np.int64), np.ones(len(rows), bool)
    picks, values = np.empty(min(budget, len(rows)), np.int64), np.empty(min(budget, len(rows)), np.float32)
    for step in range(len(picks)):
        turn = times[numbers]
        worth = np.where(left & (turn == turn[left].min()), score - diversity * near, -np.inf)
        best = int(worth.argmax())
        picks[step], values[step], left[best] = best, worth[best], False
        times[numbers[best]] += 1
        near = np.maximum(near, white @ white[best])
    return rows[picks], values


def _near_labelled(pool: Pool) -> Floats:
    """(n,): similarity to the nearest labelled image; 0 for images that are too ordinary to be compared."""
    near, labelled = np.zeros(len(pool), np.float32), np.flatnonzero(pool.labelled)
    rows = top(replace(pool, candidates=pool.population), anomaly(pool).score, 2 * CONSIDERED)
    if len(labelled):
        near[rows] = np.maximum(best_match(_windows(pool, rows), _windows(pool, labelled))[0], 0)
    return near


def _windows(pool: Pool, rows: Rows) -> Floats:
    """The most unusual window of each image, whitened; zeros for an image that was not searched."""
    window = anomaly(pool).window[rows]
    return np.where(window[:, None] >= 0, neighbours(pool).white[window], np.float32(0))


def reason(pool: Pool, row: int) -> str:
    """Why the image is unusual: how many windows lie nearer to their own kind."""
    unusual = anomaly(pool)
    if unusual.window[row] < 0:
        return "none of its windows lies far from the mean of all"
    stratum = pool.stratum_names[pool.strata[row]] if banks(pool)[row] != EVERYWHERE else ""
    steel = f"all other steel of {stratum}" if stratum else "all other steel"
    share = np.floor(1000 * unusual.share[row]) / 10  # never rounded up to 100 %
    return f"farther from {steel} than {share:g} % of windows, {window_name(int(unusual.tile[row]))}"
