"""BADGE: k-means++ over gradient embeddings, which are outer products and never written out.

Ash et al. 2020. The gradient of the last layer is vector (x) residual, d * C numbers for each row; the distance of two
needs only the lengths and the products of its factors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.greedy.neighbours import Doubles, Flags, Rows, Singles, Vectors, compiled, finite, singles


def residuals(probabilities: NDArray[Any]) -> Singles:
    """Probabilities less the one-hot vector of the likeliest class (the first of equals)."""
    result = np.array(finite(probabilities, "probabilities"), np.float32)
    result[np.arange(len(result)), result.argmax(axis=1)] -= 1
    return result


def badge(
    vectors: Vectors,
    residuals: Vectors,
    budget: int,
    rng: np.random.Generator,
    *,
    candidates: Flags | None = None,
) -> Rows:
    """Pick rows with large and diverse gradients.

    The first pick has the largest gradient; each other is drawn with a probability proportional to the squared distance
    to the nearest pick, one `rng.random()` each. When all candidates left equal a pick, the lowest row is next.

    Args:
        vectors: (n, d) inputs of the last layer.
        residuals: (n, C) gradients of its outputs.
        budget: Rows to pick; all candidates if there are fewer.
        rng: Draws the picks.
        candidates: Which rows may be picked.

    Returns:
        Rows in the order of picking.
    """
    rows = _candidates(len(vectors), candidates)
    a, b = singles(finite(vectors, "vectors")), singles(finite(residuals, "residuals"))
    if len(a) != len(b):
        raise ValueError(f"{len(a)} vectors but {len(b)} residuals")
    if len(rows) < len(a):
        a, b = a[rows], b[rows]
    picks = np.empty(max(0, min(budget, len(rows))), np.int64)
    lengths, distance = _lengths(a, b), np.full(len(a), np.inf)
    for step in range(len(picks)):
        pick = int(np.argmax(lengths)) if not step else _draw(distance, picks[:step], rng)
        picks[step] = pick
        _approach(a, b, lengths, pick, distance)
    return rows[picks]


def _candidates(n: int, candidates: Flags | None) -> Rows:
    if candidates is None:
        return np.arange(n)
    if np.shape(candidates) != (n,):
        raise ValueError(f"candidates has shape {np.shape(candidates)}; expected ({n},)")
    return np.flatnonzero(candidates)


def _draw(distance: Doubles, picks: Rows, rng: np.random.Generator) -> int:
    """Draw a row by its squared distance; picks have distance 0 and cannot be drawn again."""
    distance[picks] = 0
    reach = np.cumsum(distance)
    chance = rng.random() * reach[-1]
    if reach[-1] > 0:
        return int(np.searchsorted(reach, chance, side="right"))
    left = np.ones(len(distance), bool)
    left[picks] = False
    return int(np.argmax(left))


@compiled
def _lengths(a: Singles, b: Singles) -> Doubles:
    """Squared lengths of the outer products."""
    lengths = np.empty(len(a))
    for i in range(len(a)):
        left, right = np.float32(0), np.float32(0)
        for t in range(a.shape[1]):
            left += a[i, t] * a[i, t]
        for t in range(b.shape[1]):
            right += b[i, t] * b[i, t]
        lengths[i] = np.float64(left) * np.float64(right)
    return lengths


@compiled
def _approach(a: Singles, b: Singles, lengths: Doubles, pick: int, distance: Doubles) -> None:
    """Lower squared distances to the nearest pick; a row that is farther by its length alone is skipped."""
    size = np.sqrt(lengths[pick])
    for i in range(len(a)):
        apart = abs(np.sqrt(lengths[i]) - size)
        if apart * apart * (1 - 1e-5) >= distance[i]:
            continue
        right = np.float32(0)
        for t in range(b.shape[1]):
            right += b[i, t] * b[pick, t]
        base = lengths[i] + lengths[pick]
        left = np.float32(0)
        for t in range(a.shape[1]):
            left += a[i, t] * a[pick, t]
        squared = max(base - 2 * np.float64(left) * np.float64(right), 0.0)
        if squared < base * 1e-6:
            squared = 0.0
        if squared < distance[i]:
            distance[i] = squared
