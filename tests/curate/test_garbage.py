"""`curate gc`: only what is superseded goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curate import garbage
from curate.errors import CurateError
from curate.project import Project, ProjectConfig, SourceConfig
from tests.fakes import save_text


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, ProjectConfig(sources=(SourceConfig(format="voc", data=Path()),)))


def aged(path: Path, age: int) -> Path:
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def folder(project: Project, name: str, age: int = 0) -> Path:
    save_text(project.work / name / "part", "12345")
    return aged(project.work / name, age)


def found(project: Project) -> dict[str, str]:
    return {path.relative_to(project.work).as_posix(): why for path, _, why in garbage.find(project)}


def test_an_empty_or_missing_work_has_nothing(project: Project) -> None:
    assert garbage.find(project) == []


def test_labels_splits_rounds_and_the_database_are_never_candidates(project: Project) -> None:
    for name in ("labels/000001.jsonl", "splits/000001.jsonl", "rounds/001/manifest.json", "db/.x.part", "state.json"):
        save_text(project.work / name, "{}")
    assert found(project) == {}


def test_what_a_killed_command_left_goes_and_nothing_else(project: Project) -> None:
    folder(project, "rounds/.002.77.part")
    save_text(project.work / ".state.json.77.part", "{}")
    save_text(project.work / "rounds" / "001" / "keep.part", "{}")
    candidates = garbage.find(project)
    assert [(item.path.name, item.bytes) for item in candidates] == [(".state.json.77.part", 2), (".002.77.part", 5)]
    garbage.remove(candidates)
    assert garbage.find(project) == []
    assert (project.work / "rounds" / "001" / "keep.part").exists()


def test_of_each_table_the_newest_stays(project: Project) -> None:
    for name, age in (("dino-v2-aa", 3), ("dino-v2-bb", 1), ("dino-v2-cc", 2), ("clip-aa", 9)):
        folder(project, f"vectors/{name}.lance", age)
    folder(project, "scores/dino-v2-aa.lance", 5)
    assert found(project) == {
        "vectors/dino-v2-aa.lance": "superseded vectors",
        "vectors/dino-v2-cc.lance": "superseded vectors",
    }


def test_tables_whose_names_hold_no_key_do_not_supersede_each_other(project: Project) -> None:
    for age, name in enumerate(("one", "two", "three")):
        folder(project, f"scores/{name}.lance", age)
    assert found(project) == {}


def test_models_stay_that_are_newest_or_named(project: Project) -> None:
    for age, name in enumerate(("newest", "champion", "of-a-round", "by-path", "as-a-key", "old")):
        folder(project, f"models/{name}", age)
    save_text(project.work / "models" / "registry.json", '{"champion": "champion", "scores": {"as-a-key": 0.5}}')
    save_text(project.work / "rounds" / "001" / "manifest.json", '{"used": [{"model": "of-a-round"}]}')
    save_text(project.work / "rounds" / "002" / "manifest.json", '{"used": ["work/models/by-path/w.pt"]}')
    assert found(project) == {"models/old": "superseded model: no alias or round names it"}


def test_a_half_written_model_is_not_the_newest(project: Project) -> None:
    folder(project, "models/.next.77.part", 0)
    folder(project, "models/newest", 5)
    assert found(project) == {"models/.next.77.part": "left by a killed command"}


def test_a_damaged_manifest_stops_before_anything_is_judged(project: Project) -> None:
    for age, name in enumerate(("newest", "old")):
        folder(project, f"models/{name}", age)
    save_text(project.work / "rounds" / "001" / "manifest.json", "{")
    with pytest.raises(CurateError, match=r"001/manifest\.json is damaged"):
        garbage.find(project)


def test_rounds_that_were_never_pushed_go_save_the_newest(project: Project) -> None:
    for name, pushed in (("001", "true"), ("002", "false"), ("003", "null"), ("004", "false")):
        save_text(project.work / "rounds" / name / "round.json", f'{{"pushed": {pushed}}}')
    assert set(found(project)) == {"rounds/002", "rounds/003"}


def test_what_was_made_of_a_model_goes_with_it(project: Project) -> None:
    for made in ("evaluations", "robustness", "explanations", "exports"):
        for model in ("here", "gone"):
            folder(project, f"{made}/{model}")
    folder(project, "models/here")
    save_text(project.work / "robustness" / ".lock", "")
    wanted = ("evaluations", "robustness", "explanations", "exports")
    assert found(project) == {f"{made}/gone": f"{made} of a model that is gone" for made in wanted}
