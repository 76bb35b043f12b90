"""Unbiased estimates about all images from audit picks: shares, and their confidence intervals.

Audit picks are simple random samples within strata (strata of production, or the parts of them that are drawn with
unlike chances), so each has a known inclusion probability `pi`. Images that a model picked have none, and estimates
from them are biased; leave them out here. Leave out an audit pick without a label, too: the others of its stratum then
represent it.

References: Särndal, Swensson and Wretman 1992 (estimators, linearised variances); Korn and Graubard 1998 (intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curate.errors import CurateError

Floats = npt.NDArray[np.float64]
Labels = Sequence[str] | npt.NDArray[np.str_] | None
Sizes = Mapping[str, float] | None


class Interval(NamedTuple):
    """A share (or count) with its confidence bounds. `n` picks are worth `effective_n` uniformly drawn ones."""

    estimate: float
    low: float
    high: float
    n: int
    effective_n: float


LIGHT = 0.25  # of a pick: what a stratum may hold unseen; the coverage of the intervals was tried with it
NOTHING = Interval(math.nan, 0.0, 1.0, 0, 0.0)


def horvitz_thompson(y: npt.ArrayLike, pi: npt.ArrayLike) -> float:
    """The population's total of y (Horvitz and Thompson 1952)."""
    values, chances = _checked(y, pi)
    return float((values / chances).sum())


def hajek(y: npt.ArrayLike, pi: npt.ArrayLike) -> float:
    """The population's mean of y (Hájek 1971); NaN without picks."""
    values, chances = _checked(y, pi)
    return float((values / chances).sum() / (1 / chances).sum()) if values.size else math.nan


def _checked(y: npt.ArrayLike, pi: npt.ArrayLike) -> tuple[Floats, Floats]:
    values, chances = np.asarray(y, dtype=np.float64), np.asarray(pi, dtype=np.float64)
    if values.shape != chances.shape or values.ndim != 1:
        raise ValueError(f"y and pi must be equally long lists, not {values.shape} and {chances.shape}")
    if not np.isfinite(values).all():
        raise ValueError("y must be known; leave out picks that nobody labelled")
    if not ((chances > 0) & (chances <= 1)).all():
        raise CurateError("an inclusion probability must lie above 0 and at most at 1; leave out picks without one")
    return values, chances


# --- one sample -------------------------------------------------------------------------------------------------------


def prevalence(
    y: npt.ArrayLike, pi: npt.ArrayLike, strata: Labels = None, sizes: Sizes = None, confidence: float = 0.95
) -> Interval:
    """The share of images with y = 1. `sizes` are the strata's image counts; without them they follow from pi.

    A stratum in `sizes` without a pick may be all clean or all defective: the interval is widened accordingly.
    """
    values, chances = _checked(y, pi)
    sample = _Sample.of(chances, strata, sizes)
    share = _share(values, np.ones_like(values), sample, confidence, smoothed=_smoothed(values, sample))
    if not share.n:
        return share
    positives, total = float(values.sum()), sample.total
    cut = _within(share, positives / total, 1 - (share.n - positives) / total)
    return _widened(cut, sample.unseen / (total + sample.unseen))


def ratio(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    pi: npt.ArrayLike,
    strata: Labels = None,
    sizes: Sizes = None,
    confidence: float = 0.95,
) -> Interval:
    """The share of images with numerator = 1 among those with denominator = 1.

    Recall: denominator = truly defective, numerator = flagged by the model. False-alarm rate: denominator = clean.
    The variance is Taylor-linearised, since the denominator's size is an estimate, too.
    """
    inside, chances = _checked(denominator, pi)
    hits, _ = _checked(numerator, pi)
    return _share(hits * inside, inside, _Sample.of(chances, strata, sizes), confidence)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Design of one sample: a weight and a stratum number for each pick, and each stratum's picks and images."""

    weight: Floats
    stratum: npt.NDArray[np.intp]
    drawn: Floats
    images: Floats
    unseen: float

    @classmethod
    def of(cls, pi: Floats, strata: Labels, sizes: Sizes) -> _Sample:
        labels = np.asarray(strata if strata is not None else ["all"] * len(pi)).astype(np.str_)
        names, stratum = np.unique(labels, return_inverse=True)
        drawn = np.bincount(stratum, minlength=len(names)).astype(np.float64)
        images = np.asarray(np.bincount(stratum, 1 / pi, len(names)), dtype=np.float64)
        weight, unseen = 1 / pi, 0.0
        if sizes is not None:
            counts = _sizes(names, drawn, sizes if strata is not None else {"all": sum(sizes.values())})
            weight, images = weight * (counts / images)[stratum], counts
            unseen = sum(sizes.values()) - float(images.sum())
        return cls(weight, stratum, drawn, images, unseen)

    @property
    def total(self) -> float:
        return float(self.images.sum())

    @property
    def fraction(self) -> Floats:
        return np.minimum(self.drawn / self.images, 1)

    def thinning(self) -> Floats:
        """For each stratum the ratio f / -log(1 - f), which is 0 at f = 1.

        A sample of n without replacement misses a rare defect as often as n / ratio draws with replacement. The usual
        correction 1 - f is too optimistic where only a few images show a defect.
        """
        f = self.fraction
        inner = np.clip(f, 1e-12, 1 - 1e-12)
        return np.where(f >= 1, 0, inner / -np.log1p(-inner))


def _sizes(names: npt.NDArray[np.str_], drawn: Floats, sizes: Mapping[str, float]) -> Floats:
    counts = np.array([sizes.get(str(name), 0) for name in names], dtype=np.float64)
    for name, n, size in zip(names, drawn, counts, strict=True):
        if size < n:
            raise CurateError(f"stratum '{name}' has {n:g} audit picks but {size:g} images; give its size at the draw")
    return counts


def _share(hits: Floats, inside: Floats, sample: _Sample, confidence: float, smoothed: float = math.inf) -> Interval:
    """Sum of weighted hits over sum of weighted `inside`, with a Korn-Graubard interval.

    `smoothed`: a variance that is not too low (see `_smoothed`), where there is one.
    """
    base, n = float((sample.weight * inside).sum()), int((inside > 0).sum())
    if not n:
        return NOTHING
    share = min(float((sample.weight * hits).sum()) / base, 1.0)
    variance = _variance(sample.weight * (hits - share * inside) / base, sample)
    if (inside < 1).any():  # of a subset, which a stratum may hold without showing any
        variance += _unshown(share, sample) / base**2
    degrees = _degrees(inside, sample)
    most = max(_even(inside, sample), _worth(share, smoothed, *degrees) if 0 < share < 1 else 0.0)
    effective = min(_worth(share, variance, *degrees), most)
    return Interval(share, *_clopper_pearson(share, effective, confidence), n, effective)


def _variance(z: Floats, sample: _Sample) -> float:
    """Stratified variance of a sum of linearised values; a single pick is compared with the overall mean, 0."""
    n = sample.drawn
    mean = np.bincount(sample.stratum, z, len(n)) / n
    centre = np.where(n > 1, mean, 0)[sample.stratum]
    squares = np.bincount(sample.stratum, (z - centre) ** 2, len(n))
    return float(((1 - sample.fraction) * n / np.maximum(n - 1, 1) * squares).sum())


def _unshown(share: float, sample: _Sample) -> float:
    """Variance from a hit and a miss more, lightly counted, in each stratum whose picks weigh more than others.

    Where most of a subset was drawn with high chances, a few heavy picks decide; of these there may be none by chance.
    Where all picks weigh the same it is 0.
    """
    heavy = np.bincount(sample.stratum, sample.weight, len(sample.drawn)) / sample.drawn
    more = (1 - sample.fraction) * (heavy**2 - heavy.min() ** 2)
    return float(LIGHT * (share**2 + (1 - share) ** 2) * more.sum())


def _smoothed(hits: Floats, sample: _Sample) -> float:
    """Variance of the weighted share of hits with one hit and one miss more in each stratum (Agresti and Coull 1998).

    The observed one is 0 in a stratum without a hit, however many images it stands for.
    """
    n = sample.drawn
    share = (np.bincount(sample.stratum, hits, len(n)) + 1) / (n + 2)
    part = sample.images / sample.total
    return float((part**2 * (1 - sample.fraction) * share * (1 - share) / n).sum())


def _even(inside: Floats, sample: _Sample) -> float:
    """Kish's effective sample size: the picks that a uniform draw would need if all strata were alike.

    It is an upper bound where the observed variance is too low: it is 0 in each stratum without a defect.
    """
    weight = sample.weight * inside
    uneven = float((weight**2 * sample.thinning()[sample.stratum]).sum())
    return float(weight.sum() ** 2 / uneven) if uneven else math.inf


def _worth(share: float, variance: float, whole: float, degrees: float) -> float:
    """Korn and Graubard's effective sample size, reduced for the variance's few degrees of freedom."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    if not 0 < share < 1 or variance <= 0:
        return math.inf
    shrink = stdtrit(max(whole, 1), 0.975) / stdtrit(max(degrees, 1), 0.975)
    return float(share * (1 - share) / variance * shrink**2)


def _degrees(inside: Floats, sample: _Sample) -> tuple[float, float]:
    """Degrees of freedom of an unstratified and of the stratified sample, over the strata that hold any of `inside`."""
    drawn = sample.drawn[np.unique(sample.stratum[inside > 0])]
    single = bool((drawn == 1).any())
    return float(drawn.sum() - 1), float(drawn.sum() - (drawn > 1).sum() - single)


def _clopper_pearson(share: float, n: float, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's exact binomial interval for n * share hits, which need not be whole."""
    from scipy.special import betaincinv

    if math.isinf(n):
        return share, share
    tail, hits = (1 - confidence) / 2, share * n
    low = betaincinv(hits, n - hits + 1, tail) if share > 0 else 0.0
    high = betaincinv(hits + 1, n - hits, 1 - tail) if share < 1 else 1.0
    return float(low), float(high)


def _widened(share: Interval, unseen: float) -> Interval:
    return share._replace(low=share.low * (1 - unseen), high=share.high * (1 - unseen) + unseen)


def _within(share: Interval, low: float, high: float) -> Interval:
    """The interval cut to these bounds."""
    estimate = min(max(share.estimate, low), high)
    return share._replace(
        estimate=estimate, low=min(max(share.low, low), estimate), high=max(min(share.high, high), estimate)
    )


# --- several rounds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditDraw:
    """One audit: the picks, the unlabelled images of each stratum at its draw, and what was labelled before it."""

    y: npt.ArrayLike
    pi: npt.ArrayLike
    sizes: Mapping[str, float]
    strata: Labels = None
    labelled: int = 0
    defective: int = 0  # of the labelled ones

    @property
    def unlabelled(self) -> float:
        return float(sum(self.sizes.values()))


def combined(
    rounds: Sequence[AuditDraw], labelled: int | None = None, defective: int | None = None, confidence: float = 0.95
) -> Interval:
    """The share of defective images in the whole population, from audits of what was unlabelled in each round.

    Labelled images are counted, however they were picked. Given the past each round's estimate is unbiased, so that
    their errors do not correlate, and weights that depend on no label keep the mean unbiased. `labelled` and
    `defective` are today's counts, after the last round; they bound the result, and may raise the estimate.
    """
    if not rounds:
        return NOTHING
    population, first = _population(rounds), rounds[0]
    bounds = _bounds(rounds[-1], population, labelled, defective)
    parts = [_part(r, first) for r in rounds if np.size(r.y)]
    if not parts:
        return Interval(math.nan, *bounds, 0, 0.0)
    rest = _pooled(parts, confidence)
    scale, known = first.unlabelled / population, first.defective / population
    whole = rest._replace(**{key: known + scale * getattr(rest, key) for key in ("estimate", "low", "high")})
    return _within(whole, *bounds)


def _population(rounds: Sequence[AuditDraw]) -> float:
    totals = sorted({r.labelled + r.unlabelled for r in rounds})
    if len(totals) > 1:
        raise CurateError(
            f"the rounds are about different populations (of {', '.join(f'{t:g}' for t in totals)} images); combine"
            " only rounds of the same one: images that came later are another population"
        )
    return totals[0]


def _bounds(last: AuditDraw, population: float, labelled: int | None, defective: int | None) -> tuple[float, float]:
    """Bounds of the share from labelled images alone; without today's counts from those at the last audit's end."""
    known = last.labelled + np.size(last.y) if labelled is None else labelled
    positive = last.defective + float(np.sum(last.y)) if defective is None else defective
    return positive / population, 1 - (known - positive) / population


class _Part(NamedTuple):
    """One round's estimate for the images that were unlabelled at the first round."""

    share: float
    variance: float
    smoothed: float
    even: float
    n: int
    degrees: float
    unseen: float


def _part(draw: AuditDraw, first: AuditDraw) -> _Part:
    values, chances = _checked(draw.y, draw.pi)
    sample, ones = _Sample.of(chances, draw.strata, draw.sizes), np.ones_like(values)
    weight, scale = sample.weight / sample.total, draw.unlabelled / first.unlabelled
    mean = float(weight @ values)
    share = (draw.defective - first.defective) / first.unlabelled + scale * mean
    variance, smoothed = (
        scale**2 * _variance(weight * (values - mean), sample),
        scale**2 * _smoothed(values, sample),
    )
    degrees = _degrees(ones, sample)[1]
    return _Part(
        share,
        variance,
        smoothed,
        _even(ones, sample) / scale**2,
        values.size,
        degrees,
        sample.unseen / first.unlabelled,
    )


def _pooled(parts: Sequence[_Part], confidence: float) -> Interval:
    """Mean of the rounds' estimates, each weighted by its Kish effective sample size."""
    shares, variances, smoothed_ones, evens, sizes, degrees, unseen = np.array(parts).T
    weight = np.isinf(evens) / np.isinf(evens).sum() if np.isinf(evens).any() else evens / evens.sum()
    share, variance, smoothed = (
        float(weight @ shares),
        float(weight**2 @ variances),
        float(weight**2 @ smoothed_ones),
    )
    clipped, freedom = min(max(share, 0.0), 1.0), (sizes.sum() - 1, degrees.sum())
    most = max(float(evens.sum()), _worth(clipped, smoothed, *freedom) if 0 < clipped < 1 else 0.0)
    effective = min(_worth(clipped, variance, *freedom), most)
    bounds = _clopper_pearson(clipped, effective, confidence)
    return _widened(Interval(share, *bounds, int(sizes.sum()), effective), float(weight @ unseen))
