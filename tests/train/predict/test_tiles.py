"""A classifier of tiles: the worst ones decide, crops teach what they show, and whole images are predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curate.data import Defect, Item, Label
from curate.errors import CurateError
from curate.index import sync
from curate.project import Project
from tests import fakes
from tests.conftest import Make
from tests.train.conftest import CLASSES, LIBRARY, Plain, data, save_block
from tests.train.fit.test_loop import fit_settings
from tests.train.test_recipe import network
from train import recipe
from train.architectures import _smp
from train.architectures._parts import TopMean
from train.data import dataset
from train.data.dataset import Examples, LoadPlan
from train.data.pixels import padded
from train.evaluate import explain
from train.evaluate import run as evaluating
from train.evaluate.per_image import ModelEvaluator
from train.export import onnx_int8, runner
from train.export import run as exporting
from train.fit import loop
from train.fit import run as training
from train.predict.predictor import Predictor, load_predictor

pytestmark = pytest.mark.filterwarnings("ignore")
TINY = ("model.encoder=tu-test_efficientnet", "model.weights=none", "input.height=64", "input.width=64", "batch=8")


def tiles(*more: str) -> recipe.Recipe:
    return recipe.load("tiles-lite0", [*TINY, *more])


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 100])
def test_the_k_highest_tiles_are_the_image_s(k: int) -> None:
    maps = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = np.sort(maps.numpy().reshape(2, 3, 20))[:, :, -k:].mean(axis=2)
    np.testing.assert_allclose(TopMean(k)(maps), expected, rtol=1e-5)


def test_clean_steel_around_a_defect_takes_nothing_from_it() -> None:
    maps = torch.randn(1, 2, 4, 4)
    wider = torch.cat([maps, torch.full((1, 2, 4, 40), -9.0)], dim=3)
    assert torch.equal(TopMean(4)(wider), TopMean(4)(maps))


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_tile_is_stride_pixels_wide(stride: int) -> None:
    model = network(tiles(f"model.options.stride={stride}")).eval()
    with torch.inference_mode():
        assert model.encoder(torch.zeros(1, 3, 64, 96))[-1].shape[2:] == (64 // stride, 96 // stride)
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 2)


@pytest.mark.parametrize(
    ("option", "told"), [("k=0", "k is 0; it must be at least 1"), ("stride=12", "'stride' of architecture tile_head")]
)
def test_wrong_options(option: str, told: str) -> None:
    with pytest.raises(CurateError, match=told):
        network(tiles(f"model.options.{option}"))


# --- what teaches ---------------------------------------------------------------------------------------------------


def plan(**more: Any) -> LoadPlan:
    resolved = tiles()
    fixed = LoadPlan(
        "classification", CLASSES, False, True, resolved.input, resolved.augmentation, resolved.seed, 10**8
    )
    return replace(fixed, **more)


def plate(folder: Path, *defects: Defect, classes: tuple[str, ...] = (), size: tuple[int, int] = (256, 200)) -> Item:
    """A clean picture of this width and height with a label."""
    import hashlib

    file = folder / "plate.png"
    Image.fromarray(fakes.steel(*size, seed=1)).save(file)
    id = hashlib.sha256(file.read_bytes()).hexdigest()
    return Item(id, file, *size, Label("labelled", defects, classes), "train", "plate")


def targets(item: Item, given: LoadPlan, count: int = 60) -> np.ndarray:
    examples = Examples([item], given)
    return np.concatenate([examples[0, epoch, 0][2] for epoch in range(count)])  # type: ignore[misc]


def test_a_crop_is_labelled_by_what_it_shows(tmp_path: Path) -> None:
    item = plate(tmp_path, Defect("hole", (150, 120, 6, 6)))
    around = plan(augmentation=plan().augmentation.model_copy(update={"defect_crops": 1.0}))
    anywhere = plan(augmentation=plan().augmentation.model_copy(update={"defect_crops": 0.0}))
    assert targets(item, around)[:, 1].mean() > 0.9, "a pixel of the defect is inside, and mostly a quarter of it"
    assert targets(item, anywhere)[:, 1].mean() < 0.4
    assert not targets(item, around)[:, 0].any()
    exclusive = replace(anywhere, single=True)
    assert (targets(item, exclusive).sum(axis=1) == 1).all(), "a crop beside the defect is clean"


def test_a_class_without_a_place_may_be_in_any_crop(tmp_path: Path) -> None:
    assert targets(plate(tmp_path, classes=("crack",)), plan(), 5).tolist() == [[1, 0]] * 5


def test_a_sliver_is_no_sight_of_a_defect(tmp_path: Path) -> None:
    item = plate(tmp_path, Defect("crack", (0, 0, 256, 80)))
    rows = []
    for epoch in range(80):
        image = Examples([item], plan(augmentation=recipe.Augmentation(defect_crops=0)))[0, epoch, 0]
        rows.append(int(image[2][0, 0]))  # type: ignore[misc]
    assert 0 < sum(rows) < 80


def test_a_small_defect_that_is_whole_in_a_crop_counts_however_many_others_there_are(tmp_path: Path) -> None:
    """Of sixty pinholes each crop holds a few: by the share of all their pixels it would be clean."""
    holes = [Defect("hole", (float(x), float(y), 5, 5)) for x in range(20, 1580, 160) for y in range(20, 980, 160)]
    crop = plan(input=plan().input.model_copy(update={"height": 256, "width": 256}))
    item = plate(tmp_path, *holes, size=(1600, 1000))
    assert targets(item, crop, 20)[:, 1].all()


def test_val_sees_whole_images_in_batches_of_one_shape(tmp_path: Path) -> None:
    training_data = data(tmp_path, 2, 6, "classification")
    wide = [replace(item, width=96) if number % 2 else item for number, item in enumerate(training_data.val)]
    settings = fit_settings(tiles("batch=2"), replace(training_data, val=tuple(wide)), tmp_path / "x")
    assert loop._val_batches(settings) == [[0, 2], [4], [1, 3], [5]]
    resized = fit_settings(recipe.load("simple-cnn", ["batch=4"]), replace(training_data, val=tuple(wide)), tmp_path)
    assert loop._val_batches(resized) == [[0, 1, 2, 3], [4, 5]]
    item = plate(tmp_path, Defect("hole", (150, 120, 6, 6)))
    _, images, target = Examples([item], plan(), training=False)[0, 0, 0]  # type: ignore[misc]
    assert (images.shape, target.tolist()) == ((1, 224, 256, 3), [[0, 1]])


# --- what is predicted ----------------------------------------------------------------------------------------------


def test_the_worst_tile_of_a_large_image_speaks_for_it() -> None:
    resolved = tiles()
    strip = np.repeat(fakes.steel(1000, 64, seed=3)[..., None], 3, axis=2)
    for single, outputs in ((False, 2), (True, 3), (True, 2)):
        model = Predictor("0" * 24, CLASSES, resolved, single, network(resolved, outputs).eval(), tile=64 * 256)
        views = model._views(strip)
        assert [view.shape for view in views] == [(64, 256, 3)] * 7
        p = np.stack([model._outputs(view)[0] for view in views])
        answer = model.predict_image(strip).probability
        if not single:
            np.testing.assert_array_equal(answer, p.max(axis=0))
        elif outputs == 3:
            np.testing.assert_array_equal(answer, p[p[:, 2].argmin(), :2])
        else:
            np.testing.assert_array_equal(answer, p[p.max(axis=1).argmax()])
    whole = replace(model, tile=1 << 20)
    assert [view.shape for view in whole._views(strip)] == [(64, 1024, 3)]


@pytest.mark.parametrize("single", [False, True])
def test_flips_are_the_mean_over_mirrored_images_in_every_engine_and_in_the_fit(tmp_path: Path, single: bool) -> None:
    plain = Predictor("0" * 24, CLASSES, tiles(), single, network(tiles(), 2 + single).eval())
    flipping = replace(plain, recipe=tiles("predict.flips=true"))
    item = data(tmp_path, 3, 0, "classification").train[2]
    pixels = np.asarray(Image.open(item.path))
    three = [
        plain.predict_image(np.ascontiguousarray(view)).probability for view in (pixels, pixels[:, ::-1], pixels[::-1])
    ]
    p = flipping.predict_image(pixels).probability
    np.testing.assert_allclose(p, np.mean(three, axis=0), atol=1e-6)
    assert np.abs(p - three[0]).max() > 1e-6
    whole = onnx_int8.torch_runner(onnx_int8.end_to_end(plain.module, plain.recipe, single))
    np.testing.assert_allclose(exporting.with_engine(flipping, whole).predict_image(pixels).probability, p, atol=1e-5)
    evaluator = ModelEvaluator(flipping, CLASSES, 10**8)
    np.testing.assert_array_equal(evaluator.row(item, *evaluator.predict(item))["p"], p)  # thresholds are fitted on it


@pytest.fixture
def plant(make: Make, tmp_path: Path) -> Project:
    """30 images of three sizes, a third clean; a hole is a spot of 8 pixels, a crack a line of 24."""
    root, random = tmp_path / "steel", np.random.default_rng(0)
    for number in range(30):
        high, wide = ((64, 100), (90, 64), (64, 64))[number // 3 % 3]
        y, x = int(random.integers(high - 8)), int(random.integers(wide - 24))
        name = ("crack", "hole", "")[number % 3]
        save_block(root, number, (high, wide), name, (y, x, *((4, 24) if name == "crack" else (8, 8))))
    project = make([LIBRARY | {"data": root}], CLASSES)
    sync.run(project)
    return project


def test_from_training_to_a_file_that_answers_as_predict(plant: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_smp, "encoder", lambda config, channels, depth=5: Plain(depth))
    settings = (
        *TINY,
        "epochs=25",
        "patience=25",
        "optimiser.lr=0.1",
        "model.options.k=1",
        "model.dropout=0.05",
        "clip=10",
    )
    request = training.TrainRequest("classification", "tiles-lite0", settings, "cpu")
    result = training.run(plant, request)
    assert result.model.manifest["single"]
    assert not training.run(plant, request).fresh
    predictor = load_predictor(plant, device="cpu")
    assert predictor.recipe.input.resolution == "native"
    losses = [row["train_loss"] for row in result.model.manifest["history"]]
    assert min(losses) < 0.7 * losses[0], "spots of 8 pixels are found"
    metrics = evaluating.run(plant, evaluating.EvaluateRequest(split="val", device="cpu")).metrics
    assert set(metrics["classes"]) == set(CLASSES)

    exported = exporting.run(plant, exporting.ExportRequest(max_drop=0.99, calibration=4, force=True))
    assert exported.about["input"]["shape"] == ["any", "a multiple of 32", "a multiple of 32", 3]
    assert exported.about["tiling"]["overlap"] == 128
    assert exported.about["notes"] == []
    file, stored = runner.load(str(exported.folder)), runner.load(result.model.key, plant, device="cpu")
    items = list(dataset.collect(evaluating.Index(plant), "classification").val)
    assert len({(item.height, item.width) for item in items}) > 1, "the file takes them all"
    for item in items:
        content = item.path.read_bytes()
        pixels = np.asarray(Image.open(item.path))
        expected = predictor.predict_image(pixels)
        assert expected.bald is not None
        assert stored.answer(content).prediction.classes == expected.classes
        answer = file.answer(content).prediction
        np.testing.assert_allclose(answer.probability, expected.probability, atol=1e-3)
        assert [name for name, _ in answer.classes] == [name for name, _ in expected.classes]

    image = np.repeat(pixels[..., None], 3, axis=2)
    heat = explain.heat(predictor, image, "hole")
    assert heat.shape == pixels.shape
    with torch.inference_mode():  # what is explained is what was predicted
        batch, target = explain._classifier_input(predictor, image, 1, None)
        logits = predictor.module(batch)[0]
    assert batch.shape[2:] == padded(image, *(-(-side // 32) * 32 for side in pixels.shape)).shape[:2]
    np.testing.assert_allclose(logits.softmax(0)[:2].numpy(), expected.probability, atol=1e-5)
    assert target(logits) == logits[1]


def test_classes_that_exclude_each_other_may_be_decided_on_their_own(tmp_path: Path) -> None:
    exclusive = replace(data(tmp_path, 4, 0, "classification"), single=True)
    assert exclusive.as_wanted(recipe.load("simple-cnn")).outputs == (*CLASSES, "clean")
    independent = recipe.load("simple-cnn", ["independent=true"])
    assert exclusive.as_wanted(independent).outputs == CLASSES
    assert not exclusive.as_wanted(independent).single
    keys = {training.model_key(resolved, exclusive) for resolved in (independent, recipe.load("simple-cnn"))}
    assert len(keys) == 2


def test_models_from_before_native_resolution_keep_their_keys(tmp_path: Path) -> None:
    training_data = data(tmp_path, 4, 0, "classification")
    old = recipe.load("simple-cnn")
    keys = {training.model_key(resolved, training_data) for resolved in (old, recipe.load("simple-cnn"))}
    native = old.model_copy(update={"input": old.input.model_copy(update={"resolution": "native"})})
    assert training.model_key(native, training_data) not in keys
    values = old.model_dump(mode="json")
    del values["input"]["resolution"], values["schedule"]["wait"], values["independent"]
    assert training.model_key(recipe.validate(values), training_data) in keys
