"""The probe on windows: an image is as likely as its likeliest window, and refused images teach it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from curate.select import window_probe
from curate.select.pool import WHOLE, Exemplars, Pool, Windows
from curate.strategies import CATALOGUE
from tests.pools import drawn


def with_defects(shown: int = 12, alike: int = 0) -> tuple[Pool, np.ndarray, np.ndarray]:
    """A defect in one tile of some images, invisible in the image as a whole; and images with a mark that resembles it.

    Returns:
        The pool, with the tiles of three defects as exemplars; the rows that show it; and those with the mark.
    """
    rng = np.random.default_rng(1)
    pool = drawn(300, exemplars=False)
    rows = np.flatnonzero(pool.candidates)
    defects, marks = rows[:shown], rows[shown : shown + alike]
    width = pool.vectors.shape[1]
    defect, other = rng.standard_normal(width), rng.standard_normal(width)
    tile = pool.vectors + 0.15 * rng.standard_normal((300, width)).astype(np.float32)
    tile[defects] += 0.5 * defect
    tile[marks] += 0.5 * (0.7 * defect + 0.7 * other)
    tile /= np.linalg.norm(tile, axis=1, keepdims=True)
    parts = [Windows(np.arange(300), np.full(300, n, np.int16), v) for n, v in ((WHOLE, pool.vectors), (3, tile))]
    given = defects[:3]
    exemplars = Exemplars(
        tuple(pool.ids[row] for row in given), np.full(3, 3, np.int16), tile[given].astype(np.float32), ("blister",) * 3
    )
    candidates = pool.candidates.copy()
    candidates[given] = False
    pool = replace(pool, candidates=candidates, population=candidates, exemplars=exemplars)
    return replace(pool, windows=lambda: iter(parts), memo={}, lasting={}), defects[3:], marks


def test_the_likeliest_window_decides() -> None:
    pool, defects, _ = with_defects()
    likely, tile = window_probe.scores(pool, "blister")
    best = np.argsort(-np.where(pool.candidates, likely, -1))[: len(defects)]
    assert set(best.tolist()) == set(defects.tolist())
    assert set(tile[defects].tolist()) == {3}


def test_refused_images_push_their_like_down() -> None:
    pool, defects, marks = with_defects(alike=10)
    labelled, candidates = pool.labelled.copy(), pool.candidates.copy()
    labelled[marks[:3]], candidates[marks[:3]] = True, False
    said = replace(pool, labelled=labelled, candidates=candidates, population=candidates, memo={}, lasting={})
    before, after = (window_probe.scores(one, "blister").likely for one in (pool, said))
    gap = [float(np.median(likely[defects]) - np.median(likely[marks[3:]])) for likely in (before, after)]
    assert gap[1] > gap[0] > 0


def test_without_a_positive_window_nothing_is_reported() -> None:
    pool, _, _ = with_defects()
    none = Exemplars((), np.zeros(0, np.int16), np.zeros((0, pool.vectors.shape[1]), np.float32), ())
    likely, tile = window_probe.scores(replace(pool, exemplars=none, memo={}), "blister")
    assert set(likely.tolist()) == {0.5}
    assert set(tile.tolist()) == {WHOLE}


def test_the_strategy_names_the_window_and_gives_scarce_classes_more() -> None:
    pool, defects, _ = with_defects()
    picks = CATALOGUE.call("window_probe")(pool, 6, np.random.default_rng(0))
    assert set(pool.rows_of([pick.id for pick in picks]).tolist()) <= set(defects.tolist())
    assert all(pick.tile == 3 and "gives blister" in pick.reason for pick in picks)
