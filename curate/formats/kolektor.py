"""KolektorSDD and KolektorSDD2: one class, one mask beside each image; an empty mask means clean.

    root/kos01/Part0.jpg    root/kos01/Part0_label.bmp        KolektorSDD; group = the folder (one physical item)
    root/train/10000.png    root/train/10000_GT.png           KolektorSDD2; no groups

Any grey value above 0 is defect, as in the authors' code. The labels are complete; where a mask file is missing,
the image is clean only if the data set is `fully_labelled`.
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
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: must be None: this format has no label files.
        fully_labelled: every defect is labelled, so that an image without a label is clean.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    refuse_labels("kolektor", labels)
    paths = listing(root)
    masks: dict[str, list[str]] = {}
    for path in paths:
        if name := MASK.match(stem(path)):
            masks.setdefault(name[1], []).append(path)
    images = [path for path in paths if not is_mask(path)]
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
