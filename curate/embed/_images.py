"""Image files to encoded windows: the steps that any process can do, here or in Ray's actors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.embed._base import Encoder, prepare_image, windows
from curate.errors import LabelProblem
from curate.hashing import content_id
from curate.masks.decode import pixels_of

ImageFiles = Sequence[tuple[str, str]]  # content id and file


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image's windows and vectors, a row each; without any where there is a `problem`."""

    id: str
    path: str
    boxes: NDArray[np.int32]
    vectors: NDArray[np.float32]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image's windows as the encoder takes them; none where there is a `problem`."""

    id: str
    path: str
    boxes: NDArray[np.int32]
    arrays: list[NDArray[Any]]
    problem: str | None = None


def prepare_images(encoder: Encoder, images: ImageFiles, max_pixels: int) -> list[PreparedImage]:
    """Read these images and cut their windows; touches nothing but their files."""
    with _one_thread():
        return [_prepare(encoder, id, path, max_pixels) for id, path in images]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep matrix and image libraries to one thread: on small windows, more of them take twenty times as long."""
    import cv2
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        cv2.setNumThreads(before)


def _prepare(encoder: Encoder, id: str, path: str, max_pixels: int) -> PreparedImage:
    try:
        content = files.read_bytes(Path(path))
        if content_id(content) != id:
            raise LabelProblem("the file changed since it was indexed. Run: curate index")
        pixels = pixels_of(content, max_pixels)
    except LabelProblem as problem:
        return PreparedImage(id, path, np.empty((0, 4), np.int32), [], str(problem))
    except OSError as error:
        return PreparedImage(id, path, np.empty((0, 4), np.int32), [], f"cannot be read: {error.strerror}")
    boxes = windows(pixels.shape[1], pixels.shape[0], encoder.tile, encoder.overlap)
    return PreparedImage(id, path, boxes, prepare_image(encoder, pixels, boxes))


def encode_images(encoder: Encoder, images: Sequence[PreparedImage]) -> list[EncodedImage]:
    """Compute the vectors of all windows of these images in one call of the encoder."""
    arrays = [array for image in images for array in image.arrays]
    vectors = encoder.encode(arrays) if arrays else np.empty((0, encoder.dim), np.float32)
    ends = np.cumsum([len(image.arrays) for image in images])
    return [_outcome(image, vectors[end - len(image.arrays) : end]) for image, end in zip(images, ends, strict=True)]


def _outcome(image: PreparedImage, vectors: NDArray[np.float32]) -> EncodedImage:
    problem = image.problem
    # A sound vector has length 1; one of zeros is as useless as one with NaN.
    if problem is None and not (np.linalg.norm(vectors, axis=1) > 0.5).all():
        problem = "the encoder gave a vector that is not a number"
    return EncodedImage(image.id, image.path, image.boxes, vectors if problem is None else vectors[:0], problem)
