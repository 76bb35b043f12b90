"""Small steel with defects that a small network can learn in seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curate.data import Defect, Item, Label
from curate.index import sync
from curate.masks.shapes import defect_from_mask
from curate.project import Project
from tests import fakes
from tests.conftest import Make
from train.data.dataset import TrainingData
from train.recipe import Recipe, load

CLASSES = ("crack", "hole")
SMALL = ["model.encoder=resnet18", 'model.options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]}']
TINY = [*SMALL, "model.weights=none", "input.height=64", "input.width=64", "batch=8"]
LIBRARY = {"name": "library", "format": "mask_folder", "fully_labelled": True}


@pytest.fixture(autouse=True, scope="module")  # of a module: what its fixtures train, its tests train again
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is done sooner by one, most of all on a busy machine
    yield
    torch.set_num_threads(before)


class Plain(torch.nn.Module):
    """An encoder without norms, `2 ** depth` times smaller, whose ONNX file takes a second to write. Of two layers, its
    map holds what is brightest and darkest in each cell."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.out_channels = [3, width]
        self.colours, self.cells = torch.nn.Conv2d(3, width, 1), torch.nn.MaxPool2d(2**depth)

    def forward(self, batch: Any) -> list[Any]:
        return [batch, self.cells(self.colours(batch).relu())]


def drawn(number: int, size: int = 64) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steel with a bright crack, a dark hole, both, or nothing; and the masks."""
    random = np.random.default_rng(number)
    pixels = fakes.steel(size, size, seed=1000 + number).astype(int)
    masks: dict[str, np.ndarray] = {}
    y, x = np.mgrid[:size, :size]
    if number % 4 in (0, 2):
        top, left = random.integers(4, size - 14), random.integers(2, size - 34)
        masks["crack"] = (y >= top) & (y < top + 7) & (x >= left) & (x < left + 30)
    if number % 4 in (1, 2):
        cy, cx = random.integers(12, size - 12, 2)
        masks["hole"] = (y - cy) ** 2 + (x - cx) ** 2 <= 64
    for name, shift in (("crack", 70), ("hole", -70)):
        pixels[masks.get(name, np.zeros_like(y, bool))] += shift
    return np.clip(pixels, 0, 255).astype(np.uint8), {name: mask.astype(np.uint8) for name, mask in masks.items()}


def item(folder: Path, number: int, split: str = "train") -> Item:
    """The drawn image as the index would give it."""
    pixels, masks = drawn(number)
    path = folder / f"{number:02d}.png"
    Image.fromarray(pixels).save(path)
    defects = tuple(
        defect for name, mask in masks.items() if isinstance(defect := defect_from_mask(name, mask), Defect)
    )
    id = hashlib.sha256(path.read_bytes()).hexdigest()
    return Item(id, path, *pixels.shape[::-1], Label("labelled", defects), split, path.stem)


def data(folder: Path, train: int = 8, val: int = 0, task: str = "segmentation") -> TrainingData:
    items = [item(folder, number, "train" if number < train else "val") for number in range(train + val)]
    return TrainingData(task, CLASSES, tuple(items[:train]), tuple(items[train:]), single=False, clean=True)


def save_block(root: Path, number: int, size: tuple[int, int], name: str, box: tuple[int, int, int, int]) -> None:
    """Save a picture of this height and width below `root`, with a bright block (a crack) or a dark one, and its mask.

    `box`: top, left, height and width of the block; without a name there is none.
    """
    high, wide = size
    pixels = fakes.steel(wide, high, seed=number).astype(int)
    for folder in (root / "images", root / "masks" / name):
        folder.mkdir(parents=True, exist_ok=True)
    if name:
        mask = np.zeros(size, np.uint8)
        mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = 255
        pixels[mask > 0] += 90 if name == "crack" else -90
        Image.fromarray(mask).save(root / "masks" / name / f"{number:02d}.png")
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{number:02d}.png")


def tiny(*more: str) -> Recipe:
    return load("unet-resnet", [*TINY, *more])


@pytest.fixture
def works(make: Make, tmp_path: Path) -> Project:
    """An indexed project: 24 fully labelled images of 64 px, and six that nobody labelled."""
    root, line = tmp_path / "steel", tmp_path / "line"
    for folder in (root / "images", line, *(root / "masks" / name for name in CLASSES)):
        folder.mkdir(parents=True)
    for number in range(30):
        pixels, masks = drawn(number)
        file = root / "images" / f"{number:02d}.png" if number < 24 else line / f"{number:02d}.png"
        Image.fromarray(pixels).save(file)
        for name, mask in masks.items() if number < 24 else ():
            Image.fromarray(255 * mask).save(root / "masks" / name / file.name)
    sources = [LIBRARY | {"data": root}, {"name": "line", "format": "images", "kind": "production", "data": line}]
    project = make(sources, CLASSES)
    sync.run(project)
    return project
