"""COCO JSON: one file with boxes and run-length masks, images beside it.

    to/annotations.json
    to/images/a.jpg
    to/image_classes.csv                 only if there are image-level classes

A defect with pixels has the compressed run-lengths of the whole image (with `iscrowd` 0, which pycocotools reads) and
its pixel count as area; a plain box has an empty `segmentation`. Categories are numbered from 1 in the order of the
classes, used or not. An image also has its `sha256`, `split` and `group`, and its image-level `classes`, if any.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from curate import __version__
from curate.data import Defect, Item
from curate.exports._common import placed
from curate.masks import rle
from curate.masks.shapes import mask_of


def write(items: Iterable[Item], folder: Path, classes: Sequence[str]) -> int:
    """Write the items.

    Args:
        items: labelled images.
        folder: the new folder, which is empty.
        classes: the class names, in the order of their numbers.

    Returns:
        The number of annotations.
    """
    numbers = {name: number for number, name in enumerate(classes, 1)}
    # Annotations are written at once; the images, which follow them, to a temporary file first.
    with (folder / "annotations.json").open("w", encoding="utf-8") as out, TemporaryFile("w+") as images:
        out.write(_head(numbers))
        regions = _write_items(items, folder, numbers, out, images)
        out.write('\n],\n"images": [')
        images.seek(0)
        shutil.copyfileobj(images, out)
        out.write("\n]}\n")
    return regions


def _head(numbers: Mapping[str, int]) -> str:
    categories = [{"id": number, "name": name, "supercategory": "defect"} for name, number in numbers.items()]
    info = {"description": f"exported by steel-curate {__version__}"}
    head = json.dumps({"info": info, "licenses": [], "categories": categories}, indent=1)
    return head.removesuffix("\n}") + ',\n"annotations": ['


def _write_items(items: Iterable[Item], folder: Path, numbers: Mapping[str, int], out: IO[str], images: IO[str]) -> int:
    regions = 0
    for image_id, (item, name) in enumerate(placed(items, folder), 1):
        _write_entry(images, _image(item, name, image_id), image_id == 1)
        for defect in item.label.defects:
            regions += 1
            entry = {"id": regions, "image_id": image_id, "category_id": numbers[defect.label]}
            _write_entry(out, entry | _shape(defect, item), regions == 1)
    return regions


def _write_entry(out: IO[str], entry: Mapping[str, Any], first: bool) -> None:
    out.write(("\n" if first else ",\n") + json.dumps(entry))


def _image(item: Item, name: str, image_id: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": image_id, "file_name": f"images/{name}", "width": item.width, "height": item.height}
    entry |= {"sha256": item.id, "split": item.split, "group": item.group}
    return entry | ({"classes": list(item.label.classes)} if item.label.classes else {})


def _shape(defect: Defect, item: Item) -> dict[str, Any]:
    entry: dict[str, Any] = {"bbox": list(defect.box), "iscrowd": 0}
    if defect.rle is None:
        return entry | {"area": round(defect.box[2] * defect.box[3], 3), "segmentation": []}
    mask = mask_of(defect, item.width, item.height)
    counts = {"size": [item.height, item.width], "counts": rle.mask_to_coco(mask)}
    return entry | {"area": int(mask.sum()), "segmentation": counts}
