"""`curate compare A B`: two models on the same images, with paired intervals and a verdict in words.

Both models are measured in the same bootstrap draws of groups, so what makes an image hard for both cancels out: the
interval of a difference is far narrower than two separate intervals suggest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from train.evaluate import intervals, metrics
from train.evaluate import run as evaluating
from train.evaluate.intervals import FEW, BootstrapMetric, Estimate
from train.evaluate.metrics import EvaluatedImages, MetricsByName
from train.evaluate.run import EvaluateRequest, EvaluationPlan, Progress

WORDS = {
    "recall": ("finds more {name}", "finds less {name}"),
    "false_alarms": ("raises more false alarms of {name}", "raises fewer false alarms of {name}"),
    "ap": ("ranks {name} better", "ranks {name} worse"),
    "dice": ("outlines {name} better", "outlines {name} worse"),
}
OVERALL = {
    "macro_f1": ("is better over all classes (macro F1)", "is worse over all classes (macro F1)"),
    "clean_false_alarms": ("raises more false alarms on clean images", "raises fewer false alarms on clean images"),
    "dice": ("outlines defects better (Dice)", "outlines defects worse (Dice)"),
    "accuracy": ("is right more often", "is right less often"),
}


@dataclass(frozen=True)
class Comparison:
    """The differences B minus A, with a verdict. `fixed` and `broken`: images that B alone and A alone get right."""

    a: str
    b: str
    split: str
    images: int
    groups: int
    overall: dict[str, Estimate]
    classes: dict[str, dict[str, Estimate]]
    fixed: int
    broken: int
    verdict: list[str]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        overall = {name: estimate.to_json() for name, estimate in self.overall.items()}
        by_class = {
            name: {key: estimate.to_json() for key, estimate in estimates.items()}
            for name, estimates in self.classes.items()
        }
        return vars(self) | {"overall": overall, "classes": by_class}


def run(
    project: Project,
    a: str,
    b: str,
    request: EvaluateRequest,
    progress: Progress = lambda stage, done, total: None,
) -> Comparison:
    """Evaluate both models where that is still to do, and compare them.

    Args:
        project: the project, whose writer lock the caller holds.
        a: the first model: key, start of a key, or alias.
        b: the second model.
        request: split and device; its model is not used.
        progress: called with stage, images done and images in all.

    Returns:
        The differences B minus A.
    """
    plans, (before, after), notes = on_the_same_images(project, (a, b), request, progress)
    return comparison(before, after, plans[0].model.key, plans[1].model.key, request.split, notes)


def on_the_same_images(
    project: Project, names: Sequence[str], request: EvaluateRequest, progress: Progress
) -> tuple[list[EvaluationPlan], list[EvaluatedImages], list[str]]:
    """Evaluate models where that is still to do; return their plans, their results on common images, and notes."""
    index = Index(project)
    plans = [
        evaluating.make_plan(index, EvaluateRequest(name, request.split, {}, request.allow_leak)) for name in names
    ]
    first: dict[str, str] = {}
    for name, plan in zip(names, plans, strict=True):
        if plan.model.key in first:
            other = first[plan.model.key]
            raise CurateError(f"'{other}' and '{name}' are the same model, {plan.model.key}. See: curate models")
        first[plan.model.key] = name
    kept = [[item.id for item in plan.items] for plan in plans]
    evaluated = [evaluating.evaluate_images(plan, request.device, progress).split for plan in plans]
    common = set(evaluated[0].ids).intersection(*(images.ids for images in evaluated[1:]))
    if not common:
        raise CurateError(f"no image of {request.split} can be evaluated with all of these models")
    notes = list(dict.fromkeys(note for plan in plans for note in plan.notes))
    if any(ids != kept[0] for ids in kept):
        notes.append(f"only the {len(common)} images that all of these models can be evaluated on are compared")
    return plans, [subset(images, common) for images in evaluated], notes


def subset(evaluated: EvaluatedImages, ids: set[str]) -> EvaluatedImages:
    """Return these images alone, in their order, with their pixels and regions."""
    rows = np.array([row for row, id in enumerate(evaluated.ids) if id in ids], int)
    if len(rows) == len(evaluated.ids):
        return evaluated
    return evaluated.take(rows)


def comparison(
    before: EvaluatedImages, after: EvaluatedImages, a: str, b: str, split: str, notes: list[str]
) -> Comparison:
    """Compare two models' results on the same images."""
    draws = before.draws()
    (all_before, then), (all_after, now) = (metrics.compute(evaluated, draws) for evaluated in (before, after))
    differences = _differences(all_before, all_after)
    classes = {name: _differences(then[name], now[name]) for name in before.classes}
    right = [(evaluated.present == evaluated.decided).all(axis=1) for evaluated in (before, after)]
    groups = int(draws.weights.shape[1])
    verdict = _verdict(differences, classes, groups)
    fixed, broken = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    verdict.append(f"B is right on {fixed} images that A gets wrong, and wrong on {broken} that A gets right")
    return Comparison(a, b, split, len(before.ids), groups, differences, classes, fixed, broken, verdict, notes)


def _differences(before: MetricsByName, after: MetricsByName) -> dict[str, Estimate]:
    return {name: _difference(metric, after[name]) for name, metric in before.items() if name in after}


def _difference(before: BootstrapMetric, after: BootstrapMetric) -> Estimate:
    n, groups = min(before.n, after.n), min(before.groups, after.groups)
    return intervals.difference(BootstrapMetric(after.values - before.values, n, groups))


# --- verdict --------------------------------------------------------------------------------------------------------


def _verdict(overall: Mapping[str, Estimate], classes: Mapping[str, Mapping[str, Estimate]], groups: int) -> list[str]:
    statements = [words for key, forms in OVERALL.items() if (words := _statement(overall.get(key), forms, "B "))]
    verdict = statements or [f"no difference over all classes that these {groups} groups can show"]
    for name, by_metric in classes.items():
        verdict += _class_verdict(name, by_metric)
    return verdict


def _class_verdict(name: str, differences: Mapping[str, Estimate]) -> list[str]:
    recall = differences["recall"]
    if not recall.n:
        return [f"{name}: no image shows it, so it cannot be measured"]
    if recall.groups < FEW:
        return [f"{name}: {recall.groups} groups are too few to say"]
    forms = {key: tuple(text.format(name=name) for text in pair) for key, pair in WORDS.items()}
    statements = [words for key, pair in forms.items() if (words := _statement(differences.get(key), pair, "B "))]
    return statements or [f"{name}: no difference that these {recall.groups} groups can show"]


def _statement(difference: Estimate | None, forms: tuple[str, ...], lead: str) -> str:
    """Return the difference in words; an empty string where its interval holds 0."""
    if difference is None or not (difference.low > 0 or difference.high < 0):
        return ""
    words = forms[0] if difference.value > 0 else forms[1]
    return f"{lead}{words}: {difference.value:+.2f} ({difference.low:.2f} to {difference.high:.2f})"
