"""Texture without any network: how a window's surface looks, and how its most conspicuous spots differ from it.

The first part is contrast-weighted local binary patterns at four scales. The second describes spots: derivatives at
three scales, whitened by the window's own noise; where they are jointly unlikely (a defect is small and local), their
strengths are averaged. Nothing is learned and nothing depends on other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from curate.embed._base import Array, Encoder, Pixels, Tile, check_tiles, key_of, unit

STEP = 3  # raise it when the same window gives another vector than before
RADII = ((1, 0.0), (2, 0.8), (4, 1.6), (8, 3.2))
PATTERNS = 59
SCALES = (1.0, 2.0, 4.0)
CHANNELS = 5 * len(SCALES)
MIXTURES = 96
# More weight on the surface helps to tell surfaces apart, less to find the same spot on another surface.
SURFACE_WEIGHT, SPOT_WEIGHTS = 0.8, (1.0, 1.0, 0.5)
LARGEST = 1 << 19  # pixels of a window; above, it is shrunk
BORDER = cv2.BORDER_REFLECT_101


def build(*, tile: Tile = "auto", overlap: float = 0.25) -> Encoder:
    check_tiles(tile, overlap)
    return Texture(tile, overlap)


@dataclass(frozen=True)
class Texture:
    """Everything is computed in `prepare`, where the processes are."""

    tile: Tile
    overlap: float
    name: str = "texture"
    dim: int = PATTERNS * len(RADII) + 2 * CHANNELS + MIXTURES

    @property
    def key(self) -> str:
        return key_of(self.name, STEP, self.tile, self.overlap)

    def prepare(self, window: Pixels) -> Array:
        grey = _grey(window)
        parts = zip(SPOT_WEIGHTS, _spots(grey), _plain(), strict=True)
        spots = [weight * _unit(found - plain) for weight, found, plain in parts]
        return np.concatenate([SURFACE_WEIGHT * _unit(_surface(grey)), *spots])

    def encode(self, prepared: Sequence[Array]) -> NDArray[np.float32]:
        return unit(np.stack(prepared))


def _grey(window: Pixels) -> NDArray[np.float32]:
    grey = cv2.cvtColor(window, cv2.COLOR_RGB2GRAY) if window.ndim == 3 else window
    shrink = (LARGEST / grey.size) ** 0.5
    if shrink < 1:
        grey = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    return np.asarray(grey, np.float32)


def _unit(values: Array) -> NDArray[np.float32]:
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), np.float32)


# --- spots ----------------------------------------------------------------------------------------------------------


@cache
def _plain() -> tuple[Array, ...]:
    """What a surface without any spot gives: only what differs from it shall count."""
    noise = np.random.default_rng(0).normal(0, 4, (128, 128)).astype(np.float32)
    return _spots(128 + cv2.GaussianBlur(noise, (0, 0), 0.7))


@cache
def _mixtures() -> NDArray[np.float32]:
    """Fixed directions in the space of derivatives: a spot is told by which ones are strong together."""
    found = np.random.default_rng(3).standard_normal((MIXTURES, CHANNELS))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def _spots(grey: NDArray[np.float32]) -> tuple[Array, ...]:
    """Where the window is least like itself: its derivatives there, alone and mixed, and their plain strength."""
    found = _derivatives(grey)
    flat = found.reshape(CHANNELS, -1)
    white = _whitened(flat)
    weight = _oddity(white, found.shape[1:])
    mixed = np.log1p(np.abs(_mixtures() @ white)) @ weight
    return np.log1p(np.abs(white)) @ weight, mixed, np.log2(np.abs(flat) @ weight + 0.1)


def _derivatives(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """First and second derivatives at every scale, on a grid of every second pixel."""
    return np.stack([part for sigma in SCALES for part in _at_scale(grey, sigma)])


def _at_scale(grey: NDArray[np.float32], sigma: float) -> list[Array]:
    smooth = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=BORDER)
    step = 1 if sigma < 2 else 2  # what is smooth loses nothing on the coarser grid
    smooth, k = np.ascontiguousarray(smooth[::step, ::step]), sigma / step
    orders = ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1))
    scale = {1: k / 8, 2: k * k / 4}
    found = [cv2.Sobel(smooth, cv2.CV_32F, x, y, ksize=3, scale=scale[x + y], borderType=BORDER) for x, y in orders]
    return [part[:: 3 - step, :: 3 - step] for part in found]


def _whitened(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Derivatives in units of the window's own noise, and no longer alike: what is common here counts little.

    The noise is that of the calmer nine tenths, so that a spot does not hide itself.
    """
    scaled = flat / (np.median(np.abs(flat), axis=1, keepdims=True) / 0.6745 + 0.15)
    energy = (scaled * scaled).sum(0)
    calm = scaled[:, energy <= np.quantile(energy, 0.9)]
    spread, axes = np.linalg.eigh(calm @ calm.T / calm.shape[1] + 0.1 * np.eye(CHANNELS, dtype=np.float32))
    return np.asarray(((axes / np.sqrt(spread)) @ axes.T) @ scaled, np.float32)


def _oddity(white: Array, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A weight for every place, with sum 1: large where the derivatives are jointly unlikely in this window."""
    odd = cv2.GaussianBlur((white * white).sum(0).reshape(shape), (0, 0), 1, borderType=BORDER)
    weight = np.maximum(odd / max(float(np.median(odd)), 1e-6) - 3, 0) ** 2 + 1e-6
    return np.asarray(weight / weight.sum(), np.float32).ravel()


# --- surface --------------------------------------------------------------------------------------------------------


def _surface(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([_patterns(grey, radius, sigma) for radius, sigma in RADII])


def _patterns(grey: Array, radius: int, sigma: float) -> NDArray[np.float32]:
    smooth = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=BORDER) if sigma else grey
    padded = cv2.copyMakeBorder(smooth, radius, radius, radius, radius, BORDER)
    found = _count(padded, *_ring(radius), _TABLE, radius)
    return np.asarray(np.sqrt(found / max(float(found.sum()), 1e-9)), np.float32)


def _ring(radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    angle = 2 * np.pi * np.arange(8) / 8
    return np.rint(radius * np.cos(angle)).astype(np.int64), np.rint(radius * np.sin(angle)).astype(np.int64)


def _uniform() -> NDArray[np.int64]:
    """Each of the 58 patterns with at most two changes around the ring has a bin of its own, all others share one."""
    changes = [sum((code >> k & 1) != (code >> (k + 1) % 8 & 1) for k in range(8)) for code in range(256)]
    own = np.cumsum(np.array(changes) <= 2) - 1
    return np.where(np.array(changes) <= 2, own, PATTERNS - 1)


_TABLE = _uniform()


@njit(cache=True, nogil=True)  # type: ignore[misc]
def _count(image, dx, dy, table, radius):  # type: ignore[no-untyped-def]
    found = np.zeros(PATTERNS)
    height, width = image.shape
    for y in range(radius, height - radius):
        for x in range(radius, width - radius):
            code, contrast = 0, np.float32(0)
            for k in range(8):
                step = image[y + dy[k], x + dx[k]] - image[y, x]
                contrast += abs(step)
                if step >= 0:
                    code |= 1 << k
            found[table[code]] += contrast
    return found
