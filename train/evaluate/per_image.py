"""What a model says of labelled images, held against their labels: each image once, kept, and read as arrays.

The table `work/evaluations/<model>/judged-<key>.lance` holds a row for each image and label that this model was asked
about. An evaluation that was killed goes on; a label that was corrected costs that image alone.
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
from train.evaluate.metrics import BINS, THRESHOLDS, EvaluatedImages, Pixels, Regions
from train.predict.predictor import Predictor, ScoredDefects
from train.store import StoredModel

FOUND = 0.1  # of a labelled region's pixels that a prediction must cover
CHUNK = 64
STEP = 1  # raise it when a row would come out differently
Row = dict[str, Any]
Progress = Callable[[str, int, int], None]


def home(project: Project, model: str) -> Path:
    return project.work / "evaluations" / model


# --- which images ---------------------------------------------------------------------------------------------------


def placed(item: Item, classes: Sequence[str]) -> bool:
    """Whether the label says where each of its classes is: else the rest of the image may show anything."""
    regions = {defect.label for defect in item.label.defects}
    return not item.label.present.intersection(classes) - regions


# --- one image ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelEvaluator:
    """A model and the classes that it is asked about, in the project's order; some it may not know."""

    predictor: Predictor
    classes: tuple[str, ...]
    max_pixels: int

    @property
    def segments(self) -> bool:
        return self.predictor.recipe.task == "segmentation"

    @property
    def places(self) -> list[int | None]:
        """Where the model has each class."""
        known = self.predictor.classes
        return [known.index(name) if name in known else None for name in self.classes]

    def ordered(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's values in the order of our classes; 0 for one that it does not know."""
        nothing = np.zeros(values.shape[1:], np.float32)
        return np.stack([nothing if place is None else values[place] for place in self.places])

    def look(self, item: Item) -> tuple[Any, Any]:
        """What the network makes of an image: its map if it has one, and all that it says."""
        pixels = read(item.id, item.path, self.max_pixels)
        if pixels.shape[:2] != (item.height, item.width):
            raise LabelProblem(f"is {pixels.shape[1]}x{pixels.shape[0]}, the index says {item.width}x{item.height}")
        if not self.segments:
            return None, self.predictor.predict_image(pixels)
        p = self.predictor.probabilities(with_channels(pixels, self.predictor.recipe.input.channels))
        return self.ordered(p), self.predictor.from_map(p)

    def row(self, item: Item, p: Any, seen: Any) -> Row:
        """All that figures need of it."""
        named = {name for name, _ in seen.classes} | {defect.label for defect, _ in seen.defects}
        row: Row = {
            "id": item.id,
            "label": item.label.digest,
            "p": self.ordered(seen.probability),
            "decided": np.array([name in named for name in self.classes], np.uint8),
        }
        return row | (self._pixels(item, p, seen.defects) if self.segments else {})

    def _pixels(self, item: Item, p: NDArray[np.float32], found: ScoredDefects) -> Row:
        truth, mine = masks_of(item, self.classes), _masks(found, item, self.classes)
        both = zip(truth.astype(bool), mine.astype(bool), strict=True)
        counts = [[(t & m).sum(), (~t & m).sum(), (t & ~m).sum()] for t, m in both]
        return {
            "counts": np.ravel(counts),
            "histogram": np.ravel([metrics.histogram(p[c], truth[c]) for c in range(len(self.classes))]),
            "largest": np.ravel([metrics.largest_regions(p[c]) for c in range(len(self.classes))]),
            "regions": json.dumps(_compared(item, mine, found, self.classes)),
        }


def table_of(project: Project, model: StoredModel, classes: Sequence[str]) -> Table:
    """What this model has said of images; made if it is not there."""
    path = home(project, model.key) / f"judged-{key_of(mark(classes))}.lance"
    return table_at(path, model.manifest["task"] == "segmentation", classes)


def mark(classes: Sequence[str]) -> list[Any]:
    """All that a row's meaning hangs on, beside the image, its label and the model."""
    return [classes, BINS, THRESHOLDS.tolist(), FOUND, STEP]


def table_at(path: Path, segments: bool, classes: Sequence[str]) -> Table:
    count = len(classes)
    columns = {"label": "string", "p": f"float32[{count}]", "decided": f"uint8[{count}]"}
    if segments:
        columns |= {"counts": f"int64[{3 * count}]", "histogram": f"int32[{2 * BINS * count}]"}
        columns |= {"largest": f"int32[{len(THRESHOLDS) * count}]", "regions": "string"}
    return Table(path) if Table.exists(path) else Table.create(path, columns)


def _masks(found: ScoredDefects, item: Item, classes: Sequence[str]) -> NDArray[np.uint8]:
    masks = np.zeros((len(classes), item.height, item.width), np.uint8)
    for defect, _ in found:
        if defect.label in classes:
            masks[classes.index(defect.label)] |= shapes.mask_of(defect, item.width, item.height)
    return masks


def _compared(item: Item, mine: NDArray[np.uint8], found: ScoredDefects, classes: Sequence[str]) -> dict[str, Any]:
    """Every labelled region with whether it was found, every predicted one with where its box would be right."""
    labelled = [(classes.index(d.label), *one) for d in item.label.defects if d.label in classes for one in parts(d)]
    said = [(classes.index(d.label), sure, d) for d, sure in found if d.label in classes]
    right: dict[int, Any] = {}
    for kind in {kind for kind, _, _ in said}:
        rows = [row for row, one in enumerate(said) if one[0] == kind]
        boxes = np.array([said[row][2].box for row in rows], float)
        truth = np.array([box for theirs, box, _ in labelled if theirs == kind], float).reshape(-1, 4)
        flags = metrics.matched(boxes, np.array([said[row][1] for row in rows]), truth)
        right |= dict(zip(rows, flags.astype(int).tolist(), strict=True))
    return {
        "labelled": [(kind, int(mask.sum()), _hit(mine[kind], box, mask)) for kind, box, mask in labelled],
        "found": [(kind, sure, right[row], defect.to_json()) for row, (kind, sure, defect) in enumerate(said)],
    }


Box = tuple[float, float, float, float]


def parts(defect: Defect) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """The connected regions of a labelled defect: box, and the pixels inside it. A plain box is one."""
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


def _hit(mine: NDArray[np.uint8], box: Box, mask: NDArray[np.uint8]) -> int:
    top, left = int(box[1]), int(box[0])
    part = mine[top : top + mask.shape[0], left : left + mask.shape[1]]
    covered = part & mask[: part.shape[0], : part.shape[1]]
    return int(covered.sum() >= FOUND * mask.sum())


# --- many images ----------------------------------------------------------------------------------------------------


def known(table: Table, items: Sequence[Item]) -> set[str]:
    """Those of the images whose row was made for the label that they have today."""
    there = sorted({one.id for one in items}.intersection(table.ids()))
    labels = dict(zip(there, table.read(there, ["label"])["label"], strict=True)) if there else {}
    return {one.id for one in items if labels.get(one.id) == one.label.digest}


def ask(judge: ModelEvaluator, table: Table, items: Sequence[Item], progress: Progress) -> dict[str, str]:
    """Fill the table with what is missing; returns the images that cannot be read, with the reason."""
    done = known(table, items)
    todo = [one for one in items if one.id not in done]
    failed: dict[str, str] = {}
    for part in chunks(_rows(judge, todo, failed), CHUNK):
        rows = [row for row in part if row]
        if rows:
            table.append({name: _column([row[name] for row in rows]) for name in table.columns})
        progress(f"judge {judge.predictor.key[:8]}", len(part), len(todo))
    table.finish(newest=False)
    return failed


def _column(values: list[Any]) -> Any:
    return values if isinstance(values[0], str) else np.stack(values)


def _rows(judge: ModelEvaluator, items: Sequence[Item], failed: dict[str, str]) -> Iterator[Row | None]:
    """In order; what the network saw last is counted while it looks at the next image."""
    with ThreadPoolExecutor(1) as counter:
        behind: Future[Row] | None = None
        for item in items:
            try:
                p, seen = judge.look(item)
            except LabelProblem as problem:
                failed[item.id] = f"{item.path}: {problem}"
                yield None
                continue
            if behind is not None:
                yield behind.result()
            behind = counter.submit(judge.row, item, p, seen)
        if behind is not None:
            yield behind.result()


# --- rows as arrays -------------------------------------------------------------------------------------------------


def gathered(table: Table, items: Sequence[Item], classes: Sequence[str], single: bool) -> EvaluatedImages:
    """What figures are made of; the images as they come."""
    ids, count = [one.id for one in items], len(classes)
    found = table.read(ids, [name for name in table.columns if name not in ("id", "label")]) if ids else {}
    present = np.array([[name in one.label.present for name in classes] for one in items], bool)
    judged = EvaluatedImages(
        tuple(classes),
        tuple(ids),
        tuple(one.group or one.id for one in items),
        present.reshape(-1, count),
        np.asarray(found.get("p", np.zeros((0, count))), np.float64),
        np.asarray(found.get("decided", np.zeros((0, count))), bool),
        single,
    )
    if "counts" not in table.columns or not ids:
        return judged
    pixels = Pixels(
        np.asarray(found["counts"].reshape(-1, count, 3), np.int64),
        np.asarray(found["histogram"].reshape(-1, count, 2, BINS), np.int64),
        np.asarray(found["largest"].reshape(-1, count, len(THRESHOLDS)), np.int64),
    )
    texts = [json.loads(text) for text in found["regions"]]
    return EvaluatedImages(**{**vars(judged), "pixels": pixels, "regions": _regions(texts)})


def _regions(texts: Sequence[Mapping[str, Any]]) -> Regions:
    labelled = [(row, *one) for row, text in enumerate(texts) for one in text["labelled"]]
    found = [(row, *one[:3]) for row, text in enumerate(texts) for one in text["found"]]
    row, kind, area, hit = np.array(labelled, float).reshape(-1, 4).T
    levels = len(metrics.IOUS)
    return Regions(
        row.astype(np.int64),
        kind.astype(np.int64),
        area,
        hit.astype(bool),
        np.array([one[0] for one in found], np.int64),
        np.array([one[1] for one in found], np.int64),
        np.array([one[2] for one in found], float),
        np.array([one[3] for one in found], bool).reshape(-1, levels),
    )


def said(table: Table, ids: Sequence[str], classes: Sequence[str], by: str) -> dict[str, Prediction]:
    """The same predictions as people see them."""
    if not ids:
        return {}
    if "regions" in table.columns:
        texts = table.read(ids, ["regions"])["regions"]
        regions = {id: json.loads(text)["found"] for id, text in zip(ids, texts, strict=True)}
        pairs = {id: tuple((Defect.from_json(one[3]), one[1]) for one in found) for id, found in regions.items()}
        return {id: Prediction(found, (), by) for id, found in pairs.items()}
    found = table.read(ids, ["p", "decided"])
    rows = zip(ids, found["p"], found["decided"], strict=True)
    return {id: Prediction((), _named(classes, p, yes), by) for id, p, yes in rows}


def _named(classes: Sequence[str], p: Any, yes: Any) -> tuple[tuple[str, float], ...]:
    return tuple((name, float(sure)) for name, sure, shown in zip(classes, p, yes, strict=True) if shown)
