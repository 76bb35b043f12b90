"""Image files decoded by Pillow: any error that a decoder raises becomes a `LabelProblem` with the reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError, LabelProblem

KINDS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
SHOWN = 200  # characters of a decoder's own message that ours repeats


@contextmanager
def opened(content: bytes, max_pixels: int | None = None, prefix: str = "") -> Iterator[Any]:
    """Open the Pillow image in these bytes; decode it inside the block, and do nothing else there.

    Args:
        content: The whole file.
        max_pixels: Refuse a larger image by its header, before any pixel is decoded.
        prefix: Text before the reason, such as the name of the file.

    Raises:
        LabelProblem: If the bytes are not an image, or damaged in any way.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # max_pixels decides, also above Pillow's own limit
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise LabelProblem(f"{prefix}{size} pixels are more than limits.max_pixels = {max_pixels}")
            yield image
    except CurateError:
        raise
    except UnidentifiedImageError:
        raise LabelProblem(f"{prefix}not an image that can be read (JPEG, PNG, BMP, TIFF or WebP)") from None
    except Exception as error:  # decoders raise anything over a damaged file: TypeError, struct.error, MemoryError ...
        reason = " ".join(str(error).split())[:SHOWN]
        known = isinstance(error, OSError | SyntaxError | ValueError) and reason
        reason = reason if known else f"{type(error).__name__}: {reason}".removesuffix(": ")
        raise LabelProblem(f"{prefix}damaged image: {reason}") from None


def pixels_of(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return an image file's pixels, grey (HxW) or colour (HxWx3). Raises LabelProblem where they cannot be read.

    The limit is checked again: the file may have been replaced since the index saw it.
    """
    with opened(content, max_pixels) as image:
        return _eight_bits(image)


def _eight_bits(image: Any) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):  # 16 bits keep their upper 8: stretching would depend on the image
        return np.clip(np.asarray(image, np.float64) / 256, 0, 255).astype(np.uint8)
    plain = image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(plain, np.uint8)
