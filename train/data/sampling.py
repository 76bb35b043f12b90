"""Which images an epoch shows, and how often. Pure functions of arrays; the class prior is corrected here or in the
loss, never in both.

A sampler gives every image its expected `repeats`; `draw` turns them into one epoch: an image that should come 2.3
times comes two or three times, the epoch's length is always the same, and all processes draw the same order, of which
each takes its own part.
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
    """How often each image should come in an epoch, on average."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if name == "natural":
        return np.ones(len(present))
    return weighted(present) if name == "weighted" else repeat_factor(present, threshold)


def weighted(present: Present) -> Repeats:
    """Inverse frequency, by image: of its rarest class, where it shows several. Clean counts as a class of its own.

    An epoch stays as long as it was.
    """
    kinds = np.column_stack([present, ~present.any(axis=1)])
    rarity = 1 / np.maximum(kinds.sum(axis=0), 1)
    chances = np.where(kinds, rarity, 0).max(axis=1)
    return np.asarray(chances * len(present) / chances.sum())


def repeat_factor(present: Present, threshold: float) -> Repeats:
    """max(1, sqrt(t / f)) of an image's rarest class (Gupta et al. 2019); clean images come once."""
    share = present.mean(axis=0)
    factor = np.maximum(1, np.sqrt(threshold / np.maximum(share, 1 / max(len(present), 1))))
    return np.asarray(np.where(present, factor, 1.0).max(axis=1, initial=1.0))


def draw(repeats: Repeats, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Rows:
    """This process's rows of an epoch. Padded from its beginning, so that all processes take as many steps."""
    order = _drawn(repeats, epoch, seed)
    padded = np.resize(order, -(-len(order) // world) * world)
    return padded[rank::world]


def mixed(rows: Rows, guests: Rows, size: int, share: float) -> list[list[int]]:
    """An epoch's batches of `size` rows, of which guests are never more than `share`; each guest comes once at most."""
    room = most_beside(size, share, whole=True) if len(guests) else 0
    parts = [rows[at : at + size - room].tolist() for at in range(0, len(rows), size - room)]
    ends = np.linspace(0, min(len(guests), room * len(parts)), len(parts) + 1).astype(np.int64)
    taken = (guests[begin:end].tolist() for begin, end in pairwise(ends))
    return [[*part, *some[: most_beside(len(part), share)]] for part, some in zip(parts, taken, strict=True)]


def most_beside(count: int, share: float, whole: bool = False) -> int:
    """How many guests may stand beside so many others (`whole`: among so many in all)."""
    of = Fraction(str(share))  # as it is written: 0.12 of 25 is 3, whatever floats make of it
    return floor(count * of if whole else count * of / (1 - of))


def _drawn(repeats: Repeats, epoch: int, seed: int) -> Rows:
    """Systematic sampling: evenly spaced marks on the repeats laid end to end, in random order."""
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(len(repeats))
    total = max(1, round(float(repeats.sum())))
    ends = np.minimum(np.cumsum(repeats[shuffled]) * total / repeats.sum(), total)
    ends[-1] = total  # whatever floats add up to
    counts = np.diff(np.floor(ends + rng.random()), prepend=0).astype(np.int64)
    return rng.permutation(np.repeat(shuffled, counts))
