"""A class-balanced linear probe on the vectors: used until a model is trained; a strong baseline."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.select.pool import Floats, Mask, Pool

FEWEST = 2  # images that must show a class, and must not, before it can be told apart
MOST = 20_000  # labelled images that a probe is fitted on
STRENGTH = 0.1  # of the fit against the penalty on large weights
RANKING, REST = 10.0, 5000  # of `ranking`: the strength of its fit, and the negatives that it takes


def probabilities(pool: Pool) -> Floats:
    """(n, classes): the probability that each image shows each class. NaN where a class has too few labels."""
    return pool.once("probe", lambda: predict(_scaled_back(pool, *_labelled(pool)), pool.vectors))


def has_classes(pool: Pool) -> bool:
    """True when at least one class has enough labels for a probe."""
    positives = pool.present[pool.trainable].sum(axis=0)
    return bool(((positives >= FEWEST) & (pool.trainable.sum() - positives >= FEWEST)).any())


def ensemble(pool: Pool, members: int, rng: np.random.Generator) -> Floats:
    """(members, n, classes): probes fitted on bootstrap samples of the labelled images."""
    vectors, present = _labelled(pool)
    draws = (rng.integers(len(vectors), size=len(vectors)) for _ in range(members))
    return np.stack([predict(_scaled_back(pool, vectors[draw], present[draw]), pool.vectors) for draw in draws])


def ranking(pool: Pool, wanted: Mask) -> Floats:
    """(n,): the probability that each image is of the wanted kind.

    The negatives are labelled images of other kinds, or all unlabelled ones where there are too few of these.
    """
    from sklearn.linear_model import LogisticRegression

    others = np.flatnonzero(pool.trainable & ~wanted)
    if len(others) < FEWEST:
        others = np.flatnonzero(~pool.labelled)
    rows = np.union1d(np.flatnonzero(wanted), others[:: max(1, len(others) // REST)])
    model: Any = LogisticRegression(C=RANKING, class_weight="balanced", max_iter=1000)
    model.fit(pool.vectors[rows], wanted[rows])
    return predict(np.concatenate([model.coef_[0], model.intercept_]), pool.vectors)


def _scaled_back(pool: Pool, vectors: Floats, present: Mask) -> Floats:
    """Fit on standardised vectors, which halves the errors on texture; return weights for plain vectors."""
    sample = pool.vectors[:: max(1, len(pool) // MOST)]
    mean, spread = sample.mean(axis=0), np.maximum(sample.std(axis=0), 1e-6)
    fitted = weights((vectors - mean) / spread, present)
    slope = fitted[:-1] / spread[:, None]
    return np.asarray(np.vstack([slope, fitted[-1] - mean @ slope]), np.float32)


def _labelled(pool: Pool) -> tuple[Floats, Mask]:
    rows = np.flatnonzero(pool.trainable)
    if len(rows) > MOST:
        shows = pool.present[rows].any(axis=1)
        clean = rows[~shows][:: max(1, (~shows).sum() // max(1, MOST - shows.sum()))]
        rows = np.sort(np.concatenate([rows[shows], clean]))[:MOST]
    return pool.vectors[rows], pool.present[rows]


def weights(vectors: Floats, present: Mask) -> NDArray[np.float32]:
    """(d + 1, classes): one balanced logistic regression a class; NaN for classes with too few labels."""
    fitted = np.full((vectors.shape[1] + 1, present.shape[1]), np.nan, np.float32)
    for number in range(present.shape[1]):
        positives = int(present[:, number].sum())
        if min(positives, len(present) - positives) >= FEWEST:
            fitted[:, number] = _fitted(vectors, present[:, number])
    return fitted


def _fitted(vectors: Floats, shows: Mask) -> NDArray[np.float32]:
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not fully converged ranks just as well
        model.fit(vectors, shows)
    return np.asarray(np.concatenate([model.coef_[0], model.intercept_]), np.float32)


def predict(fitted: NDArray[np.float32], vectors: Floats) -> Floats:
    """Probabilities (n,) or (n, classes) by fitted weights."""
    logits = vectors @ fitted[:-1] + fitted[-1]
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)
