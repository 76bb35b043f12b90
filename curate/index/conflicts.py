"""Images whose copies have different labels: list them, and record which version a person chooses."""

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
from curate.labels.log import Entry, LabelLog, now, user_name
from curate.project import Project

SPECIAL = ("first", "clean", "union")
DETAILED = 20  # images of a list whose versions are compared and drawn


def conflicts(project: Project, image: str | None = None) -> list[dict[str, Any]]:
    """Return every undecided image (or the one asked for) with its versions; the first few with their differences and a
    picture."""
    index, log = Index(project), LabelLog(project.work / "labels", project.class_names)
    ids = _disputed(index, image)
    details = _details(index, log, ids[:DETAILED])
    return [_listed(id, log) | details.get(id, {}) for id in ids]


def _details(index: Index, log: LabelLog, ids: list[str]) -> dict[str, dict[str, Any]]:
    names = ("content_id", "width", "height", "filepath")
    details: dict[str, dict[str, Any]] = {}
    for row in index.documents(ids, names):
        id, width, height, path = (row[name] for name in names)
        versions, file = log.versions(id), _picture_of(index.project, id)
        details[id] = {"differences": differences.by_class(versions, width, height), "picture": None}
        with contextlib.suppress(OSError):  # the image is gone, or the folder may not be written to
            details[id]["picture"] = str(differences.draw_versions(file, Path(path), versions, index.project.colors))
    return details


def _picture_of(project: Project, id: str) -> Path:
    return project.work / "conflicts" / f"{id[:12]}.png"


def resolve(project: Project, image: str | None, keep: str) -> list[dict[str, Any]]:
    """Choose one version of each image. The decision goes to the label log, then to the index; the log keeps all
    versions."""
    with writer_lock(project.work, "curate resolve"):
        index = Index(project)
        with app_edits.opened_log(index) as (log, _):
            ids = _disputed(index, image)
            # Others, which a killed run decided, are logged already and only shown.
            open_yet = [id for id in ids if log.state(id).label.status == "disputed"]
            chosen = {id: choose(log.versions(id), keep) for id in open_yet}
            report = [_listed(id, log) | {"kept": keep} for id in ids]
            for id, label in chosen.items():
                log.append(Entry(id, label, "decision", user_name(), now(), extra={"keep": keep}))
            log.flush()
            app_edits.show(index, log, ids, project.class_names)
        for id in ids:
            files.remove(_picture_of(project, id))
        return report


def choose(versions: list[tuple[str, Label]], keep: str) -> Label:
    """Return the version named by its path, or the first one, or a clean label, or one with all defects."""
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
    disputed = index.conflicts()
    if image is None:
        return disputed
    matching = [id for id in disputed if id.startswith(image)]
    if len(matching) != 1:
        what = "no undecided image" if not matching else f"{len(matching)} undecided images"
        raise CurateError(f"{what} with an id that starts with '{image}'. List them: curate resolve")
    return matching


def _listed(id: str, log: LabelLog) -> dict[str, Any]:
    return {"id": id, "versions": [describe(path, label) for path, label in log.versions(id)]}
