"""From a trained model to defects, scores and picks: on drawn steel, against independent references."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from curate import files
from curate.errors import CurateError
from curate.index import predictions
from curate.index.dataset import Index
from curate.masks import shapes
from curate.project import Project
from curate.select import run as selecting
from curate.select.run import SelectRequest
from curate.tables import Table
from tests.curate.select.test_run import embedded
from tests.train.conftest import CLASSES, TINY, data, drawn, tiny
from tests.train.fit.test_loop import CNN, fit_settings, network
from train import checkpoint, recipe, store
from train.evaluate import promote
from train.fit import loop
from train.fit import run as training
from train.predict import _ray, encoder
from train.predict import run as predicting
from train.predict.predictor import MOST_REGIONS, Predictor, components, load_predictor

FAST = training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1"), device="cpu")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Path]:
    """A segmenter that has seen the same eight images many times."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("learnt")
    training_data = data(folder, 8)
    training_data = replace(training_data, train=training_data.train * 16)
    quiet = ["augmentation.brightness=0", "augmentation.contrast=0", "optimiser.lr=6e-3", "epochs=4"]
    resolved = tiny(*quiet)
    model = network(resolved, training_data)
    fitted = loop.fit(model, fit_settings(resolved, training_data, folder / "run"))
    model.load_state_dict(checkpoint.load(folder / "run" / loop.BEST)[0])
    assert fitted.best["train_loss"] < 0.3 * fitted.history[0]["train_loss"]
    return Predictor("0" * 24, CLASSES, resolved, False, model.eval()), folder


@pytest.mark.exhaustive
def test_a_segmenter_overfits_eight_images(learnt: tuple[Predictor, Path]) -> None:
    predictor, _ = learnt
    scores: dict[str, list[float]] = {name: [] for name in CLASSES}
    for number in range(8):
        pixels, masks = drawn(number)
        prediction = predictor.predict_image(pixels)
        for place, name in enumerate(CLASSES):
            masks_of_class = [shapes.mask_of(d, 64, 64) for d, _ in prediction.defects if d.label == name]
            mask = np.max(masks_of_class, axis=0) if masks_of_class else np.zeros((64, 64), np.uint8)
            if name in masks:
                scores[name].append(dice(mask, masks[name]))
                assert prediction.probability[place] > 0.5
            else:
                assert mask.sum() < 30
    assert all(np.mean(values) > 0.8 for values in scores.values()), scores


def test_what_is_said_of_an_image_hangs_together(learnt: tuple[Predictor, Path]) -> None:
    predictor, _ = learnt
    pixels, _ = drawn(2)
    prediction = predictor.predict_image(pixels)
    p = predictor.probabilities(np.repeat(pixels[..., None], 3, axis=2))
    for defect, sure in prediction.defects:
        mask = shapes.mask_of(defect, 64, 64).astype(bool)
        assert np.isclose(sure, p[CLASSES.index(defect.label)][mask].mean(), atol=1e-5)
        assert sure > 0.5
        assert shapes.defect_from_mask(defect.label, mask.astype(np.uint8)) == defect  # tight, canonical
    assert np.allclose(prediction.defect_pixels, p.sum(axis=(1, 2)), rtol=1e-4)
    assert prediction.uncertainty >= 0
    assert (
        predictor.predict_image(np.repeat(pixels[..., None], 3, axis=2)).defects == prediction.defects
    )  # grey is grey


def test_tiles_say_what_the_whole_strip_says(learnt: tuple[Predictor, Path]) -> None:
    """A strip of eight images side by side, whole and in tiles: the same but for what a border cannot see."""
    predictor, _ = learnt
    strip = np.hstack([drawn(number)[0] for number in range(8)] * 2)  # 64 x 1024
    image = np.repeat(strip[..., None], 3, axis=2)
    whole = predictor.probabilities(image)
    tiled = Predictor(**{**vars(predictor), "tile": 64 * 320}).probabilities(image)
    assert whole.shape == tiled.shape == (2, 64, 1024)
    assert np.abs(whole - tiled).mean() < 1e-3
    assert dice(whole > 0.5, tiled > 0.5) > 0.99


@pytest.mark.parametrize("size", [(40, 70), (33, 300), (1, 1), (1100, 40)])
def test_any_size(learnt: tuple[Predictor, Path], size: tuple[int, int]) -> None:
    predictor, _ = learnt
    p = predictor.probabilities(np.full((*size, 3), 128, np.uint8))
    assert p.shape == (2, *size)
    assert np.isfinite(p).all()


@pytest.mark.parametrize("seed", range(4))
def test_components_are_scipy_s(seed: int) -> None:
    p = ndimage.gaussian_filter(np.random.default_rng(seed).random((50, 80)), 2).astype(np.float32)
    p = (p - p.min()) / (p.max() - p.min())
    regions = components("crack", p, 0.6, min_area=5)
    labels, count = ndimage.label(p > 0.6, np.ones((3, 3)))
    expected = [labels == row for row in range(1, count + 1) if (labels == row).sum() >= 5]
    masks = [shapes.mask_of(defect, 80, 50).astype(bool) for defect, _ in regions]
    assert sorted(mask.tobytes() for mask in masks) == sorted(mask.tobytes() for mask in expected)
    assert all(np.isclose(sure, p[mask].mean()) for (_, sure), mask in zip(regions, masks, strict=True))
    assert [mask.sum() for mask in masks] == sorted((mask.sum() for mask in masks), reverse=True)


def test_components_of_noise_are_bounded() -> None:
    p = np.random.default_rng(0).random((400, 400)).astype(np.float32)
    assert len(components("crack", p, 0.8, min_area=1)) == MOST_REGIONS
    assert components("crack", np.zeros((9, 9), np.float32), 0.5, 1) == []


def test_train_predict_select(works: Project) -> None:
    """The whole way: a model, its scores of what nobody labelled, and a choice that rests on them."""
    trained = training.run(works, FAST)
    report = predicting.run(works, device="cpu")
    index = Index(works)
    waiting = {id for id, status in index.rows("status") if status == "unlabelled"}
    table = Table(report.table)
    assert (report.predicted, report.failed, set(table.ids())) == (6, {}, waiting)
    kinds = {"probability": "float16[2]", "class_entropy": "float16[2]", "defect_pixels": "float[2]"}
    assert {name: table.columns[name] for name in kinds} == kinds
    assert json.loads(table.metadata["classes"]) == list(CLASSES)
    predictor = load_predictor(works, device="cpu")
    assert predictor.key == trained.model.key
    item = next(index.items(sorted(waiting)[:1]))
    prediction = predictor.predict_image(drawn(int(item.path.stem))[0])
    stored = table.read([item.id], ["probability", "defect_pixels"])
    assert np.allclose(stored["probability"][0], prediction.probability, atol=1e-3)
    assert np.allclose(stored["defect_pixels"][0], prediction.defect_pixels, rtol=1e-4)
    shown = dict(predictions.load(index, sorted(waiting)))
    assert len(shown.get(item.id, predictions.Prediction()).defects) == len(prediction.defects)
    embedded(works)
    chosen = selecting.run(works, SelectRequest("4", strategy="entropy"))
    assert len(chosen.picks) == 4
    assert all("by the model" in row["reason"] for row in chosen.picks)
    assert chosen.manifest["scores"] == report.table
    assert selecting.run(works, SelectRequest("4", strategy="portfolio"), dry=True).picks


def test_predict_resumes_where_it_was_killed(works: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    training.run(works, FAST)
    monkeypatch.setattr(predicting, "CHUNK", 4)

    def pulled(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predicting.run(works, progress=pulled, device="cpu")
    second = predicting.run(works, device="cpu")
    assert (second.kept, second.predicted) == (4, 2)
    third = predicting.run(works, device="cpu")
    assert (third.kept, third.predicted) == (6, 0)
    everything = predicting.run(works, everything=True, device="cpu")
    assert (everything.kept, everything.predicted) == (6, 24)
    table = Table(everything.table)
    assert len(table) == len(set(table.ids())) == 30


@pytest.mark.exhaustive
def test_ray_says_the_same(works: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two actors, a broken image among theirs: scores, regions and reasons as in this process."""
    ray = pytest.importorskip("ray")
    key = training.run(works, FAST).model.key
    index = Index(works)
    broken = sorted(id for id, status in index.rows("status") if status == "unlabelled")[2]
    next(index.items([broken])).path.write_bytes(b"no image")
    here = predicting.run(works, device="cpu", everything=True)
    table = Table(here.table)
    columns = [name for name in table.columns if name != "id"]
    ids = sorted(table.ids())
    scored, regions = table.read(ids, columns), dict(predictions.load(index, ids))
    files.remove(Path(here.table))
    monkeypatch.setattr(_ray, "BATCH", 5)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    report = predicting.run(works, key, device="cpu", everything=True, engine="ray")
    assert (report.predicted, report.failed) == (here.predicted, here.failed) == (29, {broken: here.failed[broken]})
    again = Table(report.table).read(ids, columns)
    assert all(np.allclose(scored[name].astype(float), again[name].astype(float), rtol=1e-3) for name in columns)
    predicted = dict(predictions.load(index, ids))
    assert {id: [d for d, _ in prediction.defects] for id, prediction in predicted.items()} == {
        id: [d for d, _ in prediction.defects] for id, prediction in regions.items()
    }
    with pytest.raises(CurateError, match="unknown engine 'spark'; allowed: local, ray"):
        predicting.run(works, engine="spark")


def test_predict_a_view_and_skip_what_cannot_be_read(works: Project) -> None:
    training.run(works, FAST)
    index = Index(works)
    index.dataset.save_view("mine", index.dataset.match_tags("mine"))
    ids = sorted(id for id, status in index.rows("status") if status == "labelled")[:3]
    index.tag("mine", ids)
    path = next(index.items(ids[:1])).path
    content = path.read_bytes()
    path.write_bytes(content[:100])
    report = predicting.run(works, view="mine", device="cpu")
    assert (report.predicted, list(report.failed)) == (2, ids[:1])
    assert "changed since it was indexed" in report.failed[ids[0]]
    path.write_bytes(content)
    assert predicting.run(works, view="mine", device="cpu").predicted == 1
    with pytest.raises(CurateError, match=r"unknown saved view 'mime'.*did you mean 'mine'"):
        predicting.run(works, view="mime", device="cpu")


def test_another_model_s_predictions_are_replaced(works: Project) -> None:
    first = training.run(works, FAST).model.key
    predicting.run(works, device="cpu")
    second = training.run(
        works, training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1", "seed=1"))
    ).model.key
    assert first != second
    assert predicting.run(works, device="cpu").predicted == 6
    again = predicting.run(works, first, device="cpu")  # its scores are there, its regions were overwritten
    assert (again.model, again.predicted) == (first, 6)
    assert {who for _, who in Index(works).rows("predicted_by") if who} == {f"model-{first}"}


# --- classification -------------------------------------------------------------------------------------------------


def test_a_classifier_says_class_and_doubt(works: Project) -> None:
    trained = training.run(
        works,
        training.TrainRequest(
            recipe="mobilenetv2-fast",
            overrides=("model.weights=none", "input.height=64", "input.width=64", "epochs=1", "model.encoder=resnet18"),
        ),
    )
    manifest = trained.model.manifest
    assert (manifest["task"], manifest["single"], manifest["outputs"]) == ("classification", False, list(CLASSES))
    report = predicting.run(works, device="cpu")
    table = Table(report.table)
    assert {"bald", "probability", "uncertainty"} < set(table.columns)
    bald = table.read(list(table.ids()), ["bald"])["bald"]
    assert (bald >= 0).all()
    assert (bald > 0).any()
    predictor, (pixels, _) = load_predictor(works, device="cpu"), drawn(29)
    first, second = predictor.predict_image(pixels), predictor.predict_image(pixels)
    assert first.bald == second.bald
    assert np.array_equal(first.probability, second.probability)
    embedded(works)
    assert selecting.run(works, SelectRequest("3", strategy="bald")).picks


def test_classes_that_exclude_each_other_get_a_softmax_and_clean(tmp_path: Path) -> None:
    items = [item for item in data(tmp_path, 12).train if len(item.label.present) < 2]
    training_data = data(tmp_path, 1)
    training_data = replace(training_data, task="classification", train=tuple(items) * 8, single=True)
    resolved = recipe.load("simple-cnn", [*CNN, "model.dropout=0", "epochs=6", "optimiser.lr=1e-2"])
    model = network(resolved, training_data)
    loop.fit(model, fit_settings(resolved, training_data, tmp_path / "run"))
    model.load_state_dict(checkpoint.load(tmp_path / "run" / loop.BEST)[0])
    predictor = Predictor("0", CLASSES, resolved, True, model.eval())
    for number in (0, 1, 3):
        prediction = predictor.predict_image(drawn(number)[0])
        assert {name for name, _ in prediction.classes} == set(drawn(number)[1])
        assert prediction.probability.shape == (2,)
        assert prediction.probability.sum() < 1


@pytest.mark.exhaustive
def test_the_model_as_an_encoder(works: Project) -> None:
    from curate.embed import build
    from curate.vectors import run as embedding

    assert encoder.current_encoder(works, "cpu") is None
    trained = training.run(works, FAST)
    handle: Any = encoder.current_encoder(works, "cpu")
    assert handle.key == trained.model.key
    report = embedding.run(works, build("model", {}, handle=handle), {}, workers=0)
    assert (report.embedded, report.failed) == (30, {})


def test_aliases(works: Project) -> None:
    with pytest.raises(CurateError, match=r"no trained model yet\. Train one first: curate train"):
        load_predictor(works)
    keys = [
        training.run(
            works, training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1", f"seed={n}"))
        ).model.key
        for n in range(3)
    ]
    assert store.current(works) == keys[2]
    assert promote.run(works, keys[0][:10], force=True).key == keys[0]
    assert store.current(works) == store.find(works, "production").key == keys[0]
    assert promote.run(works, force=True).key == keys[2]
    assert store.rollback(works) == keys[0]
    with pytest.raises(CurateError, match="no earlier model"):
        store.rollback(works)
    with pytest.raises(CurateError, match="unknown model 'zzz'"):
        store.find(works, "zzz")
    (store.find(works, keys[1]).folder / store.WEIGHTS).unlink()
    with pytest.raises(CurateError, match="copy them there, or train again"):
        load_predictor(works, keys[1])
