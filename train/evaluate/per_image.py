"""A model's predictions on labelled images, compared with the labels: stored image by image, and read as arrays.

The table `work/evaluations/<model>/judged-<key>.lance` has a row for each image and label that was evaluated with this
model. An evaluation that was killed continues; after a corrected label only that image is predicted again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.data import Defect, Item
from curate.errors import LabelProblem
from curate.hashing import key_of
from curate.index.dataset import chunks
from curate.index.predictions import Prediction
from curate.masks import shapes
from curate.project import Project
from curate.tables import Table
from train.data.dataset import masks_of
from train.data.pixels import read, with_channels
from train.evaluate import metrics
from train.evaluate.metrics import BINS, THRESHOLDS, EvaluatedImages, PixelCounts, RegionMatches
from train.predict.predictor import Predictor, ScoredDefects
from train.store import StoredModel

MIN_COVERED = 0.1  # share of a labelled region's pixels that a prediction must cover to find it
CHUNK = 64
STEP = 1  # raise it when a row would come out differently
Row = dict[str, Any]
Progress = Callable[[str, int, int], None]


def model_folder(project: Project, model: str) -> Path:
    return project.work / "evaluations" / model


# --- images ---------------------------------------------------------------------------------------------------------


def has_locations(item: Item, classes: Sequence[str]) -> bool:
    """Return True where the label locates each of its classes; without that, any pixel may be defective."""
    regions = {defect.label for defect in item.label.defects}
    return not item.label.present.intersection(classes) - regions


# --- one image ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelEvaluator:
    """A model and the classes to evaluate, in the project's order; the model may not know all of them."""

    predictor: Predictor
    classes: tuple[str, ...]
    max_pixels: int

    @property
    def segments(self) -> bool:
        return self.predictor.recipe.task == "segmentation"

    @property
    def class_indices(self) -> list[int | None]:
        """The model's index of each class; None for a class that it does not know."""
        known = self.predictor.classes
        return [known.index(name) if name in known else None for name in self.classes]

    def in_class_order(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the model's values in the order of our classes; 0 for a class that it does not know."""
        nothing = np.zeros(values.shape[1:], np.float32)
        return np.stack([nothing if place is None else values[place] for place in self.class_indices])

    def predict(self, item: Item) -> tuple[Any, Any]:
        """Return a segmenter's probability map of an image (else None), and the prediction."""
        pixels = read(item.id, item.path, self.max_pixels)
        if pixels.shape[:2] != (item.height, item.width):
            raise LabelProblem(f"is {pixels.shape[1]}x{pixels.shape[0]}, in the index {item.width}x{item.height}")
        if not self.segments:
            return None, self.predictor.predict_image(pixels)
        p = self.predictor.probabilities(with_channels(pixels, self.predictor.recipe.input.channels))
        return self.in_class_order(p), self.predictor.from_map(p)

    def row(self, item: Item, p: Any, prediction: Any) -> Row:
        """Return the table row of an image: everything that the metrics need."""
        named = {name for name, _ in prediction.classes} | {defect.label for defect, _ in prediction.defects}
        row: Row = {
            "id": item.id,
            "label": item.label.digest,
            "p": self.in_class_order(prediction.probability),
            "decided": np.array([name in named for name in self.classes], np.uint8),
        }
        return row | (self._pixels(item, p, prediction.defects) if self.segments else {})

    def _pixels(self, item: Item, p: NDArray[np.float32], regions: ScoredDefects) -> Row:
        truth, predicted = masks_of(item, self.classes), _masks(regions, item, self.classes)
        both = zip(truth.astype(bool), predicted.astype(bool), strict=True)
        counts = [[(t & m).sum(), (~t & m).sum(), (t & ~m).sum()] for t, m in both]
        return {
            "counts": np.ravel(counts),
            "histogram": np.ravel([metrics.histogram(p[c], truth[c]) for c in range(len(self.classes))]),
            "largest": np.ravel([metrics.largest_regions(p[c]) for c in range(len(self.classes))]),
            "regions": json.dumps(_match_regions(item, predicted, regions, self.classes)),
        }


def open_table(project: Project, model: StoredModel, classes: Sequence[str]) -> Table:
    """Open the table of this model's evaluated images; create it where it does not exist."""
    version = key_of([*row_version(classes), *model.versions])
    path = model_folder(project, model.key) / f"judged-{version}.lance"
    return open_table_at(path, model.manifest["task"] == "segmentation", classes)


def row_version(classes: Sequence[str]) -> list[Any]:
    """Return everything that a row depends on beside the image, its label and the model."""
    return [classes, BINS, THRESHOLDS.tolist(), MIN_COVERED, STEP]


def open_table_at(path: Path, segments: bool, classes: Sequence[str]) -> Table:
    count = len(classes)
    columns = {"label": "string", "p": f"float32[{count}]", "decided": f"uint8[{count}]"}
    if segments:
        columns |= {"counts": f"int64[{3 * count}]", "histogram": f"int32[{2 * BINS * count}]"}
        columns |= {"largest": f"int32[{len(THRESHOLDS) * count}]", "regions": "string"}
    return Table(path) if Table.exists(path) else Table.create(path, columns)


def _masks(regions: ScoredDefects, item: Item, classes: Sequence[str]) -> NDArray[np.uint8]:
    masks = np.zeros((len(classes), item.height, item.width), np.uint8)
    for defect, _ in regions:
        if defect.label in classes:
            masks[classes.index(defect.label)] |= shapes.mask_of(defect, item.width, item.height)
    return masks


def _match_regions(
    item: Item, predicted_masks: NDArray[np.uint8], regions: ScoredDefects, classes: Sequence[str]
) -> dict[str, Any]:
    """Return each labelled region with whether it was found, and each predicted one with the IoUs where it is right."""
    labelled = [
        (classes.index(d.label), *part)
        for d in item.label.defects
        if d.label in classes
        for part in connected_regions(d)
    ]
    predicted = [(classes.index(d.label), confidence, d) for d, confidence in regions if d.label in classes]
    right: dict[int, Any] = {}
    for kind in {kind for kind, _, _ in predicted}:
        rows = [row for row, region in enumerate(predicted) if region[0] == kind]
        boxes = np.array([predicted[row][2].box for row in rows], float)
        truth = np.array([box for other, box, _ in labelled if other == kind], float).reshape(-1, 4)
        flags = metrics.match_boxes(boxes, np.array([predicted[row][1] for row in rows]), truth)
        right |= dict(zip(rows, flags.astype(int).tolist(), strict=True))
    return {
        "labelled": [
            (kind, int(mask.sum()), _is_found(predicted_masks[kind], box, mask)) for kind, box, mask in labelled
        ],
        "found": [
            (kind, confidence, right[row], defect.to_json()) for row, (kind, confidence, defect) in enumerate(predicted)
        ],
    }


Box = tuple[float, float, float, float]


def connected_regions(defect: Defect) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """Yield the connected regions of a labelled defect as box and mask inside the box; a plain box is one region."""
    crop = shapes.crop_of(defect)
    x, y, w, h = defect.box
    if crop is None:
        left, top = int(x), int(y)
        yield defect.box, np.ones((max(1, round(y + h) - top), max(1, round(x + w) - left)), np.uint8)
        return
    count, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8)
    for row in range(1, count):
        left, top, wide, high = (int(value) for value in stats[row, :4])
        own = labels[top : top + high, left : left + wide] == row
        yield (x + left, y + top, float(wide), float(high)), own.view(np.uint8)


def _is_found(predicted: NDArray[np.uint8], box: Box, mask: NDArray[np.uint8]) -> int:
    top, left = int(box[1]), int(box[0])
    part = predicted[top : top + mask.shape[0], left : left + mask.shape[1]]
    covered = part & mask[: part.shape[0], : part.shape[1]]
    return int(covered.sum() >= MIN_COVERED * mask.sum())


# --- many images ----------------------------------------------------------------------------------------------------


def up_to_date(table: Table, items: Sequence[Item]) -> set[str]:
    """Return the ids of the images whose row was made with their current label."""
    there = sorted({item.id for item in items}.intersection(table.ids()))
    labels = dict(zip(there, table.read(there, ["label"])["label"], strict=True)) if there else {}
    return {item.id for item in items if labels.get(item.id) == item.label.digest}


def evaluate_missing(
    evaluator: ModelEvaluator, table: Table, items: Sequence[Item], progress: Progress
) -> dict[str, str]:
    """Evaluate the images that the table lacks; returns the images that cannot be read, with the reason."""
    done = up_to_date(table, items)
    todo = [item for item in items if item.id not in done]
    failed: dict[str, str] = {}
    for part in chunks(_rows(evaluator, todo, failed), CHUNK):
        rows = [row for row in part if row]
        if rows:
            table.append({name: _column([row[name] for row in rows]) for name in table.columns})
        progress(f"evaluate {evaluator.predictor.key[:8]}", len(part), len(todo))
    table.finish(newest=False)
    return failed


def _column(values: list[Any]) -> Any:
    return values if isinstance(values[0], str) else np.stack(values)


def _rows(evaluator: ModelEvaluator, items: Sequence[Item], failed: dict[str, str]) -> Iterator[Row | None]:
    """Yield the rows in order; one image's row is computed while the network predicts the next image."""
    with ThreadPoolExecutor(1) as counter:
        previous: Future[Row] | None = None
        for item in items:
            try:
                p, prediction = evaluator.predict(item)
            except LabelProblem as problem:
                failed[item.id] = f"{item.path}: {problem}"
                yield None
                continue
            if previous is not None:
                yield previous.result()
            previous = counter.submit(evaluator.row, item, p, prediction)
        if previous is not None:
            yield previous.result()


# --- rows as arrays -------------------------------------------------------------------------------------------------


def evaluated_images(table: Table, items: Sequence[Item], classes: Sequence[str], single: bool) -> EvaluatedImages:
    """Read the images' rows as arrays, in the order of `items`."""
    ids, count = [item.id for item in items], len(classes)
    columns = table.read(ids, [name for name in table.columns if name not in ("id", "label")]) if ids else {}
    present = np.array([[name in item.label.present for name in classes] for item in items], bool)
    evaluated = EvaluatedImages(
        tuple(classes),
        tuple(ids),
        tuple(item.group or item.id for item in items),
        present.reshape(-1, count),
        np.asarray(columns.get("p", np.zeros((0, count))), np.float64),
        np.asarray(columns.get("decided", np.zeros((0, count))), bool),
        single,
    )
    if "counts" not in table.columns or not ids:
        return evaluated
    pixels = PixelCounts(
        np.asarray(columns["counts"].reshape(-1, count, 3), np.int64),
        np.asarray(columns["histogram"].reshape(-1, count, 2, BINS), np.int64),
        np.asarray(columns["largest"].reshape(-1, count, len(THRESHOLDS)), np.int64),
    )
    texts = [json.loads(text) for text in columns["regions"]]
    return EvaluatedImages(**{**vars(evaluated), "pixels": pixels, "regions": _regions(texts)})


def _regions(texts: Sequence[Mapping[str, Any]]) -> RegionMatches:
    labelled = [(row, *region) for row, text in enumerate(texts) for region in text["labelled"]]
    predicted = [(row, *region[:3]) for row, text in enumerate(texts) for region in text["found"]]
    row, kind, area, hit = np.array(labelled, float).reshape(-1, 4).T
    levels = len(metrics.IOUS)
    return RegionMatches(
        row.astype(np.int64),
        kind.astype(np.int64),
        area,
        hit.astype(bool),
        np.array([region[0] for region in predicted], np.int64),
        np.array([region[1] for region in predicted], np.int64),
        np.array([region[2] for region in predicted], float),
        np.array([region[3] for region in predicted], bool).reshape(-1, levels),
    )


def predictions_of(table: Table, ids: Sequence[str], classes: Sequence[str], by: str) -> dict[str, Prediction]:
    """Read the predictions of these images as the App shows them."""
    if not ids:
        return {}
    if "regions" in table.columns:
        texts = table.read(ids, ["regions"])["regions"]
        by_id = {id: json.loads(text)["found"] for id, text in zip(ids, texts, strict=True)}
        pairs = {
            id: tuple((Defect.from_json(region[3]), region[1]) for region in regions) for id, regions in by_id.items()
        }
        return {id: Prediction(defects, (), by) for id, defects in pairs.items()}
    columns = table.read(ids, ["p", "decided"])
    rows = zip(ids, columns["p"], columns["decided"], strict=True)
    return {id: Prediction((), _named_classes(classes, p, yes), by) for id, p, yes in rows}


def _named_classes(classes: Sequence[str], p: Any, yes: Any) -> tuple[tuple[str, float], ...]:
    return tuple((name, float(confidence)) for name, confidence, shown in zip(classes, p, yes, strict=True) if shown)
