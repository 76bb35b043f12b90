"""Any encoder of smp or timm (`tu-NAME`), the mean over its last map, and a head: linear, or with a `hidden` layer."""

from __future__ import annotations

from typing import Any

from train.recipe import Model


def build(config: Model, channels: int, outputs: int, *, hidden: int = 0) -> Any:
    from train.architectures import _parts, _smp

    encoder = _smp.encoder(config, channels)
    return _parts.Headed(encoder, _parts.pooled_head(encoder.out_channels[-1], outputs, config.dropout, hidden))
