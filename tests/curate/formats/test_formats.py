"""One contract for all formats; then the bad input of each; then the real data sets, where they are at hand."""

from __future__ import annotations

import builtins
import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from curate import formats
from curate.data import Box, CocoRle, KaggleRle, MaskFile, Polygon, Record, Region, Reject, RelativeBox
from curate.errors import CurateError
from tests import fakes
from tests.fakes import DEPENDS, HOSTILE, UNLABELLED, Layout, coco, save_image, save_mask, save_text, voc_xml

SHAPES = (Box, RelativeBox, Polygon, KaggleRle, CocoRle, MaskFile)
TEXT = {".csv", ".json", ".xml", ".txt", ".yaml"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with a file outside of it that HOSTILE names."""
    save_text(tmp_path / "outside-secret" / "passwd.jpg", "secret")
    folder = tmp_path / "data" / "root"
    folder.mkdir(parents=True)
    return folder


def layout_of(name: str, root: Path) -> Layout:
    if name not in fakes.FORMAT_LAYOUTS:
        pytest.fail(f"format '{name}' has no test data: add a builder to FORMAT_LAYOUTS in tests/fakes.py")
    return fakes.FORMAT_LAYOUTS[name](root)


def read(
    name: str, root: Path, fully: bool = False, labels: Path | None = None, **options: Any
) -> list[Record | Reject]:
    return list(formats.read(name, root, labels, fully, options))


def records(entries: list[Record | Reject]) -> dict[str, Record]:
    return {record.path: record for record in entries if isinstance(record, Record)}


def rejects(entries: list[Record | Reject]) -> list[Reject]:
    return [reject for reject in entries if isinstance(reject, Reject)]


def only_reject(entries: list[Record | Reject], path: str) -> Reject:
    """The one reject, whose image must not be yielded as well."""
    (reject,) = rejects(entries)
    assert reject.path == path
    assert path not in records(entries)
    return reject


def state(record: Record) -> frozenset[str] | str:
    labels = frozenset(record.classes) | {region.label for region in record.regions}
    return labels if record.labelled else UNLABELLED


def check_types(entry: Record | Reject) -> None:
    assert isinstance(entry, Record | Reject)
    assert isinstance(entry.path, str)
    assert not Path(entry.path).is_absolute()
    assert entry.label_file is None or isinstance(entry.label_file, str)
    assert entry.line is None or entry.line >= 1
    if isinstance(entry, Reject):
        assert entry.reason
        assert "\n" not in entry.reason
        return
    assert isinstance(entry.labelled, bool)
    assert entry.labelled or not (entry.regions or entry.classes)
    assert all(isinstance(region, Region) and isinstance(region.shape, SHAPES) for region in entry.regions)
    assert all(isinstance(label, str) and label for label in (*entry.classes, *(r.label for r in entry.regions)))
    assert entry.size is None or all(type(side) is int and side > 0 for side in entry.size)


# --- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fully", [False, True])
@pytest.mark.parametrize("name", formats.names())
def test_contract(name: str, fully: bool, root: Path) -> None:
    layout = layout_of(name, root)
    entries = read(name, root, fully, **layout.options)
    assert entries == read(name, root, fully, **layout.options), "not deterministic"
    paths = [record.path for record in entries]
    assert paths == sorted(set(paths)), "not sorted, or an image twice"
    for entry in entries:
        check_types(entry)
    expected = {p: (frozenset() if fully else UNLABELLED) if s == DEPENDS else s for p, s in layout.entries.items()}
    assert {path: state(record) for path, record in records(entries).items()} == expected
    assert not rejects(entries)
    assert all(
        path in records(entries) and not (root / path).is_file() for path in layout.absent if path not in HOSTILE
    )
    assert formats.discover_classes(name, root, None, fully, layout.options) == layout.classes
    on_disk = [path for path in records(entries) if (root / path).is_file() and path not in HOSTILE]
    assert formats.count_images(name, root, layout.options) == len(on_disk), "a progress bar must end at its end"


@pytest.mark.parametrize("name", formats.names())
def test_contract_is_a_generator_that_explains_itself(name: str, root: Path) -> None:
    layout = layout_of(name, root)
    assert inspect.isgenerator(formats.read(name, root, None, False, layout.options))
    parameters = inspect.signature(formats.load(name).read).parameters
    assert list(parameters)[:3] == ["root", "labels", "fully_labelled"]
    assert set(list(parameters)[3:]) == set(formats.options(name)), "options must be keyword-only"
    assert all(p.default is not inspect.Parameter.empty for p in formats.options(name).values())
    help_text = inspect.getdoc(formats.load(name)) or ""
    assert 10 < len(formats.summary(name)) <= 110
    assert "root/" in help_text, "the help must show the folder layout"
    assert all(f"`{option}`" in help_text for option in formats.options(name)), "the help must name every option"


@pytest.mark.parametrize("name", formats.names())
def test_contract_never_looks_outside_the_root(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(name, root)
    seen: list[str] = []
    for module, function in [
        (builtins, "open"),
        (io, "open"),
        *((os, f) for f in ("stat", "lstat", "scandir", "open")),
    ]:
        monkeypatch.setattr(module, function, _spy(getattr(module, function), seen))
    entries = read(name, root, **layout.options)
    monkeypatch.undo()
    assert seen, "the spy saw nothing"
    assert not [path for path in seen if "outside-secret" in path or ".." in PurePosixPath(path).parts]
    assert any(HOSTILE in record.path for record in entries) == any(HOSTILE in path for path in layout.entries)


def _spy(function: Any, seen: list[str]) -> Any:
    def spied(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        seen.append(str(path))
        return function(path, *args, **kwargs)

    return spied


@pytest.mark.slow
@pytest.mark.parametrize("name", formats.names())
def test_contract_damaged_label_files_give_rejects_or_one_line(name: str, root: Path) -> None:
    """Whatever is in a label file: no traceback, and no image that is rejected and yielded."""
    layout = layout_of(name, root)
    for path in [path for path in sorted(root.rglob("*")) if path.suffix in TEXT]:
        whole = path.read_bytes()
        halves = (whole[: len(whole) // 2], whole[len(whole) // 2 :])
        nan, words, deep = whole.replace(b"1", b"NaN"), whole.replace(b"1", b"x"), b"[" * 100_000
        for damaged in (b"", b"\xff\xfe\x00\x81", b"\x00" * 9, b"null", b"{}", b'"', *halves, nan, words, deep):
            path.write_bytes(damaged)
            try:
                entries = read(name, root, True, **layout.options)
            except CurateError as error:
                if "\n" in str(error):
                    pytest.fail(f"error of more than one line: {error}")
                continue
            assert not {reject.path for reject in rejects(entries)} & records(entries).keys()
            for entry in entries:
                check_types(entry)
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", formats.names())
def test_contract_only_regular_files_are_opened(name: str, kind: str, root: Path) -> None:
    """A pipe or a device in place of a label file: reading it would never end."""
    layout = layout_of(name, root)
    for path in [path for path in sorted(root.rglob("*")) if path.suffix in TEXT and path.is_file()]:
        whole = path.read_bytes()
        path.unlink()
        make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda place: os.symlink("/dev/zero", place)}[kind]
        make(path)
        try:
            entries = read(name, root, **layout.options)
            assert not {reject.path for reject in rejects(entries)} & records(entries).keys()
        except CurateError as error:
            if "\n" in str(error):
                pytest.fail(f"error of more than one line: {error}")
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(whole)


def test_importing_formats_is_light() -> None:
    heavy = "{'torch', 'fiftyone', 'pandas', 'numpy', 'PIL', 'cv2', 'yaml', 'pymongo'}"
    code = f"import sys, curate.formats as f; [f.load(n) for n in f.names()]; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=fakes.REPOSITORY, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


# --- the package --------------------------------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest(root: Path) -> None:
    with pytest.raises(CurateError, match=r"unknown format 'sevrstal' \(did you mean 'severstal'\?\); allowed: class"):
        formats.load("sevrstal")
    with pytest.raises(CurateError, match="unknown format '_voc'"):
        formats.load("_voc")
    with pytest.raises(CurateError, match=r"unknown option of format voc 'onebased' \(did you mean 'one_based'\?\)"):
        formats.read("voc", root, None, False, {"onebased": True})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("voc", {"one_based": "yes"}, "'one_based' of format voc is 'yes'; allowed: bool"),
        ("voc", {"one_based": 1}, "is 1; allowed: bool"),
        ("mask_folder", {"threshold": True}, "is True; allowed: int"),
        ("mask_folder", {"class_from": "name"}, "is 'name'; allowed: 'folder' or 'prefix' or 'values'"),
        ("mask_folder", {"values": {"crack": "1"}}, r"allowed: dict\[str, int\]"),
        ("yolo", {"names": ["crack", 2]}, r"allowed: list\[str\]"),
        ("severstal", {"image_folder": 3}, "is 3; allowed: str"),
    ],
)
def test_option_of_a_wrong_type(name: str, options: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(CurateError, match=message):
        formats.read(name, root, None, False, options)


def test_root_must_be_a_folder(root: Path) -> None:
    with pytest.raises(CurateError, match=r"is not a folder. Give .*: --data, or `data` in project.toml"):
        formats.read("images", root / "no", None, False, {})


@pytest.mark.parametrize("name", ["images", "class_folders", "magnetic_tile", "kolektor"])
def test_formats_without_label_files_refuse_labels(name: str, root: Path) -> None:
    with pytest.raises(CurateError, match="has no label files"):
        read(name, root, labels=root)


@pytest.mark.parametrize("name", ["severstal", "voc", "neu_det", "gc10", "coco", "yolo"])
def test_missing_label_file_that_the_user_named(name: str, root: Path) -> None:
    with pytest.raises(CurateError, match=r"no_such\.file' not found\. Set `labels`"):
        read(name, root, labels=root / "no_such.file")


# --- severstal ----------------------------------------------------------------------------------------------------


def severstal(root: Path, text: str, *images: str, **kwargs: Any) -> list[Record | Reject]:
    for name in images or ("train_images/a.jpg",):
        save_image(root / name)
    save_text(root / "train.csv", text)
    return read("severstal", root, **kwargs)


def test_severstal_rows_keep_line_and_text(root: Path) -> None:
    entries = severstal(root, "\ufeffImageId,ClassId,EncodedPixels\nb.jpg,1,3 4\n\na.jpg,3, 1 2 \na.jpg,9,7 8\n")
    record = records(entries)["train_images/a.jpg"]
    assert record.regions == (Region("3", KaggleRle("1 2"), 4), Region("9", KaggleRle("7 8"), 5))
    assert (record.line, record.label_file) == (4, "train.csv")


def test_severstal_second_shape(root: Path) -> None:
    text = "ImageId_ClassId,EncodedPixels\na_1.jpg_1,1 2\na_1.jpg_2,\nb.jpg_1,\nb.jpg_2,\n"
    entries = severstal(root, text, "train_images/a_1.jpg", "train_images/b.jpg", "train_images/c.jpg")
    states = {PurePosixPath(path).name: state(record) for path, record in records(entries).items()}
    assert states == {"a_1.jpg": frozenset("1"), "b.jpg": frozenset(), "c.jpg": UNLABELLED}


def test_severstal_empty_pixels_in_the_first_shape_are_a_label(root: Path) -> None:
    record = records(severstal(root, "ImageId,ClassId,EncodedPixels\na.jpg,3,\n"))["train_images/a.jpg"]
    assert record.labelled
    assert not record.regions


def test_severstal_falls_back_to_images_in_root(root: Path) -> None:
    entries = severstal(root, "ImageId,ClassId,EncodedPixels\na.jpg,3,1 2\n", "a.jpg")
    assert records(entries).keys() == {"a.jpg"}
    with pytest.raises(CurateError, match=r"no folder 'imgs'.*`image_folder`"):
        read("severstal", root, image_folder="imgs")
    with pytest.raises(CurateError, match="leaves the data root"):
        read("severstal", root, image_folder="../..")


@pytest.mark.parametrize(
    ("row", "reason"),
    [("a.jpg,,1 2", "empty class id"), ("a.jpg,3", "row has 2 cells, the header 3"), ("a.jpg,3,1 2,5", "4 cells")],
)
def test_severstal_bad_row_rejects_its_image(row: str, reason: str, root: Path) -> None:
    entries = severstal(root, f"ImageId,ClassId,EncodedPixels\na.jpg,1,1 1\n{row}\n", fully=True)
    reject = only_reject(entries, "train_images/a.jpg")
    assert reason in reject.reason
    assert (reject.label_file, reject.line) == ("train.csv", 3)


@pytest.mark.parametrize("row", ["a.jpg,1 2", "a.jpg_,1 2", "a.jpg_1", "a.jpg_1,1 2,3"])
def test_severstal_bad_row_of_the_second_shape(row: str, root: Path) -> None:
    entries = severstal(root, f"ImageId_ClassId,EncodedPixels\n{row}\n", fully=True)
    assert only_reject(entries, "train_images/a.jpg").line == 2


@pytest.mark.parametrize("header", ["ImageId,ClassId,EncodedPixels", "ImageId_ClassId,EncodedPixels"])
def test_severstal_a_row_of_the_other_shape_rejects_its_image(header: str, root: Path) -> None:
    row = "a_b.jpg_1,5 2" if header.count(",") == 2 else "a_b.jpg,1,5 2"
    entries = severstal(root, f"{header}\n{row}\n", "train_images/a_b.jpg", fully=True)
    assert [reject.path for reject in rejects(entries)] == ["train_images/a_b.jpg"]


def test_severstal_row_without_image(root: Path) -> None:
    entries = severstal(root, "ImageId,ClassId,EncodedPixels\n,3,1 2\n")
    assert "names no image" in only_reject(entries, "train.csv").reason


def test_severstal_wrong_header(root: Path) -> None:
    with pytest.raises(CurateError, match="header 'image,class'; allowed: ImageId,ClassId,EncodedPixels or"):
        severstal(root, "image,class\na.jpg,3\n")


def test_severstal_takes_long_run_lengths_and_labels_elsewhere(root: Path, tmp_path: Path) -> None:
    save_image(root / "a.jpg")
    rle = "1 1 " * 100_000
    labels = save_text(tmp_path / "labels.csv", f'ImageId,ClassId,EncodedPixels\n"a\n.jpg",1,1 1\na.jpg,1,{rle}\n')
    record = records(read("severstal", root, labels=labels))["a.jpg"]
    assert record.regions == (Region("1", KaggleRle(rle.strip()), 4),)
    assert record.label_file == str(labels)


@pytest.mark.parametrize(
    "row",
    ['a.jpg,1,"1 2', '"a.jpg,1,1 2', 'a.jpg,"1,1 2', 'a.jpg,1,1 "2', 'a".jpg,1,1 2', '"a.jpg,1,1 2"', 'a"".jpg,1,1'],
)
def test_severstal_a_quote_spoils_its_own_row_and_no_other(row: str, root: Path) -> None:
    """The rest of the file was one cell of the first row, and its images clean."""
    text = f"ImageId,ClassId,EncodedPixels\n{row}\nb.jpg,1,3 4\nc.jpg,2,5 6\n"
    entries = severstal(root, text, *(f"train_images/{name}.jpg" for name in "abcd"), fully=True)
    assert only_reject(entries, "train_images/a.jpg").line == 2
    states = {PurePosixPath(path).name: state(record) for path, record in records(entries).items()}
    assert states == {"b.jpg": frozenset("1"), "c.jpg": frozenset("2"), "d.jpg": frozenset()}


def test_severstal_a_row_of_no_image_leaves_no_other_image_clean(root: Path) -> None:
    entries = severstal(root, "ImageId,ClassId,EncodedPixels\n,1,3 4\n", fully=True)
    record = records(entries)["train_images/a.jpg"]
    assert not record.labelled
    assert "not taken as clean: a label fits no image ('line 2')" in (record.note or "")


# --- voc, neu_det, gc10 -------------------------------------------------------------------------------------------


def voc(root: Path, xml: str, name: str = "voc", **kwargs: Any) -> list[Record | Reject]:
    save_image(root / "a.jpg")
    save_text(root / "Annotations" / "a.xml", xml)
    return read(name, root, **kwargs)


def test_voc_box_from_zero_or_one(root: Path) -> None:
    xml = voc_xml("a.jpg", ("crack", 1, 2, 5, 12))
    record = records(voc(root, xml))["a.jpg"]
    assert record.regions == (Region("crack", Box(1, 2, 4, 10)),)
    assert (record.size, record.label_file) == ((16, 12), "Annotations/a.xml")
    assert records(voc(root, xml, one_based=True))["a.jpg"].regions[0].shape == Box(0, 1, 5, 11)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 2, 5, 6), "box of 'crack' is empty: xmin 5, ymin 2, xmax 5, ymax 6"),
        ((5, 9, 8, 6), "ymin 9, xmax 8, ymax 6"),
        (("nan", 2, 5, 6), "xmin of 'crack' is 'nan', not a finite number"),
        (("1e999", 2, 5, 6), "not a finite number"),
        (("one", 2, 5, 6), "xmin of 'crack' is 'one', not a number"),
        ((1, 2, 5), "ymax of 'crack' is '', not a number"),
    ],
)
def test_voc_bad_box(box: tuple[Any, ...], reason: str, root: Path) -> None:
    entries = voc(root, voc_xml("a.jpg", ("hole", 1, 1, 2, 2), ("crack", *box)), fully=True)
    assert reason in only_reject(entries, "a.jpg").reason


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<annotation><object>", "XML cannot be parsed"),
        ("", "XML cannot be parsed"),
        (voc_xml("a.jpg", ("", 1, 1, 2, 2)), "object without a name"),
        ("<html><body><h1>404</h1></body></html>", "no VOC file: its root is <html>; allowed: <annotation>"),
        ("<svg xmlns='http://www.w3.org/2000/svg'/>", "no VOC file: its root is"),
        ("<annotation/>", "no VOC file: it has no object and none of filename, folder"),
        ("<annotation><error>quota</error></annotation>", "no VOC file: it has no object"),
        (voc_xml("a.jpg", ("crack", 1, 1, 2, 2)).replace("object>", "Object>"), "bndbox in <Object>; allowed: in <obj"),
        ("<annotation><filename>a</filename><Object/></annotation>", "<Object> is not read; allowed: <object>"),
        (
            voc_xml("a.jpg", ("crack", 1, 1, 2, 2)).replace("</bndbox>", "</bndbox><bndbox/>"),
            "object 'crack' has 2 bndbox",
        ),
        ("<annotation><object><name>crack</name></object></annotation>", "object 'crack' has no bndbox"),
        ('<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', "declares entities"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>', "declares entities"),
    ],
)
def test_voc_bad_file(xml: str, reason: str, root: Path) -> None:
    reject = only_reject(voc(root, xml, fully=True), "a.jpg")
    assert reason in reject.reason
    assert reject.label_file == "Annotations/a.xml"


def test_voc_symlink_out_of_the_root_is_not_read(root: Path, tmp_path: Path) -> None:
    outside = save_text(tmp_path / "secret.xml", voc_xml("a.jpg", ("secret", 1, 1, 2, 2)))
    save_image(root / "a.jpg")
    (root / "a.xml").symlink_to(outside)
    assert "through a symlink" in only_reject(read("voc", root), "a.jpg").reason


def test_voc_equal_names_go_by_file_name_then_folder_else_are_rejected(root: Path) -> None:
    for path in ("train/images/a.jpg", "val/images/a.jpg", "b.jpg", "b.png", "x/c.jpg", "y/c.jpg"):
        save_image(root / path)
    save_text(root / "train/labels/a.xml", voc_xml("a.jpg", ("one", 1, 1, 2, 2)))
    save_text(root / "val/labels/a.xml", voc_xml("a.jpg", ("two", 1, 1, 2, 2)))
    save_text(root / "b.xml", voc_xml("b.png", ("three", 1, 1, 2, 2)))
    save_text(root / "z/c.xml", voc_xml("c.jpg", ("four", 1, 1, 2, 2)))
    entries = read("voc", root)
    states = {path: state(record) for path, record in records(entries).items()}
    entry, two, three = (frozenset({name}) for name in ("one", "two", "three"))
    assert states == {"train/images/a.jpg": entry, "val/images/a.jpg": two, "b.jpg": UNLABELLED, "b.png": three}
    assert [reject.path for reject in rejects(entries)] == ["x/c.jpg", "y/c.jpg"]
    assert "fits 2 images equally well" in rejects(entries)[0].reason


def test_voc_two_label_files_for_one_image(root: Path) -> None:
    save_image(root / "a.jpg")
    save_text(root / "x/a.xml", voc_xml("a.jpg"))
    save_text(root / "y/a.xml", voc_xml("a.jpg"))
    assert "2 label files fit this image: x/a.xml, y/a.xml" in only_reject(read("voc", root), "a.jpg").reason


def test_voc_size_counts_only_when_positive(root: Path) -> None:
    for size in ("<width>0</width><height>5</height>", "<width>x</width><height>5</height>", ""):
        entries = voc(root, f"<annotation><filename>a.jpg</filename><size>{size}</size></annotation>")
        assert records(entries)["a.jpg"].size is None


def test_voc_masks_of_the_original_layout_are_no_images(root: Path) -> None:
    save_image(root / "JPEGImages/a.jpg")
    save_mask(root / "SegmentationClass/a.png")
    assert records(read("voc", root)).keys() == {"JPEGImages/a.jpg"}


def test_neu_det_notes_what_file_name_and_boxes_disagree_on(root: Path) -> None:
    for name in ("patches_1", "patches_2", "patches_3", "other_4"):
        save_image(root / f"IMAGES/{name}.jpg")
    save_text(root / "ANNOTATIONS/patches_1.xml", voc_xml("", ("inclusion", 1, 1, 16, 12)))
    save_text(root / "ANNOTATIONS/patches_2.xml", voc_xml(""))
    entries = {PurePosixPath(path).stem: record for path, record in records(read("neu_det", root)).items()}
    assert entries["patches_1"].note == "file name says 'patches', but no box has this class"
    assert entries["patches_1"].regions[0].shape == Box(0, 0, 16, 12)
    assert entries["patches_2"].note == "XML has no objects; class 'patches' is from the file name"
    assert entries["patches_3"] == Record("IMAGES/patches_3.jpg", classes=("patches",), labelled=True)
    assert entries["other_4"] == Record("IMAGES/other_4.jpg")


def test_gc10_codes(root: Path) -> None:
    codes = ["1_chongkong", "2_hanfeng", "3_yueyawan", "4_shuiban", "5_youban"]
    codes += ["6_siban", "7_yiwu", "8_yahen", "9_zhehen", "10_yaozhe"]
    classes = formats.load("gc10").CLASSES
    for spelled in (codes, [str(i) for i in range(1, 11)], [f"{i:02d}" for i in range(1, 11)]):
        entries = voc(root, voc_xml("a.jpg", *((code, 1, 1, 2, 2) for code in spelled)), "gc10")
        assert tuple(region.label for region in records(entries)["a.jpg"].regions) == classes
    entries = voc(root, voc_xml("a.jpg", ("d", 1, 1, 2, 2), ("11", 1, 1, 2, 2)), "gc10")
    assert state(records(entries)["a.jpg"]) == {"d", "11"}


# --- coco ---------------------------------------------------------------------------------------------------------


def coco_set(root: Path, *annotations: Any, images: list[Any] | None = None, **kwargs: Any) -> list[Record | Reject]:
    save_image(root / "a.jpg")
    images = images or [{"id": 1, "file_name": "a.jpg", "width": 16, "height": 12}]
    save_text(root / "annotations.json", coco(images, list(annotations)))
    return read("coco", root, **kwargs)


def annotation(**values: Any) -> dict[str, Any]:
    return {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} | values


def test_coco_shapes(root: Path) -> None:
    ring = [1, 1, 5, 1, 5, 5]
    segmentations = [
        [ring, ring],
        {"size": [12, 16], "counts": [10, 4, 178]},
        {"size": [12, 16], "counts": "PPY11"},
        [],
    ]
    entries = coco_set(root, *(annotation(segmentation=entry) for entry in segmentations))
    record = records(entries)["a.jpg"]
    points = ((1.0, 1.0), (5.0, 1.0), (5.0, 5.0))
    shapes = (Polygon((points, points)), CocoRle((10, 4, 178), 12, 16), CocoRle("PPY11", 12, 16), Box(1, 2, 3, 4))
    assert tuple(region.shape for region in record.regions) == shapes
    assert record.size == (16, 12)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"category_id": 9}, "annotation 7: category id 9 is not listed; allowed: 1, 2"),
        ({"category_id": [1]}, r"category id \[1\] is not listed"),
        ({"bbox": [1, 2, 0, 4]}, r"bbox \[1, 2, 0, 4\] is empty"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox number is nan, not a finite number"),
        ({"bbox": [1, 2, 10**400, 4]}, "not a number"),
        ({"bbox": [1, 2, "x", 4]}, "bbox number is 'x', not a number"),
        ({"bbox": [1, 2]}, r"bbox is \[1, 2\]; allowed: \[x, y, width, height\]"),
        ({"bbox": None}, "no segmentation, and bbox is None"),
        ({"segmentation": [[1, 1, 5, 1]]}, "polygon ring has 4 numbers"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5, 2]]}, "polygon ring has 7 numbers"),
        ({"segmentation": [[1, 1, 5, 1, 5, None]]}, "polygon coordinate is None, not a number"),
        ({"segmentation": "x"}, "segmentation is 'x'; allowed: a list of rings"),
        ({"segmentation": {"size": [12], "counts": [1]}}, r"run-length size is \[12\]"),
        ({"segmentation": {"size": [12, 16], "counts": [1, -1]}}, "run-length counts are"),
        ({"segmentation": {"size": [12, 16], "counts": ""}}, "run-length counts are ''"),
    ],
)
def test_coco_bad_annotation_rejects_its_image(values: dict[str, Any], reason: str, root: Path) -> None:
    entries = coco_set(root, annotation(), annotation(**values), fully=True)
    reject = only_reject(entries, "a.jpg")
    assert re.search(reason, reject.reason), reject.reason
    assert reject.label_file == "annotations.json"


@pytest.mark.parametrize("stray", [annotation(image_id=99), annotation(image_id=[1]), {"id": 3}, "x", None])
def test_coco_annotation_of_an_unknown_image(stray: Any, root: Path) -> None:
    entries = coco_set(root, annotation(), stray)
    assert "image id that is not listed" in only_reject(entries, "annotations.json").reason
    assert records(entries).keys() == {"a.jpg"}


def test_coco_an_annotation_of_no_image_leaves_no_image_clean(root: Path) -> None:
    save_image(root / "b.jpg")
    images = [{"id": 1, "file_name": "a.jpg"}]
    assert {state(entry) for entry in records(coco_set(root, images=images, fully=True)).values()} == {frozenset()}
    entries = records(coco_set(root, annotation(image_id=2), images=images, fully=True))
    assert {path: state(record) for path, record in entries.items()} == {"a.jpg": UNLABELLED, "b.jpg": UNLABELLED}
    assert all("not taken as clean" in (record.note or "") for record in entries.values())


def test_coco_a_category_of_two_names_is_none(root: Path) -> None:
    save_image(root / "a.jpg")
    content = json.loads(coco([{"id": 1, "file_name": "a.jpg"}], [annotation()]))
    content["categories"] += [{"id": 1, "name": "scratch"}]
    save_text(root / "annotations.json", json.dumps(content))
    assert "category id 1 is not listed; allowed: 2" in only_reject(read("coco", root), "a.jpg").reason


def test_coco_a_key_that_stands_twice_hides_nothing(root: Path) -> None:
    save_image(root / "a.jpg")
    content = coco([{"id": 1, "file_name": "a.jpg"}], [annotation()])
    save_text(root / "annotations.json", content[: content.rindex("}")] + ', "annotations": []}')
    with pytest.raises(CurateError, match="key 'annotations' stands twice"):
        read("coco", root, fully=True)


def test_coco_bad_image_entries(root: Path) -> None:
    good = {"id": 1, "file_name": "a.jpg"}
    entries = coco_set(root, images=[good, {"id": 2}, {"file_name": "x.jpg"}, None, {"id": 3, "file_name": 5}])
    assert len(rejects(entries)) == 4
    assert records(entries)["a.jpg"].size is None


def test_coco_image_id_used_twice_rejects_both(root: Path) -> None:
    entries = coco_set(root, annotation(), images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}])
    assert [reject.path for reject in rejects(entries)] == ["a.jpg", "b.jpg"]
    assert not records(entries)


def test_coco_image_listed_twice_is_one_record(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]
    entries = coco_set(root, annotation(), annotation(image_id=2, category_id=2), images=images)
    assert state(records(entries)["a.jpg"]) == {"crack", "hole"}


def test_coco_sub_folder_and_label_files(root: Path) -> None:
    save_image(root / "images/a.jpg")
    with pytest.raises(CurateError, match="no COCO label file below"):
        read("coco", root)
    text = coco([{"id": 1, "file_name": "a.jpg"}], [annotation()])
    save_text(root / "annotations/instances_train.json", text)
    assert state(records(read("coco", root, images="images"))["images/a.jpg"]) == {"crack"}
    named = save_text(root / "valid/_annotations.coco.json", text)
    with pytest.raises(
        CurateError, match=r"2 COCO label files \(annotations/instances_train\.json, valid/_annotations"
    ):
        read("coco", root)
    assert records(read("coco", root, labels=named, images="images"))
    with pytest.raises(CurateError, match="no folder 'imgs'"):
        read("coco", root, images="imgs")


@pytest.mark.parametrize("text", ["[]", "{", '{"images": {}}', json.dumps({"images": [], "annotations": []})])
def test_coco_wrong_file(text: str, root: Path) -> None:
    save_text(root / "annotations.json", text)
    with pytest.raises(CurateError, match=r"is not a COCO file|is not readable JSON"):
        read("coco", root)


# --- yolo ---------------------------------------------------------------------------------------------------------


def yolo(root: Path, text: str, **kwargs: Any) -> list[Record | Reject]:
    save_image(root / "images/a.jpg")
    save_text(root / "labels/a.txt", text)
    return read("yolo", root, **{"names": ["crack", "hole"]} | kwargs)


def test_yolo_shapes(root: Path) -> None:
    record = records(yolo(root, "\n1 0.5 0.5 0.2 0.4\n0 0 0 0.5 0 0.5 1\n"))["images/a.jpg"]
    box, polygon = record.regions
    assert (box.label, box.shape, box.line) == ("hole", RelativeBox(0.4, 0.3, 0.2, 0.4), 2)
    assert polygon == Region("crack", Polygon((((0, 0), (0.5, 0), (0.5, 1)),), relative=True), 3)
    assert (record.label_file, record.line) == ("labels/a.txt", 2)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.2 0.2", "class index '2' has no name; allowed: 0, 1"),
        ("-1 0.5 0.5 0.2 0.2", "class index '-1' has no name"),
        ("0.5 0.5 0.5 0.2 0.2", "class index '0.5' has no name"),
        ("crack 0.5 0.5 0.2 0.2", "class index is 'crack', not a number"),
        ("0 0.5 nan 0.2 0.2", "coordinate is 'nan', not a finite number"),
        ("0 0.5 x 0.2 0.2", "coordinate is 'x', not a number"),
        ("0 0.5 0.5 0 0.2", "box is empty: width 0, height 0.2"),
        ("0 250 80 20 10", "coordinate is 250; allowed: a fraction"),
        ("0 0.5 0.5 0.2 0.2 0.99", "line has 5 coordinates"),
        ("0 0.1 0.1 0.2", "line has 3 coordinates"),
        ("0", "line has 0 coordinates"),
    ],
)
def test_yolo_bad_line_rejects_its_image(line: str, reason: str, root: Path) -> None:
    reject = only_reject(yolo(root, f"0 0.5 0.5 0.2 0.2\n{line}\n", fully=True), "images/a.jpg")
    assert reason in reject.reason
    assert (reject.label_file, reject.line) == ("labels/a.txt", 2)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names: [crack, hole]"),
        ("data.yaml", "names: {1: hole, 0: crack}"),
        ("classes.txt", "crack\nhole\n"),
        ("labels/classes.txt", "crack\nhole\n"),
        ("obj.names", "crack\r\nhole\r\n"),
    ],
)
def test_yolo_names(file: str, text: str, root: Path) -> None:
    save_text(root / file, text)
    labels = root / "labels" if file.startswith("labels") else None
    entries = yolo(root, "1 0.5 0.5 0.2 0.2", names=None, labels=labels)
    assert {path: state(r) for path, r in records(entries).items()} == {"images/a.jpg": frozenset({"hole"})}


@pytest.mark.parametrize(
    "text", ["", "nc: 3", "names: 5", "names: crack", "names: {a: b}", "names: [", "names: {.inf: b}", "- names"]
)
def test_yolo_bad_names_file(text: str, root: Path) -> None:
    save_text(root / "data.yaml", text)
    with pytest.raises(CurateError, match="has no readable list `names`"):
        yolo(root, "", names=None)


def test_yolo_aliases_of_yaml_are_refused(root: Path) -> None:
    lines = ["a: &a [crack, crack]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)]
    save_text(root / "data.yaml", "\n".join([*lines, "names: *j"]))
    with pytest.raises(CurateError, match=r"has no readable list `names` \('aliases such as \*a are refused'\)"):
        yolo(root, "", names=None)
    save_text(root / "data.yaml", "names: [[crack], hole]")
    with pytest.raises(CurateError, match="a name is no text"):
        yolo(root, "", names=None)
    save_text(root / "data.yaml", "names: [crack]\n" + "#" * (1 << 20))
    with pytest.raises(CurateError, match="larger than 262144 bytes"):
        yolo(root, "", names=None)


def test_yolo_a_label_that_fits_two_images_leaves_neither_clean(root: Path) -> None:
    for name in ("pics/cam1/c.jpg", "pics/cam2/c.jpg", "pics/d.jpg"):
        save_image(root / name)
    save_text(root / "labels/c.txt", "0 0.5 0.5 0.2 0.2")
    entries = records(read("yolo", root, True, names=["crack"]))
    assert [path for path, record in entries.items() if not record.labelled] == ["pics/cam1/c.jpg", "pics/cam2/c.jpg"]
    assert entries["pics/cam1/c.jpg"].note == "not taken as clean: a label fits no image ('labels/c.txt')"


def test_yolo_lines_may_end_as_on_any_system(root: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        record = records(yolo(root, end.join(["0 0.5 0.5 0.2 0.2"] * 3)))["images/a.jpg"]
        assert [region.shape for region in record.regions] == [RelativeBox(0.4, 0.4, 0.2, 0.2)] * 3


def test_yolo_an_image_may_be_called_like_a_list(root: Path) -> None:
    save_image(root / "images/train.jpg")
    save_text(root / "labels/train.txt", "0 0.5 0.5 0.2 0.2")
    assert state(records(yolo(root, "", fully=True))["images/train.jpg"]) == {"crack"}


def test_yolo_without_names(root: Path) -> None:
    with pytest.raises(CurateError, match=r"no class names below.*set the option `names`"):
        yolo(root, "", names=None)


def test_yolo_labels_in_a_folder_of_their_own(root: Path, tmp_path: Path) -> None:
    for name in ("images/cam1/a.jpg", "pics/b.jpg", "pics/cam1/c.jpg", "pics/cam2/c.jpg"):
        save_image(root / name)
    for name in ("cam1/a", "b", "c"):
        save_text(tmp_path / f"texts/{name}.txt", "0 0.5 0.5 0.2 0.2")
    entries = records(read("yolo", root, labels=tmp_path / "texts", names=["crack"]))
    labelled = [path for path, record in entries.items() if record.labelled]
    # `c` fits two images: neither gets it, and the text file is reported under its own name.
    assert labelled == ["c", "images/cam1/a.jpg", "pics/b.jpg"]


def test_yolo_unreadable_and_symlinked_files(root: Path, tmp_path: Path) -> None:
    entries = yolo(root, "")
    (root / "labels/a.txt").write_bytes(b"\xff\xfe0")
    assert records(entries)
    entries = read("yolo", root, names=["crack"])
    assert "is not UTF-8 text" in only_reject(entries, "images/a.jpg").reason
    (root / "labels/a.txt").unlink()
    (root / "labels/a.txt").symlink_to(save_text(tmp_path / "secret.txt", "0 0.5 0.5 0.2 0.2"))
    entries = read("yolo", root, names=["crack"])
    assert "through a symlink" in only_reject(entries, "images/a.jpg").reason


# --- masks --------------------------------------------------------------------------------------------------------


def test_mask_folder_by_class_folder(root: Path) -> None:
    for name in ("a", "cam1/b", "cam2/b"):
        save_image(root / f"images/{name}.png")
    for name in ("crack/a_GT", "hole/cam1/b"):
        save_mask(root / f"masks/{name}.png")
    entries = records(read("mask_folder", root, threshold=1))
    assert entries["images/a.png"].regions == (Region("crack", MaskFile("masks/crack/a_GT.png", 1)),)
    assert entries["images/cam1/b.png"].regions == (Region("hole", MaskFile("masks/hole/cam1/b.png", 1)),)
    assert not entries["images/cam2/b.png"].labelled


def test_mask_folder_by_prefix(root: Path) -> None:
    for name in ("In_12", "plain"):
        save_image(root / f"images/{name}.png")
        save_mask(root / f"masks/{name}.png")
    entries = read("mask_folder", root, class_from="prefix", fully=True)
    assert records(entries)["images/In_12.png"].regions == (Region("In", MaskFile("masks/In_12.png")),)
    assert "'plain.png' has no class before '_'" in only_reject(entries, "images/plain.png").reason


def test_mask_folder_by_values_with_folders_of_other_names(root: Path) -> None:
    save_image(root / "a.png")
    mask = save_mask(root / "annotations/a.png", value=2)
    options = {"class_from": "values", "values": {"crack": 1, "hole": 2}, "images": ""}
    regions = tuple(
        Region(name, MaskFile("annotations/a.png", i, i, (1, 2))) for name, i in (("crack", 1), ("hole", 2))
    )
    for entries in (
        read("mask_folder", root, masks="annotations/", **options),
        read("mask_folder", root, labels=mask.parent, **options),
    ):
        assert [(record.path, record.regions) for record in entries if isinstance(record, Record)] == [
            ("a.png", regions)
        ]


def test_mask_folder_rejects_what_is_ambiguous(root: Path) -> None:
    for name in ("a", "b"):
        save_image(root / f"images/{name}.png")
    for name in ("crack/a.png", "crack/a_mask.png", "b.png"):
        save_mask(root / "masks" / name)
    entries = read("mask_folder", root, fully=True)
    assert not records(entries)
    reasons = [reject.reason for reject in rejects(entries)]
    assert reasons[0] == "several masks for class 'crack': masks/crack/a.png, masks/crack/a_mask.png"
    assert reasons[1].startswith("mask 'masks/b.png' lies in no class folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_from": "values"}, "class_from is 'values' and `values` is None"),
        ({"values": {"a": 1}}, "class_from is 'folder' and `values` is"),
        ({"class_from": "values", "values": {"a": 0}}, "allowed: different grey values from 1 to 255"),
        ({"class_from": "values", "values": {"a": 1, "b": 1}}, "allowed: different grey values"),
        ({"class_from": "prefix", "separator": ""}, "option `separator` is ''"),
        ({"threshold": 0}, "`threshold` is 0; allowed: 1 to 255"),
        ({"masks": "no"}, "no folder 'no' below .* option `masks`"),
        ({"masks": "images"}, "images and masks are both"),
        ({"images": "../.."}, "leaves the data root"),
    ],
)
def test_mask_folder_bad_options(options: dict[str, Any], message: str, root: Path) -> None:
    save_image(root / "images/a.png")
    (root / "masks").mkdir()
    with pytest.raises(CurateError, match=message):
        read("mask_folder", root, **options)


@pytest.mark.parametrize("suffix", [".npy", ".gif"])
def test_mask_folder_a_mask_that_is_not_read_leaves_no_image_clean(suffix: str, root: Path) -> None:
    save_image(root / "images" / "a.png")
    save_text(root / "masks" / "crack" / f"a{suffix}", "no picture")
    assert "Convert it to PNG" in only_reject(read("mask_folder", root, fully=True), "images/a.png").reason


def test_mask_folder_outside_of_the_root(root: Path, tmp_path: Path) -> None:
    save_image(root / "images/a.png")
    with pytest.raises(CurateError, match="is not a folder inside"):
        read("mask_folder", root, labels=tmp_path / "outside-secret")


def test_magnetic_tile_groups_and_fallbacks(root: Path) -> None:
    shots = ["MT_Free/Imgs/exp1_num_5", "MT_Crack/Imgs/exp2_num_9", "MT_Crack/Imgs/exp4_num_10"]
    shots += ["MT_Crack/Imgs/exp4_num_11", "MT_Free/Imgs/odd"]
    for shot in shots:
        save_image(root / f"{shot}.jpg")
    save_mask(root / f"{shots[1]}.png")
    entries = records(read("magnetic_tile", root))
    groups = [entries[f"{shot}.jpg"].group for shot in shots]
    assert groups == ["tile-5", "tile-5", "tile-5", "tile-11", None]
    assert entries[f"{shots[1]}.jpg"].regions == (Region("Crack", MaskFile(f"{shots[1]}.png")),)
    assert entries[f"{shots[2]}.jpg"].classes == ("Crack",)
    assert entries[f"{shots[2]}.jpg"].note == "no mask file"
    assert formats.load("magnetic_tile").EMPTY_MASK_KEEPS_CLASS


def test_kolektor_groups_and_threshold(root: Path) -> None:
    for name in ("kos07/Part0.jpg", "train/10000.png"):
        save_image(root / name)
    save_mask(root / "kos07/Part0_label.bmp")
    save_mask(root / "train/10000_GT.png")
    entries = records(read("kolektor", root))
    assert entries["kos07/Part0.jpg"].group == "kos07"
    assert entries["kos07/Part0.jpg"].regions == (Region("defect", MaskFile("kos07/Part0_label.bmp", 1)),)
    assert entries["train/10000.png"].group is None


def test_class_folders_with_names_of_the_users_own(root: Path) -> None:
    for name in ("IO/a.jpg", "todo/b.jpg", "ok/c.jpg"):
        save_image(root / name)
    entries = read("class_folders", root, clean="io, fine", unlabelled="TODO")
    states = {path: state(record) for path, record in records(entries).items()}
    assert states == {"IO/a.jpg": frozenset(), "todo/b.jpg": UNLABELLED, "ok/c.jpg": frozenset({"ok"})}


# --- real data ----------------------------------------------------------------------------------------------------


def real(name: str, folder: str, **options: Any) -> list[Record]:
    entries = read(name, fakes.real_data(folder), **options)
    assert not rejects(entries)
    return list(records(entries).values())


def rows(entries: list[Record]) -> Counter[str]:
    return Counter(region.label for record in entries for region in record.regions)


def test_real_magnetic_tile() -> None:
    entries = real("magnetic_tile", "magnetic_tile")
    assert rows(entries) == {"Blowhole": 115, "Break": 85, "Crack": 57, "Fray": 32, "Uneven": 103}
    assert sum(record.labelled and not record.regions for record in entries) == 952
    tiles: dict[str | None, set[str]] = {}
    for record in entries:
        tiles.setdefault(record.group, set()).add(record.path.split("/")[0].removeprefix("MT_"))
    assert len(tiles) == 251
    classes = Counter(name for names in tiles.values() for name in names)
    assert classes == {"Free": 185, "Blowhole": 27, "Break": 25, "Uneven": 17, "Crack": 11, "Fray": 8}
    assert sum(len(names) > 1 for names in tiles.values()) == 21


@pytest.mark.slow
def test_real_neu_det() -> None:
    entries = real("neu_det", "neu_det")
    by_file = Counter(PurePosixPath(record.path).stem.rpartition("_")[0] for record in entries)
    assert by_file == dict.fromkeys(formats.load("neu_det").CLASSES, 300)
    assert all(record.regions and record.note is None and record.size == (200, 200) for record in entries)
    boxes = [region.shape for record in entries for region in record.regions if isinstance(region.shape, Box)]
    assert min(min(box.x, box.y) for box in boxes) == 0
    assert max(max(box.x + box.w, box.y + box.h) for box in boxes) == 200


def test_real_sd900() -> None:
    entries = real("mask_folder", "sd900", class_from="prefix")
    assert len(entries) == 900
    assert rows(entries) == {"In": 300, "Pa": 300, "Sc": 300}


def test_real_severstal() -> None:
    entries = real("severstal", "severstal")
    assert rows(entries) == {"1": 201, "2": 68, "3": 827, "4": 333}
    assert sum(record.label_file is not None for record in entries) == 1000
    folder = fakes.real_data("severstal")
    here = [record for record in entries if (folder / record.path).is_file()]
    assert (len(here), sum(bool(record.regions) for record in here)) == (45, 5)
    assert sum(not record.labelled for record in entries) == 40
