"""Commands that are killed, and a database that dies: the next run completes what they began."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from curate.data import SPLITS, Label
from curate.index import predictions, rounds
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.labels.log import Entry, LabelLog, Segments
from curate.project import Project, load
from labeling import pull, push, results, tasks
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.faults.helpers import (
    SIZE,
    Gate,
    answer,
    draw_in_app,
    drawn,
    each_logged_once,
    ended,
    environment,
    is_ours,
    nth,
    one_task_each,
    start,
)
from tests.labeling.helpers import labels, ls_project_of, pushed, round_of, task_of, unlabelled

DIES = """
import importlib, os, signal, sys
place, turn, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
module, _, name = place.partition(":")
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
real, calls = getattr(owner, last), []
def deadly(*args, **more):
    calls.append(1)
    if len(calls) == turn and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    found = real(*args, **more)
    if len(calls) == turn:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
setattr(owner, last, deadly)
sys.argv = ["curate", *sys.argv[4:]]
from curate.cli import main
main()
"""


def killed(project: Project, place: str, turn: int, when: str, *arguments: str) -> None:
    """The command, killed (-9) the nth time that it gets to this place."""
    done = ended(start(project, place, str(turn), when, *arguments, code=DIES))
    assert done.returncode == -signal.SIGKILL, done.stderr


def often(places: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The first one in every run of the tests; `make kill` plays them all, and more."""
    rest = (pytest.param(*place, marks=pytest.mark.exhaustive) for place in places[1:])
    return [pytest.param(*places[0]), *rest]


PUSH_DIES = [
    ("labeling.push:_store", "after"),
    ("labeling.push:_send", "before"),
    ("labeling.remote_project:_created", "after"),
    ("labeling.push:_overlap", "before"),
    ("labeling.push:_mark", "before"),
    ("labeling.tabs:show", "before"),
]


@pytest.mark.parametrize(("place", "when"), often(PUSH_DIES))
def test_a_push_that_is_killed_is_completed_by_the_next(
    indexed: Project, studio: Studio, place: str, when: str
) -> None:
    text = indexed.file.read_text(encoding="utf-8")
    indexed.file.write_text(text + "\n[labelstudio]\noverlap = 1.0\nannotators = 3\n", encoding="utf-8")
    ids = unlabelled(indexed)[:4]
    round_of(indexed, ids, ["rare", "audit", "rare", "rare"])
    killed(indexed, place, 1, when, "push")
    report = push.run(load(indexed.folder), studio, push.PushRequest())
    assert report.created + report.existing == 4
    one_task_each(indexed, studio, ids)
    assert {labels(indexed)[id].status for id in ids} == {"queued"}
    assert [ls_helpers.task(studio, task_of(indexed, studio, id))["overlap"] for id in ids] == [3] * 4
    views = Counter(
        one["data"]["title"] for one in studio.get("/api/dm/views/", project=ls_project_of(indexed, studio).id)
    )
    assert views == Counter({"round 001": 1})
    assert len([one for one in ls_helpers.projects(studio) if is_ours(indexed, studio, one)]) == 1


def test_a_push_that_dies_while_the_server_stores_is_not_stored_again(
    indexed: Project, studio: Studio, gate: Gate
) -> None:
    ids = unlabelled(indexed)[:4]
    round_of(indexed, ids)
    running: list[subprocess.Popen[str]] = []
    gate.harm = nth(1, "", "POST", "/import", lambda: running[0].kill())
    running.append(start(indexed, "push"))
    assert ended(running[0]).returncode == -signal.SIGKILL
    gate.harm = lambda method, path: ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(tasks.held(ls_project_of(indexed, studio)))) < 4:
        time.sleep(0.2)
    report = push.run(indexed, studio, push.PushRequest())
    assert (report.created, report.existing) == (0, 4)
    one_task_each(indexed, studio, ids)


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", often([("labeling.tasks:drop_suggestions",), ("labeling.push:_update",)]))
def test_suggestions_that_a_kill_cut_short_are_completed(indexed: Project, studio: Studio, place: str) -> None:
    ids = unlabelled(indexed)[:2]
    suggest(indexed, "m1", dict.fromkeys(ids, drawn()))
    pushed(indexed, studio, ids)
    suggest(indexed, "m2", dict.fromkeys(ids, drawn("hole", 3)))
    killed(indexed, place, 1, "after", "push")
    push.run(indexed, studio, push.PushRequest())
    for id in ids:
        held = ls_helpers.task(studio, task_of(indexed, studio, id))
        (one,) = held["predictions"]
        assert results.label_in(one["result"], SIZE).digest == held["data"]["suggested"] == drawn("hole", 3).digest


def suggest(project: Project, model: str, said: Mapping[str, Label]) -> None:
    found = {id: Prediction(tuple((defect, 0.8) for defect in label.defects)) for id, label in said.items()}
    predictions.store(Index(project), model, found)


PULL_DIES = [
    ("curate.labels.log:LabelLog.append", 2, "after"),
    ("curate.index.app_edits:show", 2, "after"),
    ("curate.labels.log:LabelLog.flush", 1, "after"),
    ("curate.index.app_edits:show", 2, "before"),
    ("curate.index.dataset:Index.set", 1, "before"),
    ("curate.index.sync:assign_splits", 1, "before"),
    ("labeling.remote_project:LabelStudioProject.save", 1, "before"),
]


@pytest.mark.parametrize(("place", "turn", "when"), often(PULL_DIES))
def test_a_pull_that_is_killed_is_completed_by_the_next(
    indexed: Project, studio: Studio, place: str, turn: int, when: str
) -> None:
    new, gone, both = ids = unlabelled(indexed)[:3]
    pushed(indexed, studio, ids)
    made = answer(indexed, studio, gone, drawn())
    pull.run(indexed, studio)
    answer(indexed, studio, new, drawn("crack", 2))
    ls_helpers.withdraw(studio, made["id"])
    for name, seed in (("anna", 3), ("ben", 4)):
        answer(indexed, ls_helpers.annotator(studio, name), both, drawn("hole", seed))
    killed(indexed, place, turn, when, "pull")
    pull.run(indexed, studio)
    shown = labels(indexed)
    assert shown[new].digest == drawn("crack", 2).digest
    assert shown[gone] == Label("queued")
    assert shown[both].present == {"hole"}
    sample = Index(indexed).dataset.match({"content_id": new}).first()
    assert sample.labelled_by == studio.me.email
    assert sample.split in SPLITS
    each_logged_once(indexed, ids)


def test_an_app_edit_is_disputed_although_the_pull_was_killed(indexed: Project, studio: Studio) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    draw_in_app(indexed, id, "hole")
    answer(indexed, studio, id, drawn())
    killed(indexed, "curate.index.app_edits:show", 2, "before", "pull")
    pull.run(indexed, studio)
    shown = labels(indexed)[id]
    assert (shown.status, shown.reason, shown.present) == ("disputed", "edited-in-app", {"hole"})


def test_an_annotation_and_the_dispute_that_it_raises_reach_the_disk_together(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two would let the annotation replace what a curator drew in the App."""
    ids = unlabelled(indexed)
    pushed(indexed, studio, ids)
    for seed, id in enumerate(ids):
        draw_in_app(indexed, id, "hole")
        answer(indexed, studio, id, drawn("crack", seed))

    def small(*arguments: Any, **more: Any) -> Any:
        return open(*arguments, **(more | ({"buffering": 2000} if "buffering" in more else {})))

    monkeypatch.setattr("curate.labels.log.open", small, raising=False)
    append = LabelLog.append

    def watched(log: LabelLog, entry: Entry) -> None:
        append(log, entry)
        stored = [line for *_, line in Segments(indexed.work / "labels").lines() if line["origin"] == "label-studio"]
        annotated = {line["id"] for line in stored if "updated" in line["extra"]}
        assert annotated == {line["id"] for line in stored if "of" in line["extra"]}

    monkeypatch.setattr(LabelLog, "append", watched)
    assert pull.run(indexed, studio).edited_in_app == len(ids)


@pytest.mark.exhaustive
def test_a_withdrawal_that_is_killed_is_completed_by_the_next(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:3]
    pushed(indexed, studio, ids)
    answer(indexed, studio, ids[0], drawn())
    killed(indexed, "labeling.push:_unmark", 1, "before", "push", "--withdraw")
    push.withdraw(indexed, studio, push.PushRequest())
    shown = labels(indexed)
    assert [shown[id].status for id in ids] == ["queued", "unlabelled", "unlabelled"]
    assert rounds.find(indexed.work, 1).withdrawn == sorted(ids[1:])
    assert pull.run(indexed, studio).labelled == 1


def test_a_database_that_dies_in_the_middle_of_push_and_pull(plant: Project, studio: Studio, tmp_path: Path) -> None:
    """In a process of its own, on a MongoDB of its own; see there."""
    line = [sys.executable, "-m", "tests.labeling.lost_database", str(plant.folder), str(tmp_path / "mongod")]
    done = subprocess.run(line, env=environment(plant), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
