"""`curate robustness --leave-out exposure`: does a model cope with an exposure that it was not trained on?

For each exposure the model's recipe is trained anew without its images, and predicts those of the split. The model
itself predicts the same images for comparison. A training that was killed continues; the results are in
`work/robustness/<model>/leave-out-<by>-<key>/`.
"""

from __future__ import annotations

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

EXPOSURE = re.compile(r"exp(\d+)_")  # in file names of the magnetic-tile data set
BY: dict[str, Callable[[Item], str | None]] = {
    "exposure": lambda item: match[1] if (match := EXPOSURE.search(item.path.name)) else None,
    "stratum": lambda item: item.stratum,
}
STEP = 1


@dataclass(frozen=True)
class LeaveOutTask:
    """Everything that is needed to train without one value of `by`, and to evaluate that model."""

    plan: EvaluationPlan
    data: TrainingData
    by: str
    device: str
    folder: Path

    def items_with(self, items: Sequence[Item], value: str) -> list[Item]:
        return [item for item in items if BY[self.by](item) == value]

    @property
    def values(self) -> list[str]:
        """Values that both train and the evaluated split contain."""
        evaluated, trained = ({BY[self.by](item) for item in part} for part in (self.plan.items, self.data.train))
        return sorted(value for value in evaluated & trained if value is not None)

    def without(self, value: str) -> TrainingData:
        train, val = (tuple(o for o in part if BY[self.by](o) != value) for part in (self.data.train, self.data.val))
        return replace(self.data, train=train, val=val)


def make_task(project: Project, request: EvaluateRequest, by: str) -> LeaveOutTask:
    """Plan the trainings; raises CurateError where there is nothing to leave out."""
    if by not in BY:
        raise unknown("property to leave out", by, BY)
    index = Index(project)
    plan = evaluating.make_plan(index, request)
    data = dataset.collect(index, plan.model.manifest["task"]).as_wanted(recipe_of(plan.model))
    if data.outputs != tuple(plan.model.manifest["outputs"]):
        raise CurateError(
            f"model {plan.model.key} was trained on other classes than today's labels have. Train again: curate train"
        )
    labels = sorted((item.id, item.label.digest) for item in plan.items)
    key = key_of([data.digest, labels, by, STEP, *plan.model.versions])[:16]
    folder = robustness.model_folder(project, plan.model.key) / f"leave-out-{by}-{key}"
    task = LeaveOutTask(plan, data, by, request.device, folder)
    if len({BY[by](item) for item in data.train} - {None}) < 2 or not task.values:
        raise CurateError(f"the images of train and {plan.split} do not differ in {by}: there is nothing to leave out")
    return task


def cost(task: LeaveOutTask) -> str:
    """Return the number of trainings to do and their duration, in words."""
    seconds, device = task.plan.model.manifest["seconds"], task.plan.model.manifest["device"]
    todo = [value for value in task.values if not (task.folder / f"{value}.json").is_file()]
    return f"{len(todo)} trainings, about as long as the model's own: {seconds:.0f} s each (on {device})"


def run(task: LeaveOutTask, progress: Progress = lambda stage, done, total: None) -> Robustness:
    """Train once without each value, and evaluate on its images; finished values are kept."""
    manifest: dict[str, Any] = {"model": task.plan.model.key, "split": task.plan.split, "by": task.by, "step": STEP}
    manifest["notes"] = list(task.plan.notes)
    fresh = not (task.folder / robustness.MANIFEST).is_file()
    with files.writer_lock(task.plan.project.work / "robustness", "curate robustness"):
        task.folder.mkdir(parents=True, exist_ok=True)
        answers = {value: _answers_of(task, value, progress) for value in task.values}
        if fresh:
            files.write_json(task.folder / robustness.METRICS_FILE, summarise(task, answers))
            files.write_json(task.folder / robustness.MANIFEST, manifest)
    return robustness.read_result(task.folder, fresh)


Rows = dict[str, dict[str, Any]]  # by image: the answers of the model and of the one trained without the value


def _answers_of(task: LeaveOutTask, value: str, progress: Progress) -> Rows:
    file, scratch = task.folder / f"{value}.json", task.folder / f".{value}.training"
    if not file.is_file():
        without = _train(task, value, scratch, progress)
        files.write_json(file, _evaluate_value(task, value, without))
        files.remove(scratch)
    rows: Rows = files.read_json(file)
    return rows


def _train(task: LeaveOutTask, value: str, scratch: Path, progress: Progress) -> ModelEvaluator:
    """Train the model's recipe on all images but those of this value."""
    from curate.devices import device_of

    recipe, device, data = recipe_of(task.plan.model), device_of(task.device), task.without(value)
    scratch.mkdir(parents=True, exist_ok=True)
    model, start = training.network_of(recipe, data)
    plan = training.plan_of(task.plan.project, recipe, data)
    setting = loop.FitSettings(recipe, data, plan, start.frozen, scratch, device, training.workers_of(device))
    loop.fit(model, setting, lambda stage, done, total: progress(f"without {task.by} {value}: {stage}", done, total))
    checkpoint.load_into(model, scratch / loop.BEST)
    # It decides as the model does, so that the two differ by their training alone.
    name, fitted = f"without-{value}", task.plan.model.decisions
    predictor = Predictor(name, data.classes, recipe, data.single, model.eval(), device, decisions=fitted)
    return ModelEvaluator(predictor, task.plan.classes, task.plan.project.config.limits.max_pixels)


def _evaluate_value(task: LeaveOutTask, value: str, without: ModelEvaluator) -> Rows:
    whole = robustness.load_evaluator(task.plan, task.device)
    rows: Rows = {}
    for item in task.items_with(task.plan.items, value):
        try:
            image = robustness.read_pixels(whole, item)
        except LabelProblem:
            continue
        answers = [robustness.evaluate_image(evaluator, item, image) for evaluator in (whole, without)]
        rows[item.id] = {
            "decided": [answer[0].tolist() for answer in answers],
            "counts": [answer[1].tolist() for answer in answers],
        }
    return rows


# --- metrics --------------------------------------------------------------------------------------------------------


def summarise(task: LeaveOutTask, answers: Mapping[str, Rows]) -> dict[str, Any]:
    """Return the metrics by value and over all images, each predicted by a model trained without its value."""
    everything = {id: row for rows in answers.values() for id, row in rows.items()}
    left = {value: len(task.data.train) - len(task.without(value).train) for value in answers}
    by_value = {
        value: _with_and_without(task, rows) | {"left_out": left[value]} for value, rows in answers.items() if rows
    }
    segments = task.plan.model.manifest["task"] == "segmentation"
    return {
        "by": task.by,
        "score": "Dice" if segments else "F1",
        "all": _with_and_without(task, everything),
        "values": by_value,
    }


def _with_and_without(task: LeaveOutTask, rows: Rows) -> dict[str, Any]:
    items, classes = [item for item in task.plan.items if item.id in rows], task.plan.classes
    decided, counts = (np.array([rows[item.id][key] for item in items]).swapaxes(0, 1) for key in ("decided", "counts"))
    segments = task.plan.model.manifest["task"] == "segmentation"
    groups = tuple(item.group or item.id for item in items)
    present = np.array([[name in item.label.present for name in classes] for item in items], bool)
    answers = ConditionResults(classes, groups, present, decided.astype(bool), counts if segments else None)
    draws = BootstrapDraws.of(groups)
    whole, without = (robustness.condition_metrics(answers, row, draws) for row in (0, 1))
    return {
        "images": len(items),
        "groups": int(draws.weights.shape[1]),
        "classes": {
            who: {
                name: {
                    "with": intervals.estimate(metric).to_json(),
                    "without": intervals.estimate(without[who][name]).to_json(),
                    "drop": intervals.difference(
                        metric._replace(values=metric.values - without[who][name].values)
                    ).to_json(),
                }
                for name, metric in by_name.items()
            }
            for who, by_name in whole.items()
        },
    }
