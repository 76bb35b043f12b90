"""The parts of `two_stage`, and their product. Imported only where a network is built: it needs torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

CLEAN = 0.005  # an image in which the gate gives every class less is clean: no threshold is as low


class ClassGate(nn.Module):  # type: ignore[misc]
    """Classify whether a class is anywhere: the maximum over positions, so that a strip's length does not matter."""

    def __init__(self, encoder: Any, outputs: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.places = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(encoder.out_channels[-1], outputs, 1))

    def forward(self, batch: Any) -> Any:
        half = functional.interpolate(batch, scale_factor=0.5, mode="bilinear", antialias=True)
        side = [max(32, -(-length // 32) * 32) for length in half.shape[2:]]
        padded = functional.pad(half, (0, side[1] - half.shape[3], 0, side[0] - half.shape[2]))
        return self.places(self.encoder(padded)[-1]).amax((2, 3))


class CellGate(nn.Module):  # type: ignore[misc]
    """Classify each cell of `cell` pixels, at half the resolution: is a class anywhere in it?"""

    def __init__(self, encoder: Any, outputs: int, dropout: float, cell: int) -> None:
        super().__init__()
        self.encoder, self.cell = encoder, cell
        self.places = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(encoder.out_channels[-1], outputs, 1))

    def forward(self, batch: Any) -> Any:
        batch = _up_to(self.cell, batch, "replicate")
        return self.places(self.encoder(functional.avg_pool2d(batch, 2))[-1])

    def target(self, masks: Any) -> Any:
        """Return the cells' target (N, C, h, w) from masks (N, C, H, W)."""
        return functional.max_pool2d(_up_to(self.cell, masks, "constant"), self.cell)


def _up_to(multiple: int, batch: Any, mode: str) -> Any:
    below, right = (-length % multiple for length in batch.shape[2:])
    return functional.pad(batch, (0, right, 0, below), mode=mode) if below or right else batch


class Segmenter(nn.Module):  # type: ignore[misc]
    """The segmenter alone."""

    def __init__(self, encoder: Any, decoder: Any, segmentation_head: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = encoder, decoder, segmentation_head

    def forward(self, batch: Any) -> Any:
        return self.segmentation_head(self.decoder(self.encoder(batch)))


class GatedSegmenter(nn.Module):  # type: ignore[misc]
    """Logits of p(gate) * p(segmenter). The parts of smp's segmenter keep their names, by which weights are loaded."""

    def __init__(self, gate: Any, segmenter: Any) -> None:
        super().__init__()
        self.gate = gate
        self.encoder, self.decoder = segmenter.encoder, segmenter.decoder
        self.segmentation_head = segmenter.segmentation_head
        self._gate_logits: Any = None

    def forward(self, batch: Any) -> Any:
        gate_logits = self.gate(batch)
        self._gate_logits = gate_logits if self.training else None
        if gate_logits.ndim == 4:
            gate_logits = gate_logits.amax((2, 3))
        if not self.training and _is_clean(gate_logits):
            return gate_logits[:, :, None, None].expand(-1, -1, *batch.shape[2:])  # an upper bound of the product
        return logit_product(gate_logits[:, :, None, None], self.segment(batch))

    @property
    def segment(self) -> Any:
        """The segmenter without the gate; its parts are shared."""
        part = Segmenter(self.encoder, self.decoder, self.segmentation_head)
        part.training = self.training  # its own flag alone: `train()` would wake frozen norms
        return part

    def side_cost(self, target: Any) -> Any:
        """Return the gate's own loss after a forward pass in training: is the class anywhere in the crop, or cell?"""
        gate_logits, self._gate_logits = self._gate_logits, None
        shown = self.gate.target(target) if gate_logits.ndim == 4 else target.amax((2, 3))
        return functional.binary_cross_entropy_with_logits(gate_logits.float(), shown)


def logit_product(a: Any, b: Any) -> Any:
    """Return the logit of sigmoid(a) * sigmoid(b) = 1 / ((1 + e^-a)(1 + e^-b)), computed on logits."""
    a, b = torch.broadcast_tensors(a.float(), b.float())
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), 0)


def _is_clean(gate_logits: Any) -> bool:
    """Return whether all images are clean; never while exporting, since a graph has one path for all images."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return bool((gate_logits.sigmoid() < CLEAN).all())
