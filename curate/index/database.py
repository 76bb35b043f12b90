"""The project's own MongoDB server, for FiftyOne.

FiftyOne's embedded service attaches to *any* FiftyOne database that runs on the machine, whatever its folder. A
project must own its data, so we run the same `mongod` binary on `work/db/` ourselves: on a Unix socket in that folder,
which is the owner's alone (mode 0700), without any network port; found by every command of the project through
`work/db/server.json`, stopped by the last command that uses it. With FIFTYONE_DATABASE_URI set, nothing is started and
that server is used, with its own authentication.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from curate import files, mongod
from curate.errors import CurateError

URI = "FIFTYONE_DATABASE_URI"
OWN = "CURATE_OWN_DATABASE"  # set where URI names the project's own server: in processes that `curate app` starts
START_SECONDS = 90
CRASHED = ".crashed"  # beside the data: they are to be validated first
CACHE_GB = "1"
LEAST_FREE = 8 << 20  # bytes; MongoDB does not start with less
# A shell notes its own process and becomes MongoDB. Its standard input is the lock for starting, which it holds, even
# after a kill of its parent, until the note is written: no kill leaves a server that nobody finds.
NOTE_AND_BECOME = (
    """printf '{"pid": %d, "socket": "%s"}' $$ "$2" >"$1.part" && mv "$1.part" "$1" || exit 28\n"""
    """shift 2\nexec "$@" </dev/null"""
)
LONGEST_SOCKET = 100  # bytes in the path of a Unix socket: the kernel takes 107 on Linux, 103 on macOS

_clients: dict[Path, IO[str]] = {}


def connect(folder: Path) -> Any:
    """Return the `fiftyone` module, connected to the database of the project whose `work` folder this is.

    A process talks to one database: FiftyOne connects once, and its datasets stay bound to that connection.
    Child processes find the database as this one did: nothing is left in the environment.
    """
    silence_fiftyone()
    loaded = sys.modules.get("fiftyone")
    uri = os.environ.get(URI) or start(folder / "db")
    if loaded is not None and loaded.config.database_uri != uri:
        other, wanted = printable_uri(loaded.config.database_uri), printable_uri(uri)
        raise CurateError(
            f"this Python process is already connected to another database ({other}), and FiftyOne connects once a "
            f"process: {folder} needs {wanted}. Open each project in a Python process of its own, import curate before "
            f"fiftyone, or set {URI} to one server for all projects"
        )
    if loaded is None:
        _tell_of_unused_folder(folder)
    try:
        with environment({URI: uri}), _quiet_import():
            import fiftyone as fo

            fo.core.odm.get_db_conn()  # connects now, not at first use
    except Exception as error:
        raise _unusable(error, uri) from error
    return fo


def tables(folder: Path) -> Any:
    """Return the database of the project whose `work` folder this is, as pymongo shows it.

    FiftyOne, which takes seconds to import, is only loaded where another version of it made the database: it migrates
    the database first. A process that has loaded it already uses its connection.
    """
    if "fiftyone" in sys.modules:
        return connect(folder).core.odm.get_db_conn()
    uri = os.environ.get(URI) or start(folder / "db")
    _tell_of_unused_folder(folder)
    try:
        opened = _client(uri)[_database_name()]
        made_by = (opened.config.find_one() or {}).get("version")
    except Exception as error:
        raise _unusable(error, uri) from error
    return opened if made_by in (None, version("fiftyone")) else connect(folder).core.odm.get_db_conn()


@cache
def _client(uri: str) -> Any:
    import pymongo

    return pymongo.MongoClient(uri)


def _database_name() -> str:
    """Return the name of FiftyOne's database on the server, found as FiftyOne finds it."""
    if name := os.environ.get("FIFTYONE_DATABASE_NAME"):
        return name
    file = Path(os.environ.get("FIFTYONE_CONFIG_PATH") or Path.home() / ".fiftyone" / "config.json")
    try:
        settings = files.read_json(file)
    except (CurateError, OSError, ValueError):
        return "fiftyone"
    return str(settings.get("database_name") or "fiftyone") if isinstance(settings, dict) else "fiftyone"


@cache
def _tell_of_unused_folder(folder: Path) -> None:
    if is_embedded() and os.environ.get("FIFTYONE_DATABASE_DIR"):
        where = f"the index of this project lies in {folder / 'db'}; {URI} names a server of your own"
        sys.stderr.write(f"FIFTYONE_DATABASE_DIR has no effect: {where}\n")


def _unusable(error: BaseException, uri: str) -> CurateError:
    reason = _without_password(_reason(error), uri)
    remedy = "Run: curate doctor" if is_embedded() else f"Correct {URI}, or run: curate doctor"
    return CurateError(f"FiftyOne cannot use the database at {printable_uri(uri)}: {reason}. {remedy}")


def is_embedded() -> bool:
    """Return True if this process uses a project's own database, which is moved and copied with its folder."""
    return not os.environ.get(URI) or bool(os.environ.get(OWN))


def printable_uri(uri: str | None) -> str:
    """Return the server's address without user, password and options."""
    return unquote(str(uri).rpartition("@")[2].partition("?")[0].rpartition("//")[2])


def _without_password(text: str, uri: str) -> str:
    """Return an error's text with the URI's user and password masked."""
    user = uri.rpartition("@")[0].partition("//")[2]
    for secret in (user, user.partition(":")[2]):
        text = text.replace(secret, "***") if secret else text
    return text


def _reason(error: BaseException) -> str:
    """Return the first line of MongoDB's error, which FiftyOne wraps."""
    cause = error.__cause__ or error
    line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return line.partition(", full error:")[0].rstrip(".")


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables for imports and processes in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def silence_fiftyone() -> None:
    """Switch off tracking and messages that no user can act on; call it before FiftyOne is imported."""
    os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
    os.environ.setdefault("FIFTYONE_DATABASE_VALIDATION", "false")
    os.environ.setdefault("FIFTYONE_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("FIFTYONE_SHOW_PROGRESS_BARS", "false")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def start(folder: Path) -> str:
    """Return the URI of the server on `folder`, started if none runs. This process counts as a client until it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        with _start_lock(folder) as lock:
            server = running(folder) or _starting(folder) or _launch(folder, lock)
            if (folder / CRASHED).exists():
                _validate_collections(_uri(server))
                (folder / CRASHED).unlink()
            _register(folder)
    except PermissionError as error:
        raise CurateError(
            f"{error.filename}: {error.strerror}.{files.other_owner(folder)} Only its owner can use a project's own "
            f"database. Work as its owner, or share the project: set {URI} to a MongoDB server"
        ) from None
    return _uri(server)


def running(folder: Path) -> dict[str, Any] | None:
    """Return pid and socket of the server on `folder`, or None. (One of an older curate has a port instead.)"""
    server = _noted(folder)
    return server if server and _answers(server) else None


def _noted(folder: Path) -> dict[str, Any] | None:
    """Return the server that `server.json` names, if that process is one on this folder."""
    try:
        server = json.loads((folder / "server.json").read_text(encoding="utf-8"))
        server = {"pid": int(server["pid"])} | (
            {"socket": str(server["socket"])} if "socket" in server else {"port": int(server["port"])}
        )
        command = Path(f"/proc/{server['pid']}/cmdline").read_bytes() if Path("/proc").is_dir() else b"mongod"
        ours = b"mongod" in command and (str(folder.resolve()).encode() in command or not Path("/proc").is_dir())
        return server if ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _starting(folder: Path) -> dict[str, Any] | None:
    """Return the server on `folder` that answers by and by: a command started it and was killed."""
    end = time.monotonic() + START_SECONDS
    while Path("/proc").is_dir() and (server := _noted(folder)) and not _is_zombie(server["pid"]):
        if _answers(server):
            return server
        if time.monotonic() > end:
            raise CurateError(f"MongoDB did not answer within {START_SECONDS} s; see {folder / 'mongod.log'}")
        time.sleep(0.05)
    return None


def _uri(server: Mapping[str, Any]) -> str:
    return (
        f"mongodb://{quote(server['socket'], safe='')}"
        if "socket" in server
        else f"mongodb://127.0.0.1:{server['port']}"
    )


def _answers(server: Mapping[str, Any]) -> bool:
    local = "socket" in server
    with socket.socket(socket.AF_UNIX if local else socket.AF_INET) as probe, contextlib.suppress(OSError):
        probe.settimeout(2)
        probe.connect(server["socket"] if local else ("127.0.0.1", server["port"]))
        return True
    return False


def _launch(folder: Path, lock: IO[str]) -> dict[str, Any]:
    where = _socket(folder)
    command = [str(mongod.binary()), "--dbpath", str(folder.resolve())]
    command += ["--logpath", str(folder / "mongod.log"), "--logappend"]
    command += ["--bind_ip", str(where), "--nounixsocket", "--wiredTigerCacheSizeGB", CACHE_GB]
    _trim_log(folder / "mongod.log")
    note = folder / "mongod.lock"
    if note.exists() and note.stat().st_size > 0:  # an orderly end empties it
        (folder / CRASHED).touch()
    process = subprocess.Popen(
        ["/bin/sh", "-c", NOTE_AND_BECOME, "sh", str(folder / "server.json"), str(where), *command],
        stdin=lock,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = {"pid": process.pid, "socket": str(where)}
    for needed in ("pymongo", "lance"):  # by nearly every command, next: loaded while the server starts
        importlib.import_module(needed)
    _wait_until_it_answers(process, server, folder)
    return server


def _socket(folder: Path) -> Path:
    """Return the socket's path: in the project's own folder, or in a new private one where that path is too long or has
    a character that MongoDB reads as part of an address (`:`, `,`)."""
    path = folder.resolve() / "mongod.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET or not re.fullmatch(r"[\w./ -]+", str(path)):
        path = Path(tempfile.mkdtemp(prefix="curate-", dir="/tmp")) / "mongod.sock"  # mode 0700
    return path


def _wait_until_it_answers(process: subprocess.Popen[bytes], server: Mapping[str, Any], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            if shutil.disk_usage(folder).free < LEAST_FREE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            raise CurateError(f"MongoDB ended with code {process.returncode}; see {folder / 'mongod.log'}")
        if _answers(server):
            return
        time.sleep(0.05)
    process.terminate()
    raise CurateError(f"MongoDB did not answer within {START_SECONDS} s; see {folder / 'mongod.log'}")


def _trim_log(log: Path) -> None:
    if log.exists() and log.stat().st_size > 20_000_000:
        log.unlink()


@contextlib.contextmanager
def _start_lock(folder: Path) -> Iterator[IO[str]]:
    """Hold the lock for starting and stopping: two commands must not both launch a server."""
    with open(folder / ".start", "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle


def _register(folder: Path) -> None:
    """Count this process as a client, by a shared lock that vanishes with it, even after kill -9."""
    if folder in _clients:
        return
    handle = open(folder / ".clients", "w", encoding="utf-8")  # noqa: SIM115 - held until the process ends
    fcntl.flock(handle, fcntl.LOCK_SH)
    _clients[folder] = handle
    atexit.register(leave, folder)


def leave(folder: Path) -> None:
    """Count this process as a client no longer; the last one stops the server."""
    handle = _clients.pop(folder, None)
    if handle is None or not folder.is_dir():
        return
    with _start_lock(folder):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            handle.close()
        stop(folder)
    skip_cleanup()


def skip_cleanup() -> None:
    """Drop what FiftyOne does as the process ends: it would wait half a minute for a server that is gone."""
    fiftyone = sys.modules.get("fiftyone")
    if fiftyone is not None:
        atexit.unregister(fiftyone.core.odm.database._delete_non_persistent_datasets_if_allowed)


def end_left(folder: Path) -> None:
    """End the server that a killed command left on `folder`, even one that is only starting."""
    if folder.is_dir():
        with _start_lock(folder):
            stop(folder)


def stop(folder: Path) -> None:
    """End the server on `folder` in order: it writes all its data first. The caller holds the lock for starting."""
    server = _noted(folder)
    if server:
        os.kill(server["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{server['pid']}").exists() and not _is_zombie(server["pid"]) and time.monotonic() < deadline:
            time.sleep(0.02)
        private = Path(server["socket"]).parent if "socket" in server else folder.resolve()
        if private != folder.resolve():
            with contextlib.suppress(OSError):
                private.rmdir()
    (folder / "server.json").unlink(missing_ok=True)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def _validate_collections(uri: str) -> None:
    """Run `validate` on each collection: after a crash MongoDB's counts can be wrong (even 0) until then."""
    import pymongo

    with pymongo.MongoClient(uri) as client:
        for database in client.list_database_names():
            if database not in ("admin", "config", "local"):
                for name in client[database].list_collection_names(filter={"type": "collection"}):
                    client[database].command("validate", name)
