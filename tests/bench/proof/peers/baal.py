"""baal 2.1.0 (Apache-2.0): BALD and entropy of a committee of five probes on bootstrap samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    from baal.active import heuristics

    rank = {"bald": heuristics.BALD, "entropy": heuristics.Entropy}[method]()
    order = rank(np.moveaxis(ask.members[:, ask.open], 0, -1))  # (rows, outcomes, members)
    return ask.open[np.asarray(order, np.int64)][: ask.count]
