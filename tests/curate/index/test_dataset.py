"""The index on a real FiftyOne dataset: what is on disk and in the log is what it shows, whatever happens between."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate import state
from curate.admin import setup
from curate.admin.status import summarise
from curate.data import Item
from curate.errors import CurateError
from curate.files import writer_lock
from curate.index import app_edits, conflicts, sync
from curate.index.dataset import Index
from curate.labels import splits
from curate.labels.log import LabelLog
from curate.masks import rle
from curate.masks.shapes import mask_of
from curate.project import Project, load
from tests import fakes
from tests.conftest import LIBRARY, LINE, Make, dump


def book_of(project: Project) -> LabelLog:
    return LabelLog(project.work / "labels")


def by_name(project: Project) -> dict[str, Item]:
    return {item.path.name: item for item in Index(project).items()}


def segments(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.work / "labels").glob("*.jsonl")}


def quarantine(project: Project) -> dict[str, str]:
    with open(project.work / "quarantine.csv", newline="") as handle:
        return {row["file"]: row["reason"] for row in csv.DictReader(handle)}


def sample(project: Project, name: str) -> tuple[Index, Any]:
    index = Index(project)
    return index, index.dataset.one(index.fo.ViewField("content_id") == by_name(project)[name].id)


# --- what one run does ----------------------------------------------------------------------------------------------


def test_every_image_becomes_a_sample_with_its_exact_mask(indexed: Project, library: Path) -> None:
    items = by_name(indexed)
    assert len(items) == 26
    for mask_file in (library / "masks").glob("*/*.png"):
        item = items[mask_file.name]
        (defect,) = item.label.defects
        assert defect.label == mask_file.parent.name
        expected = np.asarray(Image.open(mask_file)) > 127
        assert np.array_equal(mask_of(defect, item.width, item.height), expected)


def test_samples_carry_what_a_curator_asks_for(indexed: Project) -> None:
    _, labelled = sample(indexed, "piece1_0.png")
    assert labelled.source == "public"
    assert labelled.group == "library/piece1"
    assert labelled.status == "labelled"
    assert (labelled.width, labelled.height) == (32, 24) == (labelled.metadata.width, labelled.metadata.height)
    assert (labelled.format, labelled.label_origin) == ("mask_folder", "import")
    assert labelled.label_file == "masks/crack/piece1_0.png"
    assert labelled.paths == ["library:images/piece1_0.png"]
    _, production = sample(indexed, "coil2_5.png")
    assert (production.source, production.stratum, production.group) == ("production", "A/cam1", "line/coil2")
    assert (production.status, production.split) == ("unlabelled", None)


def test_clean_is_not_unlabelled(indexed: Project) -> None:
    items = by_name(indexed)
    assert items["piece7_0.png"].label.clean
    assert not items["coil0_0.png"].label.clean


def test_content_ids_are_unique_in_the_database(indexed: Project) -> None:
    index, image = sample(indexed, "piece1_0.png")
    twin = index.fo.Sample(filepath="/elsewhere.png", content_id=image.content_id)
    with pytest.raises(Exception, match="duplicate key"):
        index.dataset.add_sample(twin)


def test_a_second_run_changes_nothing_and_says_so(indexed: Project) -> None:
    before, log = dump(indexed), segments(indexed)
    report = sync.run(indexed)
    assert (report.added, report.updated, report.unchanged) == (0, 0, 26)
    assert dump(indexed) == before
    assert segments(indexed) == log


def test_only_what_is_new_is_added(indexed: Project, library: Path) -> None:
    fakes.save_image(library / "images" / "piece9_0.png", 32, 24, seed=77)
    report = sync.run(indexed)
    assert (report.added, report.updated, report.unchanged) == (1, 0, 26)


def test_a_label_that_changed_in_the_source_is_updated(indexed: Project, library: Path) -> None:
    fakes.save_mask(library / "masks" / "crack" / "piece1_0.png", [(0, 0, 3, 3)], (32, 24))
    report = sync.run(indexed)
    assert (report.added, report.updated) == (0, 1)
    assert by_name(indexed)["piece1_0.png"].label.defects[0].box == (0, 0, 3, 3)


def test_a_label_that_vanished_from_the_source_is_taken_back(indexed: Project, library: Path) -> None:
    (library / "masks" / "crack" / "piece1_0.png").unlink()
    assert sync.run(indexed).updated == 1
    assert by_name(indexed)["piece1_0.png"].label.clean


def test_report_and_status_agree(indexed: Project) -> None:
    summary = summarise(indexed)
    assert summary["samples"] == 26
    assert summary["by_source"] == {"production": 10, "public": 16}
    assert summary["by_status"] == {"unlabelled": 10, "labelled": 16}
    assert summary["by_class"] == {"crack": 8, "hole": 4, "clean": 4}
    assert sum(summary["by_split"].values()) == 26
    assert summary["by_split"]["none"] == 10


def test_documents_are_those_that_fiftyone_itself_would_write(indexed: Project) -> None:
    """Images are inserted as plain documents; this holds them against `add_samples` of the same FiftyOne."""
    index, image = sample(indexed, "piece1_0.png")
    raw = index.fo.core.odm.get_db_conn()
    home = raw.datasets.find_one({"name": index.dataset.name})
    ours = raw[home["sample_collection_name"]].find_one({"content_id": image.content_id})
    twin = image.copy()
    twin.content_id = "twin"
    index.dataset.add_sample(twin)
    theirs = raw[home["sample_collection_name"]].find_one({"content_id": "twin"})
    assert kinds(ours) == kinds(theirs)
    index.dataset.delete_samples([twin.id])


def kinds(value: Any) -> Any:
    """The shape of a document: names and types, without the values; None and empty are the same to FiftyOne."""
    if isinstance(value, dict):
        return {name: kinds(inner) for name, inner in value.items() if inner is not None}
    return [kinds(inner) for inner in value] if isinstance(value, list) else type(value).__name__


# --- people's labels ------------------------------------------------------------------------------------------------


def draw_in_app(
    project: Project, name: str, label: str = "hole", box: tuple[float, ...] = (0.25, 0.25, 0.5, 0.5)
) -> str:
    """Change the sample's label field in the database, as the App does when a person draws a box."""
    index, image = sample(project, name)
    image.defects.detections.append(index.fo.Detection(label=label, bounding_box=[0.25, 0.25, 0.5, 0.5]))
    image.save()
    return str(image.content_id)


def test_an_edit_in_the_app_is_logged_and_survives_a_changed_source(indexed: Project, library: Path) -> None:
    id = draw_in_app(indexed, "piece1_0.png")
    fakes.save_mask(library / "masks" / "crack" / "piece1_0.png", [(0, 0, 3, 3)], (32, 24))
    report = sync.run(indexed)
    assert (report.app_edits, report.kept) == (1, 1)
    label = by_name(indexed)["piece1_0.png"].label
    assert sorted(d.label for d in label.defects) == ["crack", "hole"]
    assert [entry.origin for entry in book_of(indexed).history(id)] == ["import", "app", "import"]
    assert sync.run(indexed).app_edits == 0


def test_drawing_on_an_unlabelled_image_labels_it(indexed: Project) -> None:
    draw_in_app(indexed, "coil0_0.png")
    sync.run(indexed)
    item = by_name(indexed)["coil0_0.png"]
    assert item.label.status == "labelled"
    assert item.label.defects[0].box == (8, 6, 16, 12)
    assert item.split == "train", "what is labelled of the production goes to train"


def test_deleting_the_last_region_in_the_app_makes_an_image_clean(indexed: Project) -> None:
    _, image = sample(indexed, "piece1_0.png")
    image.defects.detections = []
    image.save()
    sync.run(indexed)
    assert by_name(indexed)["piece1_0.png"].label.clean


def test_a_mask_stretched_in_the_app_stays_a_mask(indexed: Project) -> None:
    _, image = sample(indexed, "piece0_0.png")
    image.defects.detections[0].bounding_box = [0.0, 0.0, 1.0, 1.0]
    image.save()
    sync.run(indexed)
    (defect,) = by_name(indexed)["piece0_0.png"].label.defects
    assert defect.box == (0, 0, 32, 24)
    assert mask_of(defect, 32, 24).all()


def test_a_class_that_does_not_exist_is_kept_but_disputed(indexed: Project) -> None:
    draw_in_app(indexed, "piece1_0.png", label="krack")
    sync.run(indexed)
    label = by_name(indexed)["piece1_0.png"].label
    assert (label.status, label.reason) == ("disputed", "unknown-class: krack")
    assert "krack" in label.present


def test_status_set_to_skipped_in_the_app_is_a_decision(indexed: Project) -> None:
    _, image = sample(indexed, "coil0_0.png")
    image.status, image.status_reason = "skipped", "blurred"
    image.save()
    sync.run(indexed)
    label = by_name(indexed)["coil0_0.png"].label
    assert (label.status, label.reason) == ("skipped", "blurred")


def test_labels_come_back_from_the_log_when_the_database_is_lost(indexed: Project) -> None:
    draw_in_app(indexed, "piece1_0.png")
    draw_in_app(indexed, "coil0_0.png")
    sync.run(indexed)
    before = dump(indexed)
    Index(indexed).dataset.delete()
    assert sync.run(indexed).added == 26
    assert dump(indexed) == before


def test_rebuild_writes_every_label_again(indexed: Project) -> None:
    draw_in_app(indexed, "coil0_0.png")
    sync.run(indexed)
    before = dump(indexed)
    index = Index(indexed)
    # Damage without a trace: label and digest agree, only the log knows better.
    ids = index.ids()
    index.set({"defects": {id: index.fo.Detections() for id in ids}})
    index.set({"label_digest": {image.id: image.label.digest for image in index.shown()}})
    assert dump(indexed) != before
    sync.run(indexed, rebuild=True)
    assert dump(indexed) == before


def test_edits_are_captured_before_a_rebuild(indexed: Project) -> None:
    draw_in_app(indexed, "coil0_0.png")
    sync.run(indexed, rebuild=True)
    assert by_name(indexed)["coil0_0.png"].label.present == {"hole"}


def test_an_index_that_is_gone_and_a_ledger_that_is_not(indexed: Project) -> None:
    (indexed.work / "files.sqlite").unlink()
    before = dump(indexed)
    report = sync.run(indexed)
    assert (report.added, report.updated, report.unchanged) == (0, 0, 26)
    assert dump(indexed) == before


def test_a_place_in_the_queue_is_no_edit_and_stays(indexed: Project) -> None:
    index, image = sample(indexed, "coil0_0.png")
    index.set({"status": {image.content_id: "queued"}})
    log = segments(indexed)
    assert sync.run(indexed, rebuild=True).app_edits == 0
    assert by_name(indexed)["coil0_0.png"].label.status == "queued"
    assert segments(indexed) == log
    draw_in_app(indexed, "coil0_0.png")
    sync.run(indexed)
    assert by_name(indexed)["coil0_0.png"].label.status == "labelled"


# --- copies, conflicts ----------------------------------------------------------------------------------------------


def copy_of(library: Path, name: str, new: str) -> None:
    shutil.copy(library / "images" / name, library / "images" / new)


def test_exact_copies_become_one_sample_with_all_paths(plant: Project, library: Path) -> None:
    copy_of(library, "piece7_0.png", "piece7_5.png")
    report = sync.run(plant)
    assert (report.added, report.duplicates, report.conflicts) == (26, 1, 0)
    _, image = sample(plant, "piece7_0.png")
    assert image.paths == ["library:images/piece7_0.png", "library:images/piece7_5.png"]


@pytest.fixture
def disputed(plant: Project, library: Path) -> Project:
    """piece1_0 with a crack, and a copy of it that says hole."""
    copy_of(library, "piece1_0.png", "piece1_5.png")
    fakes.save_mask(library / "masks" / "hole" / "piece1_5.png", [(20, 10, 4, 4)], (32, 24))
    sync.run(plant)
    return plant


def test_copies_with_different_labels_are_disputed_and_both_kept(disputed: Project) -> None:
    _, image = sample(disputed, "piece1_0.png")
    assert (image.status, image.status_reason) == ("disputed", "duplicate-labels")
    assert [d.label for d in image.defects.detections] == ["crack"]
    assert [(d.label, d.version) for d in image.other_defects.detections] == [("hole", "library:images/piece1_5.png")]
    assert summarise(disputed)["conflicts"] == 1
    again = sync.run(disputed)
    assert (again.conflicts, again.updated) == (1, 0)


@pytest.mark.parametrize(
    ("keep", "present"),
    [("first", {"crack"}), ("library:images/piece1_5.png", {"hole"}), ("clean", set()), ("union", {"crack", "hole"})],
)
def test_a_person_resolves_a_conflict(disputed: Project, keep: str, present: set[str]) -> None:
    (report,) = conflicts.resolve(disputed, None, keep)
    item = by_name(disputed)["piece1_0.png"]
    assert item.label.status == "labelled"
    assert item.label.present == present
    assert report["kept"] == keep
    sync.run(disputed)
    assert by_name(disputed)["piece1_0.png"].label == item.label
    assert conflicts.conflicts(disputed) == []


def test_a_conflict_tells_and_shows_how_its_versions_differ(disputed: Project) -> None:
    (found,) = conflicts.conflicts(disputed)
    assert found["differences"]["hole"]["area"] == [0, 16]
    assert found["differences"]["crack"]["regions"] == [1, 0]
    assert Path(found["picture"]).is_file()
    conflicts.resolve(disputed, None, "first")
    assert not Path(found["picture"]).exists()


def test_a_version_that_does_not_exist_names_those_that_do(disputed: Project) -> None:
    with pytest.raises(CurateError, match=r"unknown version 'library:images/piece1_6\.png'.*piece1_5\.png"):
        conflicts.resolve(disputed, None, "library:images/piece1_6.png")
    assert len(conflicts.conflicts(disputed)) == 1


def test_an_edit_in_the_app_resolves_a_conflict(disputed: Project) -> None:
    _, image = sample(disputed, "piece1_0.png")
    image.defects.detections = []
    image.save()
    sync.run(disputed)
    assert by_name(disputed)["piece1_0.png"].label.clean


def killed_before_the_index(project: Project, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Run what is killed when the log has its entries and the index does not show them yet."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Index, "write_states", kill)
        with pytest.raises(Killed):
            work()


def test_an_edit_that_a_killed_run_logged_is_no_second_edit(disputed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as a new edit, what settled a dispute would dispute the image again."""
    _, image = sample(disputed, "piece1_0.png")
    image.defects.detections = []
    image.save()
    drawn = draw_in_app(disputed, "coil0_0.png")
    killed_before_the_index(disputed, monkeypatch, lambda: sync.run(disputed))
    sync.run(disputed)
    assert by_name(disputed)["piece1_0.png"].label.clean
    for id in (image.content_id, drawn):
        assert [entry.origin for entry in book_of(disputed).history(id)].count("app") == 1


def test_an_edit_after_a_killed_run_counts(indexed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    id = draw_in_app(indexed, "coil0_0.png")
    killed_before_the_index(indexed, monkeypatch, lambda: sync.run(indexed))
    draw_in_app(indexed, "coil0_0.png", "crack")
    sync.run(indexed)
    assert by_name(indexed)["coil0_0.png"].label.present == {"hole", "crack"}
    assert [entry.origin for entry in book_of(indexed).history(id)].count("app") == 2


def test_a_decision_that_a_killed_run_logged_is_not_logged_again(
    disputed: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_the_index(disputed, monkeypatch, lambda: conflicts.resolve(disputed, None, "first"))
    conflicts.resolve(disputed, None, "first")
    item = by_name(disputed)["piece1_0.png"]
    assert item.label.present == {"crack"}
    assert [entry.origin for entry in book_of(disputed).history(item.id)].count("decision") == 1


def test_deleting_the_wrong_copy_settles_the_conflict(disputed: Project, library: Path) -> None:
    (library / "images" / "piece1_5.png").unlink()
    (library / "masks" / "hole" / "piece1_5.png").unlink()
    assert sync.run(disputed).conflicts == 0
    assert by_name(disputed)["piece1_0.png"].label.present == {"crack"}


def test_a_file_that_was_renamed_and_relabelled_at_once_is_no_conflict(indexed: Project, library: Path) -> None:
    (library / "images" / "piece1_0.png").rename(library / "images" / "piece1_9.png")
    (library / "masks" / "crack" / "piece1_0.png").rename(library / "masks" / "hole" / "piece1_9.png")
    assert sync.run(indexed).conflicts == 0
    assert by_name(indexed)["piece1_9.png"].label.present == {"hole"}


def test_a_copy_among_unlabelled_images_is_no_conflict(plant: Project, library: Path, line: Path) -> None:
    shutil.copy(library / "images" / "piece1_0.png", line / "A" / "cam0" / "coil9_1.png")
    assert sync.run(plant).conflicts == 0
    assert by_name(plant)["piece1_0.png"].label.present == {"crack"}


# --- quarantine -----------------------------------------------------------------------------------------------------


def spoil_truncated(library: Path) -> str:
    path = fakes.save_image(library / "images" / "bad.jpg", 32, 24, seed=5)
    path.write_bytes(path.read_bytes()[:-40])
    return "images/bad.jpg"


def spoil_empty(library: Path) -> str:
    (library / "images" / "bad.jpg").touch()
    return "images/bad.jpg"


def spoil_text(library: Path) -> str:
    (library / "images" / "bad.jpg").write_text("this is no image")
    return "images/bad.jpg"


def spoil_bomb(library: Path) -> str:
    fakes.save_image(library / "images" / "bad.png", 300, 200)
    return "images/bad.png"


def spoil_mask_size(library: Path) -> str:
    fakes.save_image(library / "images" / "bad.png", 32, 24, seed=6)
    fakes.save_mask(library / "masks" / "crack" / "bad.png", size=(31, 24))
    return "images/bad.png"


def spoil_class(library: Path) -> str:
    fakes.save_image(library / "images" / "bad.png", 32, 24, seed=6)
    fakes.save_mask(library / "masks" / "krack" / "bad.png", size=(32, 24))
    return "images/bad.png"


def spoil_symlink(library: Path) -> str:
    secret = fakes.save_image(library.parent / "secret.png", 32, 24, seed=6)
    (library / "images" / "bad.png").symlink_to(secret)
    return "images/bad.png"


SPOILED = [
    (spoil_truncated, "truncated JPEG"),
    (spoil_empty, "0 bytes"),
    (spoil_text, "not an image"),
    (spoil_bomb, "300x200 pixels are more than limits.max_pixels = 50000"),
    (spoil_mask_size, "is 31x24, the image 32x24"),
    (spoil_class, "unknown class 'krack'"),
    (spoil_symlink, "symlink"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILED, ids=[s.__name__ for s, _ in SPOILED])
def test_what_cannot_be_trusted_is_quarantined_with_a_reason(
    make: Make, library: Path, spoil: Any, reason: str
) -> None:
    reference = "library:" + spoil(library)
    project = make([LIBRARY | {"data": library}], limits={"max_pixels": 50_000})
    report = sync.run(project)
    assert (report.added, report.quarantined) == (16, 1)
    assert re.search(reason, quarantine(project)[reference])
    again = sync.run(project)
    assert (again.quarantined, again.unchanged) == (1, 16)


def test_a_mended_file_leaves_quarantine(plant: Project, library: Path) -> None:
    spoil_text(library)
    sync.run(plant)
    fakes.save_image(library / "images" / "bad.jpg", 32, 24, seed=4)
    report = sync.run(plant)
    assert (report.added, report.quarantined) == (1, 0)
    assert quarantine(plant) == {}


def severstal(tmp_path: Path, rows: str, names: tuple[str, ...] = ("a.jpg",)) -> Path:
    root = tmp_path / "severstal"
    for number, name in enumerate(names):
        fakes.save_image(root / "train_images" / name, 32, 24, seed=number)
    fakes.save_text(root / "train.csv", "ImageId,ClassId,EncodedPixels\n" + rows)
    return root


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a.jpg,3,1 2 3\n", r"a\.jpg class 3.*odd"),
        ("a.jpg,3,1 x\n", r"a\.jpg class 3: run 1"),
        ("a.jpg,3,1 0\n", "run 1"),
        ("a.jpg,3,5 4 7 2\n", "run 2"),
        ("a.jpg,3,760 20\n", "run 1"),
        ("a.jpg,3,0 4\n", "run 1"),
        ("a.jpg,9,1 4\n", "unknown class '9'"),
        ("../../etc/passwd,3,1 4\na.jpg,3,1 4\n", "leaves the data root"),
    ],
)
def test_bad_rows_of_a_csv_are_quarantined_by_image_class_and_run(
    make: Make, tmp_path: Path, rows: str, reason: str
) -> None:
    root = severstal(tmp_path, rows)
    project = make([{"name": "s", "format": "severstal", "data": root}], ["1", "2", "3", "4"])
    report = sync.run(project)
    assert report.quarantined == 1
    (found,) = quarantine(project).values()
    assert re.search(reason, found), found


def test_an_image_of_the_index_whose_label_goes_bad_keeps_its_last_good_one(make: Make, tmp_path: Path) -> None:
    root = severstal(tmp_path, "a.jpg,3,1 4\n")
    project = make([{"name": "s", "format": "severstal", "data": root}], ["1", "2", "3", "4"])
    sync.run(project)
    before = dump(project)
    fakes.save_text(root / "train.csv", "ImageId,ClassId,EncodedPixels\na.jpg,3,1 4 9\n")
    assert sync.run(project).quarantined == 1
    assert dump(project) == before


@pytest.mark.parametrize(("boxes", "quarantined"), [("clip", 0), ("quarantine", 1)])
def test_boxes_outside_the_image_as_configured(make: Make, tmp_path: Path, boxes: str, quarantined: int) -> None:
    root = tmp_path / "voc"
    fakes.save_image(root / "images" / "a.png", 32, 24)
    box = "<bndbox><xmin>-4</xmin><ymin>2</ymin><xmax>10</xmax><ymax>90</ymax></bndbox>"
    fakes.save_text(
        root / "annotations" / "a.xml", f"<annotation><object><name>crack</name>{box}</object></annotation>"
    )
    project = make([{"name": "v", "format": "voc", "data": root}], limits={"boxes": boxes})
    assert sync.run(project).quarantined == quarantined
    if not quarantined:
        assert by_name(project)["a.png"].label.defects[0].box == (0, 2, 10, 22)


def test_a_png_named_jpg_is_accepted_and_noted(plant: Project, library: Path) -> None:
    path = fakes.save_image(library / "images" / "odd.png", 32, 24, seed=3)
    path.rename(library / "images" / "odd.jpg")
    report = sync.run(plant)
    assert (report.added, report.quarantined) == (27, 0)
    assert report.notes == {".jpg file holds PNG bytes": 1}


# --- missing, moved -------------------------------------------------------------------------------------------------


def test_missing_files_are_reported_and_come_back(indexed: Project, library: Path) -> None:
    path = library / "images" / "piece7_0.png"
    content = path.read_bytes()
    path.unlink()
    assert sync.run(indexed).missing == 1
    assert Index(indexed).count(missing=True) == 1
    assert "piece7_0.png" in (indexed.work / "missing.csv").read_text()
    path.write_bytes(content)
    assert sync.run(indexed).missing == 0
    assert Index(indexed).count(missing=True) == 0


def test_a_moved_file_is_the_same_image(indexed: Project, library: Path) -> None:
    os.rename(library / "images" / "piece7_0.png", library / "images" / "piece7_9.png")
    report = sync.run(indexed)
    assert (report.added, report.updated, report.missing) == (0, 1, 0)
    assert by_name(indexed)["piece7_9.png"].path.exists()


def test_images_that_only_the_labels_name_are_missing_not_an_error(make: Make, tmp_path: Path) -> None:
    root = severstal(tmp_path, "a.jpg,3,1 4\nb.jpg,1,1 4\n")
    project = make([{"name": "s", "format": "severstal", "data": root}], ["1", "2", "3", "4"])
    report = sync.run(project)
    assert (report.added, report.missing, report.quarantined) == (1, 1, 0)


# --- groups and splits ----------------------------------------------------------------------------------------------


def splits_by_group(project: Project) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for item in Index(project).items():
        found.setdefault(item.group, set()).add(item.split)
    return found


def test_no_group_crosses_a_split_and_all_labelled_ones_have_one(indexed: Project) -> None:
    found = splits_by_group(indexed)
    assert all(len(names) == 1 for names in found.values())
    labelled = {item.group: item.split for item in Index(indexed).items() if item.label.status == "labelled"}
    assert Counter(labelled.values()).keys() == {"train", "val", "test"}


def test_splits_stay_when_images_and_ratio_change(indexed: Project, library: Path) -> None:
    before = {item.id: item.split for item in Index(indexed).items()}
    for number in range(20, 40):
        fakes.save_image(library / "images" / f"piece{number}_0.png", 32, 24, seed=5000 + number)
    sync.run(load(indexed.folder, {"splits": {"ratio": "10/45/45"}}))
    after = {item.id: item.split for item in Index(indexed).items()}
    assert {id: after[id] for id in before} == before
    assert len(after) == len(before) + 20


def test_a_new_view_of_an_old_piece_takes_its_split(indexed: Project, library: Path) -> None:
    fakes.save_image(library / "images" / "piece3_7.png", 32, 24, seed=707)
    sync.run(indexed)
    items = by_name(indexed)
    assert items["piece3_7.png"].split == items["piece3_0.png"].split


def test_copies_in_two_groups_make_one_group(plant: Project, library: Path) -> None:
    copy_of(library, "piece6_0.png", "piece7_5.png")
    sync.run(plant)
    items = by_name(plant)
    assert items["piece6_0.png"].group == items["piece7_0.png"].group
    assert all(len(names) == 1 for names in splits_by_group(plant).values())


def test_a_copy_that_joins_two_splits_is_reported_as_a_leak_and_train_moves(indexed: Project, library: Path) -> None:
    items = by_name(indexed)
    in_test = next(i for i in items.values() if i.split == "test")
    in_train = next(i for i in items.values() if i.split == "train")
    piece = in_train.group.removeprefix("library/")
    shutil.copy(in_test.path, library / "images" / f"{piece}_8.png")
    for mask in (library / "masks").glob(f"*/{in_test.path.name}"):
        shutil.copy(mask, mask.with_name(f"{piece}_8.png"))
    report = sync.run(indexed)
    (leak,) = report.leaks
    assert (leak["moved_from"], leak["moved_to"]) == ("train", "test")
    after = {item.id: item for item in Index(indexed).items()}
    assert after[in_train.id].split == after[in_test.id].split == "test"
    assert after[in_train.id].group == after[in_test.id].group


def test_audit_picks_fill_val_and_test_of_the_production(indexed: Project) -> None:
    index = Index(indexed)
    for number, name in enumerate(["coil0_0.png", "coil1_2.png", "coil2_4.png", "coil3_6.png"]):
        _, image = sample(indexed, name)
        if number < 3:
            image.tags.append("audit")
        image.status = "labelled"
        image.save()
    sync.run(indexed)
    items = by_name(indexed)
    assert {items[n].split for n in ("coil0_0.png", "coil1_2.png", "coil2_4.png")} <= {"val", "test"}
    assert items["coil3_6.png"].split == "train"
    assert items["coil0_1.png"].split == items["coil0_0.png"].split, "the rest of a held-out coil is held out too"
    assert index.count(split=None) == 2


def test_folds_keep_groups_together_and_are_repeatable(indexed: Project) -> None:
    assert sync.draw_folds(indexed, 4, 3) == 8
    index = Index(indexed)
    found: dict[str, set[tuple[int, ...]]] = {}
    for group, folds in zip(*index.dataset.values(["group", "folds"]), strict=True):
        if folds:
            found.setdefault(group, set()).add(tuple(folds))
    assert all(len(folds) == 1 for folds in found.values())
    assert all(len(next(iter(folds))) == 3 for folds in found.values())
    first = (indexed.work / "folds" / "4x3-seed42.json").read_bytes()
    sync.draw_folds(indexed, 4, 3)
    assert (indexed.work / "folds" / "4x3-seed42.json").read_bytes() == first


def test_more_folds_than_groups_is_a_clear_error(indexed: Project) -> None:
    with pytest.raises(CurateError, match="9 folds need at least 9 labelled groups, there are 8"):
        sync.draw_folds(indexed, 9, 1)


def test_joined_groups_come_from_the_log_of_decisions(indexed: Project) -> None:
    decided = splits.Decisions(indexed.work / "splits")
    assert decided.split("library/piece0") in ("train", "val", "test")
    assert decided.split("line/coil0") is None


# --- one writer, one schema, clear errors ---------------------------------------------------------------------------


def test_a_source_whose_folder_is_gone_changes_nothing(indexed: Project, library: Path) -> None:
    before = dump(indexed)
    library.rename(library.with_name("unmounted"))
    with pytest.raises(CurateError, match=r"source 'library': no folder at .*library"):
        sync.run(indexed)
    assert dump(indexed) == before


def test_a_newer_state_is_refused(indexed: Project) -> None:
    (indexed.work / "state.json").write_text('{"schema": 99}')
    with pytest.raises(CurateError, match=f"state schema 99; this one.*knows {state.SCHEMA}"):
        sync.run(indexed)


def test_a_project_without_an_index_names_the_command(make: Make, library: Path) -> None:
    with pytest.raises(CurateError, match="has no index yet"):
        Index(make([LIBRARY | {"data": library}], name="empty"))


def test_two_projects_share_a_server_and_never_a_dataset(make: Make, library: Path, line: Path) -> None:
    first = make([LIBRARY | {"data": library}], name="one")
    second = make([LINE | {"data": line}], name="two")
    sync.run(first)
    sync.run(second)
    assert (Index(first).count(), Index(second).count()) == (16, 10)


def test_readers_are_free_while_a_writer_works(indexed: Project) -> None:
    with writer_lock(indexed.work, "a long training"):
        assert summarise(indexed)["samples"] == 26
        with pytest.raises(CurateError, match=r"'a long training' \(pid \d+"), writer_lock(indexed.work, "another"):
            pass


def test_capture_is_exact_for_masks_boxes_and_classes(make: Make, tmp_path: Path) -> None:
    """The index reads back from FiftyOne just what it wrote: else every run would find edits that nobody made."""
    root = tmp_path / "odd"
    for number in range(30):
        random = np.random.default_rng(number)
        width, height = (int(random.integers(5, 60)) for _ in range(2))
        fakes.save_image(root / "images" / f"{number}.png", width, height, seed=number)
        noise = (random.random((height, width)) < 0.3).astype(np.uint8) * 255
        path = root / "masks" / "crack" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    project = make([{"name": "odd", "format": "mask_folder", "data": root, "fully_labelled": True}])
    sync.run(project)
    index = Index(project)
    assert index.edited() == []
    assert app_edits.capture(index, book_of(project), project.class_names) == []
    for item in index.items():
        if item.label.defects:
            mask = np.asarray(Image.open(root / "masks" / "crack" / item.path.name)) > 127
            assert rle.mask_to_coco(mask) == rle.mask_to_coco(mask_of(item.label.defects[0], item.width, item.height))


def test_the_demo_plant_is_indexed_with_its_faults(tmp_path: Path, make: Make, server: str) -> None:
    project, summary = setup.demo(tmp_path / "projects" / "demo", 120, 3, lambda done: None)
    report = sync.run(project)
    assert report.added == summary.images
    assert report.quarantined == len(summary.truncated) + len(summary.empty) + len(summary.not_an_image)
    assert report.duplicates == len(summary.duplicates) + len(summary.conflicts)
    assert report.conflicts == len(summary.conflicts)
    Index(project).dataset.delete()
