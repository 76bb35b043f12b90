"""The annotation: one type on its way from Label Studio's answer to the label log, and from there to the reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from curate.data import Label, Origin
from curate.labels.log import Entry

ORIGIN: Origin = "label-studio"

Size = tuple[int, int]  # width, height
Stamp = tuple[str, str]  # when an annotation was updated, and the digest of its label


@dataclass(frozen=True, slots=True)
class Annotation:
    """One person's finished annotation of one image.

    Args:
        id: Content id of the image.
        who: Email of the annotator.
        label: What it says.
        size: Width and height of the image.
        updated: ISO time of the last change, as the server writes it.
        lead_time: Seconds that it took.
        origin: `manual`, `prediction` (a pre-annotation submitted unchanged) or `changed` (a pre-annotation edited).
        round: The round that its task belongs to.
        suggested_by: The model behind the pre-annotation.
        config: Digest of the label config that it was made with.
        uid: Its number and creation time on the server, which uses numbers again.
        task: The same of its task.
    """

    id: str
    who: str
    label: Label
    size: Size
    updated: str = ""
    lead_time: float | None = None
    origin: str = "manual"
    round: int | None = None
    suggested_by: str | None = None
    config: str | None = None
    uid: str = ""
    task: str = ""

    @property
    def stamp(self) -> Stamp:
        return self.updated, self.label.digest

    @property
    def moment(self) -> datetime:
        """Time of the last change, to sort by. As text, `...00Z` would sort behind `...00.5Z`."""
        if not self.updated:
            return datetime.min.replace(tzinfo=UTC)
        moment = datetime.fromisoformat(self.updated)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def at(self) -> str:
        """Time of the last change as the label log writes times."""
        return f"{self.updated[:19]}Z"

    def to_entry(self, **more: Any) -> Entry:
        """Return its entry for the label log, with `more` beside what the log keeps of every annotation."""
        known = {"round": self.round, "suggested_by": self.suggested_by, "lead_time": self.lead_time}
        extra = {"origin": self.origin, "config": self.config} | {k: v for k, v in known.items() if v is not None}
        extra |= {"task": self.task, "annotation": self.uid, "updated": self.updated, **more}
        return Entry(self.id, self.label, ORIGIN, self.who, self.at, extra=extra)

    @classmethod
    def from_entry(cls, entry: Entry, size: Size) -> Annotation:
        """Return the annotation that `to_entry` logged; older logs lack some of its fields."""
        extra = entry.extra
        return cls(
            entry.id,
            entry.who,
            entry.label,
            size,
            str(extra["updated"]),
            extra.get("lead_time"),
            str(extra.get("origin", "manual")),
            extra.get("round"),
            extra.get("suggested_by"),
            extra.get("config"),
            str(extra["annotation"]),
            str(extra.get("task", "")),
        )


def newest(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Return the newest annotation of each person on each image, by image and person."""
    last: dict[tuple[str, str], Annotation] = {}
    for annotation in sorted(annotations, key=lambda annotation: annotation.moment):
        last[annotation.id, annotation.who] = annotation
    return [last[key] for key in sorted(last)]
