"""A Label Studio server that is killed, and one that answers wrongly: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.index import rounds
from curate.project import Project
from labeling import client, images, pull, push, server
from labeling.client import Studio, Unanswered, Unreachable
from labeling.server import RunningServer
from tests.labeling.conftest import started_before
from tests.labeling.faults.helpers import Gate, answer, drawn, each_logged_once, nth, one_task_each, through
from tests.labeling.helpers import labels, pushed, round_of, unlabelled

EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    "harm", ["lost", *(pytest.param(harm, marks=EXHAUSTIVE) for harm in ("cut", "after 502")), "500", "late"]
)
def test_an_answer_that_fails_doubles_nothing(
    indexed: Project, studio: Studio, gate: Gate, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(push, "BATCH", 2)
    monkeypatch.setattr(push, "CALM", 0.2)
    if harm == "late":
        monkeypatch.setattr(client, "TIMEOUT", 5)
        monkeypatch.setattr(push, "CALM", 2)
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

    def __init__(self, folder: Path, template: Path) -> None:
        started_before(folder / "server", template)
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
def mortal(
    tmp_path: Path, template: Path, studio_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mortal]:
    made = Mortal(tmp_path / "mortal", template)
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
