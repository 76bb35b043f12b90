"""TypiClust picks typical rows of the largest uncovered clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.greedy import typical
from curate.greedy.typical import kmeans, typiclust

Vectors = NDArray[Any]
SIZES = (90, 60, 40, 20)


def blobs() -> tuple[Vectors, NDArray[np.int64]]:
    """Four well-separated blobs, of which the last rows lie in the middle."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(4), SIZES)
    x = 20 * np.eye(4, 8)[label] + random.standard_normal((len(label), 8))
    return x.astype(np.float32), label


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_one_typical_row_of_each_cluster_largest_first() -> None:
    x, label = blobs()
    result = typiclust(x, 4, rng=rng())
    assert label[result.picks].tolist() == [0, 1, 2, 3]
    for pick, value in zip(result.picks, result.typicality, strict=True):
        inside = np.flatnonzero(label == label[pick])
        apart = np.sort(np.linalg.norm(x[inside, None] - x[inside], axis=2), axis=1)
        typicality = 1 / apart[:, 1 : min(20, len(inside) - 1) + 1].mean(axis=1)
        assert value == pytest.approx(typicality.max(), rel=1e-3)
        assert inside[typicality.argmax()] == pick


def test_covered_clusters_come_last() -> None:
    x, label = blobs()
    result = typiclust(x, 3, covered=np.array([0, 95]), rng=rng(), max_clusters=4)
    assert label[result.picks].tolist() == [2, 3, 0]


def test_several_passes() -> None:
    x, label = blobs()
    picks = typiclust(x, 10, rng=rng(), max_clusters=4).picks
    assert label[picks].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len(set(picks.tolist())) == 10


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 80), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_exactly_the_budget_without_repeats(n: int, budget: int, most: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(-1, 2, (n, 3)).astype(np.float16)
    allowed, covered = random.random(n) < 0.7, np.flatnonzero(random.random(n) < 0.2)
    result = typiclust(x, budget, covered=covered, candidates=allowed, rng=rng(seed), max_clusters=most)
    left = set(np.flatnonzero(allowed).tolist()) - set(covered.tolist())
    assert len(result.picks) == len(set(result.picks.tolist())) == min(budget, len(left))
    assert set(result.picks.tolist()) <= left
    assert result.cluster.shape == (n,)
    again = typiclust(x, budget, covered=covered, candidates=allowed, rng=rng(seed), max_clusters=most)
    assert again.picks.tolist() == result.picks.tolist()


def test_copies_tie_to_the_lowest_row() -> None:
    x = np.ones((30, 384), np.float32) * 0.3
    assert typiclust(x, 3, rng=rng()).picks.tolist() == [0, 1, 2]


def test_kmeans_on_a_sample_and_with_emptied_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = blobs()
    monkeypatch.setattr(typical, "_PER_CLUSTER", 20)
    cluster = kmeans(x, 4, rng(1))
    assert len(set(zip(cluster.tolist(), label.tolist(), strict=True))) == 4
    centres = typical._centres(x, np.zeros(len(x), np.int64), np.arange(len(x), dtype=np.float64), x[:3])
    np.testing.assert_array_equal(centres[1:], x[[-1, -2]])


@pytest.mark.slow
def test_about_as_good_as_scikit_learns_kmeans() -> None:
    cluster_module = pytest.importorskip("sklearn.cluster")
    x = rng(3).standard_normal((3000, 12)).astype(np.float32)
    ours = kmeans(x, 60, rng())
    spread = sum(((x[ours == c] - x[ours == c].mean(axis=0)) ** 2).sum() for c in np.unique(ours))
    assert spread < 1.04 * cluster_module.KMeans(60, random_state=0, n_init=1).fit(x).inertia_


def test_what_cannot_be_meant_is_refused() -> None:
    x, _ = blobs()
    with pytest.raises(ValueError, match="candidates"):
        typiclust(x, 2, candidates=np.ones(3, bool), rng=rng())
    x[7, 0] = np.inf
    with pytest.raises(ValueError, match="row 7"):
        typiclust(x, 2, rng=rng())
