"""Two commands at once, and people who submit while a pull reads."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from curate.project import Project, load
from labeling import pull, push, remote_project, results
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.faults.helpers import GOOD, SIZE, answer, draw_in_app, drawn, ended, is_ours, one_task_each, start
from tests.labeling.helpers import history, labels, pushed, round_of, task_of, unlabelled


def test_two_pushes_at_once_make_one_task_each(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)
    round_of(indexed, ids)
    done = [ended(one) for one in [start(indexed, "push", "--json") for _ in range(2)]]
    assert sorted(one.returncode for one in done) in ([0, 0], [0, 1])
    for one in done:
        assert one.returncode == 0 or "is writing to this project" in one.stderr
    one_task_each(indexed, studio, ids)


@pytest.mark.exhaustive
def test_two_folders_that_share_a_dataset_end_on_one_label_studio_project(
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
    ours = [one for one in ls_helpers.projects(studio) if is_ours(mine, studio, one)]
    assert made["mine"] == min(one for one in ours if remote_project._is_whole(studio, one))
    for left in set(ours) - {made["mine"]}:  # a request that the server did twice
        assert studio.get(f"/api/projects/{left}/")["task_number"] == 0


def _copied(project: Project, folder: Path) -> Path:
    shutil.copytree(project.folder, folder, symlinks=True)
    return folder


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
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
