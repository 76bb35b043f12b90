"""ShuffleDefectNet: units of plain 1x1 and depthwise convolutions, channels shuffled between them, in four widths.

ShuffleNet's grouped 1x1 convolutions are plain here, and a depthwise convolution replaces the 3x3 average pool on the
shortcut. That is the unit of ShuffleNetV2, so its weights fit (torchvision's, as a file).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from train.recipe import Model

WIDTHS = {
    "0.5x": [24, 48, 96, 192, 1024],
    "1x": [24, 116, 232, 464, 1024],
    "1.5x": [24, 176, 352, 704, 1024],
    "2x": [24, 244, 488, 976, 2048],
}
UNITS = [4, 8, 4]
PARTS = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")


def build(config: Model, channels: int, outputs: int, *, width: Literal["0.5x", "1x", "1.5x", "2x"] = "1x") -> Any:
    """Build the network.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        width: how wide its layers are.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from torch import nn
    from torchvision.models import ShuffleNetV2

    from train.architectures import _parts

    sizes = WIDTHS[width]
    whole = ShuffleNetV2(UNITS, sizes)
    if channels != 3:
        whole.conv1[0] = nn.Conv2d(channels, sizes[0], 3, stride=2, padding=1, bias=False)
    encoder = nn.Sequential(OrderedDict((name, getattr(whole, name)) for name in PARTS))
    return _parts.Headed(encoder, _parts.pooled_head(sizes[-1], outputs, config.dropout))
