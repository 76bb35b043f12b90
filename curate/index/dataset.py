"""The index: one persistent FiftyOne dataset a project, a projection of the label log and of what is on disk.

Everything that touches FiftyOne samples goes through here, in bulk. `Index` never decides what a label is: it shows
the log's `LabelState`, and it reports where the App's labels differ from what it last wrote (`edited`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
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
FEW = 100  # different values that are written as one update each
PRESENT = ("defects.detections.label", "classes.classifications.label")  # where an image's classes stand
STRINGS = (
    *("content_id", "source", "group", "stratum", "split", "status", "status_reason"),
    *("label_origin", "labelled_by", "labelled_at", "format", "label_file", "label_digest", "state_key"),
    *("annotation", "annotation_origin", "label_config"),
)


@dataclass(slots=True)
class ImageState:
    """What the index holds of an image, as far as a run needs to compare it."""

    key: str
    group: str
    split: str | None
    status: str
    stratum: str | None
    missing: bool
    references: tuple[str, ...]
    path: str


class Index:
    """A project's dataset, connected when it is made. Readers need no lock, writers hold the project's."""

    def __init__(self, project: Project, create: bool = False) -> None:
        state.require(project)
        self.project = project
        self.fo = database.connect(project.work)
        self.dataset = self._open(create)

    def _open(self, create: bool) -> Any:
        name = self.project.dataset_name
        self._follow_moved_folder(name)
        if self.fo.dataset_exists(name):
            self._mend_saved_views(name)
            dataset = self.fo.load_dataset(name)
        elif create:
            dataset = self.fo.Dataset(name, persistent=True)
        else:
            raise CurateError(f"project '{self.project.name}' has no index yet. Run: curate index")
        if create:
            _declare(dataset, self.fo)
            state.record(self.project, dataset=name, folder=str(self.project.folder))
        elif not self.project.config.dataset:  # else other machines may use it as well
            self._find_moved_images(dataset)
        return dataset

    def _follow_moved_folder(self, name: str) -> None:
        """The dataset's name comes from the folder's path. A folder that was moved keeps its dataset, with the edits
        that nobody has captured yet; a copied one gets a dataset of its own."""
        known = state.recorded(self.project)
        old = known.get("dataset")
        moved = database.embedded() or not Path(str(known.get("folder"))).is_dir()
        if old and old != name and moved and self.fo.dataset_exists(old) and not self.fo.dataset_exists(name):
            self.fo.load_dataset(old).name = name

    def _find_moved_images(self, dataset: Any) -> None:
        """Let the images point to where they lie seen from the folder to which the project was moved or copied."""
        folder = str(self.project.folder)
        if state.recorded(self.project).get("folder") in (None, folder):
            return
        rows = zip(*dataset.values(["id", "paths", "filepath"]), strict=True)
        places = ((id, str(self.project.path(paths[0])), before) for id, paths, before in rows if paths)
        for chunk in chunks((one for one in places if one[1] != one[2]), CHUNK):
            dataset.set_values("filepath", {id: path for id, path, _ in chunk}, key_field="id")
        state.record(self.project, dataset=dataset.name, folder=folder)

    def _mend_saved_views(self, name: str) -> None:
        """Take away references to saved views that no longer exist: FiftyOne deletes a view before its reference, and
        fails on every dataset that was left between the two."""
        db = self.fo.core.odm.get_db_conn()
        home = db.datasets.find_one({"name": name}, {"saved_views": 1})
        referenced = set(home.get("saved_views") or ()) if home else set()
        known = {view["_id"] for view in db.views.find({"_id": {"$in": list(referenced)}}, {"_id": 1})}
        if referenced - known:
            dangling = {"$pull": {"saved_views": {"$in": list(referenced - known)}}}
            db.datasets.update_one({"_id": home["_id"]}, dangling)

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

    def rows(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """These fields of every image of ours, its content id first."""
        for row in zip(*self.dataset.values(["content_id", *names]), strict=True):
            if row[0]:
                yield row

    def cards(self) -> dict[str, ImageState]:
        rows = self.rows("state_key", "group", "split", "status", "stratum", "missing", "paths", "filepath")
        return {
            id: ImageState(key or "", group or id, split, status, stratum, bool(missing), tuple(paths or ()), path)
            for id, key, group, split, status, stratum, missing, paths, path in rows
        }

    def undecided(self) -> Any:
        """The view of images whose copies have different labels, and about which nobody has decided."""
        field = self.fo.ViewField
        duplicate = field("status_reason").starts_with(DUPLICATE_LABELS)
        return self.dataset.match((field("status") == "disputed") & duplicate)

    def conflicts(self) -> list[str]:
        return list(self.undecided().values("content_id"))

    def missing(self) -> list[str]:
        """The files of images that can no longer be found."""
        found = self.dataset.match(self.fo.ViewField("missing") == True).values("paths")  # noqa: E712
        return [reference for references in found for reference in references or ()]

    def members(self) -> dict[str, Member]:
        """Every image as the splits see it."""
        names = ("group", "source", "status", "tags", *PRESENT)
        return {
            id: Member(group, source, status, frozenset(regions or ()) | frozenset(whole or ()), AUDIT in tags)
            for id, group, source, status, tags, regions, whole in self.rows(*names)
        }

    def ids(self) -> list[str]:
        """Samples that somebody added by hand, without a content id, are none of ours."""
        return [id for id in self.dataset.values("content_id") if id]

    def shown(self, ids: Iterable[str] | None = None) -> Iterator[ShownLabel]:
        """Images as the App shows them, a chunk at a time."""
        for chunk in chunks(self.ids() if ids is None else ids, CHUNK):
            yield from map(documents.shown, self._images().find({"content_id": {"$in": chunk}}, documents.READ))

    def documents(self, ids: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These fields of images, as the database keeps them."""
        yield from self._images().find({"content_id": {"$in": list(ids)}}, [*names])

    def edited(self) -> list[str]:
        """Images whose label somebody changed in the App since we last wrote it."""
        return [one.id for one in self.shown() if one.edited]

    def items(self, ids: Sequence[str] | None = None) -> Iterator[Item]:
        """Images with their labels, as exports, training and synthesis take them; by id unless `ids` give an order."""
        names = ["content_id", "filepath", "width", "height", "split", "group", "stratum", "source"]
        for chunk in chunks(sorted(self.ids()) if ids is None else ids, CHUNK):
            view = self.dataset.select_by("content_id", chunk)
            labels = {one.id: one.label for one in self.shown(chunk)}
            rows = {row[0]: row for row in zip(*view.values(names), strict=True)}
            for id in chunk:
                _, path, width, height, split, group, stratum, source = rows[id]
                yield Item(id, Path(path), width, height, labels[id], split, group, stratum, source)

    # --- writing, always in bulk ---

    def add(self, samples: Sequence[NewSample]) -> None:
        if samples:
            made = documents.documents(samples, self._home()["_id"])
            self.fo.core.odm.insert_documents(made, self._images())

    def write_states(self, states: Mapping[str, tuple[LabelState, str]], seen: Iterable[ShownLabel]) -> list[str]:
        """Show these states (with their keys), each whole or not at all.

        Only images that are still as they were `seen` are written; those that somebody changed meanwhile are returned.
        """
        from pymongo import UpdateOne

        now = documents.this_moment()
        updates = []
        for one in seen:
            row = documents.fields(*states[one.id], one.width, one.height)
            if row["status"] == "unlabelled" and one.label.status == "queued":
                row["status"] = "queued"
            change = {"$set": {name: value for name, value in row.items() if value is not None}}
            change["$set"]["last_modified_at"] = max(now, (one.modified or now) + timedelta(milliseconds=1))
            change["$unset"] = {name: "" for name, value in row.items() if value is None}
            query = {"content_id": one.id, "last_modified_at": one.modified}
            updates.append(UpdateOne(query, {name: part for name, part in change.items() if part}))
        self.fo.core.odm.bulk_write(updates, self._images())
        keys = self._images().find({"content_id": {"$in": list(states)}}, ("content_id", "state_key", "label_digest"))
        wanted = {id: (key, one.label.digest) for id, (one, key) in states.items()}
        return [d["content_id"] for d in keys if (d["state_key"], d["label_digest"]) != wanted[d["content_id"]]]

    def _home(self) -> Any:
        return self.fo.core.odm.get_db_conn().datasets.find_one({"name": self.dataset.name})

    def _images(self) -> Any:
        return self.fo.core.odm.get_db_conn()[self._home()["sample_collection_name"]]

    def set(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """{field: {id: value}}. Few different values, such as splits, are one update each."""
        for name, by_id in values.items():
            alike: dict[str, list[str]] = {}
            for id, value in by_id.items():
                alike.setdefault(repr(value), []).append(id)
            if len(alike) > FEW:
                self.dataset.set_values(name, dict(by_id), key_field="content_id")
            else:
                self._set_alike(name, [(by_id[ids[0]], ids) for ids in alike.values()])

    def update(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """{id: {field: value}}, as the database keeps it."""
        from pymongo import UpdateOne

        now = documents.this_moment()
        changes = ((id, {"$set": {**fields, "last_modified_at": now}}) for id, fields in rows.items())
        for chunk in chunks(changes, CHUNK):
            updates = [UpdateOne({"content_id": id}, change) for id, change in chunk]
            self.fo.core.odm.bulk_write(updates, self._images())

    def tag(self, name: str, ids: Iterable[str], on: bool = True) -> None:
        """Add a tag or take it away; what else is tagged meanwhile stays."""
        from pymongo import UpdateMany

        change = {"$addToSet" if on else "$pull": {"tags": name}, "$set": {"last_modified_at": documents.this_moment()}}
        updates = [UpdateMany({"content_id": {"$in": chunk}}, change) for chunk in chunks(ids, CHUNK)]
        if updates:
            self.fo.core.odm.bulk_write(updates, self._images())

    def remove(self, ids: Iterable[str]) -> None:
        """Take images out of the index; their files stay."""
        for chunk in chunks(ids, CHUNK):
            self.dataset.delete_samples(self.dataset.select_by("content_id", chunk))

    def declare(self, **kinds: Any) -> None:
        """Fields that a later step adds: name -> FiftyOne's field type."""
        known = self.dataset.get_field_schema()
        for name, kind in kinds.items():
            if name not in known:
                self.dataset.add_sample_field(name, kind)

    def _set_alike(self, name: str, values: Iterable[tuple[Any, list[str]]]) -> None:
        from pymongo import UpdateMany

        field, now = self.dataset.get_field(name), documents.this_moment()
        updates = []
        for value, ids in values:
            change: dict[str, dict[str, Any]] = {"$set": {"last_modified_at": now}}
            if value is None:
                change["$unset"] = {name: ""}
            else:
                change["$set"][name] = field.to_mongo(value)
            updates.append(UpdateMany({"content_id": {"$in": ids}}, change))
        if updates:
            self.fo.core.odm.bulk_write(updates, self._images())


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
    wanted["lead_time"] = {"ftype": fo.FloatField}
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
