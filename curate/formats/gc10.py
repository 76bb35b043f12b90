"""GC10-DET steel sheets: VOC boxes whose names are numbered pinyin codes.

    root/lable/img_01_425008500_00018.xml      ("lable" as published; also label/ and the folders of `voc`)
    root/01/img_01_425008500_00018.jpg         (01 .. 10, or images/)

Codes such as `1_chongkong` (or bare numbers) become the English names; other names are kept as they are. An
image that is in several class folders gets its label in each. An image without XML in a folder 01 .. 10 keeps the
folder's class as an image-level label: the set has no clean images there.

Option `one_based`: see `voc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from curate.data import Record, Reject
from curate.formats import _voc

CLASSES = (
    "punching_hole",
    "welding_line",
    "crescent_gap",
    "water_spot",
    "oil_spot",
    "silk_spot",
    "inclusion",
    "rolled_pit",
    "crease",
    "waist_folding",
)
PINYIN = ("chongkong", "hanfeng", "yueyawan", "shuiban", "youban", "siban", "yiwu", "yahen", "zhehen", "yaozhe")
CODES = (
    {f"{i}_{pinyin}": name for i, (pinyin, name) in enumerate(zip(PINYIN, CLASSES, strict=True), 1)}
    | {str(i): name for i, name in enumerate(CLASSES, 1)}
    | {f"{i:02d}": name for i, name in enumerate(CLASSES, 1)}
    | {"10_yaozhed": "waist_folding"}  # as some of the published files spell it
)
FOLDERS = {f"{i:02d}": name for i, name in enumerate(CLASSES, 1)}


def read(
    root: Path, labels: Path | None, fully_labelled: bool, *, one_based: bool = False
) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: the folder of the XML files, where it is not at its usual place.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        one_based: pixels count from 1 and the last is included.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    usual = ("lable", "label", *_voc.USUAL)
    for entry in _voc.records(root, labels, fully_labelled, one_based=one_based, usual=usual, copies=True):
        yield _in_english(entry) if isinstance(entry, Record) else entry


def _in_english(record: Record) -> Record:
    folder = PurePosixPath(record.path).parent.name
    if record.label_file is None and folder in FOLDERS:
        note = f"no XML; class is from the folder '{folder}'"
        return replace(record, classes=(FOLDERS[folder],), labelled=True, note=note)
    return replace(record, regions=tuple(replace(r, label=CODES.get(r.label, r.label)) for r in record.regions))
