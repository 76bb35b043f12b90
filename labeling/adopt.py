"""`curate pull --adopt`: annotations of a Label Studio project that we did not make.

The image of a task is found by its address where that names just one file of the index, else by the bytes that the
server sends for it: a content id is their hash. The bytes are hashed as they come and never kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from curate.errors import CurateError, unknown
from curate.index import app_edits, sync
from curate.index.dataset import Index, chunks
from curate.project import Project
from labeling import pull, tasks
from labeling.client import NotFound, Studio
from labeling.consensus import LoggedAnnotations
from labeling.pull import PAGE, PullReport
from labeling.remote_project import LabelStudioProject

UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before the name of what was uploaded
LARGEST = 1 << 30  # bytes of an image that are hashed


def run(
    project: Project, studio: Studio, number: int, names: Mapping[str, str], progress: Any = pull.NO_PROGRESS
) -> PullReport:
    """Bring what people did in that project into log and index. The caller holds the writer lock.

    Args:
        names: what a class of theirs is called here.
    """
    _check(project, names)
    ls_project = LabelStudioProject(project, studio, number, f"adopted {number}")
    title = _title(studio, number)
    index = Index(project)
    report = PullReport(ls_project.url, notes=[f"adopted from '{title}' (project {number})"])
    finder = _Finder(index, studio)
    with app_edits.opened_log(index) as (log, edited):
        report.captured = len(edited)
        known = LoggedAnnotations.of(log)
        people = pull.people_on(ls_project)
        for page in chunks(tasks.listed(ls_project, [], "all", pull.FIELDS, PAGE), PAGE):
            progress("adopting", len(page), 0)
            matched = list(_ours(page, finder, report))
            returned = [pull.task_of(ls_project, task, finder.sizes[id], people, names) for id, task in matched]
            pull.settle_all(index, log, known, returned, report)
    sync.assign_splits(index)
    return report


def _check(project: Project, names: Mapping[str, str]) -> None:
    for name in names.values():
        if name not in project.class_names:
            raise unknown("class", name, project.class_names, f"Make it first: curate classes add '{name}'")


def _title(studio: Studio, number: int) -> str:
    try:
        return str(studio.get(f"/api/projects/{number}/")["title"])
    except NotFound:
        there = studio.get("/api/projects/", include="id,title", page_size=100)["results"]
        known = [f"{entry['id']} ({entry['title']})" for entry in there]
        raise unknown("Label Studio project", str(number), known) from None


def _ours(
    page: Iterable[Mapping[str, Any]], finder: _Finder, report: PullReport
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Annotated tasks that show an image of the index, with its id put where ours have it."""
    for task in page:
        if not task["annotations"]:
            continue
        id = finder.find(task["data"])
        if id is None:
            report.strangers += 1
        else:
            yield id, {**task, "data": {"content_id": id, "base": None}}


class _Finder:
    """From a task's data to the image of the index that it shows."""

    def __init__(self, index: Index, studio: Studio) -> None:
        rows = list(index.rows("paths", "width", "height"))
        self.studio = studio
        self.sizes = {id: (width, height) for id, _, width, height in rows}
        paths = {(id, path.partition(":")[2]) for id, references, _, _ in rows for path in references or ()}
        ends = [(id, end) for id, path in paths for end in _ends(path)]
        counts = Counter(end for _, end in set(ends))
        self.by_end = {end: id for id, end in ends if counts[end] == 1}

    def find(self, data: Mapping[str, Any]) -> str | None:
        if data.get("content_id") in self.sizes:
            return str(data["content_id"])
        for value in data.values():
            if isinstance(value, str) and (id := self._named(value) or self._sent(value)):
                return id
        return None

    def _named(self, address: str) -> str | None:
        path = _path_of(address)
        return next((self.by_end[end] for end in _ends(path) if end in self.by_end), None)

    def _sent(self, address: str) -> str | None:
        """By the hash of what this server itself sends; other servers are never asked."""
        if not address.startswith("/data/"):
            return None
        try:
            id = self.studio.hash_of(address, LARGEST)
        except CurateError:
            return None
        return id if id in self.sizes else None


def _path_of(address: str) -> str:
    """The file's path in an address: `/data/local-files/?d=a/b.png`, `/data/upload/7/0a1b2c3d-b.png`, `s3://x/a/b.png`."""
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    folder, _, name = path.rpartition("/")
    return f"{folder}/{UPLOAD.sub('', name)}"


def _ends(path: str) -> list[str]:
    """The path and its ends, the longest first: the more of it fits, the surer it is meant."""
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[start:]) for start in range(len(parts))]
