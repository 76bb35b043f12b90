"""How alike two pictures must be to count as nearly the same: by the data's own measure, whatever the encoder.

Cosines of one encoder crowd at 0.99, of another they spread. So the measure is the usual distance of an image to its
fifth nearest: what lies within a small share of that is no ordinary neighbour. Vectors propose, and where it must be
right (`curate duplicates`), small pictures confirm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.errors import LabelProblem
from curate.greedy.neighbours import nearest
from curate.masks import decode

SAMPLE = 2000
FIFTH = 5
SAME = 0.98  # correlation of small pictures
SIDE = 32  # pixels of a small picture


def cosine(vectors: NDArray[np.float32], share: float) -> float:
    """The cosine of two images that are `share` of the usual distance apart."""
    step = max(1, len(vectors) // SAMPLE)
    sample = vectors[::step]
    if len(vectors) <= FIFTH:
        return 1.0
    similarity, _ = nearest(sample, vectors, FIFTH + 1)
    return float(1 - share * np.median(1 - similarity[:, -1]))


def confirmed(pairs: Iterable[tuple[int, int]], paths: Sequence[str], limit: int) -> list[tuple[int, int]]:
    """The pairs whose small pictures agree; a file that cannot be read confirms nothing."""
    pairs = list(pairs)
    small = {row: _small(Path(paths[row]), limit) for row in sorted({row for pair in pairs for row in pair})}
    return [(i, j) for i, j in pairs if _agree(small[i], small[j])]


def _agree(left: NDArray[np.float32] | None, right: NDArray[np.float32] | None) -> bool:
    return left is not None and right is not None and float(left @ right) >= SAME


def _small(path: Path, limit: int) -> NDArray[np.float32] | None:
    """The picture at 32 x 32, around zero and of length one."""
    from PIL import Image

    try:
        with decode.opened(files.read_bytes(path), limit) as image:
            image.draft("L", (4 * SIDE, 4 * SIDE))
            grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    except (OSError, LabelProblem):
        return None
    grey = grey - grey.mean()
    return np.asarray(grey / max(float(np.linalg.norm(grey)), 1e-6), np.float32)
