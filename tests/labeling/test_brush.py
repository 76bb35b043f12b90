"""Brush strokes: bit for bit the Label Studio SDK's, other writers' streams, and every hostile one refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle
from numpy.typing import NDArray
from PIL import Image

from curate.errors import LabelProblem
from labeling.brush import decode, encode
from tests.fakes import REPOSITORY, blob, real_data

Mask = NDArray[np.uint8]
Random = np.random.Generator

masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32 - 1)

# An antialiased stroke of one colour, and the very bytes of @thi.ng/rle-pack 3.2.12, the browser's own writer: with
# the browser's parameters, and with words of 12 bits and runs of 1, 2, 5 and 9.
ALPHA = [[0, 0, 64, 127, 128, 0], [0, 90, 255, 255, 255, 128], [0, 127, 255, 255, 129, 0], [0, 0, 200, 126, 3, 0]]
BROWSER = {
    "8 bits": "00000060391bfce006fd10cd903d10cd9ffd10cda02700427e8866cb5e8866dffe8866dffe8866dffe8866d011801ff4"
    "43367ff44336fff44336fff4433681b6006fd10cdb23d10cd9fbd10cd80e3000",
    "12 bits": "00000060580a4638002587a02181b02007a02181b03f87a02181b040638002987a02181b02d07a02181b07f87a02181b"
    "07f87a02181b07f87a02181b0405c0013c3d010c0d81fc3d010c0d83fc3d010c0d83fc3d010c0d82072c0012c3d010c0"
    "d83203d010c0d81f83d010c0d800ee0000",
}


# --- the Label Studio SDK ---------------------------------------------------------------------------------------------


def assert_same_as_the_sdk(mask: NDArray[Any]) -> None:
    painted = mask != 0
    theirs = mask2rle(255 * painted.astype(np.uint8))
    assert encode(mask) == theirs
    decoded = decode(theirs, *mask.shape)
    assert (decoded.dtype.name, decoded.flags.c_contiguous, decoded.flags.writeable) == ("uint8", True, True)
    np.testing.assert_array_equal(decoded, painted)


@given(masks)
@settings(deadline=None)
def test_any_mask_is_written_as_the_sdk_writes_it(mask: Mask) -> None:
    assert_same_as_the_sdk(mask)


# A run holds at most 65536 values, which are 16384 pixels; pixels are compared 64 at a time.
SHAPES = [(1, 1), (1, 2), (2, 1), (1, 64), (64, 1), (1, 65), (3, 43), (128, 128), (1, 16383), (1, 16385), (4, 8192)]
SHAPES += [(5, 6554), (3, 16384), (256, 1600)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_none_and_noise(shape: tuple[int, int]) -> None:
    assert_same_as_the_sdk(np.zeros(shape, np.uint8))
    assert_same_as_the_sdk(np.ones(shape, np.uint8))
    noise = np.random.default_rng(0).random(shape)
    for density in (0.001, 0.02) if noise.size > 100_000 else (0.02, 0.5, 0.98):
        assert_same_as_the_sdk(noise < density)


def test_runs_of_every_length_up_to_the_third_size_and_around_the_largest() -> None:
    for lengths in (range(1, 70), [16383, 1, 16384, 1, 16385, 32767, 32768, 32769]):
        runs = np.repeat(np.arange(len(lengths)) % 2, lengths)
        assert_same_as_the_sdk(runs[None].astype(np.uint8))
        assert_same_as_the_sdk(1 - runs[:, None].astype(np.uint8))


def test_what_counts_as_painted_is_anything_but_zero() -> None:
    mask = blob(70, 90)
    levels = np.random.default_rng(0).integers(1, 256, mask.shape).astype(np.uint8)
    frozen = mask * levels
    frozen.flags.writeable = False
    for same in (mask.astype(bool), mask * levels, mask.astype(np.int32) * -256, frozen, np.asfortranarray(mask)):
        assert encode(same) == encode(mask)
    assert_same_as_the_sdk(mask[::2, ::3])


@pytest.mark.parametrize("mask", [np.zeros((2, 2, 2), np.uint8), np.zeros(4, bool), np.zeros((2, 2))])
def test_what_is_no_mask_is_not_encoded(mask: NDArray[Any]) -> None:
    with pytest.raises(TypeError, match="a mask is a 2-D array"):
        encode(mask)


def test_an_image_without_pixels_comes_back() -> None:
    assert decode(encode(np.zeros((0, 7), np.uint8)), 0, 7).shape == (0, 7)


@given(st.tuples(shapes, seeds, st.floats(0, 1)))
@settings(deadline=None)
def test_the_alpha_of_any_rgba_image_decides(drawn: tuple[tuple[int, int], int, float]) -> None:
    (height, width), seed, share = drawn
    image = smooth(height * width, np.random.default_rng(seed), 256, share)
    alpha = image.reshape(height, width, 4)[..., 3]
    np.testing.assert_array_equal(decode(encode_rle(image), height, width), alpha > 127)


@pytest.mark.exhaustive
def test_every_mask_of_magnetic_tile() -> None:
    paths = sorted(real_data("magnetic_tile").glob("*/Imgs/*.png"))
    assert len(paths) == 1344
    for path in paths:
        assert_same_as_the_sdk(np.asarray(Image.open(path).convert("L")) > 127)


# --- other writers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", BROWSER)
def test_a_stroke_as_the_browser_writes_it(parameters: str) -> None:
    stream = list(bytes.fromhex(BROWSER[parameters]))
    np.testing.assert_array_equal(decode(stream, 4, 6), np.array(ALPHA) > 127)


@given(st.tuples(shapes, st.integers(1, 32), st.lists(st.integers(1, 16), min_size=4, max_size=4), seeds))
@settings(deadline=None, max_examples=300)
def test_any_word_size_and_any_run_sizes(drawn: tuple[tuple[int, int], int, list[int], int]) -> None:
    (height, width), word, sizes, seed = drawn
    random = np.random.default_rng(seed)
    values = smooth(height * width, random, 2**word, random.random())
    stream = pack(values.tolist(), word, sizes, random)
    alpha = values.reshape(height, width, 4)[..., 3]
    np.testing.assert_array_equal(decode(stream, height, width), alpha > 127)
    np.testing.assert_array_equal(decode(bytes(stream), height, width), alpha > 127)
    if word <= 8:  # wider ones do not fit into what the SDK unpacks to
        np.testing.assert_array_equal(decode_rle(stream), values)


def test_bits_after_the_last_value_mean_nothing() -> None:
    mask = blob()
    np.testing.assert_array_equal(decode([*encode(mask), 1, 2, 255], *mask.shape), mask)


def smooth(pixels: int, random: Random, levels: int, share: float) -> NDArray[np.int64]:
    """RGBA values, flat: about this share of the pixels repeats the one before; some are 0, 127, 128 or the top."""
    image = random.integers(0, levels, (pixels, 4))
    common = np.minimum([0, 127, 128, levels - 1], levels - 1)
    image = np.where(random.random(image.shape) < 0.5, random.choice(common, image.shape), image)
    for pixel in range(1, pixels):
        if random.random() < share:
            image[pixel] = image[pixel - 1]
    return image.reshape(-1)


def pack(values: list[int], word: int, sizes: list[int], random: Random) -> list[int]:
    """A valid stream with runs cut at random. (The SDK writes words of 8 bits, whatever it is told.)"""
    bits = f"{len(values):032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(values):
        which = int(random.integers(4))
        same = next((n for n, value in enumerate(values[at:]) if value != values[at]), len(values) - at)
        repeated = random.random() < 0.5
        most = min(2 ** sizes[which], same if repeated else len(values) - at)
        count = most if random.random() < 0.5 else int(random.integers(1, most + 1))
        bits += f"{int(repeated)}{which:02b}{count - 1:0{sizes[which]}b}"
        bits += "".join(f"{value:0{word}b}" for value in values[at : at + (1 if repeated else count)])
        at += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[begin : begin + 8], 2) for begin in range(0, len(bits), 8)]


# --- what is not to be trusted ----------------------------------------------------------------------------------------

HEADER = [0, 0, 0, 96, 57, 27, 252]
"""Of a 4x6 image in the browser's parameters."""

REFUSED: dict[str, tuple[Any, str]] = {
    "empty": ([], "brush stream of 0 bytes is too short for its header of 7"),
    "half a header": (HEADER[:6], "brush stream of 6 bytes is too short for its header of 7"),
    "only a header": (HEADER, "run 1: the stream ends inside it, before all values of the 4x6 image were read"),
    "larger image": ([0, 0, 0, 100, *HEADER[4:]], "declares 100 values; the 4x6 image has 96 (RGBA)"),
    "bomb": ([255, 255, 255, 255, *HEADER[4:]], "declares 4294967295 values; the 4x6 image has 96 (RGBA)"),
    "nothing declared": ([0, 0, 0, 0, *HEADER[4:]], "declares 0 values; the 4x6 image has 96 (RGBA)"),
    "too long a run": ([*HEADER[:6], 0b11111_111, *[255] * 4], "run 1: goes past the end of the 4x6 image"),
    "too long a run of single values": (
        [*HEADER[:6], 0b11111_010, 96, *[0] * 97],
        "run 1: goes past the end of the 4x6 image",
    ),
    "above a byte": ([*HEADER, 0, 256], "entry 9 is 256, not a whole number from 0 to 255"),
    "negative": ([0, -1], "entry 2 is -1, not a whole number from 0 to 255"),
    "beyond 64 bits": ([10**30], "entry 1 is an integer of more than 64 bits, not a whole number from 0 to 255"),
    "beyond print": ([0, 10**5000], "entry 2 is an integer of more than 64 bits, not a whole number"),
    "a fraction": ([0, 0, 1.0], "entry 3 is a float, not a whole number from 0 to 255"),
    "a text in the list": ([0, "1"], "entry 2 is a str, not a whole number from 0 to 255"),
    "null in the list": ([None], "entry 1 is a NoneType, not a whole number from 0 to 255"),
    "a list in the list": ([[0, 0], [0, 96]], "entry 1 is a list, not a whole number from 0 to 255"),
    "null": (None, "is no list of whole numbers but a NoneType"),
    "a number": (10**12, "is no list of whole numbers but a int"),
    "a text": ("AAAA", "is no list of whole numbers but a str"),
    "an object": ({"0": 1}, "is no list of whole numbers but a dict"),
    "an array": (np.zeros(40), "is no list of whole numbers but a ndarray"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(case: str) -> None:
    stream, reason = REFUSED[case]
    with pytest.raises(LabelProblem, match=re.escape(reason)):
        decode(stream, 4, 6)


@pytest.mark.parametrize("size", [(-1, 4), (4, -1), (2**15, 2**15)])
def test_sizes_that_no_image_has(size: tuple[int, int]) -> None:
    with pytest.raises(LabelProblem, match="no brush mask is"):
        decode(HEADER, *size)


def test_a_mask_too_large_for_the_format_is_not_copied_first() -> None:
    with pytest.raises(LabelProblem, match="32768 pixels high"):
        encode(np.broadcast_to(np.zeros(1, bool), (2**15, 2**15)))


def test_memory_is_that_of_the_mask_and_the_stream() -> None:
    mask = np.ones((256, 1600), np.uint8)
    stream = encode(mask)
    decode(stream, *mask.shape)
    tracemalloc.start()
    try:
        decode(stream, *mask.shape)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * mask.size, "the RGBA image would be four times the mask"
        tracemalloc.reset_peak()
        with pytest.raises(LabelProblem):
            decode([255, 255, 255, 252, *HEADER[4:]], 4, 6)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * mask.size
    finally:
        tracemalloc.stop()


def definition(stream: list[int], height: int, width: int) -> NDArray[np.bool_] | None:
    """The format, bit by bit from a text of zeros and ones; None for what has to be refused."""
    bits = "".join(f"{byte:08b}" for byte in stream)
    if len(bits) < 53 or int(bits[:32], 2) != 4 * height * width:
        return None
    word, at, values = int(bits[32:37], 2) + 1, 53, list[int]()
    while len(values) < 4 * height * width:
        length = int(bits[37:53][4 * int(bits[at + 1 : at + 3] or "0", 2) :][:4], 2) + 1
        count = int(bits[at + 3 : at + 3 + length] or "0", 2) + 1
        repeated, at = bits[at : at + 1] == "1", at + 3 + length
        end = at + word * (1 if repeated else count)
        if end > len(bits) or len(values) + count > 4 * height * width:
            return None
        read = [int(bits[begin : begin + word], 2) for begin in range(at, end, word)]
        values, at = values + read * (count if repeated else 1), end
    return np.array(values).reshape(height, width, 4)[..., 3] > 127


def assert_as_defined(stream: list[int], height: int, width: int) -> bool:
    """A mask just where the format has one, else LabelProblem; tells which."""
    expected = definition(stream, height, width)
    if expected is None:
        with pytest.raises(LabelProblem):
            decode(stream, height, width)
        return False
    np.testing.assert_array_equal(decode(stream, height, width), expected)
    return True


def hostile(seed: int) -> tuple[list[int], int, int]:
    """A valid stream that was cut, bent or went on as noise; or nothing but noise behind a header that fits."""
    random = np.random.default_rng(seed)
    height, width = (int(n) for n in random.integers(1, 12, 2))
    word, sizes = int(random.choice([1, 7, 8, 8, 9, 31, 32])), random.integers(1, 17, 4).tolist()
    stream = pack(smooth(height * width, random, 2**word, random.random()).tolist(), word, sizes, random)
    kind = random.integers(5)
    if kind < 2:
        stream = stream[: random.integers(7 if kind else 0, len(stream))]
    for _ in range(random.integers(1, 4) if kind == 2 else 0):
        stream[random.integers(4, len(stream))] = int(random.integers(256))
    if kind > 2:
        keep = 4 if kind == 3 else 7
        stream = stream[:keep] + random.integers(0, 256, random.integers(0, 400)).tolist()
    return stream, height, width


@given(seeds)
@settings(deadline=None, max_examples=500)
def test_a_bent_stream_is_a_mask_or_a_label_problem(seed: int) -> None:
    assert_as_defined(*hostile(seed))


@given(st.lists(st.integers(0, 255), max_size=60), shapes)
@settings(deadline=None)
def test_noise_is_a_mask_or_a_label_problem(noise: list[int], shape: tuple[int, int]) -> None:
    assert_as_defined(noise, *shape)
    assert_as_defined([*(4 * shape[0] * shape[1]).to_bytes(4, "big"), *noise], *shape)


@given(st.lists(st.one_of(st.integers(), st.floats(), st.none(), st.text(max_size=3)), max_size=20), shapes)
@settings(deadline=None)
def test_a_list_of_anything_is_a_mask_or_a_label_problem(entries: list[Any], shape: tuple[int, int]) -> None:
    if all(isinstance(entry, int) and 0 <= entry <= 255 for entry in entries):
        assert_as_defined(entries, *shape)
    else:
        with pytest.raises(LabelProblem):
            decode(entries, *shape)


def test_every_way_of_cutting_a_stream_is_refused() -> None:
    mask = blob(9, 11)
    stream = mask2rle(255 * mask)
    whole = [assert_as_defined(stream[:end], *mask.shape) for end in range(len(stream) + 1)]
    assert whole.index(True) >= len(stream) - 1, "only the SDK's padding may be missing"


BOUNDED = """
import numpy as np
from labeling import brush
from tests.labeling.test_brush import assert_as_defined, assert_same_as_the_sdk, hostile
try:
    brush._ahead(np.zeros(4, np.uint8), 0)
except IndexError:
    print(sum(assert_as_defined(*hostile(seed)) for seed in range(1500)))
    for density in (0, 0.01, 0.5, 1):
        for width in (1, 63, 64, 65, 200):
            assert_same_as_the_sdk(np.random.default_rng(width).random((3, width)) < density)
    # The dearest masks: every pixel a run of its own, so that the room for the stream is just enough.
    for width in (1, 2, 3, 4, 5, 6, 7, 8, 200):
        assert_same_as_the_sdk(np.arange(width)[None] % 2)
"""


@pytest.mark.exhaustive
def test_no_kernel_looks_or_writes_outside_its_arrays(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout) < 1400, "both kinds of streams, and the check for bounds was on"
