"""The `Encoder` protocol, and the windows of an image that an encoder sees.

Every encoder's file has `build(*, <options>) -> Encoder`. An `Encoder` has

- `name`, and `key`: a hash of all that changes its vectors (options, weights, `STEP`), not of device or batch size;
- `dim`: the length of a vector;
- `tile`, `overlap`: see `windows`;
- `prepare(window)`: turns pixels (uint8, HxW or HxWx3) into an array; pure, runs in the processes that decode;
- optionally `prepare_image(pixels, boxes)`: turns an image and rows of x, y, w, h into a list of such arrays, in place
  of `prepare` for each crop. It is faster where windows share work, and they may use pixels beyond their borders;
- `encode(prepared)`: turns a list of these arrays into float32 vectors of length 1, one a row; runs on the device.

An encoder is pickled into the processes that decode. Do not pickle anything that only `encode` needs (a network); load
it at the first use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError

Pixels = NDArray[np.uint8]
Array = NDArray[Any]
Boxes = NDArray[np.int32]
Tile = int | Literal["auto", "none"]
SMALLEST = 32  # pixels of a tile's side
LONG = 1.5  # ratio of the sides from which on an image is a strip
SHARE = 0.6  # of the shorter side: a tile's side in an image that is no strip
MOST = 64  # tiles of an image with `auto`


class Encoder(Protocol):
    """Turns windows of images into vectors; see the module's docstring.

    Attributes:
        name: the encoder's name, with that of its network.
        key: a hash of all that changes its vectors.
        dim: the length of a vector.
        tile, overlap: the windows of an image, see `windows`.
    """

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def tile(self) -> Tile: ...
    @property
    def overlap(self) -> float: ...
    def prepare(self, window: Pixels) -> Array: ...
    def encode(self, prepared: Sequence[Array]) -> NDArray[np.float32]: ...


@runtime_checkable
class ImageEncoder(Protocol):
    """An encoder that prepares all windows of an image at once."""

    def prepare_image(self, pixels: Pixels, boxes: Boxes) -> list[Array]: ...


def prepare_image(encoder: Encoder, pixels: Pixels, boxes: Boxes) -> list[Array]:
    """All windows of an image, ready to be encoded."""
    if isinstance(encoder, ImageEncoder):
        return encoder.prepare_image(pixels, boxes)
    return [encoder.prepare(np.ascontiguousarray(pixels[y : y + h, x : x + w])) for x, y, w, h in boxes.tolist()]


def whole_image(image: Array) -> Boxes:
    """The box of the whole image as the only window."""
    return np.array([(0, 0, image.shape[1], image.shape[0])], np.int32)


def check_tiles(tile: Tile, overlap: float) -> None:
    if isinstance(tile, int) and tile < SMALLEST:
        raise CurateError(f"tile {tile} is too small; allowed: {SMALLEST} pixels or more, auto, none")
    if not 0 <= overlap <= 0.9:
        raise CurateError(f"overlap {overlap} is not a share; allowed: 0 to 0.9")


def windows(width: int, height: int, tile: Tile, overlap: float) -> NDArray[np.int32]:
    """The whole image, then its tiles, as rows of x, y, w, h: tiles cover the image and overlap by that share or more.

    `auto`: a strip's tiles are half as high as the strip, so that a small defect fills a good part of one; any other
    image gets tiles of 0.6 of its shorter side. An image no larger than a tile has none.
    """
    side_x, side_y = _sides(width, height, tile)
    whole_image = (0, 0, width, height)
    if tile == "none" or (side_x, side_y) == (width, height):
        return np.array([whole_image], np.int32)
    places = [(x, y) for y in _starts(height, side_y, overlap) for x in _starts(width, side_x, overlap)]
    return np.array([whole_image, *((x, y, side_x, side_y) for x, y in places)], np.int32)


def _sides(width: int, height: int, tile: Tile) -> tuple[int, int]:
    if isinstance(tile, int):
        return min(tile, width), min(tile, height)
    short, long = min(width, height), max(width, height)
    side = max(short // 2, min(short, 64)) if long >= LONG * short else round(SHARE * short)
    side = max(side, SMALLEST, math.ceil(math.sqrt(width * height * 2 / MOST)))
    return min(side, width), min(side, height)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Evenly spaced starts of tiles, from one end to the other."""
    steps = math.ceil((length - side) / (side * (1 - overlap)) - 1e-9)
    return [round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0]


def unit(vectors: Array) -> NDArray[np.float32]:
    """Scale rows to length 1."""
    rows = np.asarray(vectors, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)
