"""The index: one persistent FiftyOne dataset a project, which shows the label log and the images on disk.

All access to FiftyOne's samples goes through here, in bulk. `Index` never decides what a label is: it shows the log's
`LabelState`, and it reports where the App's labels differ from what it last wrote (`edited`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from curate import state
from curate.data import AUDIT, Item
from curate.errors import CurateError
from curate.index import database, documents
from curate.index.documents import NewSample, ShownLabel
from curate.labels.log import DUPLICATE_LABELS, LabelState
from curate.labels.splits import Member
from curate.project import Project

CHUNK = 1000
FEW = 100  # up to this many different values of a field, each is one update
PRESENT = ("defects.detections.label", "classes.classifications.label")  # the paths of an image's classes
FIFTYONES_INDEXES = ("filepath", "created_at", "last_modified_at")  # a kill may come before it has made them
STRINGS = (
    *("content_id", "source", "group", "stratum", "split", "status", "status_reason"),
    *("label_origin", "labelled_by", "labelled_at", "format", "label_file", "label_digest", "state_key"),
    *("annotation", "annotation_origin", "label_config"),
)
KINDS: dict[str, str | tuple[str]] = {  # the fields of every index, with FiftyOne's type; in brackets: that of a list
    **dict.fromkeys(STRINGS, "StringField"),
    **dict.fromkeys(("width", "height", "label_line"), "IntField"),
    **dict.fromkeys(("paths", "versions"), ("StringField",)),
    **dict.fromkeys(("defects", "other_defects"), "Detections"),
    "missing": "BooleanField",
    "lead_time": "FloatField",
    "folds": ("IntField",),
    "classes": "Classifications",
}


@dataclass(slots=True)
class ImageState:
    """The fields of an image that `curate index` compares."""

    key: str
    group: str
    split: str | None
    status: str
    stratum: str | None
    missing: bool
    references: tuple[str, ...]
    path: str


class Index:
    """A project's FiftyOne dataset. Readers need no lock, writers hold the project's.

    Args:
        project: The project; the database is connected here.
        create: Make the dataset where there is none; else that raises CurateError.

    `fo` is the `fiftyone` module, `dataset` the FiftyOne dataset. Both are loaded when they are first used: FiftyOne
    takes seconds to import, and what only reads fields asks the database itself.
    """

    def __init__(self, project: Project, create: bool = False) -> None:
        state.require(project)
        self.project = project
        self.tables = database.tables(project.work)
        self._open(create)

    @cached_property
    def fo(self) -> Any:
        """The `fiftyone` module, connected to the project's database."""
        return database.connect(self.project.work)

    @cached_property
    def dataset(self) -> Any:
        """The FiftyOne dataset."""
        return self.fo.load_dataset(self.project.dataset_name)

    def _open(self, create: bool) -> None:
        name = self.project.dataset_name
        self._follow_moved_folder(name)
        if self._exists(name):
            self._mend_saved_views(name)
            if self._dataset_document().get("version") not in (None, version("fiftyone")):
                self.fo.load_dataset(name)  # migrates it
        elif create:
            self.dataset = self.fo.Dataset(name, persistent=True)
        else:
            raise CurateError(f"project '{self.project.name}' has no index yet. Run: curate index")
        if create:
            _declare_fields(self.dataset, self.fo)
            state.record(self.project, dataset=name, folder=str(self.project.folder))
        elif not KINDS.keys() <= {field["name"] for field in self._dataset_document()["sample_fields"]}:
            raise CurateError(f"the index of project '{self.project.name}' is not complete yet. Run: curate index")
        elif not self.project.config.dataset:  # a dataset with a name of its own may be shared with other machines
            self._find_moved_images()

    def _exists(self, name: str) -> bool:
        return self.tables.datasets.find_one({"name": name}, {"_id": 1}) is not None

    def _follow_moved_folder(self, name: str) -> None:
        """Rename the dataset, whose name comes from the folder's path: a moved folder keeps its dataset, with the edits
        that are not captured yet; a copied one gets a dataset of its own."""
        known = state.recorded(self.project)
        old = known.get("dataset")
        moved = database.is_embedded() or not Path(str(known.get("folder"))).is_dir()
        if old and old != name and moved and self._exists(old) and not self._exists(name):
            self.fo.load_dataset(old).name = name

    def _find_moved_images(self) -> None:
        """Correct the images' paths after the project was moved or copied to another folder."""
        folder = str(self.project.folder)
        if state.recorded(self.project).get("folder") in (None, folder):
            return
        dataset = self.dataset
        rows = zip(*dataset.values(["id", "paths", "filepath"]), strict=True)
        places = ((id, str(self.project.path(paths[0])), before) for id, paths, before in rows if paths)
        for chunk in chunks((image for image in places if image[1] != image[2]), CHUNK):
            dataset.set_values("filepath", {id: path for id, path, _ in chunk}, key_field="id")
        state.record(self.project, dataset=dataset.name, folder=folder)

    def _mend_saved_views(self, name: str) -> None:
        """Remove references to saved views that no longer exist: FiftyOne deletes a view before its reference, and
        cannot load the dataset if it was interrupted in between."""
        db = self.tables
        home = db.datasets.find_one({"name": name}, {"saved_views": 1})
        referenced = set(home.get("saved_views") or ()) if home else set()
        known = {view["_id"] for view in db.views.find({"_id": {"$in": list(referenced)}}, {"_id": 1})}
        if referenced - known:
            dangling = {"$pull": {"saved_views": {"$in": list(referenced - known)}}}
            db.datasets.update_one({"_id": home["_id"]}, dangling)

    # --- reading ---

    def count(self, **equal: Any) -> int:
        """Count the images with these field values. (After a crash of MongoDB `len` may be wrong, ids are not.)"""
        return int(self._samples().count_documents(equal))

    def tally(self, name: str) -> dict[str, int]:
        """Return the values of a field with their numbers of images; empty values are left out."""
        counts = Counter(self.values(name))
        return {str(value): n for value, n in sorted(counts.items(), key=lambda pair: str(pair[0])) if value}

    def values(self, name: str) -> list[Any]:
        """Return a field of every sample, of those that somebody added by hand, too."""
        return [row.get(name) for row in self._samples().find({}, {name: 1, "_id": 0})]

    def rows(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yield these fields of every image, with its content id first."""
        paths = [name.split(".") for name in names]
        for row in self._samples().find({}, {"_id": 0, "content_id": 1, **dict.fromkeys(names, 1)}):
            if id := row.get("content_id"):
                yield (id, *(_value(row, path) for path in paths))

    def image_states(self) -> dict[str, ImageState]:
        """Return every image as `curate index` compares it, by content id."""
        rows = self.rows("state_key", "group", "split", "status", "stratum", "missing", "paths", "filepath")
        return {
            id: ImageState(key or "", group or id, split, status, stratum, bool(missing), tuple(paths or ()), path)
            for id, key, group, split, status, stratum, missing, paths, path in rows
        }

    def undecided(self) -> Any:
        """Return the view of images whose copies have different labels, none of which anybody has chosen yet."""
        field = self.fo.ViewField
        duplicate = field("status_reason").starts_with(DUPLICATE_LABELS)
        return self.dataset.match((field("status") == "disputed") & duplicate)

    def conflicts(self) -> list[str]:
        """Return the ids of the `undecided` images."""
        same = {"status": "disputed", "status_reason": {"$regex": f"^{re.escape(DUPLICATE_LABELS)}"}}
        return [row.get("content_id") for row in self._samples().find(same, {"content_id": 1})]

    def missing(self) -> list[str]:
        """Return the references of images whose files are gone."""
        found = self._samples().find({"missing": True}, {"paths": 1})
        return [reference for row in found for reference in row.get("paths") or ()]

    def members(self) -> dict[str, Member]:
        """Return the facts of every image that decide its split."""
        names = ("group", "source", "status", "tags", *PRESENT)
        return {
            id: Member(group, source, status, frozenset(regions or ()) | frozenset(whole or ()), AUDIT in tags)
            for id, group, source, status, tags, regions, whole in self.rows(*names)
        }

    def ids(self) -> list[str]:
        """Return all content ids; samples that somebody added by hand have none."""
        return [id for (id,) in self.rows()]

    def shown(self, ids: Iterable[str] | None = None) -> Iterator[ShownLabel]:
        """Yield images (all without `ids`) with their labels as the App shows them."""
        for chunk in chunks(self.ids() if ids is None else ids, CHUNK):
            yield from map(
                documents.shown_label, self._samples().find({"content_id": {"$in": chunk}}, documents.READ_FIELDS)
            )

    def documents(self, ids: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield these fields of images, as the database stores them."""
        yield from self._samples().find({"content_id": {"$in": list(ids)}}, [*names])

    def edited(self) -> list[str]:
        """Return the ids of images whose label somebody changed in the App since it was last written."""
        return [image.id for image in self.shown() if image.edited]

    def items(self, ids: Sequence[str] | None = None) -> Iterator[Item]:
        """Yield images with their labels for exports, training and synthesis; by id unless `ids` give an order."""
        names = ["content_id", "filepath", "width", "height", "split", "group", "stratum", "source"]
        for chunk in chunks(sorted(self.ids()) if ids is None else ids, CHUNK):
            view = self.dataset.select_by("content_id", chunk)
            labels = {image.id: image.label for image in self.shown(chunk)}
            rows = {row[0]: row for row in zip(*view.values(names), strict=True)}
            for id in chunk:
                _, path, width, height, split, group, stratum, source = rows[id]
                yield Item(id, Path(path), width, height, labels[id], split, group, stratum, source)

    # --- writing, always in bulk ---

    def add(self, samples: Sequence[NewSample]) -> None:
        """Insert new images."""
        if samples:
            rows = documents.sample_documents(samples, self._dataset_document()["_id"])
            self.fo.core.odm.insert_documents(rows, self._samples())

    def write_states(self, states: Mapping[str, LabelState], shown: Iterable[ShownLabel]) -> list[str]:
        """Write these states, each whole or not at all.

        Only images that are still as they were `shown` are written; returns those that somebody changed meanwhile.
        """
        from pymongo import UpdateOne

        now = documents.database_now()
        updates = []
        for image in shown:
            row = documents.label_fields(states[image.id], image.width, image.height)
            if row["status"] == "unlabelled" and image.label.status == "queued":
                row["status"] = "queued"
            change = {"$set": {name: value for name, value in row.items() if value is not None}}
            change["$set"]["last_modified_at"] = max(now, (image.modified or now) + timedelta(milliseconds=1))
            change["$unset"] = {name: "" for name, value in row.items() if value is None}
            query = {"content_id": image.id, "last_modified_at": image.modified}
            updates.append(UpdateOne(query, {name: part for name, part in change.items() if part}))
        self.fo.core.odm.bulk_write(updates, self._samples())
        keys = self._samples().find({"content_id": {"$in": list(states)}}, ("content_id", "state_key", "label_digest"))
        wanted = {id: (state.key, state.label.digest) for id, state in states.items()}
        return [d["content_id"] for d in keys if (d["state_key"], d["label_digest"]) != wanted[d["content_id"]]]

    def _dataset_document(self) -> Any:
        return self.tables.datasets.find_one({"name": self.project.dataset_name})

    def _samples(self) -> Any:
        return self.tables[self._dataset_document()["sample_collection_name"]]

    def set(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set fields, given as {field: {id: value}}. Few different values, such as splits, are one update each."""
        for name, by_id in values.items():
            ids_by_value: dict[str, list[str]] = {}
            for id, value in by_id.items():
                ids_by_value.setdefault(repr(value), []).append(id)
            if len(ids_by_value) > FEW:
                self.dataset.set_values(name, dict(by_id), key_field="content_id")
            else:
                self._set_shared(name, [(by_id[ids[0]], ids) for ids in ids_by_value.values()])

    def update(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Set fields, given as {id: {field: value}}, in the form in which the database stores them."""
        from pymongo import UpdateOne

        now = documents.database_now()
        changes = ((id, {"$set": {**fields, "last_modified_at": now}}) for id, fields in rows.items())
        for chunk in chunks(changes, CHUNK):
            updates = [UpdateOne({"content_id": id}, change) for id, change in chunk]
            self.fo.core.odm.bulk_write(updates, self._samples())

    def tag(self, name: str, ids: Iterable[str], on: bool = True) -> None:
        """Add a tag to images, or remove it; other tags stay, even those that somebody adds at this moment."""
        from pymongo import UpdateMany

        change = {
            "$addToSet" if on else "$pull": {"tags": name},
            "$set": {"last_modified_at": documents.database_now()},
        }
        updates = [UpdateMany({"content_id": {"$in": chunk}}, change) for chunk in chunks(ids, CHUNK)]
        if updates:
            self.fo.core.odm.bulk_write(updates, self._samples())

    def remove(self, ids: Iterable[str]) -> None:
        """Remove images from the index; their files stay."""
        for chunk in chunks(ids, CHUNK):
            self.dataset.delete_samples(self.dataset.select_by("content_id", chunk))

    def declare(self, **kinds: Any) -> None:
        """Add missing fields in one write: name -> a field type, [the type of a list's values], or a label class."""
        _declare(self.dataset, self.fo, kinds)

    def _set_shared(self, name: str, values: Iterable[tuple[Any, list[str]]]) -> None:
        from pymongo import UpdateMany

        field, now = self.dataset.get_field(name), documents.database_now()
        updates = []
        for value, ids in values:
            change: dict[str, dict[str, Any]] = {"$set": {"last_modified_at": now}}
            if value is None:
                change["$unset"] = {name: ""}
            else:
                change["$set"][name] = field.to_mongo(value)
            updates.append(UpdateMany({"content_id": {"$in": ids}}, change))
        if updates:
            self.fo.core.odm.bulk_write(updates, self._samples())


def _value(row: Any, path: Sequence[str]) -> Any:
    """Return the value at the path in a document, a list of values where the path leads through a list."""
    for number, name in enumerate(path):
        if isinstance(row, list):
            return [_value(entry, path[number:]) for entry in row]
        if not isinstance(row, dict):
            return None
        row = row.get(name)
    return row


def chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the values in lists of at most `size`."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _declare_fields(dataset: Any, fo: Any) -> None:
    """Create the missing fields and database indexes, so that bulk writes need not look for new fields."""
    if dataset.media_type is None:
        dataset.media_type = "image"  # FiftyOne reads the dataset anew for it: quicker as long as there are few fields
    _declare(dataset, fo, _fields(fo))
    _create_indexes(dataset)


def _fields(fo: Any) -> dict[str, Any]:
    """Return the fields of every index, as `Index.declare` takes them."""
    return {
        name: [getattr(fo, kind[0])] if isinstance(kind, tuple) else getattr(fo, kind) for name, kind in KINDS.items()
    }


def _declare(dataset: Any, fo: Any, kinds: Mapping[str, Any]) -> None:
    """Add the fields that are missing. FiftyOne's `add_sample_field` would read the whole dataset anew after each."""
    known = dataset.get_field_schema()
    new = {name: fo.core.odm.create_field(name, **_kind(fo, kind)) for name, kind in kinds.items() if name not in known}
    if new:
        dataset._merge_sample_field_schema(new)


def _kind(fo: Any, kind: Any) -> dict[str, Any]:
    if isinstance(kind, list):
        return {"ftype": fo.ListField, "subfield": kind[0]}
    if issubclass(kind, fo.Label):
        return {"ftype": fo.EmbeddedDocumentField, "embedded_doc_type": kind}
    return {"ftype": kind}


def _create_indexes(dataset: Any) -> None:
    known = dataset.list_indexes()
    if "content_id" not in known:
        dataset.create_index("content_id", unique=True)
    for name in ("status", "group", "split", "source", "stratum", "defects.detections.label", *FIFTYONES_INDEXES):
        if name not in known:
            dataset.create_index(name)
