"""Nearest neighbours and near-duplicates agree with plain numpy, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.greedy import neighbours
from curate.greedy.neighbours import best_match, nearest, pairs_above

Vectors = NDArray[Any]


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
    return np.asarray(np.divide(a @ b.T, lengths, out=np.zeros_like(lengths), where=lengths > 0))


def plain_nearest(queries: Vectors, x: Vectors, k: int, skip_self: bool) -> tuple[Vectors, Vectors]:
    similarity = np.round(cosines(queries, x), 7)  # whole-number vectors: real differences are far larger
    if skip_self:
        np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, 1), order


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 50), st.booleans(), st.integers(0, 2**32 - 1))
def test_nearest_is_the_plain_sort_with_ties_to_the_lowest_row(
    n: int, d: int, k: int, skip_self: bool, seed: int
) -> None:
    x = np.random.default_rng(seed).integers(-2, 3, (n, d)).astype(np.float32)
    queries = x if skip_self else x[::2]
    similarity, rows = nearest(queries, x, k, skip_self=skip_self)
    expected, order = plain_nearest(queries, x, min(k, n - skip_self), skip_self)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    np.testing.assert_array_equal(rows, order)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_nearest_over_many_blocks(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_TALL", 64)
    monkeypatch.setattr(neighbours, "_WIDE", 100)
    x: Vectors = np.random.default_rng(0).standard_normal((777, 24)).astype(kind)
    similarity, rows = nearest(x, x, 10, skip_self=True)
    expected, order = plain_nearest(x, x, 10, True)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_many_copies_still_go_to_the_lowest_rows() -> None:
    row = np.random.default_rng(1).standard_normal(384).astype(np.float32)
    x = np.tile(row, (5000, 1))
    x[0] = -row
    similarity, rows = nearest(x[1:40], x, 3)
    assert (rows == [1, 2, 3]).all()
    assert (similarity == 1).all()


@pytest.mark.slow
def test_torch_finds_the_same() -> None:
    x = np.random.default_rng(2).standard_normal((500, 16)).astype(np.float32)
    for skip_self in (False, True):
        ours, torchs = (nearest(x, x, 7, skip_self=skip_self, device=device) for device in (None, "cpu"))
        np.testing.assert_array_equal(ours[1], torchs[1])
        np.testing.assert_array_equal(ours[0], torchs[0])


def test_best_match() -> None:
    x = np.random.default_rng(3).standard_normal((300, 16)).astype(np.float32)
    x[200] = x[100]
    similarity, rows = best_match(x, x)
    expected = np.arange(300)
    expected[200] = 100
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarity, 1)
    with pytest.raises(ValueError, match="empty"):
        best_match(x, x[:0])


def plain_pairs(x: Vectors, threshold: float, y: Vectors | None) -> set[tuple[int, int]]:
    close = cosines(x, x if y is None else y) >= threshold
    return {(int(i), int(j)) for i, j in np.argwhere(np.triu(close, 1) if y is None else close)}


@pytest.mark.slow
@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("sketch", [False, True])
def test_pairs_above_finds_every_pair(other: bool, sketch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_TALL", 256)
    monkeypatch.setattr(neighbours, "_WIDE", 300)
    random = np.random.default_rng(4)
    x = random.standard_normal((1500, 160)).astype(np.float32)
    x[700:900] = x[:200] + 0.3 * random.standard_normal((200, 160))
    y = x[600:] if other else None
    basis = np.linalg.qr(random.standard_normal((160, 20)))[0].astype(np.float32) if sketch else None
    monkeypatch.setattr(neighbours, "_basis", lambda *_: basis)
    ticks: list[tuple[int, int]] = []
    i, j, similarity = pairs_above(x, 0.9, y, progress=lambda done, every: ticks.append((done, every)))
    pairs = list(zip(i.tolist(), j.tolist(), strict=True))
    assert set(pairs) == plain_pairs(x, 0.9, y)
    assert pairs == sorted(pairs)
    assert len(pairs) > 100
    assert (similarity >= 0.9).all()
    assert ticks[-1][0] == ticks[-1][1] == len(ticks)


@pytest.mark.slow
def test_sketches_are_used_where_they_pay() -> None:
    random = np.random.default_rng(5)
    narrow = (random.standard_normal((4200, 16)) @ random.standard_normal((16, 160))).astype(np.float32)
    assert neighbours._basis(narrow, narrow, 0.95) is not None
    assert neighbours._basis(np.abs(narrow[:, :1]) + 0.01 * narrow, narrow, 0.95) is None
    narrow[100:110] = narrow[:10]
    i, j, _ = pairs_above(narrow, 0.99)
    assert {(row, row + 100) for row in range(10)} <= set(zip(i.tolist(), j.tolist(), strict=True))


def test_nothing_to_find() -> None:
    x = np.zeros((3, 4), np.float32)
    assert nearest(x[:0], x, 2)[1].shape == (0, 2)
    assert nearest(x, x[:0], 2)[1].shape == (3, 0)
    assert nearest(x, x, 2, skip_self=True)[1].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert all(len(part) == 0 for part in pairs_above(x, 0.5))
    assert all(len(part) == 0 for part in pairs_above(x[:0], 0.5))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    x = np.ones((5, 3), np.float16)
    x[3, 1] = wrong
    with pytest.raises(ValueError, match="row 3"):
        nearest(x, x, 1)
    with pytest.raises(ValueError, match="row 3"):
        pairs_above(x, 0.5)
    with pytest.raises(ValueError, match="dimensions"):
        nearest(x[0], x, 1)
