"""cleanlab 2.9.0 (Apache-2.0): ActiveLab's scores of unlabelled images, lowest first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask, best


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    import pandas as pd
    from cleanlab.multiannotator import get_active_learning_scores

    given = pd.DataFrame({"annotator": ask.single[ask.labelled].astype(int)})
    known, other = ask.outcome[ask.labelled], ask.outcome[ask.open]
    _, scores = get_active_learning_scores(given, known.astype(np.float64), other.astype(np.float64))
    return best(ask, -scores)
