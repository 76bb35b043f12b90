"""Images with the likeliest window, by a probe on windows (multiple-instance learning, Settles et al., 2008).

It learns from the exemplars' windows and from all windows of refused images; see `curate/select/window_probe.py`.
"""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select import window_probe
from curate.select.pool import Pick, Picks, Pool, shares
from curate.strategies._common import top
from curate.strategies.nearest import window_name


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Pick the images with the likeliest windows of each class with exemplars, with larger quotas for scarcer classes.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.

    Returns:
        One pick an image, best first, with the window.
    """
    names = sought_classes(pool)
    if not names:
        raise CurateError(
            "strategy 'window_probe' needs exemplars of a scarce class: give --exemplars VIEW|TAG|IDS, or label one"
        )
    quotas = shares(budget, [1 / (1 + (pool.group_count(name) if name else 0)) for name in names])
    # A second turn without quotas: what one class could not use goes to the others.
    taken: dict[str, Pick] = {}
    for name, quota in [*zip(names, quotas, strict=True), *((name, budget) for name in names)]:
        quota = min(quota, budget - len(taken))
        fresh = [pick for pick in candidates(pool, name, 2 * budget) if pick.id not in taken]
        taken |= {pick.id: pick for pick in fresh[:quota]}
    return tuple(taken.values())


def sought_classes(pool: Pool) -> list[str]:
    """The classes with exemplars, scarcest first; '' stands for exemplars of unknown class."""
    names = set(pool.exemplars.classes) & {"", *(pool.wanted or pool.classes)}
    return sorted(names, key=lambda name: (pool.group_count(name) if name else 0, name))


def candidates(pool: Pool, name: str, most: int) -> list[Pick]:
    """The likeliest images of a class, best first."""
    likely, tile = window_probe.scores(pool, name)
    return [
        Pick(
            pool.ids[row],
            "window_probe",
            float(likely[row]),
            f"the window probe gives {name or 'the exemplars'} {likely[row]:.2f}, {window_name(int(tile[row]))}",
            tile=int(tile[row]),
        )
        for row in top(pool, pool.per_effort(likely), most).tolist()
    ]
