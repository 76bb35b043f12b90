"""`curate evaluate --folds`: what a model's recipe is worth where one small split would say little.

The labelled groups are dealt into folds, anew for each repeat. For every fold the recipe is trained on the others (a
part of their groups tells when to stop) and asked about this one: each image is judged once a repeat, by a network that
has seen nothing of its group. The folds' networks are no models of the project; what they said is kept, in
`work/evaluations/<model>/folds-<count>-<key>/`, and they themselves are removed. A killed run goes on where it was.
"""

from __future__ import annotations

import json
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
from curate.project import Project
from curate.tables import Table
from curate.units import duration
from train import checkpoint, store
from train.data.dataset import TrainingData
from train.evaluate import intervals, per_image
from train.evaluate import metrics as figures
from train.evaluate import run as evaluating
from train.evaluate.intervals import BootstrapMetric
from train.evaluate.metrics import ByName, EvaluatedImages
from train.evaluate.per_image import ModelEvaluator
from train.fit import loop, pretrained
from train.fit import run as training
from train.predict.predictor import Predictor, recipe_of
from train.recipe import Recipe
from train.store import StoredModel

COUNT, REPEATS = 5, 3
JUDGED = ("train", "val")  # test stays untouched unless it is asked for
STEP = 1  # raise it when the same labels and recipe give other folds or figures than before
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CrossValidateRequest:
    """What the user asks for. `targets`: the recall that each class should have, by fitting its threshold on val."""

    model: str | None = None
    count: int = COUNT
    repeats: int = REPEATS
    with_test: bool = False
    targets: Mapping[str, float] = field(default_factory=dict)
    device: str = "auto"


@dataclass(frozen=True)
class Fold:
    """One training. No group of `held` has an image in `data`; `repeat` and `number` count from 0."""

    repeat: int
    number: int
    data: TrainingData
    held: tuple[Item, ...]

    @property
    def name(self) -> str:
        return f"{self.repeat + 1}-{self.number + 1}"


@dataclass(frozen=True)
class CrossValidationTask:
    """All that is needed to train and judge; `items` are all that is judged."""

    project: Project
    model: StoredModel
    wish: CrossValidateRequest
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    folds: tuple[Fold, ...]
    folder: Path
    notes: tuple[str, ...]

    @property
    def segments(self) -> bool:
        return self.folds[0].data.task == "segmentation"

    @property
    def parts(self) -> tuple[str, ...]:
        return (*JUDGED, "test") if self.wish.with_test else JUDGED

    @property
    def result(self) -> Path:
        key = key_of([self.wish.repeats, dict(self.wish.targets), evaluating.STEP, STEP])
        return self.folder / f"result-{key[:16]}.json"

    @property
    def todo(self) -> list[Fold]:
        return [one for one in self.folds if not self.marker(one).is_file()]

    @property
    def asked(self) -> int:
        """Images, each as often as a network is asked about it."""
        return sum(len(one.held) + len(one.data.val) for one in self.todo)

    @cached_property
    def recipe(self) -> Recipe:
        return recipe_of(self.model)

    def marker(self, fold: Fold) -> Path:
        return self.folder / f"fold-{fold.name}.json"

    def said(self, repeat: int) -> Table:
        """Of every image, by the network that did not know it."""
        return per_image.table_at(self.folder / f"judged-{repeat + 1}.lance", self.segments, self.classes)

    def said_of_val(self, fold: Fold) -> Table:
        return per_image.table_at(self.folder / f"val-{fold.name}.lance", self.segments, self.classes)


@dataclass(frozen=True)
class Validation:
    """A finished one; `fresh` is false where it was there already."""

    folder: Path
    manifest: dict[str, Any]
    figures: dict[str, Any]
    fresh: bool

    def to_json(self) -> dict[str, Any]:
        return self.manifest | {"folder": str(self.folder), "fresh": self.fresh} | self.figures


def cost(task: CrossValidationTask) -> str:
    """What a user should know before it begins."""
    made = task.model.manifest
    each = f"{duration(made['seconds'])} on {made['device']}"
    return f"{len(task.todo)} of {len(task.folds)} trainings to do, each about as long as the model's own ({each})"


def run(task: CrossValidationTask, progress: Progress = lambda stage, done, total: None) -> Validation:
    """Train and judge fold after fold; what is done stays done. The index stays free meanwhile."""
    with files.writer_lock(task.project.work / "evaluations", "curate evaluate --folds"):
        fresh = not task.result.is_file()
        if fresh:
            for fold in task.folds:
                _done(task, fold, progress)
                progress("folds", 1, len(task.folds))
            files.write_json(task.result, _result(task))
    found: dict[str, Any] = json.loads(task.result.read_text(encoding="utf-8"))
    return Validation(task.folder, found["manifest"], found["figures"], fresh)


# --- which images, and which folds ----------------------------------------------------------------------------------


def prepared(project: Project, wish: CrossValidateRequest) -> CrossValidationTask:
    """The folds; raises CurateError where there are too few groups to deal, or nothing to learn from some of them."""
    index, model = Index(project), store.find(project, wish.model)
    classes, notes = evaluating.classes_of(project, model), list[str]()
    _check_targets(wish.targets, classes)
    items = _labelled(index, model, classes, wish, notes)
    learnt = _learnt(items, model, project)
    config = project.config.splits
    shares = {"train": config.shares["train"], "val": config.shares["val"]}
    folds = tuple(dealt(items, learnt, wish.count, wish.repeats, config.seed, shares))
    notes += _alone(items, classes)
    notes += _taught_before(project, recipe_of(model))
    if model.manifest.get("pseudo"):
        notes.append("pseudo-labels teach no fold: the model that gave them has seen groups of every fold")
    rows = sorted((one.id, one.label.digest, group_of(one)) for one in items)
    about = [rows, per_image.mark(classes), config.seed, shares, pretrained.mark_of(recipe_of(model).model)]
    name = f"folds-{wish.count}{'-test' if wish.with_test else ''}-{key_of([about, training.STEP, STEP])[:16]}"
    folder = per_image.home(project, model.key) / name
    return CrossValidationTask(project, model, wish, classes, tuple(items), folds, folder, tuple(notes))


def _taught_before(project: Project, made: Recipe) -> Iterator[str]:
    """Weights of a model of this project know the groups of every fold."""
    weights = made.model.weights
    if weights in ("none", "hub"):
        return
    mark = pretrained.mark_of(made.model)
    for one in store.all_models(project):
        if (one.folder / store.WEIGHTS).is_file() and sha256_of(one.folder / store.WEIGHTS) == mark:
            yield (
                f"every fold starts from the weights of model {one.key}, which has learnt from images of every fold: "
                "these figures flatter. Train from weights that are not of this project"
            )


def group_of(item: Item) -> str:
    return item.group or item.id


def _check_targets(targets: Mapping[str, float], classes: Sequence[str]) -> None:
    for name, recall in targets.items():
        if name not in classes:
            raise unknown("class", name, classes)
        if not 0 < recall <= 1:
            raise CurateError(f"target recall {recall:g} of {name} must lie above 0 and at most at 1")


def _labelled(
    index: Index, model: StoredModel, classes: Sequence[str], wish: CrossValidateRequest, notes: list[str]
) -> list[Item]:
    """The real labelled images. Synthetic ones do not even teach: what made them has seen groups of every fold."""
    wanted = (*JUDGED, "test") if wish.with_test else JUDGED
    members = index.members()
    rows = {id: row for id, *row in index.rows("status", "split", "source", "missing")}
    every = [id for id, row in rows.items() if row[0] == "labelled" and row[1] in wanted and not row[3]]
    ids = [id for id in every if rows[id][2] != "synthetic"]
    if not ids:
        raise CurateError(f"no labelled image in {' or '.join(wanted)}. Label some: curate select, or index a source")
    items = sorted(index.items(ids), key=lambda one: one.id)
    if model.manifest["task"] == "segmentation":
        items = evaluating.placed(items, classes, " and ".join(wanted), notes)
    if len(ids) < len(every):
        notes.append(f"{len(every) - len(ids)} synthetic images teach no fold: they are made of images that folds hold")
    chosen = sum(members[one.id].source == "production" and not members[one.id].audit for one in items)
    if chosen:
        notes.append(
            f"{chosen} of {len(items)} images were chosen to be labelled, not drawn by chance: defects are more "
            "frequent among them than in production, so precision flatters"
        )
    return items


def _learnt(items: Sequence[Item], model: StoredModel, project: Project) -> TrainingData:
    """All images as something to learn from."""
    task, names = model.manifest["task"], project.active_classes
    shown = [one.label.present.intersection(names) for one in items]
    single = task == "classification" and all(len(one) <= 1 for one in shown)
    return TrainingData(task, tuple(names), tuple(items), (), single, not all(shown))


def dealt(
    items: Sequence[Item], learnt: TrainingData, count: int, repeats: int, seed: int, shares: Mapping[str, float]
) -> Iterator[Fold]:
    """Every repeat's folds, stratified by class; a later repeat changes nothing of those before."""
    groups = _counted(items)
    if len(groups) < count:
        raise CurateError(f"{count} folds need at least {count} labelled groups, there are {len(groups)}: --folds 2")
    drawn = splits.folds(groups, count, repeats, seed)
    for repeat in range(repeats):
        for number in range(count):
            held = {name for name, folds in drawn.items() if folds[repeat] == number}
            rest = [one for one in items if group_of(one) not in held]
            data = _parted(rest, learnt, seeded_number(seed, "val", repeat, number), shares)
            yield Fold(repeat, number, data, tuple(one for one in items if group_of(one) in held))


def _counted(items: Iterable[Item]) -> list[splits.Group]:
    return splits.groups_of(Member(group_of(one), one.source, "labelled", one.label.present) for one in items)


def _parted(rest: Sequence[Item], learnt: TrainingData, seed: int, shares: Mapping[str, float]) -> TrainingData:
    """Train and val of a fold, by group, in the proportion that the project has; classes are those that train shows."""
    total = sum(shares.values())
    where = splits.assign(_counted(rest), {split: share / total for split, share in shares.items()}, seed)
    placed = [replace(one, split=where[group_of(one)]) for one in rest]
    train, val = (tuple(one for one in placed if one.split == split) for split in JUDGED)
    classes = tuple(name for name in learnt.classes if any(name in one.label.present for one in train))
    clean = any(not one.label.present.intersection(classes) for one in train)
    data = replace(learnt, classes=classes, train=train, val=val, clean=clean)
    if len(data.outputs) < 1 + data.single:
        raise CurateError(
            f"a fold of {len(train)} images to learn from shows {', '.join(classes) or 'no defect'} alone: "
            "label more, or deal other folds (--folds)"
        )
    return data


def _alone(items: Sequence[Item], classes: Sequence[str]) -> Iterator[str]:
    """Classes that folds cannot judge."""
    for name in classes:
        groups = {group_of(one) for one in items if name in one.label.present}
        if not groups:
            yield f"no labelled image shows {name}: nothing can be said of it"
        elif len(groups) == 1:
            yield f"class {name} comes from one group alone: the fold that holds it cannot know it, so it is missed"


# --- a fold ---------------------------------------------------------------------------------------------------------


def _done(task: CrossValidationTask, fold: Fold, progress: Progress) -> None:
    """Train without the fold and judge it, unless that is done; its weights go when its answers are kept."""
    if task.marker(fold).is_file():
        return
    scratch = task.folder / f".{fold.name}.training"
    judge, fitted = _trained(task, fold, scratch, progress)
    failed: dict[str, str] = {}
    for table, items in ((task.said(fold.repeat), fold.held), (task.said_of_val(fold), fold.data.val)):
        failed |= per_image.ask(judge, table, items, lambda _, done, total: progress("judge", done, task.asked))
    about = {"train": len(fold.data.train), "val": len(fold.data.val), "held": len(fold.held), "failed": failed}
    about |= {"classes": fold.data.classes, "epochs": len(fitted.history), "best": fitted.best}
    files.write_json(task.marker(fold), about | {"skipped": fitted.skipped})
    files.remove(scratch)


def _trained(
    task: CrossValidationTask, fold: Fold, scratch: Path, progress: Progress
) -> tuple[ModelEvaluator, loop.FitResult]:
    """The model's recipe on all but the fold; each repeat has a seed of its own."""
    from curate.devices import device_of

    made, data = task.recipe, fold.data
    made = made.model_copy(update={"seed": made.seed + fold.repeat})
    device, epochs = device_of(task.wish.device), sum(one.epochs for one in made.parts)
    scratch.mkdir(parents=True, exist_ok=True)
    model, start = training.network_of(made, data)
    plan = training.plan_of(task.project, made, data)
    setting = loop.FitSettings(made, data, plan, start.frozen, scratch, device, training.workers_of(device))
    name = f"fold {fold.number + 1} of {task.wish.count}, repeat {fold.repeat + 1}"
    fitted = loop.fit(model, setting, lambda _, done, total: progress(name, done, total * epochs))
    checkpoint.load_into(model, scratch / loop.BEST)
    about = Predictor(f"fold-{fold.name}", data.classes, made, data.single, model.eval(), device)
    return ModelEvaluator(about, task.classes, task.project.config.limits.max_pixels), fitted


# --- figures --------------------------------------------------------------------------------------------------------


def _result(task: CrossValidationTask) -> dict[str, Any]:
    done = [json.loads(task.marker(one).read_text(encoding="utf-8")) for one in task.folds]
    failed = {id: why for one in done for id, why in one["failed"].items()}
    good = [one for one in task.items if one.id not in failed]
    if not good:
        raise CurateError(f"no image could be read; the first: {next(iter(failed.values()))}")
    single = task.folds[0].data.single
    judged = [per_image.gathered(task.said(row), good, task.classes, single) for row in range(task.wish.repeats)]
    found = described(judged)
    found["operating"] = {name: _operating(task, judged, name, target) for name, target in task.wish.targets.items()}
    return {"manifest": _manifest(task, failed), "figures": found}


def _manifest(task: CrossValidationTask, failed: Mapping[str, str]) -> dict[str, Any]:
    notes = list(task.notes)
    if failed:
        notes.append(f"{len(failed)} images could not be read; the first: {next(iter(failed.values()))}")
    return {
        "model": task.model.key,
        "task": task.folds[0].data.task,
        "splits": list(task.parts),
        "classes": list(task.classes),
        "folds": task.wish.count,
        "repeats": task.wish.repeats,
        "targets": dict(task.wish.targets),
        "dealt": [sorted({group_of(one) for one in fold.held}) for fold in task.folds],
        "draws": intervals.DRAWS,
        "confidence": intervals.CONFIDENCE,
        "failed": dict(failed),
        "notes": notes,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def described(judged: Sequence[EvaluatedImages]) -> dict[str, Any]:
    """All figures of the same images, judged several times; `by_repeat` shows how far chance moves each."""
    first, draws = judged[0], judged[0].draws()
    overall, by_class = zip(*(figures.measures(one, draws) for one in judged), strict=True)
    return {
        "images": len(first.ids),
        "groups": int(draws.weights.shape[1]),
        "support": figures.support(first, draws, first.classes),
        "overall": _figures(overall),
        "classes": {name: _figures([one[name] for one in by_class]) for name in first.classes},
        "baselines": evaluating.baselines(first, draws),
    }


def _figures(repeats: Sequence[ByName]) -> dict[str, Any]:
    found = {name: [one[name] for one in repeats] for name in repeats[0]}
    return {
        name: intervals.figure(averaged(one)).to_json() | {"by_repeat": _values(one)} for name, one in found.items()
    }


def _values(found: Iterable[BootstrapMetric]) -> list[float | None]:
    return [round(value, 6) if math.isfinite(value := float(one.values[0])) else None for one in found]


def averaged(repeats: Sequence[BootstrapMetric]) -> BootstrapMetric:
    """The mean over repeats, draw by draw. All of them are about the same images, so `n` and `groups` do not add up."""
    known = [one for one in repeats if np.isfinite(one.values[0])] or list(repeats[:1])
    parts = tuple(averaged(part) for part in zip(*(one.parts for one in known), strict=True))
    values = intervals.mean(known).values
    return BootstrapMetric(values, min(one.n for one in known), min(one.groups for one in known), parts)


def _operating(
    task: CrossValidationTask, judged: Sequence[EvaluatedImages], name: str, target: float
) -> dict[str, Any]:
    """Each fold's threshold is fitted on its own val: what holds on images that nobody has fitted anything on."""
    place, draws = task.classes.index(name), judged[0].draws()
    fitted = [_fitted(task, row, one, place, target) for row, one in enumerate(judged)]
    after = [figures.decision(one.present[:, place], yes, draws) for one, (yes, _) in zip(judged, fitted, strict=True)]
    before = [figures.decision(one.present[:, place], one.decided[:, place], draws) for one in judged]
    points = [point for _, some in fitted for point in some]
    return {
        "target": target,
        "thresholds": [point.threshold for point in points],
        "min_areas": [point.min_area for point in points],
        "reached": sum(point.reached for point in points),
        "unfitted": len(task.folds) - len(points),
        "held": _figures(after),
        "before": _figures(before),
    }


def _fitted(
    task: CrossValidationTask, repeat: int, judged: EvaluatedImages, place: int, target: float
) -> tuple[NDArray[np.bool_], list[figures.OperatingPoint]]:
    """What a repeat's folds decide by their own thresholds, or by the recipe's where val does not show the class."""
    decided, points = judged.decided[:, place].copy(), []
    for fold in (one for one in task.folds if one.repeat == repeat):
        val = _val(task, fold, judged.single)
        if val.present[:, place].any():
            points.append(figures.fitted_point(val, place, target))
            held = {one.id for one in fold.held}
            rows = np.array([row for row, id in enumerate(judged.ids) if id in held], np.int64)
            decided[rows] = points[-1].decided(judged.taken(rows), place)
    return decided, points


def _val(task: CrossValidationTask, fold: Fold, single: bool) -> EvaluatedImages:
    table = task.said_of_val(fold)
    known = per_image.known(table, fold.data.val)
    return per_image.gathered(table, [one for one in fold.data.val if one.id in known], task.classes, single)
