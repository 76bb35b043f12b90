"""Design-based estimates: by hand, against known formulas, and in simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats  # type: ignore[import-untyped]

from curate.audit import estimates
from curate.audit.estimates import AuditDraw, Interval
from curate.errors import CurateError

Ints = npt.NDArray[np.int_]


def binomial(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    exact = scipy.stats.binomtest(hits, n).proportion_ci(confidence, method="exact")
    return exact.low, exact.high


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_total_and_mean_by_hand() -> None:
    assert estimates.horvitz_thompson([1, 0, 1], [0.5, 0.1, 0.25]) == pytest.approx(6)
    assert estimates.hajek([1, 0, 1], [0.5, 0.1, 0.25]) == pytest.approx(6 / 16)
    assert estimates.horvitz_thompson([], []) == 0
    assert math.isnan(estimates.hajek([], []))


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (1, 30), (15, 30), (30, 30)])
def test_one_stratum_of_a_large_population_gives_clopper_and_pearson(hits: int, n: int) -> None:
    share = estimates.prevalence([1] * hits + [0] * (n - hits), [n / 1e7] * n)
    assert share.estimate == pytest.approx(hits / n)
    assert share[1:3] == pytest.approx(binomial(hits, n), abs=5e-3)
    assert share.n == n
    assert share.effective_n == pytest.approx(n, rel=0.05)


def test_nothing_found_in_thirty_is_not_nothing() -> None:
    share = estimates.prevalence([0] * 30, [30 / 1e6] * 30, confidence=0.9)
    assert share[:2] == (0, 0)
    assert share.high == pytest.approx(0.095, abs=5e-4)


def test_stratified_mean_and_variance_by_hand() -> None:
    y, strata, sizes = [1, 0, 0, 0, 1, 1], ["a"] * 4 + ["b"] * 2, {"a": 80, "b": 20}
    pi = [4 / 80] * 4 + [2 / 20] * 2
    share = estimates.prevalence(y, pi, strata, sizes)
    assert share.estimate == pytest.approx(0.8 / 4 + 0.2)
    assert share == estimates.prevalence(y, pi, strata)
    sample = estimates._Sample.of(np.array(pi), strata, None)
    z = np.array(y) * 0 + sample.weight * (np.array(y) - share.estimate) / 100
    by_hand = 0.8**2 * (1 - 4 / 80) * np.var([1, 0, 0, 0], ddof=1) / 4
    assert estimates._variance(z, sample) == pytest.approx(by_hand)


def test_uneven_weights_are_worth_fewer_picks() -> None:
    even = estimates.prevalence([0] * 40, [0.01] * 40, ["a"] * 20 + ["b"] * 20)
    uneven = estimates.prevalence([0] * 40, [0.002] * 20 + [0.05] * 20, ["a"] * 20 + ["b"] * 20)
    assert even.effective_n == pytest.approx(40, rel=0.01)
    assert uneven.effective_n < 25
    assert uneven.high > even.high


def test_ratio_by_hand_recall_and_false_alarms() -> None:
    truth, flags, pi = [1, 1, 0, 0, 0], [1, 0, 0, 1, 0], [0.1, 0.2, 0.1, 0.1, 0.2]
    recall = estimates.ratio(flags, truth, pi)
    assert recall.estimate == pytest.approx(10 / 15)
    assert recall.n == 2
    alarms = estimates.ratio(flags, [1 - y for y in truth], pi)
    assert alarms.estimate == pytest.approx(10 / 25)
    assert alarms.n == 3


# --- edges ------------------------------------------------------------------------------------------------------------


def test_without_data_anything_is_possible() -> None:
    for nothing in (estimates.prevalence([], []), estimates.ratio([0, 0], [0, 0], [0.1, 0.1]), estimates.combined([])):
        assert math.isnan(nothing.estimate)
        assert nothing[1:] == (0, 1, 0, 0)


def test_a_census_has_no_doubt() -> None:
    assert estimates.prevalence([1, 0, 0, 0], [1, 1, 1, 1], ["a", "a", "b", "b"])[:4] == (0.25, 0.25, 0.25, 4)
    assert estimates.ratio([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1])[:3] == (0.5, 0.5, 0.5)
    assert estimates.prevalence([0, 0], [1, 1])[:3] == (0, 0, 0)


def test_the_interval_never_contradicts_what_was_seen() -> None:
    share = estimates.prevalence([1] * 3 + [0] * 87, [0.9] * 90)
    assert share.low >= 3 / 100 - 1e-9
    assert share.high <= 13 / 100 + 1e-9


def test_strata_of_one_pick_still_give_an_interval() -> None:
    share = estimates.prevalence([1, 0, 0], [0.1, 0.1, 0.2], ["a", "b", "c"])
    assert share.low < share.estimate < share.high < 1
    share = estimates.prevalence([1], [0.1])
    assert share.estimate == share.high == 1
    assert share.low < 0.15


def test_a_stratum_without_a_pick_widens_the_interval() -> None:
    full = estimates.prevalence([0] * 50, [0.1] * 50, ["a"] * 50, {"a": 500})
    wide = estimates.prevalence([0] * 50, [0.1] * 50, ["a"] * 50, {"a": 500, "b": 500})
    assert wide.high == pytest.approx(0.5 + full.high / 2)
    assert wide.low == 0


def test_picks_without_a_probability_or_label_are_refused() -> None:
    for bad in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(CurateError, match="leave out picks without one"):
            estimates.prevalence([1], [bad])
    with pytest.raises(CurateError, match="stratum 'a' has 2 audit picks but 1 images"):
        estimates.prevalence([0, 1], [0.5, 0.5], ["a", "a"], {"a": 1})
    with pytest.raises(ValueError, match="must be known"):
        estimates.hajek([math.nan], [0.5])
    with pytest.raises(ValueError, match="equally long"):
        estimates.hajek([1, 0], [0.5])


# --- several rounds ---------------------------------------------------------------------------------------------------


def test_one_round_combined_is_the_prevalence() -> None:
    y, pi, strata, sizes = [1, 0, 0, 0, 0, 1], [0.04] * 4 + [0.1] * 2, ["a"] * 4 + ["b"] * 2, {"a": 100, "b": 20}
    alone, both = estimates.prevalence(y, pi, strata, sizes), estimates.combined([AuditDraw(y, pi, sizes, strata)])
    assert both == pytest.approx(alone)


def test_known_labels_count_themselves() -> None:
    """100 labelled images of which 40 are defective, and an audit of the other 900."""
    audit = estimates.prevalence([0] * 9 + [1], [10 / 900] * 10)
    share = estimates.combined([AuditDraw([0] * 9 + [1], [10 / 900] * 10, {"all": 900}, None, 100, 40)])
    assert share.estimate == pytest.approx((40 + 90) / 1000)
    assert share.low == pytest.approx((40 + 900 * audit.low) / 1000, abs=1e-3)
    assert share.high == pytest.approx((40 + 900 * audit.high) / 1000)


def test_when_all_is_labelled_the_share_is_known() -> None:
    rounds = [AuditDraw([0] * 10, [0.1] * 10, {"all": 100}), AuditDraw([1] * 5, [1] * 5, {"all": 5}, None, 95, 7)]
    assert estimates.combined(rounds)[:3] == pytest.approx((0.12, 0.12, 0.12))
    assert estimates.combined(rounds[:1], labelled=100, defective=12)[:3] == pytest.approx((0.12, 0.12, 0.12))
    assert estimates.combined([AuditDraw([], [], {}, None, 100, 12)])[1:3] == pytest.approx((0.12, 0.12))


def test_rounds_of_different_populations_are_refused() -> None:
    with pytest.raises(CurateError, match="100, 105"):
        estimates.combined([AuditDraw([0], [0.01], {"all": 100}), AuditDraw([0], [0.01], {"all": 100}, None, 5)])


# --- simulation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plant:
    """A finite population of three unequal strata, and a model whose score correlates with the truth."""

    stratum: Ints
    y: Ints
    score: npt.NDArray[np.float64]

    @property
    def flags(self) -> Ints:
        return (self.score > 0.9).astype(int)

    @property
    def members(self) -> list[Ints]:
        return [np.flatnonzero(self.stratum == h) for h in range(3)]


def plant(prevalence: float, counts: tuple[int, ...] = (4000, 1500, 500)) -> Plant:
    rng = np.random.default_rng(7)
    stratum, relative = np.repeat(np.arange(3), counts), np.array([0.6, 1.4, 3.0])
    relative /= (relative * counts).sum() / sum(counts)
    y = np.zeros(len(stratum), int)
    for h, rate in enumerate(prevalence * relative):
        y[rng.choice(np.flatnonzero(stratum == h), round(rate * counts[h]), replace=False)] = 1
    return Plant(stratum, y, y + rng.normal(0, 0.5, len(y)))


def coverage(truth: float, estimate: Callable[[int], Interval], repetitions: int) -> float:
    intervals = [estimate(i) for i in range(repetitions)]
    return sum(i.low - 1e-9 <= truth <= i.high + 1e-9 for i in intervals) / repetitions


REPETITIONS = 4000
# Three standard errors of a coverage of 0.95 below it.
ENOUGH = 0.95 - 3 * math.sqrt(0.95 * 0.05 / REPETITIONS)


@pytest.mark.parametrize("picks", [(20, 20, 20), (100, 60, 40)])
@pytest.mark.parametrize(
    "share", [0.003, *(pytest.param(share, marks=pytest.mark.exhaustive) for share in (0.02, 0.2))]
)
def test_intervals_cover(share: float, picks: tuple[int, ...]) -> None:
    here, rng = plant(share), np.random.default_rng(0)
    members = here.members
    labels = np.repeat(["a", "b", "c"], picks)
    pi = np.repeat([n / len(m) for n, m in zip(picks, members, strict=True)], picks)
    draws = [
        np.concatenate([rng.choice(m, n, replace=False) for m, n in zip(members, picks, strict=True)])
        for _ in range(REPETITIONS)
    ]
    y, flags = here.y, here.flags
    cases: dict[str, tuple[float, Callable[[int], Interval]]] = {
        "prevalence": (y.mean(), lambda i: estimates.prevalence(y[draws[i]], pi, labels)),
        "recall": (flags[y == 1].mean(), lambda i: estimates.ratio(flags[draws[i]], y[draws[i]], pi, labels)),
        "alarms": (flags[y == 0].mean(), lambda i: estimates.ratio(flags[draws[i]], 1 - y[draws[i]], pi, labels)),
    }
    for name, (truth, estimate) in cases.items():
        assert coverage(truth, estimate, REPETITIONS) >= ENOUGH, name
    means = np.array([estimates.hajek(y[d], pi) for d in draws])
    assert means.mean() == pytest.approx(y.mean(), abs=4 * means.std() / math.sqrt(REPETITIONS))


@pytest.mark.parametrize(("share", "shift"), [(0.003, 2.0), (0.03, 0.0), (0.03, 2.0), (0.03, 3.5), (0.2, 2.0)])
def test_intervals_cover_where_the_most_suspicious_tenth_is_drawn_more_often(share: float, shift: float) -> None:
    """Three picks in ten from a tenth that holds from a tenth to nearly all of the defects."""
    rng, size, repetitions = np.random.default_rng(4), 6000, 400
    y = np.zeros(size, int)
    y[rng.choice(size, round(share * size), replace=False)] = 1
    score = rng.normal(size=size) + shift * y
    flags = (score + 0.3 * rng.normal(size=size) > np.quantile(score, 0.95)).astype(int)
    order, sizes = np.argsort(-score), {"tenth": 600, "others": 5400}
    urns, enough = (order[:600], order[600:]), 0.95 - 3 * math.sqrt(0.95 * 0.05 / repetitions)
    for picks in ((22, 53), (90, 210)):
        draws = [
            np.concatenate([rng.choice(urn, n, replace=False) for urn, n in zip(urns, picks, strict=True)])
            for _ in range(repetitions)
        ]
        labels, pi = np.repeat(["tenth", "others"], picks), np.repeat([picks[0] / 600, picks[1] / 5400], picks)

        def prevalence(i: int) -> Interval:
            return estimates.prevalence(y[draws[i]], pi, labels, sizes)  # noqa: B023

        def recall(i: int) -> Interval:
            return estimates.ratio(flags[draws[i]], y[draws[i]], pi, labels, sizes)  # noqa: B023

        assert coverage(y.mean(), prevalence, repetitions) >= enough
        assert coverage(flags[y == 1].mean(), recall, repetitions) >= enough
        means = np.array([estimates.hajek(y[d], pi) for d in draws])
        assert means.mean() == pytest.approx(y.mean(), abs=4 * means.std() / math.sqrt(repetitions))
        if shift >= 2 and share <= 0.03:  # as good as half as many picks again, or more
            evenly = math.sqrt(share * (1 - share) / sum(picks) * (1 - sum(picks) / size))
            assert means.std() < 0.8 * evenly


def test_a_stratum_of_light_picks_does_not_hide_what_the_heavy_ones_may_hold() -> None:
    """All defects that were drawn come from an urn of high chances: recall is less sure than so many even picks say."""
    even = estimates.ratio([1] * 8 + [0] * 92, [1] * 10 + [0] * 90, [0.1] * 100)
    pi, urns = [0.5] * 50 + [0.02] * 50, ["tenth"] * 50 + ["others"] * 50
    tilted = estimates.ratio([1] * 8 + [0] * 92, [1] * 10 + [0] * 90, pi, urns)
    assert tilted.estimate == even.estimate == pytest.approx(0.8)
    assert tilted.high - tilted.low > even.high - even.low + 0.1


@pytest.mark.parametrize("share", [0.003, 0.02, 0.2])
def test_naive_figures_from_active_picks_do_not_cover(share: float) -> None:
    here, rng = plant(share), np.random.default_rng(0)

    def naive(_: int) -> Interval:
        tired = here.score + rng.normal(0, 0.1, len(here.score))
        picked = np.argpartition(-tired, 200)[:200]
        return estimates.prevalence(here.y[picked], np.full(200, 1e-6))

    assert coverage(here.y.mean(), naive, 200) == 0


@pytest.mark.parametrize(
    "share", [0.003, *(pytest.param(share, marks=pytest.mark.exhaustive) for share in (0.02, 0.2))]
)
def test_combined_rounds_cover_while_active_picks_drain_the_population(share: float) -> None:
    """Four rounds of 40 active and 30 audit picks each, out of the same population."""
    here, rng = plant(share, (1600, 600, 200)), np.random.default_rng(1)
    repetitions = 1000
    last: list[float] = []

    def campaign(_: int) -> Interval:
        open_, rounds = np.ones(len(here.y), bool), []
        for _ in range(4):
            rounds.append(_audit(here, open_, rng))
            left = np.flatnonzero(open_)
            open_[left[np.argsort(-here.score[left])[:40]]] = False
        result = estimates.combined(rounds, int((~open_).sum()), int(here.y[~open_].sum()))
        last.append(result.estimate)
        return result

    enough = 0.95 - 3 * math.sqrt(0.95 * 0.05 / repetitions)
    assert coverage(here.y.mean(), campaign, repetitions) >= enough
    if share > 0.01:  # below, the bounds that labels set cut negative errors off
        assert np.mean(last) == pytest.approx(here.y.mean(), rel=0.1)


def _audit(here: Plant, open_: npt.NDArray[np.bool_], rng: Any) -> AuditDraw:
    before = ~open_
    done, defective = int(before.sum()), int(here.y[before].sum())
    left = [m[open_[m]] for m in here.members]
    drawn = [rng.choice(m, 10, replace=False) for m in left]
    picks = np.concatenate(drawn)
    pi = np.repeat([10 / len(m) for m in left], 10)
    open_[picks] = False
    sizes = {name: float(len(m)) for name, m in zip("abc", left, strict=True)}
    return AuditDraw(here.y[picks], pi, sizes, np.repeat(["a", "b", "c"], 10), done, defective)
