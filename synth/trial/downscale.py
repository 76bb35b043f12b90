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
from curate.index.rounds import key_of
from curate.masks.shapes import defect_from_mask, mask_of
from train.data.pixels import read

HALF = 0.5  # a pixel is defective where at least half of it was
Progress = Callable[[str, int, int], None]


def shrunk(items: Sequence[Item], scale: float, home: Path, max_pixels: int, progress: Progress) -> list[Item]:
    """The items at this scale, from disk where they are there; what cannot be read, or would lose a defect, is left
    out."""
    folder = home / f"small-{key_of([scale, sorted((one.id, one.label.digest) for one in items)])}"
    if not (folder / "items.json").is_file():
        files.remove(folder)
        with files.written_aside(folder) as aside:
            aside.mkdir(parents=True)
            rows = {one.id: _shrunk(one, scale, aside, max_pixels) for one in _told(items, progress)}
            files.write_json(aside / "items.json", {id: row for id, row in rows.items() if row})
    known = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    return [_item(one, known[one.id], folder) for one in items if one.id in known]


def _told(items: Sequence[Item], progress: Progress) -> Any:
    for one in items:
        yield one
        progress("shrink", 1, len(items))


def _shrunk(one: Item, scale: float, folder: Path, max_pixels: int) -> dict[str, Any] | None:
    size = max(1, round(one.width * scale)), max(1, round(one.height * scale))
    masks = [(defect, _smaller(mask_of(defect, one.width, one.height), size)) for defect in one.label.defects]
    defects = [defect_from_mask(defect.label, mask) for defect, mask in masks]
    try:
        pixels = cv2.resize(read(one.id, one.path, max_pixels), size, interpolation=cv2.INTER_AREA)
    except LabelProblem:
        return None
    if any(found is None for found in defects):
        return None
    Image.fromarray(pixels).save(folder / f"{one.id}.png")
    id = hashlib.sha256((folder / f"{one.id}.png").read_bytes()).hexdigest()
    return {"id": id, "size": size, "defects": [found.to_json() for found in defects if found]}


def _smaller(mask: Any, size: tuple[int, int]) -> Any:
    return (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= HALF).astype(np.uint8)


def _item(one: Item, row: Mapping[str, Any], folder: Path) -> Item:
    width, height = row["size"]
    label = Label(one.label.status, tuple(Defect.from_json(entry) for entry in row["defects"]))
    return replace(one, id=row["id"], path=folder / f"{one.id}.png", width=width, height=height, label=label)
