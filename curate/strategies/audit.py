"""Uniformly random within each stratum, from all images that could be picked: the basis of unbiased estimates."""

from __future__ import annotations

import numpy as np

from curate.select.pool import Pick, Picks, Pool, shares


def select(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    """Draw images at random within each stratum, with known probabilities.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the images and their order.

    Returns:
        Picks in random order, each with its propensity.
    """
    chosen = pool.rows_of([pick.id for pick in pool.chosen])
    candidates = np.setdiff1d(np.flatnonzero(pool.population), chosen)
    names, sizes = np.unique(pool.strata[candidates], return_counts=True)
    picks: list[Pick] = []
    for stratum, count in zip(names, _allotted(min(budget, len(candidates)), sizes.tolist()), strict=True):
        rows = candidates[pool.strata[candidates] == stratum]
        text = f"audit: one of {count} drawn at random from {len(rows)} images of {_name(pool, int(stratum))}"
        drawn = rng.permutation(rows)[:count]
        picks += [Pick(pool.ids[row], "audit", 1.0, text, propensity=count / len(rows)) for row in drawn]
    # In random order: a queue that is labelled only in part then still holds picks of every stratum.
    return tuple(picks[place] for place in rng.permutation(len(picks)))


def _allotted(total: int, sizes: list[int]) -> list[int]:
    """Share out picks in proportion to the strata's sizes; where there are enough, each stratum gets at least one."""
    first = [1 if total >= len(sizes) else 0] * len(sizes)
    rest = shares(total - sum(first), [size - least for size, least in zip(sizes, first, strict=True)])
    return [least + more for least, more in zip(first, rest, strict=True)]


def _name(pool: Pool, stratum: int) -> str:
    return pool.stratum_names[stratum] or "the pool"
