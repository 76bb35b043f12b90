"""Splits: given once per group, stratified, frozen; leaks; cross-validation folds. Mostly properties."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.data import SPLITS
from curate.errors import CurateError
from curate.labels.splits import (
    FEW_GROUPS,
    Decisions,
    Group,
    Leak,
    Member,
    assign,
    due,
    few_groups,
    folds,
    groups_of,
    seeded_number,
)

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
CLASSES = ("crack", "hole", "scale")


def one_class_groups(**counts: int) -> list[Group]:
    return [
        Group(f"{name}-{n}", 1, {name: 1} if name != "clean" else {}) for name, k in counts.items() for n in range(k)
    ]


GROUPS = st.lists(
    st.builds(
        lambda name, images, classes: Group(f"g{name}", images, dict.fromkeys(sorted(classes), 1)),
        st.integers(0, 10**6),
        st.integers(1, 4),
        st.sets(st.sampled_from(CLASSES), max_size=2),
    ),
    max_size=40,
    unique_by=lambda group: group.name,
)


# --- assign ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(GROUPS, st.integers(0, 100), st.randoms(use_true_random=False))
def test_every_group_gets_one_split_and_the_order_does_not_matter(
    groups: list[Group], seed: int, shuffler: random.Random
) -> None:
    first = assign(groups, SHARES, seed)
    assert set(first) == {group.name for group in groups}
    assert set(first.values()) <= set(SPLITS)
    shuffled = groups[:]
    shuffler.shuffle(shuffled)
    assert assign(shuffled, SHARES, seed) == first


def test_the_seed_draws() -> None:
    groups = one_class_groups(crack=30)
    assert len({tuple(sorted(assign(groups, SHARES, seed).items())) for seed in range(5)}) == 5


def test_splits_are_the_same_on_every_machine() -> None:
    """Frozen figures: a change here would redraw the splits of every user's next groups."""
    assert seeded_number(42, "a", None, 3) == 9284150814364267761
    placed = assign([Group(f"c{n}", 1, {"crack": 1}) for n in range(8)], SHARES, 42)
    assert {name: split for name, split in placed.items() if split != "train"} == {"c3": "val", "c6": "test"}


@pytest.mark.slow
@settings(deadline=None)
@given(st.dictionaries(st.sampled_from((*CLASSES, "clean")), st.integers(1, 40), min_size=1), st.integers(0, 9))
def test_shares_are_near_the_ratio_for_each_class_and_in_all(counts: dict[str, int], seed: int) -> None:
    placed = assign(one_class_groups(**counts), SHARES, seed)
    for name, total in counts.items():
        have = Counter(split for group, split in placed.items() if group.startswith(f"{name}-"))
        if name == "clean":
            continue
        for split, share in SHARES.items():
            # Off by less than one group, save where a class gives val and test the one that they must have.
            assert abs(have[split] - share * total) < (1 if total >= 7 else 1.5), (name, total, have)
        if total >= 3:
            assert set(have) == set(SPLITS), (name, total, have)
    everywhere = Counter(placed.values())
    for split, share in SHARES.items():
        assert abs(everywhere[split] - share * len(placed)) <= 1.5 * len(counts)


@pytest.mark.slow
@pytest.mark.parametrize(("total", "train"), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 3), (6, 4), (10, 7), (20, 14)])
def test_a_class_of_three_groups_or_more_can_be_evaluated_in_val_and_in_test(total: int, train: int) -> None:
    for seed in range(20):
        have = Counter(
            assign(one_class_groups(crack=total, clean=200), SHARES, seed)[f"crack-{n}"] for n in range(total)
        )
        assert have["train"] == train
        assert (have["val"] >= 1 and have["test"] >= 1) == (total >= 3)


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(3, 8), st.lists(st.sets(st.sampled_from(("hole", "scale"))), min_size=20, max_size=40), st.data())
def test_the_rarest_class_is_everywhere_also_where_groups_show_several(
    rare: int, shown: list[set[str]], data: st.DataObject
) -> None:
    common = [one | {("hole", "scale")[n % 2]} for n, one in enumerate(shown)]
    carriers = data.draw(st.sets(st.integers(0, len(common) - 1), min_size=rare, max_size=rare))
    groups = [
        Group(f"g{n}", 1, dict.fromkeys(sorted(one | ({"crack"} if n in carriers else set())), 1))
        for n, one in enumerate(common)
    ]
    placed = assign(groups, SHARES, 7)
    assert {placed[f"g{n}"] for n in carriers} == set(SPLITS)


def test_a_share_of_nothing_gets_nothing() -> None:
    placed = assign(one_class_groups(crack=10, clean=10), {"train": 0.5, "val": 0.0, "test": 0.5}, 0)
    assert Counter(placed.values()) == {"train": 10, "test": 10}


def test_settled_groups_count_towards_the_shares() -> None:
    old = one_class_groups(crack=10)
    placed = assign([Group("new", 1, {"crack": 1})], SHARES, 0, {"train": old[:9], "val": old[9:], "test": []})
    assert placed == {"new": "test"}


# --- what was decided -----------------------------------------------------------------------------------------------


def test_a_split_once_given_stays(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path)
    decisions.assign({"a": "train", "b": "val"})
    decisions.assign({"a": "test", "b": "train", "c": "test"})
    for seen in (decisions, Decisions(tmp_path)):
        assert {name: seen.split(name) for name in "abcd"} == {"a": "train", "b": "val", "c": "test", "d": None}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(GROUPS, GROUPS, st.integers(0, 9))
def test_new_groups_never_move_old_ones(first: list[Group], later: list[Group], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        decisions = Decisions(Path(folder))
        members = [Member(g.name, "public", "labelled", frozenset(g.classes)) for g in first]
        decisions.assign(due(members, decisions, SHARES, seed))
        before = {g.name: decisions.split(g.name) for g in first}
        assert None not in before.values()
        members += [Member(g.name, "public", "labelled", frozenset(g.classes)) for g in later]
        again = Decisions(Path(folder))
        again.assign(due(members, again, SHARES, seed))
        assert {g.name: again.split(g.name) for g in first} == before
        assert all(again.split(m.group) for m in members)
        assert due(members, again, SHARES, seed) == {}


def test_nothing_to_decide_writes_nothing(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "splits")
    decisions.assign({})
    assert decisions.join([("a", "a")]) == []
    assert not (tmp_path / "splits").exists()


@pytest.mark.parametrize(
    ("ours", "theirs", "winner"),
    [
        ("train", "val", "val"),
        ("val", "train", "val"),
        ("train", "test", "test"),
        ("test", "val", "test"),
        ("val", "test", "test"),
    ],
)
def test_joining_two_splits_is_a_leak_and_the_lesser_side_moves(
    tmp_path: Path, ours: str, theirs: str, winner: str
) -> None:
    decisions = Decisions(tmp_path)
    decisions.assign({"a": ours, "b": theirs})
    lesser = theirs if winner == ours else ours
    assert decisions.join([("a", "b")]) == [Leak("a", "b", lesser, winner)]
    for seen in (decisions, Decisions(tmp_path)):
        assert seen.split("a") == seen.split("b") == winner
        assert seen.group("b") == seen.group("a") == "a"
        assert seen.join([("b", "a"), ("a", "b")]) == []


@pytest.mark.parametrize(("ours", "theirs"), [("train", None), (None, "train"), ("val", "val"), (None, None)])
def test_joining_without_two_splits_is_no_leak(tmp_path: Path, ours: str | None, theirs: str | None) -> None:
    decisions = Decisions(tmp_path)
    decisions.assign({name: split for name, split in (("a", ours), ("b", theirs)) if split})
    assert decisions.join([("a", "b")]) == []
    assert decisions.split("a") == decisions.split("b") == Decisions(tmp_path).split("b") == (ours or theirs)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(SPLITS)),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=8),
)
def test_joined_groups_are_one_whatever_the_order(given_: dict[str, str], pairs: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        decisions = Decisions(Path(folder))
        decisions.assign(given_)
        for pair in pairs:
            decisions.join([pair])
        pieces = {name: {name} for name in "abcdefgh"}  # the reference: sets, united
        for first, second in pairs:
            union = pieces[first] | pieces[second]
            pieces.update(dict.fromkeys(union, union))
        for seen in (decisions, Decisions(Path(folder))):
            for name, piece in pieces.items():
                assert {other for other in "abcdefgh" if seen.group(other) == seen.group(name)} == piece
                strongest = max((given_[n] for n in piece if n in given_), key=SPLITS.index, default=None)
                assert seen.split(name) == strongest


def test_a_group_of_a_joined_name_keeps_the_split_of_the_piece(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path)
    decisions.join([("a", "b")])
    decisions.assign({"b": "val"})
    decisions.assign({"a": "train"})
    assert Decisions(tmp_path).split("a") == "val"


def test_batches_are_whole_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path)
    decisions.assign({"ö": "train", "b": "val"})
    file = tmp_path / "000001.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(line["group"], line["split"]) for line in lines] == [("b", "val"), ("ö", "train")]
    file.write_text(file.read_text(encoding="utf-8") + '{"group": "c"}\n', encoding="utf-8")
    with pytest.raises(CurateError, match=r"000001\.jsonl:3: damaged"):
        Decisions(tmp_path)


# --- which groups are due ---------------------------------------------------------------------------------------------


def members(count: int, source: str, status: str, prefix: str = "p", audit: bool = False) -> list[Member]:
    return [Member(f"{prefix}{n}", source, status, frozenset({"crack"}), audit) for n in range(count)]


@pytest.fixture
def decisions(tmp_path: Path) -> Decisions:
    return Decisions(tmp_path)


def test_public_groups_are_stratified(decisions: Decisions) -> None:
    found = due(members(20, "public", "labelled"), decisions, SHARES, 0)
    assert Counter(found.values()) == {"train": 14, "val": 3, "test": 3}


@pytest.mark.parametrize("status", ["unlabelled", "queued", "skipped"])
@pytest.mark.parametrize("source", ["public", "production"])
def test_without_a_label_there_is_no_split(decisions: Decisions, source: str, status: str) -> None:
    assert due(members(20, source, status), decisions, SHARES, 0) == {}


def test_a_disputed_production_image_waits(decisions: Decisions) -> None:
    assert due(members(5, "production", "disputed"), decisions, SHARES, 0) == {}


def test_production_goes_to_train_and_audit_picks_alone_fill_val_and_test(decisions: Decisions) -> None:
    found = due(
        members(20, "production", "labelled") + members(20, "production", "labelled", "a", True), decisions, SHARES, 0
    )
    assert {found[f"p{n}"] for n in range(20)} == {"train"}
    assert Counter(found[f"a{n}"] for n in range(20)) == {"val": 10, "test": 10}


def test_audit_picks_go_to_train_where_nothing_is_held_out(decisions: Decisions) -> None:
    found = due(members(3, "production", "labelled", audit=True), decisions, {"train": 1.0, "val": 0.0, "test": 0.0}, 0)
    assert set(found.values()) == {"train"}


def test_a_synthetic_image_is_always_train_and_takes_its_group_with_it(decisions: Decisions) -> None:
    synthetic = members(40, "synthetic", "labelled")
    assert set(due(synthetic, decisions, SHARES, 0).values()) == {"train"}
    found = due(synthetic + members(40, "public", "labelled"), decisions, SHARES, 0)
    assert set(found.values()) == {"train"}
    found = due(synthetic + members(40, "production", "labelled", audit=True), decisions, SHARES, 0)
    assert set(found.values()) == {"train"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Member,
            st.integers(0, 15).map("g{}".format),
            st.sampled_from(("public", "production", "synthetic")),
            st.sampled_from(("labelled", "unlabelled", "disputed", "queued")),
            st.frozensets(st.sampled_from(CLASSES), max_size=2),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_due_is_the_same_for_shuffled_members(found: list[Member], seed: int, shuffler: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        decisions = Decisions(Path(folder))
        first = due(found, decisions, SHARES, seed)
        shuffled = found[:]
        shuffler.shuffle(shuffled)
        assert due(shuffled, decisions, SHARES, seed) == first
        assert set(first.values()) <= set(SPLITS)
        assert all(first[m.group] == "train" for m in found if m.source == "synthetic")
        assert {m.group for m in found if m.source == "public" and m.status == "labelled"} <= set(first)


def test_groups_count_images_and_classes() -> None:
    found = groups_of(
        [
            Member("b", "public", "labelled", frozenset({"crack"})),
            Member("a", "public", "labelled"),
            Member("b", "public", "labelled", frozenset({"crack", "hole"})),
        ]
    )
    assert found == [Group("a", 1, {}), Group("b", 2, {"crack": 2, "hole": 1})]


def test_few_groups_names_the_classes_that_need_folds() -> None:
    groups = one_class_groups(crack=FEW_GROUPS - 1, hole=FEW_GROUPS, clean=3)
    assert few_groups(groups) == {"crack": FEW_GROUPS - 1}


# --- folds ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.integers(2, 6), st.integers(1, 3), st.integers(0, 9), st.randoms(use_true_random=False))
def test_each_group_is_in_one_fold_a_repeat_and_the_rarest_class_is_balanced(
    groups: list[Group], count: int, repeats: int, seed: int, shuffler: random.Random
) -> None:
    drawn = folds(groups, count, repeats, seed)
    assert set(drawn) == {group.name for group in groups}
    assert all(len(of) == repeats and set(of) <= set(range(count)) for of in drawn.values())
    totals = Counter(name for group in groups for name in group.classes)
    if totals:
        rarest = min(totals, key=lambda name: (totals[name], name))
        for repeat in range(repeats):
            have = Counter(drawn[g.name][repeat] for g in groups if rarest in g.classes)
            sizes = sorted(have[fold] for fold in range(count))
            assert sizes[-1] - sizes[0] <= 1
    shuffled = groups[:]
    shuffler.shuffle(shuffled)
    assert folds(shuffled, count, repeats, seed) == drawn


def test_folds_of_one_class_each_are_balanced_for_every_class() -> None:
    groups = one_class_groups(crack=7, hole=23, clean=41)
    drawn = folds(groups, 5, 3, 0)
    for name in ("crack", "hole", ""):
        for repeat in range(3):
            sizes = Counter(fold[repeat] for group, fold in drawn.items() if group.startswith(name))
            assert max(sizes.values()) - min(sizes[n] for n in range(5)) <= (1 if name else 2)


def test_repeats_and_seeds_differ() -> None:
    groups = one_class_groups(crack=10, clean=30)
    drawn = folds(groups, 5, 4, 0)
    repeats = [tuple(drawn[g.name][r] for g in groups) for r in range(4)]
    assert len(set(repeats)) == 4
    assert all(first != second for first, second in pairwise(repeats))
    assert folds(groups, 5, 4, 1) != drawn


def test_a_group_whose_audit_pick_was_skipped_waits_no_longer(decisions: Decisions) -> None:
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    labelled = Member("coil", "production", "labelled")
    waiting, skipped = (Member("coil", "production", status, audit=True) for status in ("queued", "skipped"))
    assert due([labelled, waiting], decisions, shares, 0) == {}
    assert due([labelled, skipped], decisions, shares, 0) == {"coil": "train"}
