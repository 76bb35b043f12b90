"""Intervals: against brute force, against what theory says, and by how often they hold what is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from train.evaluate import intervals
from train.evaluate.intervals import BootstrapDraws, BootstrapMetric, estimate


def test_sums_are_those_of_the_images_that_were_drawn() -> None:
    random = np.random.default_rng(0)
    groups = [f"g{random.integers(7)}" for _ in range(40)]
    values = random.normal(size=(40, 2, 3))
    draws = BootstrapDraws.of(groups, draws=20, seed=3)
    names = sorted(set(groups))
    for row, weights in enumerate(draws.weights):
        often = dict(zip(names, weights.astype(int), strict=True))
        taken = np.repeat(np.arange(40), [often[name] for name in groups])
        assert np.allclose(draws.sums(values)[row], values[taken].sum(axis=0))
    assert (draws.weights[0] == 1).all()
    assert (draws.weights.sum(axis=1) == len(names)).all()


@given(st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_images_does_not_matter(order: list[int]) -> None:
    groups = np.array([f"coil{number // 2}" for number in range(12)])
    values = np.arange(12.0)
    plain = BootstrapDraws.of(groups.tolist(), draws=5).sums(values)
    assert np.allclose(BootstrapDraws.of(groups[order].tolist(), draws=5).sums(values[order]), plain)


def test_the_spread_is_the_one_that_theory_gives() -> None:
    """With the mean of equal groups the bootstrap's variance is the plain one with n instead of n - 1."""
    random = np.random.default_rng(1)
    by_group = random.random(200)
    groups = [f"{number}" for number in range(200) for _ in range(3)]
    values = np.repeat(by_group, 3)
    measure = BootstrapDraws.of(groups, draws=4000).share(values, np.ones(600))
    assert np.isclose(measure.values[0], by_group.mean())
    assert np.isclose(measure.values[1:].std(), by_group.std() / math.sqrt(200), rtol=0.05)
    interval = estimate(measure)
    half = stats.t.ppf(0.975, 199) * by_group.std(ddof=1) / math.sqrt(200)
    assert np.allclose([interval.low, interval.high], [by_group.mean() - half, by_group.mean() + half], atol=0.006)


@pytest.mark.parametrize(
    "groups", [pytest.param(6, marks=pytest.mark.exhaustive), 15, pytest.param(40, marks=pytest.mark.exhaustive)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(groups: int) -> None:
    """Images of a group are alike (beta-binomial); groups differ in size. Intervals that take images for independent
    would hold the truth far less often."""
    random = np.random.default_rng(groups)
    held, naive, rounds = 0, 0, 300
    for seed in range(rounds):
        rates = random.beta(0.8, 0.2, groups)  # mean 0.8, and most groups near 1
        sizes = random.integers(2, 9, groups)
        hits = [random.random(size) < rate for rate, size in zip(rates, sizes, strict=True)]
        names = [f"{row}" for row, size in enumerate(sizes) for _ in range(size)]
        values = np.concatenate(hits).astype(float)
        interval = estimate(BootstrapDraws.of(names, draws=300, seed=seed).share(values, np.ones(len(values))))
        held += interval.low <= 0.8 <= interval.high
        low, high = intervals.clopper_pearson(values.mean(), len(values))
        naive += low <= 0.8 <= high
    assert held / rounds >= 0.92  # 95 %, less three standard errors of 300 rounds
    assert naive / rounds < 0.85


def test_few_groups_are_as_wide_as_so_many_throws_of_a_coin() -> None:
    measure = BootstrapDraws.of(["a", "a", "b", "c"]).share(np.array([1, 1, 1, 0]), np.ones(4))
    interval = estimate(measure)
    low, high = stats.binomtest(1, 2).proportion_ci(0.95, "exact")
    assert interval.groups == 3
    assert interval.few
    assert interval.silent  # nearly anything is possible
    assert interval.low <= low + 0.1
    assert high - interval.high < 0.1


def test_a_share_of_one_is_not_certain() -> None:
    groups = [f"{number}" for number in range(27)]
    interval = estimate(BootstrapDraws.of(groups).share(np.ones(27), np.ones(27)))
    assert interval.high == 1
    assert np.isclose(interval.low, stats.binomtest(27, 27).proportion_ci(0.95, "exact")[0])


@given(st.floats(0, 1), st.integers(1, 400))
def test_exact_is_clopper_and_pearson(share: float, n: int) -> None:
    hits = round(share * n)
    expected = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    assert np.allclose(intervals.clopper_pearson(hits / n, n), expected, atol=1e-7)


def test_nothing_to_measure_stays_nothing() -> None:
    interval = estimate(BootstrapDraws.of(["a", "b"]).share(np.zeros(2), np.zeros(2)))
    assert math.isnan(interval.value)
    assert interval.silent
    assert interval.to_json()["value"] is None


def test_a_mean_is_as_wide_as_what_is_wide_in_it() -> None:
    """A class of one group must not hide behind others of many."""
    many = BootstrapMetric(np.concatenate([[0.8], np.random.default_rng(0).normal(0.8, 0.01, 1000)]), 500, 200)
    lone = BootstrapMetric(np.full(1001, 0.5), 3, 1)
    interval = estimate(intervals.mean([many, lone]))
    assert np.isclose(interval.value, 0.65, atol=1e-9)
    alone = estimate(lone)
    assert interval.groups == 1
    assert interval.low <= 0.65 - (0.5 - alone.low) / 2
    assert estimate(intervals.mean([many, many])).high < 0.85


def test_a_mean_leaves_out_what_cannot_be_measured() -> None:
    nothing = BootstrapMetric(np.full(3, np.nan), 0, 0)
    assert np.allclose(
        intervals.mean([nothing, BootstrapMetric(np.array([0.5, 0.4, np.nan]), 9, 3)]).values[:2], [0.5, 0.4]
    )
    assert math.isnan(intervals.mean([nothing]).values[0])
