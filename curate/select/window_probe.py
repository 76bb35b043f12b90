"""A logistic probe on windows, taught by few of them: an image is as likely as its likeliest window.

Multiple-instance learning (Andrews et al., 2003; Settles et al., 2008): of an image that shows a class only some window
does, of a refused image none. Positive are the exemplars' windows, negative all windows of images that people labelled
as something else, and some unlabelled ones, nearly all of which show something else, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.select.pool import WHOLE, Floats, Mask, Pool

STRENGTH = 0.003  # of the fit against the penalty on large weights: a few windows may not say much
UNLABELLED, REFUSED = 2000, 20_000  # windows at most that stand for what is not sought
TINY = 1e-6


class WindowScores(NamedTuple):
    """The probe's probability for each image, and the window that has it."""

    likely: Floats
    tile: NDArray[np.int16]


def refused(pool: Pool, name: str) -> Mask:
    """Trainable rows that do not show the class; '' is any class."""
    shows = pool.shows(name) if name in pool.classes else pool.present.any(axis=1)
    return np.asarray(pool.trainable & ~shows)


def scores(pool: Pool, name: str) -> WindowScores:
    """Score each image by its likeliest window. Computed once a round.

    Args:
        pool: its exemplars of the class are the positives.
        name: a class with exemplars; '' where it is unknown.
    """
    return pool.once(f"window probe {name}", lambda: _scores(pool, name))


def _scores(pool: Pool, name: str) -> WindowScores:
    sought = refused(pool, name)
    asked = [(~pool.labelled, UNLABELLED), (sought, REFUSED), (np.ones(len(pool), bool), REFUSED)]
    if "window scale" in pool.lasting:
        unlabelled, others = _windows_of(pool, asked[:2])
    else:
        unlabelled, others, sample = _windows_of(pool, asked)
        pool.lasting["window scale"] = sample.mean(axis=0), np.maximum(sample.std(axis=0), TINY)
    mean, spread = pool.lasting["window scale"]
    positives = pool.exemplars.of([name]).vectors
    parts = [positives, others, unlabelled]
    # Each side weighs the same; of the negatives what people refused weighs as much as what nobody looked at.
    shares = [1.0, 0.5 if len(others) else 0.0, (0.5 if len(others) else 1.0) if len(unlabelled) else 0.0]
    weights = [np.full(len(part), share / max(1, len(part))) for part, share in zip(parts, shares, strict=True)]
    shown = np.repeat([True, False, False], [len(part) for part in parts])
    if not shown.any() or shown.all():
        return WindowScores(np.full(len(pool), 0.5, np.float32), np.full(len(pool), WHOLE, np.int16))
    slope, intercept = _fitted((np.concatenate(parts) - mean) / spread, shown, np.concatenate(weights) * len(shown) / 2)
    return _best(pool, np.asarray(slope / spread, np.float32), float(intercept - mean @ (slope / spread)))


def _fitted(windows: Floats, shown: Mask, weights: NDArray[np.float64]) -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=STRENGTH, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not fully converged ranks just as well
        model.fit(windows, shown, sample_weight=weights)
    return np.asarray(model.coef_[0], np.float32), float(model.intercept_[0])


def _best(pool: Pool, slope: Floats, intercept: float) -> WindowScores:
    logit, tile = np.full(len(pool), -np.inf, np.float32), np.full(len(pool), WHOLE, np.int16)
    for part in pool.all_windows():
        value = part.vectors @ slope
        order = np.argsort(value, kind="stable")  # of one image's windows the best is written last
        order = order[value[order] > logit[part.rows[order]]]
        logit[part.rows[order]], tile[part.rows[order]] = value[order], part.tiles[order]
    return WindowScores(np.asarray(1 / (1 + np.exp(-np.clip(logit + intercept, -30, 30))), np.float32), tile)


def _windows_of(pool: Pool, asked: Sequence[tuple[Mask, int]]) -> list[Floats]:
    """For each mask the windows of its rows, at most so many, evenly over all; all masks in one pass."""
    counts = _window_counts(pool)
    steps = [max(1, -(-int(counts[mask].sum()) // most)) for mask, most in asked]
    starts = [0] * len(asked)
    kept: list[list[Floats]] = [[np.zeros((0, pool.vectors.shape[1]), np.float32)] for _ in asked]
    for part in pool.all_windows():
        for number, ((mask, _), step) in enumerate(zip(asked, steps, strict=True)):
            mine = np.flatnonzero(mask[part.rows])
            kept[number].append(part.vectors[mine[-starts[number] % step :: step]])
            starts[number] += len(mine)
    return [np.concatenate(parts) for parts in kept]


def _window_counts(pool: Pool) -> NDArray[np.int64]:
    """(n,): the number of windows of each image; it uses no label and is kept for all rounds of a simulation."""
    if "window counts" not in pool.lasting:
        counts = np.zeros(len(pool), np.int64)
        for part in pool.all_windows():
            counts += np.bincount(part.rows, minlength=len(pool))
        pool.lasting["window counts"] = counts
    known: NDArray[np.int64] = pool.lasting["window counts"]
    return known
