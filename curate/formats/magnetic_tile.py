"""Magnetic-tile surfaces: class from the folder, PNG mask beside each JPG, tiles in up to six exposures.

    root/MT_Blowhole/Imgs/exp1_num_108719.jpg
    root/MT_Blowhole/Imgs/exp1_num_108719.png
    root/MT_Free/Imgs/exp1_num_1234.jpg  (no defect: clean, its mask is not read)

388 masks are not strictly binary: a pixel belongs to the defect from grey value 128 on. Masks that are empty (4 of
class Uneven) leave the class as an image-level label, and so do missing ones. The group is the tile: sorted by the
number after `num_` over all classes, a new tile starts where the exposure number does not rise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from curate.data import MaskFile, Record, Region, Reject
from curate.formats._common import listing, refuse_labels, stem

CLASSES = ("Blowhole", "Break", "Crack", "Fray", "Uneven")
EMPTY_MASK_KEEPS_CLASS = True
FREE = "Free"
EXPOSURE = re.compile(r"exp(\d+)_num_(\d+)")


def read(root: Path, labels: Path | None, fully_labelled: bool) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: must be None: this format has no label files.
        fully_labelled: every defect is labelled, so that an image without a label is clean.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    refuse_labels("magnetic_tile", labels)
    masks = {stem(path): path for path in listing(root, frozenset({".png"}))}
    on_disk = listing(root, frozenset({".jpg", ".jpeg", ".bmp"}))
    absent = {f"{name}.jpg" for name in masks.keys() - {stem(path) for path in on_disk} if _class(name)}
    paths = sorted({*on_disk, *absent})
    tiles = _tiles(paths)
    for path in paths:
        yield _record(path, masks.get(stem(path)), tiles.get(path), fully_labelled)


def is_mask(path: str) -> bool:
    return path.lower().endswith(".png")


def _record(path: str, mask: str | None, tile: str | None, fully_labelled: bool) -> Record:
    name = _class(path)
    if name is None:
        return Record(path, labelled=fully_labelled, group=tile, note="in no MT_ folder")
    if name == FREE:
        return Record(path, labelled=True, group=tile)
    if mask is None:
        return Record(path, classes=(name,), labelled=True, group=tile, note="no mask file")
    return Record(path, (Region(name, MaskFile(mask)),), labelled=True, group=tile, label_file=mask)


def _class(path: str) -> str | None:
    folders = PurePosixPath(path).parts[:-1]
    return next((part[3:] for part in reversed(folders) if part.startswith("MT_") and len(part) > 3), None)


def _tiles(paths: list[str]) -> dict[str, str]:
    """The tile of each image, named after the number of the tile's first image."""
    names = ((EXPOSURE.search(PurePosixPath(path).name), path) for path in paths)
    shots = sorted((int(name[2]), int(name[1]), path) for name, path in names if name)
    tiles: dict[str, str] = {}
    tile, last = "", 0
    for count, exposure, path in shots:
        if not tile or exposure <= last:
            tile = f"tile-{count}"
        tiles[path], last = tile, exposure
    return tiles
