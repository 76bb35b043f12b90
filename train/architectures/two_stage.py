"""A fast classifier that looks at half the resolution, and a U-Net whose probabilities it multiplies: a soft gate.

The gate says for each class whether it is anywhere in the picture. An image that it holds to be clean (in production
most are) is done: the U-Net does not look at it. Exported to ONNX, the U-Net looks at every image: a graph has one way.
"""

from __future__ import annotations

from typing import Any

from train.recipe import Model

TASK = "segmentation"


def build(config: Model, channels: int, outputs: int, *, gate: str = "mobilenet_v2") -> Any:
    from train.architectures import _gate, _smp

    fast = _gate.ClassGate(_smp.encoder(gate_of(config, gate), channels), outputs, config.dropout)
    plain = config.model_copy(update={"architecture": "Unet", "options": {}})
    return _gate.GatedSegmenter(fast, _smp.segmenter(plain, channels, outputs))


def gate_of(config: Model, gate: str = "mobilenet_v2") -> Model:
    """The gate as a model of its own: where its weights come from."""
    return config.model_copy(update={"encoder": config.options.get("gate", gate), "options": {}})
