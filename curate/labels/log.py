"""The label log: append-only, the durable record of every label ever imported, drawn or edited.

One JSON line an entry, in numbered segments below `work/labels/`. A run writes a segment of its own, so no earlier
line is ever touched; a line cut off by a kill was never acknowledged and is passed over. `LabelLog` folds the log into
what holds today for each image: the index is a projection of it and can be rebuilt from it.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from curate.data import UNLABELLED, Label, Origin
from curate.errors import CurateError
from curate.files import explain_full_disk, sync_folder
from curate.hashing import digest_of

DUPLICATE_LABELS, UNKNOWN_CLASS = "duplicate-labels", "unknown-class"
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # raised by reading a damaged line
RECENT = 4096  # entries that need not be read back from disk


@dataclass(frozen=True, slots=True)
class Entry:
    """One label of one image: who gave it, when, and where it came from. `path` is the import's `source:path`."""

    id: str
    label: Label
    origin: Origin
    who: str
    at: str
    path: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        entry = {"id": self.id, "origin": self.origin, "who": self.who, "at": self.at}
        optional = {"path": self.path, "extra": dict(self.extra)}
        return entry | {k: v for k, v in optional.items() if v} | {"digest": self.label.digest} | self.label.to_json()

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Entry:
        """Return the entry that `to_json` wrote. Raises ValueError, KeyError, TypeError or AttributeError."""
        label = Label.from_json(line)
        entry = cls(line["id"], label, line["origin"], line["who"], line["at"], line.get("path"), line.get("extra", {}))
        texts = (entry.id, entry.origin, entry.who, entry.at, entry.path or "")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"not an entry: {str(line)[:80]}")
        list(entry.others)
        return entry

    @property
    def others(self) -> Iterator[tuple[str, Label]]:
        """The labels that contradict this one, with who gave them; stored with the entry of a disputed image."""
        for who, label in self.extra.get("others", {}).items():
            yield who, Label.from_json(label)


def _class_names(label: Mapping[str, Any]) -> set[str]:
    return {*label.get("classes", ()), *(defect["label"] for defect in label.get("defects", ()))}


def now() -> str:
    """Return the time as it stands in the log: UTC, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def user_name() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def lead_times(folder: Path) -> Iterator[tuple[float, Label]]:
    """Yield the seconds that people took for an image, as Label Studio reports them, and the label they gave it."""
    segments = Segments(folder)
    for line in segments.lines_with(b'"lead_time"'):
        entry = segments.entry(line)
        if isinstance(seconds := entry.extra.get("lead_time"), int | float):
            yield float(seconds), entry.label


class EntryPosition(NamedTuple):
    """Position of an entry in the log, and the facts that need no second reading."""

    segment: str
    offset: int
    digest: str
    present: frozenset[str]
    status: str
    epoch: int


class Segments:
    """Numbered files of JSON lines in one folder; files are only ever added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("[0-9]*.jsonl"))

    def next(self) -> Path:
        names = self.names()
        number = int(names[-1].split(".")[0]) + 1 if names else 1
        return self.folder / f"{number:06d}.jsonl"

    def lines(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield (segment, offset, line) of every whole line, oldest first."""
        for name in self.names():
            offset = 0
            with self._opened(name) as handle:
                for raw in handle:
                    if raw.endswith(b"\n"):
                        line = self._decoded(raw)
                        if line is None:
                            raise self.damaged(name, offset)
                        yield name, offset, line
                    offset += len(raw)

    def lines_with(self, text: bytes) -> Iterator[dict[str, Any]]:
        """Yield the lines that contain these bytes; far quicker than `lines` where few do."""
        for name in self.names():
            with self._opened(name) as handle:
                yield from (line for raw in handle if text in raw and (line := self._decoded(raw)) is not None)

    def _opened(self, name: str) -> BinaryIO:
        try:
            return open(self.folder / name, "rb")
        except OSError as error:
            raise CurateError(f"{self.folder / name} cannot be read: {error.strerror}") from None

    def at(self, segment: str, offset: int) -> dict[str, Any]:
        with self._opened(segment) as handle:
            handle.seek(offset)
            raw = handle.readline()
        line = self._decoded(raw)
        if line is None:
            raise self.damaged(segment, offset)
        return line

    def entry(self, line: Mapping[str, Any], segment: str = "", offset: int = 0) -> Entry:
        """Return the entry of a line; segment and offset are for the error where it is damaged."""
        try:
            return Entry.from_json(line)
        except DAMAGE:
            raise self.damaged(segment, offset) from None

    def damaged(self, segment: str = "", offset: int = 0) -> CurateError:
        """Return the error for a damaged line; without a segment it names only the folder."""
        where = f"a file of {self.folder}"
        if segment:
            with open(self.folder / segment, "rb") as handle:
                number = handle.read(offset).count(b"\n") + 1
            where = f"{self.folder / segment}:{number}"
        return CurateError(
            f"{where}: damaged line in an append-only log; restore this file from a backup (curate restore)"
        )

    @staticmethod
    def _decoded(raw: bytes) -> dict[str, Any] | None:
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        return line if isinstance(line, dict) else None


class Writer:
    """Appends lines to a new segment; nothing is on disk until the first line, everything is after `flush`."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._handle: Any = None
        self._offset = 0

    def append(self, line: Mapping[str, Any]) -> tuple[str, int]:
        if self._handle is None:
            with explain_full_disk(self._segments.folder):
                self._segments.folder.mkdir(parents=True, exist_ok=True)
                self._handle = open(self._segments.next(), "xb", buffering=1 << 20)  # noqa: SIM115 - closed by __exit__
                self._offset = 0
                sync_folder(self._segments.folder)
        text = json.dumps(line, separators=(",", ":"), ensure_ascii=False)
        # A file name may hold bytes that are not UTF-8: their escape is valid JSON for the same bytes.
        raw = text.encode("utf-8", "backslashreplace") + b"\n"
        with explain_full_disk(Path(self._handle.name)):
            self._handle.write(raw)
        position = Path(self._handle.name).name, self._offset
        self._offset += len(raw)
        return position

    def push(self) -> None:
        """Make what was appended readable; `flush` makes it durable."""
        if self._handle is not None:
            with explain_full_disk(Path(self._handle.name)):
                self._handle.flush()

    def flush(self) -> None:
        if self._handle is not None:
            with explain_full_disk(Path(self._handle.name)):
                self._handle.flush()
                os.fsync(self._handle.fileno())

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self.flush()
            self._handle.close()
            self._handle = None


@dataclass(slots=True)
class _ImageEntries:
    """One image's entries that count: the newest import of each path, and the newest entry of a person."""

    imports: dict[str, EntryPosition] = field(default_factory=dict)
    person: EntryPosition | None = None


@dataclass(frozen=True, slots=True)
class LabelState:
    """The label that holds for an image today.

    Args:
        label: The label.
        entry: The entry that it comes from.
        others: Labels that contradict it, each with its path or annotator.
        key: A hash that changes whenever the state does.
    """

    label: Label
    entry: Entry | None = None
    others: tuple[tuple[str, Label], ...] = ()
    key: str = ""


class LabelLog:
    """The log, folded into today's state of each image; in memory it keeps positions, not labels."""

    def __init__(self, folder: Path, allowed: Iterable[str] | None = None) -> None:
        self.segments = Segments(folder)
        self._allowed: frozenset[str] | None = None
        if allowed is not None:
            self.allow(allowed)
        self._changes: set[str] = set()
        self._class_events: dict[str, str] = {}  # the last noted change of each class
        self.writer = Writer(self.segments)
        self._images: dict[str, _ImageEntries] = {}
        self._recent: dict[tuple[str, int], Entry] = {}
        # _renames[e]: today's names for class names of entries written in epoch e. A rename opens a new epoch, so that
        # a class added later under an old name keeps it.
        self._renames: list[dict[str, str]] = [{}]
        self._class_sets: dict[frozenset[str], frozenset[str]] = {}
        for segment, offset, line in self.segments.lines():
            try:
                self._fold(line, segment, offset)
            except DAMAGE:
                raise self.segments.damaged(segment, offset) from None

    def allow(self, classes: Iterable[str]) -> None:
        """Set the project's classes: a label with any other class is disputed."""
        self._allowed = frozenset(classes)

    # --- writing ---

    def append(self, entry: Entry) -> None:
        """Record an entry. It is durable after `flush`, which comes before the index is touched."""
        line = entry.to_json()
        position = self.writer.append(line)
        if len(self._recent) >= RECENT:
            self._recent.clear()
        self._recent[position] = entry
        self._fold(line, *position)

    def append_all(self, groups: Iterable[Sequence[Entry]]) -> dict[str, LabelState]:
        """Record entries durably; those of a group reach the disk together, or none of them.

        Returns:
            The label that holds now for each image of theirs.
        """
        ids = set()
        for group in groups:
            self.writer.push()  # so that the buffer is empty, and the group goes out as one write
            for entry in group:
                self.append(entry)
                ids.add(entry.id)
        self.flush()
        return self.states(ids)

    def append_import(self, entry: Entry) -> bool:
        """Record the label that a source gives for one of its files, if it changed. Returns True if it did."""
        assert entry.path is not None
        known = self._images.get(entry.id)
        last = known.imports.get(entry.path) if known else None
        if last is None and entry.label == UNLABELLED:
            return False
        if last and self._digest(last) == entry.label.digest:
            return False
        self.append(entry)
        return True

    def rename(self, names: Mapping[str, str], who: str, operation: str, change: str = "") -> None:
        """Rename classes (old name: new name) in every label of the log so far. The same `change` is made only once."""
        if change in self._changes:
            return
        line = {"event": "rename", "names": dict(names), "operation": operation, "who": who, "at": now()}
        line |= {"change": change} if change else {}
        self._fold(line, *self.writer.append(line))
        self.writer.flush()

    def note(self, event: str, name: str, who: str) -> None:
        """Record a change of a class that changes no label, unless it is this class's last change already."""
        if self._class_events.get(name) != event:
            line = {"event": event, "name": name, "who": who, "at": now()}
            self._fold(line, *self.writer.append(line))
            self.writer.flush()

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.__exit__(None, None, None)

    # --- reading ---

    def ids(self) -> Iterable[str]:
        return self._images.keys()

    def key(self, id: str) -> str:
        """Return the key of an image's state; cheap, as no label is read."""
        known = self._images.get(id)
        if known is None:
            return ""
        if known.person:
            return self._key_of("person", [("", known.person)])
        (_, first), *others = self._versions(known)
        return self._key_of("import", [("", first), *others])

    def keys(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the key of each image's state."""
        return {id: self.key(id) for id in ids}

    def person_decided(self, id: str) -> bool:
        """Return True if a person has labelled the image, so that imports no longer count."""
        known = self._images.get(id)
        return known is not None and known.person is not None

    def state(self, id: str) -> LabelState:
        """Return the label that holds for the image today."""
        known = self._images.get(id)
        if known is None:
            return LabelState(UNLABELLED)
        state = self._person_state(known, known.person) if known.person else self._imported_state(known)
        return replace(self._check_classes(state), key=self.key(id))

    def states(self, ids: Iterable[str]) -> dict[str, LabelState]:
        """Return the label that holds for each of these images today."""
        return {id: self.state(id) for id in ids}

    def import_paths(self, id: str) -> set[str]:
        """Return the files whose labels count for this image."""
        known = self._images.get(id)
        return {path for path, position in known.imports.items() if position.status != "unlabelled"} if known else set()

    def versions(self, id: str) -> list[tuple[str, Label]]:
        """Return the differing labels that the sources give for an image (path and label), oldest first."""
        known = self._images.get(id)
        return [(path, self._read(position).label) for path, position in self._versions(known)] if known else []

    def import_state(self, id: str) -> LabelState:
        """Return the label that the sources alone give for an image, without people's entries."""
        known = self._images.get(id)
        return self._check_classes(self._imported_state(known)) if known and known.imports else LabelState(UNLABELLED)

    def history(self, id: str) -> list[Entry]:
        """Return all entries of an image, oldest first."""
        return self.histories({id})[id]

    def histories(self, ids: Collection[str]) -> dict[str, list[Entry]]:
        """Return all entries of several images, in one pass over the log."""
        histories: dict[str, list[Entry]] = {id: [] for id in ids}
        for entry in self.entries(ids) if ids else ():
            histories[entry.id].append(entry)
        return histories

    def entries(self, ids: Collection[str] | None = None) -> Iterator[Entry]:
        """Yield all entries of these images (or of all), oldest first, with the class names of today."""
        self.writer.push()
        epoch = 0
        for segment, offset, line in self.segments.lines():
            epoch += line.get("event") == "rename"
            if "id" in line and (ids is None or line["id"] in ids):
                yield self._renamed(self.segments.entry(line, segment, offset), epoch)

    # --- folding ---

    def _fold(self, line: Mapping[str, Any], segment: str, offset: int) -> None:
        if line.get("event") == "rename":
            self._add_renames(line["names"])
            self._changes |= {line["change"]} if "change" in line else set()
            self._class_events.clear()
        elif "event" in line:
            self._class_events[str(line.get("name"))] = line["event"]
        else:
            self._add_entry(line, segment, offset)

    def _add_renames(self, names: Mapping[str, str]) -> None:
        if not all(isinstance(name, str) for pair in names.items() for name in pair):
            raise ValueError("class names are texts")
        for renames in self._renames:
            renames.update({old: names.get(new, new) for old, new in renames.items()})
            renames.update({old: new for old, new in names.items() if old not in renames})
        self._renames.append({})

    def _add_entry(self, line: Mapping[str, Any], segment: str, offset: int) -> None:
        labels = (line, *line.get("extra", {}).get("others", {}).values())
        present = frozenset(name for label in labels for name in _class_names(label))
        present = self._class_sets.setdefault(present, present)
        path = line["path"] if line["origin"] == "import" else ""
        if not all(isinstance(text, str) for text in (line["id"], line["digest"], line["status"], path, *present)):
            raise ValueError("not an entry")
        position = EntryPosition(segment, offset, line["digest"], present, line["status"], len(self._renames) - 1)
        known = self._images.setdefault(line["id"], _ImageEntries())
        if line["origin"] == "import":
            known.imports[path] = position
        else:
            known.person = position

    def _versions(self, known: _ImageEntries) -> list[tuple[str, EntryPosition]]:
        labelled = {path: position for path, position in known.imports.items() if position.status != "unlabelled"}
        seen: dict[str, tuple[str, EntryPosition]] = {}
        for path, position in (labelled or known.imports).items():
            seen.setdefault(self._digest(position), (path, position))
        return list(seen.values())

    def _is_renamed(self, position: EntryPosition) -> bool:
        return not self._renames[position.epoch].keys().isdisjoint(position.present)

    def _digest(self, position: EntryPosition) -> str:
        return self._read(position).label.digest if self._is_renamed(position) else position.digest

    def _person_state(self, known: _ImageEntries, position: EntryPosition) -> LabelState:
        entry = self._read(position)
        if not (entry.label.reason or "").startswith(DUPLICATE_LABELS):
            return LabelState(entry.label, entry, self._others(entry, position.epoch))
        return LabelState(entry.label, entry, self._imported_state(known).others)  # noted, not decided

    def _others(self, entry: Entry, epoch: int) -> tuple[tuple[str, Label], ...]:
        return tuple((who, label.renamed(self._renames[epoch])) for who, label in entry.others)

    def _check_classes(self, state: LabelState) -> LabelState:
        """Dispute a label with a class that the project no longer has, so that nothing is trained on it."""
        unknown = state.label.present - self._allowed if self._allowed is not None else frozenset()
        if state.label.status != "labelled" or not unknown:
            return state
        reason = f"{UNKNOWN_CLASS}: {', '.join(sorted(unknown))}"
        return replace(state, label=replace(state.label, status="disputed", reason=reason))

    def _unknown_classes(self, position: EntryPosition) -> str:
        if self._allowed is None or position.present <= self._allowed:
            return ""
        names = self._renames[position.epoch]
        return ",".join(sorted({names.get(name, name) for name in position.present} - self._allowed))

    def _imported_state(self, known: _ImageEntries) -> LabelState:
        versions = [(path, self._read(position)) for path, position in self._versions(known)]
        first = versions[0][1]
        if len(versions) == 1:
            return LabelState(first.label, first)
        disputed = replace(first.label, status="disputed", reason=DUPLICATE_LABELS)
        return LabelState(disputed, first, tuple((path, entry.label) for path, entry in versions[1:]))

    def _read(self, position: EntryPosition) -> Entry:
        entry = self._recent.get((position.segment, position.offset))
        if entry is not None:
            return self._renamed(entry, position.epoch)
        self.writer.push()
        line = self.segments.at(position.segment, position.offset)
        return self._renamed(self.segments.entry(line, position.segment, position.offset), position.epoch)

    def _renamed(self, entry: Entry, epoch: int) -> Entry:
        return replace(entry, label=entry.label.renamed(self._renames[epoch]))

    def _key_of(self, kind: str, versions: Iterable[tuple[str, EntryPosition]]) -> str:
        parts = (
            part
            for path, position in versions
            for part in (path, self._digest(position) + self._unknown_classes(position))
        )
        text = "|".join([kind, *parts])
        return digest_of(text)
