"""Coverage, TypiClust and BADGE against their peers: `python -m tests.bench.bench_coverage`.

One thread, warm, repetitions interleaved, medians; scikit-activeml's ProbCover, which takes a minute, runs once.
The data are drawn: large clusters of Zipf sizes and thirty rare ones, unit vectors of 384 dimensions. The quality
columns say what the picks are worth: the share of rows covered or the RBF objective, the mean distance to the nearest
pick, and how many rare clusters hold a pick.
"""

from __future__ import annotations

import os

os.environ.update(
    {f"{name}_NUM_THREADS": os.environ.get("BENCH_THREADS", "1") for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
)

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.greedy import coverage as module
from curate.greedy.badge import badge, residuals
from curate.greedy.coverage import Gains, coverage, median_bandwidth, prob_cover, targeted
from curate.greedy.neighbours import pairs_above
from curate.greedy.typical import typiclust
from tests.bench._measure import interleaved, once, peak_bytes, print_table

THREADS = os.environ["OMP_NUM_THREADS"]
DIMENSIONS, LARGE, RARE, RARE_SIZE, BUDGET, CLASSES = 384, 100, 30, 20, 500, 10
COVER_GOAL, TYPICAL_GOAL, BADGE_GOAL, DISTANCE_GOAL, OBJECTIVE_GOAL = 20.0, 5.0, 4.0, 1.02, 0.99
Floats = NDArray[np.float32]
Picks = NDArray[np.int64]


# --- data ---------------------------------------------------------------------------------------------------------


def clusters(rows: int) -> tuple[Floats, Picks]:
    """Unit vectors and their clusters; labels from LARGE on are rare. Each cluster has few dimensions of its own."""
    random = np.random.default_rng(0)
    share = np.arange(1, LARGE + 1) ** -0.8
    sizes = random.multinomial(rows - RARE * RARE_SIZE, share / share.sum())
    label = random.permutation(np.repeat(np.arange(LARGE + RARE), [*sizes, *[RARE_SIZE] * RARE]))
    base = 0.8 * random.standard_normal(DIMENSIONS)
    x = np.empty((rows, DIMENSIONS), np.float32)
    for cluster in range(LARGE + RARE):
        inside = np.flatnonzero(label == cluster)
        axes = 0.8 * random.standard_normal((24, DIMENSIONS)) / 24**0.5
        middle = base + random.standard_normal(DIMENSIONS)
        x[inside] = middle + random.standard_normal((len(inside), 24)) @ axes
    x += 0.02 * random.standard_normal(x.shape, np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, label


# --- quality ------------------------------------------------------------------------------------------------------


def covered_by(x: Floats, picks: Picks, kernel: module.Kernel) -> float:
    """The objective, as a share of the rows."""
    cover = np.zeros(len(x), np.float32)
    module._raise(cover, x, x[picks], kernel)
    return float(cover.mean(dtype=np.float64))


def distance(x: Floats, picks: Picks) -> float:
    """The mean distance of a unit vector to its nearest pick."""
    nearest = np.concatenate([(x[lo : lo + 8192] @ x[picks].T).max(axis=1) for lo in range(0, len(x), 8192)])
    return float(np.sqrt(np.maximum(2 - 2 * nearest, 0)).mean())


def recall(label: Picks, picks: Picks) -> float:
    return len(set(label[picks].tolist()) & set(range(LARGE, LARGE + RARE))) / RARE


def verdict(value: float, goal: float, at_most: bool = False) -> str:
    met = value <= goal if at_most else value >= goal
    return f"{'<=' if at_most else '>='} {goal:g} {'met' if met else 'NOT MET'}"


# --- tables -------------------------------------------------------------------------------------------------------


def bench_cover(rows: int) -> None:
    """Ours against scikit-activeml's ProbCover, with the radius that it finds and with that radius given."""
    x, label = clusters(rows)
    seconds, picks, radius = prob_cover_peer(x)
    methods: dict[str, Callable[[], Gains]] = {
        "curate prob_cover, same radius": lambda: prob_cover(x, BUDGET, radius),
        "curate coverage (MaxHerding)": lambda: coverage(x, BUDGET),
    }
    kept = {name: method().picks for name, method in methods.items()} | picks
    seconds |= interleaved(methods, 3)
    kernel, bandwidth = module._ball(radius), median_bandwidth(x, BUDGET)
    table = [
        [
            name,
            f"{seconds[name]:.2f}",
            *(f"{seconds[peer] / seconds[name]:.1f}x" for peer in picks),
            f"{covered_by(x, kept[name], kernel):.4f}",
            f"{covered_by(x, kept[name], module._rbf(bandwidth)):.4f}",
            f"{distance(x, kept[name]):.4f}",
            f"{recall(label, kept[name]):.2f}",
        ]
        for name in seconds
    ]
    print(f"\n{rows:,} rows, budget {BUDGET}, radius {radius:g}")
    print_table(["", "s", *(f"vs {n.split(',')[1]}" for n in picks), "in balls", "RBF", "distance", "rare"], table)
    for peer in picks:
        ratio = seconds[peer] / seconds["curate prob_cover, same radius"]
        print(f"  prob_cover is {ratio:.1f}x {peer}: {verdict(ratio, COVER_GOAL)}")


def prob_cover_peer(x: Floats) -> tuple[dict[str, float], dict[str, Picks], float]:
    if importlib.util.find_spec("skactiveml") is None:
        print("scikit-activeml is not installed (extra `peers`): no ProbCover, no TypiClust")
        return {}, {}, 0.4
    from skactiveml.pool import ProbCover  # type: ignore[import-untyped]

    blank = np.full(len(x), np.nan)
    peer = ProbCover(n_classes=LARGE, random_state=0)
    seconds, picks = once(lambda: peer.query(x, blank, batch_size=BUDGET))
    radius = float(peer.delta_max_)
    given = ProbCover(n_classes=LARGE, deltas=[radius], random_state=0)
    again, more = once(lambda: given.query(x, blank, batch_size=BUDGET))
    names = ("skactiveml ProbCover,searching", "skactiveml ProbCover,given")
    return dict(zip(names, (seconds, again), strict=True)), dict(zip(names, (picks, more), strict=True)), radius


def bench_pool(rows: int) -> None:
    """A pool of candidates against all of them, where both are bearable."""
    x, label = clusters(rows)
    bandwidth = median_bandwidth(x, BUDGET)
    pooled = once(lambda: coverage(x, BUDGET, pool=module._POOL))
    exact = once(lambda: coverage(x, BUDGET, pool=rows))
    table = [
        [name, f"{seconds:.1f}", f"{covered_by(x, found.picks, module._rbf(bandwidth)):.4f}",
         f"{distance(x, found.picks):.4f}", f"{recall(label, found.picks):.2f}"]
        for name, (seconds, found) in (("with a pool", pooled), ("all candidates", exact))
    ]  # fmt: skip
    print(f"\ncoverage of {rows:,} rows, budget {BUDGET}")
    print_table(["", "s", "RBF", "distance", "rare"], table)
    ratio = float(pooled[1].gains.sum() / exact[1].gains.sum())
    print(f"  objective with a pool: {ratio:.4f} of all candidates': {verdict(ratio, OBJECTIVE_GOAL)}")


def bench_typical(rows: int, repetitions: int) -> None:
    x, label = clusters(rows)
    methods: dict[str, Callable[[], Any]] = {
        "curate typiclust": lambda: typiclust(x, BUDGET, rng=np.random.default_rng(0)).picks
    }
    if importlib.util.find_spec("skactiveml") is not None:
        from skactiveml.pool import TypiClust  # type: ignore[import-untyped]

        blank = np.full(len(x), np.nan)
        methods["skactiveml TypiClust"] = lambda: TypiClust(random_state=0).query(x, blank, batch_size=BUDGET)
    seconds = interleaved(methods, repetitions)
    picks = {name: method() for name, method in methods.items()}
    far = {name: distance(x, found) for name, found in picks.items()}
    ours = next(iter(seconds))
    table = [
        [name, f"{seconds[name]:.2f}", f"{seconds[name] / seconds[ours]:.1f}x", f"{far[name]:.4f}",
         f"{recall(label, picks[name]):.2f}"]
        for name in methods
    ]  # fmt: skip
    print(f"\n{rows:,} rows, budget {BUDGET}")
    print_table(["", "s", "ours is", "distance", "rare"], table)
    for name in list(methods)[1:]:
        print(f"  {verdict(seconds[name] / seconds[ours], TYPICAL_GOAL)}; distance {far[ours] / far[name]:.3f} of its: "
              f"{verdict(far[ours] / far[name], DISTANCE_GOAL, at_most=True)}")  # fmt: skip


def materialised(vectors: Floats, left: Floats, budget: int) -> Picks:
    """BADGE as usually written, in single precision and with the row-wise distance as one product."""
    random = np.random.default_rng(0)
    every = (vectors[:, :, None] * left[:, None, :]).reshape(len(vectors), -1)
    squares = np.einsum("ij,ij->i", every, every)
    picks, nearest = [int(np.argmax(squares))], np.full(len(every), np.inf)
    while len(picks) < budget:
        found = squares + squares[picks[-1]] - 2 * (every @ every[picks[-1]])
        nearest = np.minimum(nearest, np.maximum(found, 0))
        nearest[picks] = 0
        reach = np.cumsum(nearest)
        picks.append(int(np.searchsorted(reach, random.random() * reach[-1], side="right")))
    return np.array(picks)


def bench_badge(rows: int, confidence: float, repetitions: int) -> None:
    x, _ = clusters(rows)
    scores = confidence * np.random.default_rng(1).standard_normal((rows, CLASSES))
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    left = residuals(odds / odds.sum(axis=1, keepdims=True))
    methods: dict[str, Callable[[], Any]] = {
        "curate badge": lambda: badge(x, left, BUDGET, np.random.default_rng(0)),
        "materialised": lambda: materialised(x, left, BUDGET),
    }
    seconds = interleaved(methods, repetitions)
    ratio = seconds["materialised"] / seconds["curate badge"]
    same = float(np.mean(methods["curate badge"]() == methods["materialised"]()))
    print(f"\nBADGE, {rows:,} rows, {CLASSES} classes, logits spread by {confidence:g}, budget {BUDGET}")
    print_table(["", "s"], [[name, f"{value:.2f}"] for name, value in seconds.items()])
    print(f"  {ratio:.1f}x: {verdict(ratio, BADGE_GOAL)}; {same:.0%} of the picks are the same")


def bench_others(rows: int) -> None:
    x, _ = clusters(rows)
    x[-50:] = x[:50]
    seconds, pairs = once(lambda: pairs_above(x, 0.98))
    print(f"\npairs_above 0.98 in {rows:,} rows: {seconds:.1f} s, {len(pairs[0])} pairs")
    seconds, found = once(lambda: targeted(x, x[:100], BUDGET, negatives=x[100:300]))
    print(f"targeted, {rows:,} rows, 100 exemplars, 200 negatives: {seconds:.1f} s, {len(found.picks)} picks")


def bench_large(rows: int) -> None:
    x, label = clusters(rows)
    seconds, found = once(lambda: coverage(x, BUDGET))
    worth, rare = found.gains.sum() / rows, recall(label, found.picks)
    print(f"\ncoverage of {rows:,} rows, budget {BUDGET}: {seconds:.1f} s, peak {peak_bytes() / 1e9:.1f} GB")
    print(f"  RBF {worth:.4f}, rare {rare:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="also 50,000 rows, some minutes")
    parser.add_argument("--large", action="store_true", help="only coverage of 200,000 rows; try BENCH_THREADS=2")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", module="skactiveml")
    print(f"{THREADS} thread(s), {DIMENSIONS} dimensions")
    if chosen.large:
        bench_large(200_000)
        return
    coverage(clusters(2000)[0], 5, pool=100)
    bench_cover(10_000)
    for rows in (10_000, 50_000) if chosen.full else (10_000,):
        bench_typical(rows, chosen.repetitions if rows == 10_000 else 1)
    for confidence in (1.0, 5.0):
        bench_badge(10_000, confidence, chosen.repetitions)
    bench_pool(50_000 if chosen.full else 20_000)
    bench_others(50_000 if chosen.full else 20_000)


if __name__ == "__main__":
    main()
