"""The vectors as a map of two dimensions, for the App's panel Embeddings; they themselves stay in their table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.vectors.store import Vectors, open_latest

RUN = "vectors"  # the name of the map in the App
INFO = "map"  # what the dataset's info calls it
STAGE = "mapping vectors for the App"
FITTED = 20_000  # images from which the axes are computed
Floats = NDArray[np.float32]


def show(index: Index, progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> bool:
    """Bring the map up to date with the newest vectors; returns True if it changed. Nothing without vectors."""
    try:
        vectors = open_latest(index.project.work)
    except CurateError:
        return False
    dataset = index.dataset
    pairs = {id: sample for sample, id in zip(*dataset.values(["id", "content_id"]), strict=True) if id}
    ids = sorted(pairs.keys() & set(vectors.ids()))
    state = _state(vectors, ids)
    exists = RUN in dataset.list_brain_runs()
    if len(ids) < 3 or (exists and dataset.info.get(INFO) == state):
        return False
    import fiftyone.brain as fob

    progress(STAGE, 0, 2)
    points = principal_axes(vectors.whole(ids))
    progress(STAGE, 1, 2)
    if exists:
        dataset.delete_brain_run(RUN)
    by_sample = {pairs[id]: point for id, point in zip(ids, points, strict=True)}
    fob.compute_visualization(dataset, points=by_sample, brain_key=RUN, num_dims=2, progress=False)
    dataset.info[INFO] = state
    dataset.save()
    progress(STAGE, 1, 2)
    return True


def _state(vectors: Vectors, ids: list[str]) -> list[str]:
    """Return what the map depends on."""
    return [vectors.table.path.rpartition("/")[2], key_of(ids)]


def principal_axes(vectors: Floats) -> Floats:
    """Return the vectors' coordinates (n, 2) on their principal axes (PCA); vectors that are no numbers lie at 0."""
    fine = np.asarray(np.isfinite(vectors).all(axis=1))
    values = np.where(fine[:, None], vectors, 0).astype(np.float32)
    step = max(1, len(vectors) // FITTED)
    sample = values[fine][::step]
    if len(sample) < 2:
        return np.zeros((len(vectors), 2), np.float32)
    centre = sample.mean(axis=0)
    covariance = (sample - centre).T @ (sample - centre)
    _, axes = np.linalg.eigh(covariance.astype(np.float64))
    largest = axes[:, :-3:-1].astype(np.float32)
    largest *= np.sign(largest[np.abs(largest).argmax(axis=0), range(largest.shape[1])])  # the same map every time
    points = (values - centre) @ largest
    points[~fine] = 0
    return np.asarray(np.pad(points, ((0, 0), (0, 2 - points.shape[1]))), np.float32)
