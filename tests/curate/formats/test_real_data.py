"""The real sets, whole, through the whole index: counts as the README of the data states them, masks where they belong.

Skipped, with the reason, where the data are not on the machine; none of it is part of the project.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate import formats
from curate.admin.status import summarise
from curate.index import sync
from curate.index.dataset import Index
from curate.masks import rle
from curate.masks.shapes import mask_of
from curate.project import Project
from tests.conftest import Make
from tests.fakes import real_data


def project_of(make: Make, format: str, folder: Path, **more: object) -> Project:
    options = more.pop("options", {})
    classes = formats.discover_classes(format, folder, None, True, options)  # type: ignore[arg-type]
    source = {"name": "real", "format": format, "data": folder, "options": options, **more}
    return make([source], classes, name="real")


def test_magnetic_tile(make: Make) -> None:
    folder = real_data("magnetic_tile")
    project = project_of(make, "magnetic_tile", folder)
    report = sync.run(project)
    assert (report.added, report.quarantined, report.missing) == (1344, 0, 0)
    summary = summarise(project)
    by_class = {"Blowhole": 115, "Break": 85, "Crack": 57, "Fray": 32, "Uneven": 103, "clean": 952}
    assert summary["by_class"] == by_class
    assert summary["by_status"] == {"labelled": 1344}
    members = Index(project).members().values()
    assert len({member.group for member in members}) == 251
    groups = {name: len({m.group for m in members if name in m.classes}) for name in by_class if name != "clean"}
    assert groups == {"Blowhole": 27, "Break": 25, "Crack": 11, "Fray": 8, "Uneven": 17}
    assert report.few_groups == {"Fray": 8}
    no_pixels = [i for i in Index(project).items() if i.label.classes]
    assert Counter(c for i in no_pixels for c in i.label.classes) == {"Uneven": 4}, "empty masks keep their class"


def test_magnetic_tile_masks_are_exact_and_no_tile_crosses_a_split(make: Make) -> None:
    folder = real_data("magnetic_tile")
    project = project_of(make, "magnetic_tile", folder)
    sync.run(project)
    index = Index(project)
    assert index.edited() == [], "what comes back from the database is what was written"
    splits: dict[str, set[str | None]] = {}
    for item in index.items():
        splits.setdefault(item.group, set()).add(item.split)
        for defect in item.label.defects:
            mask = np.asarray(Image.open(item.path.with_suffix(".png")).convert("L")) > 127
            assert np.array_equal(mask_of(defect, item.width, item.height), mask)
    assert all(len(values) == 1 for values in splits.values())
    images = Counter(item.split for item in index.items())
    assert images["train"] / 1344 == pytest.approx(0.7, abs=0.05)
    shares = {name: Counter(i.split for i in index.items() if name in i.label.present) for name in ("Fray", "Crack")}
    assert all(set(values) == {"train", "val", "test"} for values in shares.values())


def test_neu_det(make: Make) -> None:
    folder = real_data("neu_det")
    project = project_of(make, "neu_det", folder)
    report = sync.run(project)
    assert (report.quarantined, report.missing) == (0, 0)
    # 1,800 files are 1,799 images: patches_101 and patches_105 are the same bytes, with different boxes.
    assert (report.added, report.duplicates, report.conflicts) == (1799, 1, 1)
    index = Index(project)
    files = [reference for references in index.dataset.values("paths") for reference in references]
    assert set(Counter(Path(name).stem.rpartition("_")[0] for name in files).values()) == {300}
    by_class = summarise(project)["by_class"]
    # By the file's name 300 each; the boxes of 123 images also show other classes.
    assert all(by_class[name] >= 299 for name in project.class_names)
    kept = sum(len(item.label.defects) for item in index.items())
    others = sum(len(values or ()) for values in index.dataset.values("other_defects.detections.label"))
    assert kept + others == 4189


def test_severstal_counts(make: Make) -> None:
    folder = real_data("severstal")
    project = project_of(make, "severstal", folder)
    report = sync.run(project)
    assert (report.added, report.quarantined) == (45, 0)
    assert report.missing == 995, "1,000 images have rows, 5 of them are among the 45 that are present"
    assert report.notes == {".jpg file holds PNG bytes": 20}
    summary = summarise(project)
    assert summary["by_status"] == {"unlabelled": 40, "labelled": 5}
    with open(folder / "train.csv", newline="") as handle:
        rows = Counter(row["ClassId"] for row in csv.DictReader(handle))
    assert rows == {"1": 201, "2": 68, "3": 827, "4": 333}


def test_severstal_images_without_rows_are_clean_only_when_asked(make: Make) -> None:
    folder = real_data("severstal")
    project = project_of(make, "severstal", folder, fully_labelled=True)
    sync.run(project)
    assert summarise(project)["by_class"]["clean"] == 40


def test_severstal_masks_lie_on_the_defect(make: Make) -> None:
    """Inside a mask the steel looks unlike the rest of the strip; a transposed or shifted mask would not show that."""
    folder = real_data("severstal")
    project = project_of(make, "severstal", folder)
    sync.run(project)
    right, wrong = [], []
    for item in Index(project).items():
        grey = np.asarray(Image.open(item.path).convert("L"), float)
        steel = grey > 20  # strips end in black
        for defect in item.label.defects:
            mask = mask_of(defect, item.width, item.height).astype(bool)
            assert mask.shape == grey.shape == (256, 1600)
            right.append(contrast(grey, mask, steel))
            wrong.append(contrast(grey, np.roll(mask, (97, 611), (0, 1)), steel))
    assert len(right) == 9, "five images, nine rows"
    assert np.mean(right) > 1.5 * np.mean(wrong)


def contrast(grey: np.ndarray, mask: np.ndarray, steel: np.ndarray) -> float:
    """How far brightness and texture inside the mask are from those of the rest, in its own spread."""
    inside, outside = grey[mask & steel], grey[~mask & steel]
    if not len(inside):
        return 0.0
    return float(abs(inside.mean() - outside.mean()) / outside.std() + abs(np.log(inside.std() / outside.std())))


def test_severstal_rows_survive_decode_and_encode() -> None:
    folder = real_data("severstal")
    with open(folder / "train.csv", newline="") as handle:
        for row in csv.DictReader(handle):
            mask = rle.kaggle_to_mask(row["EncodedPixels"], 256, 1600)
            assert rle.mask_to_kaggle(mask) == row["EncodedPixels"]


def test_sd900_masks(make: Make) -> None:
    folder = real_data("sd900")
    project = project_of(make, "mask_folder", folder, options={"class_from": "prefix"})
    report = sync.run(project)
    # The same picture twice as in NEU-DET: Pa_101 and Pa_105.
    assert (report.added, report.duplicates, report.quarantined, report.missing) == (899, 1, 0, 0)
    assert summarise(project)["by_class"] == {"In": 300, "Pa": 299, "Sc": 300, "clean": 0}
    for item in list(Index(project).items())[::45]:
        mask = np.asarray(Image.open(folder / "masks" / f"{item.path.stem}.png").convert("L")) > 127
        assert np.array_equal(mask_of(item.label.defects[0], item.width, item.height), mask)
