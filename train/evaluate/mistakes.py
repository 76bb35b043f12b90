"""Differences between a model and the labels, as fields of the index: the App's saved views of mistakes show them.

One evaluation is shown at a time. `mistakenness` covers every labelled image that the model has predicted: it is high
where the model is confident of the opposite of the label, so that the label should be reviewed first.
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


def mistake_rows(evaluated: EvaluatedImages) -> Rows:
    """Return the mistakes in each image. Confidence: the model's in its worst mistake; None without a mistake."""
    wrong = evaluated.present != evaluated.decided
    against = np.where(evaluated.decided, evaluated.p, 1 - evaluated.p)
    confidence = np.where(wrong, against, -1.0).max(axis=1, initial=-1.0)
    sizes, dice = _missed_sizes(evaluated), _dice(evaluated)
    return {
        id: {
            "eval_missed": _names(evaluated, evaluated.present[row] & ~evaluated.decided[row]),
            "eval_false_alarm": _names(evaluated, evaluated.decided[row] & ~evaluated.present[row]),
            "eval_confidence": float(confidence[row]) if wrong[row].any() else None,
            "eval_missed_sizes": sizes[row],
            "eval_dice": dice[row],
        }
        for row, id in enumerate(evaluated.ids)
    }


def _names(evaluated: EvaluatedImages, chosen: NDArray[np.bool_]) -> list[str]:
    return [name for name, yes in zip(evaluated.classes, chosen, strict=True) if yes]


def _missed_sizes(evaluated: EvaluatedImages) -> list[list[str]]:
    """Return the sizes of labelled regions that no prediction covers, by image."""
    sizes: list[set[str]] = [set() for _ in evaluated.ids]
    if (regions := evaluated.regions) is not None:
        for name in SIZES:
            for row in regions.row[~regions.hit & metrics.in_size_range(regions.area, name)]:
                sizes[row].add(name)
    return [[name for name in SIZES if name in missed] for missed in sizes]


def _dice(evaluated: EvaluatedImages) -> list[float | None]:
    """Return each image's mean Dice over the classes that it shows."""
    if evaluated.pixels is None:
        return [None] * len(evaluated.ids)
    by_class, count = metrics.image_dice(evaluated.pixels.counts), evaluated.present.sum(axis=1)
    total = np.where(evaluated.present, by_class, 0).sum(axis=1)
    return [float(dice / n) if n else None for dice, n in zip(total, count, strict=True)]


def changes(evaluated: EvaluatedImages, before: Mapping[str, Sequence[str]]) -> Rows:
    """Return the classes that the earlier model got wrong and this one right, and vice versa, by today's labels."""
    changed: Rows = {}
    for row, id in enumerate(evaluated.ids):
        if id not in before:
            continue
        then = np.array([name in before[id] for name in evaluated.classes], bool) == evaluated.present[row]
        now = evaluated.decided[row] == evaluated.present[row]
        changed[id] = {"eval_fixed": _names(evaluated, now & ~then), "eval_broken": _names(evaluated, then & ~now)}
    return changed


def mistakenness(parts: Sequence[EvaluatedImages], others: Mapping[str, float]) -> dict[str, float]:
    """Return the mistakenness of all images that the model was evaluated on, together with `others`."""
    values = dict(others)
    for evaluated in parts:
        worst, _ = uncertainty.mistakenness(evaluated.p, evaluated.present)
        values |= dict(zip(evaluated.ids, worst.astype(float).tolist(), strict=True))
    return values


def mistakenness_from_scores(index: Index, model: str, ids: Sequence[str]) -> dict[str, float]:
    """Return the mistakenness of further labelled images (also of train) that `curate predict --all` has scored."""
    path = index.project.work / "scores" / f"model-{model}.lance"
    if not Table.exists(path):
        return {}
    table = Table(path)
    classes, scored = json.loads(table.metadata["classes"]), sorted(set(ids).intersection(table.ids()))
    if not scored:
        return {}
    present = [[name in item.label.present for name in classes] for item in index.items(scored)]
    worst, _ = uncertainty.mistakenness(table.read(scored, ["probability"])["probability"], present)
    return dict(zip(scored, worst.astype(float).tolist(), strict=True))


# --- in the index ---------------------------------------------------------------------------------------------------


def show(
    index: Index, rows: Rows, suspects: Mapping[str, float], shown_predictions: Mapping[str, Prediction], by: str
) -> int:
    """Write mistakes and predictions to the index's fields; return the number of images that changed."""
    numbers, fo = ("eval_confidence", "eval_dice", "mistakenness"), index.fo
    index.declare(**{name: fo.FloatField if name in numbers else [fo.StringField] for name in MISTAKES + CHANGED})
    wanted: Rows = {id: dict(rows.get(id, {})) for id in rows.keys() | suspects.keys()}
    for id, row in wanted.items():
        row["mistakenness"] = suspects.get(id)
    names = (*MISTAKES, *CHANGED)
    shown = {id: _without_empty(dict(zip(names, values, strict=True))) for id, *values in index.rows(*names)}
    stale = {id for id, now in shown.items() if now != _without_empty(wanted.get(id, {}))}
    index.set({name: {id: wanted.get(id, {}).get(name) or None for id in stale} for name in names})
    known = index.dataset.get_field(predictions.BY) is not None
    stored = {id for id, who in index.rows(predictions.BY) if who == by} if known else set()
    predictions.store(index, by, {id: prediction for id, prediction in shown_predictions.items() if id not in stored})
    return len(stale)


def register(index: Index, manifest: Mapping[str, Any]) -> None:
    """Register the evaluation as a run of the dataset, which FiftyOne's own tools list."""
    config = index.dataset.init_run()
    for name in ("model", "split", "task", "images", "made"):
        setattr(config, name, manifest[name])
    index.dataset.register_run(f"evaluation_{manifest['split']}", config, overwrite=True)


def _without_empty(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row without empty values, and with FiftyOne's lists as plain lists, so that rows can be compared."""
    return {name: list(value) if isinstance(value, list) else value for name, value in row.items() if value}


def decided_classes(file: Path) -> dict[str, list[str]]:
    """Return the classes that the model of an earlier evaluation decided on, by image."""
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    columns = parquet.read_table(file, columns=["id", "decided"]).to_pydict()
    return dict(zip(columns["id"], columns["decided"], strict=True))


def most_confident(file: Path) -> list[tuple[str, list[str], list[str]]]:
    """Return an earlier evaluation's mistakes, the most confident first: image, missed classes, false alarms."""
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    rows = parquet.read_table(file, columns=["id", "confidence", "missed", "false_alarm"]).to_pylist()
    wrong = sorted((row for row in rows if row["confidence"]), key=lambda row: (-row["confidence"], row["id"]))
    return [(row["id"], row["missed"] or [], row["false_alarm"] or []) for row in wrong]
