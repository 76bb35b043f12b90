"""One simulated labelling project: from an oracle dataset to a curve, in rounds of selection and training."""

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
from curate.select.cost import CostModel, TimeBudget
from curate.select.pool import NO_EXEMPLARS, WHOLE, Exemplars, Floats, Mask, PastRound, Pick, Picks, Pool, Rows, Windows
from curate.select.rules import BARE, SelectionRules
from curate.select.run import NEAR, labelling_seconds
from curate.select.whitening import whitening_of
from curate.strategies import CATALOGUE
from curate.vectors import nearest
from train.simulate.learners import Learner, probe
from train.simulate.oracle_dataset import OracleDataset, with_long_tail, with_test_fold
from train.simulate.test_scores import score_on_test

NO_LABELS, EXEMPLARS, HIDDEN = "none", "exemplars", "hidden"
SECONDS_PER_IMAGE, SECONDS_PER_REGION = (
    10.0,
    20.0,
)  # simulated seconds for an image, and for each defect outlined on it
CHUNK = 65536
IN_MEMORY = 1 << 30  # bytes of tile vectors that are kept in single precision; more are converted at each pass
NO_ROWS = np.zeros(0, np.int64)
Picker = Callable[[Pool, int, np.random.Generator], Sequence[Pick] | Rows]
"""Called like a strategy; returns at most so many of the pool's open rows, best first, as picks or row numbers."""
LearnerFactory = Callable[[OracleDataset], Learner]
Remember = Callable[[Any, Callable[[], dict[str, float]]], dict[str, float]]
"""Returns the scores that are cached under a key, or computes them."""


class NotYet(CurateError):
    """Raised by a picker that needs more labels first: `nearest`, or random, chooses this round instead."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of one run on an oracle dataset.

    Args:
        strategy: a strategy's name, or a name that the `picker_for` of `run_all` knows. options: of our strategies.
        start: `none`; a number such as `3`: labelled images for each class and for clean; `exemplars` of `rare`; or
            `hidden`: labelled images for each class but `rare`, whose name nobody knows until it is found.
        rare: the class whose recall is the main metric; exemplars and subsampling are of this class.
        also_rare: further classes with exemplars of their own.
        exemplars: number of exemplars, one from each group; their groups are in neither pool nor test. With `hidden`,
            the number of images for each other class.
        budget: of a round: images (`40`), a share of the pool (`2%`), or simulated time (`30m`).
        wanted: as `curate select --classes`; empty: all.
        learner: the learner's name; `probe` is the linear one.
        rules: apply the shared selection rules (one image a group before a second, no near-duplicates).
        feed: pass the learner's probabilities to the next round's pool, as `curate predict` does.
        audit_teaches: train on audit picks too (they always count as labels).
        imbalance, tail: see `oracle_dataset.with_long_tail`; 1: unchanged.
        fold: which of `folds` grouped folds is the test; None: the dataset's own test, or none.
    """

    strategy: str = "random"
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str = NO_LABELS
    rare: str | None = None
    also_rare: tuple[str, ...] = ()
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
        """Name of the row in tables."""
        return self.strategy if self.rules else f"{self.strategy} (plain)"


@dataclass(frozen=True)
class CurvePoint:
    """The metrics after a round; round 0 is the start. `labels`: number of labels bought, without exemplars.

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
    """The points of one run. The fields' names are the keys of its JSON file.

    `world`: name of the oracle dataset. `full`: macro_f1, map, f1:CLASS and ap:CLASS of a learner with all of the
    pool's labels. `pieces`: the groups of the rare class that were to be found, and whether they were. `failed`: the
    reason why there is no curve (a picker that could not choose, or ran out of time).
    """

    world: str
    setting: RunSettings
    points: tuple[CurvePoint, ...]
    full: Mapping[str, float]
    pieces: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failed: str | None = None


def simulate(
    oracle: OracleDataset,
    setting: RunSettings,
    picker: Picker | None = None,
    learner_factory: LearnerFactory = probe,
    remember: Remember = lambda key, compute: compute(),
    lasting: dict[str, Any] | None = None,
) -> Curve:
    """Simulate one labelling project. The same arguments give the same curve, except for the seconds.

    Args:
        oracle: the labelled data set whose labels are hidden.
        setting: strategy, start, budget and seed.
        picker: chooses instead of the setting's strategy.
        learner_factory: makes the learner that is trained on the labels of each round.
        remember: caches the scores of a learner with all labels.
        lasting: `Pool.lasting` of another run with the same start, to compute once what both need.

    Returns:
        The metrics after each round.
    """
    if picker is None:
        CATALOGUE.check(setting.strategy, setting.options)
    start = prepare(oracle, setting)
    state = _RunState(start, setting, learner_factory(start.oracle), picker, {} if lasting is None else lasting)
    for turn in range(1, setting.rounds + 1):
        state.run_round(turn)
    learnable = start.oracle.pooled
    learnable[start.given] = True
    key = [setting.learner, learnable.nonzero()[0].tolist(), start.oracle.test.nonzero()[0].tolist()]
    full = remember(key, lambda: state.full_data_scores(learnable))
    return Curve(oracle.name, setting, tuple(state.points), full, state.groups_to_find(), tuple(state.notes))


# --- the start ------------------------------------------------------------------------------------------------------


class RunStart(NamedTuple):
    """The oracle dataset of a run; `given` rows are exemplars, `first` rows are labelled at the start."""

    oracle: OracleDataset
    given: Rows
    first: Rows


def prepare(oracle: OracleDataset, setting: RunSettings) -> RunStart:
    """Apply fold, long tail and exemplars, in this order; raises CurateError where the dataset is too small."""
    _check(oracle, setting)
    if setting.fold is not None:
        oracle = with_test_fold(oracle, setting.folds, setting.fold)
    if setting.imbalance > 1:
        oracle = with_long_tail(oracle, setting.imbalance, setting.rare, setting.seed, setting.tail)
    if setting.start == EXEMPLARS:
        given = _exemplars(oracle, setting)
        gone = np.isin(oracle.groups, oracle.groups[given])
        return RunStart(replace(oracle, spare=oracle.spare | gone, test=oracle.test & ~gone), given, NO_ROWS)
    rng = np.random.default_rng([setting.seed, 3])
    if setting.start == HIDDEN:
        shows = oracle.present[:, oracle.number(str(setting.rare))]
        named = replace(oracle, spare=oracle.spare | np.isin(oracle.groups, oracle.groups[shows]))
        return RunStart(oracle, NO_ROWS, _random_start(named, setting.exemplars, rng))
    each = 0 if setting.start == NO_LABELS else int(setting.start)
    return RunStart(oracle, NO_ROWS, _random_start(oracle, each, rng))


def _check(oracle: OracleDataset, setting: RunSettings) -> None:
    if setting.start not in (NO_LABELS, EXEMPLARS, HIDDEN) and not re.fullmatch(r"[1-9][0-9]{0,3}", setting.start):
        raise CurateError(
            f"start '{setting.start}'; allowed: {NO_LABELS}, {EXEMPLARS}, {HIDDEN}, or a number of images for each "
            "class"
        )
    for name in (*setting.wanted, *setting.also_rare, *([setting.rare] if setting.rare is not None else [])):
        oracle.number(name)
    if setting.start in (EXEMPLARS, HIDDEN) and setting.rare is None:
        raise CurateError(f"start '{setting.start}' needs a class: --rare {' or '.join(oracle.classes)}")
    parse_round_budget(setting.budget, len(oracle))
    if setting.rounds < 1 or setting.exemplars < 1:
        raise CurateError(f"{setting.rounds} rounds, {setting.exemplars} exemplars; allowed: 1 or more of each")


def _exemplars(oracle: OracleDataset, setting: RunSettings) -> Rows:
    """Draw exemplars of each rare class from different groups, from the spare rows first, then from the pool."""
    rng = np.random.default_rng([setting.seed, 2])
    given: Rows = NO_ROWS
    names = (str(setting.rare), *setting.also_rare)
    for name in names:
        rows: Rows = rng.permutation(np.flatnonzero(oracle.present[:, oracle.number(name)] & ~oracle.test))
        _, places = np.unique(oracle.groups[rows], return_index=True)
        firsts: Rows = rows[rng.permutation(places)]  # each group is equally likely, large or small
        given = np.union1d(given, firsts[np.argsort(~oracle.spare[firsts], kind="stable")][: setting.exemplars])
    for name in names:
        shown = oracle.present[:, oracle.number(name)]
        if not (shown & oracle.pooled & ~np.isin(oracle.groups, oracle.groups[given])).any():
            count = len(np.unique(oracle.groups[shown & ~oracle.test]))
            raise CurateError(
                f"class {name} comes from {count} groups of the pool: {setting.exemplars} exemplars leave nothing to "
                "find; take fewer exemplars, another class, or label more"
            )
    return given


def _random_start(oracle: OracleDataset, count: int, rng: np.random.Generator) -> Rows:
    """Draw `count` random images of the pool for each class, and as many clean ones."""
    clean = ~oracle.present.any(axis=1, keepdims=True)
    candidates = (np.flatnonzero(shown & oracle.pooled) for shown in np.hstack([oracle.present, clean]).T)
    first: Rows = np.unique(np.concatenate([rng.permutation(rows)[:count] for rows in candidates]))
    return first


def parse_round_budget(text: str, pool: int) -> int | TimeBudget:
    """Parse a round's budget: `40`, `2%` of the pool, or `30m`."""
    share = re.fullmatch(r"(\d{1,2}(?:\.\d{1,6})?|100)\s*%", text.strip())
    if share and float(share[1]) > 0:
        return max(1, round(pool * float(share[1]) / 100))
    try:
        budget = cost.parse_budget(text)
    except CurateError:
        raise CurateError(
            f"budget '{text}'; allowed for a round: images (40), a share of the pool (2%), or time (30m), above 0"
        ) from None
    return budget if isinstance(budget, TimeBudget) else budget.count


# --- the rounds -----------------------------------------------------------------------------------------------------


class _RunState:
    """The state of a run: known labels and results so far. `rows`: the dataset's rows that pools may contain."""

    def __init__(
        self, start: RunStart, setting: RunSettings, learner: Learner, picker: Picker | None, lasting: dict[str, Any]
    ) -> None:
        oracle, self.setting, self.learner, self.picker = start.oracle, setting, learner, picker
        self.oracle, self.given = oracle, start.given
        self.known, self.untaught = np.zeros(len(oracle), bool), np.zeros(len(oracle), bool)
        self.known[np.concatenate([start.given, start.first])] = True
        self.to_find = rows_to_find(oracle, self.known)
        self.rows = np.flatnonzero(oracle.pooled | self.known)
        self.budget = parse_round_budget(setting.budget, int((oracle.pooled & ~self.known).sum()))
        self.vectors = np.asarray(oracle.vectors[self.rows])
        self.windows = _Windows(oracle, self.rows, self.vectors) if oracle.windows is not None else None
        self.rules = SelectionRules(near=nearest.cosine_at(self.vectors, NEAR)) if setting.rules else BARE
        self.minutes = oracle.regions * SECONDS_PER_REGION / 60 + SECONDS_PER_IMAGE / 60
        self.notes: dict[str, None] = {}
        self.lasting = lasting
        self.past: list[PastRound] = []
        self.points: list[CurvePoint] = []
        self._learn(0, 0.0)

    def run_round(self, turn: int) -> None:
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
        self.past.append(PastRound(turn, np.searchsorted(self.rows, rows), tuple(pick.slot for pick in picks)))
        self.known[rows] = True
        held_out = [pick.slot == AUDIT and not pick.extra for pick in picks]
        self.untaught[rows] = held_out if not self.setting.audit_teaches else False
        self._learn(turn, took)

    def _learn(self, turn: int, seconds: float) -> None:
        self.output = self.learner(np.flatnonzero(self.known & ~self.untaught))
        bought = self.known.copy()
        bought[self.given] = False
        on_test = score_on_test(self.oracle, self.output)
        classes = {
            name: _recall(self.oracle, bought, self.to_find[number], number) | on_test.by_class.get(name, {})
            for number, name in enumerate(self.oracle.classes)
        }
        minutes = float(self.minutes[bought].sum())
        self.points.append(
            CurvePoint(turn, int(bought.sum()), minutes, seconds, on_test.macro_f1, on_test.map, classes)
        )

    def full_data_scores(self, learnable: Mask) -> dict[str, float]:
        """Return the test scores of a learner that is trained on all labels."""
        if not self.oracle.test.any():
            return {}
        best = score_on_test(self.oracle, self.learner(np.flatnonzero(learnable)))
        by_class = {f"{key}:{name}": value for name, scores in best.by_class.items() for key, value in scores.items()}
        return {"macro_f1": best.macro_f1, "map": best.map} | by_class

    def groups_to_find(self) -> dict[str, bool]:
        if self.setting.rare is None:
            return {}
        sought = self.to_find[self.oracle.number(self.setting.rare)]
        groups, found_groups = (np.unique(self.oracle.groups[rows]) for rows in (sought, sought & self.known))
        return {str(group): bool(hit) for group, hit in zip(groups, np.isin(groups, found_groups), strict=True)}

    # --- pool and picks ---

    def pool(self, turn: int) -> Pool:
        """Return the round's pool, without hidden labels and without test and spare rows."""
        oracle, rows, known = self.oracle, self.rows, self.known[self.rows]
        scores = self.output.scores() if self.output and self.setting.feed else oracle.scores
        named = self._named()
        classes = tuple(name for name, there in zip(oracle.classes, named, strict=True) if there)
        pool = Pool(
            ids=tuple(oracle.ids[row] for row in rows),
            vectors=self.vectors,
            candidates=~known,
            labelled=known,
            present=oracle.present[rows][:, named] & known[:, None],
            classes=classes,
            groups=np.unique(oracle.groups[rows], return_inverse=True)[1].astype(np.int64),
            strata=oracle.strata[rows],
            stratum_names=tuple(str(number) for number in range(int(oracle.strata.max(initial=0)) + 1)),
            scores={
                name: np.asarray(values[rows] if values.ndim == 1 else values[rows][:, named])
                for name, values in scores.items()
            },
            windows=self.windows,
            held_out=known & self.untaught[rows],
            wanted=self.setting.wanted,
            turn=turn,
            past=tuple(self.past),
            lasting=self.lasting,
        )
        exemplars = replace(_pool_exemplars(oracle, pool, rows), given=self.setting.start == EXEMPLARS)
        pool = replace(pool, exemplars=exemplars, memo={})  # the old memo knew no exemplars
        if not isinstance(self.budget, TimeBudget):
            return pool
        model = CostModel(classes, SECONDS_PER_IMAGE, (SECONDS_PER_REGION,) * len(classes))
        return replace(pool, effort=cost.effort(labelling_seconds(pool, model), pool.candidates))

    def _named(self) -> Mask:
        """The classes that have a name: with `hidden`, the rare one has none until an image of it is labelled."""
        named = np.ones(len(self.oracle.classes), bool)
        if self.setting.start == HIDDEN:
            number = self.oracle.number(str(self.setting.rare))
            named[number] = (self.oracle.present[:, number] & self.known).any()
        return named

    def _picks(self, pool: Pool) -> Picks:
        setting, most = self.setting, int(pool.candidates.sum())
        count = (
            min(
                most,
                int(self.budget.seconds / SECONDS_PER_IMAGE) if isinstance(self.budget, TimeBudget) else self.budget,
            )
            or 1
        )
        try:
            if self.picker is None:
                return self._ours(pool, setting.strategy, count, setting.options)
            select = _as_strategy(self.picker)
            return selection.layered(pool, select, count, setting.seed, self.rules).picks
        except NotYet as error:
            reason = str(error)
        except CurateError as error:
            if self.picker is not None:
                raise
            reason = str(error)
        instead = "nearest" if len(pool.exemplars) else "random"
        self.notes[f"round {pool.turn} was chosen by {instead}: {reason}"] = None
        return self._ours(pool, instead, count, {})

    def _ours(self, pool: Pool, strategy: str, count: int, options: Mapping[str, Any]) -> Picks:
        return selection.choose(pool, strategy, count, self.setting.seed, self.rules, options).picks


def _as_strategy(picker: Picker) -> selection.Select:
    """Wrap a picker as a strategy: row numbers become picks."""

    def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
        picks = picker(pool, budget, rng)
        if len(picks) and not isinstance(picks[0], Pick):
            return tuple(Pick(pool.ids[int(row)], "picker", 0.0, "") for row in picks)  # type: ignore[arg-type]
        return tuple(picks)  # type: ignore[arg-type]

    return select


# --- recall ---------------------------------------------------------------------------------------------------------


def rows_to_find(oracle: OracleDataset, known: Mask) -> NDArray[np.bool_]:
    """Return (C, n): images of a class in groups of which no image of that class is known at the start."""
    sought = []
    for shown in oracle.present.T:
        rows = shown & oracle.pooled & ~np.isin(oracle.groups, oracle.groups[shown & known])
        sought.append(rows)
    return np.array(sought, bool).reshape(len(oracle.classes), len(oracle))


def _recall(oracle: OracleDataset, bought: Mask, sought: Mask, number: int) -> dict[str, float]:
    """Return the recall of one class by group (ten exposures of one tile are one group) and by image."""
    images = sought & bought
    found_groups, sought_groups = (len(np.unique(oracle.groups[rows])) for rows in (images, sought))
    return {
        "group_recall": found_groups / sought_groups if sought_groups else np.nan,
        "image_recall": float(images.sum() / sought.sum()) if sought_groups else np.nan,
        "groups": float(found_groups),
        "images": float(images.sum()),
    }


# --- windows and exemplars ------------------------------------------------------------------------------------------


class _Windows:
    """Yields a pool's windows: whole images first, then the tiles of its rows."""

    def __init__(self, oracle: OracleDataset, rows: Rows, vectors: Floats) -> None:
        assert oracle.windows is not None
        self.whole, self.tiles = vectors, oracle.windows
        self.place = np.full(len(oracle), -1, np.int64)
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
            inside = rows >= 0
            if inside.any():
                vectors = np.asarray(self.tiles.vectors[part][inside], np.float32)
                yield Windows(rows[inside], np.asarray(self.tiles.tiles[part][inside]), vectors)


def _pool_exemplars(oracle: OracleDataset, pool: Pool, rows: Rows) -> Exemplars:
    """Return exemplars as `curate select` does: known images of the scarcest classes, each by its marked tile."""
    names = pool.wanted or pool.scarce_classes()
    exemplars = []
    for id, row in _labelled_rows(pool, names, rows):
        for name in names:
            if oracle.present[row, oracle.number(name)]:
                exemplars += [
                    (id, tile, vector, name) for tile, vector in _marked_windows(oracle, pool, row, oracle.number(name))
                ]
    if not exemplars:
        return NO_EXEMPLARS
    ids, tiles, vectors, shown = zip(*exemplars, strict=True)
    return Exemplars(tuple(ids), np.array(tiles, np.int16), np.stack(vectors).astype(np.float32), tuple(shown))


def _labelled_rows(pool: Pool, names: Sequence[str], rows: Rows) -> Iterator[tuple[str, int]]:
    ids = build_pool.labelled_exemplars(pool, names)
    return zip(ids, rows[pool.rows_of(ids)].tolist(), strict=True)


def _marked_windows(oracle: OracleDataset, pool: Pool, row: int, number: int) -> list[tuple[int, Floats]]:
    """Return the marked windows of a class in an image; without a mark the image's most unusual window."""
    whole = (WHOLE, oracle.vectors[row])
    if oracle.windows is None:
        return [whole]
    marks = oracle.marks[(oracle.marks[:, 0] == row) & (oracle.marks[:, 1] == number), 2].tolist()
    _, tiles, vectors = oracle.windows
    if marks:
        return [(int(tiles[place]), vectors[place]) if place >= 0 else whole for place in marks]
    places = np.flatnonzero(oracle.windows.rows == row)
    vectors_here = np.vstack([vectors[places], oracle.vectors[row]]).astype(np.float32)
    best = int(np.argmax(whitening_of(pool).lengths(vectors_here)))
    return [(int(tiles[places[best]]), vectors[places[best]]) if best < len(places) else whole]
