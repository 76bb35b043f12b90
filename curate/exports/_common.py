"""Helpers of exporters: images in `images/`, classes without pixels in `image_classes.csv`, lists of splits."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from curate import files
from curate.data import Defect, Item
from curate.errors import CurateError
from curate.masks.shapes import Mask, crop_of, mask_of

# YOLO readers take labels/train.txt and the like for lists of images.
RESERVED = frozenset({"classes", "train", "val", "valid", "test"})
# Readers of mask folders take a_mask.png for the mask of a.png.
ENDINGS = re.compile(r"(_mask|_label|_gt)+$")
IMAGE_CLASSES = "image_classes.csv"
STEM_BYTES = 180  # with an id and a suffix still below the 255 that file systems allow


def placed(items: Iterable[Item], folder: Path) -> Iterator[tuple[Item, str]]:
    """Place each item's image and image-level classes; yield the item and its file name in `images/`."""
    used = set(RESERVED)
    (folder / "images").mkdir()
    for item in items:
        name = unused_name(item, used)
        place_image(item.path, folder / "images" / name)
        note_classes(folder, name, item.label.classes)
        yield item, name


def note_classes(folder: Path, name: str, classes: Iterable[str]) -> None:
    """Add rows to `image_classes.csv`, a file that exists only if it has rows."""
    rows = [(f"images/{name}", label) for label in sorted(set(classes))]
    if not rows:
        return
    path = folder / IMAGE_CLASSES
    header = [] if path.exists() else [("file", "class")]
    with path.open("a", newline="", encoding="utf-8") as handle:
        files.write_csv(handle, header + rows)


def write_lists(folder: Path, lists: Mapping[str, list[str]]) -> None:
    """Write `<split>.txt` for each split, one line an image."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- file names ---------------------------------------------------------------------------------------------------


def class_folder(above: Path, label: str) -> Path:
    """The folder of a class, or an error where its name cannot be a folder's."""
    if label.startswith(".") or not label.isprintable() or set(label) & set("/\\"):
        raise CurateError(f"class '{label}' cannot be the name of a folder. Run: curate classes rename '{label}' NAME")
    return above / label


def unused_name(item: Item, used: set[str]) -> str:
    """The image's own name if its stem is free (label files are named after stems), else the stem with the id."""
    stem = _plain_stem(item)
    for candidate in (stem, f"{stem}-{item.id[:8]}", f"{stem}-{item.id}"):
        # On some disks names are equal that differ in case, or in how an umlaut is composed.
        key = ENDINGS.sub("", unicodedata.normalize("NFC", candidate).casefold())
        if key not in used:
            used.add(key)
            return candidate + item.path.suffix
    raise CurateError(f"image '{item.path}' (id {item.id}) comes twice. Run: curate index")


def _plain_stem(item: Item) -> str:
    """The stem without what list files, XML, CSV readers or other systems cannot hold; empty ones become the id."""
    kept = "".join(c if c.isprintable() and c not in "/\\:" else "_" for c in item.path.stem)
    kept = kept.encode()[:STEM_BYTES].decode(errors="ignore").strip(" .") or item.id[:8]
    return f"_{kept}" if kept[0] in files.FORMULA else kept


def place_image(source: Path, target: Path) -> None:
    try:
        _link_or_copy(source.resolve(), target)
    except OSError as problem:
        reason = f"image '{source}' cannot be copied: {problem.strerror}"
        raise CurateError(f"{reason}. If it has moved, run: curate index") from None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise  # the target is a link too: to copy over it would destroy somebody's original
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


# --- defects ------------------------------------------------------------------------------------------------------


def boxes_of(defect: Defect) -> Iterator[tuple[float, float, float, float]]:
    """Left, top, width and height: of the box itself, or of each 8-connected part of the mask."""
    crop = crop_of(defect)
    if crop is None:
        yield defect.box
        return
    import cv2

    count, _, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8)
    for x, y, w, h, _ in stats[1:count].tolist():
        yield defect.box[0] + x, defect.box[1] + y, float(w), float(h)


def class_masks(item: Item) -> dict[str, Mask]:
    """One mask a class, of the image's size: all its defects that have pixels."""
    masks: dict[str, Mask] = {}
    for defect in item.label.defects:
        if defect.rle is not None:
            mask = mask_of(defect, item.width, item.height)
            masks[defect.label] = np.maximum(mask, masks[defect.label]) if defect.label in masks else mask
    return masks


def boxed_classes(item: Item) -> set[str]:
    """Classes of defects that are plain boxes and that the image-level classes do not name already."""
    return {defect.label for defect in item.label.defects if defect.rle is None} - set(item.label.classes)
