"""Where a model and the labels part, as fields of the index: what the App's saved views of mistakes are made of.

One evaluation is shown at a time. `mistakenness` covers every labelled image that the model has seen: high where it
is sure of the opposite of the label, so that the label deserves a look first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.index import predictions
from curate.index.app_views import CHANGED, MISTAKES
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.select import uncertainty
from curate.tables import Table
from train.evaluate import metrics
from train.evaluate.metrics import SIZES, EvaluatedImages

Rows = dict[str, dict[str, Any]]


def rows(judged: EvaluatedImages) -> Rows:
    """What went wrong in each image. Confidence: how sure the model was of its worst mistake; None without one."""
    wrong = judged.present != judged.decided
    against = np.where(judged.decided, judged.p, 1 - judged.p)
    sure = np.where(wrong, against, -1.0).max(axis=1, initial=-1.0)
    sizes, dice = _missed_sizes(judged), _dice(judged)
    return {
        id: {
            "eval_missed": _names(judged, judged.present[row] & ~judged.decided[row]),
            "eval_false_alarm": _names(judged, judged.decided[row] & ~judged.present[row]),
            "eval_confidence": float(sure[row]) if wrong[row].any() else None,
            "eval_missed_sizes": sizes[row],
            "eval_dice": dice[row],
        }
        for row, id in enumerate(judged.ids)
    }


def _names(judged: EvaluatedImages, chosen: NDArray[np.bool_]) -> list[str]:
    return [name for name, yes in zip(judged.classes, chosen, strict=True) if yes]


def _missed_sizes(judged: EvaluatedImages) -> list[list[str]]:
    """The sizes of labelled regions that no prediction covers."""
    found: list[set[str]] = [set() for _ in judged.ids]
    if (regions := judged.regions) is not None:
        for name in SIZES:
            for row in regions.row[~regions.hit & metrics.of_size(regions.area, name)]:
                found[row].add(name)
    return [[name for name in SIZES if name in one] for one in found]


def _dice(judged: EvaluatedImages) -> list[float | None]:
    """The mean over the classes that an image shows."""
    if judged.pixels is None:
        return [None] * len(judged.ids)
    by_class, count = metrics.dices(judged.pixels.counts), judged.present.sum(axis=1)
    total = np.where(judged.present, by_class, 0).sum(axis=1)
    return [float(one / n) if n else None for one, n in zip(total, count, strict=True)]


def changes(judged: EvaluatedImages, before: Mapping[str, Sequence[str]]) -> Rows:
    """Classes that were wrong by the model before and are right now, and the other way round; by today's labels."""
    found: Rows = {}
    for row, id in enumerate(judged.ids):
        if id not in before:
            continue
        then = np.array([name in before[id] for name in judged.classes], bool) == judged.present[row]
        now = judged.decided[row] == judged.present[row]
        found[id] = {"eval_fixed": _names(judged, now & ~then), "eval_broken": _names(judged, then & ~now)}
    return found


def mistakenness(judged: Sequence[EvaluatedImages], others: Mapping[str, float]) -> dict[str, float]:
    """Of all images that the model has judged, and of `others`."""
    found = dict(others)
    for one in judged:
        worst, _ = uncertainty.mistakenness(one.p, one.present)
        found |= dict(zip(one.ids, worst.astype(float).tolist(), strict=True))
    return found


def of_scores(index: Index, model: str, ids: Sequence[str]) -> dict[str, float]:
    """Of other labelled images that `curate predict --all` has seen with this model, train's among them."""
    path = index.project.work / "scores" / f"model-{model}.lance"
    if not Table.exists(path):
        return {}
    table = Table(path)
    classes, seen = json.loads(table.metadata["classes"]), sorted(set(ids).intersection(table.ids()))
    if not seen:
        return {}
    present = [[name in one.label.present for name in classes] for one in index.items(seen)]
    worst, _ = uncertainty.mistakenness(table.read(seen, ["probability"])["probability"], present)
    return dict(zip(seen, worst.astype(float).tolist(), strict=True))


# --- in the index ---------------------------------------------------------------------------------------------------


def show(index: Index, found: Rows, suspects: Mapping[str, float], said: Mapping[str, Prediction], by: str) -> int:
    """Make the index's fields equal to this; the number of images that were not so yet."""
    _declare(index)
    wanted: Rows = {id: dict(found.get(id, {})) for id in found.keys() | suspects.keys()}
    for id, row in wanted.items():
        row["mistakenness"] = suspects.get(id)
    names = (*MISTAKES, *CHANGED)
    shown = {id: _plain(dict(zip(names, values, strict=True))) for id, *values in index.rows(*names)}
    stale = {id for id, now in shown.items() if now != _plain(wanted.get(id, {}))}
    index.set({name: {id: wanted.get(id, {}).get(name) or None for id in stale} for name in names})
    known = index.dataset.get_field(predictions.BY) is not None
    theirs = {id for id, who in index.rows(predictions.BY) if who == by} if known else set()
    predictions.store(index, by, {id: one for id, one in said.items() if id not in theirs})
    return len(stale)


def register(index: Index, manifest: Mapping[str, Any]) -> None:
    """The evaluation as one of the dataset's runs, which FiftyOne's own tools list."""
    config = index.dataset.init_run()
    for name in ("model", "split", "task", "images", "made"):
        setattr(config, name, manifest[name])
    index.dataset.register_run(f"evaluation_{manifest['split']}", config, overwrite=True)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing, an empty list and no entry are the same; FiftyOne's lists are lists."""
    return {name: list(value) if isinstance(value, list) else value for name, value in row.items() if value}


def _declare(index: Index) -> None:
    fo, known = index.fo, index.dataset.get_field_schema()
    for name in MISTAKES + CHANGED:
        if name in known:
            continue
        if name in ("eval_confidence", "eval_dice", "mistakenness"):
            index.declare(**{name: fo.FloatField})
        else:
            index.dataset.add_sample_field(name, fo.ListField, subfield=fo.StringField)


def load(file: Path) -> dict[str, list[str]]:
    """What a model said of each image of an earlier evaluation."""
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    found = parquet.read_table(file, columns=["id", "decided"]).to_pydict()
    return dict(zip(found["id"], found["decided"], strict=True))


def surest(file: Path) -> list[tuple[str, list[str], list[str]]]:
    """Of an earlier evaluation: images that were wrong, with what was missed and wrongly named, the surest first."""
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    found = parquet.read_table(file, columns=["id", "confidence", "missed", "false_alarm"]).to_pylist()
    wrong = sorted((one for one in found if one["confidence"]), key=lambda one: (-one["confidence"], one["id"]))
    return [(one["id"], one["missed"] or [], one["false_alarm"] or []) for one in wrong]
