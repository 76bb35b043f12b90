"""Pascal VOC: one XML file with boxes for each image.

    root/Annotations/a.xml               (or ANNOTATIONS/, annotations/, labels/; else XML anywhere below root)
    root/JPEGImages/a.jpg                (images anywhere below root)

An XML belongs to the image with its own stem, else to the one that its <filename> names; of several equal names the
one in the most similar folder counts, and a tie is quarantined. An XML without objects means that the image is clean;
an image without XML is clean only if the data set is `fully_labelled`. One unusable object sends its image, whole, to
quarantine.

Option `one_based`: VOC's own tools count pixels from 1 and include the last (x = xmin - 1, w = xmax - xmin + 1).
Most newer tools count from 0 and exclude it (x = xmin, w = xmax - xmin), which is the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from curate.data import Record, Reject
from curate.formats import _voc


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
    yield from _voc.records(root, labels, fully_labelled, one_based=one_based)
