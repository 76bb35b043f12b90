"""One file a format: its name is the file's name, its help the docstring, its options the keyword-only parameters.

`read(root, labels, fully_labelled, *, <options>)` yields a `Record` for every image, and a `Reject` for everything that
cannot be used. A format whose masks are images has `is_mask(path, **options)`; one with fixed classes has `CLASSES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from curate.catalogue import Catalogue
from curate.data import Record, Reject
from curate.errors import CurateError
from curate.paths import walk

CATALOGUE = Catalogue(__name__, "format", "read")
names, load, options, summary = CATALOGUE.names, CATALOGUE.load, CATALOGUE.options, CATALOGUE.summary


def read(
    name: str, root: Path, labels: Path | None, fully_labelled: bool, options: Mapping[str, Any]
) -> Iterator[Record | Reject]:
    """Read a data set. Name, options and root are checked at once; files are read while iterating.

    Args:
        name: the format's name.
        root: the folder of the images.
        labels: the label file or folder, where it is not at its usual place.
        fully_labelled: every defect of the data set is labelled, so that an image without a label is clean.
        options: the format's options.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.

    Raises:
        CurateError: an unknown format or option, or no such folder.
    """
    module = load(name)
    CATALOGUE.check(name, options)
    if not root.is_dir():
        remedy = "Give the folder that holds the images: --data, or `data` in project.toml"
        raise CurateError(f"data root '{root}' is not a folder. {remedy}")
    records: Iterator[Record | Reject] = module.read(root, labels, fully_labelled, **options)
    return records


def count_images(name: str, root: Path, options: Mapping[str, Any]) -> int:
    """Number of images below `root`, without masks, for a progress bar."""
    is_mask = getattr(load(name), "is_mask", None)
    return sum(1 for path in walk(root) if is_mask is None or not is_mask(path, **options))


def discover_classes(
    name: str, root: Path, labels: Path | None, fully_labelled: bool, options: Mapping[str, Any]
) -> list[str]:
    """The classes that the format defines, else all labels in the data, sorted."""
    fixed: tuple[str, ...] | None = getattr(load(name), "CLASSES", None)
    if fixed is not None:
        return list(fixed)
    entries = read(name, root, labels, fully_labelled, options)
    records = (entry for entry in entries if isinstance(entry, Record))
    return sorted({label for r in records for label in (*r.classes, *(region.label for region in r.regions))})
