"""Images whose copies have different labels: list them, and record which version a person lets stand."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from curate import files
from curate.data import Label
from curate.errors import CurateError, unknown
from curate.files import writer_lock
from curate.index import app_edits, differences
from curate.index.dataset import Index
from curate.index.documents import describe
from curate.labels.log import Entry, LabelLog, me, now
from curate.project import Project

SPECIAL = ("first", "clean", "union")
DETAILED = 20  # images of a list whose versions are compared and drawn


def conflicts(project: Project, image: str | None = None) -> list[dict[str, Any]]:
    """Every undecided image (or the one asked for) with its versions; how the first few differ, with a picture."""
    index, book = Index(project), LabelLog(project.work / "labels", project.class_names)
    ids = _disputed(index, image)
    details = _details(index, book, ids[:DETAILED])
    return [_listed(id, book) | details.get(id, {}) for id in ids]


def _details(index: Index, book: LabelLog, ids: list[str]) -> dict[str, dict[str, Any]]:
    names = ("content_id", "width", "height", "filepath")
    found: dict[str, dict[str, Any]] = {}
    for one in index.documents(ids, names):
        id, width, height, path = (one[name] for name in names)
        versions, file = book.versions(id), _picture_of(index.project, id)
        found[id] = {"differences": differences.described(versions, width, height), "picture": None}
        with contextlib.suppress(OSError):  # the image is gone, or the folder may not be written to
            found[id]["picture"] = str(differences.picture(file, Path(path), versions, index.project.colors))
    return found


def _picture_of(project: Project, id: str) -> Path:
    return project.work / "conflicts" / f"{id[:12]}.png"


def resolve(project: Project, image: str | None, keep: str) -> list[dict[str, Any]]:
    """Let one version stand. The decision goes to the label log, then to the index; the other versions stay there."""
    with writer_lock(project.work, "curate resolve"):
        index = Index(project)
        with app_edits.opened_log(index) as (log, _):
            ids = _disputed(index, image)
            # Others, which a killed run decided, are logged already and only shown.
            open_yet = [id for id in ids if log.state(id).label.status == "disputed"]
            chosen = {id: choose(log.versions(id), keep) for id in open_yet}
            report = [_listed(id, log) | {"kept": keep} for id in ids]
            for id, label in chosen.items():
                log.append(Entry(id, label, "decision", me(), now(), extra={"keep": keep}))
            log.flush()
            app_edits.show(index, log, ids, project.class_names)
        for id in ids:
            files.remove(_picture_of(project, id))
        return report


def choose(versions: list[tuple[str, Label]], keep: str) -> Label:
    """The version named by its path, or the first, or none of the defects, or all of them."""
    if keep == "clean":
        return Label("labelled")
    if keep == "union":
        defects = dict.fromkeys(d for _, label in versions for d in label.defects)
        return Label("labelled", tuple(defects), tuple(sorted({c for _, label in versions for c in label.classes})))
    by_path = dict(versions)
    if keep != "first" and keep not in by_path:
        raise unknown("version", keep, [*SPECIAL, *by_path])
    label = versions[0][1] if keep == "first" else by_path[keep]
    return replace(label, reason=None)


def _disputed(index: Index, image: str | None) -> list[str]:
    found = index.conflicts()
    if image is None:
        return found
    matching = [id for id in found if id.startswith(image)]
    if len(matching) != 1:
        what = "no undecided image" if not matching else f"{len(matching)} undecided images"
        raise CurateError(f"{what} with an id that starts with '{image}'. List them: curate resolve")
    return matching


def _listed(id: str, book: LabelLog) -> dict[str, Any]:
    return {"id": id, "versions": [describe(path, label) for path, label in book.versions(id)]}
