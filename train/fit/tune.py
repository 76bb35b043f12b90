"""`curate tune`: search lr, batch, freezing and schedule of a recipe with Optuna, evaluated on val alone.

The study lies in `work/tune/<key>/study.sqlite`; its key changes with the recipe, the data, the search space and the
metric. A trial's proposal follows from (seed, trials before it), and a trial's training resumes as any other. So a
killed search that resumes runs the same trials, and keeps the one that it was in.

Trials do not become models: they are trained in the study's folder and removed. The first one is the recipe unchanged.
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
from curate.hashing import key_of
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
RATE_FACTOR = 10  # the rate may be this many times smaller or larger than the recipe's
UNPRUNED = 5  # first trials that always run to their end
BATCH_DEPENDENT = ("dice", "tversky", "focal_tversky", "lovasz")  # losses whose value depends on the batch size
OnEpochEnd = Callable[[FitResult], None]
PINS = {
    "lr": r"optimiser(\.lr)?",
    "batch": r"batch",
    "freezing": r"phases(\.\d+\.(epochs|train))?",
    "schedule": r"schedule(\.name)?",
}


@dataclass(frozen=True)
class TuneBudget:
    """How long to search, and by which metric on val; `seconds` are for this run, `trials` for the whole study."""

    trials: int = 20
    seconds: float = 7200.0
    metric: str = F1


@dataclass(frozen=True)
class TuneTask:
    """A search that is ready to run."""

    project: Project
    request: TrainRequest
    budget: TuneBudget
    base: Recipe
    data: TrainingData
    space: Mapping[str, Any]
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.request.recipe or recipe.DEFAULTS[self.base.task]

    @property
    def recipe_values(self) -> dict[str, Any]:
        """The recipe's own values of what is searched."""
        values = {"lr": self.base.optimiser.lr, "batch": self.base.batch, "schedule": self.base.schedule.name}
        values["freezing"] = _recipe_freezing(self.base)
        return {name: values[name] for name in self.space}

    def recipe_with(self, overrides: Sequence[str]) -> Recipe:
        trial_recipe = recipe.load(self.name, [*self.request.overrides, *overrides])
        return trial_recipe.model_copy(update={"input": self.base.input})


@dataclass(frozen=True)
class Trial:
    """A trial that has ended. `state`: done, pruned, or unfit (it diverged or ran out of memory: `reason`)."""

    number: int
    state: str
    value: float | None
    epochs: int
    params: dict[str, Any]
    set: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class TuneResult:
    """The study after a run. `fresh`: trials of this run; `left`: trials for which its time did not suffice.

    `best` is the request that trains the best trial's recipe; None while no trial has run to its end.
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
        """The command line that trains the best trial's recipe; empty while there is none."""
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
            "trials": [asdict(trial) for trial in self.trials],
            "best": asdict(self.ranked[0]) if self.best else None,
            "train": self.command,
            "notes": list(self.notes),
        }


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Sort finished trials by value, the best first (of equal ones the earlier); then the others in their order."""
    sign = 1 if metric == LOSS else -1
    done = sorted((trial for trial in trials if trial.state == "done"), key=lambda trial: sign * (trial.value or 0.0))
    return [*done, *(trial for trial in trials if trial.state != "done")]


def seconds_of(text: str) -> float:
    """Parse a time such as `2h`, `90m`, `45s`, `2h30m`."""
    try:
        budget = cost.parse_budget(text)
    except CurateError:
        budget = None
    if not isinstance(budget, cost.TimeBudget):
        raise CurateError(f"time '{text}' is not valid; allowed: 4h, 90m, 45s, 2h30m, above 0. For example --time 2h")
    return budget.seconds


def run(
    project: Project, request: TrainRequest, budget: TuneBudget, progress: Progress = lambda stage, done, total: None
) -> TuneResult:
    """Search, or resume a search; once its trials are done there is nothing to do."""
    task = prepare(project, request, budget)
    with files.writer_lock(task.folder, "curate tune"):
        with _explain_unreadable(task.folder / STUDY):
            study = _study(task)
        before = len(_finished_trials(study))
        _search(task, study, progress)
        return _result(task, study, before)


# --- what is searched -----------------------------------------------------------------------------------------------


def prepare(project: Project, request: TrainRequest, budget: TuneBudget) -> TuneTask:
    """Return the search. Raises CurateError where val cannot rank trials, or nothing is left to search."""
    base, data = training.prepare(project, request)
    _check(budget, data)
    space, notes = _space(base, data, request.overrides, budget.metric)
    key = key_of([training.model_key(base, data), _space_json(space), budget.metric, STEP])
    return TuneTask(project, request, budget, base, data, space, project.work / "tune" / key, (*data.notes, *notes))


def _check(budget: TuneBudget, data: TrainingData) -> None:
    val_classes = _val_classes(data)
    allowed = [LOSS, F1, *(f"{F1}.{name}" for name in val_classes)]
    if not data.val:
        raise CurateError("no labelled image in val: trials cannot be ranked. Label more, or change splits.ratio")
    if budget.metric == F1 and not val_classes:
        raise CurateError(f"no image of val shows a defect: F1 cannot rank trials. Try: --metric {LOSS}")
    if budget.metric not in allowed:
        raise unknown("metric", budget.metric, allowed, "Only classes that val shows have an F1")


def _val_classes(data: TrainingData) -> list[str]:
    """Return the classes that val shows; others have no F1."""
    present = data.present(data.val)
    return [name for row, name in enumerate(data.classes) if present[:, row].any()]


def _space(base: Recipe, data: TrainingData, overrides: Sequence[str], metric: str) -> tuple[dict[str, Any], list[str]]:
    """Return the search space: all that no flag pins, always including the recipe's own values; and notes."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    rate, notes = base.optimiser.lr, list[str]()
    space = {
        "lr": FloatDistribution(rate / RATE_FACTOR, rate * RATE_FACTOR, log=True),
        "batch": CategoricalDistribution(_batches(base.batch, len(data.train))),
        "freezing": _freezing(base),
        "schedule": CategoricalDistribution(tuple(dict.fromkeys(("cosine", "step", "constant", base.schedule.name)))),
    }
    over = [term.name for term in base.loss if term.name in BATCH_DEPENDENT]
    if metric == LOSS and over:
        notes.append(f"the loss {', '.join(over)} depends on the batch size: batch {base.batch} stays")
        del space["batch"]
    keys = [text.partition("=")[0] for text in overrides]
    free = {
        name: distribution
        for name, distribution in space.items()
        if distribution and not any(re.fullmatch(PINS[name], key) for key in keys)
    }
    if not free:
        raise CurateError(
            "--set pins all that is searched (lr, batch, freezing, schedule): leave one of them out of --set"
        )
    return free, notes


def _batches(batch: int, images: int) -> tuple[int, ...]:
    """Return half, same and double; without double where the batch holds all of train already."""
    larger = (2 * batch,) if batch < images else ()
    return (*((batch // 2,) if batch > 1 else ()), batch, *larger)


def _freezing(base: Recipe) -> Any:
    """Return the choices for freezing: how long the head is trained alone, or how many layers are trained."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if len(base.phases) > 1:
        return IntDistribution(1, 2 * base.phases[0].epochs)
    if base.model.weights == "none":  # random features are not worth freezing
        return None
    if base.phases:
        train = base.phases[0].train
        layers = (max(1, train // 2), train, 2 * train) if isinstance(train, int) else ()
        return CategoricalDistribution(tuple(dict.fromkeys(("head", *layers, "all"))))
    return IntDistribution(0, max(1, base.epochs // 4)) if base.epochs > 1 else None


def _recipe_freezing(base: Recipe) -> Any:
    if len(base.phases) > 1:
        return base.phases[0].epochs
    return base.phases[0].train if base.phases else 0


def _space_json(space: Mapping[str, Any]) -> list[Any]:
    from optuna.distributions import distribution_to_json

    return [(name, json.loads(distribution_to_json(distribution))) for name, distribution in space.items()]


def overrides_of(task: TuneTask, params: Mapping[str, Any]) -> list[str]:
    """Return the `--set` texts by which a trial departs from the recipe."""
    changed = {name: value for name, value in params.items() if value != task.recipe_values[name]}
    overrides = [f"{key}={value}" for key, value in _rate_overrides(task, changed.get("lr"))]
    overrides += [f"batch={changed['batch']}"] if "batch" in changed else []
    overrides += [f"schedule.name={changed['schedule']}"] if "schedule" in changed else []
    return [*overrides, *(_freezing_overrides(task.base, changed["freezing"]) if "freezing" in changed else [])]


def _rate_overrides(task: TuneTask, rate: float | None) -> Iterator[tuple[str, str]]:
    """Yield the learning rate, and in proportion the rates of phases that have their own."""
    if rate is None:
        return
    yield "optimiser.lr", f"{rate:.3g}"
    pinned = {text.partition("=")[0] for text in task.request.overrides}
    for place, phase in enumerate(task.base.phases):
        if phase.lr is not None and (key := f"phases.{place}.lr") not in pinned:
            yield key, f"{phase.lr * rate / task.base.optimiser.lr:.3g}"


def _freezing_overrides(base: Recipe, value: Any) -> list[str]:
    if len(base.phases) > 1:
        return [f"phases.0.epochs={value}"]
    if base.phases:
        return [f"phases.0.train={value}"]
    phases = (Phase(epochs=value, train="head"), Phase(epochs=base.epochs - value))
    plain = [phase.model_dump(exclude_defaults=True) for phase in phases]
    return [f"phases={json.dumps(plain, separators=(',', ':'))}"]


# --- the study ------------------------------------------------------------------------------------------------------


def _study(task: TuneTask) -> Any:
    """Open the study, created in one step. A trial that a kill left running is marked as failed and run again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = task.folder / STUDY
    if not file.is_file():
        with files.written_aside(file) as aside:
            _open_study(task, aside)
        for left in task.folder.glob(f".{STUDY}.*.part*"):  # SQLite's journal of one that was killed, too
            files.remove(left)
    study = _open_study(task, file)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _open_study(task: TuneTask, file: Path) -> Any:
    import optuna
    from sqlalchemy.pool import NullPool

    # A database URL would give some characters of the path a special meaning.
    connection = {"creator": lambda: sqlite3.connect(file, timeout=60), "poolclass": NullPool}
    storage = optuna.storages.RDBStorage("sqlite://", connection)
    epochs = sum(phase.epochs for phase in task.base.parts)
    return optuna.create_study(
        storage=storage,
        study_name="tune",
        direction="minimize" if task.budget.metric == LOSS else "maximize",
        pruner=optuna.pruners.MedianPruner(UNPRUNED, max(epochs // 10, int(task.base.schedule.warmup))),
        load_if_exists=True,
    )


@contextmanager
def _explain_unreadable(file: Path) -> Iterator[None]:
    """Turn errors of a file that is not a study, or of another Optuna version, into one line."""
    from sqlalchemy.exc import DatabaseError

    try:
        yield
    except (DatabaseError, sqlite3.DatabaseError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:100]
        raise CurateError(f"{file} cannot be used ({reason}); remove it to run its trials again") from None


def _finished_trials(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    trials: list[Any] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return trials


def _search(task: TuneTask, study: Any, progress: Progress) -> None:
    """Run trials until there are enough, or the time is up."""
    until = time.monotonic() + task.budget.seconds
    first = len(_finished_trials(study))
    for number in range(first, task.budget.trials):
        if number > first and time.monotonic() >= until:
            return
        trial = _next_trial(task, study, number)
        try:
            _run_trial(
                task,
                study,
                trial,
                _trial_progress(progress, f"trial {number + 1} of {task.budget.trials}", task),
                until,
            )
        except _TimeUp:
            return
    for left in task.folder.glob(".*.training"):  # left by a kill between a trial's end and its removal
        files.remove(left)


def _next_trial(task: TuneTask, study: Any, number: int) -> Any:
    """Return the next trial. It follows from its number and the earlier trials: there is no generator state to lose."""
    import optuna

    seed = int(np.random.default_rng([task.base.seed, number]).integers(2**31))
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    if not number and not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
        study.enqueue_trial(task.recipe_values)
    return study.ask(dict(task.space))


def _trial_progress(progress: Progress, name: str, task: TuneTask) -> Progress:
    epochs = sum(phase.epochs for phase in task.base.parts)
    return lambda stage, done, total: progress(name, done, total * epochs)


class _TimeUp(Exception):
    """The time is up: the trial stays on disk, and the next run resumes it."""


def _run_trial(task: TuneTask, study: Any, trial: Any, progress: Progress, until: float) -> None:
    import optuna

    overrides = overrides_of(task, trial.params)
    trial_recipe = task.recipe_with(overrides)
    folder = task.folder / f".{training.model_key(trial_recipe, task.data)}.training"
    trial.set_user_attr("set", overrides)
    report = _reporter(task, trial)
    try:
        fitted = _fit(task, trial_recipe, folder, progress, _with_deadline(until, report))
        report(fitted)  # after a kill behind the last epoch, the loop calls back no more
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except loop.UnsuitableSettings as error:  # without a value the sampler ranks the trial last
        trial.set_user_attr("unfit", str(error))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, _value(task, fitted.best))
    files.remove(folder)


def _fit(task: TuneTask, trial_recipe: Recipe, folder: Path, progress: Progress, on_epoch_end: OnEpochEnd) -> FitResult:
    from curate.devices import device_of

    folder.mkdir(parents=True, exist_ok=True)
    device = device_of(task.request.device)
    workers = training.workers_of(device) if task.request.workers is None else task.request.workers
    model, start = training.network_of(trial_recipe, task.data)
    plan = training.plan_of(task.project, trial_recipe, task.data)
    return loop.fit(
        model, FitSettings(trial_recipe, task.data, plan, start.frozen, folder, device, workers), progress, on_epoch_end
    )


def _reporter(task: TuneTask, trial: Any) -> OnEpochEnd:
    """Return a callback that reports epochs to the study, which may prune the trial; a resumed trial reports all."""
    import optuna

    reported = 0

    def report(fitted: FitResult) -> None:
        nonlocal reported
        for row in fitted.history[reported:]:
            trial.report(_value(task, row), row["epoch"])
            reported += 1
            if trial.should_prune():
                raise optuna.TrialPruned

    return report


def _with_deadline(until: float, report: OnEpochEnd) -> OnEpochEnd:
    """Return the callback with a deadline, but allow one epoch at least: else short times would never end a trial."""
    first = True

    def on_epoch_end(fitted: FitResult) -> None:
        nonlocal first
        report(fitted)
        if not first and time.monotonic() >= until:
            raise _TimeUp
        first = False

    return on_epoch_end


def _value(task: TuneTask, row: Mapping[str, Any]) -> float:
    """Return the metric of an epoch; `f1` alone is the mean over the classes that val shows."""
    if task.budget.metric == LOSS:
        return float(row[LOSS])
    _, _, name = task.budget.metric.partition(".")
    names = [name] if name else _val_classes(task.data)
    return float(np.mean([row["f1"][name] or 0.0 for name in names]))


# --- what came of it ------------------------------------------------------------------------------------------------


def _result(task: TuneTask, study: Any, before: int) -> TuneResult:
    trials = tuple(_trial_of(number, trial) for number, trial in enumerate(_finished_trials(study), 1))
    left = max(0, task.budget.trials - len(trials))
    best = next((trial for trial in ranked(trials, task.budget.metric) if trial.state == "done"), None)
    if trials and best is None and not left:
        raise CurateError(f"none of {len(trials)} trials could be trained; the first: {trials[0].reason}")
    best_request = (
        replace(task.request, recipe=task.name, overrides=(*task.request.overrides, *best.set)) if best else None
    )
    metric, fresh = task.budget.metric, len(trials) - before
    return TuneResult(task.project, task.folder, metric, trials, fresh, left, best_request, task.notes)


def _trial_of(number: int, trial: Any) -> Trial:
    reason = str(trial.user_attrs.get("unfit", ""))
    state = "unfit" if reason else "done" if trial.state.name == "COMPLETE" else "pruned"
    epochs, changes = len(trial.intermediate_values), tuple(trial.user_attrs["set"])
    return Trial(number, state, trial.value, epochs, dict(trial.params), changes, reason)
