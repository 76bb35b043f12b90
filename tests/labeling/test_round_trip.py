"""The round trip law: index -> push -> submit -> pull -> index is the identity, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.data import Defect, Label, make_defect
from curate.formats.magnetic_tile import CLASSES as TILE_CLASSES
from curate.index import sync
from curate.index.dataset import Index
from curate.masks import shapes
from curate.project import Project
from labeling import pull, push, results, tasks
from labeling.client import Studio
from tests import fakes
from tests.conftest import Make
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import labelled, labels, ls_project_of, pushed, task_of, unlabelled

SIZE = (37, 19)
Random = np.random.Generator


def assert_identity(project: Project, studio: Studio, ids: Sequence[str]) -> None:
    """A second look at these images by somebody who agrees with everything changes nothing but who said it."""
    before = {id: label.digest for id, label in labels(project).items()}
    report = under_review(project, studio, ids)
    assert (report.created, report.refused) == (len(ids), [])
    agree(project, studio, report.batch)
    pulled = pull.run(project, studio)
    assert (pulled.annotations, pulled.labelled, pulled.disputed) == (len(ids), len(ids), 0)
    after = {id: label.digest for id, label in labels(project).items()}
    assert [id for id in before if after[id] != before[id]] == []
    said = {id: (origin, how) for id, origin, how in Index(project).rows("label_origin", "annotation_origin")}
    assert {said[id] for id in ids} == {("label-studio", "prediction")}
    assert pull.run(project, studio, full=True).annotations == 0
    assert pull.rebuild(project)["changed"] == 0, "the log alone says the same"


def under_review(project: Project, studio: Studio, ids: Sequence[str]) -> push.PushReport:
    """These images pushed with their labels as suggestions."""
    index = Index(project)
    index.dataset.save_view("everything", index.dataset.select_by("content_id", list(ids)))
    return push.run(project, studio, push.PushRequest(view="everything"))


def agree(project: Project, studio: Studio, batch: str) -> None:
    """Submit every suggestion of the batch as it is."""
    ls_project = ls_project_of(project, studio)
    for task in list(tasks.listed(ls_project, [tasks.equal("data.batch", batch)], "all", "id,predictions,result")):
        (suggestion,) = task["predictions"]
        ls_helpers.annotate(studio, task["id"], suggestion["result"], parent_prediction=suggestion["id"])


# --- drawn labels -----------------------------------------------------------------------------------------------------


def draw(root: Path, count: int) -> None:
    """Images of any shape, the first of one pixel; two ragged masks that overlap on each but every fourth."""
    for number in range(count):
        random = np.random.default_rng(number)
        width, height = (int(side) for side in random.integers(1, 60, 2)) if number else (1, 1)
        fakes.save_image(root / "images" / f"{number:02d}.png", width, height, seed=number)
        for name in ("crack", "hole") if number % 4 != 3 else ():
            path = root / "masks" / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * ragged(random, width, height)).save(path)


def ragged(random: Random, width: int, height: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A mask with at least one pixel, up to almost all."""
    mask = (random.random((height, width)) < random.choice([0.02, 0.5, 0.98])).astype(np.uint8)
    mask[random.integers(height), random.integers(width)] = 1
    return mask


def test_masks_of_any_shape(make: Make, studio: Studio, tmp_path: Path) -> None:
    draw(tmp_path / "drawn", 24)
    project = make([{"name": "drawn", "format": "mask_folder", "data": tmp_path / "drawn", "fully_labelled": True}])
    sync.run(project)
    ids = labelled(project)
    assert len(ids) == 24
    assert_identity(project, studio, ids)


def spoken(random: Random) -> Label:
    """Draw a label that no mask file can hold: boxes to 0.001 pixel, degrees, classes without a place, or nothing."""
    kinds = random.integers(0, 2, int(random.integers(0, 5)))
    found = tuple(region(random) if kind else bounds(random) for kind in kinds)
    whole = {str(random.choice(["crack", "hole"])) for _ in range(int(random.integers(0, 2)))}
    return Label("labelled", found, tuple(sorted(whole)))


def region(random: Random) -> Defect:
    found = shapes.defect_from_mask(str(random.choice(["crack", "hole"])), ragged(random, *SIZE))
    assert found is not None
    return make_defect(found.label, found.box, found.rle, degree(random))


def bounds(random: Random) -> Defect:
    x, y = (np.sort(random.choice(1000 * side + 1, 2, replace=False)) / 1000 for side in SIZE)
    return make_defect("hole", (x[0], y[0], x[1] - x[0], y[1] - y[0]), severity=degree(random))


def degree(random: Random) -> str | None:
    return [None, "light", "heavy"][int(random.integers(3))]


def test_boxes_degrees_and_classes_without_a_place(make: Make, studio: Studio, tmp_path: Path) -> None:
    for number in range(24):
        fakes.save_image(tmp_path / "line" / f"{number}.png", *SIZE, seed=number)
    source = {"name": "line", "format": "images", "data": tmp_path / "line", "kind": "production"}
    project = make([source], labelstudio={"severities": ["light", "heavy"]})
    sync.run(project)
    wanted = {id: spoken(np.random.default_rng(number)) for number, id in enumerate(unlabelled(project))}
    pushed(project, studio, list(wanted))
    for id, label in wanted.items():
        ls_helpers.annotate(studio, task_of(project, studio, id), results.of_label(label, SIZE))
    pull.run(project, studio)
    shown = labels(project)
    assert {id: shown[id].digest for id in wanted} == {id: label.digest for id, label in wanted.items()}
    assert_identity(project, studio, [id for id, label in wanted.items()])


# --- real masks -------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_every_mask_of_the_magnetic_tiles(make: Make, studio: Studio) -> None:
    """All defect images, their masks read here once more; 4 have an empty mask, which leaves the class alone."""
    folder = fakes.real_data("magnetic_tile")
    source = {"name": "tiles", "format": "magnetic_tile", "data": folder, "fully_labelled": True}
    project = make([source], TILE_CLASSES)
    sync.run(project)
    ids = [id for id, label in labels(project).items() if label.present]
    files = {id: folder / paths[0].partition(":")[2] for id, paths in Index(project).rows("paths")}
    assert len(ids) == len(list(folder.glob("MT_[!F]*/Imgs/*.png"))) + len(list(folder.glob("MT_Fray/Imgs/*.png")))
    assert_identity(project, studio, ids)
    after = labels(project)
    for id in ids:
        assert_as_drawn(after[id], files[id])
    assert sum(not after[id].defects for id in ids) == 4


def assert_as_drawn(label: Label, file: Path) -> None:
    mask = np.asarray(Image.open(file.with_suffix(".png")).convert("L")) > 127
    assert label.present == {file.parts[-3].removeprefix("MT_")}
    painted = [shapes.mask_of(defect, mask.shape[1], mask.shape[0]) for defect in label.defects]
    np.testing.assert_array_equal(np.any(painted, axis=0) if painted else np.zeros(mask.shape, bool), mask)
