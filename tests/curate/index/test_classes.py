"""Renaming, merging, adding and retiring classes: config, log and index change together."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate import files
from curate.admin.status import summarise
from curate.errors import CurateError
from curate.index import classes, sync
from curate.index.dataset import Index
from curate.labels.log import LabelLog
from curate.project import Project, load
from tests import fakes
from tests.conftest import dump


def by_class(project: Project) -> dict[str, int]:
    counts: dict[str, int] = summarise(load(project.folder))["by_class"]
    return counts


def test_rename_reaches_config_log_and_index(indexed: Project) -> None:
    assert classes.rename(indexed, "crack", "fissure")["images"] == 8
    renamed = load(indexed.folder)
    assert renamed.class_names == ["fissure", "hole"]
    assert by_class(indexed) == {"fissure": 8, "hole": 4, "clean": 4}
    log = LabelLog(indexed.work / "labels")
    assert {name for id in log.ids() for name in log.state(id).label.present} == {"fissure", "hole"}
    report = sync.run(renamed)
    assert (report.updated, report.quarantined, report.app_edits) == (0, 0, 0)


def test_label_files_keep_their_old_names_and_are_still_understood(indexed: Project, library: Path) -> None:
    classes.rename(indexed, "crack", "fissure")
    fakes.save_image(library / "images" / "new_1.png", 32, 24, seed=3131)
    fakes.save_mask(library / "masks" / "crack" / "new_1.png", size=(32, 24))
    assert sync.run(load(indexed.folder)).added == 1
    assert by_class(indexed)["fissure"] == 9


def test_merge(indexed: Project) -> None:
    classes.merge(indexed, ["hole"], "crack")
    assert load(indexed.folder).class_names == ["crack"]
    assert by_class(indexed) == {"crack": 12, "clean": 4}
    assert sync.run(load(indexed.folder)).updated == 0


def test_a_chain_of_renames_and_a_merge(indexed: Project) -> None:
    classes.rename(indexed, "crack", "a")
    classes.rename(load(indexed.folder), "a", "b")
    classes.merge(load(indexed.folder), ["hole"], "b")
    project = load(indexed.folder)
    assert project.config.aliases == {"crack": "b", "a": "b", "hole": "b"}
    assert sync.run(project).updated == 0
    assert by_class(project) == {"b": 12, "clean": 4}


def test_renaming_back_leaves_no_loop(indexed: Project) -> None:
    before = dump(indexed)
    classes.rename(indexed, "crack", "x")
    classes.rename(load(indexed.folder), "x", "crack")
    project = load(indexed.folder)
    assert "crack" not in project.config.aliases
    sync.run(project)
    assert dump(project) == before


def test_labels_survive_a_lost_database_after_a_rename(indexed: Project) -> None:
    classes.rename(indexed, "crack", "fissure")
    project = load(indexed.folder)
    before = dump(project)
    Index(project).dataset.delete()
    sync.run(project)
    assert dump(project) == before


def test_a_kill_between_log_and_config_is_mended_by_the_next_run(indexed: Project, monkeypatch: object) -> None:
    """The log is written first; here the process dies before project.toml is."""
    log = LabelLog(indexed.work / "labels")
    log.rename({"crack": "fissure"}, "someone", "renamed crack to fissure")
    log.close()
    classes.rename(indexed, "crack", "fissure")
    assert by_class(indexed) == {"fissure": 8, "hole": 4, "clean": 4}
    assert sync.run(load(indexed.folder)).updated == 0


def test_adding_again_says_so_and_keeps_comments(plant: Project) -> None:
    plant.file.write_text(plant.file.read_text() + "# mine\n")
    assert classes.add(plant, "dent")["did"] == "added dent"
    text = load(plant.folder).file.read_text()
    assert "# mine" in text
    assert classes.add(load(plant.folder), "dent")["did"].startswith("class dent exists already")
    assert plant.file.read_text() == text


def test_a_retired_class_that_is_added_is_offered_again(plant: Project) -> None:
    classes.retire(plant, "crack")
    assert classes.retire(load(plant.folder), "crack")["did"] == "class crack is retired already"
    assert "again" in classes.add(load(plant.folder), "crack")["did"]
    assert load(plant.folder).active_classes == ["crack", "hole"]


def test_add_and_retire(indexed: Project) -> None:
    classes.add(indexed, "dent", "#102030", "a dent")
    classes.retire(load(indexed.folder), "crack")
    project = load(indexed.folder)
    assert [(c.name, c.retired) for c in project.config.classes] == [("crack", True), ("hole", False), ("dent", False)]
    assert project.colors["dent"] == "#102030"
    events = [line for _, _, line in LabelLog(project.work / "labels").segments.lines() if "event" in line]
    assert [(line["event"], line["name"]) for line in events] == [("add", "dent"), ("retire", "crack")]
    assert "class dent" in Index(project).dataset.list_saved_views()
    assert by_class(project)["crack"] == 8, "labels of a retired class stay: no defect turns into a clean image"


@pytest.mark.parametrize("command", ["add", "retire"])
def test_a_change_that_was_cut_short_is_noted_once(
    indexed: Project, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C came when it stood in the log, and not yet in the config."""
    change, name = getattr(classes, command), {"add": "dent", "retire": "crack"}[command]
    text = indexed.file.read_text()
    write = files.write_text

    def interrupted(target: Path, text: str) -> None:
        if target == indexed.file:
            raise KeyboardInterrupt
        write(target, text)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            change(indexed, name)
    assert indexed.file.read_text() == text
    change(load(indexed.folder), name)
    events = [line for _, _, line in LabelLog(indexed.work / "labels").segments.lines() if "event" in line]
    assert [(line["event"], line["name"]) for line in events] == [(command, name)]


def test_comments_of_the_config_stay(indexed: Project) -> None:
    classes.rename(indexed, "crack", "fissure")
    assert "# Secrets (Label Studio tokens) never stand here" in indexed.file.read_text()


def test_a_finished_command_repeated_says_that_it_is_done(indexed: Project) -> None:
    """As after a kill that came when all but the last word was written: the project was read before."""
    assert classes.rename(indexed, "crack", "fissure") == {"did": "renamed crack to fissure", "images": 8}
    assert classes.merge(load(indexed.folder), ["hole"], "fissure")["images"] == 4
    classes.add(load(indexed.folder), "dent")
    classes.retire(load(indexed.folder), "dent")
    before, config, log = dump(indexed), indexed.file.read_text(), log_of(indexed)
    for project in (indexed, load(indexed.folder)):
        done = {"did": "renamed crack to fissure before", "images": 0}
        assert classes.rename(project, "crack", "fissure") == done
        done = {"did": "merged hole into fissure before", "images": 0}
        assert classes.merge(project, ["hole", "fissure"], "fissure") == done
    assert classes.retire(load(indexed.folder), "dent") == {"did": "class dent is retired already", "images": 0}
    assert classes.add(load(indexed.folder), "fissure")["did"].startswith("class fissure exists already")
    assert (dump(indexed), indexed.file.read_text(), log_of(indexed)) == (before, config, log)


def log_of(project: Project) -> list[dict[str, object]]:
    return [line for _, _, line in LabelLog(project.work / "labels").segments.lines()]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"did": "x", "change": "y", "moves": {"crack": 5}}'])
def test_a_damaged_plan_is_reported(indexed: Project, text: str) -> None:
    (indexed.work / classes.PENDING).write_text(text)
    with pytest.raises(CurateError, match=r"classes\.json is damaged"):
        sync.run(indexed)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: classes.rename(p, "krack", "x"), "unknown class 'krack' .did you mean 'crack'"),
        (lambda p: classes.rename(p, "crack", "hole"), "curate classes merge crack --into hole"),
        (lambda p: classes.merge(p, ["crack"], "crack"), "nothing to merge"),
        (lambda p: classes.add(p, "new", "red"), "--color 'red' is not a colour; allowed: #rrggbb"),
        (lambda p: classes.add(p, " "), "class name ' '"),
        (lambda p: classes.add(p, "crack", "#000000"), "exists already, with other values"),
        (lambda p: classes.retire(p, "nope"), "unknown class 'nope'"),
    ],
)
def test_bad_requests_change_nothing(indexed: Project, call: object, text: str) -> None:
    before, config = dump(indexed), indexed.file.read_text()
    with pytest.raises(CurateError, match=text):
        call(indexed)  # type: ignore[operator]
    assert dump(indexed) == before
    assert indexed.file.read_text() == config


def test_classes_can_be_added_before_the_first_image_is_indexed(plant: Project) -> None:
    classes.add(plant, "dent")
    assert load(plant.folder).class_names == ["crack", "hole", "dent"]
    assert sync.run(load(plant.folder)).added == 26
