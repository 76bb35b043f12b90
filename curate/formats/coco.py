"""COCO JSON: polygons, run-lengths (plain or compressed) and boxes in one file.

    root/annotations.json                (or _annotations.coco.json, instances*.json, anywhere below root)
    root/images/a.jpg                    (file_name as written, below root or below the option `images`)

An annotation without a segmentation is read as its box. An image that has no annotation, listed or not, is clean only
if the data set is `fully_labelled` and each annotation has its image. One unusable annotation sends its image, whole,
to quarantine.

Option `images`: the folder that file names start from, below root (default: root itself).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from curate.data import Box, CocoRle, Polygon, Record, Region, Reject, Shape
from curate.errors import CurateError, LabelProblem
from curate.formats._common import (
    find_label_file,
    folder_below,
    join,
    label_name,
    listing,
    number,
    read_text,
    short,
    without_label,
)
from curate.paths import safe_join

USUAL = ("annotations.json", "_annotations.coco.json", "instances*.json")


@dataclass(slots=True)
class _Image:
    size: tuple[int, int] | None = None
    regions: list[Region] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(root: Path, labels: Path | None, fully_labelled: bool, *, images: str = "") -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: the JSON file, or a folder with it, where it is not below `root`.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        images: the folder that file names start from, below `root`.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    on_disk = [join(images, name) for name in listing(folder_below(root, images, "images"))]
    source = _label_file(root, labels)
    label_file = label_name(root, source)
    content = _load(source)
    listed, strays = _collect(content, images)
    yield from (Reject(label_file, reason, label_file) for reason in strays)
    for path in sorted({*on_disk, *listed}):
        if path in listed:
            yield from _entry(path, listed[path], label_file, without_label(path, fully_labelled, strays))
        else:
            absent = without_label(path, fully_labelled, strays)
            yield replace(absent, note=absent.note or "not listed in the label file")


def _entry(path: str, image: _Image, label_file: str, empty: Record) -> Iterator[Record | Reject]:
    yield from (Reject(path, reason, label_file) for reason in image.problems)
    if not image.problems:
        labelled, note = (True, None) if image.regions else (empty.labelled, empty.note)
        yield Record(path, tuple(image.regions), (), labelled, size=image.size, label_file=label_file, note=note)


# --- the file -----------------------------------------------------------------------------------------------------


def _label_file(root: Path, labels: Path | None) -> Path:
    if labels is not None and not labels.is_dir():
        return find_label_file(root, labels, "")
    below = labels or root
    names = listing(below, frozenset({".json"}))
    files = [name for name in names if any(fnmatch(PurePosixPath(name).name, usual) for usual in USUAL)]
    if len(files) == 1:
        return safe_join(below, files[0])
    what = f"{len(files)} COCO label files ({', '.join(files[:5])})" if files else "no COCO label file"
    raise CurateError(f"{what} below '{below}'; allowed: one of {', '.join(USUAL)}. Set `labels` to the one to read")


def _load(source: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(read_text(source), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as problem:
        raise CurateError(f"'{source}' is not readable JSON: {problem}. Export it again") from None
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in parts):
        raise CurateError(f"'{source}' is not a COCO file: it needs the lists {', '.join(parts)}")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that occurs twice in one object: JSON readers keep the last, so that annotations would be lost."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"key {short(name)} stands twice in one object")
    return entries


def _collect(content: dict[str, list[Any]], folder: str) -> tuple[dict[str, _Image], list[str]]:
    """All listed images by path with their regions and problems, and the problems that belong to no image."""
    listed: dict[str, _Image] = {}
    strays: list[str] = []
    owners: dict[Any, str] = {}
    for entry in content["images"]:
        _add_image(entry, folder, listed, owners, strays)
    categories = _categories(content["categories"])
    for entry in content["annotations"]:
        _add_annotation(entry, categories, listed, owners, strays)
    return listed, strays


def _add_image(entry: Any, folder: str, listed: dict[str, _Image], owners: dict[Any, str], strays: list[str]) -> None:
    name, key = (entry.get("file_name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not name or not _is_id(key):
        strays.append(f"image entry without file_name or id: {short(entry)}")
        return
    path = join(folder, name)
    image = listed.setdefault(path, _Image())
    image.size = image.size or _size(entry)
    other = owners.setdefault(key, path)
    if other != path:  # its annotations may belong to either image
        image.problems.append(f"image id {short(key)} is also the id of '{other}'")
        listed[other].problems.append(f"image id {short(key)} is also the id of '{path}'")


def _add_annotation(
    entry: Any, categories: dict[Any, str], listed: dict[str, _Image], owners: dict[Any, str], strays: list[str]
) -> None:
    key = entry.get("image_id") if isinstance(entry, dict) else None
    if not _is_id(key) or key not in owners:
        strays.append(f"annotation of an image id that is not listed: {short(entry)}")
        return
    image = listed[owners[key]]
    try:
        image.regions.append(_region(entry, categories))
    except LabelProblem as problem:
        image.problems.append(f"annotation {short(entry.get('id'))}: {problem}")


def _categories(entries: list[Any]) -> dict[Any, str]:
    """Names by id; an id with two names is left out."""
    known = [entry for entry in entries if isinstance(entry, dict) and _is_id(entry.get("id"))]
    pairs = {(entry["id"], entry["name"]) for entry in known if isinstance(entry.get("name"), str) and entry["name"]}
    names = Counter(key for key, _ in pairs)
    return {key: name for key, name in sorted(pairs, key=str) if names[key] == 1}


def _is_id(value: object) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    return (width, height) if _positive(width) and _positive(height) else None  # type: ignore[return-value]


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


# --- one annotation -----------------------------------------------------------------------------------------------


def _region(entry: dict[str, Any], categories: dict[Any, str]) -> Region:
    key = entry.get("category_id")
    if not _is_id(key) or key not in categories:
        allowed = ", ".join(short(known) for known in list(categories)[:20])
        raise LabelProblem(f"category id {short(key)} is not listed; allowed: {allowed or 'none'}")
    return Region(categories[key], _shape(entry))


def _shape(entry: dict[str, Any]) -> Shape:
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return _rle(segmentation)
    if segmentation:
        return _polygon(segmentation)
    return _box(entry.get("bbox"))


def _rle(segmentation: dict[str, Any]) -> CocoRle:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(_positive(side) for side in size):
        raise LabelProblem(f"run-length size is {short(size)}; allowed: [height, width]")
    if isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts):
        return CocoRle(tuple(counts), *size)
    if isinstance(counts, str) and counts:
        return CocoRle(counts, *size)
    raise LabelProblem(f"run-length counts are {short(counts)}; allowed: a string or a list of whole numbers >= 0")


def _polygon(segmentation: Any) -> Polygon:
    if not isinstance(segmentation, list) or not all(isinstance(ring, list) for ring in segmentation):
        raise LabelProblem(f"segmentation is {short(segmentation)}; allowed: a list of rings [x1, y1, x2, y2, ...]")
    return Polygon(tuple(_ring(ring) for ring in segmentation))


def _ring(ring: list[Any]) -> tuple[tuple[float, float], ...]:
    if len(ring) < 6 or len(ring) % 2:
        raise LabelProblem(f"polygon ring has {len(ring)} numbers; allowed: an even number from 6")
    values = [number(value, "polygon coordinate") for value in ring]
    return tuple(zip(values[::2], values[1::2], strict=True))


def _box(bbox: Any) -> Box:
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise LabelProblem(f"no segmentation, and bbox is {short(bbox)}; allowed: [x, y, width, height]")
    x, y, w, h = (number(value, "bbox number") for value in bbox)
    if w <= 0 or h <= 0:
        raise LabelProblem(f"bbox {short(bbox)} is empty")
    return Box(x, y, w, h)
