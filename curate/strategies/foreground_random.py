"""Random, stratified by predicted class: as many of each defect as of clean. A strong baseline."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select.pool import Pick, Picks, Pool
from curate.strategies._common import class_probabilities, wanted_classes


def select(pool: Pool, budget: int, rng: np.random.Generator, *, threshold: float = 0.5) -> Picks:
    """Draw the same number of images at random from each predicted class and from those predicted as clean.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the images.
        threshold: the probability from which on an image counts as predicted to show a class.

    Returns:
        Picks, class by class, each with its propensity.
    """
    if not 0 < threshold < 1:
        raise CurateError(
            f"option 'threshold' of strategy foreground_random is {threshold:g}; allowed: between 0 and 1"
        )
    numbers = wanted_classes(pool)
    likely = class_probabilities(pool, "foreground_random")[:, numbers]
    rows = pool.open
    predicted = np.where(likely[rows].max(axis=1) >= threshold, likely[rows].argmax(axis=1), -1)
    by_class = {int(name): rng.permutation(rows[predicted == name]) for name in np.unique(predicted)}
    sizes = _filled({name: len(members) for name, members in by_class.items()}, min(budget, len(rows)))
    picks: list[Pick] = []
    for name, size in sizes.items():
        predicted_as = pool.classes[numbers[name]] if name >= 0 else "clean"
        text = f"drawn at random from {len(by_class[name])} images predicted as {predicted_as}"
        chance = size / max(1, len(by_class[name]))
        picks += [Pick(pool.ids[row], "foreground_random", chance, text, chance) for row in by_class[name][:size]]
    return tuple(picks)


def _filled(room: dict[int, int], budget: int) -> dict[int, int]:
    """Share out the budget as evenly as the classes' numbers of images allow."""
    sizes = dict.fromkeys(room, 0)
    while budget:
        not_full = [name for name in room if sizes[name] < room[name]]
        for place, name in enumerate(not_full):
            more = min(room[name] - sizes[name], budget // (len(not_full) - place))
            sizes[name] += more
            budget -= more
    return sizes
