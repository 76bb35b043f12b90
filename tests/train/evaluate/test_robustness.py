"""Robustness: changes to images, metrics, the command, and leaving an exposure out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture
from tests.train.conftest import TINY, drawn
from train.evaluate import leave_out, robustness
from train.evaluate import run as evaluating
from train.evaluate.robustness import CONDITIONS, LEVELS, ConditionResults, apply_change
from train.evaluate.run import EvaluateRequest
from train.fit import run as training

FAST = training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=2"), device="cpu")
CPU = EvaluateRequest(device="cpu", split="val")


# --- the changes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LEVELS)
def test_each_severity_is_worse_than_the_one_before(name: str, channels: int) -> None:
    image = np.repeat(drawn(0)[0][..., None], channels, axis=2)
    for id in ("a", "b", "c", "d"):
        kept = image.copy()
        images = [apply_change(image, name, severity, id) for severity in range(1, 6)]
        assert np.array_equal(image, kept)
        assert all(changed.shape == image.shape and changed.dtype == np.uint8 for changed in images)
        away = [float(np.abs(changed.astype(float) - image).mean()) for changed in images]
        assert away == sorted(away)
        assert away[0] > 0.3
        assert away[-1] > 1.8 * away[0]
        assert np.array_equal(images[2], apply_change(image, name, 3, id))  # the same in any run
        if channels == 3:
            assert all((changed[..., :1] == changed).all() for changed in images)  # grey stays grey


def test_exposure_goes_both_ways_and_images_differ() -> None:
    image = np.full((32, 32, 1), 100, np.uint8)
    levels = {int(apply_change(image, "exposure", 3, f"image {number}").mean()) for number in range(20)}
    assert levels == {50, 200}
    spots = {apply_change(image, "glare", 5, f"image {number}").tobytes() for number in range(5)}
    assert len(spots) == 5


# --- the figures ----------------------------------------------------------------------------------------------------


def answers(images: int = 40, segments: bool = False) -> ConditionResults:
    """Two classes, right on images as they are; the first goes wrong where there is strong noise."""
    random = np.random.default_rng(0)
    present = random.random((images, 2)) < 0.5
    decided = np.repeat(present[None], len(CONDITIONS), axis=0)
    row = CONDITIONS.index(("noise", 4))
    decided[row, : images // 2, 0] = False
    counts = np.zeros((*decided.shape, 3), np.int64)
    counts[..., 0], counts[..., 2] = 50 * (decided & present), 50 * (~decided & present)
    groups = tuple(f"g{number // 2}" for number in range(images))
    return ConditionResults(("crack", "hole"), groups, present, decided, counts if segments else None)


@pytest.mark.parametrize("segments", [False, True])
def test_figures_by_hand(segments: bool) -> None:
    results = answers(segments=segments)
    summary = robustness.summarise(results)
    cracks = results.present[:, 0]
    kept = cracks[20:].sum() / cracks.sum()
    assert summary["clean"]["crack"]["recall"]["value"] == 1
    assert summary["changes"]["noise"][3]["crack"]["recall"]["value"] == pytest.approx(kept, abs=1e-5)
    expected = kept if segments else 2 * kept / (1 + kept)
    worst = summary["worst"]["crack"]["score"]
    assert (worst["change"], worst["severity"]) == ("noise", 4)
    assert worst["worst"]["value"] == pytest.approx(expected, abs=1e-5)
    assert worst["drop"]["value"] == pytest.approx(1 - expected, abs=1e-5)
    assert worst["drop"]["low"] < worst["drop"]["value"] < worst["drop"]["high"]
    assert worst["drop"]["low"] > 0
    assert summary["worst_of"]["glare"]["crack"]["score"]["drop"]["value"] == 0
    assert summary["limits"]["glare"]["passed"] is True
    assert summary["worst"]["hole"]["recall"]["drop"]["value"] == 0
    everything = summary["worst"]["all"]["score"]
    pooled = 1 - (cracks[:20].sum()) / results.present.sum()
    assert everything["worst"]["value"] == pytest.approx(pooled if segments else (1 + expected) / 2, abs=1e-5)
    assert summary["score"] == ("Dice" if segments else "F1")


def test_a_class_that_nothing_shows_is_no_zero() -> None:
    results = answers()
    results = replace(results, present=results.present & [True, False], decided=results.decided & [True, False])
    summary = robustness.summarise(results)
    assert summary["worst"]["hole"]["score"]["drop"]["value"] is None
    assert "change" not in summary["worst"]["hole"]["score"]
    assert summary["worst"]["all"]["score"]["drop"]["value"] > 0
    json.dumps(summary, allow_nan=False)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(works: Project) -> Project:
    training.run(works, FAST)
    return works


def test_robustness_as_people_and_scripts_meet_it(run: Run, trained: Project, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Every image 26 times; the clean ones as `curate evaluate` has them; a killed run goes on; done is done."""
    arguments = ("robustness", "--project", trained.folder, "--split", "val", "--device", "cpu")
    result = ok(run(*arguments, "--json"))
    assert result["fresh"]
    assert len(result["changes"]) == 5
    assert all(len(levels) == 5 for levels in result["changes"].values())
    metrics = evaluating.run(trained, CPU).metrics
    assert result["images"] == metrics["images"]
    assert result["clean"]["all"]["score"] == metrics["overall"]["dice"]
    assert result["clean"]["all"]["clean_false_alarms"] == metrics["overall"]["clean_false_alarms"]
    for name in ("crack", "hole"):
        assert result["clean"][name] == {
            "score": metrics["classes"][name]["dice"],
            "recall": metrics["classes"][name]["recall"],
        }
    again = ok(run(*arguments, "--json"))
    assert again == result | {"fresh": False}
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "nothing to do" in out
    assert "haze" in out
    assert not list((trained.work / "robustness").rglob("*.part"))
    shutil.rmtree(result["folder"])  # figures gone, answers there: nothing is looked at again
    monkeypatch.setattr(robustness, "_row", lambda *_: pytest.fail("looked again"))
    assert ok(run(*arguments, "--json")) == result
    assert "allowed: test, val" in failed(run(*arguments[:4], "train"))


@pytest.mark.exhaustive
def test_an_image_that_cannot_be_read_is_named(trained: Project) -> None:
    plan = evaluating.make_plan(Index(trained), CPU)
    Path(plan.items[0].path).write_bytes(b"no image")
    result = robustness.run(trained, CPU)
    assert list(result.manifest["failed"]) == [plan.items[0].id]
    assert result.metrics["images"] == len(plan.items) - 1
    for item in plan.items:
        Path(item.path).write_bytes(b"no image")
    shutil.rmtree(result.folder.parent)
    with pytest.raises(CurateError, match="no image of val could be read"):
        robustness.run(trained, CPU)


# --- leaving an exposure out ----------------------------------------------------------------------------------------


@pytest.fixture
def tiles(works: Project) -> Project:
    """The same images, named as the magnetic tiles are: odd ones in another exposure."""
    from curate.index import sync

    for file in list((works.folder.parent.parent / "steel").rglob("*.png")):
        number = int(file.stem)
        file.rename(file.with_name(f"exp{1 + number % 2}_num_{number}.png"))
    sync.run(works)
    training.run(works, replace(FAST, overrides=(*FAST.overrides, "epochs=1")))
    return works


@pytest.mark.exhaustive
def test_leave_one_exposure_out(run: Run, tiles: Project, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    task = leave_out.make_task(tiles, CPU, "exposure")
    assert task.values == ["1", "2"]
    assert leave_out.cost(task).startswith("2 trainings")
    for value in task.values:
        left = task.without(value)
        assert all(f"exp{value}_" not in item.path.name for item in (*left.train, *left.val))
        assert 0 < len(left.train) < len(task.data.train)
    arguments = ("robustness", "--project", tiles.folder, "--split", "val", "--device", "cpu", "--leave-out")
    result = ok(run(*arguments, "exposure", "--json"))
    assert set(result["values"]) == {"1", "2"}
    assert (
        sum(value["images"] for value in result["values"].values()) == result["all"]["images"] == len(task.plan.items)
    )
    with_all = result["all"]["classes"]["all"]["score"]["with"]
    assert with_all == evaluating.run(tiles, CPU).metrics["overall"]["dice"]
    assert not list(Path(result["folder"]).glob(".*"))
    monkeypatch.setattr(leave_out, "_train", lambda *_: pytest.fail("trained again"))
    assert ok(run(*arguments, "exposure", "--json")) == result | {"fresh": False}
    assert "do not differ in stratum" in failed(run(*arguments, "stratum"))
    assert "allowed: exposure, stratum" in failed(run(*arguments, "moon"))
    code, out, err = run(*arguments, "exposure")
    assert (code, "left out" in out) == (0, True), err
    assert "0 trainings" in err


@pytest.mark.parametrize(("drop", "passed"), [(0.03, True), (0.031, False), (-0.1, True), (None, None)])
def test_a_change_may_cost_its_limit(drop: float | None, passed: bool | None) -> None:
    assert robustness._limit({"value": drop}, 0.03)["passed"] is passed
