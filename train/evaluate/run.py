"""`curate evaluate`: how good a model is on images that it has not learnt from, with intervals, in
`work/evaluations/<model>/<split>-<data>/` (manifest.json, figures.json, per_image.parquet, report.html).

The split is as production is: val and test hold no synthetic image, and nothing is weighed. Thresholds and temperature
are fitted on val alone; what they are worth is read off the split itself. The model stays as it is.
"""

from __future__ import annotations

import json
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
from train.evaluate import html_report, intervals, mistakes, per_image
from train.evaluate import metrics as figures
from train.evaluate.intervals import FEW, BootstrapDraws, BootstrapMetric
from train.evaluate.metrics import CLEAN, EvaluatedImages
from train.evaluate.per_image import ModelEvaluator
from train.predict.predictor import load_predictor
from train.store import StoredModel

SPLITS = ("test", "val")  # those that are as production is
STEP = 1  # raise it when the same model and labels give other figures than before
NAMED = 3  # images that an error names
MANIFEST, FIGURES, PER_IMAGE, REPORT = "manifest.json", "figures.json", "per_image.parquet", "report.html"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluateRequest:
    """What the user asks for. `targets`: the recall that each class should have, by fitting its threshold on val."""

    model: str | None = None
    split: str = "test"
    targets: Mapping[str, float] = field(default_factory=dict)
    allow_leak: bool = False
    device: str = "auto"


@dataclass
class Evaluation:
    """A finished one; `fresh` is false where it was there already."""

    folder: Path
    manifest: dict[str, Any]
    figures: dict[str, Any]
    fresh: bool = False

    @property
    def model(self) -> str:
        return str(self.manifest["model"])

    def to_json(self) -> dict[str, Any]:
        about = {"model": self.model, "split": self.manifest["split"], "folder": str(self.folder)}
        return about | {"fresh": self.fresh, "notes": self.manifest["notes"]} | self.figures


@dataclass
class EvaluatedModel:
    """A model on the labelled images of the split, and of val; `failed` could not be read."""

    judge: ModelEvaluator
    table: Any
    split: EvaluatedImages
    val: EvaluatedImages
    failed: dict[str, str]


@dataclass(frozen=True)
class EvaluationPlan:
    """What is asked: the model, the images of the split and of val, and what a person should know of them."""

    project: Project
    model: StoredModel
    split: str
    items: tuple[Item, ...]
    val: tuple[Item, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def every(self) -> list[Item]:
        return list({one.id: one for one in (*self.items, *self.val)}.values())

    def key(self, targets: Mapping[str, float]) -> str:
        """Changes with any image, label or group of the split or of val."""
        rows = [sorted((one.id, one.label.digest, one.group) for one in part) for part in (self.items, self.val)]
        return key_of([rows, self.classes, dict(targets), figures.BINS, per_image.STEP, STEP])[:16]

    def folder(self, targets: Mapping[str, float]) -> Path:
        return per_image.home(self.project, self.model.key) / f"{self.split}-{self.key(targets)}"


def run(project: Project, wish: EvaluateRequest, progress: Progress = lambda stage, done, total: None) -> Evaluation:
    """Evaluate, or find that it is done, and show the mistakes in the index. The caller holds the writer lock."""
    index = Index(project)
    exam = prepared(index, wish)
    _check_targets(exam, wish.targets)
    folder = exam.folder(wish.targets)
    fresh = not _done(exam, folder)
    if fresh:
        files.remove(folder)
        _write(folder, exam, examined(exam, wish.device, progress), wish, progress)
    found = opened(folder)
    found.fresh = fresh
    _show(index, exam, found)
    return found


def _done(exam: EvaluationPlan, folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    known = per_image.known(per_image.table_of(exam.project, exam.model, exam.classes), exam.every)
    failed = set(opened(folder).manifest["failed"])
    return all(one.id in known or one.id in failed for one in exam.every)


def opened(folder: Path) -> Evaluation:
    manifest, values = (_read(folder / name) for name in (MANIFEST, FIGURES))
    return Evaluation(folder, manifest, values)


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CurateError(f"{file} is damaged or missing; remove {file.parent} and evaluate again") from None
    return found


def every(project: Project, split: str | None = None) -> list[Evaluation]:
    """All finished evaluations, the newest first."""
    found = [opened(file.parent) for file in (project.work / "evaluations").glob(f"*/[!.]*/{MANIFEST}")]
    kept = [one for one in found if split in (None, one.manifest["split"])]
    return sorted(kept, key=lambda one: (str(one.manifest["made"]), one.model), reverse=True)


# --- what is asked --------------------------------------------------------------------------------------------------


def prepared(index: Index, wish: EvaluateRequest) -> EvaluationPlan:
    """The images and labels; raises CurateError where they cannot tell anything."""
    if wish.split not in SPLITS:
        raise unknown("split", wish.split, SPLITS, "Train shows what a model knows by heart, not what it is worth")
    model = store.find(index.project, wish.model)
    classes = classes_of(index.project, model)
    rows = {id: row for id, *row in index.rows("status", "split", "source", "missing")}
    chosen = {split: [id for id, row in rows.items() if _tells(split, *row)] for split in {wish.split, "val"}}
    items = {split: sorted(index.items(ids), key=lambda one: one.id) for split, ids in chosen.items()}
    if not items[wish.split]:
        raise CurateError(
            f"no labelled image in {wish.split}: there is nothing to judge by. Label audit picks (curate select puts "
            f"some into every round), index a labelled source, or see splits.ratio in {index.project.file}"
        )
    notes: list[str] = []
    if model.manifest["task"] == "segmentation":
        items = {split: placed(found, classes, split, notes) for split, found in items.items()}
    notes += _absent(model, classes, items[wish.split], wish.split)
    notes += _leaks(index, model, items[wish.split], wish)
    if wish.split == "val":
        notes.append("val chose this model's best epoch and fits its thresholds: its figures flatter; test does not")
    return EvaluationPlan(
        index.project, model, wish.split, tuple(items[wish.split]), tuple(items["val"]), classes, tuple(notes)
    )


def _tells(wanted: str, status: str | None, split: str | None, source: str | None, missing: bool | None) -> bool:
    return status == "labelled" and split == wanted and source != "synthetic" and not missing


def classes_of(project: Project, model: StoredModel) -> tuple[str, ...]:
    """The project's, which must hold all of the model's."""
    known, today = model.manifest["classes"], project.active_classes
    if gone := [name for name in known if name not in today]:
        raise CurateError(
            f"model {model.key} knows {', '.join(gone)}, which this project does not look for (its classes: "
            f"{', '.join(today)}). Train again: curate train"
        )
    return tuple(today)


def placed(items: Sequence[Item], classes: Sequence[str], split: str, notes: list[str]) -> list[Item]:
    """Those whose label says where its classes are; raises CurateError where none does."""
    kept = [one for one in items if per_image.placed(one, classes)]
    if not kept and items:
        raise CurateError(f"none of the {len(items)} labelled images of {split} says where its classes are: draw them")
    if len(kept) < len(items):
        notes.append(f"{len(items) - len(kept)} images of {split} name a class without its place and are left out")
    return kept


def _absent(model: StoredModel, classes: Sequence[str], items: Sequence[Item], split: str) -> list[str]:
    """Classes that cannot be judged, and those that the model cannot find."""
    notes, known = [], set(model.manifest["classes"])
    groups = {name: {one.group or one.id for one in items if name in one.label.present} for name in classes}
    for name, found in groups.items():
        if not found:
            notes.append(f"no labelled image of {split} shows {name}: nothing can be said of it")
        elif name not in known:
            notes.append(f"the model does not know {name}: train had no image of it, so all are missed")
    few = [f"{name} ({len(found)})" for name, found in groups.items() if 0 < len(found) < FEW]
    if few:
        notes.append(
            f"fewer than {FEW} groups in {split} show {', '.join(few)}: the intervals are wide, for good reason. "
            "Cross-validation judges the recipe by every group: curate evaluate --folds 5"
        )
    return notes


def _leaks(index: Index, model: StoredModel, items: Sequence[Item], wish: EvaluateRequest) -> list[str]:
    """Whether the model has learnt from these images, or from others of their groups."""
    learnt = model.manifest.get("images")
    if learnt is None:
        return ["this model does not say which images it learnt from: that it knows these cannot be ruled out"]
    groups = {id: group or id for id, group in index.rows("group")}
    known = {*learnt["train"], *(model.manifest.get("pseudo") or {"labels": ()})["labels"]}
    theirs = {groups.get(id, id) for id in known}
    leaked = [one for one in items if one.id in known or (one.group or one.id) in theirs]
    notes = []
    if leaked:
        shown = ", ".join(str(one.path) for one in leaked[:NAMED]) + (", ..." if len(leaked) > NAMED else "")
        text = f"model {model.key} has learnt from {len(leaked)} of {len(items)} images of {wish.split}, or from their"
        text += f" groups: {shown}"
        if not wish.allow_leak:
            raise CurateError(f"{text}. Train again (curate train), or accept flattering figures: --allow-leak")
        notes.append(f"{text}: all figures flatter")
    chosen = set(learnt["val"]).intersection(one.id for one in items)
    if chosen and wish.split != "val":
        notes.append(f"{len(chosen)} images of {wish.split} were val when this model was trained and chose its epoch")
    return notes


def _check_targets(exam: EvaluationPlan, targets: Mapping[str, float]) -> None:
    for name, recall in targets.items():
        if name not in exam.classes:
            raise unknown("class", name, exam.classes)
        if not 0 < recall <= 1:
            raise CurateError(f"target recall {recall:g} of {name} must lie above 0 and at most at 1")
        if not any(name in one.label.present for one in exam.val):
            raise CurateError(
                f"no labelled image of val shows {name}: its threshold cannot be fitted. Label some first"
            )


# --- looking --------------------------------------------------------------------------------------------------------


def examined(exam: EvaluationPlan, device: str, progress: Progress) -> EvaluatedModel:
    """Let the model look at what it has not been asked about yet."""
    predictor = load_predictor(exam.project, exam.model.key, device)
    judge = ModelEvaluator(predictor, exam.classes, exam.project.config.limits.max_pixels)
    table = per_image.table_of(exam.project, exam.model, exam.classes)
    failed = per_image.ask(judge, table, exam.every, progress)
    good = [[one for one in part if one.id not in failed] for part in (exam.items, exam.val)]
    if not good[0]:
        raise CurateError(f"no image of {exam.split} could be read; the first: {next(iter(failed.values()))}")
    split, val = (per_image.gathered(table, part, exam.classes, predictor.single) for part in good)
    return EvaluatedModel(judge, table, split, val, failed)


# --- figures --------------------------------------------------------------------------------------------------------


def described(split: EvaluatedImages, val: EvaluatedImages, targets: Mapping[str, float]) -> dict[str, Any]:
    """All figures, as plain values."""
    draws = split.draws()
    overall, by_class = figures.measures(split, draws)
    rows, columns, counts = figures.confusion(split)
    return {
        "images": len(split.ids),
        "groups": int(draws.weights.shape[1]),
        "support": figures.support(split, draws, split.classes),
        "overall": _figures(overall),
        "classes": {name: _figures(found) for name, found in by_class.items()},
        "baselines": baselines(split, draws),
        "confusion": {"truth": rows, "said": columns, "counts": counts.tolist()},
        "calibration": _calibration(split, val, draws),
        "operating": {name: _operating(split, val, name, recall, draws) for name, recall in targets.items()},
        "curves": _curves(split),
    }


def _figures(found: Mapping[str, BootstrapMetric]) -> dict[str, Any]:
    return {name: intervals.figure(measure).to_json() for name, measure in found.items()}


def baselines(split: EvaluatedImages, draws: BootstrapDraws) -> dict[str, Any]:
    """What is reached without a model."""
    said, measures = figures.majority(split, draws)
    found = {"majority": {"said": said or [CLEAN]} | _figures(measures)}
    if split.pixels is not None:
        found["empty_submission"] = _figures(figures.empty_submission(split, draws))
    return found


def _calibration(split: EvaluatedImages, val: EvaluatedImages, draws: BootstrapDraws) -> dict[str, Any]:
    """How honest probabilities are, before and after dividing by the temperature that val asks for."""
    temperature = figures.fitted_temperature(val)
    found: dict[str, Any] = {"temperature": temperature, "fitted_on": len(val.ids), "reliability": _reliability(split)}
    if temperature is not None:
        cooled = EvaluatedImages(**{**vars(split), "p": figures.tempered(split.p, temperature, split.single)})
        overall, _ = figures.measures(_plain(cooled), draws)
        found["ece_after"] = intervals.figure(overall["ece"]).to_json()
        found["reliability_after"] = _reliability(cooled)
    return found


def _plain(judged: EvaluatedImages) -> EvaluatedImages:
    """As a classifier of images."""
    return EvaluatedImages(**{**vars(judged), "pixels": None, "regions": None})


def _reliability(judged: EvaluatedImages) -> list[tuple[float, float, int]]:
    if judged.single:
        p, truth = figures.outcomes(judged, judged.p)
        rows, best = np.arange(len(p)), p.argmax(axis=1)
        return figures.reliability(p[rows, best], truth[rows, best])
    return figures.reliability(judged.p.ravel(), judged.present.ravel())


def _operating(
    split: EvaluatedImages, val: EvaluatedImages, name: str, target: float, draws: BootstrapDraws
) -> dict[str, Any]:
    """The threshold that val asks for, what it costs there, and what of it holds."""
    place = split.classes.index(name)
    point = figures.fitted_point(val, place, target)
    found: dict[str, Any] = {
        "target": target,
        "threshold": point.threshold,
        "min_area": point.min_area,
        "reached": point.reached,
    }
    for title, judged, by in (("val", val, val.draws()), ("split", split, draws)):
        decided = figures.decision(judged.present[:, place], point.decided(judged, place), by)
        found[title] = _figures(decided)
    found["before"] = _figures(figures.decision(split.present[:, place], split.decided[:, place], draws))
    return found


def _curves(split: EvaluatedImages) -> dict[str, Any]:
    by_class = enumerate(split.classes)
    curves: dict[str, Any] = {
        "pr": {name: figures.pr_curve(split.p[:, c], split.present[:, c]) for c, name in by_class}
    }
    if split.pixels is not None:
        total = split.pixels.histogram.sum(axis=0)
        curves["pixel_pr"] = {name: figures.histogram_curve(total[c]) for c, name in enumerate(split.classes)}
    return curves


# --- what lies on disk ----------------------------------------------------------------------------------------------


def _write(folder: Path, exam: EvaluationPlan, seen: EvaluatedModel, wish: EvaluateRequest, progress: Progress) -> None:
    """Everything, whole or not at all."""
    found = described(seen.split, seen.val, wish.targets)
    progress("figures", 1, 1)
    manifest = _manifest(exam, seen, wish)
    rows = mistakes.rows(seen.split)
    items, worst = {one.id: one for one in exam.items}, html_report.worst(rows)
    predictions = per_image.said(seen.table, worst, exam.classes, exam.model.key)
    pictures = html_report.thumbnails([items[id] for id in worst], predictions, rows, seen.judge.max_pixels)
    with files.written_aside(folder) as aside:
        aside.mkdir()
        _store(aside / PER_IMAGE, exam, seen.split, rows)
        files.write_json(aside / FIGURES, found)
        page = html_report.page(found, manifest, exam.model, pictures, exam.project.colors)
        files.write_text(aside / REPORT, page)
        files.write_json(aside / MANIFEST, manifest)


def _manifest(exam: EvaluationPlan, seen: EvaluatedModel, wish: EvaluateRequest) -> dict[str, Any]:
    notes = list(exam.notes)
    if seen.failed:
        notes.append(f"{len(seen.failed)} images could not be read; the first: {next(iter(seen.failed.values()))}")
    return {
        "model": exam.model.key,
        "task": exam.model.manifest["task"],
        "split": exam.split,
        "classes": list(exam.classes),
        "single": seen.judge.predictor.single,
        "images": len(seen.split.ids),
        "val": len(seen.val.ids),
        "targets": dict(wish.targets),
        "draws": intervals.DRAWS,
        "confidence": intervals.CONFIDENCE,
        "notes": notes,
        "failed": seen.failed,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "project": exam.project.name,
    }


def _store(file: Path, exam: EvaluationPlan, judged: EvaluatedImages, rows: Mapping[str, Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    paths = {one.id: str(one.path) for one in exam.items}
    names = [name.removeprefix("eval_") for name in next(iter(rows.values()))]
    table = {
        "id": list(judged.ids),
        "path": [paths[id] for id in judged.ids],
        "group": list(judged.groups),
        "present": [_shown(judged.classes, row) for row in judged.present],
        "decided": [_shown(judged.classes, row) for row in judged.decided],
        "p": [row.tolist() for row in judged.p],
    } | {name: [list(row.values())[place] for row in rows.values()] for place, name in enumerate(names)}
    texts = ("present", "decided", "missed", "false_alarm", "missed_sizes")
    schema = pa.schema([(name, pa.list_(pa.string()) if name in texts else _kind(name)) for name in table])
    parquet.write_table(pa.table(table, schema=schema), file, compression="zstd")


def _kind(name: str) -> Any:
    import pyarrow as pa

    if name == "p":
        return pa.list_(pa.float64())
    return pa.float64() if name in ("confidence", "dice") else pa.string()


def _shown(classes: Sequence[str], row: Any) -> list[str]:
    return [name for name, yes in zip(classes, row, strict=True) if yes]


# --- in the index ---------------------------------------------------------------------------------------------------


def _show(index: Index, exam: EvaluationPlan, found: Evaluation) -> None:
    """The mistakes of this evaluation, from what is kept of it: no image is looked at again."""
    table = per_image.table_of(exam.project, exam.model, exam.classes)
    known = per_image.known(table, exam.every)
    parts = [[one for one in part if one.id in known] for part in (exam.items, exam.val)]
    split, val = (per_image.gathered(table, part, exam.classes, bool(found.manifest["single"])) for part in parts)
    rows = mistakes.rows(split)
    if before := _before(exam, found):
        for id, change in mistakes.changes(split, mistakes.load(before.folder / PER_IMAGE)).items():
            rows[id] |= change
    rest = index.rows("status", "missing")
    labelled = [id for id, status, missing in rest if status == "labelled" and not missing and id not in known]
    others = mistakes.of_scores(index, exam.model.key, labelled)
    said = per_image.said(table, split.ids, exam.classes, f"model-{exam.model.key}")
    mistakes.register(index, found.manifest)
    mistakes.show(index, rows, mistakes.mistakenness([split, val], others), said, f"model-{exam.model.key}")


def _before(exam: EvaluationPlan, found: Evaluation) -> Evaluation | None:
    """The newest evaluation of another model on this split."""
    others = (one for one in every(exam.project, exam.split) if one.model != found.model)
    return next(others, None)
