"""How unusual each image is: the distance of its windows to the k-th nearest window of other groups.

After PatchCore (Roth et al., 2022) and k-nearest-neighbour outliers (Ramaswamy et al., 2000), on whitened windows. The
memory bank holds the windows of the pool itself, nearly all of which show ordinary steel, stratum by stratum where a
stratum has enough groups. Windows of an image that people call defective leave the bank; what they call clean counts as
ordinary by itself, so that one such neighbour is enough.

The search uses no label: it is made once and kept in `Pool.lasting`, with some neighbours to spare; labels only decide
which of these count.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.select.pool import WHOLE, Floats, Mask, Pool, Rows
from curate.select.whitening import SHRINKAGE, Whitening, whitening_of, windows_with_lengths

NEAREST, SPARE = 5, 15  # the neighbour that counts; neighbours beyond it, which stand in for those that leave
EXACT = 100_000  # windows of a bank that holds all; a larger one is reduced to a core-set
CORE, CORE_OF = 2048, 8192  # windows of a core-set, and those it is chosen from
PAIRS = 250_000_000  # comparisons of a search; beyond it only the windows farthest from the mean are searched
ENOUGH = 50  # groups that a stratum needs for a bank of its own
JOINING = 1024  # windows of clean images that join a core-set: the most unusual ones
EVERYWHERE = -1  # the bank of all strata
ALIKE = 0.01  # distances that differ by less differ by rounding alone
NAMED = 3  # strata in a note
TINY = 1e-9


class Neighbours(NamedTuple):
    """The windows that were searched, and for each its nearest windows of other groups, best first.

    `white`: whitened unit vectors. `bank`: the stratum it was compared with, or `EVERYWHERE`. `similarity` and `owners`
    (m, k): cosines and the pool's rows of the neighbours; row -1 where there are fewer. `complete`: the bank holds all
    windows. `sizes`: by bank, the number of windows that belong to it, searched or not.
    """

    rows: Rows
    tiles: NDArray[np.int16]
    white: Floats
    bank: Rows
    similarity: Floats
    owners: NDArray[np.int32]
    complete: bool
    sizes: dict[int, int]


class Anomaly(NamedTuple):
    """How unusual each image of a pool is.

    Attributes:
        score: (n,) distance in the scale of its bank: 0 is the median image, 1 the 99th percentile; -inf: not searched.
        distance: (n,) of its most unusual window to the k-th nearest one of other groups; from 0 to 2.
        tile: (n,) that window.
        share: (n,) of the bank's windows that are less unusual.
        window: (n,) its place in `Neighbours`; -1: none.
    """

    score: Floats
    distance: Floats
    tile: NDArray[np.int16]
    share: Floats
    window: Rows


def anomaly(pool: Pool) -> Anomaly:
    """Measure how unusual each image is, given the labels so far. Computed once a round."""
    return pool.once("anomaly", lambda: _of_images(pool, neighbours(pool)))


def neighbours(pool: Pool) -> Neighbours:
    """The nearest windows of other groups; computed once for all rounds of a simulation."""
    if "anomaly" not in pool.lasting:
        pool.lasting["anomaly"] = _search(pool)
    found: Neighbours = pool.lasting["anomaly"]
    return found


def banks(pool: Pool) -> Rows:
    """The bank that each image is compared with: its stratum where that has enough groups, else `EVERYWHERE`."""
    return pool.once("banks", lambda: _banks(pool))


def _banks(pool: Pool) -> Rows:
    strata, count = pool.strata, int(pool.groups.max(initial=0)) + 1
    groups = np.bincount(np.unique(strata * count + pool.groups) // count, minlength=int(strata.max(initial=0)) + 1)
    return np.where(groups[strata] >= ENOUGH, strata, EVERYWHERE)


# --- the search, without labels -------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """The search of one bank, as places of windows in the stream. `sample`: what its core-set is chosen from."""

    bank: int
    queries: Rows
    sample: Rows
    own: int


def _search(pool: Pool) -> Neighbours:
    from curate.greedy.kcenter import kcenter  # its kernels take half a second to load
    from curate.greedy.neighbours import nearest_of_others

    whiten = whitening_of(pool)
    # The vectors of a part are let go before the next one is read.
    parts = [(part.rows, part.tiles, lengths) for part, lengths in windows_with_lengths(pool, SHRINKAGE)]
    rows, tiles, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    plans = _plans(banks(pool)[rows], lengths)
    places = np.unique(np.concatenate([places for plan in plans for places in (plan.queries, plan.sample)]))
    white, groups = _gather(pool, whiten, places), pool.groups[rows]
    found = []
    for plan in plans:
        queries, bank = white[np.searchsorted(places, plan.queries)], white[np.searchsorted(places, plan.sample)]
        members = plan.sample
        if len(rows) > EXACT:
            core = np.sort(kcenter(bank, CORE).picks)
            bank, members = bank[core], members[core]
        similarity, index = nearest_of_others(queries, groups[plan.queries], bank, groups[members], NEAREST + SPARE)
        owners = np.where(index < 0, -1, rows[members][index]).astype(np.int32)
        of = np.full(len(queries), plan.bank)
        found.append((rows[plan.queries], tiles[plan.queries], queries, of, similarity, owners))
    row, tile, vectors, of, similarity, owners = (np.concatenate(column) for column in zip(*found, strict=True))
    sizes = {plan.bank: plan.own for plan in plans}
    return Neighbours(row, tile, vectors, of, similarity, owners, len(rows) <= EXACT, sizes)


def _plans(bank_of: Rows, lengths: Floats) -> list[_Plan]:
    """Share the search out over the banks, in proportion to their windows."""
    total = len(bank_of)
    step = 1 if total <= EXACT else -(-total // CORE_OF)
    plans = []
    for bank in np.unique(bank_of).tolist():
        own = np.flatnonzero(bank_of == bank)
        sample = (own if bank != EVERYWHERE else np.arange(total))[::step]
        size = len(sample) if total <= EXACT else min(CORE, len(sample))
        plans.append(
            _Plan(bank, _farthest(own, lengths, max(1, int(PAIRS / total * len(own) / size))), sample, len(own))
        )
    return plans


def _farthest(own: Rows, lengths: Floats, most: int) -> Rows:
    """The windows farthest from the mean of all, in their order; all where they are few."""
    if len(own) <= most:
        return own
    return np.sort(own[np.argsort(-lengths[own], kind="stable")[:most]])


def _gather(pool: Pool, whiten: Whitening, places: Rows) -> Floats:
    """The whitened vectors of windows, by their place in the stream; places ascend."""
    white, start = np.empty((len(places), whiten.matrix.shape[1]), np.float32), 0
    for part in pool.all_windows():
        low, high = np.searchsorted(places, [start, start + len(part.rows)])
        white[low:high] = whiten(part.vectors[places[low:high] - start])
        start += len(part.rows)
    return white


# --- what the labels change -----------------------------------------------------------------------------------------


def distances(pool: Pool, found: Neighbours) -> Floats:
    """Distance of each searched window to the neighbour that counts, given the labels."""
    shows = pool.present.any(axis=1)
    defect, clean = np.append(pool.trainable & shows, True), np.append(pool.trainable & ~shows, False)  # row -1: none
    counted = ~defect[found.owners]
    place = np.minimum(NEAREST, counted.sum(axis=1))
    last = (np.cumsum(counted, axis=1) < place[:, None]).sum(axis=1)
    similarity = np.take_along_axis(found.similarity, np.minimum(last, found.owners.shape[1] - 1)[:, None], 1)[:, 0]
    known = np.where(clean[found.owners], found.similarity, -np.inf).max(axis=1)
    similarity = np.maximum(similarity, known)
    if not found.complete:
        similarity = np.maximum(similarity, _to_clean(pool, found, clean[:-1], similarity))
    similarity[(place == 0) & ~np.isfinite(known)] = 1.0  # nothing to compare with: not unusual
    return np.asarray(np.sqrt(np.maximum(2 - 2 * similarity, 0)), np.float32)


def _to_clean(pool: Pool, found: Neighbours, clean: Mask, similarity: Floats) -> Floats:
    """Similarity to the most unusual windows of clean images, which a core-set need not hold."""
    mine = np.flatnonzero(clean[found.rows])
    mine = mine[np.argsort(similarity[mine], kind="stable")[:JOINING]]
    groups = pool.groups[found.rows]
    from curate.greedy.neighbours import nearest_of_others

    return nearest_of_others(found.white, groups, found.white[mine], groups[mine], 1)[0][:, 0]


def _note_weakness(pool: Pool, distance: Floats) -> None:
    """Say in one line each what makes the comparison weak."""
    ordinary = ~(pool.trainable & pool.present.any(axis=1))
    groups = len(np.unique(pool.groups[ordinary]))
    if not groups:
        pool.note("people call every image defective: there is nothing ordinary that images could be compared with")
    elif groups == 1:
        pool.note("all images to compare with are of one group: none of it can be told to be unusual")
    elif groups <= NEAREST:
        pool.note(
            f"images are compared with {groups} groups alone; the unusual ones can be trusted from {NEAREST + 1} on"
        )
    elif np.ptp(distance) < ALIKE:
        pool.note("all images are alike to these vectors: none is more unusual than another")
    small = [pool.stratum_names[number] or "(none)" for number in np.unique(pool.strata[banks(pool) == EVERYWHERE])]
    if small and len(np.unique(pool.strata)) > 1:
        listed = ", ".join(small[:NAMED]) + (f" and {len(small) - NAMED} more" if len(small) > NAMED else "")
        pool.note(f"strata of fewer than {ENOUGH} groups are compared with all strata, not with themselves: {listed}")


def _of_images(pool: Pool, found: Neighbours) -> Anomaly:
    distance = distances(pool, found)
    _note_weakness(pool, distance)
    window = np.full(len(pool), -1, np.int64)
    order = np.lexsort((-found.tiles, distance))  # of one image's windows the farthest is written last
    window[found.rows[order]] = order
    searched = window >= 0
    far = np.where(searched, distance[window], np.float32(0))
    score, share = np.full(len(pool), -np.inf, np.float32), np.zeros(len(pool), np.float32)
    for bank, size in found.sizes.items():
        images = np.flatnonzero(searched & (banks(pool) == bank))
        middle, high = np.percentile(far[images], [50, 99])
        score[images] = (far[images] - middle) / max(high - middle, TINY)
        ranked = np.sort(distance[found.bank == bank])
        share[images] = 1 - (len(ranked) - np.searchsorted(ranked, far[images])) / size
    return Anomaly(score, far, np.where(searched, found.tiles[window], WHOLE).astype(np.int16), share, window)
