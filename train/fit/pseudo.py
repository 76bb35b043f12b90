"""Pseudo-labels: unlabelled images with the predictions of a model that is sure of every class in them.

They only complete batches of train (`sampling.mix_batches` limits their share) and are stored nowhere, neither in the
label log nor in the index. Groups of val and test, and groups that people still work on, give none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.data import Item, Label
from curate.errors import CurateError
from curate.index import predictions
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.project import Project
from curate.tables import Table
from train import store
from train.data import sampling
from train.data.dataset import TrainingData
from train.predict import run as predicting
from train.recipe import Pseudo, Recipe
from train.store import StoredModel

BUSY = ("queued", "skipped", "disputed")  # people still work on these images, or could not decide
Floats = NDArray[np.floating[Any]]


def with_pseudo_labels(
    project: Project, index: Index, resolved: Recipe, data: TrainingData
) -> tuple[Recipe, TrainingData]:
    """Return the recipe, naming its teacher model by key, and the data with that model's pseudo-labels."""
    teacher = store.find(project, resolved.pseudo.model)
    _check_teacher(teacher, resolved, data)
    labelled_ids = frozenset(item.id for item in (*data.train, *data.val))
    items = tuple(
        item for item in pseudo_labelled(index, teacher, data, resolved.pseudo) if item.id not in labelled_ids
    )
    note = f"{len(items)} unlabelled images are trained on beside those of train, with labels by model {teacher.key}"
    empty_note = f"model {teacher.key} is sure of no unlabelled image: there are no pseudo-labels"
    extended = replace(data, pseudo=items, notes=(*data.notes, note if items else empty_note))
    pseudo = resolved.pseudo.model_copy(update={"model": teacher.key})
    return resolved.model_copy(update={"pseudo": pseudo}), extended


def _check_teacher(teacher: StoredModel, resolved: Recipe, data: TrainingData) -> None:
    unknown = set(data.classes) - set(teacher.manifest["classes"])
    if unknown:
        raise CurateError(
            f"model {teacher.key} does not know {', '.join(sorted(unknown))}: it cannot label all classes"
        )
    if data.task == "segmentation" and teacher.manifest["task"] != "segmentation":
        raise CurateError(f"model {teacher.key} is a classifier: it cannot label for segmentation")
    strange = set(resolved.pseudo.thresholds) - set(data.classes)
    if strange:
        names = ", ".join(data.classes)
        raise CurateError(f"pseudo.thresholds names {', '.join(sorted(strange))}; the classes are: {names}")
    check_batch(resolved)


def check_batch(resolved: Recipe, processes: int = 1) -> None:
    """Check that each process's part of a batch has room for a pseudo-labelled image at least."""
    share, batch = resolved.pseudo.share, resolved.batch
    if not sampling.most_pseudo(batch // processes, share, whole=True):
        least = math.ceil(1 / Fraction(str(share))) * processes
        where = f" in {processes} processes" if processes > 1 else ""
        raise CurateError(
            f"batch {batch}{where} has no room for pseudo-labels at a share of {share}: --set batch={least}"
        )


def pseudo_labelled(index: Index, teacher: StoredModel, data: TrainingData, config: Pseudo) -> list[Item]:
    """Return the unlabelled images of whose every class the teacher is sure, with its labels, sorted by id."""
    by = f"model-{teacher.key}"
    path = index.project.work / "scores" / f"{by}.lance"
    if not Table.exists(path):
        raise CurateError(f"model {teacher.key} has predicted nothing yet. Run: curate predict --model {teacher.key}")
    table = Table(path)
    ids = sorted(predicting.predicted_ids(index, table, by).intersection(eligible_ids(index)))
    columns = _columns(data.classes, json.loads(table.metadata["classes"]))
    p = table.read(ids, ["probability"])["probability"][:, columns] if ids else np.empty((0, len(columns)))
    predicted = dict(predictions.load(index, ids))
    labels = {
        id: pseudo_label(row, predicted.get(id, Prediction()), data, config) for id, row in zip(ids, p, strict=True)
    }
    sure = {id: label for id, label in labels.items() if label is not None}
    return [replace(item, label=sure[item.id], split="train") for item in index.items(sorted(sure))]


def _columns(classes: Sequence[str], model_classes: Sequence[str]) -> list[int]:
    return [list(model_classes).index(name) for name in classes]


def eligible_ids(index: Index) -> set[str]:
    """Return unlabelled images on disk whose groups are neither in val or test nor with people."""
    rows = list(index.rows("group", "split", "status", "source", "missing"))
    ineligible = {group or id for id, group, split, status, *_ in rows if split in ("val", "test") or status in BUSY}
    return {
        id
        for id, group, _, status, source, missing in rows
        if status == "unlabelled" and not missing and source != "synthetic" and (group or id) not in ineligible
    }


def pseudo_label(p: Floats, prediction: Prediction, data: TrainingData, config: Pseudo) -> Label | None:
    """Return the label of an image if the model is sure of every class, else None. `p`: by class of `data`."""
    least = np.array([config.sure(name) for name in data.classes])
    is_present, is_absent = p >= least, p <= 1 - least
    present = [name for name, is_there in zip(data.classes, is_present, strict=True) if is_there]
    one_at_least, one_at_most = data.single and not data.clean, data.single
    if not (is_present | is_absent).all() or (one_at_least and not present) or (one_at_most and len(present) > 1):
        return None
    if data.task == "classification":
        return Label("labelled", classes=tuple(sorted(present)))
    regions = [(defect, confidence) for defect, confidence in prediction.defects if defect.label in data.classes]
    if any(confidence < config.sure(defect.label) for defect, confidence in regions):
        return None
    if {defect.label for defect, _ in regions} != set(present):  # sure of a class, but not of its place
        return None
    return Label("labelled", defects=tuple(defect for defect, _ in regions))


def manifest_entry(resolved: Recipe, items: Iterable[Item]) -> Mapping[str, Any]:
    """Return the pseudo-labels as a model's manifest stores them."""
    return {"model": resolved.pseudo.model, "labels": {item.id: item.label.digest for item in items}}
