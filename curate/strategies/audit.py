"""Drawn at random with known chances, the most suspicious images more often: the basis of unbiased estimates.

Each stratum is split in two urns, its most suspicious tenth and the others; that tenth gives three picks in ten, about
the share at which defects that lie there are estimated best (Neyman, 1934, for a tenth that is some twenty times as
defective as the rest; where suspicion says nothing, a fifth more picks would be needed). Within an urn each image has
the same chance. Suspicion is what the model says, without one the probe, and without labels how far the image's windows
lie from the mean of all; a wrong one costs precision and makes no estimate wrong.
"""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select import linear_probe
from curate.select.pool import Floats, Pick, Picks, Pool, Rows, shares
from curate.select.whitening import SHRINKAGE, windows_with_lengths
from curate.strategies._common import class_probabilities

TENTH = 0.1  # of a stratum's images, the most suspicious ones
ENOUGH = 10  # picks of a stratum from which on it is split


def select(pool: Pool, budget: int, rng: np.random.Generator, *, tilt: float = 0.3) -> Picks:
    """Draw images at random within each stratum, with known probabilities.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the images and their order.
        tilt: the share of a stratum's picks that comes from its most suspicious tenth; 0.1: all have the same chance.

    Returns:
        Picks in random order, each with its propensity and the urn that it was drawn from.
    """
    if not TENTH <= tilt <= 0.5:
        raise CurateError(f"option 'tilt' of strategy audit is {tilt:g}; allowed: {TENTH:g} to 0.5")
    chosen = pool.rows_of([pick.id for pick in pool.chosen])
    candidates = np.setdiff1d(np.flatnonzero(pool.population), chosen)
    names, sizes = np.unique(pool.strata[candidates], return_counts=True)
    picks: list[Pick] = []
    for stratum, count in zip(names.tolist(), _allotted(min(budget, len(candidates)), sizes.tolist()), strict=True):
        rows = candidates[pool.strata[candidates] == stratum]
        if tilt > TENTH and ENOUGH <= count < len(rows):
            picks += _from_two_urns(pool, rows, count, tilt, rng)
        else:
            text = f"audit: one of {count} drawn at random from {len(rows)} images of {_name(pool, stratum)}"
            drawn = rng.permutation(rows)[:count]
            picks += [Pick(pool.ids[row], "audit", 1.0, text, propensity=count / len(rows)) for row in drawn]
    # In random order: a queue that is labelled only in part then still holds picks of every stratum.
    return tuple(picks[place] for place in rng.permutation(len(picks)))


def _from_two_urns(pool: Pool, rows: Rows, count: int, tilt: float, rng: np.random.Generator) -> list[Pick]:
    """Draw from a stratum's most suspicious tenth and from its others.

    What the tenth gives beyond its even share is marked as extra: without these picks the sample has the natural mix.
    """
    order = rows[np.lexsort((rows, -suspicion(pool)[rows]))]
    high = max(1, round(TENTH * len(rows)))
    many = min(high, max(1, round(tilt * count)))
    name, picks = _name(pool, int(pool.strata[rows[0]])), list[Pick]()
    even = round((count - many) * high / (len(rows) - high))
    for urn, members, n, usual in (
        ("its most suspicious tenth", order[:high], many, even),
        ("the others", order[high:], count - many, count),
    ):
        text = f"audit: one of {n} drawn at random from {len(members)} images of {name}, {urn}"
        whole = f"{pool.stratum_names[pool.strata[rows[0]]]}: {urn}"
        picks += [
            Pick(pool.ids[row], "audit", 1.0, text, n / len(members), urn=whole, extra=place >= usual)
            for place, row in enumerate(rng.permutation(members)[:n].tolist())
        ]
    return picks


def suspicion(pool: Pool) -> Floats:
    """(n,): the highest probability of model or probe; without either how far a window lies from the mean."""
    if pool.classes and ("probability" in pool.scores or linear_probe.has_classes(pool)):
        return np.asarray(class_probabilities(pool, "audit").max(axis=1))
    return pool.once("farthest window", lambda: _farthest(pool))


def _farthest(pool: Pool) -> Floats:
    farthest = np.zeros(len(pool), np.float32)
    for part, lengths in windows_with_lengths(pool, SHRINKAGE):
        np.maximum.at(farthest, part.rows, lengths)
    return farthest


def _allotted(total: int, sizes: list[int]) -> list[int]:
    """Share out picks in proportion to the strata's sizes; where there are enough, each stratum gets at least one."""
    first = [1 if total >= len(sizes) else 0] * len(sizes)
    rest = shares(total - sum(first), [size - least for size, least in zip(sizes, first, strict=True)])
    return [least + more for least, more in zip(first, rest, strict=True)]


def _name(pool: Pool, stratum: int) -> str:
    return pool.stratum_names[stratum] or "the pool"
