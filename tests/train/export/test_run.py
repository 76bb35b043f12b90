"""Exported models say what torch says, INT8 files are what they claim, and the gate lets nothing bad through."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from curate.data import Item, Label, make_defect
from curate.errors import CurateError
from curate.index import sync
from curate.index.dataset import Index
from curate.project import Project
from tests.conftest import Make
from tests.train.conftest import CLASSES, LIBRARY, TINY, drawn
from train import store
from train.data import dataset
from train.data.pixels import read
from train.evaluate import metrics
from train.evaluate.intervals import BootstrapDraws
from train.export import onnx_int8
from train.export import run as exporting
from train.export.run import INT8, ONNX, SIDECAR, ExportRequest
from train.fit import run as training
from train.predict.predictor import load_predictor, trained_network

# An x86 processor without these instructions adds 8-bit products in 16 bits, which may saturate.
VNNI = platform.machine() != "x86_64" or "vnni" in Path("/proc/cpuinfo").read_text()
pytestmark = pytest.mark.filterwarnings("ignore")
SEGMENTER = ("epochs=6", "optimiser.lr=3e-3", "predict.flips=true")
# Most tests ask for files; what INT8 costs so small a network is no matter.
LAX = ExportRequest(max_drop=0.5, calibration=6, activations="int8")


def trained(project: Project, *more: str, task: str = "segmentation", recipe: str = "unet-resnet") -> store.StoredModel:
    base = TINY if task == "segmentation" else TINY[2:]
    return training.run(project, training.TrainRequest(task, recipe, (*base, *more), "cpu")).model


def val_of(project: Project) -> list[Item]:
    return list(dataset.collect(Index(project)).val)


def left_over(project: Project) -> list[str]:
    return sorted(file.name for file in exporting.home(project).glob("*") if file.name != ".lock")


def session(file: Path) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.fixture
def model(works: Project) -> store.StoredModel:
    return trained(works, *SEGMENTER)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_segmenter_s_files_stand_alone_and_say_what_torch_says(works: Project, model: store.StoredModel) -> None:
    result = exporting.run(works, LAX)
    assert result.fresh
    assert result.folder == works.work / "exports" / model.key
    assert sorted(file.name for file in result.folder.iterdir()) == sorted([SIDECAR, ONNX, INT8])
    sidecar = json.loads((result.folder / SIDECAR).read_text())
    assert sidecar["check"]["largest_difference"] < 1e-4
    assert sidecar["check"]["decisions_differ"] == 0
    assert sidecar["check"]["images"] == len(val_of(works))
    assert (sidecar["key"], sidecar["classes"], sidecar["opset"]) == (model.key, list(CLASSES), onnx_int8.OPSET)
    assert sidecar["recipe"] == model.manifest["recipe"]
    onnx.checker.check_model(str(result.folder / ONNX))

    import torch

    network, runs = trained_network(model), session(result.folder / ONNX)
    mean, std = (np.array(sidecar["input"]["normalisation"][name]) for name in ("mean", "std"))
    for shape in ((1, 64, 64, 3), (3, 96, 160, 3)):  # any number of images, any multiple of 32
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        batch = torch.tensor(((image / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
        with torch.inference_mode():
            expected = 1 / (1 + np.exp(-network(batch).double().numpy()))
        np.testing.assert_allclose(runs.run(None, {"image": image})[0], expected, atol=1e-4)
    _twice(works, result.folder)
    _is_int8(result.folder / INT8)
    _figures_are_those_of_evaluate(works, sidecar)


def _twice(project: Project, folder: Path) -> None:
    """Nothing is done again; what is asked anew is."""
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert not exporting.run(project, LAX).fresh
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def _is_int8(file: Path) -> None:
    """Every convolution takes int8 weights with a scale a channel, and int8 activations."""
    graph = onnx.load(str(file)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 5
    for node in convolutions:
        data, weights = (producers[name] for name in node.input[:2])
        assert (data.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert values[data.input[2]].dtype == np.int8
        assert values[weights.input[0]].dtype == np.int8
        assert values[weights.input[1]].shape == (values[weights.input[0]].shape[0],)
        assert (values[weights.input[2]] == 0).all()
    assert {node.op_type for node in graph.node} >= {"QuantizeLinear", "DequantizeLinear"}


def _figures_are_those_of_evaluate(project: Project, sidecar: dict[str, Any]) -> None:
    """Recall and Dice against what `curate evaluate` says of the same model and images."""
    from train.evaluate import run as evaluating

    expected = evaluating.run(project, evaluating.EvaluateRequest(split="val", device="cpu")).metrics["classes"]
    for name, values in sidecar["accuracy"]["torch"].items():
        assert values["recall"] == pytest.approx(expected[name]["recall"]["value"], abs=1e-6)
        assert values["dice"] == pytest.approx(expected[name]["dice"]["value"], abs=1e-6)


@pytest.mark.parametrize("single", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_classifier_s_file_says_what_torch_says(make: Make, tmp_path: Path, single: bool) -> None:
    project = _classified(make, tmp_path, single)
    model = trained(project, "epochs=2", task="classification", recipe="simple-cnn")
    assert model.manifest["single"] == single
    result = exporting.run(project, LAX)
    sidecar, runs = result.about, session(result.folder / ONNX)
    assert sidecar["output"]["inside"] == ("softmax" if single else "sigmoid")
    predictor = load_predictor(project, model.key, "cpu")
    for item in val_of(project):
        pixels = read(item.id, item.path, 10**8)
        image = exporting.inputs_of(predictor, np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels)[0]
        expected = predictor.predict_image(pixels).probability
        np.testing.assert_allclose(runs.run(None, {"image": image})[0][0][:2], expected, atol=1e-4)


def _classified(make: Make, tmp_path: Path, single: bool) -> Project:
    """Two folders of classes, or masks of which some overlap."""
    from PIL import Image

    root = tmp_path / "sorted"
    for number in range(24):
        pixels, masks = drawn(2 * number + 1 if single else number)
        name = "hole" if "hole" in masks else "crack"
        places = [root / name] if single else [root / "images"]
        pixels = drawn(4 * number)[0] if single and number % 2 else pixels
        places = [root / "crack"] if single and number % 2 else places
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number:02d}.png")
        for kind, mask in ({} if single else masks).items():
            (root / "masks" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * mask).save(root / "masks" / kind / f"{number:02d}.png")
    kind = {"name": "sorted", "format": "class_folders"} if single else LIBRARY
    project = make([kind | {"data": root}], CLASSES)
    sync.run(project)
    return project


# --- calibration ----------------------------------------------------------------------------------------------------


def items(split: str, *rows: tuple[str, str]) -> Iterator[Item]:
    for number, (classes, source) in enumerate(rows):
        label = Label("labelled", tuple(make_defect(name, (0, 0, 9, 9)) for name in classes.split()))
        yield Item(f"{split}{number}", Path("x.png"), 64, 64, label, split, source=source)


def test_calibration_takes_real_images_of_train_rare_classes_among_them() -> None:
    common = [("crack", "production")] * 50 + [("", "production")] * 50 + [("hole", "synthetic")] * 5
    train = list(items("train", *common, ("hole", "production"), ("crack hole", "public")))
    every = [*train, *items("val", ("hole", "production")), *items("test", ("hole", "production"))]
    chosen = exporting.calibration_items(every, CLASSES, 8)
    assert len(chosen) == len({item.id for item in chosen}) == 8
    assert {item.split for item in chosen} == {"train"}
    assert all(item.source != "synthetic" for item in chosen)
    assert {"train105", "train106"} <= {item.id for item in chosen}  # all that show the rare class
    assert any(item.label.clean for item in chosen)
    assert exporting.calibration_items(every[::-1], CLASSES, 8) == chosen
    assert exporting.calibration_items(every, CLASSES, 10**6)[:8] == chosen


@pytest.mark.exhaustive
def test_calibration_reads_nothing_but_train(
    works: Project, model: store.StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: set[str] = set()
    running: list[str] = []
    quantise = onnx_int8.quantise

    def listening(*arguments: Any) -> None:
        running.append("quantise")
        quantise(*arguments)
        running.clear()

    def reading(id: str, *rest: Any) -> Any:
        if running:
            ids.add(id)
        return read(id, *rest)

    monkeypatch.setattr(onnx_int8, "quantise", listening)
    monkeypatch.setattr(exporting, "read", reading)
    sidecar = exporting.run(works, LAX).about
    splits = dict(Index(works).rows("split"))
    assert ids == set(sidecar["calibration"]["images"])
    assert len(ids) == LAX.calibration
    assert {splits[id] for id in ids} == {"train"}


# --- the gate -------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration that has seen nothing but darkness: activations are clipped where images are bright."""

    def dark(*arguments: Any) -> Iterator[np.ndarray]:
        yield np.zeros((1, 64, 64, 3), np.uint8)

    monkeypatch.setattr(exporting, "calibration_batches", dark)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("broken")
def test_the_gate_refuses_what_calibration_broke_and_force_is_recorded(
    works: Project, model: store.StoredModel
) -> None:
    result = exporting.run(works, ExportRequest())
    assert result.refusal is not None
    assert result.about["quantisation"]["activations"] == onnx_int8.activation_type("auto", platform.machine())
    assert "crack" in result.refusal or "hole" in result.refusal
    assert "--max-drop 0.005" in result.refusal
    assert result.to_json()["blessed"] is False
    assert result.about["gate"]["drop"]["dice"] > 0.005  # what it would have cost, and how fast it was, is told
    assert result.about["speed"]["ms"].keys() == {"torch", "onnx", "int8"}
    assert left_over(works) == []
    forced = exporting.run(works, ExportRequest(force=True))
    sidecar = json.loads((forced.folder / SIDECAR).read_text())
    assert forced.refusal is None
    assert sidecar["gate"] | {"passed": False, "forced": True} == sidecar["gate"]
    assert not exporting.run(works, ExportRequest(force=True)).fresh
    again = exporting.run(works, ExportRequest())  # an export that was forced is no pass for whoever does not force
    assert again.refusal is not None
    assert not again.fresh
    assert left_over(works) == [model.key]


@pytest.mark.parametrize(("drop", "passes"), [(-0.2, True), (0.0, True), (1 - 0.995, True), (0.0051, False)])
def test_the_gate_s_edge(drop: float, passes: bool) -> None:
    nothing: Any = None
    job = exporting.ExportJob(nothing, nothing, (), (), {}, ExportRequest(), "")
    job = replace(
        job, evaluator=type("J", (), {"predictor": type("P", (), {"classes": ("hole",)})})(), labelled={"hole": 1}
    )
    for name in ("recall", "dice"):
        values = {"recall": 0.0, "dice": 0.0} | {name: drop}
        assert (exporting._refusal({"gate": {"drop": values}}, job) is None) == passes


def test_accuracy_is_that_of_the_figures() -> None:
    """A classifier's, against the measures of `curate evaluate`."""
    random = np.random.default_rng(3)
    truth, decided = random.random((40, 2)) < 0.4, random.random((40, 2)) < 0.5
    evaluator: Any = type("J", (), {"classes": CLASSES})()
    job = exporting.ExportJob(evaluator, evaluator, (), (), {}, ExportRequest(), "")
    shown = [" ".join(name for name, yes in zip(CLASSES, row, strict=True) if yes) for row in truth]
    chosen = list(items("val", *((classes, "public") for classes in shown)))
    accuracy = exporting._accuracy(job, chosen, [{"decided": row} for row in decided])
    draws = BootstrapDraws.of([str(row) for row in range(40)])
    for place, name in enumerate(CLASSES):
        expected = metrics.decision_metrics(truth[:, place], decided[:, place], draws)
        assert accuracy[name]["recall"] == pytest.approx(expected["recall"].values[0])
        assert accuracy[name]["dice"] == pytest.approx(expected["f1"].values[0])


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_no_model(works: Project) -> None:
    with pytest.raises(CurateError, match="no trained model yet"):
        exporting.run(works, ExportRequest())


@pytest.mark.parametrize(
    ("export_request", "text"),
    [
        (ExportRequest(max_drop=1.5), "max-drop 1.5"),
        (ExportRequest(calibration=0), "calibration 0"),
        (ExportRequest(activations="int4"), "allowed: auto, int8, uint8"),
    ],
)
def test_bad_requests(export_request: ExportRequest, text: str) -> None:
    nothing: Any = None
    with pytest.raises(CurateError, match=text):
        exporting.run(nothing, export_request)


def test_what_stands_in_the_way_is_named_and_leaves_nothing(works: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(works, "epochs=1")
    with pytest.raises(CurateError, match="unknown model 'nobody'"):
        exporting.run(works, ExportRequest(model="nobody"))
    _without_the_extra(works)
    _without_val(works)
    _without_the_rarest(works)
    for where in ("quantise", "onnx_runner"):
        with monkeypatch.context() as patch:
            patch.setattr(onnx_int8, "write", lambda module, file, *rest: bool(file.write_bytes(b"half")))
            patch.setattr(onnx_int8, "quantise", lambda *arguments: None)
            patch.setattr(onnx_int8, where, interrupt)
            with pytest.raises(KeyboardInterrupt):
                exporting.run(works, LAX)
    assert left_over(works) == []


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def _without_the_extra(project: Project) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_int8, "find_spec", lambda name: None if name == "onnxruntime" else object())
        with pytest.raises(CurateError, match=r"missing: onnxruntime\. .*steel-curate\[export\]"):
            exporting.run(project, ExportRequest())


def _with(
    project: Project, change: Callable[[dataset.TrainingData], dataset.TrainingData], request: ExportRequest, text: str
) -> None:
    collect = dataset.collect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "collect", lambda *arguments: change(collect(*arguments)))
        with pytest.raises(CurateError, match=text):
            exporting.run(project, request)


def _without_val(project: Project) -> None:
    _with(project, lambda data: replace(data, val=()), ExportRequest(force=True), "no labelled image in val")


def _without_the_rarest(project: Project) -> None:
    def change(data: dataset.TrainingData) -> dataset.TrainingData:
        others = [item for item in data.train if "hole" not in item.label.present]
        rare = next(item for item in data.train if "hole" in item.label.present)
        val = tuple(item for item in data.val if "hole" not in item.label.present)
        return replace(data, train=(*others, rare), val=val)

    _with(project, change, ExportRequest(), r"no labelled image of val shows hole.*gate cannot measure.*--force")


@pytest.mark.exhaustive
def test_a_network_that_onnx_cannot_say_is_named(tmp_path: Path) -> None:
    from torch import nn

    class Odd(nn.Module):
        def forward(self, image: Any) -> Any:
            import torch

            return torch.linalg.eigvals(image.float()[:, :, :, 0]).real

    with pytest.raises(CurateError, match=r"model x \(Odd\) cannot be written as ONNX: .*eig"):
        onnx_int8.write(Odd(), tmp_path / "odd.onnx", (64, 64, 3), "model x (Odd)", True)


@pytest.mark.exhaustive
def test_a_network_that_freezes_its_size_is_written_for_that_size(tmp_path: Path) -> None:
    import torch
    from torch import nn
    from torch.nn import functional

    class Pyramid(nn.Module):
        """Pools to a fixed grid, as PSPNet does: the exporter keeps the example's window without a word."""

        def forward(self, image: Any) -> Any:
            grid = nn.AdaptiveAvgPool2d(3)(image.permute(0, 3, 1, 2).float() / 16 - 8)
            return functional.interpolate(grid, size=image.shape[1:3]).sigmoid()

    file = tmp_path / "pyramid.onnx"
    assert not onnx_int8.write(Pyramid(), file, (96, 96, 3), "pyramid", True)
    runs = onnx_int8.onnx_runner(file, 1)
    image = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
    with torch.inference_mode():
        np.testing.assert_allclose(runs(image), Pyramid()(torch.from_numpy(image)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "machine", "kind"),
    [
        ("auto", "x86_64", "uint8"),
        ("auto", "AMD64", "uint8"),
        ("auto", "aarch64", "int8"),
        ("auto", "arm64", "int8"),
        ("int8", "x86_64", "int8"),
        ("uint8", "aarch64", "uint8"),
    ],
)
def test_what_is_fast_where(asked: str, machine: str, kind: str) -> None:
    assert onnx_int8.activation_type(asked, machine) == kind


def test_unsigned_activations_where_they_are_asked_for(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, image: Any) -> Any:
            return self.layer(image.permute(0, 3, 1, 2).float() / 255).sigmoid()

    torch.manual_seed(0)
    source, target = tmp_path / "x.onnx", tmp_path / "x8.onnx"
    onnx_int8.write(Small().eval(), source, (64, 64, 3), "small", False)
    images = [np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)]
    for asked, kind in (("int8", onnx.TensorProto.INT8), ("uint8", onnx.TensorProto.UINT8)):
        onnx_int8.quantise(source, target, images, asked)
        graph = onnx.load(str(target)).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        assert {kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"} == {kind}
        expected, quantised = (onnx_int8.onnx_runner(file, 1)(images[0]) for file in (source, target))
        np.testing.assert_allclose(expected, quantised, atol=0.02 if VNNI else 0.1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.onnx", "x8.onnx"]


# --- TensorFlow's padding -------------------------------------------------------------------------------------------


def lite() -> Any:
    from train import architectures, recipe

    settings = ["model.encoder=tu-tf_efficientnet_lite0", "input.scale=tf", "model.weights=none"]
    resolved = recipe.load("unet-resnet", settings)
    return resolved, architectures.build("segmentation", resolved.model, 3, 2).eval()


def test_padding_that_is_fixed_for_the_export_changes_nothing() -> None:
    import torch

    _, network = lite()
    fixed = onnx_int8.fixed_padding(network)
    assert "Conv2dSame" in str(network)
    assert "Conv2dSame" not in str(fixed)
    for size in ((32, 32), (64, 160), (96, 64)):
        batch = torch.rand(1, 3, *size)
        with torch.inference_mode():
            assert torch.equal(network(batch), fixed(batch))


@pytest.mark.exhaustive
def test_the_package_s_encoder_is_exported_for_any_size(tmp_path: Path) -> None:
    """With padding that depends on the size, torch.export had not ended after nine minutes."""
    resolved, network = lite()
    module = onnx_int8.end_to_end(network, resolved, single=False)
    assert onnx_int8.write(module, tmp_path / "model.onnx", (64, 96, 3), "lite", any_size=True)
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 160, 3), np.uint8)
    (found,) = session(tmp_path / "model.onnx").run(None, {"image": image})
    np.testing.assert_allclose(found, onnx_int8.torch_runner(module)(image), atol=1e-4)
