"""The measurements of `tests.gpu.run`: ours against the bare network, and what trained models are worth on test."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curate import embed
from curate.data import Item
from curate.devices import device_of
from curate.greedy.kcenter import kcenter
from curate.hashing import key_of
from curate.vectors import run as embedding
from synth import masks
from synth.synthesisers import diffusion, gan
from tests.gpu.pack import read_items
from train import checkpoint, decisions
from train.data.dataset import EpochBatches, Examples, LoadPlan, TrainingData, loader, resolved_input
from train.data.pixels import normalised
from train.evaluate import decide, per_image
from train.evaluate.metrics import EvaluatedImages
from train.evaluate.per_image import ModelEvaluator
from train.fit import loop
from train.fit import run as training
from train.fit.loop import FitResult, FitSettings
from train.predict.predictor import Predictor, predict_files
from train.recipe import Recipe, load

LIMIT = 10**8  # pixels of an image
REPETITIONS = 7  # the first two warm up
Values = dict[str, Any]


class OutOfTime(Exception):
    """Ends a training that goes on in the next run."""


@dataclass
class Setting:
    """Where data and state are, and how long a run may take; `results` is a `run.Results`."""

    data: Path
    state: Path
    wanted: str
    tiny: bool
    deadline: float
    results: Any
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return device_of(self.wanted)

    def left(self) -> float:
        """Seconds until the run must end."""
        return self.deadline - time.monotonic()

    def items(self, name: str) -> list[Item]:
        if name not in self.kept:
            unpacked = self.state / "images" / name
            unpacked.mkdir(parents=True, exist_ok=True)
            self.kept[name] = read_items(self.data / name, unpacked)
        return list(self.kept[name])


def machine() -> Values:
    has_gpu = torch.cuda.is_available()
    found: Values = {"gpu": torch.cuda.get_device_name() if has_gpu else None, "cores": os.cpu_count()}
    return found | {"torch": torch.__version__, "python": platform.python_version()}


def clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(method: Callable[[], Any], device: str) -> float:
    """The median seconds of a call, after two that warm it up."""
    spent = []
    for _ in range(REPETITIONS):
        begun = clock(device)
        method()
        spent.append(clock(device) - begun)
    return statistics.median(spent[2:])


# --- training ---------------------------------------------------------------------------------------------------------


def training_data(items: Sequence[Item], task: str) -> TrainingData:
    classes = tuple(sorted({name for item in items for name in item.label.present}))
    train, val = (tuple(item for item in items if item.split == split) for split in ("train", "val"))
    single = task == "classification" and all(len(item.label.present) < 2 for item in items)
    return TrainingData(task, classes, train, val, single, any(item.label.clean for item in items))


def train(setting: Setting, case: str, data_name: str, recipe_name: str, overrides: Sequence[str]) -> Values:
    """Train a recipe; compare its epochs with bare steps of the same network, and evaluate it on test."""
    begun, device, items = time.perf_counter(), setting.device, setting.items(data_name)
    named = load(recipe_name, overrides)
    data = training_data(items, named.task)
    recipe = named.model_copy(update={"input": resolved_input(named, data.train)})
    plan = LoadPlan(
        data.task, data.classes, data.single, data.clean, recipe.input, recipe.augmentation, recipe.seed, LIMIT
    )
    folder = setting.state / "models" / f"{case}-{key_of([recipe.model_dump(mode='json'), data.digest])[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    model, start = training.network_of(recipe, data)
    settings = FitSettings(recipe, data, plan, start.frozen, folder, device, training.workers_of(device))
    ticks: list[tuple[str, float]] = []

    def step(stage: str, done: int, total: int) -> None:
        if not ticks:
            setting.results.update(case, now=True, first_step_s=round(time.perf_counter() - begun, 1))
        ticks.append((stage, time.perf_counter()))

    def epoch_ended(fitted: FitResult) -> None:
        setting.results.update(case, epochs=len(fitted.history), val_score=fitted.best.get("val_score"))
        if setting.left() < 30 and not setting.tiny:
            raise OutOfTime

    fitted = loop.fit(model, settings, step, epoch_ended)
    ours = _images_a_second(ticks, recipe.batch)
    bare = _bare_steps(settings, items)
    values: Values = {"images_s": ours, "bare_images_s": bare, "share_of_bare": ours / bare} if ours else {}
    values |= {"epochs": len(fitted.history), "best": fitted.best, "input": [recipe.input.height, recipe.input.width]}
    setting.results.update(case, now=True, **values)
    checkpoint.load_into(model, folder / loop.BEST)
    predictor = Predictor(case, data.classes, recipe, data.single, model.eval(), device)
    return values | _evaluated(setting, case, predictor, data, [item for item in items if item.split == "test"])


def _images_a_second(ticks: Iterable[tuple[str, float]], batch: int) -> float | None:
    """Images a second within the epochs, from the second one on; validation lies between them."""
    epochs: dict[str, list[float]] = {}
    for stage, moment in ticks:
        epochs.setdefault(stage, []).append(moment)
    later = [moments for moments in list(epochs.values())[1:] if len(moments) > 1]
    seconds = sum(moments[-1] - moments[0] for moments in later)
    return batch * sum(len(moments) - 1 for moments in later) / seconds if seconds else None


def _bare_steps(settings: FitSettings, items: Sequence[Item]) -> float:
    """Images a second of forward, loss, backward and optimiser on one batch that lies on the device."""
    recipe, device = settings.recipe, settings.device
    model, start = training.network_of(recipe, settings.data)
    model.to(device, memory_format=torch.channels_last)
    batches = EpochBatches(recipe.batch)
    batches.begin(range(min(recipe.batch, len(settings.data.train))), 0)
    _, images, targets, _ = next(iter(loader(Examples(settings.data.train, settings.plan), batches, 0, False)))
    images, targets = images.to(device), targets.to(device)
    optimiser = loop._optimiser(recipe, recipe.parts[-1], loop._trainable(model, recipe.parts[-1]))
    loss_of = loop._loss_function(recipe, settings.data)
    autocast, _ = loop._precision(recipe.amp, device)
    loop._train_mode(model, start.frozen)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast:
            loss = loss_of(model(normalised(images, recipe.input.scale)).float(), targets.float())
        loss.backward()
        optimiser.step()

    return len(images) / seconds_of(step, device)


class _Rows:
    """The table of evaluated images in memory: Lance is not on that machine."""

    def __init__(self, segments: bool) -> None:
        pixels = ("counts", "histogram", "largest", "regions") if segments else ()
        self.columns = ("id", "label", "p", "decided", *pixels)
        self.rows: dict[str, dict[str, Any]] = {}

    def ids(self) -> list[str]:
        return list(self.rows)

    def append(self, columns: dict[str, Any]) -> None:
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            self.rows[row["id"]] = row

    def read(self, ids: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        picked = [self.rows[id] for id in ids]
        return {name: np.array([row[name] for row in picked]) for name in names}

    def finish(self, newest: bool) -> None:
        """Nothing: it is in memory."""


def _evaluated(
    setting: Setting, case: str, predictor: Predictor, data: TrainingData, test: Sequence[Item]
) -> dict[str, Any]:
    def rows_of(predictor: Predictor, items: Sequence[Item]) -> EvaluatedImages:
        table: Any = _Rows(data.task == "segmentation")
        evaluator = ModelEvaluator(predictor, data.classes, LIMIT)
        failed = per_image.evaluate_missing(evaluator, table, items, lambda *_: setting.results.update(case))
        assert not failed, failed
        return per_image.evaluated_images(table, items, data.classes, data.single)

    val = rows_of(predictor, data.val)
    fitted = decide.fit(val, data.classes, {})
    found = rows_of(replace(predictor, decisions=decisions.from_manifest(fitted)), test)
    shows, named = (np.asarray(table.any(axis=1)) for table in (found.present, found.decided))
    values: Values = {"test_images": len(test), "decisions": fitted}
    values["exactly_right"] = float((found.present == found.decided).all(axis=1).mean())
    if (~shows).any():
        values |= {"defect_images_found": float(named[shows].mean()), "clean_alarmed": float(named[~shows].mean())}
    if found.pixels is not None:
        both, extra, missed = np.moveaxis(found.pixels.counts[found.present], -1, 0)
        values["dice_where_shown"] = float((2 * both / np.maximum(2 * both + extra + missed, 1)).mean())
    return values


def segmenter(setting: Setting) -> Values:
    tiny = ("input.height=64", "input.width=64", "epochs=2", "batch=2", "steps=2", "model.weights=none")
    return train(setting, "segmenter", "tile", "unet-lite0", tiny if setting.tiny else ("epochs=40", "batch=16"))


def classifier(setting: Setting) -> Values:
    tiny = ("input.height=32", "input.width=32", "epochs=2", "batch=4", "steps=3", "model.weights=none")
    return train(setting, "classifier", "neu", "lite0-fast", tiny if setting.tiny else ("epochs=20",))


# --- embedding and prediction -----------------------------------------------------------------------------------------


def _files(setting: Setting, data: str) -> list[tuple[str, Path]]:
    files = [(item.id, item.path) for item in setting.items(data)]
    return files[:8] if setting.tiny else files


def embeddings(setting: Setting) -> Values:
    """Images a second of the dense encoder with all that reading takes, and of its network on resident images."""
    device, files = setting.device, _files(setting, "neu")
    encoder: Any = embed.build("dense", {"runtime": "torch", "device": device} | _random_weights(setting))
    todo = [(id, str(path)) for id, path in files]
    list(embedding.outcomes(encoder, todo[:64], LIMIT))  # loads the network
    begun = clock(device)
    encoded = list(embedding.outcomes(encoder, todo, LIMIT))
    ours = len(encoded) / (clock(device) - begun)
    images = torch.zeros(min(256, len(files)), 224, 224, 1, dtype=torch.uint8, device=device)  # 200 pixels and padding
    network = encoder.make().to(device, memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=device != "cpu"):
            network(images)

    speed = len(images) / seconds_of(bare, device)
    return {"images_s": ours, "bare_images_s": speed, "share_of_bare": ours / speed, "images": len(encoded)}


def _random_weights(setting: Setting) -> Values:
    """A small network whose weights are drawn here, for the tiny run."""
    if not setting.tiny:
        return {}
    import timm

    file = setting.state / "tiny.pth"
    torch.save(timm.create_model("test_efficientnet", pretrained=False).state_dict(), file)
    return {"model": "test_efficientnet", "weights": str(file)}


def predictions(setting: Setting) -> Values:
    """Images a second of a segmenter on whole images, and of its network alone; random weights do."""
    device, files = setting.device, _files(setting, "tile")
    recipe: Recipe = load("unet-lite0", ["model.weights=none"])
    data = training_data(setting.items("tile"), "segmentation")
    model, _ = training.network_of(recipe, data)
    model = model.to(device, memory_format=torch.channels_last).eval()
    predictor = Predictor("speed", data.classes, recipe, data.single, model, device)
    list(islice(predict_files(predictor, files, LIMIT), 4))
    begun = clock(device)
    count = sum(1 for _ in predict_files(predictor, files, LIMIT))
    ours = count / (clock(device) - begun)
    sizes = [(item.height, item.width) for item in setting.items("tile")]
    high, wide = (-(-int(side) // 32) * 32 for side in np.median(sizes, axis=0))
    batch = torch.zeros(1 if setting.tiny else 16, 3, high, wide, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=device != "cpu"):
            model(batch)

    speed = len(batch) / seconds_of(bare, device)
    return {"images_s": ours, "bare_images_s": speed, "share_of_bare": ours / speed, "size": [high, wide]}


# --- synthesis and selection ------------------------------------------------------------------------------------------


def synthesis(setting: Setting) -> Values:
    """Steps a second of both generators that learn."""
    items, values = setting.items("tile"), dict[str, Any]()
    usable, blocked = ([item for item in items if (item.split == "train") == wanted] for wanted in (True, False))
    classes = training_data(items, "segmentation").classes
    bank = masks.bank_of(usable, blocked, classes, LIMIT)
    side, steps = (32, 4) if setting.tiny else (128, 150)
    windows = masks.examples(bank, side, np.random.default_rng(0), 16 if setting.tiny else 400)
    sizes = {"size": "cpu" if setting.tiny or setting.device == "cpu" else "gpu"}
    learners: dict[str, tuple[Any, Values]] = {"gan": (gan, {}), "diffusion": (diffusion, sizes)}
    for name, (module, more) in learners.items():
        ticks: list[float] = []
        folder = setting.state / f"{name}-speed-{time.time_ns()}"
        options: Values = {"device": setting.device, "seed": 0, "steps": steps} | more
        options |= {"batch": 4} if setting.tiny else {}
        advance = _ticker(ticks, setting)
        module.fit(windows, classes, folder, progress=advance, **options)
        gaps = np.diff(ticks)
        values[f"{name}_steps_s"] = float(1 / np.median(gaps)) if len(gaps) else None  # a look at val is no step
        values[f"{name}_s_for_{steps}_steps"] = round(ticks[-1] - ticks[0], 1)
        setting.results.update("synthesis", now=True, **values)
    return values


def _ticker(ticks: list[float], setting: Setting) -> Callable[[str, int, int], None]:
    def advance(stage: str, done: int, total: int) -> None:
        ticks.append(clock(setting.device))

    return advance


def k_center(setting: Setting) -> Values:
    """Seconds of farthest-first on the CPU of that machine."""
    count, picks = (500, 20) if setting.tiny else (10_000, 500)
    vectors = np.random.default_rng(0).standard_normal((count, 1280)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kcenter(vectors[:200], 5)  # loads the kernel
    begun = time.perf_counter()
    kcenter(vectors, picks)
    return {"vectors": count, "picks": picks, "kcenter_s": time.perf_counter() - begun}


CASES: dict[str, Callable[[Setting], Values]] = {
    "embeddings": embeddings,
    "predictions": predictions,
    "segmenter": segmenter,
    "classifier": classifier,
    "synthesis": synthesis,
    "k_center": k_center,
}
