"""`curate evaluate --folds`: cross-validation of a model's recipe, for projects whose test split is small.

The labelled groups are dealt into folds, anew in each repeat. For every fold the recipe is trained on the others (some
of their groups are its val, which ends the training) and predicts this one: each image is evaluated once a repeat, by a
network that was trained on nothing of its group. The networks are removed; their predictions are kept in
`work/evaluations/<model>/folds-<count>-<key>/`. A run that was killed continues where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.data import Item
from curate.errors import CurateError, unknown
from curate.hashing import key_of, seeded_number, sha256_of
from curate.index.dataset import Index
from curate.labels import splits
from curate.labels.splits import Member
from curate.pretrained import PACKAGE
from curate.project import Project
from curate.tables import Table
from curate.units import duration
from train import checkpoint, decisions, store
from train.data.dataset import TrainingData, without_retired
from train.evaluate import decide, intervals, metrics, per_image
from train.evaluate import run as evaluating
from train.evaluate.intervals import BootstrapMetric
from train.evaluate.metrics import EvaluatedImages, MetricsByName
from train.evaluate.per_image import ModelEvaluator
from train.fit import loop, pretrained
from train.fit import run as training
from train.predict.predictor import Predictor, recipe_of
from train.recipe import Recipe
from train.store import StoredModel

COUNT, REPEATS = 5, 3
SPLITS = ("train", "val")  # test is used on request only
STEP = 2  # raise it when the same labels and recipe give other folds or metrics than before
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CrossValidateRequest:
    """Options of `curate evaluate --folds`. `targets`: the recall that each class should reach, fitted on val."""

    model: str | None = None
    count: int = COUNT
    repeats: int = REPEATS
    with_test: bool = False
    targets: Mapping[str, float] = field(default_factory=dict)
    device: str = "auto"


@dataclass(frozen=True)
class Fold:
    """One training, and its held-out images. No group of `held` is in `data`; `repeat` and `number` count from 0."""

    repeat: int
    number: int
    data: TrainingData
    held: tuple[Item, ...]

    @property
    def name(self) -> str:
        return f"{self.repeat + 1}-{self.number + 1}"


@dataclass(frozen=True)
class CrossValidationTask:
    """Everything that is needed to train and to evaluate the folds; `items`: all images that are evaluated."""

    project: Project
    model: StoredModel
    request: CrossValidateRequest
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    folds: tuple[Fold, ...]
    folder: Path
    notes: tuple[str, ...]

    @property
    def segments(self) -> bool:
        return self.folds[0].data.task == "segmentation"

    @property
    def splits(self) -> tuple[str, ...]:
        return (*SPLITS, "test") if self.request.with_test else SPLITS

    @property
    def result_file(self) -> Path:
        key = key_of([self.request.repeats, dict(self.request.targets), evaluating.STEP, STEP])
        return self.folder / f"result-{key[:16]}.json"

    @property
    def todo(self) -> list[Fold]:
        return [fold for fold in self.folds if not self.fold_file(fold).is_file()]

    @property
    def images_to_evaluate(self) -> int:
        """Number of predictions to make: images, each as often as a network predicts it."""
        return sum(len(fold.held) + len(fold.data.val) for fold in self.todo)

    @cached_property
    def recipe(self) -> Recipe:
        return recipe_of(self.model)

    def fold_file(self, fold: Fold) -> Path:
        return self.folder / f"fold-{fold.name}.json"

    def predictions_table(self, repeat: int) -> Table:
        """Table of a repeat's predictions, each by the network that was not trained on the image's group."""
        return per_image.open_table_at(self.folder / f"judged-{repeat + 1}.lance", self.segments, self.classes)

    def val_table(self, fold: Fold) -> Table:
        return per_image.open_table_at(self.folder / f"val-{fold.name}.lance", self.segments, self.classes)


@dataclass(frozen=True)
class CrossValidation:
    """A finished cross-validation; `fresh` is false where it had been finished before."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, Any]
    fresh: bool

    def to_json(self) -> dict[str, Any]:
        return self.manifest | {"folder": str(self.folder), "fresh": self.fresh} | self.metrics


def cost(task: CrossValidationTask) -> str:
    """Return the number of trainings to do and their duration, in words."""
    manifest = task.model.manifest
    each = f"{duration(manifest['seconds'])} on {manifest['device']}"
    return f"{len(task.todo)} of {len(task.folds)} trainings to do, each about as long as the model's own ({each})"


def run(task: CrossValidationTask, progress: Progress = lambda stage, done, total: None) -> CrossValidation:
    """Train and evaluate fold after fold. Finished folds are kept, and the index is not locked.

    Args:
        task: the folds, from `make_task`.
        progress: called with stage, steps done and steps in all.

    Returns:
        The result over all folds and repeats.
    """
    with files.writer_lock(task.project.work / "evaluations", "curate evaluate --folds"):
        fresh = not task.result_file.is_file()
        if fresh:
            for fold in task.folds:
                _run_fold(task, fold, progress)
                progress("folds", 1, len(task.folds))
            files.write_json(task.result_file, _result(task))
    result: dict[str, Any] = files.read_json(task.result_file)
    return CrossValidation(task.folder, result["manifest"], result["figures"], fresh)


# --- images and folds -----------------------------------------------------------------------------------------------


def make_task(project: Project, request: CrossValidateRequest) -> CrossValidationTask:
    """Deal the labelled images into folds; raises CurateError where there are too few groups or classes for that."""
    index, model = Index(project), store.find(project, request.model)
    classes, notes = evaluating.classes_of(project, model), list[str]()
    _check_targets(request.targets, classes)
    items = _labelled(index, model, classes, request, notes)
    data_of_all = _training_data(items, model, project)
    config = project.config.splits
    shares = {"train": config.shares["train"], "val": config.shares["val"]}
    folds = tuple(make_folds(items, data_of_all, request.count, request.repeats, config.seed, shares))
    notes += _class_notes(items, classes)
    notes += _weight_notes(project, recipe_of(model))
    if model.manifest.get("pseudo"):
        notes.append(
            "pseudo-labels are in no fold's training: the model that gave them was trained on groups of every fold"
        )
    rows = sorted((item.id, item.label.digest, group_of(item)) for item in items)
    key_parts = [
        rows,
        per_image.row_version(classes),
        config.seed,
        shares,
        pretrained.mark_of(recipe_of(model).model),
    ]
    name = (
        f"folds-{request.count}{'-test' if request.with_test else ''}-{key_of([key_parts, training.STEP, STEP])[:16]}"
    )
    folder = per_image.model_folder(project, model.key) / name
    return CrossValidationTask(project, model, request, classes, tuple(items), folds, folder, tuple(notes))


def _weight_notes(project: Project, recipe: Recipe) -> Iterator[str]:
    """Yield a note where the first weights are those of a model of this project, which was trained on these groups."""
    weights = recipe.model.weights
    if weights in ("none", "hub", PACKAGE):
        return
    mark = pretrained.mark_of(recipe.model)
    for model in store.all_models(project):
        if (model.folder / store.WEIGHTS).is_file() and sha256_of(model.folder / store.WEIGHTS) == mark:
            yield (
                f"every fold starts from the weights of model {model.key}, which was trained on images of every "
                "fold: these metrics are too good. Train from weights that are not of this project"
            )


def group_of(item: Item) -> str:
    return item.group or item.id


def _check_targets(targets: Mapping[str, float], classes: Sequence[str]) -> None:
    for name, recall in targets.items():
        if name not in classes:
            raise unknown("class", name, classes)
        if not 0 < recall <= 1:
            raise CurateError(f"target recall {recall:g} of {name} is not allowed; allowed: above 0, at most 1")


def _labelled(
    index: Index, model: StoredModel, classes: Sequence[str], request: CrossValidateRequest, notes: list[str]
) -> list[Item]:
    """Return the real labelled images; synthetic ones are made from groups of every fold, so no fold trains on them."""
    wanted = (*SPLITS, "test") if request.with_test else SPLITS
    members = index.members()
    rows = {id: row for id, *row in index.rows("status", "split", "source", "missing")}
    every = [id for id, row in rows.items() if row[0] == "labelled" and row[1] in wanted and not row[3]]
    ids = [id for id in every if rows[id][2] != "synthetic"]
    if not ids:
        raise CurateError(f"no labelled image in {' or '.join(wanted)}. Label some: curate select, or index a source")
    items = without_retired(sorted(index.items(ids), key=lambda item: item.id), index.project, notes)
    if model.manifest["task"] == "segmentation":
        items = evaluating.with_locations(items, classes, " and ".join(wanted), notes)
    if len(ids) < len(every):
        notes.append(
            f"{len(every) - len(ids)} synthetic images are in no fold: they are made from images of other folds"
        )
    chosen = sum(members[item.id].source == "production" and not members[item.id].audit for item in items)
    if chosen:
        notes.append(
            f"{chosen} of {len(items)} images were selected for labelling, not drawn at random: defects are more "
            "frequent among them than in production, so precision is too good"
        )
    return items


def _training_data(items: Sequence[Item], model: StoredModel, project: Project) -> TrainingData:
    """Return all images as training data, before val is taken from it."""
    task, names = model.manifest["task"], project.active_classes
    shown = [item.label.present.intersection(names) for item in items]
    single = task == "classification" and all(len(names) <= 1 for names in shown)
    data = TrainingData(task, tuple(names), tuple(items), (), single, not all(shown))
    return data.as_wanted(recipe_of(model))


def make_folds(
    items: Sequence[Item], data_of_all: TrainingData, count: int, repeats: int, seed: int, shares: Mapping[str, float]
) -> Iterator[Fold]:
    """Yield every repeat's folds, stratified by class; more repeats do not change the earlier ones."""
    groups = _group_counts(items)
    if len(groups) < count:
        raise CurateError(f"{count} folds need at least {count} labelled groups, there are {len(groups)}: --folds 2")
    drawn = splits.folds(groups, count, repeats, seed)
    for repeat in range(repeats):
        for number in range(count):
            held = {name for name, folds in drawn.items() if folds[repeat] == number}
            rest = [item for item in items if group_of(item) not in held]
            data = _train_and_val(rest, data_of_all, seeded_number(seed, "val", repeat, number), shares)
            yield Fold(repeat, number, data, tuple(item for item in items if group_of(item) in held))


def _group_counts(items: Iterable[Item]) -> list[splits.Group]:
    return splits.groups_of(Member(group_of(item), item.source, "labelled", item.label.present) for item in items)


def _train_and_val(
    rest: Sequence[Item], data_of_all: TrainingData, seed: int, shares: Mapping[str, float]
) -> TrainingData:
    """Split a fold's images by group into train and val, in the project's proportion; classes are those of train."""
    total = sum(shares.values())
    where = splits.assign(_group_counts(rest), {split: share / total for split, share in shares.items()}, seed)
    placed = [replace(item, split=where[group_of(item)]) for item in rest]
    train, val = (tuple(item for item in placed if item.split == split) for split in SPLITS)
    classes = tuple(name for name in data_of_all.classes if any(name in item.label.present for item in train))
    clean = any(not item.label.present.intersection(classes) for item in train)
    data = replace(data_of_all, classes=classes, train=train, val=val, clean=clean)
    if len(data.outputs) < 1 + data.single:
        raise CurateError(
            f"the {len(train)} training images of a fold show only {', '.join(classes) or 'clean images'}. "
            "Label more, or use another number of folds: --folds"
        )
    return data


def _class_notes(items: Sequence[Item], classes: Sequence[str]) -> Iterator[str]:
    """Yield notes on classes that the folds cannot measure."""
    for name in classes:
        groups = {group_of(item) for item in items if name in item.label.present}
        if not groups:
            yield f"no labelled image shows {name}: it cannot be measured"
        elif len(groups) == 1:
            yield f"class {name} is in one group only: the fold that holds it out cannot learn it, so it is missed"


# --- one fold--------------------------------------------------------------------------------------------------------


def _run_fold(task: CrossValidationTask, fold: Fold, progress: Progress) -> None:
    """Train without the fold's groups and predict them, unless that is done; then remove the weights."""
    if task.fold_file(fold).is_file():
        return
    scratch = task.folder / f".{fold.name}.training"
    evaluator, fitted = _train(task, fold, scratch, progress)
    failed: dict[str, str] = {}

    def advance(_: str, done: int, __: int) -> None:
        progress("evaluate", done, task.images_to_evaluate)

    failed |= per_image.evaluate_missing(evaluator, task.val_table(fold), fold.data.val, advance)
    if task.recipe.predict.fit:
        fitted_decisions = decide.fit(_val_images(task, fold, fold.data.single), fold.data.classes, {})
        predictor = replace(evaluator.predictor, decisions=decisions.from_manifest(fitted_decisions))
        evaluator = replace(evaluator, predictor=predictor)
    failed |= per_image.evaluate_missing(evaluator, task.predictions_table(fold.repeat), fold.held, advance)
    record = {"train": len(fold.data.train), "val": len(fold.data.val), "held": len(fold.held), "failed": failed}
    record |= {"classes": fold.data.classes, "epochs": len(fitted.history), "best": fitted.best}
    files.write_json(task.fold_file(fold), record | {"skipped": fitted.skipped})
    files.remove(scratch)


def _train(
    task: CrossValidationTask, fold: Fold, scratch: Path, progress: Progress
) -> tuple[ModelEvaluator, loop.FitResult]:
    """Train the model's recipe on all images but the fold's; each repeat has its own seed."""
    from curate.devices import device_of

    recipe, data = task.recipe, fold.data
    recipe = recipe.model_copy(update={"seed": recipe.seed + fold.repeat})
    device, epochs = device_of(task.request.device), sum(part.epochs for part in recipe.parts)
    scratch.mkdir(parents=True, exist_ok=True)
    model, start = training.network_of(recipe, data)
    plan = training.plan_of(task.project, recipe, data)
    setting = loop.FitSettings(recipe, data, plan, start.frozen, scratch, device, training.workers_of(device))
    name = f"fold {fold.number + 1} of {task.request.count}, repeat {fold.repeat + 1}"
    fitted = loop.fit(model, setting, lambda _, done, total: progress(name, done, total * epochs))
    checkpoint.load_into(model, scratch / loop.BEST)
    predictor = Predictor(f"fold-{fold.name}", data.classes, recipe, data.single, model.eval(), device)
    return ModelEvaluator(predictor, task.classes, task.project.config.limits.max_pixels), fitted


# --- metrics --------------------------------------------------------------------------------------------------------


def _result(task: CrossValidationTask) -> dict[str, Any]:
    done = [files.read_json(task.fold_file(fold)) for fold in task.folds]
    failed = {id: why for record in done for id, why in record["failed"].items()}
    good = [item for item in task.items if item.id not in failed]
    if not good:
        raise CurateError(f"no image could be read; the first: {next(iter(failed.values()))}")
    single = task.folds[0].data.single
    evaluated = [
        per_image.evaluated_images(task.predictions_table(row), good, task.classes, single)
        for row in range(task.request.repeats)
    ]
    summary = summarise(evaluated)
    summary["operating"] = {
        name: _operating(task, evaluated, name, target) for name, target in task.request.targets.items()
    }
    return {"manifest": _manifest(task, failed), "figures": summary}


def _manifest(task: CrossValidationTask, failed: Mapping[str, str]) -> dict[str, Any]:
    notes = list(task.notes)
    if failed:
        notes.append(f"{len(failed)} images could not be read; the first: {next(iter(failed.values()))}")
    return {
        "model": task.model.key,
        "task": task.folds[0].data.task,
        "splits": list(task.splits),
        "classes": list(task.classes),
        "folds": task.request.count,
        "repeats": task.request.repeats,
        "targets": dict(task.request.targets),
        "dealt": [sorted({group_of(item) for item in fold.held}) for fold in task.folds],
        "draws": intervals.DRAWS,
        "confidence": intervals.CONFIDENCE,
        "failed": dict(failed),
        "notes": notes,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def summarise(evaluated: Sequence[EvaluatedImages]) -> dict[str, Any]:
    """Return all metrics of the same images, averaged over repeats; `by_repeat` shows how far chance moves each."""
    first, draws = evaluated[0], evaluated[0].draws()
    overall, by_class = zip(*(metrics.compute(repeat, draws) for repeat in evaluated), strict=True)
    return {
        "images": len(first.ids),
        "groups": int(draws.weights.shape[1]),
        "support": metrics.support(first, draws, first.classes),
        "overall": _estimates(overall),
        "classes": {name: _estimates([repeat[name] for repeat in by_class]) for name in first.classes},
        "baselines": evaluating.baselines(first, draws),
    }


def _estimates(repeats: Sequence[MetricsByName]) -> dict[str, Any]:
    by_name = {name: [repeat[name] for repeat in repeats] for name in repeats[0]}
    return {
        name: intervals.estimate(mean_over_repeats(values)).to_json() | {"by_repeat": _point_values(values)}
        for name, values in by_name.items()
    }


def _point_values(repeats: Iterable[BootstrapMetric]) -> list[float | None]:
    return [round(value, 6) if math.isfinite(value := float(repeat.values[0])) else None for repeat in repeats]


def mean_over_repeats(repeats: Sequence[BootstrapMetric]) -> BootstrapMetric:
    """Return the mean over repeats in each draw; `n` and `groups` do not add up, for the images are the same."""
    known = [repeat for repeat in repeats if np.isfinite(repeat.values[0])] or list(repeats[:1])
    parts = tuple(mean_over_repeats(part) for part in zip(*(repeat.parts for repeat in known), strict=True))
    values = intervals.mean(known).values
    return BootstrapMetric(values, min(repeat.n for repeat in known), min(repeat.groups for repeat in known), parts)


def _operating(
    task: CrossValidationTask, evaluated: Sequence[EvaluatedImages], name: str, target: float
) -> dict[str, Any]:
    """Return the metrics on the held-out images with each fold's threshold fitted on its own val."""
    place, draws = task.classes.index(name), evaluated[0].draws()
    fitted = [_decide_by_fold(task, row, repeat, place, target) for row, repeat in enumerate(evaluated)]
    after = [
        metrics.decision_metrics(repeat.present[:, place], yes, draws)
        for repeat, (yes, _) in zip(evaluated, fitted, strict=True)
    ]
    before = [
        metrics.decision_metrics(repeat.present[:, place], repeat.decided[:, place], draws) for repeat in evaluated
    ]
    points = [point for _, some in fitted for point in some]
    return {
        "target": target,
        "thresholds": [point.threshold for point in points],
        "min_areas": [point.min_area for point in points],
        "reached": sum(point.reached for point in points),
        "unfitted": len(task.folds) - len(points),
        "held": _estimates(after),
        "before": _estimates(before),
    }


def _decide_by_fold(
    task: CrossValidationTask, repeat: int, evaluated: EvaluatedImages, place: int, target: float
) -> tuple[NDArray[np.bool_], list[metrics.OperatingPoint]]:
    """Decide a repeat's images by each fold's threshold, or by the recipe's where the fold's val lacks the class."""
    decided, points = evaluated.decided[:, place].copy(), []
    for fold in (fold for fold in task.folds if fold.repeat == repeat):
        val = _val_images(task, fold, evaluated.single)
        if val.present[:, place].any():
            points.append(metrics.fit_operating_point(val, place, target))
            held = {item.id for item in fold.held}
            rows = np.array([row for row, id in enumerate(evaluated.ids) if id in held], np.int64)
            decided[rows] = points[-1].decide(evaluated.take(rows), place)
    return decided, points


def _val_images(task: CrossValidationTask, fold: Fold, single: bool) -> EvaluatedImages:
    table = task.val_table(fold)
    known = per_image.up_to_date(table, fold.data.val)
    return per_image.evaluated_images(table, [item for item in fold.data.val if item.id in known], task.classes, single)
