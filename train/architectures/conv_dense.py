"""Four times convolution, ReLU, pooling; then dense layers on the whole map.

As published the dense layers are 100-75-50-25-2 and the classes: a bottleneck of two numbers. `dense` sets other
widths.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from train.recipe import Model

WIDTHS = (32, 64, 128, 256)
DENSE = (100, 75, 50, 25, 2)
GRID = 8  # side of the map before the dense layers, as of a 128-pixel image; larger maps are averaged to it


def build(config: Model, channels: int, outputs: int, *, dense: list[int] | None = None) -> Any:
    """Build the network.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        dense: the widths of the dense layers; without it those of the paper.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from torch import nn

    from train.architectures import _parts

    layers: list[Any] = []
    for before, after in pairwise((channels, *WIDTHS)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head: list[Any] = [nn.AdaptiveAvgPool2d(GRID), nn.Flatten()]
    row = (WIDTHS[-1] * GRID**2, *(dense or DENSE))
    for before, after in pairwise(row):
        head += [nn.Linear(before, after), nn.ReLU()]
    head += [nn.Dropout(config.dropout), nn.Linear(row[-1], outputs)]
    return _glorot(_parts.Headed(nn.Sequential(*layers), nn.Sequential(*head)))


def _glorot(model: Any) -> Any:
    """Initialise as Keras does: without norms, torch's smaller weights make the signal vanish within ten layers."""
    from torch import nn

    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return model
