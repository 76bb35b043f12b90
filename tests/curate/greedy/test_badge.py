"""BADGE picks what its written-out form picks, with the same draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from curate.greedy.badge import badge, residuals

Vectors = NDArray[Any]


def materialised(vectors: Vectors, left: Vectors, budget: int, rng: np.random.Generator) -> list[int]:
    every = (vectors[:, :, None].astype(np.float64) * left[:, None, :]).reshape(len(vectors), -1)
    picks = [int(np.argmax((every**2).sum(axis=1)))]
    distance = np.full(len(every), np.inf)
    while len(picks) < budget:
        distance = np.minimum(distance, ((every - every[picks[-1]]) ** 2).sum(axis=1))
        distance[picks] = 0
        reach = np.cumsum(distance)
        picks.append(int(np.searchsorted(reach, rng.random() * reach[-1], side="right")))
    return picks


def rows(n: int, d: int, classes: int, seed: int) -> tuple[Vectors, Vectors]:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((n, d)).astype(np.float32)
    scores = 3 * random.standard_normal((n, classes))
    return vectors, residuals(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("seed", range(8))
def test_the_picks_of_the_materialised_form(seed: int) -> None:
    vectors, left = rows(600, 17, 5, seed)
    picks = badge(vectors, left, 60, np.random.default_rng(seed))
    assert picks.tolist() == materialised(vectors, left, 60, np.random.default_rng(seed))


def test_candidates_and_every_row_once() -> None:
    vectors, left = rows(80, 6, 3, 1)
    allowed = np.arange(80) % 3 == 0
    picks = badge(vectors, left, 500, np.random.default_rng(0), candidates=allowed)
    assert sorted(picks.tolist()) == np.flatnonzero(allowed).tolist()
    assert picks.dtype == np.int64
    assert badge(vectors, left, 0, np.random.default_rng(0)).shape == (0,)


def test_copies_are_picked_last_and_lowest_first() -> None:
    vectors, left = rows(3, 4, 3, 2)
    vectors, left = np.repeat(vectors, 3, axis=0), np.repeat(left, 3, axis=0)
    picks = badge(vectors, left, 9, np.random.default_rng(0))
    assert picks[0] % 3 == 0
    assert sorted((picks[:3] // 3).tolist()) == [0, 1, 2]
    assert picks[3:].tolist() == sorted(set(range(9)) - set(picks[:3].tolist()))


def test_half_precision_and_repeatability() -> None:
    vectors, left = rows(300, 8, 4, 3)
    half = badge(vectors.astype(np.float16), left, 20, np.random.default_rng(5))
    again = badge(vectors.astype(np.float16).astype(np.float32), left, 20, np.random.default_rng(5))
    assert half.tolist() == again.tolist()


def test_residuals() -> None:
    result = residuals(np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]]))
    np.testing.assert_allclose(result, [[-0.5, 0.5, 0.0], [0.1, 0.2, -0.3]], atol=1e-6)


def test_what_cannot_be_meant_is_refused() -> None:
    vectors, left = rows(5, 3, 2, 4)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="residuals"):
        badge(vectors, left[:4], 2, rng)
    with pytest.raises(ValueError, match="candidates"):
        badge(vectors, left, 2, rng, candidates=np.ones(4, bool))
    vectors[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2"):
        badge(vectors, left, 2, rng)
