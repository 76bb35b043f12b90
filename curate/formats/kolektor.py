"""KolektorSDD and KolektorSDD2: one class, one mask beside each image; an empty mask says clean.

    root/kos01/Part0.jpg    root/kos01/Part0_label.bmp        KolektorSDD; group = the folder (one physical item)
    root/train/10000.png    root/train/10000_GT.png           KolektorSDD2; no groups

Any grey value above 0 is defect, as in the authors' code. The labels are complete; where a mask file is missing all
the same, the image is clean only if the data set is `fully_labelled`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from curate.data import MaskFile, Record, Region, Reject
from curate.formats._common import listing, refuse_labels, stem

CLASSES = ("defect",)
MASK = re.compile(r"(.+)_(label|GT)$", re.IGNORECASE)


def read(root: Path, labels: Path | None, fully_labelled: bool) -> Iterator[Record | Reject]:
    refuse_labels("kolektor", labels)
    found = listing(root)
    masks: dict[str, list[str]] = {}
    for path in found:
        if name := MASK.match(stem(path)):
            masks.setdefault(name[1], []).append(path)
    images = [path for path in found if not is_mask(path)]
    absent = {f"{name}{_suffix(name)}" for name in masks.keys() - {stem(path) for path in images}}
    for path in sorted({*images, *absent}):
        yield _record(path, masks.get(stem(path), []), fully_labelled)


def is_mask(path: str) -> bool:
    return MASK.match(stem(path)) is not None


def _record(path: str, masks: list[str], fully_labelled: bool) -> Record:
    group = _item(path)
    if not masks:
        return Record(path, labelled=fully_labelled, group=group, note="no mask file")
    regions = tuple(Region("defect", MaskFile(mask, 1)) for mask in masks)
    return Record(path, regions, labelled=True, group=group, label_file=masks[0])


def _item(path: str) -> str | None:
    folder = PurePosixPath(path).parent.name
    return folder if re.fullmatch(r"kos\d+", folder) else None


def _suffix(name: str) -> str:
    return ".jpg" if _item(name) else ".png"
