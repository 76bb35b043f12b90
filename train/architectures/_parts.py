"""Modules that several architectures share. Imported only where a network is built: it needs torch."""

from __future__ import annotations

from typing import Any

from torch import nn


class Headed(nn.Module):  # type: ignore[misc]
    """An encoder with a head on its last feature map."""

    def __init__(self, encoder: Any, head: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, batch: Any) -> Any:
        features = self.encoder(batch)
        return self.head(features[-1] if isinstance(features, list | tuple) else features)


def pooled_head(channels: int, outputs: int, dropout: float = 0.0, hidden: int = 0) -> Any:
    """Return a head: mean over the map, a hidden layer if `hidden`, dropout, one linear layer."""
    between = [nn.Linear(channels, hidden), nn.ReLU()] if hidden else []
    last = nn.Linear(hidden or channels, outputs)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *between, nn.Dropout(dropout), last)


class TopMean(nn.Module):  # type: ignore[misc]
    """The mean of the k highest values of each map (N, C, H, W); of a smaller map, of all."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, maps: Any) -> Any:
        cells = maps.flatten(2)
        return cells.topk(min(self.k, cells.shape[2]), 2).values.mean(2)


class Features(nn.Module):  # type: ignore[misc]
    """An encoder alone: from colour images to feature vectors, (N, D)."""

    def __init__(self, encoder: Any, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = channels

    def forward(self, batch: Any) -> Any:
        features = self.encoder(batch if self.channels == 3 else batch.mean(1, keepdim=True))
        last = features[-1] if isinstance(features, list | tuple) else features
        return last.mean((2, 3))
