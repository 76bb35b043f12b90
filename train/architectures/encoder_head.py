"""Any encoder of smp or timm (`tu-NAME`), the mean over its last map, and a head: linear, or with a `hidden` layer."""

from __future__ import annotations

from typing import Any

from train.recipe import Model


def build(config: Model, channels: int, outputs: int, *, hidden: int = 0) -> Any:
    """Build an encoder of segmentation_models_pytorch with a head.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        hidden: the width of a dense layer before the logits; 0 has none.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from train.architectures import _parts, _smp

    encoder = _smp.encoder(config, channels)
    return _parts.Headed(encoder, _parts.pooled_head(encoder.out_channels[-1], outputs, config.dropout, hidden))
