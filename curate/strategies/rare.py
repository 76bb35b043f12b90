"""Candidates for the scarcest classes: windows like the few exemplars, and unlike labelled images of other kinds.

Windows are compared after whitening (see `curate/select/whitening.py`). A model contributes its likeliest images as
well, or a probe where no model knows the class.
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
from curate.strategies.nearest import window_name

HARD = 64  # negative windows, of those most similar to the exemplars
RESCORED = 20_000  # candidates that are compared with the negatives
Tiles = NDArray[np.int16]


class Relevance(NamedTuple):
    """For each row the relevance of its best window, that window's tile, and the number of the most similar exemplar.

    `rows` are the candidates that were compared with negatives, too, and `windows` their best windows.
    """

    score: Floats
    tile: Tiles
    like: Rows
    rows: Rows
    windows: Floats


class RareOptions(NamedTuple):
    """The options of `select`."""

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
    """Pick the images that are most likely to show a scarce class, with larger quotas for scarcer classes.

    All similarities are cosines of whitened windows.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.
        shrinkage: of the whitening.
        negative: the weight of the similarity to windows of images that are labelled as something else.
        separation: a window at least this similar to a better candidate counts as its copy and comes last.
        expand: the number of best candidates that become exemplars themselves, with half the weight. Off by default:
            on drawn blisters it misled (9.6 instead of 13.6 coils of 200 picks), and edge cracks gained nothing.

    Returns:
        One pick an image, best first, with the window and its exemplar.
    """
    if shrinkage <= 0:
        raise CurateError(f"option 'shrinkage' of strategy rare is {shrinkage:g}; allowed: more than 0")
    names = sought_classes(pool)
    if not names:
        raise CurateError(
            "strategy 'rare' needs exemplars of a scarce class: give --exemplars VIEW|TAG|IDS, or label one image of it"
        )
    options = RareOptions(shrinkage, negative, separation, expand)
    weights = [1 / (1 + (pool.group_count(name) if name else 0)) for name in names]
    # A second turn without quotas: what one class could not use goes to the others.
    turns = [*zip(names, shares(budget, weights), strict=True), *((name, budget) for name in names)]
    taken: dict[str, Pick] = {}
    for name, quota in turns:
        quota = min(quota, budget - len(taken))
        candidates = [pick for pick in _candidates(pool, name, options, 2 * budget) if pick.id not in taken]
        for pick in candidates[:quota]:
            taken.setdefault(pick.id, pick)  # on several lists: the first is the exemplar's, whose reason says more
    return tuple(taken.values())


def sought_classes(pool: Pool) -> list[str]:
    """The classes with exemplars, or scarce and known to a model, scarcest first; '' stands for unknown exemplars."""
    names = {*pool.exemplars.classes, *(pool.scarce_classes() if "probability" in pool.scores else ())}
    allowed = {"", *(pool.wanted or pool.classes)}
    return sorted(names & allowed, key=lambda name: (pool.group_count(name) if name else 0, name))


def _candidates(pool: Pool, name: str, options: RareOptions, most: int) -> list[Pick]:
    """Candidates of a class, best first: those like the exemplars alternate with the likeliest of a model or probe."""
    lists = []
    exemplars = pool.exemplars.of([name])
    if len(exemplars):
        relevance = pool.once(
            f"rare {name} {options}", lambda: _relevance(pool, exemplars, _negatives(pool, name), options)
        )
        whiten = whitening_of(pool, options.shrinkage)
        best = top(pool, pool.per_effort(relevance.score), 2 * most)
        rows = _copies_last(relevance, best, whiten, options.separation)[:most]
        lists.append([_exemplar_pick(pool, name, row, relevance, exemplars) for row in rows])
    if (likely := _model_probability(pool, name)) is not None:
        rows = top(pool, pool.per_effort(likely), most).tolist()
        lists.append([_probability_pick(pool, name, row, likely, "model") for row in rows])
    elif name and pool.shows(name).sum() >= linear_probe.FEWEST:
        likely = pool.once(f"ranking {name}", lambda: linear_probe.ranking(pool, pool.shows(name)))
        rows = top(pool, pool.per_effort(likely), most).tolist()
        lists.append([_probability_pick(pool, name, row, likely, "probe") for row in rows])
    return [pick for turn in zip(*lists, strict=True) for pick in turn]


def _copies_last(relevance: Relevance, rows: Rows, whiten: Whitening, separation: float) -> list[int]:
    """The rows with near-copies of better ones moved to the end; rows that were not rescored keep their place."""
    place = np.minimum(np.searchsorted(relevance.rows, rows), len(relevance.rows) - 1)
    rescored, white = relevance.rows[place] == rows, whiten(relevance.windows[place])
    chosen: list[int] = []
    copies: list[int] = []
    kept, count = np.empty_like(white), 0
    for row, window, is_rescored in zip(rows.tolist(), white, rescored, strict=True):
        if is_rescored and count and float((kept[:count] @ window).max()) >= separation:
            copies.append(row)
            continue
        chosen.append(row)
        if is_rescored:
            kept[count] = window
            count += 1
    return chosen + copies


def _exemplar_pick(pool: Pool, name: str, row: int, relevance: Relevance, exemplars: Exemplars) -> Pick:
    exemplar, score, tile = exemplars.ids[relevance.like[row]], float(relevance.score[row]), int(relevance.tile[row])
    text = f"similarity {score:.2f} to {name or 'the'} exemplar {exemplar[:8]}, {window_name(tile)}"
    return Pick(pool.ids[row], "rare", score, text, like=exemplar, tile=tile)


def _model_probability(pool: Pool, name: str) -> Floats | None:
    """The model's probability of the class for each image; None where no model knows the class."""
    if not name or "probability" not in pool.scores:
        return None
    likely = pool.scores["probability"][:, pool.classes.index(name)]
    return likely if np.nan_to_num(likely).any() else None


def _probability_pick(pool: Pool, name: str, row: int, likely: Floats, source: str) -> Pick:
    value = float(np.nan_to_num(likely[row]))
    return Pick(pool.ids[row], "rare", value, f"the {source} gives {name} {value:.2f}")


# --- relevance ------------------------------------------------------------------------------------------------------


def _relevance(pool: Pool, exemplars: Exemplars, negatives: Mask, options: RareOptions) -> Relevance:
    """Similarity of each image to the exemplars; that of the best candidates is lowered by similarity to negatives."""
    whiten = whitening_of(pool, options.shrinkage)
    wanted = whiten(exemplars.vectors)
    weights = np.full(len(wanted), 1 / len(wanted), np.float32)
    first, hard = _scored(pool, options, wanted, weights, negatives)
    relevance = _rescored(pool, options, first, hard)
    if not options.expand:
        return relevance
    more = whiten(relevance.windows[np.isin(relevance.rows, _best_of_groups(pool, relevance, options.expand))])
    more_weights = np.full(len(more), 0.5 / max(1, len(more)), np.float32)
    second, hard = _scored(pool, options, np.vstack([wanted, more]), np.concatenate([weights, more_weights]), negatives)
    return _rescored(pool, options, second._replace(like=first.like), hard)


def _best_of_groups(pool: Pool, relevance: Relevance, count: int) -> list[int]:
    best: dict[int, int] = {}
    for row in top(pool, relevance.score, 20 * count).tolist():
        best.setdefault(int(pool.groups[row]), row)
    return list(best.values())[:count]


def _negatives(pool: Pool, name: str) -> Mask:
    """Trainable rows that do not show the class."""
    return np.asarray(pool.trainable & ~(pool.shows(name) if name in pool.classes else pool.present.any(axis=1)))


def _scored(
    pool: Pool, options: RareOptions, wanted: Floats, weights: Floats, negatives: Mask
) -> tuple[Relevance, Floats]:
    """Mean similarity of each image's best window to the wanted ones; then the negatives most similar to these."""
    whiten = whitening_of(pool, options.shrinkage)
    score = np.full(len(pool), -np.inf, np.float32)
    tile, like = np.full(len(pool), WHOLE, np.int16), np.zeros(len(pool), np.int64)
    hardest: list[tuple[Floats, Floats]] = []
    for part, lengths in windows_with_lengths(pool, options.shrinkage):
        similarity = whiten.similarity(part.vectors, lengths, wanted)
        value = np.asarray(similarity @ weights, np.float32)
        _keep_best(part, value, similarity.argmax(axis=1), score, tile, like)
        rows = np.flatnonzero(negatives[part.rows])
        worst = rows[np.argsort(-value[rows], kind="stable")[:HARD]]
        hardest.append((value[worst], part.vectors[worst]))
    values, windows = (np.concatenate(list(both)) for both in zip(*hardest, strict=True))
    none = np.zeros(0, np.int64), np.zeros((0, windows.shape[1]), np.float32)
    return Relevance(score, tile, like, *none), windows[np.argsort(-values, kind="stable")[:HARD]]


def _keep_best(part: Windows, value: Floats, which: Rows, score: Floats, tile: Tiles, like: Rows) -> None:
    order = np.argsort(value, kind="stable")  # of one image's windows the best is written last
    order = order[value[order] > score[part.rows[order]]]
    rows = part.rows[order]
    score[rows], tile[rows], like[rows] = value[order], part.tiles[order], which[order]


def _rescored(pool: Pool, options: RareOptions, relevance: Relevance, negatives: Floats) -> Relevance:
    """Lower the relevance of the best candidates by their similarity to the nearest negative window."""
    whiten = whitening_of(pool, options.shrinkage)
    rows = np.sort(top(pool, relevance.score, RESCORED))
    windows, length = np.zeros((len(rows), whiten.matrix.shape[1]), np.float32), np.ones(len(rows), np.float32)
    place = np.full(len(pool), -1, np.int64)
    place[rows] = np.arange(len(rows))
    for part, lengths in windows_with_lengths(pool, options.shrinkage):
        mine = (place[part.rows] >= 0) & (part.tiles == relevance.tile[part.rows])
        windows[place[part.rows[mine]]], length[place[part.rows[mine]]] = part.vectors[mine], lengths[mine]
    penalty = whiten.similarity(windows, length, whiten(negatives)).max(axis=1, initial=0)
    score = relevance.score - np.float32(options.negative)  # not compared: never above one that was
    score[rows] = relevance.score[rows] - options.negative * penalty
    return Relevance(score, relevance.tile, relevance.like, rows, windows)
