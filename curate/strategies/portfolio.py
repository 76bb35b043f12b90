"""The default: rare candidates, uncertain images, unseen kinds and an audit, with shares that follow what each finds.

`rare`: candidates for the scarcest classes, by a probe on windows that exemplars teach, and by similarity to them until
people have refused some. `uncertain`: class-stratified uncertainty. `explore`: unusual images far from all that is
labelled. `audit`: random with known chances, so that unbiased error estimates stay possible. The shares depend on the
labels and the model that exist, on whether the user gives exemplars or asks for classes that can be looked for, and
else on how many kinds nobody seems to have seen yet (Good, 1953); from the second round on they move towards the slots
that found more (see `curate/select/bandit.py`). Each can be set, 0 leaves a slot out. The share of a slot that cannot
work goes to the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from curate.data import AUDIT
from curate.errors import CurateError
from curate.select import bandit, linear_probe, window_probe
from curate.select.pool import Picks, Pool, shares
from curate.strategies import anomaly, class_stratified, random
from curate.strategies import audit as audit_slot
from curate.strategies import rare as rare_slot
from curate.strategies import window_probe as window_slot
from curate.strategies._common import Rng

REGIMES = {
    "no labels": {"rare": 0.0, "uncertain": 0.0, "explore": 0.85, "audit": 0.15},
    "few labels": {"rare": 0.34, "uncertain": 0.21, "explore": 0.30, "audit": 0.15},
    "a model": {"rare": 0.28, "uncertain": 0.27, "explore": 0.30, "audit": 0.15},
    "classes or exemplars given": {"rare": 0.80, "uncertain": 0.0, "explore": 0.05, "audit": 0.15},
}
GROWING = ("few labels", "a model")  # regimes whose `explore` grows with the unseen share
LARGEST, REACHED = 0.80, 0.5  # its largest share, and the unseen share at which it is reached
MOST = 1000.0  # of a share; shares are relative to each other


def find_rare(pool: Pool, budget: int, rng: Rng) -> Picks:
    """The window probe where it can learn from what people refused; before, every other pick is by similarity."""
    names = window_slot.sought_classes(pool)
    if not names:
        return rare_slot.select(pool, budget, rng)
    likely = window_slot.select(pool, budget, rng)
    if all(window_probe.refused(pool, name).any() for name in names):
        return likely
    alike = rare_slot.select(pool, budget, rng)
    turns = [pick for pair in zip(likely, alike, strict=False) for pick in pair]
    return tuple({pick.id: pick for pick in [*turns, *likely]}.values())[:budget]


def unseen_share(pool: Pool) -> float:
    """How much is likely to be unseen, from 0 to 1: the larger of two shares.

    Of the labelled defective groups those that show a class seen in no other group, which estimates how often the next
    one will be of a new kind (Good and Turing); and of the classes that have a name those that were never seen. 1 while
    nothing defective is labelled.
    """
    counts = [pool.group_count(name) for name in pool.classes]
    return max(counts.count(1) / sum(counts), counts.count(0) / len(counts)) if any(counts) else 1.0


SLOTS: dict[str, Callable[[Pool, int, Rng], Picks]] = {
    "audit": audit_slot.select,  # first: it draws from all candidates, before other slots take some
    "rare": find_rare,
    "uncertain": class_stratified.select,
    "explore": anomaly.select,
    "spare": random.select,
}


def select(
    pool: Pool,
    budget: int,
    rng: np.random.Generator,
    *,
    rare: float | None = None,
    uncertain: float | None = None,
    explore: float | None = None,
    audit: float | None = None,
    adapt: bool = True,
) -> Picks:
    """Fill the slots by their shares of the whole round; a share of 0 leaves a slot out.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: passed on to the slots' strategies.
        rare, uncertain, explore, audit: the slots' shares, relative to each other. Without it a share is set by
            `REGIMES`, according to the labels and the model that exist and the kinds that are likely to be unseen.
        adapt: shares that are not set follow what their slots found in earlier rounds; the audit's never does.

    Returns:
        Picks with the name of their slot.
    """
    given = {"rare": rare, "uncertain": uncertain, "explore": explore, "audit": audit}
    quotas = _quotas(pool, budget, given, adapt)
    picks: Picks = ()
    for slot, strategy in SLOTS.items():
        # Picks that earlier slots could not find fall to the last one, so that the budget is always used up.
        quota = budget - len(picks) if slot == "spare" else min(quotas.get(slot, 0), budget - len(picks))
        if quota > 0:
            picks += tuple(replace(pick, slot=slot) for pick in strategy(_without(pool, picks), quota, rng))
    return picks


def regime(pool: Pool) -> str:
    """The key of `REGIMES` that fits the pool."""
    if (pool.wanted or pool.exemplars.given) and rare_slot.sought_classes(pool):
        return "classes or exemplars given"
    if "probability" in pool.scores:
        return "a model"
    return "few labels" if len(pool.exemplars) or linear_probe.has_classes(pool) else "no labels"


def _usual_shares(pool: Pool) -> dict[str, float]:
    """The shares of the regime; `explore` grows at the cost of `rare` and `uncertain`."""
    usual = REGIMES[regime(pool)]
    if regime(pool) not in GROWING:
        return usual
    growth = (LARGEST - usual["explore"]) * min(1.0, unseen_share(pool) / REACHED)
    left = 1 - growth / (usual["rare"] + usual["uncertain"])
    return usual | {"explore": usual["explore"] + growth} | {slot: left * usual[slot] for slot in ("rare", "uncertain")}


def _quotas(pool: Pool, budget: int, given: dict[str, float | None], adapt: bool) -> dict[str, int]:
    """Number of picks that each slot still has to find for its share of the whole round."""
    defaults = _usual_shares(pool)
    weights = {slot: defaults[slot] if value is None else value for slot, value in given.items()}
    for slot, weight in weights.items():
        if not 0 <= weight <= MOST:
            raise CurateError(
                f"option '{slot}' of strategy portfolio is {weight:g}; allowed: a share from 0 to {MOST:g}"
            )
    for slot, reason in _idle(pool).items():
        if weights[slot]:
            pool.note(f"slot {slot} is left out, and its share goes to the others: {reason}")
        weights[slot] = 0.0
    if not sum(weights.values()):
        return {}
    free = {slot: weights[slot] for slot, value in given.items() if value is None and slot != AUDIT and weights[slot]}
    yields = bandit.slot_yields(pool) if adapt and len(free) > 1 else {}
    moved = weights | bandit.shares_by_yield(free, yields)
    total = dict(zip(moved, shares(len(pool.chosen) + budget, list(moved.values())), strict=True))
    if not pool.chosen:
        _tell(pool, weights, moved, total, {slot: value for slot, value in yields.items() if slot in free})
    have = Counter(pick.slot for pick in pool.chosen)
    return {slot: max(0, count - have[slot]) for slot, count in total.items()}


def _tell(
    pool: Pool,
    before: dict[str, float],
    moved: dict[str, float],
    total: dict[str, int],
    yields: dict[str, bandit.SlotYield],
) -> None:
    """Note the shares and why they are such, for people and, in `pool.memo`, for the round's manifest."""
    shown = ", ".join(f"{slot} {count}" for slot, count in total.items() if count)
    pool.note(f"slots with {regime(pool)}: {shown}")
    if before["audit"] and not total["audit"]:
        pool.note("no audit picks: the budget is too small for one, so curate audit learns nothing from this round")
    whole = {name: sum(of.values()) for name, of in (("before", before), ("moved", moved))}
    facts = {
        slot: {"share": round(moved[slot] / whole["moved"], 4), "without_yield": round(weight / whole["before"], 4)}
        | ({"picks": round(yields[slot].picks, 2), "found": round(yields[slot].found, 2)} if slot in yields else {})
        for slot, weight in before.items()
    }
    pool.once("slot shares", lambda: facts)
    if yields:
        each = (
            f"{slot} {fact['without_yield']:.0%} to {fact['share']:.0%}"
            + (f" ({fact['found']:.2g} of {fact['picks']:.2g} picks)" if "picks" in fact else " (not tried yet)")
            for slot, fact in facts.items()
            if slot != AUDIT and fact["share"]
        )
        pool.note(f"shares follow what the slots found of scarce and unseen classes: {', '.join(each)}")


def _idle(pool: Pool) -> dict[str, str]:
    """The slots that cannot work, each with the reason."""
    idle = {}
    if not rare_slot.sought_classes(pool):
        idle["rare"] = "there is no labelled image of a scarce class and no model; give --exemplars, or label one"
    if "probability" not in pool.scores and not linear_probe.has_classes(pool):
        idle["uncertain"] = "no class has enough labelled images for a probe yet"
    return idle


def _without(pool: Pool, picks: Picks) -> Pool:
    left = pool.candidates.copy()
    left[pool.rows_of([pick.id for pick in picks])] = False
    return pool.offering(left, pool.chosen + picks)
