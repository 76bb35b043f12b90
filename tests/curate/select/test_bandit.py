"""The bandit over slots: yields by hand, shares that follow them within bounds, and the round that they make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.select import bandit
from curate.select.bandit import DECAY, SlotYield, shares_by_yield, slot_yields
from curate.select.pool import PastRound, Pool
from curate.select.rules import SelectionRules, choose
from tests.pools import drawn


def labelled(pool: Pool, shown: dict[int, int], clean: list[int], past: tuple[PastRound, ...], turn: int) -> Pool:
    """The pool with these rows labelled alone: `shown` names the class of each, `clean` shows none."""
    known, present = np.zeros(len(pool), bool), np.zeros((len(pool), len(pool.classes)), bool)
    known[[*shown, *clean]] = True
    for row, number in shown.items():
        present[row, number] = True
    groups = np.arange(len(pool))  # an image each
    free = ~known
    return replace(
        pool,
        labelled=known,
        present=present,
        groups=groups,
        candidates=free,
        population=free,
        past=past,
        turn=turn,
        memo={},
        lasting={},
    )


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_yields_by_hand() -> None:
    """Round 1: `rare` finds something twice in three, `explore` never. Round 2: class 0 is common by then, 2 unseen."""
    past = (
        PastRound(1, rows(0, 1, 2, 3, 4), ("rare", "rare", "rare", "explore", "explore")),
        PastRound(2, rows(5, 6, 7, 8), ("rare", "rare", "explore", "explore")),
    )
    shown = {0: 0, 1: 1, 5: 0, 6: 1, 7: 2} | dict.fromkeys(range(20, 40), 0)  # class 0 was known before any round
    pool = labelled(drawn(), shown, [2, 3, 4, 8], past, turn=3)
    yields = slot_yields(pool)
    # Round 1: class 0 is known from 20 groups and the only one known, so that it is the scarcest; 1 is unseen.
    # Round 2: 21 groups of class 0, one of class 1: this is scarce, 2 is unseen.
    assert yields["rare"][:2] == pytest.approx((3 * DECAY + 2, 2 * DECAY + 1))
    assert yields["explore"][:2] == pytest.approx((2 * DECAY + 2, 1))
    usual = (2 * DECAY + 2 + 1) / (5 * DECAY + 4 + 2)
    assert yields["explore"].mean == pytest.approx((1 + 1) / (2 * DECAY + 2 + 1 / usual))


def test_a_second_image_of_a_known_group_and_what_is_not_labelled_count_for_nothing() -> None:
    past = (PastRound(1, rows(0, 1, 2), ("rare", "rare", "rare")),)
    pool = labelled(drawn(), {0: 0, 1: 0}, [], past, turn=2)
    same = replace(pool, groups=np.where(np.arange(len(pool)) < 2, 0, pool.groups), memo={})
    assert slot_yields(pool)["rare"][:2] == (2, 2)
    assert slot_yields(same)["rare"][:2] == (2, 1)


def test_what_is_held_out_teaches_no_share() -> None:
    past = (PastRound(1, rows(0, 1), ("rare", "explore")),)
    pool = labelled(drawn(), {0: 0, 1: 1}, [], past, turn=2)
    held = np.zeros(len(pool), bool)
    held[0] = True
    assert set(slot_yields(replace(pool, held_out=held, memo={}))) == {"explore"}


def test_without_earlier_rounds_shares_stay() -> None:
    assert slot_yields(drawn()) == {}
    assert shares_by_yield({"rare": 0.4, "explore": 0.2}, {}) == {"rare": 0.4, "explore": 0.2}


def test_shares_follow_the_yield() -> None:
    yields = {"rare": SlotYield(40, 8, 0.2), "uncertain": SlotYield(25, 1, 0.05), "explore": SlotYield(20, 2, 0.1)}
    shares = {"rare": 0.4, "uncertain": 0.25, "explore": 0.2}
    moved = shares_by_yield(shares, yields)
    assert sum(moved.values()) == pytest.approx(0.85)
    assert moved["rare"] > 0.4
    assert moved["uncertain"] < 0.25
    assert list(moved) == list(shares)


slots = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 1), min_size=1)


@given(slots, st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.floats(0, 500), st.floats(0, 1))))
def test_no_slot_starves_and_the_sum_stays(shares: dict[str, float], seen: dict[str, tuple[float, float]]) -> None:
    yields = bandit._yields({slot: (picks, picks * rate) for slot, (picks, rate) in seen.items()})
    moved = shares_by_yield(shares, yields)
    assert sum(moved.values()) == pytest.approx(sum(shares.values()))
    bound = bandit.FLOOR / bandit.CEILING
    assert all(bound * 0.999 <= moved[slot] / share <= 1.001 / bound for slot, share in shares.items())


def after_a_round(found_by: str) -> Pool:
    """A pool whose first round took ten images a slot; those of one slot show blisters, which nothing else shows."""
    pool = drawn()
    free = pool.open[:30]
    past = (PastRound(1, free, ("rare",) * 10 + ("uncertain",) * 10 + ("explore",) * 10),)
    known, present, candidates = pool.labelled.copy(), pool.present.copy(), pool.candidates.copy()
    known[free], candidates[free] = True, False
    present[free[[slot == found_by for slot in past[0].slots]], 2] = True
    return replace(pool, labelled=known, present=present, candidates=candidates, population=candidates, past=past,
                   turn=2, memo={}, lasting={}, groups=np.arange(len(pool)))  # fmt: skip


@pytest.mark.parametrize("slot", ["rare", "uncertain", "explore"])
def test_the_slot_that_found_something_gets_more_of_the_next_round(slot: str) -> None:
    pool = after_a_round(slot)
    chosen = choose(pool, "portfolio", 60, 0, SelectionRules())
    still = choose(replace(pool, memo={}), "portfolio", 60, 0, SelectionRules(), {"adapt": False})

    def count(selection: object, name: str) -> int:
        return sum(pick.slot == name for pick in selection.picks)  # type: ignore[attr-defined]

    assert count(chosen, slot) > count(still, slot)
    assert all(count(chosen, other) <= count(still, other) for other in {"rare", "uncertain", "explore"} - {slot})
    assert all(count(chosen, other) > 0 for other in ("rare", "uncertain", "explore"))
    assert count(chosen, "audit") == count(still, "audit") == 9
    told = chosen.shares[slot]
    assert (told["picks"], told["found"]) == (10, 10)
    assert told["share"] > told["without_yield"]
    assert any("shares follow what the slots found" in note and f"{slot} " in note for note in chosen.notes)
    assert "picks" not in still.shares[slot]
    assert choose(replace(pool, memo={}), "portfolio", 60, 0, SelectionRules()) == chosen


def test_a_share_that_is_set_stays() -> None:
    pool = after_a_round("explore")
    chosen = choose(pool, "portfolio", 60, 0, SelectionRules(), {"rare": 0.4})
    assert chosen.shares["rare"]["share"] == pytest.approx(chosen.shares["rare"]["without_yield"])
    assert chosen.shares["explore"]["share"] > chosen.shares["explore"]["without_yield"]
