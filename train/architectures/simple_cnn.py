"""Three times convolution, batch norm, ReLU, pooling (32, 64, 128 channels); the mean over the map, a linear layer."""

from __future__ import annotations

from typing import Any

from train.recipe import Model

WIDTHS = (32, 64, 128)


def build(config: Model, channels: int, outputs: int, *, widths: list[int] | None = None) -> Any:
    """Build the network.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        widths: the channels of each convolution.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from torch import nn

    from train.architectures import _parts

    sizes = tuple(widths or WIDTHS)
    layers: list[Any] = []
    for before, after in zip((channels, *sizes), sizes, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return _parts.Headed(nn.Sequential(*layers), _parts.pooled_head(sizes[-1], outputs, config.dropout))
