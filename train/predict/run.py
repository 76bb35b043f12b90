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
    """What a run did: images `predicted` now, `kept` from before, `failed` with the reason, `missing` on disk."""

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
    """Predict what this model has not seen yet: of a saved view, of `everything`, else of what nobody has labelled.

    Scores go to `work/scores/model-<key>.lance`, regions and classes to the index. The caller holds the writer lock.
    With `engine="ray"` the model looks in Ray's actors, here or on a cluster; this process writes.
    """
    begun = time.perf_counter()
    predictor = load_predictor(project, key, device)
    index = Index(project)
    wanted = _wanted(index, view, everything)
    there = {id: path for id, path, missing in wanted if not missing}
    table = table_of(project, predictor)
    known = done(index, table, predictor.by)
    todo = [(id, Path(path)) for id, path in sorted(there.items()) if id not in known]
    report = PredictReport(predictor.key, table.path, list(predictor.classes), kept=len(there) - len(todo))
    report.missing = len(wanted) - len(there)
    for part in chunks(_seen(predictor, todo, project.config.limits.max_pixels, engine), CHUNK):
        _write(part, index, table, predictor, report)
        progress(f"predict {predictor.key[:8]}", len(part), len(todo))
    table.finish(newest=True)
    report.seconds = round(time.perf_counter() - begun, 3)
    return report


def table_of(project: Project, predictor: Predictor) -> Table:
    """The model's score table; made if it is not there."""
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


def _wanted(index: Index, view: str | None, everything: bool) -> list[tuple[str, str, bool]]:
    """Content id, file, and whether that is missing."""
    rows = [
        (id, path, bool(missing), status) for id, path, missing, status in index.rows("filepath", "missing", "status")
    ]
    if view is not None:
        chosen = of_view(index, view)
        return [row[:3] for row in rows if row[0] in chosen]
    return [row[:3] for row in rows if everything or row[3] != "labelled"]


def of_view(index: Index, name: str) -> set[str]:
    known = index.dataset.list_saved_views()
    if name not in known:
        raise unknown("saved view", name, known)
    shown = index.dataset.load_saved_view(name)
    samples = shown.values("sample_id" if shown._is_patches else "id")
    return set(index.dataset.select(samples).values("content_id"))


def done(index: Index, table: Table, by: str) -> set[str]:
    """Images that have this model's scores, and show its predictions: another model may have been asked since."""
    if index.dataset.get_field(predictions.BY) is None:
        return set()
    shown = {id for id, who in index.rows(predictions.BY) if who == by}
    return shown.intersection(table.ids())


def _seen(predictor: Predictor, todo: Sequence[tuple[str, Path]], max_pixels: int, engine: str) -> Iterator[Outcome]:
    if engine not in get_args(Engine):
        raise unknown("engine", engine, get_args(Engine))
    return (_ray.outcomes if engine == "ray" else predict_files)(predictor, todo, max_pixels)


def _write(part: list[Outcome], index: Index, table: Table, predictor: Predictor, report: PredictReport) -> None:
    """Predictions first: scores mark an image as done."""
    report.failed |= {id: reason for id, seen, reason in part if seen is None}
    good = {id: seen for id, seen, _ in part if seen is not None}
    if not good:
        return
    predictions.store(index, predictor.by, {id: predictor.prediction(seen) for id, seen in good.items()})
    rows = list(good.values())
    columns = {name: np.stack([getattr(one, name) for one in rows]) for name in table.columns if name != "id"}
    table.append({"id": list(good)} | columns)
    report.predicted += len(good)
    report.with_defects += sum(bool(one.defects or one.classes) for one in rows)
