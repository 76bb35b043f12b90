"""`curate evaluate`: how good a model is on images that it was not trained on, with intervals, in
`work/evaluations/<model>/<split>-<data>/` (manifest.json, figures.json, per_image.parquet, report.html).

The split looks like production: val and test hold no synthetic image, and nothing is reweighted. The model decides as
it does in production (`decide`); AUROC and AP hold for all thresholds. Target recalls and temperature are fitted on val
alone and measured on the split itself. The model is not changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.data import Item
from curate.errors import CurateError, unknown
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.project import Project
from train import store
from train.data.dataset import without_retired
from train.evaluate import html_report, intervals, metrics, mistakes, per_image, strata
from train.evaluate.intervals import FEW, BootstrapDraws, BootstrapMetric
from train.evaluate.metrics import CLEAN, EvaluatedImages
from train.evaluate.per_image import ModelEvaluator
from train.predict.predictor import load_predictor
from train.store import StoredModel

SPLITS = ("test", "val")  # the splits that look like production
STEP = 2  # raise it when the same model and labels give other metrics than before
NAMED = 3  # images that an error message names
MANIFEST, METRICS_FILE, PER_IMAGE, REPORT = "manifest.json", "figures.json", "per_image.parquet", "report.html"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluateRequest:
    """Options of `curate evaluate`. `targets`: the recall that each class should reach, fitted on val."""

    model: str | None = None
    split: str = "test"
    targets: Mapping[str, float] = field(default_factory=dict)
    allow_leak: bool = False
    device: str = "auto"


@dataclass
class Evaluation:
    """A finished evaluation; `fresh` is false where it had been finished before."""

    folder: Path
    manifest: dict[str, Any]
    metrics: dict[str, Any]
    fresh: bool = False

    @property
    def model(self) -> str:
        return str(self.manifest["model"])

    def to_json(self) -> dict[str, Any]:
        about = {"model": self.model, "split": self.manifest["split"], "folder": str(self.folder)}
        return about | {"fresh": self.fresh, "notes": self.manifest["notes"]} | self.metrics


@dataclass
class EvaluatedModel:
    """A model's results on the labelled images of the split and of val; `failed`: images that could not be read."""

    evaluator: ModelEvaluator
    table: Any
    split: EvaluatedImages
    val: EvaluatedImages
    failed: dict[str, str]


@dataclass(frozen=True)
class EvaluationPlan:
    """The model, the images of the split and of val, and notes that a person should read."""

    project: Project
    model: StoredModel
    split: str
    items: tuple[Item, ...]
    val: tuple[Item, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def all_items(self) -> list[Item]:
        return list({item.id: item for item in (*self.items, *self.val)}.values())

    def key(self, targets: Mapping[str, float]) -> str:
        """Return a key that changes with any image, label or group of the split or of val."""
        rows = [sorted((item.id, item.label.digest, item.group) for item in part) for part in (self.items, self.val)]
        parts = [rows, self.classes, dict(targets), metrics.BINS, per_image.STEP, STEP, *self.model.versions]
        return key_of(parts)[:16]

    def folder(self, targets: Mapping[str, float]) -> Path:
        return per_image.model_folder(self.project, self.model.key) / f"{self.split}-{self.key(targets)}"


def run(project: Project, request: EvaluateRequest, progress: Progress = lambda stage, done, total: None) -> Evaluation:
    """Evaluate a model unless that is done already, and show its mistakes in the index.

    Args:
        project: the project, whose writer lock the caller holds.
        request: model, split and target recalls.
        progress: called with stage, images done and images in all.

    Returns:
        The evaluation with its metrics.
    """
    index = Index(project)
    plan = make_plan(index, request)
    check_targets(plan, request.targets)
    folder = plan.folder(request.targets)
    fresh = not _is_done(plan, folder)
    if fresh:
        files.remove(folder)
        _write(folder, plan, evaluate_images(plan, request.device, progress), request, progress)
    evaluation = read_evaluation(folder)
    evaluation.fresh = fresh
    _show_in_index(index, plan, evaluation)
    return evaluation


def _is_done(plan: EvaluationPlan, folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    known = per_image.up_to_date(per_image.open_table(plan.project, plan.model, plan.classes), plan.all_items)
    failed = set(read_evaluation(folder).manifest["failed"])
    return all(item.id in known or item.id in failed for item in plan.all_items)


def read_evaluation(folder: Path) -> Evaluation:
    manifest, values = (files.read_json(folder / name) for name in (MANIFEST, METRICS_FILE))
    return Evaluation(folder, manifest, values)


def per_image_rows(folder: Path) -> list[dict[str, Any]]:
    """Return what a finished evaluation tells of each image: its classes, the decided ones and the probabilities."""
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    table = parquet.read_table(folder / PER_IMAGE, columns=["id", "present", "decided", "p"])
    return list(table.to_pylist())


def evaluations(project: Project, split: str | None = None) -> list[Evaluation]:
    """Return all finished evaluations, the newest first."""
    finished = [read_evaluation(file.parent) for file in (project.work / "evaluations").glob(f"*/[!.]*/{MANIFEST}")]
    kept = [evaluation for evaluation in finished if split in (None, evaluation.manifest["split"])]
    return sorted(kept, key=lambda evaluation: (str(evaluation.manifest["made"]), evaluation.model), reverse=True)


# --- the plan -------------------------------------------------------------------------------------------------------


def make_plan(index: Index, request: EvaluateRequest) -> EvaluationPlan:
    """Choose images and labels; raises CurateError where nothing can be measured on them."""
    if request.split not in SPLITS:
        raise unknown("split", request.split, SPLITS, "A model has memorised train: results on it say nothing")
    model = store.find(index.project, request.model)
    classes = classes_of(index.project, model)
    rows = {id: row for id, *row in index.rows("status", "split", "source", "missing")}
    chosen = {split: [id for id, row in rows.items() if _is_usable(split, *row)] for split in {request.split, "val"}}
    items = {split: sorted(index.items(ids), key=lambda item: item.id) for split, ids in chosen.items()}
    if not items[request.split]:
        raise CurateError(
            f"no labelled image in {request.split}: there is nothing to evaluate on. Label audit picks (curate select "
            f"puts some into every round), index a labelled source, or see splits.ratio in {index.project.file}"
        )
    notes: list[str] = []
    items = {split: without_retired(part, index.project, notes) for split, part in items.items()}
    if model.manifest["task"] == "segmentation":
        items = {split: with_locations(part, classes, split, notes) for split, part in items.items()}
    notes += _class_notes(model, classes, items[request.split], request.split)
    notes += _leak_notes(index, model, items[request.split], request)
    if request.split == "val":
        notes.append("val chose this model's best epoch and fits its thresholds: its metrics are too good; use test")
    return EvaluationPlan(
        index.project, model, request.split, tuple(items[request.split]), tuple(items["val"]), classes, tuple(notes)
    )


def _is_usable(wanted: str, status: str | None, split: str | None, source: str | None, missing: bool | None) -> bool:
    return status == "labelled" and split == wanted and source != "synthetic" and not missing


def classes_of(project: Project, model: StoredModel) -> tuple[str, ...]:
    """Return the project's classes, which must include all of the model's."""
    known, today = model.manifest["classes"], project.active_classes
    if gone := [name for name in known if name not in today]:
        raise CurateError(
            f"model {model.key} knows {', '.join(gone)}, which this project does not look for (its classes: "
            f"{', '.join(today)}). Train again: curate train"
        )
    return tuple(today)


def with_locations(items: Sequence[Item], classes: Sequence[str], split: str, notes: list[str]) -> list[Item]:
    """Return the images whose label locates all of its classes; raises CurateError where no label does."""
    kept = [item for item in items if per_image.has_locations(item, classes)]
    if not kept and items:
        raise CurateError(
            f"none of the {len(items)} labelled images of {split} locates its classes. Outline or box the defects"
        )
    if len(kept) < len(items):
        notes.append(f"{len(items) - len(kept)} images of {split} name a class without its location and are left out")
    return kept


def _class_notes(model: StoredModel, classes: Sequence[str], items: Sequence[Item], split: str) -> list[str]:
    """Return notes on classes that cannot be measured, and on classes that the model cannot find."""
    notes, known = [], set(model.manifest["classes"])
    groups = {name: {item.group or item.id for item in items if name in item.label.present} for name in classes}
    for name, members in groups.items():
        if not members:
            notes.append(f"no labelled image of {split} shows {name}: it cannot be measured")
        elif name not in known:
            notes.append(f"the model does not know {name}: train had no image of it, so all of them are missed")
    few = [f"{name} ({len(members)})" for name, members in groups.items() if 0 < len(members) < FEW]
    if few:
        notes.append(
            f"fewer than {FEW} groups in {split} show {', '.join(few)}: the intervals are wide. "
            "Cross-validation evaluates the recipe on every group: curate evaluate --folds 5"
        )
    return notes


def _leak_notes(index: Index, model: StoredModel, items: Sequence[Item], request: EvaluateRequest) -> list[str]:
    """Return notes on images that the model was trained on, or whose groups it was trained on.

    Raises CurateError for such images unless `request.allow_leak`.
    """
    training_ids = model.manifest["images"]
    groups = {id: group or id for id, group in index.rows("group")}
    known = {*training_ids["train"], *(model.manifest.get("pseudo") or {"labels": ()})["labels"]}
    known_groups = {groups.get(id, id) for id in known}
    leaked = [item for item in items if item.id in known or (item.group or item.id) in known_groups]
    notes = []
    if leaked:
        shown = ", ".join(str(item.path) for item in leaked[:NAMED]) + (", ..." if len(leaked) > NAMED else "")
        text = f"model {model.key} was trained on {len(leaked)} of {len(items)} images of {request.split}, or on their"
        text += f" groups: {shown}"
        if not request.allow_leak:
            raise CurateError(f"{text}. Train again (curate train), or accept metrics that are too good: --allow-leak")
        notes.append(f"{text}: all metrics are too good")
    chosen = set(training_ids["val"]).intersection(item.id for item in items)
    if chosen and request.split != "val":
        notes.append(
            f"{len(chosen)} images of {request.split} were in val when this model was trained: they chose its epoch"
        )
    return notes


def check_targets(plan: EvaluationPlan, targets: Mapping[str, float]) -> None:
    for name, recall in targets.items():
        if name not in plan.classes:
            raise unknown("class", name, plan.classes)
        if not 0 < recall <= 1:
            raise CurateError(f"target recall {recall:g} of {name} is not allowed; allowed: above 0, at most 1")
        if not any(name in item.label.present for item in plan.val):
            raise CurateError(
                f"no labelled image of val shows {name}: its threshold cannot be fitted. Label some first"
            )


# --- predicting -----------------------------------------------------------------------------------------------------


def evaluate_images(plan: EvaluationPlan, device: str, progress: Progress) -> EvaluatedModel:
    """Predict the images that this model has not been evaluated on yet, and return the results of all."""
    predictor = load_predictor(plan.project, plan.model.key, device)
    evaluator = ModelEvaluator(predictor, plan.classes, plan.project.config.limits.max_pixels)
    table = per_image.open_table(plan.project, plan.model, plan.classes)
    failed = per_image.evaluate_missing(evaluator, table, plan.all_items, progress)
    good = [[item for item in part if item.id not in failed] for part in (plan.items, plan.val)]
    if not good[0]:
        raise CurateError(f"no image of {plan.split} could be read; the first: {next(iter(failed.values()))}")
    split, val = (per_image.evaluated_images(table, part, plan.classes, predictor.single) for part in good)
    return EvaluatedModel(evaluator, table, split, val, failed)


# --- metrics --------------------------------------------------------------------------------------------------------


def summarise(
    split: EvaluatedImages,
    val: EvaluatedImages,
    targets: Mapping[str, float],
    strata_of: Sequence[str | None] = (),
) -> dict[str, Any]:
    """Return all metrics as JSON values; `strata_of`: each image's stratum."""
    draws = split.draws()
    overall, by_class = metrics.compute(split, draws)
    rows, columns, counts = metrics.confusion(split)
    return {
        "images": len(split.ids),
        "groups": int(draws.weights.shape[1]),
        "support": metrics.support(split, draws, split.classes),
        "overall": _estimates(overall),
        "classes": {name: _estimates(class_metrics) for name, class_metrics in by_class.items()},
        "strata": strata.by_stratum(split, strata_of, draws) if strata_of else {},
        "baselines": baselines(split, draws),
        "confusion": {"truth": rows, "said": columns, "counts": counts.tolist()},
        "calibration": _calibration(split, val, draws),
        "operating": {name: _operating(split, val, name, recall, draws) for name, recall in targets.items()},
        "curves": _curves(split),
    }


def _estimates(by_name: Mapping[str, BootstrapMetric]) -> dict[str, Any]:
    return {name: intervals.estimate(metric).to_json() for name, metric in by_name.items()}


def baselines(split: EvaluatedImages, draws: BootstrapDraws) -> dict[str, Any]:
    """Return the metrics that are reached without a model."""
    names, by_name = metrics.majority_baseline(split, draws)
    result = {"majority": {"said": names or [CLEAN]} | _estimates(by_name)}
    if split.pixels is not None:
        result["empty_submission"] = _estimates(metrics.empty_submission(split, draws))
    return result


def _calibration(split: EvaluatedImages, val: EvaluatedImages, draws: BootstrapDraws) -> dict[str, Any]:
    """Return the calibration error before and after scaling with the temperature that is fitted on val."""
    temperature = metrics.fit_temperature(val)
    result: dict[str, Any] = {"temperature": temperature, "fitted_on": len(val.ids), "reliability": _reliability(split)}
    if temperature is not None:
        scaled = EvaluatedImages(**{**vars(split), "p": metrics.apply_temperature(split.p, temperature, split.single)})
        overall, _ = metrics.compute(_as_classifier(scaled), draws)
        result["ece_after"] = intervals.estimate(overall["ece"]).to_json()
        result["reliability_after"] = _reliability(scaled)
    return result


def _as_classifier(evaluated: EvaluatedImages) -> EvaluatedImages:
    """Return the image-level part alone, without pixels and regions."""
    return EvaluatedImages(**{**vars(evaluated), "pixels": None, "regions": None})


def _reliability(evaluated: EvaluatedImages) -> list[tuple[float, float, int]]:
    if evaluated.single:
        p, truth = metrics.outcomes(evaluated, evaluated.p)
        rows, best = np.arange(len(p)), p.argmax(axis=1)
        return metrics.reliability(p[rows, best], truth[rows, best])
    return metrics.reliability(evaluated.p.ravel(), evaluated.present.ravel())


def _operating(
    split: EvaluatedImages, val: EvaluatedImages, name: str, target: float, draws: BootstrapDraws
) -> dict[str, Any]:
    """Return the threshold that is fitted on val, and its metrics on val and on the split."""
    place = split.classes.index(name)
    point = metrics.fit_operating_point(val, place, target)
    result: dict[str, Any] = {
        "target": target,
        "threshold": point.threshold,
        "min_area": point.min_area,
        "reached": point.reached,
    }
    for title, evaluated, by in (("val", val, val.draws()), ("split", split, draws)):
        decided = metrics.decision_metrics(evaluated.present[:, place], point.decide(evaluated, place), by)
        result[title] = _estimates(decided)
    result["before"] = _estimates(metrics.decision_metrics(split.present[:, place], split.decided[:, place], draws))
    return result


def _curves(split: EvaluatedImages) -> dict[str, Any]:
    by_class = enumerate(split.classes)
    curves: dict[str, Any] = {
        "pr": {name: metrics.pr_curve(split.p[:, c], split.present[:, c]) for c, name in by_class}
    }
    by_class = enumerate(split.classes)
    curves["roc"] = {name: metrics.roc_curve(split.p[:, c], split.present[:, c]) for c, name in by_class}
    if split.pixels is not None:
        total = split.pixels.histogram.sum(axis=0)
        curves["pixel_pr"] = {name: metrics.histogram_curve(total[c]) for c, name in enumerate(split.classes)}
    return curves


# --- writing results ------------------------------------------------------------------------------------------------


def _write(
    folder: Path, plan: EvaluationPlan, evaluated: EvaluatedModel, request: EvaluateRequest, progress: Progress
) -> None:
    """Write all files of the evaluation, all of them or none."""
    by_id = {item.id: item.stratum for item in plan.items}
    strata_of = [by_id[id] for id in evaluated.split.ids]
    summary = summarise(evaluated.split, evaluated.val, request.targets, strata_of)
    progress("metrics", 1, 1)
    manifest = _manifest(plan, evaluated, request)
    manifest["notes"] += strata.warnings(summary["strata"])
    rows = mistakes.mistake_rows(evaluated.split)
    items, worst = {item.id: item for item in plan.items}, html_report.worst_images(rows)
    predictions = per_image.predictions_of(evaluated.table, worst, plan.classes, plan.model.key)
    pictures = html_report.thumbnails([items[id] for id in worst], predictions, rows, evaluated.evaluator.max_pixels)
    with files.written_aside(folder) as aside:
        aside.mkdir()
        _store(aside / PER_IMAGE, plan, evaluated.split, rows)
        files.write_json(aside / METRICS_FILE, summary)
        page = html_report.page(summary, manifest, plan.model, pictures, plan.project.colors)
        files.write_text(aside / REPORT, page)
        files.write_json(aside / MANIFEST, manifest)


def _manifest(plan: EvaluationPlan, evaluated: EvaluatedModel, request: EvaluateRequest) -> dict[str, Any]:
    notes = list(plan.notes)
    if evaluated.failed:
        notes.append(
            f"{len(evaluated.failed)} images could not be read; the first: {next(iter(evaluated.failed.values()))}"
        )
    return {
        "model": plan.model.key,
        "task": plan.model.manifest["task"],
        "split": plan.split,
        "classes": list(plan.classes),
        "single": evaluated.evaluator.predictor.single,
        "images": len(evaluated.split.ids),
        "val": len(evaluated.val.ids),
        "targets": dict(request.targets),
        "decisions": plan.model.manifest.get("decisions") or {},
        "draws": intervals.DRAWS,
        "confidence": intervals.CONFIDENCE,
        "notes": notes,
        "failed": evaluated.failed,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "project": plan.project.name,
    }


def _store(file: Path, plan: EvaluationPlan, evaluated: EvaluatedImages, rows: Mapping[str, Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    paths = {item.id: str(item.path) for item in plan.items}
    names = [name.removeprefix("eval_") for name in next(iter(rows.values()))]
    table = {
        "id": list(evaluated.ids),
        "path": [paths[id] for id in evaluated.ids],
        "group": list(evaluated.groups),
        "present": [_class_names(evaluated.classes, row) for row in evaluated.present],
        "decided": [_class_names(evaluated.classes, row) for row in evaluated.decided],
        "p": [row.tolist() for row in evaluated.p],
    } | {name: [list(row.values())[place] for row in rows.values()] for place, name in enumerate(names)}
    texts = ("present", "decided", "missed", "false_alarm", "missed_sizes")
    schema = pa.schema([(name, pa.list_(pa.string()) if name in texts else _arrow_type(name)) for name in table])
    parquet.write_table(pa.table(table, schema=schema), file, compression="zstd")


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    if name == "p":
        return pa.list_(pa.float64())
    return pa.float64() if name in ("confidence", "dice") else pa.string()


def _class_names(classes: Sequence[str], row: Any) -> list[str]:
    return [name for name, yes in zip(classes, row, strict=True) if yes]


# --- in the index ---------------------------------------------------------------------------------------------------


def _show_in_index(index: Index, plan: EvaluationPlan, evaluation: Evaluation) -> None:
    """Show this evaluation's mistakes in the index; no image is predicted again."""
    table = per_image.open_table(plan.project, plan.model, plan.classes)
    known = per_image.up_to_date(table, plan.all_items)
    parts = [[item for item in part if item.id in known] for part in (plan.items, plan.val)]
    split, val = (
        per_image.evaluated_images(table, part, plan.classes, bool(evaluation.manifest["single"])) for part in parts
    )
    rows = mistakes.mistake_rows(split)
    if before := _previous(plan, evaluation):
        for id, change in mistakes.changes(split, mistakes.decided_classes(before.folder / PER_IMAGE)).items():
            rows[id] |= change
    rest = index.rows("status", "missing")
    labelled = [id for id, status, missing in rest if status == "labelled" and not missing and id not in known]
    others = mistakes.mistakenness_from_scores(index, plan.model.key, labelled)
    shown_predictions = per_image.predictions_of(table, split.ids, plan.classes, f"model-{plan.model.key}")
    mistakes.register(index, evaluation.manifest)
    mistakes.show(
        index, rows, mistakes.mistakenness([split, val], others), shown_predictions, f"model-{plan.model.key}"
    )


def _previous(plan: EvaluationPlan, evaluation: Evaluation) -> Evaluation | None:
    """Return the newest evaluation of another model on this split."""
    others = (other for other in evaluations(plan.project, plan.split) if other.model != evaluation.model)
    return next(others, None)
