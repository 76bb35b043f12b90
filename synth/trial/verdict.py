"""Results of a trial: metrics of every arm, differences from the balanced real arm, and a verdict. Pure functions.

Arms are compared on the same test images, seed by seed; intervals come from drawing whole groups again,
and seeds with them, the same ones for every arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.trial.arms import BALANCED, BASELINES, BLENDS, Arm, worth
from train.evaluate import intervals
from train.evaluate import metrics as figures
from train.evaluate.intervals import BootstrapDraws, BootstrapMetric, Estimate
from train.evaluate.metrics import EvaluatedImages, PixelCounts

BY_CLASS = ("iou", "dice", "pixel_ap", "recall")
OVERALL = ("iou", "dice", "clean_false_alarms")
MAIN = "iou"
BASE = Arm(BALANCED)
NAMES = {"iou": "IoU", "dice": "Dice", "pixel_ap": "AP", "recall": "recall"}
LEAST = 6  # groups: that all of fewer are better may well be chance (1 in 2^5 is more than 2.5 %)


@dataclass(frozen=True)
class ArmResult:
    """An arm at a budget: each figure, and how far it is from the balanced real arm's. Overall stands under ''."""

    budget: int
    arm: Arm
    figures: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    worth: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        def plain(of: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
            return {place: {name: metric.to_json() for name, metric in row.items()} for place, row in of.items()}

        about = {"budget": self.budget, "arm": self.arm.name, "ratio": self.arm.ratio, "gated": self.arm.gated}
        return about | {
            "figures": plain(self.figures),
            "differences": plain(self.differences),
            "worth": dict(self.worth),
            "positive": positive(self.differences),
            "words": words(self),
        }


Seeds = Sequence[EvaluatedImages]  # one a seed, the same images in the same order
Measures = dict[str, dict[str, BootstrapMetric]]


def table(judged: Mapping[tuple[int, Arm], Seeds], base: Arm = BASE) -> list[ArmResult]:
    """All arms of all budgets; a budget without the arm that they are held against shows figures alone."""
    lines: list[ArmResult] = []
    for budget in sorted({budget for budget, _ in judged}):
        measured = {arm: averaged(seeds) for (n, arm), seeds in judged.items() if n == budget}
        others = {arm: measured.get(base) if arm != base else None for arm in measured}
        lines += [_line(budget, arm, measured[arm], others[arm]) for arm in sorted(measured, key=_order)]
    return _with_worth(lines) if base == BASE else lines


def _order(arm: Arm) -> tuple[int, Arm]:
    """Baselines first."""
    return BASELINES.index(arm.name) if arm.name in BASELINES else len(BASELINES), arm


def _line(budget: int, arm: Arm, of: Measures, base: Measures | None) -> ArmResult:
    shown = {place: {name: intervals.difference(metric) for name, metric in row.items()} for place, row in of.items()}
    if base is None:
        return ArmResult(budget, arm, shown, {})
    apart = {
        place: {name: _minus(metric, base[place][name]) for name, metric in row.items()} for place, row in of.items()
    }
    return ArmResult(budget, arm, shown, apart)


def _minus(metric: BootstrapMetric, base: BootstrapMetric) -> Estimate:
    return intervals.difference(
        BootstrapMetric(metric.values - base.values, min(metric.n, base.n), min(metric.groups, base.groups))
    )


def averaged(seeds: Seeds) -> Measures:
    """The mean over seeds in every draw; a draw also draws the seeds."""
    draws = seeds[0].draws()
    picks = _picks(len(seeds), len(draws.weights))
    each = [_measured(images, draws) for images in seeds]
    return {
        place: {name: _mean([metrics[place][name] for metrics in each], picks) for name in row}
        for place, row in each[0].items()
    }


def _measured(judged: EvaluatedImages, draws: BootstrapDraws) -> Measures:
    overall, by_class = figures.compute(judged, draws)
    return {"": {name: overall[name] for name in OVERALL}} | {
        place: {name: row[name] for name in BY_CLASS} for place, row in by_class.items()
    }


def _picks(seeds: int, draws: int) -> NDArray[np.int64]:
    """Seeds that each draw takes; the first takes all."""
    picks = np.random.default_rng(1).integers(seeds, size=(draws, seeds))
    picks[0] = np.arange(seeds)
    return picks


def _mean(seeds: Sequence[BootstrapMetric], picks: NDArray[np.int64]) -> BootstrapMetric:
    values = np.stack([images.values for images in seeds], axis=1)
    return BootstrapMetric(np.take_along_axis(values, picks, axis=1).mean(axis=1), seeds[0].n, seeds[0].groups)


def pooled(folds: Sequence[EvaluatedImages]) -> EvaluatedImages:
    """The test images of all folds as one set, each judged by the model that did not know it."""
    first = folds[0]
    joined = {name: np.concatenate([getattr(fold, name) for fold in folds]) for name in ("present", "p", "decided")}
    ids, groups = (tuple(value for fold in folds for value in getattr(fold, name)) for name in ("ids", "groups"))
    pixels = [fold.pixels for fold in folds if fold.pixels]
    of = {name: np.concatenate([getattr(part, name) for part in pixels]) for name in ("counts", "histogram", "largest")}
    return EvaluatedImages(first.classes, ids, groups, single=False, pixels=PixelCounts(**of), **joined)


# --- worth ----------------------------------------------------------------------------------------------------------


def _with_worth(lines: Sequence[ArmResult]) -> list[ArmResult]:
    """Add the number of real defects that give an arm's IoU, where the real arm was trained with several budgets."""
    base = [line for line in lines if line.arm == BASE]
    if len(base) < 2:
        return list(lines)
    return [ArmResult(line.budget, line.arm, line.figures, line.differences, _worth(line, base)) for line in lines]


def _worth(line: ArmResult, base: Sequence[ArmResult]) -> dict[str, str]:
    """Worth in real defects, with the ends of the difference's interval: where that is wide, so is the worth."""
    if not line.arm.synthetic:
        return {}
    counts = {}
    for place, row in line.differences.items():
        curve, apart = {line.budget: line.figures[place][MAIN].value for line in base}, row[MAIN]
        values = [curve[line.budget] + value for value in (apart.value, apart.low, apart.high)]
        if all(math.isfinite(value) for value in (*curve.values(), *values)):
            middle, low, high = (f"{sign}{count:.0f}" for count, sign in (worth(curve, value) for value in values))
            counts[place] = f"{middle} ({low} to {high})"
    return counts


# --- in words -------------------------------------------------------------------------------------------------------


def positive(differences: Mapping[str, Mapping[str, Estimate]]) -> dict[str, bool]:
    """The classes whose IoU is better for sure; none where anything else is worse for sure."""
    harm = harms(differences)
    return {place: above(row[MAIN]) and not harm for place, row in differences.items() if place}


def harms(differences: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """Metrics that are worse for sure: any of any class, or false alarms on clean images."""
    by_class = {place: row for place, row in differences.items() if place}
    worse = [f"{NAMES[name]} of {place}" for place, row in by_class.items() for name in BY_CLASS if below(row[name])]
    return worse + (["false alarms on clean images"] if _alarming(differences) else [])


def _alarming(differences: Mapping[str, Mapping[str, Estimate]]) -> bool:
    return "" in differences and differences[""]["clean_false_alarms"].low > 0


def above(metric: Estimate) -> bool:
    return metric.low > 0 and metric.groups >= LEAST


def below(metric: Estimate) -> bool:
    return metric.high < 0


def words(line: ArmResult) -> dict[str, str]:
    """A sentence for each class, and one for clean images."""
    if not line.differences:
        return {}
    texts = {place: _of_class(place, row, line) for place, row in line.differences.items() if place}
    alarms = line.differences[""]["clean_false_alarms"]
    alarm_text = (
        "raises more" if _alarming(line.differences) else "raises fewer" if below(alarms) else "no difference in"
    )
    return texts | {"clean": f"{alarm_text} false alarms on clean images{_numbers(alarms)}"}


def _of_class(name: str, row: Mapping[str, Estimate], line: ArmResult) -> str:
    estimate, harm = row[MAIN], harms(line.differences)
    if not math.isfinite(estimate.value):
        return f"{name}: no test image shows it"
    numbers = _numbers(estimate) + (f", worth {line.worth[name]} real defects" if name in line.worth else "")
    if above(estimate):
        if harm:
            return (
                f"{name}: better IoU than balanced real defects alone{numbers}, but worse {' and '.join(harm)}: no help"
            )
        return f"{name}: helps: better IoU than balanced real defects alone{numbers}, and nothing is worse"
    worse = "".join(f", worse {NAMES[other]}" for other in BY_CLASS if other != MAIN and below(row[other]))
    if below(estimate):
        return f"{name}: worse IoU than balanced real defects alone{numbers}{worse}"
    few = (
        f"{estimate.groups} groups are too few to say"
        if estimate.groups < LEAST
        else f"{estimate.groups} groups show no change"
    )
    return f"{name}: {few} of its IoU{numbers}{worse}"


def _numbers(metric: Estimate) -> str:
    return f" ({metric.value:+.3f}, {metric.low:+.3f} to {metric.high:+.3f})" if math.isfinite(metric.value) else ""


def best(lines: Sequence[ArmResult], count: int = 2) -> list[str]:
    """The generative synthesisers that came furthest, by their best arm."""
    values: dict[str, float] = {}
    for line in lines:
        if line.arm.synthetic and line.arm.name not in BLENDS and line.differences:
            value = line.differences[""][MAIN].value
            values[line.arm.name] = max(values.get(line.arm.name, -math.inf), value)
    return sorted(values, key=lambda name: -values[name])[:count]


def nearest(lines: Sequence[ArmResult], synthesiser: str, ratio: float, budget: float) -> ArmResult | None:
    """The gated arm of this synthesiser whose ratio and budget come next to a batch's: no choice by its outcome."""
    fitting = [line for line in lines if line.arm.name == synthesiser and line.arm.gated and line.differences]

    def away(line: ArmResult) -> tuple[float, float]:
        return abs(math.log(line.budget / budget)), abs(math.log(line.arm.ratio / ratio))

    return min(fitting, key=away, default=None)


def text(lines: Sequence[ArmResult], classes: Sequence[str]) -> list[list[str]]:
    """Rows of a table: IoU of each class, then overall, with the difference's interval where there is one."""
    head = ["budget", "arm", *classes, "mean IoU", "Dice", "false alarms"]
    return [head] + [
        [
            str(line.budget),
            str(line.arm),
            *(_cell(line, place, MAIN) for place in (*classes, "")),
            _cell(line, "", "dice"),
            _cell(line, "", "clean_false_alarms"),
        ]
        for line in lines
    ]


def _cell(line: ArmResult, place: str, name: str) -> str:
    value = line.figures[place][name].value
    apart = line.differences.get(place, {}).get(name)
    shown = f"{value:.3f}" if math.isfinite(value) else "-"
    return f"{shown} [{apart.low:+.2f}, {apart.high:+.2f}]" if apart and math.isfinite(apart.value) else shown
