"""Run-lengths: exact round trips, the strings of pycocotools, every refusal, and Severstal's own rows."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from curate.errors import LabelProblem
from curate.masks.rle import (
    RleError,
    coco_to_mask,
    compress,
    counts_to_mask,
    decompress,
    kaggle_to_mask,
    mask_to_coco,
    mask_to_counts,
    mask_to_kaggle,
)

Mask = NDArray[np.uint8]
REAL = Path(os.environ.get("CURATE_REAL_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")

masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))


def sparse(height: int, width: int, seed: int, density: float = 0.1) -> Mask:
    """A mask of random rectangles, so that its runs are long."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    while mask.mean() < density:
        top, left = random.integers(height), random.integers(width)
        mask[
            top : top + random.integers(1, height + 1) // 2 + 1, left : left + random.integers(1, width + 1) // 3 + 1
        ] = 1
    return mask


# Wider than a block of 64 pixels, exactly one and several blocks, and one more or less.
SHAPES = [(1, 1), (1, 7), (7, 1), (1, 200), (200, 1), (64, 64), (63, 65), (65, 63), (3, 128), (5, 129), (256, 1600)]
MASKS = [sparse(height, width, seed) for seed, (height, width) in enumerate(SHAPES)]
MASKS += [np.zeros(shape, np.uint8) for shape in SHAPES] + [np.ones(shape, np.uint8) for shape in SHAPES]
MASKS += [(np.random.default_rng(5).random(shape) < 0.5).astype(np.uint8) for shape in SHAPES]
all_masks = pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.shape[0]}x{mask.shape[1]}-{mask.sum()}")


def slow_kaggle(mask: NDArray[Any]) -> str:
    """The definition, pixel by pixel."""
    flat = np.concatenate([[0], (mask != 0).T.ravel(), [0]]).astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    return " ".join(f"{begin} {end - begin}" for begin, end in zip(edges[::2], edges[1::2], strict=True))


def assert_round_trips(mask: Mask) -> None:
    height, width = mask.shape
    assert mask_to_kaggle(mask) == slow_kaggle(mask)
    counts = mask_to_counts(mask)
    for decoded in (
        kaggle_to_mask(mask_to_kaggle(mask), height, width),
        counts_to_mask(counts, height, width),
        coco_to_mask(mask_to_coco(mask), height, width),
    ):
        assert decoded.dtype == np.uint8
        assert decoded.flags.c_contiguous
        assert decoded.flags.writeable
        np.testing.assert_array_equal(decoded, mask)
    assert mask_to_coco(mask) == compress(counts)
    assert decompress(compress(counts)).tolist() == counts


@all_masks
def test_every_form_round_trips(mask: Mask) -> None:
    assert_round_trips(mask)


@pytest.mark.slow
@given(masks)
@settings(deadline=None)
def test_any_mask_round_trips(mask: Mask) -> None:
    assert_round_trips(mask)


@all_masks
def test_the_strings_are_those_of_pycocotools(mask: Mask) -> None:
    assert_same_as_pycocotools(mask)


@given(masks)
@settings(deadline=None)
def test_any_string_is_that_of_pycocotools(mask: Mask) -> None:
    assert_same_as_pycocotools(mask)


def assert_same_as_pycocotools(mask: Mask) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    height, width = mask.shape
    encoded = coco.encode(np.asfortranarray(mask))["counts"].decode()
    assert mask_to_coco(mask) == encoded
    np.testing.assert_array_equal(coco_to_mask(encoded, height, width), mask)
    from_counts = coco.frPyObjects({"size": [height, width], "counts": mask_to_counts(mask)}, height, width)
    assert from_counts["counts"].decode() == encoded


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)), max_size=30))
@settings(deadline=None)
def test_any_counts_compress_and_come_back(counts: list[int]) -> None:
    text = compress(counts)
    assert text == compress(np.array(counts, np.int64))
    assert decompress(text).tolist() == counts


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@settings(deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        counts = decompress(text)
    except RleError:
        return
    assert all(0 <= count < 2**32 for count in counts)


@given(st.text(st.sampled_from("0123456789 \t-.x"), max_size=24))
@settings(deadline=None)
def test_any_kaggle_text_is_decoded_or_refused(text: str) -> None:
    try:
        mask = kaggle_to_mask(text, 9, 11)
    except RleError:
        return
    values = [int(value) for value in text.split()]
    assert mask.sum() == sum(values[1::2])
    np.testing.assert_array_equal(kaggle_to_mask(mask_to_kaggle(mask), 9, 11), mask)


def test_kaggle_counts_down_the_columns_from_one() -> None:
    mask = kaggle_to_mask("1 1 4 3", 3, 3)
    assert mask.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("text", ["", " ", "\t\r\n  "])
def test_blank_text_is_a_clean_mask(text: str) -> None:
    mask = kaggle_to_mask(text, 5, 7)
    assert mask.shape == (5, 7)
    assert not mask.any()


@pytest.mark.parametrize("text", ["  2 3\n7\t1 ", "002 03 7 1", "2 1 3 2 7 1"])
def test_white_space_leading_zeros_and_touching_runs_are_harmless(text: str) -> None:
    assert mask_to_kaggle(kaggle_to_mask(text, 4, 4)) == "2 3 7 1"


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    assert mask_to_kaggle(mask) == ""
    assert mask_to_counts(mask) == [0]
    assert coco_to_mask(mask_to_coco(mask), *shape).shape == shape
    assert kaggle_to_mask("", *shape).shape == shape


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("layout", ["row-major", "column-major", "strided", "read-only"])
def test_any_integer_mask_in_any_layout(dtype: type, layout: str) -> None:
    random = np.random.default_rng(3)
    plain = sparse(70, 150, 1, 0.3)
    values = plain * random.choice([1, 2, 100], plain.shape) if dtype != np.bool_ else plain
    mask: NDArray[Any] = values.astype(dtype)
    if layout == "column-major":
        mask = np.asfortranarray(mask)
    elif layout == "strided":
        mask = np.repeat(np.repeat(mask, 2, 0), 3, 1)[::2, ::3]
    mask.flags.writeable = layout != "read-only"
    assert mask_to_kaggle(mask) == slow_kaggle(plain)
    assert mask_to_coco(mask) == mask_to_coco(plain)
    assert mask_to_counts(mask) == mask_to_counts(plain)


def test_high_bits_alone_are_defect() -> None:
    assert mask_to_kaggle(np.array([[0, 256, 1 << 40, -1]])) == "2 3"


@pytest.mark.parametrize("mask", [np.zeros((2, 2), float), np.zeros(4, np.uint8), np.zeros((2, 2, 1), np.uint8)])
def test_only_masks_are_encoded(mask: NDArray[Any]) -> None:
    for encode in (mask_to_kaggle, mask_to_counts, mask_to_coco):
        with pytest.raises(TypeError, match="2-D array of booleans or integers"):
            encode(mask)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(RleError) as caught:
        call(*arguments)
    assert isinstance(caught.value, LabelProblem)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "run 1: start 5 has no length (odd number of values: 1)"),
        ("1 3 10", "run 2: start 10 has no length (odd number of values: 3)"),
        ("1 3 x 2", "run 2: 'x' is not a whole number"),
        ("1 3 9 2x", "run 2: '2x' is not a whole number"),
        ("-1 3", "run 1: '-1' is not a whole number"),
        ("+1 3", "run 1: '+1' is not a whole number"),
        ("1 -3", "run 1: '-3' is not a whole number"),
        ("1.5 2", "run 1: '1.5' is not a whole number"),
        ("nan", "run 1: 'nan' is not a whole number"),
        ("1,3", "run 1: '1,3' is not a whole number"),
        ("٣ 1", "run 1: '٣' is not a whole number"),
        ("1 ２", "run 1: '２' is not a whole number"),
        ("1\u00a03", "run 1: '1\\xa03' is not a whole number"),
        ("1 3 9 \udcff", "run 2: '\\udcff' is not a whole number"),
        ("1 3 9 \x00", "run 2: '\\x00' is not a whole number"),
        ("0 3", "run 1: start 0 lies before the first pixel, 1"),
        ("1 3 9 0", "run 2: length 0 at start 9; a run has at least 1 pixel"),
        ("1 3 3 2", "run 2: start 3 lies inside the run before (1 3)"),
        ("9 3 1 2", "run 2: start 1 does not come after the run before (9 3); starts must ascend"),
        ("9 3 9 3", "run 2: start 9 does not come after the run before (9 3); starts must ascend"),
        ("60 6", "run 1: start 60 length 6 goes past the end of the 8x8 image"),
        ("65 1", "run 1: start 65 length 1 goes past the end of the 8x8 image"),
        ("1 1 18446744073709551617 1", "run 2: start 18446744073709551617 length 1 goes past the end of the 8x8 image"),
        ("1 18446744073709551617", "run 1: start 1 length 18446744073709551617 goes past the end of the 8x8 image"),
        ("9" * 9999 + " 1", f"run 1: start {'9' * 24}... length 1 goes past the end of the 8x8 image"),
    ],
)
def test_kaggle_refusals(text: str, message: str) -> None:
    assert refused(kaggle_to_mask, text, 8, 8, "train.csv:3") == f"train.csv:3: {message}"
    assert refused(kaggle_to_mask, text, 8, 8) == message


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1, 62], "run 2: count -1 is negative"),
        ([3, 70], "run 2: count 70 brings the sum past the end of the 8x8 image"),
        ([64, 0, 1], "run 3: count 1 brings the sum past the end of the 8x8 image"),
        ([2**63 - 1, 2**63 - 1], "run 1: count 9223372036854775807 brings the sum past the end of the 8x8 image"),
        ([3, 4], "run 2: count 4 is the last but brings the sum only to 7 pixels of the 8x8 image"),
        ([], "run 1: the list of counts for the 8x8 image is empty"),
        ([3, 1.5], "run 2: 1.5 is not a whole number"),
        ([3, None], "run 2: None is not a whole number"),
        (["3"], "run 1: '3' is not a whole number"),
        ([[3], 61], "run 1: [3] is not a whole number"),
        (np.array([3.5, 60.5]), "run 1: np.float64(3.5) is not a whole number"),
        ([10**20], "run 1: count 100000000000000000000 is larger than 4294967295"),
        ([-(10**20)], "run 1: count -100000000000000000000 is negative"),
        ([1 << 99999], "run 1: count 0x8000000000000000000000... is larger than 4294967295"),
        (None, "NoneType is not a list of counts"),
    ],
)
def test_counts_refusals(counts: Any, message: str) -> None:
    assert refused(counts_to_mask, counts, 8, 8, "coco.json: annotation 7") == f"coco.json: annotation 7: {message}"
    assert refused(counts_to_mask, counts, 8, 8) == message


@pytest.mark.parametrize("counts", [[0, 4, 0, 0, 12], [4, 0, 0, 0, 12], [4, 0, 12, 0], np.array([4, 0, 12], np.int32)])
def test_zero_counts_are_tolerated(counts: Any) -> None:
    assert counts_to_mask(counts, 4, 4).sum() == (4 if counts[0] == 0 else 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("01/", "run 3: character '/' is not one of COCO's, '0' to 'o'"),
        ("0p", "run 2: character 'p' is not one of COCO's, '0' to 'o'"),
        ("0P 0", "run 2: character ' ' is not one of COCO's, '0' to 'o'"),
        ("0\x00", "run 2: character '\\x00' is not one of COCO's, '0' to 'o'"),
        ("01é", "run 3: character 'é' is not one of COCO's, '0' to 'o'"),
        ("01\udcff", "run 3: character '\\udcff' is not one of COCO's, '0' to 'o'"),
        ("01Qo", "run 3: the text ends inside the count 'Qo'"),
        ("P", "run 1: the text ends inside the count 'P'"),
        ("0PPPPPPP0", "run 2: count 'PPPPPPP' is longer than 7 characters"),
        ("0O", "run 2: count -1 is negative"),
        ("011N", "run 4: count -1 is negative"),
        ("PPPPPP4", "run 1: count 4294967296 is larger than 4294967295"),
    ],
)
def test_compressed_refusals(text: str, message: str) -> None:
    assert refused(decompress, text, "coco.json") == f"coco.json: {message}"
    assert refused(decompress, text) == message
    assert refused(coco_to_mask, text, 8, 8, "coco.json") == f"coco.json: {message}"


def test_a_compressed_string_must_fit_the_image() -> None:
    text = mask_to_coco(np.eye(8, dtype=bool))
    assert refused(coco_to_mask, text, 8, 7, "here").startswith("here: run 15: count 8 brings the sum past the end")
    assert "only to 64 pixels of the 8x9 image" in refused(coco_to_mask, text, 8, 9)
    assert refused(coco_to_mask, "", 8, 8) == "run 1: the list of counts for the 8x8 image is empty"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1], "run 2: count -1 is negative"),
        ([2**32], "run 1: count 4294967296 is larger than 4294967295"),
        ([1, 0.5], "run 2: 0.5 is not a whole number"),
    ],
)
def test_compress_refusals(counts: list[Any], message: str) -> None:
    assert refused(compress, counts) == message


@pytest.mark.parametrize(("height", "width"), [(-1, 8), (8, -1), (10**9, 10**9)])
def test_impossible_sizes_are_refused(height: int, width: int) -> None:
    message = f"here: no image is {height} pixels high and {width} wide"
    assert refused(kaggle_to_mask, "1 1", height, width, "here") == message
    assert refused(counts_to_mask, [1], height, width, "here") == message
    assert refused(coco_to_mask, "1", height, width, "here") == message


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "severstal").is_dir(), reason=f"no real data: {REAL / 'severstal'} is absent")
def test_every_severstal_row_comes_back_as_the_same_text() -> None:
    with (REAL / "severstal" / "train.csv").open(newline="") as lines:
        rows = [row["EncodedPixels"] for row in csv.DictReader(lines)]
    assert len(rows) == 1429
    for number, text in enumerate(rows, 2):
        mask = kaggle_to_mask(text, 256, 1600, f"train.csv:{number}")
        assert mask_to_kaggle(mask) == text
        np.testing.assert_array_equal(coco_to_mask(mask_to_coco(mask), 256, 1600), mask)
