"""Farthest-first selection over parts: the picks of one machine, few rounds, and an inexact mode close to it."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.errors import CurateError
from curate.greedy.kcenter import kcenter
from curate.greedy.sharded import Picked, Shard, Source, kcenter_sharded, kcenter_two_round
from tests.curate.greedy.test_kcenter import KINDS, clustered, drawn

Table = NDArray[Any]


def split(x: Table, parts: int, seed: int = 0, names: bool = False) -> tuple[Table, list[Shard]]:
    """Every row at random into one of the parts; ids in the order of the rows."""
    ids: Table = np.array([f"{row:06d}" for row in range(len(x))]) if names else np.arange(len(x)) * 3
    part = np.random.default_rng(seed).integers(parts, size=len(x))
    return ids, [Shard(ids[part == number], x[part == number]) for number in range(parts)]


def central(x: Table, budget: int, covered: Table | None = None) -> tuple[list[int], list[float]]:
    if covered is None:
        result = kcenter(x, budget)
    else:
        result = kcenter(np.concatenate([x, covered]), budget, covered=np.arange(len(x), len(x) + len(covered)))
    return result.picks.tolist(), result.radius.tolist()


def same(result: Picked, ids: Table, shards: list[Shard], expected: tuple[list[int], list[float]]) -> None:
    assert result.ids.tolist() == ids[expected[0]].tolist()
    assert result.radius.tolist() == expected[1]
    for name, shard, row in zip(result.ids, result.shards, result.rows, strict=True):
        assert shards[shard].ids[row] == name


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 150),
    dimensions=st.sampled_from([1, 2, 17, 130, 800]),
    budget=st.integers(0, 160),
    parts=st.sampled_from([1, 2, 5]),
    covered=st.integers(0, 5),
    half=st.booleans(),
    batch=st.sampled_from([1, 3, 20, 256]),
    seed=st.integers(0, 10**6),
)
def test_picks_are_those_of_one_machine(
    kind: str, rows: int, dimensions: int, budget: int, parts: int, covered: int, half: bool, batch: int, seed: int
) -> None:
    x = drawn(kind, rows + covered, dimensions, seed).astype(np.float16 if half else np.float32)
    known = x[rows:] if covered else None
    ids, shards = split(x[:rows], parts, seed, names=bool(seed % 2))
    result = kcenter_sharded(shards, budget, covered_vectors=known, batch=batch)
    same(result, ids, shards, central(x[:rows], budget, known))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("covered", [0, 300])
def test_larger_parts(kind: str, parts: int, covered: int) -> None:
    x = drawn(kind, 3000 + covered, 48, 3)
    known = x[3000:] if covered else None
    ids, shards = split(x[:3000], parts)
    same(kcenter_sharded(shards, 600, covered_vectors=known), ids, shards, central(x[:3000], 600, known))


@pytest.mark.parametrize(("clusters", "most"), [(1, 20), (30, 20), (200, 20)])
def test_few_rounds(clusters: int, most: int) -> None:
    x = clustered(20_000, 32, clusters)
    ids, shards = split(x, 5)
    result = kcenter_sharded(shards, 300)
    same(result, ids, shards, central(x, 300))
    assert result.rounds <= most


@pytest.mark.parametrize("parts", [8, 32])
def test_two_rounds_come_close(parts: int) -> None:
    x = clustered(20_000, 32, 100, seed=4)
    _, shards = split(x, parts)
    result = kcenter_two_round(shards, 300)
    assert result.rounds == 2
    assert len(set(result.ids.tolist())) == 300
    assert reach(x, result.ids // 3) <= 1.2 * reach(x, kcenter(x, 300).picks)


def reach(x: Table, picks: Table) -> float:
    """Distance of the farthest row to its nearest pick: the next one's radius."""
    return float(kcenter(x, 1, covered=picks).radius[0])


@pytest.mark.parametrize("parts", [8, 32])
def test_two_rounds_find_the_rare_clusters(parts: int) -> None:
    random = np.random.default_rng(6)
    sizes = [5000] * 4 + [5] * 40
    which = np.repeat(np.arange(len(sizes)), sizes)
    x = (4 * random.standard_normal((44, 32))[which] + random.standard_normal((len(which), 32))).astype(np.float32)
    order = random.permutation(len(x))
    x, which = x[order], which[order]
    _, shards = split(x, parts)
    rare = set(which[kcenter(x, 150).picks].tolist())
    assert set(which[kcenter_two_round(shards, 150).ids // 3].tolist()) == rare == set(range(44))


def test_two_rounds_keep_away_from_covered_rows() -> None:
    x = clustered(2000, 16, 10)
    _, shards = split(x[:1800], 4)
    alone = kcenter_two_round(shards, 20)
    result = kcenter_two_round(shards, 20, covered_vectors=x[1800:])
    assert np.isinf(alone.radius[0])
    assert result.radius[0] < alone.radius[1]


def read_part(seed: int) -> Shard:
    return Shard(np.arange(1000) * 2 + seed, clustered(1000, 16, 10, seed))


def test_parts_may_be_functions() -> None:
    arrays = [read_part(0), read_part(1)]
    functions: list[Source] = [partial(read_part, 0), partial(read_part, 1)]
    assert kcenter_sharded(functions, 50).ids.tolist() == kcenter_sharded(arrays, 50).ids.tolist()


def test_empty_parts_and_no_rows() -> None:
    x = clustered(100, 8)
    nothing = Shard(np.arange(0), x[:0])
    shards = [nothing, Shard(np.arange(100), x), nothing]
    assert kcenter_sharded(shards, 200).ids.tolist() == central(x, 200)[0]
    assert kcenter_two_round(shards, 20).ids.tolist() == central(x, 20)[0]
    assert kcenter_sharded([nothing], 5).ids.size == 0
    assert kcenter_sharded(shards, 0).ids.size == 0


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clustered(50, 8)
    with pytest.raises(ValueError, match="part 1 are not sorted"):
        kcenter_sharded([Shard(np.arange(50), x), Shard(np.arange(50)[::-1], x)], 5)
    with pytest.raises(ValueError, match="49 ids for 50 vectors"):
        kcenter_sharded([Shard(np.arange(49), x)], 5)
    with pytest.raises(ValueError, match="no parts"):
        kcenter_sharded([], 5)
    with pytest.raises(ValueError, match="NaN"):
        kcenter_sharded([Shard(np.arange(50), x * np.float32(np.nan))], 5)
    with pytest.raises(ValueError, match="NaN"):
        kcenter_sharded([Shard(np.arange(50), x)], 5, covered_vectors=x * np.float32(np.inf))
    with pytest.raises(CurateError, match="unknown engine 'rai'"):
        kcenter_sharded([Shard(np.arange(50), x)], 5, engine="rai")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CurateError, match=r"pip install 'steel-curate\[ray\]'"):
        kcenter_sharded([Shard(np.arange(50), x)], 5, engine="ray")


@pytest.mark.exhaustive
def test_actors_of_ray_pick_the_same() -> None:
    ray = pytest.importorskip("ray")
    functions: list[Source] = [partial(read_part, 0), read_part(1)]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        result = kcenter_sharded(functions, 100, engine="ray")
        near = kcenter_two_round(functions, 100, engine="ray")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    here = kcenter_sharded(functions, 100)
    assert result.ids.tolist() == here.ids.tolist()
    assert result.radius.tolist() == here.radius.tolist()
    assert result.rounds == here.rounds
    assert near.ids.tolist() == kcenter_two_round(functions, 100).ids.tolist()
