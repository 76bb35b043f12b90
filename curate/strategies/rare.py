"""Candidates for the scarcest classes: windows that look like the few exemplars and unlike what is known to be not.

Windows are compared after whitening by the ordinary windows (an exemplar LDA): what all steel has in common says
nothing about a defect. A class that a model knows contributes its likeliest images as well.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from curate.pool import WHOLE, Floats, Mask, Pick, Picks, Pool, Rows, Windows
from curate.strategies._common import shares
from curate.strategies.nearest import place

SCARCE = 0.25  # of the groups that the median class has
SHRINKAGE = 0.01  # of the whitening: less is more selective, and more easily led astray
BACKGROUND_IMAGES, BACKGROUND = 3000, 50_000  # images and windows that the ordinary look is learnt from
HARD = 64  # windows that people refused, of those most like the exemplars
LOOKED_AT_TWICE = 20_000  # candidates
Tiles = NDArray[np.int16]


class Relevance(NamedTuple):
    """For each row: how much its best window looks like the class, which window, and which exemplar it is like."""

    score: Floats
    tile: Tiles
    like: Rows


def select(
    pool: Pool,
    budget: int,
    rng: np.random.Generator,
    *,
    shrinkage: float = SHRINKAGE,
    negative: float = 0.5,
) -> Picks:
    """`shrinkage` of the whitening; `negative` weighs the likeness to what is known to be something else."""
    names = sought(pool)
    if not names:
        raise CurateError(
            "strategy 'rare' needs exemplars of a scarce class: give --exemplars VIEW|TAG|IDS, or label one"
        )
    taken: dict[str, Pick] = {}
    quotas = shares(budget, [1 / (1 + (pool.groups_of(name) if name in pool.classes else 0)) for name in names])
    for name, quota in zip(names, quotas, strict=True):
        found = [pick for pick in _candidates(pool, name, shrinkage, negative) if pick.id not in taken]
        taken |= {pick.id: pick for pick in found[:quota]}
    for name in names:  # quotas that a class could not use go to the others
        found = [pick for pick in _candidates(pool, name, shrinkage, negative) if pick.id not in taken]
        taken |= {pick.id: pick for pick in found[: budget - len(taken)]}
    return tuple(taken.values())[:budget]


def sought(pool: Pool) -> list[str]:
    """The scarce classes that there is anything to go by; those of no known class ('') first."""
    given = [""] if "" in pool.exemplars.classes else []
    names = pool.wanted or scarce(pool)
    return given + [name for name in names if name in pool.exemplars.classes or "probability" in pool.scores]


def scarce(pool: Pool) -> tuple[str, ...]:
    """Classes with less than a quarter of the groups that the median class has, and always the scarcest one."""
    counts = {name: pool.groups_of(name) for name in pool.classes}
    if not counts:
        return ()
    few = max(min(counts.values()), SCARCE * float(np.median(list(counts.values()))))
    return tuple(name for name, count in sorted(counts.items(), key=lambda pair: pair[1]) if count <= few)


def _candidates(pool: Pool, name: str, shrinkage: float, negative: float) -> list[Pick]:
    """Open rows, most relevant first; with a model, its likeliest images take turns with the exemplars' likes."""
    lists = []
    if len(pool.exemplars.of([name])):
        found = pool.once(f"rare {name}", lambda: _relevance(pool, name, shrinkage, negative))
        lists.append([_like(pool, name, row, found) for row in _best(pool, found.score)])
    if "probability" in pool.scores and name in pool.classes:
        likely = pool.scores["probability"][:, pool.classes.index(name)]
        lists.append([_likely(pool, name, row, likely) for row in _best(pool, likely)])
    return [pick for turn in zip(*lists, strict=True) for pick in turn]


def _best(pool: Pool, score: Floats) -> list[int]:
    rows = pool.open
    return [int(row) for row in rows[np.lexsort((rows, -score[rows]))]]


def _like(pool: Pool, name: str, row: int, found: Relevance) -> Pick:
    exemplar, score, tile = pool.exemplars.ids[found.like[row]], float(found.score[row]), int(found.tile[row])
    text = f"{score:.2f} like {name or 'the'} exemplar {exemplar[:8]}, {place(tile)}"
    return Pick(pool.ids[row], "rare", score, text, like=exemplar, tile=tile)


def _likely(pool: Pool, name: str, row: int, likely: Floats) -> Pick:
    return Pick(pool.ids[row], "rare", float(likely[row]), f"the model gives {name} {likely[row]:.2f}")


# --- relevance ------------------------------------------------------------------------------------------------------


def _relevance(pool: Pool, name: str, shrinkage: float, negative: float) -> Relevance:
    """How much each image looks like the exemplars; the likeliest are held against what people refused."""
    whiten = pool.once(f"whitening {shrinkage}", lambda: Whitening.of(_ordinary(pool), shrinkage))
    exemplars = whiten(pool.exemplars.of([name]).vectors)
    found, refused = _first_look(pool, whiten, exemplars, _refused(pool, name))
    return _second_look(pool, whiten, found, refused, negative) if negative and len(refused) else found


class Whitening(NamedTuple):
    """Makes ordinary windows a round cloud about zero; what stands out of it then is what is unusual."""

    mean: Floats
    matrix: Floats

    @classmethod
    def of(cls, ordinary: Floats, shrinkage: float) -> Whitening:
        mean = ordinary.mean(axis=0)
        centred = (ordinary - mean).astype(np.float64)
        covariance = centred.T @ centred / max(1, len(centred))
        values, axes = np.linalg.eigh(covariance)
        floor = shrinkage * max(float(values.mean()), 1e-12)
        return cls(mean, np.asarray(axes / np.sqrt(np.maximum(values, 0) + floor), np.float32))

    def __call__(self, vectors: Floats) -> Floats:
        """Whitened and brought to unit length."""
        white = (vectors - self.mean) @ self.matrix
        return np.asarray(white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12), np.float32)


def unusual(pool: Pool, vectors: Floats) -> Floats:
    """How far windows stand out of what is ordinary."""
    ordinary = pool.once(f"whitening {SHRINKAGE}", lambda: Whitening.of(_ordinary(pool), SHRINKAGE))
    return np.asarray(np.linalg.norm((vectors - ordinary.mean) @ ordinary.matrix, axis=1), np.float32)


def _ordinary(pool: Pool) -> Floats:
    """The windows of images at even distances over the whole pool: nearly all of them show ordinary steel."""
    step = max(1, len(pool) // BACKGROUND_IMAGES)
    found = np.concatenate([part.vectors[part.rows % step == 0] for part in pool.all_windows()])
    return np.asarray(found[:: max(1, len(found) // BACKGROUND)])


def _refused(pool: Pool, name: str) -> Mask:
    """Images that people have labelled, but not as this."""
    return np.asarray(pool.taught & ~(pool.shows(name) if name in pool.classes else pool.present.any(axis=1)))


def _first_look(pool: Pool, whiten: Whitening, exemplars: Floats, refused: Mask) -> tuple[Relevance, Floats]:
    """Mean likeness to the exemplars; of an image its best window counts. And the refused windows most like them."""
    score = np.full(len(pool), -np.inf, np.float32)
    tile, like = np.full(len(pool), WHOLE, np.int16), np.zeros(len(pool), np.int64)
    hard: list[tuple[Floats, Floats]] = []
    for part in pool.all_windows():
        white = whiten(part.vectors)
        near = white @ exemplars.T
        value = near.mean(axis=1)
        _keep_best(part, value, near.argmax(axis=1), score, tile, like)
        known = np.flatnonzero(refused[part.rows])
        worst = known[np.argsort(-value[known], kind="stable")[:HARD]]
        hard.append((value[worst], white[worst]))
    values, windows = (np.concatenate(list(both)) for both in zip(*hard, strict=True))
    return Relevance(score, tile, like), windows[np.argsort(-values, kind="stable")[:HARD]]


def _keep_best(part: Windows, value: Floats, which: Rows, score: Floats, tile: Tiles, like: Rows) -> None:
    order = np.argsort(value, kind="stable")  # of one image's windows, the best is written last
    order = order[value[order] > score[part.rows[order]]]
    rows = part.rows[order]
    score[rows], tile[rows], like[rows] = value[order], part.tiles[order], which[order]


def _second_look(pool: Pool, whiten: Whitening, found: Relevance, refused: Floats, negative: float) -> Relevance:
    """The candidates' best windows, less their likeness to the nearest refused one."""
    score = found.score.copy()
    rows = pool.open
    close = np.zeros(len(pool), bool)
    close[rows[np.argsort(-score[rows], kind="stable")[:LOOKED_AT_TWICE]]] = True
    for part in pool.all_windows():
        mine = close[part.rows] & (part.tiles == found.tile[part.rows])
        alike = (whiten(part.vectors[mine]) @ refused.T).max(axis=1, initial=0)
        score[part.rows[mine]] -= negative * alike
    score[~close] -= negative  # nobody looked: they may not pass those that were looked at
    return found._replace(score=score)
