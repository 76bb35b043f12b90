"""Four times convolution, ReLU, pooling; the whole map goes into a row of dense layers.

As published the dense row is 100-75-50-25-2 and the classes: all that is known of an image goes through two numbers.
`dense` gives another row.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from train.recipe import Model

WIDTHS = (32, 64, 128, 256)
DENSE = (100, 75, 50, 25, 2)
GRID = 8  # of the map that the dense row sees: that of 128 pixels; others are averaged to it


def build(config: Model, channels: int, outputs: int, *, dense: list[int] | None = None) -> Any:
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
    """As Keras begins: without norms, torch's smaller weights would leave nothing of an image after ten layers."""
    from torch import nn

    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return model
