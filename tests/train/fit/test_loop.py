"""The loop: what was interrupted ends as what was not; folded norms stay; a loss that is no number stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.errors import CurateError
from tests.fakes import real_data
from tests.train.conftest import data, tiny
from train import architectures, checkpoint, recipe
from train.data.dataset import LoadPlan, TrainingData
from train.fit import loop, pretrained
from train.fit.loop import FitSettings
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.recipe import Recipe

CNN = ('model.options={"widths": [8, 16]}', "model.dropout=0.3", "input.height=32", "input.width=32", "batch=3")


def fit_settings(
    resolved: Recipe,
    training_data: TrainingData,
    folder: Path,
    frozen: tuple[str, ...] = (),
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> FitSettings:
    folder.mkdir(exist_ok=True)
    plan = LoadPlan(
        training_data.task,
        training_data.classes,
        training_data.single,
        training_data.clean,
        resolved.input,
        resolved.augmentation,
        resolved.seed,
        10**8,
    )
    return FitSettings(resolved, training_data, plan, frozen, folder, process_group=process_group)


def network(resolved: Recipe, training_data: TrainingData, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return architectures.build(resolved.task, resolved.model, resolved.input.channels, len(training_data.outputs))


class Interrupted(Exception):
    """Stands for Ctrl-C or a kill."""


@pytest.mark.parametrize("steps", [2, 4, 7, 10, 12])
def test_interrupted_is_uninterrupted(tmp_path: Path, steps: int) -> None:
    """Dropout, augmentation, an EMA, two phases, momentum: none may depend on where the run was interrupted."""
    phases = [{"epochs": 2, "train": "head", "lr": 1e-2}, {"epochs": 3}]
    resolved = recipe.load("simple-cnn", [*CNN, f"phases={json.dumps(phases)}", "ema=0.8", "augmentation.rotate=20"])
    training_data = data(tmp_path, 8, 4, "classification")

    def go(name: str, limit: int | None = None, seed: int = 0) -> loop.FitResult:
        done = 0

        def step(stage: str, now: int, total: int) -> None:
            nonlocal done
            done += now
            if done == limit:
                raise Interrupted

        return loop.fit(
            network(resolved, training_data, seed), fit_settings(resolved, training_data, tmp_path / name), step
        )

    whole = go("whole")
    with pytest.raises(Interrupted):
        go("parts", steps)
    resumed = go("parts", seed=99)  # what the network begins with must not matter any more
    for row in (*whole.history, *resumed.history):
        row.pop("seconds")
    if steps > 3:
        assert resumed.history == whole.history
        weights = [checkpoint.load(tmp_path / name / loop.BEST)[0] for name in ("whole", "parts")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len(resumed.history) == 5  # before the first epoch's end there was nothing to resume


def test_an_ended_run_is_not_run_again(tmp_path: Path) -> None:
    resolved, training_data = recipe.load("simple-cnn", [*CNN, "epochs=2"]), data(tmp_path, 4, 0, "classification")
    first = loop.fit(network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / "x"))
    again = loop.fit(
        network(resolved, training_data),
        fit_settings(resolved, training_data, tmp_path / "x"),
        lambda *_: pytest.fail("it ran"),
    )
    assert again.history == first.history


def test_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    resolved, training_data = recipe.load("simple-cnn", [*CNN, "epochs=1"]), data(tmp_path, 4, 0, "classification")
    loop.fit(network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / "x"))
    for file in (tmp_path / "x").iterdir():
        length = int.from_bytes(file.read_bytes()[:8], "little")
        assert "__metadata__" in json.loads(file.read_bytes()[8 : 8 + length])


def test_a_phase_trains_what_it_says(tmp_path: Path) -> None:
    resolved, training_data = recipe.load("simple-cnn", CNN), data(tmp_path, 4, 0, "classification")
    model = network(resolved, training_data)
    for train, expected in (("head", {"head.3"}), (3, {"encoder.4", "encoder.5", "head.3"}), ("all", None)):
        loop._trainable(model, recipe.Phase(epochs=1, train=train))  # type: ignore[arg-type]
        trained = {name.rpartition(".")[0] for name, part in model.named_parameters() if part.requires_grad}
        assert trained == (expected or {name.rpartition(".")[0] for name, _ in model.named_parameters()})
        loop._train_mode(model, ())
        norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
        assert [part.training for part in norms] == [train == "all", train != "head"]


@pytest.mark.parametrize(
    ("losses", "plateaus"),
    [
        ([], 0),
        ([3, 2, 1, 0.5], 0),
        ([3, 3, 3], 1),
        ([3, 3, 3, 3, 3], 2),
        ([3, 2.99999, 2.99998], 1),
        ([3, 4, 2, 4, 2], 1),
    ],
)
def test_a_plateau_lowers_the_rate(losses: list[float], plateaus: int) -> None:
    """`wait` is 2: as Keras's ReduceLROnPlateau with that patience counts."""
    schedule = recipe.Schedule(name="plateau", gamma=0.5, wait=2)
    history = [{"phase": 0, "train_loss": 9.0 - number, "val_loss": loss} for number, loss in enumerate(losses)]
    assert loop._plateau_factor(schedule, 0, history) == 0.5**plateaus
    assert loop._plateau_factor(schedule, 1, history) == 1, "another phase begins anew"
    assert loop._plateau_factor(recipe.Schedule(name="constant"), 0, history) == 1
    without_val = [{"phase": 0, "train_loss": loss} for loss in losses]
    assert loop._plateau_factor(schedule, 0, without_val) == 0.5**plateaus


def test_a_run_that_is_resumed_on_a_plateau_keeps_its_rate(tmp_path: Path) -> None:
    plateau = ['schedule={"name": "plateau", "gamma": 0.5, "wait": 1}', "optimiser.lr=0.05", "epochs=5", "patience=9"]
    resolved, training_data = recipe.load("simple-cnn", [*CNN, *plateau]), data(tmp_path, 6, 4, "classification")

    def go(name: str, last: int = 99) -> list[float]:
        def ended(fitted: loop.FitResult) -> None:
            if len(fitted.history) == last:
                raise Interrupted

        settings = fit_settings(resolved, training_data, tmp_path / name)
        return [row["lr"] for row in loop.fit(network(resolved, training_data), settings, on_epoch_end=ended).history]

    whole = go("whole")
    assert whole[0] == 0.05
    assert whole[-1] < 0.05, "the loss has been higher than before"
    with pytest.raises(Interrupted):
        go("parts", 4)
    assert go("parts") == whole


def test_the_averaged_weights_are_those_that_are_kept(tmp_path: Path) -> None:
    resolved, training_data = (
        recipe.load("simple-cnn", [*CNN, "epochs=1", "ema=0.9"]),
        data(tmp_path, 6, 2, "classification"),
    )
    model = network(resolved, training_data)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    average = network(resolved, training_data)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1.0)
    loop._update_ema(average, model, 0.9)
    for name, value in average.named_parameters():
        torch.testing.assert_close(value, start[name] + 0.1)
    loop.fit(model, fit_settings(resolved, training_data, tmp_path / "x"))
    best, last = checkpoint.load(tmp_path / "x" / loop.BEST)[0], checkpoint.load(tmp_path / "x" / loop.LAST)[0]
    assert all(torch.equal(value, last[f"shadow.{name}"]) for name, value in best.items())
    assert not all(torch.equal(value, last[f"model.{name}"]) for name, value in best.items())


def test_early_stopping(tmp_path: Path) -> None:
    resolved = recipe.load("simple-cnn", [*CNN, "epochs=30", "patience=2", "optimiser.lr=0.3"])
    training_data = data(tmp_path, 6, 4, "classification")
    fitted = loop.fit(network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / "x"))
    assert len(fitted.history) == fitted.best["epoch"] + 1 + 2 < 30
    assert fitted.best["val_score"] >= max(row["val_score"] for row in fitted.history) - loop.EQUAL


def test_the_best_epoch_is_the_one_with_the_best_score_and_the_loss_breaks_ties() -> None:
    def row(loss: float, *f1: float | None) -> dict[str, Any]:
        return {"val_loss": loss, "f1": dict(zip("abc", f1, strict=False))}

    majority, rare, same = row(0.8, 0.9, 0.0, None), row(1.3, 0.7, 0.5, None), row(1.2, 0.7, 0.5, None)
    history: list[dict[str, Any]] = []
    for entry in (majority, rare, same, same | {"val_loss": 1.1}):
        history.append(entry | {"val_score": loop._smoothed_score(history, entry)})
    assert [entry["val_score"] for entry in history] == pytest.approx([0.45, 0.525, 0.6, 0.6])
    assert loop._is_better(history[0], {}, 0.0)
    assert loop._is_better(history[1], history[0], 0.45), "although its loss is higher"
    assert loop._is_better(history[3], history[2], 0.6), "its loss is lower"
    assert not loop._is_better(history[2], history[3], 0.6)
    less = {"val_score": 0.595, "val_loss": 0.9}
    assert loop._is_better(less, history[3], 0.6), "nearly as good, with less loss"
    assert not loop._is_better({"val_score": 0.588, "val_loss": 0.5}, less, 0.6), "step by step it would sink"
    assert loop._is_better({"val_score": 0.608, "val_loss": 2.0}, less, 0.6)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    resolved, training_data = recipe.load("simple-cnn", [*CNN, "epochs=3"]), data(tmp_path, 6, 2, "classification")
    model, settings = network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / "x")

    def spoil(stage: str, now: int, total: int) -> None:
        if stage == "epoch 2":
            torch.nn.init.constant_(model.head[3].bias, float("nan"))

    with pytest.raises(CurateError, match="loss is nan in epoch 2, step 1, on the images") as stopped:
        loop.fit(model, settings, spoil)
    assert sum(item.id[:12] in str(stopped.value) for item in training_data.train) == 3
    assert "best weights so far are kept" in str(stopped.value)
    weights, _ = checkpoint.load(tmp_path / "x" / loop.BEST)
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_corrupt_images_are_skipped_and_counted(tmp_path: Path) -> None:
    resolved, training_data = (
        recipe.load("simple-cnn", [*CNN, "epochs=2", "batch=1"]),
        data(tmp_path, 5, 2, "classification"),
    )
    training_data.train[1].path.write_bytes(b"no image")
    fitted = loop.fit(network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / "x"))
    assert list(fitted.skipped) == [training_data.train[1].id]
    assert len(fitted.history) == 2
    for item in training_data.train:
        item.path.write_bytes(b"no image")
    with pytest.raises(CurateError, match="no image of train could be read"):
        loop.fit(network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / "y"))


# --- weights whose norms are folded into the convolutions -----------------------------------------------------------


def folded(path: Path) -> Path:
    """An encoder whose norms' statistics are the identity, as folding leaves them."""
    from safetensors.torch import save_file

    model = network(tiny(), data(path, 1))
    weights = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    save_file(weights, path / "folded.safetensors")
    return path / "folded.safetensors"


def test_folded_norms_stay_as_they_are(tmp_path: Path) -> None:
    resolved, training_data = (
        tiny(f"model.weights={folded(tmp_path)}", "epochs=2", "augmentation.flip_vertical=0"),
        data(tmp_path, 8),
    )
    model = network(resolved, training_data, seed=1)
    start = pretrained.load_into(model, resolved.model, 3)
    norms = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
    inside = {name for name in norms if name.startswith("encoder.")}
    assert set(start.frozen) == inside
    loop.fit(model, fit_settings(resolved, training_data, tmp_path / "x", start.frozen))
    assert all((norms[name].running_mean == 0).all() for name in inside)
    assert all((part.running_mean != 0).any() for name, part in norms.items() if name not in inside)
    images = torch.rand(4, 3, 64, 64)
    loop._train_mode(model, start.frozen)
    features = model.encoder(images)[-1]
    assert torch.equal(features, model.eval().encoder(images)[-1])
    loop._train_mode(model, ())
    assert not torch.allclose(features, model.encoder(images)[-1], rtol=0.1)  # what would be spoilt


def test_the_real_folded_weights_are_known_as_such() -> None:
    file = real_data("weights") / "mobilenet_v2_imagenet_bnfolded.pth"
    resolved = recipe.load("mobilenetv2-fast", [f"model.weights={file}", "input.scale=tf"])
    model = architectures.build(resolved.task, resolved.model, 3, 6)
    assert len(pretrained.load_into(model, resolved.model, 3).frozen) == 52


def test_weights_that_do_not_fit_list_their_keys(tmp_path: Path) -> None:
    resolved = recipe.load("unet-resnet", [f"model.weights={folded(tmp_path)}"])  # a MobileNetV2's for a ResNet-34
    with pytest.raises(
        CurateError, match=r"does not fit the model: it lacks layer1.2.conv1.weight; .* more.*--weights"
    ):
        pretrained.load_into(architectures.build(resolved.task, resolved.model, 3, 2), resolved.model, 3)
    resolved = recipe.load("unet-resnet", ["model.weights=nowhere.pth"])
    with pytest.raises(CurateError, match=r"no weights file at nowhere\.pth"):
        pretrained.mark_of(resolved.model)


def test_a_hub_out_of_reach_names_the_local_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    resolved = tiny("model.weights=hub")
    with pytest.raises(CurateError, match=r"weights of resnet18 cannot be downloaded.*--weights none.*--weights FILE"):
        pretrained.load_into(network(resolved, data(tmp_path, 1)), resolved.model, 3)


# --- torch.compile --------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_compiled_run_ends_as_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that needs no C compiler: the same weights under the same names."""
    monkeypatch.setattr(loop, "COMPILER", "aot_eager")
    training_data, quiet = data(tmp_path, 6, 2, "classification"), (*CNN, "epochs=2", "model.dropout=0")
    weights = {}
    for compiled in (False, True):
        resolved = recipe.load("simple-cnn", [*quiet, f"compile={json.dumps(compiled)}"])
        loop.fit(network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / str(compiled)))
        weights[compiled] = checkpoint.load(tmp_path / str(compiled) / loop.BEST)[0]
    assert weights[True].keys() == weights[False].keys() == network(resolved, training_data).state_dict().keys()
    assert all(torch.allclose(weights[True][name], value, atol=1e-4) for name, value in weights[False].items())


def test_a_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C compiler here")

    monkeypatch.setattr(loop, "COMPILER", broken)
    torch.compiler.reset()
    resolved, training_data = (
        recipe.load("simple-cnn", [*CNN, "epochs=1", "compile=true"]),
        data(tmp_path, 4, 0, "classification"),
    )
    with pytest.raises(
        CurateError, match=r"cannot compile this model here \(.*no C compiler.*--set compile=false"
    ) as error:
        loop.fit(network(resolved, training_data), fit_settings(resolved, training_data, tmp_path / "x"))
    assert "\n" not in str(error.value)
