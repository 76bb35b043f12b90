"""A project on real machines: clocks that go back, moved folders, full and read-only disks, other users."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from curate import files
from curate.admin import gc, setup
from curate.index import database, rounds, sync
from curate.index.dataset import Index
from curate.labels import log as label_log
from curate.labels.log import LabelLog
from curate.project import Project
from tests import fakes, forked
from tests.conftest import LIBRARY, LINE, dump
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture
from tests.curate.index.test_dataset import draw_in_app
from tests.curate.index.test_kill import SHOW, curate, environment

# --- the clock going back -------------------------------------------------------------------------------------------


class Clock(datetime):
    """A clock that is set by hand."""

    moment = datetime(2026, 6, 1, tzinfo=UTC)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.moment


def test_labels_keep_their_order_when_the_clock_goes_back(indexed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_log, "datetime", Clock)
    draw_in_app(indexed, "coil0_0.png")
    sync.run(indexed)
    index = Index(indexed)
    sample = index.dataset.match(index.fo.ViewField("filepath").ends_with("coil0_0.png")).first()
    id = sample["content_id"]
    monkeypatch.setattr(Clock, "moment", datetime(2020, 1, 1, tzinfo=UTC))
    sample["defects"].detections[0].label = "crack"
    sample.save()
    assert sync.run(indexed).app_edits == 1
    history = LabelLog(indexed.work / "labels").history(id)
    assert [(entry.at[:4], entry.label.present) for entry in history] == [("2026", {"hole"}), ("2020", {"crack"})]
    before = dump(indexed)
    assert sync.run(indexed).updated == 0
    index.dataset.delete()
    sync.run(indexed)
    assert dump(indexed) == before
    assert next(item for item in Index(indexed).items() if item.id == id).label.present == {"crack"}


def test_a_sample_that_was_edited_in_the_future_can_still_be_written(indexed: Project) -> None:
    """Before the clock went back: the time of an edit must not make it look older than what we write."""
    draw_in_app(indexed, "coil0_0.png")
    index = Index(indexed)
    later = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=400)
    index._samples().update_many({}, {"$set": {"last_modified_at": later}})
    assert sync.run(indexed).app_edits == 1
    assert sync.run(indexed).app_edits == 0


def test_the_newest_round_and_result_are_so_by_order_and_not_by_the_clock(plant: Project) -> None:
    pick = {"rank": 1, "id": "x", "path": "x.png", "slot": "audit", "score": 1.0, "reason": "drawn"}
    models = plant.work / "models"
    for number, name in enumerate(("early", "late"), start=1):
        rounds.write(plant.work, {"round": number, "made_at": f"20{30 - number}-01-01T00:00:00Z"}, [pick])
        with files.written_aside(models / name) as aside:
            aside.mkdir()
        if name == "early":
            os.utime(models / name, (time.time() + 1e6,) * 2)  # made before the clock was put right
    newest = rounds.latest(plant.work)
    assert newest is not None
    assert newest.number == 2
    found = {item.path.name: item.why for item in gc.find(plant)}
    assert found.keys() == {"early", "001"}
    with files.writer_lock(plant.work, "curate index"):
        holder = json.loads((plant.work / ".lock").read_text())
        (plant.work / ".lock").write_text(json.dumps(holder | {"since": time.time() + 1e6}))
        with pytest.raises(files.ProjectBusy, match="since 0 s"), files.writer_lock(plant.work, "curate index"):
            pass


def test_a_training_that_was_begun_after_the_clock_went_back_is_not_given_up(plant: Project) -> None:
    models = plant.work / "models"
    for name in ("done", ".key.training"):
        (models / name).mkdir(parents=True)
    os.utime(models / "done", (time.time() + 1e6,) * 2)
    assert not gc.find(plant)


# --- moved, copied, linked ------------------------------------------------------------------------------------------


def shown(project: Path) -> dict[str, Any]:
    result = forked.start(SHOW, project, env=environment()).completed(timeout=120)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_a_project_that_was_moved_copied_or_linked_finds_its_database_and_images(tmp_path: Path, server: str) -> None:
    """With the embedded database, which goes with the folder."""
    first, moved, copy, link = (tmp_path / name / "plant" for name in ("a", "b", "c", "d"))
    setup.demo(first, 60, 1, lambda done: None)
    process = curate(first, "index", "--json")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    moved.parent.mkdir()
    shutil.move(first, moved)
    found = shown(moved)
    assert len(found) == 60
    assert {row[1].startswith(f"{moved}/data/") and Path(row[1]).is_file() for row in found.values()} == {True}
    shutil.copytree(moved, copy)
    link.parent.mkdir()
    link.symlink_to(moved)
    pair = [curate(project, "index", "--json") for project in (link, copy)]
    for process in pair:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        report = json.loads(output)
        assert (report["added"], report["missing"], report["app_edits"]) == (0, 0, 0)
    assert shown(link) == found
    assert {row[1].startswith(f"{copy}/data/") for row in shown(copy).values()} == {True}
    inside = [path for path in copy.rglob("*") if path.is_file() and "db" not in path.relative_to(copy).parts]
    stale = [path for path in inside if str(first).encode() in path.read_bytes()]
    assert not stale, "no file of the project holds where it lay before"
    for project in (moved, copy):
        database.stop(project / "work" / "db")


# --- full and read-only disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def on_disk(disk: Path, library: Path, line: Path, server: str) -> Iterator[Project]:
    """A project on the small disk; its images lie elsewhere, and so does its database."""
    project = setup.write(disk / "plant", [LIBRARY | {"data": library}, LINE | {"data": line}], ["crack", "hole"])
    sync.run(project)
    yield project
    fo = database.connect(disk)
    for name in fo.list_datasets():
        if name.startswith(project.dataset_name):
            fo.delete_dataset(name)


WRITERS = {
    "index": ("index", "--reread"),
    "classes add": ("classes", "add", "dent"),
    "classes rename": ("classes", "rename", "hole", "pit"),
    "embed": ("embed",),
    "select": ("select", "--strategy", "random", "--budget", "3"),
    "backup": ("backup", "{disk}/backup.tar.gz"),
    "export": ("export", "{disk}/out", "--format", "coco"),
    "restore": ("restore", "{elsewhere}", "--to", "{disk}/copy", "--trust"),
}


def arguments(name: str, project: Project) -> list[str]:
    disk = project.folder.parent
    words = [word.format(disk=disk, elsewhere=disk.parent / "saved.tar.gz") for word in WRITERS[name]]
    return words if name == "restore" else [*words, "-p", str(project.folder)]


def test_a_full_disk_is_one_line_that_names_the_file(run: Run, on_disk: Project, library: Path) -> None:  # noqa: F811
    disk = on_disk.folder.parent
    assert run("backup", disk.parent / "saved.tar.gz", "-p", on_disk.folder)[0] == 0
    fakes.save_image(library / "images" / "late_1.png", 32, 24, seed=4711)
    wrong = []
    for name in WRITERS:
        before = {
            path: path.read_bytes() for path in on_disk.folder.rglob("*") if path.is_file() and path.name != ".lock"
        }
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as handle:
            while handle.write(b"x" * 4096):
                pass
        code, _, err = run(*arguments(name, on_disk))
        line = err.strip().splitlines()[-1]
        named = f"error: {disk}" in line and "No space left on device" in line
        lost = [
            path for path, content in before.items() if not path.is_file() or not path.read_bytes().startswith(content)
        ]
        parts = list(disk.rglob("*.part"))
        filler.unlink()
        again = run(*arguments(name, on_disk))
        if code != 1 or not named or "Traceback" in err or lost or parts or again[0]:
            wrong.append((name, code, line, lost, parts, again))
    assert not wrong


def test_a_read_only_disk_is_one_line_for_writers_and_none_for_readers(run: Run, on_disk: Project) -> None:  # noqa: F811
    disk = on_disk.folder.parent
    assert run("backup", disk.parent / "saved.tar.gz", "-p", on_disk.folder)[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    wrong = []
    for name in WRITERS:
        code, _, err = run(*arguments(name, on_disk))
        line = err.strip().splitlines()[-1]
        if (
            code != 1
            or "Traceback" in err
            or f"{disk}" not in line
            or "Read-only file system. Mount it writable" not in line
        ):
            wrong.append((name, code, err[-600:]))
    for words in (("status",), ("classes", "list"), ("export", disk.parent / "out", "--format", "coco")):
        code, _, err = run(*words, "-p", on_disk.folder)
        if code:
            wrong.append((words[0], code, err[-600:]))
    assert not wrong


# --- a second user --------------------------------------------------------------------------------------------------

NOBODY = 65534


def test_files_of_another_user_are_one_line(indexed: Project, tmp_path: Path) -> None:
    become = [*("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")]
    become += [
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]  # reads all (Python is root's), writes not
    if os.geteuid() != 0 or subprocess.run([*become, "true"], capture_output=True, check=False).returncode:
        pytest.skip("becoming another user needs root and setpriv")
    home = Path(f"/tmp/curate-second-user-{os.getpid()}")  # pytest's own folder is closed to others
    try:
        shutil.copytree(indexed.folder, home / "plant")
        (home / "home").mkdir()
        os.chown(home / "home", NOBODY, NOBODY)
        home.chmod(0o755)
        wrong = []
        for words in (
            ("index",),
            ("status",),
            ("classes", "add", "dent"),
            ("backup", str(home / "home" / "b.tar.gz")),
            ("gc",),
        ):
            command: list[Any] = [
                *become,
                sys.executable,
                "-c",
                "from curate.cli import main; main()",
                *words,
                "--project",
                home / "plant",
            ]
            ended = subprocess.run(
                command,
                env=environment() | {"HOME": str(home / "home"), "NUMBA_CACHE_DIR": str(home / "home" / "numba")},
                cwd=fakes.REPOSITORY,
                capture_output=True,
                text=True,
                check=False,
            )
            line = ended.stderr.strip().splitlines()[-1]
            told = line.startswith(f"error: {home / 'plant'}") and "It belongs to root, you are nobody" in line
            if ended.returncode != 1 or not told or "Traceback" in ended.stderr:
                wrong.append((words, ended.returncode, ended.stderr[-800:]))
        assert not wrong
    finally:
        shutil.rmtree(home, ignore_errors=True)
