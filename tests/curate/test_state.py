"""The schema of `work/`: migrated step by step by a newer tool, refused by an older one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curate import state
from curate.errors import CurateError
from curate.project import Project, ProjectConfig, SourceConfig
from tests.fakes import save_text


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, ProjectConfig(sources=(SourceConfig(format="voc", data=Path()),)))


def schema(project: Project) -> int:
    return int(json.loads((project.work / "state.json").read_text())["schema"])


def set_schema(project: Project, version: int) -> None:
    save_text(project.work / "state.json", json.dumps({"schema": version}))


def test_a_new_project_has_today_s_schema(project: Project) -> None:
    state.ensure(project)
    assert schema(project) == state.SCHEMA


def test_every_step_from_the_old_schema_runs_once_and_in_order(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(state, "SCHEMA", 4)
    monkeypatch.setattr(state, "MIGRATIONS", {n: lambda p, n=n: steps.append(n) for n in (0, 1, 3)})
    set_schema(project, 1)
    state.ensure(project)
    assert (steps, schema(project)) == ([1, 3], 4)
    state.ensure(project)
    assert steps == [1, 3]


def test_a_migration_that_fails_is_tried_again_and_done_ones_are_not(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def second(_: Project) -> None:
        steps.append(2)
        if steps.count(2) == 1:
            raise OSError("disk full")

    monkeypatch.setattr(state, "SCHEMA", 3)
    monkeypatch.setattr(state, "MIGRATIONS", {1: lambda p: steps.append(1), 2: second})
    set_schema(project, 1)
    with pytest.raises(OSError, match="disk full"):
        state.ensure(project)
    assert schema(project) == 2
    state.ensure(project)
    assert (steps, schema(project)) == ([1, 2, 2], 3)


def test_a_newer_schema_is_refused_and_left_alone(project: Project) -> None:
    set_schema(project, state.SCHEMA + 1)
    with pytest.raises(CurateError, match=r"was written by a newer curate \(state schema .*pip install --upgrade"):
        state.ensure(project)
    assert schema(project) == state.SCHEMA + 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": null}', '{"schema": "x"}', "5"])
def test_a_damaged_state_is_reported(project: Project, text: str) -> None:
    save_text(project.work / "state.json", text)
    with pytest.raises(CurateError, match=r'state\.json is damaged; it should hold {"schema": '):
        state.ensure(project)
    assert (project.work / "state.json").read_text() == text
