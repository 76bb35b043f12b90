"""Images and their masks at a smaller size, so that a trial on a CPU sees more steel in as many pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from curate import files
from curate.data import Defect, Item, Label
from curate.errors import LabelProblem
from curate.hashing import key_of
from curate.masks.shapes import defect_from_mask, mask_of
from train.data.pixels import read

HALF = 0.5  # a pixel is defective where at least half of it was
Progress = Callable[[str, int, int], None]


def shrunk(items: Sequence[Item], scale: float, home: Path, max_pixels: int, progress: Progress) -> list[Item]:
    """The items at this scale, from disk where they are there; what cannot be read, or would lose a defect, is left
    out."""
    folder = home / f"small-{key_of([scale, sorted((item.id, item.label.digest) for item in items)])}"
    if not (folder / "items.json").is_file():
        files.remove(folder)
        with files.written_aside(folder) as aside:
            aside.mkdir(parents=True)
            rows = {item.id: _shrunk(item, scale, aside, max_pixels) for item in _told(items, progress)}
            files.write_json(aside / "items.json", {id: row for id, row in rows.items() if row})
    known = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    return [_item(item, known[item.id], folder) for item in items if item.id in known]


def _told(items: Sequence[Item], progress: Progress) -> Any:
    for item in items:
        yield item
        progress("shrink", 1, len(items))


def _shrunk(item: Item, scale: float, folder: Path, max_pixels: int) -> dict[str, Any] | None:
    size = max(1, round(item.width * scale)), max(1, round(item.height * scale))
    masks = [(defect, _smaller(mask_of(defect, item.width, item.height), size)) for defect in item.label.defects]
    defects = [defect_from_mask(defect.label, mask) for defect, mask in masks]
    try:
        pixels = cv2.resize(read(item.id, item.path, max_pixels), size, interpolation=cv2.INTER_AREA)
    except LabelProblem:
        return None
    if any(defect is None for defect in defects):
        return None
    Image.fromarray(pixels).save(folder / f"{item.id}.png")
    id = hashlib.sha256((folder / f"{item.id}.png").read_bytes()).hexdigest()
    return {"id": id, "size": size, "defects": [defect.to_json() for defect in defects if defect]}


def _smaller(mask: Any, size: tuple[int, int]) -> Any:
    return (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= HALF).astype(np.uint8)


def _item(item: Item, row: Mapping[str, Any], folder: Path) -> Item:
    width, height = row["size"]
    label = Label(item.label.status, tuple(Defect.from_json(entry) for entry in row["defects"]))
    return replace(item, id=row["id"], path=folder / f"{item.id}.png", width=width, height=height, label=label)
