"""`curate tune`: lr, batch, freezing and schedule of a recipe, searched with Optuna, judged by val alone.

The study lies in `work/tune/<key>/study.sqlite`; its key changes with the recipe, the data, what is searched and by
which measure. A trial's proposal follows from (seed, trials before it), and a trial's training resumes as any other.
So a search that was killed goes on to the very trials that it would have had, and the one it was in is not lost.

Trials are no models: they are trained in the study's folder and removed. The first one is the recipe as it is.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.errors import CurateError, unknown
from curate.index.rounds import key_of
from curate.project import Project
from curate.select import cost
from train import recipe
from train.data.dataset import TrainingData
from train.fit import loop
from train.fit import run as training
from train.fit.loop import FitResult, FitSettings, Progress
from train.fit.run import TrainRequest
from train.recipe import Phase, Recipe

STEP = 1  # raise it when the same recipe and data are searched in another way than before
STUDY = "study.sqlite"
LOSS, F1 = "val_loss", "f1"
AROUND = 10  # how many times smaller and larger than the recipe's the rate may be
BEFORE_PRUNING = 5  # trials that run to their end, whatever they show
OVER_THE_BATCH = ("dice", "tversky", "focal_tversky", "lovasz")  # losses whose value a larger batch changes
Ended = Callable[[FitResult], None]
PINS = {
    "lr": r"optimiser(\.lr)?",
    "batch": r"batch",
    "freezing": r"phases(\.\d+\.(epochs|train))?",
    "schedule": r"schedule(\.name)?",
}


@dataclass(frozen=True)
class TuneBudget:
    """How long to look, and by which measure of val; `seconds` are this run's, `trials` all of the study's."""

    trials: int = 20
    seconds: float = 7200.0
    metric: str = F1


@dataclass(frozen=True)
class TuneTask:
    """A search that can begin."""

    project: Project
    wish: TrainRequest
    search: TuneBudget
    base: Recipe
    data: TrainingData
    space: Mapping[str, Any]
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.wish.recipe or recipe.DEFAULTS[self.base.task]

    @property
    def own(self) -> dict[str, Any]:
        """What the recipe itself has for all that is searched."""
        values = {"lr": self.base.optimiser.lr, "batch": self.base.batch, "schedule": self.base.schedule.name}
        values["freezing"] = _own_freezing(self.base)
        return {name: values[name] for name in self.space}

    def recipe_with(self, overrides: Sequence[str]) -> Recipe:
        made = recipe.load(self.name, [*self.wish.overrides, *overrides])
        return made.model_copy(update={"input": self.base.input})


@dataclass(frozen=True)
class Trial:
    """One trial that ended. `state`: done, pruned, or unfit (it diverged, or did not fit into memory: `reason`)."""

    number: int
    state: str
    value: float | None
    epochs: int
    params: dict[str, Any]
    set: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Tuned:
    """What is known after a run. `fresh` trials are this run's; `left` are those that its time did not suffice for.

    `best` is the wish that trains the best trial's recipe; nothing while no trial has run to its end.
    """

    project: Project
    folder: Path
    metric: str
    trials: tuple[Trial, ...]
    fresh: int
    left: int
    best: TrainRequest | None
    notes: tuple[str, ...] = ()

    @property
    def ranked(self) -> list[Trial]:
        return ranked(self.trials, self.metric)

    @property
    def command(self) -> list[str]:
        """The command line that trains the best; empty while there is none."""
        if self.best is None:
            return []
        sets = [part for text in self.best.overrides for part in ("--set", text)]
        device = [] if self.best.device == "auto" else ["--device", self.best.device]
        return ["curate", "train", "--project", self.project.name, "--recipe", str(self.best.recipe), *device, *sets]

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.folder.name,
            "study": str(self.folder / STUDY),
            "metric": self.metric,
            "fresh": self.fresh,
            "left": self.left,
            "trials": [asdict(one) for one in self.trials],
            "best": asdict(self.ranked[0]) if self.best else None,
            "train": self.command,
            "notes": list(self.notes),
        }


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Those that ran to their end, the best first (the earlier of two alike); then the others as they came."""
    sign = 1 if metric == LOSS else -1
    done = sorted((one for one in trials if one.state == "done"), key=lambda one: sign * (one.value or 0.0))
    return [*done, *(one for one in trials if one.state != "done")]


def seconds_of(text: str) -> float:
    """`2h`, `90m`, `45s`, `2h30m`."""
    try:
        found = cost.parse_budget(text)
    except CurateError:
        found = None
    if not isinstance(found, cost.TimeBudget):
        raise CurateError(f"time '{text}' is not usable; allowed: 4h, 90m, 45s, 2h30m, above 0. For example --time 2h")
    return found.seconds


def run(
    project: Project, wish: TrainRequest, search: TuneBudget, progress: Progress = lambda stage, done, total: None
) -> Tuned:
    """Search, or go on with a search; once its trials are done there is nothing to do."""
    task = prepared(project, wish, search)
    with files.writer_lock(task.folder, "curate tune"):
        with _readable(task.folder / STUDY):
            study = _study(task)
        before = len(_ended(study))
        _searched(task, study, progress)
        return _tuned(task, study, before)


# --- what is searched -----------------------------------------------------------------------------------------------


def prepared(project: Project, wish: TrainRequest, search: TuneBudget) -> TuneTask:
    """Raises CurateError where val cannot tell trials apart, or where nothing is left to search."""
    base, data = training.prepared(project, wish)
    _check(search, data)
    space, notes = _space(base, data, wish.overrides, search.metric)
    key = key_of([training.model_key(base, data), _plain(space), search.metric, STEP])
    return TuneTask(project, wish, search, base, data, space, project.work / "tune" / key, (*data.notes, *notes))


def _check(search: TuneBudget, data: TrainingData) -> None:
    shown = _judged(data)
    allowed = [LOSS, F1, *(f"{F1}.{name}" for name in shown)]
    if not data.val:
        raise CurateError("no labelled image in val: nothing tells trials apart. Label more, or change splits.ratio")
    if search.metric == F1 and not shown:
        raise CurateError(f"no image of val shows a defect: F1 cannot tell trials apart. Try: --metric {LOSS}")
    if search.metric not in allowed:
        raise unknown("metric", search.metric, allowed, "Only classes that val shows can be a measure")


def _judged(data: TrainingData) -> list[str]:
    """Classes that val shows; of others an F1 would say nothing."""
    present = data.present(data.val)
    return [name for row, name in enumerate(data.classes) if present[:, row].any()]


def _space(base: Recipe, data: TrainingData, overrides: Sequence[str], metric: str) -> tuple[dict[str, Any], list[str]]:
    """All that no flag pins; the recipe's own value is always among what may be chosen."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    rate, notes = base.optimiser.lr, list[str]()
    found = {
        "lr": FloatDistribution(rate / AROUND, rate * AROUND, log=True),
        "batch": CategoricalDistribution(_batches(base.batch, len(data.train))),
        "freezing": _freezing(base),
        "schedule": CategoricalDistribution(("cosine", "step", "constant")),
    }
    over = [term.name for term in base.loss if term.name in OVER_THE_BATCH]
    if metric == LOSS and over:
        notes.append(f"the value of the loss {', '.join(over)} changes with the batch: batch {base.batch} stays")
        del found["batch"]
    keys = [text.partition("=")[0] for text in overrides]
    free = {name: one for name, one in found.items() if one and not any(re.fullmatch(PINS[name], key) for key in keys)}
    if not free:
        raise CurateError("--set pins all that is searched (lr, batch, freezing, schedule): leave one of them open")
    return free, notes


def _batches(own: int, images: int) -> tuple[int, ...]:
    """Half, own, double; a batch larger than all of train would be the same training again."""
    larger = (2 * own,) if own < images else ()
    return (*((own // 2,) if own > 1 else ()), own, *larger)


def _freezing(base: Recipe) -> Any:
    """What stays as the weights have it: how long the head is trained alone, or how many layers are trained."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if len(base.phases) > 1:
        return IntDistribution(1, 2 * base.phases[0].epochs)
    if base.model.weights == "none":  # random features are not worth keeping
        return None
    if base.phases:
        own = base.phases[0].train
        layers = (max(1, own // 2), own, 2 * own) if isinstance(own, int) else ()
        return CategoricalDistribution(tuple(dict.fromkeys(("head", *layers, "all"))))
    return IntDistribution(0, max(1, base.epochs // 4)) if base.epochs > 1 else None


def _own_freezing(base: Recipe) -> Any:
    if len(base.phases) > 1:
        return base.phases[0].epochs
    return base.phases[0].train if base.phases else 0


def _plain(space: Mapping[str, Any]) -> list[Any]:
    from optuna.distributions import distribution_to_json

    return [(name, json.loads(distribution_to_json(one))) for name, one in space.items()]


def overrides_of(task: TuneTask, params: Mapping[str, Any]) -> list[str]:
    """What `--set` has to say, where the trial departs from the recipe."""
    changed = {name: value for name, value in params.items() if value != task.own[name]}
    found = [f"{key}={value}" for key, value in _rates(task, changed.get("lr"))]
    found += [f"batch={changed['batch']}"] if "batch" in changed else []
    found += [f"schedule.name={changed['schedule']}"] if "schedule" in changed else []
    return [*found, *(_thawed(task.base, changed["freezing"]) if "freezing" in changed else [])]


def _rates(task: TuneTask, rate: float | None) -> Iterator[tuple[str, str]]:
    """The rate, and those of phases that have their own: these keep their proportion to it."""
    if rate is None:
        return
    yield "optimiser.lr", f"{rate:.3g}"
    given = {text.partition("=")[0] for text in task.wish.overrides}
    for place, phase in enumerate(task.base.phases):
        if phase.lr is not None and (key := f"phases.{place}.lr") not in given:
            yield key, f"{phase.lr * rate / task.base.optimiser.lr:.3g}"


def _thawed(base: Recipe, value: Any) -> list[str]:
    if len(base.phases) > 1:
        return [f"phases.0.epochs={value}"]
    if base.phases:
        return [f"phases.0.train={value}"]
    phases = (Phase(epochs=value, train="head"), Phase(epochs=base.epochs - value))
    plain = [one.model_dump(exclude_defaults=True) for one in phases]
    return [f"phases={json.dumps(plain, separators=(',', ':'))}"]


# --- the study ------------------------------------------------------------------------------------------------------


def _study(task: TuneTask) -> Any:
    """The study in its file; the file comes into being whole. A trial that a kill left behind is drawn again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = task.folder / STUDY
    if not file.is_file():
        with files.written_aside(file) as aside:
            _connected(task, aside)
    study = _connected(task, file)
    for one in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(one.number, state=optuna.trial.TrialState.FAIL)
    return study


def _connected(task: TuneTask, file: Path) -> Any:
    import optuna
    from sqlalchemy.pool import NullPool

    # An address would give some characters of a path a meaning of their own.
    how = {"creator": lambda: sqlite3.connect(file, timeout=60), "poolclass": NullPool}
    storage = optuna.storages.RDBStorage("sqlite://", how)
    epochs = sum(one.epochs for one in task.base.parts)
    return optuna.create_study(
        storage=storage,
        study_name="tune",
        direction="minimize" if task.search.metric == LOSS else "maximize",
        pruner=optuna.pruners.MedianPruner(BEFORE_PRUNING, max(epochs // 10, int(task.base.schedule.warmup))),
        load_if_exists=True,
    )


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """A file that is no study, or another Optuna's, becomes one line."""
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except (DatabaseError, sqlite3.DatabaseError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:100]
        raise CurateError(f"{file} cannot be used ({reason}); remove it, and its trials are run again") from None


def _ended(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    found: list[Any] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return found


def _searched(task: TuneTask, study: Any, progress: Progress) -> None:
    """Trial after trial until there are enough, or the time is up."""
    until = time.monotonic() + task.search.seconds
    first = len(_ended(study))
    for number in range(first, task.search.trials):
        if number > first and time.monotonic() >= until:
            return
        trial = _drawn(task, study, number)
        try:
            _tried(task, study, trial, _shown(progress, f"trial {number + 1} of {task.search.trials}", task), until)
        except _TimeUp:
            return
    for left in task.folder.glob(".*.training"):  # by a kill between a trial's end and its removal
        files.remove(left)


def _drawn(task: TuneTask, study: Any, number: int) -> Any:
    """The next trial. It follows from its number and the trials before it: no state of a generator can be lost."""
    import optuna

    seed = int(np.random.default_rng([task.base.seed, number]).integers(2**31))
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    if not number and not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        study.enqueue_trial(task.own)
    return study.ask(dict(task.space))


def _shown(progress: Progress, name: str, task: TuneTask) -> Progress:
    epochs = sum(one.epochs for one in task.base.parts)
    return lambda stage, done, total: progress(name, done, total * epochs)


class _TimeUp(Exception):
    """The trial stays where it is; the next run goes on with it."""


def _tried(task: TuneTask, study: Any, trial: Any, progress: Progress, until: float) -> None:
    import optuna

    overrides = overrides_of(task, trial.params)
    made = task.recipe_with(overrides)
    folder = task.folder / f".{training.model_key(made, task.data)}.training"
    trial.set_user_attr("set", overrides)
    tell = _telling(task, trial)
    try:
        fitted = _fitted(task, made, folder, progress, _until(until, tell))
        tell(fitted)  # where a kill came after the last epoch, the loop has nothing left to tell
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except loop.UnsuitableSettings as error:  # without a value the sampler takes the trial for the worst
        trial.set_user_attr("unfit", str(error))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, _value(task, fitted.best))
    files.remove(folder)


def _fitted(task: TuneTask, made: Recipe, folder: Path, progress: Progress, ended: Ended) -> FitResult:
    from curate.devices import device_of

    folder.mkdir(parents=True, exist_ok=True)
    device = device_of(task.wish.device)
    workers = training.workers_of(device) if task.wish.workers is None else task.wish.workers
    model, start = training.network_of(made, task.data)
    plan = training.plan_of(task.project, made, task.data)
    return loop.fit(model, FitSettings(made, task.data, plan, start.frozen, folder, device, workers), progress, ended)


def _telling(task: TuneTask, trial: Any) -> Ended:
    """What the loop says of its epochs reaches the study, which may end the trial. A resumed one says all again."""
    import optuna

    known = 0

    def tell(fitted: FitResult) -> None:
        nonlocal known
        for row in fitted.history[known:]:
            trial.report(_value(task, row), row["epoch"])
            known += 1
            if trial.should_prune():
                raise optuna.TrialPruned

    return tell


def _until(until: float, tell: Ended) -> Ended:
    """Stops when the time is up, but never before one epoch: else short times would never end a trial."""
    first = True

    def ended(fitted: FitResult) -> None:
        nonlocal first
        tell(fitted)
        if not first and time.monotonic() >= until:
            raise _TimeUp
        first = False

    return ended


def _value(task: TuneTask, row: Mapping[str, Any]) -> float:
    """The measure of an epoch; F1 alone is the mean over the classes that val shows."""
    if task.search.metric == LOSS:
        return float(row[LOSS])
    _, _, name = task.search.metric.partition(".")
    return float(np.mean([row["f1"][one] or 0.0 for one in ([name] if name else _judged(task.data))]))


# --- what came of it ------------------------------------------------------------------------------------------------


def _tuned(task: TuneTask, study: Any, before: int) -> Tuned:
    trials = tuple(_described(number, one) for number, one in enumerate(_ended(study), 1))
    left = max(0, task.search.trials - len(trials))
    best = next((one for one in ranked(trials, task.search.metric) if one.state == "done"), None)
    if trials and best is None and not left:
        raise CurateError(f"none of {len(trials)} trials could be trained; the first: {trials[0].reason}")
    wish = replace(task.wish, recipe=task.name, overrides=(*task.wish.overrides, *best.set)) if best else None
    metric, fresh = task.search.metric, len(trials) - before
    return Tuned(task.project, task.folder, metric, trials, fresh, left, wish, task.notes)


def _described(number: int, one: Any) -> Trial:
    reason = str(one.user_attrs.get("unfit", ""))
    state = "unfit" if reason else "done" if one.state.name == "COMPLETE" else "pruned"
    epochs, changes = len(one.intermediate_values), tuple(one.user_attrs["set"])
    return Trial(number, state, one.value, epochs, dict(one.params), changes, reason)
