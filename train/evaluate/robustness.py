"""`curate robustness`: how much a model loses under other light, a blurred lens or haze, with intervals.

Every image of the split is predicted unchanged and under five kinds of change with five severities each; the results
are in `work/robustness/<model>/seen-<key>.lance`, so that a run that was killed continues. An image changes in the same
way each time. The harder test is `train/evaluate/leave_out.py`: an exposure that the model was not trained on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.data import Item
from curate.errors import CurateError, LabelProblem
from curate.hashing import key_of
from curate.index.dataset import Index, chunks
from curate.masks.shapes import mask_of
from curate.project import Project
from curate.tables import Table
from train.data.augment import Rng, add_glare, add_haze, to_uint8
from train.data.dataset import masks_of
from train.data.pixels import Pixels, read, with_channels
from train.evaluate import intervals, per_image
from train.evaluate import run as evaluating
from train.evaluate.intervals import BootstrapDraws, BootstrapMetric
from train.evaluate.metrics import (
    EvaluatedImages,
    MetricsByName,
    decision_metrics,
    image_dice,
    overall_decision_metrics,
)
from train.evaluate.per_image import ModelEvaluator
from train.evaluate.run import EvaluateRequest, EvaluationPlan
from train.predict.predictor import components, load_predictor

LEVELS: dict[str, tuple[float, ...]] = {
    "exposure": (0.3, 0.6, 1.0, 1.5, 2.0),  # stops, more or less
    "glare": (40, 80, 120, 160, 200),  # grey levels of the reflection
    "blur": (0.7, 1.2, 2.0, 3.0, 4.5),  # pixels, Gaussian
    "noise": (4, 8, 14, 22, 32),  # grey levels, Gaussian
    "haze": (0.15, 0.3, 0.45, 0.6, 0.75),  # share of the contrast that is lost where the haze is thickest
}
UNCHANGED = ("clean", 0)
CONDITIONS = (
    UNCHANGED,
    *((name, severity) for name, levels in LEVELS.items() for severity in range(1, len(levels) + 1)),
)
LIMITS = {"glare": 0.03}  # the most score that a change of any severity may cost
STEP = 2  # raise it when the same model and labels give other metrics than before
CHUNK = 16  # images written at once
MANIFEST, METRICS_FILE = "manifest.json", "figures.json"
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


# --- changes to an image --------------------------------------------------------------------------------------------


def apply_change(image: Pixels, name: str, severity: int, id: str) -> Pixels:
    """Return the image (H, W, C) under a change, whose place and direction depend on the image's id alone."""
    if (name, severity) == UNCHANGED:
        return image
    seed = hashlib.sha256(f"{name} {id}".encode()).digest()
    return CHANGES[name](image, LEVELS[name][severity - 1], np.random.default_rng(list(seed)))


def _change_exposure(image: Pixels, stops: float, rng: Rng) -> Pixels:
    return to_uint8(image * 2.0 ** (stops if rng.random() < 0.5 else -stops))


def _blur(image: Pixels, sigma: float, rng: Rng) -> Pixels:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)).reshape(image.shape)


def _add_noise(image: Pixels, sigma: float, rng: Rng) -> Pixels:
    return to_uint8(image + rng.normal(0, sigma, image.shape[:2])[..., None])


CHANGES: dict[str, Callable[[Pixels, float, Rng], Pixels]] = {
    "exposure": _change_exposure,
    "glare": add_glare,
    "blur": _blur,
    "noise": _add_noise,
    "haze": add_haze,
}


# --- predictions ----------------------------------------------------------------------------------------------------


def evaluate_image(evaluator: ModelEvaluator, item: Item, image: Pixels) -> tuple[Bools, Counts]:
    """Return the classes that the model decides on (C,), and the pixels found, false and missed (C, 3)."""
    predictor, classes = evaluator.predictor, evaluator.classes
    if not evaluator.segments:
        named = {name for name, _ in predictor.predict_image(image).classes}
        return np.array([name in named for name in classes], bool), np.zeros((len(classes), 3), np.int64)
    p = evaluator.in_class_order(predictor.probabilities(image))
    truth, predicted = masks_of(item, classes), np.zeros((len(classes), item.height, item.width), np.uint8)
    for row, name in enumerate(classes):
        for defect, _ in components(name, p[row], *predictor.decision(name)):
            predicted[row] |= mask_of(defect, item.width, item.height)
    both = zip(truth.astype(bool), predicted.astype(bool), strict=True)
    counts = [[(t & m).sum(), (~t & m).sum(), (t & ~m).sum()] for t, m in both]
    return np.asarray(predicted.any(axis=(1, 2)), bool), np.array(counts, np.int64)


def read_pixels(evaluator: ModelEvaluator, item: Item) -> Pixels:
    pixels = read(item.id, item.path, evaluator.max_pixels)
    if pixels.shape[:2] != (item.height, item.width):
        raise LabelProblem(f"is {pixels.shape[1]}x{pixels.shape[0]}, in the index {item.width}x{item.height}")
    return with_channels(pixels, evaluator.predictor.recipe.input.channels)


def _row(evaluator: ModelEvaluator, item: Item) -> dict[str, Any]:
    """Return the table row of an image under all conditions."""
    image = read_pixels(evaluator, item)
    answers = [evaluate_image(evaluator, item, apply_change(image, *condition, item.id)) for condition in CONDITIONS]
    decided, counts = (np.ravel([answer[part] for answer in answers]) for part in (0, 1))
    return {"id": item.id, "label": item.label.digest, "decided": decided.astype(np.uint8), "counts": counts}


def _rows(evaluator: ModelEvaluator, items: Sequence[Item], failed: dict[str, str]) -> Iterator[dict[str, Any] | None]:
    for item in items:
        try:
            yield _row(evaluator, item)
        except LabelProblem as problem:
            failed[item.id] = f"{item.path}: {problem}"
            yield None


def open_table(plan: EvaluationPlan) -> Table:
    """Open the table of this model's results on changed images; create it where it does not exist."""
    count = len(CONDITIONS) * len(plan.classes)
    columns = {"label": "string", "decided": f"uint8[{count}]", "counts": f"int64[{3 * count}]"}
    key = key_of([plan.classes, LEVELS, STEP, *plan.model.versions])
    path = model_folder(plan.project, plan.model.key) / f"seen-{key}.lance"
    return Table(path) if Table.exists(path) else Table.create(path, columns)


def evaluate_missing(
    evaluator: ModelEvaluator, table: Table, items: Sequence[Item], progress: Progress
) -> dict[str, str]:
    """Evaluate the images that the table lacks; returns the images that cannot be read, with the reason."""
    done = per_image.up_to_date(table, items)
    todo, failed = [item for item in items if item.id not in done], dict[str, str]()
    for part in chunks(_rows(evaluator, todo, failed), CHUNK):
        if rows := [row for row in part if row]:
            columns = {name: [row[name] for row in rows] for name in table.columns}
            table.append({name: v if isinstance(v[0], str) else np.stack(v) for name, v in columns.items()})
        progress(f"evaluate under {len(CONDITIONS)} conditions", len(part), len(todo))
    table.finish(newest=False)
    return failed


# --- metrics --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConditionResults:
    """Results on n images under every condition: `decided` (conditions, n, C), `counts` (conditions, n, C, 3)."""

    classes: tuple[str, ...]
    groups: tuple[str, ...]
    present: Bools
    decided: Bools
    counts: Counts | None


def condition_results(table: Table, items: Sequence[Item], classes: Sequence[str], segments: bool) -> ConditionResults:
    columns = table.read([item.id for item in items], ["decided", "counts"])
    shape = (len(items), len(CONDITIONS), len(classes))
    decided = columns["decided"].reshape(shape).astype(bool).swapaxes(0, 1)
    counts = columns["counts"].reshape(*shape, 3).astype(np.int64).swapaxes(0, 1)
    present = np.array([[name in item.label.present for name in classes] for item in items], bool)
    groups = tuple(item.group or item.id for item in items)
    return ConditionResults(tuple(classes), groups, present, decided, counts if segments else None)


def condition_metrics(results: ConditionResults, row: int, draws: BootstrapDraws) -> dict[str, MetricsByName]:
    """Return the metrics under one condition, of `all` and of each class. `score`: Dice of segmenters, else F1."""
    decided, truth = results.decided[row], results.present
    by_class = {}
    for place, name in enumerate(results.classes):
        metrics = decision_metrics(truth[:, place], decided[:, place], draws)
        by_class[name] = {"score": metrics["f1"], "recall": metrics["recall"]}
    evaluated = EvaluatedImages(results.classes, results.groups, results.groups, truth, decided.astype(float), decided)
    whole = overall_decision_metrics(evaluated, decided, draws)
    overall = {"score": whole["macro_f1"], "clean_false_alarms": whole["clean_false_alarms"]}
    if results.counts is not None:
        dice = image_dice(results.counts[row])
        overall["score"] = draws.share(np.where(truth, dice, 0.0).sum(1), truth.sum(1))
        for place, name in enumerate(results.classes):
            own = truth[:, place]
            by_class[name]["score"] = draws.share(np.where(own, dice[:, place], 0.0), own)
    overall["recall"] = intervals.mean([metrics["recall"] for metrics in by_class.values()])
    return {"all": overall} | by_class


def summarise(results: ConditionResults) -> dict[str, Any]:
    """Return the metrics of unchanged images, of every change and severity, and of the worst, as JSON values."""
    draws = BootstrapDraws.of(results.groups)
    each = {condition: condition_metrics(results, row, draws) for row, condition in enumerate(CONDITIONS)}
    changes = {name: [each[name, row + 1] for row in range(len(levels))] for name, levels in LEVELS.items()}
    everything = [metrics for rows in changes.values() for metrics in rows]
    names = [condition for condition in CONDITIONS if condition != UNCHANGED]
    worst_of = {
        name: worst_condition(each[UNCHANGED], rows, [(name, row + 1) for row in range(len(rows))])
        for name, rows in changes.items()
    }
    return {
        "score": "F1" if results.counts is None else "Dice",
        "images": len(results.groups),
        "groups": int(draws.weights.shape[1]),
        "clean": _estimates(each[UNCHANGED]),
        "changes": {name: [_estimates(metrics) for metrics in rows] for name, rows in changes.items()},
        "worst_of": worst_of,
        "limits": {name: _limit(worst_of[name]["all"]["score"]["drop"], limit) for name, limit in LIMITS.items()},
        "worst": worst_condition(each[UNCHANGED], everything, names),
    }


def _limit(drop: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """Return whether a change costs no more than is allowed; None where that is not known."""
    passed = None if drop["value"] is None else bool(drop["value"] <= limit + 1e-9)
    return {"limit": limit, "drop": dict(drop), "passed": passed}


def _estimates(by_class: Mapping[str, MetricsByName]) -> dict[str, Any]:
    return {
        who: {name: intervals.estimate(metric).to_json() for name, metric in by_name.items()}
        for who, by_name in by_class.items()
    }


def worst_condition(
    clean: Mapping[str, MetricsByName], rows: Sequence[Mapping[str, MetricsByName]], names: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """Return the lowest of several conditions, chosen in every draw anew: that choice adds to the uncertainty."""
    result: dict[str, Any] = {}
    for who, by_name in clean.items():
        result[who] = {}
        for name in ("score", "recall"):
            table = np.stack([metrics[who][name].values for metrics in rows])
            known = np.asarray(np.isfinite(table).all(axis=0), bool)
            lowest = np.where(known, table.min(axis=0), np.nan)
            before, support = by_name[name], (by_name[name].n, by_name[name].groups)
            entry = {
                "worst": BootstrapMetric(lowest, *support),
                "drop": BootstrapMetric(before.values - lowest, *support),
            }
            place = int(table[:, 0].argmin()) if known[0] else None
            where = {} if place is None else {"change": names[place][0], "severity": names[place][1]}
            lowest_estimate, drop = intervals.estimate(entry["worst"]), intervals.difference(entry["drop"])
            result[who][name] = where | {"worst": lowest_estimate.to_json(), "drop": drop.to_json()}
    return result


# --- the command ----------------------------------------------------------------------------------------------------


@dataclass
class Robustness:
    """A finished robustness test; `fresh` is false where it had been finished before."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, Any]
    fresh: bool = False

    def to_json(self) -> dict[str, Any]:
        about = {name: self.manifest[name] for name in ("model", "split", "notes")}
        return about | {"folder": str(self.folder), "fresh": self.fresh} | self.metrics


def model_folder(project: Project, model: str) -> Path:
    return project.work / "robustness" / model


def folder_of(plan: EvaluationPlan) -> Path:
    """Return where the result for these images, labels and decisions is, or would be."""
    return model_folder(plan.project, plan.model.key) / f"{plan.split}-{_key(plan)}"


def run(project: Project, request: EvaluateRequest, progress: Progress = lambda stage, done, total: None) -> Robustness:
    """Evaluate every image of the split under every change, unless that is done already."""
    plan = evaluating.make_plan(Index(project), request)
    folder = folder_of(plan)
    with files.writer_lock(project.work / "robustness", "curate robustness"):
        if not (folder / MANIFEST).is_file():
            files.remove(folder)
            _write(folder, plan, request, progress)
            return read_result(folder, fresh=True)
    return read_result(folder)


def _key(plan: EvaluationPlan) -> str:
    rows = sorted((item.id, item.label.digest, item.group) for item in plan.items)
    return key_of([rows, plan.classes, LEVELS, STEP, *plan.model.versions])[:16]


def read_result(folder: Path, fresh: bool = False) -> Robustness:
    manifest, metrics = (files.read_json(folder / name) for name in (MANIFEST, METRICS_FILE))
    return Robustness(folder, manifest, metrics, fresh)


def load_evaluator(plan: EvaluationPlan, device: str) -> ModelEvaluator:
    predictor = load_predictor(plan.project, plan.model.key, device)
    return ModelEvaluator(predictor, plan.classes, plan.project.config.limits.max_pixels)


def _write(folder: Path, plan: EvaluationPlan, request: EvaluateRequest, progress: Progress) -> None:
    begun = time.perf_counter()
    evaluator, table = load_evaluator(plan, request.device), open_table(plan)
    failed = evaluate_missing(evaluator, table, plan.items, progress)
    good = [item for item in plan.items if item.id not in failed]
    if not good:
        raise CurateError(f"no image of {plan.split} could be read; the first: {next(iter(failed.values()))}")
    summary = summarise(condition_results(table, good, plan.classes, evaluator.segments))
    notes = list(plan.notes)
    if failed:
        notes.append(f"{len(failed)} images could not be read; the first: {next(iter(failed.values()))}")
    manifest: dict[str, Any] = {
        "model": plan.model.key,
        "split": plan.split,
        "classes": list(plan.classes),
        "notes": notes,
    }
    manifest |= {"levels": LEVELS, "draws": intervals.DRAWS, "failed": failed, "step": STEP}
    manifest["seconds"] = round(time.perf_counter() - begun, 1)
    with files.written_aside(folder) as aside:
        aside.mkdir()
        files.write_json(aside / METRICS_FILE, summary)
        files.write_json(aside / MANIFEST, manifest)
