"""Pseudo-labels: images that nobody labelled, with the word of a model that is sure of every class of them.

They only ever stand beside images of train (`sampling.mixed` says how many), and are written nowhere: neither the label
log nor the index knows of them. A group that judges, or that people are busy with, lends none.
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

BUSY = ("queued", "skipped", "disputed")  # people have these images, or could not tell what they show
Floats = NDArray[np.floating[Any]]


def added(project: Project, index: Index, resolved: Recipe, data: TrainingData) -> tuple[Recipe, TrainingData]:
    """The data with what the recipe's teacher is sure of; the recipe then names that model by its key."""
    teacher = store.find(project, resolved.pseudo.model)
    _check(teacher, resolved, data)
    known = frozenset(one.id for one in (*data.train, *data.val))
    found = tuple(one for one in of_model(index, teacher, data, resolved.pseudo) if one.id not in known)
    about = f"{len(found)} images that nobody labelled stand beside those of train, as model {teacher.key} sees them"
    nothing = f"model {teacher.key} is sure of no image that nobody labelled: there are no pseudo-labels"
    taught = replace(data, pseudo=found, notes=(*data.notes, about if found else nothing))
    pseudo = resolved.pseudo.model_copy(update={"model": teacher.key})
    return resolved.model_copy(update={"pseudo": pseudo}), taught


def _check(teacher: StoredModel, resolved: Recipe, data: TrainingData) -> None:
    unknown = set(data.classes) - set(teacher.manifest["classes"])
    if unknown:
        raise CurateError(f"model {teacher.key} does not know {', '.join(sorted(unknown))}: it cannot label for all")
    if data.task == "segmentation" and teacher.manifest["task"] != "segmentation":
        raise CurateError(f"model {teacher.key} tells classes, no pixels: it cannot label for segmentation")
    strange = set(resolved.pseudo.thresholds) - set(data.classes)
    if strange:
        names = ", ".join(data.classes)
        raise CurateError(f"pseudo.thresholds names {', '.join(sorted(strange))}; the classes are: {names}")
    check_room(resolved)


def check_room(resolved: Recipe, processes: int = 1) -> None:
    """Each process mixes its own part of a batch, so that part must hold one at least."""
    share, batch = resolved.pseudo.share, resolved.batch
    if not sampling.most_beside(batch // processes, share, whole=True):
        least = math.ceil(1 / Fraction(str(share))) * processes
        where = f" in {processes} processes" if processes > 1 else ""
        raise CurateError(
            f"batch {batch}{where} has no room for pseudo-labels at a share of {share}: --set batch={least}"
        )


def of_model(index: Index, teacher: StoredModel, data: TrainingData, wanted: Pseudo) -> list[Item]:
    """Images that the teacher has decided, labelled as it says, by id."""
    by = f"model-{teacher.key}"
    path = index.project.work / "scores" / f"{by}.lance"
    if not Table.exists(path):
        raise CurateError(f"model {teacher.key} has looked at nothing yet. Run: curate predict --model {teacher.key}")
    table = Table(path)
    ids = sorted(predicting.done(index, table, by).intersection(free(index)))
    columns = _columns(data.classes, json.loads(table.metadata["classes"]))
    p = table.read(ids, ["probability"])["probability"][:, columns] if ids else np.empty((0, len(columns)))
    said = dict(predictions.load(index, ids))
    labels = {id: decided(row, said.get(id, Prediction()), data, wanted) for id, row in zip(ids, p, strict=True)}
    sure = {id: label for id, label in labels.items() if label is not None}
    return [replace(one, label=sure[one.id], split="train") for one in index.items(sorted(sure))]


def _columns(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    return [list(known).index(name) for name in wanted]


def free(index: Index) -> set[str]:
    """Unlabelled images that are on disk, of groups that neither judge nor wait for people."""
    rows = list(index.rows("group", "split", "status", "source", "missing"))
    kept = {group or id for id, group, split, status, *_ in rows if split in ("val", "test") or status in BUSY}
    return {
        id
        for id, group, _, status, source, missing in rows
        if status == "unlabelled" and not missing and source != "synthetic" and (group or id) not in kept
    }


def decided(p: Floats, said: Prediction, data: TrainingData, wanted: Pseudo) -> Label | None:
    """The label of an image of whose every class the model is sure, else None. `p`: by class of `data`."""
    least = np.array([wanted.sure(name) for name in data.classes])
    there, absent = p >= least, p <= 1 - least
    present = [name for name, is_there in zip(data.classes, there, strict=True) if is_there]
    one_at_least, one_at_most = data.single and not data.clean, data.single
    if not (there | absent).all() or (one_at_least and not present) or (one_at_most and len(present) > 1):
        return None
    if data.task == "classification":
        return Label("labelled", classes=tuple(sorted(present)))
    regions = [(one, sure) for one, sure in said.defects if one.label in data.classes]
    if any(sure < wanted.sure(one.label) for one, sure in regions):
        return None
    if {one.label for one, _ in regions} != set(present):  # sure of a class, but not of where it is
        return None
    return Label("labelled", defects=tuple(one for one, _ in regions))


def recorded(resolved: Recipe, items: Iterable[Item]) -> Mapping[str, Any]:
    """What a model's manifest says of its pseudo-labels."""
    return {"model": resolved.pseudo.model, "labels": {one.id: one.label.digest for one in items}}
