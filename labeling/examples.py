"""Example crops of each class for the annotators' instructions, from labelled images of the train split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from curate.data import Defect, Item
from curate.errors import CurateError
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.masks import shapes
from curate.masks.decode import pixels_of
from curate.project import Project
from labeling.client import Studio
from labeling.config import ExampleCrop

EACH = 3
SIDE = 120  # pixels of a crop
MARGIN = 0.6  # of the defect's longer side, around it
LOOKED_AT = 30  # images of a class that are considered
AT_ONCE = 50  # crops in one request; Label Studio takes 100 files

Picture = NDArray[np.uint8]
Store = Callable[[Sequence[bytes]], list[str]]  # PNGs -> their addresses on the server


def key(project: Project) -> str:
    """Changes with the classes and with which of them can be shown, not with every label: instructions should not move
    under the annotators' eyes."""
    index = Index(project)
    held = set(index.dataset.match(_usable(index)).distinct("defects.detections.label"))
    classes = [entry.model_dump() for entry in project.config.classes]
    return key_of([classes, sorted(held & set(project.active_classes))])


def crops(project: Project, store: Store) -> list[ExampleCrop]:
    """A few crops of each class, each with the defect in the middle and its outline drawn."""
    index = Index(project)
    drawn = [(name, png) for name in project.active_classes for png in _of_class(index, name)]
    addresses = store([png for _, png in drawn])
    return [ExampleCrop(name, address) for (name, _), address in zip(drawn, addresses, strict=True)]


def on_server(studio: Studio, project_id: int) -> Store:
    """Stores crops as uploads of the project, each once: Label Studio takes data: addresses out of instructions."""

    def store(pngs: Sequence[bytes]) -> list[str]:
        named = {f"example_{hashlib.blake2b(png, digest_size=16).hexdigest()}.png": png for png in pngs}
        known = _uploaded(studio, project_id)
        missing = [name for name in named if name not in known]
        for at in range(0, len(missing), AT_ONCE):
            sent = {name: (name, named[name]) for name in missing[at : at + AT_ONCE]}
            where = {"params": {"commit_to_project": "false"}, "files": sent}
            studio.ask("POST", f"/api/projects/{project_id}/import", **where)
        known = _uploaded(studio, project_id) if missing else known
        addresses = {png: f"/data/{quote(known[name])}" for name, png in named.items()}
        return [addresses[png] for png in pngs]

    return store


def _uploaded(studio: Studio, project_id: int) -> dict[str, str]:
    """Return the uploads, {our name: file on the server}."""
    uploads: list[Mapping[str, str]] = studio.get(f"/api/projects/{project_id}/file-uploads", all="true")
    return {upload["file"].rpartition("-")[2]: upload["file"] for upload in uploads}


def _usable(index: Index) -> Any:
    field = index.fo.ViewField
    return (field("status") == "labelled") & (field("split") == "train") & (field("missing") != True)  # noqa: E712


def _of_class(index: Index, name: str) -> Iterator[bytes]:
    field = index.fo.ViewField
    shown = field("defects.detections.label").contains(field.literal([name]))
    ids = sorted(index.dataset.match(shown & _usable(index)).values("content_id"))[:LOOKED_AT]
    count = 0
    for item in index.items(ids):
        if count == EACH:
            return
        largest = max((d for d in item.label.defects if d.label == name), key=lambda d: d.box[2] * d.box[3])
        crop = _crop(item, largest, index.project.colors[name], index.project.config.limits.max_pixels)
        if crop is not None:
            count += 1
            yield _png(crop)


def _crop(item: Item, defect: Defect, color: str, max_pixels: int) -> Picture | None:
    import cv2

    try:
        grey = pixels_of(item.path.read_bytes(), max_pixels)
    except (OSError, CurateError):
        return None
    picture = np.ascontiguousarray(np.broadcast_to(grey.reshape(*grey.shape[:2], -1)[..., :3], (*grey.shape[:2], 3)))
    mask = shapes.mask_of(defect, item.width, item.height)
    if mask.shape != picture.shape[:2]:
        return None
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    rgb = tuple(int(color[at : at + 2], 16) for at in (1, 3, 5))
    drawn = cv2.drawContours(picture, outline, -1, rgb, 1)
    left, top, right, bottom = _around(defect, item.width, item.height)
    return np.asarray(cv2.resize(drawn[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def _around(defect: Defect, width: int, height: int) -> tuple[int, int, int, int]:
    """A square with the defect in its middle, as large as the image allows."""
    x, y, w, h = defect.box
    side = min(max(w, h) * (1 + 2 * MARGIN) + 16, width, height)
    left = min(max(0.0, x + w / 2 - side / 2), width - side)
    top = min(max(0.0, y + h / 2 - side / 2), height - side)
    return int(left), int(top), int(left + side), int(top + side)


def _png(picture: Picture) -> bytes:
    import cv2

    _, data = cv2.imencode(".png", picture[..., ::-1])
    return bytes(data.tobytes())
