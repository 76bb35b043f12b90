"""Small things about files that several rooms need: whole-or-nothing writes and the one-writer lock."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import glob
import json
import os
import pwd
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from curate.errors import CurateError

FORMULA = "=+-@\t\r"  # a spreadsheet runs a cell that begins with one of these
LARGEST = 1 << 30  # bytes of a file that is read whole: above any image or label file
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, or what a file may have


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, moved into place when the block ends well and removed when it does not.

    Works for a file and, where `target` does not exist yet, for a folder.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    with room_for(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(aside)
        try:
            yield aside
            _sync(aside)
            os.replace(aside, target)
            if target.is_dir():
                _make_newest(target)
            sync_folder(target.parent)
        finally:
            remove(aside)


@contextlib.contextmanager
def room_for(target: Path) -> Iterator[None]:
    """Where the disk is full: one line that names what could not be written."""
    try:
        yield
    except Exception as error:
        why = _full(error)
        if why is None:
            raise
        raise CurateError(
            f"{target} cannot be written: {why}. What was there before is kept. Make room (curate gc may "
            "help), then run this again: it goes on from there"
        ) from None


def _full(error: Exception) -> str | None:
    """The system's words where the disk is full. Libraries that are not Python's hide them in a text of their own."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in FULL else None
    if isinstance(error, CurateError):
        return None
    words = (*(os.strerror(number) for number in FULL), "database or disk is full", "disk I/O error")
    return next((one for one in words if one in str(error)), None)


def _make_newest(folder: Path) -> None:
    """Results are told apart by age: give this one the latest time among its neighbours, though the clock went back."""
    others = [path.stat().st_mtime_ns for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    if max(others, default=0) >= folder.stat().st_mtime_ns:
        os.utime(folder, ns=(max(others) + 1,) * 2)


def sweep_parts(target: Path) -> None:
    """Remove what killed processes left of this target beside it; the part of one that still runs stays."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        pid = part.name.removeprefix(f".{target.name}.").partition(".")[0]
        if pid.isdigit() and not _runs(int(pid)):
            remove(part)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_text(target: Path, text: str) -> None:
    sweep_parts(target)
    with written_aside(target) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    write_text(target, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_csv(file: IO[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows in which no text is a formula to a spreadsheet: such a cell gets an apostrophe before it."""
    csv.writer(file).writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ")[:1] in tuple(FORMULA) else value


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """The bytes of a regular file. Raises OSError for anything else: reading a pipe or a device may never end.

    The file is opened without waiting and judged by its handle, so that it cannot be exchanged in between.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        size = os.fstat(file.fileno()).st_size
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if size > limit:
            raise OSError(errno.EINVAL, f"larger than {limit} bytes", str(path))
        content = file.read(size + 1)
    if len(content) != size:
        raise OSError(errno.EBUSY, "changed while it was read", str(path))
    return content


def remove(path: Path) -> None:
    """Remove a file or a folder. A folder leaves its name at once and whole; a kill leaves a part for `curate gc`."""
    if path.is_dir() and not path.is_symlink():
        if path.suffix != ".part":
            away = path.with_name(f".{path.name}.{os.getpid()}.gone.part")
            remove(away)
            os.replace(path, away)
            path = away
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Make durable which files the folder holds, so that a new file's name outlives a power cut as its bytes do."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ProjectBusy(CurateError):
    """Another command writes to the project."""


@contextlib.contextmanager
def writer_lock(folder: Path, purpose: str) -> Iterator[None]:
    """One writer at a time per project; readers need no lock.

    The kernel drops the lock when its holder dies, so a lock left by a killed process is never in the way; the
    file's text only says who holds it.
    """
    lock = folder / ".lock"
    with room_for(lock), writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+b", buffering=0)
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProjectBusy(_busy(lock)) from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "purpose": purpose}
        with room_for(lock):
            handle.truncate(0)
            handle.write(json.dumps(holder).encode())
        try:
            yield
        finally:
            handle.truncate(0)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Where this user may not write, or the disk is mounted read-only: one line that says so, and whose it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in DENIED:
            raise
        raise CurateError(denied(error, path)) from None


def denied(error: OSError, path: Path) -> str:
    """The line for a file or folder that may not be written or read."""
    why = f"{error.filename or path}: {error.strerror}"
    if error.errno == errno.EROFS:
        return f"{why}. Mount it writable, or copy the project and work on the copy"
    owner = _owner(Path(os.fsdecode(error.filename or path)))
    mine = _name(os.geteuid())
    whose = f" It belongs to {owner}, you are {mine}." if owner and owner != mine else ""
    return f"{why}.{whose} Work as its owner, let your group write there (chmod -R g+w), or copy the project"


def _owner(path: Path) -> str | None:
    """The user to whom the path belongs, or the nearest folder above it that can be seen."""
    for one in (path, *path.parents):
        with contextlib.suppress(OSError):
            return _name(one.stat().st_uid)
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _busy(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        who = f"'{holder['purpose']}' (pid {holder['pid']} on {holder['host']}, {_ago(holder['since'])})"
    except (ValueError, KeyError, TypeError):
        who = "another command"
    return f"{who} is writing to this project ({lock}). Wait for it to end, then run this again"


def _ago(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    return f"since {seconds} s" if seconds < 120 else f"since {seconds // 60} min"
