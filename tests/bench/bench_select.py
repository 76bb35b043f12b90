"""The whole choice on drawn vectors: `python -m tests.bench.bench_select [--sizes 20000,200000,1000000] [--tiles 4]`.

A portfolio of 500 images under all rules, from a labelled twentieth and five exemplars of a rare kind; beside it each
strategy of its slots alone, and uniformly random as the floor. Tiles are streamed, as they are from disk: each is its
image's vector, bent. Seconds, on the clock and of all cores together (on a shared machine the clock says little), the
memory at its peak over the float32 input, and the rare images found; the portfolio's seconds by slot.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from curate import workers
from curate.select.pool import WHOLE, Exemplars, Picks, Pool, Windows
from curate.select.rules import BARE, SelectionRules, choose
from curate.strategies import portfolio
from curate.vectors import nearest
from tests.bench._measure import once, peak_bytes, print_table

DIM, BUDGET, KINDS, STEP = 384, 500, 200, 65536
STRATEGIES = (
    *("portfolio", "random", "rare", "window_probe", "class_stratified", "anomaly", "maxherding", "kcenter", "audit"),
)
CLASSES = ("scratch", "patch", "blister")


def drawn(n: int, tiles: int) -> tuple[Pool, np.ndarray]:
    """Kinds of very different sizes; one image in a thousand is of the rare kind."""
    rng = np.random.default_rng(0)
    share = rng.pareto(1.2, KINDS) + 0.05
    kind = rng.choice(KINDS, n, p=share / share.sum())
    rare = rng.random(n) < 0.001
    kind[rare] = KINDS
    centres = rng.standard_normal((KINDS + 1, DIM), dtype=np.float32)
    vectors = np.empty((n, DIM), np.float32)
    for start in range(0, n, STEP):
        part = centres[kind[start : start + STEP]] + 1.2 * rng.standard_normal((min(STEP, n - start), DIM), np.float32)
        vectors[start : start + STEP] = part / np.linalg.norm(part, axis=1, keepdims=True)
    labelled = (rng.random(n) < 0.05) & ~rare
    present = np.stack([kind % 3 == 0, kind % 3 == 1, rare], axis=1) & labelled[:, None]
    shown = np.flatnonzero(rare)[:5]
    candidates = ~labelled
    candidates[shown] = False
    ids = tuple(f"{row:08d}" for row in range(n))
    pool = Pool(
        ids=ids,
        vectors=vectors,
        candidates=candidates,
        labelled=labelled,
        present=present,
        classes=CLASSES,
        groups=np.arange(n) // 5,
        strata=np.arange(n) % 4,
        stratum_names=("a", "b", "c", "d"),
        exemplars=Exemplars(tuple(ids[row] for row in shown), np.zeros(5, np.int16), vectors[shown], ("blister",) * 5),
    )
    return replace(pool, windows=_stream(pool, tiles)), rare


def _stream(pool: Pool, tiles: int):  # type: ignore[no-untyped-def]
    mix = np.random.default_rng(1).standard_normal((tiles, DIM), dtype=np.float32) * 0.02

    def windows() -> Iterator[Windows]:
        for start in range(0, len(pool), STEP):
            rows = np.arange(start, min(start + STEP, len(pool)))
            yield Windows(rows, np.full(len(rows), WHOLE, np.int16), pool.vectors[rows])
            for tile in range(tiles):
                yield Windows(rows, np.full(len(rows), tile, np.int16), pool.vectors[rows] + mix[tile])

    return windows


def _timed(slot: str, parts: Counter[str]) -> Callable[..., Picks]:
    strategy = portfolio.SLOTS[slot]

    def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
        seconds, picks = once(lambda: strategy(pool, budget, rng))
        parts[slot] += seconds  # type: ignore[assignment]
        return picks

    return select


def compare(n: int, tiles: int, strategies: list[str]) -> None:
    pool, rare = drawn(n, tiles)
    parts = Counter[str]()
    portfolio.SLOTS |= {slot: _timed(slot, parts) for slot in portfolio.SLOTS}
    size = pool.vectors.nbytes
    rules = SelectionRules(near=nearest.cosine_at(pool.vectors, 0.15))
    rows = []
    for name in strategies:
        fresh = replace(pool, memo={}, lasting={})
        begin = time.process_time()
        seconds, batch = once(lambda: choose(fresh, name, BUDGET, 0, BARE if name == "random" else rules))  # noqa: B023
        busy = time.process_time() - begin
        found = int(rare[pool.rows_of([pick.id for pick in batch.picks])].sum())
        memory = f"{peak_bytes() / size:.2f}x ({peak_bytes() / 2**30:.1f} GiB)"
        rows.append([name, f"{seconds:.2f}", f"{busy:.2f}", f"{found}", memory])
        gc.collect()
    print(f"\n{n:,} images of {tiles} tiles, d={DIM}, budget {BUDGET}, {int(rare.sum())} rare ones")
    print_table(["strategy", "s", "cpu s", "rare found", "peak / input"], rows)
    print("portfolio by slot:", ", ".join(f"{slot} {seconds:.1f} s" for slot, seconds in parts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="20000,200000")
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    given = parser.parse_args()
    workers.reuse_freed_memory()  # as `curate select` does
    for size in given.sizes.split(","):
        compare(int(size), given.tiles, given.strategies.split(","))


if __name__ == "__main__":
    main()
