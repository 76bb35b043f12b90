"""Commands that run for long, each in a process of its own: they outlive the browser and the App, and can be cancelled.

A job is the command line itself, started in the background. Its folder `work/jobs/<time>-<command>/` holds job.json
(words, pid), out and err (what the command prints; progress as lines), code (its exit code) and a lock that its process
holds while it lives: what is shown of a job is read from there, so nobody need watch it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from curate import files
from curate.errors import CurateError, unknown
from curate.index import app_plugins, app_server, database
from curate.project import Project

State = Literal["running", "done", "failed", "cancelled"]
KEPT = 20  # finished jobs
TAIL = 1 << 16  # bytes that are read of what a command prints
LINES = 12
CANCELLED = (130, 143, -2, -15)
EVERY = "CURATE_PROGRESS_EVERY"
PROGRESS = re.compile(r"(?P<stage>[^:]{1,80}): (?P<done>\d+)(?: of (?P<total>\d+))?(?:, (?P<rest>.*))?")
# A shell in the background stays until the command has ended, also after a signal to both, and notes the exit code. The
# one that starts it ends at once, so that the command is no descendant of the App, which ends all of its own.
NOTE_CODE = """exec 3<&0 </dev/null
( trap : TERM INT; folder=$1; shift
"$@" >"$folder/out" 2>"$folder/err"; echo $? >"$folder/code.part"; mv "$folder/code.part" "$folder/code" ) &
"""


@dataclass(frozen=True)
class JobStage:
    """One stage's progress; `total` is 0 where it is not known."""

    name: str
    done: int
    total: int
    rest: str = ""


@dataclass(frozen=True)
class Job:
    """A command in the background, as its folder tells; `ended` is 0 while it runs, `pid` is its process group."""

    name: str
    words: tuple[str, ...]
    started: float
    ended: float
    pid: int
    state: State
    stages: tuple[JobStage, ...] = ()
    lines: tuple[str, ...] = ()
    output: tuple[str, ...] = field(default=(), repr=False)

    @property
    def command(self) -> str:
        """The command's name: `select`, `models promote`."""
        return self.name.partition("-")[2].replace("_", " ")

    @property
    def told(self) -> str:
        """The line that says most: the error, the newest progress, or the first of what it printed."""
        if self.state == "done":
            return next(iter(self.output), "")
        newest = self.lines[-1] if self.lines else ""
        return next((line for line in reversed(self.lines) if line.startswith("error: ")), newest)


def start(project: Project, command: Sequence[str], words: Sequence[str] = ()) -> Job:
    """Start a command of curate on the project in the background.

    Args:
        project: the project.
        command: the command's name, as words.
        words: its options and arguments.

    Returns:
        The job, which has just begun.
    """
    home = project.work / "jobs"
    with files.explain_full_disk(home), files.explain_denied(project.work):
        home.mkdir(parents=True, exist_ok=True)
        _remove_old(home)
        folder = _new_folder(home, "_".join(command))
        whole = [*command, f"--project={project.folder}", *words]
        program = [sys.executable, "-m", "curate", *whole]
        with (folder / "lock").open("a+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(
                ["/bin/sh", "-c", NOTE_CODE, "sh", str(folder), *program],
                stdin=lock,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
                env=_environment(),
                start_new_session=True,
            )
            process.wait()
            files.write_json(folder / "job.json", {"words": [*command, *words], "pid": process.pid, "at": time.time()})
    return _read(folder)


def listed(project: Project) -> list[Job]:
    """Return all jobs, the newest first."""
    folders = sorted((file.parent for file in (project.work / "jobs").glob("[!.]*/job.json")), reverse=True)
    jobs = []
    for folder in folders:
        with contextlib.suppress(CurateError):  # damaged, or removed a moment ago
            jobs.append(_read(folder))
    return jobs


def find(project: Project, name: str) -> Job:
    """Return the job of this name."""
    by_name = {job.name: job for job in listed(project)}
    if name not in by_name:
        raise unknown("job", name, by_name)
    return by_name[name]


def cancel(project: Project, name: str) -> Job:
    """Ask a running command to end in order, as Ctrl-C does; what it has finished stays."""
    job = find(project, name)
    if job.state != "running":
        raise CurateError(f"'curate {job.command}' is not running: it is {job.state}")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGTERM)
    return job


def wait(project: Project, name: str, seconds: float) -> Job:
    """Wait until the job has ended, at most so long; return it as it is then."""
    end = time.monotonic() + seconds
    while (job := find(project, name)).state == "running" and time.monotonic() < end:
        time.sleep(0.1)
    return job


def _new_folder(home: Path, command: str) -> Path:
    """Make a folder whose name sorts by time; two jobs of one moment get different ones."""
    while True:
        at = time.time_ns() // 1_000_000
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(at // 1000)) + f".{at % 1000:03d}"
        with contextlib.suppress(FileExistsError):
            (home / f"{stamp}-{command}").mkdir()
            return home / f"{stamp}-{command}"


def _environment() -> dict[str, str]:
    """Return the environment of a command, in which the project's own database is found by the command itself: it must
    count as a client, so that the database stays when the App ends."""
    hidden = {"FIFTYONE_SERVER", app_plugins.FOLDER, app_server.DATASET, app_server.TOKEN, database.OWN}
    if database.is_embedded():
        hidden.add(database.URI)
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {EVERY: "1", "PYTHONUNBUFFERED": "1"}


def _remove_old(home: Path) -> None:
    for folder in sorted(home.glob("[!.]*/"), reverse=True)[KEPT:]:
        if not _is_alive(folder):
            files.remove(folder)


def _is_alive(folder: Path) -> bool:
    try:
        with (folder / "lock").open("a+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read(folder: Path) -> Job:
    try:
        about: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        words, pid, at = tuple(map(str, about["words"])), int(about["pid"]), float(about["at"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CurateError(f"{folder}/job.json is damaged or missing. Remove {folder}") from None
    alive = _is_alive(folder)  # asked before the code is read: it is written last
    errors, output = (_tail(folder / name) for name in ("err", "out"))
    state = _state(folder, alive)
    if state == "failed" and not (folder / "code").exists():
        errors.append("error: it was killed. Run it again: it goes on from there")
    ended = 0.0 if state == "running" else _ended(folder, at)
    return Job(
        folder.name, words, at, ended, pid, state, _stages(errors), tuple(errors[-LINES:]), tuple(output[-4 * LINES :])
    )


def _state(folder: Path, alive: bool) -> State:
    try:
        code = int((folder / "code").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "running" if alive else "failed"
    return "done" if code == 0 else "cancelled" if code in CANCELLED else "failed"


def _ended(folder: Path, started: float) -> float:
    """Return when a command that runs no more has ended, at the latest."""
    times = [(folder / name).stat().st_mtime for name in ("code", "err", "out") if (folder / name).exists()]
    return max(times, default=started)


def _tail(file: Path) -> list[str]:
    """Return the last lines that a command has written, without empty ones."""
    try:
        with file.open("rb") as handle:
            handle.seek(max(0, file.stat().st_size - TAIL))
            text = handle.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _stages(lines: Sequence[str]) -> tuple[JobStage, ...]:
    """Return the newest line of each stage, in the order in which they began."""
    stages: dict[str, JobStage] = {}
    for line in lines:
        if match := PROGRESS.fullmatch(line):
            done, total = int(match["done"]), int(match["total"] or 0)
            stages[match["stage"]] = JobStage(match["stage"], done, total, match["rest"] or "")
    return tuple(stages.values())
