"""When to stop: unseen defect kinds, predictions that settle, defects that are left, and the advice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curate.audit import estimates, stopping
from curate.audit.stopping import Audit, advice

STEADY = (0.97, 0.992, 0.995, 0.999)


def audit(picks: int, hits: int = 0, population: int = 10_000, **more: int) -> Audit:
    y = [1] * hits + [0] * (picks - hits)
    return Audit(y, [picks / population] * picks, None, {"all": population}, **more)


# --- unseen kinds -----------------------------------------------------------------------------------------------------


def test_good_turing_by_hand() -> None:
    unseen = stopping.good_turing([5, 1, 1, 3, 0])
    assert unseen.estimate == pytest.approx(0.2)
    assert unseen.n == 10
    assert unseen[1:3] == (0, 1)
    assert stopping.good_turing([5, 1, 1, 3], draws=1000).estimate == pytest.approx(0.002)
    assert stopping.good_turing([], draws=1000).estimate == 0
    nothing = stopping.good_turing([])
    assert math.isnan(nothing.estimate)
    assert nothing[1:3] == (0, 1)


def test_the_good_turing_bound_narrows_slowly_and_follows_the_confidence() -> None:
    highs = [stopping.good_turing([], n).high for n in (10, 100, 1000, 10_000)]
    assert highs == sorted(highs, reverse=True)
    assert highs[0] == 1
    assert highs[1] > 0.4
    assert highs[3] < 0.05
    assert stopping.good_turing([], 1000, 0.99).high > highs[2]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_good_turing_is_nearly_unbiased_and_its_bound_holds(power: float) -> None:
    rng, n = np.random.default_rng(0), 500
    p = 1 / np.arange(1, 401) ** power
    p /= p.sum()
    counts = rng.multinomial(n, p, 600)
    unseen = [stopping.good_turing(row) for row in counts]
    mass = np.array([p[row == 0].sum() for row in counts])
    assert np.mean([u.estimate for u in unseen]) == pytest.approx(mass.mean(), abs=0.003)
    assert np.mean([u.high for u in unseen] >= mass) >= 0.95


# --- change -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kappa_is_scikit_learn_s() -> None:
    from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

    rng = np.random.default_rng(0)
    before = rng.random((300, 3))
    after = np.clip(before + rng.normal(0, 0.2, before.shape), 0, 1)
    change = stopping.prediction_change(before, after)
    was, now = before >= 0.5, after >= 0.5
    assert change.kappa == pytest.approx(cohen_kappa_score(was.ravel(), now.ravel()))
    by_class = [cohen_kappa_score(was[:, c], now[:, c]) for c in range(3)]
    assert change.kappa_by_class == pytest.approx(by_class)
    assert change.mean_absolute == pytest.approx(np.abs(before - after).mean())
    assert change.changed == pytest.approx((was != now).any(axis=1).mean())


def test_change_at_the_edges() -> None:
    p = np.zeros((4, 2))
    assert stopping.prediction_change(p, p) == (0, 0, 1, (1, 1))
    assert stopping.prediction_change(p, p + 1) == (1, 1, 0, (0, 0))
    assert math.isnan(stopping.prediction_change(np.zeros((0, 2)), np.zeros((0, 2))).kappa)
    with pytest.raises(ValueError, match="images, classes"):
        stopping.prediction_change(p, p[:2])


# --- missed -----------------------------------------------------------------------------------------------------------


def test_missed_counts_what_is_left() -> None:
    y, pi = [1] * 2 + [0] * 18, [20 / 1000] * 20
    share = estimates.prevalence(y, pi)
    alone = stopping.missed(y, pi)
    assert alone[:3] == pytest.approx((98, share.low * 1000 - 2, share.high * 1000 - 2))
    more = stopping.missed(y, pi, labelled=120, found=62)
    assert more.estimate == pytest.approx(38)
    assert more.low == 0
    assert stopping.missed(y, pi, labelled=990, found=62).high == 10
    assert math.isnan(stopping.missed([], [], sizes={"a": 100}).estimate)
    assert stopping.missed([], [], sizes={"a": 100})[1:3] == (0, 100)


def test_missed_covers_in_simulation() -> None:
    rng, n, population = np.random.default_rng(0), 60, 3000
    y = (np.arange(population) < 90).astype(int)
    score = y + rng.normal(0, 0.5, population)
    covered = 0
    for _ in range(1000):
        picks = rng.choice(population, n, replace=False)
        done = np.union1d(picks, np.argsort(-score)[:50])
        left = stopping.missed(y[picks], [n / population] * n, labelled=len(done), found=int(y[done].sum()))
        covered += left.low <= y.sum() - y[done].sum() <= left.high
    assert covered >= 930


# --- advice -----------------------------------------------------------------------------------------------------------


def test_thirty_clean_picks_say_little() -> None:
    result = advice(audit(30), STEADY)
    assert result.verdict == "too little data"
    assert result.reasons[0] == (
        "30 audit picks say little: at most 9.5 % of the remaining images show a defect (95 %); it takes about 299"
        " audit picks, all clean, to show that at most 1 % do."
    )
    assert result.to_json() == {"verdict": result.verdict, "reasons": result.reasons}


def test_the_number_of_picks_that_it_names_is_enough_and_one_less_is_not() -> None:
    needed = stopping.picks_needed()
    assert needed == 299
    assert advice(audit(needed, population=10**7), STEADY).verdict == "stop"
    assert advice(audit(needed - 2, population=10**7), STEADY).verdict == "too little data"


@pytest.mark.parametrize(
    ("given", "kappas", "verdict", "reason"),
    [
        (audit(400), STEADY, "stop", "show enough: at most"),
        (audit(400), (0.99, 0.99), "too little data", "2 so far (kappa 0.990, 0.990)"),
        (audit(400), (), "too little data", "none so far"),
        (audit(400), (0.995, 0.995, 0.989999), "go on", "still change from round to round (kappa 0.995, 0.995, 0.989;"),
        (audit(30), (0.8,), "go on", "still change"),
        (audit(100, 30), STEADY, "go on", "of the remaining images show a defect (95 %); 1 % would be acceptable"),
        (audit(400, 3), STEADY, "go on", "do not rule out that much is left"),
        (Audit(), STEADY, "too little data", "No audit pick is labelled yet; it takes about 299"),
        (audit(1), STEADY, "too little data", "1 audit pick says little: at most 95 %"),
        (audit(50, 0, 50), (), "stop", "No unlabelled image remains"),
        (audit(40, 4, 500, labelled=490, found=40), (0.5,), "go on", "still change"),
    ],
)
def test_advice(given: Audit, kappas: tuple[float, ...], verdict: str, reason: str) -> None:
    result = advice(given, kappas)
    assert result.verdict == verdict, result.reasons
    assert reason in " ".join(result.reasons)


def test_what_was_found_since_the_draw_counts() -> None:
    """Ten in 400 are defective, so some 25 in 1000; once 24 of them are labelled, little can be left."""
    assert advice(audit(400, 10, 1000), STEADY).verdict == "go on"
    assert advice(audit(400, 0, 1000, labelled=424, found=24), STEADY).verdict == "stop"


def test_tolerance_confidence_and_unseen_kinds() -> None:
    assert advice(audit(60), STEADY, acceptable=0.05).verdict == "stop"
    assert advice(audit(60), STEADY, acceptable=0.05, confidence=0.99).verdict == "too little data"
    result = advice(audit(400), STEADY, stopping.good_turing([1, 2], 400))
    assert result.verdict == "stop"
    assert result.reasons[-1] == (
        "About 0.25 % of images show a kind of defect that no audit has seen, at most 23 % (95 %)."
    )
    assert len(advice(audit(400), STEADY, stopping.good_turing([])).reasons) == 2
