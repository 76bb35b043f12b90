"""Doubt class by class, with power noise that decays round by round (after ClaSP-PE): no class crowds out another."""

from __future__ import annotations

import numpy as np

from curate.select import uncertainty
from curate.select.pool import Floats, Pick, Picks, Pool, Rows, shares
from curate.strategies._common import TINY, likelihood, source, wanted


def select(pool: Pool, budget: int, rng: np.random.Generator, *, power: float | None = None) -> Picks:
    """`power` is the exponent of the doubt before Gumbel noise is added; it doubles round by round, as models mend."""
    power = 2.0 ** min(pool.turn, 6) if power is None else power
    doubt, likely = _doubt(pool), likelihood(pool, "class_stratified")
    numbers = wanted(pool)
    noisy = power * np.log(np.maximum(np.nan_to_num(doubt), TINY)) + rng.gumbel(size=doubt.shape)
    rows = pool.open
    orders = [rows[np.lexsort((rows, -noisy[rows, number]))] for number in numbers]
    quotas = shares(min(budget, len(rows)), [1.0] * len(numbers))
    taken: dict[int, Pick] = {}
    for number, order, quota in _rarest_first(pool, numbers, orders, quotas):
        for row in (row for row in order.tolist() if row not in taken):
            if quota == 0:
                break
            text = f"the {source(pool)} is unsure of {pool.classes[number]}: {likely[row, number]:.2f}"
            taken[row] = Pick(pool.ids[row], "class_stratified", float(doubt[row, number]), text)
            quota -= 1
    return tuple(taken.values())


def _doubt(pool: Pool) -> Floats:
    """(n, classes): of the most doubtful tiles where the model gave it, else of the image."""
    if "class_entropy" in pool.scores:
        return pool.scores["class_entropy"]
    return np.asarray(uncertainty.class_entropy(likelihood(pool, "class_stratified")), np.float32)


def _rarest_first(pool: Pool, numbers: list[int], orders: list[Rows], quotas: list[int]) -> list[tuple[int, Rows, int]]:
    """A rare class chooses first: what several classes doubt counts for it."""
    jobs = list(zip(numbers, orders, quotas, strict=True))
    return sorted(jobs, key=lambda job: (pool.groups_of(pool.classes[job[0]]), job[0]))
