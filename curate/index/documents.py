"""Labels and samples as FiftyOne's database stores them, both ways.

Images are inserted as plain documents: FiftyOne's `add_samples` builds a live object a sample only to take it apart
again, which costs more than reading and hashing an image. A test compares these documents with those that `add_samples`
writes; the pin on FiftyOne in pyproject.toml keeps the two alike.
"""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from curate.data import Defect, Label, Status, make_defect
from curate.errors import LabelProblem
from curate.labels.log import LabelState

if TYPE_CHECKING:
    from curate.index.intake import ImageFacts


@dataclass(frozen=True, slots=True)
class NewSample:
    """All facts that are needed to add one image."""

    image: ImageFacts
    path: Path
    reference: str
    source: str
    format: str
    group: str
    stratum: str | None
    state: LabelState
    tags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.image.id


# --- to the database ------------------------------------------------------------------------------------------------


def sample_documents(samples: Iterable[NewSample], dataset_id: Any) -> Iterator[dict[str, Any]]:
    """Yield the samples as documents of a dataset's collection; None is left out, as FiftyOne does."""
    now = database_now()
    for new in samples:
        document = _image_fields(new) | label_fields(new.state, new.image.width, new.image.height)
        document |= {"_dataset_id": dataset_id, "created_at": now, "last_modified_at": now}
        yield {name: value for name, value in document.items() if value is not None}


def database_now() -> datetime:
    """Return the time as the database stores it: milliseconds, without a zone."""
    now = datetime.now(UTC).replace(tzinfo=None)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _image_fields(new: NewSample) -> dict[str, Any]:
    image = new.image
    size = {"width": image.width, "height": image.height}
    file_facts = {"size_bytes": image.bytes, "mime_type": image.mime, "num_channels": image.channels}
    return {
        "filepath": str(new.path),
        "tags": list(new.tags),
        "metadata": {"_cls": "ImageMetadata", **file_facts, **size},
        "_media_type": "image",
        "_rand": random.Random(image.id).random(),  # noqa: S311 - the App's order of random samples
        "content_id": image.id,
        "source": new.source,
        "format": new.format,
        "group": new.group,
        "stratum": new.stratum,
        "paths": [new.reference],
        "missing": False,
        **size,
    }


def label_fields(state: LabelState, width: int, height: int) -> dict[str, Any]:
    """Return the fields that show a label state, by name."""
    label, entry = state.label, state.entry
    extra = entry.extra if entry else {}
    others = [detection(d, width, height, path) for path, other in state.others for d in other.defects]
    return {
        "defects": {"_cls": "Detections", "detections": [detection(d, width, height) for d in label.defects]},
        "classes": {"_cls": "Classifications", "classifications": [classification(name) for name in label.classes]},
        "other_defects": {"_cls": "Detections", "detections": others},
        "versions": [describe(path, other) for path, other in state.others],
        "status": label.status,
        "status_reason": label.reason,
        "label_digest": label.digest,
        "state_key": state.key,
        "label_origin": entry.origin if entry else None,
        "labelled_by": entry.who if entry else None,
        "labelled_at": entry.at if entry else None,
        "label_file": extra.get("label_file"),
        "label_line": extra.get("line"),
        "annotation": extra.get("annotation"),
        "annotation_origin": extra.get("origin"),
        "label_config": extra.get("config"),
        "lead_time": extra.get("lead_time"),
    }


def describe(path: str, label: Label) -> str:
    """Return one version of a disputed label, for a person to read."""
    shown = ", ".join(sorted(label.present)) or ("clean" if label.clean else label.status)
    return f"{path}: {shown}"


def detection(defect: Defect, width: int, height: int, version: str | None = None) -> dict[str, Any]:
    """Return a defect as FiftyOne's Detection."""
    from bson import ObjectId

    from curate.masks import shapes  # its kernels take half a second to load

    x, y, w, h = defect.box
    box = [x / width, y / height, w / width, h / height]
    document = {"_id": ObjectId(), "_cls": "Detection", "attributes": {}, "tags": [], "label": defect.label}
    document |= {"bounding_box": box}
    crop = shapes.crop_of(defect)
    if crop is not None:
        document["mask"] = zlib.compress(_npy_header(crop.shape) + crop.tobytes(), level=1)
    document |= {"severity": defect.severity} if defect.severity else {}
    return document | ({"version": version} if version else {})


@lru_cache(maxsize=4096)
def _npy_header(shape: tuple[int, int]) -> bytes:
    """Return the header of a mask in FiftyOne's form, a compressed .npy; `np.save` takes longer for it than for the
    pixels."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(shape, bool))
    return buffer.getvalue()[: -shape[0] * shape[1]]


def classification(name: str) -> dict[str, Any]:
    """Return a class of the whole image as FiftyOne's Classification."""
    from bson import ObjectId

    return {"_id": ObjectId(), "_cls": "Classification", "tags": [], "label": name}


# --- and back -------------------------------------------------------------------------------------------------------

READ_FIELDS = (
    *("content_id", "width", "height", "status", "status_reason", "label_digest", "last_modified_at"),
    *("defects.detections", "classes.classifications.label"),
)
ARRAY_HEADER = 1024  # bytes that numpy writes before an array's values, and some more
INCOMPLETE, UNREADABLE = "incomplete-region", "unreadable-mask"


class ShownLabel(NamedTuple):
    """An image's label as the App shows it, and the time of the sample's last change.

    The label's `status` is the text in the App, which a person may have mistyped.
    """

    id: str
    label: Label
    digest: str | None
    width: int
    height: int
    modified: datetime | None

    @property
    def edited(self) -> bool:
        """True if somebody changed the label since it was last written. Status `queued` counts as `unlabelled`."""
        known = replace(self.label, status="unlabelled") if self.label.status == "queued" else self.label
        return known.digest != self.digest


def shown_label(document: Mapping[str, Any]) -> ShownLabel:
    """Return the label that a sample's document shows."""
    width, height = document["width"], document["height"]
    regions = (document.get("defects") or {}).get("detections") or ()
    names = {entry.get("label") for entry in (document.get("classes") or {}).get("classifications") or ()}
    results = [defect(region, width, height) for region in regions]
    faults = {fault for fault in results if isinstance(fault, str)} | ({INCOMPLETE} if None in names else set())
    status, reason = document.get("status") or "unlabelled", document.get("status_reason")
    if faults:
        status, reason = "disputed", ", ".join(sorted(faults))
    defects = tuple(result for result in results if isinstance(result, Defect))
    label = Label(cast(Status, status), defects, tuple(sorted(name for name in names if name)), reason)
    digest, modified = document.get("label_digest"), document.get("last_modified_at")
    return ShownLabel(document["content_id"], label, digest, width, height, modified)


def defect(region: Mapping[str, Any], width: int, height: int) -> Defect | str:
    """Return the region as a defect, or its fault: a person may leave one incomplete."""
    name, box = region.get("label"), region.get("bounding_box")
    if not name or not box or len(box) != 4 or not np.isfinite(box).all():
        return INCOMPLETE
    x, y, w, h = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    try:
        pixels = _pixels(region, width * height)
    except (OSError, ValueError, EOFError, zlib.error, LabelProblem):
        return UNREADABLE
    severity = region.get("severity")
    if pixels is None:
        return make_defect(name, (x, y, w, h), severity=severity)
    left, top, wide, high = round(x), round(y), max(1, round(w)), max(1, round(h))
    if wide * high > 4 * width * height:  # one that was drawn over the edges a little is clipped later
        return INCOMPLETE
    if pixels.shape != (high, wide):  # in the App a person can resize a mask's box: the mask is stretched with it
        pixels = _stretch(pixels, wide, high)
    from curate.masks import rle

    return make_defect(name, (left, top, wide, high), rle.mask_to_coco(pixels), severity)


def _pixels(region: Mapping[str, Any], most: int) -> Any:
    """Return the mask of a region, from the document or from a file of its own; None for a plain box.

    One of more than `most` pixels, those of the image, raises ValueError or LabelProblem before it is unpacked.
    """
    if region.get("mask"):
        unpacked = zlib.decompressobj()
        array = io.BytesIO(unpacked.decompress(region["mask"], ARRAY_HEADER + 8 * most))
        if unpacked.unconsumed_tail:
            raise ValueError(f"a mask of more than {most} pixels")
        mask = np.load(array, allow_pickle=False)
    elif region.get("mask_path"):
        from curate.masks import shapes

        mask = shapes.grey_file(Path(region["mask_path"]), most)
    else:
        return None
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask has two dimensions, not shape {mask.shape}")
    return np.ascontiguousarray(mask != 0).view(np.uint8)


def _stretch(pixels: Any, width: int, height: int) -> Any:
    rows = (np.arange(height) * pixels.shape[0] // height)[:, None]
    return np.ascontiguousarray(pixels[rows, np.arange(width) * pixels.shape[1] // width])
