"""Every recipe that ships builds, has the layers it promises, and learns; what is wrong in one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from curate.errors import CurateError
from tests.train.conftest import data, tiny
from train import architectures, losses, recipe
from train.data import dataset
from train.fit import loop
from train.recipe import Recipe

PARAMETERS = {  # of two outputs, by the published sizes of their parts
    "unet-resnet": 21_284_672 + 3_151_552 + 290,  # ResNet-34, decoder, head
    "simple-cnn": 9 * (3 * 32 + 32 * 64 + 64 * 128) + 3 * (32 + 64 + 128) + 2 * 129,
    "mobilenetv2-fast": 2_223_872 + 2 * 1281,
    "mobilenetv2-two-phase": 2_223_872 + 1281 * 256 + 2 * 257,
    "resnet50-weighted": 23_508_032 + 2 * 2049,
}


def network(resolved: Recipe, outputs: int = 2) -> Any:
    torch.manual_seed(0)
    return architectures.build(resolved.task, resolved.model, resolved.input.channels, outputs)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_builds_and_learns(name: str) -> None:
    resolved = recipe.load(name, ["model.weights=none"])
    model = network(resolved)
    count = sum(part.numel() for part in model.parameters())
    assert count == PARAMETERS.get(name, count)
    images = torch.rand(4, 3, 64, 64)
    if resolved.task == "segmentation":
        target = torch.zeros(4, 2, 64, 64)
        target[:, 0, 10:30, 10:40] = 1
        images[:, :, 10:30, 10:40] += 1
    else:
        target = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2)
        images[::2] += 1
    single = resolved.task == "classification"
    terms = [(t.share, losses.build(t.name, t.options, single=single, counts=[2, 2], total=4)) for t in resolved.loss]
    loss_of, optimiser = losses.weighted_sum(terms), torch.optim.Adam(model.parameters(), lr=1e-3)
    costs = []
    for _ in range(30):  # some begin slowly; most need three steps
        logits = model(images)
        assert logits.shape == target.shape
        costs.append(loss_of(logits, target))
        if costs[-1] < 0.8 * costs[0]:
            break
        optimiser.zero_grad()
        costs[-1].backward()
        optimiser.step()
    assert costs[-1] < 0.8 * costs[0]


def test_what_the_published_phases_train() -> None:
    resolved = recipe.load("resnet50-weighted")
    model = network(resolved)
    loop._trainable(model, resolved.parts[0])
    stages = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert stages == {"layer4", "3"}  # of the encoder, and the head's linear layer
    assert recipe.prior_corrections(resolved) == ["sampler 'weighted'"]
    first, second = recipe.load("mobilenetv2-two-phase").parts
    model = network(recipe.load("mobilenetv2-two-phase"))
    loop._trainable(model, first)
    assert {n.split(".")[0] for n, parameter in model.named_parameters() if parameter.requires_grad} == {"head"}
    loop._trainable(model, second)
    layers = {n.rpartition(".")[0] for n, parameter in model.named_parameters() if parameter.requires_grad}
    assert (len(layers), second.lr) == (36, 1e-4)


def test_attention_is_there() -> None:
    names = {type(part).__name__ for part in network(recipe.load("unet-attention")).modules()}
    assert "SCSEModule" in names
    assert "SCSEModule" not in {type(part).__name__ for part in network(recipe.load("unet-resnet")).modules()}


def test_other_architectures_and_encoders_by_name() -> None:
    for name, encoder in (("FPN", "mobilenet_v2"), ("DeepLabV3Plus", "resnet18"), ("Segformer", "tu-resnet10t")):
        resolved = recipe.load("unet-resnet", [f"model.architecture={name}", f"model.encoder={encoder}"])
        assert network(resolved, 3).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=1"], "unknown key 'optimizer' .did you mean 'optimiser'"),
        (["optimiser.rate=1"], "unknown key 'optimiser.rate'.*allowed: lr, momentum, name, weight_decay"),
        (["loss.5.share=2"], "allowed: 0, 1"),
        (["loss.0.name=dise"], "unknown loss 'dise'.*did you mean 'dice'"),
        (["batch=0"], "batch: .*it is 0"),
        (["batch"], "not key=value"),
        (["batch.size=1"], "'batch' is a single value"),
        (["input.height=100"], "multiple of 32"),
        (['phases=[{"epochs": 1, "train": 0}]'], "phases.0.train: must be all, head, .* at least 1 .it is 0"),
        (['phases=[{"epochs": 1, "train": true}]'], "at least 1 .it is True"),
        (['phases=[{"epochs": 1, "train": "tail"}]'], "must be all, head, .*it is 'tail'"),
        (["optimiser.lr=1e38"], "optimiser.lr: .*less than or equal to 100 .it is 1e.38"),
        (["optimiser.weight_decay=1e38"], "optimiser.weight_decay: .*equal to 100"),
        (['phases=[{"epochs": 1, "lr": 1e38}]'], "phases.0.lr: .*equal to 100"),
        (["sampler.name=weighted", "loss.0.name=class_balanced"], "'weighted' and loss 'class_balanced'"),
        (["sampler.name=repeat-factor", 'loss.0.options={"weights": "inverse"}'], "allow-double-prior"),
        (['loss=[{"name": "class_balanced"}, {"name": "balanced_softmax"}]'], "'class_balanced' and loss 'balanced"),
    ],
)
def test_what_is_wrong_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(CurateError, match=message):
        recipe.load("unet-resnet", overrides)


def test_two_corrections_where_they_are_wanted() -> None:
    asked = ["sampler.name=weighted", "loss.0.name=class_balanced", "allow_double_prior=true"]
    assert len(recipe.prior_corrections(recipe.load("unet-resnet", asked))) == 2


def test_unknown_names_of_networks() -> None:
    for override, message in (
        ("model.architecture=Unett", "did you mean 'unet'"),
        ("model.encoder=resnet35", "allowed: .*resnet34.*as tu-NAME"),
        ("model.encoder=tu-resnet35", "unknown timm encoder"),
        ("model.architecture=simple-cnn", "use it with task classification"),
    ):
        with pytest.raises(CurateError, match=message):
            network(recipe.load("unet-resnet", [override]))
    with pytest.raises(CurateError, match="unknown option of architecture FPN 'decoder_attention_type'"):
        network(recipe.load("unet-resnet", ["model.architecture=FPN", "model.attention=scse"]))


def test_later_options_that_are_off_change_no_key() -> None:
    """Models and trials that were made before these options existed are found again."""
    values = recipe.load("unet-lite0").values_for_key(None)
    assert "resolution" not in values["input"]
    assert "independent" not in values
    assert recipe.load("unet-lite0", ["independent=true"]).values_for_key(None)["independent"] is True


def test_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text((recipe.FOLDER / "simple-cnn.toml").read_text() + "\n[predict]\nthreshold = 0.3\n")
    assert recipe.load(str(file)).predict.threshold == 0.3
    file.write_text("task = 'segmentation'\nmodell = 1\n")
    with pytest.raises(CurateError, match=r"mine.toml: unknown key 'modell' .did you mean 'model'"):
        recipe.load(str(file))
    with pytest.raises(CurateError, match=r"unknown recipe 'unet'.*simple-cnn"):
        recipe.load("unet")


def test_the_size_follows_the_images(tmp_path: Path) -> None:
    items = data(tmp_path, 4).train
    assert (dataset.resolved_input(recipe.load("unet-resnet"), items).width, tiny().input.width) == (64, 64)
    strips = [type(item)(item.id, item.path, 1600, 256, item.label) for item in items]
    crop = dataset.resolved_input(recipe.load("unet-resnet"), strips)
    assert (crop.height, crop.width) == (256, 512)
    whole = dataset.resolved_input(recipe.load("mobilenetv2-fast"), strips)
    assert (whole.height, whole.width) == (96, 576)  # 6.25 to 1 as nearly as multiples of 32 allow, 224 x 224 pixels


@pytest.mark.parametrize(
    "change",
    [
        {"input": {"height": 1 << 40}},
        {"loss": [{"name": "of two\nlines"}]},
        {"task": "segmentation\ud800"},
    ],
)
def test_a_hostile_recipe_is_one_line(change: dict[str, Any]) -> None:
    values = recipe.load("simple-cnn").model_dump(mode="json")
    with pytest.raises(CurateError) as caught:
        recipe.validate(values | change, "manifest.json: ")
    assert "\n" not in str(caught.value)
