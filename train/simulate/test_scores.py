"""Test scores of a learner: F1 and average precision of each class, at the prior of the pool."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.simulate.learners import LearnerOutput
from train.simulate.oracle_dataset import OracleDataset


class TestScores(NamedTuple):
    """Scores by class, and their means over the classes that the test shows; NaN without a test."""

    macro_f1: float
    map: float
    by_class: dict[str, dict[str, float]]


def score_on_test(oracle: OracleDataset, output: LearnerOutput | None) -> TestScores:
    """Score a learner's output on the test rows; no output counts as no class found."""
    test = np.flatnonzero(oracle.test)
    shown, weight = oracle.present[test], oracle.weight[test].astype(np.float64)
    by_class = {}
    for number, name in enumerate(oracle.classes):
        truth = shown[:, number]
        if truth.any():
            says = output.shows[test, number] if output else np.zeros(len(test), bool)
            likely = output.probability[test, number] if output else np.zeros(len(test))
            by_class[name] = {"f1": f1(says, truth, weight), "ap": average_precision(likely, truth, weight)}
    if not by_class:
        return TestScores(np.nan, np.nan, {})
    f1s, aps = ([scores[key] for scores in by_class.values()] for key in ("f1", "ap"))
    return TestScores(float(np.mean(f1s)), float(np.mean(aps)), by_class)


def f1(says: NDArray[np.bool_], truth: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    hits, total = float(weight[says & truth].sum()), float(weight[says].sum() + weight[truth].sum())
    return 2 * hits / total if total else 0.0


def average_precision(likely: NDArray[np.floating], truth: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    """Return the mean precision over recall; equal scores are one step."""
    order = np.argsort(-likely, kind="stable")
    hits, seen = np.cumsum(weight[order] * truth[order]), np.cumsum(weight[order])
    last = np.flatnonzero(np.append(np.diff(likely[order]) != 0, True))
    gained = np.diff(hits[last], prepend=0.0)
    return float((gained * hits[last] / seen[last]).sum() / hits[-1])
