"""Distances to other groups against brute force, what labels change, and pools too small or too alike."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.greedy import neighbours as engine
from curate.select import anomaly as unusual
from curate.select.pool import Pool, Windows
from curate.select.whitening import whitening_of
from curate.strategies import CATALOGUE
from tests.pools import drawn, kinds, with_tiles


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 60), st.integers(1, 7), st.integers(1, 9))
def test_nearest_of_others_is_brute_force(seed: int, queries: int, rows: int, k: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((queries, 5)).astype(np.float32), rng.standard_normal((rows, 5)).astype(np.float32)
    g, h = rng.integers(0, count, queries), rng.integers(0, count, rows)
    with pytest.MonkeyPatch.context() as patch:  # several blocks
        patch.setattr(engine, "_TALL", 16)
        patch.setattr(engine, "_WIDE", 16)
        similarity, index = engine.nearest_of_others(x, g, y, h, k)
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
    cosine[g[:, None] == h] = -np.inf
    best = -np.sort(-np.pad(cosine, ((0, 0), (0, k)), constant_values=-np.inf), axis=1)[:, :k]
    assert np.allclose(similarity, best, atol=1e-5)
    assert ((index < 0) == ~np.isfinite(best)).all()


def brute_force(pool: Pool, gone: np.ndarray) -> np.ndarray:
    """The distance of each image's farthest window, without blocks, lists and core-sets."""
    parts = list(pool.all_windows())
    rows = np.concatenate([part.rows for part in parts])
    white = whitening_of(pool)(np.concatenate([part.vectors for part in parts])).astype(np.float64)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    cosine, bank = white @ white.T, unusual.banks(pool)[rows]
    cosine[pool.groups[rows][:, None] == pool.groups[rows]] = -np.inf
    cosine[(bank[:, None] != unusual.EVERYWHERE) & (bank[:, None] != pool.strata[rows])] = -np.inf
    cosine[:, gone[rows]] = -np.inf
    kth = -np.sort(-cosine, axis=1)[:, unusual.NEAREST - 1]
    far = np.full(len(pool), -np.inf)
    np.maximum.at(far, rows, np.sqrt(np.maximum(2 - 2 * kth, 0)))
    return far


@pytest.mark.parametrize("enough", [1, 20, 1000])
def test_distance_to_the_kth_window_of_other_groups(enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By stratum where that has enough groups, else over all; defects leave the bank."""
    monkeypatch.setattr(unusual, "ENOUGH", enough)
    pool = with_tiles(drawn(200))
    bare = replace(pool, labelled=np.zeros(len(pool), bool), present=np.zeros_like(pool.present), memo={})
    assert np.allclose(unusual.anomaly(bare).distance, brute_force(bare, np.zeros(len(pool), bool)), atol=1e-3)
    defects = replace(pool, labelled=pool.present.any(axis=1), memo={}, lasting={})
    monkeypatch.setattr(unusual, "SPARE", 400)  # so that no list runs dry
    assert np.allclose(unusual.anomaly(defects).distance, brute_force(defects, defects.labelled), atol=1e-3)


def test_what_people_call_clean_is_ordinary_by_itself_and_the_search_is_made_once() -> None:
    pool = drawn(200, labelled=0)
    before = unusual.anomaly(pool)
    row = int(before.distance.argmax())
    comparable = (pool.groups != pool.groups[row]) & (pool.strata == pool.strata[row])
    other = int(np.flatnonzero(comparable)[before.distance[comparable].argmax()])
    vectors = pool.vectors.copy()
    vectors[other] = vectors[row]
    twin = replace(pool, vectors=vectors, windows=None, memo={}, lasting={})
    labelled = np.arange(len(pool)) == other
    first = unusual.anomaly(twin)
    known = replace(twin, labelled=labelled, memo={})
    assert unusual.neighbours(known) is unusual.neighbours(twin)
    assert unusual.anomaly(known).distance[row] < 0.01 < first.distance[row]
    assert unusual.anomaly(replace(known, held_out=labelled, memo={})).distance[row] == first.distance[row]


def test_clean_images_join_a_core_set_too_and_defects_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EXACT": 100, "CORE": 40, "CORE_OF": 150}.items():
        monkeypatch.setattr(unusual, name, value)
    pool = drawn(300, labelled=0)
    row = int(unusual.anomaly(pool).distance.argmax())
    other = int(np.flatnonzero(pool.groups != pool.groups[row])[0])
    vectors = pool.vectors.copy()
    vectors[other] = vectors[row]
    twin = replace(pool, vectors=vectors, memo={}, lasting={})
    far = unusual.anomaly(twin).distance[row]
    assert not unusual.neighbours(twin).complete
    labelled, present = np.arange(len(pool)) == other, np.zeros_like(pool.present)
    clean = replace(twin, labelled=labelled, present=present, memo={})
    assert unusual.anomaly(clean).distance[row] < 0.01 < far
    present = present.copy()
    present[other, 0] = True
    assert unusual.anomaly(replace(clean, present=present, memo={})).distance[row] >= far


def test_a_core_set_ranks_nearly_as_all_windows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = with_tiles(drawn(600, labelled=30))
    exact = unusual.anomaly(pool)
    for name, value in {"EXACT": 1000, "CORE": 300, "CORE_OF": 900, "PAIRS": 300 * 1000}.items():
        monkeypatch.setattr(unusual, name, value)
    fresh = replace(pool, memo={}, lasting={})
    rough = unusual.anomaly(fresh)
    assert not unusual.neighbours(fresh).complete
    assert len(unusual.neighbours(fresh).rows) < 3 * len(pool)  # not all windows are searched
    best = set(np.argsort(-exact.distance)[:60].tolist())
    assert len(best & set(np.argsort(-rough.score)[:120].tolist())) >= 30
    again = unusual.anomaly(replace(pool, memo={}, lasting={}))
    assert np.array_equal(again.score, rough.score)
    assert (rough.share <= 1).all()


@pytest.mark.parametrize("size", [1, 3])
def test_one_group_or_three_images_or_all_alike(size: int) -> None:
    few = drawn(size, labelled=0, rare=1, exemplars=False)
    assert np.isfinite(unusual.anomaly(few).score).all()
    assert "one group" in next(iter(few.memo["notes"]))
    pool = drawn(50, labelled=0, exemplars=False)
    alike = replace(pool, vectors=np.repeat(pool.vectors[:1], 50, axis=0), memo={}, lasting={})
    assert np.ptp(unusual.anomaly(alike).score) == 0


def test_the_strategy_finds_a_planted_kind_and_says_why() -> None:
    pool = drawn(300, labelled=0, exemplars=False)
    picks = CATALOGUE.call("anomaly")(pool, 30, np.random.default_rng(0))
    assert kinds(pool, [pick.id for pick in picks]).count(2) >= 4  # at random: 1.2
    assert len({int(pool.groups[row]) for row in pool.rows_of([pick.id for pick in picks])}) == 30
    assert all(" % of windows" in pick.reason and "100 %" not in pick.reason for pick in picks)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("block", [1, 7, 256])
def test_the_strategy_picks_what_comparing_all_with_all_picks(
    spread: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.strategies.anomaly.BLOCK", block)
    pool = drawn(300, labelled=40)
    pool = replace(pool, candidates=pool.candidates & (np.arange(300) % 7 > 0), memo={})
    picks = CATALOGUE.call("anomaly")(pool, 60, np.random.default_rng(0), spread=spread)
    score, far = unusual.anomaly(pool).score, np.sqrt(np.maximum(2 - 2 * pool.vectors @ pool.vectors.T, 0))
    scale = float(np.sqrt(2 - 2 * (pool.vectors.mean(axis=0) ** 2).sum()))
    known, left, times = np.flatnonzero(pool.labelled).tolist(), pool.open.tolist(), Counter[int]()
    for pick in picks:
        least = min(times[int(pool.groups[row])] for row in left)
        free = [row for row in left if times[int(pool.groups[row])] == least]
        worth = {row: score[row] + spread * far[row, known].min() / scale for row in free}
        row = int(pool.rows_of([pick.id])[0])
        assert worth[row] == pytest.approx(max(worth.values()), abs=1e-4)
        assert pick.score == pytest.approx(worth[row], abs=1e-4)
        known.append(row)
        left.remove(row)
        times[int(pool.groups[row])] += 1


def test_far_from_what_is_known_without_an_unusual_window_is_found_too() -> None:
    """Two kinds, each half of the pool: every window has many like it, and one kind has no label."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(2, 24, dtype=np.float32), 100, axis=0)
    vectors = centres + 0.3 * rng.standard_normal((200, 24)).astype(np.float32) / 24**0.5
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    base = drawn(200, labelled=0, exemplars=False)
    labelled = np.arange(200) % 10 == 0
    labelled[100:] = False
    pool = replace(
        base, vectors=vectors, labelled=labelled, candidates=~labelled, groups=np.arange(200), memo={}, lasting={}
    )
    first = CATALOGUE.call("anomaly")(pool, 1, np.random.default_rng(0))
    assert pool.rows_of([first[0].id])[0] >= 100
    assert "to the nearest labelled or chosen image" in first[0].reason


def test_windows_are_streamed_never_held_together() -> None:
    """A million images have gigabytes of windows: of the parts that a pass reads, one or two are held at a time."""
    pool, alive, most = drawn(300, labelled=40), list[int](), list[int]()

    class Vectors(np.ndarray):  # type: ignore[type-arg]
        """An array that can be counted."""

    def windows() -> Iterator[Windows]:
        for start in range(0, 300, 30):
            rows = np.arange(start, start + 30)
            vectors = np.array(pool.vectors[rows]).view(Vectors)
            alive.append(start)
            weakref.finalize(vectors, alive.pop)
            most.append(len(alive))
            yield Windows(rows, np.full(30, -1, np.int16), vectors)

    picks = CATALOGUE.call("anomaly")(replace(pool, windows=windows, memo={}, lasting={}), 5, np.random.default_rng(0))
    assert len(picks) == 5
    assert len(most) >= 20
    assert max(most) <= 3
