"""Kaggle CSV: run-length masks, one row an image and class, as in Severstal's train.csv.

    to/train.csv                         ImageId,ClassId,EncodedPixels (column-major, from 1)
    to/classes.csv                       ClassId,name
    to/images/a.jpg
    to/image_classes.csv                 only if there are classes without pixels

All defects of a class in an image are united. ClassId is the class name where all names are digits, else its number
from 1. A clean image has one row, with empty EncodedPixels. Plain boxes have no pixels: they are listed in
image_classes.csv as classes of their image, and an image without pixels of a defect has no row in train.csv.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from curate import files
from curate.data import Item
from curate.exports._common import boxed_classes, class_masks, note_classes, placed
from curate.masks import rle

COUNTED = "rows with pixels"


def write(items: Iterable[Item], folder: Path, classes: Sequence[str]) -> int:
    """Write the items.

    Args:
        items: labelled images.
        folder: the new folder, which is empty.
        classes: the class names, in the order of their numbers.

    Returns:
        The number of rows with pixels.
    """
    regions = 0
    numbers = _numbers(classes)
    _write_classes(folder / "classes.csv", numbers)
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as handle:
        files.write_csv(handle, [("ImageId", "ClassId", "EncodedPixels")])
        for item, name in placed(items, folder):
            note_classes(folder, name, boxed_classes(item))
            for number, text in _encoded(item, numbers):
                files.write_csv(handle, [(name, number, text)])
                regions += bool(text)
    return regions


def _numbers(classes: Sequence[str]) -> dict[str, str]:
    # A digit name beside other names would clash with their numbers.
    digits = all(name.isdecimal() for name in classes)
    return {name: name if digits else str(number) for number, name in enumerate(classes, 1)}


def _encoded(item: Item, numbers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if item.label.clean:
        yield next(iter(numbers.values()), "1"), ""
    for label, mask in class_masks(item).items():
        yield numbers[label], rle.mask_to_kaggle(mask)


def _write_classes(path: Path, numbers: Mapping[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        files.write_csv(handle, [("ClassId", "name"), *((number, name) for name, number in numbers.items())])
