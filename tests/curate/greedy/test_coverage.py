"""Coverage picks what plain greedy picks; with a pool it comes close and keeps the rare clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.greedy import coverage as module
from curate.greedy.coverage import coverage, median_bandwidth, prob_cover, targeted

Vectors = NDArray[Any]


def kernel_values(x: Vectors, kind: str, width: float) -> Any:
    x = x.astype(np.float64)
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    if kind == "rbf":
        return np.exp(-squared / (2 * width**2))
    if kind == "ball":
        return (squared <= width**2 + 1e-6).astype(float)
    lengths = np.linalg.norm(x, axis=1)
    return np.maximum(x @ x.T / np.maximum(lengths[:, None] * lengths, 1e-30), 0)


def assert_greedy(
    values: Vectors, picks: Vectors, gains: Vectors, weights: Vectors, cover: Vectors, ok: Vectors
) -> None:
    """Every pick is the lowest row of those whose gain is, but for rounding, the best one."""
    cover, ok = cover.copy(), ok.copy()
    for pick, gain in zip(picks, gains, strict=True):
        every = np.where(ok, (weights[:, None] * np.maximum(values - cover[:, None], 0)).sum(axis=0), -np.inf)
        assert ok[pick]
        assert every[pick] >= every.max() * (1 - 3e-5) - 1e-4
        assert gain == pytest.approx(every[pick], rel=1e-3, abs=1e-4)
        if every.max() > 1e-2:  # where nothing is left to gain, rounding may tell copies apart
            assert not (every[:pick] >= every.max() * (1 - 1e-8)).any()
        cover, ok[pick] = np.maximum(cover, values[:, pick]), False


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(0, 70),
    st.sampled_from(["rbf", "cosine", "ball"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_picks_of_plain_greedy(n: int, budget: int, kind: Any, whole: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, 3)).astype(np.float32)
    x = np.round(x) if whole else x  # whole numbers bring copies and ties
    weights = random.integers(0, 4, n).astype(np.float32)
    allowed, covered = random.random(n) < 0.8, np.flatnonzero(random.random(n) < 0.1)
    options: dict[str, Any] = {"weights": weights, "covered": covered, "candidates": allowed}
    result = (
        prob_cover(x, budget, 1.01, **options)
        if kind == "ball"
        else coverage(x, budget, kernel=kind, bandwidth=1.01, **options)
    )
    values = kernel_values(x, kind, 1.01)
    allowed[covered] = False
    assert len(result.picks) == len(set(result.picks.tolist())) == min(budget, allowed.sum())
    cover = values[:, covered].max(axis=1, initial=0)
    assert_greedy(values, result.picks, result.gains, weights, cover, allowed)


def clusters(n: int, rare: int, size: int, seed: int = 0, d: int = 32) -> tuple[Vectors, NDArray[np.int64]]:
    """Unit vectors in thirty large clusters and some rare ones, whose labels are 30 and more; rows in random order."""
    random = np.random.default_rng(seed)
    label = np.concatenate((random.integers(0, 30, n - rare * size), np.repeat(30 + np.arange(rare), size)))
    label = random.permutation(label)
    x = random.standard_normal((30 + rare, d))[label] + 0.5 * random.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), label


@pytest.mark.parametrize("narrow", [0.0, 1.0])
def test_written_down_or_not_the_picks_are_the_same(narrow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WIDE", 500)
    x, _ = clusters(1700, 5, 20)
    expected = coverage(x, 60, bandwidth=0.5).picks
    monkeypatch.setattr(module, "_NARROW", narrow)
    result = coverage(x, 60, bandwidth=0.5)
    assert result.picks.tolist() == expected.tolist()
    assert_greedy(
        kernel_values(x, "rbf", 0.5), result.picks, result.gains, np.ones(1700), np.zeros(1700), np.ones(1700, bool)
    )


@pytest.mark.exhaustive
def test_a_pool_is_about_as_good_and_loses_no_rare_cluster() -> None:
    x, label = clusters(8000, 12, 30)
    exact, pooled = coverage(x, 100), coverage(x, 100, pool=600)
    assert exact.bandwidth == pooled.bandwidth
    for result in (exact, pooled):
        assert len(set(result.picks.tolist())) == 100
        assert set(range(30, 42)) <= set(label[result.picks].tolist())
    assert pooled.gains.sum() > 0.99 * exact.gains.sum()
    assert pooled.picks.tolist() == coverage(x, 100, pool=600).picks.tolist()


def test_large_data_get_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = clusters(3000, 4, 30)
    exact = coverage(x, 60)
    monkeypatch.setattr(module, "_EXACT", 1e6)
    monkeypatch.setattr(module, "_POOL", 300)
    allowed, weights = label != 3, np.where(label == 5, 0, 1).astype(float)
    result = coverage(x.astype(np.float16), 60, candidates=allowed, weights=weights, covered=exact.picks[:10])
    assert len(set(result.picks.tolist())) == 60
    assert 3 not in label[result.picks]
    assert not set(result.picks.tolist()) & set(exact.picks[:10].tolist())


def test_the_bandwidth_is_the_median_distance_to_a_near_neighbour() -> None:
    x, _ = clusters(400, 2, 10)
    apart = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)
    assert median_bandwidth(x, 40) == pytest.approx(float(np.median(apart[:, 10])), rel=1e-4)
    assert median_bandwidth(x[:1], 5) == 1
    assert median_bandwidth(np.ones((30, 4), np.float32), 5) > 0


def test_prob_cover_covers_balls() -> None:
    x = np.array([[0.0], [1], [2], [10], [11], [30]], np.float32)
    result = prob_cover(x, 4, 1.0)
    assert result.picks.tolist() == [1, 3, 5, 0]
    assert result.gains.tolist() == [3, 2, 1, 0]


# --- Towards exemplars --------------------------------------------------------------------------------------------


def plain_targeted(x: Vectors, exemplars: Vectors, negatives: Vectors, budget: int) -> list[int]:
    similar, unlike = np.maximum(x @ exemplars.T, 0), np.maximum((x @ negatives.T).max(axis=1), 0)
    picks: list[int] = []
    best = np.zeros(len(exemplars))
    for _ in range(budget):
        gains = np.maximum(similar - best, 0).sum(axis=1) + similar.max(axis=1) - unlike
        if picks:
            gains[(x @ x[picks].T).max(axis=1) >= 0.98] = -np.inf
        picks.append(int(np.argmax(gains)))
        best = np.maximum(best, similar[picks[-1]])
    return picks


@pytest.mark.parametrize("seed", range(5))
def test_targeted_is_plain_greedy(seed: int) -> None:
    x, _ = clusters(900, 5, 20, seed)
    exemplars, negatives = x[:7], x[7:20]
    result = targeted(x[20:], exemplars, 40, negatives=negatives)
    assert result.picks.tolist() == plain_targeted(x[20:].astype(float), exemplars, negatives, 40)
    similarity = x[20:][result.picks] @ exemplars.T
    np.testing.assert_allclose(result.similarity, similarity.max(axis=1), atol=1e-5)
    np.testing.assert_array_equal(result.exemplar, similarity.argmax(axis=1))


def test_targeted_aims_at_the_exemplars_away_from_negatives_without_copies() -> None:
    x, label = clusters(2000, 2, 40)
    wanted, unwanted = np.flatnonzero(label == 30), np.flatnonzero(label == 31)
    allowed = np.ones(2000, bool)
    allowed[wanted[:3]] = False
    result = targeted(x, x[wanted[:3]], 20, negatives=x[unwanted[:3]], candidates=allowed)
    assert (label[result.picks] == 30).all()
    assert not set(result.picks.tolist()) & set(wanted[:3].tolist())
    assert 31 not in label[targeted(x, x[[wanted[0], unwanted[0]]], 20, negatives=x[unwanted], penalty=9).picks]
    copies = targeted(np.repeat(x[:5], 4, axis=0), x[:1], 20)
    assert sorted(copies.picks.tolist()) == [0, 4, 8, 12, 16]


def test_what_cannot_be_meant_is_refused() -> None:
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    for options in (
        {"weights": -np.ones(6)},
        {"weights": np.ones(5)},
        {"candidates": np.ones(5, bool)},
        {"bandwidth": -1},
    ):
        with pytest.raises(ValueError, match=r"weights|candidates|bandwidth"):
            coverage(x, 2, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="radius"):
        prob_cover(x, 2, -1.0)
    with pytest.raises(ValueError, match="exemplars is empty"):
        targeted(x, x[:0], 2)
    x[4, 0] = np.nan
    with pytest.raises(ValueError, match="row 4"):
        coverage(x, 2)
    with pytest.raises(ValueError, match="row 4"):
        targeted(x, x[:1], 2)
