"""The contact sheet: real defects beside synthetic ones, a class at a time, for a person to judge at a glance."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curate import files
from synth.nouns import Mask, Pixels

SIDE = 96  # pixels of a picture
ACROSS = 10
GAP, LEFT, HEAD, LINE = 4, 120, 22, 11
ROWS = {"real": (70, 70, 70), "passed": (30, 130, 60), "refused": (190, 40, 40)}
Crop = tuple[Pixels, Mask]
Shown = Mapping[str, Mapping[str, Sequence[Crop]]]  # class, then a row's name


def write(target: Path, shown: Shown, title: str) -> None:
    """Every class has a row of real defects, one of those that passed, one of those that did not; with the outlines of
    their masks below each other's pictures, and beneath what the scale hides: a picture's size, and its mask's area."""
    with files.written_aside(target) as aside:
        drawn(shown, title).save(aside, format="PNG")


def drawn(shown: Shown, title: str) -> Any:
    from PIL import Image, ImageDraw

    rows = [(name, kind, rows[kind]) for name, rows in shown.items() for kind in ROWS if rows.get(kind)]
    sheet = Image.new("RGB", (LEFT + ACROSS * (SIDE + GAP), HEAD + len(rows) * _height() + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, "black")
    for row, (name, kind, crops) in enumerate(rows):
        top = HEAD + row * _height()
        pen.text((GAP, top + GAP), "\n".join(_about(name, kind, crops)), ROWS[kind])
        for place, crop in enumerate(crops[:ACROSS]):
            left = LEFT + place * (SIDE + GAP)
            for below, outlined in ((0, False), (SIDE, True)):
                sheet.paste(Image.fromarray(picture(*crop, ROWS[kind] if outlined else None)), (left, top + below))
            high, wide = crop[1].shape
            pen.text((left, top + 2 * SIDE), f"{wide}x{high} px", "black")
            pen.text((left, top + 2 * SIDE + LINE), f"area {int(crop[1].sum())}", "black")
    return sheet


def _about(name: str, kind: str, crops: Sequence[Crop]) -> list[str]:
    """A row's heading, in lines that its column holds."""
    areas = [int(mask.sum()) for _, mask in crops]
    median = f"median area {np.median(areas):.0f}"
    return [*textwrap.wrap(name, 18), kind, f"{min(len(crops), ACROSS)} of {len(crops)}", median]


def _height() -> int:
    return 2 * SIDE + 2 * LINE + 2 * GAP


def picture(pixels: Pixels, mask: Mask, outline: tuple[int, int, int] | None = None) -> Pixels:
    """A square colour picture of a crop, which keeps its proportions."""
    scale = SIDE / max(mask.shape)
    size = [max(1, round(side * scale)) for side in mask.shape[::-1]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    colour = np.broadcast_to(pixels.reshape(*mask.shape, -1), (*mask.shape, 3)).astype(np.uint8)
    small = cv2.resize(colour, size, interpolation=how)
    if outline is not None:
        flat = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        small[cv2.dilate(flat, np.ones((3, 3), np.uint8)) > flat] = outline
    room = np.full((SIDE, SIDE, 3), 255, np.uint8)
    room[: size[1], : size[0]] = small
    return room
