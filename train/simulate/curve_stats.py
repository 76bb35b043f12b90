"""What curves say: areas, labels needed, the gap that is closed, ranks, and what chance alone would explain.

References: sign-flip permutation (Fisher 1935; Phipson and Smyth 2010 for sampled p-values); the bootstrap by both
seeds and groups (Owen 2007, the pigeonhole bootstrap: errs on the wide side).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.simulate.one_run import Curve, CurvePoint

DRAWS = 2000
EXACT = 16  # differences up to which every pattern of signs is tried
SAMPLED = 20_000
CONFIDENCE = 0.95
OWN = ("labels", "minutes", "seconds", "macro_f1", "map")
Numbers = NDArray[np.float64]


# --- one curve ------------------------------------------------------------------------------------------------------


def value(curve: Curve, metric: str, place: int = -1) -> float:
    """The metric at one of the curve's points: macro_f1, map, labels, minutes, seconds; or by class, as `f1:crack`.

    Without its class that of the rare one; where there is none, the mean over classes.
    """
    return _at(curve.points[place], metric, curve.setting.rare)


def _at(point: CurvePoint, metric: str, rare: str | None) -> float:
    if metric in OWN:
        return float(getattr(point, metric))
    key, _, name = metric.partition(":")
    names = [name or rare] if name or rare else list(point.by_class)
    found = [point.by_class[str(one)].get(key, math.nan) for one in names]
    known = [one for one in found if math.isfinite(one)]
    return float(np.mean(known)) if known else math.nan


def line(curve: Curve, metric: str) -> list[float]:
    """The metric at every point."""
    return [value(curve, metric, place) for place in range(len(curve.points))]


def area(curve: Curve, metric: str, across: str = "labels") -> float:
    """Mean height of the curve over its labels (or minutes)."""
    return _area(line(curve, across), line(curve, metric))


def _area(xs: Sequence[float], ys: Sequence[float]) -> float:
    if len(xs) < 2 or xs[-1] <= xs[0]:
        return ys[-1] if ys else math.nan
    return float(np.trapezoid(ys, xs) / (xs[-1] - xs[0]))


def full(curve: Curve, metric: str) -> float:
    """The full-data figure of a test metric."""
    rare = curve.setting.rare
    by_class = metric not in OWN and ":" not in metric and rare is not None
    return float(curve.full.get(f"{metric}:{rare}" if by_class else metric, math.nan))


def labels_to(curve: Curve, share: float, metric: str = "macro_f1", across: str = "labels") -> float:
    """Labels until the metric first reaches this share of the full-data one, interpolated; inf: not reached."""
    return crossing(line(curve, across), line(curve, metric), share * full(curve, metric))


def crossing(xs: Sequence[float], ys: Sequence[float], target: float) -> float:
    """Where the line through these points first is as high as `target`. NaN without one: nothing can be learnt then."""
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
    """The mean over curves at each point; curves that ended early (nothing left to pick) stay where they were."""
    longest = max(len(curve.points) for curve in curves)
    lines = [line(curve, metric) for curve in curves]
    return [_mean([one[min(place, len(one) - 1)] for one in lines]) for place in range(longest)]


def _mean(values: Sequence[float]) -> float:
    known = [one for one in values if math.isfinite(one)]
    return float(np.mean(known)) if known else math.nan


def mean_labels_to(curves: Sequence[Curve], share: float, metric: str = "macro_f1") -> float:
    """Of the mean curve: single ones cross early by luck."""
    target = share * _mean([full(curve, metric) for curve in curves])
    return crossing(mean_line(curves, "labels"), mean_line(curves, metric), target)


def gap_closed(ours: float, randoms: float) -> float:
    """(ours - random's) / (1 - random's); NaN where random leaves nothing."""
    return (ours - randoms) / (1 - randoms) if randoms < 1 else math.nan


def ranks(table: Sequence[Sequence[float]]) -> list[float]:
    """Mean rank of each column over rows (1 is best, larger values are better, ties share; NaN ranks last)."""
    values = np.nan_to_num(np.asarray(table, np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    above = (values[:, None, :] > values[:, :, None]).sum(axis=2)
    alike = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return [float(one) for one in (above + (alike + 1) / 2).mean(axis=0)]


# --- chance ---------------------------------------------------------------------------------------------------------


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the mean paired difference: of all patterns of signs, or of a seeded sample of them."""
    known = np.array([one for one in differences if math.isfinite(one)], np.float64)
    if not len(known):
        return math.nan
    if len(known) <= EXACT:
        patterns = (np.arange(2 ** len(known))[:, None] >> np.arange(len(known)) & 1) * 2 - 1
        return float((np.abs(patterns @ known) >= abs(known.sum()) - 1e-9).mean())
    patterns = np.random.default_rng(0).choice([-1.0, 1.0], (SAMPLED, len(known)))
    return float((1 + (np.abs(patterns @ known) >= abs(known.sum()) - 1e-9).sum()) / (SAMPLED + 1))


def interval(table: NDArray[np.floating]) -> tuple[float, float]:
    """Of the mean of (seeds, groups) differences, NaN where there is none: both are drawn again."""
    there, random = np.isfinite(table), np.random.default_rng(0)
    seeds, groups = (_drawn(size, random) for size in table.shape)
    total = np.einsum("ds,sg,dg->d", seeds, np.where(there, table, 0), groups, optimize=True)
    count = np.einsum("ds,sg,dg->d", seeds, there.astype(np.float64), groups, optimize=True)
    means = total[count > 0] / count[count > 0]
    if not len(means):
        return math.nan, math.nan
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _drawn(size: int, random: np.random.Generator) -> Numbers:
    """How often each of `size` comes in each draw; of one there is nothing to draw."""
    return np.stack([np.bincount(random.integers(size, size=size), minlength=size) for _ in range(DRAWS)]).astype(float)


def against(ours: Sequence[Curve], theirs: Sequence[Curve], metric: str, by_area: bool = False) -> dict[str, Any]:
    """The paired difference (same fold, same seed) at the end, or of areas; of recall also over groups."""
    pairs = paired(ours, theirs)
    figure = area if by_area else value
    differences = [figure(one, metric) - figure(other, metric) for one, other in pairs]
    table, units = np.array(differences)[:, None], differences
    if metric == "group_recall" and not by_area and all(one.pieces and other.pieces for one, other in pairs):
        table = by_group(pairs)
        units = [_mean(column) for column in table.T]
    low, high = interval(table) if len(pairs) else (math.nan, math.nan)
    found = {"mean": _mean(differences), "low": low, "high": high, "p": sign_flip(units)}
    return found | {"pairs": len(pairs), "units": len(units)}


def paired(ours: Sequence[Curve], theirs: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    by = {(one.setting.fold, one.setting.seed): one for one in theirs}
    keys = ((one, (one.setting.fold, one.setting.seed)) for one in ours)
    return [(one, by[key]) for one, key in keys if key in by]


def by_group(pairs: Sequence[tuple[Curve, Curve]]) -> Numbers:
    """(pairs, groups): 1 where only the first found the group, -1 where only the second did; NaN: not to be found."""
    names = sorted({name for pair in pairs for name in pair[0].pieces})
    table = np.full((len(pairs), len(names)), np.nan)
    for row, (one, other) in enumerate(pairs):
        for column, name in enumerate(names):
            if name in one.pieces and name in other.pieces:
                table[row, column] = float(one.pieces[name]) - float(other.pieces[name])
    return table
