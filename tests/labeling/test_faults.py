"""Faults between us and a real Label Studio: servers and commands that are killed, answers that never come,
people who change things by hand, and annotations that mean nothing. After each: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from curate.data import SPLITS, Label
from curate.errors import CurateError
from curate.index import classes, predictions, rounds, sync
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.labels.log import Segments
from curate.masks import shapes
from curate.project import Project, load
from labeling import client, consensus, images, pull, push, remote_project, results, server, tasks
from labeling.client import Studio, Unanswered, Unreachable
from labeling.server import RunningServer
from tests import fakes
from tests.labeling import studio as ls_helpers
from tests.labeling.desks import history, labelled, labels, ls_project_of, pushed, round_of, task_of, unlabelled

SIZE = (32, 24)
PYTHON = Path(sys.executable)
COMMAND = "from curate.cli import main; main()"


@pytest.fixture(autouse=True)
def _documents(studio_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(images.ROOT, str(studio_server.files))


def drawn(name: str = "crack", seed: int = 1) -> Label:
    mask = shapes.defect_from_mask(name, fakes.blob(24, 32, seed))
    assert mask is not None
    return Label("labelled", (mask,))


def answer(project: Project, studio: Studio, id: str, label: Label) -> dict[str, Any]:
    """Somebody submits this label."""
    return ls_helpers.annotate(studio, task_of(project, studio, id), results.of_label(label, SIZE))


def one_task_each(project: Project, studio: Studio, ids: Sequence[str]) -> None:
    held = [one.data["content_id"] for one in tasks.held(ls_project_of(project, studio))]
    assert Counter(held) == Counter(ids)


def each_logged_once(project: Project, ids: Sequence[str]) -> None:
    """Every annotation stands in the log exactly once."""
    for id in ids:
        annotations = [entry.extra["annotation"] for entry in history(project, id) if "updated" in entry.extra]
        assert annotations, id
        assert len(annotations) == len(set(annotations)), id


def settings(project: Project, **values: Any) -> Project:
    """As after a change of [labelstudio] in project.toml."""
    return load(project.folder, {"labelstudio": values})


# --- a server that is killed, and one that answers wrongly ------------------------------------------------------------

Harm = Callable[[str, str], str]  # method, path -> "", or what becomes of the request


class Gate(ThreadingHTTPServer):
    """Stands before the real server, and does harm to the requests that a test names.

    `lost`: done, but not answered. `cut`: neither. `late`: not answered in time, and done then. A number: that answer
    instead; `after 502`: that answer although it was done.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.harm: Harm = lambda method, path: ""
        self.http = httpx.Client(base_url=target, trust_env=False, timeout=120)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed or ran out of time are what this is for."""


class _Door(BaseHTTPRequestHandler):
    server: Gate

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        harm = self.server.harm(self.command, self.path)
        if harm.isdigit():
            self._say(int(harm), b'{"detail": "out of order"}', "application/json")
        elif harm == "cut" or (told := self._forwarded(body, harm == "late")) is None or harm == "lost":
            self._hang_up()
        else:
            status = int(harm.removeprefix("after ")) if harm.startswith("after ") else told.status_code
            self._say(status, told.content, told.headers.get("content-type", "application/json"))

    def _forwarded(self, body: bytes, late: bool) -> httpx.Response | None:
        if late:
            time.sleep(client.TIMEOUT + 1)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
        try:
            return self.server.http.request(self.command, self.path, content=body, headers=kept)
        except httpx.HTTPError:
            return None

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _pass

    def _say(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def gate(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The commands of this test go through it; `studio` does not."""
    made = Gate(studio.url)
    monkeypatch.setenv(client.URL, made.url)
    yield made
    made.shutdown()
    made.server_close()


def through(gate: Gate) -> Studio:
    return client.open_studio(gate.url, os.environ[client.KEY])


def nth(number: int, harm: str, method: str, part: str, then: Callable[[], None] = lambda: None) -> Harm:
    """Harm to just the nth request of this kind; `part` ends the path or stands in its query."""
    left = [number]

    def judge(asked: str, path: str) -> str:
        if asked != method or not (path.endswith(part) or part in path.partition("?")[2]):
            return ""
        left[0] -= 1
        if left[0] == 0:
            then()
            return harm
        return ""

    return judge


@pytest.mark.parametrize("harm", ["lost", "cut", "after 502", "500", "late"])
def test_an_answer_that_fails_doubles_nothing(
    indexed: Project, studio: Studio, gate: Gate, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(push, "BATCH", 2)
    monkeypatch.setattr(push, "CALM", 0.2)
    if harm == "late":
        monkeypatch.setattr(client, "TIMEOUT", 8)
        monkeypatch.setattr(push, "CALM", 3)
    ids = unlabelled(indexed)[:5]
    round_of(indexed, ids)
    reached = through(gate)
    gate.harm = nth(2, harm, "POST", "/import")
    report = push.run(indexed, reached, push.PushRequest())
    assert (report.created, report.refused) == (5, [])
    one_task_each(indexed, reached, ids)
    assert {labels(indexed)[id].status for id in ids} == {"queued"}
    again = push.run(indexed, reached, push.PushRequest())
    assert (again.created, again.existing, again.doubles) == (0, 5, 0)


@pytest.mark.parametrize("part", ["fields=all", "/api/users"])
def test_a_pull_that_got_no_answer_is_repeated(indexed: Project, studio: Studio, gate: Gate, part: str) -> None:
    ids = unlabelled(indexed)[:3]
    reached = through(gate)
    pushed(indexed, reached, ids)
    for seed, id in enumerate(ids):
        answer(indexed, reached, id, drawn("crack", seed))
    gate.harm = nth(1, "502", "GET", part)
    with pytest.raises(Unanswered):
        pull.run(indexed, reached)
    assert pull.run(indexed, reached).annotations == 3
    each_logged_once(indexed, ids)


class Mortal:
    """A Label Studio that a test may kill."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files, self.port = folder / "server", folder / "files", server.any_port()
        self.start()

    def start(self) -> None:
        self.served = server.launch(self.folder, self.files, self.port)

    def kill(self) -> None:
        os.killpg(self.served.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(self.served.pid, 0)
        while server.running(self.folder):
            time.sleep(0.1)


@pytest.fixture
def mortal(tmp_path: Path, studio_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    made = Mortal(tmp_path / "mortal")
    monkeypatch.setenv(client.KEY, server.read_credentials(made.folder).token)
    monkeypatch.setenv(images.ROOT, str(made.files))
    yield made
    server.stop(made.folder)


def test_a_server_that_is_killed_and_started_again(
    indexed: Project, mortal: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "BATCH", 2)
    monkeypatch.setattr(pull, "PAGE", 2)
    ids = unlabelled(indexed)[:6]
    round_of(indexed, ids)
    gate = Gate(mortal.served.url)
    monkeypatch.setenv(client.URL, gate.url)
    gate.harm = nth(2, "", "POST", "/import", mortal.kill)
    with pytest.raises((Unreachable, Unanswered)):
        push.run(indexed, through(gate), push.PushRequest())
    assert rounds.find(indexed.work, 1).pushed, "no `select` may replace what is partly sent"
    mortal.start()
    studio = through(gate)
    report = push.run(indexed, studio, push.PushRequest())
    assert (report.created, report.existing) == (4, 2)
    one_task_each(indexed, studio, ids)
    for seed, id in enumerate(ids):
        answer(indexed, studio, id, drawn("hole", seed))
    gate.harm = nth(2, "", "GET", "fields=all", mortal.kill)
    with pytest.raises((Unreachable, Unanswered)):
        pull.run(indexed, studio)
    mortal.start()
    pull.run(indexed, through(gate))
    shown = labels(indexed)
    assert [shown[id].digest for id in ids] == [drawn("hole", seed).digest for seed in range(6)]
    each_logged_once(indexed, ids)

    more = unlabelled(indexed)  # now it comes back while the push goes on, and what it stored is not answered
    round_of(indexed, more, number=2)
    gate.harm = nth(2, "lost", "POST", "/import", lambda: (mortal.kill(), mortal.start()))
    assert push.run(indexed, through(gate), push.PushRequest()).created == len(more) == 4
    one_task_each(indexed, through(gate), [*ids, *more])
    assert pull.run(indexed, through(gate), full=True).annotations == 0
    after = labels(indexed)
    assert [after[id] for id in ids] == [shown[id] for id in ids]
    gate.server_close()


# --- commands that are killed -----------------------------------------------------------------------------------------

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


def environment(project: Project) -> dict[str, str]:
    return {**os.environ, "CURATE_PROJECT": str(project.folder), "NO_COLOR": "1"}


def command(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`curate` as a person runs it."""
    return ended(start(project, *arguments))


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = [PYTHON, "-c", COMMAND, *arguments]
    return subprocess.Popen(line, env=environment(project), text=True, **pipes)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def killed(project: Project, place: str, turn: int, when: str, *arguments: str) -> None:
    """The command, killed (-9) the nth time that it gets to this place."""
    line = [PYTHON, "-c", DIES, place, str(turn), when, *arguments]
    done = subprocess.run(line, env=environment(project), capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr


PUSH_DIES = [
    ("labeling.remote_project:_created", "after"),
    ("labeling.push:_send", "before"),
    ("labeling.push:_store", "after"),
    ("labeling.push:_overlap", "before"),
    ("labeling.push:_mark", "before"),
    ("labeling.tabs:show", "before"),
]


@pytest.mark.parametrize(("place", "when"), PUSH_DIES)
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
        one["data"]["title"] for one in studio.get("/api/dm/views", project=ls_project_of(indexed, studio).id)
    )
    assert views == Counter({"round 001": 1})
    assert len([one for one in ls_helpers.projects(studio) if _ours(indexed, studio, one)]) == 1


def _ours(project: Project, studio: Studio, number: int) -> bool:
    return str(studio.get(f"/api/projects/{number}")["description"]) == remote_project._mark(project)


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


@pytest.mark.parametrize("place", ["labeling.tasks:drop_suggestions", "labeling.push:_update"])
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
    ("labeling.consensus:settle", 2, "after"),
    ("curate.labels.log:LabelLog.flush", 2, "after"),
    ("curate.index.app_edits:show", 2, "before"),
    ("curate.index.app_edits:show", 2, "after"),
    ("curate.index.dataset:Index.set", 1, "before"),
    ("curate.index.sync:assign_splits", 1, "before"),
    ("labeling.remote_project:LabelStudioProject.save", 1, "before"),
]


@pytest.mark.parametrize(("place", "turn", "when"), PULL_DIES)
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


def test_a_word_and_the_dispute_that_it_raises_get_to_the_disk_together(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two would let the word replace what a curator drew in the App."""
    ids = unlabelled(indexed)
    pushed(indexed, studio, ids)
    for seed, id in enumerate(ids):
        draw_in_app(indexed, id, "hole")
        answer(indexed, studio, id, drawn("crack", seed))

    def small(*arguments: Any, **more: Any) -> Any:
        return open(*arguments, **(more | ({"buffering": 2000} if "buffering" in more else {})))

    monkeypatch.setattr("curate.labels.log.open", small, raising=False)
    log = consensus._log

    def watched(*arguments: Any) -> None:
        log(*arguments)
        stored = [line for *_, line in Segments(indexed.work / "labels").lines() if line["origin"] == "label-studio"]
        words = {line["id"] for line in stored if "updated" in line["extra"]}
        assert words == {line["id"] for line in stored if "of" in line["extra"]}

    monkeypatch.setattr(consensus, "_log", watched)
    assert pull.run(indexed, studio).edited_in_app == len(ids)


def draw_in_app(project: Project, id: str, name: str) -> None:
    index = Index(project)
    sample = index.dataset.match({"content_id": id}).first()
    sample.defects = index.fo.Detections(detections=[index.fo.Detection(label=name, bounding_box=[0, 0, 0.5, 0.5])])
    sample.save()


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
    line = [PYTHON, "-m", "tests.labeling.lost_database", str(plant.folder), str(tmp_path / "mongod")]
    done = subprocess.run(line, env=environment(plant), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


# --- two at once ------------------------------------------------------------------------------------------------------


def test_two_pushes_at_once_make_one_task_each(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)
    round_of(indexed, ids)
    done = [ended(one) for one in [start(indexed, "push", "--json") for _ in range(2)]]
    assert sorted(one.returncode for one in done) in ([0, 0], [0, 1])
    for one in done:
        assert one.returncode == 0 or "is writing to this project" in one.stderr
    one_task_each(indexed, studio, ids)


def test_two_folders_that_share_a_dataset_end_on_one_desk(
    indexed: Project, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find no project at the same moment, and each makes one; a server in trouble may even make three."""
    ids = unlabelled(indexed)[:4]
    mine = load(indexed.folder, {"dataset": indexed.dataset_name})
    theirs = replace(mine, folder=_copied(indexed, tmp_path / "elsewhere" / "plant"))
    assert mine.dataset_name == theirs.dataset_name
    round_of(indexed, ids)
    together = threading.Barrier(2, timeout=60)
    find = remote_project.find

    def found(project: Project, studio: Studio) -> Any:
        known = find(project, studio)
        together.wait()
        return known

    monkeypatch.setattr(remote_project, "find", found)
    made: dict[str, int] = {}

    def open_project(name: str, project: Project) -> None:
        made[name] = remote_project.opened(project, studio).id

    threads = [threading.Thread(target=open_project, args=one) for one in (("mine", mine), ("theirs", theirs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made["mine"] == made["theirs"]
    ours = [one for one in ls_helpers.projects(studio) if _ours(mine, studio, one)]
    assert made["mine"] == min(one for one in ours if remote_project._is_whole(studio, one))
    for left in set(ours) - {made["mine"]}:  # a request that the server did twice
        assert studio.get(f"/api/projects/{left}")["task_number"] == 0


def _copied(project: Project, folder: Path) -> Path:
    shutil.copytree(project.folder, folder, symlinks=True)
    return folder


def test_two_folders_that_send_the_same_round_at_once_leave_one_task_each(
    indexed: Project, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = unlabelled(indexed)[:4]
    round_of(indexed, ids)
    mine = load(indexed.folder, {"dataset": indexed.dataset_name})
    theirs = replace(mine, folder=_copied(indexed, tmp_path / "projects" / "another"))
    store = push._store
    theirs_report: list[push.PushReport] = []

    def raced(*arguments: Any) -> None:
        monkeypatch.setattr(push, "_store", store)
        theirs_report.append(push.run(theirs, studio, push.PushRequest()))
        ls_helpers.annotate(studio, task_of(theirs, studio, ids[0]), GOOD)
        store(*arguments)

    monkeypatch.setattr(push, "_store", raced)
    report = push.run(mine, studio, push.PushRequest())
    assert (theirs_report[0].created, report.doubles) == (4, 4)
    one_task_each(mine, studio, ids)
    assert pull.run(mine, studio).annotations == 1, "the one that was worked on stayed"


def test_a_pull_while_people_submit_misses_nothing(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "PAGE", 2)
    monkeypatch.setattr(pull, "OVERLAP", timedelta(seconds=3))
    ids = unlabelled(indexed)
    pushed(indexed, studio, ids)
    numbers = {id: task_of(indexed, studio, id) for id in ids}

    def work(part: Sequence[str]) -> None:
        for seed, id in enumerate(part):
            made = ls_helpers.annotate(studio, numbers[id], results.of_label(drawn("crack", seed), SIZE))
            ls_helpers.change(studio, made["id"], results.of_label(drawn("hole", 7), SIZE))

    people = [threading.Thread(target=work, args=(ids[n::3],)) for n in range(3)]
    for one in people:
        one.start()
    while any(one.is_alive() for one in people):
        pull.run(indexed, studio)
    for one in people:
        one.join()
    pull.run(indexed, studio)
    shown = labels(indexed)
    assert {shown[id].digest for id in ids} == {drawn("hole", 7).digest}


def test_what_is_submitted_while_a_long_pull_reads_on_is_not_passed_over(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page was read before somebody submitted on it, the last one after somebody else did."""
    monkeypatch.setattr(pull, "PAGE", 1)
    monkeypatch.setattr(pull, "OVERLAP", pull.OVERLAP * 0)
    first, last = unlabelled(indexed)[:2]
    pushed(indexed, studio, [first, last])
    settle_all = pull.settle_all
    pages: list[int] = []

    def slowly(*arguments: Any) -> None:
        settle_all(*arguments)
        pages.append(1)
        if len(pages) == 1:
            answer(indexed, studio, first, drawn())
            answer(indexed, studio, last, drawn("hole", 2))

    monkeypatch.setattr(pull, "settle_all", slowly)
    pull.run(indexed, studio)
    pull.run(indexed, studio)
    shown = labels(indexed)
    assert (shown[first].digest, shown[last].digest) == (drawn().digest, drawn("hole", 2).digest)


def test_an_edit_in_the_app_during_a_pull_is_kept(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    answer(indexed, studio, id, drawn())
    settle_all = pull.settle_all

    def raced(*arguments: Any) -> None:
        draw_in_app(indexed, id, "hole")
        settle_all(*arguments)

    monkeypatch.setattr(pull, "settle_all", raced)
    pull.run(indexed, studio)
    monkeypatch.undo()
    pull.run(indexed, studio)
    said = {(one.origin, tuple(sorted(one.label.present))) for one in history(indexed, id)}
    assert {("app", ("hole",)), ("label-studio", ("crack",))} <= said
    assert "hole" in labels(indexed)[id].present


# --- tokens, projects and servers that change under us ----------------------------------------------------------------


def test_a_wrong_token_is_told_with_its_remedy_and_never_printed(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "wrong0secret0token0of0forty0letters00000"
    monkeypatch.setenv(client.KEY, token)
    for arguments in (["push"], ["pull"]):
        done = command(indexed, *arguments)
        assert done.returncode == 1
        assert "401" in done.stderr
        assert client.KEY in done.stderr
        assert token not in done.stdout + done.stderr


def test_a_token_that_expires_during_a_pull_loses_nothing(indexed: Project, studio: Studio, gate: Gate) -> None:
    id = unlabelled(indexed)[0]
    reached = through(gate)
    pushed(indexed, reached, [id])
    answer(indexed, reached, id, drawn())
    gate.harm = nth(1, "401", "GET", "fields=all")
    with pytest.raises(CurateError, match=r"refuses the token \(401: out of order\): make a new one"):
        pull.run(indexed, reached)
    assert pull.run(indexed, reached).labelled == 1


def test_a_project_that_is_deleted_before_or_during_a_pull(
    indexed: Project, studio: Studio, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "PAGE", 1)
    ids = unlabelled(indexed)[:3]
    reached = through(gate)
    pushed(indexed, reached, ids)
    for id in ids:
        answer(indexed, reached, id, drawn())
    number = ls_project_of(indexed, reached).id
    gate.harm = nth(2, "", "GET", "fields=all", lambda: studio.ask("DELETE", f"/api/projects/{number}/"))
    with contextlib.suppress(CurateError):
        pull.run(indexed, reached)
    done = [id for id in ids if labels(indexed)[id].status == "labelled"]
    assert len(done) == 1, "what was read is kept"
    with pytest.raises(CurateError, match="curate push"):
        pull.run(indexed, reached)
    assert push.run(indexed, reached, push.PushRequest()).created == 2
    one_task_each(indexed, reached, [id for id in ids if id not in done])
    assert pull.run(indexed, reached).annotations == 0
    assert labels(indexed)[done[0]].digest == drawn().digest


def test_a_server_that_was_set_up_anew_does_not_lend_us_the_project_of_another(
    indexed: Project, studio: Studio
) -> None:
    """The number that we remember is somebody else's there."""
    other = ls_helpers.project(studio, "theirs", '<View><Image name="i" value="$image"/></View>')
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    ls_project = ls_project_of(indexed, studio)
    studio.ask("DELETE", f"/api/projects/{ls_project.id}/")
    replace(ls_project, id=other).save()
    push.run(indexed, studio, push.PushRequest())
    assert ls_project_of(indexed, studio).id != other
    told = studio.get(f"/api/projects/{other}")
    assert (told["title"], "brush" in told["label_config"], told["task_number"]) == ("theirs", False, 0)


def test_how_far_we_got_on_one_server_does_not_hold_on_another(indexed: Project, studio: Studio, gate: Gate) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    ls_project_of(indexed, studio).save(cursor="2099-01-01T00:00:00Z")
    answer(indexed, studio, id, drawn())
    elsewhere = through(gate)  # another address, so another server
    push.run(indexed, elsewhere, push.PushRequest())
    assert pull.run(indexed, elsewhere).annotations == 1


def hand_made(project: Project, studio: Studio, change: Callable[[str], str]) -> None:
    number = ls_project_of(project, studio).id
    there = studio.get(f"/api/projects/{number}")["label_config"]
    studio.ask("PATCH", f"/api/projects/{number}", json={"label_config": change(there)})


def config_of(project: Project, studio: Studio) -> str:
    return str(studio.get(f"/api/projects/{ls_project_of(project, studio).id}")["label_config"])


def test_a_label_config_that_was_changed_by_hand(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:2]
    ours = config_of(indexed, studio) if pushed(indexed, studio, ids) else ""
    header = '<Header value="by hand"/>'
    hand_made(indexed, studio, lambda text: re.sub(r"<View[^>]*>", lambda view: view[0] + header, text, count=1))
    report = push.run(indexed, studio, push.PushRequest())
    assert [note for note in report.notes if "changed by hand" in note and "kept; --reset-config" in note]
    assert "by hand" in config_of(indexed, studio)
    answer(indexed, studio, ids[0], drawn())
    assert pull.run(indexed, studio).labelled == 1
    hand_made(indexed, studio, lambda text: text.replace('value="hole"', 'value="Loch"'))
    with pytest.raises(CurateError, match=r"lacks the class 'hole'.* --reset-config"):
        push.run(indexed, studio, push.PushRequest())
    assert not _about_the_config(push.run(indexed, studio, push.PushRequest(reset_config=True)))
    assert config_of(indexed, studio) == ours


def _about_the_config(report: push.PushReport) -> list[str]:
    return [note for note in report.notes if "config" in note]


def test_a_config_that_existing_annotations_forbid_is_told_and_blocks_no_push(indexed: Project, studio: Studio) -> None:
    """Label Studio takes no config without a tag that annotations use."""
    project = settings(indexed, severities=["light", "deep"])
    first, second = ids = unlabelled(indexed)[:2]
    pushed(project, studio, [first])
    (defect,) = drawn().defects
    answer(project, studio, first, Label("labelled", (replace(defect, severity="deep"),)))
    pull.run(project, studio)
    round_of(project, [second], number=2)
    report = push.run(indexed, studio, push.PushRequest())
    assert report.created == 1
    assert any("severity" in note for note in _about_the_config(report))
    with pytest.raises(CurateError, match="severity"):
        push.run(indexed, studio, push.PushRequest(reset_config=True))
    one_task_each(indexed, studio, ids)


def test_a_reset_keeps_the_classes_that_annotations_use(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    answer(indexed, studio, ids[0], drawn("crack"))
    classes.retire(indexed, "crack")
    push.run(load(indexed.folder), studio, push.PushRequest(reset_config=True))
    assert 'value="crack"' in config_of(indexed, studio)
    pull.run(load(indexed.folder), studio)
    assert labels(load(indexed.folder))[ids[0]].digest == drawn("crack").digest


# --- words that nobody foresaw ----------------------------------------------------------------------------------------


def test_a_label_that_the_project_does_not_know(indexed: Project, studio: Studio) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    answer(indexed, studio, id, drawn("rust"))
    report = pull.run(indexed, studio)
    assert (report.labelled, report.disputed) == (0, 1)
    assert (labels(indexed)[id].status, labels(indexed)[id].reason) == ("disputed", "unknown-class: rust")
    classes.add(indexed, "rust")
    known = load(indexed.folder)
    pull.run(known, studio, full=True)
    assert labels(known)[id].digest == drawn("rust").digest
    each_logged_once(known, [id])


def test_classes_that_are_renamed_on_the_way(indexed: Project, studio: Studio) -> None:
    before, between = ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    answer(indexed, studio, between, drawn("crack", 2))
    pull.run(indexed, studio)
    answer(indexed, studio, before, drawn("crack"))
    classes.rename(indexed, "crack", "fissure")
    project = load(indexed.folder)
    assert pull.run(project, studio, full=True).annotations == 1
    assert pull.run(project, studio, full=True).annotations == 0
    shown = labels(project)
    assert [shown[id].digest for id in ids] == [drawn("fissure").digest, drawn("fissure", 2).digest]
    each_logged_once(project, ids)
    classes.add(project, "crack")  # another thing, under the old name
    again = load(indexed.folder)
    assert pull.run(again, studio, full=True).annotations == 0
    push.run(again, studio, push.PushRequest())
    (old,) = ls_helpers.task(studio, task_of(again, studio, before))["annotations"]
    ls_helpers.change(studio, old["id"], results.of_label(drawn("crack", 5), SIZE))
    pull.run(again, studio)
    assert labels(again)[before].digest == drawn("crack", 5).digest


def brush_of(rle: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": 32,
        "original_height": 24,
        "value": {"format": "rle", "rle": rle, "brushlabels": ["crack"], **more},
    }


def _deep(levels: int) -> Any:
    found: Any = "x"
    for _ in range(levels):
        found = [found]
    return found


GOOD = results.of_label(drawn(), SIZE)
BOX = {"id": "b", "type": "rectanglelabels", "from_name": "box", "to_name": "image"}


def box_of(*places: Any) -> dict[str, Any]:
    return BOX | {
        "value": dict(zip(("x", "y", "width", "height"), places, strict=True)) | {"rectanglelabels": ["hole"]}
    }


STORED = {  # the server takes all of it
    "another image's mask": [brush_of(results.of_label(drawn(), SIZE)[0]["value"]["rle"]) | {"original_width": 64}],
    "a mask of another size": [brush_of([0, 0, 0, 64, *GOOD[0]["value"]["rle"][4:]])],
    "cut off": [brush_of(GOOD[0]["value"]["rle"][:20])],
    "empty": [brush_of([])],
    "no list": [brush_of("AAAA")],
    "no bytes": [brush_of([300, -1, "x", None])],
    "no class": [brush_of(GOOD[0]["value"]["rle"], brushlabels=[])],
    "class is an object": [brush_of(GOOD[0]["value"]["rle"], brushlabels=[{"a": 1}])],
    "texts for numbers": [box_of("1", "2", "3", [])],
    "null for numbers": [box_of(None, 1, 2, 2)],
    "huge": [box_of(1e300, 1, 1e308, 2)],
    "outside": [box_of(200, 1, 2, 2)],
    "deep": [BOX | {"value": {"x": _deep(400), "y": 1, "width": 2, "height": 2, "rectanglelabels": _deep(400)}}],
    "deep and twice": [BOX | {"value": {"points": _deep(300), "polygonlabels": ["hole"]}}] * 2,
    "a key point": [BOX | {"type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["hole"]}}],
    "a stub of a polygon": [BOX | {"value": {"points": [[1, 1]], "polygonlabels": ["hole"]}}],
    "NUL": [brush_of(GOOD[0]["value"]["rle"], brushlabels=["\0"])],
}
BENT: dict[str, Any] = {  # Label Studio 1.23 refuses to store it; other versions, imports and storages may not
    "null": None,
    "an object": {},
    "a text": "",
    "a list of null": [None],
    "no value": [{"id": "c", "type": "brushlabels", "from_name": "brush", "to_name": "image"}],
    "a list of texts": ["crack"],
    "not a number": [box_of(float("nan"), 1, 2, 2)],
}


def test_words_that_mean_nothing_are_disputed_and_cost_no_other_task(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = unlabelled(indexed)
    odd, fine = ids[:-2], ids[-2:]
    pushed(indexed, studio, ids)
    numbers = {id: task_of(indexed, studio, id) for id in ids}
    for id in fine:
        ls_helpers.annotate(studio, numbers[id], GOOD)
    made = {id: ls_helpers.annotate(studio, numbers[id], GOOD)["id"] for id in odd}
    pull.run(indexed, studio)
    words = [*STORED.items()]
    for start in range(0, len(words), len(odd)):
        part = dict(zip(odd, words[start : start + len(odd)], strict=False))
        for id, (_, result) in part.items():
            ls_helpers.change(studio, made[id], result)
        pull.run(indexed, studio)
        shown = labels(indexed)
        for id, (name, _) in part.items():
            assert shown[id].status == "disputed", name
            assert (shown[id].reason or "").startswith(("unreadable-region", "unknown-class")), name
        assert all(shown[id].digest == drawn().digest for id in fine)


def test_results_of_no_known_form_are_disputed(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake in one place: what the server sent is bent before we read it."""
    ids = unlabelled(indexed)[: len(BENT) + 1]
    pushed(indexed, studio, ids)
    suggestion = ls_helpers.task(studio, task_of(indexed, studio, ids[0]))["id"]
    for id in ids:
        answer(indexed, studio, id, drawn())
    real, bent = tasks.listed, dict(zip(ids, BENT.items(), strict=False))

    def listed(*arguments: Any, **more: Any) -> Iterator[dict[str, Any]]:
        for task in real(*arguments, **more):
            for one in task.get("annotations", ()):
                if task["data"]["content_id"] in bent:
                    one["result"] = bent[task["data"]["content_id"]][1]
                    one["parent_prediction"] = suggestion
            yield task

    monkeypatch.setattr(tasks, "listed", listed)
    pull.run(indexed, studio)
    shown = labels(indexed)
    assert {name: shown[id].status for id, (name, _) in bent.items()} == dict.fromkeys(BENT, "disputed")
    assert shown[ids[-1]].digest == drawn().digest


def test_tasks_that_others_put_into_our_project(indexed: Project, studio: Studio) -> None:
    id, other = unlabelled(indexed)[:2]
    pushed(indexed, studio, [id])
    number = ls_project_of(indexed, studio).id
    strange: list[Any] = [None, 5, ["x"], {"a": [1]}, "nobody", "", True]
    data = [{"image": "/a.png", "content_id": one, "batch": "round 001"} for one in strange] + [{"image": "/b.png"}]
    for task in ls_helpers.import_tasks(studio, number, [{"data": one} for one in data]):
        ls_helpers.annotate(studio, task, GOOD)
    (theirs,) = ls_helpers.import_tasks(
        studio, number, [{"data": {"image": "/c.png", "content_id": other, "base": [1]}}]
    )
    ls_helpers.annotate(studio, theirs, results.of_label(drawn("hole", 2), SIZE))
    report = pull.run(indexed, studio)
    assert (report.strangers, report.annotations) == (len(data), 1)
    assert labels(indexed)[other].digest == drawn("hole", 2).digest
    assert push.run(indexed, studio, push.PushRequest()).existing == 1
    assert push.withdraw(indexed, studio, push.PushRequest())["withdrawn"] == 1
    assert labels(indexed)[id].status == "unlabelled"


def test_ids_that_are_used_again_are_no_old_acquaintances(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    old = {id: (task_of(indexed, studio, id), answer(indexed, studio, id, drawn())["id"]) for id in ids}
    pull.run(indexed, studio)
    for number, _ in old.values():
        studio.ask("DELETE", f"/api/tasks/{number}/")
    assert pull.run(indexed, studio, full=True).annotations == 0
    assert {labels(indexed)[id].digest for id in ids} == {drawn().digest}, "with its task a label does not go"
    new = unlabelled(indexed)[0]
    round_of(indexed, [new], number=2)
    push.run(indexed, studio, push.PushRequest())
    made = answer(indexed, studio, new, drawn("hole", 4))
    again = {task_of(indexed, studio, new), made["id"]} & {number for pair in old.values() for number in pair}
    pull.run(indexed, studio)
    assert labels(indexed)[new].digest == drawn("hole", 4).digest, f"ids used again: {again}"
    assert {labels(indexed)[id].digest for id in ids} == {drawn().digest}


def test_one_of_two_annotators_takes_theirs_back_and_one_is_edited_by_another(indexed: Project, studio: Studio) -> None:
    shared, edited = ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    anna, ben = ls_helpers.annotator(studio, "anna"), ls_helpers.annotator(studio, "ben")
    first = answer(indexed, anna, shared, drawn())
    answer(indexed, ben, shared, drawn("hole", 5))
    theirs = answer(indexed, anna, edited, drawn())
    pull.run(indexed, studio)
    assert labels(indexed)[shared].status == "disputed"
    ls_helpers.withdraw(studio, first["id"])
    ls_helpers.change(ben, theirs["id"], results.of_label(drawn("hole", 6), SIZE))
    report = pull.run(indexed, studio)
    assert (report.annotations, report.deleted) == (1, 1)
    assert labels(indexed)[shared].digest == drawn("hole", 5).digest
    assert labels(indexed)[edited].digest == drawn("hole", 6).digest
    assert [one.label.digest for one in history(indexed, edited)] == [drawn().digest, drawn("hole", 6).digest]


# --- images and names -------------------------------------------------------------------------------------------------

NAMES = ["a b", "#1", "50%", "50%20", "why?", "a+b", "it's", 'say "x"', "ä🔥", "-rf", "a..b", "a&b=c", "a;b", "<b>"]
NAMES += ["c:d", "d\te", " x ", "{path}"]


def test_hostile_names_reach_the_annotators_whole(make: Callable[..., Project], studio: Studio, tmp_path: Path) -> None:
    root = tmp_path / "line"
    for seed, name in enumerate(NAMES):
        fakes.save_image(root / name / f"{name}.png", *SIZE, seed=seed)
    strange = ["<script>alert(1)</script>", "a\"b'c", "ä🔥", "$image", "a,b", "-x", "..", "clean", "{path}", "%s"]
    source = {"name": "the #1 line%", "format": "images", "data": root}
    project = make([source], strange, name="50% <b>&\"'")
    sync.run(project)
    ids = unlabelled(project)
    assert len(ids) == len(NAMES)
    report = pushed(project, studio, ids)
    assert (report.created, report.refused) == (len(NAMES), [])
    held = {one.data["content_id"]: one for one in tasks.held(ls_project_of(project, studio))}
    for id in ids:
        assert studio.hash_of(held[id].data["image"], 1 << 20) == id, held[id].data["image"]
    for id, name in zip(ids, strange, strict=False):
        ls_helpers.annotate(studio, held[id].id, results.of_label(drawn(name), SIZE))
    pull.run(project, studio)
    shown = labels(project)
    assert [shown[id].digest for id in ids[: len(strange)]] == [drawn(name).digest for name in strange]
    assert not _about_the_config(push.run(project, studio, push.PushRequest()))


def test_an_image_that_vanished_is_refused_and_the_others_are_sent(indexed: Project, studio: Studio) -> None:
    gone, *ids = unlabelled(indexed)[:3]
    round_of(indexed, [gone, *ids])
    (path,) = Index(indexed).dataset.match({"content_id": gone}).values("filepath")
    kept = Path(path).read_bytes()
    Path(path).unlink()
    report = push.run(indexed, studio, push.PushRequest())
    assert (report.created, [one["id"] for one in report.refused]) == (2, [gone])
    assert labels(indexed)[gone].status == "unlabelled"
    Path(path).write_bytes(kept)
    assert push.run(indexed, studio, push.PushRequest()).created == 1
    one_task_each(indexed, studio, [gone, *ids])


def test_images_that_are_uploaded_are_uploaded_once(indexed: Project, studio: Studio, gate: Gate) -> None:
    project = settings(indexed, images="upload")
    ids = unlabelled(project)[:3]
    round_of(project, ids)
    reached = through(gate)
    gate.harm = nth(3, "lost", "POST", "commit_to_project=false")
    with contextlib.suppress(Unanswered):
        push.run(project, reached, push.PushRequest())
    push.run(project, reached, push.PushRequest())
    assert push.run(project, reached, push.PushRequest()).updated == 0
    one_task_each(project, reached, ids)
    for one in tasks.held(ls_project_of(project, reached)):
        assert studio.hash_of(one.data["image"], 1 << 20) == one.data["content_id"]
    files = studio.get(f"/api/projects/{ls_project_of(project, reached).id}/file-uploads", all="true")
    names = Counter(Path(one["file"]).name.partition("-")[2] for one in files)
    assert max(names.values()) == 1


def test_images_in_an_object_store(indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is a fake: a file system of fsspec that signs."""
    import fsspec

    class Signing(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "faked"

        def sign(self, path: str, expiration: int = 100, **more: Any) -> str:
            return f"https://store.example/{path}?X-Signature={random.random()}&X-Expires={expiration}"

    fsspec.register_implementation("faked", Signing, clobber=True)
    project = settings(indexed, images="url", url="faked://bucket/{source}/{path}", signed_hours=1)
    ids = unlabelled(project)[:2]
    report = pushed(project, studio, ids)
    assert (report.created, report.refused) == (2, [])
    for one in tasks.held(ls_project_of(project, studio)):
        assert one.data["image"].startswith("https://store.example/bucket/line/A/cam")
        assert one.data["image"].endswith("X-Expires=3600")
    assert push.run(project, studio, push.PushRequest()).updated == 0, "a new signature is no change"
    plain = settings(indexed, images="url", url="https://images.example/{source}/{path}")
    assert push.run(plain, studio, push.PushRequest()).updated == 2
    assert all(
        one.data["image"].startswith("https://images.example/line/A/")
        for one in tasks.held(ls_project_of(plain, studio))
    )


# --- the index is lost ------------------------------------------------------------------------------------------------


def test_after_the_database_is_lost_everything_is_there_again(indexed: Project, studio: Studio) -> None:
    done, edited, waiting, back = ids = unlabelled(indexed)[:4]
    pushed(indexed, studio, ids)
    answer(indexed, studio, done, drawn())
    pull.run(indexed, studio)
    ls_helpers.annotate(studio, task_of(indexed, studio, waiting), GOOD)
    push.withdraw(indexed, studio, push.PushRequest())
    draw_in_app(indexed, edited, "hole")
    draw_in_app(indexed, labelled(indexed)[0], "hole")
    pull.run(indexed, studio)
    ls_helpers.withdraw(studio, ls_helpers.task(studio, task_of(indexed, studio, waiting))["annotations"][0]["id"])
    pull.run(indexed, studio)
    before = labels(indexed)
    assert (before[waiting].status, before[back].status) == ("queued", "unlabelled")
    index = Index(indexed)
    index.fo.delete_dataset(index.dataset.name)
    sync.run(indexed)
    pull.rebuild(indexed)
    assert {id: one.digest for id, one in labels(indexed).items()} == {id: one.digest for id, one in before.items()}
    assert pull.run(indexed, studio, full=True).annotations == 0
    assert {id: one.digest for id, one in labels(indexed).items()} == {id: one.digest for id, one in before.items()}
