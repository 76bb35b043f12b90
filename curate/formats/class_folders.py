"""One folder a class: image-level labels, no pixels.

    root/scratch/a.jpg                   (deeper folders allowed: the top folder is the class)
    root/clean/b.jpg                     labelled, no defect
    root/unlabelled/c.jpg                not labelled

An image directly in root has no class: it is clean only if the data set is `fully_labelled`.

Options `clean`, `unlabelled`: the names of these folders, separated by commas, in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from curate.data import Record, Reject
from curate.formats._common import listing, refuse_labels


def read(
    root: Path,
    labels: Path | None,
    fully_labelled: bool,
    *,
    clean: str = "clean,good,free,ok",
    unlabelled: str = "unlabelled",
) -> Iterator[Record | Reject]:
    refuse_labels("class_folders", labels)
    for path in listing(root):
        yield _record(path, fully_labelled, _folder_names(clean), _folder_names(unlabelled))


def _record(path: str, fully_labelled: bool, clean: set[str], unlabelled: set[str]) -> Record:
    folder, slash, _ = path.partition("/")
    if not slash:
        return Record(path, labelled=fully_labelled)
    if folder.lower() in unlabelled:
        return Record(path)
    return Record(path, classes=() if folder.lower() in clean else (folder,), labelled=True)


def _folder_names(text: str) -> set[str]:
    return {name.strip().lower() for name in text.split(",") if name.strip()}
