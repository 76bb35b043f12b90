"""What a strategy sees (`Pool`) and what it returns (`Pick`s): plain arrays, no torch, no FiftyOne.

Rows are sorted by content id, so that the order in which images were read cannot matter: where two rows are equally
good, the lower one wins. A row number means something inside one pool only.
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
    """Windows that show a rare defect: the class may be unknown ('' then)."""

    ids: tuple[str, ...]
    tiles: NDArray[np.int16]
    vectors: Floats
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, names: Sequence[str]) -> Exemplars:
        """Those of these classes, and those of no known class."""
        keep = [i for i, name in enumerate(self.classes) if name in names or not name]
        return Exemplars(
            tuple(self.ids[i] for i in keep), self.tiles[keep], self.vectors[keep], tuple(self.classes[i] for i in keep)
        )


NO_EXEMPLARS = Exemplars((), np.zeros(0, np.int16), np.zeros((0, 0), np.float32), ())


@dataclass(frozen=True, slots=True)
class Pick:
    """One image worth a person's time, and why. `propensity`: the chance it had, where that is known."""

    id: str
    slot: str
    score: float
    reason: str
    propensity: float | None = None
    like: str | None = None
    tile: int | None = None


Picks = tuple[Pick, ...]


@dataclass(frozen=True)
class Pool:
    """All images that matter to a choice: candidates, labelled ones (context), and what is known of each.

    Args:
        ids: content ids, sorted.
        vectors: (n, d), unit length.
        candidates: rows that may be picked.
        labelled: rows whose label is known; `present` holds their classes.
        held_out: labelled rows of val and test: they count as looked at, and teach nothing.
        groups, strata: numbers for names; `stratum_names` tells what the latter stand for.
        scores: by name, of shape (n,) or (n, classes): see `curate.strategies` for the names that are used.
        windows: streams the vectors of all windows (tiles, and the images themselves).
        exemplars: windows that show the defects which are looked for.
        chosen: what this round holds already, in order; these rows are no candidates any more.
        population: the rows that could be picked when the round began: what an audit is drawn from.
        wanted: the classes that the user asks for; empty: all.
        turn: which round of labelling this is, from 1.
        memo: what strategies compute once a round, whatever is chosen meanwhile.
        lasting: what follows from the windows alone: it outlives the round where a round is followed by the next.
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
        found = np.searchsorted(np.array(self.ids), np.array(ids, dtype=str)) if len(ids) else np.zeros(0, np.int64)
        return found.astype(np.int64)

    @property
    def covered(self) -> Rows:
        """Rows that need no second look: labelled, or chosen already."""
        chosen = self.rows_of([pick.id for pick in self.chosen])
        return np.union1d(np.flatnonzero(self.labelled), chosen).astype(np.int64)

    def offering(self, candidates: Mask, chosen: Picks) -> Pool:
        """The same pool, later in the round."""
        return replace(self, candidates=candidates, chosen=chosen)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        if name not in self.memo:
            self.memo[name] = compute()
        value: T = self.memo[name]
        return value

    def note(self, text: str) -> None:
        """Something that a person should know of the choice."""
        self.once("notes", lambda: dict[str, None]())[text] = None

    def all_windows(self) -> Iterator[Windows]:
        """Every window, a chunk at a time; the whole images alone where no tiles are known."""
        if self.windows is not None:
            yield from self.windows()
            return
        step = 65536
        for start in range(0, len(self), step):
            rows = np.arange(start, min(start + step, len(self)))
            yield Windows(rows, np.full(len(rows), WHOLE, np.int16), self.vectors[rows])

    @property
    def taught(self) -> Mask:
        """Labelled rows that anything may be learnt from."""
        return np.asarray(self.labelled & ~self.held_out)

    def shows(self, name: str) -> Mask:
        """The rows that teach how the class looks."""
        return np.asarray(self.taught & self.present[:, self.classes.index(name)])

    def groups_of(self, name: str) -> int:
        """How many groups are known to show the class."""
        return len(np.unique(self.groups[self.shows(name)]))

    def scarce_classes(self) -> tuple[str, ...]:
        """The scarcest of the classes with labels (`wanted`, else all), and those with under a quarter of the median's
        groups."""
        counts = {name: count for name in self.wanted or self.classes if (count := self.groups_of(name))}
        if not counts:
            return ()
        few = max(min(counts.values()), SCARCE * float(np.median(list(counts.values()))))
        return tuple(name for name, count in sorted(counts.items(), key=lambda pair: pair[1]) if count <= few)


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split by weight into whole numbers that add up to it (largest remainders; ties to the first)."""
    sum_ = sum(weights)
    exact = [total * weight / sum_ if sum_ else 0.0 for weight in weights]
    parts = [int(value) for value in exact]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[: total - sum(parts)] if sum_ else []:
        parts[i] += 1
    return parts
