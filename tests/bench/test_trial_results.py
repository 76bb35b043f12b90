"""The page of the trial: the bar says what its lines say, and the stages share their trainings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synth.trial import arms, verdict
from synth.trial.arms import Arm, TrialRun
from synth.trial.design import TrialRequest
from tests.bench.trial import results, run
from tests.synth.answers import judged

BASE, POISSON, GAN = verdict.BASE, Arm("poisson", 1, True), Arm("gan", 1, True)


@pytest.mark.parametrize(
    ("poisson", "gan", "harmless", "above", "helped"),
    [
        (0.5, 0.7, "met", "met** (gan x1 gated)", "gan x1 gated: crack, gan x1 gated: hole"),
        (0.8, 0.7, "met", "missed", "gan x1 gated: crack, gan x1 gated: hole"),
        (0.3, 0.5, "missed** (poisson x1 gated: mean", "met** (gan x1 gated)", "none"),
    ],
)
def test_the_bar_says_what_the_lines_say(poisson: float, gan: float, harmless: str, above: str, helped: str) -> None:
    shares = {BASE: 0.5, POISSON: poisson, GAN: gan}
    found = {
        (10, arm): [judged({"crack": share, "hole": share}, seed=seed) for seed in range(2)]
        for arm, share in shares.items()
    }
    rows = results._bar(verdict.table(found), results._held(found)).splitlines()
    assert f"significantly below `balanced`: **{harmless}" in rows[0]
    assert f"above `poisson` in mean IoU: **{above}" in rows[1]
    assert helped in rows[2]


@pytest.mark.slow
def test_poisson_blending_is_met_at_its_own_ratio_and_gate() -> None:
    shares = {
        arm: 0.1 * place
        for place, arm in enumerate(
            Arm(name, ratio, gated) for name in ("poisson", "gan") for ratio in (0.5, 2) for gated in (False, True)
        )
    }
    found = {(5, arm): [judged({"crack": share, "hole": share})] for arm, share in shares.items()}
    lonely = {(20, Arm("gan", 2)): [judged({"crack": 0.5, "hole": 0.5})]}  # of a budget without Poisson
    held = {one.arm: one.differences["crack"]["iou"].value for one in results._held(found | lonely)}
    assert list(held) == [Arm("gan", 0.5), Arm("gan", 2), Arm("gan", 0.5, True), Arm("gan", 2, True)]
    for arm, apart in held.items():
        assert apart == pytest.approx(shares[arm] - shares[replace(arm, name="poisson")], abs=0.02)


def test_the_screening_is_a_part_of_the_full_stage() -> None:
    def runs(wish: TrialRequest) -> set[TrialRun]:
        made = arms.arms(wish.arms or (), wish.ratios or ())
        return set(arms.runs(made, range(wish.tested or 0), wish.budgets or (), wish.seeds or 0))

    screen, full = runs(run.SCREEN), runs(run.FULL)
    assert screen < full
    assert (len(screen), len(full), len(runs(run.CURVE))) == (33, 110, 20)
    budgets, ratios = runs(run.BUDGETS), runs(run.RATIOS)
    assert (len(budgets), len(budgets & runs(run.CURVE)), len(ratios), len(ratios & screen)) == (132, 12, 51, 3)
    assert len(runs(run.AGAIN) - budgets - runs(run.CURVE)) == 32
