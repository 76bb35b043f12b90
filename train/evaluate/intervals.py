"""How far a figure of a test set can be trusted: 95 % intervals by drawing whole groups again.

Images of one coil or tile are alike, so groups are what was sampled, not images. Every figure is computed from sums
over images, weighted by how often each image's group was drawn: no image is looked at twice.

References: Efron and Tibshirani 1993 (the bootstrap); Hesterberg 2015 (percentiles moved outwards by Student's t, for
few groups are less spread than what they come from); Clopper and Pearson 1934; Korn and Graubard 1998.
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
FEW = 10  # groups below which a resampled interval is too good to be true
SILENT = 0.9  # an interval as wide as this says nothing
Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure with its bounds, from `n` images (or regions) of so many groups. NaN: nothing to measure it by."""

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
        """Whether it says next to nothing."""
        return not self.high - self.low < SILENT

    def to_json(self) -> dict[str, Any]:
        numbers = {name: _plain(getattr(self, name)) for name in ("value", "low", "high")}
        return numbers | {"n": self.n, "groups": self.groups, "few": self.few, "silent": self.silent}


class BootstrapMetric(NamedTuple):
    """One figure in every draw; the first is that of the data as they are. `parts`: what it is the mean of."""

    values: Floats
    n: int
    groups: int
    parts: tuple[Any, ...] = ()


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


@dataclass(frozen=True)
class BootstrapDraws:
    """`weights[draw, group]`: how often the group was drawn; the first row holds ones. The same groups give the same
    draws, so two models can be held against each other pair by pair."""

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
        """Sums over images (the first axis) in every draw."""
        order = np.argsort(self.group, kind="stable")
        begins = np.searchsorted(self.group[order], np.arange(self.weights.shape[1]))
        flat = np.ascontiguousarray(values, np.float64).reshape(len(values), -1)[order]
        total = self.weights @ np.add.reduceat(flat, begins, axis=0)
        return np.asarray(total.reshape(len(self.weights), *values.shape[1:]))

    def share(self, hits: NDArray[Any], inside: NDArray[Any]) -> BootstrapMetric:
        """Sum of hits over sum of `inside`; images and groups with any `inside` count."""
        found = self.sums(np.stack([hits, inside], axis=-1))
        shown = np.asarray(inside) > 0
        return BootstrapMetric(ratio(found[..., 0], found[..., 1]), int(np.sum(inside[shown])), self.groups_of(shown))

    def groups_of(self, chosen: NDArray[np.bool_]) -> int:
        """Groups with an image of these."""
        return len(np.unique(self.group[chosen]))


def ratio(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """NaN where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0), np.float64)


def mean(parts: Sequence[BootstrapMetric]) -> BootstrapMetric:
    """The mean of figures of one scale, over those that exist; its groups are those of the scarcest."""
    known = [one for one in parts if np.isfinite(one.values[0])]
    if not known:
        return BootstrapMetric(np.full(len(parts[0].values) if parts else 1, np.nan), 0, 0)
    values = np.stack([one.values for one in known])
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(axis=0)
    return BootstrapMetric(
        ratio(total, there.sum(axis=0)), sum(one.n for one in known), min(one.groups for one in known), tuple(known)
    )


def figure(measure: BootstrapMetric) -> Estimate:
    """A share (0 to 1) with its interval: percentiles of the draws, and never narrower than a coin's that was thrown so
    often that it tells as much. Few groups tell no more than as many throws; nor do shares of 0 or 1, which no draw
    can leave.
    """
    value, n, groups = float(measure.values[0]), measure.n, measure.groups
    if not math.isfinite(value):
        return Estimate(math.nan, math.nan, math.nan, n, groups)
    low, high = spread(measure)
    if measure.parts:
        below, above = _of_parts(value, [figure(part) for part in measure.parts])
    else:
        below, above = exact(min(max(value, 0.0), 1.0), _throws(measure))
    return Estimate(value, max(min(low, below), 0.0), min(max(high, above), 1.0), n, groups)


def _throws(measure: BootstrapMetric) -> float:
    """Of a coin, that tell as much: Korn and Graubard's effective sample size, from the variance of the draws."""
    value, groups = float(measure.values[0]), max(measure.groups, 1)
    variance = float(np.nanvar(measure.values[1:])) if np.isfinite(measure.values[1:]).any() else 0.0
    if groups < FEW or not 0 < value < 1 or variance <= 0:
        return groups
    shrink = _student(10**9) / (_student(groups - 1) * math.sqrt(groups / (groups - 1)))
    return float(value * (1 - value) / variance * shrink**2)


def _of_parts(value: float, parts: Sequence[Estimate]) -> tuple[float, float]:
    """The mean's interval from those of its parts, as if their errors had nothing to do with each other."""
    below, above = (
        math.sqrt(sum((one.value - bound) ** 2 for one, bound in bounds)) / len(parts)
        for bounds in ([(one, one.low) for one in parts], [(one, one.high) for one in parts])
    )
    return value - below, value + above


def difference(measure: BootstrapMetric) -> Estimate:
    """A difference of two shares (-1 to 1) with its interval."""
    value = float(measure.values[0])
    low, high = spread(measure) if math.isfinite(value) else (math.nan, math.nan)
    return Estimate(value, low, high, measure.n, measure.groups)


def spread(measure: BootstrapMetric) -> tuple[float, float]:
    """Percentiles of the draws; the value itself always lies between them."""
    drawn = measure.values[1:]
    drawn = drawn[np.isfinite(drawn)]
    value = float(measure.values[0])
    if not len(drawn):
        return value, value
    tail = _tail(max([measure.groups, *(part.groups for part in measure.parts)]))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return min(float(low), value), max(float(high), value)


def _tail(groups: int) -> float:
    """What is cut off at either end: less than 2.5 %, the fewer groups the less."""
    from scipy.special import ndtr

    if groups < 2:
        return 0.0
    return float(ndtr(-math.sqrt(groups / (groups - 1)) * _student(groups - 1)))


def _student(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def exact(share: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's interval for n * share hits of n, which need not be whole."""
    from scipy.special import betaincinv

    tail, hits = (1 - CONFIDENCE) / 2, share * n
    low = betaincinv(hits, n - hits + 1, tail) if share > 0 else 0.0
    high = betaincinv(hits + 1, n - hits, 1 - tail) if share < 1 else 1.0
    return float(low), float(high)
