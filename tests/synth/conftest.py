"""Drawn steel of which a project has some defects and much that is clean; two views of each piece are one group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.data import Defect, Item, Label
from curate.index import sync
from curate.masks.shapes import defect_from_mask
from curate.project import Project
from tests import fakes
from tests.conftest import Make

CLASSES = ("crack", "hole")
WIDE, HIGH = 96, 80
KINDS = ("crack", "hole", "", "")
LIBRARY = {"name": "steel", "format": "mask_folder", "fully_labelled": True, "group": r"(piece\d+)_"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(piece: int, view: int) -> tuple[np.ndarray, str, np.ndarray]:
    """Pixels, class and mask: every fourth piece has a bright crack, every fourth a dark hole, the others nothing."""
    name = KINDS[piece % 4]
    pixels = fakes.steel(WIDE, HIGH, seed=10 * piece + view).astype(int)
    random = np.random.default_rng(1000 + piece)
    y, x = np.mgrid[:HIGH, :WIDE]
    cy, cx = int(random.integers(20, HIGH - 20)), int(random.integers(24, WIDE - 24))
    mask = np.zeros((HIGH, WIDE), bool)
    if name == "crack":
        mask = (abs(y - cy) <= 2) & (abs(x - cx) <= 9)
    elif name == "hole":
        mask = (y - cy) ** 2 + (x - cx) ** 2 <= 30
    pixels[mask] += 70 if name == "crack" else -70
    return np.clip(pixels, 0, 255).astype(np.uint8), name, mask


def save(root: Path, pieces: int, views: int = 2) -> Path:
    """Save masks in the layout of `mask_folder`."""
    for folder in (root / "images", *(root / "masks" / name for name in CLASSES)):
        folder.mkdir(parents=True)
    for piece in range(pieces):
        for view in range(views):
            pixels, name, mask = drawn(piece, view)
            Image.fromarray(pixels).save(root / "images" / f"piece{piece:02d}_{view}.png")
            if name:
                Image.fromarray(mask.astype(np.uint8) * 255).save(
                    root / "masks" / name / f"piece{piece:02d}_{view}.png"
                )
    return root


def item_of(path: Path, name: str, mask: np.ndarray, group: str, split: str = "train") -> Item:
    defect = defect_from_mask(name, mask.astype(np.uint8))
    defects = (defect,) if isinstance(defect, Defect) else ()
    id = hashlib.sha256(path.read_bytes()).hexdigest()
    return Item(id, path, mask.shape[1], mask.shape[0], Label("labelled", defects), split, group)


def items(folder: Path, pieces: int = 8, views: int = 2, first: int = 0) -> list[Item]:
    """The same images without an index."""
    result = []
    for piece in range(first, first + pieces):
        for view in range(views):
            pixels, name, mask = drawn(piece, view)
            path = folder / f"piece{piece:02d}_{view}.png"
            Image.fromarray(pixels).save(path)
            result.append(item_of(path, name, mask, f"piece{piece:02d}"))
    return result


@pytest.fixture
def mill(make: Make, tmp_path: Path) -> Project:
    """An indexed project: 24 pieces in two views, six of each class, twelve clean."""
    project = make([LIBRARY | {"data": save(tmp_path / "steel", 24)}], CLASSES)
    sync.run(project)
    return project
