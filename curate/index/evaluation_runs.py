"""Evaluations as FiftyOne keeps them, for the App's panel Model Evaluation: beside our own report, never in its place.

FiftyOne matches regions with labels by itself and notes on both whether they match. Those notes are fields that no
label has, so they are no edits of a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from curate.index import documents, predictions
from curate.index.dataset import Index

KEPT = 6  # runs
SHORT = 12  # characters of a model's key
INFO = "evaluations"  # what the dataset's info calls them: run -> the folder of ours
TRUTH, DECIDED = "evaluated_label", "evaluated_prediction"  # one class an image, for classifiers
CLEAN, TOGETHER = "clean", " + "
IOU = 0.5  # from which on a region finds a defect


class EvaluatedImage(NamedTuple):
    """The classes that an image shows and that the model decides for, with its confidence in the likeliest one."""

    present: tuple[str, ...]
    decided: tuple[str, ...]
    confidence: float


def run_name(model: str, split: str) -> str:
    """Return the run's name: FiftyOne makes fields of it."""
    return re.sub(r"\W", "_", f"{split}_{model[:SHORT]}")


def store(
    index: Index, model: str, split: str, folder: str, images: Mapping[str, EvaluatedImage], regions: bool
) -> bool:
    """Store an evaluation as a run, unless that is done; returns True if it was stored now.

    Args:
        index: the index, in which the predictions of these images are shown.
        model: the model's key.
        split: the split it was evaluated on.
        folder: the name of our evaluation's folder, which differs with model, labels and decisions.
        images: the evaluated images by content id.
        regions: compare regions with labels, pixel by pixel where all have masks; else the images' classes.
    """
    dataset, name = index.dataset, run_name(model, split)
    runs, known = set(dataset.list_evaluations()), dict(dataset.info.get(INFO) or {})
    if name in runs and known.get(name) == folder and list(known)[-1] == name:  # a later one writes other predictions
        return False
    newest = [run for run in known if run in runs and run != name][-(KEPT - 1) :]
    for run in runs & known.keys() - set(newest):
        dataset.delete_evaluation(run)
    view = dataset.select_by("content_id", list(images))
    if regions:
        about = {
            "use_masks": _have_masks(index, images),
            "compute_mAP": True,
            "iou": IOU,
            "classes": index.project.active_classes,
        }
        view.evaluate_detections(predictions.DEFECTS, gt_field="defects", eval_key=name, progress=False, **about)
    else:
        _set_classes(index, images)
        view.evaluate_classifications(DECIDED, gt_field=TRUTH, eval_key=name, progress=False)
    dataset.info[INFO] = {run: known[run] for run in newest} | {name: folder}
    dataset.save()
    return True


def _have_masks(index: Index, ids: Iterable[str]) -> bool:
    """Return True if every label and region has a mask: where one is a plain box, FiftyOne can compare only boxes."""
    names = ("defects", predictions.DEFECTS)
    return all(
        region.get("mask") or region.get("mask_path")
        for fields in index.documents(list(ids), names)
        for name in names
        for region in (fields.get(name) or {}).get("detections") or ()
    )


def fields(index: Index, names: Sequence[str]) -> list[str]:
    """Return those of these fields that belong to runs."""
    runs = tuple(index.dataset.list_evaluations())
    prefixes = tuple(f"{run}_" for run in runs)
    return [name for name in names if name in (*runs, TRUTH, DECIDED) or name.startswith(prefixes)]


def _set_classes(index: Index, images: Mapping[str, EvaluatedImage]) -> None:
    index.declare(**{TRUTH: index.fo.Classification, DECIDED: index.fo.Classification})
    index.dataset.reload()
    index.update({id: _entries(image) for id, image in images.items()})


def _entries(image: EvaluatedImage) -> dict[str, Any]:
    truth, decided = (TOGETHER.join(sorted(names)) or CLEAN for names in (image.present, image.decided))
    confident = documents.classification(decided) | {"confidence": image.confidence}
    return {TRUTH: documents.classification(truth), DECIDED: confident}
