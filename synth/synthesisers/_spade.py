"""The two networks of `gan`. Imported only where they are built: this needs torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CHANCE = 16  # channels of noise that the generator begins with, at an eighth of the window
WIDTHS = (64, 64, 48, 32)  # of its four scales
TELLING = 32
STRIDE = 8


class SpadeNorm(nn.Module):  # type: ignore[misc]
    """A norm whose scale and shift are told, place by place, by mask, class and ground (SPADE)."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width, affine=False)
        self.hidden = nn.Conv2d(told, TELLING, 3, padding=1)
        self.both = nn.Conv2d(TELLING, 2 * width, 3, padding=1)

    def forward(self, values: Any, told: Any) -> Any:
        scale, shift = self.both(functional.leaky_relu(self.hidden(told), 0.2)).chunk(2, 1)
        return self.norm(values) * (1 + scale) + shift


class Generator(nn.Module):  # type: ignore[misc]
    """Noise becomes a window in four scales; at each it is told anew what goes where."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        told = classes + 1 + channels
        self.begin = nn.Conv2d(CHANCE + told, WIDTHS[0], 3, padding=1)
        self.tells = nn.ModuleList([SpadeNorm(width, told) for width in WIDTHS])
        outs = (*WIDTHS[1:], WIDTHS[-1])
        self.convs = nn.ModuleList(
            [nn.Conv2d(width, out, 3, padding=1) for width, out in zip(WIDTHS, outs, strict=True)]
        )
        self.end = nn.Conv2d(WIDTHS[-1], channels, 3, padding=1)

    def forward(self, chance: Any, hints: Any, grounds: Any, classes: Any) -> Any:
        """The window: outside of the hint the ground itself. `classes` (N, K): how much of each."""
        near = hints > 0
        told = torch.cat([classes[:, :, None, None] * hints, hints, grounds * ~near], 1)
        values = self.begin(torch.cat([chance, functional.adaptive_avg_pool2d(told, chance.shape[2:])], 1))
        for scale, (tell, conv) in enumerate(zip(self.tells, self.convs, strict=True)):
            size = [length >> (3 - scale) for length in hints.shape[2:]]
            values = functional.interpolate(values, size=size)
            values = conv(functional.leaky_relu(tell(values, functional.adaptive_avg_pool2d(told, size)), 0.2))
        return torch.where(near, self.end(functional.leaky_relu(values, 0.2)).tanh(), grounds)


class Discriminator(nn.Module):  # type: ignore[misc]
    """Tell real patches of a window from painted ones, given mask and class; only patches in or near the mask count."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels + 1 + classes, 32, 64, 96)
        convs = [nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths)]
        layers = [layer for conv in convs for layer in (conv, nn.LeakyReLU(0.2))]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, pixels: Any, hints: Any, classes: Any) -> tuple[Any, Any]:
        """Logits of patches, and how much each counts: over a window it sums to 1."""
        logits = self.layers(torch.cat([pixels, hints, classes[:, :, None, None] * hints], 1))
        counts = functional.adaptive_max_pool2d((hints > 0).float(), logits.shape[2:])
        return logits, counts / counts.sum((1, 2, 3), keepdim=True).clamp(min=1)
