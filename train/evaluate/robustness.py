"""`curate robustness`: what a model loses when light, lens or air change, with intervals.

Every image of the split is looked at as it is and in five changes of five severities, once each; what was seen lies in
`work/robustness/<model>/seen-<key>.lance`, so that a run that was killed goes on. The same steel changes in the same
way each time. `train/evaluate/leave_out.py` asks the harder question: does a model cope with an exposure that it never
learnt?
"""

from __future__ import annotations

import hashlib
import json
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
from train.evaluate import metrics as figures
from train.evaluate import run as evaluating
from train.evaluate.intervals import BootstrapDraws, BootstrapMetric
from train.evaluate.metrics import EvaluatedImages
from train.evaluate.per_image import ModelEvaluator
from train.evaluate.run import EvaluateRequest, EvaluationPlan
from train.predict.predictor import components, load_predictor

LEVELS: dict[str, tuple[float, ...]] = {
    "exposure": (0.3, 0.6, 1.0, 1.5, 2.0),  # stops, more or less
    "glare": (40, 80, 120, 160, 200),  # grey levels of the reflection
    "blur": (0.7, 1.2, 2.0, 3.0, 4.5),  # pixels, Gaussian
    "noise": (4, 8, 14, 22, 32),  # grey levels, Gaussian
    "haze": (0.15, 0.3, 0.45, 0.6, 0.75),  # of the contrast, where it is thickest
}
CLEAN = ("clean", 0)
CONDITIONS = (CLEAN, *((name, severity) for name, levels in LEVELS.items() for severity in range(1, len(levels) + 1)))
STEP = 1  # raise it when the same model and labels give other figures than before
CHUNK = 16  # images to an append
MANIFEST, FIGURES = "manifest.json", "figures.json"
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


# --- one image, changed ---------------------------------------------------------------------------------------------


def changed(image: Pixels, name: str, severity: int, id: str) -> Pixels:
    """Image (H, W, C) under a change; where on it, and which way, follows from its id alone."""
    if (name, severity) == CLEAN:
        return image
    seed = hashlib.sha256(f"{name} {id}".encode()).digest()
    return CHANGES[name](image, LEVELS[name][severity - 1], np.random.default_rng(list(seed)))


def _exposed(image: Pixels, stops: float, rng: Rng) -> Pixels:
    return to_uint8(image * 2.0 ** (stops if rng.random() < 0.5 else -stops))


def _blurred(image: Pixels, sigma: float, rng: Rng) -> Pixels:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)).reshape(image.shape)


def _noisy(image: Pixels, sigma: float, rng: Rng) -> Pixels:
    return to_uint8(image + rng.normal(0, sigma, image.shape[:2])[..., None])


CHANGES: dict[str, Callable[[Pixels, float, Rng], Pixels]] = {
    "exposure": _exposed,
    "glare": add_glare,
    "blur": _blurred,
    "noise": _noisy,
    "haze": add_haze,
}


# --- what a model says of it ----------------------------------------------------------------------------------------


def answer(judge: ModelEvaluator, item: Item, image: Pixels) -> tuple[Bools, Counts]:
    """Which classes it sees, and pixels found, false and missed (C, 3): all that the figures here are made of."""
    predictor, classes = judge.predictor, judge.classes
    if not judge.segments:
        named = {name for name, _ in predictor.predict_image(image).classes}
        return np.array([name in named for name in classes], bool), np.zeros((len(classes), 3), np.int64)
    p, limits = judge.ordered(predictor.probabilities(image)), predictor.recipe.predict
    truth, mine = masks_of(item, classes), np.zeros((len(classes), item.height, item.width), np.uint8)
    for row, name in enumerate(classes):
        for defect, _ in components(name, p[row], limits.threshold, limits.min_area):
            mine[row] |= mask_of(defect, item.width, item.height)
    both = zip(truth.astype(bool), mine.astype(bool), strict=True)
    counts = [[(t & m).sum(), (~t & m).sum(), (t & ~m).sum()] for t, m in both]
    return np.asarray(mine.any(axis=(1, 2)), bool), np.array(counts, np.int64)


def pixels_of(judge: ModelEvaluator, item: Item) -> Pixels:
    pixels = read(item.id, item.path, judge.max_pixels)
    if pixels.shape[:2] != (item.height, item.width):
        raise LabelProblem(f"is {pixels.shape[1]}x{pixels.shape[0]}, the index says {item.width}x{item.height}")
    return with_channels(pixels, judge.predictor.recipe.input.channels)


def _row(judge: ModelEvaluator, item: Item) -> dict[str, Any]:
    """An image under all conditions."""
    image = pixels_of(judge, item)
    found = [answer(judge, item, changed(image, *condition, item.id)) for condition in CONDITIONS]
    decided, counts = (np.ravel([one[part] for one in found]) for part in (0, 1))
    return {"id": item.id, "label": item.label.digest, "decided": decided.astype(np.uint8), "counts": counts}


def _rows(judge: ModelEvaluator, items: Sequence[Item], failed: dict[str, str]) -> Iterator[dict[str, Any] | None]:
    for item in items:
        try:
            yield _row(judge, item)
        except LabelProblem as problem:
            failed[item.id] = f"{item.path}: {problem}"
            yield None


def table_of(exam: EvaluationPlan) -> Table:
    """What this model has said of changed images; made if it is not there."""
    count = len(CONDITIONS) * len(exam.classes)
    columns = {"label": "string", "decided": f"uint8[{count}]", "counts": f"int64[{3 * count}]"}
    path = home(exam.project, exam.model.key) / f"seen-{key_of([exam.classes, LEVELS, STEP])}.lance"
    return Table(path) if Table.exists(path) else Table.create(path, columns)


def ask(judge: ModelEvaluator, table: Table, items: Sequence[Item], progress: Progress) -> dict[str, str]:
    """Fill the table with what is missing; returns the images that cannot be read, with the reason."""
    done = per_image.known(table, items)
    todo, failed = [one for one in items if one.id not in done], dict[str, str]()
    for part in chunks(_rows(judge, todo, failed), CHUNK):
        if rows := [row for row in part if row]:
            columns = {name: [row[name] for row in rows] for name in table.columns}
            table.append({name: v if isinstance(v[0], str) else np.stack(v) for name, v in columns.items()})
        progress(f"{len(CONDITIONS)} looks at each", len(part), len(todo))
    table.finish(newest=False)
    return failed


# --- figures --------------------------------------------------------------------------------------------------------

ByName = dict[str, BootstrapMetric]


@dataclass(frozen=True)
class ConditionResults:
    """Of n images under every condition: `decided` (conditions, n, C), `counts` (conditions, n, C, 3)."""

    classes: tuple[str, ...]
    groups: tuple[str, ...]
    present: Bools
    decided: Bools
    counts: Counts | None


def gathered(table: Table, items: Sequence[Item], classes: Sequence[str], segments: bool) -> ConditionResults:
    found = table.read([one.id for one in items], ["decided", "counts"])
    shape = (len(items), len(CONDITIONS), len(classes))
    decided = found["decided"].reshape(shape).astype(bool).swapaxes(0, 1)
    counts = found["counts"].reshape(*shape, 3).astype(np.int64).swapaxes(0, 1)
    present = np.array([[name in one.label.present for name in classes] for one in items], bool)
    groups = tuple(one.group or one.id for one in items)
    return ConditionResults(tuple(classes), groups, present, decided, counts if segments else None)


def measures(found: ConditionResults, row: int, draws: BootstrapDraws) -> dict[str, ByName]:
    """Under one condition: `all`, and each class. `score`: Dice where the class is, else F1."""
    decided, truth = found.decided[row], found.present
    by_class = {}
    for place, name in enumerate(found.classes):
        one = figures.decision(truth[:, place], decided[:, place], draws)
        by_class[name] = {"score": one["f1"], "recall": one["recall"]}
    judged = EvaluatedImages(found.classes, found.groups, found.groups, truth, decided.astype(float), decided)
    whole = figures.decisions(judged, decided, draws)
    overall = {"score": whole["macro_f1"], "clean_false_alarms": whole["clean_false_alarms"]}
    if found.counts is not None:
        dice = figures.dices(found.counts[row])
        overall["score"] = draws.share(np.where(truth, dice, 0.0).sum(1), truth.sum(1))
        for place, name in enumerate(found.classes):
            own = truth[:, place]
            by_class[name]["score"] = draws.share(np.where(own, dice[:, place], 0.0), own)
    overall["recall"] = intervals.mean([one["recall"] for one in by_class.values()])
    return {"all": overall} | by_class


def described(found: ConditionResults) -> dict[str, Any]:
    """Clean, every change at every severity, the worst of each, and what that costs: all as plain values."""
    draws = BootstrapDraws.of(found.groups)
    each = {condition: measures(found, row, draws) for row, condition in enumerate(CONDITIONS)}
    changes = {name: [each[name, row + 1] for row in range(len(levels))] for name, levels in LEVELS.items()}
    everything = [one for rows in changes.values() for one in rows]
    names = [condition for condition in CONDITIONS if condition != CLEAN]
    return {
        "score": "F1" if found.counts is None else "Dice",
        "images": len(found.groups),
        "groups": int(draws.weights.shape[1]),
        "clean": _figures(each[CLEAN]),
        "changes": {name: [_figures(one) for one in rows] for name, rows in changes.items()},
        "worst_of": {
            name: worst(each[CLEAN], rows, [(name, row + 1) for row in range(len(rows))])
            for name, rows in changes.items()
        },
        "worst": worst(each[CLEAN], everything, names),
    }


def _figures(found: Mapping[str, ByName]) -> dict[str, Any]:
    return {
        who: {name: intervals.figure(one).to_json() for name, one in by_name.items()} for who, by_name in found.items()
    }


def worst(
    clean: Mapping[str, ByName], rows: Sequence[Mapping[str, ByName]], names: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """The lowest of several conditions, in every draw anew: choosing the worst is part of what is uncertain."""
    found: dict[str, Any] = {}
    for who, by_name in clean.items():
        found[who] = {}
        for name in ("score", "recall"):
            table = np.stack([one[who][name].values for one in rows])
            known = np.asarray(np.isfinite(table).all(axis=0), bool)
            lowest = np.where(known, table.min(axis=0), np.nan)
            before, about = by_name[name], (by_name[name].n, by_name[name].groups)
            entry = {"worst": BootstrapMetric(lowest, *about), "drop": BootstrapMetric(before.values - lowest, *about)}
            place = int(table[:, 0].argmin()) if known[0] else None
            where = {} if place is None else {"change": names[place][0], "severity": names[place][1]}
            figure, drop = intervals.figure(entry["worst"]), intervals.difference(entry["drop"])
            found[who][name] = where | {"worst": figure.to_json(), "drop": drop.to_json()}
    return found


# --- the command ----------------------------------------------------------------------------------------------------


@dataclass
class Robustness:
    """A finished one; `fresh` is false where it was there already."""

    folder: Path
    manifest: dict[str, Any]
    figures: dict[str, Any]
    fresh: bool = False

    def to_json(self) -> dict[str, Any]:
        about = {name: self.manifest[name] for name in ("model", "split", "notes")}
        return about | {"folder": str(self.folder), "fresh": self.fresh} | self.figures


def home(project: Project, model: str) -> Path:
    return project.work / "robustness" / model


def run(project: Project, wish: EvaluateRequest, progress: Progress = lambda stage, done, total: None) -> Robustness:
    """Look at every image of the split under every change, or find that it is done."""
    exam = evaluating.prepared(Index(project), wish)
    folder = home(project, exam.model.key) / f"{exam.split}-{_key(exam)}"
    with files.writer_lock(project.work / "robustness", "curate robustness"):
        if not (folder / MANIFEST).is_file():
            files.remove(folder)
            _write(folder, exam, wish, progress)
            return opened(folder, fresh=True)
    return opened(folder)


def _key(exam: EvaluationPlan) -> str:
    rows = sorted((one.id, one.label.digest, one.group) for one in exam.items)
    return key_of([rows, exam.classes, LEVELS, STEP])[:16]


def opened(folder: Path, fresh: bool = False) -> Robustness:
    manifest, found = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (MANIFEST, FIGURES))
    return Robustness(folder, manifest, found, fresh)


def judge_of(exam: EvaluationPlan, device: str) -> ModelEvaluator:
    predictor = load_predictor(exam.project, exam.model.key, device)
    return ModelEvaluator(predictor, exam.classes, exam.project.config.limits.max_pixels)


def _write(folder: Path, exam: EvaluationPlan, wish: EvaluateRequest, progress: Progress) -> None:
    begun = time.perf_counter()
    judge, table = judge_of(exam, wish.device), table_of(exam)
    failed = ask(judge, table, exam.items, progress)
    good = [one for one in exam.items if one.id not in failed]
    if not good:
        raise CurateError(f"no image of {exam.split} could be read; the first: {next(iter(failed.values()))}")
    found = described(gathered(table, good, exam.classes, judge.segments))
    notes = list(exam.notes)
    if failed:
        notes.append(f"{len(failed)} images could not be read; the first: {next(iter(failed.values()))}")
    manifest: dict[str, Any] = {
        "model": exam.model.key,
        "split": exam.split,
        "classes": list(exam.classes),
        "notes": notes,
    }
    manifest |= {"levels": LEVELS, "draws": intervals.DRAWS, "failed": failed, "step": STEP}
    manifest["seconds"] = round(time.perf_counter() - begun, 1)
    with files.written_aside(folder) as aside:
        aside.mkdir()
        files.write_json(aside / FIGURES, found)
        files.write_json(aside / MANIFEST, manifest)
