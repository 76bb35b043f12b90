"""Kill every writing command at its writes and at random moments, fill its disk, and compare with an undisturbed run.

    python -m tests.kill.run --minutes 30                  all commands, in turn, until the time is up
    python -m tests.kill.run --only index,select --minutes 2 --json

Of each command: a prepared project is copied and the command is run to its end, which gives the state to reach. Before
each of its writes the process stops itself, and what a kill would leave there, files and database, is kept; a write
that changed nothing leaves the same state, which is tried once. Then for each state: it is laid out, `status`, the
command once more, and the outcome compared. Commands that start their own database or talk to Label Studio are really
killed at each write, all others at random moments, and within the last line of a log. In between the disk is full, or
nearly, instead of a kill: one line has to name the file, and then all goes on as before.

Each step runs in a child of a warm process: see `warm.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curate.index import database
from tests.kill.commands import BASES, BATCH, COMMANDS, Command
from tests.kill.warm import Ended, Kill, Warm, empty_studio, import_late, in_studio, run_curate

RANDOM_EVERY = 7  # one of so many kills comes at a random moment
MOMENTS = 6  # random moments at least, of each command
FULL_EVERY = 10  # and one of so many trials is a full disk
FREE = (0, 16 << 10, 256 << 10, 64 << 10, 1 << 20)  # bytes that are left on it
FULL = ("No space left on device", "disk is full")  # the system's words, and SQLite's
BROKEN = ("Traceback (most recent call last)", "Fatal Python error", "Segmentation fault")


@dataclass
class Finding:
    """What was not as it should be after a kill."""

    command: str
    kill: str
    symptom: str
    detail: list[str]


@dataclass
class Tally:
    """The kills of one command; `writes` it makes undisturbed, of which `writes_killed` have been tried."""

    command: str
    writes: int = 0
    writes_killed: int = 0
    kills_at_writes: int = 0
    kills_at_moments: int = 0
    full_disks: int = 0
    labels_lost: int = 0
    failed: int = 0
    findings: list[Finding] = field(default_factory=list)


# --- prepared projects ----------------------------------------------------------------------------------------------


class Bases:
    """Makes the prepared projects when they are first wanted, and lays out copies of them."""

    def __init__(self, warm: Warm) -> None:
        self.warm = warm
        self.made: set[str] = set()

    def lay_out(self, name: str) -> None:
        """A copy of this project at `home`, and its documents in the database."""
        self._make(name)
        self.lay(self._tree(name))

    def lay(self, tree: Path) -> None:
        """A copy of what was kept there."""
        self._copy(tree, self.warm.home)
        shutil.rmtree(self.warm.scratch / "tmp", ignore_errors=True)
        (self.warm.scratch / "tmp").mkdir()
        self.warm.documents("load", _documents(tree))

    def keep(self, tree: Path) -> None:
        """Keep what is at `home` and in the database now."""
        self._copy(self.warm.home, tree)
        self.warm.documents("save", _documents(tree))

    def _make(self, name: str) -> None:
        if name in self.made:
            return
        base = BASES[name]
        if base.after:
            self.lay_out(base.after)
        else:
            shutil.rmtree(self.warm.home, ignore_errors=True)
            self.warm.home.mkdir(parents=True)
            self.warm.documents("drop", self.warm.home)
        for words in base.commands:
            _must(self.warm.curate(*filled(words, self.warm.home), "--project", str(self.warm.home / "projects/plant")))
        if base.edit:
            edit = base.edit
            _must(self.warm.child(lambda: edit(self.warm.home)))
        self.keep(self._tree(name))
        self.made.add(name)

    def _tree(self, name: str) -> Path:
        return self.warm.scratch / "bases" / name

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def _documents(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}.documents")


def _must(ended: Ended) -> None:
    if ended.code:
        raise SystemExit(f"preparing failed with code {ended.code}:\n{ended.output}")


def filled(words: Sequence[str], home: Path) -> list[str]:
    """The words of a command with the places of this run."""
    batches = sorted((home / "projects/plant/work/synth").glob("*/manifest.json"))
    batch = batches[-1].parent.name if batches else "none"
    places = {"{home}": str(home), "{project}": str(home / "projects/plant"), BATCH: batch}
    found = list(words)
    for name, value in places.items():
        found = [word.replace(name, value) for word in found]
    return found


# --- one command ----------------------------------------------------------------------------------------------------


class Trial:
    """Runs one command undisturbed, then kills it as often as there is time."""

    def __init__(self, name: str, command: Command, warm: Warm, bases: Bases) -> None:
        self.name, self.command, self.warm, self.bases = name, command, warm, bases
        self.tally = Tally(name)
        self.words: list[str] = []
        self.wanted: list[dict[str, str]] = []
        self.before: dict[str, str] = {}
        self.varies: set[str] = set()
        self.again = 0
        self.seconds = 0.0
        self.noted: list[tuple[str, str]] = []
        self.states = warm.scratch / "states"  # what is there before each write, where that could be kept
        self.digests: dict[str, int] = {}
        self.same: dict[int, int] = {}  # writes before which all is as before that earlier one
        self.status = 0

    def prepare(self) -> None:
        """The state to reach, the writes of a run that nobody disturbs, and what is there before each of them."""
        self._lay_out()
        self.before, self.status = self._dumped(status=False), self._status().code
        shutil.rmtree(self.states, ignore_errors=True)
        self.states.mkdir()
        stops = not (self.command.embedded or self.command.studio)
        first = self._run(count=True, look=self._keep if stops else None)
        if first.code:
            raise SystemExit(f"{self.name} undisturbed ended with {first.code}:\n{first.output}")
        (self.noted, modules), self.wanted = first.result, [self._dumped()]
        import_late(modules)
        if stops:
            self._lay_out()
            first = self._run()
        self.seconds, self.tally.writes = first.seconds, len(self.noted)

    def _keep(self) -> None:
        """Keep what is there now, unless it is as before an earlier write."""
        number = len(self.same) + 1
        tree = self.states / str(number)
        self.bases.keep(tree)
        digest = _digest(tree)
        self.same[number] = self.digests.setdefault(digest, number)
        if self.same[number] != number:
            shutil.rmtree(tree)
            _documents(tree).unlink()

    def _look_closer(self) -> None:
        """Where something differs: the state after two runs, which is as good, and what differs between equal runs."""
        if len(self.wanted) > 1:
            return
        self._lay_out()
        _must(self._run())
        other = self._dumped()
        if not isinstance(other, dict):
            raise SystemExit(f"after an undisturbed run of {self.name} the state cannot be read:\n{other}")
        self.varies = {place for place, text in other.items() if self.wanted[0].get(place) != text}
        self.again = self._run().code
        self.wanted.append(self._dumped())

    def kills(self, seed: int) -> Iterator[Kill]:
        """Every place in the code once, then all writes, with random moments in between; at least six of those."""
        chance = random.Random(f"{seed} {self.name}")
        points, asked, moments = self._points(), 0, 0
        point = next(points, None)
        while point or moments < MOMENTS:
            asked += 1
            if asked % FULL_EVERY == 0 and self.warm.mounted and not self.command.embedded:
                yield Kill(free=FREE[asked // FULL_EVERY % len(FREE)])
            elif asked % RANDOM_EVERY == 0 or not point:
                moments += 1
                yield Kill(seconds=chance.uniform(0.02, self.seconds))
            else:
                yield point
                point = next(points, None)

    def _points(self) -> Iterator[Kill]:
        first: dict[tuple[str, str], int] = {}
        last: dict[tuple[str, str], int] = {}
        for number, noted in enumerate(self.noted, start=1):
            first.setdefault(noted, number)
            last[noted] = number
        logs = [n for n, (what, _) in enumerate(self.noted, 1) if what.startswith("fsync") and what.endswith(".jsonl")]
        once = _spread([*first.values(), *(n for n in last.values() if n not in first.values())])
        done = set()
        for number in [*once, *_spread([n for n in range(1, len(self.noted) + 1) if n not in once])]:
            if (state := self.same.get(number, number)) not in done:
                done.add(state)
                yield self._at(state)
            if number in logs and number in once:
                yield self._at(number, torn=True)

    def _at(self, number: int, torn: bool = False) -> Kill:
        what, site = self.noted[number - 1]
        left = None if torn or number not in self.same else self.states / str(number)
        return Kill(write=number, torn=torn, where=f"{what} ({site})", left=left)

    def attempt(self, kill: Kill) -> None:
        """Kill, look, run again, compare."""
        tally = self.tally
        if not kill.left:
            self._lay_out()
        symptoms: list[tuple[str, list[str]]] = []
        if kill.free is not None:
            with self.warm.filled(kill.free):
                killed = self._run()
            tally.full_disks += 1
            line = (_tail(killed.output) or [""])[-1]
            told = killed.code == 1 and line.startswith("error: ") and any(words in line for words in FULL)
            if killed.code and (not told or _broken(killed.output)):
                symptoms.append(
                    (f"ended with {killed.code}, and not by one line on the full disk", _tail(killed.output))
                )
        else:
            if kill.left:
                self.bases.lay(kill.left)
            killed = Ended(0, "") if kill.left else self._run(kill=kill)
            tally.kills_at_writes += bool(kill.write)
            tally.kills_at_moments += not kill.write
        if kill.free is None and killed.code not in (0, -signal.SIGKILL):
            symptoms.append((f"ended with {killed.code} instead of being killed", _tail(killed.output)))
        looked = self._status() if tally.kills_at_writes % 2 else Ended(0, "")  # the next command may be another one
        half = "a restore into it was interrupted" in looked.output  # on purpose: no command works on such a folder
        if not (half or looked.code in (0, self.status)) or any(mark in looked.output for mark in BROKEN):
            symptoms.append((f"status after the kill ends with {looked.code}", _tail(looked.output)))
        again, have = self._run(), self._dumped()
        left = self._left_running()
        if again.code or not isinstance(have, dict) or self._differences(have):
            self._look_closer()
        if again.code and (again.code != self.again or _broken(again.output)):
            symptoms.append((f"the same command again ends with {again.code}", _tail(again.output)))
        if not isinstance(have, dict):
            symptoms.append(("status after the second run, or reading the state, fails", _tail(str(have))))
        elif differ := self._differences(have):
            symptoms.append(("the state differs", [self._shown(place, have) for place in differ[:12]]))
            tally.labels_lost += self._lost(have)
        symptoms += [(f"left running: {what}", []) for what in left]
        tally.failed += bool(symptoms)
        tally.findings += [Finding(self.name, str(kill), symptom, detail) for symptom, detail in symptoms]

    def _differences(self, have: dict[str, str]) -> list[str]:
        from tests.kill.state import differences

        return [place for place in differences(have, *self.wanted) if place not in self.varies]

    def _lost(self, have: dict[str, str]) -> int:
        """Entries of the log that were there before, or that an undisturbed run makes, and are not there now."""
        lost = 0
        for log in (self.before, self.wanted[0]):
            entries = Counter(text for place, text in log.items() if "/labels: " in place and place not in self.varies)
            there = Counter(text for place, text in have.items() if "/labels: " in place)
            lost = max(lost, sum((entries - there).values()))
        return lost

    def _shown(self, place: str, have: dict[str, str]) -> str:
        return f"{place}: {have.get(place, 'absent')[:160]} instead of {self.wanted[0].get(place, 'absent')[:160]}"

    def _lay_out(self) -> None:
        if self.command.studio:
            self.warm.label_studio()
        if self.command.studio == "empty":
            _must(self.warm.child(empty_studio))
        self.bases.lay_out(self.command.base)
        self.words = filled(self.command.words, self.warm.home)
        if self.command.words[0] not in ("init", "demo", "restore"):
            self.words += ["--project", str(self.warm.home / "projects/plant")]

    def _run(self, **options: Any) -> Ended:
        return self.warm.curate(*self.words, embedded=self.command.embedded, **options)

    def _status(self) -> Ended:
        folder = self.warm.home / self.command.project
        return self.warm.curate("status", "--json", "--project", str(folder), embedded=self.command.embedded)

    def _dumped(self, status: bool = True) -> Any:
        """What is there now, after `curate status` has worked; else what the child said."""
        home, project = self.warm.home, self.warm.home / self.command.project
        embedded, studio = self.command.embedded, self.command.studio

        def dump() -> Any:
            from tests.kill import state

            if embedded and not (project / "work" / "db").is_dir():
                return state.files(home)
            if (
                status
                and self.command.indexed
                and (code := run_curate(["status", "--json", "--project", str(project)]))
            ):
                return code
            database.connect(project / "work")
            return state.dump(home) | (in_studio() if studio else {})

        ended = self.warm.child(dump, embedded=embedded)
        return ended.output if ended.result is None else ended.result

    def _left_running(self) -> list[str]:
        """Processes that work in this run's folder although no command does; they are ended."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{self.warm.home}{os.sep}" in command and int(folder.name) != os.getpid():
                    found.append(command[:100])
                    os.kill(int(folder.name), signal.SIGKILL)
        return found


def _digest(tree: Path) -> str:
    """A checksum over a kept state: names, contents, documents."""
    found = hashlib.blake2b(_documents(tree).read_bytes())
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            found.update(os.fsencode(file.relative_to(tree)) + b"\0")
            found.update(os.fsencode(os.readlink(file)) if file.is_symlink() else file.read_bytes())
        found.update(os.fsencode("/".join(folders)))
    return found.hexdigest()


def _spread(numbers: Sequence[int]) -> list[int]:
    """The same numbers in an order of which every beginning is spread over all of them."""
    return [n for _, n in sorted(((place * 0.6180339887498949) % 1, n) for place, n in enumerate(sorted(numbers)))]


def _broken(output: str) -> bool:
    return any(mark in output for mark in BROKEN)


def _tail(output: str) -> list[str]:
    return [line for line in output.strip().splitlines() if line.strip()][-6:]


# --- the run --------------------------------------------------------------------------------------------------------


def run(
    names: Sequence[str], minutes: float, kills: int | None, seed: int, say: Callable[[str], None], skip: int = 0
) -> list[Tally]:
    """Kill each command for its share of the time, or `kills` times, without the first `skip` trials."""
    room = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    scratch = Path(tempfile.mkdtemp(prefix="curate-kill-", dir=room))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warm = Warm(scratch)
    try:
        bases, end, tallies = Bases(warm), time.monotonic() + 60 * minutes, []
        for place, name in enumerate(names):
            share = (end - time.monotonic()) / (len(names) - place)
            if share < 0 and not kills:
                say(f"no time left for {', '.join(names[place:])}")
                break
            tallies.append(_killed(Trial(name, COMMANDS[name], warm, bases), share, kills, seed, say, skip))
        return tallies
    finally:
        warm.close()


def _killed(
    trial: Trial, seconds: float, most: int | None, seed: int, say: Callable[[str], None], skip: int = 0
) -> Tally:
    end = time.monotonic() + seconds
    trial.prepare()
    say(f"{trial.name}: prepared, {trial.tally.writes} writes, {trial.seconds:.1f} s a run")
    tally, states = trial.tally, set()
    for number, kill in enumerate(trial.kills(seed)):
        if number == most or (most is None and time.monotonic() >= end):
            break
        if kill.write and not kill.torn:
            states.add(kill.write)
        if number < skip:
            continue
        trial.attempt(kill)
        tally.writes_killed = sum(trial.same.get(n, n) in states for n in range(1, tally.writes + 1))
        for finding in tally.findings[-3:] if tally.findings and tally.findings[-1].kill == str(kill) else ():
            say(f"  {finding.kill}\n    {finding.symptom}\n      " + "\n      ".join(finding.detail))
    say(_line(tally))
    return tally


def _line(tally: Tally) -> str:
    return (
        f"{tally.command}: killed at {tally.writes_killed} of {tally.writes} writes ({tally.kills_at_writes} trials), "
        f"at {tally.kills_at_moments} random moments, {tally.full_disks} full disks; "
        f"{tally.failed} of them left something "
        f"wrong, {tally.labels_lost} labels lost"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kill.run", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="for all commands together")
    parser.add_argument("--only", help=f"commas between; of: {', '.join(COMMANDS)}")
    parser.add_argument("--kills", type=int, help="so many of each command, however long that takes")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--skip", type=int, default=0, help="the first trials, which an earlier run has done")
    parser.add_argument("--json", action="store_true", help="print one object; all else goes to stderr")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(COMMANDS)
    if strange := [name for name in names if name not in COMMANDS]:
        raise SystemExit(f"unknown: {', '.join(strange)}; allowed: {', '.join(COMMANDS)}")

    def say(text: str) -> None:
        print(text, file=sys.stderr if given.json else sys.stdout, flush=True)

    tallies = run(names, given.minutes, given.kills, given.seed, say, given.skip)
    if given.json:
        print(json.dumps({"commands": [asdict(one) for one in tallies]}))
    total = sum(one.kills_at_writes + one.kills_at_moments for one in tallies)
    full, wrong = sum(one.full_disks for one in tallies), sum(one.failed for one in tallies)
    say(f"{total} kills and {full} full disks: {wrong} left something wrong")
    raise SystemExit(any(one.findings for one in tallies))


if __name__ == "__main__":
    main()
