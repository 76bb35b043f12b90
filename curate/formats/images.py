"""Plain images without labels, such as production: all of them are unlabelled.

    root/line1/2024-05-01/coil7_0001.jpg (any depth)

`fully_labelled` changes nothing here. Put known clean images into a folder `clean` and use `class_folders`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from curate.data import Record, Reject
from curate.formats._common import listing, refuse_labels


def read(root: Path, labels: Path | None, fully_labelled: bool) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: must be None: this format has no label files.
        fully_labelled: not used: all images are unlabelled.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    refuse_labels("images", labels)
    yield from (Record(path) for path in listing(root))
