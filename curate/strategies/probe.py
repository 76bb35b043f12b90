"""A class-balanced linear probe on the vectors, refitted each round: likeliest images of each class in turn."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select import linear_probe
from curate.select.pool import Floats, Pick, Picks, Pool, shares
from curate.strategies._common import wanted


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    if not linear_probe.known(pool):
        raise CurateError(
            f"strategy 'probe' needs {linear_probe.FEWEST} labelled images of a class. Label some first: "
            "curate select --strategy maxherding"
        )
    likely = linear_probe.probabilities(pool)
    classes = [number for number in wanted(pool) if np.isfinite(likely[0, number])]
    weights = [1 / (1 + pool.groups_of(pool.classes[number])) for number in classes]
    taken: dict[int, Pick] = {}
    for number, quota in sorted(zip(classes, shares(budget, weights), strict=True), key=lambda pair: -pair[1]):
        rows = [row for row in _ranked(pool, likely[:, number]) if row not in taken][:quota]
        taken |= {row: _pick(pool, row, number, likely) for row in rows}
    return tuple(taken.values())[:budget] + _rest(pool, likely, classes, taken, budget)


def _ranked(pool: Pool, likely: Floats) -> list[int]:
    rows = pool.open
    return [int(row) for row in rows[np.lexsort((rows, -likely[rows]))]]


def _pick(pool: Pool, row: int, number: int, likely: Floats) -> Pick:
    score = float(likely[row, number])
    return Pick(pool.ids[row], "probe", score, f"the probe gives {pool.classes[number]} {score:.2f}")


def _rest(pool: Pool, likely: Floats, classes: list[int], taken: dict[int, Pick], budget: int) -> Picks:
    """What quotas left over because one image is the likeliest of several classes."""
    if not classes:
        return ()
    best = np.nanmax(likely[:, classes], axis=1)
    rows = [row for row in _ranked(pool, best) if row not in taken][: max(0, budget - len(taken))]
    return tuple(_pick(pool, row, classes[int(np.argmax(likely[row, classes]))], likely) for row in rows)
