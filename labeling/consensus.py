"""From what several people said on a task to what holds for its image; the log remembers what each label rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from curate.data import Label, Origin
from curate.labels.log import DAMAGE, Entry, LabelLog, LabelState
from labeling import agreement

ORIGIN: Origin = "label-studio"
EDITED_IN_APP = "edited-in-app"
CONSENSUS, CURATE = "consensus", "curate"

Stamp = tuple[str, str]  # when an annotation was updated, and the digest of its label
Stamps = dict[str, Stamp]  # by annotation


@dataclass(frozen=True)
class ReturnedAnnotation:
    """One annotation as the server has it. `uid` holds its time of making: Label Studio uses ids again."""

    uid: str
    updated: str
    who: str
    label: Label
    extra: Mapping[str, Any]

    @property
    def stamp(self) -> Stamp:
        return self.updated, self.label.digest

    @property
    def moment(self) -> datetime:
        """Not the text itself: `...00Z` sorts behind `...00.5Z`."""
        return datetime.fromisoformat(self.updated)

    @property
    def at(self) -> str:
        return f"{self.updated[:19]}Z"


@dataclass(frozen=True)
class ReturnedTask:
    """A task as the server has it: `base` is the digest of the label that stood there when it was made."""

    uid: str
    id: str
    size: tuple[int, int]
    words: Sequence[ReturnedAnnotation]
    base: str | None = None

    @property
    def stamps(self) -> Stamps:
        return {word.uid: word.stamp for word in self.words}


@dataclass(frozen=True)
class SettledTask:
    """Result for a task: the label that follows, and how many annotations were new or are gone."""

    label: Label
    fresh: int
    gone: int


@dataclass
class LoggedAnnotations:
    """Label Studio's part of the log: each annotation, and the annotations that the label of each task rests on."""

    words: Stamps = field(default_factory=dict)
    settled: dict[str, Stamps] = field(default_factory=dict)

    @classmethod
    def of(cls, book: LabelLog) -> LoggedAnnotations:
        known = cls()
        book.writer.push()
        for line in book.segments.holding(f'"{ORIGIN}"'.encode()):
            if line.get("origin") == ORIGIN and "task" in (extra := line.get("extra", {})):
                try:
                    known.note(extra, line["digest"])
                except DAMAGE:
                    raise book.segments.damaged() from None
        return known

    def note(self, extra: Mapping[str, Any], digest: str) -> None:
        if "of" in extra:
            self.settled[extra["task"]] = {uid: (updated, of) for uid, (updated, of) in extra["of"].items()}
        else:
            stamp = (extra["updated"], digest)
            self.words[extra["annotation"]] = stamp
            self.settled[extra["task"]] = {extra["annotation"]: stamp}

    def holds(self, task: ReturnedTask) -> bool:
        """True if the label of the task rests on just these annotations already."""
        before, now = self.settled.get(task.uid, {}), task.stamps
        return before.keys() == now.keys() and all(_same(before[uid], stamp) for uid, stamp in now.items())

    def deserted(self, task: ReturnedTask) -> bool:
        """True if all annotations that the label rests on are gone."""
        return not task.words and bool(self.settled.get(task.uid))


def _same(one: Stamp, other: Stamp) -> bool:
    """Not changed since; or saved again as it was; or only its classes have other names now."""
    return one[0] == other[0] or one[1] == other[1]


def settle(
    book: LabelLog, known: LoggedAnnotations, task: ReturnedTask, least: float, history: Iterable[Entry] = ()
) -> SettledTask | None:
    """Log the new words on a task and what follows from all of them; None where nothing is new.

    Args:
        least: the agreement below which annotators are in dispute.
        history: the image's entries, needed only where the task is deserted.
    """
    if known.holds(task):
        return None
    before, now = book.state(task.id), task.stamps
    fresh = [word for word in task.words if word.uid not in known.words or not _same(known.words[word.uid], word.stamp)]
    gone = known.settled.get(task.uid, {}).keys() - now.keys()
    for word in fresh:
        extra = {**word.extra, "task": task.uid, "annotation": word.uid, "updated": word.updated}
        extra |= difference(before.label, word.label)
        _log(book, known, Entry(task.id, word.label, ORIGIN, word.who, word.at, extra=extra))
    result = _resolved(task, least) if task.words else _without(book, task, history)
    result = _beside_the_app(task, before, result)
    if result.extra or known.settled.get(task.uid) != now:
        about = {"task": task.uid, "of": {uid: list(stamp) for uid, stamp in now.items()}}
        _log(book, known, replace(result, extra={**result.extra, **about}))
    return SettledTask(book.state(task.id).label, len(fresh), len(gone))


def difference(before: Label, after: Label) -> dict[str, Any]:
    """List what a second look changed, class by class; nothing where there was no label to look at."""
    if before.status not in ("labelled", "disputed"):
        return {}
    shown = {name: (_of_class(before, name), _of_class(after, name)) for name in before.present | after.present}
    redrawn = sorted(name for name, (old, new) in shown.items() if old and new and old != new)
    added, removed = sorted(after.present - before.present), sorted(before.present - after.present)
    found = {"added": added, "removed": removed, "redrawn": redrawn}
    return {"changed": {what: names for what, names in found.items() if names}}


def _of_class(label: Label, name: str) -> list[str]:
    """Regions and whole-image mentions of a class in a label, sorted so that two labels can be compared."""
    return sorted(
        [*(repr(one) for one in label.defects if one.label == name), *(one for one in label.classes if one == name)]
    )


def _log(book: LabelLog, known: LoggedAnnotations, entry: Entry) -> None:
    book.append(entry)
    known.note(entry.extra, entry.label.digest)


def _resolved(task: ReturnedTask, least: float) -> Entry:
    """The newest word of each annotator; of several annotators their consensus, or their dispute."""
    newest = {word.who: word for word in sorted(task.words, key=lambda word: word.moment)}
    last = max(newest.values(), key=lambda word: word.moment)
    if len(newest) == 1:
        return Entry(task.id, last.label, ORIGIN, last.who, last.at)
    found = agreement.consensus([word.label for word in newest.values()], task.size, least)
    extra: dict[str, Any] = {"agreement": round(found.agreement or 0.0, 3)}
    if found.disputed:
        extra["others"] = {f"label-studio: {who}": word.label.to_json() for who, word in sorted(newest.items())}
    return Entry(task.id, found.label, ORIGIN, CONSENSUS, last.at, extra=extra)


def _without(book: LabelLog, task: ReturnedTask, history: Iterable[Entry]) -> Entry:
    """Return to the label that held before anybody annotated the task."""
    entries = list(history)
    others = [one for one in entries if one.origin != "import" and one.extra.get("task") != task.uid]
    label = others[-1].label if others else book.import_state(task.id).label
    return Entry(task.id, label, ORIGIN, CURATE, max((one.at for one in entries), default=""))


def _beside_the_app(task: ReturnedTask, before: LabelState, result: Entry) -> Entry:
    """A label that a curator made since the task was pushed is not overwritten: a person has to decide."""
    theirs = before.entry is not None and before.entry.origin in ("app", "decision")
    open_dispute = before.label.reason == EDITED_IN_APP
    if not (theirs or open_dispute) or before.label.digest in (task.base, result.label.digest):
        return result
    if not task.words:  # whatever was deleted in Label Studio: what the curator made stays
        return replace(result, label=before.label)
    label = replace(before.label, status="disputed", reason=EDITED_IN_APP)
    return replace(result, label=label, extra={"others": {f"label-studio: {result.who}": result.label.to_json()}})
