"""Exports are read back, by the formats and by pycocotools; file names, and an export that fails half-way."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from curate import exports, formats
from curate.data import Defect, Item, Label, Record, make_defect
from curate.errors import CurateError
from curate.exports import class_folders, coco, kaggle, masks, voc, yolo
from curate.masks import rle
from curate.masks.shapes import Mask, crop_of, defect_from_mask, defect_of, mask_of
from curate.project import ClassConfig, Project, ProjectConfig, SourceConfig
from tests.fakes import save_image

CLASSES = ["crack", 'a, "b" & <c>\'', "unused", "Kratzer größer"]
WRITERS = {"coco": coco.write, "kaggle": kaggle.write, "masks": masks.write, "voc": voc.write, "yolo": yolo.write}
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "coco": ("coco", {}),
    "kaggle": ("severstal", {"image_folder": "images"}),
    "masks": ("mask_folder", {"class_from": "folder"}),
    "voc": ("voc", {}),
    "yolo": ("yolo", {}),
}
ODD = [
    "plain.png",
    "two words.png",
    'größe, "x" & <y>\'.png',
    "a\nb\r\x01c.png",
    " .dot.png",
    "it's;=1.png",
    "x:y\\z.png",
]


def item(path: Path, *defects: Defect, classes: Sequence[str] = (), split: str | None = "train", **over: Any) -> Item:
    """An item whose image is drawn if it is not there yet."""
    if not path.exists():
        save_image(path, 40, 30)
    with Image.open(path) as image:
        width, height = image.size
    id = hashlib.sha256(os.fsencode(path)).hexdigest()
    label = Label("labelled", defects, tuple(classes))
    return replace(Item(id, path, width, height, label, split, "coil-1"), **over)


def blobs(random: np.random.Generator, width: int, height: int, density: float = 0.1) -> Mask:
    return (random.random((height, width)) < density).astype(np.uint8)


def random_defects(seed: int, width: int, height: int, density: float = 0.1) -> list[Defect]:
    """Two masks of one class, one of another, a box of either."""
    random = np.random.default_rng(seed)
    result = [defect_from_mask(CLASSES[n], blobs(random, width, height, density)) for n in (0, 0, 1)]
    edges = np.sort(random.random((2, 2, 2)).round(3), axis=1) * 0.9
    edges[:, 1] += 0.09  # up to 0.99: sides are rounded, and a box that ends at the rim would end a hair beyond it
    boxes = [(a[0] * width, a[1] * height, (b - a)[0] * width, (b - a)[1] * height) for a, b in edges]
    plain = [make_defect(label, box) for label, box in zip(CLASSES[:2], boxes, strict=True)]
    return [defect for defect in [*result, *plain] if defect]


def write(name: str, items: Sequence[Item], folder: Path, classes: Sequence[str] = CLASSES) -> int:
    folder.mkdir(parents=True)
    return WRITERS[name](iter(items), folder, classes)


def read_back(name: str, folder: Path, fully: bool = True) -> dict[str, list[Defect]]:
    """Defects by image, sorted; only of images that are labelled."""
    reader, options = READERS[name]
    result: dict[str, list[Defect]] = {}
    for record in formats.read(reader, folder, None, fully, options):
        assert isinstance(record, Record), record
        with Image.open(folder / record.path) as image:
            width, height = image.size
        defects = (defect_of(region, width, height, folder, True) for region in record.regions)
        if record.labelled:
            result[record.path] = sorted(defect for defect in defects if defect)
    if name == "kaggle":
        names = dict(list(csv.reader((folder / "classes.csv").open(encoding="utf-8", newline="")))[1:])
        result = {path: sorted(replace(d, label=names[d.label]) for d in defects) for path, defects in result.items()}
    return result


def parts(defect: Defect) -> list[Defect]:
    """The plain boxes of a defect, one for each 8-connected part; not written like the code under test."""
    from scipy import ndimage  # type: ignore[import-untyped]

    crop = crop_of(defect)
    if crop is None:
        return [defect]
    x, y = defect.box[:2]
    parts = ndimage.find_objects(ndimage.label(crop, np.ones((3, 3)))[0])
    sides = [(x + c.start, y + r.start, c.stop - c.start, r.stop - r.start) for r, c in parts]
    return [make_defect(defect.label, box) for box in sides]


def united(defects: Sequence[Defect], width: int, height: int) -> list[Defect]:
    masked = [defect for defect in defects if defect.rle]
    unions = {label: np.zeros((height, width), np.uint8) for label in {d.label for d in masked}}
    for defect in masked:
        unions[defect.label] |= mask_of(defect, width, height)
    return sorted(result for label, mask in unions.items() if (result := defect_from_mask(label, mask)))


def expected(name: str, defects: Sequence[Defect], width: int, height: int) -> list[Defect]:
    if name == "coco":
        return sorted(defects)
    if name in ("kaggle", "masks"):
        return united(defects, width, height)
    return sorted(part for defect in defects for part in parts(defect))


def rows_of(folder: Path) -> list[list[str]]:
    with (folder / "image_classes.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


# --- class folders ------------------------------------------------------------------------------------------------


def test_class_folders_are_read_back(tmp_path: Path) -> None:
    box, mask = make_defect("crack", (1, 2, 3, 4)), defect_from_mask("unused", np.ones((3, 3), np.uint8))
    assert mask
    shown = {"a": (), "b": ("crack",), "c": ("crack", "unused"), "d": ("Kratzer größer",)}
    items = [
        item(tmp_path / "in/a.png"),
        item(tmp_path / "in/b.png", box, box),
        item(tmp_path / "in/c.png", mask, classes=["crack"]),
        item(tmp_path / "in/d.png", classes=["Kratzer größer"]),
    ]
    out = tmp_path / "out"
    out.mkdir()
    assert class_folders.write(iter(items), out, CLASSES) == 4
    assert sorted(path.name for path in out.iterdir()) == ["Kratzer größer", "clean", "crack", "crack+unused"]
    result = list(formats.read("class_folders", out, None, False, {"separator": "+"}))
    assert all(isinstance(record, Record) and record.labelled for record in result)
    assert {Path(record.path).stem: record.classes for record in result if isinstance(record, Record)} == shown


@pytest.mark.parametrize("name", ["Clean", "ok", "unlabelled", "a+b", "a/b", ".a"])
def test_a_class_that_cannot_be_a_class_folder_is_refused(tmp_path: Path, name: str) -> None:
    items = [item(tmp_path / "in/a.png", classes=[name])]
    with pytest.raises(CurateError, match=r"cannot be the name of a .*Run: curate classes rename"):
        class_folders.write(iter(items), tmp_path, [name])


# --- spreadsheets -------------------------------------------------------------------------------------------------

FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", " =1"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_of_an_export_is_run_by_a_spreadsheet(tmp_path: Path, formula: str) -> None:
    result = make_defect(formula, (1, 2, 3, 4))
    mask = replace(result, box=(0.0, 0.0, 3.0, 3.0), rle=rle.mask_to_coco(np.ones((3, 3), np.uint8)))
    items = [item(tmp_path / "in" / f"{formula.replace('/', '')}.png", result, mask, classes=[formula])]
    write("kaggle", items, tmp_path / "out", [formula])
    cells = [
        cell
        for path in sorted((tmp_path / "out").glob("*.csv"))
        for row in csv.reader(path.open(encoding="utf-8", newline=""))
        for cell in row
    ]
    assert f"'{formula}" in cells
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@")]
    (record,) = formats.read("severstal", tmp_path / "out", None, False, {"image_folder": "images"})
    assert isinstance(record, Record)
    assert (tmp_path / "out" / record.path).is_file()
    assert len(record.regions) == 1


# --- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITERS))
@given(seed=st.integers(0, 2**32 - 1), size=st.tuples(st.integers(1, 60), st.integers(1, 60)), density=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_back(name: str, seed: int, size: tuple[int, int], density: float) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        image = save_image(Path(temporary) / "in" / "a.png", *size)
        defects = random_defects(seed, *size, density)
        count = write(name, [item(image, *defects)], Path(temporary) / "out")
        result = read_back(name, Path(temporary) / "out")
    wanted = expected(name, defects, *size)
    assert list(result) == ["images/a.png"]
    assert count == len(wanted)
    assert_same(result["images/a.png"], wanted, 0.01 if name == "yolo" else 0)


def assert_same(result: list[Defect], wanted: list[Defect], tolerance: float) -> None:
    if not tolerance:
        assert result == wanted
        return
    # Boxes that differ by a rounding may sort differently: each must have its own near one.
    rest = list(wanted)
    for defect in result:
        near = [d for d in rest if d.label == defect.label and np.allclose(d.box, defect.box, 0, tolerance)]
        assert near, defect
        rest.remove(near[0])
    assert not rest


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_several_images_each_with_its_own_defects(name: str, tmp_path: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[3:9, 5:20] = mask[20:22, 30:33] = 1
    shapes = [defect_from_mask("crack", mask), defect_from_mask(CLASSES[3], mask.T.copy().reshape(30, 40))]
    items = [item(tmp_path / "in" / f"{n}.png", d) for n, d in enumerate(shapes) if d] + [item(tmp_path / "in/2.png")]
    write(name, items, tmp_path / "out")
    result = read_back(name, tmp_path / "out")
    assert result == {f"images/{i.path.name}": expected(name, i.label.defects, 40, 30) for i in items}


def test_pycocotools_reads_the_same_pixels(tmp_path: Path) -> None:
    defects = random_defects(3, 40, 30)
    write("coco", [item(tmp_path / "in" / f"{n}.png", *defects) for n in range(3)], tmp_path / "out")
    loaded = COCO(str(tmp_path / "out" / "annotations.json"))
    assert [loaded.cats[i]["name"] for i in range(1, 5)] == CLASSES
    for image_id in loaded.getImgIds():
        for entry, defect in zip(loaded.loadAnns(loaded.getAnnIds(image_id)), defects, strict=True):
            assert (entry["bbox"], entry["iscrowd"]) == (list(defect.box), 0)
            assert loaded.cats[entry["category_id"]]["name"] == defect.label
            if defect.rle:
                mask = mask_of(defect, 40, 30)
                assert np.array_equal(loaded.annToMask(entry), mask)
                assert entry["area"] == mask.sum()


def test_coco_says_where_an_image_comes_from(tmp_path: Path) -> None:
    items = [item(tmp_path / "a.png", classes=["crack"]), item(tmp_path / "b.png", split=None)]
    write("coco", items, tmp_path / "out")
    first, second = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    shape = {"id": 1, "file_name": "images/a.png", "width": 40, "height": 30}
    assert first == shape | {"sha256": items[0].id, "split": "train", "group": "coil-1", "classes": ["crack"]}
    assert second["split"] is None
    assert "classes" not in second


# --- what each format says besides --------------------------------------------------------------------------------


def test_voc_and_yolo_list_the_splits(tmp_path: Path) -> None:
    items = [item(tmp_path / f"{n}.png", split=split) for n, split in enumerate(["train", "val", "train", None])]
    write("voc", items, tmp_path / "voc")
    write("yolo", items, tmp_path / "yolo")
    lists = {path.name: path.read_text() for path in (tmp_path / "voc" / "ImageSets" / "Main").iterdir()}
    assert lists == {"train.txt": "0\n2\n", "val.txt": "1\n"}
    assert (tmp_path / "yolo" / "train.txt").read_text() == "./images/0.png\n./images/2.png\n"
    assert "train: train.txt\nval: val.txt\nnc: 4\n" in (tmp_path / "yolo" / "data.yaml").read_text()


def test_yolo_without_splits_trains_on_all_images(tmp_path: Path) -> None:
    write("yolo", [item(tmp_path / "0.png", split=None)], tmp_path / "out")
    assert (tmp_path / "out" / "data.yaml").read_text().startswith("train: images\n")


def test_voc_numbers_are_short_and_whole_where_they_can_be(tmp_path: Path) -> None:
    write("voc", [item(tmp_path / "a.png", make_defect("crack", (1, 2.5, 3, 4.0625)))], tmp_path / "out")
    xml = (tmp_path / "out" / "Annotations" / "a.xml").read_text()
    sides = "".join(xml.split("<bndbox>")[1].split("</bndbox>")[0].split())
    assert sides == "<xmin>1</xmin><ymin>2.5</ymin><xmax>4</xmax><ymax>6.562</ymax>"


@pytest.mark.parametrize("name", ["voc", "yolo", "kaggle"])
def test_clean_is_said_and_not_only_left_out(name: str, tmp_path: Path) -> None:
    write(name, [item(tmp_path / "clean.png")], tmp_path / "out")
    assert read_back(name, tmp_path / "out", fully=False) == {"images/clean.png": []}


@pytest.mark.parametrize(("names", "numbers"), [(["4", "2"], ["4", "2"]), (["2", "x"], ["1", "2"])])
def test_kaggle_class_ids(names: list[str], numbers: list[str], tmp_path: Path) -> None:
    result = [defect_from_mask(name, np.ones((30, 40), np.uint8)) for name in names]
    write("kaggle", [item(tmp_path / "a.png", *(d for d in result if d))], tmp_path / "out", names)
    rows = [row.split(",") for row in (tmp_path / "out" / "train.csv").read_text().split()[1:5:2]]
    assert [row[1] for row in rows] == numbers


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_facts_without_pixels_stand_in_a_table(name: str, tmp_path: Path) -> None:
    boxed = item(tmp_path / "b.png", make_defect("crack", (1, 2, 3, 4)), make_defect("unused", (1, 2, 3, 4)))
    items = [boxed, item(tmp_path / "c.png", classes=["unused"]), item(tmp_path / "clean.png")]
    write(name, items, tmp_path / "out")
    boxes = [["images/b.png", "crack"], ["images/b.png", "unused"]] if name in ("kaggle", "masks") else []
    assert rows_of(tmp_path / "out") == [["file", "class"], *boxes, ["images/c.png", "unused"]]
    if name == "kaggle":  # their pixels are unknown: no row may say that they are clean
        assert set(read_back(name, tmp_path / "out", fully=False)) == {"images/clean.png"}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_no_table_where_there_is_nothing_to_say(name: str, tmp_path: Path) -> None:
    write(name, [item(tmp_path / "a.png")], tmp_path / "out")
    assert not (tmp_path / "out" / "image_classes.csv").exists()


def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    for label in ("a/b", "..", "a\nb"):
        with pytest.raises(CurateError, match="cannot be the name of a folder"):
            write("masks", [], tmp_path / label.replace("/", "") / "out", [label])


# --- file names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_odd_names(name: str, tmp_path: Path) -> None:
    """Each image, and an image whose name is not even text, is found again with its own defect."""
    defects = [d for n in range(len(ODD) + 1) if (d := defect_from_mask("crack", single_pixel(n)))]
    paths = [tmp_path / "in" / odd for odd in [*ODD, os.fsdecode(b"not-utf8-\xff.png")]]
    write(name, [item(path, d) for path, d in zip(paths, defects, strict=True)], tmp_path / "out")
    result = read_back(name, tmp_path / "out")
    assert len(result) == len(paths)
    assert sorted(d.box for ds in result.values() for d in ds) == sorted(d.box for d in defects)
    assert {"images/two words.png", 'images/größe, "x" & <y>\'.png', "images/a_b__c.png", "images/dot.png"} <= set(
        result
    )


def single_pixel(at: int) -> Mask:
    mask = np.zeros((30, 40), np.uint8)
    mask[5, 2 * at] = 1
    return mask


COLLIDING = ["one/a.png", "two/a.png", "two/A.PNG", "two/a.bmp", "three/a_mask.png", "three/a_mask_gt.png"]
COLLIDING += ["three/train.png", "three/u\u0308.png", "three/ü.png"]


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize("order", [1, -1])
def test_colliding_names(name: str, order: int, tmp_path: Path) -> None:
    """Equal names, stems that differ in case only, masks' endings, names of list files: nothing gets mixed up."""
    paths = [tmp_path / "in" / path for path in COLLIDING[::order]]
    for n, path in enumerate(paths):
        save_image(path, 40, 30, seed=n)
    defects = [d for n in range(len(paths)) if (d := defect_from_mask("crack", single_pixel(n)))]
    items = [item(path, d) for path, d in zip(paths, defects, strict=True)]
    write(name, items, tmp_path / "out")
    by_content = {path.read_bytes(): d.box for path, d in zip(paths, defects, strict=True)}
    result = read_back(name, tmp_path / "out")
    assert {(tmp_path / "out" / path).read_bytes(): d.box for path, (d,) in result.items()} == by_content
    assert len({Path(path).stem.casefold() for path in result}) == len(paths)


def test_a_long_name_leaves_room_for_the_id(tmp_path: Path) -> None:
    items = [item(tmp_path / folder / ("ü" * 120 + ".png")) for folder in "abc"]
    write("voc", items, tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3


def test_images_are_linked_where_that_is_possible(tmp_path: Path) -> None:
    original = save_image(tmp_path / "in" / "a.png", 40, 30)
    (tmp_path / "link.png").symlink_to(original)
    write("voc", [item(tmp_path / "link.png")], tmp_path / "out")
    placed = tmp_path / "out" / "images" / "link.png"
    assert not placed.is_symlink()
    assert placed.samefile(original)


def test_images_are_copied_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    first = item(tmp_path / "a.png")
    write("voc", [first], tmp_path / "out")
    placed = tmp_path / "out" / "images" / "a.png"
    assert not placed.samefile(first.path)
    assert placed.read_bytes() == first.path.read_bytes()


def test_an_original_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that takes two of our names for one, the second must not be copied into the first one's original."""
    first, second = item(tmp_path / "a.png"), item(tmp_path / "b.png")
    before = first.path.read_bytes()
    monkeypatch.setattr("curate.exports._common.unused_name", lambda *_: "same.png")
    save_image(second.path, 20, 20, seed=5)
    with pytest.raises(CurateError, match="cannot be copied: File exists"):
        write("voc", [first, second], tmp_path / "out")
    assert first.path.read_bytes() == before


def test_an_image_that_is_gone(tmp_path: Path) -> None:
    gone = item(tmp_path / "a.png")
    gone.path.unlink()
    with pytest.raises(CurateError, match=r"a\.png' cannot be copied: No such file .* run: curate index"):
        write("coco", [gone], tmp_path / "out")


def test_the_same_image_twice(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="comes twice"):
        write("coco", [item(tmp_path / "a.png")] * 4, tmp_path / "out")


# --- export -------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    sources = (SourceConfig(name="images", format="images", data=tmp_path),)
    return Project(tmp_path / "p", ProjectConfig(sources=sources, classes=tuple(ClassConfig(name=n) for n in CLASSES)))


Fill = Callable[..., None]


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Puts items into an index that needs no database: the true one's `cards` and `items` are tested in test_index,
    and all that matters here is what `export` makes of their answers."""

    def index_of(*items: Item, missing: Sequence[Item] = ()) -> None:
        class FakeIndex:
            def __init__(self, _: Project) -> None: ...

            def image_states(self) -> dict[str, Any]:
                gone = {i.id for i in missing}
                return {
                    i.id: SimpleNamespace(status=i.label.status, split=i.split, missing=i.id in gone) for i in items
                }

            def items(self, ids: Sequence[str]) -> Iterator[Item]:
                by_id = {i.id: i for i in items}
                return (by_id[id] for id in ids)

        monkeypatch.setattr("curate.index.dataset.Index", FakeIndex)

    return index_of


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Project) -> None:
        pytest.fail("the index was opened before all was checked")

    monkeypatch.setattr("curate.index.dataset.Index", refuse)


def some_items(folder: Path) -> list[Item]:
    mask = defect_from_mask("crack", single_pixel(3))
    assert mask
    box = make_defect(CLASSES[1], (1, 2, 3, 4))
    return [
        item(folder / "a.png", mask, mask, box, classes=["unused"]),
        item(folder / "b.png", box, split="val"),
        item(folder / "c.png", split="val"),
        item(folder / "d.png", label=Label("unlabelled")),
        item(folder / "e.png", label=Label("disputed", (mask,)), split="val"),
        item(folder / "f.png", mask),
    ]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_export_reports(name: str, project: Project, fill: Fill, tmp_path: Path) -> None:
    items, steps = some_items(tmp_path / "in"), []
    fill(*items, missing=items[-1:])
    items[-1].path.unlink()
    to = tmp_path / "deep" / "out"
    report = exports.export(project, name, to, progress=lambda *step: steps.append(step))
    regions = {"kaggle": 1, "masks": 1}.get(name, 4)
    by_class = dict(zip(CLASSES, (2, 2, 0, 0), strict=True))
    counts = {"images": 3, "regions": regions, "skipped": 3, "by_class": by_class}
    assert report["counted"] == {"kaggle": "rows with pixels", "masks": "masks"}.get(name, "regions")
    assert report["image_classes"] == max(0, len(rows_of(to)) - 1 if (to / "image_classes.csv").exists() else 0)
    assert {key: report[key] for key in ("format", "folder", *counts)} == {"format": name, "folder": str(to)} | counts
    assert sorted(path.name for path in (to / "images").iterdir()) == ["a.png", "b.png", "c.png"]
    assert steps == [("export", 1, 3)] * 3
    assert [path.name for path in to.parent.iterdir()] == ["out"]


def test_export_of_a_split(project: Project, fill: Fill, tmp_path: Path) -> None:
    fill(*some_items(tmp_path / "in"))
    report = exports.export(project, "voc", tmp_path / "out", split="val")
    assert (report["images"], report["skipped"], report["regions"]) == (2, 1, 1)


def test_export_of_some_classes_keeps_the_other_images(project: Project, fill: Fill, tmp_path: Path) -> None:
    fill(*some_items(tmp_path / "in"))
    report = exports.export(project, "yolo", tmp_path / "out", classes=[CLASSES[3], "crack"])
    assert report["by_class"] == {"crack": 3, CLASSES[3]: 0}
    result = read_back("yolo", tmp_path / "out", fully=False)
    assert {Path(path).stem: len(defects) for path, defects in result.items()} == {"a": 2, "b": 0, "c": 0, "f": 1}
    assert not (tmp_path / "out" / "image_classes.csv").exists()
    assert "0: crack\n  1: Kratzer größer\n" in (tmp_path / "out" / "data.yaml").read_text(encoding="utf-8")


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"format": "cocoo"},
            r"unknown export format 'cocoo' \(did you mean 'coco'\?\); allowed: class_folders, coco, kaggle",
        ),
        ({"split": "tran"}, r"unknown split 'tran' \(did you mean 'train'\?\); allowed: test, train, val"),
        ({"classes": ["crack", "crak"]}, r"unknown class 'crak' \(did you mean 'crack'\?\)"),
        ({"to": Path("there")}, "'there' exists already"),
        ({"to": Path("dangling")}, "'dangling' exists already"),
        ({"to": Path("file/out")}, "'file/out' cannot be made: '.*file' is a file"),
    ],
)
def test_export_checks_before_it_opens_the_index(
    wrong: dict[str, Any], message: str, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(CurateError, match=message):
        exports.export(project, **{"format": "coco", "to": Path("out"), **wrong})
    assert not Path("out").exists()


@contextmanager
def nothing_left_behind(folder: Path) -> Iterator[None]:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    yield
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert not [path for path in folder.iterdir() if "out" in path.name]


def test_a_failed_export_leaves_nothing_behind(
    project: Project, fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_midway(items: Iterator[Item], folder: Path, classes: Sequence[str]) -> int:
        voc.write([next(items)], folder, classes)
        raise KeyboardInterrupt

    fill(*some_items(tmp_path / "in"))
    monkeypatch.setattr(coco, "write", fail_midway)
    with nothing_left_behind(tmp_path), pytest.raises(KeyboardInterrupt):
        exports.export(project, "coco", tmp_path / "out")


def test_a_class_that_the_project_does_not_know(project: Project, fill: Fill, tmp_path: Path) -> None:
    fill(*some_items(tmp_path / "in"), item(tmp_path / "in" / "x.png", make_defect("cracked", (1, 1, 2, 2))))
    message = r"unknown class 'cracked' .*x\.png' shows it; run: curate classes add 'cracked'"
    with nothing_left_behind(tmp_path), pytest.raises(CurateError, match=message):
        exports.export(project, "masks", tmp_path / "out")


@pytest.mark.parametrize(("split", "where"), [(None, "no image is"), ("test", "no image of split 'test' is")])
def test_nothing_to_export(split: str | None, where: str, project: Project, fill: Fill, tmp_path: Path) -> None:
    fill(item(tmp_path / "in" / "d.png", label=Label("unlabelled")))
    with pytest.raises(CurateError, match=f"{where} labelled"):
        exports.export(project, "coco", tmp_path / "out", split=split)
    assert not (tmp_path / "out").exists()


def test_every_exporter_has_help_and_a_way_back() -> None:
    assert exports.names() == sorted({*WRITERS, "class_folders"}) == sorted({*READERS, "class_folders"})
    assert all(exports.summary(name).endswith(".") for name in exports.names())
