"""From an image file to a network's input; the same for training, prediction and embedding."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.errors import LabelProblem
from curate.masks.decode import pixels_of
from train.recipe import SCALES

Pixels = NDArray[np.uint8]
STRIDE = 32  # by which networks reduce an image
TILE = 1 << 20  # pixels of one tile
SIDE = 1024  # pixels of a tile's side in a large image; in a strip a tile is as long as TILE allows
OVERLAP = 128


def read(id: str, path: Path, max_pixels: int) -> Pixels:
    """Read the pixels of an indexed image. Raises LabelProblem where the file is unreadable or has changed."""
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise LabelProblem(f"cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != id:
        raise LabelProblem("the file changed since it was indexed. Run: curate index")
    return pixels_of(content, max_pixels)


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Return the image as (H, W, 1) or (H, W, 3)."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return pixels[..., None] if channels == 1 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return pixels if channels == 3 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]


def resized(image: Pixels, height: int, width: int) -> Pixels:
    """Resize an image (H, W, C): by area where it shrinks, else linearly."""
    shrinks = image.shape[0] > height or image.shape[1] > width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    pixels = cv2.resize(image, (width, height), interpolation=interpolation)
    return np.asarray(pixels).reshape(height, width, -1)


def padded(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Mirror the image at its right and lower border up to this size."""
    below, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if not below and not right:
        return image
    pixels = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT)
    return np.asarray(pixels).reshape(*pixels.shape[:2], *image.shape[2:])


def up_to_stride(length: int) -> int:
    """Round up to a multiple of the stride."""
    return math.ceil(length / STRIDE) * STRIDE


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Return where tiles begin: evenly from end to end, overlapping by `overlap` or more."""
    if length <= side:
        return [0]
    steps = math.ceil((length - side) / (side - overlap))
    return [round(i * (length - side) / steps) for i in range(steps + 1)]


def tiles(height: int, width: int, most: int = TILE) -> tuple[int, int, list[tuple[int, int]]]:
    """Return height and width of the tiles of an image, at most this many pixels, and where they begin (y, x).

    The image must be `padded` to one tile's size at least.
    """
    high = min(up_to_stride(height), SIDE)
    wide = min(up_to_stride(width), max(most // high // STRIDE * STRIDE, 2 * OVERLAP))
    down, right = starts(max(height, high), high, OVERLAP), starts(max(width, wide), wide, OVERLAP)
    return high, wide, [(y, x) for y in down for x in right]


def normalised(batch: Any, scale: str) -> Any:
    """Turn a batch (N, H, W, C) of bytes into normalised (N, C, H, W) floats; memory stays channels-last."""
    mean, std = (batch.new_tensor(values, dtype=_float()) for values in SCALES[scale])
    if batch.shape[-1] == 1:
        mean, std = mean.mean(), std.mean()
    return ((batch.to(_float()) / 255 - mean) / std).permute(0, 3, 1, 2)


def _float() -> Any:
    import torch

    return torch.float32
