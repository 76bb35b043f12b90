"""Learners that a simulation trains on the labels it has bought: a linear probe here, networks in `networks.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.select import uncertainty as scores
from curate.select.pool import Floats, Mask, Rows
from train.simulate.oracle_dataset import OracleDataset

STRENGTH = 0.1  # inverse strength of the L2 penalty, as in `curate.select.linear_probe`
STEPS = 200
THRESHOLD = 0.5
Numbers = NDArray[np.float64]


class LearnerOutput(NamedTuple):
    """A learner's predictions on every row: probability of each class, decision for each class, and uncertainty."""

    probability: Floats
    shows: Mask
    uncertainty: Floats

    def scores(self) -> dict[str, Floats]:
        """Return score arrays as `curate predict` writes them."""
        by_class = scores.class_entropy(self.probability)
        return {"probability": self.probability, "class_entropy": by_class, "uncertainty": self.uncertainty}


Learner = Callable[[Rows], LearnerOutput | None]
"""Trains on the labels of these rows alone and predicts all rows. None: there are too few classes to train on yet."""


def probe(oracle: OracleDataset) -> Learner:
    """Make a class-balanced logistic regression on the vectors: one softmax where no image shows two classes."""
    features, truth = _standardised(oracle), outputs(oracle)

    def learn(rows: Rows) -> LearnerOutput | None:
        shown = truth[rows].sum(axis=0)
        known = np.flatnonzero(shown if oracle.single else shown * (len(rows) - shown))
        if len(known) < 1 + oracle.single:
            return None
        weights = fit_weights(features[rows], truth[np.ix_(rows, known)], oracle.single)
        logits = np.full(truth.shape, -np.inf)
        logits[:, known] = features @ weights[:-1].astype(np.float32) + weights[-1]
        return as_output(_softmax(logits) if oracle.single else _sigmoid(logits), len(oracle.classes), oracle.single)

    return learn


def outputs(oracle: OracleDataset) -> Mask:
    """Return (n, C) labels, with a column for clean where classes exclude each other and some image is clean."""
    clean = ~oracle.present.any(axis=1, keepdims=True)
    return np.hstack([oracle.present, clean]) if oracle.single and clean.any() else oracle.present


def as_output(p: Numbers, classes: int, single: bool) -> LearnerOutput:
    """Return the learner's output from the probabilities of all outputs."""
    likely = np.asarray(p[:, :classes], np.float32)
    best = np.arange(p.shape[1]) == p.argmax(axis=1)[:, None]
    shows = best[:, :classes] if single else likely >= THRESHOLD
    return LearnerOutput(likely, shows, scores.entropy(p) if single else scores.predictive_entropy_multilabel(likely))


def _standardised(oracle: OracleDataset) -> Floats:
    """Standardise every dimension over the pooled rows, without using labels."""
    sample = oracle.vectors[np.flatnonzero(oracle.pooled)]
    mean, spread = sample.mean(axis=0), np.maximum(sample.std(axis=0), 1e-6)
    return np.asarray((oracle.vectors - mean) / spread, np.float32)


def _softmax(logits: Numbers) -> Numbers:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoid(logits: Numbers) -> Numbers:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))


def fit_weights(features: Floats, shown: Mask, single: bool) -> Numbers:
    """Fit (d + 1, K) weights, intercepts last, in double precision. Every class weighs the same."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    points, basis = _reduced(features.astype(np.float64))
    weight = _loss_weights(shown, single)
    shape, pull = (points.shape[1] + 1, shown.shape[1]), 1 / (STRENGTH * len(points))

    def loss(flat: Numbers) -> tuple[float, Numbers]:
        current = flat.reshape(shape)
        value, slope = _loss(points @ current[:-1] + current[-1], shown, weight / len(points), single)
        by_weight = np.vstack([points.T @ slope + pull * current[:-1], slope.sum(axis=0)])
        return value + 0.5 * pull * float((current[:-1] ** 2).sum()), by_weight.ravel()

    options = {"maxiter": STEPS, "gtol": 1e-5, "ftol": 1e-7}
    weights = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
    return np.vstack([weights[:-1] if basis is None else basis @ weights[:-1], weights[-1]])


def _reduced(points: Numbers) -> tuple[Numbers, Any]:
    """Project few points onto the subspace that they span, which contains the best weights: exact and much faster."""
    if 2 * len(points) > points.shape[1]:
        return points, None
    basis, triangle = np.linalg.qr(points.T)
    return triangle.T, basis


def _loss_weights(shown: Mask, single: bool) -> Numbers:
    """Return (n, K) weights of each row's loss terms; with a softmax only the row's class counts."""
    n, yes = len(shown), shown.sum(axis=0)
    if single:
        return np.where(shown, n / (shown.shape[1] * yes), 0.0)
    return np.where(shown, n / (2 * yes), n / (2 * (n - yes)))


def _loss(logits: Numbers, shown: Mask, weight: Numbers, single: bool) -> tuple[float, Numbers]:
    """Return the sum of weighted cross-entropies, and its gradient by logit."""
    if not single:
        value = weight * (np.logaddexp(0, logits) - np.where(shown, logits, 0))
        return float(value.sum()), weight * (_sigmoid(logits) - shown)
    p, own = _softmax(logits), weight.sum(axis=1, keepdims=True)
    value = -np.log(np.maximum((p * shown).sum(axis=1), 1e-300)) * own[:, 0]
    return float(value.sum()), own * (p - shown)
