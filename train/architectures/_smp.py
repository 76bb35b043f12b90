"""Encoders and segmentation networks of segmentation_models_pytorch, by name."""

from __future__ import annotations

import inspect
from typing import Any

from curate.errors import CurateError, unknown
from train.recipe import Model


def names() -> list[str]:
    """Return the names of smp's segmentation networks."""
    import segmentation_models_pytorch as smp

    return sorted(smp.MODEL_ARCHITECTURES_MAPPING)


def encoder(config: Model, channels: int, depth: int = 5) -> Any:
    """Return an encoder of smp or timm with random weights, whose last map has a stride of 2 to the `depth`."""
    from segmentation_models_pytorch.encoders import get_encoder

    _check_encoder(config.encoder)
    return get_encoder(config.encoder, in_channels=channels, depth=depth, weights=None)


def segmenter(config: Model, channels: int, outputs: int) -> Any:
    """Return a segmentation network: one logit map per class, as large as the image."""
    import segmentation_models_pytorch as smp

    _check_encoder(config.encoder)
    kind = smp.MODEL_ARCHITECTURES_MAPPING[config.architecture.lower()]
    extra: dict[str, Any] = dict(config.options)
    if config.attention == "scse":
        extra["decoder_attention_type"] = config.attention
    _check_options(config.architecture, kind, extra)
    gates = config.attention == "gate"
    if gates and kind is not smp.Unet:
        raise CurateError(f"attention 'gate' is for architecture Unet, not {config.architecture}; allowed: none, scse")
    try:
        network = kind(config.encoder, encoder_weights=None, in_channels=channels, classes=outputs, **extra)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise CurateError(f"{config.architecture} with encoder {config.encoder} cannot be built: {reason}") from None
    return _gated(network) if gates else network


def _gated(network: Any) -> Any:
    from train.architectures import _attention

    return _attention.add_attention_gates(network)


def _check_options(name: str, kind: Any, options: dict[str, Any]) -> None:
    """Raise CurateError for an unknown option; smp itself ignores it."""
    allowed = [key for key in inspect.signature(kind.__init__).parameters if key.startswith(("encoder_d", "decoder_"))]
    for key in options:
        if key not in allowed:
            raise unknown(f"option of architecture {name}", key, allowed)


def _check_encoder(name: str) -> None:
    from segmentation_models_pytorch.encoders import encoders

    if name.startswith("tu-"):
        import timm

        if not timm.is_model(name[3:]):
            raise unknown("timm encoder", name[3:], timm.list_models(f"*{name[3:].partition('_')[0]}*")[:20])
    elif name not in encoders:
        close = [known for known in encoders if known[:4] == name[:4]] or [
            "resnet34",
            "mobilenet_v2",
            "efficientnet-b0",
        ]
        raise unknown("encoder", name, close, "Encoders of timm are allowed, too, as tu-NAME")
