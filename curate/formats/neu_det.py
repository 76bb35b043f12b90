"""NEU-DET hot-rolled strip: VOC boxes, and the class once more in the file name.

    root/IMAGES/rolled-in_scale_12.jpg
    root/ANNOTATIONS/rolled-in_scale_12.xml

Every image of this set shows a defect: one without XML, or whose XML is empty, keeps the class of its file name as an
image-level label (with a note when the XML is there but empty). Other names are read by the rules of `voc`.

Option `one_based`: the boxes run from 1 to 200 on 200 pixel images, so they count from 1 and include the last pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from curate.data import Record, Reject
from curate.formats import _voc

CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def read(root: Path, labels: Path | None, fully_labelled: bool, *, one_based: bool = True) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: the folder of the XML files, where it is not at its usual place.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        one_based: pixels count from 1 and the last is included.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    for entry in _voc.records(root, labels, fully_labelled, one_based=one_based):
        yield _with_file_class(entry) if isinstance(entry, Record) else entry


def _with_file_class(record: Record) -> Record:
    name = PurePosixPath(record.path).stem.rpartition("_")[0]
    if name not in CLASSES:
        return record
    if not record.regions:
        note = f"XML has no objects; class '{name}' is from the file name" if record.label_file else None
        return replace(record, classes=(name,), labelled=True, note=note)
    if name not in {region.label for region in record.regions}:
        return replace(record, note=f"file name says '{name}', but no box has this class")
    return record
