"""Regions of label files (`Region`) to canonical `Defect`s, and defects to pixels and back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from curate import files
from curate.data import Box, CocoRle, Defect, KaggleRle, MaskFile, Polygon, Region, RelativeBox, Shape, make_defect
from curate.errors import LabelProblem
from curate.masks import decode, rle
from curate.paths import safe_join

Mask = NDArray[np.uint8]
FARTHEST = 1e9  # pixels: a coordinate further out is damage, and could overflow an integer


def defect_of(region: Region, width: int, height: int, root: Path, clip: bool, where: str = "") -> Defect | None:
    """Return the canonical defect, or None for an empty mask file: its class is absent.

    Raises LabelProblem where the region cannot be trusted, or was drawn but has no pixel: its image is not clean.
    """
    shape = region.shape
    if isinstance(shape, Box):
        return defect_from_box(region.label, shape, width, height, clip)
    if isinstance(shape, RelativeBox):
        box = Box(shape.x * width, shape.y * height, shape.w * width, shape.h * height)
        return defect_from_box(region.label, box, width, height, clip)
    defect = defect_from_mask(region.label, _pixels(region, width, height, root, where))
    if defect is None and not isinstance(shape, MaskFile):
        raise no_pixel(region.label, shape, width, height)
    return defect


def no_pixel(label: str, shape: Shape, width: int, height: int) -> LabelProblem:
    """Return the error for a region that was drawn but has no pixel, and would leave its image clean."""
    if isinstance(shape, Polygon):
        reason = f"it lies outside the {width}x{height} image, has no area, or is thinner than a pixel"
        return LabelProblem(f"polygon of '{label}' gives no pixel: {reason}")
    return LabelProblem(f"run-lengths of '{label}' give no pixel")


def defect_from_mask(label: str, mask: Mask) -> Defect | None:
    """Return the defect of a whole-image mask (tight box, run-lengths of the crop), or None if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    crop = mask[top:bottom, left:right]
    return Defect(label, (float(left), float(top), float(right - left), float(bottom - top)), rle.mask_to_coco(crop))


def crop_of(defect: Defect) -> Mask | None:
    """Return the defect's pixels inside its box, or None for a plain box."""
    if defect.rle is None:
        return None
    return rle.coco_to_mask(defect.rle, int(defect.box[3]), int(defect.box[2]))


def mask_of(defect: Defect, width: int, height: int) -> Mask:
    """Return the defect's whole-image mask; a plain box covers the pixels whose centre lies in it, at least one."""
    mask = np.zeros((height, width), np.uint8)
    x, y, w, h = defect.box
    crop = crop_of(defect)
    mask[_span(y, h, height), _span(x, w, width)] = 1 if crop is None else crop
    return mask


def _span(start: float, length: float, size: int) -> slice:
    first = max(0, min(math.ceil(start - 0.5), size - 1))
    return slice(first, max(math.ceil(start + length - 0.5), first + 1))


def defect_from_box(label: str, box: Box, width: int, height: int, clip: bool) -> Defect:
    """Return a plain box as a defect, clipped to the image or refused."""
    # Rounded as it is stored: a relative box at the image's border must not leave it by float noise.
    left, top, right, bottom = (round(value, 3) for value in (box.x, box.y, box.x + box.w, box.y + box.h))
    if not (np.isfinite([left, top, right, bottom]).all() and right > left and bottom > top):
        raise LabelProblem(f"box of '{label}' is not a rectangle: {box.x:g},{box.y:g} {box.w:g}x{box.h:g}")
    inside = max(0.0, left), max(0.0, top), min(right, width), min(bottom, height)  # this order: never -0.0
    outside = inside != (left, top, right, bottom)
    if inside[2] <= inside[0] or inside[3] <= inside[1] or (outside and not clip):
        shown = f"{left:g},{top:g} to {right:g},{bottom:g}"
        raise LabelProblem(f"box of '{label}' leaves the image: {shown} in {width}x{height}")
    return make_defect(label, (inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]))


def tight(defect: Defect, size: tuple[int, int] | None) -> Defect | None:
    """Return the defect with a tight box inside an image of this size, or None if its mask is empty.

    Raises:
        LabelProblem: it lies wholly outside.
    """
    crop = crop_of(defect)
    if crop is None:
        plain = defect_from_box(defect.label, Box(*defect.box), *size, clip=True) if size else defect
        return replace(plain, severity=defect.severity)
    left, top = int(defect.box[0]), int(defect.box[1])
    if size:
        right, bottom = size[0] - left, size[1] - top
        crop, left, top = crop[max(0, -top) : bottom, max(0, -left) : right], max(0, left), max(0, top)
        if not crop.size:
            raise LabelProblem(f"mask of '{defect.label}' lies outside the image")
    moved = defect_from_mask(defect.label, crop)
    if moved is None:
        return None
    x, y, w, h = moved.box
    return make_defect(defect.label, (x + left, y + top, w, h), moved.rle, defect.severity)


def _pixels(region: Region, width: int, height: int, root: Path, where: str) -> Mask:
    shape = region.shape
    if isinstance(shape, KaggleRle):
        return rle.kaggle_to_mask(shape.text, height, width, f"{where} class {region.label}")
    if isinstance(shape, CocoRle):
        return _coco(shape, width, height, f"{where} class {region.label}")
    if isinstance(shape, Polygon):
        return polygon_mask(shape, width, height)
    assert isinstance(shape, MaskFile)
    return _mask_file(shape, width, height, root)


def _coco(shape: CocoRle, width: int, height: int, where: str) -> Mask:
    if (shape.width, shape.height) != (width, height):
        raise LabelProblem(f"{where}: mask is {shape.width}x{shape.height}, the image {width}x{height}")
    if isinstance(shape.counts, str):
        return rle.coco_to_mask(shape.counts, height, width, where)
    return rle.counts_to_mask(shape.counts, height, width, where)


def _mask_file(shape: MaskFile, width: int, height: int, root: Path) -> Mask:
    try:
        content = files.read_bytes(safe_join(root, shape.path))
    except FileNotFoundError:
        raise LabelProblem(f"mask {shape.path} does not exist") from None
    except OSError as error:
        raise LabelProblem(f"mask {shape.path} cannot be read: {error.strerror}") from None
    with decode.opened(content, prefix=f"mask {shape.path} cannot be read: ") as image:
        if image.size != (width, height):  # max_pixels was checked for the image itself
            size = f"{image.width}x{image.height}"
            raise LabelProblem(f"mask {shape.path} is {size}, the image {width}x{height}")
        values = _grey(image)
    mask = (values >= shape.low) & (values <= shape.high)
    _check_values(shape, values, mask)
    return mask.view(np.uint8)


def _check_values(shape: MaskFile, values: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    """Refuse a mask with pixels that belong to no class: they would silently count as clean."""
    if shape.known:
        strange = values[~np.isin(values, (0, *shape.known))]
        if strange.size:
            known = ", ".join(str(value) for value in shape.known)
            raise LabelProblem(f"mask {shape.path} has the grey value {strange[0]}; allowed: 0, {known}")
    elif not mask.any() and values.any():
        wanted = f"a defect has {shape.low} to {shape.high}"
        raise LabelProblem(f"mask {shape.path} has grey values from 0 to {values.max()} only, {wanted}")


def grey_file(path: Path, max_pixels: int) -> NDArray[Any]:
    """Return the pixel values of a grey image file. Raises OSError if missing, LabelProblem if damaged or larger."""
    with decode.opened(files.read_bytes(path), max_pixels) as image:
        return _grey(image)


def _grey(image: Any) -> NDArray[Any]:
    """Return pixel values as stored: palette indices and 16-bit values stay, colour becomes grey, one bit 0 and 255."""
    return np.asarray(image if image.mode in ("L", "P", "I", "I;16", "I;16B", "F") else image.convert("L"))


def polygon_mask(polygon: Polygon, width: int, height: int) -> Mask:
    """Return the mask of pixels whose centre lies inside a ring (even-odd within a ring, rings united)."""
    mask = np.zeros((height, width), np.uint8)
    scale = (width, height) if polygon.relative else (1, 1)
    for ring in polygon.rings:
        points = np.asarray(ring, np.float64)
        if points.ndim != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise LabelProblem(f"polygon with {len(ring)} points is not a ring of at least 3 finite points")
        far = np.abs(points).max(axis=1) > FARTHEST / max(scale)
        if far.any():
            x, y = points[far][0]
            raise LabelProblem(f"polygon point {x:g},{y:g} lies far outside the {width}x{height} image")
        _fill(np.ascontiguousarray(points * scale), mask)
    return mask


@njit(cache=True, nogil=True)  # type: ignore[misc]
def _fill(points, mask):  # type: ignore[no-untyped-def]
    height, width = mask.shape
    count = len(points)
    crossings = np.empty(count)
    top = max(0, int(np.floor(points[:, 1].min())))
    bottom = min(height, int(np.ceil(points[:, 1].max())))
    for row in range(top, bottom):
        y = row + 0.5
        found = 0
        for i in range(count):
            x0, y0 = points[i]
            x1, y1 = points[(i + 1) % count]
            if (y0 <= y) != (y1 <= y):
                crossings[found] = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
                found += 1
        ends = np.sort(crossings[:found])
        for i in range(0, found - 1, 2):
            first = max(0, int(np.ceil(ends[i] - 0.5)))
            last = min(width, int(np.ceil(ends[i + 1] - 0.5)))
            for column in range(first, last):
                mask[row, column] = 1
