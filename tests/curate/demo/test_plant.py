"""The demo plant: exact quotas, exact masks, faults as announced, the same bytes always, nothing half-written."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from curate.demo import plant, steel
from curate.demo.plant import RARE, DemoSummary, PlantPlan
from curate.demo.steel import CLASSES, SIZE, Coil
from curate.errors import CurateError
from curate.masks.rle import kaggle_to_mask

WIDTH, HEIGHT = SIZE


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSummary]:
    folder = tmp_path_factory.mktemp("demo") / "plant"
    return folder, plant.draw(folder, images=120, seed=3, workers=1)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def runs(coil: Coil, label: str) -> int:
    """How many separate stretches of neighbouring views show the class."""
    shown = [False, *(label in view.classes for view in coil.views)]
    return sum(now and not before for before, now in pairwise(shown))


# --- the plan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [60, 61, 75, 99, 200, 2000, 20000])
@pytest.mark.parametrize("seed", [0, 1])
def test_quotas_are_exact(images: int, seed: int) -> None:
    plan = plant.plan(images, seed)
    counts = {label: sum(label in view.classes for view in plan.views) for label in CLASSES}
    assert counts == {label: plant.quota(label, images) for label in CLASSES}
    assert [view.index for view in plan.views] == list(range(images))
    assert all(3 <= len(coil.views) <= 8 for coil in plan.coils)


@pytest.mark.parametrize("images", [60, 200, 2000])
@pytest.mark.parametrize("library", [True, False])
def test_library_and_plant_both_show_every_class(images: int, library: bool) -> None:
    views = [view for coil in plant.plan(images).coils if coil.library is library for view in coil.views]
    assert {label for view in views for label in view.classes} == set(CLASSES)


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_spread_over_coils(seed: int) -> None:
    small, large = (plant._summary(plant.plan(images, seed)) for images in (2000, 20000))
    assert small.by_class["edge_crack"] == 6
    assert small.by_class["blister"] == 20
    assert small.coils_by_class["edge_crack"] >= 3
    assert large.by_class["edge_crack"] == 60
    assert large.coils_by_class["edge_crack"] >= 20
    assert large.coils_by_class["blister"] >= 66


def test_most_images_are_clean_and_the_library_is_a_small_share() -> None:
    for images in (2000, 20000):
        summary = plant._summary(plant.plan(images))
        assert 0.70 <= summary.clean / images <= 0.77
        assert summary.library == round(0.15 * images)


def test_a_defect_goes_on_over_neighbouring_views() -> None:
    plan = plant.plan(2000)
    assert all(runs(coil, label) <= 1 for coil in plan.coils for label in CLASSES)
    assert max(sum("scratches" in view.classes for view in coil.views) for coil in plan.coils) > 2


def test_second_kinds_do_not_gather_on_rare_images() -> None:
    views = [view for view in plant.plan(20000).views if view.classes]
    rare = [view for view in views if set(view.classes) & set(RARE)]
    assert sum(len(view.classes) > 1 for view in rare) < 0.3 * len(rare)
    assert 0.05 < sum(len(view.classes) > 1 for view in views) / len(views) < 0.25


def test_edge_cracks_need_an_edge_and_edges_are_mostly_harmless() -> None:
    edges = [coil for coil in plant.plan(2000).coils if coil.edge]
    cracked = [coil for coil in plant.plan(2000).coils if any("edge_crack" in view.classes for view in coil.views)]
    assert all(coil.edge for coil in cracked)
    assert len(edges) > 20 * len(cracked)


def test_coils_and_paths_are_disjoint() -> None:
    plan = plant.plan(2000)
    assert len({coil.name for coil in plan.coils}) == len(plan.coils)
    added = [fault.path for fault in plan.faults if fault.kind != "png_in_jpg"]
    paths = [view.path for view in plan.views] + added
    assert len(set(paths)) == len(paths)


def test_the_library_lacks_one_stratum_and_the_plant_has_all() -> None:
    strata = {flag: {(c.line, c.camera) for c in plant.plan(200).coils if c.library is flag} for flag in (True, False)}
    assert strata[False] == set(plant.STRATA)
    assert strata[True] == set(plant.STRATA) - {("B", "bottom")}


def test_faults_grow_with_the_plant_and_spare_rare_images() -> None:
    plan = plant.plan(2000)
    assert {k: sum(f.kind == k for f in plan.faults) for k in plant.FAULTS_PER_2000} == plant.FAULTS_PER_2000
    classes = {view.path: set(view.classes) for view in plan.views}
    assert not any(classes[fault.source] & set(RARE) for fault in plan.faults)
    assert len(plant.plan(20000).faults) == 10 * len(plan.faults)


def test_the_plan_depends_on_its_seed_alone() -> None:
    assert plant.plan(200, 1) == plant.plan(200, 1)
    assert plant.plan(200, 1) != plant.plan(200, 2)


@pytest.mark.parametrize(("images", "seed"), [(59, 0), (0, 0), (60, -1)])
def test_refuses_arguments_that_cannot_be_drawn(tmp_path: Path, images: int, seed: int) -> None:
    with pytest.raises(CurateError):
        plant.draw(tmp_path / "plant", images, seed)
    assert not list(tmp_path.iterdir())


# --- pixels -------------------------------------------------------------------------------------------------------


def unharmed(plan: PlantPlan, coil: Coil) -> Coil:
    return replace(coil, views=tuple(replace(view, classes=()) for view in coil.views))


@pytest.mark.parametrize("label", CLASSES)
def test_a_mask_holds_what_its_defect_changed(label: str) -> None:
    plan = plant.plan(120, 3)
    changed, elsewhere = [], []
    for coil in (coil for coil in plan.coils if any(label in view.classes for view in coil.views)):
        for view, (pixels, masks), (clean, _) in zip(
            coil.views, steel.paint(coil, 3), steel.paint(unharmed(plan, coil), 3), strict=True
        ):
            difference = np.abs(pixels.astype(float) - clean)
            assert view.classes or not difference.any()
            if view.classes == (label,):
                changed.append(difference[masks[label]].mean())
                elsewhere.append(difference[~masks[label]].mean())
    assert changed
    assert min(changed) > 3.5
    assert max(elsewhere) < 0.5


def test_masks_are_small_for_rare_kinds_and_never_empty() -> None:
    areas: dict[str, list[int]] = {label: [] for label in CLASSES}
    for coil in plant.plan(120, 3).coils:
        for pixels, masks in steel.paint(coil, 3):
            assert pixels.shape == (HEIGHT, WIDTH)
            assert pixels.dtype == np.uint8
            for label, mask in masks.items():
                areas[label].append(int(mask.sum()))
    assert min(min(sizes) for sizes in areas.values()) >= steel.SMALLEST
    assert max(areas["edge_crack"] + areas["blister"]) < 0.015 * WIDTH * HEIGHT


def test_lines_look_different_and_coils_hang_together() -> None:
    plan, means = plant.plan(120, 3), {}
    for coil in plan.coils:
        means[coil] = [float(pixels.mean()) for pixels, _ in steel.paint(coil, 3)]
    levels = {line: np.mean([np.mean(m) for coil, m in means.items() if coil.line == line]) for line in "AB"}
    assert levels["A"] > levels["B"] + 10
    within, between = np.mean([np.std(m) for m in means.values()]), np.std([np.mean(m) for m in means.values()])
    assert within < 0.5 * between


# --- the folder ---------------------------------------------------------------------------------------------------


def test_the_same_bytes_with_one_and_with_two_workers(drawn: tuple[Path, DemoSummary], tmp_path: Path) -> None:
    folder, summary = drawn
    assert plant.draw(tmp_path / "again", images=120, seed=3, workers=2) == summary
    assert digests(tmp_path / "again") == digests(folder)


def test_truth_covers_every_image_that_opens(drawn: tuple[Path, DemoSummary]) -> None:
    folder, summary = drawn
    truth = rows(folder / "truth.csv")
    broken = {*summary.truncated, *summary.empty, *summary.not_an_image}
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}
    assert {row["image"] for row in truth} == on_disk - broken
    assert len({(row["image"], row["class"]) for row in truth}) == len(truth)
    assert all(row["group"] == Path(row["image"]).name.split("_")[0] for row in truth)
    assert all(bool(row["class"]) == bool(row["rle"]) for row in truth)


def test_truth_has_the_masks_that_were_painted(drawn: tuple[Path, DemoSummary]) -> None:
    folder, _ = drawn
    truth = {(row["image"], row["class"]): row["rle"] for row in rows(folder / "truth.csv")}
    for coil in plant.plan(120, 3).coils:
        for view, (_, masks) in zip(coil.views, steel.paint(coil, 3), strict=True):
            for label, mask in masks.items():
                assert (kaggle_to_mask(truth[view.path, label], HEIGHT, WIDTH).astype(bool) == mask).all()


def test_the_librarys_labels_are_the_truth_but_for_the_conflict(drawn: tuple[Path, DemoSummary]) -> None:
    folder, summary = drawn
    wrong = {copy for _, copy in summary.conflicts}
    truth = {(r["image"], r["class"], r["rle"]) for r in rows(folder / "truth.csv") if r["image"].startswith("lib")}
    train = {
        (f"library/train_images/{r['ImageId']}", CLASSES[int(r["ClassId"]) - 1], r["EncodedPixels"])
        for r in rows(folder / "library/train.csv")
    }
    assert {row for row in truth if row[1] and row[0] not in wrong} == {row for row in train if row[0] not in wrong}
    assert all(row not in truth for row in train if row[0] in wrong)
    assert {row[0] for row in train} >= wrong


def test_faults_are_what_the_summary_says(drawn: tuple[Path, DemoSummary]) -> None:
    folder, summary = drawn
    for path in summary.truncated:
        with pytest.raises(OSError, match="truncated"), Image.open(folder / path) as image:
            image.load()
    for path in (*summary.empty, *summary.not_an_image):
        with pytest.raises(UnidentifiedImageError):
            Image.open(folder / path)
    assert all((folder / path).stat().st_size == 0 for path in summary.empty)
    for source, other in summary.duplicates + summary.conflicts:
        assert (folder / source).read_bytes() == (folder / other).read_bytes()


def test_all_other_files_are_grey_jpegs_and_differ(drawn: tuple[Path, DemoSummary]) -> None:
    folder, summary = drawn
    kinds = {}
    for view in plant.plan(120, 3).views:
        with Image.open(folder / view.path) as image:
            image.load()
            assert (image.size, image.mode) == (SIZE, "L")
            kinds[view.path] = image.format
    assert {path for path, kind in kinds.items() if kind == "PNG"} == set(summary.png_in_jpg)
    assert set(kinds.values()) == {"JPEG", "PNG"}
    hashes = digests(folder)
    assert len({hashes[path] for path in kinds}) == summary.images


def test_drawing_again_changes_nothing(drawn: tuple[Path, DemoSummary]) -> None:
    folder, summary = drawn
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert plant.draw(folder, images=120, seed=3) == summary
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    stored = json.loads((folder / "plant.json").read_text())
    assert (stored["version"], stored["seed"], stored["images"]) == (plant.VERSION, 3, 120)


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_draws_is_not(drawn: tuple[Path, DemoSummary]) -> None:
    folder, _ = drawn
    dead = 2**22 + 1  # no process has this number
    for name in (f"{dead}.part", f"{dead}.gone.part", f"{os.getpid()}.part"):
        (folder.parent / f".{folder.name}.{name}" / "library").mkdir(parents=True)
    plant.draw(folder, images=120, seed=3)
    assert [path.name for path in folder.parent.glob(".*")] == [f".{folder.name}.{os.getpid()}.part"]
    shutil.rmtree(folder.parent / f".{folder.name}.{os.getpid()}.part")


def test_another_seed_replaces_a_plant(tmp_path: Path) -> None:
    folder = tmp_path / "plant"
    plant.draw(folder, 60, seed=0, workers=1)
    before = digests(folder)
    assert plant.draw(folder, 60, seed=1, workers=1).seed == 1
    assert digests(folder) != before
    assert [path.name for path in tmp_path.iterdir()] == ["plant"]


@pytest.mark.parametrize("extra", ["notes.txt", "project.toml"])
def test_refuses_a_folder_with_anything_else_in_it(tmp_path: Path, extra: str) -> None:
    folder = tmp_path / "plant"
    plant.draw(folder, 60, workers=1)
    (folder / extra).write_text("mine")
    with pytest.raises(CurateError, match="not a demo plant"):
        plant.draw(folder, 61, workers=1)
    assert (folder / extra).read_text() == "mine"


def test_refuses_a_foreign_folder_a_file_and_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(CurateError, match="not a demo plant"):
        plant.draw(tmp_path / "plant", 60)
    with pytest.raises(CurateError, match="is a file"):
        plant.draw(tmp_path / "plant" / "photo.jpg", 60)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CurateError, match="current folder"):
        plant.draw(Path("."), 60)


def test_draws_into_an_empty_folder_and_reports_progress(tmp_path: Path) -> None:
    (tmp_path / "plant").mkdir()
    steps: list[int] = []
    plant.draw(tmp_path / "plant", 60, workers=1, progress=steps.append)
    assert steps == sorted(set(steps))
    assert steps[-1] == 60


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_nothing(tmp_path: Path, workers: int) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plant.draw(tmp_path / "plant", 60, workers=workers, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_kill_leaves_no_folder_and_the_next_draw_succeeds(tmp_path: Path) -> None:
    folder = tmp_path / "plant"
    script = (
        "import os, signal, sys; from pathlib import Path; from curate.demo import plant\n"
        "die = lambda done: os.kill(os.getpid(), signal.SIGKILL) if done > 20 else None\n"
        "plant.draw(Path(sys.argv[1]), 60, workers=1, progress=die)"
    )
    root = Path(plant.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script, str(folder)], cwd=root).returncode == -9
    assert not folder.exists()
    assert plant.draw(folder, 60, workers=1).images == 60
