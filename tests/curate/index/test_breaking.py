"""Mishaps of a bad day: kills between two writes, edits while a command runs, moved folders, half-made regions.

Each of these once lost or bent a label, or ended in a traceback.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate import state
from curate.admin import backup, setup
from curate.admin.status import summarise
from curate.errors import CurateError
from curate.files import writer_lock
from curate.index import app_edits, classes, conflicts, sync
from curate.index.dataset import Index
from curate.labels.log import LabelLog
from curate.project import Project, load
from tests import fakes
from tests.conftest import LIBRARY, LINE, Make, dump
from tests.curate.index.test_dataset import by_name, draw_in_app, quarantine, sample

# --- kills and edits between two writes -----------------------------------------------------------------------------


def test_a_state_is_shown_whole_or_not_at_all(indexed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of writing: no image may hold half a state, which would read like a person's edit."""
    ids = Index(indexed).ids()
    monkeypatch.setattr(Index, "write_states", half(Index.write_states))
    with pytest.raises(KeyboardInterrupt):
        classes.rename(indexed, "crack", "fissure")
    monkeypatch.undo()
    assert Index(indexed).edited() == []
    report = sync.run(load(indexed.folder))
    assert (report.app_edits, len(ids)) == (0, 26)
    assert summarise(load(indexed.folder))["by_class"] == {"fissure": 8, "hole": 4, "clean": 4}


def half(write: Callable[..., Any]) -> Callable[..., Any]:
    def cut_short(self: Index, states: dict[str, Any], seen: list[Any]) -> list[str]:
        some = seen[: len(seen) // 2]
        write(self, {image.id: states[image.id] for image in some}, some)
        raise KeyboardInterrupt

    return cut_short


def test_an_edit_made_while_a_rebuild_runs_is_kept(indexed: Project) -> None:
    drawn: list[str] = []

    def somebody_draws(*_: object) -> None:
        if not drawn:
            drawn.append(draw_in_app(indexed, "piece1_0.png"))

    report = sync.run(indexed, somebody_draws, rebuild=True)
    assert report.app_edits == 1
    assert by_name(indexed)["piece1_0.png"].label.present == {"crack", "hole"}


def test_an_edit_made_between_reading_and_writing_is_kept(indexed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = Index.write_states, []

    def write(self: Index, states: Any, seen: Any) -> Any:
        if not drawn:
            drawn.append(draw_in_app(indexed, "piece1_0.png"))
        return real(self, states, seen)

    monkeypatch.setattr(Index, "write_states", write)
    sync.run(indexed, rebuild=True)
    assert by_name(indexed)["piece1_0.png"].label.present == {"crack", "hole"}


# --- what an edit means ---------------------------------------------------------------------------------------------


@pytest.fixture
def disputed(plant: Project, library: Path) -> Project:
    shutil.copy(library / "images" / "piece1_0.png", library / "images" / "piece1_5.png")
    fakes.save_mask(library / "masks" / "hole" / "piece1_5.png", [(20, 10, 4, 4)], (32, 24))
    sync.run(plant)
    return plant


def test_a_note_on_a_disputed_image_decides_nothing(disputed: Project) -> None:
    _, image = sample(disputed, "piece1_0.png")
    image.status_reason = "ask Bob"
    image.save()
    assert sync.run(disputed).conflicts == 1
    assert by_name(disputed)["piece1_0.png"].label.reason == "duplicate-labels: ask Bob"
    assert len(conflicts.conflicts(disputed)[0]["versions"]) == 2
    _, image = sample(disputed, "piece1_0.png")
    assert [d.label for d in image.other_defects.detections] == ["hole"]
    conflicts.resolve(disputed, None, "first")
    assert by_name(disputed)["piece1_0.png"].label.present == {"crack"}


def test_a_mistyped_status_is_no_decision(indexed: Project) -> None:
    _, image = sample(indexed, "piece7_0.png")
    image.status = "labeled"
    image.save()
    sync.run(indexed)
    assert by_name(indexed)["piece7_0.png"].label.clean


def test_a_mask_in_a_file_of_its_own_is_a_mask(indexed: Project, tmp_path: Path) -> None:
    index, image = sample(indexed, "coil0_0.png")
    mask = np.zeros((12, 16), np.uint8)
    mask[2:5, 3:9] = 255
    Image.fromarray(mask).save(tmp_path / "drawn.png")
    box = [0.25, 0.25, 0.5, 0.5]
    image.defects.detections.append(
        index.fo.Detection(label="crack", bounding_box=box, mask_path=str(tmp_path / "drawn.png"))
    )
    image.save()
    sync.run(indexed)
    (defect,) = by_name(indexed)["coil0_0.png"].label.defects
    assert defect.box == (8 + 3, 6 + 2, 6, 3)
    assert defect.rle is not None


def test_a_mask_that_cannot_be_read_is_disputed_not_a_box(indexed: Project, tmp_path: Path) -> None:
    index, image = sample(indexed, "coil0_0.png")
    missing = str(tmp_path / "gone.png")
    image.defects.detections.append(index.fo.Detection(label="crack", bounding_box=[0, 0, 1, 1], mask_path=missing))
    image.save()
    sync.run(indexed)
    label = by_name(indexed)["coil0_0.png"].label
    assert (label.status, label.reason) == ("disputed", "unreadable-mask")


def test_a_box_drawn_over_the_edge_is_clipped(indexed: Project) -> None:
    index, image = sample(indexed, "coil0_0.png")
    image.defects.detections.append(index.fo.Detection(label="crack", bounding_box=[-0.125, 0.75, 0.25, 0.5]))
    image.save()
    sync.run(indexed)
    assert by_name(indexed)["coil0_0.png"].label.defects[0].box == (0, 18, 4, 6)


def test_a_box_wholly_outside_is_disputed(indexed: Project) -> None:
    index, image = sample(indexed, "coil0_0.png")
    image.defects.detections.append(index.fo.Detection(label="crack", bounding_box=[1.5, 0.75, 0.25, 0.5]))
    image.save()
    sync.run(indexed)
    assert by_name(indexed)["coil0_0.png"].label.status == "disputed"


@pytest.mark.parametrize("parts", [{"bounding_box": [0, 0, 1, 1]}, {"label": "crack"}])
def test_a_half_made_region_does_not_stop_the_project(indexed: Project, parts: dict[str, Any]) -> None:
    index, image = sample(indexed, "coil0_0.png")
    image.defects.detections.append(index.fo.Detection(**parts))
    image.save()
    sync.run(indexed)
    label = by_name(indexed)["coil0_0.png"].label
    assert (label.status, label.reason) == ("disputed", "incomplete-region")
    assert sync.run(indexed).app_edits == 0


def test_a_sample_added_by_hand_is_left_alone(indexed: Project, tmp_path: Path) -> None:
    index = Index(indexed)
    index.dataset.add_sample(index.fo.Sample(filepath=str(tmp_path / "mine.png")))
    report = sync.run(indexed)
    assert (report.app_edits, report.unchanged) == (0, 26)
    assert None not in set(LabelLog(indexed.work / "labels").ids())


# --- classes --------------------------------------------------------------------------------------------------------


def test_a_rename_that_the_config_cannot_take_changes_nothing(indexed: Project) -> None:
    before, log = dump(indexed), sorted((indexed.work / "labels").iterdir())
    with pytest.raises(CurateError, match="at least 1 character"):
        classes.rename(indexed, "crack", "")
    assert dump(indexed) == before
    assert sorted((indexed.work / "labels").iterdir()) == log
    sync.run(indexed)
    assert dump(indexed) == before


@pytest.mark.parametrize("step", ["capture", "show"])
def test_a_change_of_classes_that_was_cut_short_is_finished_by_the_next_run(
    indexed: Project, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app_edits, step, killed)
    with pytest.raises(KeyboardInterrupt):
        classes.rename(indexed, "crack", "fissure")
    monkeypatch.undo()
    report = sync.run(load(indexed.folder))
    assert (report.quarantined, report.app_edits) == (0, 0)
    assert load(indexed.folder).class_names == ["fissure", "hole"]
    assert summarise(load(indexed.folder))["by_class"] == {"fissure": 8, "hole": 4, "clean": 4}
    assert not (indexed.work / classes.PENDING).exists()


def test_a_class_taken_out_of_the_config_by_hand_is_disputed(indexed: Project) -> None:
    text = indexed.file.read_text()
    indexed.file.write_text(text.replace('name = "hole"', 'name = "dent"'))
    sync.run(load(indexed.folder))
    label = by_name(indexed)["piece4_0.png"].label
    assert (label.status, label.reason) == ("disputed", "unknown-class: hole")
    indexed.file.write_text(text)
    sync.run(load(indexed.folder))
    assert by_name(indexed)["piece4_0.png"].label.status == "labelled"


def test_a_class_called_clean_is_counted_for_itself(make: Make, library: Path) -> None:
    (library / "masks" / "hole").rename(library / "masks" / "clean")
    project = make([LIBRARY | {"data": library}], ["crack", "clean"])
    sync.run(project)
    assert summarise(project)["by_class"] == {"crack": 8, "clean": 4, "(clean)": 4}


# --- groups, folders, sources ---------------------------------------------------------------------------------------


def test_a_new_group_pattern_keeps_frozen_splits_or_reports_a_leak(make: Make, library: Path) -> None:
    project = make([LIBRARY | {"data": library, "group": None}])
    sync.run(project)
    before = {item.id: item.split for item in Index(project).items()}
    project = make([LIBRARY | {"data": library}])
    report = sync.run(project)
    after = {item.id: item for item in Index(project).items()}
    moved = {id for id, item in after.items() if item.split != before[id]}
    assert all(before[id] == "train" or after[id].split == "test" for id in moved), "only the train side moves"
    assert bool(moved) == bool(report.leaks)
    by_group: dict[str, set[str | None]] = {}
    for item in after.values():
        by_group.setdefault(item.group, set()).add(item.split)
    assert all(len(found) == 1 for found in by_group.values())
    assert len(by_group) == 8


def test_a_renamed_source_keeps_its_splits(make: Make, library: Path) -> None:
    project = make([LIBRARY | {"data": library}])
    sync.run(project)
    before = {item.id: item.split for item in Index(project).items()}
    project = make([LIBRARY | {"data": library, "name": "renamed"}])
    report = sync.run(project)
    assert {item.id: item.split for item in Index(project).items()} == before
    assert report.leaks == []


def test_a_moved_project_keeps_its_dataset_and_uncaptured_edits(indexed: Project) -> None:
    draw_in_app(indexed, "coil0_0.png")
    moved = indexed.folder.with_name("plant-moved")
    indexed.folder.rename(moved)
    project = load(moved)
    report = sync.run(project)
    assert (report.added, report.app_edits) == (0, 1)
    assert by_name(project)["coil0_0.png"].label.present == {"hole"}
    index = Index(project)
    assert not index.fo.dataset_exists(indexed.dataset_name)
    index.dataset.delete()


def test_a_copied_project_gets_a_dataset_of_its_own(indexed: Project) -> None:
    copied = indexed.folder.with_name("plant-copy")
    shutil.copytree(indexed.folder, copied)
    project = load(copied)
    assert sync.run(project).added == 26
    assert Index(indexed).count() == 26
    Index(project).dataset.delete()


def test_an_empty_mount_point_is_a_mistake_not_thousands_of_missing_images(indexed: Project, library: Path) -> None:
    before = dump(indexed)
    library.rename(library.with_name("away"))
    (library / "images").mkdir(parents=True)
    (library / "masks").mkdir()
    with pytest.raises(CurateError, match="source 'library': none of its 16 images is at"):
        sync.run(indexed)
    assert dump(indexed) == before
    assert summarise(indexed)["missing"] == 0


def test_an_image_replaced_in_place_leaves_the_old_one_missing(indexed: Project, library: Path) -> None:
    fakes.save_image(library / "images" / "piece7_0.png", 32, 24, seed=4242)
    report = sync.run(indexed)
    assert (report.added, report.missing) == (1, 1)
    assert summarise(indexed)["missing"] == 1
    assert "now holds another image" in (indexed.work / "missing.csv").read_text()


def test_the_project_s_own_folder_is_no_data(make: Make, tmp_path: Path) -> None:
    fakes.save_image(tmp_path / "a.png")
    project = make([LINE | {"data": tmp_path, "template": None, "group": None}])
    with pytest.raises(CurateError, match="holds the project's own folder"):
        sync.run(project)


def test_a_file_that_becomes_readable_leaves_quarantine(plant: Project, library: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    path = library / "images" / "piece7_0.png"
    path.chmod(0)
    assert sync.run(plant).quarantined == 1
    path.chmod(0o644)
    assert sync.run(plant).quarantined == 0


def test_a_named_pipe_as_a_mask_is_quarantined(plant: Project, library: Path) -> None:
    (library / "masks" / "crack" / "piece0_0.png").unlink()
    os.mkfifo(library / "masks" / "crack" / "piece0_0.png")
    sync.run(plant)
    assert "not a regular file" in quarantine(plant)["library:images/piece0_0.png"]


# --- newer state, restore -------------------------------------------------------------------------------------------


def test_every_command_refuses_newer_state(indexed: Project, tmp_path: Path) -> None:
    state.record(indexed, schema=99)
    for command in (
        lambda: classes.rename(indexed, "crack", "x"),
        lambda: backup.backup(indexed, tmp_path / "b.tar.gz"),
        lambda: summarise(indexed),
    ):
        with pytest.raises(CurateError, match="newer curate"):
            command()


def test_restore_leaves_data_beside_the_project_where_they_are(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "projects" / "demo"
    project, _ = setup.demo(folder, 60, 0, lambda done: None)
    sync.run(project)
    backup.backup(project, tmp_path / "b.tar.gz")
    report = backup.restore(tmp_path / "b.tar.gz", folder, {}, force=True, trust=True)
    back = load(folder)
    assert report["unreachable"] == []
    assert all(item.path.exists() for item in Index(back).items())
    Index(back).dataset.delete()


def test_restore_waits_for_no_writer(indexed: Project, tmp_path: Path) -> None:
    backup.backup(indexed, tmp_path / "b.tar.gz")
    with (
        writer_lock(indexed.work, "curate index"),
        pytest.raises(CurateError, match=r"'curate index' .*is writing to this project"),
    ):
        backup.restore(tmp_path / "b.tar.gz", indexed.folder, {}, force=True, trust=True)


@pytest.mark.slow
def test_demo_data_are_its_own_wherever_you_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "library").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    project, _ = setup.demo(Path("other/demo"), 60, 0, lambda done: None)
    assert project.root(project.config.sources[0]) == tmp_path / "other" / "demo" / "data" / "library"
