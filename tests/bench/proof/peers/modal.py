"""modAL-python 0.4.2.1 (MIT): uncertainty, margin and entropy sampling of the learner's probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask


class _Learnt:
    """An estimator whose rows are its own probabilities."""

    def predict_proba(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        return probabilities


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    from modAL import uncertainty

    sampling = {"uncertainty": "uncertainty_sampling", "margin": "margin_sampling", "entropy": "entropy_sampling"}
    count = min(ask.count, len(ask.open))
    found = getattr(uncertainty, sampling[method])(_Learnt(), ask.outcome[ask.open], n_instances=count)
    return ask.open[found[0] if isinstance(found, tuple) else found]
