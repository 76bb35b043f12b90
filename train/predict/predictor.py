"""A trained model on its device, and what it predicts for an image.

    predictor = load_predictor(project)                    the current model, or load_predictor(project, key)
    prediction = predictor.predict_image(pixels)           uint8, HxW or HxWx3
    prediction.probability, prediction.defects             by class; (Defect, confidence) pairs

Segmentation looks at an image in tiles of at most `TILE` pixels, blended where they overlap; a strip of 256 x 1600 fits
into one. A connected region above the threshold is a defect, its confidence the mean probability of its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.data import Defect
from curate.devices import device_of
from curate.errors import LabelProblem
from curate.index.predictions import Prediction
from curate.masks import shapes
from curate.project import Project
from curate.select import uncertainty as scores
from train import architectures, checkpoint, recipe, store
from train.data.pixels import Pixels, normalised, padded, read, resized, starts, up_to_stride, with_channels
from train.recipe import Recipe
from train.store import StoredModel

TILE = 1 << 20  # pixels of one tile
SIDE = 1024  # of a tile of a large image; a strip's may be as long as TILE allows
OVERLAP = 128
MOST = 100  # regions of a class that are kept, the largest ones: a model that knows nothing yet sees thousands
PASSES = 16  # with dropout, for BALD
Floats = NDArray[np.float32]
Sure = tuple[tuple[Defect, float], ...]


class ImagePrediction(NamedTuple):
    """One image, in the order of the model's classes. `bald`: where the model has dropout."""

    probability: Floats
    defects: Sure
    class_entropy: Floats
    uncertainty: float
    classes: tuple[tuple[str, float], ...] = ()
    defect_pixels: Floats | None = None
    bald: float | None = None


# --- a model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready on its device. `classes` gives the order of all that is by class."""

    key: str
    classes: tuple[str, ...]
    recipe: Recipe
    single: bool
    module: Any
    device: str = "cpu"
    tile: int = TILE

    @property
    def by(self) -> str:
        """How predictions and scores name their author."""
        return f"model-{self.key}"

    def predict_image(self, pixels: Pixels) -> ImagePrediction:
        """All that the model says of an image (uint8, HxW or HxWx3)."""
        image = with_channels(pixels, self.recipe.input.channels)
        return self.seen(self.probabilities(image)) if self.recipe.task == "segmentation" else self._whole(image)

    def prediction(self, seen: ImagePrediction) -> Prediction:
        return Prediction(seen.defects, seen.classes, self.by)

    # --- segmentation ---

    def seen(self, p: Floats) -> ImagePrediction:
        """All that a segmenter's map (C, H, W) says."""
        found = scores.summarise(p)
        by_class = [self._of(name, values) for name, values in zip(self.classes, p, strict=True)]
        # The likeliest small tile would miss a crack that is thinner than half a tile, however sure the model is of it.
        surest = [max((sure for _, sure in regions), default=0.0) for regions in by_class]
        return ImagePrediction(
            probability=np.maximum(np.asarray(found["probability"]), np.array(surest, np.float32)),
            defects=tuple(one for regions in by_class for one in regions),
            class_entropy=np.asarray(found["class_tile_entropy"]),
            uncertainty=float(found["boundary_free"]),
            defect_pixels=np.asarray(found["expected_defect_pixels"]),
        )

    def _of(self, name: str, p: Floats) -> list[tuple[Defect, float]]:
        return components(name, p, self.recipe.predict.threshold, self.recipe.predict.min_area)

    def probabilities(self, image: Pixels) -> Floats:
        """(C, H, W) of an image (H, W, channels)."""
        height, width = image.shape[:2]
        high = min(up_to_stride(height), SIDE)
        wide = min(up_to_stride(width), max(self.tile // high // 32 * 32, 2 * OVERLAP))
        room = padded(image, high, wide)
        total = np.zeros((len(self.classes), *room.shape[:2]), np.float32)
        weight = np.zeros(room.shape[:2], np.float32)
        fade = np.outer(_ramp(high), _ramp(wide))
        for y in starts(room.shape[0], high, OVERLAP):
            for x in starts(room.shape[1], wide, OVERLAP):
                total[:, y : y + high, x : x + wide] += self._tile(room[y : y + high, x : x + wide]) * fade
                weight[y : y + high, x : x + wide] += fade
        return np.ascontiguousarray((total / weight)[:, :height, :width])

    def _tile(self, tile: Pixels) -> Floats:
        import torch

        axes: tuple[tuple[int, ...], ...] = ((), (3,), (2,)) if self.recipe.predict.flips else ((),)
        batch = self._batch(tile)
        with torch.inference_mode(), self._precision():
            found = [self.module(batch.flip(flip)).float().sigmoid().flip(flip) for flip in axes]
        return np.asarray(torch.stack(found).mean(0)[0].cpu().numpy(), np.float32)

    # --- classification ---

    def _whole(self, image: Pixels) -> ImagePrediction:
        import torch

        wanted = self.recipe.input
        batch = self._batch(resized(image, wanted.height, wanted.width))
        with torch.inference_mode(), self._precision():
            features = self.module.encoder(batch)
            last = features[-1] if isinstance(features, list | tuple) else features
            p = self._sure(self.module.head(last))
            bald = self._bald(last)
        by_class = p[: len(self.classes)]
        unsure = scores.entropy(p[None]) if self.single else scores.predictive_entropy_multilabel(p[None])
        return ImagePrediction(
            by_class, (), scores.class_entropy(by_class), float(unsure[0]), self._named(p), bald=bald
        )

    def _sure(self, logits: Any) -> Floats:
        values = logits.float()[0]
        return np.asarray((values.softmax(0) if self.single else values.sigmoid()).cpu().numpy(), np.float32)

    def _named(self, p: Floats) -> tuple[tuple[str, float], ...]:
        """The likeliest class unless that is clean, or all above the threshold."""
        threshold = self.recipe.predict.threshold
        rows = [int(p.argmax())] if self.single else np.flatnonzero(p > threshold).tolist()
        return tuple((self.classes[row], float(p[row])) for row in rows if row < len(self.classes))

    def _bald(self, last: Any) -> float | None:
        """How much versions of the head disagree; the same versions for every image."""
        import torch

        drops = dropouts(self.module)
        if not drops:
            return None
        with torch.random.fork_rng(devices=[] if self.device == "cpu" else None):
            torch.manual_seed(0)
            for one in drops:
                one.train()
            samples = [self._sure(self.module.head(last))[None] for _ in range(PASSES)]
            for one in drops:
                one.eval()
        return float((scores.bald(samples) if self.single else scores.bald_multilabel(samples))[0])

    # --- both ---

    def _batch(self, image: Pixels) -> Any:
        import torch

        batch = torch.from_numpy(np.require(image[None], requirements=["C", "W"])).to(self.device)
        return normalised(batch, self.recipe.input.scale)

    def _precision(self) -> Any:
        import torch

        return torch.autocast("cuda", torch.float16, enabled=self.device != "cpu")


def _ramp(length: int) -> Floats:
    """Rises from a tile's border inwards, over the overlap."""
    from_end = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.asarray(np.minimum(from_end, OVERLAP) / OVERLAP, np.float32)


def dropouts(module: Any) -> list[Any]:
    """The head's dropout layers that do anything."""
    from torch import nn

    head = getattr(module, "head", None)
    parts = head.modules() if head is not None else ()
    return [one for one in parts if isinstance(one, nn.Dropout) and one.p > 0]


def components(name: str, p: Floats, threshold: float, min_area: int) -> list[tuple[Defect, float]]:
    """The connected regions of a class's map (H, W) above the threshold, the largest first, with their confidence."""
    mask = (p > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[1:count, cv2.CC_STAT_AREA]
    rows = [row + 1 for row in np.argsort(-areas, kind="stable")[:MOST].tolist() if areas[row] >= min_area]
    return [_region(name, p, labels, stats[row], row) for row in rows]


def _region(name: str, p: Floats, labels: NDArray[np.int32], stat: Any, row: int) -> tuple[Defect, float]:
    x, y, w, h = (int(value) for value in stat[:4])
    own = labels[y : y + h, x : x + w] == row
    defect = shapes.defect_from_mask(name, own.view(np.uint8))
    assert defect is not None
    box = (float(x), float(y), defect.box[2], defect.box[3])
    return replace(defect, box=box), float(p[y : y + h, x : x + w][own].mean(dtype=np.float64))


def load_predictor(project: Project, key: str | None = None, device: str = "auto") -> Predictor:
    """The model of this key or alias; without one production's, else the candidate, else the newest."""
    found = store.find(project, key)
    place = device_of(device)
    made = found.manifest
    module = trained_network(found).to(place)
    return Predictor(found.key, tuple(made["classes"]), recipe_of(found), made["single"], module, place)


def recipe_of(model: StoredModel) -> Recipe:
    return recipe.validated(model.manifest["recipe"], f"{model.folder / store.MANIFEST}: ")


def trained_network(model: StoredModel) -> Any:
    """The trained network, in eval mode; in memory as channels-last, which convolutions like best."""
    import torch

    made = recipe_of(model)
    module = architectures.build(made.task, made.model, made.input.channels, len(model.manifest["outputs"]))
    checkpoint.fill(module, model.weights)
    return module.eval().to(memory_format=torch.channels_last)


# --- a list of images ---

Outcome = tuple[str, ImagePrediction | None, str]


def predict_files(predictor: Predictor, todo: Sequence[tuple[str, Path]], max_pixels: int) -> Iterator[Outcome]:
    """Every image, in order; the next one is read while the model looks at this one."""
    with ThreadPoolExecutor(1) as reader:
        ahead: Future[Pixels] | None = None
        for place, (id, path) in enumerate(todo):
            now = ahead or reader.submit(read, id, path, max_pixels)
            ahead = reader.submit(read, *todo[place + 1], max_pixels) if place + 1 < len(todo) else None
            try:
                pixels = now.result()
            except LabelProblem as problem:
                yield id, None, f"{path}: {problem}"
                continue
            yield id, predictor.predict_image(pixels), ""
