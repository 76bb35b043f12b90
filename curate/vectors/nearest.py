"""The similarity above which two images count as near-duplicates, relative to the data and for any encoder.

Cosines of one encoder crowd at 0.99, those of another spread. So the unit is the usual distance of an image to its
fifth nearest neighbour: two images within a small share of that are near-duplicates. Vectors propose pairs; where a
mistake would cost (`curate duplicates`), thumbnails confirm them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.errors import LabelProblem
from curate.masks import decode

SAMPLE = 2000
FIFTH = 5
SAME = 0.98  # correlation of two thumbnails
SIDE = 32  # pixels of a thumbnail


def cosine_at(vectors: NDArray[np.float32], share: float) -> float:
    """Return the cosine of two images that are `share` of the usual distance apart."""
    step = max(1, len(vectors) // SAMPLE)
    sample = vectors[::step]
    if len(vectors) <= FIFTH:
        return 1.0
    from curate.greedy.neighbours import nearest  # its kernels take half a second to load

    similarity, _ = nearest(sample, vectors, FIFTH + 1)
    return float(1 - share * np.median(1 - similarity[:, -1]))


def confirmed_pairs(pairs: Iterable[tuple[int, int]], paths: Sequence[str], limit: int) -> list[tuple[int, int]]:
    """Return the pairs whose thumbnails agree; pairs with an unreadable file are left out.

    Args:
        pairs: Row numbers of two images each.
        paths: The image files.
        limit: Pixels above which an image is not decoded.
    """
    pairs = list(pairs)
    thumbnails = {row: _thumbnail(Path(paths[row]), limit) for row in sorted({row for pair in pairs for row in pair})}
    return [(i, j) for i, j in pairs if _agree(thumbnails[i], thumbnails[j])]


def _agree(left: NDArray[np.float32] | None, right: NDArray[np.float32] | None) -> bool:
    return left is not None and right is not None and float(left @ right) >= SAME


def _thumbnail(path: Path, limit: int) -> NDArray[np.float32] | None:
    """Return the image as a grey thumbnail, with mean 0 and length 1, or None if it cannot be read."""
    from PIL import Image

    try:
        with decode.opened(files.read_bytes(path), limit) as image:
            image.draft("L", (4 * SIDE, 4 * SIDE))
            grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    except (OSError, LabelProblem):
        return None
    grey = grey - grey.mean()
    return np.asarray(grey / max(float(np.linalg.norm(grey)), 1e-6), np.float32)
