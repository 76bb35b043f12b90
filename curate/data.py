"""The nouns. Read this file first.

A *format* yields a `Record` for each image that it finds: where the image is and what its label file says, as plain
data whose pixels are not decoded yet (`Region` with a `Shape`). Reading one turns it into a `Label`: canonical, small,
hashable, the same whether it came from a CSV, from the App or from Label Studio. The label log stores `Label`s, the
FiftyOne dataset shows them, and `Label.digest` tells whether two are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from curate.hashing import key_of

Source = Literal["public", "production", "synthetic"]
Split = Literal["train", "val", "test"]
Status = Literal["unlabelled", "queued", "labelled", "skipped", "disputed"]
Origin = Literal["import", "app", "label-studio", "decision"]

SOURCES: tuple[str, ...] = get_args(Source)
SPLITS: tuple[str, ...] = get_args(Split)
STATUSES: tuple[str, ...] = get_args(Status)

AUDIT = "audit"  # slot and tag of picks that were drawn at random: they may fill val and test
AUDIT_EXTRA = "audit extra"  # tag of those beyond their even share: no part of val and test, yet without suggestion

# --- what a format yields: shapes are decoded later, in parallel, against the real image size ---------------------


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, slots=True)
class RelativeBox:
    """A rectangle in fractions of the image: left, top, width, height (YOLO, once its centre is subtracted)."""

    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, slots=True)
class Polygon:
    """One or several rings of (x, y) points; a pixel belongs where its centre does. `relative`: in fractions."""

    rings: tuple[tuple[tuple[float, float], ...], ...]
    relative: bool = False


@dataclass(frozen=True, slots=True)
class KaggleRle:
    """Column-major, 1-based `start length start length ...`, straight from the CSV cell."""

    text: str


@dataclass(frozen=True, slots=True)
class CocoRle:
    """COCO run-lengths: `counts` is the compressed string or the tuple of uncompressed counts."""

    counts: str | tuple[int, ...]
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class MaskFile:
    """Pixels of a mask image whose value lies in `low..high`; `path` is relative to the data root.

    `known`: the only values a sound mask has beside 0; without it, other values are a defect's soft edge.
    """

    path: str
    low: int = 128
    high: int = 255
    known: tuple[int, ...] = ()


Shape = Box | RelativeBox | Polygon | KaggleRle | CocoRle | MaskFile


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated defect as the label file has it."""

    label: str
    shape: Shape
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One image as a format describes it. `path` is relative to the data root, with forward slashes."""

    path: str
    regions: tuple[Region, ...] = ()
    classes: tuple[str, ...] = ()
    labelled: bool = False
    group: str | None = None
    stratum: str | None = None
    size: tuple[int, int] | None = None
    label_file: str | None = None
    line: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """Something in the label files that cannot become a record; it goes to the quarantine list."""

    path: str
    reason: str
    label_file: str | None = None
    line: int | None = None


# --- what the index and the label log keep ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Defect:
    """A defect in canonical form. With `rle` (COCO-compressed, of the crop) the box is whole pixels and tight.

    `severity`: one of the project's degrees, where it has any and a person gave one.
    """

    label: str
    box: tuple[float, float, float, float]
    rle: str | None = None
    severity: str | None = None

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"label": self.label, "box": list(self.box)}
        entry |= {"rle": self.rle} if self.rle is not None else {}
        return entry | ({"severity": self.severity} if self.severity else {})

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Defect:
        return make_defect(entry["label"], entry["box"], entry.get("rle"), entry.get("severity"))


def make_defect(label: str, box: Any, rle: str | None = None, severity: str | None = None) -> Defect:
    """Return a defect whose box is rounded to a thousandth of a pixel, so that a database gives it back unchanged."""
    x, y, w, h = (round(float(value), 3) + 0.0 for value in box)  # + 0.0: there is one zero, not two
    return Defect(label, (x, y, w, h), rle, severity or None)


@dataclass(frozen=True, slots=True)
class Label:
    """The label of one image. Clean is `labelled` with nothing present: not the same as `unlabelled`.

    `classes` are image-level facts that no region expresses (pixels unknown); `present` joins both.
    """

    status: Status = "unlabelled"
    defects: tuple[Defect, ...] = ()
    classes: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def present(self) -> frozenset[str]:
        return frozenset(self.classes) | {defect.label for defect in self.defects}

    @property
    def clean(self) -> bool:
        return self.status == "labelled" and not self.present

    @property
    def digest(self) -> str:
        """A hash that is equal for equal labels, in any order of their regions."""
        return key_of(self.to_json())

    def renamed(self, names: Mapping[str, str]) -> Label:
        """Return the label with these classes (old name: new name) renamed."""
        if not names or not self.present & names.keys():
            return self
        defects = tuple(replace(d, label=names.get(d.label, d.label)) for d in self.defects)
        return replace(self, defects=defects, classes=tuple(sorted({names.get(c, c) for c in self.classes})))

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"status": self.status}
        if self.defects:
            entry["defects"] = [d.to_json() for d in sorted(self.defects, key=_order)]
        if self.classes:
            entry["classes"] = sorted(set(self.classes))
        return entry | ({"reason": self.reason} if self.reason else {})

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Label:
        """Return the label that `to_json` wrote. Raises ValueError, KeyError or TypeError where it is damaged."""
        defects = tuple(Defect.from_json(d) for d in entry.get("defects", ()))
        label = cls(entry["status"], defects, tuple(entry.get("classes", ())), entry.get("reason"))
        texts = [label.reason or "", *label.classes]
        texts += [text for d in defects for text in (d.label, d.rle or "", d.severity or "")]
        numbers = (number for defect in defects for number in defect.box)
        sound = all(isinstance(text, str) for text in texts) and all(map(math.isfinite, numbers))
        if label.status not in STATUSES or not sound:
            raise ValueError(f"not a label: {str(entry)[:80]}")
        return label


def _order(defect: Defect) -> tuple[Any, ...]:
    return (defect.label, defect.box, defect.rle is not None, defect.rle or "", defect.severity or "")


UNLABELLED = Label()


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed image as exports, training and synthesis see it; `path` is absolute."""

    id: str
    path: Path
    width: int
    height: int
    label: Label
    split: str | None = None
    group: str = ""
    stratum: str | None = None
    source: str = "public"
