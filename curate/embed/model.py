"""The project's own trained model as the encoder. Train one first: curate train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from curate.embed._base import Array, Encoder, Pixels, Tile, check_tiles, unit
from curate.errors import CurateError
from curate.hashing import short_key

STEP = 1


class ModelHandle(Protocol):
    """A trained model as `train` passes it: its key (a hash of weights and preprocessing) and its two halves.

    It is pickled into the processes that decode, and should not pickle its network.
    """

    @property
    def key(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def prepare(self, window: Pixels) -> Array: ...
    def encode(self, prepared: Sequence[Array]) -> NDArray[np.float32]: ...


def build(handle: ModelHandle | None = None, *, tile: Tile = "auto", overlap: float = 0.25) -> Encoder:
    """Build the encoder of a trained model.

    Args:
        handle: the model, which the caller loads.
        tile: the side of a tile in pixels, `auto` or `none`.
        overlap: the share by which tiles overlap, from 0 to 0.9.

    Returns:
        The encoder.
    """
    check_tiles(tile, overlap)
    if handle is None:
        raise CurateError("this project has no trained model yet. Train one first: curate train")
    return ModelEncoder(handle, tile, overlap)


@dataclass(frozen=True)
class ModelEncoder:
    handle: ModelHandle
    tile: Tile
    overlap: float
    name: str = "model"

    @property
    def key(self) -> str:
        return short_key(self.name, STEP, self.handle.key, self.tile, self.overlap)

    @property
    def dim(self) -> int:
        return self.handle.dim

    def prepare(self, window: Pixels) -> Array:
        return self.handle.prepare(window)

    def encode(self, prepared: Sequence[Array]) -> NDArray[np.float32]:
        return unit(self.handle.encode(prepared))
