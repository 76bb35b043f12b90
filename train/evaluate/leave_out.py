"""`curate robustness --leave-out exposure`: does a model cope with an exposure from which it has learnt nothing?

For each exposure the model's recipe is trained anew without its images, and asked about those of the split. Beside it
stands the model itself, on the same images. A training that was killed goes on; what it left lies in
`work/robustness/<model>/leave-out-<by>-<key>/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.data import Item
from curate.errors import CurateError, LabelProblem, unknown
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.project import Project
from train import checkpoint
from train.data import dataset
from train.data.dataset import TrainingData
from train.evaluate import intervals, robustness
from train.evaluate import run as evaluating
from train.evaluate.intervals import BootstrapDraws
from train.evaluate.per_image import ModelEvaluator
from train.evaluate.robustness import ConditionResults, Progress, Robustness
from train.evaluate.run import EvaluateRequest, EvaluationPlan
from train.fit import loop
from train.fit import run as training
from train.predict.predictor import Predictor, recipe_of

EXPOSURE = re.compile(r"exp(\d+)_")  # as the magnetic tiles' files are named
BY: dict[str, Callable[[Item], str | None]] = {
    "exposure": lambda item: found[1] if (found := EXPOSURE.search(item.path.name)) else None,
    "stratum": lambda item: item.stratum,
}
STEP = 1


@dataclass(frozen=True)
class LeaveOutTask:
    """All that is needed to train without one value, and to judge what came of it."""

    exam: EvaluationPlan
    data: TrainingData
    by: str
    device: str
    folder: Path

    def of(self, items: Sequence[Item], value: str) -> list[Item]:
        return [one for one in items if BY[self.by](one) == value]

    @property
    def values(self) -> list[str]:
        """Those of which there is something to unlearn, and something to judge by."""
        tested, learnt = ({BY[self.by](one) for one in part} for part in (self.exam.items, self.data.train))
        return sorted(value for value in tested & learnt if value is not None)

    def without(self, value: str) -> TrainingData:
        train, val = (tuple(o for o in part if BY[self.by](o) != value) for part in (self.data.train, self.data.val))
        return replace(self.data, train=train, val=val)


def prepared(project: Project, wish: EvaluateRequest, by: str) -> LeaveOutTask:
    """Raises CurateError where there is nothing to leave out."""
    if by not in BY:
        raise unknown("kind of images to leave out", by, BY)
    index = Index(project)
    exam = evaluating.prepared(index, wish)
    data = dataset.collect(index, exam.model.manifest["task"])
    if data.outputs != tuple(exam.model.manifest["outputs"]):
        raise CurateError(f"model {exam.model.key} was trained on other classes than today's labels. Train again first")
    key = key_of([data.digest, sorted((one.id, one.label.digest) for one in exam.items), by, STEP])[:16]
    folder = robustness.home(project, exam.model.key) / f"leave-out-{by}-{key}"
    task = LeaveOutTask(exam, data, by, wish.device, folder)
    if len({BY[by](one) for one in data.train} - {None}) < 2 or not task.values:
        raise CurateError(f"the images of train and {exam.split} do not differ in {by}: there is nothing to leave out")
    return task


def cost(task: LeaveOutTask) -> str:
    """What a user should know before it begins."""
    seconds, device = task.exam.model.manifest["seconds"], task.exam.model.manifest["device"]
    todo = [value for value in task.values if not (task.folder / f"{value}.json").is_file()]
    return f"{len(todo)} trainings, about as long as the model's own: {seconds:.0f} s each (on {device})"


def run(task: LeaveOutTask, progress: Progress = lambda stage, done, total: None) -> Robustness:
    """Train once without each value; a value that is done stays done."""
    manifest: dict[str, Any] = {"model": task.exam.model.key, "split": task.exam.split, "by": task.by, "step": STEP}
    manifest["notes"] = list(task.exam.notes)
    fresh = not (task.folder / robustness.MANIFEST).is_file()
    with files.writer_lock(task.exam.project.work / "robustness", "curate robustness"):
        task.folder.mkdir(parents=True, exist_ok=True)
        seen = {value: _seen(task, value, progress) for value in task.values}
        if fresh:
            files.write_json(task.folder / robustness.FIGURES, described(task, seen))
            files.write_json(task.folder / robustness.MANIFEST, manifest)
    return robustness.opened(task.folder, fresh)


Rows = dict[str, dict[str, Any]]  # by image: what the model and the one that had to do without say


def _seen(task: LeaveOutTask, value: str, progress: Progress) -> Rows:
    file, scratch = task.folder / f"{value}.json", task.folder / f".{value}.training"
    if not file.is_file():
        without = _trained(task, value, scratch, progress)
        files.write_json(file, _answers(task, value, without))
        files.remove(scratch)
    rows: Rows = json.loads(file.read_text(encoding="utf-8"))
    return rows


def _trained(task: LeaveOutTask, value: str, scratch: Path, progress: Progress) -> ModelEvaluator:
    """The model's recipe on all images but those of this value."""
    from curate.devices import device_of

    made, device, data = recipe_of(task.exam.model), device_of(task.device), task.without(value)
    scratch.mkdir(parents=True, exist_ok=True)
    model, start = training.network_of(made, data)
    plan = training.plan_of(task.exam.project, made, data)
    setting = loop.FitSettings(made, data, plan, start.frozen, scratch, device, training.workers_of(device))
    loop.fit(model, setting, lambda stage, done, total: progress(f"without {task.by} {value}: {stage}", done, total))
    checkpoint.load_into(model, scratch / loop.BEST)
    about = Predictor(f"without-{value}", data.classes, made, data.single, model.eval(), device)
    return ModelEvaluator(about, task.exam.classes, task.exam.project.config.limits.max_pixels)


def _answers(task: LeaveOutTask, value: str, without: ModelEvaluator) -> Rows:
    whole = robustness.judge_of(task.exam, task.device)
    rows: Rows = {}
    for item in task.of(task.exam.items, value):
        try:
            image = robustness.pixels_of(whole, item)
        except LabelProblem:
            continue
        said = [robustness.answer(judge, item, image) for judge in (whole, without)]
        rows[item.id] = {"decided": [one[0].tolist() for one in said], "counts": [one[1].tolist() for one in said]}
    return rows


# --- figures --------------------------------------------------------------------------------------------------------


def described(task: LeaveOutTask, seen: Mapping[str, Rows]) -> dict[str, Any]:
    """Each value's images, and all of them: every image judged by a model that knew nothing like it."""
    everything = {id: row for rows in seen.values() for id, row in rows.items()}
    left = {value: len(task.data.train) - len(task.without(value).train) for value in seen}
    found = {value: _compared(task, rows) | {"left_out": left[value]} for value, rows in seen.items() if rows}
    segments = task.exam.model.manifest["task"] == "segmentation"
    return {"by": task.by, "score": "Dice" if segments else "F1", "all": _compared(task, everything), "values": found}


def _compared(task: LeaveOutTask, rows: Rows) -> dict[str, Any]:
    items, classes = [one for one in task.exam.items if one.id in rows], task.exam.classes
    decided, counts = (np.array([rows[one.id][key] for one in items]).swapaxes(0, 1) for key in ("decided", "counts"))
    segments = task.exam.model.manifest["task"] == "segmentation"
    groups = tuple(one.group or one.id for one in items)
    present = np.array([[name in one.label.present for name in classes] for one in items], bool)
    answers = ConditionResults(classes, groups, present, decided.astype(bool), counts if segments else None)
    draws = BootstrapDraws.of(groups)
    whole, without = (robustness.measures(answers, row, draws) for row in (0, 1))
    return {
        "images": len(items),
        "groups": int(draws.weights.shape[1]),
        "classes": {
            who: {
                name: {
                    "with": intervals.figure(one).to_json(),
                    "without": intervals.figure(without[who][name]).to_json(),
                    "drop": intervals.difference(one._replace(values=one.values - without[who][name].values)).to_json(),
                }
                for name, one in by_name.items()
            }
            for who, by_name in whole.items()
        },
    }
