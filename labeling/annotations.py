"""Every annotation that counts, from the label log, for `curate annotators`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from curate.data import Label
from curate.index.dataset import Index
from curate.labels.log import Entry, LabelLog
from curate.project import Project
from labeling import annotators
from labeling.agreement import Annotation
from labeling.consensus import ORIGIN, LoggedAnnotations


def report(project: Project, number: int | None = None) -> dict[str, Any]:
    """How far annotators agree and how each works, over all rounds or one."""
    return annotators.report(read(project, number), project.active_classes)


def read(project: Project, number: int | None = None) -> list[Annotation]:
    """The annotations of the log; those that were changed or deleted later stand there, too, and do not count."""
    sizes = {id: (width, height) for id, width, height in Index(project).rows("width", "height")}
    with closing(LabelLog(project.work / "labels", project.class_names)) as log:
        standing = {uid for stamps in LoggedAnnotations.of(log).settled.values() for uid in stamps}
        newest = {entry.extra["annotation"]: entry for entry in log.entries() if _is_annotation(entry)}
    kept = (entry for uid, entry in newest.items() if uid in standing and entry.id in sizes)
    return [_annotation(entry, sizes[entry.id]) for entry in kept if number in (None, entry.extra.get("round"))]


def _is_annotation(entry: Entry) -> bool:
    return entry.origin == ORIGIN and "updated" in entry.extra


def _annotation(entry: Entry, size: tuple[int, int]) -> Annotation:
    extra = entry.extra
    label: Label = entry.label
    time, origin = extra.get("lead_time"), str(extra.get("origin", "manual"))
    return Annotation(entry.id, entry.who, label, size, str(extra["updated"]), time, origin, extra.get("round"))
