"""No annotation is lost in silence: of each image, all come out as regions, or the image does not come in at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from curate import formats
from curate.data import Label, Record
from curate.errors import LabelProblem
from curate.index import intake
from curate.index.intake import SourceRules
from curate.project import LimitsConfig
from labeling import results as wire
from tests.fakes import coco, save_image, save_text, voc_xml

WIDTH, HEIGHT = 16, 12
STEMS = ("a", "b", "c")

NUMBER = st.floats(-4, 20).map(lambda value: round(value, 2)) | st.sampled_from(
    [0, 1, -1, 1e-9, 1e30, -1e30, 1e308, float("inf"), float("nan"), 2**31, 2**63, 10**40, "x", None, True]
)
NUMBERS = st.lists(NUMBER, min_size=3, max_size=9)
CSV_CELLS = st.sampled_from(
    ["1 2", "5 6 20 3", "1", "0 4", "190 9", "x", "9 3 1 2", '"1 2"', '"1 2', '1 2"', "1 99999999999"]
)
Annotations = dict[str, list[Any]]
"""What the label file says of each image, by stem."""


def drawn(image: st.SearchStrategy[Any]) -> st.SearchStrategy[Annotations]:
    return st.fixed_dictionaries({stem: st.lists(image, max_size=3) for stem in STEMS})


SEGMENTATION = (
    st.lists(NUMBERS, max_size=2)
    | st.fixed_dictionaries({"size": st.just([HEIGHT, WIDTH]), "counts": st.lists(st.integers(-1, 200), max_size=4)})
    | st.sampled_from([{"size": [HEIGHT, WIDTH], "counts": [192]}, {"size": [HEIGHT, WIDTH], "counts": "P6"}, {}, None])
)
GREY = st.sampled_from([[0], [255], [0, 255], [0, 1], [0, 100, 127], [0, 2, 3], [7]])


def write_coco(root: Path, drawn_: Annotations) -> dict[str, Any]:
    numbers = dict(zip(STEMS, range(1, 9), strict=False))
    images = [{"id": number, "file_name": f"{stem}.png"} for stem, number in numbers.items()]
    entries = [
        {"id": 1, "image_id": numbers[stem], "category_id": 1, "segmentation": shape, "bbox": box}
        for stem, shapes in drawn_.items()
        for shape, box in shapes
    ]
    save_text(root / "annotations.json", coco(images, entries))
    return {}


def write_yolo(root: Path, drawn_: Annotations) -> dict[str, Any]:
    for stem, shapes in drawn_.items():
        save_text(root / f"{stem}.txt", "\n".join(" ".join(map(str, [0, *values])) for values in shapes))
    return {"names": ["crack"]}


def write_voc(root: Path, drawn_: Annotations) -> dict[str, Any]:
    for stem, shapes in drawn_.items():
        save_text(root / f"{stem}.xml", voc_xml(f"{stem}.png", *(("crack", *values) for values in shapes)))
    return {}


def write_severstal(root: Path, drawn_: Annotations) -> dict[str, Any]:
    rows = [f"{stem}.png,1,{cell}" for stem, shapes in drawn_.items() for cell in shapes]
    save_text(root / "train.csv", "\n".join(["ImageId,ClassId,EncodedPixels", *rows]))
    return {}


def write_mask(path: Path, values: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH))).save(path)


def write_kolektor(root: Path, drawn_: Annotations) -> dict[str, Any]:
    for stem, shapes in drawn_.items():
        for suffix, values in zip((".bmp", ".png", ".tif"), shapes, strict=False):
            write_mask(root / f"{stem}_label{suffix}", values)
    return {}


def write_mask_folder(root: Path, drawn_: Annotations) -> dict[str, Any]:
    (root / "masks").mkdir()
    for stem, shapes in drawn_.items():
        for name, values in zip(("crack", "hole", "defect"), shapes, strict=False):
            write_mask(root / "masks" / name / f"{stem}.png", values)
    return {"images": ""}


CASES: dict[str, tuple[st.SearchStrategy[Any], Callable[[Path, Annotations], dict[str, Any]]]] = {
    "coco": (st.tuples(SEGMENTATION, NUMBERS), write_coco),
    "yolo": (st.lists(st.floats(-0.1, 1.1) | st.sampled_from([0, 1, 1e-7, 1e30]), min_size=3, max_size=9), write_yolo),
    **dict.fromkeys(("voc", "neu_det", "gc10"), (st.lists(NUMBER, min_size=4, max_size=4), write_voc)),
    "severstal": (CSV_CELLS, write_severstal),
    "kolektor": (GREY, write_kolektor),
    "mask_folder": (GREY, write_mask_folder),
}
WITHOUT_SHAPES = {"images", "class_folders", "magnetic_tile"}  # no labels, or folders that name a class in any case


def test_every_format_is_tried() -> None:
    assert CASES.keys() | WITHOUT_SHAPES == set(formats.names())


def labels_of(name: str, root: Path, options: dict[str, Any]) -> tuple[dict[str, Label], set[str]]:
    """The label of each image that comes in, and the images that do not."""
    rules = SourceRules(root, LimitsConfig(), {"1": "crack"}, frozenset({"crack", "hole", "defect"}))
    taken: dict[str, Label] = {}
    refused: set[str] = set()
    for entry in formats.read(name, root, None, True, options):
        try:
            if not isinstance(entry, Record):
                raise LabelProblem(entry.reason)
            taken[Path(entry.path).stem] = intake.label_of(entry, rules, WIDTH, HEIGHT)
        except LabelProblem:
            refused.add(Path(entry.path).stem)
    return taken, refused


def count(name: str, annotations: list[Any]) -> int:
    """How many of them say that there is a defect: an empty mask says that there is none."""
    return sum(any(image) for image in annotations) if name in ("kolektor", "mask_folder") else len(annotations)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_as_many_regions_as_drawn_or_none_of_the_image(name: str, data: st.DataObject) -> None:
    strategy, write = CASES[name]
    drawn_ = data.draw(drawn(strategy))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for stem in STEMS:
            save_image(root / f"{stem}.png", WIDTH, HEIGHT)
        taken, refused = labels_of(name, root, write(root, drawn_))
    for stem, drawings in drawn_.items():
        assert (stem in taken) != (stem in refused)
        if stem in taken:
            assert len(taken[stem].defects) == count(name, drawings)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.sampled_from(STEMS), min_size=1, max_size=6), places=st.lists(st.integers(0, 200), max_size=4))
@example(rows=["a"], places=[0, 0, 91, 0])  # a valid cell, which names the image "a.png
def test_no_quote_in_a_csv_makes_an_image_clean(rows: list[str], places: list[int]) -> None:
    text = "\n".join(f"{stem}.png,1,1 2" for stem in rows)
    for place in places:
        place %= len(text) + 1
        text = f'{text[:place]}"{text[place:]}'
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for stem in STEMS:
            save_image(root / f"{stem}.png", WIDTH, HEIGHT)
        save_text(root / "train.csv", f"ImageId,ClassId,EncodedPixels\n{text}\n")
        taken, _ = labels_of("severstal", root, {})
    for stem in set(rows) & taken.keys():
        assert not taken[stem].clean
        assert len(taken[stem].defects) in (0, rows.count(stem))


POINT = st.lists(st.floats(-200, 300) | st.sampled_from([1e30, float("nan"), float("inf")]), min_size=2, max_size=2)
DRAWN = st.fixed_dictionaries({"points": st.lists(POINT, min_size=1, max_size=5)}) | st.fixed_dictionaries(
    {name: st.floats(-200, 300) for name in ("x", "y", "radiusX", "radiusY")}
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(DRAWN, max_size=3))
def test_what_annotators_draw_comes_in_or_disputes_the_image(drawings: list[dict[str, Any]]) -> None:
    results = [
        {"id": str(number), "type": "polygonlabels", "value": value | {"polygonlabels": ["crack"]}}
        for number, value in enumerate(drawings)
    ]
    label = wire.label_in(json.loads(json.dumps(results)), (WIDTH, HEIGHT))
    assert label.status == "disputed" or len(label.defects) == len(drawings)
