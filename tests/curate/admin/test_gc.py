"""`curate gc`: only what is superseded goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curate import files
from curate.admin import gc
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


def superseded(project: Project) -> dict[str, str]:
    return {path.relative_to(project.work).as_posix(): why for path, _, why in gc.find(project)}


def test_an_empty_or_missing_work_has_nothing(project: Project) -> None:
    assert gc.find(project) == []


def test_labels_splits_rounds_and_the_database_are_never_candidates(project: Project) -> None:
    for name in ("labels/000001.jsonl", "splits/000001.jsonl", "rounds/001/manifest.json", "db/.x.part", "state.json"):
        save_text(project.work / name, "{}")
    assert superseded(project) == {}


def test_what_a_killed_command_left_goes_and_nothing_else(project: Project) -> None:
    folder(project, "rounds/.002.77.part")
    save_text(project.work / ".state.json.77.part", "{}")
    save_text(project.work / "rounds" / "001" / "keep.part", "{}")
    candidates = gc.find(project)
    assert [(item.path.name, item.bytes) for item in candidates] == [(".state.json.77.part", 2), (".002.77.part", 5)]
    gc.remove(project, candidates)
    assert gc.find(project) == []
    assert (project.work / "rounds" / "001" / "keep.part").exists()


def test_of_each_table_the_newest_stays(project: Project) -> None:
    for name, age in (("dino-v2-aa", 3), ("dino-v2-bb", 1), ("dino-v2-cc", 2), ("clip-aa", 9)):
        folder(project, f"vectors/{name}.lance", age)
    folder(project, "scores/dino-v2-aa.lance", 5)
    assert superseded(project) == {
        "vectors/dino-v2-aa.lance": "superseded vectors",
        "vectors/dino-v2-cc.lance": "superseded vectors",
    }


def test_tables_whose_names_hold_no_key_do_not_supersede_each_other(project: Project) -> None:
    for age, name in enumerate(("one", "two", "three")):
        folder(project, f"scores/{name}.lance", age)
    assert superseded(project) == {}


def test_models_stay_that_are_newest_or_named(project: Project) -> None:
    for age, name in enumerate(("newest", "champion", "of-a-round", "by-path", "as-a-key", "old")):
        folder(project, f"models/{name}", age)
    save_text(project.work / "models" / "registry.json", '{"champion": "champion", "scores": {"as-a-key": 0.5}}')
    save_text(project.work / "rounds" / "001" / "manifest.json", '{"used": [{"model": "of-a-round"}]}')
    save_text(project.work / "rounds" / "002" / "manifest.json", '{"used": ["work/models/by-path/w.pt"]}')
    assert superseded(project) == {"models/old": "superseded model: no alias or round names it"}


def test_a_half_written_model_is_not_the_newest(project: Project) -> None:
    folder(project, "models/.next.77.part", 0)
    folder(project, "models/newest", 5)
    assert superseded(project) == {"models/.next.77.part": "left by a killed command"}


def test_a_damaged_manifest_stops_before_anything_is_judged(project: Project) -> None:
    for age, name in enumerate(("newest", "old")):
        folder(project, f"models/{name}", age)
    save_text(project.work / "rounds" / "001" / "manifest.json", "{")
    with pytest.raises(CurateError, match=r"001/manifest\.json is damaged"):
        gc.find(project)


def test_rounds_that_were_never_pushed_go_save_the_newest(project: Project) -> None:
    for name, pushed in (("001", "true"), ("002", "false"), ("003", "null"), ("004", "false")):
        save_text(project.work / "rounds" / name / "round.json", f'{{"pushed": {pushed}}}')
    assert set(superseded(project)) == {"rounds/002", "rounds/003"}


def test_what_was_made_of_a_model_goes_with_it(project: Project) -> None:
    for kind in ("evaluations", "robustness", "explanations", "exports"):
        for model in ("here", "gone"):
            folder(project, f"{kind}/{model}")
    folder(project, "models/here")
    save_text(project.work / "robustness" / ".lock", "")
    wanted = ("evaluations", "robustness", "explanations", "exports")
    assert superseded(project) == {f"{kind}/gone": f"{kind} of a model that is gone" for kind in wanted}


def test_what_was_made_of_a_model_goes_in_the_same_sweep(project: Project) -> None:
    for age, name in enumerate(("newest", "champion", "old")):
        folder(project, f"models/{name}", age)
        folder(project, f"exports/{name}")
    save_text(project.work / "models" / "production.json", '{"model": "champion"}')
    assert set(superseded(project)) == {"models/old", "exports/old"}


def test_a_training_that_was_given_up_goes_and_one_to_go_on_with_stays(project: Project) -> None:
    folder(project, "models/.given-up.training", 5)
    folder(project, "models/finished", 3)
    folder(project, "models/.killed.training", 1)
    assert superseded(project) == {
        "models/.given-up.training": "training that was given up: another was finished since",
    }


def test_without_a_finished_model_no_training_is_given_up(project: Project) -> None:
    folder(project, "models/.killed.training", 1)
    assert superseded(project) == {}


def result(project: Project, name: str, age: int, file: str = "manifest.json", text: str = "{}") -> None:
    save_text(project.work / name / file, text)
    aged(project.work / name, age)


def test_of_each_kind_of_result_the_newest_finished_one_stays(project: Project) -> None:
    folder(project, "models/m")
    crack, plain = '{"targets": {"crack": 0.9}}', '{"targets": {}}'
    result(project, "evaluations/m/test-aa", 9, text=plain)
    result(project, "evaluations/m/test-bb", 8, text=plain)
    result(project, "evaluations/m/test-cc", 7, text=crack)
    result(project, "evaluations/m/val-dd", 9, text=plain)
    for name, age in (("folds-5-aa", 5), ("folds-5-bb", 4), ("folds-5-test-cc", 6)):
        result(project, f"evaluations/m/{name}", age, "result-x.json")
    result(project, "evaluations/m/folds-5-dd", 1, "fold-1-1.json")  # at work, or killed: it may be gone on with
    folder(project, "evaluations/m/judged-aa.lance", 9)
    folder(project, "evaluations/m/judged-bb.lance", 1)
    result(project, "robustness/m/leave-out-exposure-aa", 3)
    result(project, "robustness/m/leave-out-exposure-bb", 2)
    result(project, "robustness/m/test-cc", 3)
    for name, age, view in (("aa", 3, '"x"'), ("bb", 2, '"x"'), ("cc", 3, "null")):
        result(project, f"explanations/m/{name}", age, "report.json", f'{{"view": {view}}}')
    assert superseded(project) == {
        "evaluations/m/test-aa": "superseded evaluations",
        "evaluations/m/folds-5-aa": "superseded evaluations",
        "robustness/m/leave-out-exposure-aa": "superseded robustness",
        "explanations/m/aa": "superseded explanations",
    }


def test_what_is_not_finished_goes_once_another_is(project: Project) -> None:
    folder(project, "models/m")
    result(project, "evaluations/m/folds-5-aa", 5, "fold-1-1.json")
    result(project, "evaluations/m/folds-5-bb", 4, "result-x.json")
    folder(project, "evaluations/m/folds-5-bb/.1-1.training")
    aged(project.work / "evaluations/m/folds-5-bb", 4)
    assert superseded(project) == {
        "evaluations/m/folds-5-aa": "superseded evaluations",
        "evaluations/m/folds-5-bb/.1-1.training": "left by a killed command",
    }


def test_searches_keep_what_they_found_and_the_newest_its_trial(project: Project) -> None:
    for name, age in (("old", 5), ("new", 1)):
        save_text(project.work / "tune" / name / "study.sqlite", "x")
        folder(project, f"tune/{name}/.aa.training")
        aged(project.work / "tune" / name, age)
    assert superseded(project) == {"tune/old/.aa.training": "trial that was given up: another search was begun since"}


@pytest.mark.parametrize(
    ("room", "path"),
    [
        ("models", "models/.given-up.training"),
        ("exports", "exports/.m.77.part"),
        ("tune/old", "tune/old/.aa.training"),
        ("evaluations", "evaluations/gone"),
    ],
)
def test_nothing_goes_from_where_a_command_is_at_work(project: Project, room: str, path: str) -> None:
    folder(project, path, 5)
    for name in ("models/finished", "tune/new"):
        folder(project, name, 1)
    aged((project.work / path).parent, 5)
    assert set(superseded(project)) == {path}
    with files.writer_lock(project.work / room, "curate train"):
        assert superseded(project) == {}
    aged((project.work / path).parent, 5)
    assert set(superseded(project)) == {path}


def test_what_is_found_is_removed_whole(project: Project) -> None:
    folder(project, "models/old/.weights.77.part")
    folder(project, "evaluations/old/test-aa")
    for age, name in enumerate(("newest", "old")):
        folder(project, f"models/{name}", age)
    listed = gc.find(project)
    assert {item.path.relative_to(project.work).as_posix(): item.bytes for item in listed} == {
        "models/old": 10,
        "evaluations/old": 5,
    }
    assert gc.remove(project, listed) == listed
    assert gc.find(project) == []
    assert (project.work / "models" / "newest").is_dir()


def test_half_made_batches_go_once_a_later_one_is_finished(project: Project) -> None:
    folder(project, "synth/.old.making", 5)
    result(project, "synth/batch", 3)
    folder(project, "synth/.new.making", 1)
    folder(project, "synth/models/.only.fitting", 9)
    assert superseded(project) == {"synth/.old.making": "batch that was given up: another was finished since"}


def test_where_somebody_began_to_work_meanwhile_nothing_goes(project: Project) -> None:
    for name, age in (("rounds/.002.77.part", 1), ("simulations/plays/worlds/aa", 1), ("simulations/plays/curves", 1)):
        folder(project, name, age)
    listed = gc.find(project)
    assert {item.path.name: item.why for item in listed} == {
        ".002.77.part": "left by a killed command",
        "worlds": "left by a killed simulation",
    }
    with files.writer_lock(project.work / "simulations", "curate simulate"):
        assert [item.path.name for item in gc.remove(project, listed)] == [".002.77.part"]
    assert [item.path.name for item in gc.find(project)] == ["worlds"]
