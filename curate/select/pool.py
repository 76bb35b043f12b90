"""`Pool`, the input of a strategy, and `Pick`, its output: plain arrays, no torch, no FiftyOne.

Rows are sorted by content id, so that the order in which images were read cannot matter: where two rows are equally
good, the lower one wins. A row number is valid inside one pool only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
T = TypeVar("T")
WHOLE = -1  # the tile number of the whole image
SCARCE = 0.25  # of the groups that the median class has


class Windows(NamedTuple):
    """Some windows of the pool's images: their rows, tile numbers (`WHOLE` for the image) and unit vectors."""

    rows: Rows
    tiles: NDArray[np.int16]
    vectors: Floats


@dataclass(frozen=True)
class Exemplars:
    """Windows that show a rare defect; the class is '' where it is unknown. `given`: by the user, not from labels."""

    ids: tuple[str, ...]
    tiles: NDArray[np.int16]
    vectors: Floats
    classes: tuple[str, ...]
    given: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, names: Sequence[str]) -> Exemplars:
        """The exemplars of these classes, and those of unknown class."""
        keep = [i for i, name in enumerate(self.classes) if name in names or not name]
        ids, classes = (tuple(values[i] for i in keep) for values in (self.ids, self.classes))
        return Exemplars(ids, self.tiles[keep], self.vectors[keep], classes, self.given)


NO_EXEMPLARS = Exemplars((), np.zeros(0, np.int16), np.zeros((0, 0), np.float32), ())


@dataclass(frozen=True, slots=True)
class Pick:
    """One image to label, and why.

    Args:
        id: content id.
        slot: the part of the strategy that picked it, for example `rare` or `audit`; else the strategy's name.
        score: the higher, the earlier; comparable within one slot only.
        reason: one line for a person.
        propensity: the probability with which it was drawn, where that is known.
        like: the content id of the exemplar it resembles.
        tile: the window that the reason is about; `WHOLE` is the whole image.
        urn: the part of the pool from which an audit pick was drawn at random, all of its images with one chance.
        extra: an audit pick beyond its urn's even share. Estimates need it; val and test, which keep the natural mix,
            do not take it.
    """

    id: str
    slot: str
    score: float
    reason: str
    propensity: float | None = None
    like: str | None = None
    tile: int | None = None
    urn: str | None = None
    extra: bool = False


Picks = tuple[Pick, ...]


class PastRound(NamedTuple):
    """Picks of an earlier round: its number, and the row and slot of each that the pool holds, in order."""

    number: int
    rows: Rows
    slots: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """All images that a strategy takes into account: the candidates, the labelled ones, and their known properties.

    Args:
        ids: content ids, sorted.
        vectors: (n, d), unit length.
        candidates: rows that may be picked.
        labelled: rows whose label is known.
        held_out: labelled rows of val and test, and those that show retired classes alone: they cover their
            surroundings, but nothing may be learnt from them.
        present: (n, classes), the classes that each labelled row shows.
        classes: their names, in the order of `present`'s columns.
        groups, strata: the number of each row's group and stratum; `stratum_names` holds the names of the latter.
        scores: by name, of shape (n,) or (n, classes): see `curate.strategies` for the names that are used.
        windows: streams the vectors of all windows (tiles, and the images themselves).
        exemplars: windows that show the defects to look for.
        chosen: the picks that this round holds already, in order; their rows are candidates no more.
        population: the rows that could be picked when the round began; an audit is drawn from these.
        wanted: the classes that the user asks for; empty: all.
        turn: the number of the labelling round, from 1.
        past: what the earlier rounds picked, the oldest first.
        effort: (n,), the time that an image is expected to take, 1 for the median candidate and all quicker ones; None
            where the round's budget counts images.
        memo: results that strategies compute once a round and that do not depend on `chosen`; see `once`.
        lasting: results that depend on the windows alone; a simulation keeps them from round to round.
    """

    ids: tuple[str, ...]
    vectors: Floats
    candidates: Mask
    labelled: Mask
    present: Mask
    classes: tuple[str, ...]
    groups: Rows
    strata: Rows
    stratum_names: tuple[str, ...] = ("",)
    scores: Mapping[str, Floats] = field(default_factory=dict)
    windows: Callable[[], Iterator[Windows]] | None = None
    exemplars: Exemplars = NO_EXEMPLARS
    chosen: Picks = ()
    population: Mask = field(default_factory=lambda: np.zeros(0, bool))
    held_out: Mask = field(default_factory=lambda: np.zeros(0, bool))
    wanted: tuple[str, ...] = ()
    turn: int = 1
    past: tuple[PastRound, ...] = ()
    effort: Floats | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    lasting: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.population):
            object.__setattr__(self, "population", self.candidates)
        if not len(self.held_out):
            object.__setattr__(self, "held_out", np.zeros(len(self.ids), bool))
        arrays = (self.vectors, self.candidates, self.labelled, self.present, self.groups, self.strata)
        for array in (*arrays, *self.scores.values()):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def open(self) -> Rows:
        """The rows that may be picked."""
        return np.flatnonzero(self.candidates)

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The rows of these content ids, all of which must be in the pool."""
        rows = np.searchsorted(np.array(self.ids), np.array(ids, dtype=str)) if len(ids) else np.zeros(0, np.int64)
        return rows.astype(np.int64)

    @property
    def covered(self) -> Rows:
        """Rows that are labelled, or chosen in this round."""
        chosen = self.rows_of([pick.id for pick in self.chosen])
        return np.union1d(np.flatnonzero(self.labelled), chosen).astype(np.int64)

    def offering(self, candidates: Mask, chosen: Picks) -> Pool:
        """Return the same pool, later in the round."""
        return replace(self, candidates=candidates, chosen=chosen)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Compute a result the first time that it is asked for in this round."""
        if name not in self.memo:
            self.memo[name] = compute()
        value: T = self.memo[name]
        return value

    def note(self, text: str) -> None:
        """Add a note about the choice that the user should read."""
        self.once("notes", lambda: dict[str, None]())[text] = None

    def all_windows(self) -> Iterator[Windows]:
        """Every window, in chunks; the whole images alone where there are no tiles."""
        if self.windows is not None:
            yield from self.windows()
            return
        step = 65536
        for start in range(0, len(self), step):
            rows = np.arange(start, min(start + step, len(self)))
            yield Windows(rows, np.full(len(rows), WHOLE, np.int16), self.vectors[rows])

    def per_effort(self, values: Floats) -> Floats:
        """Divide the values above 0, of one image a row, by the images' effort where people's time is what counts."""
        if self.effort is None:
            return values
        effort = self.effort.reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray(np.where(values > 0, values / effort, values), values.dtype)

    @property
    def trainable(self) -> Mask:
        """Labelled rows that may be learnt from: not those of val and test."""
        return np.asarray(self.labelled & ~self.held_out)

    def shows(self, name: str) -> Mask:
        """The trainable rows that show the class."""
        return np.asarray(self.trainable & self.present[:, self.classes.index(name)])

    def group_count(self, name: str) -> int:
        """Number of groups with a trainable row that shows the class."""
        return len(np.unique(self.groups[self.shows(name)]))

    def scarce_classes(self) -> tuple[str, ...]:
        """Classes with trainable rows that are scarce: the one with the fewest groups, and all far below the median."""
        return scarcest({name: self.group_count(name) for name in self.wanted or self.classes})


def scarcest(groups: Mapping[str, int]) -> tuple[str, ...]:
    """The classes with the fewest groups, scarcest first; those of no group are left out."""
    counts = {name: count for name, count in groups.items() if count}
    if not counts:
        return ()
    limit = max(min(counts.values()), SCARCE * float(np.median(list(counts.values()))))
    return tuple(name for name, count in sorted(counts.items(), key=lambda pair: pair[1]) if count <= limit)


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` by weight into whole numbers that add up to it (largest remainders; ties to the first)."""
    sum_ = sum(weights)
    exact = [total * weight / sum_ if sum_ else 0.0 for weight in weights]
    parts = [int(value) for value in exact]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[: total - sum(parts)] if sum_ else []:
        parts[i] += 1
    return parts
