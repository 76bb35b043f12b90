"""A class-balanced linear probe on the vectors, refitted each round: likeliest images of each class in turn."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select import linear_probe
from curate.select.pool import Floats, Pick, Picks, Pool, shares
from curate.strategies._common import wanted_classes


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick the likeliest images of each class by a linear probe, with larger quotas for scarce classes.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.

    Returns:
        One pick an image, best first.
    """
    if not linear_probe.has_classes(pool):
        raise CurateError(
            f"strategy 'probe' needs {linear_probe.FEWEST} labelled images of a class. Label some first: "
            "curate select --strategy maxherding"
        )
    likely = linear_probe.probabilities(pool)
    classes = [number for number in wanted_classes(pool) if np.isfinite(likely[0, number])]
    weights = [1 / (1 + pool.group_count(pool.classes[number])) for number in classes]
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
    """Picks for the rest of the budget: quotas are not used up where one image is the likeliest of several classes."""
    if not classes:
        return ()
    best = np.nanmax(likely[:, classes], axis=1)
    rows = [row for row in _ranked(pool, best) if row not in taken][: max(0, budget - len(taken))]
    return tuple(_pick(pool, row, classes[int(np.argmax(likely[row, classes]))], likely) for row in rows)
