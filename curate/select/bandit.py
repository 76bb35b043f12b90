"""How much each slot of earlier rounds has found, and the shares that follow: a Beta-Bernoulli bandit over slots.

A labelled pick is a success where it shows, in a group where nobody knew it when the round was chosen, a class that
was scarce or never seen by then. Older rounds count less. A slot's yield is the mean of its Beta posterior; the prior
has the mean of all slots together and the weight of one success, so that a slot with few picks is judged like the
others. Shares are those without any yield times the slot's yield, compared with the others', within bounds: no slot
starves, so that each goes on being tried. There is no draw in it: the same rounds give the same shares, and the
numbers explain them.

Agrawal and Goyal 2012 draw from the posterior to explore (Thompson sampling); here the floors do that, since a round
has many picks and each slot has a part of every one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from curate.select.pool import Mask, Pool, Rows, scarcest

DECAY = 0.7  # of what a pick counts, from one round to the next
PRIOR = 1.0  # successes that the yield of all slots is worth as a prior of each
FLOOR, CEILING = 0.5, 2.0  # of a slot's share without any yield: how far it may fall, and rise before shares are scaled


class SlotYield(NamedTuple):
    """Finds of a slot: its labelled picks, those among them that found something (both decayed), and its yield."""

    picks: float
    found: float
    mean: float


def slot_yields(pool: Pool) -> dict[str, SlotYield]:
    """The yield of each slot in the earlier rounds; empty where no pick of them is labelled. Computed once a round."""
    return pool.once("slot yields", lambda: _yields(_counts(pool)))


def shares_by_yield(shares: Mapping[str, float], yields: Mapping[str, SlotYield]) -> dict[str, float]:
    """Move the shares towards the slots that find more; their sum stays.

    Args:
        shares: of the slots among which it is moved, without any yield.
        yields: of these and other slots; one that is missing counts like the mean of all.
    """
    total, values = sum(shares.values()), [value.mean for slot, value in yields.items() if slot in shares]
    if not total or not values:
        return dict(shares)
    usual = yields_mean(yields)
    means = {slot: yields[slot].mean if slot in yields else usual for slot in shares}
    middle = sum(share * means[slot] for slot, share in shares.items()) / total
    moved = {slot: share * min(max(means[slot] / middle, FLOOR), CEILING) for slot, share in shares.items()}
    scale = total / sum(moved.values())
    return {slot: share * scale for slot, share in moved.items()}


def yields_mean(yields: Mapping[str, SlotYield]) -> float:
    """The yield of all slots together: one success and one failure are added, so that it is never 0 or 1."""
    found, picks = (sum(getattr(value, name) for value in yields.values()) for name in ("found", "picks"))
    return float((found + 1) / (picks + 2))


def _yields(counts: Mapping[str, tuple[float, float]]) -> dict[str, SlotYield]:
    bare = {slot: SlotYield(picks, found, 0.0) for slot, (picks, found) in counts.items()}
    usual = yields_mean(bare)
    return {
        slot: value._replace(mean=(value.found + PRIOR) / (value.picks + PRIOR / usual)) for slot, value in bare.items()
    }


def _counts(pool: Pool) -> dict[str, tuple[float, float]]:
    """By slot the decayed number of labelled picks, and of those that found something."""
    counts: dict[str, tuple[float, float]] = {}
    known = pool.trainable.copy()
    for past in pool.past:
        known[past.rows] = False
    for past in pool.past:
        weight, sought = DECAY ** (pool.turn - 1 - past.number), _sought(pool, known)
        before = _shown_groups(pool, np.flatnonzero(known))
        for slot in sorted(set(past.slots)):
            rows = past.rows[[name == slot for name in past.slots]]
            rows = rows[pool.trainable[rows]]
            seen, found = set(before), 0
            for row in rows.tolist():
                new = {(int(number), int(pool.groups[row])) for number in np.flatnonzero(pool.present[row] & sought)}
                found += bool(new - seen)
                seen |= new
            picks_before, found_before = counts.get(slot, (0.0, 0.0))
            if len(rows):
                counts[slot] = (picks_before + weight * len(rows), found_before + weight * found)
        known[past.rows] = pool.trainable[past.rows]
    return counts


def _sought(pool: Pool, known: Mask) -> Mask:
    """The classes that are worth finding while these rows are known: scarce ones, and those never seen."""
    groups = {name: len(np.unique(pool.groups[known & pool.present[:, i]])) for i, name in enumerate(pool.classes)}
    scarce = scarcest({name: groups[name] for name in pool.wanted or pool.classes})
    return np.array([name in scarce or not groups[name] for name in pool.classes], bool)


def _shown_groups(pool: Pool, rows: Rows) -> set[tuple[int, int]]:
    """Class and group of everything that these rows show."""
    which, numbers = np.nonzero(pool.present[rows])
    return set(zip(numbers.tolist(), pool.groups[rows[which]].tolist(), strict=True))
