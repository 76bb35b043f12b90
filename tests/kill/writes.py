"""Count the writes of this process, to files and to MongoDB, and end it with SIGKILL just before the nth.

Seen are: files opened for writing, renamed, removed or linked and folders made (Python's audit events), `fsync`, each
statement that changes an SQLite file, each command that changes MongoDB, and each write of a Lance table (before and
after). What compiled code writes is seen only where it ends in one of these; kills at random moments meet the rest.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from pymongo import monitoring

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = tuple(f"{REPOSITORY / name}{os.sep}" for name in ("curate", "train", "synth", "labeling"))
MOVES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1, "os.truncate": 0}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"insert", "update", "delete", "findandmodify", "create", "drop", "createindexes", "dropindexes"}
CHANGES |= {"renamecollection", "dropdatabase", "collmod"}
STATEMENTS = ("insert", "replace", "update", "delete", "create", "drop", "alter", "commit", "pragma user_version")
DEPTH = 3  # frames of our own code that tell two writes apart


class Writes(monitoring.CommandListener):
    """The writes of one process below `root` and to its database; `number` of them so far.

    `torn`: where the last write is the `fsync` of a log, only half of what it would have made durable is there.
    `stops`: the process stops itself before each write, until it is sent SIGCONT.
    """

    def __init__(self, root: Path, kill_at: int | None = None, torn: bool = False, stops: bool = False) -> None:
        self.root, self.kill_at, self.torn, self.stops = str(root), kill_at, torn, stops
        self.pid, self.number = os.getpid(), 0
        self.noted: list[tuple[str, str]] = []  # what each write was, and which code made it
        self.durable: dict[str, int] = {}

    def start(self) -> None:
        """From here on; MongoDB clients that are made later are heard."""
        sys.addaudithook(self._audited)
        monitoring.register(self)
        self._wrap_fsync()
        self._wrap_lance()
        self._wrap_sqlite()

    def count(self, kind: str, what: str) -> bool:
        """Note a write, and die if it is the one. True where the caller is to tear the file first."""
        if os.getpid() != self.pid:
            return False
        self.number += 1
        if self.kill_at is None:
            self.noted.append((f"{kind} {what.replace(self.root, '').replace(str(self.pid), 'PID')}", _site()))
            if self.stops:
                os.kill(self.pid, signal.SIGSTOP)
        elif self.number == self.kill_at:
            if self.torn:
                return True
            os.kill(self.pid, signal.SIGKILL)
        return False

    # --- where writes are seen ---

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                self._file("open", path)
        elif event in MOVES:
            self._file(event, arguments[MOVES[event]])

    def _file(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        whole = os.path.abspath(os.fsdecode(path))
        if whole.startswith(self.root):
            self.count(event, whole)

    def _traced(self, statement: str) -> None:
        if statement.lower().lstrip().startswith(STATEMENTS):
            self.count("sqlite", statement.split("(")[0][:60])

    def _wrap_fsync(self) -> None:
        theirs = os.fsync

        def fsync(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if path.startswith(self.root) and self.count("fsync", path) and os.path.isfile(path):
                size, before = os.fstat(handle).st_size, self.durable.get(path, 0)
                if path.endswith(".jsonl"):
                    os.truncate(path, (before + size) // 2)
                os.kill(self.pid, signal.SIGKILL)
            theirs(handle)
            self.durable[path] = os.fstat(handle).st_size

        os.fsync = fsync

    def _wrap_lance(self) -> None:
        import lance

        theirs = lance.write_dataset

        def write_dataset(*arguments: Any, **options: Any) -> Any:
            self.count("lance", "before a write")
            made = theirs(*arguments, **options)
            self.count("lance", "after a write")
            return made

        lance.write_dataset = write_dataset

    def _wrap_sqlite(self) -> None:
        import sqlite3

        theirs = sqlite3.connect

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            made = theirs(*arguments, **options)
            made.set_trace_callback(self._traced)
            return made

        sqlite3.connect = connect

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        name = event.command_name.lower()
        stages = event.command.get("pipeline", ()) if name == "aggregate" else ()
        if name in CHANGES or any("$out" in stage or "$merge" in stage for stage in stages):
            what = str(event.command.get(event.command_name, ""))
            self.count("mongo", f"{name} {'samples' if what.startswith('samples.') else what}")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


def _site() -> str:
    """The innermost lines of our own code: `rounds.py:144 < selecting.py:112`."""
    found: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(found) < DEPTH:
        name = frame.f_code.co_filename
        if name.startswith(OURS):
            found.append(f"{os.path.relpath(name, REPOSITORY)}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)
