"""The two parts of `two_stage`, and how they are joined. Imported only where a network is built: it needs torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

CLEAN = 0.005  # a gate that gives no class more than this ends the look: no threshold is as low


class ClassGate(nn.Module):  # type: ignore[misc]
    """Whether a class is anywhere: the likeliest place counts, so that a strip's length does not dilute a crack."""

    def __init__(self, encoder: Any, outputs: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.places = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(encoder.out_channels[-1], outputs, 1))

    def forward(self, batch: Any) -> Any:
        half = functional.interpolate(batch, scale_factor=0.5, mode="bilinear", antialias=True)
        side = [max(32, -(-length // 32) * 32) for length in half.shape[2:]]
        padded = functional.pad(half, (0, side[1] - half.shape[3], 0, side[0] - half.shape[2]))
        return self.places(self.encoder(padded)[-1]).amax((2, 3))


class GatedSegmenter(nn.Module):  # type: ignore[misc]
    """Logits of p(gate) * p(segmenter). The parts of smp's segmenter keep their names: weights are loaded by them."""

    def __init__(self, gate: Any, segmenter: Any) -> None:
        super().__init__()
        self.gate = gate
        self.encoder, self.decoder = segmenter.encoder, segmenter.decoder
        self.segmentation_head = segmenter.segmentation_head
        self._said: Any = None

    def forward(self, batch: Any) -> Any:
        said = self.gate(batch)
        self._said = said if self.training else None
        if not self.training and _clean(said):
            return said[:, :, None, None].expand(-1, -1, *batch.shape[2:])  # a bound: the product lies below it
        return product(said[:, :, None, None], self.segmentation_head(self.decoder(self.encoder(batch))))

    def side_cost(self, target: Any) -> Any:
        """What the gate's own answers cost, after a forward in training: is the class in the crop, anywhere?"""
        said, self._said = self._said, None
        return functional.binary_cross_entropy_with_logits(said.float(), target.amax((2, 3)))


def product(a: Any, b: Any) -> Any:
    """The logit of sigmoid(a) * sigmoid(b): 1 / ((1 + e^-a)(1 + e^-b)), without leaving logits."""
    a, b = torch.broadcast_tensors(a.float(), b.float())
    return -torch.logsumexp(torch.stack([-a, -b, -a - b]), 0)


def _clean(said: Any) -> bool:
    """Never while a network is exported: a graph holds one way for all images."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return bool((said.sigmoid() < CLEAN).all())
