"""`curate loop`: whole turns of the wheel, with a real server, a real database and a small real model."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import pytest

from curate.data import Label
from curate.index.dataset import Index
from curate.project import Project
from labeling import results, tasks
from labeling.client import Studio
from tests.curate.cli.test_cli import Run, ok, run
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import ls_project_of
from tests.train.conftest import TINY, works

__all__ = ["run", "works"]

SIZE = (64, 64)
QUICK = [part for key in (*TINY, "epochs=1") for part in ("--set", key)]


def steps(told: dict[str, Any]) -> dict[str, bool]:
    return {one["step"]: one["did"] for one in told["steps"]}


def annotate_all(project: Project, studio: Studio) -> int:
    """Every open task gets a mask in its upper left corner."""
    from curate.data import make_defect

    drawn = results.of_label(Label("labelled", (make_defect("crack", (1, 1, 9, 7)),)), SIZE)
    ls_project = ls_project_of(project, studio)
    found = tasks.untouched(ls_project, [one.id for one in tasks.held(ls_project)])
    for id in found:
        ls_helpers.annotate(studio, id, drawn)
    return len(found)


def test_turn_after_turn_until_nothing_is_left(works: Project, studio: Studio, run: Run) -> None:
    arguments = ("loop", "--project", works.folder, "--budget", "4", "--go-on", *QUICK, "--json")
    first = ok(run(*arguments))
    assert [one["step"] for one in first["steps"]] == [
        *("index", "embed", "pull", "train", "predict", "evaluate", "stop-check", "select", "push")
    ]
    assert {"train", "predict", "select", "push"} <= {name for name, did in steps(first).items() if did}
    assert first["ended"] is None
    assert not steps(first)["pull"], "nothing was pushed before"
    waits = ok(run(*arguments))
    assert [one["step"] for one in waits["steps"]] == ["index", "embed", "pull"]
    assert "4 of 4 images wait" in waits["ended"]
    assert annotate_all(works, studio) == 4
    second = ok(run(*arguments))
    did = steps(second)
    assert did["pull"]
    assert did["select"]
    assert did["push"]
    assert not did["index"]
    assert not did["embed"]
    assert annotate_all(works, studio) == 2
    last = ok(run(*arguments))
    assert "nothing can be picked" in last["ended"]
    assert Index(works).tally("status") == {"labelled": 30}


@pytest.mark.exhaustive
def test_it_can_wait_for_the_people(works: Project, studio: Studio, run: Run) -> None:
    over = threading.Event()

    def people() -> None:
        while not over.wait(0.5):
            with contextlib.suppress(AssertionError, KeyError):  # nothing is pushed yet
                annotate_all(works, studio)

    thread = threading.Thread(target=people)
    thread.start()
    arguments = ("loop", "--project", works.folder, "--budget", "3", "--go-on", "--no-train", "--wait", "--every", "1")
    try:
        code, out, err = run(*arguments, "--json")
    finally:
        over.set()
        thread.join()
    assert code == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert "nothing can be picked" in told[-1]["ended"]
    assert len(told) == 3
    assert "train" not in steps(told[0])
