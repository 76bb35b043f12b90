"""Does reading starve the model? Images a second that are decoded and augmented, over those that a step trains.

    python -m tests.bench.bench_loader

On one core, where both must share it: the loader should be several times as fast as the model. Drawn images of the
Severstal size for the segmenter, of 640x480 for the classifier, as JPEG; weights are random, which costs as much.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image

from curate.data import Item, Label, make_defect
from tests import fakes
from tests.bench._measure import interleaved, print_table
from train.data.dataset import EpochBatches, Examples, LoadPlan, TrainingData, loader
from train.data.pixels import normalised
from train.fit import loop
from train.fit import run as training
from train.fit.loop import FitSettings
from train.recipe import Recipe, load

CASES = (("unet-resnet", 256, 512, (1600, 256)), ("mobilenetv2-fast", 224, 224, (640, 480)))
LIMIT = 10**8


def draw(folder: Path, count: int, width: int, height: int, pixels: bool) -> tuple[Item, ...]:
    """Steel with a defect on every second image: a box, or as a class."""
    items = []
    for number in range(count):
        path = folder / f"{width}-{number:03d}.jpg"
        Image.fromarray(fakes.steel(width, height, seed=number)).convert("RGB").save(path, quality=90)
        crack = make_defect("crack", (width // 3, height // 4, width // 8, height // 3))
        label = Label("labelled", (crack,) if pixels else (), () if pixels else ("crack",))
        id = hashlib.sha256(path.read_bytes()).hexdigest()
        items.append(Item(id, path, width, height, label if number % 2 else Label("labelled"), "train", str(number)))
    return tuple(items)


def measure(made: Recipe, items: tuple[Item, ...], folder: Path, repetitions: int) -> tuple[float, float]:
    """Images a second of the loader, and of the model's steps."""
    segments = made.task == "segmentation"
    data = TrainingData(made.task, ("crack",), items, (), single=not segments, clean=True)
    plan = LoadPlan(data.task, data.classes, data.single, data.clean, made.input, made.augmentation, 0, LIMIT)
    model, start = training.network_of(made, data)
    setting = FitSettings(made, data, plan, start.frozen, folder)
    batches = EpochBatches(made.batch)
    feed = loader(Examples(items, plan), batches, workers=0, pin=False)
    batches.begin(range(made.batch), 0)
    _, images, targets, _ = next(iter(feed))
    step = stepper(model, setting, images, targets)

    def read() -> None:
        batches.begin(range(len(items)), 1)
        for _ in feed:
            pass

    seconds = interleaved({"loader": read, "model": step}, repetitions)
    return len(items) / seconds["loader"], len(images) / seconds["model"]


def stepper(model: Any, setting: FitSettings, images: Any, targets: Any) -> Any:
    made, phase = setting.recipe, setting.recipe.parts[0]
    model.to(memory_format=torch.channels_last)
    optimiser = loop._optimiser(made, phase, loop._trainable(model, phase))
    loss_of = loop._loss_function(made, setting.data)
    loop._train_mode(model, setting.frozen)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss_of(model(normalised(images, made.input.scale)).float(), targets.float()).backward()
        optimiser.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for recipe, high, wide, size in CASES:
            made = load(recipe, ["model.weights=none", f"input.height={high}", f"input.width={wide}"])
            items = draw(Path(name), given.images, *size, pixels=made.task == "segmentation")
            read, trained = measure(made, items, Path(name), given.repetitions)
            rows.append([f"{recipe} at {high}x{wide}", f"{read:.0f}", f"{trained:.1f}", f"{read / trained:.1f}"])
    print_table(["one core", "loader, images/s", "model, images/s", "loader over model"], rows)


if __name__ == "__main__":
    main()
