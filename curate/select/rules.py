"""Between strategy and round: what is common to all strategies.

A strategy is asked for as many picks as are missing; what breaks a rule is put back or put away, and the strategy is
asked again, knowing what was accepted, until the budget is filled or nothing is left. So every strategy, the plainest
too, spreads over groups, keeps quotas and never offers the same picture twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from curate.data import AUDIT
from curate.errors import CurateError
from curate.greedy.neighbours import best_match, nearest
from curate.select.pool import Mask, Pick, Picks, Pool, Rows, shares
from curate.strategies import CATALOGUE

NEIGHBOURS = 100
CLOSED = 1_000_000
Quota = int | Literal["equal", "proportional"]
Select = Callable[[Pool, int, np.random.Generator], Picks]


@dataclass(frozen=True)
class SelectionRules:
    """What the layer does; all of it can be switched off, to compare strategies bare.

    Args:
        spread: one image a group before a second of any.
        near: the cosine from which two images count as near-duplicates.
        per_stratum: the most picks from one stratum; `equal` and `proportional` shares give way when one runs dry.
    """

    spread: bool = True
    near: float | None = None
    per_stratum: Quota | None = None


BARE = SelectionRules(spread=False)


class Selection(NamedTuple):
    """What was chosen, and what a person should know of it."""

    picks: Picks
    notes: tuple[str, ...]
    near_duplicates: int


def choose(
    pool: Pool,
    strategy: str,
    budget: int,
    seed: int = 0,
    rules: SelectionRules = BARE,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Selection:
    """At most `budget` picks by this strategy, under these rules. The same for the same pool and seed."""
    if budget < 1:
        raise CurateError(f"budget {budget} is too small; allowed: 1 or more images, or a time such as 4h")
    select, given = CATALOGUE.call(strategy), dict(options or {})
    CATALOGUE.check(strategy, given)
    return layered(pool, partial(select, **given), budget, seed, rules, progress)


def layered(
    pool: Pool,
    select: Select,
    budget: int,
    seed: int = 0,
    rules: SelectionRules = BARE,
    progress: Callable[[int], None] = lambda done: None,
) -> Selection:
    """The same for a strategy from anywhere: a simulation has the layer work for peers as it does for ours."""
    layer = _Layer(pool, rules, budget)
    for turn in range(10 * budget):  # a bound: each turn accepts a pick or puts one away for good
        if not layer.missing or not (offered := layer.offered()).any():
            break
        rng = np.random.default_rng([seed, pool.turn, turn])
        layer.take(select(pool.offering(offered, tuple(layer.chosen)), layer.missing, rng))
        progress(len(layer.chosen))
    return layer.batch()


@dataclass
class _Layer:
    pool: Pool
    rules: SelectionRules
    budget: int
    chosen: list[Pick] = field(default_factory=list)
    near_duplicates: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        pool = self.pool
        self.open: Mask = pool.candidates.copy()
        self.in_group = Counter(np.unique(pool.groups[pool.labelled]).tolist())
        self.level = 0
        self.room = self._room()
        self.vectors = np.empty((min(self.budget, len(pool)), pool.vectors.shape[1]), np.float32)  # of what is chosen

    @property
    def missing(self) -> int:
        return self.budget - len(self.chosen)

    # --- what a strategy may choose from ---

    def offered(self) -> Mask:
        """Candidates whose stratum has room, of the groups least looked at."""
        mask: Mask = self.open & self._roomy()
        if not mask.any() and self.open.any() and isinstance(self.rules.per_stratum, str):
            lost = f"{self.missing} picks of their {self.rules.per_stratum} shares went to the others"
            self.notes.append(f"some strata ran out of images: {lost}")
            self.room = {}
            mask = self.open
        if self.rules.spread and mask.any():
            looked = np.zeros(int(self.pool.groups.max()) + 1, np.int64)
            for group, count in self.in_group.items():
                looked[group] = count
            seen = looked[self.pool.groups]
            self.level = int(seen[mask].min())
            mask = mask & (seen == self.level)
        return mask

    def _room(self) -> dict[int, int]:
        """How many picks each stratum may still have; empty: no limit."""
        quota, strata = self.rules.per_stratum, self.pool.strata[self.pool.candidates]
        if quota is None:
            return {}
        names, sizes = np.unique(strata, return_counts=True)
        if isinstance(quota, int):
            return dict.fromkeys(names.tolist(), quota)
        weights = [1.0] * len(names) if quota == "equal" else sizes.tolist()
        return dict(zip(names.tolist(), shares(self.budget, weights), strict=True))

    def _roomy(self) -> Mask:
        full = [stratum for stratum, room in self.room.items() if room <= 0]
        return ~np.isin(self.pool.strata, full)

    # --- what becomes of its picks ---

    def take(self, picks: Picks) -> None:
        rows = self.pool.rows_of([pick.id for pick in picks])
        close = self._close(rows)
        for pick, row, known in zip(picks, rows.tolist(), close, strict=True):
            if pick.slot == AUDIT:  # drawn from everything and never put back: its chances must stay known
                self._accept(pick, row)
            elif self.missing and self.open[row] and self._fits(row):
                if known or self._close_to_chosen(row):
                    self._put_away(row)
                else:
                    self._accept(pick, row)

    def _fits(self, row: int) -> bool:
        group, stratum = int(self.pool.groups[row]), int(self.pool.strata[row])
        roomy = self.room.get(stratum, 1) > 0
        return roomy and (not self.rules.spread or self.in_group[group] <= self.level)

    def _accept(self, pick: Pick, row: int) -> None:
        self.chosen.append(pick)
        self.open[row] = False
        # An audited group is to fill val and test: a further pick of it could not be trained on, so it comes last.
        self.in_group[int(self.pool.groups[row])] += CLOSED if pick.slot == AUDIT else 1
        stratum = int(self.pool.strata[row])
        if stratum in self.room:
            self.room[stratum] -= 1
        self.vectors[len(self.chosen) - 1] = self.pool.vectors[row]

    def _put_away(self, row: int) -> None:
        self.open[row] = False
        self.near_duplicates += 1

    def _close(self, rows: Rows) -> list[bool]:
        """Which rows look just like a labelled image."""
        labelled = np.flatnonzero(self.pool.labelled)
        if self.rules.near is None or not len(labelled) or not len(rows):
            return [False] * len(rows)
        similarity, _ = best_match(self.pool.vectors[rows], self.pool.vectors[labelled])
        return list((similarity >= self.rules.near).tolist())

    def _close_to_chosen(self, row: int) -> bool:
        if self.rules.near is None or not self.chosen:
            return False
        return bool((self.vectors[: len(self.chosen)] @ self.pool.vectors[row]).max() >= self.rules.near)

    # --- the result ---

    def batch(self) -> Selection:
        notes = [*self.pool.memo.get("notes", ()), *self.notes]
        if self.missing and not self.open.any():
            notes.append(f"{self.missing} of the budget of {self.budget} are left over: no further image can be picked")
        elif self.missing:
            full = "every stratum has reached --per-stratum"
            notes.append(f"{self.missing} of the budget of {self.budget} are left over: {full}")
        if self.near_duplicates or self.rules.spread or self.room:
            self.chosen = [_chance_unknown(pick) for pick in self.chosen]
        return Selection(_interleaved(self.chosen), tuple(notes), self.near_duplicates)


def _chance_unknown(pick: Pick) -> Pick:
    """Where rules put picks back, only the audit's chances are still what the strategy said."""
    return pick if pick.slot == AUDIT else replace(pick, propensity=None)


def _interleaved(picks: list[Pick]) -> Picks:
    """Slots take turns in proportion, so that a queue that is left half done is still a balanced one."""
    sizes, seen, places = Counter(pick.slot for pick in picks), Counter[str](), []
    for pick in picks:
        places.append((seen[pick.slot] + 0.5) / sizes[pick.slot])
        seen[pick.slot] += 1
    order = sorted(range(len(picks)), key=lambda i: (places[i], i))
    return tuple(picks[i] for i in order)


def with_neighbourhood(pool: Pool, picks: Picks) -> Picks:
    """Each reason with how much is known around the image."""
    others = min(NEIGHBOURS, len(pool) - 1)
    if not picks or others < 1:
        return picks
    _, index = nearest(pool.vectors[pool.rows_of([pick.id for pick in picks])], pool.vectors, others + 1)
    known = pool.labelled[index].sum(axis=1)
    text = "{} of its {} nearest images are labelled"
    return tuple(
        replace(pick, reason=f"{pick.reason}; {text.format(count, others)}")
        for pick, count in zip(picks, known.tolist(), strict=True)
    )
