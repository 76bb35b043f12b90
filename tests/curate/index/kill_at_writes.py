"""Run a command again and again, killed right before its first write to the database, its second, and so on.

`python -m tests.curate.index.kill_at_writes PROJECT [COMMAND ...]`. Every run is a fork of this process, which has
imported all that is heavy already. After each kill, `curate status` must work and the command, run again, must
complete; then the saved views must be whole. Prints {"command": how often it was killed}.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pymongo import monitoring

from curate.admin import status  # noqa: F401 - imported once, for all forks
from curate.cli import main
from curate.index import app_views, classes, database, sync  # noqa: F401
from curate.index.dataset import Index
from curate.project import load
from curate.select import run as selecting  # noqa: F401

WRITES = {"insert", "update", "delete", "findAndModify", "create", "createIndexes", "drop", "dropIndexes", "collMod"}
STEPS = 1_000


class Killer(monitoring.CommandListener):
    """Kills this process before the write with this number."""

    number: int | None = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if Killer.number is not None and event.command_name in WRITES:
            Killer.number -= 1
            if Killer.number < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


def forked(work: Callable[[], None]) -> int:
    """The exit code of a fork that does this work; negative where it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(project: Path, line: str) -> None:
    sys.argv = ["curate", *line.split(), "--project", str(project)]
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            main()
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"{line}: exit {end.code}") from end


def check(project: Path) -> None:
    """Exactly the wanted views, each as it should be, and no reference or document that is left over."""
    index = Index(load(project))
    db = index.fo.core.odm.get_db_conn()
    home = db.datasets.find_one({"name": index.dataset.name})
    views = {view["_id"]: view for view in db.views.find({"_dataset_id": home["_id"]})}
    assert sorted(views) == sorted(home["saved_views"]), "a reference or a view is left over"
    wanted = {saved.name: (app_views.OURS + saved.description, saved.color) for saved in app_views.views_to_save(index)}
    assert {view["name"]: (view["description"], view["color"]) for view in views.values()} == wanted
    for saved in app_views.views_to_save(index):
        assert index.dataset.load_saved_view(saved.name).values("id") == saved.view.values("id"), saved.name


# --- the commands, and what changes before every run so that there is something to write -----------------------------


def no_index(project: Path, turn: int) -> None:
    index = Index(load(project), create=True)
    index.fo.delete_dataset(index.dataset.name)


def moved_image(project: Path, turn: int) -> None:
    """A stratum appears, and goes again."""
    here, there = (project.parent.parent / "line" / name for name in ("AB", "BA")[turn % 2])
    image = next(here.glob("*.png"))
    there.mkdir(exist_ok=True)
    image.rename(there / image.name)


def evaluated(project: Path, turn: int) -> None:
    """What `curate evaluate` leaves in the index (its own writes are not run here): views of mistakes come and go."""
    index = Index(load(project))
    for name in ("eval_missed", "eval_false_alarm", "eval_missed_sizes", "eval_fixed", "eval_broken"):
        if index.dataset.get_field(name) is None:
            index.declare(**{name: [index.fo.StringField]})
    index.declare(eval_confidence=index.fo.FloatField, mistakenness=index.fo.FloatField)
    ids = index.ids()
    index.set({"eval_missed": {id: [["hole"], []][turn % 2] for id in ids}})
    index.set({"eval_confidence": dict.fromkeys(ids, [0.0, 0.9][turn % 2])})


def nothing(project: Path, turn: int) -> None:
    pass


# name -> what changes before a run, and the command of even and of odd runs
COMMANDS: dict[str, tuple[Callable[[Path, int], None], str, str]] = {
    "first index": (no_index, "index", "index"),
    "index": (moved_image, "index", "index"),
    "classes": (nothing, "classes rename crack fissure", "classes rename fissure crack"),
    "select": (nothing, "select --strategy random --budget 1", "select --strategy random --budget 1"),
    "evaluate": (evaluated, "index", "index"),
}


# What must work right after a kill, if not `status` and the command itself: before the first index there is no status.
AFTERWARDS = {"first index": ["index", "status"], "classes": ["index", "status"]}
STRIDE = {"first index": 7, "select": 3}  # most of their writes are alike: a field that is declared, and so on


def kill_at_every_write(project: Path, name: str) -> int:
    """How often the command was killed before one run had no write left to be killed at."""
    prepare, *lines = COMMANDS[name]
    for kills in range(STEPS):
        number, line = kills * STRIDE.get(name, 1), lines[kills % 2]

        def disturbed(turn: int = kills, number: int = number, line: str = line) -> None:
            prepare(project, turn)
            Killer.number = number
            run(project, line)

        def completed(line: str = line) -> None:
            for after in AFTERWARDS.get(name, ["status", line]):
                run(project, after)
            if name == "classes":
                with contextlib.suppress(AssertionError):
                    run(project, line)  # a class that was renamed before the kill is unknown
            check(project)

        code = forked(disturbed)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, f"{line}: exit {code} before write {number}"
        assert forked(completed) == 0, f"{line}, killed at write {number}"
        sys.stderr.write(f"{name}: killed at write {number}, whole again\n")
    raise AssertionError(f"{name} still wrote after {STEPS} kills")


if __name__ == "__main__":
    monitoring.register(Killer())
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or list(COMMANDS)
    database.connect(load(folder).work)
    run(folder, "index")  # imports what the forks need
    gc.collect()  # no dataset is known to this process
    print(json.dumps({name: kill_at_every_write(folder, name) for name in wanted}))
