"""One contract for all strategies, and the purpose of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.select import linear_probe
from curate.select.pool import NO_EXEMPLARS, Floats, Pool
from curate.strategies import CATALOGUE, DEFAULT
from tests.pools import drawn, with_tiles

ALL = CATALOGUE.names()


def select(name: str, pool: Pool, budget: int, seed: int = 0) -> list[str]:
    return [pick.id for pick in CATALOGUE.call(name)(pool, budget, np.random.default_rng(seed))]


def test_all_strategies_are_found() -> None:
    first = {"random", "foreground_random", "nearest", "probe", "margin", "entropy", "bald", "kcenter", "typiclust"}
    assert set(ALL) >= first | {"maxherding", "badge", "rare", "class_stratified", "herding_uncertainty", "portfolio"}
    assert DEFAULT in ALL
    assert all(len(CATALOGUE.summary(name)) > 30 for name in ALL)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("budget", [1, 7, 40])
def test_exact_budget_unique_and_only_candidates(name: str, budget: int) -> None:
    pool = with_tiles(drawn())
    ids = select(name, pool, budget)
    assert len(ids) == len(set(ids)) == budget
    assert all(pool.candidates[pool.rows_of(ids)])


@pytest.mark.parametrize("name", ALL)
def test_takes_all_where_the_budget_is_larger(name: str) -> None:
    pool = drawn(80, labelled=30)
    assert sorted(select(name, pool, 500)) == sorted(pool.ids[row] for row in pool.open)


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_picks_whatever_the_order_of_rows(name: str) -> None:
    shuffled = np.random.default_rng(5).permutation(300)
    assert select(name, drawn(), 25, seed=3) == select(name, drawn(order=shuffled), 25, seed=3)


@pytest.mark.parametrize("name", ALL)
def test_the_pool_is_left_alone(name: str) -> None:
    pool = drawn()
    before = {name: np.array(getattr(pool, name)) for name in ("vectors", "candidates", "labelled", "present")}
    select(name, pool, 20)
    assert all(np.array_equal(value, getattr(pool, name)) for name, value in before.items())
    with pytest.raises(ValueError, match="read-only"):
        pool.vectors[0, 0] = 1


@pytest.mark.parametrize("name", ALL)
def test_every_pick_has_a_reason_and_a_score(name: str) -> None:
    for pick in CATALOGUE.call(name)(drawn(), 20, np.random.default_rng(0)):
        assert len(pick.reason) > 10
        assert np.isfinite(pick.score)
        assert pick.slot
        assert pick.propensity is None or 0 < pick.propensity <= 1


@pytest.mark.parametrize("name", ALL)
def test_scores_that_are_missing_for_some_images_break_nothing(name: str) -> None:
    pool = drawn()
    likely = np.random.default_rng(1).random((len(pool), 3)).astype(np.float32)
    likely[::7] = np.nan
    bald = likely[:, 0].copy()
    assert len(select(name, replace(pool, scores={"probability": likely, "bald": bald}), 30)) == 30


@pytest.mark.parametrize("name", ["margin", "entropy", "badge", "class_stratified", "foreground_random", "bald"])
def test_without_any_label_the_error_says_what_to_do(name: str) -> None:
    pool = drawn(labelled=1, exemplars=False)
    with pytest.raises(CurateError, match="--strategy maxherding"):
        select(name, pool, 5)


@pytest.mark.parametrize("name", ["rare", "nearest"])
def test_without_exemplars_the_error_says_what_to_give(name: str) -> None:
    with pytest.raises(CurateError, match="--exemplars"):
        select(name, drawn(exemplars=False), 5)


@pytest.mark.parametrize("name", ["rare", "nearest"])
def test_exemplars_find_their_like(name: str) -> None:
    pool = with_tiles(drawn())
    wanted = pool.vectors @ pool.exemplars.vectors.mean(axis=0)
    ids = select(name, pool, 9)
    # Nine images of the rare kind are left: the exemplars' cloud is the one that lies nearest to them.
    nearest = set(np.argsort(-np.where(pool.candidates, wanted, -9))[:9].tolist())
    assert len(nearest & set(pool.rows_of(ids).tolist())) >= 7


def test_portfolio_fills_its_slots_and_passes_on_what_cannot_work() -> None:
    pool = drawn()
    picks = CATALOGUE.call("portfolio")(pool, 40, np.random.default_rng(0))
    counts = {slot: sum(pick.slot == slot for pick in picks) for slot in ("rare", "uncertain", "explore", "audit")}
    assert counts == {"rare": 6, "uncertain": 3, "explore": 25, "audit": 6}
    cold = replace(drawn(labelled=0, exemplars=False), exemplars=NO_EXEMPLARS)
    picks = CATALOGUE.call("portfolio")(cold, 40, np.random.default_rng(0), rare=0.5)
    assert {pick.slot for pick in picks} == {"explore", "audit"}
    assert any("slot rare is left out" in note for note in cold.memo["notes"])


def test_until_people_refused_some_probe_and_similarity_take_turns() -> None:
    pool = drawn(labelled=0)
    pool = replace(pool, exemplars=replace(pool.exemplars, given=True), memo={})
    picks = CATALOGUE.call("portfolio")(pool, 40, np.random.default_rng(0), rare=1, uncertain=0, explore=0, audit=0)
    assert {pick.slot for pick in picks} == {"rare"}
    by = ["probe" if "probe" in pick.reason else "similarity" for pick in picks]
    assert all("similarity" in pick.reason or "probe" in pick.reason for pick in picks)
    assert min(by.count("probe"), by.count("similarity")) >= 5
    refused = replace(drawn(labelled=30), exemplars=pool.exemplars, memo={})
    later = CATALOGUE.call("portfolio")(refused, 40, np.random.default_rng(0), rare=1, uncertain=0, explore=0, audit=0)
    assert all("window probe" in pick.reason for pick in later)


def test_portfolio_explores_more_while_more_kinds_are_likely_to_be_unseen() -> None:
    often = drawn(labelled=200)
    few = often.labelled & (np.cumsum(often.labelled) <= 12)
    assert min(often.group_count(name) for name in often.classes[:2]) > 20

    def explored(**changed: Any) -> int:
        pool = replace(often, exemplars=NO_EXEMPLARS, memo={}, lasting={}, **changed)
        picks = CATALOGUE.call("portfolio")(pool, 100, np.random.default_rng(0), audit=0)
        return sum(pick.slot == "explore" for pick in picks)

    settled = explored(classes=often.classes[:2], present=often.present[:, :2])
    named = explored()  # blister has a name and was never seen
    once = explored(labelled=few, present=often.present & few[:, None])  # others were seen a few times, too
    assert settled < named <= once


def test_portfolio_s_shares_can_be_set() -> None:
    picks = CATALOGUE.call("portfolio")(drawn(), 30, np.random.default_rng(0), rare=1, uncertain=0, explore=0, audit=1)
    assert sum(pick.slot == "audit" for pick in picks) == 15
    assert sum(pick.slot == "rare" for pick in picks) == 15


def test_audit_draws_from_every_stratum_with_known_chances() -> None:
    pool = drawn()
    picks = CATALOGUE.call("audit")(pool, 20, np.random.default_rng(0))
    for stratum in range(4):
        rows = [row for row in pool.rows_of([pick.id for pick in picks]).tolist() if pool.strata[row] == stratum]
        size = int((pool.population & (pool.strata == stratum)).sum())
        chances = {pick.propensity for pick in picks if pool.strata[pool.rows_of([pick.id])[0]] == stratum}
        assert chances == {len(rows) / size}
        assert rows


def test_an_audit_takes_suspicious_images_more_often_and_marks_what_is_beyond_their_share() -> None:
    pool = drawn(1000)
    likely = np.zeros((len(pool), 3), np.float32)
    likely[:, 1] = np.random.default_rng(1).random(len(pool))
    pool = replace(pool, scores={"probability": likely}, memo={})
    picks = CATALOGUE.call("audit")(pool, 80, np.random.default_rng(0))
    assert len(picks) == 80
    sizes = {pick.urn: 0.0 for pick in picks}
    for pick in picks:
        sizes[pick.urn] += 1 / (pick.propensity or np.nan)
    assert sum(sizes.values()) == pytest.approx(int(pool.population.sum()))
    high = [pick for pick in picks if "suspicious" in str(pick.urn)]
    low = [pick for pick in picks if "others" in str(pick.urn)]
    assert (len(high), len(low)) == (24, 56)
    rows = [pool.rows_of([pick.id for pick in part]) for part in (high, low)]
    assert likely[rows[0], 1].min() > 0.85
    for stratum in range(4):
        mine = [likely[part[pool.strata[part] == stratum], 1] for part in rows]
        assert mine[0].min() > mine[1].max()
    even = [pick for pick in picks if not pick.extra]
    assert {pick.extra for pick in low} == {False}
    assert 0.08 < sum(pick in high for pick in even) / len(even) < 0.14
    assert "most suspicious tenth" in high[0].reason
    plain = CATALOGUE.call("audit")(pool, 80, np.random.default_rng(0), tilt=0.1)
    assert {pick.urn for pick in plain} == {None}
    with pytest.raises(CurateError, match=r"allowed: 0\.1 to 0\.5"):
        CATALOGUE.call("audit")(pool, 80, np.random.default_rng(0), tilt=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [12, pytest.param(44, marks=pytest.mark.exhaustive)])
def test_audit_chances_are_the_true_ones(budget: int) -> None:
    """Drawn again and again, each image comes as often as its recorded chance says."""
    pool = drawn(60, labelled=10) if budget == 12 else drawn(120, labelled=10)
    times = np.zeros(len(pool))
    stated = np.zeros(len(pool))
    for seed in range(2000):
        for pick in CATALOGUE.call("audit")(pool, budget, np.random.default_rng(seed)):
            assert (pick.urn is None) == (budget == 12)
            row = pool.rows_of([pick.id])[0]
            times[row] += 1
            stated[row] = pick.propensity
    drawn_rows = pool.population
    assert np.abs(times[drawn_rows] / 2000 - stated[drawn_rows]).max() < 0.05


def test_class_stratified_gives_a_rare_class_its_share() -> None:
    pool = drawn()
    likely = np.full((len(pool), 3), 0.5, np.float32)  # everything is in doubt for two classes
    likely[:, 2] = 0.01
    likely[pool.open[:30], 2] = 0.4
    picks = CATALOGUE.call("class_stratified")(
        replace(pool, scores={"probability": likely}), 30, np.random.default_rng(0), power=20.0
    )
    assert sum("blister" in pick.reason for pick in picks) == 10


@pytest.mark.parametrize("name", ["maxherding", "herding_uncertainty"])
def test_coverage_of_a_sample_is_nearly_as_good(name: str) -> None:
    pool = drawn(3000, labelled=100)

    def covered(most: int) -> float:
        picks = CATALOGUE.call(name)(pool, 20, np.random.default_rng(0), most=most)
        chosen = pool.vectors[pool.rows_of([pick.id for pick in picks])]
        return float((pool.vectors @ chosen.T).max(axis=1).mean())

    assert covered(600) > covered(3000) - 0.01
    assert covered(600) > 0.5


def test_near_copies_of_better_candidates_wait() -> None:
    pool = with_tiles(drawn())
    best = pool.rows_of(select("rare", pool, 1))[0]
    vectors = pool.vectors.copy()
    copies = [row for row in pool.open[-8:].tolist() if row != best]
    vectors[copies] = vectors[best]
    copied = with_tiles(replace(pool, vectors=vectors))
    ids = copied.rows_of(select("rare", copied, 20)).tolist()
    assert len(set(ids) & {*copies, int(best)}) == 1
    plain = [pick.id for pick in CATALOGUE.call("rare")(copied, 20, np.random.default_rng(0), separation=2.0)]
    assert len(set(copied.rows_of(plain).tolist()) & set(copies)) >= 7


def test_what_people_refused_is_pushed_down() -> None:
    """Nine images that are half like the exemplars and all alike; one of them is labelled as something else."""
    pool = drawn()
    rows = pool.open[-9:]
    vectors = pool.vectors.copy()
    half = pool.exemplars.vectors.mean(axis=0) + 0.6 * pool.vectors[pool.open[0]][::-1]
    vectors[rows] = half / np.linalg.norm(half)
    labelled, candidates = pool.labelled.copy(), pool.candidates.copy()
    labelled[rows[0]], candidates[rows[0]] = True, False
    known = replace(pool, vectors=vectors, labelled=labelled, candidates=candidates, population=candidates)
    known = replace(known, memo={}, lasting={})

    def impostors(negative: float) -> int:
        picks = CATALOGUE.call("rare")(known, 20, np.random.default_rng(0), negative=negative, separation=2.0)
        return len(set(known.rows_of([pick.id for pick in picks]).tolist()) & set(rows[1:].tolist()))

    assert impostors(0.0) == 8
    assert impostors(0.5) == 0


def test_expansion_takes_in_what_lies_near_the_first_finds() -> None:
    pool = with_tiles(drawn())
    wide = [p.id for p in CATALOGUE.call("rare")(pool, 12, np.random.default_rng(0), expand=3)]
    assert len(set(wide)) == 12
    assert set(wide) & set(select("rare", pool, 12))


def test_exemplars_that_a_user_gives_are_sought_though_their_class_is_not_scarce() -> None:
    picks = CATALOGUE.call("rare")(_scratches_sought(), 5, np.random.default_rng(0))
    assert len(picks) == 5
    assert all("to scratch exemplar" in pick.reason or "probe gives scratch" in pick.reason for pick in picks)


def _scratches_sought() -> Pool:
    """Two of the labelled scratches are exemplars."""
    pool = drawn()
    shown = np.flatnonzero(pool.present[:, 0])[:2]
    given = replace(pool.exemplars, ids=tuple(pool.ids[row] for row in shown), classes=("scratch",) * 2)
    return replace(pool, exemplars=replace(given, tiles=given.tiles[:2], vectors=pool.vectors[shown]))


def test_a_probe_stands_in_where_no_model_knows_the_class() -> None:
    """A model that never saw the class gives all images the same low probability: no reason to pick any."""
    pool = replace(_scratches_sought(), wanted=("scratch",))
    other, known = (np.zeros((len(pool), len(pool.classes)), np.float32) for _ in range(2))
    other[:, 1], known[:, 0] = 0.5, np.linspace(0.1, 0.9, len(pool))

    def sources(**scores: Floats) -> set[str]:
        picks = CATALOGUE.call("rare")(replace(pool, scores=scores, memo={}), 8, np.random.default_rng(0))
        return {source for pick in picks for source in ("probe", "model") if f"the {source} gives" in pick.reason}

    assert sources() == {"probe"}
    assert sources(probability=other) == {"probe"}
    assert sources(probability=known) == {"model"}


def test_the_ranking_probe_holds_a_class_against_all_until_something_was_refused() -> None:
    pool = drawn(1000)
    shows = pool.shows("scratch")
    bare = replace(pool, labelled=shows, memo={})
    assert not (bare.trainable & ~shows).any()
    for either in (bare, pool):
        likely = linear_probe.ranking(either, shows)
        assert likely[shows].min() > 0.5 > np.median(likely)


@pytest.mark.parametrize("name", ["rare", "window_probe", "class_stratified", "anomaly"])
def test_where_people_s_time_counts_what_takes_long_must_be_worth_it(name: str) -> None:
    """The first choice, made twenty times as laborious, falls back; where all take the same time nothing changes."""
    pool = with_tiles(drawn())
    if name == "class_stratified":  # late, so that its noise is small, and for a class that the probe knows
        pool = replace(pool, turn=6, wanted=("scratch",))
    usual = select(name, pool, 12)
    effort = np.ones(len(pool), np.float32)
    assert select(name, replace(pool, effort=effort, memo={}), 12) == usual
    effort = effort.copy()
    effort[pool.rows_of(usual[:1])] = 20
    dear = select(name, replace(pool, effort=effort, memo={}), 12)
    assert usual[0] not in dear[:6]
    assert len(set(dear) & set(usual)) >= 8


def test_of_classes_that_are_asked_for_candidates_have_the_greater_part_of_a_round() -> None:
    pool = drawn()
    name = pool.exemplars.classes[0]

    def rare(**given: Any) -> int:
        picks = CATALOGUE.call("portfolio")(replace(pool, memo={}, **given), 20, np.random.default_rng(0))
        return sum(pick.slot == "rare" for pick in picks)

    given = replace(pool.exemplars, given=True)
    assert (rare(), rare(wanted=(name,)), rare(exemplars=given)) == (3, 16, 16)
    assert rare(wanted=tuple(set(pool.classes) - {name})) < 16  # nothing shows these: what is left is shared as ever
