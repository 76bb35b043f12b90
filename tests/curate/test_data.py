"""The nouns: canonical, and the same after a trip through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.data import UNLABELLED, Defect, Label, make_defect

NAMES = st.sampled_from(("crack", "hole", "Riß", "a b"))
NUMBERS = st.floats(-1e4, 1e4)
DEFECTS = st.builds(make_defect, NAMES, st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), st.none() | st.text(max_size=5))
LABELS = st.builds(
    Label,
    st.sampled_from(("unlabelled", "queued", "labelled", "skipped", "disputed")),
    st.lists(DEFECTS, max_size=4).map(tuple),
    st.lists(NAMES, max_size=3).map(tuple),
    st.none() | st.text(min_size=1, max_size=5),
)


@pytest.mark.slow
@given(LABELS)
def test_a_label_comes_back_from_json_with_its_digest(label: Label) -> None:
    again = Label.from_json(json.loads(json.dumps(label.to_json())))
    assert again.digest == label.digest
    assert again.to_json() == label.to_json()
    assert (again.status, again.reason, again.present) == (label.status, label.reason, label.present)
    assert sorted(again.defects, key=repr) == sorted(label.defects, key=repr)


@pytest.mark.slow
@given(LABELS, st.randoms(use_true_random=False))
def test_the_order_of_regions_does_not_matter_to_the_digest(label: Label, shuffler: Any) -> None:
    defects, classes = list(label.defects), list(label.classes)
    shuffler.shuffle(defects)
    shuffler.shuffle(classes)
    assert Label(label.status, tuple(defects), tuple(classes), label.reason).digest == label.digest


@pytest.mark.slow
@given(LABELS, LABELS)
def test_labels_that_say_something_else_have_another_digest(one: Label, two: Label) -> None:
    assert (one.digest == two.digest) == (one.to_json() == two.to_json())


@given(DEFECTS, st.integers(1, 5000), st.integers(1, 5000))
def test_a_box_survives_the_trip_through_fractions(defect: Defect, width: int, height: int) -> None:
    """FiftyOne keeps boxes as fractions of the image; what comes back must be the very same box."""
    x, y, w, h = defect.box
    there = [x / width, y / height, w / width, h / height]
    back = make_defect(defect.label, [there[0] * width, there[1] * height, there[2] * width, there[3] * height])
    assert back.box == defect.box


def test_clean_is_not_unlabelled() -> None:
    assert Label("labelled").clean
    assert not UNLABELLED.clean
    assert not Label("labelled", (), ("crack",)).clean
    assert not Label("skipped").clean
    assert Label("labelled").digest != UNLABELLED.digest


@pytest.mark.parametrize("change", [{"status": "disputed"}, {"reason": "x"}, {"classes": ["hole"]}, {"defects": []}])
def test_every_part_counts_in_the_digest(change: dict[str, Any]) -> None:
    base = Label("labelled", (make_defect("crack", (0, 0, 1, 1)),), ("crack",))
    assert Label.from_json(base.to_json() | change).digest != base.digest


@given(LABELS, st.dictionaries(NAMES, NAMES))
def test_a_rename_moves_every_name_once(label: Label, names: dict[str, str]) -> None:
    moved = label.renamed(names)
    assert moved.present == {names.get(name, name) for name in label.present}
    assert [d.label for d in moved.defects] == [names.get(d.label, d.label) for d in label.defects]
    assert [(d.box, d.rle) for d in moved.defects] == [(d.box, d.rle) for d in label.defects]
    assert (moved.status, moved.reason) == (label.status, label.reason)


def test_whole_pixels_and_floats_are_the_same_box() -> None:
    assert make_defect("a", (1, 2, 3, 4)) == make_defect("a", (1.0, 2.0, 3.0004, 3.9996))
    assert Label("labelled", (make_defect("a", (1, 2, 3, 4)),)).digest == (
        Label("labelled", (make_defect("a", (1.0, 2.0, 3.0004, 3.9996)),)).digest
    )
