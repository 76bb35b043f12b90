"""95 % intervals of metrics by a bootstrap that draws whole groups.

Images of one coil or tile are similar, so the sampling unit is the group, not the image. Every metric is computed from
sums over images, weighted by how often each image's group was drawn: no image is predicted again.

References: Efron and Tibshirani 1993 (the bootstrap); Hesterberg 2015 (percentiles moved outwards by Student's t,
because few groups vary less than the population); Clopper and Pearson 1934; Korn and Graubard 1998.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
CONFIDENCE = 0.95
FEW = 10  # groups below which a bootstrap interval is too narrow
UNINFORMATIVE = 0.9  # width from which on an interval tells nothing
Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value with its bounds, from `n` images (or regions) of so many groups. NaN: there is nothing to measure."""

    value: float
    low: float
    high: float
    n: int
    groups: int

    @property
    def few(self) -> bool:
        return self.groups < FEW

    @property
    def silent(self) -> bool:
        """True where the interval is so wide that it tells nothing."""
        return not self.high - self.low < UNINFORMATIVE

    def to_json(self) -> dict[str, Any]:
        numbers = {name: _rounded(getattr(self, name)) for name in ("value", "low", "high")}
        return numbers | {"n": self.n, "groups": self.groups, "few": self.few, "silent": self.silent}


class BootstrapMetric(NamedTuple):
    """A metric's value on the data (first) and in every draw. `parts`: the metrics that it is the mean of."""

    values: Floats
    n: int
    groups: int
    parts: tuple[Any, ...] = ()


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


@dataclass(frozen=True)
class BootstrapDraws:
    """Bootstrap draws of groups. `weights[draw, group]`: how often the group was drawn; the first row holds ones.

    The same groups give the same draws, so that two models can be compared in pairs.
    """

    group: NDArray[np.intp]
    weights: Floats

    @classmethod
    def of(cls, groups: Sequence[str], draws: int = DRAWS, seed: int = 0) -> BootstrapDraws:
        names, group = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
        random, count = np.random.default_rng(seed), len(names)
        weights = np.ones((draws + 1, count))
        for row in weights[1:]:
            row[:] = np.bincount(random.integers(count, size=count), minlength=count)
        return cls(group.astype(np.intp), weights)

    def sums(self, values: NDArray[Any]) -> Floats:
        """Return the sums over images (the first axis) in every draw."""
        order = np.argsort(self.group, kind="stable")
        begins = np.searchsorted(self.group[order], np.arange(self.weights.shape[1]))
        flat = np.ascontiguousarray(values, np.float64).reshape(len(values), -1)[order]
        total = self.weights @ np.add.reduceat(flat, begins, axis=0)
        return np.asarray(total.reshape(len(self.weights), *values.shape[1:]))

    def share(self, hits: NDArray[Any], inside: NDArray[Any]) -> BootstrapMetric:
        """Return the sum of hits over the sum of `inside` in every draw; `n` and `groups` count where `inside` > 0."""
        sums = self.sums(np.stack([hits, inside], axis=-1))
        shown = np.asarray(inside) > 0
        return BootstrapMetric(ratio(sums[..., 0], sums[..., 1]), int(np.sum(inside[shown])), self.groups_of(shown))

    def groups_of(self, chosen: NDArray[np.bool_]) -> int:
        """Return the number of groups with a chosen image."""
        return len(np.unique(self.group[chosen]))


def ratio(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """Divide elementwise; NaN where the divisor is 0."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0), np.float64)


def mean(parts: Sequence[BootstrapMetric]) -> BootstrapMetric:
    """Return the mean of the metrics that are not NaN; its number of groups is the smallest of theirs."""
    known = [part for part in parts if np.isfinite(part.values[0])]
    if not known:
        return BootstrapMetric(np.full(len(parts[0].values) if parts else 1, np.nan), 0, 0)
    values = np.stack([part.values for part in known])
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(axis=0)
    return BootstrapMetric(
        ratio(total, there.sum(axis=0)), sum(part.n for part in known), min(part.groups for part in known), tuple(known)
    )


def estimate(metric: BootstrapMetric) -> Estimate:
    """Return a share (0 to 1) with its interval.

    The interval holds the percentiles of the draws, and is never narrower than Clopper and Pearson's for the effective
    sample size: with few groups, and for shares of 0 or 1 that no draw can leave, the number of groups.
    """
    value, n, groups = float(metric.values[0]), metric.n, metric.groups
    if not math.isfinite(value):
        return Estimate(math.nan, math.nan, math.nan, n, groups)
    low, high = percentile_interval(metric)
    if metric.parts:
        below, above = _mean_bounds(value, [estimate(part) for part in metric.parts])
    else:
        below, above = clopper_pearson(min(max(value, 0.0), 1.0), _effective_sample_size(metric))
    return Estimate(value, max(min(low, below), 0.0), min(max(high, above), 1.0), n, groups)


def _effective_sample_size(metric: BootstrapMetric) -> float:
    """Korn and Graubard's effective sample size, from the variance of the draws."""
    value, groups = float(metric.values[0]), max(metric.groups, 1)
    variance = float(np.nanvar(metric.values[1:])) if np.isfinite(metric.values[1:]).any() else 0.0
    if groups < FEW or not 0 < value < 1 or variance <= 0:
        return groups
    shrink = _student(10**9) / (_student(groups - 1) * math.sqrt(groups / (groups - 1)))
    return float(value * (1 - value) / variance * shrink**2)


def _mean_bounds(value: float, parts: Sequence[Estimate]) -> tuple[float, float]:
    """Return the bounds of a mean from those of its parts, whose errors are taken as independent."""
    below, above = (
        math.sqrt(sum((part.value - bound) ** 2 for part, bound in bounds)) / len(parts)
        for bounds in ([(part, part.low) for part in parts], [(part, part.high) for part in parts])
    )
    return value - below, value + above


def difference(metric: BootstrapMetric) -> Estimate:
    """Return a difference of two shares (-1 to 1) with its interval."""
    value = float(metric.values[0])
    low, high = percentile_interval(metric) if math.isfinite(value) else (math.nan, math.nan)
    return Estimate(value, low, high, metric.n, metric.groups)


def percentile_interval(metric: BootstrapMetric) -> tuple[float, float]:
    """Return the percentiles of the draws, widened to include the value itself."""
    drawn = metric.values[1:]
    drawn = drawn[np.isfinite(drawn)]
    value = float(metric.values[0])
    if not len(drawn):
        return value, value
    tail = _tail_probability(max([metric.groups, *(part.groups for part in metric.parts)]))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return min(float(low), value), max(float(high), value)


def _tail_probability(groups: int) -> float:
    """Return the share that is cut off at either end: less than 2.5 %, and the less the fewer groups."""
    from scipy.special import ndtr

    if groups < 2:
        return 0.0
    return float(ndtr(-math.sqrt(groups / (groups - 1)) * _student(groups - 1)))


def _student(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def clopper_pearson(share: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's interval for n * share hits of n, which need not be integers."""
    from scipy.special import betaincinv

    tail, hits = (1 - CONFIDENCE) / 2, share * n
    low = betaincinv(hits, n - hits + 1, tail) if share > 0 else 0.0
    high = betaincinv(hits + 1, n - hits, 1 - tail) if share < 1 else 1.0
    return float(low), float(high)
