"""The most unusual images in the App: how unusual, and the window that is, as a region without a class; no label.

What is shown follows from the score table that `curate/select/anomaly_table.py` keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curate.index.dataset import Index

PERCENT, REGION = "anomaly", "unusual"  # fields
VIEW = "most unusual"
COLOR = "#00e5ff"  # of the region: no class has it
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class UnusualWindow:
    """The most unusual window of an image.

    Args:
        percent: the windows of its bank that are less unusual, in per cent.
        box: its left, top, width and height in pixels; None where it is the whole image.
    """

    percent: float
    box: Box | None = None


def show(index: Index, windows: Mapping[str, UnusualWindow]) -> int:
    """Show these images' windows, by content id, and no others; returns the number of images that changed."""
    fo = index.fo
    index.declare(**{PERCENT: fo.FloatField, REGION: fo.Detections})
    shown = _shown(index)
    names = ("content_id", "width", "height")
    sizes = {row["content_id"]: (row["width"], row["height"]) for row in index.documents(list(windows), names)}
    wanted = {id: _fields(windows[id], *size) for id, size in sizes.items()}
    changes = {id: fields for id, fields in wanted.items() if shown.get(id) != _compared(fields)}
    changes |= {id: {PERCENT: None, REGION: None} for id in shown.keys() - wanted.keys()}
    index.update(changes)
    return len(changes)


def _shown(index: Index) -> dict[str, tuple[Any, ...]]:
    view = index.dataset.exists(PERCENT)
    rows = zip(*view.values(["content_id", PERCENT, f"{REGION}.detections.bounding_box"]), strict=True)
    return {id: (percent, [list(box) for box in boxes or ()]) for id, percent, boxes in rows if id}


def _fields(window: UnusualWindow, width: int, height: int) -> dict[str, Any]:
    from bson import ObjectId

    regions = []
    if window.box is not None:
        x, y, w, h = window.box
        box = [x / width, y / height, w / width, h / height]
        region = {"_id": ObjectId(), "_cls": "Detection", "attributes": {}, "tags": [], "label": None}
        regions.append(region | {"bounding_box": box, "percent": window.percent})
    return {PERCENT: window.percent, REGION: {"_cls": "Detections", "detections": regions}}


def _compared(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return (fields[PERCENT], [region["bounding_box"] for region in fields[REGION]["detections"]])
