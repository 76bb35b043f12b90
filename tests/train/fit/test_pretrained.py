"""Training from the package's weights: the same features as timm's network, in colour and grey, or one clear line."""

from __future__ import annotations

import pytest
import torch

from curate import pretrained as packages
from curate.errors import CurateError
from train import architectures, recipe
from train.fit import pretrained
from train.recipe import Recipe

NETWORKS = [
    ("segmentation", "Unet", "tu-tf_efficientnet_lite0"),
    ("classification", "encoder-head", "tu-tf_efficientnet_lite0"),
    ("classification", "timm-head", "tf_efficientnet_lite0"),
]


def resolved(task: str, architecture: str, encoder: str, *more: str) -> Recipe:
    name = {"segmentation": "unet-lite0", "classification": "lite0-fast"}[task]
    return recipe.load(name, [f"model.architecture={architecture}", f"model.encoder={encoder}", *more])


@pytest.mark.parametrize(("task", "architecture", "encoder"), NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_gives_timm_s_features(task: str, architecture: str, encoder: str, channels: int) -> None:
    import timm

    settings = resolved(task, architecture, encoder)
    module = architectures.build(task, settings.model, channels, 2)
    start = pretrained.load_into(module, settings.model, channels)
    assert start.mark == packages.PACKAGES["tf_efficientnet_lite0"].sha256
    assert start.frozen == ()
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(packages.state_dict_of("tf_efficientnet_lite0"))
    images = torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        last = module.eval().encoder(images)
        last = last[-1] if isinstance(last, list | tuple) else last
        body = whole.blocks(whole.bn1(whole.conv_stem(images.expand(-1, 3, -1, -1))))
        reference = whole.bn2(whole.conv_head(body)) if last.shape[1] == 1280 else body
    assert torch.allclose(last, reference, atol=1e-3)


@pytest.mark.parametrize("recipe_name", ["unet-lite0", "lite0-fast"])
def test_other_encoders_and_scales_are_one_clear_line(recipe_name: str) -> None:
    for encoder in ("resnet18", "timm-tf_efficientnet_lite0"):
        settings = recipe.load(recipe_name, [f"model.encoder={encoder}"])
        with pytest.raises(CurateError, match=rf"do not fit encoder '{encoder}'.*; allowed: tu-tf_efficientnet_lite0,"):
            pretrained.mark_of(settings.model)
    with pytest.raises(CurateError, match=r"input\.scale 'tf', not 'imagenet'; add: --set input\.scale=tf"):
        recipe.load(recipe_name, ["input.scale=imagenet"])
    settings = recipe.load("simple-cnn", ["model.weights=package", "input.scale=tf"])
    with pytest.raises(CurateError, match="do not fit encoder '' of architecture 'simple-cnn'"):
        pretrained.mark_of(settings.model)
