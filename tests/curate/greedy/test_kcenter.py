"""Farthest-first selection: the picks of the plain method, whatever the data; and how little it computes for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.greedy import kcenter as module
from curate.greedy.kcenter import Centers, kcenter

Floats = NDArray[Any]
Distances = Callable[[Floats, Floats], Floats]


def by_kernel(x: Floats, point: Floats) -> Floats:
    return module.distances_to(module.readable(x), np.arange(len(x)), point.astype(np.float32))


def by_numpy(x: Floats, point: Floats) -> Floats:
    """In double precision: exact for the whole numbers that some tests use."""
    differences: Floats = x.astype(np.float64) - point.astype(np.float64)
    return np.asarray(np.square(differences).sum(axis=1))


def plain(
    x: Floats,
    budget: int,
    covered: NDArray[np.int64] | None = None,
    candidates: NDArray[np.bool_] | None = None,
    distances: Distances = by_kernel,
) -> tuple[list[int], list[float]]:
    """One full pass over the rows for each centre, as in any textbook."""
    left = np.ones(len(x), bool) if candidates is None else candidates.copy()
    best = np.full(len(x), np.inf)
    for row in [] if covered is None else covered:
        left[row] = False
        best = np.minimum(best, distances(x, x[row]))
    picks: list[int] = []
    radius: list[float] = []
    for _ in range(min(budget, int(left.sum()))):
        if picks or (covered is not None and len(covered)):
            row = int(np.argmax(np.where(left, best, -1)))
        else:
            row = int(np.argmin(np.where(left, distances(x, middle(x, left)), np.inf)))
        picks.append(row)
        radius.append(float(np.sqrt(np.float32(best[row]))))
        left[row] = False
        best = np.minimum(best, distances(x, x[row]))
    return picks, radius


def middle(x: Floats, left: NDArray[np.bool_]) -> Floats:
    vectors = module.readable(x)
    return module.mean_of(vectors, np.flatnonzero(left), module.largest_value(vectors))


def same(result: Centers, expected: tuple[list[int], list[float]]) -> None:
    assert result.picks.tolist() == expected[0]
    assert result.radius.tolist() == expected[1]


def clustered(rows: int, dimensions: int, clusters: int = 20, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, dimensions))
    spread = random.uniform(0.05, 0.5, clusters)
    which = random.integers(clusters, size=rows)
    return (centres[which] + spread[which][:, None] * random.standard_normal((rows, dimensions))).astype(np.float32)


def drawn(kind: str, rows: int, dimensions: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    if kind == "gaussian":
        return random.standard_normal((rows, dimensions)).astype(np.float32)
    if kind == "clustered":
        return clustered(rows, dimensions, 5, seed)
    if kind == "far away":  # rounding is large beside the distances
        return (1000 + 0.01 * random.standard_normal((rows, dimensions))).astype(np.float32)
    if kind == "vanishing":  # squares lose bits, or all of them
        return (1e-22 * random.standard_normal((rows, dimensions))).astype(np.float32)
    if kind == "on a line":  # the triangle inequality is tight
        return (random.integers(0, 64, (rows, 1)) * np.ones(dimensions) * 0.1).astype(np.float32)
    return random.integers(0, 3, (rows, dimensions)).astype(np.float32)


KINDS = ["gaussian", "clustered", "far away", "vanishing", "on a line", "whole numbers"]
CASES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "rows": st.integers(1, 120),
        "dimensions": st.sampled_from([1, 2, 3, 17, 130, 384, 800]),
        "budget": st.integers(0, 130),
        "covered": st.integers(0, 90),
        "candidates": st.sampled_from([0.0, 0.1, 0.7, 1.0]),
        "half": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(CASES)
def test_picks_are_those_of_the_plain_method(case: dict[str, Any]) -> None:
    random = np.random.default_rng(case["seed"])
    x = drawn(case["kind"], case["rows"], case["dimensions"], case["seed"])
    x = x.astype(np.float16) if case["half"] else x
    covered = random.integers(0, len(x), case["covered"])
    candidates = random.random(len(x)) < case["candidates"]
    result = kcenter(x, case["budget"], covered=covered, candidates=candidates)
    same(result, plain(x, case["budget"], covered, candidates))
    assert len(set(result.picks.tolist())) == len(result.picks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_covered", [False, True])
def test_larger_tables(kind: str, with_covered: bool) -> None:
    x = drawn(kind, 4000, 96, 1)
    covered = np.arange(0, 4000, 13) if with_covered else None
    candidates = np.random.default_rng(2).random(4000) < 0.8
    same(kcenter(x, 200, covered=covered, candidates=candidates), plain(x, 200, covered, candidates))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(1, 40), st.integers(0, 3))
def test_picks_by_independent_arithmetic(seed: int, rows: int, dimensions: int, covered: int) -> None:
    """Whole numbers leave nothing to rounding, so that numpy in double precision must agree, ties included."""
    random = np.random.default_rng(seed)
    x = random.integers(-4, 5, (rows, dimensions)).astype(np.float32)
    known = random.integers(0, rows, covered)
    same(kcenter(x, rows, covered=known), plain(x, rows, known, distances=by_numpy))


@pytest.mark.slow
def test_many_covered_rows() -> None:
    """More covered rows than one matrix product takes, some shared by enough rows to help in pruning."""
    x: Floats = np.concatenate([clustered(3000, 24, 10), drawn("far away", 3000, 24, 3)])
    covered = np.concatenate([[0, 5], np.arange(2999, 6000)])
    result = kcenter(x, 150, covered=covered)
    same(result, plain(x, 150, covered))
    assert result.computed < 0.5 * 3000 * 150


def test_covered_rows_may_repeat_and_come_in_any_order() -> None:
    x = clustered(500, 8)
    assert kcenter(x, 20, covered=np.array([7, 3, 7])).picks.tolist() == plain(x, 20, np.array([3, 7]))[0]


def test_duplicates_come_last_in_row_order() -> None:
    x = clustered(20, 16)[np.arange(60) // 3]
    result = kcenter(x, 60)
    assert sorted(result.picks.tolist()) == list(range(60))
    assert set(result.picks[:20].tolist()) == set(range(0, 60, 3))
    assert result.picks[20:].tolist() == [row for row in range(60) if row % 3]
    assert not result.radius[20:].any()


def test_the_radius_never_grows() -> None:
    result = kcenter(clustered(2000, 32), 300)
    assert np.isinf(result.radius[0])
    assert (np.diff(result.radius[1:]) <= 0).all()


def test_the_first_pick_does_not_depend_on_the_order() -> None:
    x = clustered(3000, 32)
    order = np.random.default_rng(5).permutation(3000)
    assert (order[kcenter(x[order], 50).picks] == kcenter(x, 50).picks).all()


def test_the_mean_is_a_mean() -> None:
    x = clustered(5000, 40) + 3
    vectors = module.readable(x)
    mean = module.mean_of(vectors, np.arange(5000), module.largest_value(vectors))
    assert np.abs(mean - x.astype(np.float64).mean(axis=0)).max() < 1e-5


def test_half_precision_is_read_as_it_is() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 2)
    assert (module.widen(module.readable(finite), np.arange(len(finite))) == finite.astype(np.float32)).all()
    near = by_kernel(finite, np.zeros(2, np.float32))
    wide = finite.astype(np.float32)
    assert np.allclose(near, (wide**2).sum(axis=1), rtol=1e-6, atol=0)
    assert kcenter(finite[:3000], 40).picks.tolist() == kcenter(wide[:3000], 40).picks.tolist()


@pytest.mark.parametrize("data_type", [np.float16, np.float32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(data_type: type, bad: float) -> None:
    x: Floats = clustered(50, 8).astype(data_type)
    x[20, 3] = bad
    with pytest.raises(ValueError, match="NaN, infinite"):
        kcenter(x, 5)


def test_what_else_is_refused() -> None:
    x = clustered(50, 8)
    with pytest.raises(ValueError, match="huge"):
        kcenter(x * np.float32(1e30), 5)
    with pytest.raises(TypeError, match="float64"):
        kcenter(x.astype(np.float64), 5)
    with pytest.raises(ValueError, match="there are 50 rows"):
        kcenter(x, 5, covered=np.array([50]))
    with pytest.raises(ValueError, match="candidates has shape"):
        kcenter(x, 5, candidates=np.ones(49, bool))


def test_nothing_to_pick() -> None:
    x = clustered(50, 8)
    assert kcenter(x, 0).picks.size == 0
    assert kcenter(x[:0], 5).picks.size == 0
    assert kcenter(x, 5, candidates=np.zeros(50, bool)).picks.size == 0
    assert kcenter(x, 99).picks.size == 50


def test_rows_may_lie_apart_in_memory() -> None:
    x = clustered(400, 20)
    wide = np.asfortranarray(x)
    assert kcenter(wide, 30).picks.tolist() == kcenter(x, 30).picks.tolist()
    assert kcenter(wide[::2], 30).picks.tolist() == kcenter(x[::2].copy(), 30).picks.tolist()


def test_few_distances_are_computed() -> None:
    x = clustered(20_000, 32, 100)
    assert kcenter(x, 300).computed < 0.2 * len(x) * 300


def test_the_input_stays_as_it_is() -> None:
    x = clustered(300, 8)
    copy, candidates = x.copy(), np.ones(300, bool)
    kcenter(x, 30, covered=np.array([3]), candidates=candidates)
    assert (x == copy).all()
    assert candidates.all()


@pytest.mark.slow
def test_compiled_code_is_kept() -> None:
    """A second process compiles nothing."""
    kcenter(clustered(100, 8), 5)
    code = (
        "import numpy as np\n"
        "from curate.greedy import kcenter as m\n"
        "m.kcenter(np.ones((100, 8), np.float32), 5)\n"
        "print(sum(m._search.stats.cache_misses.values()), sum(m._search.stats.cache_hits.values()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "1"]


@pytest.mark.parametrize("spread", [0.0, 3.0, 30.0])
def test_many_covered_rows_are_compared_by_cells_and_the_picks_stay(spread: float, monkeypatch: Any) -> None:
    """Noise, overlapping and far clouds; a second call with more covered rows keeps what the first one computed."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3000, 24)).astype(np.float32)
    x += spread * rng.standard_normal((40, 24)).astype(np.float32)[rng.integers(40, size=len(x))]
    covered, open_rows = np.sort(rng.choice(len(x), 500, replace=False)), rng.random(len(x)) < 0.8
    whole = kcenter(x, 90, covered=covered, candidates=open_rows)
    later = np.union1d(covered, whole.picks[:40])
    after = kcenter(x, 90, covered=later, candidates=open_rows)
    few = kcenter(x, 20, covered=covered[:50], candidates=open_rows)
    for first, each in ((1, 0), (1024, 4)):
        monkeypatch.setattr(module, "_MANY", 1)
        monkeypatch.setattr(module, "_FIRST", first)
        monkeypatch.setattr(module, "_EACH", each)
        bounds: list[module.CoverBounds] = []
        found = kcenter(x, 90, covered=covered, candidates=open_rows, bounds=bounds)
        assert np.array_equal(found.picks, whole.picks)
        assert np.array_equal(found.radius, whole.radius)
        again = kcenter(x, 90, covered=later, candidates=open_rows, bounds=bounds)
        assert np.array_equal(again.picks, after.picks)
        assert np.array_equal(again.radius, after.radius)
        assert len(bounds[0].covered) == len(later)
        other = kcenter(x, 20, covered=covered[:50], candidates=open_rows, bounds=bounds)  # not grown: begun anew
        assert np.array_equal(other.picks, few.picks)
