"""Two models on the same images: what the words say, and that pairs tell more than two intervals side by side."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train.evaluate.test_metrics import NAMES, drawn, with_pixels, with_regions
from train.evaluate import compare, intervals, metrics
from train.evaluate.compare import Comparison
from train.evaluate.metrics import EvaluatedImages


def with_decisions(evaluated: EvaluatedImages, recall: float, alarms: float, seed: int = 0) -> EvaluatedImages:
    """A model that finds a share of what there is, the same images first: two such models agree where they can."""
    luck = np.random.default_rng(10_000 + seed).random(evaluated.present.shape)
    decided = np.where(evaluated.present, luck < recall, luck < alarms)
    p = np.where(decided, 0.6 + 0.4 * luck, 0.4 * luck)
    return EvaluatedImages(**{**vars(evaluated), "decided": decided, "p": p})


def of(before: EvaluatedImages, after: EvaluatedImages) -> Comparison:
    return compare.comparison(before, after, "a" * 24, "b" * 24, "test", [])


def test_a_better_model_is_called_better() -> None:
    truth = drawn(300)
    comparison = of(with_decisions(truth, 0.6, 0.1), with_decisions(truth, 0.8, 0.1))
    assert any(line.startswith("B finds more crack: +0.") for line in comparison.verdict)
    assert any("B is better over all classes (macro F1): +0." in line for line in comparison.verdict)
    recall = comparison.classes["crack"]["recall"]
    assert 0 < recall.low < recall.value < recall.high
    back = of(with_decisions(truth, 0.8, 0.1), with_decisions(truth, 0.6, 0.1))
    assert any(line.startswith("B finds less crack: -0.") for line in back.verdict)
    assert (comparison.fixed, comparison.broken) == (back.broken, back.fixed)
    assert comparison.fixed > 0 == comparison.broken


def test_more_false_alarms_are_said_to_be_more() -> None:
    truth = drawn(300)
    comparison = of(with_decisions(truth, 0.7, 0.05), with_decisions(truth, 0.7, 0.3))
    assert any(line.startswith("B raises more false alarms of hole: +0.") for line in comparison.verdict)
    assert any(line.startswith("B raises more false alarms on clean images: +0.") for line in comparison.verdict)
    assert any("B is worse over all classes (macro F1)" in line for line in comparison.verdict)


def test_the_same_decisions_show_no_difference() -> None:
    truth = drawn(300)
    comparison = of(with_decisions(truth, 0.7, 0.1), with_decisions(truth, 0.7, 0.1))
    groups = len(set(truth.groups))
    assert f"no difference over all classes that these {groups} groups can show" in comparison.verdict
    shown = {name: metrics.support(truth, truth.draws(), NAMES)[name]["groups"] for name in NAMES}
    assert f"crack: no difference that these {shown['crack']} groups can show" in comparison.verdict
    assert all(difference.value == 0 == difference.low == difference.high for difference in comparison.overall.values())


def test_chance_is_seldom_taken_for_a_difference() -> None:
    """Two equally good models whose luck differs: the share of verdicts on recall that are wrong is about 5 %."""
    wrong = 0
    for seed in range(60):
        truth = drawn(90, seed=seed, classes=1)
        comparison = of(with_decisions(truth, 0.7, 0.1, 2 * seed), with_decisions(truth, 0.7, 0.1, 2 * seed + 1))
        recall = comparison.classes["crack"]["recall"]
        wrong += recall.low > 0 or recall.high < 0
    assert wrong <= 8


def test_pairs_tell_more_than_intervals_side_by_side() -> None:
    truth = drawn(240)
    before, after = with_decisions(truth, 0.7, 0.1), with_decisions(truth, 0.8, 0.1)
    apart = [
        intervals.estimate(metrics.compute(evaluated, evaluated.draws())[1]["crack"]["recall"])
        for evaluated in (before, after)
    ]
    assert apart[0].high > apart[1].low  # side by side they overlap
    assert of(before, after).classes["crack"]["recall"].low > 0


def test_few_groups_are_too_few_to_say() -> None:
    evaluated = drawn(40)
    rare = evaluated.present.copy()
    rare[:, 2] = False
    rare[:3, 2] = True
    truth = EvaluatedImages(**{**vars(evaluated), "present": rare})
    comparison = of(with_decisions(truth, 0.0, 0.0), with_decisions(truth, 1.0, 0.0))
    groups = len(set(truth.groups[:3]))
    assert f"scale: {groups} groups are too few to say" in comparison.verdict
    nothing = EvaluatedImages(**{**vars(truth), "present": rare & [True, True, False]})
    assert "scale: no image shows it, so it cannot be measured" in of(nothing, nothing).verdict


@pytest.mark.parametrize("count", [7, 20])
def test_only_what_both_have_judged_is_compared(count: int) -> None:
    evaluated = with_regions(with_pixels(drawn(20)))
    part = compare.subset(evaluated, set(evaluated.ids[:count]))
    assert part.ids == evaluated.ids[:count]
    by_hand = metrics.compute(part, part.draws())[1]["crack"]["region_recall"].values[0]
    regions = evaluated.regions
    mine = (regions.row < count) & (regions.kind == 0)
    assert np.isclose(by_hand, regions.hit[mine].mean())
    assert part.pixels.counts.shape[0] == count
