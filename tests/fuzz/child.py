"""One long-lived process that reads mutated inputs. A crash or a hang of a reader ends it; the parent starts another.

The parent sends (target, first seed, count, reach); back comes a `Batch`. What is being read just now stands in shared
memory, so that the parent knows it when this process is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from curate.errors import CurateError
from tests.fakes import REPOSITORY
from tests.fuzz.kinds import FAILURES, MEMORY, OUTSIDE, REJECTED, TRACEBACK, WRONG, Fault, Target

ROOM = 4 << 30  # bytes of address space that one input may ask for
GROWTH = 1 << 30  # bytes by which one input may make this process grow
SAVED = 3  # inputs of one failure that are kept
IDLE, PREPARING = -1.0, -2.0  # instead of the time at which an input was begun
QUIET = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/dev/shm/sem.", "/etc/localtime", "/usr/share/zoneinfo")


@dataclass(frozen=True)
class Failure:
    """One kind of failure of one target: the first input that showed it, and where."""

    target: str
    seed: int
    kind: str
    what: str
    where: str

    @property
    def signature(self) -> tuple[str, str, str]:
        return self.target, self.kind, self.where


@dataclass
class Batch:
    """What became of the inputs of one turn."""

    target: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    next_seed: int = 0


# --- what is opened ---------------------------------------------------------------------------------------------------


class Watch:
    """An audit hook that sees every file and folder that Python opens while an input is read."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        self.root = ""
        self.active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if (
            self.active
            and event in ("open", "os.listdir", "os.scandir")
            and isinstance(args[0], str | bytes | os.PathLike)
        ):
            self.active = False
            try:
                self._judge(os.fsdecode(args[0]))
            finally:
                self.active = True

    def _judge(self, name: str) -> None:
        path = os.path.abspath(name)
        if "\0" in path or path.startswith(QUIET):
            return
        try:
            path = os.path.realpath(path)
        except OSError:
            return
        if not (path + "/").startswith(self.root) and not f"{path}/".startswith(self.allowed) and os.path.exists(path):
            self.seen.append(path)

    @contextlib.contextmanager
    def on(self, root: Path) -> Iterator[None]:
        self.root, self.seen = f"{os.path.realpath(root)}/", []
        self.active = True
        try:
            yield
        finally:
            self.active = False


def _libraries() -> tuple[str, ...]:
    """Where Python itself reads from, for imports and the like."""
    places = {sys.prefix, sys.base_prefix, str(REPOSITORY), os.environ.get("NUMBA_CACHE_DIR", sys.prefix)}
    return tuple(sorted({f"{os.path.realpath(place)}/" for place in {*places, *(p for p in sys.path if p)}}))


# --- the loop ---------------------------------------------------------------------------------------------------------


def serve(pipe: Any, now: Any, scratch: str, home: str, failures: str, database: str | None) -> None:
    """Read what the parent sends until it hangs up.

    `now`: target number, seed, when that was begun, and the processor time until then. `home`: where the targets are.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    log = open(Path(scratch) / "stderr.txt", "w", encoding="utf-8")  # noqa: SIM115 - until this process ends
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log, chain=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if database:
        os.environ["FIFTYONE_DATABASE_URI"] = database
    reader = Reader(Path(scratch), Path(failures), now)
    targets: list[Target] = list(importlib.import_module(home).TARGETS.values())
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, seed, count, reach, only_draw = pipe.recv()
            pipe.send(
                reader.draw(targets[number], seed)
                if only_draw
                else reader.batch(number, targets[number], seed, count, reach)
            )


class Reader:
    """Draws inputs and reads them, one after the other, in a folder of its own."""

    def __init__(self, scratch: Path, failures: Path, now: Any) -> None:
        self.scratch, self.failures, self.now = scratch, failures, now
        self.watch = Watch(_libraries())
        self.prepared: set[str] = set()
        self.saved: Counter[tuple[str, str, str]] = Counter()

    def batch(self, number: int, target: Target, seed: int, count: int, reach: float) -> Batch:
        """The seeds from `seed` on: `count` of them, or as many as `reach` seconds allow."""
        self._prepare(number, target)
        found = Batch(target.name)
        begun = time.monotonic()
        for one in range(seed, seed + count):
            self.now[1], self.now[3], self.now[2] = one, time.process_time(), time.monotonic()
            self._read(target, one, found)
            found.next_seed = one + 1
            if time.monotonic() - begun > reach:
                break
        self.now[2] = IDLE
        return found

    def draw(self, target: Target, seed: int) -> Path:
        """Keep the input of this seed, which ended another process, without reading it."""
        self._prepare(int(self.now[0]), target)
        case = target.make(Random(f"{target.name}:{seed}"), self._cleared())
        return self.keep(target, seed, case, "the process that read it was ended")

    def _prepare(self, number: int, target: Target) -> None:
        self.now[0] = number
        if target.name not in self.prepared:
            self.now[2] = PREPARING
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            target.prepare()
            self.prepared.add(target.name)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))

    def _cleared(self) -> Path:
        root = self.scratch / "case" / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        return root

    def _read(self, target: Target, seed: int, found: Batch) -> None:
        root = self._cleared()
        case = target.make(Random(f"{target.name}:{seed}"), root)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with self.watch.on(root.parent if target.name.startswith("archive") else root):
                outcome = target.check(case, root)
        except CurateError as error:
            outcome = REJECTED if "\n" not in str(error) else self._failed(found, target, seed, case, _two_lines(error))
        except BaseException as error:  # a Rust panic is no Exception
            outcome = self._failed(found, target, seed, case, error)
        if outcome not in FAILURES and self.watch.seen:
            fault = Fault(OUTSIDE, self.watch.seen[0].removeprefix(f"{self.scratch}/case/"))
            outcome = self._failed(found, target, seed, case, fault)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        if outcome not in FAILURES and grown > GROWTH:
            outcome = self._failed(found, target, seed, case, MemoryError(f"{grown >> 20} MB more than before"))
        found.counts[outcome] += 1

    def _failed(self, found: Batch, target: Target, seed: int, case: Any, error: BaseException) -> str:
        kind = error.kind if isinstance(error, Fault) else MEMORY if isinstance(error, MemoryError) else TRACEBACK
        what = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()[:300]
        where = (
            _where(error) if not isinstance(error, Fault) else "".join(c for c in str(error) if not c.isdigit())[:60]
        )
        failure = Failure(target.name, seed, kind, what, where)
        if self.saved[failure.signature] < SAVED:
            self.keep(target, seed, case, "".join(traceback.format_exception(error)))
        self.saved[failure.signature] += 1
        if self.saved[failure.signature] <= SAVED:
            found.failures.append(failure)
        return kind

    def keep(self, target: Target, seed: int, case: Any, about: str) -> Path:
        """The input, what happened, and the command that repeats it."""
        folder = self.failures / f"{target.name}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = f"python -m tests.fuzz.run --only {target.name} --seed-from {seed} --count 1"
        text = f"{command}\n\n{about}\n\n{case!r}\n"
        (folder / "what.txt").write_bytes(text[:1_000_000].encode("utf-8", "backslashreplace"))
        with contextlib.suppress(OSError, shutil.Error):  # a pipe or a device cannot be copied: the command can
            root = self.scratch / "case" / "root"
            shutil.copytree(root, folder / "root", symlinks=True, ignore=_no_ordinary, ignore_dangling_symlinks=True)
        return folder


def _no_ordinary(folder: str, names: list[str]) -> set[str]:
    places = ((name, Path(folder, name)) for name in names)
    return {name for name, path in places if not (path.is_symlink() or path.is_dir() or _small(path))}


def _small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 10_000_000


def _two_lines(error: CurateError) -> Fault:
    return Fault(WRONG, f"an error of more than one line: {str(error)[:120]!r} from {_where(error)}")


def _where(error: BaseException) -> str:
    """The innermost line of our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(REPOSITORY)) and "/tests/" not in f.filename]
    last = (ours or list(frames))[-1:]
    return f"{last[0].filename.removeprefix(f'{REPOSITORY}/')}:{last[0].lineno}" if last else type(error).__name__
