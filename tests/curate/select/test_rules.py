"""The layer that all strategies share: near-duplicates, groups, strata quotas, budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from curate.errors import CurateError
from curate.select.pool import Pool
from curate.select.rules import BARE, SelectionRules, choose, with_neighbourhood
from curate.strategies import CATALOGUE
from tests.pools import drawn, with_tiles

FAST = [name for name in CATALOGUE.names() if name not in ("bald",)]


def rows(pool: Pool, batch: object) -> np.ndarray:
    return pool.rows_of([pick.id for pick in batch.picks])  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_groups_are_spread_for_every_strategy(name: str) -> None:
    pool = with_tiles(drawn())  # three images a group, a hundred groups; 60 labelled images touch most of them
    open_groups = {int(g) for g in pool.groups[pool.candidates]}
    fresh = open_groups - {int(g) for g in pool.groups[pool.labelled]}
    batch = choose(pool, name, len(fresh), rules=SelectionRules(), options={"audit": 0} if name == "portfolio" else {})
    picked = pool.groups[rows(pool, batch)].tolist()
    expected = fresh if name != "audit" else set(picked)  # an audit is never put back
    assert set(picked) == expected
    if name != "audit":
        assert max(Counter(picked).values()) == 1


def test_a_second_image_of_a_group_comes_once_all_had_one() -> None:
    pool = drawn(labelled=0, exemplars=False)
    batch = choose(pool, "random", 250, rules=SelectionRules())
    assert sorted(set(Counter(pool.groups[rows(pool, batch)].tolist()).values())) == [2, 3]
    assert len(batch.picks) == 250


def test_bare_strategies_are_left_alone() -> None:
    pool = drawn()
    plain = CATALOGUE.call("random")(pool, 30, np.random.default_rng([0, 1, 0]))
    assert {pick.id for pick in choose(pool, "random", 30).picks} == {pick.id for pick in plain}


@pytest.mark.parametrize("name", ["random", "kcenter", "portfolio"])
def test_near_duplicates_of_picks_and_of_labelled_images_are_avoided(name: str) -> None:
    pool = drawn(labelled=30)
    vectors = pool.vectors.copy()
    twins = pool.open[:40]
    vectors[twins[20:]] = vectors[twins[:20]]  # twenty pairs of candidates
    known = np.flatnonzero(pool.labelled)[:10]
    vectors[pool.open[40:50]] = vectors[known]  # ten candidates that look like labelled images
    pool = replace(pool, vectors=vectors)
    options = {"audit": 0} if name == "portfolio" else {}
    budget = int(pool.candidates.sum())
    batch = choose(pool, name, budget, rules=SelectionRules(near=0.9999), options=options)
    assert len(batch.picks) == budget - 30
    assert batch.near_duplicates == 30
    assert any("30 of the budget" in note for note in batch.notes)
    similarity = pool.vectors[rows(pool, batch)] @ pool.vectors[rows(pool, batch)].T
    assert (similarity - 2 * np.eye(len(similarity))).max() < 0.9999


def test_audit_picks_keep_their_chances_and_others_lose_theirs() -> None:
    batch = choose(drawn(), "portfolio", 40, rules=SelectionRules(near=0.999))
    assert all(pick.propensity for pick in batch.picks if pick.slot == "audit")
    assert not any(pick.propensity for pick in batch.picks if pick.slot != "audit")
    assert all(pick.propensity for pick in choose(drawn(), "random", 40, rules=BARE).picks)


def test_the_audit_is_drawn_from_all_candidates_not_from_what_the_rules_leave() -> None:
    pool = drawn()
    batch = choose(pool, "portfolio", 200, rules=SelectionRules(near=0.99), options={"audit": 1.0, "rare": 0.2})
    chances = {pick.id: pick.propensity for pick in batch.picks if pick.slot == "audit"}
    total = sum(1 / chance for chance in chances.values() if chance)
    assert total == pytest.approx(int(pool.population.sum()))


@pytest.mark.parametrize("quota", [5, "equal", "proportional"])
def test_strata_quotas_are_kept(quota: object) -> None:
    pool = drawn()
    strata = np.where(np.arange(len(pool)) < 240, 0, np.arange(len(pool)) % 3 + 1)
    pool = replace(pool, strata=strata)
    batch = choose(pool, "kcenter", 40, rules=SelectionRules(per_stratum=quota))  # type: ignore[arg-type]
    counts = Counter(pool.strata[rows(pool, batch)].tolist())
    if quota == 5:
        assert counts == {0: 5, 1: 5, 2: 5, 3: 5}
        assert any("has reached --per-stratum" in note for note in batch.notes)
    elif quota == "equal":
        assert counts == {0: 10, 1: 10, 2: 10, 3: 10}
    else:
        assert counts[0] >= 30


def test_a_stratum_that_runs_dry_passes_its_quota_on() -> None:
    pool = drawn()
    strata = np.zeros(len(pool), np.int64)
    strata[pool.open[:3]] = 1
    batch = choose(replace(pool, strata=strata), "random", 40, rules=SelectionRules(per_stratum="equal"))
    assert len(batch.picks) == 40
    assert any("ran out of images" in note for note in batch.notes)


def test_budget_larger_than_the_pool_takes_all_and_says_so() -> None:
    pool = drawn(60, labelled=20)
    batch = choose(pool, "portfolio", 500, rules=SelectionRules())
    assert len(batch.picks) == int(pool.candidates.sum())
    assert any("left over" in note for note in batch.notes)


@pytest.mark.parametrize("budget", [0, -3])
def test_no_budget_is_refused(budget: int) -> None:
    with pytest.raises(CurateError, match="1 or more"):
        choose(drawn(), "random", budget)


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(CurateError, match="did you mean 'kcenter'"):
        choose(drawn(), "kcentre", 3)


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(CurateError, match="allowed: adapt, audit, explore, rare, uncertain"):
        choose(drawn(), "portfolio", 3, options={"explor": 1})


def test_same_seed_same_picks_in_any_order_of_rows() -> None:
    shuffled = np.random.default_rng(1).permutation(300)
    first = choose(drawn(), "portfolio", 40, seed=4, rules=SelectionRules(near=0.999))
    again = choose(drawn(order=shuffled), "portfolio", 40, seed=4, rules=SelectionRules(near=0.999))
    assert first.picks == again.picks
    assert first.picks != choose(drawn(), "portfolio", 40, seed=5, rules=SelectionRules(near=0.999)).picks


def test_slots_take_turns_in_the_queue() -> None:
    picks = choose(drawn(), "portfolio", 40, rules=SelectionRules()).picks
    half = Counter(pick.slot for pick in picks[:20])
    whole = Counter(pick.slot for pick in picks)
    assert all(abs(half[slot] - whole[slot] / 2) <= 1 for slot in whole)


def test_reasons_tell_how_much_is_known_around() -> None:
    pool = drawn()
    picks = with_neighbourhood(pool, choose(pool, "random", 5).picks)
    assert all("of its 100 nearest images are labelled" in pick.reason for pick in picks)
