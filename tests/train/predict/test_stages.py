"""Two stages: what the gate flags is cropped and segmented, nothing else; two files answer as `predict` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from curate.errors import CurateError
from curate.index import sync
from curate.project import Project
from tests.conftest import Make
from tests.train.conftest import CLASSES, LIBRARY, Plain, save_block
from tests.train.test_recipe import network
from train import recipe
from train.architectures import _smp, two_stage
from train.data import dataset
from train.evaluate import run as evaluating
from train.export import run as exporting
from train.export import runner
from train.fit import loop
from train.fit import run as training
from train.predict import stages
from train.predict.predictor import Predictor, load_predictor

pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = json.dumps({"gate": "tu-test_efficientnet", "crops": 0.3})
TINY = (
    *("model.encoder=tu-test_efficientnet", f"model.options={OPTIONS}", "model.weights=none"),
    *("input.height=64", "input.width=128", "batch=8", "predict.min_area=4"),
)


def two(*more: str) -> recipe.Recipe:
    return recipe.load("two-stage", [*TINY, *more])


def test_norms_that_are_frozen_stay_so_in_a_forward_pass() -> None:
    for recipe_ in (two(), two('model.options={"gate": "tu-test_efficientnet"}')):
        model = network(recipe_)
        loop._train_mode(model, [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)])
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        before = [part.running_mean.clone() for part in norms]
        model(torch.rand(2, 3, 64, 128))
        assert norms
        assert not any(part.training for part in norms)
        assert all(torch.equal(a, part.running_mean) for a, part in zip(before, norms, strict=True))


# --- which places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_crops_cover_what_is_flagged_with_a_margin_and_do_not_overlap(seed: int) -> None:
    random = np.random.default_rng(seed)
    flagged = random.random((6, 40)) < 0.02 * (seed + 1) / 3
    covered = np.zeros(flagged.shape, int)
    for y, x, high, wide in stages.crops(flagged):
        covered[y : y + high, x : x + wide] += 1
    assert covered.max(initial=0) <= 1
    for y, x in zip(*np.nonzero(flagged), strict=True):
        assert covered[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].all()


def test_nothing_flagged_is_nothing_cropped_and_most_of_it_is_all_of_it() -> None:
    assert list(stages.crops(np.zeros((4, 25), bool))) == []
    assert list(stages.crops(np.ones((4, 25), bool))) == [(0, 0, 4, 25)]
    few = np.zeros((4, 25), bool)
    few[0, 0] = few[3, 24] = True
    assert sorted(stages.crops(few)) == [(0, 0, 2, 2), (2, 23, 2, 2)]


def test_the_product_is_inside_the_crops_alone() -> None:
    seen: list[tuple[int, ...]] = []
    cells = np.full((2, 2, 8), 0.01, np.float32)
    cells[0, 0, 7], cells[1, 0, 7] = 0.8, 0.1

    def segmenter(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels.shape)
        return np.full((2, *pixels.shape[:2]), 0.5, np.float32)

    p = stages.probabilities(np.zeros((100, 500, 3), np.uint8), 0.3, lambda pixels: cells, segmenter)
    assert p.shape == (2, 100, 500)
    assert seen == [(128, 128, 3)]
    np.testing.assert_allclose(p[0, :, 384:], 0.4)
    np.testing.assert_allclose(p[1, :, 384:], 0.05)
    assert p[:, :, :384].max() < stages.CLEAN


# --- in torch -------------------------------------------------------------------------------------------------------


def predictor(resolved: recipe.Recipe, model: Any) -> Predictor:
    return Predictor("0" * 24, CLASSES, resolved, False, model.eval())


def test_a_clean_image_never_reaches_the_u_net_and_a_flagged_one_does_in_part() -> None:
    """The gate here calls bright cells cracks."""
    resolved = two()
    model, looked = network(resolved), []
    model.encoder.register_forward_hook(lambda module, inputs, out: looked.append(tuple(inputs[0].shape[2:])))

    class Bright(nn.Module):
        def forward(self, batch: Any) -> Any:
            light = nn.functional.avg_pool2d(batch.mean(1, keepdim=True), 64)
            return torch.cat([20 * (light - 1), torch.full_like(light, -9.0)], 1)

    model.gate = Bright()
    ready = predictor(resolved, model)
    image = np.full((128, 640, 3), 100, np.uint8)
    assert ready.predict_image(image).defects == ()
    assert ready.probabilities(image).max() < stages.CLEAN
    assert looked == []
    image[:64, 576:] = 255
    p = ready.probabilities(image)
    assert looked == [(128, 128)]
    with torch.inference_mode():
        alone = model.segment(ready._batch(image[:, 512:])).sigmoid()[0].numpy()
    np.testing.assert_allclose(p[0, :, 512:], alone[0], rtol=1e-3)  # the gate is sure of a crack
    assert p[:, :, :512].max() < stages.CLEAN


def test_the_gate_learns_cells_and_the_whole_is_their_product() -> None:
    model = network(two()).train()
    images, masks = torch.rand(2, 3, 64, 160), torch.zeros(2, 2, 64, 160)
    masks[0, 1, 10:20, 130:150] = 1
    model(images)
    logits = model._gate_logits
    assert logits.shape == (2, 2, 1, 3)
    target = model.gate.target(masks)
    assert target.nonzero().tolist() == [[0, 1, 0, 2]]
    expected = nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert torch.equal(model.side_cost(masks), expected)
    model.eval()
    with torch.inference_mode():
        gate = model.gate(images).amax((2, 3)).sigmoid()[:, :, None, None]
        np.testing.assert_allclose(model(images).sigmoid(), gate * model.segment(images).sigmoid(), atol=1e-5)


def test_models_without_crops_are_as_they_were() -> None:
    old = recipe.load("two-stage", ['model.options={"gate": "mobilenet_v2"}']).model
    assert two_stage.flag_of(old) is None
    assert two_stage.flag_of(recipe.load("two-stage").model) == 0.05
    assert two_stage.flag_of(recipe.load("unet-resnet").model) is None
    with pytest.raises(CurateError, match=r"crops is 1.5; it must be at least 0 and below 1"):
        network(recipe.load("two-stage", ["model.options.crops=1.5"]))


# --- as two files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def strips(make: Make, tmp_path: Path) -> Project:
    """24 strips, half of them clean; a defect is a bright or a dark block."""
    root, random = tmp_path / "steel", np.random.default_rng(0)
    for number in range(24):
        high, wide = (64, 448) if number % 3 else (100, 330)
        name = ("crack", "", "hole", "")[number % 4]
        y, x = (int(random.integers(high - 24)), int(random.integers(wide - 40))) if name else (0, 0)
        save_block(root, number, (high, wide), name, (y, x, 24, 40))
    project = make([LIBRARY | {"data": root}], CLASSES)
    sync.run(project)
    return project


class Pixelwise(nn.Module):
    """A segmenter of single pixels, in the parts of smp's."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Plain(0), Last()
        self.segmentation_head = nn.Conv2d(8, outputs, 1)


class Last(nn.Module):
    def forward(self, features: list[Any]) -> Any:
        return features[-1]


def test_two_files_are_played_as_predict(strips: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_smp, "encoder", lambda config, channels: Plain(5))
    monkeypatch.setattr(_smp, "segmenter", lambda config, channels, outputs: Pixelwise(outputs))
    settings = (*TINY, "epochs=15", "optimiser.lr=5e-2", "predict.flips=true", "clip=10", "predict.threshold=0.1")
    model = training.run(strips, training.TrainRequest("segmentation", "two-stage", settings, "cpu")).model
    exported = exporting.run(strips, exporting.ExportRequest(max_drop=0.99, calibration=3, force=True))
    assert {file.name for file in exported.folder.iterdir()} == {
        *exporting.files_of(load_predictor(strips)),
        "export.json",
    }
    assert set(exported.about["files"]) == {"gate.onnx", "gate.int8.onnx", "model.onnx", "model.int8.onnx"}
    assert exported.about["stages"]["flag"] == 0.3
    assert exported.about["check"]["largest_difference"] < 1e-3
    assert not exporting.run(strips, exporting.ExportRequest(max_drop=0.99, calibration=3, force=True)).fresh

    ready, file = load_predictor(strips, model.key, "cpu"), runner.load(str(exported.folder))
    crops: list[tuple[int, ...]] = []
    segment = file.predictor.module.segment
    counted = exporting.Stages(file.predictor.module.gate, lambda b: (crops.append(b.shape[1:3]), segment(b))[1])
    object.__setattr__(file.predictor, "module", counted)
    index = evaluating.Index(strips)
    items = [item for split in (dataset.collect(index).val, dataset.collect(index).train) for item in split]
    whole, flagged, found = 0, 0, 0
    for item in items:
        pixels = np.asarray(Image.open(item.path))
        before = len(crops)
        answer = file.answer(item.path.read_bytes()).prediction
        expected = ready.predict_image(pixels)
        np.testing.assert_allclose(answer.probability, expected.probability, atol=1e-3)
        assert [defect for defect, _ in answer.defects] == [defect for defect, _ in expected.defects]
        flagged += len(crops) > before
        found += len(expected.defects)
        whole += any(np.prod(shape) >= pixels.size for shape in crops[before:])
    assert 0 < flagged < len(items), "some are flagged, and some are not"
    assert whole < flagged, "of some, only a part was segmented"
    assert found, "defects were compared"

    (exported.folder / "gate.onnx").unlink()
    with pytest.raises(CurateError, match=r"gate\.onnx is missing: export again"):
        runner.load(str(exported.folder))
