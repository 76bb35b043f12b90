"""lightly-mundig 0.1.16 (MIT), the engine of Lightly's selection: the diversity strategy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    from lightly_mundig import Selection

    known = [int(row) for row in ask.labelled]
    rows = np.concatenate([ask.labelled, ask.open])
    selection = Selection()
    selection.add_diversifying_strategy(np.ascontiguousarray(ask.vectors[rows]), 1.0)
    count = len(known) + min(ask.count, len(ask.open))
    found = selection.run_selection(list(range(len(known))), len(rows), count)
    return rows[[place for place in found if place >= len(known)]]
