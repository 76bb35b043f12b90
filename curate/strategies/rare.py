"""Candidates for the scarcest classes: windows that look like the few exemplars and unlike what is known to be not.

Windows are compared after whitening by the ordinary windows (an exemplar LDA): what all steel has in common says
nothing about a defect. A model contributes its likeliest images as well; a probe does where no model knows the class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from curate.select import linear_probe
from curate.select.pool import WHOLE, Exemplars, Floats, Mask, Pick, Picks, Pool, Rows, Windows, shares
from curate.select.whitening import SHRINKAGE, Whitening, whitening_of, windows_with_lengths
from curate.strategies._common import top
from curate.strategies.nearest import place as window

HARD = 64  # windows that people refused, of those most like the exemplars
LOOKED_AT_TWICE = 20_000  # candidates
Tiles = NDArray[np.int16]


class Relevance(NamedTuple):
    """For each row: how much its best window looks like the class, which window, and which exemplar it is like.

    `rows` are those that were looked at twice, `windows` their best windows.
    """

    score: Floats
    tile: Tiles
    like: Rows
    rows: Rows
    windows: Floats


class RareOptions(NamedTuple):
    """How to look: the options of `select`."""

    shrinkage: float
    negative: float
    separation: float
    expand: int


def select(
    pool: Pool,
    budget: int,
    rng: np.random.Generator,
    *,
    shrinkage: float = SHRINKAGE,
    negative: float = 0.5,
    separation: float = 0.95,
    expand: int = 0,
) -> Picks:
    """Likenesses are cosines of whitened windows.

    Args:
        shrinkage: of the whitening.
        negative: weighs the likeness to what people said is something else.
        separation: from this likeness to a better candidate on, a window is a near-copy and waits.
        expand: the likeliest candidates that become exemplars themselves, with half the weight. Off: on drawn
            blisters it led astray (9.6 instead of 13.6 coils of 200 picks), for edge cracks there was nothing to gain.
    """
    if shrinkage <= 0:
        raise CurateError(f"option 'shrinkage' of strategy rare is {shrinkage:g}; allowed: more than 0")
    names = sought(pool)
    if not names:
        raise CurateError(
            "strategy 'rare' needs exemplars of a scarce class: give --exemplars VIEW|TAG|IDS, or label one image of it"
        )
    look = RareOptions(shrinkage, negative, separation, expand)
    weights = [1 / (1 + (pool.groups_of(name) if name else 0)) for name in names]
    # A second turn without quotas: what one class could not use goes to the others.
    turns = [*zip(names, shares(budget, weights), strict=True), *((name, budget) for name in names)]
    taken: dict[str, Pick] = {}
    for name, quota in turns:
        quota = min(quota, budget - len(taken))
        found = [pick for pick in _candidates(pool, name, look, 2 * budget) if pick.id not in taken]
        for pick in found[:quota]:
            taken.setdefault(pick.id, pick)  # on several lists: the exemplar's reason says more
    return tuple(taken.values())


def sought(pool: Pool) -> list[str]:
    """The classes that there is anything to go by, the scarcest first; '' stands for exemplars of no known class."""
    names = {*pool.exemplars.classes, *(pool.scarce_classes() if "probability" in pool.scores else ())}
    allowed = {"", *(pool.wanted or pool.classes)}
    return sorted(names & allowed, key=lambda name: (pool.groups_of(name) if name else 0, name))


def _candidates(pool: Pool, name: str, look: RareOptions, most: int) -> list[Pick]:
    """Open rows, most relevant first: the exemplars' likes take turns with the model's likeliest, or with a probe's."""
    lists = []
    exemplars = pool.exemplars.of([name])
    if len(exemplars):
        found = pool.once(f"rare {name} {look}", lambda: _relevance(pool, exemplars, _refused(pool, name), look))
        whiten = whitening_of(pool, look.shrinkage)
        rows = _apart(found, top(pool, found.score, 2 * most), whiten, look.separation)[:most]
        lists.append([_like(pool, name, row, found, exemplars) for row in rows])
    if (likely := _by_model(pool, name)) is not None:
        lists.append([_likely(pool, name, row, likely, "model") for row in top(pool, likely, most).tolist()])
    elif name and pool.shows(name).sum() >= linear_probe.FEWEST:
        likely = pool.once(f"ranking {name}", lambda: linear_probe.ranking(pool, pool.shows(name)))
        lists.append([_likely(pool, name, row, likely, "probe") for row in top(pool, likely, most).tolist()])
    return [pick for turn in zip(*lists, strict=True) for pick in turn]


def _apart(found: Relevance, rows: Rows, whiten: Whitening, separation: float) -> list[int]:
    """The same rows, but near-copies of better ones come last. Those that were not looked at twice stay as they are."""
    place = np.minimum(np.searchsorted(found.rows, rows), len(found.rows) - 1)
    looked_at, white = found.rows[place] == rows, whiten(found.windows[place])
    chosen: list[int] = []
    copies: list[int] = []
    kept, count = np.empty_like(white), 0
    for row, mine, known in zip(rows.tolist(), white, looked_at, strict=True):
        if known and count and float((kept[:count] @ mine).max()) >= separation:
            copies.append(row)
            continue
        chosen.append(row)
        if known:
            kept[count] = mine
            count += 1
    return chosen + copies


def _like(pool: Pool, name: str, row: int, found: Relevance, exemplars: Exemplars) -> Pick:
    exemplar, score, tile = exemplars.ids[found.like[row]], float(found.score[row]), int(found.tile[row])
    text = f"similarity {score:.2f} to {name or 'the'} exemplar {exemplar[:8]}, {window(tile)}"
    return Pick(pool.ids[row], "rare", score, text, like=exemplar, tile=tile)


def _by_model(pool: Pool, name: str) -> Floats | None:
    """How likely each image shows the class; None where there is no model that knows it."""
    if not name or "probability" not in pool.scores:
        return None
    likely = pool.scores["probability"][:, pool.classes.index(name)]
    return likely if np.nan_to_num(likely).any() else None


def _likely(pool: Pool, name: str, row: int, likely: Floats, source: str) -> Pick:
    value = float(np.nan_to_num(likely[row]))
    return Pick(pool.ids[row], "rare", value, f"the {source} gives {name} {value:.2f}")


# --- relevance ------------------------------------------------------------------------------------------------------


def _relevance(pool: Pool, exemplars: Exemplars, refused: Mask, look: RareOptions) -> Relevance:
    """How much each image looks like the exemplars; the likeliest are held against what people refused."""
    whiten = whitening_of(pool, look.shrinkage)
    wanted = whiten(exemplars.vectors)
    plain = np.full(len(wanted), 1 / len(wanted), np.float32)
    first, hard = _first_look(pool, look, wanted, plain, refused)
    found = _second_look(pool, look, first, hard)
    if not look.expand:
        return found
    more = whiten(found.windows[np.isin(found.rows, _one_a_group(pool, found, look.expand))])
    shared = np.full(len(more), 0.5 / max(1, len(more)), np.float32)
    again, hard = _first_look(pool, look, np.vstack([wanted, more]), np.concatenate([plain, shared]), refused)
    return _second_look(pool, look, again._replace(like=first.like), hard)


def _one_a_group(pool: Pool, found: Relevance, count: int) -> list[int]:
    best: dict[int, int] = {}
    for row in top(pool, found.score, 20 * count).tolist():
        best.setdefault(int(pool.groups[row]), row)
    return list(best.values())[:count]


def _refused(pool: Pool, name: str) -> Mask:
    """Images that people have labelled, but not as this."""
    return np.asarray(pool.taught & ~(pool.shows(name) if name in pool.classes else pool.present.any(axis=1)))


def _first_look(
    pool: Pool, look: RareOptions, wanted: Floats, weights: Floats, refused: Mask
) -> tuple[Relevance, Floats]:
    """Mean likeness to what is wanted; of an image its best window counts. And the refused windows most like it."""
    whiten = whitening_of(pool, look.shrinkage)
    score = np.full(len(pool), -np.inf, np.float32)
    tile, like = np.full(len(pool), WHOLE, np.int16), np.zeros(len(pool), np.int64)
    hard: list[tuple[Floats, Floats]] = []
    for part, lengths in windows_with_lengths(pool, look.shrinkage):
        near = whiten.similarity(part.vectors, lengths, wanted)
        value = np.asarray(near @ weights, np.float32)
        _keep_best(part, value, near.argmax(axis=1), score, tile, like)
        known = np.flatnonzero(refused[part.rows])
        worst = known[np.argsort(-value[known], kind="stable")[:HARD]]
        hard.append((value[worst], part.vectors[worst]))
    values, windows = (np.concatenate(list(both)) for both in zip(*hard, strict=True))
    none = np.zeros(0, np.int64), np.zeros((0, windows.shape[1]), np.float32)
    return Relevance(score, tile, like, *none), windows[np.argsort(-values, kind="stable")[:HARD]]


def _keep_best(part: Windows, value: Floats, which: Rows, score: Floats, tile: Tiles, like: Rows) -> None:
    order = np.argsort(value, kind="stable")  # of one image's windows, the best is written last
    order = order[value[order] > score[part.rows[order]]]
    rows = part.rows[order]
    score[rows], tile[rows], like[rows] = value[order], part.tiles[order], which[order]


def _second_look(pool: Pool, look: RareOptions, found: Relevance, refused: Floats) -> Relevance:
    """The likeliest candidates' best windows, less their likeness to the nearest refused one."""
    whiten = whitening_of(pool, look.shrinkage)
    rows = np.sort(top(pool, found.score, LOOKED_AT_TWICE))
    windows, length = np.zeros((len(rows), whiten.matrix.shape[1]), np.float32), np.ones(len(rows), np.float32)
    place = np.full(len(pool), -1, np.int64)
    place[rows] = np.arange(len(rows))
    for part, lengths in windows_with_lengths(pool, look.shrinkage):
        mine = (place[part.rows] >= 0) & (part.tiles == found.tile[part.rows])
        windows[place[part.rows[mine]]], length[place[part.rows[mine]]] = part.vectors[mine], lengths[mine]
    alike = whiten.similarity(windows, length, whiten(refused)).max(axis=1, initial=0)
    score = found.score - np.float32(look.negative)  # nobody looked: these may not pass those that were looked at
    score[rows] = found.score[rows] - look.negative * alike
    return Relevance(score, found.tile, found.like, rows, windows)
