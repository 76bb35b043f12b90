"""`curate predict`: predictions and scores of the images that a model has not seen yet."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from curate.errors import unknown
from curate.index import predictions
from curate.index.dataset import Index, chunks
from curate.project import Project
from curate.tables import Table
from curate.vectors.run import Engine
from train.predict import _ray
from train.predict.predictor import Outcome, Predictor, dropouts, load_predictor, predict_files

CHUNK = 64  # images to an append
Progress = Callable[[str, int, int], None]


@dataclass
class PredictReport:
    """Counts of a run: images `predicted` now, `kept` from before, `missing` on disk, and `failed` with the reason."""

    model: str
    table: str
    classes: list[str]
    predicted: int = 0
    kept: int = 0
    missing: int = 0
    with_defects: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(
    project: Project,
    key: str | None = None,
    view: str | None = None,
    progress: Progress = lambda stage, done, total: None,
    *,
    everything: bool = False,
    device: str = "auto",
    engine: str = "local",
) -> PredictReport:
    """Predict the images that this model has not seen yet. The caller holds the writer lock.

    Scores go to `work/scores/model-<key>.lance`, regions and classes to the index.

    Args:
        project: the project.
        key: the model's key or alias; without one the current model.
        view: a saved view, to which the images are limited.
        progress: counts images.
        everything: labelled images, too; without it and without a view only unlabelled ones.
        device: auto, cpu or cuda.
        engine: local, or ray: the model runs in Ray's actors, here or on a cluster; this process writes.
    """
    started = time.perf_counter()
    predictor = load_predictor(project, key, device)
    index = Index(project)
    requested = _requested(index, view, everything)
    on_disk = {id: path for id, path, missing in requested if not missing}
    table = table_of(project, predictor)
    predicted = predicted_ids(index, table, predictor.by)
    todo = [(id, Path(path)) for id, path in sorted(on_disk.items()) if id not in predicted]
    report = PredictReport(predictor.key, table.path, list(predictor.classes), kept=len(on_disk) - len(todo))
    report.missing = len(requested) - len(on_disk)
    for part in chunks(_outcomes(predictor, todo, project.config.limits.max_pixels, engine), CHUNK):
        _write(part, index, table, predictor, report)
        progress(f"predict {predictor.key[:8]}", len(part), len(todo))
    table.finish(newest=True)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def table_of(project: Project, predictor: Predictor) -> Table:
    """Return the model's score table, created where it does not exist."""
    path = project.work / "scores" / f"{predictor.by}.lance"
    if Table.exists(path):
        return Table(path)
    count = len(predictor.classes)
    columns = {"probability": f"float16[{count}]", "class_entropy": f"float16[{count}]", "uncertainty": "float32"}
    if predictor.recipe.task == "segmentation":
        columns["defect_pixels"] = f"float32[{count}]"  # a strip has more pixels than float16 can count
    elif dropouts(predictor.module):
        columns["bald"] = "float32"
    return Table.create(path, columns, {"classes": json.dumps(list(predictor.classes)), "model": predictor.key})


def _requested(index: Index, view: str | None, everything: bool) -> list[tuple[str, str, bool]]:
    """Return content id, file, and whether the file is missing, of the requested images."""
    rows = [
        (id, path, bool(missing), status) for id, path, missing, status in index.rows("filepath", "missing", "status")
    ]
    if view is not None:
        chosen = ids_of_view(index, view)
        return [row[:3] for row in rows if row[0] in chosen]
    return [row[:3] for row in rows if everything or row[3] != "labelled"]


def ids_of_view(index: Index, name: str) -> set[str]:
    """Return the content ids of a saved view."""
    views = index.dataset.list_saved_views()
    if name not in views:
        raise unknown("saved view", name, views)
    shown = index.dataset.load_saved_view(name)
    samples = shown.values("sample_id" if shown._is_patches else "id")
    return set(index.dataset.select(samples).values("content_id"))


def predicted_ids(index: Index, table: Table, by: str) -> set[str]:
    """Return images with this model's scores whose stored predictions are its own, not those of a later run."""
    if index.dataset.get_field(predictions.BY) is None:
        return set()
    shown = {id for id, who in index.rows(predictions.BY) if who == by}
    return shown.intersection(table.ids())


def _outcomes(
    predictor: Predictor, todo: Sequence[tuple[str, Path]], max_pixels: int, engine: str
) -> Iterator[Outcome]:
    if engine not in get_args(Engine):
        raise unknown("engine", engine, get_args(Engine))
    return (_ray.outcomes if engine == "ray" else predict_files)(predictor, todo, max_pixels)


def _write(part: list[Outcome], index: Index, table: Table, predictor: Predictor, report: PredictReport) -> None:
    """Store predictions, then scores: scores mark an image as done."""
    report.failed |= {id: reason for id, prediction, reason in part if prediction is None}
    good = {id: prediction for id, prediction, _ in part if prediction is not None}
    if not good:
        return
    predictions.store(index, predictor.by, {id: predictor.prediction(prediction) for id, prediction in good.items()})
    rows = list(good.values())
    columns = {
        name: np.stack([getattr(prediction, name) for prediction in rows]) for name in table.columns if name != "id"
    }
    table.append({"id": list(good)} | columns)
    report.predicted += len(good)
    report.with_defects += sum(bool(prediction.defects or prediction.classes) for prediction in rows)
