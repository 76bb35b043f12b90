"""Settle the label of an image from all annotations of its task; the log records which ones each label rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from curate.data import UNLABELLED, Label
from curate.labels.log import DAMAGE, Entry, LabelLog, LabelState
from labeling import agreement
from labeling.annotations import ORIGIN, Annotation, Size, Stamp, newest

EDITED_IN_APP = "edited-in-app"
CONSENSUS, CURATE = "consensus", "curate"

Stamps = dict[str, Stamp]  # by annotation


@dataclass(frozen=True)
class ReturnedTask:
    """A task as the server has it: `base` is the digest of the image's label when the task was made."""

    uid: str
    id: str
    size: Size
    annotations: Sequence[Annotation]
    base: str | None = None

    @property
    def stamps(self) -> Stamps:
        return {annotation.uid: annotation.stamp for annotation in self.annotations}


@dataclass(frozen=True)
class SettledTask:
    """Result for a task: what to log, and how many annotations were new or are gone.

    The entries are the new annotations and, where it is not that of a single one, the label that follows from all.
    """

    id: str
    entries: tuple[Entry, ...]
    fresh: int
    gone: int


@dataclass
class LoggedAnnotations:
    """Label Studio's part of the log: each annotation, and the annotations that the label of each task rests on."""

    annotations: Stamps = field(default_factory=dict)
    settled: dict[str, Stamps] = field(default_factory=dict)

    @classmethod
    def of(cls, log: LabelLog) -> LoggedAnnotations:
        known = cls()
        log.writer.push()
        for line in log.segments.lines_with(f'"{ORIGIN}"'.encode()):
            if line.get("origin") == ORIGIN and "task" in (extra := line.get("extra", {})):
                try:
                    known.note(extra, line["digest"])
                except DAMAGE:
                    raise log.segments.damaged() from None
        return known

    def note(self, extra: Mapping[str, Any], digest: str) -> None:
        if "of" in extra:
            self.settled[extra["task"]] = {uid: (updated, of) for uid, (updated, of) in extra["of"].items()}
        else:
            stamp = (extra["updated"], digest)
            self.annotations[extra["annotation"]] = stamp
            self.settled[extra["task"]] = {extra["annotation"]: stamp}

    def holds(self, task: ReturnedTask) -> bool:
        """True if the label of the task rests on just these annotations already."""
        before, now = self.settled.get(task.uid, {}), task.stamps
        return before.keys() == now.keys() and all(_same(before[uid], stamp) for uid, stamp in now.items())

    def is_deserted(self, task: ReturnedTask) -> bool:
        """True if all annotations that the label rests on are gone."""
        return not task.annotations and bool(self.settled.get(task.uid))


def _same(first: Stamp, second: Stamp) -> bool:
    """True if not changed since, or saved again as it was, or only its classes were renamed."""
    return first[0] == second[0] or first[1] == second[1]


def settle(
    known: LoggedAnnotations,
    task: ReturnedTask,
    before: LabelState,
    least: float,
    history: Sequence[Entry] = (),
    imported: Label = UNLABELLED,
) -> SettledTask | None:
    """Return what follows from the annotations of a task, noted in `known`; None where nothing is new.

    Args:
        known: The annotations in the log.
        task: The task with its annotations.
        before: The label that holds for the image.
        least: The agreement below which annotators are in dispute.
        history: The image's entries, needed only where all annotations of the task are gone.
        imported: The label that the sources give for the image; likewise.
    """
    if known.holds(task):
        return None
    now = task.stamps
    fresh = [
        annotation
        for annotation in task.annotations
        if annotation.uid not in known.annotations or not _same(known.annotations[annotation.uid], annotation.stamp)
    ]
    gone = known.settled.get(task.uid, {}).keys() - now.keys()
    entries = [annotation.to_entry(**difference(before.label, annotation.label)) for annotation in fresh]
    for entry in entries:
        known.note(entry.extra, entry.label.digest)
    result = _resolved(task, least) if task.annotations else _label_before(task, history, imported)
    result = _respect_app_edit(task, before, result)
    if result.extra or known.settled.get(task.uid) != now:
        about = {"task": task.uid, "of": {uid: list(stamp) for uid, stamp in now.items()}}
        entries.append(replace(result, extra={**result.extra, **about}))
        known.note(entries[-1].extra, result.label.digest)
    return SettledTask(task.id, tuple(entries), len(fresh), len(gone))


def difference(before: Label, after: Label) -> dict[str, Any]:
    """List what a second look changed, class by class; nothing where there was no label to look at."""
    if before.status not in ("labelled", "disputed"):
        return {}
    shown = {name: (_of_class(before, name), _of_class(after, name)) for name in before.present | after.present}
    redrawn = sorted(name for name, (old, new) in shown.items() if old and new and old != new)
    added, removed = sorted(after.present - before.present), sorted(before.present - after.present)
    changes = {"added": added, "removed": removed, "redrawn": redrawn}
    return {"changed": {change: names for change, names in changes.items() if names}}


def _of_class(label: Label, name: str) -> list[str]:
    """Regions and whole-image mentions of a class in a label, sorted so that two labels can be compared."""
    return sorted(
        [
            *(repr(defect) for defect in label.defects if defect.label == name),
            *(other for other in label.classes if other == name),
        ]
    )


def _resolved(task: ReturnedTask, least: float) -> Entry:
    """Newest annotation of a single annotator; of several annotators their consensus, or their dispute."""
    by_person = newest(task.annotations)
    last = max(by_person, key=lambda annotation: annotation.moment)
    if len(by_person) == 1:
        return Entry(task.id, last.label, ORIGIN, last.who, last.at)
    merged = agreement.consensus([annotation.label for annotation in by_person], task.size, least)
    extra: dict[str, Any] = {"agreement": round(merged.agreement or 0.0, 3)}
    if merged.disputed:
        extra["others"] = {f"label-studio: {annotation.who}": annotation.label.to_json() for annotation in by_person}
    return Entry(task.id, merged.label, ORIGIN, CONSENSUS, last.at, extra=extra)


def _label_before(task: ReturnedTask, history: Sequence[Entry], imported: Label) -> Entry:
    """Return to the label that held before anybody annotated the task."""
    others = [entry for entry in history if entry.origin != "import" and entry.extra.get("task") != task.uid]
    label = others[-1].label if others else imported
    return Entry(task.id, label, ORIGIN, CURATE, max((entry.at for entry in history), default=""))


def _respect_app_edit(task: ReturnedTask, before: LabelState, result: Entry) -> Entry:
    """Dispute instead of overwriting a label that a curator made since the task was pushed: a person has to decide."""
    theirs = before.entry is not None and before.entry.origin in ("app", "decision")
    open_dispute = before.label.reason == EDITED_IN_APP
    if not (theirs or open_dispute) or before.label.digest in (task.base, result.label.digest):
        return result
    if not task.annotations:  # deleted in Label Studio: the curator's label stays
        return replace(result, label=before.label)
    label = replace(before.label, status="disputed", reason=EDITED_IN_APP)
    return replace(result, label=label, extra={"others": {f"label-studio: {result.who}": result.label.to_json()}})
