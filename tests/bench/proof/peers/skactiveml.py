"""scikit-activeml 1.0.1 (BSD-3-Clause): TypiClust, CoreSet, BADGE, ProbCover."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import BALANCED, Ask

COVERED = 4000  # rows up to which ProbCover's table of all distances is bearable


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    from skactiveml import pool

    if method == "probcover" and len(ask.vectors) > COVERED:
        raise MemoryError(f"ProbCover holds all {len(ask.vectors):,} x {len(ask.vectors):,} distances")
    name = {"typiclust": "TypiClust", "coreset": "CoreSet", "badge": "Badge", "probcover": "ProbCover"}[method]
    given: dict[str, Any] = {"n_classes": ask.present.shape[1] + 1} if method == "probcover" else {}
    query = getattr(pool, name)(random_state=ask.seed, **given)
    more = {"clf": _learner(ask)} if method == "badge" else {}
    found = query.query(ask.vectors, ask.single, candidates=ask.open, batch_size=min(ask.count, len(ask.open)), **more)
    return np.asarray(found, np.int64)


def _learner(ask: Ask) -> Any:
    from skactiveml.classifier import SklearnClassifier
    from sklearn.linear_model import LogisticRegression

    return SklearnClassifier(LogisticRegression(**BALANCED), classes=range(ask.present.shape[1] + 1), random_state=0)
