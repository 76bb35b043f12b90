"""Grad-CAM against its formula, heat that follows the defect, and the command with its sheet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from curate.index.dataset import Index
from curate.project import Project
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture
from tests.train.conftest import CLASSES, TINY, tiny
from tests.train.test_recipe import network
from train import recipe, store
from train.data.pixels import normalised
from train.evaluate import explain
from train.evaluate import run as evaluating
from train.fit import run as training
from train.predict.predictor import Predictor

CPU = evaluating.EvaluateRequest(device="cpu", split="val")


def predictor(made: recipe.Recipe, model: Any, single: bool = False) -> Predictor:
    return Predictor("0" * 24, CLASSES, made, single, model.eval())


def seeing(channel: int = 0) -> Predictor:
    """A classifier that finds `crack` where the image is bright and `hole` where it is dark, and knows nothing else."""
    made = recipe.load("simple-cnn", ["input.height=64", "input.width=64", "input.scale=tf"])
    model = network(made)
    for part in model.encoder:
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
            with torch.no_grad():
                part.weight[0, 0, 1, 1], part.weight[1, min(1, part.in_channels - 1), 1, 1] = 1, 1
    with torch.no_grad():
        model.encoder[0].weight[1, :, 1, 1] = torch.tensor([-1.0, 0, 0])
        model.head[3].weight.zero_()
        model.head[3].weight[0, 0] = model.head[3].weight[1, 1] = 1
    return predictor(made, model)


def picture() -> np.ndarray:
    """Grey; bright above on the left, dark below on the right."""
    image = np.full((64, 64, 3), 128, np.uint8)
    image[8:24, 8:24], image[40:56, 40:56] = 250, 5
    return image


def test_heat_lies_where_the_class_is() -> None:
    model, image = seeing(), picture()
    bright, dark = image[..., 0] > 200, image[..., 0] < 50
    for name, there, other in (("crack", bright, dark), ("hole", dark, bright)):
        found = explain.heat(model, image, name)
        assert found.shape == (64, 64)
        assert (found.min() >= 0, found.max() <= 1) == (True, True)
        said = explain.on_mask(found, there.astype(np.uint8))
        assert said["share"] > 0.5 > 5 * said["area"]
        assert said["peak"] == 1
        assert explain.on_mask(found, other.astype(np.uint8))["share"] < 0.02


def test_heat_is_grad_cam_by_its_formula() -> None:
    """Weights: the mean gradient a channel; heat: the rectified weighted sum. Of random networks."""
    made = recipe.load("simple-cnn", ["input.height=64", "input.width=64"])
    model = network(made).eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    features = model.encoder(normalised(torch.from_numpy(image[None]), made.input.scale)).detach().requires_grad_()
    with torch.no_grad():
        model.head[3].weight[1] = -model.head[3].weight[0]  # what speaks for the one speaks against the other
    maxima = []
    for place, name in enumerate(CLASSES):
        (gradient,) = torch.autograd.grad(model.head(features)[0, place], features)
        cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1)[0].clamp_min(0).detach().numpy()
        maxima.append(float(cam.max()))
        for size in (cam.shape, (64, 64)):
            cam = cv2.resize(cam - cam.min(), size)
            cam = cam / max(cam.max(), 1e-7)
        assert np.allclose(explain.heat(predictor(made, model), image, name), cam, atol=1e-3)
    assert max(maxima) > 0


@pytest.mark.parametrize("name", ["unet-resnet", "two-stage", "resnet50v2-two-phase", "shuffledefectnet"])
@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_every_kind_of_model_has_heat(name: str, size: tuple[int, int]) -> None:
    made = recipe.load(name, ["input.height=64", "input.width=64", "model.weights=none"])
    image = np.random.default_rng(1).integers(0, 255, (*size, 3)).astype(np.uint8)
    one = predictor(made, network(made), single=False)
    inside = np.zeros(size, np.uint8)
    inside[10:20, 10:20] = 1
    found = explain.heat(one, image, "hole", inside)
    assert found.shape == size
    assert np.isfinite(found).all()
    assert all(part.grad is None for part in one.module.parameters())


def test_an_image_too_large_to_be_asked_about_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MOST", 64 * 64)
    made = tiny()
    image = np.random.default_rng(1).integers(0, 255, (100, 200, 3)).astype(np.uint8)
    inside = np.zeros((100, 200), np.uint8)
    inside[10:30, 10:60] = 1
    assert explain.heat(predictor(made, network(made)), image, "crack", inside).shape == (100, 200)


def test_shares_by_hand() -> None:
    heat = np.zeros((4, 5), np.float32)
    heat[0, 0], heat[3, 4] = 3, 1
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :2] = 1
    assert explain.on_mask(heat, mask) == {"share": 0.75, "area": 0.1, "peak": 1.0}
    assert explain.on_mask(0 * heat, mask) == {"share": None, "area": 0.1, "peak": None}
    rows = [{"asked": "crack", "group": str(n), "share": n / 20, "area": 0.1, "peak": float(n > 9)} for n in range(20)]
    rows += [
        {"asked": "crack", "group": "x"},
        {"asked": "hole", "group": "y", "share": None, "area": 0.2, "peak": None},
    ]
    found = explain.summed(rows)
    assert list(found) == ["crack"]
    share = found["crack"]["share"]
    assert (share["value"], share["n"], share["groups"]) == (0.475, 20, 20)
    assert share["low"] < 0.475 < share["high"]
    assert found["crack"]["area"]["value"] == pytest.approx(0.1)
    assert found["crack"]["peak"]["value"] == 0.5


def test_the_sheet_says_where_there_is_no_heat() -> None:
    answer = {"asked": "crack", "why": "missed", "probability": 0.1, "path": "a.png"}
    grey, nothing = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), np.float32)
    cells = [explain.drawn(grey, nothing, nothing.astype(np.uint8), one) for one in (answer, answer | {"share": None})]
    ink = [int((cell[-2 * explain.LINE :] < 128).sum()) for cell in cells]
    assert cells[0].shape == cells[1].shape
    assert ink[1] > 1.5 * ink[0] > 0


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(works: Project) -> Project:
    training.run(works, training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1"), device="cpu"))
    return works


def test_explain_as_people_and_scripts_meet_it(run: Run, trained: Project) -> None:  # noqa: F811
    arguments = ("explain", "--project", trained.folder, "--device", "cpu")
    made = ok(run(*arguments, "-n", "3", "--json"))
    assert (made["fresh"], made["view"]) == (True, None)
    items = {one.id: one for one in Index(trained).items()}
    assert len(made["images"]) == 3
    for one in made["images"]:
        item = items[one["id"]]
        assert item.split == "test"
        assert one["asked"] in (item.label.present or CLASSES)
        assert (one["why"] == "labelled") == bool(item.label.present) == ("share" in one)
    sheet = cv2.imread(made["sheet"])
    assert sheet.shape[1] == 3 * (explain.WIDE + explain.GAP) + explain.GAP
    assert sheet.std() > 20
    again = ok(run(*arguments, "-n", "3", "--json"))
    assert again == made | {"fresh": False}
    assert not list((trained.work / "explanations").rglob("*.part"))
    code, out, err = run(*arguments, "-n", "3")
    assert (code, "nothing to do" in out, "sheet.png" in out) == (0, True, True), err
    assert "unknown saved view 'x'" in failed(run(*arguments, "--view", "x"))


def test_another_model_s_mistakes_are_not_explained(trained: Project) -> None:
    first = store.find(trained).key
    training.run(
        trained, training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1", "seed=1"), device="cpu")
    )
    second = store.find(trained).key
    evaluating.run(trained, evaluating.EvaluateRequest(second, device="cpu", split="val"))
    wrong = {"missed", "false alarm"}
    for key, mine in ((first, False), (second, True)):
        made = explain.run(trained, explain.ExplainRequest(key, images=2, device="cpu"))
        assert ({one["why"] for one in made.report["images"]} <= wrong) == mine


def test_a_view_and_the_mistakes(run: Run, trained: Project) -> None:  # noqa: F811
    index = Index(trained)
    evaluating.run(trained, CPU)
    rows = [row for row in index.rows("eval_confidence", "eval_missed", "eval_false_alarm") if row[1]]
    worst = max(rows, key=lambda row: row[1])
    made = ok(run("explain", "--project", trained.folder, "--device", "cpu", "-n", "2", "--json"))
    assert made["images"][0]["id"] == worst[0]
    for one in made["images"]:
        row = next(row for row in rows if row[0] == one["id"])
        assert one["asked"] in (row[2] if one["why"] == "missed" else row[3])
    chosen = index.dataset.match(index.fo.ViewField("status") != "labelled")
    index.dataset.save_view("fresh steel", chosen)
    ids = set(chosen.values("content_id"))
    arguments = ("explain", "--project", trained.folder, "--device", "cpu", "--view", "fresh steel")
    made = ok(run(*arguments, "--json"))
    assert {one["id"] for one in made["images"]} == ids
    assert made["classes"] == {}
    assert {one["why"] for one in made["images"]} == {"likeliest"}
    code, out, err = run(*arguments)
    assert (code, "on the defect cannot be measured" in " ".join(out.split())) == (0, True), err
    paths = {one.id: Path(one.path) for one in index.items(list(ids))}
    shutil.rmtree(made["folder"])
    broken = sorted(ids)[0]
    paths[broken].write_bytes(b"no image")
    made = ok(run(*arguments, "--json"))
    assert list(made["failed"]) == [broken]
    assert len(made["images"]) == len(ids) - 1
    json.dumps(made, allow_nan=False)
