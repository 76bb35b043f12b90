"""Samplers: expected repeats by hand, draws that hold them, and the same epoch whatever the number of processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import CurateError
from train.data import sampling

PRESENT = np.zeros((100, 2), bool)
PRESENT[:20, 0] = True  # 20 images of the first class, 4 of the second, two of which show both
PRESENT[18:22, 1] = True


def test_natural_shows_each_image_once() -> None:
    order = sampling.draw(sampling.repeats("natural", PRESENT), epoch=3, seed=1)
    assert sorted(order) == list(range(100))
    assert not np.array_equal(order, np.arange(100))


def test_weighted_makes_kinds_equally_frequent() -> None:
    repeats = sampling.weighted(PRESENT)
    assert np.isclose(repeats.sum(), 100)
    clean, first, second = repeats[50], repeats[0], repeats[19]
    assert np.isclose(first / clean, 78 / 20)
    assert np.isclose(second / clean, 78 / 4)  # of its rarest class, though it shows the frequent one, too


def test_repeat_factor_by_hand() -> None:
    repeats = sampling.repeat_factor(PRESENT, threshold=0.3)
    assert np.isclose(repeats[0], np.sqrt(0.3 / 0.2))
    assert np.isclose(repeats[19], np.sqrt(0.3 / 0.04))
    assert repeats[50] == 1.0
    assert (sampling.repeat_factor(PRESENT, threshold=0.01) == 1).all()


def test_draws_hold_the_expectation() -> None:
    repeats = sampling.weighted(PRESENT)
    counts = Counter[int]()
    for epoch in range(400):
        counts.update(sampling.draw(repeats, epoch, seed=0).tolist())
    frequency = np.array([counts[row] for row in range(100)]) / 400
    assert np.allclose(frequency, repeats, atol=5 * np.sqrt(0.25 / 400))  # a fraction is drawn as 0 or 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=60), st.integers(0, 99), st.integers(1, 7))
def test_shards_are_the_single_process_draw(values: list[float], epoch: int, world_size: int) -> None:
    repeats = np.array(values)
    whole = sampling.draw(repeats, epoch, seed=5)
    assert len(whole) == max(1, round(repeats.sum()))
    shards = [sampling.draw(repeats, epoch, 5, rank, world_size) for rank in range(world_size)]
    assert len({len(shard) for shard in shards}) == 1
    together = np.stack(shards, axis=1).ravel()
    assert np.array_equal(together[: len(whole)], whole)
    assert np.array_equal(together[len(whole) :], np.resize(whole, len(together))[len(whole) :])
    excess = np.bincount(whole, minlength=len(repeats)) - repeats * len(whole) / repeats.sum()
    assert (np.abs(excess) < 1 + 1e-6).all()


def test_epochs_and_seeds_differ() -> None:
    repeats = np.ones(50)
    draws = [tuple(sampling.draw(repeats, epoch, seed)) for epoch in range(3) for seed in range(3)]
    assert len(set(draws)) == 9


def test_an_unknown_sampler() -> None:
    with pytest.raises(CurateError, match="allowed: natural, repeat-factor, weighted"):
        sampling.repeats("wieghted", PRESENT)
