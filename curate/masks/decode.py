"""The one door to Pillow: whatever a decoder raises over a file's bytes becomes a `LabelProblem` with the reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curate.errors import CurateError, LabelProblem

KINDS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
SHOWN = 200  # characters of a decoder's own message that ours repeats


@contextmanager
def opened(content: bytes, max_pixels: int | None = None, prefix: str = "") -> Iterator[Any]:
    """The Pillow image in these bytes; decode it inside the block, and do nothing else there.

    Args:
        content: The whole file.
        max_pixels: Refuse a larger image by its header, before any pixel is decoded.
        prefix: Text before the reason, such as the name of the file.

    Raises:
        LabelProblem: If the bytes are no image, or damaged in any way.
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
