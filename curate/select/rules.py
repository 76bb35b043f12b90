"""The selection layer: rules that hold for all strategies (groups, quotas, near-duplicates).

A strategy is asked for as many picks as are missing. A pick that breaks a rule is returned to the candidates or
dropped, and the strategy is asked again, with the accepted picks in `Pool.chosen`, until the budget is filled or no
candidate is left. So every strategy, even `random`, spreads over groups, keeps quotas and avoids near-duplicates.
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
from curate.select.pool import Mask, Pick, Picks, Pool, Rows, shares
from curate.strategies import CATALOGUE

NEIGHBOURS = 100
CLOSED = 1_000_000  # added to a group's count: it is offered after all others
Quota = int | Literal["equal", "proportional"]
Select = Callable[[Pool, int, np.random.Generator], Picks]


@dataclass(frozen=True)
class SelectionRules:
    """Rules of the selection layer; all can be switched off, to compare strategies without them.

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
    """The chosen picks, notes for the user, and how many near-duplicates were left out.

    `shares`: of a strategy with slots the share of each, and what it follows from.
    """

    picks: Picks
    notes: tuple[str, ...]
    near_duplicates: int
    shares: Mapping[str, Mapping[str, float]] = {}


def choose(
    pool: Pool,
    strategy: str,
    budget: int,
    seed: int = 0,
    rules: SelectionRules = BARE,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Selection:
    """Pick at most `budget` images by a strategy, under the rules. The same pool and seed give the same picks.

    Args:
        pool: the images to pick from.
        strategy: the name of a strategy.
        budget: the number of images.
        seed: seeds the strategy's random numbers.
        rules: the rules of the selection layer.
        options: keyword arguments of the strategy.
        progress: called with the number of images picked so far.

    Raises:
        CurateError: an unknown strategy or option, or a budget below 1.
    """
    if budget < 1:
        raise CurateError(f"budget {budget} is too small; allowed: 1 or more images, or a time such as 4h")
    select, chosen_options = CATALOGUE.call(strategy), dict(options or {})
    CATALOGUE.check(strategy, chosen_options)
    return layered(pool, partial(select, **chosen_options), budget, seed, rules, progress)


def layered(
    pool: Pool,
    select: Select,
    budget: int,
    seed: int = 0,
    rules: SelectionRules = BARE,
    progress: Callable[[int], None] = lambda done: None,
) -> Selection:
    """`choose` for a strategy that is given as a function: a simulation compares those of other libraries, too."""
    layer = _Layer(pool, rules, budget)
    for turn in range(10 * budget):  # a bound: each turn accepts a pick or puts one away for good
        if not layer.missing or not (offered := layer.offered()).any():
            break
        rng = np.random.default_rng([seed, pool.turn, turn])
        layer.take(select(pool.offering(offered, tuple(layer.chosen)), layer.missing, rng))
        progress(len(layer.chosen))
    return layer.selection()


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
        self.group_counts = Counter(np.unique(pool.groups[pool.labelled]).tolist())
        self.level = 0
        self.room = self._room()
        self.vectors = np.empty((min(self.budget, len(pool)), pool.vectors.shape[1]), np.float32)  # chosen ones

    @property
    def missing(self) -> int:
        return self.budget - len(self.chosen)

    # --- the candidates that a strategy is offered ---

    def offered(self) -> Mask:
        """Candidates whose stratum has room, of the groups with the fewest labelled or chosen images."""
        mask: Mask = self.open & self._roomy()
        if not mask.any() and self.open.any() and isinstance(self.rules.per_stratum, str):
            lost = f"{self.missing} picks of their {self.rules.per_stratum} shares went to the others"
            self.notes.append(f"some strata ran out of images: {lost}")
            self.room = {}
            mask = self.open
        if self.rules.spread and mask.any():
            counts = np.zeros(int(self.pool.groups.max()) + 1, np.int64)
            for group, count in self.group_counts.items():
                counts[group] = count
            of_row = counts[self.pool.groups]
            self.level = int(of_row[mask].min())
            mask = mask & (of_row == self.level)
        return mask

    def _room(self) -> dict[int, int]:
        """Number of picks that each stratum may still have; empty: no limit."""
        quota, strata = self.rules.per_stratum, self.pool.strata[self.pool.candidates]
        if quota is None:
            return {}
        names, sizes = np.unique(strata, return_counts=True)
        if isinstance(quota, int):
            return dict.fromkeys(names.tolist(), quota)
        weights = [1.0] * len(names) if quota == "equal" else sizes.tolist()
        return dict(zip(names.tolist(), shares(self.budget, weights), strict=True))

    def _roomy(self) -> Mask:
        """Rows whose stratum is not full."""
        full = [stratum for stratum, room in self.room.items() if room <= 0]
        return ~np.isin(self.pool.strata, full)

    # --- its picks ---

    def take(self, picks: Picks) -> None:
        rows = self.pool.rows_of([pick.id for pick in picks])
        near_labelled = self._near_labelled(rows)
        for pick, row, is_copy in zip(picks, rows.tolist(), near_labelled, strict=True):
            if pick.slot == AUDIT:  # drawn from all candidates and never refused: its probabilities must stay known
                self._accept(pick, row)
            elif self.missing and self.open[row] and self._fits(row):
                if is_copy or self._near_chosen(row):
                    self._drop(row)
                else:
                    self._accept(pick, row)

    def _fits(self, row: int) -> bool:
        group, stratum = int(self.pool.groups[row]), int(self.pool.strata[row])
        roomy = self.room.get(stratum, 1) > 0
        return roomy and (not self.rules.spread or self.group_counts[group] <= self.level)

    def _accept(self, pick: Pick, row: int) -> None:
        self.chosen.append(pick)
        self.open[row] = False
        # An audited group goes to val or test: a further pick of it could not be trained on, so it comes last.
        self.group_counts[int(self.pool.groups[row])] += CLOSED if pick.slot == AUDIT and not pick.extra else 1
        stratum = int(self.pool.strata[row])
        if stratum in self.room:
            self.room[stratum] -= 1
        self.vectors[len(self.chosen) - 1] = self.pool.vectors[row]

    def _drop(self, row: int) -> None:
        self.open[row] = False
        self.near_duplicates += 1

    def _near_labelled(self, rows: Rows) -> list[bool]:
        """For each row: is it a near-duplicate of a labelled image?"""
        labelled = np.flatnonzero(self.pool.labelled)
        if self.rules.near is None or not len(labelled) or not len(rows):
            return [False] * len(rows)
        from curate.greedy.neighbours import best_match  # its kernels take half a second to load

        similarity, _ = best_match(self.pool.vectors[rows], self.pool.vectors[labelled])
        return list((similarity >= self.rules.near).tolist())

    def _near_chosen(self, row: int) -> bool:
        if self.rules.near is None or not self.chosen:
            return False
        return bool((self.vectors[: len(self.chosen)] @ self.pool.vectors[row]).max() >= self.rules.near)

    # --- the result ---

    def selection(self) -> Selection:
        notes = [*self.pool.memo.get("notes", ()), *self.notes]
        if self.missing and not self.open.any():
            notes.append(f"{self.missing} of the budget of {self.budget} are left over: no further image can be picked")
        elif self.missing:
            full = "every stratum has reached --per-stratum"
            notes.append(f"{self.missing} of the budget of {self.budget} are left over: {full}")
        if self.near_duplicates or self.rules.spread or self.room:
            self.chosen = [_without_propensity(pick) for pick in self.chosen]
        shares_of_slots = self.pool.memo.get("slot shares", {})
        return Selection(_interleaved(self.chosen), tuple(notes), self.near_duplicates, shares_of_slots)


def _without_propensity(pick: Pick) -> Pick:
    """Remove the probability that the strategy stated: after the rules only the audit's are still true."""
    return pick if pick.slot == AUDIT else replace(pick, propensity=None)


def _interleaved(picks: list[Pick]) -> Picks:
    """Let slots take turns in proportion, so that a queue that is labelled only in part is still balanced."""
    sizes, seen, places = Counter(pick.slot for pick in picks), Counter[str](), []
    for pick in picks:
        places.append((seen[pick.slot] + 0.5) / sizes[pick.slot])
        seen[pick.slot] += 1
    order = sorted(range(len(picks)), key=lambda i: (places[i], i))
    return tuple(picks[i] for i in order)


def with_neighbourhood(pool: Pool, picks: Picks) -> Picks:
    """Add to each reason how many of the image's nearest images are labelled."""
    others = min(NEIGHBOURS, len(pool) - 1)
    if not picks or others < 1:
        return picks
    from curate.greedy.neighbours import nearest

    _, index = nearest(pool.vectors[pool.rows_of([pick.id for pick in picks])], pool.vectors, others + 1)
    known = pool.labelled[index].sum(axis=1)
    text = "{} of its {} nearest images are labelled"
    return tuple(
        replace(pick, reason=f"{pick.reason}; {text.format(count, others)}")
        for pick, count in zip(picks, known.tolist(), strict=True)
    )
