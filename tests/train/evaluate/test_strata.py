"""Figures of each stratum, and which one falls behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from tests.train.evaluate.test_metrics import drawn
from train.evaluate import metrics, strata
from train.evaluate.metrics import EvaluatedImages

LINES = ["A", "B", "C"]


def plant(n: int = 300) -> tuple[EvaluatedImages, list[str]]:
    """Three lines in turn, each image a group of its own; line B is as good as the others."""
    random = np.random.default_rng(1)
    present = random.random((n, 3)) < 0.25
    decided = present & (random.random((n, 3)) < 0.9) | ~present & (random.random((n, 3)) < 0.02)
    evaluated = replace(drawn(n), present=present, decided=decided, groups=tuple(map(str, range(n))))
    return evaluated, [LINES[row % 3] for row in range(n)]


def test_figures_are_those_of_the_stratum_alone() -> None:
    evaluated, lines = plant()
    figures = strata.by_stratum(evaluated, lines, evaluated.draws())
    assert sorted(figures) == LINES
    for name, values in figures.items():
        rows = np.array([line == name for line in lines])
        shown = evaluated.present[rows].any(axis=1)
        found = (evaluated.present & evaluated.decided)[rows].any(axis=1)
        assert values["images"] == rows.sum()
        assert values["recall"]["value"] == pytest.approx(found[shown].mean(), abs=1e-6)
        alarms = evaluated.decided[rows][~shown].any(axis=1).mean()
        assert values["false_alarms"]["value"] == pytest.approx(alarms, abs=1e-6)
        assert values["recall"]["low"] <= values["recall"]["value"] <= values["recall"]["high"]
        assert not values["behind"]


def test_a_line_on_which_the_model_is_blind_or_noisy_falls_behind() -> None:
    evaluated, lines = plant()
    on_b = np.array([line == "B" for line in lines])
    blind = evaluated.decided & ~(on_b[:, None] & (np.arange(len(lines)) % 2 == 0)[:, None])
    figures = strata.by_stratum(replace(evaluated, decided=blind), lines, evaluated.draws())
    assert {name: values["behind"] for name, values in figures.items()} == {"A": [], "B": ["recall"], "C": []}
    (warning,) = strata.warnings(figures)
    assert warning.startswith("on B it finds fewer defects: ")
    noisy = evaluated.decided | (on_b & (np.arange(len(lines)) % 2 == 0))[:, None]
    figures = strata.by_stratum(replace(evaluated, decided=noisy), lines, evaluated.draws())
    assert figures["B"]["behind"] == ["false_alarms"]
    assert "has more false alarms" in strata.warnings(figures)[0]


def test_few_groups_say_nothing_and_one_stratum_is_no_comparison() -> None:
    evaluated, lines = plant(12)
    figures = strata.by_stratum(replace(evaluated, decided=evaluated.decided & False), lines, evaluated.draws())
    assert not any(values["behind"] for values in figures.values())
    assert strata.by_stratum(evaluated, ["A"] * 12, evaluated.draws()) == {}
    assert set(strata.by_stratum(evaluated, ["A", None] * 6, evaluated.draws())) == {"A", strata.NONE}


def test_the_roc_curve_is_scikit_learn_s() -> None:
    evaluated = drawn(120, seed=8)
    p, truth = evaluated.p[:, 0], evaluated.present[:, 0]
    rates, recalls, thresholds = sk.roc_curve(truth, p, drop_intermediate=False)
    curve = metrics.roc_curve(p, truth, most=10_000)
    np.testing.assert_allclose(curve, np.column_stack([rates, recalls, thresholds])[1:])
    assert metrics.roc_curve(p, np.ones_like(truth)) == []
