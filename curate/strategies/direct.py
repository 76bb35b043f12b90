"""DIRECT (Nuggehalli et al., 2023): find, class by class, the best threshold of a ranking, and ask around it.

Images are sorted by the probability of a class. The labels so far leave a range of thresholds that err least; half of a
class's share is drawn from this range, to narrow it, the other half lies nearest to its middle, half above and half
below. Around the threshold that separates best, both labels are about equally frequent, however rare the class is.
Wrong labels only add errors, which the best threshold outvotes; a bisection (`galaxy`) would follow them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from curate.select.pool import Floats, Mask, Picks, Pool
from curate.strategies._common import Rng, class_probabilities, wanted_classes
from curate.strategies.galaxy import in_turns


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick around the best threshold of each class; the classes take turns.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the half of the picks that narrows the range of thresholds.

    Returns:
        One pick an image, best first.
    """
    likely, numbers = class_probabilities(pool, "direct"), wanted_classes(pool)
    numbers = sorted(numbers, key=lambda number: (pool.group_count(pool.classes[number]), number))
    orders = [_around(pool, likely[:, number], pool.shows(pool.classes[number]), rng) for number in numbers]
    return in_turns(pool, likely, numbers, orders, budget, "direct")


def _around(pool: Pool, likely: Floats, shows: Mask, rng: Rng) -> Iterator[int]:
    """All candidates: one drawn from the range of the best thresholds, one nearest to its middle, and so on."""
    order = np.lexsort((np.arange(len(pool)), -likely))
    order = order[pool.candidates[order] | pool.trainable[order]]
    low, high = best_thresholds(shows[order], pool.trainable[order])
    places = np.arange(len(order))
    nearest = np.argsort(np.abs(places - (low + high - 1) / 2), kind="stable")
    drawn = rng.permutation(places[low:high]) if high - low > 1 else nearest
    for place, other in zip(np.concatenate([drawn, nearest])[: len(nearest)], nearest, strict=True):
        yield int(order[place])
        yield int(order[other])


def best_thresholds(shows: Mask, known: Mask) -> tuple[int, int]:
    """The range of thresholds t that err least: known images before t should show the class, those from t on not.

    Args:
        shows: labels in the order of the ranking.
        known: where the label is known.

    Returns:
        The first and the last such threshold, from 0 to n, of the longest run of them; of equally long ones the first.
    """
    wrong = np.concatenate([[0], np.cumsum(known & ~shows)]) + (known & shows).sum()
    errors = wrong - np.concatenate([[0], np.cumsum(known & shows)])
    best = np.flatnonzero(errors == errors.min())
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[0]), int(longest[-1])
