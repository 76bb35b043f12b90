"""Any image model of timm, whole, the mean over its last map, and a head: linear, or with a `hidden` layer.

`encoder-head` takes timm's feature extractors, which end before a network's last norm. Pre-activation ResNets (V2) need
that norm: without it their last map is an unscaled, unrectified sum of branches.
"""

from __future__ import annotations

from typing import Any

from curate.errors import unknown
from train.recipe import Model


def build(config: Model, channels: int, outputs: int, *, hidden: int = 0) -> Any:
    """Build an encoder of timm with a head.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        hidden: the width of a dense layer before the logits; 0 has none.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from train.architectures import _parts

    whole = encoder(config, channels)
    return _parts.Headed(whole, _parts.pooled_head(whole.num_features, outputs, config.dropout, hidden))


def encoder(config: Model, channels: int, pretrained: bool = False) -> Any:
    """Return an encoder that gives the last feature map, after the last norm."""
    import timm

    if not timm.is_model(config.encoder):
        raise unknown("timm model", config.encoder, timm.list_models(f"*{config.encoder.partition('_')[0]}*")[:20])
    return timm.create_model(config.encoder, pretrained=pretrained, in_chans=channels, num_classes=0, global_pool="")
