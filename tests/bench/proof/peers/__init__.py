"""One thin adapter a peer: `choose(ask, method) -> rows`, best first. They run in `.venv-peers`, over `.npz` files."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BALANCED = {"C": 0.1, "class_weight": "balanced", "max_iter": 300}  # the learner's settings, where a peer fits its own


class Ask(NamedTuple):
    """The inputs of a peer, which are those of our strategies.

    Args:
        vectors: (n, d) of whole images, unit length.
        open: rows that may be picked. labelled: rows with known labels. present: (labelled, classes) their classes.
        outcome: (n, 1 + classes) the learner's probability that an image is clean or shows each class, with sum 1;
            without rows before the first training.
        members: (5, n, 1 + classes) the same of probes on bootstrap samples, for peers that use a committee.
        count: number of rows to return, at least. seed: of their random choices.
        near: (n, q) for `submodlib.flqmi`: the best window's similarity to each exemplar.
        windows: for `anomalib`: the file of all windows, see `windows_of`. groups: (n,) of the rows.
    """

    vectors: NDArray[np.float32]
    open: NDArray[np.int64]
    labelled: NDArray[np.int64]
    present: NDArray[np.bool_]
    outcome: NDArray[np.float32]
    members: NDArray[np.float32]
    count: int
    seed: int
    near: NDArray[np.float32] = np.zeros((0, 0), np.float32)
    windows: str = ""
    groups: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def single(self) -> NDArray[np.float64]:
        """One label a row, as most peers want them: 0 clean, else 1 + the rarest class shown; NaN where not known."""
        rarity = np.argsort(np.argsort(-self.present.sum(axis=0), kind="stable"))
        found = np.where(self.present.any(axis=1), 1 + np.where(self.present, rarity, -1).argmax(axis=1), 0)
        label = np.full(len(self.vectors), np.nan)
        label[self.labelled] = found
        return label


@lru_cache(maxsize=1)
def windows_of(file: str) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Rows and unit vectors of all windows of the pool."""
    with np.load(file, allow_pickle=False) as kept:
        return kept["rows"], kept["vectors"]


def best(ask: Ask, value: NDArray[np.floating]) -> NDArray[np.int64]:
    """The open rows with the highest values, of a value an open row; of equal ones the lower row."""
    return ask.open[np.lexsort((ask.open, -value))][: ask.count]
