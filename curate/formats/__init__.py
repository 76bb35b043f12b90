"""One file a format: its name is the file's name, its help the docstring, its options the keyword-only parameters."""

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
    """The records below `root`. Name, options and root are checked at once; files are read while iterating."""
    module = load(name)
    CATALOGUE.check(name, options)
    if not root.is_dir():
        remedy = "Give the folder that holds the images: --data, or `data` in project.toml"
        raise CurateError(f"data root '{root}' is not a folder. {remedy}")
    found: Iterator[Record | Reject] = module.read(root, labels, fully_labelled, **options)
    return found


def count_images(name: str, root: Path, options: Mapping[str, Any]) -> int:
    """How many images lie below `root`, for a progress bar; a format whose masks are images too says which they are."""
    is_mask = getattr(load(name), "is_mask", None)
    return sum(1 for path in walk(root) if is_mask is None or not is_mask(path, **options))


def discover_classes(
    name: str, root: Path, labels: Path | None, fully_labelled: bool, options: Mapping[str, Any]
) -> list[str]:
    """The classes that the format defines, else all labels that occur in the data, by name."""
    fixed: tuple[str, ...] | None = getattr(load(name), "CLASSES", None)
    if fixed is not None:
        return list(fixed)
    records = (found for found in read(name, root, labels, fully_labelled, options) if isinstance(found, Record))
    return sorted({label for r in records for label in (*r.classes, *(region.label for region in r.regions))})
