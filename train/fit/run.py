"""`curate train`: from a project and a recipe to a model in the store. The same data and recipe are trained once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.errors import CurateError, unknown
from curate.index import sync
from curate.index.dataset import Index
from curate.index.rounds import key_of
from curate.project import Project
from curate.units import duration
from curate.workers import cores
from train import architectures, processes, recipe, store
from train.architectures import two_stage
from train.data import dataset
from train.data.dataset import LoadPlan, TrainingData
from train.fit import loop, pretrained, pseudo
from train.fit.loop import FitResult, FitSettings, Progress
from train.fit.pretrained import Start
from train.processes import ALONE, ProcessGroup
from train.recipe import Recipe
from train.store import StoredModel

STEP = 2  # raise it when the same recipe and data give another model than before


@dataclass(frozen=True)
class TrainRequest:
    """What the user asks for; without `recipe` the task's default, without `task` what the labels allow."""

    task: str | None = None
    recipe: str | None = None
    overrides: Sequence[str] = ()
    device: str = "auto"
    workers: int | None = None


@dataclass
class TrainResult:
    """What came of it; `fresh` is false where the model was there already."""

    model: StoredModel
    fresh: bool
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        made = self.model.manifest
        names = ("task", "classes", "data", "best", "seconds")
        about = {name: made[name] for name in names}
        return {
            "model": self.model.key,
            "fresh": self.fresh,
            "epochs": len(made["history"]),
            "notes": self.notes,
        } | about


def run(
    project: Project,
    wish: TrainRequest,
    progress: Progress = lambda stage, done, total: None,
    told: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train, or find that it is done; resumes what a kill left. Afterwards the model is the candidate.

    `progress` counts the batches of all epochs, `told` gets a line about each epoch when it is over.
    Of several processes one does this; the others, which `processes` tells of, help to train and end here.
    """
    from curate.devices import device_of

    device = device_of(wish.device)
    with processes.team(device) as team, ExitStack() as stack:
        task = team.agreed(lambda: _task(project, wish, device, team, stack))
        manifest = _trained(task, wish.workers, team, progress, told) if task.fresh else {}
        if team.leads:
            made = _finished(project, task, manifest)
            return TrainResult(made, task.fresh, [*task.data.notes, *_idle_phases(task.recipe), *_skipped(made)])
    raise SystemExit(0)


def _idle_phases(made: Recipe) -> Iterator[str]:
    """A head alone makes nothing of features that nobody ever taught."""
    first = made.parts[0]
    if made.model.weights == "none" and first.train != "all":
        yield (
            f"phase 1 trains only '{first.train}' of a network whose other weights are random: it learns next to "
            "nothing there. Give --weights FILE, or train all of it from the start: --set phases=[]"
        )


@dataclass(frozen=True)
class TrainTask:
    """What a training needs to know, in any process; not `fresh`, it is done already."""

    key: str
    recipe: Recipe
    data: TrainingData
    plan: LoadPlan
    folder: Path
    device: str
    fresh: bool


def _task(project: Project, wish: TrainRequest, device: str, team: ProcessGroup, stack: ExitStack) -> TrainTask:
    resolved, data = prepared(project, wish)
    team.part_of(resolved.batch)
    if resolved.pseudo.model:
        pseudo.check_room(resolved, team.world)
    key = model_key(resolved, data)
    stack.enter_context(files.writer_lock(store.home(project), "curate train"))  # for hours: the index stays free
    folder, fresh = store.training_folder(project, key), not store.is_done(project, key)
    return TrainTask(key, resolved, data, plan_of(project, resolved, data), folder, device, fresh)


def prepared(project: Project, wish: TrainRequest) -> tuple[Recipe, TrainingData]:
    """The recipe as the images make it, and what there is to learn from."""
    named = _named(wish)
    with files.writer_lock(project.work, "curate train: labels"):
        index = Index(project)
        sync.capture_app_edits(index)
        data = dataset.collect(index, named.task if named else wish.task)
        resolved = _resolved(named or recipe.load(recipe.DEFAULTS[data.task], wish.overrides), data)
        return pseudo.added(project, index, resolved, data) if resolved.pseudo.model else (resolved, data)


def _named(wish: TrainRequest) -> Recipe | None:
    """The recipe that was asked for; its task must be the one that was asked for."""
    if wish.task is not None and wish.task not in recipe.TASKS:
        raise unknown("task", wish.task, recipe.TASKS, "Boxes to detect are derived from segmentation")
    if wish.recipe is None:
        return recipe.load(recipe.DEFAULTS[wish.task], wish.overrides) if wish.task else None
    found = recipe.load(wish.recipe, wish.overrides)
    if wish.task not in (None, found.task):
        fitting = [name for name in recipe.names() if recipe.load(name).task == wish.task]
        raise CurateError(f"recipe '{wish.recipe}' is for {found.task}; for {wish.task}: {', '.join(fitting)}")
    return found


def _resolved(named: Recipe, data: TrainingData) -> Recipe:
    return named.model_copy(update={"input": dataset.resolved_input(named, data.train)})


def model_key(resolved: Recipe, data: TrainingData) -> str:
    """Weights count by what they are, not by where they lie; what is off, or only makes it faster, does not."""
    left: dict[str, Any] = {"summary": True, "model": {"weights"}, "compile": True}
    left |= {} if resolved.pseudo.model else {"pseudo": True}
    values = resolved.model_dump(mode="json", exclude=left)
    return key_of([values, pretrained.mark_of(resolved.model), data.digest, data.outputs, STEP])


def plan_of(project: Project, resolved: Recipe, data: TrainingData) -> LoadPlan:
    return LoadPlan(
        data.task,
        data.classes,
        data.single,
        data.clean,
        resolved.input,
        resolved.augmentation,
        resolved.seed,
        project.config.limits.max_pixels,
    )


def _trained(
    task: TrainTask, workers: int | None, team: ProcessGroup, progress: Progress, told: Callable[[str], None]
) -> dict[str, Any]:
    """The manifest of what was trained; the weights lie in the task's folder."""
    import torch

    begun = time.perf_counter()
    task.folder.mkdir(parents=True, exist_ok=True)
    model, start = network_of(task.recipe, task.data)
    readers = workers_of(task.device, team) if workers is None else workers
    if task.device == "cpu" and readers:  # readers and torch's threads share the cores
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() - readers)))
    setting = FitSettings(task.recipe, task.data, task.plan, start.frozen, task.folder, task.device, readers, team)
    epochs = sum(phase.epochs for phase in task.recipe.parts)

    def step(stage: str, done: int, total: int) -> None:
        if team.leads:  # one bar is enough
            progress("train", done, total * epochs)

    def ended(fitted: FitResult) -> None:
        if team.leads:
            told(epoch_line(task.recipe, fitted.history, fitted.best))

    fitted = loop.fit(model, setting, step, ended)
    about = {"device": task.device, "processes": team.world, "seconds": round(time.perf_counter() - begun, 1)}
    return _manifest(task.recipe, task.data, start, fitted) | about


def epoch_line(made: Recipe, history: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    """Loss, metric and time of the last epoch, and how long the epochs that are left would take at most."""
    row, seconds = history[-1], history[-1]["seconds"]
    done = sum(one["phase"] == row["phase"] for one in history)
    left = sum(phase.epochs for phase in made.parts[row["phase"] :]) - done
    parts = [f"loss {row['train_loss']:.4f}"]
    if "val_loss" in row:
        shown = [value for value in row["f1"].values() if value is not None]
        metric = "mean Dice" if made.task == "segmentation" else "mean F1"
        parts.append(f"val loss {row['val_loss']:.4f}" + (f", {metric} {np.mean(shown):.3f}" if shown else ""))
        parts += ["the best so far"] if row["epoch"] == best["epoch"] else []
    text = f"epoch {row['epoch'] + 1} of at most {row['epoch'] + 1 + left}: {', '.join(parts)} ({duration(seconds)}"
    return f"{text}; at most {duration(left * seconds)} left)" if left else f"{text})"


def _finished(project: Project, task: TrainTask, manifest: dict[str, Any]) -> StoredModel:
    """Store the model, or find it where it is stored already, and make it the candidate."""
    if task.fresh:
        model = store.finish(project, task.key, task.folder / loop.BEST, manifest)
    else:
        model = store.find(project, task.key)
        files.remove(task.folder)  # left by a kill after the model was stored
    store.point(project, store.CANDIDATE, task.key)
    return model


def network_of(resolved: Recipe, data: TrainingData) -> tuple[Any, Start]:
    """The model as training begins."""
    import torch

    torch.manual_seed(resolved.seed)
    channels = resolved.input.channels
    model = architectures.build(resolved.task, resolved.model, channels, len(data.outputs))
    start = pretrained.fill(model, resolved.model, channels)
    if resolved.model.weights == "hub" and hasattr(model, "gate"):  # a file is the segmenter's, or the whole model
        pretrained.fill(model.gate, two_stage.gate_of(resolved.model), channels)
    return model, start


def workers_of(device: str, team: ProcessGroup = ALONE) -> int:
    """Processes that read images: a GPU must not wait, and a CPU has no core to spare."""
    return 0 if device == "cpu" else min(8, max(1, cores() // team.world - 1))


def _manifest(resolved: Recipe, data: TrainingData, start: Start, fitted: FitResult) -> dict[str, Any]:
    by_class = data.present(data.train).sum(axis=0).tolist()
    return {
        "task": data.task,
        "classes": list(data.classes),
        "outputs": list(data.outputs),
        "single": data.single,
        "recipe": resolved.model_dump(mode="json"),
        "weights": start.mark,
        "frozen_norms": list(start.frozen),
        "data": {
            "digest": data.digest,
            "train": len(data.train),
            "val": len(data.val),
            "by_class": dict(zip(data.classes, by_class, strict=True)),
        },
        "images": {"train": [one.id for one in data.train], "val": [one.id for one in data.val]},
        "pseudo": pseudo.recorded(resolved, data.pseudo) if data.pseudo else None,
        "skipped": fitted.skipped,
        "history": fitted.history,
        "best": fitted.best,
        "step": STEP,
    }


def _skipped(made: StoredModel) -> list[str]:
    skipped = made.manifest["skipped"]
    return [f"{len(skipped)} images could not be read; the first: {next(iter(skipped.values()))}"] if skipped else []
