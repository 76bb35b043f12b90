"""Commands in processes of their own within milliseconds: a warm process that has imported everything forks them.

Starting Python and importing FiftyOne takes seconds of a core, and the tests of kills, faults and two commands at once
start hundreds of processes. A forked one has its own memory, signals, environment and exit code, like any other.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.index import database
from tests.fakes import REPOSITORY

CURATE = "from curate.cli import main; main()"
EVERY = 0.005  # seconds between two looks at a child


class Forked:
    """A process that the warm one has forked; as much of `subprocess.Popen` as tests use."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.pid = pid
        self.args = [str(folder)]
        self.returncode: int | None = None
        self._folder = folder

    def poll(self) -> int | None:
        file = self._folder / "code"
        if self.returncode is None and file.exists():
            self.returncode = int(file.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or 600)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 600, *self._outputs())
            time.sleep(EVERY)
        return code

    def first_line(self, timeout: float = 120) -> str:
        """The first line of its output, as soon as it is whole."""
        end = time.monotonic() + timeout
        while "\n" not in (output := self._outputs()[0]):
            if self.poll() is not None or time.monotonic() > end:
                raise AssertionError(self._outputs())
            time.sleep(EVERY)
        return output.partition("\n")[0]

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self._outputs()

    def completed(self, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        output, errors = self.communicate(timeout)
        return subprocess.CompletedProcess(self.args, self.wait(), output, errors)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _outputs(self) -> tuple[str, str]:
        output, errors = ((self._folder / name).read_text(errors="replace") for name in ("out", "err"))
        return output, errors


class _Warm:
    """The warm process of this test process."""

    def __init__(self, uri: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="curate-forked-"))
        self.numbers = itertools.count()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            cwd=REPOSITORY,
            env=os.environ | {database.URI: uri},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._line() == "ready"

    def start(self, code: str, words: Sequence[str], env: Mapping[str, str], cwd: Path) -> Forked:
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        request = {"code": code, "words": [*words], "env": dict(env), "cwd": str(cwd), "folder": str(folder)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Forked(folder, int(self._line()))

    def close(self) -> None:
        import shutil

        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


_warm: list[_Warm] = []
uris: list[str] = []  # of the session's MongoDB, with which the warm process imports FiftyOne; a child may use another


def start(code: str, *words: Any, env: Mapping[str, str] | None = None, cwd: Path = REPOSITORY) -> Forked:
    """Run Python code in a forked process. The test needs the fixture `server`.

    Args:
        code: The code.
        words: What follows in `sys.argv`.
        env: The whole environment.
        cwd: The folder to work in.
    """
    if not _warm:
        _warm.append(_Warm(uris[-1]))
        atexit.register(_warm[0].close)
    return _warm[0].start(code, [str(word) for word in words], os.environ if env is None else env, cwd)


# --- in the warm process ----------------------------------------------------------------------------------------------


def import_all(*packages: str) -> None:
    """Import these packages whole, and FiftyOne, whose connection is closed again: no thread and no socket is left."""
    database.silence_fiftyone()
    import fiftyone as fo
    import numpy as np

    from curate.data import Defect
    from curate.masks import shapes

    for name in packages:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 1
    defect = shapes.defect_from_mask("crack", mask)
    assert isinstance(defect, Defect)
    shapes.crop_of(defect)  # numba loads its kernels when they are first called
    fo.core.odm.database._disconnect()
    atexit.unregister(fo.core.odm.database._delete_non_persistent_datasets_if_allowed)


def follow_database() -> None:
    """In a child: FiftyOne, imported already, connects to the server that the environment or the command names."""
    import fiftyone as fo

    theirs = database.start

    def start(folder: Path) -> str:
        uri = theirs(folder)
        fo.config.database_uri = uri
        return uri

    database.start = start
    fo.config.database_uri = os.environ.get(database.URI)


def _serve() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_all("curate", "labeling")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: dict[int, Path] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        asked, *_ = select.select([0], [], [], EVERY)
        if asked:
            line = _read_line()
            if not line:
                break
            request = json.loads(line)
            pid = _fork(request)
            children[pid] = Path(request["folder"])
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                folder = children.pop(pid)
                (folder / "code.part").write_text(str(os.waitstatus_to_exitcode(status)))
                (folder / "code.part").rename(folder / "code")


def _read_line() -> bytes:
    """Unbuffered, so that `select` sees what is left."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _fork(request: dict[str, Any]) -> int:
    folder = Path(request["folder"])
    for name in ("out", "err"):
        (folder / name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lance warns of any fork; nobody has used it here
        pid = os.fork()
    if pid == 0:
        code = 70
        try:
            _become(request, folder)
            code = _run(request["code"])
        finally:
            os._exit(code)
    return pid


def _become(request: dict[str, Any], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(folder / "out", os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(os.open(folder / "err", os.O_WRONLY | os.O_APPEND), 2)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["-c", *request["words"]]
    follow_database()


def _run(code: str) -> int:
    """The exit code of the code, which ends as Python ends."""
    ended = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        ended = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except KeyboardInterrupt:
        traceback.print_exc()
        ended = 130
    except BaseException:
        traceback.print_exc()
        ended = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return ended


if __name__ == "__main__":
    _serve()
