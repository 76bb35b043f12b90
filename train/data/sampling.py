"""Which images an epoch shows, and how often. Pure functions of arrays; the class prior is corrected here or in the
loss, never in both.

A sampler gives every image its expected `repeats`; `draw` turns them into one epoch: an image with 2.3 repeats comes
two or three times, the epoch's length is always the same, and all processes draw the same order, of which each takes
its own part.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
from numpy.typing import NDArray

from curate.errors import unknown

Present = NDArray[np.bool_]  # (images, classes)
Repeats = NDArray[np.float64]
Rows = NDArray[np.int64]
SAMPLERS = ("natural", "weighted", "repeat-factor")


def repeats(name: str, present: Present, threshold: float = 0.1) -> Repeats:
    """Return how often each image comes in an epoch on average.

    Args:
        name: one of `SAMPLERS`.
        present: which image shows which class.
        threshold: the share of images below which `repeat-factor` repeats a class.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if name == "natural":
        return np.ones(len(present))
    return weighted(present) if name == "weighted" else repeat_factor(present, threshold)


def weighted(present: Present) -> Repeats:
    """Return repeats by the inverse frequency of an image's rarest class; clean counts as a class of its own.

    The epoch keeps its length.
    """
    kinds = np.column_stack([present, ~present.any(axis=1)])
    rarity = 1 / np.maximum(kinds.sum(axis=0), 1)
    chances = np.where(kinds, rarity, 0).max(axis=1)
    return np.asarray(chances * len(present) / chances.sum())


def repeat_factor(present: Present, threshold: float) -> Repeats:
    """Return max(1, sqrt(t / f)) of an image's rarest class (Gupta et al. 2019); clean images come once."""
    share = present.mean(axis=0)
    factor = np.maximum(1, np.sqrt(threshold / np.maximum(share, 1 / max(len(present), 1))))
    return np.asarray(np.where(present, factor, 1.0).max(axis=1, initial=1.0))


def draw(repeats: Repeats, epoch: int, seed: int, rank: int = 0, world_size: int = 1) -> Rows:
    """Return this process's rows of an epoch, padded from its beginning so that all take equally many steps."""
    order = _systematic_sample(repeats, epoch, seed)
    padded = np.resize(order, -(-len(order) // world_size) * world_size)
    return padded[rank::world_size]


def mix_batches(rows: Rows, pseudo: Rows, size: int, share: float) -> list[list[int]]:
    """Return batches of `size` rows with at most a `share` of pseudo-labelled ones, each at most once."""
    room = most_pseudo(size, share, whole=True) if len(pseudo) else 0
    parts = [rows[at : at + size - room].tolist() for at in range(0, len(rows), size - room)]
    ends = np.linspace(0, min(len(pseudo), room * len(parts)), len(parts) + 1).astype(np.int64)
    taken = (pseudo[begin:end].tolist() for begin, end in pairwise(ends))
    return [[*part, *some[: most_pseudo(len(part), share)]] for part, some in zip(parts, taken, strict=True)]


def most_pseudo(count: int, share: float, whole: bool = False) -> int:
    """Return how many pseudo-labelled images may join `count` others (`whole`: may be among `count` in all)."""
    exact_share = Fraction(str(share))  # exact decimals: 0.12 of 25 is 3, despite float rounding
    return floor(count * exact_share if whole else count * exact_share / (1 - exact_share))


def _systematic_sample(repeats: Repeats, epoch: int, seed: int) -> Rows:
    """Systematic sampling: evenly spaced marks on the repeats laid end to end, in random order."""
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(repeats))
    total = max(1, round(float(repeats.sum())))
    ends = np.minimum(np.cumsum(repeats[shuffled]) * total / repeats.sum(), total)
    ends[-1] = total  # exact, despite float rounding
    counts = np.diff(np.floor(ends + rng.random()), prepend=0).astype(np.int64)
    return rng.permutation(np.repeat(shuffled, counts))
