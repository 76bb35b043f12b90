"""How versions of a label differ, held against masks that are drawn by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.data import Label, make_defect
from curate.index.differences import MOST_PANELS, by_class, draw_versions
from curate.masks.shapes import defect_from_mask
from tests.fakes import save_image


def masked(name: str, rows: slice, columns: slice, severity: str | None = None) -> Label:
    mask = np.zeros((20, 30), np.uint8)
    mask[rows, columns] = 1
    defect = defect_from_mask(name, mask)
    assert defect
    return Label("labelled", (make_defect(name, defect.box, defect.rle, severity),))


SMALL, LARGE = masked("crack", slice(0, 4), slice(0, 5)), masked("crack", slice(0, 4), slice(0, 10), "heavy")


def test_regions_areas_and_overlap() -> None:
    assert by_class([("a", SMALL), ("b", LARGE)], 30, 20)["crack"] == {
        "shown": [True, True],
        "regions": [1, 1],
        "area": [20, 40],
        "iou": 0.5,
        "severity": [[], ["heavy"]],
    }


def test_a_class_that_one_version_lacks_has_no_overlap() -> None:
    found = by_class([("a", SMALL), ("b", Label("labelled", classes=("hole",)))], 30, 20)
    assert list(found) == ["crack", "hole"]
    assert (found["crack"]["regions"], found["crack"]["iou"]) == ([1, 0], None)
    assert (found["hole"]["shown"], found["hole"]["area"]) == ([False, True], [0, 0])


def test_of_several_versions_the_lowest_overlap_counts() -> None:
    apart = masked("crack", slice(10, 14), slice(0, 5))
    assert by_class([("a", SMALL), ("b", SMALL), ("c", apart)], 30, 20)["crack"]["iou"] == 0.0


@pytest.mark.parametrize(("width", "height"), [(30, 20), (200, 20)])
def test_the_picture_shows_each_version(tmp_path: Path, width: int, height: int) -> None:
    save_image(tmp_path / "a.png", width, height)
    versions = [("line/ä.png", SMALL), ("line/b.png", Label("labelled"))]
    file = draw_versions(tmp_path / "work" / "one.png", tmp_path / "a.png", versions, {"crack": "#ff0000"})
    with Image.open(file) as sheet:
        red = np.asarray(sheet.convert("RGB")).astype(int)
    red = (red[..., 0] - red[..., 1:].max(axis=2)) > 200
    rows, columns = np.nonzero(red)
    assert len(rows)
    first = columns.max() < red.shape[1] / 2 if width < 2 * height else rows.max() < red.shape[0] / 2
    assert first, "only the first panel has a crack"
    draw_versions(file, tmp_path / "a.png", versions * MOST_PANELS, {})  # bounded; any class has a colour
