"""The map of the vectors for the App: its axes, and that it follows the table."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA

from curate.index.dataset import Index
from curate.project import Project
from curate.vectors import layout
from curate.vectors.store import Vectors


def test_axes_are_those_of_scikit_learn() -> None:
    values = np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32) * np.arange(1, 13)
    ours, theirs = layout.principal_axes(values), PCA(2).fit_transform(values)
    for axis in range(2):
        assert abs(np.corrcoef(ours[:, axis], theirs[:, axis])[0, 1]) > 0.9999
        assert np.allclose(np.abs(ours[:, axis]), np.abs(theirs[:, axis]), atol=1e-2)
    broken = values.copy()
    broken[7] = np.nan
    assert np.isfinite(layout.principal_axes(broken)).all()
    assert (layout.principal_axes(broken)[7] == 0).all()


def test_the_map_follows_the_vectors_and_holds_no_vector(indexed: Project) -> None:
    index = Index(indexed)
    assert not layout.show(index), "there are no vectors yet"
    ids = index.ids()
    vectors = np.random.default_rng(0).standard_normal((len(ids), 1, 8))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    boxes = np.array([(0, 0, 32, 24)], np.int32)
    table = Vectors.create(indexed.work / "vectors" / "drawn-0.lance", "0", 8)
    table.append(ids[:-2], [boxes] * (len(ids) - 2), list(vectors[:-2]))
    assert layout.show(Index(indexed))
    assert not layout.show(Index(indexed))
    table.append(ids[-2:], [boxes] * 2, list(vectors[-2:]))
    assert layout.show(Index(indexed))
    dataset = Index(indexed).dataset
    results = dataset.load_brain_results(layout.RUN)
    points = dict(zip(dataset.values("id"), results.points, strict=True)) if len(results.points) == len(ids) else {}
    assert len(points) == len(ids)
    assert np.asarray(results.points).shape == (len(ids), 2)
    assert Index(indexed).edited() == []
