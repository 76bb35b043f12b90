"""One file an exporter: its name is the file's name, its help the docstring, its function `write`.

`write(items, folder, classes) -> int` writes items into an empty folder and returns how many regions it wrote, or how
many of the things that the module's `COUNTED` names.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import files
from curate.catalogue import Catalogue
from curate.data import SPLITS, Item, Label
from curate.errors import CurateError, unknown
from curate.exports._common import IMAGE_CLASSES
from curate.project import Project

if TYPE_CHECKING:
    from curate.index.dataset import Index

Progress = Callable[[str, int, int], None]


CATALOGUE = Catalogue(__name__, "export format", "write")
names, summary = CATALOGUE.names, CATALOGUE.summary


def export(
    project: Project,
    format: str,
    to: Path,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress = lambda stage, done, total: None,
    catalogue: Catalogue = CATALOGUE,
) -> dict[str, Any]:
    """Write the labelled images of a split (or all of them) to the new folder `to`, whole or not at all.

    Args:
        project: the project.
        format: the exporter's name.
        to: the new folder.
        split: train, val or test; None: all images.
        classes: the classes to write and number, in the project's order; None: all. Every labelled image is written:
            one that shows none of them is clean there.
        progress: called with a stage, the images done since the last call and all images.
        catalogue: where exporters are looked up.

    Returns:
        The report: `skipped` counts images of the split that are not labelled or not on disk, `by_class` the index's
        regions, whatever number of objects or files the exporter makes of them, `counted` names the unit of `regions`,
        and `image_classes` counts the rows of image_classes.csv.
    """
    module = catalogue.load(format)
    chosen = _check_names(project, split, classes)
    _check_target(to)
    from curate.index.dataset import Index

    index = Index(project)
    ids, skipped = _select(index, split)
    by_class: Counter[str] = Counter()
    items = _items(project, index, ids, chosen, by_class, progress)
    files.sweep_parts(to)
    with files.written_aside(to) as folder:
        folder.mkdir()
        regions = module.write(items, folder, chosen)
        image_classes = _rows(folder / IMAGE_CLASSES)
    shown = {name: by_class[name] for name in chosen}
    report = {"format": format, "folder": str(to), "images": len(ids), "regions": regions, "skipped": skipped}
    report |= {"counted": getattr(module, "COUNTED", "regions"), "image_classes": image_classes}
    return report | {"by_class": shown}


def _rows(table: Path) -> int:
    """Number of rows of a CSV file below its header; 0 without the file."""
    if not table.exists():
        return 0
    with table.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _check_names(project: Project, split: str | None, classes: Sequence[str] | None) -> list[str]:
    """The classes to write, in the project's order."""
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    for name in classes or ():
        if name not in project.class_names:
            raise unknown("class", name, project.class_names)
    return [name for name in project.class_names if not classes or name in classes]


def _check_target(to: Path) -> None:
    if to.exists() or to.is_symlink():
        raise CurateError(f"'{to}' exists already, and an export replaces nothing. Name a new folder, or remove it")
    above = next(parent for parent in to.absolute().parents if parent.exists())
    if not above.is_dir():
        raise CurateError(f"'{to}' cannot be made: '{above}' is a file. Name another folder")


def _select(index: Index, split: str | None) -> tuple[list[str], int]:
    """The ids to write, sorted, and the number of images of the split that are left out."""
    cards = {id: card for id, card in index.image_states().items() if split in (None, card.split)}
    ids = sorted(id for id, card in cards.items() if card.status == "labelled" and not card.missing)
    if ids:
        return ids, len(cards) - len(ids)
    where = f"of split '{split}' " if split else ""
    raise CurateError(f"no image {where}is labelled, so there is nothing to export. See: curate status")


def _items(
    project: Project, index: Index, ids: list[str], chosen: Collection[str], tally: Counter[str], progress: Progress
) -> Iterator[Item]:
    project_classes = frozenset(project.class_names)
    for item in index.items(ids):
        unexpected = sorted(item.label.present - project_classes)
        if unexpected:
            raise unknown(
                "class",
                unexpected[0],
                project_classes,
                f"'{item.path}' shows it; run: curate classes add '{unexpected[0]}'",
            )
        label = _only(item.label, chosen)
        tally.update(defect.label for defect in label.defects)
        yield replace(item, label=label)
        progress("export", 1, len(ids))


def _only(label: Label, chosen: Collection[str]) -> Label:
    defects = tuple(defect for defect in label.defects if defect.label in chosen)
    return replace(label, defects=defects, classes=tuple(name for name in label.classes if name in chosen))
