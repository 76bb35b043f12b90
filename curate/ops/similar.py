"""More like this: images in the order of their similarity to some images, or to a window of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate import tables
from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from curate.vectors.store import Vectors, open_latest

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]
SLICE = 64  # images asked about that are compared together


class SimilarImage(NamedTuple):
    """An image and its similarity (cosine) to the nearest of those asked about."""

    id: str
    similarity: float


def run(project: Project, ids: Sequence[str], box: Box | None = None, count: int = 100) -> list[SimilarImage]:
    """Return the most similar images, those asked about first.

    Args:
        project: the project.
        ids: the images asked about.
        box: left, top, width and height in pixels of a window of the first one: then windows are compared.
        count: the number of images.
    """
    vectors = open_latest(project.work)
    known, whole = _whole(vectors.table.path, tables.size(Path(vectors.table.path)))
    row_of = {id: row for row, id in enumerate(known)}
    if missing := [id for id in ids if id not in row_of]:
        raise CurateError(f"{len(missing)} of these images have no {vectors.name} vectors yet. {vectors.remedy}")
    queries = whole[[row_of[id] for id in ids]] if box is None else _window(vectors, ids[0], box)[None]
    similarity: Floats = np.full(len(whole), -np.inf, np.float32)
    for start in range(0, len(queries), SLICE):
        np.maximum(similarity, (whole @ queries[start : start + SLICE].T).max(axis=1), out=similarity)
    if box is not None:
        for tiles in vectors.tiles():
            values = (tiles.vectors.astype(np.float32) @ queries.T).max(axis=1)
            np.maximum.at(similarity, [row_of[id] for id in tiles.ids], values)
    similarity = np.where(np.isfinite(similarity), similarity, -np.inf)
    similarity[[row_of[id] for id in ids]] = np.inf
    present = set(Index(project).ids())
    order = [row for row in np.argsort(-similarity, kind="stable").tolist() if known[row] in present]
    return [SimilarImage(known[row], min(1.0, float(similarity[row]))) for row in order[:count]]


@lru_cache(maxsize=1)
def _whole(path: str, size: int) -> tuple[list[str], Floats]:
    """Return ids and vectors of all whole images; kept while the table is as it was."""
    vectors = Vectors(tables.Table(path))
    ids = vectors.ids()
    return ids, vectors.whole(ids)


def _window(vectors: Vectors, id: str, box: Box) -> Floats:
    """Return the vector of the smallest window that covers most of the box."""
    windows = vectors.windows(id)
    places = windows.boxes.astype(np.float64)
    left, top, width, height = box
    wide = np.minimum(places[:, 0] + places[:, 2], left + width) - np.maximum(places[:, 0], left)
    high = np.minimum(places[:, 1] + places[:, 3], top + height) - np.maximum(places[:, 1], top)
    shared = np.clip(wide, 0, None) * np.clip(high, 0, None)
    best = max(
        range(len(windows)), key=lambda row: (round(float(shared[row])), -float(places[row, 2] * places[row, 3]))
    )
    return np.asarray(windows.vectors[best], np.float32)
