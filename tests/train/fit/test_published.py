"""The published systems: their layers by count and shape, against figures that others print; a few steps of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from curate.errors import CurateError
from tests.train.conftest import data
from tests.train.fit.test_loop import fit_settings
from tests.train.test_recipe import network
from train import checkpoint, recipe
from train.architectures import _attention, _gate
from train.data import augment
from train.fit import loop, pretrained
from train.fit import run as training
from train.recipe import Augmentation

SMALL = ("model.weights=none", "input.height=64", "input.width=64", "batch=4")


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model: Any, size: int, kind: Any, channels: int = 3) -> list[tuple[int, ...]]:
    """Return the output shapes of all layers of this kind for one image."""
    outputs: list[tuple[int, ...]] = []
    hooks = [
        part.register_forward_hook(lambda module, inputs, out: outputs.append(tuple(out.shape[1:])))
        for part in model.modules()
        if isinstance(part, kind)
    ]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, channels, size, size))
    for hook in hooks:
        hook.remove()
    return outputs


# --- ShuffleDefectNet -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "published"), [("0.5x", 1_366_792), ("1x", 2_278_604), ("1.5x", 3_503_624), ("2x", 7_393_996)]
)
def test_shuffledefectnet(width: str, published: int) -> None:
    """`published`: ShuffleNetV2's parameters with its 1000 classes, as torchvision's documentation lists them."""
    resolved = recipe.load("shuffledefectnet", [f"model.options.width={width}"])
    assert (resolved.input.height, resolved.input.width) == (192, 192)
    assert count(network(resolved, 1000)) == published
    model = network(resolved, 6)
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    assert {part.groups for part in convolutions if part.kernel_size == (1, 1)} == {1}
    depthwise = [part for part in convolutions if part.groups > 1]
    assert all(part.groups == part.in_channels and part.kernel_size == (3, 3) for part in depthwise)
    assert sum(part.stride == (2, 2) for part in depthwise) == 2 * 3  # both branches, where a stage begins
    assert not any(isinstance(part, nn.AvgPool2d) for part in model.modules())
    sides = [shape[1] for shape in shapes(model.encoder, 192, nn.Sequential) if len(shape) == 3]
    assert (sides[0], sides[-1]) == (96, 6)
    assert shapes(model, 192, nn.Linear) == [(6,)]


def test_shuffledefectnet_takes_torchvision_s_weights(tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    whole = shufflenet_v2_x0_5(weights=None).eval()
    torch.save(whole.state_dict(), tmp_path / "shuffle.pth")
    resolved = recipe.load(
        "shuffledefectnet", ["model.options.width=0.5x", f"model.weights={tmp_path / 'shuffle.pth'}"]
    )
    model = network(resolved, 6)
    pretrained.load_into(model, resolved.model, 3)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        reference = whole.conv5(whole.stage4(whole.stage3(whole.stage2(whole.maxpool(whole.conv1(images))))))
        assert torch.equal(model.eval().encoder(images), reference)


def test_grey_images_and_wrong_widths() -> None:
    for name in ("shuffledefectnet", "cnn-4conv-6dense", "resnet50v2-two-phase", "two-stage"):
        resolved = recipe.load(name, ["input.channels=1"])
        with torch.inference_mode():
            assert network(resolved).eval()(torch.zeros(1, 1, 64, 64)).shape[:2] == (1, 2)
    with pytest.raises(CurateError, match=r"'width' of architecture shuffle_defect is '3x'; allowed: '0.5x' or '1x'"):
        network(recipe.load("shuffledefectnet", ["model.options.width=3x"]))


# --- four convolutions, six dense layers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row"), [("cnn-4conv-6dense", [100, 75, 50, 25, 2, 4]), ("cnn-4conv-6dense-fixed", [100, 75, 50, 25, 4])]
)
def test_cnn_4conv_6dense(name: str, row: list[int]) -> None:
    resolved = recipe.load(name)
    model = network(resolved, 4)
    assert [part.out_features for part in model.modules() if isinstance(part, nn.Linear)] == row
    assert [type(part) for part in model.encoder] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 4
    assert shapes(model, 128, nn.MaxPool2d) == [(32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8)]
    convolutions = sum(9 * a * b + b for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)))
    wide = [256 * 8 * 8, *row]  # nothing is averaged away at 128 pixels
    assert count(model) == convolutions + sum(a * b + b for a, b in pairwise(wide))
    assert [term.name for term in resolved.loss] == ["focal_tversky"]


def test_the_bottleneck_of_two_is_what_was_fixed() -> None:
    """Through two ReLUs at most one quadrant of the plane is left: where both are dead, all images are one image."""
    stuck = dict.fromkeys(("cnn-4conv-6dense", "cnn-4conv-6dense-fixed"), 0)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in stuck:
        for seed in range(12):
            torch.manual_seed(seed)
            model = training.architectures.build("classification", recipe.load(name).model, 3, 4)
            with torch.inference_mode():
                stuck[name] += bool(model.eval()(images).std(0).max() < 1e-9)
    assert stuck["cnn-4conv-6dense"] >= 1
    assert stuck["cnn-4conv-6dense-fixed"] == 0


# --- two phases -----------------------------------------------------------------------------------------------------

DENSE_BIASES = 64 + 4 * (64 * 3 + 128 * 4 + 256 * 6 + 512 * 3) + 4 * (64 + 128 + 256 + 512)


def test_resnet50v2_is_keras_s_with_its_last_norm() -> None:
    """Keras prints 23,519,360 trainable parameters without the top; its convolutions before an addition, the
    shortcuts and the first one have biases, which a norm makes idle and timm leaves out."""
    resolved = recipe.load("resnet50v2-two-phase")
    model = network(resolved, 6)
    assert count(model.encoder) == 23_519_360 - DENSE_BIASES
    assert count(model.head) == 2049 * 256 + 257 * 6
    assert [type(part).__name__ for part in model.head] == [
        *("AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Dropout", "Linear")
    ]
    assert model.head[4].p == 0.5
    norms = model.eval().encoder(torch.rand(2, 3, 64, 64))
    assert norms.shape == (2, 2048, 2, 2)
    assert norms.min() == 0  # normed and rectified: the raw sum of branches is neither
    nn.init.zeros_(model.encoder.norm.weight)
    nn.init.ones_(model.encoder.norm.bias)
    assert (model.encoder(torch.rand(1, 3, 64, 64)) == 1).all()  # nothing goes round that norm


# Keras's last 50 layers, from the end on, one letter each: c convolution, n norm, o none with weights (an activation,
# padding, addition). MobileNetV2: the last convolution; blocks 16 to 12; the end of block 11. ResNet50V2:
# the last norm; three blocks of the fifth stage, of which the first has a shortcut; the last block of the fourth, which
# pools; the end of the one before.
MOBILE_LAST = "onc" + "nc onc onc" + "o nc onc onc" * 2 + "nc onoc onc" + "o nc onc onc" + "onc"
RESNET_LAST = "on" + "oc onc o onc on" * 2 + "oc c onc o onc on" + "oc o onc o onc on" + "oc"


@pytest.mark.parametrize(
    ("name", "layers", "begin"),
    [
        ("mobilenetv2-two-phase", MOBILE_LAST, "encoder.features.12.conv.2"),
        ("resnet50v2-two-phase", RESNET_LAST, "encoder.stages.2.blocks.4.conv3"),
    ],
)
def test_the_last_fifty_layers_are_keras_s(name: str, layers: str, begin: str) -> None:
    letters = layers.replace(" ", "")
    resolved = recipe.load(name)
    assert len(letters) == 50
    assert resolved.parts[1].train == len(letters) - letters.count("o") + 2  # and the head's two
    model = network(resolved, 6)
    loop._trainable(model, resolved.parts[1])
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert next(key for key in trained if key.startswith("encoder.")).startswith(begin)


@pytest.mark.parametrize("name", ["mobilenetv2-two-phase", "resnet50v2-two-phase"])
def test_two_phases_as_published(name: str) -> None:
    resolved = recipe.load(name)
    first, second = resolved.parts
    assert (first.train, first.lr or resolved.optimiser.lr, second.lr) == ("head", 1e-3, 1e-4)
    assert (first.epochs, second.epochs) == (10, 10)
    rates = [loop._learning_rate(resolved.schedule, first, resolved, epoch) for epoch in range(3)]
    assert rates == pytest.approx([1e-3, 0.9e-3, 0.81e-3])
    assert (resolved.optimiser.name, resolved.optimiser.weight_decay, resolved.batch, resolved.patience) == (
        "adam",
        1e-4,
        32,
        5,
    )
    assert recipe.load(name, ["phases.1.lr=1e-5"]).parts[1].lr == 1e-5
    model = network(resolved, 6)
    loop._trainable(model, first)
    assert {key.partition(".")[0] for key, phase in model.named_parameters() if phase.requires_grad} == {"head"}
    loop._trainable(model, second)
    trained = {key.rpartition(".")[0] for key, phase in model.named_parameters() if phase.requires_grad}
    assert len(trained) == second.train
    loop._train_mode(model, ())
    norms = [part for part in model.encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert 0 < sum(part.training for part in norms) < len(norms)


def test_the_published_augmentation() -> None:
    resolved = recipe.load("resnet50v2-two-phase").augmentation
    assert resolved == recipe.load("mobilenetv2-two-phase").augmentation
    assert (resolved.rotate, resolved.shift, resolved.zoom, resolved.brightness) == (30, 0.3, 0.4, 0.4)
    assert resolved.flip_horizontal == resolved.flip_vertical == 0.5


def test_brightness_is_a_factor() -> None:
    """0.4 is 0.6 to 1.4 times as much light, of every image: black stays black."""
    image = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 100, np.uint8)]).reshape(16, 8, 3)
    images = [augment.augmented(image, None, Augmentation(brightness=0.4), [seed])[0] for seed in range(300)]
    assert all((image[:8] == 0).all() for image in images)
    levels = np.array([image[8:].mean() for image in images])
    assert (levels.min() >= 59, levels.max() <= 141) == (True, True)
    assert (levels.min() < 65, levels.max() > 135) == (True, True)
    assert np.mean(np.abs(levels - 100) < 1) < 0.1


def test_shifts_and_zooms_are_those_of_keras() -> None:
    """Up to three tenths of each side, either way, and each side on its own; 0.6 to 1.4 times as large."""
    y, x = np.mgrid[:101, :101]
    ramp = np.stack([y, x], axis=-1).astype(np.uint8)
    moved = np.array(
        [augment.augmented(ramp, None, Augmentation(shift=0.3), [seed])[0][50, 50] for seed in range(200)], int
    )
    assert (np.abs(moved - 50) <= 31).all()
    assert (moved.min(0) < 24).all()
    assert (moved.max(0) > 76).all()
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.3
    turned = [augment.augmented(ramp, None, Augmentation(zoom=0.4), [seed])[0].astype(int) for seed in range(200)]
    steps = (
        np.array(
            [
                [transform[60, 50, 0] - transform[40, 50, 0], transform[50, 60, 1] - transform[50, 40, 1]]
                for transform in turned
            ]
        )
        / 20
    )
    assert (steps.min() > 1 / 1.5, steps.max() < 1 / 0.55) == (True, True)
    assert (steps.min() < 1 / 1.3, steps.max() > 1 / 0.7) == (True, True)


# --- others ---------------------------------------------------------------------------------------------------------


def test_simple_cnn_and_resnet50_as_published() -> None:
    model = network(recipe.load("simple-cnn"))
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d] * 3
    assert [type(part) for part in model.encoder] == kinds
    assert [part.out_channels for part in model.encoder if isinstance(part, nn.Conv2d)] == [32, 64, 128]
    assert isinstance(model.head[0], nn.AdaptiveAvgPool2d)
    resolved = recipe.load("resnet50-weighted")
    assert (resolved.optimiser.name, resolved.optimiser.lr, resolved.optimiser.weight_decay) == ("adamw", 2.47e-5, 1e-4)
    assert (resolved.sampler.name, resolved.input.height, resolved.input.width) == ("weighted", 224, 224)
    shown = resolved.augmentation
    assert all((shown.flip_horizontal, shown.flip_vertical, shown.rotate90, shown.clahe, shown.brightness))
    assert [term.options for term in resolved.loss] == [{}]  # the prior is corrected once
    names = {key for key, parameter in _trained(resolved)}
    assert names == {"encoder.layer4", "head.3"}
    model = network(recipe.load("unet-attention"))
    blocks = [part for part in model.decoder.modules() if type(part).__name__ == "SCSEModule"]
    assert len(blocks) == 2 * 5  # before and after the convolutions of each block


def _trained(resolved: Any) -> Iterator[tuple[str, Any]]:
    model = network(resolved)
    loop._trainable(model, resolved.parts[0])
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield ".".join(key.split(".")[:2]), parameter


# --- attention gates ------------------------------------------------------------------------------------------------


def test_attention_gates_on_the_skip_connections() -> None:
    gated = network(recipe.load("unet-attention", ["model.attention=gate"]))
    plain = network(recipe.load("unet-attention", ["model.attention=none"]))
    sizes = [(256, 512), (128, 256), (64, 128), (64, 64)]  # a ResNet-34's skips, and the maps that they join
    expected = [4 * skip * (skip // 2) + coarse * (skip // 2) + skip // 2 + skip // 2 + 1 for skip, coarse in sizes]
    gates = [part for part in gated.modules() if isinstance(part, _attention.AttentionGate)]
    assert [count(gate) for gate in gates] == expected
    assert count(gated) - count(plain) == sum(expected)
    inputs: list[tuple[Any, Any]] = []
    for gate in gates:
        gate.register_forward_hook(lambda gate, arguments, out: inputs.append((gate.weights(*arguments), arguments[0])))
    with torch.inference_mode():
        assert gated.eval()(torch.rand(2, 3, 64, 96)).shape == (2, 2, 64, 96)
    assert [tuple(alpha.shape[2:]) for alpha, _ in inputs] == [(4, 6), (8, 12), (16, 24), (32, 48)]
    assert all(alpha.shape[1] == 1 and alpha.shape[2:] == skip.shape[2:] for alpha, skip in inputs)
    assert all(0 < alpha.min() <= alpha.max() < 1 for alpha, _ in inputs)


def test_a_gate_by_hand() -> None:
    """A gate that is shut lets nothing through, an open one all; in between it is the sigmoid of the sum."""
    gate = _attention.AttentionGate(4, 6)
    skip, coarse = torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4)
    for bias, share in ((-50.0, 0.0), (50.0, 1.0)):
        nn.init.constant_(gate.joint.bias, bias)
        assert torch.allclose(gate(skip, coarse), share * skip, atol=1e-6)
    nn.init.zeros_(gate.joint.bias)
    flat, level = torch.ones(1, 4, 8, 8), torch.ones(1, 6, 4, 4)
    summed = gate.of_skip.weight.sum((1, 2, 3)) + gate.of_coarse.weight.sum((1, 2, 3)) + gate.of_coarse.bias
    expected = torch.sigmoid((summed.relu() * gate.joint.weight[0, :, 0, 0]).sum())
    assert torch.allclose(gate(flat, level), expected.expand(1, 4, 8, 8), atol=1e-6)


@pytest.mark.exhaustive
def test_gates_learn_and_are_the_u_net_s_alone(tmp_path: Path) -> None:
    small = [*SMALL, "model.encoder=resnet18", "epochs=2", "model.attention=gate", "augmentation.defect_crops=1"]
    resolved, training_data = recipe.load("unet-attention", small), data(tmp_path, 8, 4)
    model = network(resolved)
    before = {name: value.clone() for name, value in model.named_parameters() if ".gate." in name}
    fitted = loop.fit(model, fit_settings(resolved, training_data, tmp_path / "x"))
    assert np.isfinite([row["val_loss"] for row in fitted.history]).all()
    now = dict(model.named_parameters())
    assert len(before) == 4 * 5
    assert all(not torch.equal(now[name], value) for name, value in before.items())
    with pytest.raises(CurateError, match="attention 'gate' is for architecture Unet, not FPN; allowed: none, scse"):
        network(recipe.load("unet-attention", ["model.architecture=FPN", "model.attention=gate"]))


# --- two stages -----------------------------------------------------------------------------------------------------


def test_two_stage_is_a_gate_and_a_u_net() -> None:
    model = network(recipe.load("two-stage"))
    assert count(model.gate) == 2_223_872 + 2 * 1281  # MobileNetV2, one map a class
    assert count(model) - count(model.gate) == count(network(recipe.load("unet-resnet")))
    calls = shapes(model.gate.encoder, 64, nn.Conv2d)
    assert calls[0] == (32, 32, 32)
    with torch.inference_mode():
        for size in ((256, 1600), (64, 64), (96, 32)):
            assert model.eval()(torch.rand(1, 3, *size)).shape == (1, 2, *size)


def test_the_gate_multiplies_probabilities() -> None:
    a, b = torch.randn(2, 5, 7, dtype=torch.float32) * 4
    assert torch.allclose(_gate.logit_product(a, b).sigmoid(), a.sigmoid() * b.sigmoid(), atol=1e-6)
    far = _gate.logit_product(torch.tensor([80.0, -80.0, 80.0]), torch.tensor([80.0, 80.0, -90.0]))
    assert torch.allclose(far, torch.tensor([80 - float(np.log(2)), -80.0, -90.0]), atol=1e-4)
    model = network(recipe.load("two-stage", ["model.options.crops=0.0"])).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        alone = model.segmentation_head(model.decoder(model.encoder(images))).sigmoid()
        gate = model.gate(images).sigmoid()[:, :, None, None]
        assert torch.allclose(model(images).sigmoid(), gate * alone, atol=1e-5)


def test_what_the_gate_holds_to_be_clean_ends_there() -> None:
    model, looked = network(recipe.load("two-stage")).eval(), []
    model.encoder.register_forward_hook(lambda *_: looked.append(1))
    nn.init.zeros_(model.gate.places[1].weight)
    with torch.inference_mode():
        for bias, expected in ((-10.0, 0), (0.0, 1)):
            nn.init.constant_(model.gate.places[1].bias, bias)
            logits = model(torch.rand(1, 3, 64, 64)).sigmoid()
            assert len(looked) == expected
            assert logits.max() <= torch.tensor(bias).sigmoid() + 1e-6
    nn.init.constant_(model.gate.places[1].bias, -10.0)
    model.train()(torch.rand(2, 3, 64, 64))
    assert len(looked) == 2  # in training both always learn


SMALL_GATE = ("model.encoder=resnet18", 'model.options={"gate": "resnet18"}')


@pytest.mark.exhaustive
def test_the_gate_learns_whether_a_class_is_anywhere() -> None:
    model = network(recipe.load("two-stage", SMALL_GATE)).train()
    images, target = torch.rand(4, 3, 64, 64), torch.zeros(4, 2, 64, 64)
    target[0, 0, 8:40, 8:40] = target[1, 1, 20:60, 4:50] = 1
    images += 2 * target[:, :1] - 2 * target[:, 1:]
    optimiser = torch.optim.Adam(model.gate.parameters(), lr=1e-3)
    for _ in range(12):
        model(images)
        cost = model.side_cost(target)
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
    gate_logits = model.gate(images).sigmoid()
    assert torch.equal(gate_logits > 0.5, target.amax((2, 3)).bool())


@pytest.mark.exhaustive
def test_the_loop_asks_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step; what the gate remembers between forward and cost is in no checkpoint, and no shadow."""
    asked: list[torch.Size] = []
    parameters = _gate.GatedSegmenter.side_cost
    monkeypatch.setattr(
        _gate.GatedSegmenter, "side_cost", lambda parameter, t: (asked.append(t.shape), parameters(parameter, t))[1]
    )
    resolved = recipe.load("two-stage", [*SMALL, *SMALL_GATE, "ema=0.5", "epochs=1"])
    loop.fit(network(resolved), fit_settings(resolved, data(tmp_path, 4, 2), tmp_path / "x"))
    assert asked == [(4, 2, 64, 64)]
    tensors, state = checkpoint.load(tmp_path / "x" / loop.LAST)
    assert state["number"] == 1
    assert {key.split(".")[1] for key in tensors if key.startswith("shadow.")} == {
        *("gate", "encoder", "decoder", "segmentation_head")
    }


SLOWEST = pytest.param("resnet50v2-two-phase", marks=pytest.mark.exhaustive)

# --- a few steps of each, through the loop --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shuffledefectnet", "cnn-4conv-6dense", "cnn-4conv-6dense-fixed", SLOWEST])
def test_trains_through_the_loop(name: str, tmp_path: Path) -> None:
    phases = [{"epochs": 1, "train": "head"}, {"epochs": 1, "train": 50, "lr": 1e-4}]
    extra = [f"phases={json.dumps(phases)}"] if name.endswith("two-phase") else ["epochs=2"]
    resolved = recipe.load(name, [*SMALL, *extra])
    training_data = data(tmp_path, 8, 4, "classification")
    fitted = loop.fit(
        network(resolved, len(training_data.outputs)), fit_settings(resolved, training_data, tmp_path / "x")
    )
    assert len(fitted.history) == 2
    assert np.isfinite([row["val_loss"] for row in fitted.history]).all()
    assert not fitted.skipped
