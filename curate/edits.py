"""Labels that people changed in the App: into the log, before anything could overwrite them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from curate import shapes
from curate.data import Defect, Label, make_defect
from curate.index import Index
from curate.labels import Book, Entry, me, now

UNKNOWN_CLASS = "unknown-class"
MARKED = "marked-in-app"


def capture(index: Index, book: Book, classes: Collection[str]) -> list[str]:
    """Append every App edit to the log and settle it in the index; the ids of the images that were edited."""
    captured = []
    for edit in index.edits():
        label = settled(edit.label, book.state(edit.id).label, classes)
        book.append(Entry(edit.id, label, "app", me(), now()))
        captured.append(edit.id)
    book.flush()
    index.show(book, captured)
    return captured


def settled(edited: Label, before: Label, classes: Collection[str]) -> Label:
    """What a person's edit means: whoever draws, deletes or confirms regions has labelled the image."""
    label = tight(edited)
    strange = sorted(label.present - set(classes))
    if strange:
        return replace(label, status="disputed", reason=f"{UNKNOWN_CLASS}: {', '.join(strange)}")
    if label.status == "skipped":
        return label
    if label.status == "disputed" and before.status != "disputed":
        return replace(label, reason=label.reason or MARKED)
    if label.status in ("unlabelled", "queued") and not label.present:
        return Label()
    return replace(label, status="labelled", reason=None)


def tight(label: Label) -> Label:
    """The label with tight boxes around its masks: in the App a person may stretch a mask, or rub it out."""
    return replace(label, defects=tuple(found for defect in label.defects if (found := _tight(defect))))


def _tight(defect: Defect) -> Defect | None:
    crop = shapes.crop_of(defect)
    if crop is None:
        return defect
    found = shapes.defect_from_mask(defect.label, crop)
    if found is None:
        return None
    x, y, w, h = found.box
    return make_defect(defect.label, (x + defect.box[0], y + defect.box[1], w, h), found.rle)
