"""Uniformly random within each stratum, from all that could have been picked: what unbiased estimates rest on."""

from __future__ import annotations

import numpy as np

from curate.select.pool import Pick, Picks, Pool, shares


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    chosen = pool.rows_of([pick.id for pick in pool.chosen])
    open_ = np.setdiff1d(np.flatnonzero(pool.population), chosen)
    names, sizes = np.unique(pool.strata[open_], return_counts=True)
    made: list[Pick] = []
    for stratum, count in zip(names, _allotted(min(budget, len(open_)), sizes.tolist()), strict=True):
        rows = open_[pool.strata[open_] == stratum]
        text = f"audit: one of {count} drawn at random from {len(rows)} images of {_name(pool, int(stratum))}"
        drawn = rng.permutation(rows)[:count]
        made += [Pick(pool.ids[row], "audit", 1.0, text, propensity=count / len(rows)) for row in drawn]
    # In any order: a queue that is left half done then still holds picks of every stratum.
    return tuple(made[place] for place in rng.permutation(len(made)))


def _allotted(total: int, sizes: list[int]) -> list[int]:
    """In proportion to the strata's sizes, and where there is enough one for each: none stays unseen."""
    first = [1 if total >= len(sizes) else 0] * len(sizes)
    rest = shares(total - sum(first), [size - one for size, one in zip(sizes, first, strict=True)])
    return [one + more for one, more in zip(first, rest, strict=True)]


def _name(pool: Pool, stratum: int) -> str:
    return pool.stratum_names[stratum] or "the pool"
