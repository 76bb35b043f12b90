"""A fast classifier at half the resolution, and a U-Net whose probabilities it multiplies: a soft gate.

The gate classifies whether each class is anywhere in the image. Images that it finds clean (most of production) skip
the U-Net. Exported to ONNX, the U-Net runs on every image: a graph has one path.
"""

from __future__ import annotations

from typing import Any

from train.recipe import Model

TASK = "segmentation"


def build(config: Model, channels: int, outputs: int, *, gate: str = "mobilenet_v2") -> Any:
    """Build the gate and the segmenter behind it.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        gate: the gate's encoder.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from train.architectures import _gate, _smp

    fast = _gate.ClassGate(_smp.encoder(gate_config(config, gate), channels), outputs, config.dropout)
    plain = config.model_copy(update={"architecture": "Unet", "options": {}})
    return _gate.GatedSegmenter(fast, _smp.segmenter(plain, channels, outputs))


def gate_config(config: Model, gate: str = "mobilenet_v2") -> Model:
    """Return the gate's model config, by which its starting weights are found."""
    return config.model_copy(update={"encoder": config.options.get("gate", gate), "options": {}})
