"""Random, stratified by predicted class: as many of each defect as of clean. The baseline that is hard to beat."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select.pool import Pick, Picks, Pool
from curate.strategies._common import likelihood, wanted


def select(pool: Pool, budget: int, rng: np.random.Generator, *, threshold: float = 0.5) -> Picks:
    if not 0 < threshold < 1:
        raise CurateError(
            f"option 'threshold' of strategy foreground_random is {threshold:g}; allowed: between 0 and 1"
        )
    numbers = wanted(pool)
    likely = likelihood(pool, "foreground_random")[:, numbers]
    rows = pool.open
    predicted = np.where(likely[rows].max(axis=1) >= threshold, likely[rows].argmax(axis=1), -1)
    shelves = {int(name): rng.permutation(rows[predicted == name]) for name in np.unique(predicted)}
    sizes = _filled({name: len(shelf) for name, shelf in shelves.items()}, min(budget, len(rows)))
    made: list[Pick] = []
    for name, size in sizes.items():
        shown = pool.classes[numbers[name]] if name >= 0 else "clean"
        text = f"drawn at random from {len(shelves[name])} images predicted as {shown}"
        chance = size / max(1, len(shelves[name]))
        made += [Pick(pool.ids[row], "foreground_random", chance, text, chance) for row in shelves[name][:size]]
    return tuple(made)


def _filled(room: dict[int, int], budget: int) -> dict[int, int]:
    """As even as the shelves allow."""
    sizes = dict.fromkeys(room, 0)
    while budget:
        open_ = [name for name in room if sizes[name] < room[name]]
        for place, name in enumerate(open_):
            more = min(room[name] - sizes[name], budget // (len(open_) - place))
            sizes[name] += more
            budget -= more
    return sizes
