"""Farthest-first selection over parts on several machines, with the same picks as on one machine.

Each round every part looks a batch of picks ahead on its own and proposes rows: those picks, the farthest row near
each of them, and its farthest rows of all, each with its exact distance. It describes all other rows by bounds: for
the rows near a pick the largest distance to the centres, and the largest distance to the pick. The coordinator picks
among the proposals of all parts as long as the best one beats every bound. Each new centre lowers the distances of
the proposals and, by the triangle inequality, the bounds; so a round yields at least one pick and usually many.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError, unknown
from curate.greedy import kcenter
from curate.greedy.kcenter import FarthestFirstSearch, Floats, Ints, SearchState

_TINY = 1e-32

Ids = NDArray[Any]


class Shard(NamedTuple):
    """One part of the table.

    Attributes:
        ids: Sorted, and in no other part; integers or texts.
        vectors: One row for each id, float32 or float16.
    """

    ids: Ids
    vectors: NDArray[Any]


Source = Shard | Callable[[], Shard]  # a function is called where the part is used, and must be picklable for Ray


class Picked(NamedTuple):
    """The picks, in order.

    Attributes:
        ids: The ids of the rows.
        shards: The number of the part of each.
        rows: The row within its part.
        radius: Distance to the nearest earlier centre; infinite for the very first one.
        rounds: Number of requests to all parts.
        computed: Number of distances that the parts computed, in part or in full.
    """

    ids: Ids
    shards: Ints
    rows: Ints
    radius: Floats
    rounds: int
    computed: int


class Rows(NamedTuple):
    """Rows of one or more parts."""

    ids: Ids
    shards: Ints
    rows: Ints
    vectors: Floats

    def at(self, positions: Ints | slice) -> Rows:
        return Rows(self.ids[positions], self.shards[positions], self.rows[positions], self.vectors[positions])


class Bounds(NamedTuple):
    """Groups of rows that were not proposed.

    Attributes:
        middles: The pick that each group lies around; anything where `reach` is infinite.
        reach: Distance of the group's farthest row to the middle.
        farthest: Largest squared distance of a row to the centres.
        ids: Lowest id among the rows that far.
    """

    middles: Floats
    reach: Floats
    farthest: Floats
    ids: Ids


class Proposal(NamedTuple):
    """Rows with their squared distances to the centres, and bounds on all others."""

    rows: Rows
    best: Floats
    bounds: Bounds


class WorkerCall(Protocol):
    """Call a method of every part's worker with the same arguments."""

    def __call__(self, method: str, *arguments: Any) -> list[Any]: ...


def kcenter_sharded(
    shards: Sequence[Source],
    budget: int,
    *,
    covered_vectors: NDArray[Any] | None = None,
    engine: str = "local",
    batch: int = 64,
) -> Picked:
    """Pick the rows that `kcenter` would pick from all parts in one table sorted by id.

    Args:
        shards: The parts, or functions that read them where they are used.
        budget: Number of rows to pick.
        covered_vectors: Centres that exist already.
        engine: `local` to work on the parts in turn, `ray` to give each one an actor of its own.
        batch: Picks that each part looks ahead in a round: more make fewer rounds with larger messages.

    Returns:
        The picks, the same with any number of parts and any engine.

    Raises:
        CurateError: If Ray is asked for and not installed, or the engine is unknown.
        ValueError: If ids are not sorted, or values are not finite.
    """
    with _workers(shards, engine) as ask:
        return _Coordinator(ask, budget, _checked(covered_vectors), max(1, batch)).picked()


def kcenter_two_round(
    shards: Sequence[Source], budget: int, *, covered_vectors: NDArray[Any] | None = None, engine: str = "local"
) -> Picked:
    """Pick in each part on its own, then among those picks: always two rounds, but not exact.

    The radius is at most a small factor above that of `kcenter_sharded`; arguments and errors are the same.
    """
    known = _checked(covered_vectors)
    with _workers(shards, engine) as ask:
        answers = ask("pick_alone", budget, known)
    pool = _joined([rows for rows, _ in answers])
    pool = pool.at(np.argsort(pool.ids, kind="stable"))
    union = pool.vectors if known is None else np.concatenate([pool.vectors, known], dtype=np.float32)
    centers = kcenter.kcenter(union, budget, covered=np.arange(len(pool.ids), len(union)))
    computed = centers.computed + sum(count for _, count in answers)
    picks = pool.at(centers.picks)
    return Picked(picks.ids, picks.shards, picks.rows, centers.radius, 2, computed)


def _checked(covered: NDArray[Any] | None) -> NDArray[Any] | None:
    if covered is None or not len(covered):
        return None
    kcenter.largest_value(kcenter.readable(covered))
    return covered


# --- a part -------------------------------------------------------------------------------------------------------


class Worker:
    """Holds one part and answers the coordinator."""

    def __init__(self, source: Source, number: int) -> None:
        shard = source() if callable(source) else source
        self.ids = np.asarray(shard.ids)
        self.number = number
        self.vectors = kcenter.readable(shard.vectors)
        self.all = np.arange(len(self.ids))
        if len(self.ids) != len(self.vectors):
            raise ValueError(f"part {number} has {len(self.ids)} ids for {len(self.vectors)} vectors")
        if not (self.ids[1:] > self.ids[:-1]).all():
            raise ValueError(f"the ids of part {number} are not sorted, or repeat")

    def size(self) -> tuple[int, float]:
        """Number of rows, and the largest magnitude of a value."""
        return len(self.ids), kcenter.largest_value(self.vectors)

    def total(self, largest: float) -> Ints:
        """The sum of all rows."""
        return kcenter.sum_of(self.vectors, self.all, largest)

    def nearest(self, point: Floats) -> tuple[Rows, Floats]:
        """The row nearest to a point, and its distance; empty where there are no rows."""
        distances = kcenter.distances_to(self.vectors, self.all, point)
        rows = np.flatnonzero(distances == distances.min(initial=np.inf))[:1]
        return self._rows(rows), distances[rows]

    def start(self, room: int, covered: NDArray[Any] | None) -> None:
        """Begin a search with room for that many centres, including those that are only looked ahead."""
        self.search = FarthestFirstSearch(self.vectors, self.all, room)
        if covered is not None:
            self.search.cover(kcenter.readable(covered), np.arange(len(covered)))
            self.started = True
        else:
            self.started = False

    def propose(self, centres: Floats, chosen: list[tuple[int, int]], ahead: int) -> Proposal:
        """Add the new centres, some of which are rows of this part, and propose rows for the next ones."""
        for centre in centres:
            (self.search.add if self.started else self.search.first)(centre)
            self.started = True
        self.search.best[[row for number, row in chosen if number == self.number]] = -1
        positions, state = self.search.look_ahead(ahead)
        proposed = self._proposed(positions, state)
        return Proposal(self._rows(proposed), self.search.best[proposed], self._bounds(positions, state, proposed))

    def pick_alone(self, budget: int, covered: NDArray[Any] | None) -> tuple[Rows, int]:
        """Pick without regard to other parts; return the rows and the number of computed distances."""
        largest = kcenter.largest_value(self.vectors)
        self.start(budget, covered)
        if not self.started and len(self.ids) and budget > 0:
            mean = kcenter.mean_of(self.vectors, self.all, largest)
            self.search.begin(kcenter.nearest_to(self.vectors, self.all, mean))
        self.search.run(budget - self.search.count)
        return self._rows(self.search.picks), self.search.computed

    def computed(self) -> int:
        return self.search.computed

    def _rows(self, rows: Ints) -> Rows:
        return Rows(self.ids[rows], np.full(len(rows), self.number), rows, kcenter.widen(self.vectors, rows))

    def _groups(self, positions: Ints, state: SearchState) -> Ints:
        """The pick that each row is nearest to, or the number of picks for those near none."""
        group: Ints = state.anchor.astype(np.int64) - self.search.count
        group[(group < 0) | (group > len(positions))] = len(positions)
        return group

    def _proposed(self, positions: Ints, state: SearchState) -> Ints:
        best, current = self.search.best, np.flatnonzero(self.search.seen == self.search.count)
        current = current[best[current] >= 0]  # open, and up to date with all centres
        current = current[np.argsort(-best[current], kind="stable")]
        _, leaders = np.unique(self._groups(positions, state)[current], return_index=True)
        proposed: Ints = np.unique(np.concatenate([positions, current[leaders], current[: len(positions)]]))
        return proposed

    def _bounds(self, positions: Ints, state: SearchState, proposed: Ints) -> Bounds:
        kept = self.search.best >= 0
        kept[proposed] = False
        rest = np.flatnonzero(kept)
        group, best = self._groups(positions, state)[rest], self.search.best[rest]
        reach = np.zeros(len(positions) + 1, np.float32)
        np.maximum.at(reach, group, np.sqrt(state.best[rest]))
        reach[-1] = np.inf
        order = np.lexsort((rest, -best, group))
        present, leaders = np.unique(group[order], return_index=True)
        farthest = rest[order[leaders]]
        middles = self.search.centres[self.search.count :][np.minimum(present, max(len(positions) - 1, 0))]
        return Bounds(middles, reach[present], self.search.best[farthest], self.ids[farthest])


# --- the coordinator ----------------------------------------------------------------------------------------------


class _Pool:
    """The rows that the parts proposed in one round, sorted by id, and the bounds on all other rows."""

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        rows = _joined([proposal.rows for proposal in proposals])
        order = np.argsort(rows.ids, kind="stable")
        self.rows = rows.at(order)
        self.best = np.concatenate([proposal.best for proposal in proposals])[order]
        self.bounds = Bounds(
            *(np.concatenate(columns) for columns in zip(*(proposal.bounds for proposal in proposals), strict=True))
        )
        self.attained = np.ones(
            len(self.bounds.ids), np.bool_
        )  # a row has this distance, so that its id decides between equals

    def next(self) -> int | None:
        """The row that is the farthest of all, if that is certain."""
        if not len(self.best):
            return None
        position = int(np.argmax(self.best))
        best, bound = self.best[position], self.bounds.farthest
        if best < 0 or (bound > best).any():
            return None
        rivals = bound == best
        certain = self.attained[rivals].all() and (self.rows.ids[position] < self.bounds.ids[rivals]).all()
        return position if certain else None

    def take(self, position: int) -> None:
        """Make a row a centre."""
        centre = self.rows.vectors[position]
        everything = np.arange(len(self.best))
        self.best = np.minimum(self.best, kcenter.distances_to(self.rows.vectors, everything, centre))
        self.best[position] = -1
        self._lower(centre)

    def _lower(self, centre: Floats) -> None:
        """Lower the bounds: no row is farther from the centre than its group's middle plus the group's reach."""
        middles, reach, farthest, _ = self.bounds
        between = kcenter.distances_to(middles, np.arange(len(middles)), centre).astype(np.float64)
        # Sums of squares are off by (dimensions + 2) * 2**-24 at most; two of them are involved.
        margin = 1 + 8 * (len(centre) + 8) * 2.0**-24
        limit = ((np.sqrt(between) + reach) ** 2 * margin + _TINY).astype(np.float32)
        lower = limit < farthest
        self.attained &= ~lower
        farthest[lower] = limit[lower]


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class _Coordinator:
    """Asks the parts, round after round, and picks among the rows that they propose."""

    def __init__(self, ask: WorkerCall, budget: int, covered: NDArray[Any] | None, batch: int) -> None:
        self.parts, self.rounds, self.covered = ask, 0, covered
        sizes = self.ask("size")
        self.count, self.largest = sum(rows for rows, _ in sizes), max(largest for _, largest in sizes)
        self.budget = max(0, min(budget, self.count))
        self.batch = min(batch, self.budget)
        self.centres: list[Rows] = []
        self.radius: list[float] = []

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        self.rounds += 1
        return self.parts(method, *arguments)

    def picked(self) -> Picked:
        """Run rounds until there are enough picks."""
        self.ask("start", self.budget + self.batch, self.covered)
        if self.budget and self.covered is None:
            self._first()
        known = 0
        while len(self.centres) < self.budget:
            known = self._round(known)
        return self._result()

    def _first(self) -> None:
        total = np.sum(self.ask("total", self.largest), axis=0)
        answers = self.ask("nearest", kcenter.mean_from(total, self.count, self.largest))
        rows = _joined([rows for rows, _ in answers])
        nearest = np.lexsort((rows.ids, np.concatenate([distances for _, distances in answers])))[:1]
        self._keep(rows.at(nearest), np.inf)

    def _keep(self, row: Rows, radius: float) -> None:
        self.centres.append(row)
        self.radius.append(radius)

    def _round(self, known: int) -> int:
        """Send the new centres to the parts, and pick on; return the number of centres that the parts know."""
        new = self.centres[known:]
        known = len(self.centres)
        dimensions = new[0].vectors.shape[1] if new else 0
        centres = np.concatenate([np.empty((0, dimensions), np.float32), *(row.vectors for row in new)])
        chosen = [(int(row.shards[0]), int(row.rows[0])) for row in new]
        pool = _Pool(self.ask("propose", centres, chosen, min(self.batch, self.budget - known)))
        while len(self.centres) < self.budget and (position := pool.next()) is not None:
            self._keep(pool.rows.at(slice(position, position + 1)), float(pool.best[position]))
            pool.take(position)
        return known

    def _result(self) -> Picked:
        computed = sum(self.parts("computed"))
        radius = np.sqrt(np.array(self.radius, np.float32))
        if not self.centres:
            return Picked(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), radius, self.rounds, 0)
        ids, shards, rows, _ = _joined(self.centres)
        return Picked(ids, shards, rows, radius, self.rounds, computed)


# --- engines ------------------------------------------------------------------------------------------------------


@contextmanager
def _workers(sources: Sequence[Source], engine: str) -> Iterator[WorkerCall]:
    if not sources:
        raise ValueError("there are no parts to pick from")
    if engine == "local":
        workers = [Worker(source, number) for number, source in enumerate(sources)]
        yield lambda method, *arguments: [getattr(worker, method)(*arguments) for worker in workers]
    elif engine == "ray":
        with _ray_workers(sources) as ask:
            yield ask
    else:
        raise unknown("engine", engine, ["local", "ray"])


@contextmanager
def _ray_workers(sources: Sequence[Source]) -> Iterator[WorkerCall]:
    """Actors that hold the parts. A Ray that already runs in this process is used and left running."""
    try:
        import ray
    except ImportError:
        raise CurateError(
            "engine 'ray' needs Ray, which is not installed. Run: pip install 'steel-curate[ray]'"
        ) from None
    started = not ray.is_initialized()
    if started:
        # The cluster that RAY_ADDRESS names, or else a new one.
        local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **local)
    actor = ray.remote(Worker).options(scheduling_strategy="SPREAD")
    actors = [actor.remote(source, number) for number, source in enumerate(sources)]

    def ask(method: str, *arguments: Any) -> list[Any]:
        sent = [ray.put(argument) for argument in arguments]  # once, not once an actor
        return list(ray.get([getattr(worker, method).remote(*sent) for worker in actors]))

    try:
        yield ask
    finally:
        for worker in actors:
            ray.kill(worker)
        if started:
            ray.shutdown()
