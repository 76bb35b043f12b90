"""What changed images do to a model: the changes themselves, the figures, the command, and leaving an exposure out."""

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
from train.evaluate.robustness import CONDITIONS, LEVELS, ConditionResults, changed
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
        found = [changed(image, name, severity, id) for severity in range(1, 6)]
        assert np.array_equal(image, kept)
        assert all(one.shape == image.shape and one.dtype == np.uint8 for one in found)
        away = [float(np.abs(one.astype(float) - image).mean()) for one in found]
        assert away == sorted(away)
        assert away[0] > 0.3
        assert away[-1] > 1.8 * away[0]
        assert np.array_equal(found[2], changed(image, name, 3, id))  # the same in any run
        if channels == 3:
            assert all((one[..., :1] == one).all() for one in found)  # grey stays grey


def test_exposure_goes_both_ways_and_images_differ() -> None:
    image = np.full((32, 32, 1), 100, np.uint8)
    levels = {int(changed(image, "exposure", 3, f"image {number}").mean()) for number in range(20)}
    assert levels == {50, 200}
    spots = {changed(image, "glare", 5, f"image {number}").tobytes() for number in range(5)}
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
    made = answers(segments=segments)
    found = robustness.described(made)
    cracks = made.present[:, 0]
    kept = cracks[20:].sum() / cracks.sum()
    assert found["clean"]["crack"]["recall"]["value"] == 1
    assert found["changes"]["noise"][3]["crack"]["recall"]["value"] == pytest.approx(kept, abs=1e-5)
    expected = kept if segments else 2 * kept / (1 + kept)
    worst = found["worst"]["crack"]["score"]
    assert (worst["change"], worst["severity"]) == ("noise", 4)
    assert worst["worst"]["value"] == pytest.approx(expected, abs=1e-5)
    assert worst["drop"]["value"] == pytest.approx(1 - expected, abs=1e-5)
    assert worst["drop"]["low"] < worst["drop"]["value"] < worst["drop"]["high"]
    assert worst["drop"]["low"] > 0
    assert found["worst_of"]["glare"]["crack"]["score"]["drop"]["value"] == 0
    assert found["worst"]["hole"]["recall"]["drop"]["value"] == 0
    everything = found["worst"]["all"]["score"]
    pooled = 1 - (cracks[:20].sum()) / made.present.sum()
    assert everything["worst"]["value"] == pytest.approx(pooled if segments else (1 + expected) / 2, abs=1e-5)
    assert found["score"] == ("Dice" if segments else "F1")


def test_a_class_that_nothing_shows_is_no_zero() -> None:
    made = answers()
    made = replace(made, present=made.present & [True, False], decided=made.decided & [True, False])
    found = robustness.described(made)
    assert found["worst"]["hole"]["score"]["drop"]["value"] is None
    assert "change" not in found["worst"]["hole"]["score"]
    assert found["worst"]["all"]["score"]["drop"]["value"] > 0
    json.dumps(found, allow_nan=False)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(works: Project) -> Project:
    training.run(works, FAST)
    return works


def test_robustness_as_people_and_scripts_meet_it(run: Run, trained: Project, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Every image 26 times; the clean ones as `curate evaluate` has them; a killed run goes on; done is done."""
    arguments = ("robustness", "--project", trained.folder, "--split", "val", "--device", "cpu")
    made = ok(run(*arguments, "--json"))
    assert made["fresh"]
    assert len(made["changes"]) == 5
    assert all(len(levels) == 5 for levels in made["changes"].values())
    judged = evaluating.run(trained, CPU).figures
    assert made["images"] == judged["images"]
    assert made["clean"]["all"]["score"] == judged["overall"]["dice"]
    assert made["clean"]["all"]["clean_false_alarms"] == judged["overall"]["clean_false_alarms"]
    for name in ("crack", "hole"):
        assert made["clean"][name] == {
            "score": judged["classes"][name]["dice"],
            "recall": judged["classes"][name]["recall"],
        }
    again = ok(run(*arguments, "--json"))
    assert again == made | {"fresh": False}
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "nothing to do" in out
    assert "haze" in out
    assert not list((trained.work / "robustness").rglob("*.part"))
    shutil.rmtree(made["folder"])  # figures gone, answers there: nothing is looked at again
    monkeypatch.setattr(robustness, "_row", lambda *_: pytest.fail("looked again"))
    assert ok(run(*arguments, "--json")) == made
    assert "allowed: test, val" in failed(run(*arguments[:4], "train"))


def test_an_image_that_cannot_be_read_is_named(trained: Project) -> None:
    exam = evaluating.prepared(Index(trained), CPU)
    Path(exam.items[0].path).write_bytes(b"no image")
    found = robustness.run(trained, CPU)
    assert list(found.manifest["failed"]) == [exam.items[0].id]
    assert found.figures["images"] == len(exam.items) - 1
    for one in exam.items:
        Path(one.path).write_bytes(b"no image")
    shutil.rmtree(found.folder.parent)
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


def test_leave_one_exposure_out(run: Run, tiles: Project, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    task = leave_out.prepared(tiles, CPU, "exposure")
    assert task.values == ["1", "2"]
    assert leave_out.cost(task).startswith("2 trainings")
    for value in task.values:
        left = task.without(value)
        assert all(f"exp{value}_" not in one.path.name for one in (*left.train, *left.val))
        assert 0 < len(left.train) < len(task.data.train)
    arguments = ("robustness", "--project", tiles.folder, "--split", "val", "--device", "cpu", "--leave-out")
    made = ok(run(*arguments, "exposure", "--json"))
    assert set(made["values"]) == {"1", "2"}
    assert sum(one["images"] for one in made["values"].values()) == made["all"]["images"] == len(task.exam.items)
    with_all = made["all"]["classes"]["all"]["score"]["with"]
    assert with_all == evaluating.run(tiles, CPU).figures["overall"]["dice"]
    assert not list(Path(made["folder"]).glob(".*"))
    monkeypatch.setattr(leave_out, "_trained", lambda *_: pytest.fail("trained again"))
    assert ok(run(*arguments, "exposure", "--json")) == made | {"fresh": False}
    assert "do not differ in stratum" in failed(run(*arguments, "stratum"))
    assert "allowed: exposure, stratum" in failed(run(*arguments, "moon"))
    code, out, err = run(*arguments, "exposure")
    assert (code, "left out" in out) == (0, True), err
    assert "0 trainings" in err
