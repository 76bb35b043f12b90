"""What a learner is worth on the test: F1 and average precision of each class, at the prior of the pool."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.simulate.learners import LearnerOutput
from train.simulate.oracle_dataset import OracleDataset


class TestScores(NamedTuple):
    """Means over the classes that the test shows; NaN without a test."""

    macro_f1: float
    map: float
    by_class: dict[str, dict[str, float]]


def judged(world: OracleDataset, said: LearnerOutput | None) -> TestScores:
    """Who says nothing finds nothing."""
    test = np.flatnonzero(world.test)
    shown, weight = world.present[test], world.weight[test].astype(np.float64)
    by_class = {}
    for number, name in enumerate(world.classes):
        truth = shown[:, number]
        if truth.any():
            says = said.shows[test, number] if said else np.zeros(len(test), bool)
            likely = said.probability[test, number] if said else np.zeros(len(test))
            by_class[name] = {"f1": f1(says, truth, weight), "ap": average_precision(likely, truth, weight)}
    if not by_class:
        return TestScores(np.nan, np.nan, {})
    f1s, aps = ([one[key] for one in by_class.values()] for key in ("f1", "ap"))
    return TestScores(float(np.mean(f1s)), float(np.mean(aps)), by_class)


def f1(says: NDArray[np.bool_], truth: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    hits, total = float(weight[says & truth].sum()), float(weight[says].sum() + weight[truth].sum())
    return 2 * hits / total if total else 0.0


def average_precision(likely: NDArray[np.floating], truth: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    """Precision at each recall, equal scores together."""
    order = np.argsort(-likely, kind="stable")
    hits, seen = np.cumsum(weight[order] * truth[order]), np.cumsum(weight[order])
    last = np.flatnonzero(np.append(np.diff(likely[order]) != 0, True))
    gained = np.diff(hits[last], prepend=0.0)
    return float((gained * hits[last] / seen[last]).sum() / hits[-1])
