"""A torchvision model with weights from a local file (a state dict); no network access."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from curate.devices import device_of, weights_of
from curate.embed import _network
from curate.embed._base import Encoder, Tile, check_tiles
from curate.embed._network import NetworkEncoder
from curate.errors import CurateError, unknown
from curate.hashing import sha256_of, short_key

SCALES = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tf": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def build(
    *,
    weights: str = "",
    model: str = "mobilenet_v2",
    scale: Literal["imagenet", "tf"] = "imagenet",
    size: int = 192,
    tile: Tile = "auto",
    overlap: float = 0.25,
    bf16: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Encoder:
    """Build the encoder.

    Args:
        weights: the file of weights.
        model: the name of a torchvision model.
        scale: the scaling of the input: by ImageNet's mean and deviation, or `tf` (x / 127.5 - 1).
        size: the side in pixels to which windows are resized.
        tile: the side of a tile in pixels, `auto` or `none`.
        overlap: the share by which tiles overlap, from 0 to 0.9.
        bf16: compute in bfloat16 on a CPU: twice as fast where it has AVX-512 BF16, at a cosine of 0.997.
        device: `auto` takes a GPU where there is one.

    Returns:
        The encoder.
    """
    check_tiles(tile, overlap)
    if not weights:
        raise CurateError("torchvision_file needs the weights of the model in a local file: --set weights=PATH")
    module = headless(model, weights)
    mean, std = SCALES[scale]
    key = short_key(_network.STEP, model, sha256_of(Path(weights).expanduser()), scale, size, tile, overlap, bf16)
    dim = _network.dim_of(module, size)
    place = device_of(device)
    make = partial(headless, model, weights)
    return NetworkEncoder(f"torchvision_file-{model}", key, dim, tile, overlap, size, mean, std, make, place, bf16)


def headless(model: str, weights: str) -> Any:
    """The model with these weights, without its classification layer."""
    from torchvision import models

    if model not in models.list_models(models):
        raise unknown("torchvision model", model, models.list_models(models))
    module = models.get_model(model, weights=None)
    try:
        module.load_state_dict(weights_of(weights), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise CurateError(f"{weights} does not fit torchvision's {model}: {reason}") from None
    return without_head(module)


def without_head(module: Any) -> Any:
    """Replace the last linear layer of the head by the identity."""
    from torch import nn

    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise CurateError("the model has no linear layer at its end; choose another")
    parent, _, last = linear[-1].rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
    return module
