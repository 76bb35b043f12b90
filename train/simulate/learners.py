"""What learns from the labels that a simulation has bought: a linear probe in a moment, a network in minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.select import uncertainty as scores
from curate.select.pool import Floats, Mask, Rows
from train.simulate.oracle_dataset import OracleDataset

STRENGTH = 0.1  # of the fit against the penalty on large weights, as in `curate.select.linear_probe`
STEPS = 200
LIKELY = 0.5
Numbers = NDArray[np.float64]


class LearnerOutput(NamedTuple):
    """Of every row of the world: how likely it shows each class, whether it is said to, and how unsure that is."""

    probability: Floats
    shows: Mask
    uncertainty: Floats

    def scores(self) -> dict[str, Floats]:
        """As `curate predict` writes them."""
        by_class = scores.class_entropy(self.probability)
        return {"probability": self.probability, "class_entropy": by_class, "uncertainty": self.uncertainty}


Learner = Callable[[Rows], LearnerOutput | None]
"""Learns from the labels of these rows alone, and speaks of all rows. None: there is nothing to tell apart yet."""


def probe(world: OracleDataset) -> Learner:
    """A class-balanced logistic regression on the vectors: one softmax where no image shows two classes."""
    features, truth = _scaled(world), outputs(world)

    def learn(rows: Rows) -> LearnerOutput | None:
        shown = truth[rows].sum(axis=0)
        known = np.flatnonzero(shown if world.single else shown * (len(rows) - shown))
        if len(known) < 1 + world.single:
            return None
        found = fitted(features[rows], truth[np.ix_(rows, known)], world.single)
        logits = np.full(truth.shape, -np.inf)
        logits[:, known] = features @ found[:-1].astype(np.float32) + found[-1]
        return said(_softmax(logits) if world.single else _sigmoid(logits), len(world.classes), world.single)

    return learn


def outputs(world: OracleDataset) -> Mask:
    """(n, C), and a column for clean where classes exclude each other and some image is clean."""
    clean = ~world.present.any(axis=1, keepdims=True)
    return np.hstack([world.present, clean]) if world.single and clean.any() else world.present


def said(p: Numbers, classes: int, single: bool) -> LearnerOutput:
    """From the probabilities of all outputs."""
    likely = np.asarray(p[:, :classes], np.float32)
    best = np.arange(p.shape[1]) == p.argmax(axis=1)[:, None]
    shows = best[:, :classes] if single else likely >= LIKELY
    return LearnerOutput(likely, shows, scores.entropy(p) if single else scores.predictive_entropy_multilabel(likely))


def _scaled(world: OracleDataset) -> Floats:
    """Every dimension spreads alike over what may be asked for: no label has a part in that."""
    sample = world.vectors[np.flatnonzero(world.pooled)]
    mean, spread = sample.mean(axis=0), np.maximum(sample.std(axis=0), 1e-6)
    return np.asarray((world.vectors - mean) / spread, np.float32)


def _softmax(logits: Numbers) -> Numbers:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoid(logits: Numbers) -> Numbers:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))


def fitted(features: Floats, shown: Mask, single: bool) -> Numbers:
    """(d + 1, K) weights, intercepts last, in double precision. Every class weighs the same."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    points, basis = _compact(features.astype(np.float64))
    weight = _balanced(shown, single)
    shape, pull = (points.shape[1] + 1, shown.shape[1]), 1 / (STRENGTH * len(points))

    def loss(flat: Numbers) -> tuple[float, Numbers]:
        current = flat.reshape(shape)
        value, slope = _loss(points @ current[:-1] + current[-1], shown, weight / len(points), single)
        by_weight = np.vstack([points.T @ slope + pull * current[:-1], slope.sum(axis=0)])
        return value + 0.5 * pull * float((current[:-1] ** 2).sum()), by_weight.ravel()

    options = {"maxiter": STEPS, "gtol": 1e-5, "ftol": 1e-7}
    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
    return np.vstack([found[:-1] if basis is None else basis @ found[:-1], found[-1]])


def _compact(points: Numbers) -> tuple[Numbers, Any]:
    """Few points lie in a small part of a large space, and so do the best weights: exact, and many times as fast."""
    if 2 * len(points) > points.shape[1]:
        return points, None
    basis, triangle = np.linalg.qr(points.T)
    return triangle.T, basis


def _balanced(shown: Mask, single: bool) -> Numbers:
    """(n, K) of each class's loss; of a softmax the row's class alone counts."""
    n, yes = len(shown), shown.sum(axis=0)
    if single:
        return np.where(shown, n / (shown.shape[1] * yes), 0.0)
    return np.where(shown, n / (2 * yes), n / (2 * (n - yes)))


def _loss(logits: Numbers, shown: Mask, weight: Numbers, single: bool) -> tuple[float, Numbers]:
    """The sum of weighted cross-entropies, and its slope by each logit."""
    if not single:
        value = weight * (np.logaddexp(0, logits) - np.where(shown, logits, 0))
        return float(value.sum()), weight * (_sigmoid(logits) - shown)
    p, own = _softmax(logits), weight.sum(axis=1, keepdims=True)
    value = -np.log(np.maximum((p * shown).sum(axis=1), 1e-300)) * own[:, 0]
    return float(value.sum()), own * (p - shown)
