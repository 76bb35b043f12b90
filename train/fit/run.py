"""`curate train`: from a project and a recipe to a model in the store. The same data and recipe are trained once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.errors import CurateError, unknown
from curate.hashing import key_of
from curate.index import sync
from curate.index.dataset import Index
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
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.recipe import Recipe
from train.store import StoredModel

STEP = 3  # raise it when the same recipe and data give another model than before


@dataclass(frozen=True)
class TrainRequest:
    """A training as the user asks for it.

    Args:
        task: segmentation or classification; without it what the labels allow.
        recipe: its name or file; without it the task's default.
        overrides: `key=value` changes of the recipe.
        device: auto, cpu or cuda.
        workers: processes that read images; without it as the device needs.
    """

    task: str | None = None
    recipe: str | None = None
    overrides: Sequence[str] = ()
    device: str = "auto"
    workers: int | None = None


@dataclass
class TrainResult:
    """The trained model; `fresh` is false where it was there already."""

    model: StoredModel
    fresh: bool
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        manifest = self.model.manifest
        names = ("task", "classes", "data", "best", "seconds")
        details = {name: manifest[name] for name in names}
        return {
            "model": self.model.key,
            "fresh": self.fresh,
            "epochs": len(manifest["history"]),
            "notes": self.notes,
        } | details


def run(
    project: Project,
    request: TrainRequest,
    progress: Progress = lambda stage, done, total: None,
    log: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train a model, or find that it is trained already; a killed run is resumed. The model becomes the candidate.

    Args:
        project: the project with its labels.
        request: what to train.
        progress: counts the batches of all epochs.
        log: gets a line about each epoch when it is over.

    Returns:
        The model, on rank 0. Other ranks (see `processes`) help to train and exit here.
    """
    from curate.devices import device_of

    device = device_of(request.device)
    with processes.process_group(device) as process_group, ExitStack() as stack:
        task = process_group.compute_on_main(lambda: _prepare_task(project, request, device, process_group, stack))
        manifest = _train(task, request.workers, process_group, progress, log) if task.fresh else {}
        if process_group.is_main:
            model = _store(project, task, manifest)
            notes = [*task.data.notes, *_phases_on_random_features(task.recipe), *_skipped(model)]
            return TrainResult(model, task.fresh, notes)
    raise SystemExit(0)


def _phases_on_random_features(resolved: Recipe) -> Iterator[str]:
    """Warn of a first phase that trains the head alone on random features."""
    first = resolved.parts[0]
    if resolved.model.weights == "none" and first.train != "all":
        yield (
            f"phase 1 trains only '{first.train}' of a network whose other weights are random: it learns next to "
            "nothing there. Give --weights FILE, or train all of it from the start: --set phases=[]"
        )


@dataclass(frozen=True)
class TrainTask:
    """Everything that a training needs, in any process; without `fresh` the model is trained already."""

    key: str
    recipe: Recipe
    data: TrainingData
    plan: LoadPlan
    folder: Path
    device: str
    fresh: bool


def _prepare_task(
    project: Project, request: TrainRequest, device: str, process_group: ProcessGroup, stack: ExitStack
) -> TrainTask:
    resolved, data = prepare(project, request)
    process_group.local_batch(resolved.batch)
    if resolved.pseudo.model:
        pseudo.check_batch(resolved, process_group.world_size)
    key = model_key(resolved, data)
    # Held for hours: the index is not locked.
    stack.enter_context(files.writer_lock(store.models_folder(project), "curate train"))
    folder, fresh = store.training_folder(project, key), not store.is_done(project, key)
    return TrainTask(key, resolved, data, plan_of(project, resolved, data), folder, device, fresh)


def prepare(project: Project, request: TrainRequest) -> tuple[Recipe, TrainingData]:
    """Return the recipe, fitted to the images, and the training data."""
    requested = _requested_recipe(request)
    with files.writer_lock(project.work, "curate train: labels"):
        index = Index(project)
        sync.capture_app_edits(index)
        data = dataset.collect(index, requested.task if requested else request.task)
        resolved = _resolved(requested or recipe.load(recipe.DEFAULTS[data.task], request.overrides), data)
        data = data.as_wanted(resolved)
        if unsure := dataset.unlocated(data, resolved):
            note = (
                f"{unsure} images, larger than a crop, name a class without its place: each of their crops counts as it"
            )
            data = replace(data, notes=(*data.notes, note))
        return pseudo.with_pseudo_labels(project, index, resolved, data) if resolved.pseudo.model else (resolved, data)


def _requested_recipe(request: TrainRequest) -> Recipe | None:
    """Return the requested recipe, if any. Raises CurateError where it is for another task than requested."""
    if request.task is not None and request.task not in recipe.TASKS:
        raise unknown("task", request.task, recipe.TASKS, "Boxes to detect are derived from segmentation")
    if request.recipe is None:
        return recipe.load(recipe.DEFAULTS[request.task], request.overrides) if request.task else None
    loaded = recipe.load(request.recipe, request.overrides)
    if request.task not in (None, loaded.task):
        fitting = [name for name in recipe.names() if recipe.load(name).task == request.task]
        raise CurateError(f"recipe '{request.recipe}' is for {loaded.task}; for {request.task}: {', '.join(fitting)}")
    return loaded


def _resolved(named: Recipe, data: TrainingData) -> Recipe:
    return named.model_copy(update={"input": dataset.resolved_input(named, data.train)})


def model_key(resolved: Recipe, data: TrainingData) -> str:
    """Return the model's key. Weights count by content, not by path; options that are off or for speed do not count."""
    left: dict[str, Any] = {"summary": True, "model": {"weights"}, "compile": True, "predict": {"fit"}}
    left |= {} if resolved.pseudo.model else {"pseudo": True}
    values = resolved.values_for_key(left)
    return key_of([values, pretrained.mark_of(resolved.model), data.digest, data.outputs, STEP])


def plan_of(project: Project, resolved: Recipe, data: TrainingData) -> LoadPlan:
    """Return how the images of these data are loaded for this recipe."""
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


def _train(
    task: TrainTask, workers: int | None, process_group: ProcessGroup, progress: Progress, log: Callable[[str], None]
) -> dict[str, Any]:
    """Train, and return the manifest; the weights lie in the task's folder."""
    import torch

    started = time.perf_counter()
    task.folder.mkdir(parents=True, exist_ok=True)
    model, start = network_of(task.recipe, task.data)
    readers = workers_of(task.device, process_group) if workers is None else workers
    if task.device == "cpu" and readers:  # readers and torch's threads share the cores
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() - readers)))
    settings = FitSettings(
        task.recipe, task.data, task.plan, start.frozen, task.folder, task.device, readers, process_group
    )
    epochs = sum(phase.epochs for phase in task.recipe.parts)

    def step(stage: str, done: int, total: int) -> None:
        if process_group.is_main:  # one progress bar is enough
            progress("train", done, total * epochs)

    def on_epoch_end(fitted: FitResult) -> None:
        if process_group.is_main:
            log(epoch_line(task.recipe, fitted.history, fitted.best))

    fitted = loop.fit(model, settings, step, on_epoch_end)
    details = {
        "device": task.device,
        "processes": process_group.world_size,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return _manifest(task.recipe, task.data, start, fitted) | details


def epoch_line(resolved: Recipe, history: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    """Return a line with loss, metric and time of the last epoch, and the most time that the other epochs can take."""
    row, seconds = history[-1], history[-1]["seconds"]
    done = sum(entry["phase"] == row["phase"] for entry in history)
    left = sum(phase.epochs for phase in resolved.parts[row["phase"] :]) - done
    parts = [f"loss {row['train_loss']:.4f}"]
    if "val_loss" in row:
        shown = [value for value in row["f1"].values() if value is not None]
        metric = "mean Dice" if resolved.task == "segmentation" else "mean F1"
        parts.append(f"val loss {row['val_loss']:.4f}" + (f", {metric} {np.mean(shown):.3f}" if shown else ""))
        parts += ["the best so far"] if row["epoch"] == best["epoch"] else []
    text = f"epoch {row['epoch'] + 1} of at most {row['epoch'] + 1 + left}: {', '.join(parts)} ({duration(seconds)}"
    return f"{text}; at most {duration(left * seconds)} left)" if left else f"{text})"


def _store(project: Project, task: TrainTask, manifest: dict[str, Any]) -> StoredModel:
    """Store the model, or find it where it is stored already, and make it the candidate."""
    if task.fresh:
        model = store.finish(project, task.key, task.folder / loop.BEST, manifest)
    else:
        model = store.find(project, task.key)
        files.remove(task.folder)  # left by a kill after the model was stored
    store.set_alias(project, store.CANDIDATE, task.key)
    return model


def network_of(resolved: Recipe, data: TrainingData) -> tuple[Any, Start]:
    """Return the network with its starting weights."""
    import torch

    torch.manual_seed(resolved.seed)
    channels = resolved.input.channels
    model = architectures.build(resolved.task, resolved.model, channels, len(data.outputs))
    start = pretrained.load_into(model, resolved.model, channels)
    if resolved.model.weights == "hub" and hasattr(
        model, "gate"
    ):  # a weights file is for the segmenter, or the whole model
        pretrained.load_into(model.gate, two_stage.gate_config(resolved.model), channels)
    return model, start


def workers_of(device: str, process_group: ProcessGroup = SINGLE_PROCESS) -> int:
    """Return how many processes read images: enough to feed a GPU; none on a CPU, which has no core to spare."""
    return 0 if device == "cpu" else min(8, max(1, cores() // process_group.world_size - 1))


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
        "images": {"train": [item.id for item in data.train], "val": [item.id for item in data.val]},
        "pseudo": pseudo.manifest_entry(resolved, data.pseudo) if data.pseudo else None,
        "skipped": fitted.skipped,
        "history": fitted.history,
        "best": fitted.best,
        "step": STEP,
    }


def _skipped(model: StoredModel) -> list[str]:
    skipped = model.manifest["skipped"]
    return [f"{len(skipped)} images could not be read; the first: {next(iter(skipped.values()))}"] if skipped else []
