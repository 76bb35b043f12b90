"""Fit a model's decisions on val: for each class the threshold and area of best F1, or those that reach a recall.

curate train                                       fits those of best F1
curate models decide --target-recall crack=0.99    fits them anew; predict, suggestions and exports follow
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from curate import files
from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from train import store
from train.evaluate import metrics
from train.evaluate import run as evaluating
from train.evaluate.metrics import EvaluatedImages
from train.evaluate.run import EvaluateRequest, Progress

FEWEST = 3  # images of val that must show a class, and as many that must not, for a fit of its best F1


@dataclass(frozen=True)
class DecideResult:
    """The decisions of a model: `fitted` by class, as in its manifest; `before`: those that it had."""

    model: str
    images: int
    fitted: dict[str, dict[str, Any]]
    before: dict[str, dict[str, Any]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def fit(val: EvaluatedImages, known: Collection[str], targets: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the decisions as the manifest holds them, of the classes that val has enough images of.

    Args:
        val: labels and predictions of val.
        known: the model's classes.
        targets: the recall to reach, by class; the others are fitted to the best F1.
    """
    points = {}
    for place, name in enumerate(val.classes):
        truth = val.present[:, place]
        if name not in known:
            continue
        if name in targets:
            points[name] = metrics.fit_operating_point(val, place, targets[name])
        elif min(truth.sum(), (~truth).sum()) >= FEWEST and not val.single:  # a single choice has its best at once
            points[name] = metrics.fit_best_f1(val, place)
    return {name: _entry(val, val.classes.index(name), point) for name, point in points.items()}


def _entry(val: EvaluatedImages, place: int, point: metrics.OperatingPoint) -> dict[str, Any]:
    truth, decided = val.present[:, place], point.decide(val, place)
    hits, alarms = int((truth & decided).sum()), int((~truth & decided).sum())
    counts = {"images": int(truth.sum()), "found": hits, "without": int((~truth).sum()), "false_alarms": alarms}
    return {"threshold": point.threshold, "min_area": point.min_area, "target": point.target} | {"val": counts}


def run(
    project: Project,
    wanted: str | None,
    targets: Mapping[str, float],
    device: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> DecideResult:
    """Fit a model's decisions anew and store them with it; what it predicted by the old ones is forgotten.

    Args:
        project: the project, whose writer lock the caller holds.
        wanted: the model's key or alias.
        targets: the recall to reach, by class; the others get their best F1.
        device: auto, cpu or cuda.
        progress: called with stage, images done and images in all.
    """
    request = EvaluateRequest(wanted, "val", targets, allow_leak=True, device=device)
    plan = evaluating.make_plan(Index(project), request)
    evaluating.check_targets(plan, targets)
    if unknown := [name for name in targets if name not in plan.model.manifest["classes"]]:
        raise CurateError(f"model {plan.model.key} does not know {', '.join(unknown)}: no threshold lets it find any")
    val = evaluating.evaluate_images(plan, device, progress).val
    fitted = fit(val, plan.model.manifest["classes"], targets)
    before = plan.model.manifest.get("decisions") or {}
    if fitted != before:
        files.remove(project.work / "scores" / f"model-{plan.model.key}.lance")  # predict begins anew
        store.set_decisions(plan.model, fitted)
    notes = _notes(fitted, plan.model.manifest["classes"], val.single)
    return DecideResult(plan.model.key, len(val.ids), fitted, before, notes)


def _notes(fitted: Mapping[str, Mapping[str, Any]], classes: list[str], single: bool) -> list[str]:
    missed = [name for name, entry in fitted.items() if entry["target"] and not _reached(entry)]
    notes = [f"val does not reach the recall asked for of {', '.join(missed)}"] if missed else []
    if rest := [name for name in classes if name not in fitted]:
        why = "the most likely outcome wins" if single else f"val has fewer than {FEWEST} images with or without it"
        notes.append(f"the recipe's threshold stays for {', '.join(rest)}: {why}")
    return notes


def _reached(entry: Mapping[str, Any]) -> bool:
    return bool(entry["val"]["found"] >= entry["target"] * entry["val"]["images"] - 1e-9)
