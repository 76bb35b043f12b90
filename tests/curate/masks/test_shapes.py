"""Shapes: polygons against brute force, masks and boxes there and back, mask files of every odd kind."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from curate.data import Box, CocoRle, Defect, KaggleRle, MaskFile, Polygon, Region, RelativeBox, make_defect
from curate.errors import LabelProblem
from curate.masks.shapes import crop_of, defect_from_mask, defect_of, mask_of, polygon_mask
from tests.fakes import save_mask

MASKS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))


def defect(shape: Any, width: int = 16, height: int = 12, root: Path = Path(), clip: bool = True) -> Defect | None:
    return defect_of(Region("crack", shape), width, height, root, clip, "a.jpg")


def box_of(shape: Any, width: int = 16, height: int = 12, clip: bool = True) -> tuple[float, ...]:
    found = defect(shape, width, height, clip=clip)
    assert found is not None
    assert found.rle is None
    return found.box


# --- polygons ---------------------------------------------------------------------------------------------------------


def inside(x: float, y: float, ring: list[tuple[float, float]]) -> bool:
    """Even-odd by winding angle: another way than the scan lines under test."""
    angle = 0.0
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        turn = math.atan2(y1 - y, x1 - x) - math.atan2(y0 - y, x0 - x)
        angle += (turn + math.pi) % (2 * math.pi) - math.pi
    return round(angle / (2 * math.pi)) % 2 == 1


# Quarters that never meet a pixel's centre (an edge through a centre may go either way).
COORDINATE = st.integers(-8, 56).map(lambda n: n / 4 + 0.01)
RING = st.lists(st.tuples(COORDINATE, COORDINATE.map(lambda v: v + 0.013)), min_size=3, max_size=7)


def clear_of_centres(ring: list[tuple[float, float]]) -> bool:
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        for row in range(9):
            for column in range(12):
                x, y = column + 0.5, row + 0.5
                if abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) < 1e-6:
                    return False
    return True


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(RING)
def test_a_polygon_holds_the_pixels_whose_centre_it_holds(ring: list[tuple[float, float]]) -> None:
    assume(clear_of_centres(ring))
    expected = [[inside(column + 0.5, row + 0.5, ring) for column in range(12)] for row in range(9)]
    assert polygon_mask(Polygon((tuple(ring),)), 12, 9).tolist() == np.array(expected, np.uint8).tolist()


def test_neighbouring_polygons_share_no_pixel_and_leave_no_gap() -> None:
    """Edges on pixel centres belong to one side only."""
    left = Polygon((((0, 0), (4.5, 0), (4.5, 8), (0, 8)),))
    right = Polygon((((4.5, 0), (10, 0), (10, 8), (4.5, 8)),))
    assert (polygon_mask(left, 10, 8) + polygon_mask(right, 10, 8)).tolist() == np.ones((8, 10)).tolist()


def test_rings_are_united_and_one_ring_is_even_odd() -> None:
    square = ((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0))
    inner = ((1.0, 1.0), (3.0, 1.0), (3.0, 3.0), (1.0, 3.0))
    assert polygon_mask(Polygon((square, inner)), 5, 5).sum() == 16
    knot = (*square, square[0], *inner, inner[0])
    assert polygon_mask(Polygon((knot,)), 5, 5).sum() == 12


def test_a_relative_polygon_is_in_fractions_of_the_image() -> None:
    ring = ((0.25, 0.5), (0.75, 0.5), (0.75, 1.0), (0.25, 1.0))
    mask = polygon_mask(Polygon((ring,), relative=True), 16, 12)
    assert mask[6:, 4:12].all()
    assert mask.sum() == 48


@pytest.mark.parametrize(
    "ring", [(), ((1, 1), (2, 2)), ((0, 0), (1, math.nan), (2, 2)), ((0, 0), (math.inf, 1), (2, 2))]
)
def test_a_polygon_that_is_none_is_refused(ring: Any) -> None:
    with pytest.raises(LabelProblem, match="not a ring of at least 3 finite points"):
        defect(Polygon((ring,)))


@pytest.mark.parametrize(
    "ring",
    [
        ((1.6, 1.6), (2.4, 1.6), (2.4, 2.4)),  # between pixel centres
        ((100, 100), (120, 100), (120, 120)),  # outside
        ((-9, -9), (-1, -9), (-1, -1)),
        ((1, 1), (5, 5), (9, 9)),  # without area
        ((3, 3), (3, 3), (3, 3)),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_polygon_that_gives_no_pixel_is_refused(ring: Any, relative: bool) -> None:
    """It was drawn: without it the image would be clean."""
    points = tuple((x / 16, y / 12) for x, y in ring) if relative else ring
    with pytest.raises(
        LabelProblem, match="polygon of 'crack' gives no pixel: it lies outside the 16x12 image, has no"
    ):
        defect(Polygon((points,), relative))


@pytest.mark.parametrize("value", [1e30, -1e30, 1.7e308, 2e9, -(2.0**63)])
@pytest.mark.parametrize("relative", [False, True])
def test_a_polygon_far_outside_is_refused_before_a_kernel_sees_it(value: float, relative: bool) -> None:
    ring = ((10, 2), (value, 5.65), (34.09, 49.7), (10, 2), (10, 10))
    with pytest.raises(LabelProblem, match=r"polygon point \S+,5.65 lies far outside the 16x12 image"):
        defect(Polygon((ring,), relative))


EXTREME = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([1e9, -1e9, 1e18, 2.0**31, 2.0**63, 0.5])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(EXTREME, EXTREME), min_size=3, max_size=6), st.booleans())
def test_no_polygon_of_any_numbers_ends_the_process_or_gives_a_clean_image(ring: Any, relative: bool) -> None:
    try:
        found = defect(Polygon((tuple(ring),), relative))
    except LabelProblem:
        return
    assert found is not None
    assert mask_of(found, 16, 12).any()


# --- masks ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(MASKS)
def test_a_mask_comes_back_from_its_defect_and_the_box_is_tight(mask: np.ndarray[Any, Any]) -> None:
    height, width = mask.shape
    found = defect_from_mask("crack", mask)
    if found is None:
        assert not mask.any()
        return
    assert np.array_equal(mask_of(found, width, height), mask)
    crop = crop_of(found)
    assert crop is not None
    assert crop[0].any()
    assert crop[-1].any()
    assert crop[:, 0].any()
    assert crop[:, -1].any()
    assert crop.shape == (found.box[3], found.box[2])
    assert Defect.from_json(found.to_json()) == found


def test_the_same_pixels_are_the_same_defect_whatever_the_notation() -> None:
    mask = np.zeros((12, 16), np.uint8)
    mask[2:5, 3:7] = 1
    kaggle = " ".join(f"{column * 12 + 2 + 1} 3" for column in range(3, 7))
    counts = [3 * 12 + 2, 3, 9, 3, 9, 3, 9, 3]
    expected = defect_from_mask("crack", mask)
    assert defect(KaggleRle(kaggle)) == expected
    assert defect(CocoRle((*counts, 192 - sum(counts)), 12, 16)) == expected
    assert defect(Polygon((((3, 2), (7, 2), (7, 5), (3, 5)),))) == expected


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (KaggleRle("1 2 3"), r"a\.jpg class crack"),
        (KaggleRle("190 9"), r"a\.jpg class crack"),
        (CocoRle((192,), 16, 12), r"a\.jpg class crack: mask is 12x16, the image 16x12"),
        (CocoRle((5, 5), 12, 16), r"a\.jpg class crack"),
    ],
)
def test_run_lengths_that_do_not_fit_name_image_and_class(shape: Any, says: str) -> None:
    with pytest.raises(LabelProblem, match=says):
        defect(shape)


@pytest.mark.parametrize("shape", [CocoRle((192,), 12, 16), CocoRle("P6", 12, 16), KaggleRle(" ")])
def test_run_lengths_without_a_pixel_are_refused(shape: Any) -> None:
    with pytest.raises(LabelProblem, match="run-lengths of 'crack' give no pixel"):
        defect(shape)


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_a_box_is_kept_to_a_thousandth_of_a_pixel() -> None:
    assert box_of(Box(1.23456, 2, 3.00049, 4)) == (1.235, 2, 3.0, 4)
    assert box_of(RelativeBox(0.25, 0.5, 0.5, 0.25)) == (4, 6, 8, 3)


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        (Box(-2, -3, 5, 6), (0, 0, 3, 3)),
        (Box(10, 8, 50, 50), (10, 8, 6, 4)),
        (Box(-1, -1, 100, 100), (0, 0, 16, 12)),
        (Box(15.5, 0, 1, 1), (15.5, 0, 0.5, 1)),
    ],
)
def test_a_box_that_leaves_the_image_is_clipped_or_refused_as_configured(box: Box, clipped: tuple[float, ...]) -> None:
    assert box_of(box) == clipped
    with pytest.raises(LabelProblem, match=r"box of 'crack' leaves the image: .* in 16x12"):
        defect(box, clip=False)


@pytest.mark.parametrize("box", [Box(16, 0, 2, 2), Box(0, 12, 2, 2), Box(-5, 0, 5, 5), Box(99, 99, 1, 1)])
@pytest.mark.parametrize("clip", [True, False])
def test_a_box_outside_of_the_image_is_refused_in_any_case(box: Box, clip: bool) -> None:
    with pytest.raises(LabelProblem, match="leaves the image"):
        defect(box, clip=clip)


@pytest.mark.parametrize("box", [(0, 0, 0, 1), (0, 0, 1, 0), (0, 0, -1, 2), (3, 3, 1e-9, 1)])
def test_a_box_without_an_area_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(LabelProblem, match="is not a rectangle"):
        defect(Box(*box))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("kind", [Box, RelativeBox])
def test_a_box_of_numbers_that_are_none_is_refused(value: float, place: int, kind: Any) -> None:
    values = [0.1, 0.1, 0.5, 0.5]
    values[place] = value
    with pytest.raises(LabelProblem, match="is not a rectangle"):
        defect(kind(*values))


@settings(deadline=None)
@given(st.tuples(*[st.floats(-30, 30)] * 2, *[st.floats(-1, 40)] * 2), st.booleans())
def test_every_box_is_either_refused_or_inside_and_real(values: tuple[float, ...], clip: bool) -> None:
    try:
        x, y, w, h = box_of(Box(*values), clip=clip)
    except LabelProblem:
        return
    assert w > 0
    assert h > 0
    assert 0 <= x < x + w <= 16.0005
    assert 0 <= y < y + h <= 12.0005
    assert not any(math.copysign(1, value) < 0 for value in (x, y, w, h))
    assert make_defect("crack", (x, y, w, h)).box == (x, y, w, h)
    mask = mask_of(Defect("crack", (x, y, w, h)), 16, 12)
    centres = [[x <= column + 0.5 < x + w and y <= row + 0.5 < y + h for column in range(16)] for row in range(12)]
    if np.any(centres):
        assert mask.tolist() == np.array(centres, np.uint8).tolist()
    else:
        assert mask.sum() >= 1
        assert min(mask.any(0).sum(), mask.any(1).sum()) == 1


@pytest.mark.parametrize("box", [(-3.0, -2.0, 5.0, 4.0), (14.0, 10.0, 9.0, 9.0)])
def test_a_box_that_a_person_pulled_over_the_border_is_cut_there(box: tuple[float, float, float, float]) -> None:
    x, y, w, h = (int(value) for value in box)
    expected = np.zeros((12, 16), np.uint8)
    expected[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    assert mask_of(Defect("crack", box), 16, 12).tolist() == expected.tolist()


# --- mask files -------------------------------------------------------------------------------------------------------


def save(path: Path, values: Any, mode: str | None = None) -> MaskFile:
    image = Image.fromarray(np.asarray(values))
    (image.convert(mode) if mode else image).save(path)
    return MaskFile(path.name, 1, 255)


def pixels(shape: MaskFile, root: Path) -> list[list[int]]:
    found = defect(shape, 3, 2, root)
    return [] if found is None else mask_of(found, 3, 2).tolist()


def test_a_mask_file_is_cut_at_its_values(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 127, 128], [200, 254, 255]], np.uint8))
    assert pixels(MaskFile("m.png"), tmp_path) == [[0, 0, 1], [1, 1, 1]]
    assert pixels(MaskFile("m.png", 127, 200), tmp_path) == [[0, 1, 1], [1, 0, 0]]
    assert pixels(MaskFile("m.png", 254, 254), tmp_path) == [[0, 0, 0], [0, 1, 0]]


def test_an_empty_mask_file_says_that_its_class_is_absent(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.zeros((2, 3), np.uint8))
    assert defect(MaskFile("m.png"), 3, 2, tmp_path) is None
    assert defect(MaskFile("m.png", 2, 2, (2, 3)), 3, 2, tmp_path) is None


def test_a_mask_whose_pixels_are_of_no_class_is_refused(tmp_path: Path) -> None:
    """Such as a mask of 0 and 1 that is read with a threshold of 128: every image would be clean."""
    save(tmp_path / "m.png", np.array([[0, 1, 1], [0, 1, 0]], np.uint8))
    with pytest.raises(LabelProblem, match=r"mask m.png has grey values from 0 to 1 only, a defect has 128 to 255"):
        defect(MaskFile("m.png"), 3, 2, tmp_path)
    save(tmp_path / "m.png", np.array([[0, 2, 0], [0, 7, 0]], np.uint8))
    with pytest.raises(LabelProblem, match=r"mask m.png has the grey value 7; allowed: 0, 2, 3"):
        defect(MaskFile("m.png", 2, 2, (2, 3)), 3, 2, tmp_path)
    assert pixels(MaskFile("m.png", 2, 2, (2, 7)), tmp_path) == [[0, 1, 0], [0, 0, 0]]
    assert defect(MaskFile("m.png", 9, 9, (2, 7, 9)), 3, 2, tmp_path) is None


def test_a_palette_keeps_its_indices_whatever_their_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), mode="P")
    image.putpalette([255, 255, 255, 0, 0, 0, 200, 10, 10])
    image.save(tmp_path / "m.png")
    assert pixels(MaskFile("m.png", 2, 2), tmp_path) == [[0, 0, 1], [1, 0, 0]]
    assert pixels(MaskFile("m.png", 1, 1), tmp_path) == [[0, 1, 0], [0, 1, 0]]


def test_sixteen_bits_are_not_cut_to_eight(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 256, 65535], [1, 300, 257]], np.uint16))
    assert pixels(MaskFile("m.png", 256, 300), tmp_path) == [[0, 1, 0], [0, 1, 1]]
    assert pixels(MaskFile("m.png", 65535, 65535), tmp_path) == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("mode", ["I;16B", "I", "F"])
def test_other_deep_masks_keep_their_values_too(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 2))
    image.putpixel((1, 0), 300)
    image.save(tmp_path / "m.tif")
    assert pixels(MaskFile("m.tif", 300, 300), tmp_path) == [[0, 1, 0], [0, 0, 0]]


def test_one_bit_means_white(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 255, 0], [255, 0, 255]], np.uint8), "1")
    assert Image.open(tmp_path / "m.png").mode == "1"
    assert pixels(MaskFile("m.png"), tmp_path) == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_becomes_grey(tmp_path: Path, mode: str) -> None:
    save(tmp_path / "m.png", np.array([[0, 255, 0], [255, 0, 255]], np.uint8), mode)
    assert pixels(MaskFile("m.png"), tmp_path) == [[0, 1, 0], [1, 0, 1]]


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.png", size=(16, 12))
    with pytest.raises(LabelProblem, match=r"mask m\.png is 16x12, the image 12x16"):
        defect(MaskFile("m.png"), 12, 16, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", None])
def test_a_mask_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(LabelProblem, match=r"mask m\.png (does not exist|cannot be read)"):
        defect(MaskFile("m.png"), root=tmp_path)


def test_a_cut_off_mask_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (12, 16)).astype(np.uint8)
    save(tmp_path / "m.png", random)
    whole = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabelProblem, match=r"mask m\.png cannot be read"):
        defect(MaskFile("m.png"), root=tmp_path)


@pytest.mark.parametrize("path", ["../m.png", "/etc/passwd", "link/m.png", "", "."])
def test_a_mask_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    save_mask(tmp_path / "m.png")
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(LabelProblem, match=r"the data root|names no file"):
        defect(MaskFile(path), root=root)


def test_a_folder_for_a_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.png").mkdir()
    with pytest.raises(LabelProblem, match=r"mask m\.png cannot be read"):
        defect(MaskFile("m.png"), root=tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [12_000, 30_000, 60_000])
def test_a_mask_bomb_is_refused_by_its_size_before_any_pixel_is_decoded(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(LabelProblem, match=rf"mask m\.png is {side}x{side}, the image 16x12"):
        defect(MaskFile("m.png"), root=tmp_path)
