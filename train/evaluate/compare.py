"""`curate compare A B`: two models on the same images, group by group, and what the difference comes to in words.

Both are judged in the same draws of groups, so what makes an image hard for both cancels out: the interval of a
difference is far narrower than two intervals side by side would suggest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from train.evaluate import intervals, metrics
from train.evaluate import run as evaluating
from train.evaluate.intervals import FEW, BootstrapMetric, Estimate
from train.evaluate.metrics import ByName, EvaluatedImages
from train.evaluate.run import EvaluateRequest, Progress

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
    """B minus A, and what to make of it."""

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
        shown = {name: one.to_json() for name, one in self.overall.items()}
        by_class = {name: {key: one.to_json() for key, one in found.items()} for name, found in self.classes.items()}
        return vars(self) | {"overall": shown, "classes": by_class}


def run(
    project: Project,
    a: str,
    b: str,
    wish: EvaluateRequest,
    progress: Progress = lambda stage, done, total: None,
) -> Comparison:
    """Judge both where that is still to do, and hold them against each other. The caller holds the writer lock."""
    index = Index(project)
    exams = [evaluating.prepared(index, EvaluateRequest(one, wish.split, {}, wish.allow_leak)) for one in (a, b)]
    keys = [exam.model.key for exam in exams]
    if keys[0] == keys[1]:
        raise CurateError(f"'{a}' and '{b}' are the same model, {keys[0]}. See: curate models")
    kept = [[one.id for one in exam.items] for exam in exams]
    seen = [evaluating.examined(exam, wish.device, progress).split for exam in exams]
    both = set(seen[0].ids).intersection(seen[1].ids)
    if not both:
        raise CurateError(f"no image of {wish.split} can be judged by both models")
    notes = list(dict.fromkeys(note for exam in exams for note in exam.notes))
    if kept[0] != kept[1]:
        notes.append(f"only the {len(both)} images that both models can be judged by are compared")
    before, after = (chosen(one, both) for one in seen)
    return compared(before, after, keys[0], keys[1], wish.split, notes)


def chosen(judged: EvaluatedImages, ids: set[str]) -> EvaluatedImages:
    """These images alone, in order; pixels and regions go with them."""
    rows = np.array([row for row, id in enumerate(judged.ids) if id in ids], int)
    if len(rows) == len(judged.ids):
        return judged
    return judged.taken(rows)


def compared(
    before: EvaluatedImages, after: EvaluatedImages, a: str, b: str, split: str, notes: list[str]
) -> Comparison:
    """Pure: two models' judged images, which are the same ones."""
    draws = before.draws()
    (all_before, then), (all_after, now) = (metrics.measures(one, draws) for one in (before, after))
    differences = _minus(all_before, all_after)
    classes = {name: _minus(then[name], now[name]) for name in before.classes}
    right = [(one.present == one.decided).all(axis=1) for one in (before, after)]
    groups = int(draws.weights.shape[1])
    verdict = _verdict(differences, classes, groups)
    fixed, broken = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    verdict.append(f"B puts {fixed} images right that A has wrong, and gets {broken} wrong that A has right")
    return Comparison(a, b, split, len(before.ids), groups, differences, classes, fixed, broken, verdict, notes)


def _minus(before: ByName, after: ByName) -> dict[str, Estimate]:
    return {name: _difference(one, after[name]) for name, one in before.items() if name in after}


def _difference(before: BootstrapMetric, after: BootstrapMetric) -> Estimate:
    n, groups = min(before.n, after.n), min(before.groups, after.groups)
    return intervals.difference(BootstrapMetric(after.values - before.values, n, groups))


# --- in words -------------------------------------------------------------------------------------------------------


def _verdict(overall: Mapping[str, Estimate], classes: Mapping[str, Mapping[str, Estimate]], groups: int) -> list[str]:
    said = [words for key, forms in OVERALL.items() if (words := _words(overall.get(key), forms, "B "))]
    found = said or [f"no difference over all classes that these {groups} groups can show"]
    for name, by_metric in classes.items():
        found += _of_class(name, by_metric)
    return found


def _of_class(name: str, found: Mapping[str, Estimate]) -> list[str]:
    recall = found["recall"]
    if not recall.n:
        return [f"{name}: no image shows it, nothing can be said"]
    if recall.groups < FEW:
        return [f"{name}: {recall.groups} groups are too few to say"]
    forms = {key: tuple(text.format(name=name) for text in pair) for key, pair in WORDS.items()}
    said = [words for key, pair in forms.items() if (words := _words(found.get(key), pair, "B "))]
    return said or [f"{name}: no difference that these {recall.groups} groups can show"]


def _words(one: Estimate | None, forms: tuple[str, ...], lead: str) -> str:
    """What the difference means; nothing where its interval holds 0."""
    if one is None or not (one.low > 0 or one.high < 0):
        return ""
    words = forms[0] if one.value > 0 else forms[1]
    return f"{lead}{words}: {one.value:+.2f} ({one.low:.2f} to {one.high:.2f})"
