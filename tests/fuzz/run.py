"""`make fuzz`: read mutated inputs for some minutes, say what became of them, and keep those that failed.

    python -m tests.fuzz.run --minutes 10
    python -m tests.fuzz.run --only coco --only yolo --inputs 5000 --seed-from 100000 --json
    python -m tests.fuzz.run --only coco --seed-from 4711 --count 1        one input again

Every input follows from its target and its seed. A hang is ten seconds of the processor, or of waiting for something
that does not come; on a busy machine a process may also stand still for so long because it is not its turn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.fakes import REPOSITORY
from tests.fuzz.child import IDLE, PREPARING, Batch, Failure, serve
from tests.fuzz.kinds import CRASH, FAILURES, HANG, OK, REJECTED, Target

SECONDS = 10.0  # that one input may take
PREPARATION = 600.0  # that the slow imports of a target may take
TURN = 2.0  # seconds that a target has before the next one comes
CHECKED = 0.1  # seconds between two looks at what the children do
OUT = REPOSITORY / "out" / "fuzz"


@dataclass
class Options:
    """What a run shall do. `seconds` or `inputs` end it, whichever comes first."""

    targets: list[str]
    seconds: float = float("inf")
    inputs: float = float("inf")
    seed: int = 0
    count: int = 50
    processes: int = 1
    out: Path = OUT
    every: float = 30.0  # seconds between two tallies
    quiet: bool = False
    home: str = "tests.fuzz.targets"  # the module that holds the TARGETS
    debug: bool = True  # kernels that check their bounds, compiled apart from those of everyday use


@dataclass
class Tally:
    """What became of all inputs, by target."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[tuple[str, str, str], Failure] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, batch: Batch) -> list[Failure]:
        """Count a batch; the failures that are seen for the first time come back."""
        self.counts.setdefault(batch.target, Counter()).update(batch.counts)
        fresh = [one for one in batch.failures if one.signature not in self.failures]
        for one in fresh:
            self.failures.setdefault(one.signature, one)
        return fresh

    @property
    def inputs(self) -> int:
        return sum(counts.total() for counts in self.counts.values())

    @property
    def failed(self) -> int:
        return sum(counts[kind] for counts in self.counts.values() for kind in FAILURES)

    def to_json(self) -> dict[str, Any]:
        rows = {name: {"inputs": counts.total(), **counts} for name, counts in sorted(self.counts.items())}
        failures = [asdict(one) for one in self.failures.values()]
        return {"inputs": self.inputs, "failed": self.failed, "seconds": round(self.seconds, 1), "targets": rows} | {
            "failures": failures
        }

    def table(self) -> str:
        kinds = [kind for kind in FAILURES if any(counts[kind] for counts in self.counts.values())]
        heads = ["target", "inputs", OK, REJECTED, *kinds]
        rows = [
            [n, *map(str, (c.total(), c[OK], c[REJECTED], *(c[k] for k in kinds)))]
            for n, c in sorted(self.counts.items())
        ]
        total: Counter[str] = sum(self.counts.values(), Counter())
        rows.append(["all", *map(str, (total.total(), total[OK], total[REJECTED], *(total[k] for k in kinds)))])
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in [heads, *rows]
        ]
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return "\n".join([*lines, f"{self.seconds:.0f} s, {rate:.0f} inputs/s, {self.failed} failures"])


class Child:
    """A reading process, and what it is at work on."""

    def __init__(self, scratch: Path, home: str, out: Path, database: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.now = context.RawArray("d", [-1, -1, IDLE, 0])
        self.pipe, theirs = context.Pipe()
        self.scratch = Path(tempfile.mkdtemp(dir=scratch))
        given = (theirs, self.now, str(self.scratch), home, str(out), database)
        self.process = context.Process(target=serve, args=given, daemon=True)
        self.process.start()
        theirs.close()
        self.task: tuple[int, int, int] | None = None
        self.sent = 0.0

    def send(self, number: int, seed: int, count: int, reach: float = TURN, only_draw: bool = False) -> None:
        self.task, self.sent = (number, seed, count), time.monotonic()
        self.now[0], self.now[1], self.now[2] = number, seed, IDLE
        self.pipe.send((number, seed, count, reach, only_draw))

    @property
    def hangs(self) -> bool:
        begun = self.now[2]
        if begun in (PREPARING, IDLE):
            return time.monotonic() - self.sent > PREPARATION
        waited = time.monotonic() - begun
        if waited <= SECONDS:
            return False
        used, waits = _worked(self.process.pid)
        return used - self.now[3] > SECONDS or (waits and used - self.now[3] < SECONDS / 10) or waited > PREPARATION

    def stack(self) -> str:
        """Where it is: its fault handler tells when it is asked by this signal."""
        if self.process.pid:
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(0.5)
        return self.last_words()

    def end(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def last_words(self) -> str:
        """The end of what it wrote to its standard error: the stack, if it was killed by a signal."""
        try:
            return (self.scratch / "stderr.txt").read_text(errors="replace")[-3000:]
        except OSError:
            return ""


def _worked(pid: int | None) -> tuple[float, bool]:
    """The processor time that a process has used, and whether it sleeps."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no Linux: only the clock tells
        return float("inf"), False
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0] == "S"


class Run:
    """The loop over targets and children."""

    def __init__(self, options: Options, targets: dict[str, Target], scratch: Path, database: str | None) -> None:
        self.options, self.scratch, self.database = options, scratch, database
        self.numbers = {name: number for number, name in enumerate(targets)}
        self.names = list(targets)
        self.targets = targets
        self.tally = Tally()
        self.next = dict.fromkeys(options.targets, options.seed)
        self.spent: Counter[str] = Counter()
        self.begun = time.monotonic()
        self.children: list[Child] = []

    def __call__(self) -> Tally:
        before = [(kind, signal.getsignal(kind)) for kind in (signal.SIGINT, signal.SIGTERM)]
        try:
            return self._run()
        finally:
            for kind, handler in before:
                signal.signal(kind, handler)

    def _run(self) -> Tally:
        self.begun = shown = time.monotonic()
        try:
            self.children = [self._child() for _ in range(self.options.processes)]
            while self._goes_on() or any(child.task for child in self.children):
                self._give_work()
                self._look()
                self.tally.seconds = time.monotonic() - self.begun
                if time.monotonic() - shown > self.options.every and not self.options.quiet:
                    print(self.tally.table(), "\n", flush=True)
                    shown = time.monotonic()
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
        finally:
            for kind in (signal.SIGINT, signal.SIGTERM):  # one is enough; a second must not cut the tidying short
                signal.signal(kind, signal.SIG_IGN)
            for child in self.children:
                child.end()
        self.tally.seconds = time.monotonic() - self.begun
        return self.tally

    def _child(self) -> Child:
        return Child(self.scratch, self.options.home, self.options.out, self.database)

    def _goes_on(self) -> bool:
        late = time.monotonic() - self.begun > self.options.seconds
        return not late and bool(self._open())

    def _open(self) -> list[str]:
        """The targets that still want inputs."""
        return [
            name
            for name, seed in self.next.items()
            if seed - self.options.seed < self.options.inputs * self._share(name)
        ]

    def _share(self, name: str) -> float:
        return self.targets[name].share if self.options.inputs > 1 else 1.0

    def _give_work(self) -> None:
        for child in self.children:
            if child.task is None and self._goes_on():
                name = min(self._open(), key=lambda one: self.spent[one] / self._share(one))
                left = self.options.inputs * self._share(name) - (self.next[name] - self.options.seed)
                count = max(1, int(min(self.options.count, left)))
                child.send(self.numbers[name], self.next[name], count)
                self.next[name] += count
                self.spent[name] += TURN / 2  # until it is known, so that two children take two targets

    def _look(self) -> None:
        wait([thing for child in self.children for thing in (child.pipe, child.process.sentinel)], CHECKED)
        for place, child in enumerate(self.children):
            if child.task is None:
                continue
            try:
                if child.pipe.poll():
                    self._done(child, child.pipe.recv())
                    continue
            except (EOFError, ConnectionResetError):
                pass
            if not child.process.is_alive():
                child.process.join()
                self._lost(place, child, CRASH)
            elif child.hangs:
                self._lost(place, child, HANG)

    def _done(self, child: Child, batch: Batch) -> None:
        assert child.task is not None
        number, seed, count = child.task
        name = self.names[number]
        child.task = None
        self.spent[name] += time.monotonic() - child.sent - TURN / 2
        if batch.next_seed < seed + count and self.next.get(name) == seed + count:
            self.next[name] = batch.next_seed
        self._report(self.tally.add(batch))

    def _lost(self, place: int, child: Child, kind: str) -> None:
        """The input at hand ended the child, or has to be ended with it."""
        assert child.task is not None
        number, first, count = child.task
        seed, name = int(child.now[1]), self.names[number]
        words = child.last_words()
        if kind == HANG:
            words = child.stack()
        code = child.process.exitcode
        preparing = child.now[2] in (PREPARING, IDLE)
        child.end()
        self.children[place] = self._child()
        if preparing or (code == 1 and "Traceback" in words):  # ours to mend, not the reader's
            raise SystemExit(f"target '{name}' could not be prepared or drawn (seed {seed}, {kind}):\n{words}")
        batch = Batch(name, Counter({OK: seed - first}) if seed > first else Counter())
        self.next[name] = min(self.next[name], seed + 1) if self.next[name] == first + count else self.next[name]
        batch.counts[kind] += 1
        what = f"ended by signal {-code}" if code is not None and code < 0 else f"exit {code}"
        what = f"over {SECONDS:g} s" if kind == HANG else what
        batch.failures.append(Failure(name, seed, kind, what, _frame(words)))
        self._keep(number, seed, words)
        self._report(self.tally.add(batch))

    def _keep(self, number: int, seed: int, words: str) -> None:
        child = self._child()
        child.send(number, seed, 1, only_draw=True)
        with contextlib.suppress(EOFError):
            if child.pipe.poll(PREPARATION):
                (child.pipe.recv() / "stderr.txt").write_text(words)
        child.end()

    def _report(self, fresh: Sequence[Failure]) -> None:
        for one in fresh if not self.options.quiet else ():
            shown = one.what.encode("ascii", "backslashreplace").decode().replace("\n", " ")[:160]
            print(f"FAILED {one.target} seed {one.seed}: {one.kind}: {shown} ({one.where})", flush=True)


def _frame(words: str) -> str:
    """The innermost line of ours in a stack of faulthandler."""
    lines = [
        line.strip()
        for line in words.splitlines()
        if 'File "' in line and str(REPOSITORY) in line and "/tests/" not in line
    ]
    return lines[0].replace(str(REPOSITORY), "") if lines else "signal"


def fuzz(options: Options) -> Tally:
    """Run, with a folder in memory for the inputs, and a database where a target needs one."""
    targets: dict[str, Target] = importlib.import_module(options.home).TARGETS
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    scratch = Path(tempfile.mkdtemp(prefix="curate-fuzz-", dir=place))
    if options.debug:
        os.environ |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(options.out.parent / "fuzz-kernels")}
    os.environ |= {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "FIFTYONE_DO_NOT_TRACK": "true"}
    needs = any(targets[name].database for name in options.targets)
    database = None
    try:
        if needs:
            from curate.index import database as databases

            database = databases.start(scratch / "db")
        return Run(options, targets, scratch, database)()
    finally:
        if needs:
            databases.leave(scratch / "db")
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=None, help="how long (default: 5, or what --inputs take)")
    parser.add_argument("--inputs", type=int, default=None, help="inputs of each target, by its share")
    parser.add_argument("--count", type=int, default=None, help="so many inputs of each target, whatever its share")
    parser.add_argument(
        "--seed-from", type=int, default=0, help="the first seed; later runs begin where this one ended"
    )
    parser.add_argument("--only", action="append", choices=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help="where failing inputs are kept")
    parser.add_argument("--json", action="store_true", help="the tally as JSON, and nothing else")
    given = parser.parse_args()
    inputs = given.count or given.inputs or float("inf")
    minutes = given.minutes if given.minutes is not None else 5.0 if inputs == float("inf") else float("inf")
    options = Options(given.only or list(TARGETS), 60 * minutes, inputs, given.seed_from, processes=given.processes)
    options.out, options.quiet = given.out, given.json
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    tally = fuzz(options)
    print(json.dumps(tally.to_json(), indent=2) if given.json else tally.table())
    for one in () if given.json else tally.failures.values():
        print(f"  {one.target}-{one.seed}: {one.kind} at {one.where}")
    if tally.failed:
        print(f"failing inputs, each with the command that repeats it: {options.out}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
