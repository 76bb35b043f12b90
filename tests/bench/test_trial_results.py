"""The page of the trial: the bar says what its lines say, and the stages share their trainings."""

from __future__ import annotations

import pytest

from synth import arms, verdict
from synth.arms import Arm, Run
from synth.trial import Wish
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
    text = results._bar(verdict.table(found), results._held(found, gated=True))
    rows = text.splitlines()[2:]
    assert f"significantly below `balanced`: **{harmless}" in rows[0]
    assert f"above `poisson` in mean IoU: **{above}" in rows[1]
    assert helped in rows[2]
    assert results._held(found, gated=False) == []


def test_the_screening_is_a_part_of_the_full_stage() -> None:
    def runs(wish: Wish) -> set[Run]:
        made = arms.arms(wish.arms or (), wish.ratios or ())
        return set(arms.runs(made, range(wish.tested or 0), wish.budgets or (), wish.seeds or 0))

    screen, full = runs(run.SCREEN), runs(run.FULL)
    assert screen < full
    assert (len(screen), len(full), len(runs(run.CURVE))) == (33, 110, 20)
