"""Cross-validation by groups: every image judged once a repeat by a network that knows nothing of its group."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from curate import cli
from curate.admin import setup
from curate.data import Item, Label
from curate.errors import CurateError
from curate.index import database, sync
from curate.index.dataset import Index
from curate.project import Project
from tests.train.conftest import CLASSES, LIBRARY, TINY, drawn
from train import recipe, store
from train.data.dataset import TrainingData
from train.evaluate import cross_validate, intervals, metrics, per_image
from train.evaluate import run as evaluating
from train.evaluate.cross_validate import CrossValidateRequest, CrossValidationTask, Fold, group_of
from train.evaluate.metrics import EvaluatedImages
from train.fit import run as training

SHARES = {"train": 0.7, "val": 0.15}
QUICK = [*TINY, "epochs=1", "steps=3", "optimiser.lr=3e-3", "augmentation.brightness=0", "augmentation.contrast=0"]
CPU = CrossValidateRequest(count=2, repeats=2, device="cpu")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Project]:
    """20 pieces in two views each, and a small segmenter."""
    folder = tmp_path_factory.mktemp("folds")
    root = folder / "steel"
    for directory in (root / "images", *(root / "masks" / name for name in CLASSES)):
        directory.mkdir(parents=True)
    for number in range(40):
        image, masks = drawn(number)
        file = root / "images" / f"{number // 2:03d}_{number % 2}.png"
        Image.fromarray(image).save(file)
        for name, mask in masks.items():
            Image.fromarray(255 * mask).save(root / "masks" / name / file.name)
    project = setup.write(folder / "plant", [LIBRARY | {"data": root, "group": r"(\d+)_"}], CLASSES)
    sync.run(project)
    training.run(project, training.TrainRequest(recipe="unet-resnet", overrides=QUICK, device="cpu"))
    yield project
    fo = database.connect(folder)
    fo.delete_dataset(project.dataset_name)


@pytest.fixture(scope="module")
def result(plant: Project) -> cross_validate.CrossValidation:
    return cross_validate.run(cross_validate.make_task(plant, CPU))


def ids(project: Project, *splits: str) -> set[str]:
    return {id for id, split in Index(project).rows("split") if split in splits}


def pieces(*shown: tuple[str, ...], views: int = 2) -> list[Item]:
    """For each tuple of classes a piece that shows them."""
    return [
        Item(f"{piece:03d}-{view}", Path("x.png"), 32, 32, Label("labelled", (), names), "train", f"piece {piece}")
        for piece, names in enumerate(shown)
        for view in range(views)
    ]


def all_of(items: list[Item]) -> TrainingData:
    return TrainingData("classification", CLASSES, tuple(items), (), False, True)


# --- dealing --------------------------------------------------------------------------------------------------------


@given(
    kinds=st.lists(st.sampled_from([(), ("crack",), ("hole",), CLASSES]), min_size=12, max_size=40),
    count=st.integers(2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_no_group_is_in_two_parts_of_a_fold(kinds: list[tuple[str, ...]], count: int, seed: int) -> None:
    items = pieces(CLASSES, CLASSES, CLASSES, CLASSES, *kinds)
    dealt = list(cross_validate.make_folds(items, all_of(items), count, 2, seed, SHARES))
    for fold in dealt:
        parts = (fold.data.train, fold.data.val, fold.held)
        groups = [{group_of(item) for item in part} for part in parts]
        assert sum(map(len, groups)) == len(set().union(*groups))
        assert sorted(item.id for part in parts for item in part) == [item.id for item in items]
        assert all(item.split == "val" for item in fold.data.val)
    for repeat in range(2):
        held = [item.id for fold in dealt if fold.repeat == repeat for item in fold.held]
        assert sorted(held) == [item.id for item in items]
    once = list(cross_validate.make_folds(items, all_of(items), count, 1, seed, SHARES))
    assert once == dealt[:count]  # so that more repeats can be added later


def test_few_groups_are_spread_over_folds_and_val_gets_some() -> None:
    items = pieces(*[("hole",)] * 8, *[("crack",)] * 30, *[()] * 40)
    dealt = list(cross_validate.make_folds(items, all_of(items), 4, 3, 0, SHARES))
    for fold in dealt:
        shown = [
            {group_of(item) for item in part if "hole" in item.label.present} for part in (fold.held, fold.data.val)
        ]
        assert [len(names) for names in shown] == [2, 1]
    assert len({tuple(sorted(item.id for item in fold.held)) for fold in dealt}) == 12  # every repeat deals anew


def test_a_fold_knows_the_classes_that_its_train_shows() -> None:
    items = pieces(("hole",), *[("crack",)] * 6, *[()] * 6)
    dealt = list(cross_validate.make_folds(items, all_of(items), 3, 1, 0, SHARES))
    for fold in dealt:
        holds = any("hole" in item.label.present for item in fold.held)
        assert fold.data.classes == (("crack",) if holds else CLASSES)
    assert [note[:36] for note in cross_validate._class_notes(items, CLASSES)] == [
        "class hole is in one group only: the fold"[:36]
    ]


def test_too_little_to_deal_is_reported() -> None:
    items = pieces(("hole",), ("crack",), ())
    with pytest.raises(CurateError, match="4 folds need at least 4 labelled groups, there are 3: --folds 2"):
        list(cross_validate.make_folds(items, all_of(items), 4, 1, 0, SHARES))
    with pytest.raises(CurateError, match=r"show only clean images. Label more"):
        list(cross_validate.make_folds(pieces(("hole",), (), ()), all_of(items), 3, 1, 0, SHARES))


# --- figures --------------------------------------------------------------------------------------------------------


def judged(seed: int, n: int = 60) -> EvaluatedImages:
    random = np.random.default_rng(seed)
    present = np.arange(2 * n).reshape(n, 2) % 5 < 2
    p = np.clip(0.6 * present + random.random((n, 2)) * 0.6, 0, 1)
    groups = tuple(f"g{row // 3}" for row in range(n))
    return EvaluatedImages(CLASSES, tuple(map(str, range(n))), groups, present, p, p > 0.5)


def test_the_same_answers_three_times_tell_what_they_tell_once() -> None:
    once = metrics.compute(judged(0), judged(0).draws())
    thrice = cross_validate.summarise([judged(0)] * 3)
    for ours, plain in ((thrice["overall"], once[0]), *((thrice["classes"][name], once[1][name]) for name in CLASSES)):
        for name, entry in plain.items():
            expected = intervals.estimate(entry).to_json()
            assert {key: ours[name][key] for key in expected} == expected
            assert ours[name]["by_repeat"] == [expected["value"]] * 3


def test_repeats_are_averaged() -> None:
    several = [judged(seed) for seed in range(3)]
    summary = cross_validate.summarise(several)
    for place, name in enumerate(CLASSES):
        recalls = [repeat.decided[repeat.present[:, place], place].mean() for repeat in several]
        assert summary["classes"][name]["recall"]["value"] == pytest.approx(np.mean(recalls), abs=1e-6)
        assert summary["classes"][name]["recall"]["by_repeat"] == pytest.approx(recalls, abs=1e-6)
        assert summary["classes"][name]["recall"]["groups"] == summary["support"][name]["groups"]
    nothing = replace(several[0], decided=np.zeros_like(several[0].decided))
    summary = cross_validate.summarise([nothing, several[1]])
    decided, truth = several[1].decided[:, 0], several[1].present[:, 0]
    assert summary["classes"]["crack"]["precision"]["by_repeat"][0] is None
    assert summary["classes"]["crack"]["precision"]["value"] == pytest.approx(truth[decided].mean(), abs=1e-6)


# --- the whole of it ------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_every_image_is_judged_once_a_repeat_and_test_is_not_touched(
    plant: Project, result: cross_validate.CrossValidation
) -> None:
    task = cross_validate.make_task(plant, CPU)
    assert {item.id for item in task.items} == ids(plant, "train", "val")
    seen = {item.id for fold in task.folds for item in (*fold.held, *fold.data.train, *fold.data.val)}
    assert not seen & ids(plant, "test")
    for repeat in range(2):
        assert sorted(task.predictions_table(repeat).ids()) == [item.id for item in task.items]
    assert result.metrics["images"] == len(task.items)
    assert result.metrics["groups"] == len({item.group for item in task.items})
    assert result.manifest["splits"] == ["train", "val"]


def test_figures_are_those_of_what_is_kept(plant: Project, result: cross_validate.CrossValidation) -> None:
    task = cross_validate.make_task(plant, CPU)
    for place, name in enumerate(CLASSES):
        truth = np.array([name in item.label.present for item in task.items])
        recalls, ious = [], []
        for repeat in range(2):
            rows = task.predictions_table(repeat).read([item.id for item in task.items], ["decided", "counts"])
            recalls.append(np.asarray(rows["decided"])[truth, place].mean())
            hits, false, missed = np.asarray(rows["counts"]).reshape(-1, 2, 3)[:, place].sum(axis=0)
            ious.append(hits / (hits + false + missed))
        ours = result.metrics["classes"][name]
        assert ours["recall"]["by_repeat"] == pytest.approx(recalls, abs=1e-6)
        assert ours["iou"]["value"] == pytest.approx(np.mean(ious), abs=1e-6)
        assert ours["recall"]["low"] <= ours["recall"]["value"] <= ours["recall"]["high"]
        assert result.metrics["support"][name]["groups"] == len(
            {item.group for item in task.items if name in item.label.present}
        )
    json.dumps(result.to_json(), allow_nan=False)


def test_folds_are_no_models_and_leave_nothing_behind(plant: Project, result: cross_validate.CrossValidation) -> None:
    assert len(store.all_models(plant)) == 1
    assert store.alias(plant, store.CANDIDATE) == result.manifest["model"]
    names = {file.name.partition("-")[0] for file in result.folder.iterdir()}
    assert names == {"fold", "judged", "val", "result"}
    assert evaluating.evaluations(plant) == []
    again = cross_validate.run(cross_validate.make_task(plant, CPU))
    assert (result.fresh, again.fresh) == (True, False)
    assert again.metrics == result.metrics


def test_weights_of_this_project_are_reported(plant: Project, tmp_path: Path) -> None:
    own = store.find(plant)
    other = tmp_path / "other.safetensors"
    other.write_bytes(own.weights.read_bytes() + b" ")
    for weights, count in ((own.weights, 1), (other, 0), ("none", 0)):
        notes = list(cross_validate._weight_notes(plant, recipe.load("unet-resnet", [f"model.weights={weights}"])))
        assert [own.key in note and "too good" in note for note in notes] == [True] * count, weights


class Pulled(Exception):
    """The plug."""


def test_killed_it_resumes_to_the_same_result(plant: Project, result: cross_validate.CrossValidation) -> None:
    names = {file.name for file in result.folder.iterdir()}
    shutil.rmtree(result.folder)

    def pulled_at(wanted: str, after: int) -> None:
        count = 0

        def step(stage: str, done: int, total: int) -> None:
            nonlocal count
            count += wanted in stage
            if count == after:
                raise Pulled

        with pytest.raises(Pulled):
            cross_validate.run(cross_validate.make_task(plant, CPU), step)

    pulled_at("fold 2 of 2", 2)  # within a training
    first = result.folder / "fold-1-1.json"
    before = first.stat().st_mtime_ns
    pulled_at("evaluate", 1)  # trained, and half evaluated
    assert not (result.folder / "fold-1-2.json").exists()
    assert len(cross_validate.make_task(plant, CPU).todo) == 3
    again = cross_validate.run(cross_validate.make_task(plant, CPU))
    assert first.stat().st_mtime_ns == before
    assert again.metrics == result.metrics
    assert names <= {file.name for file in result.folder.iterdir()}


def test_thresholds_are_fitted_on_each_fold_s_val(plant: Project, result: cross_validate.CrossValidation) -> None:
    task = cross_validate.make_task(plant, replace(CPU, targets={"crack": 0.9}))
    assert task.todo == []  # nothing is trained again
    point = cross_validate.run(task).metrics["operating"]["crack"]
    assert len(point["thresholds"]) + point["unfitted"] == 4
    assert point["before"]["recall"]["value"] == result.metrics["classes"]["crack"]["recall"]["value"]
    recalls = [_recall(task, repeat) for repeat in range(2)]
    assert point["held"]["recall"]["by_repeat"] == pytest.approx(recalls, abs=1e-6)


def _recall(task: CrossValidationTask, repeat: int) -> float:
    """Counted anew: a fold's own threshold on its own images."""
    hits, shown = 0, 0
    for fold in (fold for fold in task.folds if fold.repeat == repeat):
        val, held = (_gathered(task, fold, of) for of in ("val", "held"))
        decided = held.decided[:, 0]
        if val.present[:, 0].any():
            decided = metrics.fit_operating_point(val, 0, 0.9).decide(held, 0)
        hits, shown = hits + int((decided & held.present[:, 0]).sum()), shown + int(held.present[:, 0].sum())
    return hits / shown


def _gathered(task: CrossValidationTask, fold: Fold, which: str) -> EvaluatedImages:
    table, items = (
        (task.val_table(fold), fold.data.val) if which == "val" else (task.predictions_table(fold.repeat), fold.held)
    )
    return per_image.evaluated_images(table, items, CLASSES, False)


def test_synthetic_images_stay_out_and_chosen_ones_are_reported(plant: Project) -> None:
    victim, chosen = sorted(ids(plant, "train"))[:2]
    index = Index(plant)
    index.set({"source": {victim: "synthetic", chosen: "production"}})
    task = cross_validate.make_task(plant, CPU)
    index.set({"source": {victim: "public", chosen: "public"}})
    seen = {item.id for fold in task.folds for item in (*fold.held, *fold.data.train, *fold.data.val)}
    assert victim not in seen
    assert chosen in seen
    assert any("1 synthetic images are in no fold" in note for note in task.notes)
    assert any("1 of" in note and "selected for labelling" in note for note in task.notes)


def test_a_corrected_label_asks_for_other_folds(plant: Project, result: cross_validate.CrossValidation) -> None:
    tested = cross_validate.make_task(plant, replace(CPU, with_test=True))
    assert {item.id for item in tested.items} == ids(plant, "train", "val", "test")
    assert tested.folder != result.folder
    assert cross_validate.make_task(plant, replace(CPU, repeats=3)).folder == result.folder
    assert [fold.name for fold in cross_validate.make_task(plant, replace(CPU, repeats=3)).todo] == ["3-1", "3-2"]
    index = Index(plant)
    item = next(index.items(sorted(ids(plant, "train"))[:1]))
    index.set({"status": {item.id: "disputed"}})
    assert cross_validate.make_task(plant, CPU).folder != result.folder
    index.set({"status": {item.id: "labelled"}})
    assert cross_validate.make_task(plant, CPU).folder == result.folder


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (replace(CPU, targets={"dent": 0.9}), "unknown class 'dent'"),
        (replace(CPU, targets={"crack": 2.0}), "target recall 2 of crack"),
        (replace(CPU, model="nobody"), "unknown model 'nobody'"),
        (replace(CPU, count=99), "99 folds need at least 99 labelled groups"),
    ],
)
def test_impossible_requests(plant: Project, asked: CrossValidateRequest, message: str) -> None:
    with pytest.raises(CurateError, match=message):
        cross_validate.make_task(plant, asked)


def test_the_command(plant: Project, result: cross_validate.CrossValidation) -> None:
    run = CliRunner()
    arguments = ["evaluate", "-p", str(plant.folder), "--device", "cpu", "--folds", "2", "--repeats", "2"]
    value = json.loads(_ok(run.invoke(cli.app, [*arguments, "--json"])).stdout)
    assert value["fresh"] is False
    for name in CLASSES:
        recall = value["classes"][name]["recall"]
        assert recall["low"] <= recall["value"] <= recall["high"]
        assert math.isfinite(recall["value"])
    plain = _ok(run.invoke(cli.app, [*arguments, "--target-recall", "crack=0.9"])).output
    for text in ("by 2 folds, 2 times", "groups", "crack at recall 0.9", "macro F1"):
        assert text in plain
    for wrong, text in ((["--split", "val"], "leave out --split"), (["--allow-leak"], "--allow-leak")):
        refused = run.invoke(cli.app, [*arguments, *wrong])
        assert isinstance(refused.exception, CurateError)
        assert text in str(refused.exception)
    alone = run.invoke(cli.app, ["evaluate", "-p", str(plant.folder), "--with-test"])
    assert "--with-test goes with --folds" in str(alone.exception)


def _ok(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return result
