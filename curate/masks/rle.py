"""Run-lengths: Kaggle's text, COCO's counts and COCO's compressed string, to and from row-major masks.

Both families walk an image column by column. Kaggle names the runs of defect pixels as `start length` pairs that count
from 1; COCO lists the lengths of alternating runs, clean pixels first, and may compress that list into ASCII. Label
files are not trusted: an impossible run is refused with its number and its value.

No mask is ever transposed. Decoding writes each run straight down its columns (64 neighbouring columns share their
cache lines); encoding compares each row with the one above it, so that equal stretches, nearly all of an image, pass
a block at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from curate.errors import LabelProblem

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

_BLOCK = 64  # pixels compared at once: a cache line
_LARGEST = 2**32 - 1  # pycocotools keeps counts in 32 bits,
_LONGEST = 7  # so the difference of two takes 34 bits: seven characters of five
_EDGES = 1024  # room for edges at first; it doubles when a row might not fit
_ROOM = 13  # characters that hold any 64-bit count
_SHOWN = 24  # characters of a wrong value that a message repeats

_WRONG, _NOTHING = -1, -2  # instead of a value: not digits, or no text left

_FINE, _NO_NUMBER, _NO_LENGTH, _TOO_EARLY, _NO_PIXELS, _NOT_ASCENDING, _OVERLAP, _PAST_END = range(8)
_TOO_MANY, _TOO_FEW, _NEGATIVE, _TOO_LARGE, _ALPHABET, _CUT_OFF, _TOO_LONG, _EMPTY = range(8, 16)
_REASONS = {
    _NO_NUMBER: "{wrong} is not a whole number",
    _NO_LENGTH: "start {start} has no length (odd number of values: {values})",
    _TOO_EARLY: "start {start} lies before the first pixel, 1",
    _NO_PIXELS: "length {length} at start {start}; a run has at least 1 pixel",
    _NOT_ASCENDING: "start {start} does not come after the run before ({before}); starts must ascend",
    _OVERLAP: "start {start} lies inside the run before ({before})",
    _PAST_END: "start {start} length {length} goes past the end of the {image} image",
    _TOO_MANY: "count {value} brings the sum past the end of the {image} image",
    _EMPTY: "the list of counts for the {image} image is empty",
    _TOO_FEW: "count {value} is the last but brings the sum only to {total} pixels of the {image} image",
    _NEGATIVE: "count {value} is negative",
    _TOO_LARGE: "count {value} is larger than 4294967295",
    _ALPHABET: "character {text!r} is not one of COCO's, '0' to 'o'",
    _CUT_OFF: "the text ends inside the count {text!r}",
    _TOO_LONG: "count {text!r} is longer than 7 characters",
}


class RleError(LabelProblem):
    """Run-lengths that cannot be read, or that cannot describe a mask of the given size."""


# --- Kaggle -------------------------------------------------------------------------------------------------------


def kaggle_to_mask(text: str, height: int, width: int, where: str = "") -> NDArray[np.uint8]:
    """Decodes Kaggle's run-lengths.

    Args:
        text: Column-major, 1-based `start length start length ...`; blank means no defect.
        height: Rows of the image.
        width: Columns of the image.
        where: What an error message starts with, such as the file and the line.

    Returns:
        A C-contiguous mask of 0 and 1.

    Raises:
        RleError: If the text is anything but ascending, disjoint, non-empty runs inside the image.
    """
    mask = _blank(height, width, where)
    data = _utf8(text)
    fault, run = _paint_kaggle(np.frombuffer(data, np.uint8), mask)
    if fault:
        raise _kaggle_error(where, run, fault, data.split(), mask)
    return mask


def mask_to_kaggle(mask: NDArray[Any]) -> str:
    """Encodes a mask as Kaggle's run-lengths.

    Args:
        mask: Row-major, 2-D, boolean or integer; any non-zero pixel is defect.

    Returns:
        `start length start length ...`, or an empty text for a clean mask.
    """
    return _kaggle_from_mask(_pixels(mask)).tobytes().decode("ascii")


# --- COCO ---------------------------------------------------------------------------------------------------------


def counts_to_mask(counts: Sequence[int] | Ints, height: int, width: int, where: str = "") -> NDArray[np.uint8]:
    """Decodes COCO's uncompressed counts.

    Args:
        counts: Lengths of alternating runs in column order, clean pixels first; a zero is tolerated anywhere.
        height: Rows of the image.
        width: Columns of the image.
        where: What an error message starts with.

    Returns:
        A C-contiguous mask of 0 and 1.

    Raises:
        RleError: If a count is negative or not a whole number, or if they do not sum to the image's pixels.
    """
    known = _known_counts(counts, where)
    mask = _blank(height, width, where)
    fault, run, total = _paint_counts(known, mask)
    if fault:
        value = known[run - 1 : run].sum()
        raise _error(where, run, fault, value=value, total=total, image=_size(mask))
    return mask


def mask_to_counts(mask: NDArray[Any]) -> list[int]:
    """Encodes a mask as COCO's uncompressed counts.

    Args:
        mask: Row-major, 2-D, boolean or integer; any non-zero pixel is defect.

    Returns:
        Lengths of alternating runs in column order, clean pixels first.
    """
    return cast(list[int], _counts_from_mask(_pixels(mask)).tolist())


def compress(counts: Sequence[int] | Ints) -> str:
    """Compresses COCO counts into the very string that pycocotools writes.

    Args:
        counts: Lengths of alternating runs, each from 0 to 4294967295.

    Returns:
        ASCII, one to seven characters for each count.

    Raises:
        RleError: If a count is out of range or not a whole number.
    """
    known = _known_counts(counts, "")
    outside = np.flatnonzero((known < 0) | (known > _LARGEST))
    if outside.size:
        value = known[outside[0]]
        raise _error("", int(outside[0]) + 1, _NEGATIVE if value < 0 else _TOO_LARGE, value=value)
    return _coco_from_counts(known).tobytes().decode("ascii")


def decompress(text: str, where: str = "") -> NDArray[np.int64]:
    """Reads COCO's compressed string.

    Args:
        text: The ASCII form that pycocotools writes.
        where: What an error message starts with.

    Returns:
        Lengths of alternating runs, clean pixels first.

    Raises:
        RleError: If a character does not belong, the text ends inside a count, or a count is out of range.
    """
    data = np.frombuffer(_utf8(text), np.uint8)
    counts = np.empty(data.size, np.int64)
    fault, run, at, value = _read_coco(data, counts)
    if fault:
        # All before the fault is ASCII, so that bytes and characters count alike.
        shown = text[at] if fault == _ALPHABET else text[at : at + _LONGEST]
        raise _error(where, run, fault, text=shown, value=value)
    return counts[:run]


def mask_to_coco(mask: NDArray[Any]) -> str:
    """Encodes a mask as COCO's compressed string.

    Args:
        mask: Row-major, 2-D, boolean or integer; any non-zero pixel is defect.

    Returns:
        The same as `compress(mask_to_counts(mask))`, in one step.
    """
    return _coco_from_mask(_pixels(mask)).tobytes().decode("ascii")


def coco_to_mask(text: str, height: int, width: int, where: str = "") -> NDArray[np.uint8]:
    """Decodes COCO's compressed string.

    Args:
        text: The ASCII form that pycocotools writes.
        height: Rows of the image.
        width: Columns of the image.
        where: What an error message starts with.

    Returns:
        A C-contiguous mask of 0 and 1.

    Raises:
        RleError: If the text cannot be read or its counts do not sum to the image's pixels.
    """
    return counts_to_mask(decompress(text, where), height, width, where)


# --- arguments ----------------------------------------------------------------------------------------------------


def _blank(height: int, width: int, where: str) -> Bytes:
    if height < 0 or width < 0 or height * width > _LARGEST:
        raise RleError(_prefixed(where, f"no image is {height} pixels high and {width} wide"))
    return np.zeros((height, width), np.uint8)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _pixels(mask: NDArray[Any]) -> Bytes:
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise TypeError(f"a mask is a 2-D array of booleans or integers, not {mask.ndim}-D of {mask.dtype}")
    plain = mask if mask.dtype.itemsize == 1 else mask != 0
    return np.ascontiguousarray(plain).view(np.uint8)


def _known_counts(counts: Sequence[int] | Ints, where: str) -> Ints:
    if isinstance(counts, np.ndarray) and counts.dtype == np.int64 and counts.ndim == 1:
        return np.ascontiguousarray(counts)
    try:
        return np.frombuffer(array("q", counts), np.int64)
    except (TypeError, OverflowError):
        raise _count_error(counts, where) from None


# --- errors -------------------------------------------------------------------------------------------------------


def _prefixed(where: str, message: str) -> str:
    return f"{where}: {message}" if where else message


def _error(where: str, run: int, fault: int, **values: Any) -> RleError:
    return RleError(_prefixed(where, f"run {run}: {_REASONS[fault].format(**values)}"))


def _kaggle_error(where: str, run: int, fault: int, values: list[bytes], mask: Bytes) -> RleError:
    first = 2 * run - 2
    shown = [_shortened(value.decode("utf-8", "surrogatepass")) for value in values[: first + 2]] + [""]
    start, length = shown[first : first + 2]
    before = " ".join(shown[max(0, first - 2) : first])
    wrong = repr(length if values[first].isdigit() else start)
    known = {"start": start, "length": length, "before": before, "wrong": wrong, "image": _size(mask)}
    return _error(where, run, fault, values=len(values), **known)


def _count_error(counts: Any, where: str) -> RleError:
    for run, count in enumerate(counts if isinstance(counts, Sequence | np.ndarray) else (), 1):
        if not isinstance(count, int | np.integer):
            return _error(where, run, _NO_NUMBER, wrong=_shortened(repr(count)))
        value = int(count)
        if abs(value) > _LARGEST:
            # Python refuses to print an integer of thousands of digits in decimal.
            shown = f"{hex(value)[:_SHOWN]}..." if abs(value) > 10**_SHOWN else value
            return _error(where, run, _NEGATIVE if value < 0 else _TOO_LARGE, value=shown)
    return RleError(_prefixed(where, f"{type(counts).__name__} is not a list of counts"))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _size(mask: Bytes) -> str:
    return f"{mask.shape[0]}x{mask.shape[1]}"


# --- kernels: decoding --------------------------------------------------------------------------------------------


def _kernel(function: Function) -> Function:
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


@_kernel
def _paint_run(pixels: Bytes, height: int, width: int, begin: int, end: int) -> None:
    """Sets the column-order positions begin..end of a row-major image."""
    while begin < end:
        column, row = divmod(begin, height)
        rows = min(height - row, end - begin)
        first = row * width + column
        for at in range(first, first + rows * width, width):
            pixels[at] = 1
        begin += rows


@_kernel
def _end_of_space(data: Bytes, at: int) -> int:
    """Return where the white space that may begin at `at` ends."""
    while at < data.size and (data[at] == 32 or 9 <= data[at] <= 13):
        at += 1
    return at


@_kernel
def _number(data: Bytes, at: int, limit: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends; past the limit it stops growing, so that it never overflows."""
    if at == data.size:
        return _NOTHING, at
    value = 0
    while at < data.size and not (data[at] == 32 or 9 <= data[at] <= 13):
        digit = int(np.int64(data[at])) - 48
        if digit < 0 or digit > 9:
            return _WRONG, at
        if value <= limit:
            value = value * 10 + digit
        at += 1
    return value, at


@_kernel
def _run_fault(start: int, length: int, before: int, free: int, pixels: int) -> int:
    """Return the fault of a run that follows one with start `before`; `free` is the first pixel not yet taken."""
    if start == _WRONG or length == _WRONG:
        return _NO_NUMBER
    if length == _NOTHING:
        return _NO_LENGTH
    if start < 1:
        return _TOO_EARLY
    if length < 1:
        return _NO_PIXELS
    if start <= before:
        return _NOT_ASCENDING
    if start < free:
        return _OVERLAP
    return _PAST_END if start + length - 1 > pixels else _FINE


@_kernel
def _paint_kaggle(data: Bytes, mask: Bytes) -> tuple[int, int]:
    """Paints run after run up to the first fault; returns the fault and the number of its run."""
    height, width = mask.shape
    pixels = mask.reshape(mask.size)
    run, before, free = 0, 0, 0
    at = _end_of_space(data, 0)
    while at < data.size:
        run += 1
        start, at = _number(data, at, mask.size)
        length, at = _number(data, _end_of_space(data, at), mask.size)
        fault = _run_fault(start, length, before, free, mask.size)
        if fault != _FINE:
            return fault, run
        before, free = start, start + length
        _paint_run(pixels, height, width, start - 1, free - 1)
        at = _end_of_space(data, at)
    return _FINE, run


@_kernel
def _paint_counts(counts: Ints, mask: Bytes) -> tuple[int, int, int]:
    """Paints every second count up to the first fault; says which, in which run, and the sum that far."""
    height, width = mask.shape
    pixels = mask.reshape(mask.size)
    total = 0
    for index in range(counts.size):
        count = counts[index]
        if count < 0 or count > mask.size - total:
            return _NEGATIVE if count < 0 else _TOO_MANY, index + 1, total
        if index % 2:
            _paint_run(pixels, height, width, total, total + count)
        total += count
    if total == mask.size:
        return _FINE, counts.size, total
    return _TOO_FEW if counts.size else _EMPTY, max(1, counts.size), total


@_kernel
def _read_difference(data: Bytes, at: int) -> tuple[int, int, int]:
    """Returns fault, value and end of a little-endian number, five bits a character (32: more follows, 16: sign)."""
    value, shift = 0, 0
    while at < data.size and shift < 5 * _LONGEST:
        digit = int(np.int64(data[at])) - 48
        if digit < 0 or digit > 63:
            return _ALPHABET, value, at
        value |= (digit & 31) << shift
        at += 1
        shift += 5
        if not digit & 32:
            return _FINE, value - ((1 << shift) if digit & 16 else 0), at
    return _CUT_OFF if shift < 5 * _LONGEST else _TOO_LONG, value, at


@_kernel
def _read_coco(data: Bytes, counts: Ints) -> tuple[int, int, int, int]:
    """Reads counts up to the first fault; returns the fault, its run, its character and the value."""
    run, at = 0, 0
    while at < data.size:
        fault, count, end = _read_difference(data, at)
        if fault != _FINE:
            return fault, run + 1, end if fault == _ALPHABET else at, count
        count += counts[run - 2] if run > 2 else 0
        if count < 0 or count > _LARGEST:
            return _NEGATIVE if count < 0 else _TOO_LARGE, run + 1, at, count
        counts[run] = count
        run, at = run + 1, end
    return _FINE, run, at, 0


# --- kernels: encoding --------------------------------------------------------------------------------------------


# Unsigned indices spare numba's test for negative ones. In `_block_is_equal` that, the byte type and the block's size
# decide whether the loop becomes SIMD, fifty times as fast: it does not with blocks of 32 or 16 pixels.


@_kernel
def _block_is_equal(above: Bytes, here: Bytes, left: int) -> bool:
    """Return True if a whole block equals the one above."""
    difference = np.uint8(0)
    for step in range(_BLOCK):
        column = np.uint64(left) + np.uint64(step)
        difference = np.uint8(difference | (above[column] ^ here[column]))
    return bool(difference == 0)


@_kernel
def _visit_row(above: Bytes, here: Bytes, row: int, height: int, edges: Ints, found: int) -> int:
    """Appends the column-order positions of pixels that differ from those above; returns the new number of edges."""
    for left in range(0, here.size, _BLOCK):
        right = min(left + _BLOCK, here.size)
        if right - left == _BLOCK and _block_is_equal(above, here, left):
            continue
        for column in range(np.uint64(left), np.uint64(right)):
            if (above[column] != 0) != (here[column] != 0):
                edges[found] = np.int64(column) * height + row
                found += 1
    return found


@_kernel
def _edges_by_row(mask: Bytes) -> Ints:
    height, width = mask.shape
    edges: Ints = np.empty(_EDGES + width, np.int64)
    ends = np.zeros(width, np.uint8)  # what comes before a column's first pixel: the last one of the column before
    ends[1:] = mask[height - 1, : width - 1]
    found = _visit_row(ends, mask[0], 0, height, edges, 0)
    for row in range(1, height):
        if found + width > edges.size:
            edges = np.concatenate((edges, edges))
        found = _visit_row(mask[row - 1], mask[row], row, height, edges, found)
    return edges[:found]


@_kernel
def _by_column(edges: Ints, height: int, width: int) -> Ints:
    """Sorts edges by column, by counting: within a column they are in order already."""
    slots: Ints = np.zeros(width + 1, np.int64)
    for edge in edges:
        slots[edge // height + 1] += 1
    slots = slots.cumsum()
    ordered = np.empty_like(edges)
    for edge in edges:
        ordered[slots[edge // height]] = edge
        slots[edge // height] += 1
    return ordered


@_kernel
def _edges(mask: Bytes) -> Ints:
    """Returns the ascending column-order positions of pixels that differ from the one before; the first follows 0."""
    if mask.size == 0:
        return np.empty(0, np.int64)
    return _by_column(_edges_by_row(mask), mask.shape[0], mask.shape[1])


@_kernel
def _write_number(value: int, text: Bytes, at: int) -> int:
    """Writes the digits and a space; returns the place after them."""
    end, rest = at + 1, value // 10
    while rest:
        end, rest = end + 1, rest // 10
    text[end] = 32
    for place in range(end - 1, at - 1, -1):
        text[place] = 48 + value % 10
        value //= 10
    return end + 1


@_kernel
def _kaggle_from_mask(mask: Bytes) -> Bytes:
    edges = _edges(mask)
    text = np.empty((edges.size + 1) * (_write_number(mask.size, np.empty(20, np.uint8), 0)), np.uint8)
    at = 0
    for index in range(0, edges.size, 2):
        begin = edges[index]
        end = edges[index + 1] if index + 1 < edges.size else mask.size
        at = _write_number(begin + 1, text, at)
        at = _write_number(end - begin, text, at)
    return text[: max(0, at - 1)]


@_kernel
def _counts_from_mask(mask: Bytes) -> Ints:
    edges = _edges(mask)
    counts = np.empty(edges.size + 1, np.int64)
    begin = 0
    for index in range(edges.size):
        counts[index] = edges[index] - begin
        begin = edges[index]
    counts[edges.size] = mask.size - begin
    return counts


@_kernel
def _coco_from_counts(counts: Ints) -> Bytes:
    """Writes five bits a character, each count from the fourth on as the difference to the last but one."""
    text = np.empty(_ROOM * counts.size, np.uint8)
    at = 0
    for index in range(counts.size):
        value = counts[index] - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text[at] = bits + (80 if more else 48)
            at += 1
    return text[:at]


@_kernel
def _coco_from_mask(mask: Bytes) -> Bytes:
    return _coco_from_counts(_counts_from_mask(mask))
