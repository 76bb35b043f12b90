"""One folder a class: image-level labels, no pixels.

    root/scratch/a.jpg                   (deeper folders allowed: the top folder is the class)
    root/clean/b.jpg                     labelled, no defect
    root/unlabelled/c.jpg                not labelled

An image directly in root has no class: it is clean only if the data set is `fully_labelled`.

Options `clean`, `unlabelled`: the names of these folders, separated by commas, in any case. `separator`: where a folder
may stand for several classes, what is between them (`+` for what `curate export` writes: root/crack+hole/d.jpg).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from curate.data import Record, Reject
from curate.formats._common import listing, refuse_labels

CLEAN, UNLABELLED = "clean,good,free,ok", "unlabelled"


def read(
    root: Path,
    labels: Path | None,
    fully_labelled: bool,
    *,
    clean: str = CLEAN,
    unlabelled: str = UNLABELLED,
    separator: str = "",
) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: must be None: this format has no label files.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        clean, unlabelled: the names of these folders, separated by commas.
        separator: the text between the classes of a folder that stands for several; empty: there is none.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    refuse_labels("class_folders", labels)
    for path in listing(root):
        yield _record(path, fully_labelled, folder_names(clean), folder_names(unlabelled), separator)


def _record(path: str, fully_labelled: bool, clean: set[str], unlabelled: set[str], separator: str) -> Record:
    folder, slash, _ = path.partition("/")
    if not slash:
        return Record(path, labelled=fully_labelled)
    if folder.lower() in unlabelled:
        return Record(path)
    if folder.lower() in clean:
        return Record(path, labelled=True)
    names = [name for name in folder.split(separator) if name] if separator else []
    return Record(path, classes=tuple(names) or (folder,), labelled=True)


def folder_names(text: str) -> set[str]:
    """The names of an option such as `clean`, in lower case."""
    return {name.strip().lower() for name in text.split(",") if name.strip()}
