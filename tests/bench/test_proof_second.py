"""The second protocol's own parts: settings, worlds, metrics, chance, rivals, and a runner that continues."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.strategies import CATALOGUE
from tests.bench.proof import ask, measures, rivals, second, second_run, second_tables, sets
from tests.bench.proof.measures import Row
from tests.bench.test_proof_adapters import why_not
from tests.pools import drawn, with_tiles
from tests.train.simulate.test_run import tiny_oracle
from train.simulate.one_run import EXEMPLARS, HIDDEN, NO_LABELS, RunSettings, prepare

# --- settings and worlds --------------------------------------------------------------------------------------------


def test_the_protocol_counts_its_settings_and_runs_right() -> None:
    text = (Path(sets.__file__).parent / "PROTOCOL-2.md").read_text(encoding="utf-8")
    every = list(second.settings())
    runs = [sum(rivals.draws(n, s.draws) for n in rivals.names(s.start)) for s in every]
    counts = [
        len(every),
        sum(runs),
        sum(s.dev for s in every),
        sum(r for r, s in zip(runs, every, strict=True) if s.dev),
    ]
    found = re.search(
        r"\*\*([\d,]+) settings, ([\d,]+) runs\*\*, of which ([\d,]+) settings, ([\d,]+) runs are dev", text
    )
    assert found
    assert [int(number.replace(",", "")) for number in found.groups()] == counts
    assert len({setting.name for setting in every}) == len(every)


def test_dev_and_held_out_settings_share_no_class_but_of_the_tiles_from_a_cold_start() -> None:
    every = [setting for setting in second.settings() if setting.sought and setting.family != "plant"]
    dev = {(s.family, name) for s in every if s.dev for name in s.sought}
    held = {(s.family, name) for s in every if not s.dev for name in s.sought}
    assert not dev & held


def test_a_world_keeps_so_many_groups_and_weighs_the_test() -> None:
    oracle = tiny_oracle()
    cut = second.cut_down(replace(oracle, test=np.arange(240) < 80), {"a": 3, "c": 2}, 1)
    left = [len(np.unique(cut.groups[cut.pooled & cut.present[:, number]])) for number in range(3)]
    before = len(np.unique(oracle.groups[80:][oracle.present[80:, 1]]))
    assert left == [3, before, 2]
    clean = ~oracle.present.any(axis=1)
    assert not cut.spare[clean].any()
    shows = cut.test & cut.present[:, 0]
    pooled = ~cut.test & oracle.present[:, 0]
    assert cut.weight[shows] == pytest.approx((pooled & ~cut.spare).sum() / pooled.sum())
    assert (cut.weight[cut.test & clean] == 1).all()


def test_groups_that_show_two_classes_count_for_both() -> None:
    oracle = tiny_oracle()
    present = oracle.present.copy()
    present[oracle.groups < 2] = True  # two groups show all
    cut = second.cut_down(replace(oracle, present=present), {"a": 4, "b": 4, "c": 4}, 0)
    for number in range(3):
        kept = np.unique(cut.groups[cut.pooled & present[:, number]])
        assert 4 <= len(kept) <= 6


def test_two_rare_classes_have_exemplars_of_their_own() -> None:
    oracle = tiny_oracle()
    setting = RunSettings(start=EXEMPLARS, rare="c", also_rare=("a",), wanted=("c", "a"), exemplars=3, seed=2)
    start = prepare(oracle, setting)
    assert [int(oracle.present[start.given, oracle.number(name)].sum()) for name in ("a", "b", "c")] == [3, 0, 3]
    assert len(np.unique(oracle.groups[start.given])) == 6
    alone = prepare(oracle, replace(setting, also_rare=()))
    assert set(alone.given) <= set(start.given)


# --- metrics --------------------------------------------------------------------------------------------------------


def row(strategy: str = "portfolio", of_a: tuple[int, ...] = (0, 2, 4), **more: Any) -> dict[str, Any]:
    made = {"setting": "s", "draw": 0, "strategy": strategy, "family": "tile", "start": NO_LABELS, "dev": True}
    made |= {
        "sought": [],
        "labels": [0, 10, 20],
        "to_find": {"a": 4, "b": 0},
        "found": {"a": list(of_a), "b": [0] * 3},
    }
    return made | {"f1": {"a": [0.0, 0.5, 1.0]}, "seconds": 1.0} | more


def test_areas_by_hand() -> None:
    one = row()
    assert [score.value for score in measures.group_recall(one)] == [pytest.approx(0.5)]
    assert [score.weight for score in measures.group_recall(one)] == [4]
    assert [score.value for score in measures.discovery(one)] == [pytest.approx(0.75)]
    assert [score.value for score in measures.discovery_of_three(one)] == [pytest.approx(0.25)]
    assert [score.value for score in measures.macro_f1(one)] == [pytest.approx(0.5)]
    assert [score.value for score in measures.seen_at(0)(one)] == [0.0]
    two = row(to_find={"a": 4, "b": 2}, found={"a": [0, 1, 1], "b": [0, 0, 2]})
    assert measures.overall([two], measures.group_recall) == pytest.approx((4 * 0.1875 + 2 * 0.25) / 6)
    assert measures.overall([two], measures.discovery) == pytest.approx((0.75 + 0.25) / 2)


def test_only_the_classes_asked_for_or_hidden_are_to_be_found() -> None:
    both = {"a": 4, "b": 2}
    assert measures.sought(row(to_find=both)) == ["a", "b"]
    for start in (EXEMPLARS, HIDDEN):
        assert measures.sought(row(to_find=both, start=start, sought=["b"])) == ["b"]


def test_who_does_not_get_there_counts_with_a_round_more() -> None:
    assert measures.labels_to_all(row()) == (10.0, True)
    assert measures.labels_to_all(row(of_a=(0, 0, 0))) == (30.0, False)
    assert measures.labels_to_all(row(labels=[30, 40, 50], start=HIDDEN, sought=["a"])) == (10.0, True)
    assert measures.label_ratio([row(of_a=(0, 1, 1))], [row(of_a=(0, 0, 1))]) == pytest.approx(0.5)


def test_families_count_once_and_draws_do_not_add_weight() -> None:
    many = [row(of_a=(0, 4, 4), draw=draw) for draw in range(6)]
    few = [row(of_a=(0, 0, 0), setting="t", family="strip")]
    assert measures.overall([*many, *few], measures.group_recall) == pytest.approx(0.75 / 2)
    also = [row(of_a=(0, 0, 0), setting="u")]
    assert measures.by_family([*many, *also], measures.group_recall) == {"tile": pytest.approx(0.75 / 2)}


def many(strategy: str, recall: dict[str, int], draws: int = 3) -> list[Row]:
    """One setting whose classes have each ten groups, so many of which are found in the last round."""
    found = {name: [0, count, count] for name, count in recall.items()}
    more = {"found": found, "to_find": dict.fromkeys(recall, 10)}
    return [row(strategy, draw=draw, **more) for draw in range(draws)]


def test_chance_counts_classes_not_draws() -> None:
    names = "abcdefgh"
    ours, others = many("portfolio", dict.fromkeys(names, 8)), many("random", dict.fromkeys(names, 4))
    found = measures.compare(ours, others, measures.group_recall)
    assert found.mean == pytest.approx(0.3)
    assert (found.clusters, found.p, found.verdict(0.03)) == (8, 2 / 2**8, "better")
    assert measures.compare(others, ours, measures.group_recall).verdict(0.03) == "worse"
    assert measures.compare(ours, ours, measures.group_recall).verdict(0.03) == "not inferior"
    mixed = many("random", {name: 4 + 8 * (place % 2) for place, name in enumerate(names)})
    assert measures.compare(ours, mixed, measures.group_recall).verdict(0.03) == "not shown"
    alone = measures.compare(many("portfolio", {"a": 8}, 50), many("random", {"a": 4}, 50), measures.group_recall)
    assert (alone.clusters, alone.p, alone.verdict(0.03)) == (1, 1.0, "not shown")


def test_ranks_are_of_those_that_played_everything() -> None:
    rows = {
        "portfolio": [row(), row(setting="t")],
        "random": [row(of_a=(0, 0, 1)), row(setting="t", of_a=(0, 0, 1))],
        "margin": [row()],
    }
    assert measures.mean_ranks(rows, measures.group_recall) == {"portfolio": 1.0, "random": 2.0}


# --- rivals ---------------------------------------------------------------------------------------------------------


def test_who_cannot_choose_yet_takes_coverage_and_never_chance() -> None:
    pool = drawn(90, labelled=0, exemplars=False)
    covering = CATALOGUE.call("maxherding")(pool, 6, np.random.default_rng(0))
    picker = rivals.picker_for(RunSettings(strategy="margin"))
    assert [pick.id for pick in picker(pool, 6, np.random.default_rng(0))] == [pick.id for pick in covering]
    learnt = drawn(90, labelled=40, exemplars=False)
    own = CATALOGUE.call("margin")(learnt, 6, np.random.default_rng(0))
    assert [pick.id for pick in picker(learnt, 6, np.random.default_rng(0))] == [pick.id for pick in own]


def test_a_score_strategy_also_starts_as_the_portfolio_does() -> None:
    picker = rivals.picker_for(RunSettings(strategy="portfolio_then_margin"))
    pool = drawn(90, labelled=40, exemplars=False)
    for turn, name in ((1, "portfolio"), (2, "margin")):
        found = picker(replace(pool, turn=turn, memo={}), 8, np.random.default_rng(3))
        own = CATALOGUE.call(name)(replace(pool, turn=turn, memo={}), 8, np.random.default_rng(3))
        assert [pick.id for pick in found] == [pick.id for pick in own]


def test_all_who_play_are_known() -> None:
    every = {name for start in (EXEMPLARS, NO_LABELS, HIDDEN) for name in rivals.names(start)}
    own = {name.removeprefix(rivals.THEN) for name in every if "." not in name} - {"probe_one_a_group"}
    assert own <= set(CATALOGUE.names())
    assert not any(
        rivals.is_rival(name) for name in (*rivals.BASELINES, *rivals.OURS, "portfolio_then_class_stratified")
    )
    assert rivals.is_rival("portfolio_then_margin")


def test_a_result_depends_on_the_code_of_its_own_strategy() -> None:
    files = {file.stem for file in rivals._closure((*rivals.ENGINE, "curate.strategies.margin"))}
    assert {"margin", "one_run", "rules", "pool", "linear_probe"} <= files
    assert not {"portfolio", "anomaly", "window_probe"} & {
        file.stem for file in rivals._closure(("curate.strategies.margin",))
    }
    codes = {name: rivals.code_of(name) for name in ("margin", "portfolio", "portfolio_then_margin", "submodlib.flcg")}
    assert len(set(codes.values())) == len(codes)


def greedy(gain: Any, size: int, count: int) -> list[int]:
    """Add the element with the largest gain, the reference of submodlib's."""
    chosen: list[int] = []
    for _ in range(count):
        left = [place for place in range(size) if place not in chosen]
        chosen.append(max(left, key=lambda place: gain([*chosen, place]) - (gain(chosen) if chosen else 0.0)))
    return chosen


@pytest.mark.slow
def test_submodlib_chooses_by_the_functions_of_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not("submodlib"):
        pytest.skip(reason)
    pool = with_tiles(drawn(60, labelled=20, rare=8))
    pool = replace(pool, groups=np.arange(60))
    rows, near = pool.open, ask._near(pool)[pool.open].astype(np.float64)

    def flqmi(chosen: list[int]) -> float:
        return float(near[chosen].max(axis=0).sum() + near[chosen].max(axis=1).sum())

    found = ask.ask_peer("submodlib.flqmi", pool, 6, np.random.default_rng(0))
    assert flqmi(np.searchsorted(rows, found).tolist()) == pytest.approx(flqmi(greedy(flqmi, len(rows), 6)), abs=1e-4)

    data, known = pool.vectors[rows], pool.vectors[pool.trainable]
    same, other = data @ data.T, (data @ known.T).max(axis=1)

    def flcg(chosen: list[int]) -> float:
        return float(np.maximum(same[:, chosen].max(axis=1) - other, 0).sum())

    found = ask.ask_peer("submodlib.flcg", replace(pool, memo={}), 6, np.random.default_rng(0))
    assert flcg(np.searchsorted(rows, found).tolist()) == pytest.approx(flcg(greedy(flcg, len(rows), 6)), abs=1e-3)


def test_mutual_information_waits_for_an_exemplar() -> None:
    with pytest.raises(ask.NotYet, match="no exemplar"):
        ask.ask_peer("submodlib.flqmi", drawn(60, labelled=20, exemplars=False), 4, np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("clean", [False, True])
def test_patchcore_ranks_what_no_other_window_is_like(clean: bool) -> None:
    if reason := why_not("anomalib"):
        pytest.skip(reason)
    pool = drawn(120, labelled=60 if clean else 0, exemplars=False)
    odd = int(pool.open[5])
    vectors = pool.vectors.copy()
    vectors[odd] = -vectors[odd]
    pool = replace(pool, vectors=vectors, groups=np.arange(120))
    found = ask.ask_peer("anomalib.patchcore", pool, 4, np.random.default_rng(0))
    assert found[0] == odd
    assert len(set(found.tolist())) == 4
    assert set(found.tolist()) <= set(pool.open.tolist())


# --- the runner -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[second_run.Job]:
    monkeypatch.setattr(second_run, "HOME", tmp_path)
    monkeypatch.setattr(second, "whole", lambda data, vectors: tiny_oracle())
    setting = second.Setting("magnetic_tile", NO_LABELS, (), 0, 3, "5%")
    return [second_run.Job(setting, draw, name) for draw in range(2) for name in ("random", "margin", "portfolio")]


def kept(tmp_path: Path) -> dict[str, Any]:
    rows = second_run.rows_kept("texture")
    return {key: {name: value for name, value in line.items() if name != "seconds"} for key, line in rows.items()}


def test_a_killed_run_continues_with_the_same_result(small: list[second_run.Job], tmp_path: Path) -> None:
    assert second_run.play_all(small, "texture", 9) == {}
    whole = kept(tmp_path)
    assert set(whole) == {job.key for job in small}
    file = tmp_path / "texture.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed while it wrote
    assert len(kept(tmp_path)) == 3
    second_run.play_all(small, "texture", 9)
    assert kept(tmp_path) == whole


def test_lines_of_other_code_are_not_taken(small: list[second_run.Job], tmp_path: Path) -> None:
    second_run.play_all(small[:1], "texture", 9)
    file = tmp_path / "texture.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "old"}) + "\n")
    assert kept(tmp_path) == {}


def test_time_is_a_limit(small: list[second_run.Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second_run.play_all(small, "texture", 0)
    assert kept(tmp_path) == {}
    assert "6 runs are left" in capsys.readouterr().out


def test_the_table_tells_what_was_met_and_missed(small: list[second_run.Job], tmp_path: Path) -> None:
    second_run.play_all(small, "texture", 9)
    text = second_tables.results(list(second_run.rows_kept("texture").values()), 7, "texture", {"x: y": "why"})
    assert "**Incomplete**: 6 of 7 runs." in text
    assert "## Held-out settings" in text
    assert "| **portfolio** |" in text
    assert "at most 0.60 of random's" in text
    assert "- x: y: why" in text
    assert not re.search(r"\bnan\b|\binf\b", text)
