"""TypiClust: from each of the largest clusters without a label, the row in the densest place (Hacohen et al. 2022)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from curate.greedy.neighbours import Doubles, Flags, Rows, Singles, Vectors, compiled, finite, singles

_BLOCK = 8192  # rows assigned at once
_ROUNDS = 12  # of k-means; later ones move few rows
_PER_CLUSTER = 256  # rows that train one centre
_SETTLED = 0.002  # the share of rows that may still move when k-means ends


class Typical(NamedTuple):
    """Picks in order, the cluster of every row, and each pick's typicality (infinite among copies)."""

    picks: Rows
    cluster: Rows
    typicality: Singles


def typiclust(
    x: Vectors,
    budget: int,
    *,
    covered: Rows | None = None,
    candidates: Flags | None = None,
    rng: np.random.Generator,
    neighbours: int = 20,
    max_clusters: int = 2000,
) -> Typical:
    """Pick typical rows of the clusters that hold the fewest covered rows and picks, larger ones first.

    Args:
        x: (n, d).
        budget: Rows to pick; all candidates if there are fewer.
        covered: Rows already chosen.
        candidates: Which rows may be picked.
        rng: Draws the first centres.
        neighbours: A row's typicality is 1 / its mean distance to this many nearest rows of its cluster.
        max_clusters: There are as many clusters as covered rows and budget together, but no more than this.

    Returns:
        The picks in order, each row's cluster, and each pick's typicality.
    """
    x = finite(x)
    chosen = np.unique(np.asarray([] if covered is None else covered, np.int64))
    allowed = np.ones(len(x), bool) if candidates is None else np.array(candidates, bool)
    if allowed.shape != (len(x),):
        raise ValueError(f"candidates has shape {allowed.shape}; expected ({len(x)},)")
    allowed[chosen] = False
    budget = max(0, min(budget, int(allowed.sum())))
    if not budget:
        return Typical(np.empty(0, np.int64), np.zeros(len(x), np.int64), np.empty(0, np.float32))
    count = min(len(chosen) + budget, max_clusters, len(x))
    cluster = kmeans(x, count, rng)
    picks, typicality = _picked(x, cluster, count, chosen, allowed, budget, neighbours)
    return Typical(picks, cluster, typicality)


def kmeans(x: Vectors, count: int, rng: np.random.Generator) -> Rows:
    """The cluster of every row, by Lloyd's rounds over a sample; an emptied cluster restarts at the worst row."""
    sample = x
    if len(x) > count * _PER_CLUSTER:
        sample = x[np.sort(rng.choice(len(x), count * _PER_CLUSTER, replace=False))]
    sample = singles(sample)
    centres = _first_centres(sample, count, rng)
    cluster, distance = _assigned(sample, centres)
    for _ in range(_ROUNDS):
        centres = _centres(sample, cluster, distance, centres)
        before, (cluster, distance) = cluster, _assigned(sample, centres)
        if np.mean(cluster != before) <= _SETTLED:
            break
    return cluster if sample.shape[0] == x.shape[0] else _assigned(x, centres)[0]


# --- k-means ------------------------------------------------------------------------------------------------------


def _first_centres(x: Singles, count: int, rng: np.random.Generator) -> Singles:
    """Draw centres in eight rounds, each by the squared distance to those of earlier rounds."""
    rows = np.sort(rng.choice(len(x), max(1, count // 8), replace=False))
    _, distance = _assigned(x, x[rows])
    while len(rows) < count:
        distance[rows] = 0
        more = min(max(1, count // 8), count - len(rows))
        drawn = _drawn(distance, more, rng)
        if not len(drawn):
            drawn = np.setdiff1d(np.arange(len(x)), rows)[:more]
        np.minimum(distance, _assigned(x, x[drawn])[1], out=distance)
        rows = np.concatenate((rows, drawn))
    return x[np.sort(rows)].copy()


def _drawn(distance: Doubles, count: int, rng: np.random.Generator) -> Rows:
    """Draw up to `count` different rows by their weight."""
    reach = np.cumsum(distance)
    if not reach[-1] > 0:
        return np.empty(0, np.int64)
    places = (np.arange(count) + rng.random(count)) / count * reach[-1]
    rows: Rows = np.minimum(np.searchsorted(reach, places, side="right"), len(distance) - 1)
    return np.unique(rows)


def _assigned(x: Vectors, centres: Singles) -> tuple[Rows, Doubles]:
    """The nearest centre of every row, the first of equals, and the squared distance to it."""
    cluster, distance = np.empty(len(x), np.int64), np.empty(len(x))
    half = _squares(centres) / 2
    for lo in range(0, len(x), _BLOCK):
        block = singles(x[lo : lo + _BLOCK])
        score = block @ centres.T
        score -= half
        best = score.argmax(axis=1)
        cluster[lo : lo + _BLOCK] = best
        top = np.take_along_axis(score, best[:, None], 1)[:, 0].astype(np.float64)
        distance[lo : lo + _BLOCK] = np.maximum(_squares(block) - 2 * top, 0)
    return cluster, distance


def _centres(x: Singles, cluster: Rows, distance: Doubles, old: Singles) -> Singles:
    sums, counts = _sums(x, cluster, len(old))
    empty = np.flatnonzero(counts == 0)
    centres: Singles = np.asarray(sums / np.maximum(counts, 1)[:, None], np.float32)
    worst = np.argsort(-distance, kind="stable")[: len(empty)]
    centres[empty] = x[worst]
    return centres


def _squares(block: Singles) -> Singles:
    return np.asarray(np.einsum("ij,ij->i", block, block), np.float32)


@compiled
def _sums(x: Singles, cluster: Rows, count: int) -> tuple[Doubles, Rows]:
    sums, counts = np.zeros((count, x.shape[1])), np.zeros(count, np.int64)
    for i in range(len(x)):
        counts[cluster[i]] += 1
        for t in range(x.shape[1]):
            sums[cluster[i], t] += x[i, t]
    return sums, counts


# --- Picking ------------------------------------------------------------------------------------------------------


def _picked(
    x: Vectors, cluster: Rows, count: int, chosen: Rows, allowed: Flags, budget: int, neighbours: int
) -> tuple[Rows, Singles]:
    held = np.bincount(cluster[chosen], minlength=count)
    size = np.bincount(cluster, minlength=count)
    open_count = np.bincount(cluster[allowed], minlength=count)
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(size)[:-1])
    queues: dict[int, tuple[Rows, Singles]] = {}
    picks, typicality, taken = np.empty(budget, np.int64), np.empty(budget, np.float32), np.zeros(count, np.int64)
    for step in range(budget):
        open_ = np.flatnonzero(open_count)
        which = int(open_[np.lexsort((open_, -size[open_], held[open_]))[0]])
        if which not in queues:
            queues[which] = _queue(x, members[which], allowed, neighbours)
        rows, values = queues[which]
        picks[step], typicality[step] = rows[taken[which]], values[taken[which]]
        taken[which] += 1
        held[which] += 1
        open_count[which] -= 1
    return picks, typicality


def _queue(x: Vectors, members: Rows, allowed: Flags, neighbours: int) -> tuple[Rows, Singles]:
    """The candidates of a cluster, the most typical first."""
    typicality = _typicality(singles(x[members]), neighbours)
    order = np.argsort(-typicality, kind="stable")
    order = order[allowed[members[order]]]
    return members[order], typicality[order]


def _typicality(block: Singles, neighbours: int) -> Singles:
    """1 / the mean distance to the nearest other rows; rounded, so that copies tie; a row on its own has 0."""
    k = min(neighbours, len(block) - 1)
    if k < 1:
        return np.zeros(len(block), np.float32)
    squares = _squares(block)
    mean = np.empty(len(block))
    for lo in range(0, len(block), 512):
        part = squares[lo : lo + 512, None] + squares - 2 * (block[lo : lo + 512] @ block.T)
        part[np.arange(len(part)), lo + np.arange(len(part))] = np.inf
        nearest = np.partition(part, k - 1, axis=1)[:, :k]
        mean[lo : lo + 512] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    with np.errstate(divide="ignore"):
        return (1 / np.round(mean, 5)).astype(np.float32)
