"""GALAXY (Zhang et al., 2022): bisect, class by class, where a ranking turns from one label to the other.

Images are sorted by the probability of a class. Between two neighbours in this order that are labelled differently lies
a cut. The shortest stretch of unlabelled images between such a pair is bisected first, in the scarce classes as often
as in the common ones: near the cut both labels are about equally frequent, however rare the class is. In the paper each
label is known before the next query; here a round is asked for at once: both halves of a bisected stretch stay open.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from curate.select.pool import Floats, Mask, Pick, Picks, Pool
from curate.strategies._common import class_probabilities, predictor, wanted_classes


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick the middles of the shortest stretches between differently labelled images; the classes take turns.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.

    Returns:
        One pick an image, best first.
    """
    likely, numbers = class_probabilities(pool, "galaxy"), wanted_classes(pool)
    numbers = sorted(numbers, key=lambda number: (pool.group_count(pool.classes[number]), number))
    orders = [_bisections(pool, likely[:, number], pool.shows(pool.classes[number])) for number in numbers]
    return in_turns(pool, likely, numbers, orders, budget, "galaxy")


def in_turns(
    pool: Pool, likely: Floats, numbers: list[int], orders: list[Iterator[int]], budget: int, slot: str
) -> Picks:
    """Take from the classes' orders in turn, one new candidate each."""
    taken: dict[int, Pick] = {}
    open_orders = dict(zip(numbers, orders, strict=True))
    while open_orders and len(taken) < budget:
        for number in list(open_orders):
            row = next((row for row in open_orders[number] if row not in taken and pool.candidates[row]), None)
            if row is None:
                del open_orders[number]
            elif len(taken) < budget:
                value = float(likely[row, number])
                text = f"the {predictor(pool)} gives {pool.classes[number]} {value:.2f}, where its labels change"
                taken[row] = Pick(pool.ids[row], slot, 1 - abs(2 * value - 1), text)
    return tuple(taken.values())


def _bisections(pool: Pool, likely: Floats, shows: Mask) -> Iterator[int]:
    """All unlabelled rows: bisections of stretches between unlike labels, shortest first, then the likeliest."""
    order = np.lexsort((np.arange(len(pool)), -likely))
    order = order[pool.candidates[order] | pool.trainable[order]]
    known = np.flatnonzero(pool.trainable[order])
    label = shows[order[known]]
    stretches = [
        (int(right - left), int(left), int(right))
        for left, right, unlike in zip(known[:-1], known[1:], label[:-1] != label[1:], strict=True)
        if unlike and right - left > 1
    ]
    heapq.heapify(stretches)
    while stretches:
        _, left, right = heapq.heappop(stretches)
        middle = (left + right) // 2
        yield int(order[middle])
        for low, high in ((left, middle), (middle, right)):
            if high - low > 1:
                heapq.heappush(stretches, (high - low, low, high))
    yield from order.tolist()
