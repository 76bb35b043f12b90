"""How the versions of a disputed label differ: regions, areas and overlap by class, and a picture side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.data import Label
from curate.masks import shapes

Versions = Sequence[tuple[str, Label]]
PANEL = 640  # pixels of a panel's longer side
GAP, TITLE = 8, 16
MOST_PANELS = 6


def by_class(versions: Versions, width: int, height: int) -> dict[str, Any]:
    """Return by class each version's regions and area in pixels, and the lowest IoU of any two versions.

    An image-level class has neither region nor area. The IoU covers all pixels of the class; it is None where a version
    has no region of it.
    """
    names = sorted({name for _, label in versions for name in label.present})
    return {name: _differences(name, [label for _, label in versions], width, height) for name in names}


def _differences(name: str, labels: Sequence[Label], width: int, height: int) -> dict[str, Any]:
    masks = [_mask(label, name, width, height) for label in labels]
    overlaps = [_iou(a, b) for a, b in combinations(masks, 2)] if all(mask.any() for mask in masks) else []
    return {
        "shown": [name in label.present for label in labels],
        "regions": [sum(defect.label == name for defect in label.defects) for label in labels],
        "area": [int(mask.sum()) for mask in masks],
        "iou": round(min(overlaps), 3) if overlaps else None,
        "severity": [sorted({d.severity for d in label.defects if d.label == name and d.severity}) for label in labels],
    }


def _mask(label: Label, name: str, width: int, height: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    for defect in label.defects:
        if defect.label == name:
            mask |= shapes.mask_of(defect, width, height).astype(np.bool_)
    return mask


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def draw_versions(file: Path, image: Path, versions: Versions, colors: Mapping[str, str]) -> Path:
    """Write a picture: the image once for each of the first versions, with its regions in their classes' colours."""
    from PIL import Image, ImageDraw

    with Image.open(image) as opened:
        width, height = opened.size
        scale = PANEL / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        plain = np.asarray(opened.convert("RGB").resize(size))
    stacked = width > 2 * height  # strips lie one below the other
    shown = versions[:MOST_PANELS]
    step = (0, size[1] + TITLE + GAP) if stacked else (size[0] + GAP, 0)
    last = len(shown) - 1
    sheet = Image.new("RGB", (size[0] + step[0] * last, size[1] + TITLE + step[1] * last), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (path, label) in enumerate(shown):
        left, top = step[0] * number, step[1] * number
        draw.text((left + 2, top + 2), f"{number + 1}: {path}".encode("ascii", "replace").decode(), fill="black")
        sheet.paste(Image.fromarray(_with_regions(plain, label, (width, height), colors)), (left, top + TITLE))
    with files.written_aside(file) as aside:
        sheet.save(aside, "PNG")
    return file


def _with_regions(
    plain: NDArray[np.uint8], label: Label, size: tuple[int, int], colors: Mapping[str, str]
) -> NDArray[np.uint8]:
    """Return the panel with the label's regions drawn into it; `size` is that of the whole image."""
    from PIL import Image

    result = plain.astype(np.float32)
    for defect in label.defects:
        whole = Image.fromarray(shapes.mask_of(defect, *size) * np.uint8(255))
        # A box filter keeps a trace of what is smaller than a pixel of the panel.
        mask = np.asarray(whole.resize((plain.shape[1], plain.shape[0]), Image.Resampling.BOX)) > 0
        inner = mask.copy()
        inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        color = np.array([int(colors.get(defect.label, "#ffffff")[at : at + 2], 16) for at in (1, 3, 5)], np.float32)
        result[inner] = 0.7 * result[inner] + 0.3 * color
        result[mask & ~inner] = color
    return result.astype(np.uint8)
