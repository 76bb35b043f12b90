"""Labels that people changed in the App go to the label log before anything could overwrite them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from curate.data import STATUSES, Box, Defect, Label, make_defect
from curate.errors import CurateError, LabelProblem
from curate.index.dataset import CHUNK, Index, chunks
from curate.index.documents import INCOMPLETE, UNREADABLE, ShownLabel
from curate.labels.log import DUPLICATE_LABELS, UNKNOWN_CLASS, Entry, LabelLog, me, now
from curate.masks import shapes

MARKED = "marked-in-app"
OUTSIDE = "box-outside-the-image"
ATTEMPTS = 10


@contextmanager
def opened_log(index: Index) -> Iterator[tuple[LabelLog, list[str]]]:
    """Open the label log with every App edit appended to it; beside it the ids of the images that were edited."""
    names = index.project.class_names
    with closing(LabelLog(index.project.work / "labels", names)) as log:
        yield log, capture(index, log, names)


def capture(index: Index, log: LabelLog, classes: Collection[str]) -> list[str]:
    """Append every App edit to the log and settle it in the index; the ids of the images that were edited."""
    return show(index, log, index.edited(), classes)


def show(index: Index, book: LabelLog, ids: Iterable[str], classes: Collection[str]) -> list[str]:
    """Write the log's state of these images to the index, edits of the App captured first.

    Somebody may edit an image at any moment: one that changed since it was read is read again. Returns the ids of the
    images whose edits were captured.
    """
    captured: list[str] = []
    for chunk in chunks(ids, CHUNK):
        waiting = chunk
        for _ in range(ATTEMPTS):
            seen = list(index.shown(waiting))
            captured += _logged(seen, book, classes)
            waiting = index.write_states({one.id: (book.state(one.id), book.key(one.id)) for one in seen}, seen)
            if not waiting:
                break
        else:
            raise CurateError(f"{len(waiting)} images keep changing in the App; run this again when they rest")
    return captured


def _logged(seen: Iterable[ShownLabel], book: LabelLog, classes: Collection[str]) -> list[str]:
    """Append the edits among these images to the log, those excepted that a killed command appended already."""
    edited = [one for one in seen if one.edited]
    moved = {one.id for one in edited if book.state(one.id).label.digest != one.digest}  # since the index was written
    histories = book.histories(moved)
    edited = [one for one in edited if one.id not in moved or not _is_logged(one, histories[one.id], book, classes)]
    for one in edited:
        label = settled(one.label, book.state(one.id).label, classes, (one.width, one.height))
        book.append(Entry(one.id, label, "app", me(), now()))
    book.flush()
    return [one.id for one in edited]


def _is_logged(one: ShownLabel, history: Sequence[Entry], book: LabelLog, classes: Collection[str]) -> bool:
    """Whether the last that a person said of the image is just this edit of what had held before.

    A command that was killed between log and index left it so. Taken for a new edit of what holds now, the edit that
    decided a disputed image would dispute it again.
    """
    said = [entry for entry in history if entry.origin != "import"]
    if not said or said[-1].origin != "app":
        return False
    before = said[-2].label if len(said) > 1 else book.import_state(one.id).label
    return settled(one.label, before, classes, (one.width, one.height)) == said[-1].label


def settled(edited: Label, before: Label, classes: Collection[str], size: tuple[int, int] | None = None) -> Label:
    """What a person's edit means: whoever draws, deletes or confirms regions has labelled the image."""
    status = edited.status if edited.status in STATUSES else before.status  # a mistyped status is no decision
    label, outside = tight(replace(edited, status=status), size)
    strange = sorted(label.present - set(classes))
    if strange:
        return replace(label, status="disputed", reason=f"{UNKNOWN_CLASS}: {', '.join(strange)}")
    if outside:
        return replace(label, status="disputed", reason=OUTSIDE)
    if label.status == "skipped":
        return label
    if label.status == "disputed":
        return _disputed(label, before)
    if label.status in ("unlabelled", "queued") and not label.present:
        return Label()
    return replace(label, status="labelled", reason=None)


def _disputed(label: Label, before: Label) -> Label:
    """Still disputed where a person marked it so, noted something, or left a region half-made; else they decided."""
    reason = label.reason or MARKED
    if before.status != "disputed" or INCOMPLETE in reason or UNREADABLE in reason:
        return replace(label, reason=reason)
    if replace(label, status="disputed", reason=None).digest != replace(before, reason=None).digest:
        return replace(label, status="labelled", reason=None)
    noted = before.reason == DUPLICATE_LABELS and not reason.startswith(DUPLICATE_LABELS)
    return replace(label, reason=f"{DUPLICATE_LABELS}: {reason}" if noted else reason)


def tight(label: Label, size: tuple[int, int] | None = None) -> tuple[Label, bool]:
    """The label with tight boxes inside the image, and whether a region lay wholly outside.

    In the App a person may stretch a mask, rub it out, or draw over the edge.
    """
    found, outside = [], False
    for defect in label.defects:
        try:
            kept = _tight(defect, size)
        except LabelProblem:
            kept, outside = defect, True
        found += [kept] if kept else []
    return replace(label, defects=tuple(found)), outside


def _tight(defect: Defect, size: tuple[int, int] | None) -> Defect | None:
    crop = shapes.crop_of(defect)
    if crop is None:
        boxed = shapes.boxed(defect.label, Box(*defect.box), *size, clip=True) if size else defect
        return replace(boxed, severity=defect.severity)
    left, top = int(defect.box[0]), int(defect.box[1])
    if size:
        right, bottom = size[0] - left, size[1] - top
        crop, left, top = crop[max(0, -top) : bottom, max(0, -left) : right], max(0, left), max(0, top)
        if not crop.size:
            raise LabelProblem(f"mask of '{defect.label}' lies outside the image")
    found = shapes.defect_from_mask(defect.label, crop)
    if found is None:
        return None
    x, y, w, h = found.box
    return make_defect(defect.label, (x + left, y + top, w, h), found.rle, defect.severity)
