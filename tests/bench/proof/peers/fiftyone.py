"""FiftyOne Brain 0.25 (Apache-2.0): uniqueness, of the same vectors; it runs in the product's own environment."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask, best


class _Index:
    """Its similarity index without a database: exact neighbours, which its own default backend gives, too."""

    config = SimpleNamespace(method="sklearn")

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors

    def _kneighbors(self, k: int, return_dists: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        from curate.greedy.neighbours import nearest

        similarity, index = nearest(self.vectors, self.vectors, k)
        return index, 1 - similarity


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    from fiftyone.brain.internal.core.uniqueness import _compute_uniqueness

    return best(ask, np.asarray(_compute_uniqueness(ask.vectors, _Index(ask.vectors)))[ask.open])
