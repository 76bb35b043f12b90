"""Helpers of encoders that are networks: resizing windows and the forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.embed._base import Array, Pixels, Tile, unit

STEP = 1  # raise it when the vectors of `prepare` and `encode` change
CHUNK = 64  # windows in one forward pass


@dataclass
class NetworkEncoder:
    """A network as an encoder. `make` builds the module without its head; `make` is pickled, the module is not.

    A window is resized whole, not cropped, since a defect may lie at its border.
    """

    name: str
    key: str
    dim: int
    tile: Tile
    overlap: float
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    make: Callable[[], Any]
    device: str = "cpu"
    bf16: bool = False
    module: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"module": None}

    def prepare(self, window: Pixels) -> Array:
        colour = window if window.ndim == 3 else cv2.cvtColor(window, cv2.COLOR_GRAY2RGB)
        shrinks = min(window.shape[:2]) > self.size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(colour, (self.size, self.size), interpolation=how))

    def encode(self, prepared: Sequence[Array]) -> NDArray[np.float32]:
        import torch

        module = self.loaded()
        with torch.inference_mode():
            parts = [self._forward(module, prepared[i : i + CHUNK]) for i in range(0, len(prepared), CHUNK)]
        return unit(np.concatenate(parts))

    def loaded(self) -> Any:
        """The module on its device, in channels-last memory format, in which convolutions are fastest."""
        import torch

        if self.module is None:
            module = self.make().eval().to(self.device, memory_format=torch.channels_last)
            self.module = module.to(torch.bfloat16) if self.bf16 and self.device == "cpu" else module
        return self.module

    def _forward(self, module: Any, windows: Sequence[Array]) -> NDArray[np.float32]:
        import torch

        pixels = torch.from_numpy(np.stack(windows))
        on_gpu = self.device != "cpu"
        if on_gpu:
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        scaled = (pixels.float() / 255 - pixels.new_tensor(self.mean, dtype=torch.float32)) / pixels.new_tensor(
            self.std, dtype=torch.float32
        )
        batch = scaled.permute(0, 3, 1, 2)  # a view: the pixels already lie channels-last
        with torch.autocast("cuda", torch.float16, enabled=on_gpu):
            output = module(batch.to(torch.bfloat16) if self.bf16 and not on_gpu else batch)
        return np.asarray(output.float().flatten(1).cpu().numpy(), np.float32)


def digest_of(module: Any) -> str:
    """Hash of all weights: those of one name on a hub may change."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def dim_of(module: Any, size: int) -> int:
    import torch

    with torch.inference_mode():
        return int(module.eval()(torch.zeros(1, 3, size, size)).flatten(1).shape[1])
