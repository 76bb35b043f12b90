"""A trained model on its device, and what it predicts for an image.

    predictor = load_predictor(project)                    the current model, or load_predictor(project, key)
    prediction = predictor.predict_image(pixels)           uint8, HxW or HxWx3
    prediction.probability, prediction.defects             by class; (Defect, confidence) pairs

Segmentation looks at an image in tiles of at most `TILE` pixels, blended where they overlap; a strip of 256 x 1600 fits
into one. A connected region above its class's threshold is a defect, its confidence the mean probability of its pixels.
A classifier in native resolution looks at the same tiles, of which the worst speaks for the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from train import architectures, checkpoint, decisions, recipe, store
from train.architectures import two_stage
from train.data.pixels import OVERLAP, TILE, Pixels, normalised, padded, read, resized, tiles, with_channels
from train.decisions import Decision
from train.predict import stages
from train.recipe import Recipe
from train.store import StoredModel

MOST_REGIONS = 100  # the largest regions of a class are kept: an untrained model finds thousands
PASSES = 16  # forward passes with dropout, for BALD
Floats = NDArray[np.float32]
ScoredDefects = tuple[tuple[Defect, float], ...]


class ImagePrediction(NamedTuple):
    """The prediction for one image, in the order of the model's classes. `bald`: only where the head has dropout."""

    probability: Floats
    defects: ScoredDefects
    class_entropy: Floats
    uncertainty: float
    classes: tuple[tuple[str, float], ...] = ()
    defect_pixels: Floats | None = None
    bald: float | None = None


# --- a model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """A trained model on its device. `classes` gives the order of all arrays by class.

    `decisions`: those that were fitted, by class.
    """

    key: str
    classes: tuple[str, ...]
    recipe: Recipe
    single: bool
    module: Any
    device: str = "cpu"
    tile: int = TILE
    decisions: Mapping[str, Decision] = field(default_factory=dict)

    def decision(self, name: str) -> Decision:
        """Return the decision for a class: the fitted one, else the recipe's."""
        default = Decision(self.recipe.predict.threshold, self.recipe.predict.min_area)
        return self.decisions.get(name, default)

    @property
    def by(self) -> str:
        """The name under which predictions and scores are stored."""
        return f"model-{self.key}"

    def predict_image(self, pixels: Pixels) -> ImagePrediction:
        """Predict one image (uint8, HxW or HxWx3)."""
        image = with_channels(pixels, self.recipe.input.channels)
        return self.from_map(self.probabilities(image)) if self.recipe.task == "segmentation" else self._whole(image)

    def prediction(self, image: ImagePrediction) -> Prediction:
        """Return the regions and classes as the index stores them."""
        return Prediction(image.defects, image.classes, self.by)

    # --- segmentation ---

    def from_map(self, p: Floats) -> ImagePrediction:
        """Return a segmenter's prediction from its probability map (C, H, W)."""
        summary = scores.summarise(p)
        by_class = [self._regions(name, values) for name, values in zip(self.classes, p, strict=True)]
        # The most likely small tile would miss a crack thinner than half a tile, however sure the model is of it.
        confidence = [max((value for _, value in regions), default=0.0) for regions in by_class]
        return ImagePrediction(
            probability=np.maximum(np.asarray(summary["probability"]), np.array(confidence, np.float32)),
            defects=tuple(region for regions in by_class for region in regions),
            class_entropy=np.asarray(summary["class_tile_entropy"]),
            uncertainty=float(summary["boundary_free"]),
            defect_pixels=np.asarray(summary["expected_defect_pixels"]),
        )

    def _regions(self, name: str, p: Floats) -> list[tuple[Defect, float]]:
        return components(name, p, *self.decision(name))

    def probabilities(self, image: Pixels) -> Floats:
        """Return the probability map (C, H, W) of an image (H, W, channels)."""
        height, width = image.shape[:2]
        high, wide, places = tiles(height, width, self.tile)
        canvas = padded(image, high, wide)
        total = np.zeros((len(self.classes), *canvas.shape[:2]), np.float32)
        weight = np.zeros(canvas.shape[:2], np.float32)
        fade = np.outer(_ramp(high), _ramp(wide))
        for y, x in places:
            total[:, y : y + high, x : x + wide] += self._tile(canvas[y : y + high, x : x + wide]) * fade
            weight[y : y + high, x : x + wide] += fade
        return np.ascontiguousarray((total / weight)[:, :height, :width])

    def _tile(self, tile: Pixels) -> Floats:
        flag = two_stage.flag_of(self.recipe.model)
        if flag is None:
            return self._map(self.module, tile, self.recipe.predict.flips)
        gate, segmenter = self.module.gate, self.module.segment
        return stages.probabilities(
            tile,
            flag,
            lambda pixels: self._map(gate, pixels, False),
            lambda pixels: self._map(segmenter, pixels, self.recipe.predict.flips),
        )

    def _map(self, network: Any, pixels: Pixels, flips: bool) -> Floats:
        """Return a network's probability map (C, H, W), with `flips` the mean over the image and two mirrored ones."""
        import torch

        batch = self._batch(pixels)
        with torch.inference_mode(), self._precision():
            probabilities = [
                network(batch.flip(flip)).float().sigmoid().flip(flip) for flip in flips_of(flips, (3,), (2,))
            ]
        return np.asarray(torch.stack(probabilities).mean(0)[0].cpu().numpy(), np.float32)

    # --- classification ---

    def _whole(self, image: Pixels) -> ImagePrediction:
        p, balds = zip(*map(self._outputs, self._views(image)), strict=True)
        whole = self._worst(np.stack(p))
        by_class = whole[: len(self.classes)]
        unsure = scores.entropy(whole[None]) if self.single else scores.predictive_entropy_multilabel(whole[None])
        return ImagePrediction(
            by_class,
            (),
            scores.class_entropy(by_class),
            float(unsure[0]),
            self._predicted_classes(whole),
            bald=None if None in balds else max(balds),
        )

    def _views(self, image: Pixels) -> list[Pixels]:
        """Return what a classifier looks at: the resized image, or in native resolution all of it, a large one in
        tiles."""
        size = self.recipe.input
        if not self.recipe.native:
            return [resized(image, size.height, size.width)]
        high, wide, places = tiles(image.shape[0], image.shape[1], self.tile)
        canvas = padded(image, high, wide)
        return [canvas[y : y + high, x : x + wide] for y, x in places]

    def _worst(self, p: Floats) -> Floats:
        """Return the outputs' probabilities of an image from those of its views, (V, outputs): of each class the
        highest, but of a single choice those of the view that is least likely clean, or surest of its class."""
        if not self.single:
            return np.asarray(p.max(axis=0))
        has_clean = p.shape[1] > len(self.classes)
        return np.asarray(p[(1 - p[:, -1] if has_clean else p.max(axis=1)).argmax()])

    def _outputs(self, view: Pixels) -> tuple[Floats, float | None]:
        """Return the outputs' probabilities of a view, and BALD."""
        import torch

        batch = self._batch(view)
        with torch.inference_mode(), self._precision():
            maps = [self.module.encoder(batch.flip(flip)) for flip in flips_of(self.recipe.predict.flips, (3,), (2,))]
            lasts = [features[-1] if isinstance(features, list | tuple) else features for features in maps]
            p = np.mean([self._output_probabilities(self.module.head(last)) for last in lasts], axis=0)
            return np.asarray(p, np.float32), self._bald(lasts[0])

    def _output_probabilities(self, logits: Any) -> Floats:
        values = logits.float()[0]
        return np.asarray((values.softmax(0) if self.single else values.sigmoid()).cpu().numpy(), np.float32)

    def _predicted_classes(self, p: Floats) -> tuple[tuple[str, float], ...]:
        """Return the classes that are decided on; none where clean is the most likely outcome."""
        limits = [self.decision(name).threshold for name in self.classes]
        limits += [self.recipe.predict.threshold] * (len(p) - len(limits))  # the output for clean
        rows = np.flatnonzero(decisions.decide(p[None], limits, self.single)[0]).tolist()
        return tuple((self.classes[row], float(p[row])) for row in rows if row < len(self.classes))

    def _bald(self, last: Any) -> float | None:
        """Return how much dropout versions of the head disagree (BALD), with the same versions for every image."""
        import torch

        drops = dropouts(self.module)
        if not drops:
            return None
        with torch.random.fork_rng(devices=[] if self.device == "cpu" else None):
            torch.manual_seed(0)
            for layer in drops:
                layer.train()
            samples = [self._output_probabilities(self.module.head(last))[None] for _ in range(PASSES)]
            for layer in drops:
                layer.eval()
        return float((scores.bald(samples) if self.single else scores.bald_multilabel(samples))[0])

    # --- both ---

    def _batch(self, image: Pixels) -> Any:
        import torch

        batch = torch.from_numpy(np.require(image[None], requirements=["C", "W"])).to(self.device)
        return normalised(batch, self.recipe.input.scale)

    def _precision(self) -> Any:
        import torch

        return torch.autocast("cuda", torch.float16, enabled=self.device != "cpu")


def flips_of(flips: bool, *axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the axes by which an image is mirrored to predict it: none, and with `flips` each of these."""
    return ((), *axes) if flips else ((),)


def _ramp(length: int) -> Floats:
    """Return blending weights that rise from a tile's borders inwards, over the overlap."""
    from_end = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.asarray(np.minimum(from_end, OVERLAP) / OVERLAP, np.float32)


def dropouts(module: Any) -> list[Any]:
    """Return the head's dropout layers with a probability above zero."""
    from torch import nn

    head = getattr(module, "head", None)
    parts = head.modules() if head is not None else ()
    return [layer for layer in parts if isinstance(layer, nn.Dropout | nn.Dropout2d) and layer.p > 0]


def components(name: str, p: Floats, threshold: float, min_area: int) -> list[tuple[Defect, float]]:
    """Return the connected regions of a class's map (H, W) above the threshold, the largest first, with confidence."""
    mask = (p > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[1:count, cv2.CC_STAT_AREA]
    rows = [row + 1 for row in np.argsort(-areas, kind="stable")[:MOST_REGIONS].tolist() if areas[row] >= min_area]
    return [_region(name, p, labels, stats[row], row) for row in rows]


def _region(name: str, p: Floats, labels: NDArray[np.int32], stat: Any, row: int) -> tuple[Defect, float]:
    x, y, w, h = (int(value) for value in stat[:4])
    inside = labels[y : y + h, x : x + w] == row
    defect = shapes.defect_from_mask(name, inside.view(np.uint8))
    assert defect is not None
    box = (float(x), float(y), defect.box[2], defect.box[3])
    return replace(defect, box=box), float(p[y : y + h, x : x + w][inside].mean(dtype=np.float64))


def load_predictor(project: Project, key: str | None = None, device: str = "auto") -> Predictor:
    """Load a model.

    Args:
        project: the project that trained it.
        key: its key or alias; without one the production model, else the candidate, else the newest.
        device: auto, cpu or cuda.
    """
    model = store.find(project, key)
    place = device_of(device)
    manifest = model.manifest
    module = trained_network(model).to(place)
    return Predictor(
        model.key,
        tuple(manifest["classes"]),
        recipe_of(model),
        manifest["single"],
        module,
        place,
        decisions=model.decisions,
    )


def recipe_of(model: StoredModel) -> Recipe:
    """Return the recipe that a model was trained with."""
    return recipe.validate(model.manifest["recipe"], f"{model.folder / store.MANIFEST}: ")


def trained_network(model: StoredModel) -> Any:
    """Return the trained network in eval mode, with channels-last memory, in which convolutions are fastest."""
    import torch

    model_recipe = recipe_of(model)
    module = architectures.build(
        model_recipe.task, model_recipe.model, model_recipe.input.channels, len(model.manifest["outputs"])
    )
    checkpoint.load_into(module, model.weights)
    return module.eval().to(memory_format=torch.channels_last)


# --- a list of images ---

Outcome = tuple[str, ImagePrediction | None, str]


def predict_files(predictor: Predictor, todo: Sequence[tuple[str, Path]], max_pixels: int) -> Iterator[Outcome]:
    """Yield the prediction or problem of every file, in order; the next one is read while this one is predicted."""
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
