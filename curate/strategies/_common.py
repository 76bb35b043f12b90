"""Helpers of strategies: class probabilities, rankings and the making of picks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from curate.select import linear_probe
from curate.select.pool import Floats, Mask, Pick, Picks, Pool, Rows

TINY = 1e-12
Rng = np.random.Generator


def class_probabilities(pool: Pool, strategy: str) -> Floats:
    """(n, classes): the model's probabilities where there is a model, else those of a linear probe."""
    if "probability" in pool.scores:
        return np.nan_to_num(pool.scores["probability"], nan=0.0)  # an image without a score ranks last
    if linear_probe.has_classes(pool):
        return np.nan_to_num(linear_probe.probabilities(pool), nan=0.0)
    raise CurateError(
        f"strategy '{strategy}' needs to know how classes look, but no class has {linear_probe.FEWEST} labelled "
        "images. Label some first: curate select --strategy maxherding"
    )


def predictor(pool: Pool) -> str:
    """Name of what gives `class_probabilities`, for a reason."""
    return "model" if "probability" in pool.scores else "probe"


def top(pool: Pool, scores: NDArray[np.floating], budget: int) -> Rows:
    """The candidates with the highest scores; of equal ones, and of those without a score last, the lower row."""
    rows = pool.open
    value = np.nan_to_num(np.asarray(scores, np.float64)[rows], nan=-np.inf)
    return np.asarray(rows[np.lexsort((rows, -value))][:budget], np.int64)


def picks_of(
    pool: Pool,
    rows: Sequence[int] | Rows,
    slot: str,
    scores: NDArray[np.floating],
    reason: Callable[[int], str],
) -> Picks:
    """Picks of these rows, in this order; `scores` holds those of the whole pool, `reason` is called with the row."""
    return tuple(Pick(pool.ids[row], slot, _plain(scores[row]), reason(int(row))) for row in rows)


def _plain(value: float) -> float:
    return float(value) if np.isfinite(value) else 0.0


def likeliest_class(pool: Pool, likely: Floats, row: int) -> str:
    """Text for a reason: `most likely scratches (0.52)`."""
    if not likely.shape[1]:
        return "no class is known"
    best = int(np.argmax(likely[row]))
    return f"most likely {pool.classes[best]} ({likely[row, best]:.2f})"


def wanted_classes(pool: Pool) -> list[int]:
    """The numbers of the classes that the user asks for, else of all."""
    return [pool.classes.index(name) for name in pool.wanted] or list(range(len(pool.classes)))


def even_sample(pool: Pool, most: int) -> tuple[Rows, Mask, Rows]:
    """At most about `most` rows that represent all: their numbers, a mask of candidates, and the covered ones.

    Coverage is a mean over rows, which an even sample estimates; ids are hashes, so every n-th row is such a sample.
    Covered rows are kept in proportion, and the picks of this round always.
    """
    step = max(1, len(pool) // most)
    chosen = pool.rows_of([pick.id for pick in pool.chosen])
    rows = np.union1d(np.arange(0, len(pool), step), chosen)
    if pool.candidates[rows].sum() < pool.candidates.sum() / step / 2:  # the remaining candidates are not spread evenly
        rows = np.union1d(rows, pool.open[:: max(1, len(pool.open) // most)])
    return rows, pool.candidates[rows], np.flatnonzero(np.isin(rows, pool.covered))
