"""Labels that follow from a person's edit in the App, and versions that a decision chooses."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from curate.data import UNLABELLED, Defect, Label, make_defect
from curate.errors import CurateError
from curate.index import documents
from curate.index.app_edits import MARKED, label_from_edit, with_tight_boxes
from curate.index.conflicts import choose
from curate.labels.log import DUPLICATE_LABELS
from curate.masks import rle
from curate.masks.shapes import defect_from_mask, mask_of

CLASSES = {"crack", "hole"}
BOMB = np.zeros((4000, 4000), np.uint8)
CRACK = make_defect("crack", (1, 2, 3, 4))
HOLE = make_defect("hole", (5, 5, 1, 1))
LABELLED = Label("labelled", (CRACK,))
DISPUTED = Label("disputed", (CRACK,), (), DUPLICATE_LABELS)


def _packed(mask: Any) -> bytes:
    array = io.BytesIO()
    np.save(array, mask)
    return zlib.compress(array.getvalue())


@pytest.mark.parametrize(
    ("region", "fault"),
    [
        ({"mask": _packed(BOMB)}, documents.UNREADABLE),
        ({"mask_path": "bomb.png"}, documents.UNREADABLE),
        ({"mask": _packed(BOMB[:4, :4]), "bounding_box": [0, 0, 1e5, 1e5]}, documents.INCOMPLETE),
    ],
)
def test_no_mask_of_the_app_is_larger_than_its_image(
    region: dict[str, Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(BOMB).save("bomb.png")
    tracemalloc.start()
    found = documents.defect({"label": "crack", "bounding_box": [0, 0, 1, 1]} | region, 32, 24)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == fault
    assert most < BOMB.size / 8, "nothing was unpacked"


@pytest.mark.parametrize(
    ("edited", "before", "meant"),
    [
        # Drawing, deleting and confirming label the image.
        (Label("unlabelled", (CRACK,)), UNLABELLED, LABELLED),
        (Label("queued", (CRACK,)), Label("queued"), LABELLED),
        (Label("unlabelled", (), ("hole",)), UNLABELLED, Label("labelled", (), ("hole",))),
        (Label("labelled"), LABELLED, Label("labelled")),
        (Label("labelled"), UNLABELLED, Label("labelled")),
        (Label("labelled", (CRACK, HOLE)), LABELLED, Label("labelled", (CRACK, HOLE))),
        # A status holds as it is.
        (Label("unlabelled"), LABELLED, UNLABELLED),
        (Label("skipped", (CRACK,)), LABELLED, Label("skipped", (CRACK,))),
        (Label("disputed", (CRACK,)), LABELLED, Label("disputed", (CRACK,), (), MARKED)),
        (Label("disputed", (CRACK,), (), "blurred"), LABELLED, Label("disputed", (CRACK,), (), "blurred")),
        # Editing a disputed image decides it.
        (replace(DISPUTED, defects=(HOLE,)), DISPUTED, Label("labelled", (HOLE,))),
        (replace(DISPUTED, defects=()), DISPUTED, Label("labelled")),
        # A class that the project does not know is never trained on.
        (
            Label("labelled", (make_defect("rust", (0, 0, 1, 1)),), ("dirt",)),
            LABELLED,
            Label("disputed", (make_defect("rust", (0, 0, 1, 1)),), ("dirt",), "unknown-class: dirt, rust"),
        ),
        (
            Label("skipped", (), ("rust",)),
            LABELLED,
            Label("disputed", (), ("rust",), "unknown-class: rust"),
        ),
    ],
)
def test_what_an_edit_means(edited: Label, before: Label, meant: Label) -> None:
    assert label_from_edit(edited, before, CLASSES) == meant


STATUS: Any = st.sampled_from(("unlabelled", "queued", "labelled", "skipped", "disputed"))
ANY = st.builds(
    Label,
    STATUS,
    st.lists(st.sampled_from((CRACK, HOLE, make_defect("rust", (0, 0, 1, 1)))), max_size=3).map(tuple),
    st.sets(st.sampled_from(("crack", "rust"))).map(lambda names: tuple(sorted(names))),
    st.none() | st.just("why"),
)


@given(ANY, ANY)
def test_every_edit_ends_in_a_state_that_makes_sense(edited: Label, before: Label) -> None:
    meant = label_from_edit(edited, before, CLASSES)
    assert (meant.status == "disputed") <= bool(meant.reason)
    assert meant.status != "labelled" or meant.present <= CLASSES
    assert meant.status != "labelled" or meant.reason is None
    assert not (meant.status in ("unlabelled", "queued") and meant.present)
    assert label_from_edit(meant, meant, CLASSES).present == meant.present


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, 1)), st.integers(0, 3), st.integers(0, 2))
def test_a_mask_in_a_loose_box_becomes_tight_and_keeps_its_pixels(mask: Any, left: int, top: int) -> None:
    loose = Defect("crack", (float(left), float(top), 9.0, 7.0), rle.mask_to_coco(mask))
    whole = np.zeros((12, 16), np.uint8)
    whole[top : top + 7, left : left + 9] = mask
    found = with_tight_boxes(Label("labelled", (loose, CRACK)))[0].defects
    expected = defect_from_mask("crack", whole)
    assert found == ((expected, CRACK) if expected else (CRACK,))
    if expected:
        assert np.array_equal(mask_of(found[0], 16, 12), whole)
    assert with_tight_boxes(Label("labelled", found))[0].defects == found


def test_a_mask_that_was_rubbed_out_is_a_deleted_region() -> None:
    empty = Defect("crack", (1.0, 1.0, 4.0, 3.0), rle.mask_to_coco(np.zeros((3, 4), np.uint8)))
    assert label_from_edit(Label("labelled", (empty,)), LABELLED, CLASSES).clean


# --- decisions --------------------------------------------------------------------------------------------------------

VERSIONS = [
    ("lib:a.jpg", Label("labelled", (CRACK,), ("scale",))),
    ("lib:b.jpg", Label("labelled", (CRACK, HOLE), (), "x")),
    ("lib:c.jpg", Label("labelled")),
]


@pytest.mark.parametrize(
    ("keep", "chosen"),
    [
        ("first", VERSIONS[0][1]),
        ("lib:b.jpg", Label("labelled", (CRACK, HOLE))),
        ("lib:c.jpg", Label("labelled")),
        ("clean", Label("labelled")),
        ("union", Label("labelled", (CRACK, HOLE), ("scale",))),
    ],
)
def test_a_decision_chooses_one_version(keep: str, chosen: Label) -> None:
    assert choose(VERSIONS, keep) == chosen


def test_an_unknown_version_lists_all() -> None:
    with pytest.raises(CurateError, match=r"unknown version 'lib:x.jpg'.*allowed: clean, first, lib:a.jpg"):
        choose(VERSIONS, "lib:x.jpg")
