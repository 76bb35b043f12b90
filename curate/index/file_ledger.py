"""The file ledger: an SQLite table of every file that the last run saw, and its outcome.

It answers three questions without reading a pixel: has this file (or its label) changed, which paths show the same
image, and which are quarantined or missing. It can be deleted: the next run then reads every file again.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from curate.errors import CurateError
from curate.files import explain_full_disk
from curate.paths import printable

SCHEMA = """
create table if not exists files (
    reference text primary key, run integer, place integer, fingerprint text, outcome text, id text,
    grp text, stratum text, problem text, label_file text, line integer, note text
) without rowid;
create index if not exists files_by_id on files (id);
"""

OK, QUARANTINED, MISSING = "ok", "quarantined", "missing"


class FileRow(NamedTuple):
    """One file. `reference` is `source:path`; `group` comes from the format or the path."""

    reference: str
    fingerprint: str
    outcome: str
    id: str | None = None
    group: str | None = None
    stratum: str | None = None
    problem: str | None = None
    label_file: str | None = None
    line: int | None = None
    note: str | None = None


class LedgerImage(NamedTuple):
    """An image with all its files, and the groups that they belong to."""

    id: str
    references: list[str]
    groups: list[str]
    stratum: str | None


COLUMNS = ", ".join("grp" if name == "group" else name for name in FileRow._fields)
MARKS = ", ".join("?" * (len(FileRow._fields) + 2))


class Ledger:
    """Open with `with`; each run gets a number, and rows of older runs are files that are no longer there."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._db = sqlite3.connect(file)
        try:
            with self._explained_errors():
                self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise CurateError(f"{file}: {error}. Delete it: the next curate index reads every file again") from None
        self.run = int(self._db.execute("pragma user_version").fetchone()[0])  # the last one that ended
        self._place = 0

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            with explain_full_disk(self._file):
                yield
        except sqlite3.OperationalError as error:
            raise CurateError(f"{self._file} cannot be opened or written: {error}") from None

    def begin(self) -> None:
        """Start a run: it gets the next number."""
        latest = int(self._db.execute("select coalesce(max(run), 0) from files").fetchone()[0])
        self.run = max(self.run, latest) + 1
        self._place = 0

    def finish(self) -> None:
        """End a run that saw every file: files with an older number are gone."""
        with self._explained_errors():
            self._db.execute(f"pragma user_version = {self.run}")

    def find(self, references: Sequence[str]) -> dict[str, FileRow]:
        """Return the rows of these files, by reference."""
        marks = ", ".join("?" * len(references))
        query = f"select {COLUMNS} from files where reference in ({marks})"  # noqa: S608
        return {row[0]: FileRow(*row) for row in self._db.execute(query, _as_utf8(references))}

    def save(self, rows: Iterable[FileRow]) -> None:
        """Write these rows, all or none."""
        numbered = [(*_as_utf8(row), self.run, place) for place, row in enumerate(rows, start=self._place + 1)]
        self._place += len(numbered)
        with self._explained_errors(), self._db:
            query = f"insert or replace into files ({COLUMNS}, run, place) values ({MARKS})"  # noqa: S608
            self._db.executemany(query, numbered)

    def forget(self) -> None:
        """Drop all fingerprints, so that the next run reads every file again."""
        with self._explained_errors(), self._db:
            self._db.execute("update files set fingerprint = ''")

    def images(self) -> Iterator[LedgerImage]:
        """Yield every image that this run saw, in the order of the sources."""
        query = (
            "select id, json_group_array(reference), json_group_array(grp), min(stratum), min(place) from"
            " (select * from files where run >= ? and outcome = ? order by place) group by id order by min(place)"
        )
        for id, references, groups, stratum, _ in self._db.execute(query, (self.run, OK)):
            names = list(dict.fromkeys(name for name in json.loads(groups) if name))
            yield LedgerImage(id, json.loads(references), names, stratum)

    def seen(self, outcome: str) -> list[FileRow]:
        """Return the rows of the last run with this outcome, in order."""
        query = f"select {COLUMNS} from files where run >= ? and outcome = ? order by place"  # noqa: S608
        return [FileRow(*row) for row in self._db.execute(query, (self.run, outcome))]

    def gone(self) -> list[str]:
        """Return files that an earlier run indexed and the last one did not find, and whose image has no other file."""
        query = (
            "select reference from files where run < ? and outcome = ? and id not in"
            " (select id from files where run >= ? and id is not null) order by reference"
        )
        return [row[0] for row in self._db.execute(query, (self.run, OK, self.run))]

    def counted(self, source: str) -> tuple[int, int]:
        """Return the number of a source's files that this run saw, and the number of those that it did not see."""
        query = "select count(*) filter (where run >= ?), count(*) filter (where run < ?) from files"
        query += " where outcome = ? and substr(reference, 1, ?) = ?"
        name = f"{source}:"
        seen, before = self._db.execute(query, (self.run, self.run, OK, len(name), name)).fetchone()
        return int(seen), int(before)

    def notes(self) -> dict[str, int]:
        """Return the notes on files of the last run, each with its number of files."""
        query = "select note, count(*) from files where run >= ? and note is not null group by note order by 2 desc, 1"
        return dict(self._db.execute(query, (self.run,)))

    def duplicates(self) -> int:
        """Return the number of files of the last run that are a further copy of an image."""
        query = "select count(*) - count(distinct id) from files where run >= ? and outcome = ?"
        return int(self._db.execute(query, (self.run, OK)).fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_utf8(values: Iterable[object]) -> list[object]:
    """Escape the bytes of file names that are not UTF-8, which SQLite does not take."""
    return [printable(value) if isinstance(value, str) else value for value in values]
