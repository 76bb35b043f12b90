"""`curate simulate`: labels that are really hidden, figures against brute force, and the command as people meet it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from curate.data import Label
from curate.errors import CurateError
from curate.index import sync
from curate.project import Project
from curate.select.cost import TimeBudget
from curate.select.pool import WHOLE, Pool, Rows, Windows
from curate.vectors import run as embedding
from tests import fakes
from tests.conftest import Make
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture
from tests.train.conftest import item, tiny
from train.simulate import curve_stats, grid
from train.simulate import run as simulating
from train.simulate.from_index import from_project
from train.simulate.html_report import page
from train.simulate.learners import fit_weights, probe
from train.simulate.networks import NetworkLearner
from train.simulate.one_run import (
    Curve,
    CurvePoint,
    LearnerFactory,
    NotYet,
    Picker,
    RunSettings,
    parse_round_budget,
    prepare,
    simulate,
)
from train.simulate.oracle_dataset import OracleDataset, fingerprint, load, save, with_long_tail, with_test_fold
from train.simulate.summary import BETTER, FEW, WORSE, summary
from train.simulate.test_scores import average_precision, f1

FIRST = RunSettings(start="exemplars", rare="c", exemplars=3, rounds=2, budget="6%", fold=0, folds=4)


def tiny_oracle(n: int = 240, seed: int = 0, noise: float = 0.8) -> OracleDataset:
    """Two images a group and two tiles an image, the second of which is like the image; `c` is rare, half are clean."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.permutation([0] * 25 + [1] * 20 + [2] * 10 + [3] * 65), 2)[:n]
    centres = rng.normal(size=(4, 12)) * 1.2
    vectors = unit(centres[kind] + rng.normal(size=(n, 12)) * noise + 2)
    tiles = np.stack([unit(rng.normal(size=(n, 12)) + 2), vectors], axis=1).reshape(-1, 12)
    rows = np.arange(n)
    return OracleDataset(
        name="tiny",
        ids=tuple(f"{row:05d}" for row in rows),
        vectors=vectors,
        classes=("a", "b", "c"),
        present=kind[:, None] == np.arange(3),
        groups=rows // 2,
        strata=rows % 3,
        windows=Windows(np.repeat(rows, 2), np.tile(np.array([0, 1], np.int16), n), tiles),
        marks=np.array([(row, kind[row], 2 * row + 1) for row in rows if kind[row] < 3], np.int64),
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Watcher:
    """A picker that takes the first open rows, and keeps every pool that it was shown."""

    def __init__(self) -> None:
        self.pools: list[Pool] = []
        self.took: list[str] = []

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Rows:
        self.pools.append(pool)
        rows = pool.open[:budget]
        self.took += [pool.ids[row] for row in rows]
        return rows


def timeless(curve: Curve) -> Curve:
    return replace(curve, points=tuple(replace(point, seconds=0.0) for point in curve.points))


# --- worlds ---------------------------------------------------------------------------------------------------------


def test_folds_keep_groups_whole_and_give_every_class_its_share() -> None:
    whole = tiny_oracle()
    tests = np.stack([with_test_fold(whole, 4, fold).test for fold in range(4)])
    assert (tests.sum(axis=0) == 1).all()
    for mine in tests:
        assert not set(whole.groups[mine]) & set(whole.groups[~mine])
        assert (whole.present[mine].sum(axis=0) >= [10, 8, 4]).all()
    with pytest.raises(CurateError, match="fold 4 of 4 does not exist"):
        with_test_fold(whole, 4, 4)


@pytest.mark.parametrize(("tail", "expected"), [("one", [40, 32, 4]), ("all", [40, 12, 4])])
def test_a_long_tail_takes_whole_groups_and_weighs_the_test(tail: str, expected: list[int]) -> None:
    before = with_test_fold(tiny_oracle(), 5, 0)
    after = with_long_tail(before, 10, "c", seed=3, tail=tail)
    counts = after.present[after.pooled].sum(axis=0)
    assert (np.abs(counts - expected) <= 2).all()
    assert not set(after.groups[after.spare]) & set(after.groups[~after.spare])
    assert (after.test == before.test).all()
    kept = counts / before.present[before.pooled].sum(axis=0)
    for number in range(3):
        assert np.allclose(after.weight[after.test & after.present[:, number]], kept[number])
    assert (after.weight[~after.present.any(axis=1)] == 1).all()


def test_to_disk_and_back_it_is_the_same_world(tmp_path: Path) -> None:
    whole = replace(with_test_fold(tiny_oracle(), 4, 1), scores={"uncertainty": np.arange(240, dtype=np.float32)})
    save(whole, tmp_path / "w")
    again = load(tmp_path / "w")
    assert fingerprint(again) == fingerprint(whole)
    assert timeless(simulate(again, FIRST)) == timeless(simulate(whole, FIRST))
    others = [replace(whole, name="b"), replace(whole, groups=whole.groups + 1), tiny_oracle(seed=1)]
    assert len({fingerprint(oracle) for oracle in (whole, *others)}) == 4


# --- what is known, and what is not ---------------------------------------------------------------------------------


def test_who_peeks_sees_nothing() -> None:
    whole, watcher = tiny_oracle(), Watcher()
    simulate(whole, FIRST, watcher)
    table, known = prepare(whole, FIRST), set()
    assert watcher.pools
    for pool in watcher.pools:
        rows = np.array([int(id) for id in pool.ids])
        assert not pool.present[~pool.labelled].any()
        assert (pool.present[pool.labelled] == whole.present[rows[pool.labelled]]).all()
        assert not (table.oracle.test[rows] | (table.oracle.spare[rows] & ~np.isin(rows, table.given))).any()
        shown = np.concatenate([part.rows for part in pool.all_windows()])
        assert set(shown.tolist()) == set(range(len(pool)))
        for part in pool.all_windows():
            where = whole.vectors if part.tiles[0] == WHOLE else whole.windows.vectors
            place = rows[part.rows] if part.tiles[0] == WHOLE else 2 * rows[part.rows] + part.tiles
            assert (part.vectors == where[place]).all()
        known |= {pool.ids[row] for row in np.flatnonzero(pool.labelled)}
    assert known <= {whole.ids[row] for row in table.given} | set(watcher.took)


@pytest.mark.parametrize("strategy", ["portfolio", "rare", "nearest", "typiclust"])
def test_labels_that_are_hidden_change_no_pick(strategy: str) -> None:
    whole, taken = tiny_oracle(), []
    hidden = np.ones(len(whole), bool)
    hidden[prepare(whole, replace(FIRST, fold=None)).given] = False
    other = whole.present.copy()
    other[hidden] = whole.present[hidden][:, [1, 0, 2]]  # exemplars and their groups stay what they are
    for dataset in (whole, replace(whole, present=other)):
        curve = simulate(dataset, replace(FIRST, strategy=strategy, fold=None, rounds=1))
        taken.append([curve.points[-1].by_class[name]["images"] for name in "abc"])
    assert taken[0] == [taken[1][1], taken[1][0], taken[1][2]]
    assert sum(taken[0]) > 0


def test_exemplars_are_apart_and_their_groups_are_gone() -> None:
    whole = with_long_tail(tiny_oracle(), 5, "c", seed=1)
    table = prepare(replace(whole, windows=None), FIRST)
    assert len(set(whole.groups[table.given])) == 3
    assert whole.spare[table.given].all()  # what subsampling removed comes first
    assert whole.present[table.given, 2].all()
    pooled = prepare(tiny_oracle(), FIRST)
    near = np.isin(tiny_oracle().groups, tiny_oracle().groups[pooled.given])
    assert near.sum() == 6
    assert not (pooled.oracle.test | pooled.oracle.pooled)[near].any()
    watcher = Watcher()
    simulate(tiny_oracle(), FIRST, watcher)
    shown = watcher.pools[0].exemplars
    assert shown.classes == ("c",) * 3
    assert (shown.tiles == 1).all()  # the marked tile, not the image
    assert np.allclose(shown.vectors, tiny_oracle().vectors[[int(id) for id in shown.ids]])


def test_a_large_piece_is_no_likelier_an_exemplar() -> None:
    groups = np.array([0] * 20 + list(range(1, 10)))
    ids, vectors = tuple(f"{row:03d}" for row in range(29)), unit(np.random.default_rng(0).normal(size=(29, 4)))
    whole = OracleDataset("uneven", ids, vectors, ("c",), np.ones((29, 1), bool), groups)
    given = [prepare(whole, replace(FIRST, fold=None, seed=seed)).given for seed in range(200)]
    assert 0.2 < np.mean([0 in groups[rows] for rows in given]) < 0.4  # 0.3 by chance; by images it would be 0.9


def test_a_start_with_labels_counts_them_and_without_any_nothing_is_known() -> None:
    given = simulate(tiny_oracle(), replace(FIRST, start="2", rounds=1))
    assert given.points[0].labels == 8  # of three classes and of clean
    assert given.points[0].macro_f1 > 0
    nothing = simulate(tiny_oracle(), replace(FIRST, start="none", rounds=1))
    assert (nothing.points[0].labels, nothing.points[0].macro_f1) == (0, 0.0)


def test_a_hidden_class_has_no_name_until_it_is_found() -> None:
    whole, watcher = tiny_oracle(), Watcher()
    setting = replace(FIRST, start="hidden", rounds=6, budget="20%", fold=None, exemplars=4)
    found = simulate(whole, setting, watcher)
    named = []
    for pool in watcher.pools:
        labelled = np.array([int(id) for id in pool.ids])[pool.labelled]
        named.append(bool(whole.present[labelled, 2].any()))
        assert pool.classes == (("a", "b", "c") if named[-1] else ("a", "b"))
        assert pool.present.shape[1] == len(pool.classes)
        assert all(values.shape[1:] in ((), (len(pool.classes),)) for values in pool.scores.values())
        assert "c" in pool.classes or "c" not in pool.exemplars.classes
    assert (named[0], named[-1]) == (False, True)
    assert found.points[0].labels == 12
    assert curve_stats.to_discover(found) == ["c"]
    turn = watcher.pools[named.index(True)].turn
    assert curve_stats.labels_to_discover(found) == found.points[turn - 1].labels
    ours = simulate(whole, replace(setting, strategy="portfolio", rounds=3))
    assert ours.points[-1].labels > ours.points[0].labels


def test_classes_that_nobody_had_seen_are_counted_by_hand() -> None:
    whole, watcher = tiny_oracle(), Watcher()
    setting = replace(FIRST, start="none", rare=None, rounds=5, budget="3%", fold=None, rules=False)
    found = simulate(whole, setting, watcher)
    assert curve_stats.to_discover(found) == ["a", "b", "c"]
    for groups in (1, 3):
        counts = []
        for point in found.points:
            rows = np.array([int(id) for id in watcher.took[: point.labels]], int)
            pieces = [len(np.unique(whole.groups[rows[whole.present[rows, number]]])) for number in range(3)]
            counts.append(sum(piece >= groups for piece in pieces))
        assert curve_stats.discovered(found, groups) == counts
        reached = [point.labels for point, count in zip(found.points, counts, strict=True) if count == 3]
        assert curve_stats.labels_to_discover(found, groups) == (reached[0] if reached else math.inf)
    short = replace(found, points=found.points[:2])
    discovery = summary([short])["sections"][0]["rows"][0]["discovery"]
    assert (discovery["reached_thrice"], discovery["labels_thrice"]) == (0, 2 * short.points[1].labels)
    assert curve_stats.to_discover(simulate(whole, replace(FIRST, rounds=1))) == []


def test_what_cannot_be_played_says_so() -> None:
    for change, text in (
        ({"start": "some"}, "start 'some'; allowed: none, exemplars, hidden"),
        ({"rare": None}, "needs a class: --rare"),
        ({"start": "hidden", "rare": None}, "start 'hidden' needs a class: --rare"),
        ({"rare": "d"}, "unknown class 'd'"),
        ({"exemplars": 99}, "leave nothing to find"),
        ({"budget": "0%"}, "budget '0%'; allowed for a round: images"),
        ({"strategy": "porfolio"}, "did you mean 'portfolio'"),
        ({"options": {"wings": 2}}, "wings"),
        ({"rounds": 0}, "allowed: 1 or more"),
        ({"imbalance": 5.0, "tail": "two"}, "unknown tail 'two'"),
    ):
        with pytest.raises(CurateError, match=text):
            simulate(tiny_oracle(), replace(FIRST, **change))


# --- the rounds -----------------------------------------------------------------------------------------------------


def test_recall_is_counted_by_pieces_as_by_hand() -> None:
    whole, watcher = tiny_oracle(), Watcher()
    curve = simulate(whole, replace(FIRST, rules=False), watcher)
    table = prepare(whole, FIRST)
    took = {int(id) for id in watcher.took}
    for number, name in enumerate(whole.classes):
        there = {row for row in range(len(whole)) if whole.present[row, number] and table.oracle.pooled[row]}
        groups = {int(whole.groups[row]) for row in there}
        found_groups = {int(whole.groups[row]) for row in there & took}
        last = curve.points[-1].by_class[name]
        assert (last["groups"], last["images"]) == (len(found_groups), len(there & took))
        assert last["group_recall"] == pytest.approx(len(found_groups) / len(groups))
        assert last["image_recall"] == pytest.approx(len(there & took) / len(there))
    assert curve.points[-1].labels == len(took) == 2 * round(0.06 * table.oracle.pooled.sum())
    assert curve.points[-1].minutes == pytest.approx(sum(10 + 20 * whole.present[row].sum() for row in took) / 60)
    assert {int(name) for name, hit in curve.pieces.items() if hit} == {
        int(whole.groups[row]) for row in took if whole.present[row, 2]
    }


def test_the_same_again_gives_the_same_curve_and_another_seed_another() -> None:
    setting = replace(FIRST, strategy="portfolio")
    assert timeless(simulate(tiny_oracle(), setting)) == timeless(simulate(tiny_oracle(), setting))
    assert (
        timeless(simulate(tiny_oracle(), setting)).points
        != timeless(simulate(tiny_oracle(), replace(setting, seed=1))).points
    )


def test_the_layer_works_for_a_peer_as_it_does_for_ours() -> None:
    for rules, groups in ((True, 24), (False, 12)):
        watcher = Watcher()
        simulate(tiny_oracle(), replace(FIRST, start="none", rules=rules, fold=None, budget="12", rounds=3), watcher)
        last = watcher.pools[-1]
        assert (last.turn, last.labelled.sum()) == (3, 24)
        assert len(np.unique(last.groups[last.labelled])) == groups


def test_who_cannot_choose_yet_is_chosen_for() -> None:
    def shy(pool: Pool, budget: int, rng: np.random.Generator) -> Rows:
        if pool.turn == 1:
            raise NotYet("no label yet")
        return pool.open[:budget]

    cold = simulate(tiny_oracle(), replace(FIRST, start="none"), shy)
    assert cold.notes == ("round 1 was chosen by random: no label yet",)
    assert (
        simulate(tiny_oracle(), replace(FIRST, strategy="probe")).notes[0].startswith("round 1 was chosen by nearest")
    )


def test_audit_picks_count_as_labels_whether_they_teach_or_not() -> None:
    audit = replace(FIRST, strategy="audit")
    taught, untaught = simulate(tiny_oracle(), audit), simulate(tiny_oracle(), replace(audit, audit_teaches=False))
    assert [point.labels for point in taught.points] == [point.labels for point in untaught.points]
    assert taught.points[-1].macro_f1 > 0
    assert untaught.points[-1].macro_f1 == 0


def test_budgets() -> None:
    assert parse_round_budget("40", 1000) == 40
    assert parse_round_budget("2%", 1000) == 20
    assert parse_round_budget("0.01%", 1000) == 1
    assert parse_round_budget("30m", 1000) == TimeBudget(1800.0)
    timed = simulate(tiny_oracle(), replace(FIRST, budget="4m"))
    spent = np.diff([point.minutes for point in timed.points])
    assert ((spent > 3) & (spent <= 4)).all()


# --- learners and how they are judged -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 300])
@pytest.mark.parametrize("single", [True, False])
def test_the_probe_is_scikit_learns_balanced_regression(n: int, single: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=n)
    points = (rng.normal(size=(3, 60))[kind] + 2 * rng.normal(size=(n, 60))).astype(np.float32)
    shown = np.eye(3, dtype=bool)[kind]
    logits = points @ fit_weights(points, shown, single)[:-1]
    if single:
        plain = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8, max_iter=5000).fit(points, kind)
        wanted = points @ plain.coef_.T
        logits, wanted = (values - values.mean(axis=1, keepdims=True) for values in (logits, wanted))
    else:
        fits = [
            LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8, max_iter=5000).fit(points, y) for y in shown.T
        ]
        wanted = np.stack([points @ fit.coef_[0] for fit in fits], axis=1)
    assert np.abs(logits - wanted).max() < 0.02 * np.abs(wanted).max()


def test_the_probe_says_nothing_before_there_are_two_kinds() -> None:
    learn = probe(tiny_oracle())
    rows = np.flatnonzero(tiny_oracle().present[:, 2])
    assert learn(rows) is None
    output = learn(np.arange(100))
    assert output is not None
    assert (output.shows.sum(axis=1) <= 1).all()
    assert output.probability.shape == (240, 3)
    both = replace(
        tiny_oracle(), present=tiny_oracle().present[:, [0, 0, 2]]
    )  # what shows the first shows the second, too
    assert not both.single
    more = probe(both)(np.arange(200))
    assert more is not None
    assert (more.shows == (more.probability >= 0.5)).all()
    assert np.mean(more.shows == both.present) > 0.9


def test_f1_and_average_precision_are_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score, f1_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, likely, weight = rng.random(40) < 0.3, rng.random(40).round(1), rng.random(40)
        truth[0] = True
        says = likely > 0.5
        assert f1(says, truth, weight) == pytest.approx(f1_score(truth, says, sample_weight=weight))
        wanted = average_precision_score(truth, likely, sample_weight=weight)
        assert average_precision(likely, truth, weight) == pytest.approx(wanted)


def test_a_network_learns_from_what_was_bought_alone(tmp_path: Path) -> None:
    items = tuple(sorted((item(tmp_path, number) for number in range(12)), key=lambda sample: sample.id))
    present = np.array([[name in sample.label.present for name in ("crack", "hole")] for sample in items])
    spare = np.arange(12) == 11
    vectors = unit(np.random.default_rng(0).normal(size=(12, 4)))
    ids = tuple(sample.id for sample in items)
    whole = OracleDataset("steel", ids, vectors, ("crack", "hole"), present, np.arange(12), spare=spare)
    learn = NetworkLearner(items, tiny("epochs=1", "steps=2"), 10**8)(whole)
    output = learn(np.arange(6))
    assert output is not None
    assert output.probability[:11].min() > 0
    assert (output.probability[11] == 0).all()
    again = learn(np.arange(6))
    assert again is not None
    assert np.allclose(output.probability, again.probability, atol=1e-5)
    assert learn(np.zeros(0, np.int64)) is None
    without_regions = tuple(replace(sample, label=Label("labelled", classes=("crack",))) for sample in items)
    assert (
        NetworkLearner(without_regions, tiny("epochs=1", "steps=2"), 10**8)(whole)(np.arange(6)) is None
    )  # nobody said where


# --- many runs ------------------------------------------------------------------------------------------------------


def settings(*names: str, seeds: int = 2) -> list[RunSettings]:
    return [replace(FIRST, strategy=name, seed=seed) for name in names for seed in range(seeds)]


def test_what_was_played_is_kept_and_a_killed_run_resumes(tmp_path: Path) -> None:
    runs = [(tiny_oracle(), setting) for setting in settings("random", "nearest")]
    seen: list[int] = []
    first = grid.run_all(runs, tmp_path, progress=lambda stage, done, total: seen.append(done))
    assert sum(seen) == 4
    written = sorted((tmp_path / "curves").iterdir())
    assert len(written) == 4
    written[0].unlink()
    stamps = {file: file.stat().st_mtime_ns for file in written[1:]}
    again = grid.run_all(runs, tmp_path)
    assert [timeless(curve_) for curve_ in again] == [timeless(curve_) for curve_ in first]
    assert {file: file.stat().st_mtime_ns for file in written[1:]} == stamps
    assert written[0].is_file()
    assert len(list((tmp_path / "full").iterdir())) == 2  # what all labels are worth is learnt once a seed


@pytest.mark.exhaustive
def test_processes_give_what_one_gives(tmp_path: Path) -> None:
    runs = [(tiny_oracle(), setting) for setting in settings("random", "rare")]
    alone, beside = (grid.run_all(runs, tmp_path / str(jobs), jobs) for jobs in (1, 2))
    assert str([timeless(curve_) for curve_ in alone]) == str([timeless(curve_) for curve_ in beside])


def test_a_peer_that_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    def lazy(setting: RunSettings) -> Picker | None:
        def out_of_time(pool: Pool, budget: int, rng: np.random.Generator) -> Rows:
            raise CurateError("out of time")

        return out_of_time if setting.strategy == "peer" else None

    runs = [(tiny_oracle(), setting) for setting in settings("random", "peer")]
    curves = grid.run_all(runs, tmp_path, picker_for=lazy)
    assert [curve_.failed for curve_ in curves] == [None, None, "out of time", "out of time"]
    rows = summary(curves)["sections"][0]["rows"]
    assert rows[1]["plays"] == 0
    assert rows[1]["failed"] == "2 of 2 runs: out of time"
    assert "2 of 2 runs: out of time" in page("t", "", summary(curves))


# --- figures --------------------------------------------------------------------------------------------------------


def curve(values: Sequence[float], seed: int = 0, name: str = "random", full: float = 1.0, pieces: int = 0) -> Curve:
    """Ten labels a round; recall and macro-F1 are these values."""
    points = tuple(
        CurvePoint(
            number,
            10 * number,
            1.0,
            0.1,
            value,
            value,
            {"c": dict.fromkeys(("group_recall", "image_recall", "groups", "images"), value)},
        )
        for number, value in enumerate(values)
    )
    pieces_found = {str(group): group < pieces for group in range(10)}
    return Curve("w", replace(FIRST, strategy=name, seed=seed, fold=None), points, {"macro_f1": full}, pieces_found)


def test_areas_and_labels_needed_are_interpolated() -> None:
    line = curve([0.0, 0.4, 0.8, 0.6])
    assert curve_stats.area(line, "macro_f1") == pytest.approx((0.2 + 0.6 + 0.7) / 3)
    for target in np.linspace(0.01, 0.8, 17):
        fine = np.linspace(0, 30, 30001)
        wanted = fine[np.argmax(np.interp(fine, [0, 10, 20, 30], [0, 0.4, 0.8, 0.6]) >= target)]
        assert curve_stats.labels_to(line, target) == pytest.approx(wanted, abs=0.002)
    assert curve_stats.labels_to(line, 0.9) == math.inf
    assert math.isnan(curve_stats.labels_to(replace(line, full={}), 0.9))
    assert curve_stats.mean_labels_to([curve([0, 0.9]), curve([0, 0.5])], 0.7) == pytest.approx(10)
    assert curve_stats.gap_closed(0.85, 0.4) == pytest.approx(0.75)
    assert math.isnan(curve_stats.gap_closed(1.0, 1.0))


def test_ranks_and_sign_flips_by_brute_force() -> None:
    from scipy.stats import rankdata

    rng = np.random.default_rng(0)
    table = rng.integers(4, size=(6, 5)).astype(float)
    assert np.allclose(curve_stats.ranks(table), np.mean([rankdata(-row) for row in table], axis=0))
    for n in (1, 4, 7):
        differences = rng.normal(0.4, 1, n)
        sums = [
            abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=n)
        ]
        assert curve_stats.sign_flip(differences) == pytest.approx(
            np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
        )
    many_ = rng.normal(0.2, 1, 60)
    flips = np.random.default_rng(9).choice([-1, 1], (40_000, 60)) @ many_
    assert curve_stats.sign_flip(many_) == pytest.approx(np.mean(np.abs(flips) >= abs(many_.sum())), abs=0.02)


@pytest.mark.exhaustive
def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        table = 0.3 + rng.normal(0, 0.3, (8, 1)) + rng.normal(0, 0.3, (1, 20)) + rng.normal(0, 0.3, (8, 20))
        low, high = curve_stats.interval(table)
        held += low <= 0.3 <= high
    assert held >= 50
    assert curve_stats.interval(np.full((3, 1), 0.2)) == pytest.approx((0.2, 0.2))


def test_the_verdict_says_what_is_sure_and_no_more() -> None:
    base = [curve([0, 0.2, 0.3], seed, pieces=3) for seed in range(8)]
    good = [curve([0, 0.8, 0.9], seed, "good", pieces=9) for seed in range(8)]
    result = summary(base + good)
    row = result["sections"][0]["rows"][1]
    assert row["gap_closed"] == pytest.approx(0.6 / 0.7)
    assert row["against"]["group_recall"]["says"] == BETTER
    assert row["against"]["group_recall"]["mean"] == pytest.approx(0.6)
    assert result["verdict"][0].startswith("good: better. It finds 90% of the pieces with c, random 30%")
    swapped = summary(base + good, baseline="good")
    assert swapped["sections"][0]["rows"][0]["against"]["group_recall"]["says"] == WORSE
    few = summary([replace(curve_, pieces={}) for curve_ in (*base[:3], *good[:3])])
    assert few["sections"][0]["rows"][1]["against"]["group_recall"]["says"] == FEW


def test_several_settings_are_ranked_and_names_cannot_break_the_page() -> None:
    curves = [
        replace(curve_, world=name)
        for name in ("<b>x</b>", "y")
        for seed in range(3)
        for curve_ in (curve([0, 0.3], seed), curve([0, 0.6], seed, "<i>"))
    ]
    result = summary(curves)
    assert [row["rank_group_recall"] for row in result["overall"]] == [2.0, 1.0]
    assert result["overall"][1]["gap_closed"] == pytest.approx(0.3 / 0.7)
    text = page("a < b", "about", result)
    assert "<b>x" not in text
    assert "<i>" not in text
    assert "http" not in text
    assert text.count("<svg") == 8


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def steel(make: Make, tmp_path: Path) -> Project:
    """Forty labelled pictures of twenty pieces: cracks are bright lines, holes are dark."""
    root = tmp_path / "steel"
    for number in range(40):
        pixels, file = fakes.steel(64, 64, seed=number).astype(int), f"images/piece{number // 2:02d}_{number % 2}.png"
        name = {0: "crack", 1: "hole"}.get(number // 2 % 4)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:30, 8:50] = 255
        if name:
            (root / "masks" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / name / Path(file).name)
            pixels[mask > 0] += 80 if name == "crack" else -80
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / file)
    source = {"name": "library", "format": "mask_folder", "fully_labelled": True, "group": r"(piece\d+)_", "data": root}
    project = make([source])
    sync.run(project)
    return project


SIMULATE = ("simulate", "--strategies", "rare", "--rare", "crack", "--budget", "10%", "--rounds", "2", "--seeds", "2")


def test_simulate_as_people_and_scripts_meet_it(run: Run, steel: Project) -> None:  # noqa: F811
    project = ("--project", str(steel.folder))
    assert "Run: curate embed" in failed(run(*SIMULATE, *project))
    embedding.run(steel, "texture", {})
    result = ok(run(*SIMULATE, *project, "--start", "exemplars", "--exemplars", "2", "--json"))
    assert result["fresh"] is True
    rows = result["sections"][0]["rows"]
    assert [row["strategy"] for row in rows] == ["rare", "random"]
    assert rows[0]["labels"][-1] == rows[1]["labels"][-1] > 0
    assert result["verdict"]
    folder = Path(result["folder"])
    lines = pyarrow.parquet.read_table(folder / "curves.parquet").to_pylist()
    assert {line["metric"] for line in lines} >= {"macro_f1", "group_recall", "image_recall", "seconds", "f1"}
    last = [
        row["value"]
        for row in lines
        if row["round"] == 2 and row["metric"] == "group_recall" and row["class"] == "crack"
    ]
    mean = np.mean([row["group_recall"] for row in rows])
    assert np.mean(last) == pytest.approx(mean)
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "simulation.json").read_text(encoding="utf-8"))["verdict"] == result["verdict"]
    again = ok(run(*SIMULATE, *project, "--start", "exemplars", "--exemplars", "2", "--json"))
    assert again == result | {"fresh": False}
    code, out, err = run(*SIMULATE, *project, "--start", "exemplars", "--exemplars", "2")
    assert not code, err
    assert "nothing to do" in out
    assert "pieces found" in out
    cold = ok(run(*SIMULATE, *project, "--json"))
    assert all(row["discovery"]["classes"] == 2 for row in cold["sections"][0]["rows"])
    assert "labels to see all classes" in run(*SIMULATE, *project)[1]
    page = (Path(cold["folder"]) / "report.html").read_text(encoding="utf-8")
    assert "Classes that nobody had seen" in page
    assert ok(run(*SIMULATE, *project, "--start", "hidden", "--exemplars", "2", "--json"))["verdict"]


def test_what_failed_is_tried_again(steel: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(setting: RunSettings) -> LearnerFactory:
        raise CurateError("out of memory")

    embedding.run(steel, "texture", {})
    request = simulating.SimulateRequest(("rare",), RunSettings(rare="crack", budget="10%", rounds=1), seeds=1)
    with monkeypatch.context() as patched:
        patched.setattr(simulating, "_learner_factories", lambda *given: (full, 1, ""))
        failed_ = simulating.run(steel, request)
    assert [row["failed"] for row in failed_.result["sections"][0]["rows"]] == ["1 of 1 runs: out of memory"] * 2
    again = simulating.run(steel, request)
    assert (again.folder, again.fresh) == (failed_.folder, True)
    assert [row["plays"] for row in again.result["sections"][0]["rows"]] == [1, 1]
    assert not simulating.run(steel, request).fresh


def test_a_network_is_played_again_on_other_outlines_or_by_another_recipe(steel: Project, tmp_path: Path) -> None:
    embedding.run(steel, "texture", {})
    (before, _), sets = from_project(steel), ("model.weights=none",)
    request = simulating.SimulateRequest(setting=RunSettings(learner="segmenter"), overrides=sets, device="cpu")
    key = simulating._learner_factories(steel, before, request)[2]
    assert simulating._learner_factories(steel, before, request)[2] == key
    assert simulating._learner_factories(steel, before, replace(request, overrides=(*sets, "epochs=1")))[2] != key
    mask = tmp_path / "steel" / "masks" / "crack" / "piece00_0.png"
    Image.fromarray(np.flipud(np.asarray(Image.open(mask)))).save(mask)
    sync.run(steel)
    assert simulating._learner_factories(steel, before, request)[2] != key


def test_what_is_wrong_is_one_line(run: Run, steel: Project) -> None:  # noqa: F811
    embedding.run(steel, "texture", {})
    for more, text in (
        (("--strategies", "porfolio"), "did you mean 'portfolio'"),
        (("--rare", "rust"), "unknown class 'rust'"),
        (("--learner", "oracle"), "unknown learner 'oracle'; allowed: classifier, probe, segmenter"),
        (("--folds", "50"), "50 folds of 20 groups"),
        (("--budget", "much"), "budget 'much'; allowed for a round: images"),
        (("--start", "exemplars", "--exemplars", "9"), "leave nothing to find"),
        (("--set", "epochs=1"), "--set changes a recipe"),
    ):
        assert text in failed(run(*SIMULATE, "--project", str(steel.folder), *more))


@pytest.mark.parametrize(
    ("start", "heading"),
    [
        ("exemplars", "Tiles, 5 exemplars of crack, 3 rounds of 2%"),
        ("2", "Tiles, 2 images a class, for crack, 3 rounds of 2%"),
        ("none", "Tiles, from nothing, for crack, 3 rounds of 2%"),
        ("hidden", "Tiles, 5 images of each other class, for crack, 3 rounds of 2%"),
    ],
)
def test_a_heading_says_what_was_known_at_first(start: str, heading: str) -> None:
    from train.simulate.html_report import section_title

    setting = {"start": start, "rare": "crack", "exemplars": 5, "rounds": 3, "budget": "2%", "imbalance": 1.0}
    assert section_title({"world": "Tiles", "setting": setting}) == heading
    assert section_title({"world": "Tiles", "setting": setting | {"rare": None, "start": "2"}}).count(",") == 2
