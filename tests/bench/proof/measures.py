"""Metrics of the second protocol: one run's curve by class, means over families, and chance by cluster.

A result is a row (a mapping, a line of the results' file); a score is the value of one class in one row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.simulate.curve_stats import height, ranks, sign_flip
from train.simulate.one_run import EXEMPLARS, HIDDEN, Curve, RunStart, rows_to_find

Row = Mapping[str, Any]
Rows = Sequence[Row]
BOOTSTRAPS, CONFIDENCE = 2000, 0.95
MARGIN, CURVE_MARGIN = 0.03, 0.05
SEVERAL = 3  # groups


# --- one run ---------------------------------------------------------------------------------------------------------


def row_of(curve: Curve, start: RunStart) -> dict[str, Any]:
    """Return a run's numbers as they are kept: by round, and by round and class."""
    oracle, points = start.oracle, curve.points
    known = np.zeros(len(oracle), bool)
    known[np.concatenate([start.given, start.first])] = True
    to_find = [len(np.unique(oracle.groups[rows])) for rows in rows_to_find(oracle, known)]
    names = oracle.classes
    return {
        "labels": [point.labels for point in points],
        "to_find": dict(zip(names, to_find, strict=True)),
        "found": {name: [int(point.by_class[name]["groups"]) for point in points] for name in names},
        "f1": {
            name: [round(point.by_class[name]["f1"], 5) for point in points]
            for name in names
            if "f1" in points[0].by_class[name]
        },
        "seconds": sum(point.seconds for point in points) / max(1, len(points) - 1),
        "notes": list(curve.notes),
    }


def sought(row: Row) -> list[str]:
    """Return the classes to be found: those asked for, the hidden one, or all from a cold start."""
    names = row["sought"] if row["start"] in (EXEMPLARS, HIDDEN) else row["to_find"]
    return [name for name in names if row["to_find"][name]]


class Score(NamedTuple):
    """The value of one class in one run, and its weight within the family."""

    cluster: str
    weight: float
    value: float


Measure = Callable[[Row], list[Score]]


def group_recall(row: Row) -> list[Score]:
    """Area under group recall; a class weighs as many groups as are to be found of it."""
    return [
        Score(name, count, height(row["labels"], [found / count for found in row["found"][name]]))
        for name in sought(row)
        if (count := row["to_find"][name])
    ]


def discovery(row: Row, groups: int = 1) -> list[Score]:
    """Area under the discovery curve: their mean is that of the share of classes seen, in so many groups."""
    count, names = len(sought(row)), sought(row)
    return [Score(name, 1 / count, height(row["labels"], _seen(row, name, groups))) for name in names]


def discovery_of_three(row: Row) -> list[Score]:
    """Area under the curve of classes seen in three groups, or in all that there are."""
    return discovery(row, SEVERAL)


def seen_at(place: int) -> Measure:
    """Return the measure of the classes seen after a round."""

    def measure(row: Row) -> list[Score]:
        count, names = len(sought(row)), sought(row)
        return [Score(name, 1 / count, _seen(row, name, 1)[min(place, len(row["labels"]) - 1)]) for name in names]

    return measure


def _seen(row: Row, name: str, groups: int) -> list[float]:
    wanted = min(groups, row["to_find"][name])
    return [float(found >= wanted) for found in row["found"][name]]


def macro_f1(row: Row) -> list[Score]:
    """Area under the F1 of each class; their mean is that of macro-F1."""
    return [Score(name, 1 / len(row["f1"]), height(row["labels"], values)) for name, values in row["f1"].items()]


def labels_to_all(row: Row) -> tuple[float, bool]:
    """Return the labels bought until every class was seen, and whether it was; else those of the run and of a round."""
    labels = [spent - row["labels"][0] for spent in row["labels"]]  # a hidden start has labels that nobody chose
    for place, spent in enumerate(labels):
        if all(_seen(row, name, 1)[place] for name in sought(row)):
            return float(spent), True
    return float(2 * labels[-1] - labels[-2]), False


# --- means: draws, then settings within a family, then families -----------------------------------------------------


def mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def by_family(rows: Rows, measure: Measure) -> dict[str, float]:
    """Return the weighted mean over settings and classes, for each family."""
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row, scores in ((row, measure(row)) for row in rows):
        draws = sum(other["setting"] == row["setting"] for other in rows)
        for score in scores:
            total[row["family"]][0] += score.weight * score.value / draws
            total[row["family"]][1] += score.weight / draws
    return {family: value / weight for family, (value, weight) in total.items() if weight}


def overall(rows: Rows, measure: Measure) -> float:
    """Return the mean over families."""
    return mean(by_family(rows, measure).values())


def label_ratio(ours: Rows, others: Rows) -> float:
    """Return the geometric mean over families and settings of the labels until all classes are seen."""
    parts: dict[str, list[float]] = defaultdict(list)
    for mine, theirs in by_setting(ours, others):
        spent = [mean(labels_to_all(row)[0] for row in rows) for rows in (mine, theirs)]
        if spent[0] > 0 and spent[1] > 0:  # 0: all were labelled at the start
            parts[mine[0]["family"]].append(math.log(spent[0] / spent[1]))
    return math.exp(mean(mean(values) for values in parts.values())) if parts else math.nan


def by_setting(ours: Rows, others: Rows) -> list[tuple[Rows, Rows]]:
    """Return the rows of both in each setting that both have played, of the draws that both have."""
    pairs: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    for mine, theirs in paired(ours, others):
        pairs[mine["setting"]].append((mine, theirs))
    return [([mine for mine, _ in both], [theirs for _, theirs in both]) for both in pairs.values()]


def paired(ours: Rows, others: Rows) -> list[tuple[Row, Row]]:
    by = {(row["setting"], row["draw"]): row for row in others}
    return [(row, by[key]) for row in ours if (key := (row["setting"], row["draw"])) in by]


def mean_ranks(rows_by_name: Mapping[str, Rows], measure: Measure) -> dict[str, float]:
    """Return the mean rank over settings of those that have played all of them."""
    settings = sorted({row["setting"] for rows in rows_by_name.values() for row in rows})
    values = {
        name: [overall([row for row in rows if row["setting"] == setting], measure) for setting in settings]
        for name, rows in rows_by_name.items()
    }
    names = [name for name, line in values.items() if all(math.isfinite(value) for value in line)]
    if not names or not settings:
        return {}
    table = [[values[name][place] for name in names] for place in range(len(settings))]
    return dict(zip(names, ranks(table), strict=True))


# --- chance: clusters are classes of families ------------------------------------------------------------------------


class Difference(NamedTuple):
    """The mean paired difference over families; its interval over clusters, p-value, and the number of clusters."""

    mean: float
    low: float
    high: float
    p: float
    clusters: int

    def verdict(self, margin: float) -> str:
        """Return whether the first is better, not inferior by more than a margin, worse, or nothing is shown."""
        if not math.isfinite(self.low):
            return "not shown"
        if self.low > 0:
            return "better"
        if self.high < 0:
            return "worse"
        return "not inferior" if self.low > -margin else "not shown"


def compare(ours: Rows, others: Rows, measure: Measure) -> Difference:
    """Compare at the same settings and draws; the unit of chance is a class of a family."""
    total: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    draws: dict[str, int] = defaultdict(int)
    pairs = paired(ours, others)
    for mine, _ in pairs:
        draws[mine["setting"]] += 1
    for mine, theirs in pairs:
        for own, other in zip(measure(mine), measure(theirs), strict=True):
            place = total[mine["family"], own.cluster]
            place[0] += own.weight * (own.value - other.value) / draws[mine["setting"]]
            place[1] += own.weight / draws[mine["setting"]]
    families: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (family, _), (value, weight) in total.items():
        families[family].append((value, weight))
    return _difference([np.array(clusters) for clusters in families.values()])


def _difference(families: Sequence[np.ndarray[Any, Any]]) -> Difference:
    """`families`: for each its clusters' weighted sums and weights."""
    if not families:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    parts = [clusters[:, 0] / clusters[:, 1].sum() / len(families) for clusters in families]
    rng = np.random.default_rng(0)
    drawn = np.zeros(BOOTSTRAPS)
    for clusters in families:
        rows = rng.integers(len(clusters), size=(BOOTSTRAPS, len(clusters)))
        value, weight = clusters[rows, 0].sum(axis=1), clusters[rows, 1].sum(axis=1)
        drawn += value / weight / len(families)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    flat = np.concatenate(parts)
    if len(flat) == 1:
        low, high = -math.inf, math.inf  # one class says nothing of others
    return Difference(float(flat.sum()), float(low), float(high), sign_flip(flat.tolist()), len(flat))
