"""Labels of chosen images, set at once: a class, clean, skipped, or what the model suggests.

They go to the label log first and then to the index, as edits in the App do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from curate.data import AUDIT, AUDIT_EXTRA, Defect, Label
from curate.errors import CurateError, unknown
from curate.index import app_edits, documents, predictions, sync
from curate.index.dataset import Index
from curate.labels.log import Entry, now, user_name
from curate.ops._lock import writing
from curate.project import Project

SKIPPED = "skipped in the App"
Change = Callable[[Label, Mapping[str, Any]], Label]  # today's label and the image's fields: the new label


def set_class(project: Project, ids: Sequence[str], name: str, regions: Collection[str] = ()) -> int:
    """Label images with a class: their regions of these ids, or without `regions` the images as a whole.

    Returns the number of images whose label changed.
    """
    if name not in project.active_classes:
        raise unknown("class", name, project.active_classes, "A new one: curate classes add NAME")

    def change(label: Label, fields: Mapping[str, Any]) -> Label:
        if not regions:
            return replace(label, status="labelled", classes=tuple(sorted({*label.classes, name})), reason=None)
        chosen = {defect for defect, _ in _regions(fields, "defects", regions)}
        named = tuple(replace(defect, label=name) if defect in chosen else defect for defect in label.defects)
        return replace(label, status="labelled", defects=named, reason=None) if chosen else label

    return _change(project, ids, change, "set class")


def set_clean(project: Project, ids: Sequence[str]) -> int:
    """Label images as showing no defect; what was drawn on them goes, and stays in the log."""
    return _change(project, ids, lambda label, fields: Label("labelled"), "set clean")


def skip(project: Project, ids: Sequence[str], reason: str = SKIPPED) -> int:
    """Put images aside: nobody is asked about them, nothing is learnt from them."""
    return _change(project, ids, lambda label, fields: replace(label, status="skipped", reason=reason), "skip")


def confirm(project: Project, ids: Sequence[str], regions: Collection[str] = ()) -> int:
    """Make what the model suggests the images' label: these regions, or without `regions` all that it predicts."""
    known = set(project.active_classes)
    held = {
        id
        for id, split, tags in Index(project).rows("split", "tags")
        if split in ("val", "test") or {AUDIT, AUDIT_EXTRA}.intersection(tags or ())
    }
    if refused := [id[:12] for id in ids if id in held]:
        raise CurateError(
            f"{len(refused)} of these images are audit picks or of val and test, such as {refused[0]}: what a model "
            "suggests is no truth there. Look, and use Set class, or draw"
        )

    def change(label: Label, fields: Mapping[str, Any]) -> Label:
        added = [defect for defect, _ in _regions(fields, predictions.DEFECTS, regions) if defect.label in known]
        whole = () if regions else _whole(fields)
        if not added and not whole:
            return label
        defects = tuple(dict.fromkeys((*label.defects, *added)))
        classes = tuple(sorted({*label.classes, *(name for name in whole if name in known)}))
        return Label("labelled", defects, classes)

    return _change(project, ids, change, "confirm")


def reject(project: Project, ids: Sequence[str], regions: Collection[str] = ()) -> int:
    """Take suggestions away: these regions, or without `regions` all of the images. No label changes: an image without
    suggestions is not clean."""
    with writing(project, "reject"):
        index = Index(project)
        if index.dataset.get_field(predictions.DEFECTS) is None:
            raise CurateError("there are no suggestions. Make some: curate predict")
        rows = {}
        for fields in index.documents(list(ids), ("content_id", predictions.DEFECTS, predictions.CLASSES)):
            shown = (fields.get(predictions.DEFECTS) or {}).get("detections") or []
            kept = [region for region in shown if regions and str(region.get("_id")) not in regions]
            whole = (fields.get(predictions.CLASSES) or {}).get("classifications") or []
            if len(kept) < len(shown) or (whole and not regions):
                row = {predictions.DEFECTS: {"_cls": "Detections", "detections": kept}}
                row |= {} if regions else {predictions.CLASSES: {"_cls": "Classifications", "classifications": []}}
                rows[fields["content_id"]] = row
        index.update(rows)
        return len(rows)


def _change(project: Project, ids: Sequence[str], change: Change, command: str) -> int:
    """Append the changed labels to the log, then show them; edits that are not captured yet come before.

    Returns the number of images that have the new label; one that stays disputed has not.
    """
    with writing(project, command):
        index = Index(project)
        changed = []
        with app_edits.opened_log(index) as (log, _):
            names = ("content_id", "width", "height", "defects", predictions.DEFECTS, predictions.CLASSES)
            for fields in index.documents(list(ids), names):
                before = log.state(fields["content_id"]).label
                label = change(before, fields)
                if label.digest != before.digest:
                    log.append(Entry(fields["content_id"], label, "app", user_name(), now()))
                    changed.append(fields["content_id"])
            log.flush()
            app_edits.show(index, log, changed, project.class_names)
        sync.assign_splits(index)
        statuses = dict(index.rows("status"))
        return sum(statuses.get(id) != "disputed" for id in changed)


def _regions(fields: Mapping[str, Any], name: str, wanted: Collection[str]) -> list[tuple[Defect, str]]:
    """Return the sound regions of a field with their ids, all of them where none is named."""
    size = fields["width"], fields["height"]
    shown = (fields.get(name) or {}).get("detections") or ()
    pairs = ((documents.defect(region, *size), str(region.get("_id"))) for region in shown)
    return [(defect, id) for defect, id in pairs if isinstance(defect, Defect) and (not wanted or id in wanted)]


def _whole(fields: Mapping[str, Any]) -> list[str]:
    entries = (fields.get(predictions.CLASSES) or {}).get("classifications") or ()
    return [str(entry.get("label")) for entry in entries]
