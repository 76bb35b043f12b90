"""YOLO text files: boxes in fractions of the image, one file an image.

    to/data.yaml                         names, and a list for each split that occurs
    to/images/a.jpg
    to/labels/a.txt                      class, centre x, centre y, width, height; empty: the image is clean
    to/train.txt                         the images of a split; those without a split are in no list
    to/image_classes.csv                 only if there are image-level classes

Boxes only: each 8-connected part of a mask becomes a box of its own. Classes count from 0. Paths are relative, so the
folder can be moved. Where no image has a split, `train` is all images; trainers that require `train` and `val` need an
export of all splits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from curate.data import Item
from curate.exports._common import boxes_of, placed, write_lists


def write(items: Iterable[Item], folder: Path, classes: Sequence[str]) -> int:
    """Write the items.

    Args:
        items: labelled images.
        folder: the new folder, which is empty.
        classes: the class names, in the order of their numbers.

    Returns:
        The number of boxes.
    """
    regions = 0
    numbers = {name: number for number, name in enumerate(classes)}
    images: dict[str, list[str]] = defaultdict(list)
    (folder / "labels").mkdir()
    for item, name in placed(items, folder):
        lines = list(_lines(item, numbers))
        (folder / "labels" / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
        regions += len(lines)
        if item.split:
            images[item.split].append(f"./images/{name}")
    write_lists(folder, images)
    _write_yaml(folder / "data.yaml", classes, list(images))
    return regions


def _lines(item: Item, numbers: Mapping[str, int]) -> Iterator[str]:
    for defect in item.label.defects:
        for x, y, w, h in boxes_of(defect):
            centre = ((x + w / 2) / item.width, (y + h / 2) / item.height)
            # Nine decimals: far below a hundredth of a pixel in any image.
            values = " ".join(f"{value:.9f}" for value in (*centre, w / item.width, h / item.height))
            yield f"{numbers[defect.label]} {values}\n"


def _write_yaml(path: Path, classes: Sequence[str], splits: list[str]) -> None:
    import yaml  # type: ignore[import-untyped]

    places = {split: f"{split}.txt" for split in ("train", "val", "test") if split in splits} or {"train": "images"}
    content = places | {"nc": len(classes), "names": dict(enumerate(classes))}
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
