"""A text file of content ids: one image a line, with its classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from curate.data import Item


def write(items: Iterator[Item], folder: Path, classes: Sequence[str]) -> int:
    """Write the images and their classes.

    Args:
        items: the labelled images.
        folder: an empty folder.
        classes: the project's classes.

    Returns:
        The number of regions.
    """
    regions = 0
    with (folder / "ids.txt").open("w", encoding="utf-8") as file:
        for item in items:
            regions += len(item.label.defects)
            file.write(f"{item.id} {' '.join(name for name in classes if name in item.label.present)}".rstrip() + "\n")
    return regions
