"""Uncertainty class by class, with noise that decays from round to round (after ClaSP-PE): all classes get a share."""

from __future__ import annotations

import numpy as np

from curate.select import uncertainty
from curate.select.pool import Floats, Pick, Picks, Pool, Rows, shares
from curate.strategies._common import TINY, class_probabilities, predictor, wanted_classes


def select(pool: Pool, budget: int, rng: np.random.Generator, *, power: float | None = None) -> Picks:
    """Pick the most uncertain images of each class in turn, scarce classes first.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the Gumbel noise.
        power: the exponent of the uncertainty before Gumbel noise is added. Without it 2 ** round: noise matters less
            from round to round, as models improve.

    Returns:
        One pick an image, best first.
    """
    power = 2.0 ** min(pool.turn, 6) if power is None else power
    doubt, likely = _doubt(pool), class_probabilities(pool, "class_stratified")
    numbers = wanted_classes(pool)
    noisy = power * np.log(np.maximum(pool.per_effort(np.nan_to_num(doubt)), TINY)) + rng.gumbel(size=doubt.shape)
    rows = pool.open
    orders = [rows[np.lexsort((rows, -noisy[rows, number]))] for number in numbers]
    quotas = shares(min(budget, len(rows)), [1.0] * len(numbers))
    taken: dict[int, Pick] = {}
    for number, order, quota in _rarest_first(pool, numbers, orders, quotas):
        for row in (row for row in order.tolist() if row not in taken):
            if quota == 0:
                break
            text = f"the {predictor(pool)} is unsure of {pool.classes[number]}: {likely[row, number]:.2f}"
            taken[row] = Pick(pool.ids[row], "class_stratified", float(doubt[row, number]), text)
            quota -= 1
    return tuple(taken.values())


def _doubt(pool: Pool) -> Floats:
    """(n, classes): the entropy of the most uncertain tiles where the model gives it, else that of the image."""
    if "class_entropy" in pool.scores:
        return pool.scores["class_entropy"]
    return np.asarray(uncertainty.class_entropy(class_probabilities(pool, "class_stratified")), np.float32)


def _rarest_first(pool: Pool, numbers: list[int], orders: list[Rows], quotas: list[int]) -> list[tuple[int, Rows, int]]:
    """Classes in order of scarcity: an image that several classes are uncertain of goes to the scarcest."""
    jobs = list(zip(numbers, orders, quotas, strict=True))
    return sorted(jobs, key=lambda job: (pool.group_count(pool.classes[job[0]]), job[0]))
