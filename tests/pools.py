"""Drawn pools: kinds of images as clouds of vectors, a rare kind among them, in groups and strata."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from curate.select.pool import Exemplars, Pool, Windows

CLASSES = ("scratch", "patch", "blister")
DIM = 24


def drawn(
    n: int = 300,
    seed: int = 0,
    labelled: int = 60,
    rare: int = 12,
    order: np.ndarray | None = None,
    exemplars: bool = True,
) -> Pool:
    """`rare` images of `blister`, many of the others; three exemplars of the former. `order`: how rows come in."""
    rng = np.random.default_rng(seed)
    kind = np.array([2] * rare + [i % 5 if i % 5 < 2 else -1 for i in range(n - rare)])
    kind = kind[rng.permutation(n)]
    centres = rng.standard_normal((4, DIM)) * 1.2
    vectors = centres[kind] + rng.standard_normal((n, DIM)) * 0.6 + 2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.array([f"{value:064x}" for value in rng.integers(0, 2**62, n)])
    columns = {
        "vectors": vectors.astype(np.float32),
        "kind": kind,
        "groups": np.arange(n) // 3,
        "strata": np.arange(n) % 4,
        "labelled": np.isin(np.arange(n), rng.choice(np.flatnonzero(kind != 2), labelled, replace=False)),
    }
    if order is not None:
        ids, columns = ids[order], {name: values[order] for name, values in columns.items()}
    return _pool(ids, columns, exemplars)


def _pool(ids: np.ndarray, columns: dict[str, np.ndarray], exemplars: bool) -> Pool:
    by_id = np.argsort(ids)
    ids, columns = ids[by_id], {name: values[by_id] for name, values in columns.items()}
    kind, known = columns["kind"], columns["labelled"]
    present = (kind[:, None] == np.arange(len(CLASSES))) & known[:, None]
    pool = Pool(
        ids=tuple(ids.tolist()),
        vectors=columns["vectors"],
        candidates=~known,
        labelled=known,
        present=present,
        classes=CLASSES,
        groups=columns["groups"],
        strata=columns["strata"],
        stratum_names=("a", "b", "c", "d"),
    )
    if not exemplars:
        return pool
    shown = np.flatnonzero(kind == 2)[:3]
    candidates = pool.candidates.copy()
    candidates[shown] = False
    which = Exemplars(
        tuple(pool.ids[row] for row in shown), np.full(len(shown), -1, np.int16), pool.vectors[shown], ("blister",) * 3
    )
    return replace(pool, candidates=candidates, population=candidates, exemplars=which)


def with_tiles(pool: Pool, seed: int = 0) -> Pool:
    """Two tiles an image beside the image itself: one like it, one of nothing in particular."""
    rng = np.random.default_rng(seed)
    n = len(pool)
    other = rng.standard_normal(pool.vectors.shape).astype(np.float32) + 2
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    rows = np.arange(n)
    parts = [
        Windows(rows, np.full(n, tile, np.int16), vectors)
        for tile, vectors in ((-1, pool.vectors), (0, other), (1, pool.vectors))
    ]
    return replace(pool, windows=lambda: iter(parts), memo={}, lasting={})


def kinds(pool: Pool, ids: list[str]) -> list[int]:
    """Truth of a pool that `drawn` made with its defaults."""
    rng = np.random.default_rng(0)
    n, rare = len(pool), 12
    kind = np.array([2] * rare + [i % 5 if i % 5 < 2 else -1 for i in range(n - rare)])[rng.permutation(n)]
    rng.standard_normal((4, DIM))
    rng.standard_normal((n, DIM))
    names = [f"{value:064x}" for value in rng.integers(0, 2**62, n)]
    truth = dict(zip(names, kind.tolist(), strict=True))
    return [truth[id] for id in ids]
