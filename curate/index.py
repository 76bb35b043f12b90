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

from curate import database, documents
from curate.data import Item, Label
from curate.documents import NewSample
from curate.errors import CurateError
from curate.labels import Book, State
from curate.project import Project
from curate.splits import Member

CHUNK = 1000
AUDIT = "audit"  # tag of the picks that may fill val and test
STRINGS = (
    *("content_id", "source", "group", "stratum", "split", "status", "status_reason"),
    *("label_origin", "labelled_by", "labelled_at", "format", "label_file", "label_digest", "state_key"),
)


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
                yield id, documents.label_of(status, reason, width, height, *rest), digest

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

    def add(self, samples: Sequence[NewSample]) -> None:
        if samples:
            database = self.fo.core.odm.get_db_conn()
            home = database.datasets.find_one({"name": self.dataset.name})
            made = documents.documents(samples, home["_id"])
            self.fo.core.odm.insert_documents(made, database[home["sample_collection_name"]])

    def write_states(self, states: Mapping[str, tuple[State, str]]) -> None:
        """Show these states (with their keys): labels, status, provenance and the digest that reveals later edits."""
        sizes = self._sizes(states)
        rows = {id: documents.fields(state, key, *sizes[id]) for id, (state, key) in states.items()}
        kinds = {"Detections": self.fo.Detections, "Classifications": self.fo.Classifications}
        for row in rows.values():
            for name in ("defects", "classes", "other_defects"):
                row[name] = kinds[row[name]["_cls"]].from_dict(row[name])
        self.set({name: {id: row[name] for id, row in rows.items()} for name in documents.LABEL_FIELDS})

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
    """The schema and its indexes, so that bulk writes need not look for new fields; what is there stays."""
    wanted: dict[str, dict[str, Any]] = {name: {"ftype": fo.StringField} for name in STRINGS}
    wanted |= {name: {"ftype": fo.IntField} for name in ("width", "height", "label_line")}
    wanted |= {name: {"ftype": fo.ListField, "subfield": fo.StringField} for name in ("paths", "versions")}
    wanted["missing"] = {"ftype": fo.BooleanField}
    wanted["folds"] = {"ftype": fo.ListField, "subfield": fo.IntField}
    for name, kind in (("defects", fo.Detections), ("other_defects", fo.Detections), ("classes", fo.Classifications)):
        wanted[name] = {"ftype": fo.EmbeddedDocumentField, "embedded_doc_type": kind}
    known = dataset.get_field_schema()
    for name, kind in wanted.items():
        if name not in known:
            dataset.add_sample_field(name, **kind)
    if dataset.media_type is None:
        dataset.media_type = "image"
    _index(dataset)


def _index(dataset: Any) -> None:
    known = dataset.list_indexes()
    if "content_id" not in known:
        dataset.create_index("content_id", unique=True)
    for name in ("status", "group", "split", "source", "stratum", "defects.detections.label"):
        if name not in known:
            dataset.create_index(name)
