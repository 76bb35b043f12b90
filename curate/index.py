"""The index: one persistent FiftyOne dataset a project, a projection of the label log and of what is on disk.

Everything that touches FiftyOne samples goes through here, in bulk. `Index` never decides what a label is: it shows
the log's `State`, and it reports where the App's labels differ from what it last wrote (`edits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from curate import database, rle, shapes
from curate.data import STATUSES, Defect, Item, Label, make_defect
from curate.errors import CurateError
from curate.intake import Picture
from curate.labels import Book, State
from curate.project import Project
from curate.splits import Member

CHUNK = 1000
AUDIT = "audit"  # tag of the picks that may fill val and test
STRINGS = (
    *("content_id", "source", "group", "stratum", "split", "status", "status_reason"),
    *("label_origin", "labelled_by", "labelled_at", "format", "label_file", "label_digest", "state_key"),
)


@dataclass(frozen=True, slots=True)
class NewSample:
    """All that is needed to add one image."""

    picture: Picture
    path: Path
    reference: str
    source: str
    format: str
    group: str
    stratum: str | None
    state: State
    key: str

    @property
    def id(self) -> str:
        return self.picture.id


@dataclass(slots=True)
class Card:
    """What the index holds of an image, as far as a run needs to compare it."""

    key: str
    group: str
    split: str | None
    status: str
    source: str
    stratum: str | None
    missing: bool
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """A label in the App that is not what the index last wrote."""

    id: str
    label: Label
    was: str = field(repr=False)


class Index:
    """A project's dataset. `open` connects; readers need no lock, writers hold the project's."""

    def __init__(self, project: Project, create: bool = False) -> None:
        self.project = project
        self.fo = database.connect(project.work)
        self.dataset = self._open(create)

    def _open(self, create: bool) -> Any:
        name = self.project.dataset_name
        if self.fo.dataset_exists(name):
            dataset = self.fo.load_dataset(name)
        elif create:
            dataset = self.fo.Dataset(name, persistent=True)
        else:
            raise CurateError(f"project '{self.project.name}' has no index yet. Run: curate index")
        if create:
            _declare(dataset, self.fo)
        return dataset

    # --- reading ---

    def count(self, **equal: Any) -> int:
        """Images with these field values. (`len` can be wrong after a crash of MongoDB, counting ids is not.)"""
        view = self.dataset
        for name, value in equal.items():
            view = view.match(self.fo.ViewField(name) == value)
        return int(view.count("id"))

    def tally(self, name: str) -> dict[str, int]:
        counts = self.dataset.count_values(name)
        return {str(value): int(n) for value, n in sorted(counts.items(), key=lambda pair: str(pair[0])) if value}

    def cards(self) -> dict[str, Card]:
        names = ["content_id", "state_key", "group", "split", "status", "source", "stratum", "missing", "paths"]
        rows = zip(*self.dataset.values(names), strict=True)
        return {
            id: Card(key or "", group or id, split, status, source, stratum, bool(missing), tuple(paths or ()))
            for id, key, group, split, status, source, stratum, missing, paths in rows
        }

    def members(self) -> dict[str, Member]:
        """Every image as the splits see it."""
        names = ["content_id", "group", "source", "status", "tags"]
        names += ["defects.detections.label", "classes.classifications.label"]
        return {
            id: Member(group, source, status, frozenset(regions or ()) | frozenset(whole or ()), AUDIT in tags)
            for id, group, source, status, tags, regions, whole in zip(*self.dataset.values(names), strict=True)
        }

    def ids(self) -> list[str]:
        return list(self.dataset.values("content_id"))

    def labels(self, ids: Iterable[str] | None = None) -> Iterator[tuple[str, Label, str | None]]:
        """(id, label as the App shows it, digest as last written), in bulk, a chunk at a time."""
        names = ["content_id", "width", "height", "status", "status_reason", "label_digest"]
        names += [f"defects.detections.{part}" for part in ("label", "bounding_box", "mask")]
        names += ["classes.classifications.label"]
        for chunk in chunks(self.ids() if ids is None else ids, CHUNK):
            view = self.dataset.select_by("content_id", chunk)
            for id, width, height, status, reason, digest, *rest in zip(*view.values(names), strict=True):
                yield id, _label(status, reason, width, height, *rest), digest

    def edits(self) -> Iterator[Edit]:
        """Labels that somebody changed in the App since we last wrote them."""
        for id, label, digest in self.labels():
            if label.digest != digest:
                yield Edit(id, label, digest or "")

    def items(self, ids: Sequence[str] | None = None) -> Iterator[Item]:
        """Images with their labels, as exports, training and synthesis take them; by id unless `ids` give an order."""
        names = ["content_id", "filepath", "width", "height", "split", "group", "stratum", "source"]
        for chunk in chunks(sorted(self.ids()) if ids is None else ids, CHUNK):
            view = self.dataset.select_by("content_id", chunk)
            labels = {id: label for id, label, _ in self.labels(chunk)}
            rows = {row[0]: row for row in zip(*view.values(names), strict=True)}
            for id in chunk:
                _, path, width, height, split, group, stratum, source = rows[id]
                yield Item(id, Path(path), width, height, labels[id], split, group, stratum, source)

    # --- writing, always in bulk ---

    def add(self, samples: Iterable[NewSample]) -> None:
        # A generator: live sample objects would be reloaded one by one after every later bulk write.
        made = (_sample(self.fo, new) for new in samples)
        self.dataset.add_samples(made, expand_schema=False, validate=False, progress=False)

    def write_states(self, states: Mapping[str, tuple[State, str]]) -> None:
        """Show these states (with their keys): labels, status, provenance and the digest that reveals later edits."""
        sizes = self._sizes(states)
        rows = {id: _fields(self.fo, state, key, *sizes[id]) for id, (state, key) in states.items()}
        self.set({name: {id: row[name] for id, row in rows.items()} for name in _LABEL_FIELDS})

    def set(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """{field: {id: value}}"""
        for name, by_id in values.items():
            if by_id:
                self.dataset.set_values(name, dict(by_id), key_field="content_id")

    def show(self, book: Book, ids: Iterable[str]) -> None:
        """Write the log's state of these images."""
        for chunk in chunks(ids, CHUNK):
            self.write_states({id: (book.state(id), book.key(id)) for id in chunk})

    def _sizes(self, ids: Iterable[str]) -> dict[str, tuple[int, int]]:
        view = self.dataset.select_by("content_id", list(ids))
        return {id: (w, h) for id, w, h in zip(*view.values(["content_id", "width", "height"]), strict=True)}


def chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _declare(dataset: Any, fo: Any) -> None:
    """The schema, so that bulk writes need not look for new fields; safe to repeat."""
    fields = dict.fromkeys(STRINGS, fo.StringField) | {"width": fo.IntField, "height": fo.IntField}
    fields |= {"label_line": fo.IntField, "missing": fo.BooleanField}
    for name, kind in fields.items():
        dataset.add_sample_field(name, kind)
    for name in ("paths", "versions"):
        dataset.add_sample_field(name, fo.ListField, subfield=fo.StringField)
    dataset.add_sample_field("folds", fo.ListField, subfield=fo.IntField)
    dataset.add_sample_field("defects", fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections)
    dataset.add_sample_field("other_defects", fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections)
    dataset.add_sample_field("classes", fo.EmbeddedDocumentField, embedded_doc_type=fo.Classifications)
    indexes = dataset.list_indexes()
    if "content_id" not in indexes:
        dataset.create_index("content_id", unique=True)
    for name in ("status", "group", "split", "source", "stratum", "defects.detections.label"):
        if name not in indexes:
            dataset.create_index(name)


def _sample(fo: Any, new: NewSample) -> Any:
    picture = new.picture
    size = {"width": picture.width, "height": picture.height}
    return fo.Sample(
        filepath=str(new.path),
        content_id=picture.id,
        metadata=fo.ImageMetadata(
            size_bytes=picture.bytes, mime_type=picture.mime, num_channels=picture.channels, **size
        ),
        source=new.source,
        format=new.format,
        group=new.group,
        stratum=new.stratum,
        paths=[new.reference],
        missing=False,
        **size,
        **_fields(fo, new.state, new.key, picture.width, picture.height),
    )


_LABEL_FIELDS = (
    *("defects", "classes", "other_defects", "versions", "status", "status_reason", "label_digest", "state_key"),
    *("label_origin", "labelled_by", "labelled_at", "label_file", "label_line"),
)


def _fields(fo: Any, state: State, key: str, width: int, height: int) -> dict[str, Any]:
    label, entry = state.label, state.entry
    extra = entry.extra if entry else {}
    others = [_detection(fo, d, width, height, path) for path, other in state.others for d in other.defects]
    return {
        "defects": fo.Detections(detections=[_detection(fo, d, width, height) for d in label.defects]),
        "classes": fo.Classifications(classifications=[fo.Classification(label=name) for name in label.classes]),
        "other_defects": fo.Detections(detections=others),
        "versions": [describe(path, other) for path, other in state.others],
        "status": label.status,
        "status_reason": label.reason,
        "label_digest": label.digest,
        "state_key": key,
        "label_origin": entry.origin if entry else None,
        "labelled_by": entry.who if entry else None,
        "labelled_at": entry.at if entry else None,
        "label_file": extra.get("label_file"),
        "label_line": extra.get("line"),
    }


def describe(path: str, label: Label) -> str:
    """One version of a disputed label, for a person to read."""
    shown = ", ".join(sorted(label.present)) or ("clean" if label.clean else label.status)
    return f"{path}: {shown}"


def _detection(fo: Any, defect: Defect, width: int, height: int, version: str | None = None) -> Any:
    x, y, w, h = defect.box
    crop = shapes.crop_of(defect)
    parts: dict[str, Any] = {"mask": crop.view(bool)} if crop is not None else {}
    if version:
        parts["version"] = version
    return fo.Detection(label=defect.label, bounding_box=[x / width, y / height, w / width, h / height], **parts)


def _label(
    status: str, reason: str | None, width: int, height: int, names: Any, boxes: Any, masks: Any, whole: Any
) -> Label:
    rows = zip(names or (), boxes or (), masks or (), strict=True)
    defects = tuple(_defect(name, box, mask, width, height) for name, box, mask in rows)
    known: Any = status if status in STATUSES else "unlabelled"
    return Label(known, defects, tuple(sorted(set(whole or ()))), reason)


def _defect(name: str, box: Any, mask: Any, width: int, height: int) -> Defect:
    x, y, w, h = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    if mask is None:
        return make_defect(name, (x, y, w, h))
    left, top, wide, high = round(x), round(y), max(1, round(w)), max(1, round(h))
    pixels = np.ascontiguousarray(mask, dtype=bool).view(np.uint8)
    if pixels.shape != (high, wide):  # the App lets a person pull the box of a mask: the mask is stretched with it
        pixels = _stretched(pixels, wide, high)
    return make_defect(name, (left, top, wide, high), rle.mask_to_coco(pixels))


def _stretched(pixels: Any, width: int, height: int) -> Any:
    rows = (np.arange(height) * pixels.shape[0] // height)[:, None]
    return np.ascontiguousarray(pixels[rows, np.arange(width) * pixels.shape[1] // width])
