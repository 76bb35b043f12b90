"""A fast classifier at half the resolution, and a U-Net whose probabilities it multiplies: a soft gate.

With `crops`, the gate classifies cells of 64 pixels, and only the places that it flags are cropped and sent to the
U-Net, which most images of production never see. An export is two files, which `curate run` plays like `predict`
(`train/predict/stages.py`). Without, the gate classifies whole images, of which only clean ones skip the U-Net; and
exported, none: a graph has one path.
"""

from __future__ import annotations

from typing import Any

from train.recipe import Model

TASK = "segmentation"
CELL = 64  # pixels of a cell's side: the gate's encoder reduces half the resolution by 32


def build(config: Model, channels: int, outputs: int, *, gate: str = "mobilenet_v2", crops: float = 0.0) -> Any:
    """Build the gate and the segmenter behind it.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        gate: the gate's encoder.
        crops: the gate's probability from which a place is cropped and sent to the U-Net; 0 sends whole images.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from train.architectures import _gate, _smp

    if not 0 <= crops < 1:
        raise ValueError(f"crops is {crops}; it must be at least 0 and below 1")
    encoder = _smp.encoder(gate_config(config, gate), channels)
    fast = (
        _gate.CellGate(encoder, outputs, config.dropout, CELL)
        if crops
        else _gate.ClassGate(encoder, outputs, config.dropout)
    )
    plain = config.model_copy(update={"architecture": "Unet", "options": {}})
    return _gate.GatedSegmenter(fast, _smp.segmenter(plain, channels, outputs))


def gate_config(config: Model, gate: str = "mobilenet_v2") -> Model:
    """Return the gate's model config, by which its starting weights are found."""
    return config.model_copy(update={"encoder": config.options.get("gate", gate), "options": {}})


def flag_of(config: Model) -> float | None:
    """Return the probability from which a place is cropped and sent to the U-Net; None of any other network."""
    if config.architecture.replace("-", "_") != "two_stage":
        return None
    crops = config.options.get("crops")
    return crops if isinstance(crops, float) and crops > 0 else None
