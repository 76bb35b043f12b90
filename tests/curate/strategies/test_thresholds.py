"""GALAXY's bisections and DIRECT's thresholds against what the papers say, by brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.select.pool import Pool
from curate.strategies import CATALOGUE, direct, galaxy
from tests.pools import drawn

LIKELY = np.linspace(1, 0, 300, dtype=np.float32)  # of the rows, in their order
CUT = 30


def ranked(known: dict[int, bool]) -> Pool:
    """300 images in the order of `LIKELY`; the labels of some."""
    pool = drawn(300, labelled=0, exemplars=False)
    labelled = np.isin(np.arange(300), list(known))
    present = np.zeros_like(pool.present)
    present[[row for row, shows in known.items() if shows], 0] = True
    candidates = ~labelled
    return replace(pool, labelled=labelled, present=present, candidates=candidates, population=candidates, memo={})


def test_galaxy_bisects_the_shortest_stretch_between_unlike_labels_first() -> None:
    pool = ranked({0: True, 10: True, 50: False, 60: True, 70: False, 299: False})
    first = list(islice(galaxy._bisections(pool, LIKELY, pool.shows("scratch")), 40))
    assert sorted(first[:18]) == [*range(51, 60), *range(61, 70)], "the two stretches of ten"
    assert first[0] in (55, 65)
    assert first[18] == 30, "the middle of the long one"
    assert set(first).isdisjoint(range(1, 10)), "between like labels there is no cut"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_direct_s_thresholds_err_least(rows: list[tuple[bool, bool]]) -> None:
    shows, known = (np.array(column) for column in zip(*rows, strict=True))
    low, high = direct.best_thresholds(shows, known)
    errors = [
        sum(known[:t] & ~shows[:t]) + sum(known[t:] & shows[t:]) for t in range(len(rows) + 1)
    ]  # the known ones before t should show the class, the others not
    assert set(errors[low : high + 1]) == {min(errors)}
    runs = "".join("x" if error == min(errors) else " " for error in errors).split()
    assert high + 1 - low == max(map(len, runs))


@pytest.mark.parametrize("name", ["galaxy", "direct"])
def test_both_ask_around_the_cut(name: str) -> None:
    """A hundred labels, a few of them wrong: most picks lie where the labels turn, not where the class is certain."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(300)[:100]
    wrong = set(rng.permutation(rows)[:3].tolist())
    pool = ranked({int(row): (row < CUT) != (row in wrong) for row in rows})
    scores = np.zeros((300, 3), np.float32)
    scores[:, 0] = LIKELY
    pool = replace(pool, scores={"probability": scores}, wanted=("scratch",), memo={})
    picks = CATALOGUE.call(name)(pool, 12, np.random.default_rng(0))
    places = pool.rows_of([pick.id for pick in picks])
    assert len(set(places.tolist())) == 12
    assert np.median(np.abs(places - CUT)) < 40
    assert all("scratch" in pick.reason for pick in picks)
