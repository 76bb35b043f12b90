"""Files: writes that are whole or not at all, the lock of the one writer, errors of the disk in one line."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import glob
import json
import os
import pwd
import re
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
    """Give a temporary path beside `target`: moved into place when the block ends well, else removed.

    Works for a file and, where `target` does not exist yet, for a folder.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    with explain_full_disk(target):
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


def cache_folder() -> Path:
    """Return the user's folder for what can be made again. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curate"


@contextlib.contextmanager
def explain_full_disk(target: Path) -> Iterator[None]:
    """Turn the error of a full disk into one line that names what could not be written."""
    try:
        yield
    except Exception as error:
        reason = _full_disk_reason(error)
        if reason is None:
            raise
        raise CurateError(
            f"{target} cannot be written: {reason}. What was there before is kept. Make room (curate gc may "
            "help), then run this again: it goes on from there"
        ) from None


def _full_disk_reason(error: Exception) -> str | None:
    """Return the system's message if the disk is full. Libraries not in Python hide it in a text of their own."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in FULL else None
    if isinstance(error, CurateError):
        return None
    if re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # numpy's words
        return os.strerror(errno.ENOSPC)
    messages = (*(os.strerror(number) for number in FULL), "database or disk is full", "disk I/O error")
    return next((message for message in messages if message in str(error)), None)


def _make_newest(folder: Path) -> None:
    """Give this result the latest time among its neighbours, even if the clock went back: the newest one counts."""
    others = [path.stat().st_mtime_ns for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    if max(others, default=0) >= folder.stat().st_mtime_ns:
        os.utime(folder, ns=(max(others) + 1,) * 2)


def sweep_parts(target: Path) -> None:
    """Remove the `.part` files of this target that killed processes left; those of running processes stay."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        pid = part.name.removeprefix(f".{target.name}.").partition(".")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            remove(part)


def _is_running(pid: int) -> bool:
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


def read_json(file: Path) -> Any:
    """Return what a command wrote and can make anew. Raises CurateError, with the file and the remedy, if damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise CurateError(
            f"{file} is damaged or missing ({reason}). Remove {file.parent}, then run the command again"
        ) from None


def write_csv(file: IO[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows; a cell that a spreadsheet would run as a formula gets an apostrophe in front."""
    csv.writer(file).writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ")[:1] in tuple(FORMULA) else value


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """Return the bytes of a regular file. Raises OSError for anything else: reading a pipe or a device may never end.

    The file is opened without waiting and checked by its handle, so that it cannot be exchanged in between.
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
    """Remove a file or a folder. A folder is renamed first, then emptied: a kill leaves a part for `curate gc`."""
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
    """Make durable which files the folder holds: a power cut must not lose the name of a new file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ProjectBusy(CurateError):
    """Another command writes to the project."""


@contextlib.contextmanager
def writer_lock(folder: Path, purpose: str) -> Iterator[None]:
    """Hold the project's lock: one writer at a time; readers need no lock.

    The kernel drops the lock when its holder dies, so a lock left by a killed process is never in the way; the
    file's text only says who holds it.
    """
    lock = folder / ".lock"
    with explain_full_disk(lock), explain_denied(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+b", buffering=0)
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProjectBusy(_busy(lock)) from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "purpose": purpose}
        with explain_full_disk(lock):
            handle.truncate(0)
            handle.write(json.dumps(holder).encode())
        try:
            yield
        finally:
            handle.truncate(0)


@contextlib.contextmanager
def explain_denied(path: Path) -> Iterator[None]:
    """Turn a denied write (rights, or a disk mounted read-only) into one line that names the owner."""
    try:
        yield
    except OSError as error:
        if error.errno not in DENIED:
            raise
        raise CurateError(denied_message(error, path)) from None


def denied_message(error: OSError, path: Path) -> str:
    """Return the message for a file or folder that may not be written or read."""
    reason = f"{error.filename or path}: {error.strerror}"
    if error.errno == errno.EROFS:
        return f"{reason}. Mount it writable, or copy the project and work on the copy"
    remedy = "Work as its owner, let your group write there (chmod -R g+w), or copy the project"
    return f"{reason}.{other_owner(Path(os.fsdecode(error.filename or path)))} {remedy}"


def other_owner(path: Path) -> str:
    """Return a sentence that names the path's owner, with a space before it; empty where it is this user."""
    owner, mine = _owner(path), _name(os.geteuid())
    return f" It belongs to {owner}, you are {mine}." if owner and owner != mine else ""


def _owner(path: Path) -> str | None:
    """Return the user who owns the path, or the nearest folder above it that can be seen."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return _name(place.stat().st_uid)
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _busy(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        who = f"'{holder['purpose']}' (pid {holder['pid']} on {holder['host']}, {_since(holder['since'])})"
    except (ValueError, KeyError, TypeError):
        who = "another command"
    return f"{who} is writing to this project ({lock}). Wait for it to end, then run this again"


def _since(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    return f"since {seconds} s" if seconds < 120 else f"since {seconds // 60} min"
