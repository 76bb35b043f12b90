"""The proof's own parts: what peers are told and answer, the matrix that is written down, and what tables say."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.select.pool import Pool
from tests.bench.proof import ask, sets, tables, worlds
from tests.bench.proof.peers import Ask, best
from tests.pools import drawn

MODULES = {"skactiveml": "skactiveml", "lightly": "lightly_mundig", "modal": "modAL", "baal": "baal"}
MODULES |= {"fiftyone": "fiftyone", "cleanlab": "cleanlab", "submodlib": "submodlib", "anomalib": "anomalib"}


@cache
def why_not(peer: str) -> str | None:
    """Why this peer cannot play here."""
    python = ask.python_of(peer)
    if not ask.python_of("lightly").is_file():  # without the others FiftyOne's part is not worth its long import
        return "peers are not installed (.venv-peers): make proof does it"
    look = f"import importlib.util; raise SystemExit(importlib.util.find_spec('{MODULES[peer]}') is None)"
    done = subprocess.run([str(python), "-c", look], capture_output=True, check=False)
    return None if not done.returncode else f"{peer} is not installed"


def learnt() -> Pool:
    return drawn(90, labelled=30, exemplars=False)


# --- peers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", worlds.PEERS)
def test_a_peer_picks_open_rows_and_the_same_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not(name.partition(".")[0]):
        pytest.skip(reason)
    monkeypatch.setattr(ask, "PATIENCE", 300.0)
    pools = [replace(learnt(), memo={}) for _ in range(2)]
    first, second = (ask.ask_peer(name, pool, 6, np.random.default_rng(1)) for pool in pools)
    assert len(set(first.tolist())) == len(first) >= 6
    assert set(first.tolist()) <= set(pools[0].open.tolist())
    assert first.tolist() == second.tolist()


def test_margins_are_the_smallest_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not("modal"):
        pytest.skip(reason)
    monkeypatch.setattr(ask, "PATIENCE", 300.0)
    pool = replace(learnt(), groups=np.arange(90))
    found = ask.ask_peer("modal.margin", pool, 5, np.random.default_rng(0))
    outcome = np.sort(ask._outcomes(ask._likely(pool))[pool.open], axis=1)
    margin = outcome[:, -1] - outcome[:, -2]
    assert sorted(margin[np.searchsorted(pool.open, found)]) == pytest.approx(sorted(margin)[:5], abs=1e-6)


def test_what_was_ranked_ahead_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ranked(name: str, pool: Pool, count: int, seed: int) -> np.ndarray:
        asked.append(count)
        return pool.open[:count]

    monkeypatch.setattr(ask, "_asked", ranked)
    pool = learnt()
    first = ask.ask_peer("lightly.diversity", pool, 4, np.random.default_rng(0))
    left = pool.candidates.copy()
    left[first[:5]] = False
    second = ask.ask_peer("lightly.diversity", pool.offering(left, ()), 2, np.random.default_rng(0))
    assert asked == [12]
    assert second.tolist() == first[5:].tolist()


@pytest.mark.slow
def test_a_peer_that_fails_is_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "python_of", lambda name: Path(sys.executable))
    monkeypatch.setattr(ask, "PATIENCE", 300.0)
    monkeypatch.setattr(ask, "_GIVEN_UP", {})
    for _ in range(2):
        with pytest.raises(CurateError, match=r"nobody\.else: ModuleNotFoundError"):
            ask.ask_peer("nobody.else", learnt(), 4, np.random.default_rng(0))


@pytest.mark.slow
def test_a_peer_that_does_not_answer_runs_out_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    monkeypatch.setattr(ask, "python_of", lambda name: silent)
    monkeypatch.setattr(ask, "PATIENCE", 0.2)
    monkeypatch.setattr(ask, "IMPORTS", 0.0)
    monkeypatch.setattr(ask, "_GIVEN_UP", {})
    with pytest.raises(CurateError, match=r"out of time \(0\.2 s a batch of 90 images\)"):
        ask.ask_peer("silent.one", learnt(), 4, np.random.default_rng(0))
    assert str(silent) not in ask._RUNNING


def test_peers_that_learn_wait_for_labels() -> None:
    nothing = drawn(60, labelled=0, exemplars=False)
    with pytest.raises(ask.NotYet):
        ask.ask_peer("modal.entropy", nothing, 4, np.random.default_rng(0))


def test_outcomes_exclude_each_other() -> None:
    several = np.array([[0.5, 0.5, 0.1], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], np.float32)
    found = ask._outcomes(several)
    assert found.sum(axis=1) == pytest.approx(1)
    assert found[0, 0] == pytest.approx(0.5 * 0.5 * 0.9)
    assert found[:, 0].tolist()[1:] == [1.0, 0.0]
    alone = ask._outcomes(np.array([[0.2, 0.3, 0.1]], np.float32))
    assert alone[0] == pytest.approx([0.4, 0.2, 0.3, 0.1])


def test_a_peer_gets_the_rarest_class_of_an_image() -> None:
    present = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool)
    rows = np.array([0, 2, 3, 5])
    told = Ask(np.zeros((6, 2), np.float32), np.array([1, 4]), rows, present, *[np.zeros((0, 3), np.float32)] * 2, 1, 0)
    assert told.single[rows].tolist() == [2, 1, 1, 0]
    assert np.isnan(told.single[[1, 4]]).all()
    assert best(told._replace(count=2), np.array([0.1, 0.7])).tolist() == [4, 1]


def test_the_probe_ranks_what_is_like_the_wanted_class_first() -> None:
    pool = drawn(150, labelled=0, rare=20, exemplars=False)
    truth = drawn(150, labelled=0, rare=20).exemplars.ids
    rows = pool.rows_of(truth)
    known, shown = np.zeros(150, bool), np.zeros((150, 3), bool)
    known[rows], shown[rows, 2] = True, True
    pool = replace(pool, labelled=known, present=shown, candidates=~known, wanted=("blister",))
    likeness = pool.vectors @ (pool.vectors[rows].mean(axis=0) - pool.vectors.mean(axis=0))
    found = ask.rare_probe(pool, 12, np.random.default_rng(0))
    assert likeness[found].mean() > np.quantile(likeness[pool.open], 0.9)


# --- the matrix -----------------------------------------------------------------------------------------------------


def test_the_protocol_counts_its_runs_right() -> None:
    text = (Path(sets.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")
    every = list(worlds.cases())
    second = [one for one in every if one.start == "exemplars" and one.data in worlds.SECOND]
    counts = [len(every), sum(len(list(worlds.settings(one))) for one in every)]
    counts.append(sum(len(list(worlds.settings(one, worlds.SHORT))) for one in second))
    found = re.search(r"(\d+) settings, \*\*([\d,]+) runs\*\* in the main table and \*\*([\d,]+)\*\*", text)
    assert found
    assert [int(number.replace(",", "")) for number in found.groups()] == counts


def test_no_play_is_there_twice() -> None:
    for case in worlds.cases():
        names = [(one.label, one.seed) for one in worlds.settings(case)]
        assert len(names) == len(set(names))


# --- tables ---------------------------------------------------------------------------------------------------------


def row(strategy: str, recall: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    made = {"table": "main", "data": "neu_det", "rare": "crazing", "ratio": 10.0, "start": "exemplars", "dev": False}
    made |= {"strategy": strategy, "seed": seed, "group_recall": [0.0, recall], "image_recall": [0.0, recall / 2]}
    return (
        made | {"by_class": {}, "at_eight": {}, "seconds": 1.0, "macro_f1": [None], "labels": [0], "full": None} | more
    )


def test_the_gap_is_closed_against_random_at_the_same_seeds() -> None:
    rows = [row("random (plain)", 0.2), row("random (plain)", 0.6, 1), row("portfolio", 0.6)]
    found = tables.runs_by_strategy(rows, "main")
    place = ("neu_det", "crazing", 10.0, "exemplars")
    assert tables.gap(found, "portfolio", place) == pytest.approx(0.5)
    assert not tables.complete(found, "portfolio", "neu_det")
    assert not tables.complete(found, "random (plain)", "neu_det")


def test_a_set_is_complete_with_all_settings_and_seeds() -> None:
    every = [case for case in worlds.cases() if case.data == "magnetic_tile" and case.start == "exemplars"]
    rows = [row("kcenter", 0.5, seed, **case._asdict()) for case in every for seed in range(worlds.SEEDS[case.data])]
    assert tables.complete(tables.runs_by_strategy(rows, "main"), "kcenter", "magnetic_tile")
    assert not tables.complete(tables.runs_by_strategy(rows[1:], "main"), "kcenter", "magnetic_tile")


def test_who_does_not_get_there_counts_with_what_it_spent() -> None:
    full = {"full": 1.0, "labels": [0, 10, 20]}
    rows = [row("random", 0, start="none", macro_f1=[0.0, 0.5, 0.9], **full)]
    rows += [row("portfolio", 0, start="none", macro_f1=[0.0, 0.95, 0.96], **full)]
    found = tables.runs_by_strategy(rows, "main")
    assert tables.ratio(found, "portfolio", "random") == (pytest.approx(0.5), True)
    assert tables.ratio(found, "random", "portfolio") == (pytest.approx(2.0), False)


def test_worse_than_random_needs_more_than_chance() -> None:
    def many(ours: float) -> tables.RunsByStrategy:
        pairs = [(row("portfolio", ours, seed), row("random (plain)", 0.5, seed)) for seed in range(8)]
        return tables.runs_by_strategy([one for pair in pairs for one in pair], "main")

    assert tables.worse_than_random(many(0.4)) == ["neu_det, from exemplars: -0.100 (p 0.008)"]
    assert tables.worse_than_random(many(0.6)) == []
    few = [row("portfolio", 0.4), row("random (plain)", 0.5)]
    assert tables.worse_than_random(tables.runs_by_strategy(few, "main")) == []


def test_results_say_what_is_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(tables, "REPOSITORY", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "RESULTS.md")
    failed = {"table": "main", "data": "neu_det", "strategy": "modal.margin", "failed": "modal: out of time"}
    tables.write([row("random (plain)", 0.2), row("portfolio", 0.6), row("probe_one_a_group", 0.7), failed])
    text = tables.RESULTS.read_text(encoding="utf-8")
    assert "- neu_det: modal: out of time (1 runs)" in text
    assert f"above {tables.STRONG}, 0.62): 0.50 **missed**" in text.replace(", 0.62:", ", 0.62):")
    shown = readme.read_text(encoding="utf-8")
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")
    assert "| **portfolio** | 0.60 | 0.50 |" in shown
    assert "old" not in shown


def test_a_dash_for_what_is_not_known() -> None:
    assert tables.shown(math.nan) == "-"
    assert tables._verdict("what", math.nan, False) == "- what: - **-**"
