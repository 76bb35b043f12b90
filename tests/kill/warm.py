"""A process that has imported everything, but has neither threads nor connections, and the children that it forks.

Starting Python and importing FiftyOne and torch for each step of a trial would take longer than all the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate import mongod
from curate.index import database
from tests import forked

TIMEOUT = 600
PR_SET_PDEATHSIG = 1
DISK = "500m"  # size of the disk that the projects lie on, where this process may mount one
LATE = {"alembic", "albumentations", "diffusers", "matplotlib", "onnx", "onnxruntime", "optuna", "scipy"}
LATE |= {"segmentation_models_pytorch", "sklearn", "sqlalchemy", "timm", "torch", "torchvision", "transformers"}


@dataclass
class Ended:
    """How a child ended: its exit code (negative: the signal), what it printed, and what its function gave."""

    code: int
    output: str
    result: Any = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Kill:
    """When: at a write (`torn`: with half of a log's new bytes), or so many seconds after the start.

    Or not at all: on a disk with so many bytes `free`.
    """

    write: int | None = None
    seconds: float | None = None
    torn: bool = False
    where: str = ""
    free: int | None = None
    left: Path | None = None  # what is there after the kill, where that was kept: nothing is killed then

    def __str__(self) -> str:
        if self.free is not None:
            return f"a disk with {self.free:,} bytes free"
        if self.write is None:
            return f"after {self.seconds:.3f} s"
        return f"{'torn ' if self.torn else ''}write {self.write}: {self.where}"


class Warm:
    """Forks children of this process, in which everything is imported; `home` is where they work."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.disk = scratch, scratch / "disk"
        self.home = self.disk / "run"
        self.home.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk)]
        self.mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
        self.home.mkdir(exist_ok=True)
        self.server, self.uri = _mongod(scratch / "db")
        os.environ[database.URI] = self.uri
        keeper = [sys.executable, "-m", "tests.kill.documents", self.uri]
        self.keeper = subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.studio: Path | None = None
        self.children = 0
        _import_all()

    def label_studio(self) -> None:
        """Start one for all commands that want it."""
        if not self.studio:
            self.studio = self.scratch / "studio"
            self.studio.mkdir()
            ended = self.child(lambda: _start_studio(self.studio))
            if not isinstance(ended.result, dict):
                raise SystemExit(f"Label Studio does not start:\n{ended.output}")
            os.environ |= ended.result

    def documents(self, what: str, file: Path) -> None:
        """Save the database to a file, load it or drop all, by a process of its own: this one has no connections."""
        assert self.keeper.stdin
        assert self.keeper.stdout
        self.keeper.stdin.write(f"{what} {file}\n")
        self.keeper.stdin.flush()
        if self.keeper.stdout.readline() != "done\n":
            raise SystemExit(f"the documents could not be handled: {what} {file}")

    def close(self) -> None:
        self.keeper.terminate()
        self.keeper.wait()
        if self.studio:
            from labeling import server

            server.stop(self.studio / "server")
        self.server.terminate()
        self.server.wait()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    @contextlib.contextmanager
    def filled(self, free: int) -> Iterator[None]:
        """Leave so many bytes free on the disk of the projects."""
        filler = self.disk / "filler"
        try:
            with filler.open("wb", buffering=0) as handle:
                with contextlib.suppress(OSError):
                    while handle.write(b"x" * (1 << 12)):
                        pass
                handle.truncate(max(0, handle.tell() - free))
            yield
        finally:
            filler.unlink()

    def child(
        self,
        function: Callable[[], Any],
        kill: Kill | None = None,
        count: bool = False,
        embedded: bool = False,
        look: Callable[[], None] | None = None,
    ) -> Ended:
        """Run a function in a child; `count` its writes, which are its result then; `look` before each of them."""
        self.children += 1  # one may run while another one is looked at
        output, result = (self.scratch / f"{name}{self.children}" for name in ("output", "result"))
        begun = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lance warns of any fork; nobody has used it here
            pid = os.fork()
        if pid == 0:
            self._be_child(function, kill, count, embedded, look is not None, output, result)
        code = _waited(pid, begun, kill.seconds if kill else None, look)
        seconds = time.monotonic() - begun
        found = pickle.loads(result.read_bytes()) if result.exists() else None
        said = output.read_text(errors="replace") if output.exists() else ""
        for file in (output, result):
            file.unlink(missing_ok=True)
        return Ended(code, said, found, seconds)

    def _be_child(
        self,
        function: Callable[[], Any],
        kill: Kill | None,
        count: bool,
        embedded: bool,
        stops: bool,
        output: Path,
        result: Path,
    ) -> None:
        code = 70
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a stopped child would outlive this process
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.chdir(self.home)
            os.environ["TMPDIR"] = str(self.scratch / "tmp")
            tempfile.tempdir = None
            if embedded:
                os.environ.pop(database.URI, None)
                forked.follow_database()
            writes = self._watched(kill, stops) if count or (kill and kill.write) else None
            found = function()
            code = found if isinstance(found, int) else 0
            atexit._run_exitfuncs()
            if writes or not isinstance(found, int):
                result.write_bytes(pickle.dumps((writes.noted, list(sys.modules)) if writes else found))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _watched(self, kill: Kill | None, stops: bool) -> Any:
        from tests.kill.writes import Writes

        writes = Writes(self.home, kill.write if kill else None, kill.torn if kill else False, stops)
        writes.start()
        return writes

    def curate(self, *words: str, **options: Any) -> Ended:
        return self.child(lambda: run_curate(words), **options)


def run_curate(words: Sequence[str]) -> int:
    """The exit code of `curate` with these words; a bug's traceback is printed and is 1, as in a process of its own."""
    from curate import cli

    sys.argv = ["curate", *words]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _waited(pid: int, begun: float, seconds: float | None, look: Callable[[], None] | None) -> int:
    """The child's exit code; killed after so many seconds, or where it hangs; `look` wherever it stops itself."""
    end = begun + (TIMEOUT if seconds is None else seconds)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if ended and os.WIFSTOPPED(status):
            looked = time.monotonic()
            if look:
                look()
            end += time.monotonic() - looked
            os.kill(pid, signal.SIGCONT)
        elif ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.002)


def _mongod(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(mongod.binary()), "--dbpath", str(folder), "--bind_ip", "127.0.0.1", "--port", str(port)]
    command += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return server, f"mongodb://127.0.0.1:{port}"
        time.sleep(0.05)
    raise SystemExit(f"mongod ended with code {server.returncode}")


def _start_studio(folder: Path) -> dict[str, str]:
    from labeling import client, images, server

    served = server.launch(folder / "server", folder / "files", server.any_port())
    token = server.read_credentials(served.folder).token
    return {client.URL: served.url, client.KEY: token, images.ROOT: str(served.files)}


def _studio() -> Any:
    from labeling import client

    return client.open_studio(os.environ[client.URL], os.environ[client.KEY])


def empty_studio() -> None:
    from tests.labeling.studio import projects

    for number in projects(_studio()):
        _studio().ask("DELETE", f"/api/projects/{number}/")


def in_studio() -> dict[str, str]:
    """How often the server holds each task."""
    from tests.labeling.studio import projects

    studio, found = _studio(), Counter[str]()
    for number in projects(studio):
        listed = studio.get("/api/tasks", project=number, page_size=1000, fields="task_only", include="id,data")
        found.update(f"task {task['data'].get('batch')} {task['data'].get('key')}" for task in listed["tasks"])
    return {place: str(count) for place, count in found.items()}


def _import_all() -> None:
    """Everything that a command may import."""
    import lance  # noqa: F401 - warm
    import torch
    import typer

    from curate import cli

    torch.set_num_threads(1)
    forked.import_all("curate", "train", "synth", "labeling")
    cli.app = typer.main.get_command(cli.app)  # type: ignore[assignment] - built once, and not in each child


def import_late(modules: Sequence[str]) -> None:
    """Import what a command imported only when it ran: its repetitions need not do so again."""
    for name in modules:
        if name not in sys.modules and name.split(".")[0] in LATE:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
