"""Label Studio's brush strokes: the packed run-lengths of an RGBA image, to and from row-major masks.

The list of bytes under `rle` is a stream of bits, most significant first, as `@thi.ng/rle-pack` writes it:

    header  32 bits: number of values (4 x height x width); 5: word size - 1; 4 x 4: each of four run sizes - 1
    runs    1 bit: repeated or not; 2: which run size; that many: count - 1; then one word, or `count` of them

Only alpha says what is painted, and from a browser it is antialiased: a pixel counts from 128 on. Streams come from a
server and are not trusted: what cannot be meant is refused. Bits after the last value are padding, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from curate.errors import LabelProblem

Bytes = NDArray[np.uint8]
Function = TypeVar("Function", bound=Callable[..., Any])

_CHANNELS = 4
_HEADER = 32 + 5 + 4 * 4  # bits
_LARGEST = 2**32 - 1  # values that the header can declare
_AHEAD = 8  # bytes that the reader may look past the end of a stream
_BLOCK = 64  # pixels compared at once: a cache line
# The Label Studio SDK's (and the browser's) parameters: words of 8 bits, runs of up to 2^3, 2^4, 2^8 and 2^16 values.
_PARAMETERS = (8 - 1) << 16 | (3 - 1) << 12 | (4 - 1) << 8 | (8 - 1) << 4 | (16 - 1)
_LONGEST = 2**16  # values in a run
_DEAREST = 14  # bits that a painted or clean pixel costs at most: that of a run of its own

_FINE, _CUT_OFF, _PAST_END = range(3)
_REASONS = {
    _CUT_OFF: "brush run {run}: the stream ends inside it, before all values of the {image} image were read",
    _PAST_END: "brush run {run}: goes past the end of the {image} image",
}


def encode(mask: NDArray[Any]) -> list[int]:
    """Encodes a mask for Label Studio, bit for bit as the SDK's `mask2rle` does for 255 times the mask.

    Args:
        mask: Row-major, 2-D, boolean or integer; any non-zero pixel is painted.

    Returns:
        Bytes as a list, what JSON calls `rle`.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise TypeError(f"a mask is a 2-D array of booleans or integers, not {mask.ndim}-D of {mask.dtype}")
    _values(*mask.shape)
    plain = mask if mask.dtype.itemsize == 1 else mask != 0
    pixels = np.ascontiguousarray(plain).view(np.uint8).reshape(-1)
    return list(_write(pixels).tobytes())  # twice as fast as the array's own tolist


def decode(rle: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """Decodes a brush stroke: 1 where alpha is above 127.

    Args:
        rle: Bytes as a list, from anywhere.
        height: Rows of the image; from the index, not from the server that sent the stroke.
        width: Columns of the image.

    Returns:
        A C-contiguous mask of 0 and 1.

    Raises:
        LabelProblem: If the stroke is not a list of bytes, or is cut off, or is not one of this image's size.
    """
    values = _values(height, width)
    data = _known_bytes(rle)
    if 8 * len(data) < _HEADER:
        raise LabelProblem(f"brush stream of {len(data)} bytes is too short for its header of 7")
    declared = int.from_bytes(data[:4], "big")
    if declared != values:
        raise LabelProblem(f"brush stream declares {declared} values; the {height}x{width} image has {values} (RGBA)")
    return _decoded(data, height, width)


def _values(height: int, width: int) -> int:
    values = _CHANNELS * height * width
    if height < 0 or width < 0 or values > _LARGEST:
        raise LabelProblem(f"no brush mask is {height} pixels high and {width} wide")
    return values


def _known_bytes(rle: Sequence[int]) -> bytearray:
    # What else bytearray() takes, it takes wrongly: a number as a length, an array as its memory.
    if not isinstance(rle, list | tuple | bytes):
        raise LabelProblem(f"brush stream is no list of whole numbers but a {type(rle).__name__}")
    try:
        return bytearray(rle)  # six times as fast as numpy's array, twice as bytes
    except (TypeError, ValueError):
        raise _entry_problem(rle) from None


def _entry_problem(rle: Sequence[object]) -> LabelProblem:
    for number, entry in enumerate(rle, 1):
        try:
            bytearray((entry,))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return LabelProblem(f"brush stream entry {number} is {_shown(entry)}, not a whole number from 0 to 255")
    raise AssertionError("only an entry can be wrong")


def _shown(entry: object) -> str:
    if isinstance(entry, int):
        # Python refuses to print an integer of thousands of digits.
        return str(entry) if entry.bit_length() <= 64 else "an integer of more than 64 bits"
    return f"a {type(entry).__name__}"


def _decoded(data: bytearray, height: int, width: int) -> Bytes:
    bits = 8 * len(data)
    data.extend(bytes(_AHEAD))
    mask = np.zeros((height, width), np.uint8)
    fault, run = _read(np.frombuffer(data, np.uint8), bits, mask.reshape(-1))
    if fault:
        raise LabelProblem(_REASONS[fault].format(run=run, image=f"{height}x{width}"))
    return mask


# --- kernels: decoding --------------------------------------------------------------------------------------------


def _kernel(function: Function) -> Function:
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


@_kernel
def _ahead(stream: Bytes, at: int) -> np.uint64:
    """The bits from `at` on, at least 57 of them, at the top of a word: more than a run's head and one value (51)."""
    first = np.uint64(at >> 3)
    word = np.uint64(0)
    for step in range(8):
        word = (word << np.uint64(8)) | np.uint64(stream[first + np.uint64(step)])
    return word << np.uint64(at & 7)


@_kernel
def _top(word: np.uint64, bits: int) -> int:
    """The first 1 to 32 bits of a word."""
    return np.int64(word >> np.uint64(64 - bits))  # type: ignore[return-value]


@_kernel
def _paint_values(stream: Bytes, at: int, size: int, done: int, end: int, pixels: Bytes) -> None:
    """Paints by the alphas among the values done..end, which begin at bit `at`; looks at nothing else."""
    for pixel in range(done // 4, end // 4):
        alpha = at + (4 * pixel + 3 - done) * size
        pixels[pixel] = _top(_ahead(stream, alpha), size) > 127


@_kernel
def _read(stream: Bytes, bits: int, pixels: Bytes) -> tuple[int, int]:
    """Paints run after run up to the first fault; says which, and in which run.

    The stream has `bits` bits and spare bytes after them. No run is believed before it is known to lie inside both
    the stream and the image, so that every look ahead starts inside the stream.
    """
    parameters = _top(_ahead(stream, 32), 21)
    size = (parameters >> 16) + 1
    at, done, run = 53, 0, 0
    while done < 4 * pixels.size:
        run += 1
        head = _ahead(stream, at)
        repeated = _top(head, 1)
        length = (parameters >> (12 - 4 * (_top(head, 3) & 3)) & 15) + 1
        count = _top(head << np.uint64(3), length) + 1
        at += 3 + length
        end = done + count
        if at + (size if repeated else count * size) > bits:
            return _CUT_OFF, run
        if end > 4 * pixels.size:
            return _PAST_END, run
        if not repeated:
            _paint_values(stream, at, size, done, end, pixels)
        elif _top(head << np.uint64(3 + length), size) > 127:
            pixels[done // 4 : end // 4] = 1
        at += size if repeated else count * size
        done = end
    return _FINE, run


# --- kernels: encoding --------------------------------------------------------------------------------------------


@_kernel
def _steady(pixels: Bytes, at: int) -> bool:
    """True if each pixel of a block equals the one before it. Unsigned indices let the loop become SIMD."""
    difference = np.uint8(0)
    for step in range(_BLOCK):
        here = np.uint64(at) + np.uint64(step)
        difference = np.uint8(difference | (pixels[here] ^ pixels[here - np.uint64(1)]))
    return bool(difference == 0)


@_kernel
def _run_end(pixels: Bytes, at: int) -> int:
    """The first pixel from `at` on that is painted where the one before is clean, or the other way round."""
    while at < pixels.size:
        end = min(at + _BLOCK, pixels.size)
        if end - at < _BLOCK or not _steady(pixels, at):
            for pixel in range(at, end):
                if (pixels[pixel] != 0) != (pixels[pixel - 1] != 0):
                    return pixel
        at = end
    return at


@_kernel
def _put(stream: Bytes, at: int, value: int, bits: int) -> int:
    """Appends up to 32 bits and clears what follows in the five bytes that they may touch; gives the new end."""
    first = at >> 3
    word = np.int64(value) << (40 - bits - (at & 7))
    stream[first] |= np.uint8(word >> 32)
    for step in range(1, 5):
        stream[first + step] = np.uint8((word >> (32 - 8 * step)) & 255)
    return at + bits


@_kernel
def _put_run(stream: Bytes, at: int, count: int, value: int) -> int:
    """Appends repeats of a value; what is left of more than the longest run keeps that one's size, however short."""
    which, length = (0, 3) if count <= 8 else (1, 4) if count <= 16 else (2, 8) if count <= 256 else (3, 16)
    while count > _LONGEST:
        at = _put(stream, at, (7 << 16 | 65535) << 8 | value, 27)
        count -= _LONGEST
    return _put(stream, at, ((4 | which) << length | (count - 1)) << 8 | value, 3 + length + 8)


@_kernel
def _write(pixels: Bytes) -> Bytes:
    """The whole stream; the SDK fills up the last byte, and adds one of zeros if it is full already."""
    stream = np.empty((_HEADER + _DEAREST * pixels.size) // 8 + _AHEAD, np.uint8)
    stream[0] = 0
    at = _put(stream, _put(stream, 0, 4 * pixels.size, 32), _PARAMETERS, 21)
    begin = 0
    while begin < pixels.size:
        end = _run_end(pixels, begin + 1)
        at = _put_run(stream, at, 4 * (end - begin), 255 if pixels[begin] else 0)
        begin = end
    return stream[: at // 8 + 1]
