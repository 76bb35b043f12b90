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


def predictor(recipe_: recipe.Recipe, model: Any, single: bool = False) -> Predictor:
    return Predictor("0" * 24, CLASSES, recipe_, single, model.eval())


def seeing(channel: int = 0) -> Predictor:
    """A classifier that finds `crack` where the image is bright and `hole` where it is dark, and knows nothing else."""
    recipe_ = recipe.load("simple-cnn", ["input.height=64", "input.width=64", "input.scale=tf"])
    model = network(recipe_)
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
    return predictor(recipe_, model)


def picture() -> np.ndarray:
    """Grey; bright above on the left, dark below on the right."""
    image = np.full((64, 64, 3), 128, np.uint8)
    image[8:24, 8:24], image[40:56, 40:56] = 250, 5
    return image


def test_heat_lies_where_the_class_is() -> None:
    model, image = seeing(), picture()
    bright, dark = image[..., 0] > 200, image[..., 0] < 50
    for name, there, other in (("crack", bright, dark), ("hole", dark, bright)):
        heat = explain.heat(model, image, name)
        assert heat.shape == (64, 64)
        assert (heat.min() >= 0, heat.max() <= 1) == (True, True)
        shares = explain.heat_on_mask(heat, there.astype(np.uint8))
        assert shares["share"] > 0.5 > 5 * shares["area"]
        assert shares["peak"] == 1
        assert explain.heat_on_mask(heat, other.astype(np.uint8))["share"] < 0.02


def test_heat_is_grad_cam_by_its_formula() -> None:
    """Weights: the mean gradient a channel; heat: the rectified weighted sum. Of random networks."""
    recipe_ = recipe.load("simple-cnn", ["input.height=64", "input.width=64"])
    model = network(recipe_).eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    features = model.encoder(normalised(torch.from_numpy(image[None]), recipe_.input.scale)).detach().requires_grad_()
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
        assert np.allclose(explain.heat(predictor(recipe_, model), image, name), cam, atol=1e-3)
    assert max(maxima) > 0


@pytest.mark.parametrize("name", ["unet-resnet", "two-stage", "resnet50v2-two-phase", "shuffledefectnet"])
@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_every_kind_of_model_has_heat(name: str, size: tuple[int, int]) -> None:
    recipe_ = recipe.load(name, ["input.height=64", "input.width=64", "model.weights=none"])
    image = np.random.default_rng(1).integers(0, 255, (*size, 3)).astype(np.uint8)
    model = predictor(recipe_, network(recipe_), single=False)
    inside = np.zeros(size, np.uint8)
    inside[10:20, 10:20] = 1
    heat = explain.heat(model, image, "hole", inside)
    assert heat.shape == size
    assert np.isfinite(heat).all()
    assert all(part.grad is None for part in model.module.parameters())


def test_an_image_too_large_to_be_asked_about_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MAX_PIXELS", 64 * 64)
    recipe_ = tiny()
    image = np.random.default_rng(1).integers(0, 255, (100, 200, 3)).astype(np.uint8)
    inside = np.zeros((100, 200), np.uint8)
    inside[10:30, 10:60] = 1
    assert explain.heat(predictor(recipe_, network(recipe_)), image, "crack", inside).shape == (100, 200)


def test_shares_by_hand() -> None:
    heat = np.zeros((4, 5), np.float32)
    heat[0, 0], heat[3, 4] = 3, 1
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :2] = 1
    assert explain.heat_on_mask(heat, mask) == {"share": 0.75, "area": 0.1, "peak": 1.0}
    assert explain.heat_on_mask(0 * heat, mask) == {"share": None, "area": 0.1, "peak": None}
    rows = [{"asked": "crack", "group": str(n), "share": n / 20, "area": 0.1, "peak": float(n > 9)} for n in range(20)]
    rows += [
        {"asked": "crack", "group": "x"},
        {"asked": "hole", "group": "y", "share": None, "area": 0.2, "peak": None},
    ]
    means = explain.class_means(rows)
    assert list(means) == ["crack"]
    share = means["crack"]["share"]
    assert (share["value"], share["n"], share["groups"]) == (0.475, 20, 20)
    assert share["low"] < 0.475 < share["high"]
    assert means["crack"]["area"]["value"] == pytest.approx(0.1)
    assert means["crack"]["peak"]["value"] == 0.5


def test_the_sheet_says_where_there_is_no_heat() -> None:
    answer = {"asked": "crack", "why": "missed", "probability": 0.1, "path": "a.png"}
    grey, nothing = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), np.float32)
    cells = [
        explain.draw_cell(grey, nothing, nothing.astype(np.uint8), caption)
        for caption in (answer, answer | {"share": None})
    ]
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
    result = ok(run(*arguments, "-n", "3", "--json"))
    assert (result["fresh"], result["view"]) == (True, None)
    items = {item.id: item for item in Index(trained).items()}
    assert len(result["images"]) == 3
    for row in result["images"]:
        item = items[row["id"]]
        assert item.split == "test"
        assert row["asked"] in (item.label.present or CLASSES)
        assert (row["why"] == "labelled") == bool(item.label.present) == ("share" in row)
    sheet = cv2.imread(result["sheet"])
    assert sheet.shape[1] == 3 * (explain.WIDE + explain.GAP) + explain.GAP
    assert sheet.std() > 20
    again = ok(run(*arguments, "-n", "3", "--json"))
    assert again == result | {"fresh": False}
    assert not list((trained.work / "explanations").rglob("*.part"))
    code, out, err = run(*arguments, "-n", "3")
    assert (code, "nothing to do" in out, "sheet.png" in out) == (0, True, True), err
    assert "unknown saved view 'x'" in failed(run(*arguments, "--view", "x"))


@pytest.mark.exhaustive
def test_another_model_s_mistakes_are_not_explained(trained: Project) -> None:
    first = store.find(trained).key
    training.run(
        trained, training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1", "seed=1"), device="cpu")
    )
    second = store.find(trained).key
    evaluating.run(trained, evaluating.EvaluateRequest(second, device="cpu", split="val"))
    wrong = {"missed", "false alarm"}
    for key, mine in ((first, False), (second, True)):
        explanation = explain.run(trained, explain.ExplainRequest(key, images=2, device="cpu"))
        assert ({row["why"] for row in explanation.report["images"]} <= wrong) == mine


def test_a_view_and_the_mistakes(run: Run, trained: Project) -> None:  # noqa: F811
    index = Index(trained)
    evaluating.run(trained, CPU)
    rows = [row for row in index.rows("eval_confidence", "eval_missed", "eval_false_alarm") if row[1]]
    worst = max(rows, key=lambda row: row[1])
    result = ok(run("explain", "--project", trained.folder, "--device", "cpu", "-n", "2", "--json"))
    assert result["images"][0]["id"] == worst[0]
    for answer in result["images"]:
        row = next(row for row in rows if row[0] == answer["id"])
        assert answer["asked"] in (row[2] if answer["why"] == "missed" else row[3])
    chosen = index.dataset.match(index.fo.ViewField("status") != "labelled")
    index.dataset.save_view("fresh steel", chosen)
    ids = set(chosen.values("content_id"))
    arguments = ("explain", "--project", trained.folder, "--device", "cpu", "--view", "fresh steel")
    result = ok(run(*arguments, "--json"))
    assert {row["id"] for row in result["images"]} == ids
    assert result["classes"] == {}
    assert {row["why"] for row in result["images"]} == {"likeliest"}
    code, out, err = run(*arguments)
    assert (code, "on the defect cannot be measured" in " ".join(out.split())) == (0, True), err
    paths = {item.id: Path(item.path) for item in index.items(list(ids))}
    shutil.rmtree(result["folder"])
    broken = sorted(ids)[0]
    paths[broken].write_bytes(b"no image")
    result = ok(run(*arguments, "--json"))
    assert list(result["failed"]) == [broken]
    assert len(result["images"]) == len(ids) - 1
    json.dumps(result, allow_nan=False)
