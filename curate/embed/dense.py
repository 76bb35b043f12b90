"""One pass of a network over the whole image; a window's vector pools its part of two mid-level maps. Fast on strips.

The maps are averaged over 3x3 places and joined without any training, as in PatchCore (Roth et al. 2022, "Towards Total
Recall in Industrial Anomaly Detection"). A window's vector has four parts of equal length: mean and maximum of each
map. The maximum keeps a small defect that the mean would lose. A window's edge sees a little beyond its border.
"""

from __future__ import annotations

import atexit
import glob
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from curate import files, pretrained
from curate.devices import device_of, may_have_gpu, weights_file
from curate.embed._base import Array, Boxes, Encoder, Pixels, Tile, check_tiles, unit, whole_image
from curate.errors import CurateError
from curate.hashing import sha256_of, short_key

STEP = 1  # raise it when vectors change
STRIDE = 32  # sides are padded to a multiple of it, so that every halving in the network is exact
SMALLEST = 64  # pixels of the shorter side; smaller images are enlarged
LEAST_PIXELS = SMALLEST**2
BATCH = 1 << 24  # pixels of equal images in one forward pass on a GPU; on a CPU it is one image
PARTS = 4
NEEDED = ("onnx", "onnxruntime")
EXPORT = 1  # raise it when the exported file changes (curate/embed/_maps.py), but the vectors do not


def build(
    *,
    model: str = pretrained.DEFAULT,
    weights: str = pretrained.PACKAGE,
    fine: int = 16,
    coarse: int = 32,
    pixels: int = 2_000_000,
    tile: Tile = "auto",
    overlap: float = 0.25,
    runtime: Literal["auto", "onnx", "torch"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Encoder:
    """Build the encoder.

    Args:
        model: the name of a convolutional model of timm.
        weights: `package` (those of an installed package), or a file of timm's weights.
        fine: the stride in pixels of the finer map.
        coarse: the stride in pixels of the coarser map.
        pixels: larger images are shrunk to so many pixels.
        tile: the side of a tile in pixels, `auto` or `none`.
        overlap: the share by which tiles overlap, from 0 to 0.9.
        runtime: what computes on a CPU; `auto` takes ONNX Runtime where it is installed, else torch.
        device: `auto` takes a GPU where there is one.

    Returns:
        The encoder.
    """
    check_tiles(tile, overlap)
    if pixels < LEAST_PIXELS:
        raise CurateError(f"pixels {pixels} is too small; allowed: {LEAST_PIXELS} or more")
    place = device_of(device) if device == "cuda" or (device == "auto" and may_have_gpu()) else "cpu"
    onnx = _takes_onnx(runtime, place)
    if not onnx:
        place = device_of(place)  # sets torch's threads, too
    make = partial(_maps_of, model, weights, fine, coarse)
    packaged = weights == pretrained.PACKAGE
    digest = pretrained.package_of(model).sha256 if packaged else sha256_of(weights_file(weights))
    key = short_key(STEP, model, digest, fine, coarse, pixels, tile, overlap)
    name = f"dense-{model.replace('/', '_').replace(':', '_')}"
    file, channels = (
        _exported(make, short_key(STEP, EXPORT, model, digest, fine, coarse)) if onnx else ("", make().channels)
    )
    return DenseEncoder(name, key, channels, tile, overlap, fine, pixels, make, place, onnx, file)


def _exported(make: Callable[[], Any], key: str) -> tuple[str, tuple[int, int]]:
    """Return the file of the network for ONNX Runtime, and its channels. It is written once for all projects, as torch
    takes seconds for it; where the user's cache cannot be written, for this process alone.

    The processes that decode read it, so that none of them has to import torch.
    """
    folder, made_by = files.cache_folder() / "networks", f"torch-{version('torch')}-timm-{version('timm')}"
    for file in sorted(folder.glob(f"{key}-{glob.escape(made_by)}-*x*.onnx")):
        fine, coarse = file.stem.rpartition("-")[2].split("x")
        return str(file), (int(fine), int(coarse))
    from curate.embed import _maps

    maps = make()
    network, (fine, coarse) = _maps.exported(maps), maps.channels
    file = folder / f"{key}-{made_by}-{fine}x{coarse}.onnx"
    try:
        files.sweep_parts(file)
        with files.written_aside(file) as aside:
            aside.write_bytes(network)
    except (OSError, CurateError):
        handle, name = tempfile.mkstemp(prefix="curate-dense-", suffix=".onnx")
        atexit.register(Path(name).unlink, missing_ok=True)
        with open(handle, "wb") as opened, files.explain_full_disk(Path(name)):
            opened.write(network)
        return name, maps.channels
    return str(file), maps.channels


def _takes_onnx(runtime: str, device: str) -> bool:
    """Return True where ONNX Runtime computes. Raises CurateError where it is asked for and cannot."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if runtime != "onnx":
        return runtime == "auto" and device == "cpu" and not missing
    if device != "cpu":
        raise CurateError(f"runtime 'onnx' computes on a CPU, not on {device}; allowed with it: --set device=cpu")
    if missing:
        raise CurateError(
            f"runtime 'onnx' lacks {', '.join(missing)}. Run: pip install 'steel-curate[export]', or take --set "
            "runtime=torch"
        )
    return True


def _maps_of(model: str, weights: str, fine: int, coarse: int) -> Any:
    from curate.embed import _maps  # torch takes seconds to import

    return _maps.build(model, weights, fine, coarse)


@dataclass
class DenseEncoder:
    """A network's maps as an encoder.

    With ONNX Runtime the processes that decode images also compute, on one thread each: `prepare_image` gives vectors.
    They read the network from `file`, or make it themselves where there is no such file (Ray, on another machine).
    Otherwise it gives the image, and then a box for each other window, and `encode` computes on the device.
    """

    name: str
    key: str
    channels: tuple[int, int]
    tile: Tile
    overlap: float
    stride: int
    pixels: int
    make: Callable[[], Any]
    device: str = "cpu"
    onnx: bool = False
    file: str = ""
    module: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"module": None}

    @property
    def dim(self) -> int:
        return 2 * sum(self.channels)

    def prepare(self, window: Pixels) -> Array:
        return self.prepare_image(window, whole_image(window))[0]

    def prepare_image(self, pixels: Pixels, boxes: Boxes) -> list[Array]:
        """Return an array for each box, of which the first is the whole image's."""
        image, scale = self._sized(pixels)
        if not self.onnx:
            return [image, *(boxes[1:] * scale)]
        joined = self._loaded()(image[None])[0]
        return [self._pooled(part) for part in self._cut(joined, image, boxes * scale)]

    def encode(self, prepared: Sequence[Array]) -> NDArray[np.float32]:
        if self.onnx:
            return np.stack(prepared)
        starts = [n for n, array in enumerate(prepared) if array.ndim == 3]
        images = [prepared[a:b] for a, b in zip(starts, [*starts[1:], len(prepared)], strict=True)]
        alike = groupby(images, key=lambda arrays: (arrays[0].shape, len(arrays)))
        return np.concatenate([vectors for _, group in alike for vectors in self._encoded(list(group))])

    def _encoded(self, images: Sequence[Sequence[Array]]) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of images of one size, whose windows are the same."""
        first, *boxes = images[0]
        together = 1 if self.device == "cpu" else max(1, BATCH // (first.shape[0] * first.shape[1]))
        rows = np.vstack([whole_image(first), *boxes])
        for start in range(0, len(images), together):
            joined = self._loaded()(np.stack([arrays[0] for arrays in images[start : start + together]]))
            pooled = [self._pooled(part) for part in self._cut(joined, first, rows)]
            yield from np.stack(pooled, axis=1)

    def _sized(self, pixels: Pixels) -> tuple[Pixels, float]:
        """Return the image with three axes within the limits of size, and by how much it was scaled."""
        height, width = pixels.shape[:2]
        scale = min(1.0, (self.pixels / (height * width)) ** 0.5)
        scale = max(scale, SMALLEST / min(height, width)) if min(height, width) * scale < SMALLEST else scale
        if scale != 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            pixels = np.asarray(
                cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
            )
        return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None]), scale

    def _cut(self, joined: Any, image: Array, boxes: NDArray[Any]) -> Iterator[Any]:
        """Yield each box's part of maps (..., height, width, channels): all places that it touches."""
        high, wide = (-(-side // self.stride) for side in image.shape[:2])
        for x, y, w, h in boxes.tolist():
            left, top = min(int(x // self.stride), wide - 1), min(int(y // self.stride), high - 1)
            right = min(max(-int(-(x + w) // self.stride), left + 1), wide)
            bottom = min(max(-int(-(y + h) // self.stride), top + 1), high)
            yield joined[..., top:bottom, left:right, :]

    def _pooled(self, part: Any) -> NDArray[np.float32]:
        """Return mean and maximum of both maps, each part of length 1 / 2: the vector has length 1."""
        places = part.reshape(*part.shape[:-3], -1, part.shape[-1])
        if isinstance(places, np.ndarray):
            pooled = [places.mean(axis=-2), places.max(axis=-2)]
        else:
            pooled = [values.float().cpu().numpy() for values in (places.mean(dim=-2), places.amax(dim=-2))]
        first = self.channels[0]
        parts = [part for values in pooled for part in (values[..., :first], values[..., first:])]
        flat = [unit(values.reshape(-1, values.shape[-1])).reshape(values.shape) for values in parts]
        return np.asarray(np.concatenate(flat, axis=-1) / PARTS**0.5, np.float32)

    def _loaded(self) -> Callable[[Array], Any]:
        """Return the function from images (N, H, W, 1 or 3) to joined maps, made at the first use."""
        if self.module is None:
            from curate.embed import _maps

            if self.onnx:
                self.module = self._from_file() or _maps.onnx_function(_maps.exported(self.make()))
            else:
                self.module = _maps.torch_function(self.make(), self.device)
        return partial(self._run, self.module)

    def _from_file(self) -> Callable[[Array], Any] | None:
        """Return the network of the file; None where there is none (another machine), or a damaged one, which goes."""
        from curate.embed import _maps

        if not Path(self.file).is_file():
            return None
        try:
            return _maps.onnx_function(Path(self.file).read_bytes())
        except Exception:  # onnxruntime's own kinds
            Path(self.file).unlink(missing_ok=True)
            return None

    def _run(self, function: Callable[[Array], Any], images: Array) -> Any:
        _, height, width, _ = images.shape
        pad = ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
        return function(np.pad(images, pad, mode="symmetric") if height % STRIDE or width % STRIDE else images)
