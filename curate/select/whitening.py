"""Whitening by ordinary windows (an exemplar LDA): what all steel has in common says nothing about a defect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from curate.select.pool import Floats, Pool, Windows

SHRINKAGE = 0.01  # less is more selective, and more easily led astray
ORDINARY_IMAGES, ORDINARY_WINDOWS = 3000, 50_000  # that the ordinary look is learnt from
TINY = 1e-12


class Whitening(NamedTuple):
    """Turns ordinary windows into a round cloud about zero; what stands out of it then is unusual."""

    mean: Floats
    matrix: Floats

    @classmethod
    def fit(cls, ordinary: Floats, shrinkage: float) -> Whitening:
        mean = ordinary.mean(axis=0)
        centred = ordinary - mean
        covariance = (centred.T @ centred).astype(np.float64) / max(1, len(centred))
        values, axes = np.linalg.eigh(covariance)
        floor = shrinkage * max(float(values.mean()), 1e-12)
        return cls(mean, np.asarray(axes / np.sqrt(np.maximum(values, 0) + floor), np.float32))

    def __call__(self, vectors: Floats) -> Floats:
        """Whiten vectors and bring them to unit length."""
        white = (vectors - self.mean) @ self.matrix
        return np.asarray(white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), TINY), np.float32)

    def lengths(self, vectors: Floats) -> Floats:
        """Distances of windows from the ordinary ones: how unusual each is."""
        white = (vectors - self.mean) @ self.matrix
        return np.asarray(np.maximum(np.linalg.norm(white, axis=1), TINY), np.float32)

    def similarity(self, vectors: Floats, lengths: Floats, white: Floats) -> Floats:
        """Cosines to each of some whitened windows: as if all vectors were whitened, at a fraction of the work."""
        axes = self.matrix @ white.T
        return np.asarray((vectors @ axes - self.mean @ axes) / lengths[:, None], np.float32)


def whitening_of(pool: Pool, shrinkage: float = SHRINKAGE) -> Whitening:
    """Fit the pool's whitening, once for all rounds of a simulation: it uses no label, and takes longest here."""
    key = f"whitening {shrinkage}"
    if key not in pool.lasting:
        pool.lasting[key] = Whitening.fit(_ordinary(pool), shrinkage)
    fitted: Whitening = pool.lasting[key]
    return fitted


def _ordinary(pool: Pool) -> Floats:
    """The windows of images at even distances over the whole pool: nearly all of them show ordinary steel."""
    step = max(1, len(pool) // ORDINARY_IMAGES)
    windows = np.concatenate([part.vectors[part.rows % step == 0] for part in pool.all_windows()])
    return np.asarray(windows[:: max(1, len(windows) // ORDINARY_WINDOWS)])


def windows_with_lengths(pool: Pool, shrinkage: float) -> Iterator[tuple[Windows, Floats]]:
    """All windows and their whitened lengths, which are computed once: they take longest and use no label."""
    whiten = whitening_of(pool, shrinkage)
    known: list[Floats] = pool.lasting.setdefault(f"lengths {shrinkage}", [])
    for number, part in enumerate(pool.all_windows()):
        if number == len(known):
            known.append(whiten.lengths(part.vectors))
        yield part, known[number]
