"""Vectors of windows: read back whole, by tile and by image; the errors name what to run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from curate.errors import CurateError
from curate.vectors.store import WHOLE, Vectors, open_latest

DIM = 4


def number(id: int, tile: int) -> float:
    return id + (tile + 1) / 16


def fill(vectors: Vectors, ids: range, tiles: int) -> None:
    """Image n has n % (tiles + 1) tiles; each vector holds one number that tells image and tile."""
    counts = [1 + n % (tiles + 1) for n in ids]
    boxes = [np.array([(t, n, 10, 20) for t in range(k)], np.int32) for n, k in zip(ids, counts, strict=True)]
    found = [np.array([[number(n, t - 1)] * DIM for t in range(k)]) for n, k in zip(ids, counts, strict=True)]
    vectors.append([f"{n:04d}" for n in ids], boxes, found)


@pytest.fixture
def vectors(tmp_path: Path) -> Vectors:
    table = Vectors.create(tmp_path / "vectors" / "texture-k1.lance", "k1", DIM, {"command": "curate embed -e texture"})
    for begin in range(0, 60, 20):
        fill(table, range(begin, begin + 20), 3)
    return table


def test_whole_is_in_the_order_of_ids(vectors: Vectors) -> None:
    order = np.random.default_rng(0).permutation(60)
    found = vectors.whole([f"{n:04d}" for n in order])
    assert found.dtype == np.float32
    assert (found == order[:, None]).all()
    assert vectors.whole([]).shape == (0, DIM)
    assert vectors.ids() == [f"{n:04d}" for n in range(60)]


def test_whole_counts_what_is_missing(vectors: Vectors) -> None:
    with pytest.raises(CurateError, match=r"2 of 3 images have no texture vectors yet. Run: curate embed -e texture"):
        vectors.whole(["0001", "x", "y"])


@pytest.mark.parametrize("rows", [5, 65536])
def test_tiles_of_all(vectors: Vectors, rows: int) -> None:
    parts = list(vectors.tiles(rows=rows))
    assert all(len(part) <= rows for part in parts)
    seen = {
        (id, int(t)): float(v[0]) for part in parts for id, t, v in zip(part.ids, part.tile, part.vectors, strict=True)
    }
    assert seen == {(f"{n:04d}", t): number(n, t) for n in range(60) for t in range(n % 4)}
    assert parts[0].vectors.dtype == np.float16


def test_tiles_of_some(vectors: Vectors) -> None:
    parts = list(vectors.tiles(["0003", "0041", "0040"], rows=8))
    assert sorted({id for part in parts for id in part.ids}) == ["0003", "0041"]  # 0040 is one window alone
    assert sum(len(part) for part in parts) == 4
    for part in parts:
        assert (part.boxes[:, 0] == part.tile + 1).all()
        assert [int(y) for y in part.boxes[:, 1]] == [int(id) for id in part.ids]


def test_windows_of_one_image(vectors: Vectors) -> None:
    found = vectors.windows("0007")
    assert list(found.tile) == [-1, 0, 1, 2]
    assert found.boxes.tolist() == [[t, 7, 10, 20] for t in range(4)]
    assert [float(v) for v in found.vectors[:, 0]] == [number(7, t) for t in range(-1, 3)]
    with pytest.raises(CurateError, match="has no texture vectors"):
        vectors.windows("no'such")


def test_open_latest(vectors: Vectors, tmp_path: Path) -> None:
    other = Vectors.create(tmp_path / "vectors" / "timm-resnet18-k2.lance", "k2", 8)
    assert open_latest(tmp_path).name == "texture"  # the other one holds nothing yet
    other.append(["x"], [np.zeros((1, 4), np.int32)], [np.ones((1, 8), np.float32)])
    os.utime(vectors.table.path, (1, 1))
    found = open_latest(tmp_path)
    assert (found.name, found.key, found.dim) == ("timm-resnet18", "k2", 8)
    assert open_latest(tmp_path, "texture").ids() == vectors.ids()
    assert other.ids() == ["x"]
    with pytest.raises(CurateError, match=r"'textur' \(did you mean 'texture'\?\); allowed: texture, timm-resnet18"):
        open_latest(tmp_path, "textur")


def test_open_latest_without_any(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"no vectors yet .* Run: curate embed"):
        open_latest(tmp_path)


def test_whole_images_stand_together(vectors: Vectors) -> None:
    """Reading them alone must not touch every page: in each append they come first."""
    tiles = np.concatenate([chunk["tile"] for chunk in vectors.table.chunks(["tile"], 20)])
    begin = 0
    for size in (20 + 30,) * 3:
        assert (tiles[begin : begin + 20] == WHOLE).all()
        assert (tiles[begin + 20 : begin + size] >= 0).all()
        begin += size
    assert begin == len(tiles)
