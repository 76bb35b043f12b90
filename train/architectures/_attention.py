"""Attention gates on a U-Net's skip connections. Imported only where a network is built: it needs torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class AttentionGate(nn.Module):  # type: ignore[misc]
    """Weigh each position of a skip connection by the coarser map that joins it (Oktay et al. 2018)."""

    def __init__(self, skip: int, coarse: int) -> None:
        super().__init__()
        inner = max(1, skip // 2)
        self.of_skip = nn.Conv2d(skip, inner, 2, stride=2, bias=False)  # down to the coarser map's size
        self.of_coarse = nn.Conv2d(coarse, inner, 1)
        self.joint = nn.Conv2d(inner, 1, 1)

    def weights(self, skip: Any, coarse: Any) -> Any:
        """Return the attention weights (N, 1, H, W), between 0 and 1."""
        joined = self.of_coarse(coarse)
        joined = joined + functional.interpolate(self.of_skip(skip), size=joined.shape[2:], mode="bilinear")
        alpha = torch.sigmoid(self.joint(functional.relu(joined)))
        return functional.interpolate(alpha, size=skip.shape[2:], mode="bilinear")

    def forward(self, skip: Any, coarse: Any) -> Any:
        return skip * self.weights(skip, coarse)


class GatedBlock(nn.Module):  # type: ignore[misc]
    """A block of smp's U-Net decoder whose skip connection passes a gate."""

    def __init__(self, block: Any, gate: AttentionGate) -> None:
        super().__init__()
        self.block, self.gate = block, gate

    def forward(self, coarse: Any, height: int, width: int, skip_connection: Any = None) -> Any:
        return self.block(coarse, height, width, skip_connection=self.gate(skip_connection, coarse))


def add_attention_gates(unet: Any) -> Any:
    """Put a gate on each skip connection of smp's U-Net; the last block has no skip connection."""
    coarse = unet.encoder.out_channels[-1]
    skips = unet.encoder.out_channels[-2:0:-1]
    for place, skip in enumerate(skips):
        block = unet.decoder.blocks[place]
        unet.decoder.blocks[place] = GatedBlock(block, AttentionGate(skip, coarse))
        coarse = block.conv2[0].out_channels
    return unet
