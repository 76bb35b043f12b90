"""Statistics of curves: areas, labels needed, the gap that is closed, ranks, p-values and intervals.

References: sign-flip permutation (Fisher 1935; Phipson and Smyth 2010 for sampled p-values); the bootstrap by both
seeds and groups (Owen 2007, the pigeonhole bootstrap, whose intervals are conservative).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.simulate.one_run import HIDDEN, NO_LABELS, Curve, CurvePoint

DRAWS = 2000
EXACT = 16  # differences up to which every pattern of signs is tried
SAMPLED = 20_000
CONFIDENCE = 0.95
OVERALL = ("labels", "minutes", "seconds", "macro_f1", "map")
Numbers = NDArray[np.float64]


# --- one curve ------------------------------------------------------------------------------------------------------


def value(curve: Curve, metric: str, place: int = -1) -> float:
    """Return a metric at one of the curve's points: macro_f1, map, labels, minutes, seconds; by class as `f1:crack`.

    Without a class, that of the rare class; without a rare class, the mean over classes.
    """
    return _at(curve.points[place], metric, curve.setting.rare)


def _at(point: CurvePoint, metric: str, rare: str | None) -> float:
    if metric in OVERALL:
        return float(getattr(point, metric))
    key, _, name = metric.partition(":")
    names = [name or rare] if name or rare else list(point.by_class)
    values = [point.by_class[str(name)].get(key, math.nan) for name in names]
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def line(curve: Curve, metric: str) -> list[float]:
    """Return the metric at every point."""
    return [value(curve, metric, place) for place in range(len(curve.points))]


def area(curve: Curve, metric: str, across: str = "labels") -> float:
    """Return the mean height of the curve over its labels (or minutes)."""
    return height(line(curve, across), line(curve, metric))


def height(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the mean of y over x by the trapezoid rule; the last y where x does not grow."""
    if len(xs) < 2 or xs[-1] <= xs[0]:
        return ys[-1] if ys else math.nan
    return float(np.trapezoid(ys, xs) / (xs[-1] - xs[0]))


def full_data_value(curve: Curve, metric: str) -> float:
    """Return the test metric of a learner with all labels."""
    rare = curve.setting.rare
    by_class = metric not in OVERALL and ":" not in metric and rare is not None
    return float(curve.full.get(f"{metric}:{rare}" if by_class else metric, math.nan))


def labels_to(curve: Curve, share: float, metric: str = "macro_f1", across: str = "labels") -> float:
    """Return the labels at which the metric first reaches this share of the full-data value; inf: never."""
    return crossing(line(curve, across), line(curve, metric), share * full_data_value(curve, metric))


def to_discover(curve: Curve) -> list[str]:
    """Return the classes that nobody has seen at the start, and that there are to find."""
    start, rare = curve.setting.start, curve.setting.rare
    names = {NO_LABELS: list(curve.points[0].by_class), HIDDEN: [str(rare)]}.get(start, [])
    return [name for name in names if math.isfinite(curve.points[0].by_class[name]["group_recall"])]


def discovered(curve: Curve, groups: int = 1) -> list[int]:
    """Return, for every point, how many of these classes have been found in so many groups, or in all there are."""
    names = to_discover(curve)
    return [sum(_found(point.by_class[name], groups) for name in names) for point in curve.points]


def _found(scores: Mapping[str, float], groups: int) -> bool:
    return scores["groups"] >= groups or scores["group_recall"] == 1


def labels_to_discover(curve: Curve, groups: int = 1) -> float:
    """Return the labels after which all these classes have been found in so many groups; inf: not within the run."""
    wanted = len(to_discover(curve))
    counts = zip(curve.points, discovered(curve, groups), strict=True)
    return next((float(point.labels) for point, count in counts if count == wanted), math.inf)


def crossing(xs: Sequence[float], ys: Sequence[float], target: float) -> float:
    """Return the interpolated x at which y first reaches `target`; inf: never. NaN without a positive target."""
    if not 0 < target < math.inf:
        return math.nan
    for place, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if y >= target:
            before = place - 1
            if before < 0 or y == ys[before]:
                return float(x)
            return float(xs[before] + (x - xs[before]) * (target - ys[before]) / (y - ys[before]))
    return math.inf


# --- several of one strategy ----------------------------------------------------------------------------------------


def mean_line(curves: Sequence[Curve], metric: str) -> list[float]:
    """Return the mean over curves at each point; curves that ended early keep their last value."""
    longest = max(len(curve.points) for curve in curves)
    lines = [line(curve, metric) for curve in curves]
    return [_mean([line[min(place, len(line) - 1)] for line in lines]) for place in range(longest)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def mean_labels_to(curves: Sequence[Curve], share: float, metric: str = "macro_f1") -> float:
    """Return the labels at which the mean curve reaches the share (single curves cross early by chance)."""
    target = share * _mean([full_data_value(curve, metric) for curve in curves])
    return crossing(mean_line(curves, "labels"), mean_line(curves, metric), target)


def gap_closed(ours: float, randoms: float) -> float:
    """Return (ours - random's) / (1 - random's); NaN where random's is 1."""
    return (ours - randoms) / (1 - randoms) if randoms < 1 else math.nan


def ranks(table: Sequence[Sequence[float]]) -> list[float]:
    """Mean rank of each column over rows (1 is best, larger values are better, ties share; NaN ranks last)."""
    values = np.nan_to_num(np.asarray(table, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    above = (values[:, None, :] > values[:, :, None]).sum(axis=2)
    ties = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return [float(rank) for rank in (above + (ties + 1) / 2).mean(axis=0)]


# --- chance ---------------------------------------------------------------------------------------------------------


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean paired difference, over all sign patterns or a seeded sample of them."""
    known = np.array([difference for difference in differences if math.isfinite(difference)], np.float64)
    if not len(known):
        return math.nan
    if len(known) <= EXACT:
        patterns = (np.arange(2 ** len(known))[:, None] >> np.arange(len(known)) & 1) * 2 - 1
        return float((np.abs(patterns @ known) >= abs(known.sum()) - 1e-9).mean())
    patterns = np.random.default_rng(0).choice([-1.0, 1.0], (SAMPLED, len(known)))
    return float((1 + (np.abs(patterns @ known) >= abs(known.sum()) - 1e-9).sum()) / (SAMPLED + 1))


def interval(table: NDArray[np.floating]) -> tuple[float, float]:
    """Return the interval of the mean of (seeds, groups) differences, by drawing both; NaN marks missing ones."""
    there, random = np.isfinite(table), np.random.default_rng(0)
    seeds, groups = (_draw_counts(size, random) for size in table.shape)
    total = np.einsum("ds,sg,dg->d", seeds, np.where(there, table, 0), groups, optimize=True)
    count = np.einsum("ds,sg,dg->d", seeds, there.astype(np.float64), groups, optimize=True)
    means = total[count > 0] / count[count > 0]
    if not len(means):
        return math.nan, math.nan
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _draw_counts(size: int, random: np.random.Generator) -> Numbers:
    """Return how often each of `size` items is drawn in each of `DRAWS` draws."""
    return np.stack([np.bincount(random.integers(size, size=size), minlength=size) for _ in range(DRAWS)]).astype(float)


def paired_difference(
    ours: Sequence[Curve], baseline: Sequence[Curve], metric: str, by_area: bool = False
) -> dict[str, Any]:
    """Return the paired difference (same fold and seed) at the end or of areas; recall is also compared by group."""
    pairs = pairs_of(ours, baseline)
    measure = area if by_area else value
    differences = [measure(our_curve, metric) - measure(other, metric) for our_curve, other in pairs]
    table, units = np.array(differences)[:, None], differences
    if (
        metric == "group_recall"
        and not by_area
        and all(our_curve.pieces and other.pieces for our_curve, other in pairs)
    ):
        table = by_group(pairs)
        units = [_mean(column) for column in table.T]
    low, high = interval(table) if len(pairs) else (math.nan, math.nan)
    result = {"mean": _mean(differences), "low": low, "high": high, "p": sign_flip(units)}
    return result | {"pairs": len(pairs), "units": len(units)}


def pairs_of(ours: Sequence[Curve], baseline: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    by = {(curve.setting.fold, curve.setting.seed): curve for curve in baseline}
    keys = ((curve, (curve.setting.fold, curve.setting.seed)) for curve in ours)
    return [(curve, by[key]) for curve, key in keys if key in by]


def by_group(pairs: Sequence[tuple[Curve, Curve]]) -> Numbers:
    """Return (pairs, groups): which of the two found the group: 1 the first, -1 the second, 0 both or none.

    NaN: the group was not to be found.
    """
    names = sorted({name for pair in pairs for name in pair[0].pieces})
    table = np.full((len(pairs), len(names)), np.nan)
    for row, (our_curve, other) in enumerate(pairs):
        for column, name in enumerate(names):
            if name in our_curve.pieces and name in other.pieces:
                table[row, column] = float(our_curve.pieces[name]) - float(other.pieces[name])
    return table
