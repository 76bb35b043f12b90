"""One simulated life of a labelling project: select, reveal, train, evaluate, repeat. Pure: a world in, a curve out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.data import AUDIT
from curate.errors import CurateError
from curate.select import build_pool, cost
from curate.select import rules as selection
from curate.select.cost import TimeBudget
from curate.select.pool import NO_EXEMPLARS, WHOLE, Exemplars, Floats, Mask, Pick, Picks, Pool, Rows, Windows
from curate.select.rules import BARE, SelectionRules
from curate.select.run import NEAR
from curate.select.whitening import whitening_of
from curate.strategies import CATALOGUE
from curate.vectors import nearest
from train.simulate.learners import Learner, probe
from train.simulate.oracle_dataset import OracleDataset, folded, imbalanced
from train.simulate.test_scores import judged

NOTHING, EXEMPLARS = "none", "exemplars"
LOOK, REGION = 10.0, 20.0  # simulated seconds: an image, and each defect on it that is outlined
CHUNK = 65536
IN_MEMORY = 1 << 30  # bytes of tile vectors that are kept in single precision; more are made anew at each pass
NONE = np.zeros(0, np.int64)
Picker = Callable[[Pool, int, np.random.Generator], Sequence[Pick] | Rows]
"""Asked like a strategy: at most so many of the pool's open rows, best first, as picks or as row numbers."""
Teacher = Callable[[OracleDataset], Learner]
Remember = Callable[[Any, Callable[[], dict[str, float]]], dict[str, float]]


class NotYet(CurateError):
    """A picker that cannot choose before more is known: this round is chosen by `nearest`, else at random."""


@dataclass(frozen=True)
class RunSettings:
    """What is played, but for the world.

    Args:
        strategy: one of ours, or any name that the `pickers` of `play_all` know. options: ours only.
        start: `none`; a number as `3`: so many labelled images a class (and clean ones); or `exemplars` of `rare`.
        rare: the class whose recall counts first; exemplars and subsampling are of this class.
        exemplars: how many, one a group; their groups leave pool and test.
        budget: a round's: images (`40`), a share of the pool (`2%`), or simulated time (`30m`).
        wanted: as `curate select --classes`; empty: all.
        learner: a name for the teacher; `probe` is the linear one.
        rules: whether the shared layer works (one image a group before a second, near-duplicates put away).
        feed: whether the learner's probabilities reach the next round's pool, as `curate predict` brings them.
        audit_teaches: whether audit picks are learnt from (they always count as labels).
        imbalance, tail: see `world.imbalanced`; 1: as it is.
        fold: which of `folds` grouped folds is the test; None: the world's own test, or none.
    """

    strategy: str = "random"
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str = NOTHING
    rare: str | None = None
    exemplars: int = 5
    rounds: int = 5
    budget: str = "2%"
    wanted: tuple[str, ...] = ()
    learner: str = "probe"
    rules: bool = True
    feed: bool = True
    audit_teaches: bool = True
    imbalance: float = 1.0
    tail: str = "one"
    fold: int | None = None
    folds: int = 5
    seed: int = 0

    @property
    def label(self) -> str:
        """What a table's row is called."""
        return self.strategy if self.rules else f"{self.strategy} (plain)"


@dataclass(frozen=True)
class CurvePoint:
    """What is known after a round; 0 is the start. `labels` are those that were asked for, exemplars not counted.

    By class: `group_recall`, `image_recall`, `groups`, `images` (found, outside the groups known at the start), and on
    the test `f1`, `ap`. NaN: there is nothing to measure.
    """

    round: int
    labels: int
    minutes: float
    seconds: float
    macro_f1: float
    map: float
    by_class: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Curve:
    """`full`: macro_f1, map and f1:CLASS, ap:CLASS of a learner that had all of the pool's labels.

    `pieces`: the groups of the rare class that were to be found, and whether they were. `failed`: why there is no curve
    (a peer that could not choose, or ran out of time).
    """

    world: str
    setting: RunSettings
    points: tuple[CurvePoint, ...]
    full: Mapping[str, float]
    pieces: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failed: str | None = None


def play(
    world: OracleDataset,
    setting: RunSettings,
    picker: Picker | None = None,
    teacher: Teacher = probe,
    remember: Remember = lambda key, compute: compute(),
) -> Curve:
    """The same world and setting give the same curve (but for the seconds). Without a picker our strategy chooses."""
    if picker is None:
        CATALOGUE.check(setting.strategy, setting.options)
    table = prepared(world, setting)
    desk = _RunState(table, setting, teacher(table.world), picker)
    for turn in range(1, setting.rounds + 1):
        desk.play_round(turn)
    every = table.world.pooled
    every[table.given] = True
    key = [setting.learner, every.nonzero()[0].tolist(), table.world.test.nonzero()[0].tolist()]
    full = remember(key, lambda: desk.figures(every))
    return Curve(world.name, setting, tuple(desk.points), full, desk.pieces(), tuple(desk.notes))


# --- the start ------------------------------------------------------------------------------------------------------


class RunStart(NamedTuple):
    """The world as it is played: `given` rows are exemplars that everybody has, `first` are labelled at the start."""

    world: OracleDataset
    given: Rows
    first: Rows


def prepared(world: OracleDataset, setting: RunSettings) -> RunStart:
    """Fold, long tail and exemplars, in this order. Raises CurateError where the world is too small for it."""
    _check(world, setting)
    if setting.fold is not None:
        world = folded(world, setting.folds, setting.fold)
    if setting.imbalance > 1:
        world = imbalanced(world, setting.imbalance, setting.rare, setting.seed, setting.tail)
    if setting.start == EXEMPLARS:
        given = _exemplars(world, setting)
        gone = np.isin(world.groups, world.groups[given])
        return RunStart(replace(world, spare=world.spare | gone, test=world.test & ~gone), given, NONE)
    each = 0 if setting.start == NOTHING else int(setting.start)
    return RunStart(world, NONE, _each(world, each, np.random.default_rng([setting.seed, 3])))


def _check(world: OracleDataset, setting: RunSettings) -> None:
    if setting.start not in (NOTHING, EXEMPLARS) and not re.fullmatch(r"[1-9][0-9]{0,3}", setting.start):
        raise CurateError(f"start '{setting.start}'; allowed: {NOTHING}, {EXEMPLARS}, or a number of images a class")
    for name in (*setting.wanted, *([setting.rare] if setting.rare is not None else [])):
        world.number(name)
    if setting.start == EXEMPLARS and setting.rare is None:
        raise CurateError(f"start '{EXEMPLARS}' needs the class they show: --rare {' or '.join(world.classes)}")
    images_or_seconds(setting.budget, len(world))
    if setting.rounds < 1 or setting.exemplars < 1:
        raise CurateError(f"{setting.rounds} rounds, {setting.exemplars} exemplars; allowed: 1 or more of each")


def _exemplars(world: OracleDataset, setting: RunSettings) -> Rows:
    """One a group; of what subsampling removed as far as that goes, else of the pool."""
    rng, name = np.random.default_rng([setting.seed, 2]), str(setting.rare)
    rows: Rows = rng.permutation(np.flatnonzero(world.present[:, world.number(name)] & ~world.test))
    _, places = np.unique(world.groups[rows], return_index=True)
    firsts: Rows = rows[rng.permutation(places)]  # large groups are no likelier: what is left would be the small ones
    given = firsts[np.argsort(~world.spare[firsts], kind="stable")][: setting.exemplars]
    left = world.present[:, world.number(name)] & world.pooled & ~np.isin(world.groups, world.groups[given])
    if not left.any():
        raise CurateError(
            f"class {name} comes from {len(firsts)} groups of the pool: {setting.exemplars} exemplars leave nothing to "
            "find; take fewer exemplars, another class, or label more"
        )
    return np.sort(given)


def _each(world: OracleDataset, count: int, rng: np.random.Generator) -> Rows:
    """So many random images of the pool for each class, and as many clean ones."""
    clean = ~world.present.any(axis=1, keepdims=True)
    shelves = (np.flatnonzero(shown & world.pooled) for shown in np.hstack([world.present, clean]).T)
    first: Rows = np.unique(np.concatenate([rng.permutation(rows)[:count] for rows in shelves]))
    return first


def images_or_seconds(text: str, pool: int) -> int | TimeBudget:
    """A round's budget: `40`, `2%` of the pool, `30m`."""
    share = re.fullmatch(r"(\d{1,2}(?:\.\d{1,6})?|100)\s*%", text.strip())
    if share and float(share[1]) > 0:
        return max(1, round(pool * float(share[1]) / 100))
    try:
        budget = cost.parse_budget(text)
    except CurateError:
        raise CurateError(
            f"budget '{text}'; allowed: images (40), a share of the pool (2%), or time (30m), above 0, a round"
        ) from None
    return budget if isinstance(budget, TimeBudget) else budget.count


# --- the rounds -----------------------------------------------------------------------------------------------------


class _RunState:
    """What is known so far, and what became of it. `rows` are those of the world that a pool may show at all."""

    def __init__(self, table: RunStart, setting: RunSettings, learner: Learner, picker: Picker | None) -> None:
        world, self.setting, self.learner, self.picker = table.world, setting, learner, picker
        self.world, self.given = world, table.given
        self.known, self.untaught = np.zeros(len(world), bool), np.zeros(len(world), bool)
        self.known[np.concatenate([table.given, table.first])] = True
        self.sought = _sought(world, self.known)
        self.rows = np.flatnonzero(world.pooled | self.known)
        self.budget = images_or_seconds(setting.budget, int((world.pooled & ~self.known).sum()))
        self.vectors = np.asarray(world.vectors[self.rows])
        self.windows = _Windows(world, self.rows, self.vectors) if world.windows is not None else None
        self.rules = SelectionRules(near=nearest.cosine_at(self.vectors, NEAR)) if setting.rules else BARE
        self.minutes = world.regions * REGION / 60 + LOOK / 60
        self.notes: dict[str, None] = {}
        self.lasting: dict[str, Any] = {}
        self.points: list[CurvePoint] = []
        self._learn(0, 0.0)

    def play_round(self, turn: int) -> None:
        pool = self.pool(turn)
        if not pool.candidates.any():
            return
        began = time.perf_counter()
        picks = self._picks(pool)
        took = time.perf_counter() - began
        rows = self.rows[pool.rows_of([pick.id for pick in picks])]
        if isinstance(self.budget, TimeBudget):
            within = np.cumsum(60 * self.minutes[rows]) <= self.budget.seconds
            within[:1] = True
            picks, rows = tuple(pick for pick, paid in zip(picks, within, strict=True) if paid), rows[within]
        self.known[rows] = True
        self.untaught[rows] = [pick.slot == AUDIT and not self.setting.audit_teaches for pick in picks]
        self._learn(turn, took)

    def _learn(self, turn: int, seconds: float) -> None:
        self.said = self.learner(np.flatnonzero(self.known & ~self.untaught))
        bought = self.known.copy()
        bought[self.given] = False
        on_test = judged(self.world, self.said)
        classes = {
            name: _found(self.world, bought, self.sought[number], number) | on_test.by_class.get(name, {})
            for number, name in enumerate(self.world.classes)
        }
        minutes = float(self.minutes[bought].sum())
        self.points.append(
            CurvePoint(turn, int(bought.sum()), minutes, seconds, on_test.macro_f1, on_test.map, classes)
        )

    def figures(self, every: Mask) -> dict[str, float]:
        """What a learner can reach that had all labels."""
        if not self.world.test.any():
            return {}
        best = judged(self.world, self.learner(np.flatnonzero(every)))
        by_class = {f"{key}:{name}": value for name, one in best.by_class.items() for key, value in one.items()}
        return {"macro_f1": best.macro_f1, "map": best.map} | by_class

    def pieces(self) -> dict[str, bool]:
        if self.setting.rare is None:
            return {}
        sought = self.sought[self.world.number(self.setting.rare)]
        every, found = (np.unique(self.world.groups[rows]) for rows in (sought, sought & self.known))
        return {str(group): bool(hit) for group, hit in zip(every, np.isin(every, found), strict=True)}

    # --- what a strategy sees, and what it says ---

    def pool(self, turn: int) -> Pool:
        """Labels of hidden rows are not in it, nor is anything of test and of what subsampling removed."""
        world, rows, known = self.world, self.rows, self.known[self.rows]
        scores = self.said.scores() if self.said and self.setting.feed else world.scores
        pool = Pool(
            ids=tuple(world.ids[row] for row in rows),
            vectors=self.vectors,
            candidates=~known,
            labelled=known,
            present=world.present[rows] & known[:, None],
            classes=world.classes,
            groups=np.unique(world.groups[rows], return_inverse=True)[1].astype(np.int64),
            strata=world.strata[rows],
            stratum_names=tuple(str(number) for number in range(int(world.strata.max(initial=0)) + 1)),
            scores={name: np.asarray(values[rows]) for name, values in scores.items()},
            windows=self.windows,
            held_out=known & self.untaught[rows],
            wanted=self.setting.wanted,
            turn=turn,
            lasting=self.lasting,
        )
        return replace(pool, exemplars=_shown(world, pool, rows), memo={})  # what was remembered knew no exemplars

    def _picks(self, pool: Pool) -> Picks:
        setting, most = self.setting, int(pool.candidates.sum())
        asked = min(most, int(self.budget.seconds / LOOK) if isinstance(self.budget, TimeBudget) else self.budget) or 1
        try:
            if self.picker is None:
                return self._ours(pool, setting.strategy, asked, setting.options)
            select = _as_strategy(self.picker)
            return selection.layered(pool, select, asked, setting.seed, self.rules).picks
        except NotYet as error:
            reason = str(error)
        except CurateError as error:
            if self.picker is not None:
                raise
            reason = str(error)
        instead = "nearest" if len(pool.exemplars) else "random"
        self.notes[f"round {pool.turn} was chosen by {instead}: {reason}"] = None
        return self._ours(pool, instead, asked, {})

    def _ours(self, pool: Pool, strategy: str, asked: int, options: Mapping[str, Any]) -> Picks:
        return selection.choose(pool, strategy, asked, self.setting.seed, self.rules, options).picks


def _as_strategy(picker: Picker) -> selection.Select:
    """Row numbers become picks."""

    def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
        found = picker(pool, budget, rng)
        if len(found) and not isinstance(found[0], Pick):
            return tuple(Pick(pool.ids[int(row)], "picker", 0.0, "") for row in found)  # type: ignore[arg-type]
        return tuple(found)  # type: ignore[arg-type]

    return select


# --- what is found --------------------------------------------------------------------------------------------------


def _sought(world: OracleDataset, known: Mask) -> NDArray[np.bool_]:
    """(C, n): images of a class in groups of which no image of that class was known at the start."""
    every = []
    for shown in world.present.T:
        mine = shown & world.pooled & ~np.isin(world.groups, world.groups[shown & known])
        every.append(mine)
    return np.array(every, bool).reshape(len(world.classes), len(world))


def _found(world: OracleDataset, bought: Mask, sought: Mask, number: int) -> dict[str, float]:
    """Ten exposures of one tile are one group."""
    images = sought & bought
    groups, every = (len(np.unique(world.groups[rows])) for rows in (images, sought))
    return {
        "group_recall": groups / every if every else np.nan,
        "image_recall": float(images.sum() / sought.sum()) if every else np.nan,
        "groups": float(groups),
        "images": float(images.sum()),
    }


# --- windows and exemplars ------------------------------------------------------------------------------------------


class _Windows:
    """Streams a pool's windows: whole images first, then the tiles of its rows alone."""

    def __init__(self, world: OracleDataset, rows: Rows, vectors: Floats) -> None:
        assert world.windows is not None
        self.whole, self.tiles = vectors, world.windows
        self.place = np.full(len(world), -1, np.int64)
        self.place[rows] = np.arange(len(rows))
        self.kept: list[Windows] | None = None

    def __call__(self) -> Iterator[Windows]:
        if 4 * self.tiles.vectors.size > IN_MEMORY:
            return self._made()
        if self.kept is None:
            self.kept = list(self._made())
        return iter(self.kept)

    def _made(self) -> Iterator[Windows]:
        yield Windows(np.arange(len(self.whole)), np.full(len(self.whole), WHOLE, np.int16), self.whole)
        for start in range(0, len(self.tiles.rows), CHUNK):
            part = slice(start, start + CHUNK)
            rows = self.place[self.tiles.rows[part]]
            mine = rows >= 0
            if mine.any():
                vectors = np.asarray(self.tiles.vectors[part][mine], np.float32)
                yield Windows(rows[mine], np.asarray(self.tiles.tiles[part][mine]), vectors)


def _shown(world: OracleDataset, pool: Pool, rows: Rows) -> Exemplars:
    """As `curate select` finds them: the known images of the scarcest classes, each by the tile that shows most."""
    names = pool.wanted or pool.scarce_classes()
    made = []
    for id, row in _known(pool, names, rows):
        for name in names:
            if world.present[row, world.number(name)]:
                made += [(id, tile, vector, name) for tile, vector in _marked(world, pool, row, world.number(name))]
    if not made:
        return NO_EXEMPLARS
    ids, tiles, vectors, shown = zip(*made, strict=True)
    return Exemplars(tuple(ids), np.array(tiles, np.int16), np.stack(vectors).astype(np.float32), tuple(shown))


def _known(pool: Pool, names: Sequence[str], rows: Rows) -> Iterator[tuple[str, int]]:
    ids = build_pool._labelled(pool, names)
    return zip(ids, rows[pool.rows_of(ids)].tolist(), strict=True)


def _marked(world: OracleDataset, pool: Pool, row: int, number: int) -> list[tuple[int, Floats]]:
    """The marked windows; without a mark the image's most unusual one."""
    whole = (WHOLE, world.vectors[row])
    if world.windows is None:
        return [whole]
    marks = world.marks[(world.marks[:, 0] == row) & (world.marks[:, 1] == number), 2].tolist()
    _, tiles, vectors = world.windows
    if marks:
        return [(int(tiles[place]), vectors[place]) if place >= 0 else whole for place in marks]
    mine = np.flatnonzero(world.windows.rows == row)
    every = np.vstack([vectors[mine], world.vectors[row]]).astype(np.float32)
    best = int(np.argmax(whitening_of(pool).lengths(every)))
    return [(int(tiles[mine[best]]), vectors[mine[best]]) if best < len(mine) else whole]
