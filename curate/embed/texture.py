"""Texture features without a network: a window's surface, and how its most conspicuous spots differ from it.

The first part is contrast-weighted local binary patterns at four scales. The second describes spots: derivatives at
three scales, whitened by the window's own noise; where they are jointly unlikely (a defect is small and local), their
strengths are averaged. Nothing is learned and nothing depends on other images.

Pixel features are computed once for an image, and all its windows share them, so that a window uses pixels beyond its
border. Sums are of whole numbers or run in one order, so that a window's vector does not depend on other windows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from curate.embed._base import Array, Boxes, Encoder, Pixels, Tile, check_tiles, unit, whole_image
from curate.hashing import short_key

STEP = 5  # raise it when vectors change
RADII = ((1, 0.0), (2, 0.8), (4, 1.6), (8, 3.2))
PATTERNS = 59
CHANNELS = 5 * 3  # derivatives at three scales
FIVE = 5  # channels added at a time: one by one, half the time would be reading and writing the sum
MIXTURES = 96
# More weight on the surface helps to tell surfaces apart, less to find the same spot on another surface.
SURFACE_WEIGHT, SPOT_WEIGHTS = 0.8, (1.0, 1.0, 0.5)
LARGEST = 1 << 19  # pixels of a window; a larger one is shrunk
SHARED = 1 << 22  # pixels of an image; in a larger one each window has its own maps, to save memory
CALM = 0.9
SPARSE = 200  # places, or a few more, by which a window without any spot is described
CONTRAST = 32  # steps to a grey value: eight differences of 255 still fit into 16 bits
SCALE_BINS, FINE_BINS = 128, 1024
BLOCK = 256  # places at a time, so that they stay in the cache
BORDER = cv2.BORDER_REFLECT_101


def build(*, tile: Tile = "auto", overlap: float = 0.25) -> Encoder:
    """Build the encoder.

    Args:
        tile: the side of a tile in pixels, `auto` or `none`.
        overlap: the share by which tiles overlap, from 0 to 0.9.

    Returns:
        The encoder.
    """
    check_tiles(tile, overlap)
    return Texture(tile, overlap)


@dataclass(frozen=True)
class Texture:
    """The encoder; `prepare_image` computes everything, in the processes that decode."""

    tile: Tile
    overlap: float
    name: str = "texture"
    dim: int = PATTERNS * len(RADII) + 2 * CHANNELS + MIXTURES

    @property
    def key(self) -> str:
        return short_key(self.name, STEP, self.tile, self.overlap)

    def prepare(self, window: Pixels) -> Array:
        return self.prepare_image(window, whole_image(window))[0]

    def prepare_image(self, pixels: Pixels, boxes: Boxes) -> list[Array]:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
        alone = np.full(len(boxes), grey.size > SHARED) | (boxes[:, 2].astype(np.int64) * boxes[:, 3] > LARGEST)
        features = np.empty((len(boxes), self.dim), np.float32)
        if not alone.all():
            features[~alone] = _described(grey, boxes[~alone])
        for n in np.flatnonzero(alone):
            x, y, w, h = boxes[n].tolist()
            window = _shrunk(grey[y : y + h, x : x + w])
            features[n] = _described(window, whole_image(window))[0]
        return list(features)

    def encode(self, prepared: Sequence[Array]) -> NDArray[np.float32]:
        return unit(np.stack(prepared))


def _shrunk(grey: Pixels) -> Pixels:
    shrink = (LARGEST / grey.size) ** 0.5
    if shrink >= 1:
        return grey
    # Rounded down, so that it is no larger than allowed.
    size = [max(int(side * shrink), 1) for side in grey.shape[::-1]]
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _described(pixels: Pixels, boxes: Boxes) -> NDArray[np.float32]:
    """The features of each window, a row each."""
    grey = np.ascontiguousarray(pixels, np.float32)
    parts = zip(SPOT_WEIGHTS, _spots(grey, boxes), _no_spot(), strict=True)
    spots = [weight * unit(spot - plain) for weight, spot, plain in parts]
    return np.hstack([SURFACE_WEIGHT * unit(_surface(grey, boxes)), *spots])


class _Space(threading.local):
    """Large arrays that are used again for the next image: allocating them would take a tenth of the time."""

    def __init__(self) -> None:
        self.kept: dict[str, Array] = {}

    def get(self, name: str, shape: tuple[int, ...], kind: Any) -> Array:
        array = self.kept.get(name)
        if array is None or array.shape != shape:
            array = self.kept[name] = np.empty(shape, kind)
        return array


_SPACE = _Space()


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function; sums may be vectorised, always in the same order."""
    compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(function)
    return cast(Callable[..., Any], compiled)


# --- spots ----------------------------------------------------------------------------------------------------------


@cache
def _no_spot() -> tuple[Array, ...]:
    """Spot features of a surface without any spot, which are subtracted from all others."""
    noise = np.random.default_rng(0).normal(0, 4, (128, 128)).astype(np.float32)
    grey = 128 + cv2.GaussianBlur(noise, (0, 0), 0.7)
    return _spots(grey, whole_image(grey))


@cache
def _mixtures() -> NDArray[np.float32]:
    """Fixed directions in the space of derivatives, a column each: spots differ in which ones are strong together."""
    directions = np.random.default_rng(3).standard_normal((MIXTURES, CHANNELS))
    return np.ascontiguousarray((directions / np.linalg.norm(directions, axis=1, keepdims=True)).T, np.float32)


def _spots(grey: NDArray[np.float32], boxes: Boxes) -> tuple[Array, ...]:
    """Derivatives at the least ordinary places of each window: single and mixed, and their plain strength."""
    derivatives, bins = _derivatives(grey)
    places = _on_grid(boxes)
    whitener = _whitener(derivatives, bins, places)
    blur = cv2.getGaussianKernel(9, 1, cv2.CV_32F).ravel()
    alone, mixed, plain = _pooled(
        derivatives, places, whitener, _mixtures(), blur, _edges(FINE_BINS, 18, 3743), _space(places)
    )
    return alone, mixed, np.log2(plain + 0.1)


def _on_grid(boxes: Boxes) -> NDArray[np.int64]:
    """Windows as x, y and ends on the derivatives' grid, which has every second pixel; none is empty."""
    first, end = boxes[:, :2].astype(np.int64), (boxes[:, :2] + boxes[:, 2:]).astype(np.int64)
    start = np.minimum((first + 1) // 2, (end - 1) // 2)
    return np.hstack([start, np.maximum((end + 1) // 2, start + 1)])


def _space(places: NDArray[np.int64]) -> Array:
    """Room for the largest window's derivatives."""
    return _SPACE.get("window", (CHANNELS * int(np.prod(places[:, 2:] - places[:, :2], axis=1).max()),), np.float32)


def _derivatives(grey: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """First and second derivatives at every scale, on a grid of every second pixel; and their bins of strength."""
    shape = (CHANNELS, -(-grey.shape[0] // 2), -(-grey.shape[1] // 2))
    derivatives, bins = _SPACE.get("derivatives", shape, np.float32), _SPACE.get("bins", shape, np.uint8)
    fine = _blurred(grey, 1)
    # A smooth map loses nothing on the coarser grid. Blurring it again, in place of `grey`, gives worse features.
    middle, coarse = (np.ascontiguousarray(_blurred(grey, sigma)[::2, ::2]) for sigma in (2, 4))
    for n, (smooth, k) in enumerate(((fine, 1), (middle, 1), (coarse, 2))):
        padded = cv2.copyMakeBorder(smooth, 1, 1, 1, 1, BORDER)
        own = slice(5 * n, 5 * n + 5)
        _derive(padded, 2 if n == 0 else 1, np.float32(k), derivatives[own], bins[own])
    return derivatives, bins


def _blurred(grey: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma, borderType=BORDER), np.float32)


@_kernel
def _derive(image, step, k, derivatives, bins):  # type: ignore[no-untyped-def]
    _, height, width = derivatives.shape
    first, second = np.float32(k / 8), np.float32(k * k / 4)
    double = np.float32(2)
    for y in range(height):
        above, here, below = image[y * step], image[y * step + 1], image[y * step + 2]
        for x in range(width):
            i = x * step
            a, b, c = above[i], above[i + 1], above[i + 2]
            d, e, f = here[i], here[i + 1], here[i + 2]
            g, h, j = below[i], below[i + 1], below[i + 2]
            rows, middle, columns = a + g, b + h, d + f
            derivatives[0, y, x] = first * (c + j - rows + double * (f - d))
            derivatives[1, y, x] = first * (g + j - a - c + double * (h - b))
            derivatives[2, y, x] = second * (rows + c + j - double * middle + double * columns - double * double * e)
            derivatives[3, y, x] = second * (rows + c + j - double * columns + double * middle - double * double * e)
            derivatives[4, y, x] = second * (a + j - c - g)
        for part in range(5):
            values, places = derivatives[part, y], bins[part, y]
            for x in range(width):
                places[x] = min(max((np.float32(abs(values[x])).view(np.int32) >> 20) - 975, 0), SCALE_BINS - 1)


@cache
def _edges(bins: int, shift: int, first: int) -> NDArray[np.float32]:
    """Lower edges of bins by the upper bits of a number: even within each power of two; the first is 0."""
    edges = (np.arange(first, first + bins + 1, dtype=np.int32) << shift).view(np.float32).copy()
    edges[0] = 0
    return edges


def _whitener(
    derivatives: NDArray[np.float32], bins: NDArray[np.uint8], places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """For each window the matrix that whitens derivatives by the window's own noise.

    So common structure counts little. The noise is that of the calmer nine tenths, without the spots themselves.
    """
    scale = 1 / (_medians(bins, places, _edges(SCALE_BINS, 20, 975)) / np.float32(0.6745) + np.float32(0.15))
    covariance = _calm(derivatives, places, scale, _edges(FINE_BINS, 18, 3743), _space(places))
    spread, axes = np.linalg.eigh(covariance + 0.1 * np.eye(CHANNELS, dtype=np.float32))
    white = (axes / np.sqrt(spread)[:, None]) @ axes.transpose(0, 2, 1)
    return np.ascontiguousarray(white * scale[:, None], np.float32)


@_kernel
def _medians(bins, places, edges):  # type: ignore[no-untyped-def]
    """The median of each channel's strength in each window."""
    medians = np.empty((len(places), CHANNELS), np.float32)
    for n in range(len(places)):
        left, top, right, bottom = places[n]
        for channel in range(CHANNELS):
            even, odd = np.zeros(SCALE_BINS, np.int32), np.zeros(SCALE_BINS, np.int32)
            for y in range(top, bottom):
                row = bins[channel, y, left:right]
                for x in range(0, len(row) - 1, 2):  # two tables: faster where a bin repeats
                    even[row[x]] += 1
                    odd[row[x + 1]] += 1
                if len(row) % 2:
                    even[row[-1]] += 1
            medians[n, channel] = _quantile(even + odd, edges, np.float32(0.5))
    return medians


@_kernel
def _quantile(counts, edges, share):  # type: ignore[no-untyped-def]
    rest = np.float32(share * counts.sum())
    for n in range(len(counts)):
        if counts[n] >= rest:
            return edges[n] + (edges[n + 1] - edges[n]) * rest / max(counts[n], 1)
        rest -= counts[n]
    return edges[-1]


@_kernel
def _fine_quantile(values, edges, share):  # type: ignore[no-untyped-def]
    counts = np.zeros(FINE_BINS, np.int32)
    for value in values:
        counts[min(max((np.float32(value).view(np.int32) >> 18) - 3743, 0), FINE_BINS - 1)] += 1
    return _quantile(counts, edges, share)


@_kernel
def _calm(derivatives, places, scale, edges, space):  # type: ignore[no-untyped-def]
    """Covariance of the channels in the calmer part of each window."""
    spread = np.empty((len(places), CHANNELS, CHANNELS), np.float32)
    for n in range(len(places)):
        flat = _copied(derivatives, places[n], space)
        size = flat.shape[1]
        energy = np.zeros(size, np.float32)
        for i in range(CHANNELS):
            values, factor = flat[i], scale[n, i]
            for p in range(size):
                values[p] *= factor
                energy[p] += values[p] * values[p]
        most = _fine_quantile(energy, edges, np.float32(CALM))
        calm = 0
        for p in range(size):
            calm += energy[p] <= most
            energy[p] = energy[p] <= most
        for i in range(CHANNELS):
            values = flat[i]
            for p in range(size):
                values[p] *= energy[p]
        _products(flat, spread[n])
        spread[n] /= np.float32(max(calm, 1))
    return spread


@_kernel
def _copied(derivatives, place, space):  # type: ignore[no-untyped-def]
    left, top, right, bottom = place
    width = right - left
    size = width * (bottom - top)
    flat = space[: CHANNELS * size].reshape(CHANNELS, size)
    for i in range(CHANNELS):
        for y in range(top, bottom):
            there, here = flat[i, (y - top) * width : (y - top + 1) * width], derivatives[i, y, left:right]
            for x in range(width):
                there[x] = here[x]
    return flat


@_kernel
def _products(flat, sums):  # type: ignore[no-untyped-def]
    sums[:] = 0
    for start in range(0, flat.shape[1], BLOCK):
        for i in range(CHANNELS):
            first = flat[i, start : start + BLOCK]
            for j in range(i + 1):
                second, total = flat[j, start : start + BLOCK], np.float32(0)
                for p in range(len(first)):
                    total += first[p] * second[p]
                sums[i, j] += total
    for i in range(CHANNELS):
        for j in range(i):
            sums[j, i] = sums[i, j]


@_kernel
def _pooled(derivatives, places, whitener, mixtures, blur, edges, space):  # type: ignore[no-untyped-def]
    """Weighted means over each window's places: of whitened strengths, of mixed ones, of plain ones.

    The weight is high where the derivatives are jointly unlikely in this window; where none are, all are equal.
    """
    alone = np.zeros((len(places), CHANNELS), np.float32)
    mixed = np.zeros((len(places), MIXTURES), np.float32)
    plain = np.zeros((len(places), CHANNELS), np.float32)
    white, sums = np.empty(CHANNELS, np.float32), np.empty(MIXTURES, np.float32)
    for n in range(len(places)):
        flat = _copied(derivatives, places[n], space)
        width = places[n, 2] - places[n, 0]
        weight = _oddity(_energy(flat, whitener[n]).reshape(-1, width), blur, edges).ravel()
        for p in range(len(weight)):
            if weight[p] > 0:
                _add(flat[:, p], weight[p], whitener[n], mixtures, white, sums, alone[n], mixed[n], plain[n])
    return alone, mixed, plain


@_kernel
def _energy(flat, whitener):  # type: ignore[no-untyped-def]
    """Squared length of the whitened derivatives at each place."""
    energy = np.zeros(flat.shape[1], np.float32)
    buffer = np.empty(BLOCK, np.float32)
    for start in range(0, flat.shape[1], BLOCK):
        part = energy[start : start + BLOCK]
        size, end = len(part), start + len(part)
        white = buffer[:size]
        for i in range(CHANNELS):
            white[:] = 0
            row = whitener[i]
            for j in range(0, CHANNELS, FIVE):
                a, b, c, d, e = row[j], row[j + 1], row[j + 2], row[j + 3], row[j + 4]
                r1, r2, r3 = flat[j, start:end], flat[j + 1, start:end], flat[j + 2, start:end]
                r4, r5 = flat[j + 3, start:end], flat[j + 4, start:end]
                for p in range(size):
                    white[p] += a * r1[p] + b * r2[p] + c * r3[p] + d * r4[p] + e * r5[p]
            for p in range(size):
                part[p] += white[p] * white[p]
    return energy


@_kernel
def _oddity(energy, blur, edges):  # type: ignore[no-untyped-def]
    """A weight for every place, with sum 1. Where no place is unusual, a sparse grid of places represents all."""
    odd = _smoothed(energy, blur)
    height, width = odd.shape
    median = max(_fine_quantile(odd.ravel(), edges, np.float32(0.5)), np.float32(1e-6))
    for y in range(height):
        for x in range(width):
            odd[y, x] = max(odd[y, x] / median - np.float32(3), np.float32(0)) ** 2
    if odd.sum() > 1e-3 * height * width:
        return odd / odd.sum()
    step = max(int(np.sqrt(height * width / SPARSE)), 1)
    floor = np.float32(1e-6 * height * width / (((height - 1) // step + 1) * ((width - 1) // step + 1)))
    for y in range(0, height, step):
        for x in range(0, width, step):
            odd[y, x] += floor
    return odd / odd.sum()


@_kernel
def _smoothed(image, blur):  # type: ignore[no-untyped-def]
    height, width = image.shape
    reach = len(blur) // 2
    line = np.empty(width + 2 * reach, np.float32)
    across, smooth = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for y in range(height):
        line[reach : reach + width] = image[y]
        for x in range(reach):
            line[x] = image[y, _mirrored(x - reach, width)]
            line[reach + width + x] = image[y, _mirrored(width + x, width)]
        for k in range(len(blur)):
            values, row = line[k : k + width], across[y]
            for x in range(width):
                row[x] += blur[k] * values[x]
    for y in range(height):
        for k in range(len(blur)):
            values, row = across[_mirrored(y + k - reach, height)], smooth[y]
            for x in range(width):
                row[x] += blur[k] * values[x]
    return smooth


@_kernel
def _mirrored(i, length):  # type: ignore[no-untyped-def]
    while length > 1 and not 0 <= i < length:
        i = -i if i < 0 else 2 * (length - 1) - i
    return i if length > 1 else 0


@_kernel
def _add(values, weight, whitener, mixtures, white, sums, alone, mixed, plain):  # type: ignore[no-untyped-def]
    """Add one place to the means."""
    for i in range(CHANNELS):
        total = np.float32(0)
        for j in range(CHANNELS):
            total += whitener[i, j] * values[j]
        white[i] = total
        alone[i] += weight * _log1p(abs(total))
        plain[i] += weight * abs(values[i])
    sums[:] = 0
    for i in range(0, CHANNELS, FIVE):
        a, b, c, d, e = white[i], white[i + 1], white[i + 2], white[i + 3], white[i + 4]
        r1, r2, r3, r4, r5 = mixtures[i], mixtures[i + 1], mixtures[i + 2], mixtures[i + 3], mixtures[i + 4]
        for m in range(MIXTURES):
            sums[m] += a * r1[m] + b * r2[m] + c * r3[m] + d * r4[m] + e * r5[m]
    for m in range(MIXTURES):
        mixed[m] += weight * _log1p(abs(sums[m]))


@_kernel
def _log1p(value):  # type: ignore[no-untyped-def]
    """log(1 + value) to five digits, much faster than the library's."""
    bits = np.float32(value + np.float32(1)).view(np.int32)
    power = np.float32((bits >> 23) - 127)
    part = np.int32((bits & 0x7FFFFF) | 0x3F800000).view(np.float32) - np.float32(1)
    series = np.float32(-0.023979847)
    series = series * part + np.float32(0.10150119)
    series = series * part + np.float32(-0.21029522)
    series = series * part + np.float32(0.32529598)
    series = series * part + np.float32(-0.49937278)
    series = series * part + np.float32(0.99999184)
    return power * np.float32(0.6931472) + part * series


# --- surface --------------------------------------------------------------------------------------------------------


def _surface(grey: NDArray[np.float32], boxes: Boxes) -> NDArray[np.float32]:
    """Histogram of patterns in each window, weighted by contrast; each radius counts the same."""
    shape = (len(RADII), *grey.shape)
    codes, contrast = _SPACE.get("codes", shape, np.uint8), _SPACE.get("contrast", shape, np.uint16)
    for n, (radius, sigma) in enumerate(RADII):
        smooth = _blurred(grey, sigma) if sigma else grey
        padded = cv2.copyMakeBorder(smooth, radius, radius, radius, radius, BORDER)
        _patterns(padded, *_ring(radius), _TABLE, radius, codes[n], contrast[n])
    counts = _counted(codes, contrast, boxes.astype(np.int64)).astype(np.float64)
    shares = np.sqrt(counts / np.maximum(counts.sum(axis=2, keepdims=True), 1e-9))
    return np.asarray(shares.reshape(len(boxes), -1), np.float32)


def _ring(radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    angle = 2 * np.pi * np.arange(8) / 8
    return np.rint(radius * np.cos(angle)).astype(np.int64), np.rint(radius * np.sin(angle)).astype(np.int64)


def _uniform() -> NDArray[np.uint8]:
    """Each of the 58 patterns with at most two changes around the ring has a bin of its own, all others share one."""
    changes = [sum((code >> k & 1) != (code >> (k + 1) % 8 & 1) for k in range(8)) for code in range(256)]
    own = np.cumsum(np.array(changes) <= 2) - 1
    return np.where(np.array(changes) <= 2, own, PATTERNS - 1).astype(np.uint8)


_TABLE = _uniform()


@_kernel
def _patterns(image, dx, dy, table, radius, codes, contrast):  # type: ignore[no-untyped-def]
    height, width = codes.shape
    code, total = np.empty(width, np.uint8), np.empty(width, np.float32)
    for y in range(height):
        code[:], total[:] = 0, 0
        here = image[y + radius, radius : radius + width]
        for k in range(8):
            there, bit = image[y + radius + dy[k], radius + dx[k] : radius + dx[k] + width], np.uint8(1 << k)
            for x in range(width):
                step = there[x] - here[x]
                total[x] += abs(step)
                code[x] |= bit if step >= 0 else np.uint8(0)
        for x in range(width):
            codes[y, x] = table[code[x]]
            contrast[y, x] = np.uint16(np.int32(total[x] * np.float32(CONTRAST)))


@_kernel
def _counted(codes, contrast, boxes):  # type: ignore[no-untyped-def]
    counts = np.zeros((len(boxes), len(codes), PATTERNS), np.int64)
    for n in range(len(boxes)):
        left, top, width, height = boxes[n]
        for part in range(len(codes)):
            even, odd = np.zeros(PATTERNS, np.int64), np.zeros(PATTERNS, np.int64)
            for y in range(top, top + height):
                kind, weight = codes[part, y, left : left + width], contrast[part, y, left : left + width]
                for x in range(0, width - 1, 2):
                    even[kind[x]] += weight[x]
                    odd[kind[x + 1]] += weight[x + 1]
                if width % 2:
                    even[kind[width - 1]] += weight[width - 1]
            counts[n, part] = even + odd
    return counts
