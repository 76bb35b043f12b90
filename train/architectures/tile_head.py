"""A classifier for small defects: the cells of an encoder's map are tiles, and the k worst of them speak for the image.

Multiple-instance learning (Maron and Lozano-Pérez 1998) with top-k pooling: each tile gets logits of its own, and a
class's logit for the image is the mean of its k highest. Where `encoder-head` takes the mean over the map, a defect of
0.1 % of the image is lost among the other tiles; here it is all that counts. Use it with `input.resolution = "native"`:
resized, the defect would be gone before.

The tiles are not cut out: one fully convolutional pass over the whole image gives all of them, so that neighbours share
their computation, each tile sees its surroundings, nothing lies on a seam, an ONNX file is one graph for any size, and
Grad-CAM works as with any other classifier. A tile is `stride` pixels wide. The output for `clean`, where classes
exclude each other, is pooled alike: as every image has clean tiles, it is the level that a defect must exceed.
"""

from __future__ import annotations

from typing import Any, Literal

from train.recipe import Model

# An encoder's maps before its last stage are sums that nothing scales: without a layer with a norm the highest of 256
# tiles begin with logits of 20, and the first epochs only bring them down.
WIDTH = 128


def build(config: Model, channels: int, outputs: int, *, k: int = 4, stride: Literal[8, 16, 32] = 16) -> Any:
    """Build an encoder of segmentation_models_pytorch or timm (`tu-NAME`) with a head on each tile.

    Args:
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits.
        k: the number of tiles whose mean logit is the image's, at least 1; of an image with fewer tiles, all.
        stride: the side of a tile in pixels.

    Returns:
        A torch module with random weights, from normalised images to logits.
    """
    from torch import nn

    from train.architectures import _parts, _smp

    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    encoder = _smp.encoder(config, channels, depth=stride.bit_length() - 1)
    mixed = [nn.Conv2d(encoder.out_channels[-1], WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    logits = [nn.Dropout2d(config.dropout), nn.Conv2d(WIDTH, outputs, 1)]
    return _parts.Headed(encoder, nn.Sequential(*mixed, *logits, _parts.TopMean(k)))
