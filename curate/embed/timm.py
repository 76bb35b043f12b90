"""Any timm model, from the hub or a local weights file; windows are prepared as for the training of its weights."""

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

REMEDY = "Give a local file: --set weights=PATH"


def build(
    *,
    model: str = "vit_small_patch14_dinov2.lvd142m",
    weights: str = "",
    size: int | None = None,
    tile: Tile = "auto",
    overlap: float = 0.25,
    bf16: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Encoder:
    """Build the encoder.

    Args:
        model: the name of a timm model.
        weights: a file of weights; without it they come from the hub.
        size: the side in pixels to which windows are resized; without it the size that the weights were trained with.
        tile: the side of a tile in pixels, `auto` or `none`.
        overlap: the share by which tiles overlap, from 0 to 0.9.
        bf16: compute in bfloat16 on a CPU: twice as fast where it has AVX-512 BF16, at a cosine of 0.997.
        device: `auto` takes a GPU where there is one.

    Returns:
        The encoder.
    """
    from timm.data import resolve_model_data_config

    check_tiles(tile, overlap)
    module = headless(model, weights, size)
    config = resolve_model_data_config(module)
    side = size or int(config["input_size"][-1])
    digest = sha256_of(Path(weights).expanduser()) if weights else _network.digest_of(module)
    key = short_key(_network.STEP, model, digest, side, config["mean"], config["std"], tile, overlap, bf16)
    dim, make = _network.dim_of(module, side), partial(headless, model, weights, size)
    place = device_of(device)
    name = f"timm-{model.replace('/', '_').replace(':', '_')}"
    return NetworkEncoder(name, key, dim, tile, overlap, side, config["mean"], config["std"], make, place, bf16)


def headless(model: str, weights: str, size: int | None) -> Any:
    """The model without its classification layer, with the weights of the file or the hub."""
    import timm

    options: dict[str, Any] = {"num_classes": 0} | ({"img_size": size} if size and _takes_size(model) else {})
    if not timm.is_model(model) and not model.startswith(("hf-hub:", "hf_hub:")):
        near = timm.list_models(f"*{model.partition('_')[0]}*")[:20] or timm.list_modules()
        raise unknown("timm model", model, near, "All of them: timm.list_models()")
    if weights:
        return _filled(timm.create_model(model, pretrained=False, **options), weights, model)
    try:
        return timm.create_model(model, pretrained=True, **options)
    except (OSError, RuntimeError) as error:  # the hub's client wraps network errors in these
        reason = str(error).strip().partition("\n")[0][:120]
        raise CurateError(f"the weights of {model} cannot be fetched ({reason}). {REMEDY}") from None


def _takes_size(model: str) -> bool:
    return model.startswith(("vit", "deit", "swin", "eva", "beit"))


def _filled(module: Any, weights: str, model: str) -> Any:
    """Load the weights; all of the model's must be in the file, and those of the removed head may be."""
    state = weights_of(weights)
    try:
        missing = module.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise CurateError(f"{weights} does not fit timm's {model}: {' '.join(str(error).split())[:160]}") from None
    if missing:
        raise CurateError(f"{weights} does not fit timm's {model}: it lacks {', '.join(missing[:3])}")
    return module
