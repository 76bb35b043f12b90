"""Brush strokes against the Label Studio SDK's own converter: `python -m tests.bench.bench_brush`.

One thread, warm, repetitions interleaved so that a busy moment of the machine hits both alike; medians. Both pay what a
caller pays: encoding begins at a mask of 0 and 1 and ends at a list of ints, decoding begins there and ends at a mask
of 0 and 1. All are checked against each other before any is timed.
"""

from __future__ import annotations

import os

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle
from numpy.typing import NDArray

from labeling.brush import decode, encode
from tests.bench._measure import interleaved, print_table

cv2.setNumThreads(1)
GOAL, MISSED = 3.0, "NOT MET"
Mask = NDArray[np.uint8]
Random = np.random.Generator
Case = tuple[list[Mask], list[list[int]]]
Inputs = Sequence[tuple[Any, ...]]


# --- data ---------------------------------------------------------------------------------------------------------


def strip(random: Random) -> Mask:
    """A rolled strip with one to three small defects."""
    return ellipses(256, 1600, int(random.integers(1, 4)), 40, random)


def picture(random: Random) -> Mask:
    """A picture of 200x200 with one to three defects of some size."""
    return ellipses(200, 200, int(random.integers(1, 4)), 80, random)


def noise(random: Random) -> Mask:
    return (random.random((200, 200)) < 0.5).astype(np.uint8)


def ellipses(height: int, width: int, count: int, largest: int, random: Random) -> Mask:
    mask = np.zeros((height, width), np.uint8)
    for _ in range(count):
        centre = (int(random.integers(width)), int(random.integers(height)))
        axes = (int(random.integers(3, largest)), int(random.integers(3, largest)))
        cv2.ellipse(mask, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
    return mask


def drawn(draw: Callable[[Random], Mask], count: int) -> Case:
    """Masks and what the SDK makes of them."""
    random = np.random.default_rng(0)
    masks = [draw(random) for _ in range(count)]
    return masks, [mask2rle(255 * mask) for mask in masks]


def edited(count: int) -> Case:
    """Strokes as a browser leaves them: one colour, and edges of any alpha."""
    masks, streams = list[Mask](), list[list[int]]()
    random = np.random.default_rng(0)
    for _ in range(count):
        alpha = cv2.blur(255 * picture(random), (3, 3))
        image = (alpha > 0)[..., None] * np.array([244, 67, 54, 255], np.uint8)
        image[..., 3] = alpha
        masks.append((alpha > 127).astype(np.uint8))
        streams.append(encode_rle(image.reshape(-1)))
    return masks, streams


# --- methods ------------------------------------------------------------------------------------------------------


def sdk_encode(mask: Mask) -> list[int]:
    return list(mask2rle(255 * mask))


def sdk_decode(stream: list[int], height: int, width: int) -> Mask:
    alpha = decode_rle(stream).reshape(height, width, 4)[..., 3]
    return np.asarray((alpha > 127).astype(np.uint8))


def check(masks: list[Mask], streams: list[list[int]], encoded: bool) -> None:
    for mask, stream in zip(masks, streams, strict=True):
        assert np.array_equal(decode(stream, *mask.shape), mask)
        assert np.array_equal(sdk_decode(stream, *mask.shape), mask)
        assert encode(mask) == (stream if encoded else sdk_encode(mask))


def each(method: Callable[..., Any], inputs: Inputs) -> None:
    """One after the other; no result outlives the next call, so that no method is timed by fresh pages from Linux."""
    for values in inputs:
        method(*values)


def speeds(ours: Callable[..., Any], theirs: Callable[..., Any], inputs: Inputs, repetitions: int) -> list[float]:
    """Median masks a second of both."""
    seconds = interleaved({"ours": lambda: each(ours, inputs), "sdk": lambda: each(theirs, inputs)}, repetitions)
    return [len(inputs) / seconds[name] for name in ("ours", "sdk")]


def rows(name: str, case: Case, repetitions: int, encoded: bool = True) -> list[list[str]]:
    """The lines of one kind of mask; streams that the SDK's `mask2rle` did not write are only decoded."""
    masks, streams = case
    check(masks, streams, encoded)
    pairs = [(stream, *mask.shape) for stream, mask in zip(streams, masks, strict=True)]
    timed = {f"decode {name}": speeds(decode, sdk_decode, pairs, repetitions)}
    if encoded:
        timed[f"encode {name}"] = speeds(encode, sdk_encode, [(mask,) for mask in masks], repetitions)
    size = f"{sum(map(len, streams)) / len(streams):,.0f}"
    return [line(title, size, *pair) for title, pair in timed.items()]


def line(title: str, size: str, ours: float, theirs: float) -> list[str]:
    verdict = "met" if ours / theirs >= GOAL else MISSED
    return [title, size, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.0f}x", verdict]


def main() -> int:
    """Prints the table; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    lines = rows("256x1600, small defects", drawn(strip, 60), repetitions)
    lines += rows("200x200, medium masks", drawn(picture, 60), repetitions)
    lines += rows("200x200, noise", drawn(noise, 3), repetitions)
    lines += rows("200x200, antialiased", edited(20), repetitions, encoded=False)
    print(f"one thread, {repetitions} repetitions, all bit-exact; the goal is {GOAL:.0f}x")
    print_table(["masks a second", "bytes a mask", "ours", "SDK", "ours is", "goal"], lines)
    return int(any(MISSED in cells for cells in lines))


if __name__ == "__main__":
    raise SystemExit(main())
