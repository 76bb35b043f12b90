"""Labels that people changed in the App go to the label log before anything could overwrite them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from curate.data import STATUSES, Label
from curate.errors import CurateError, LabelProblem
from curate.index.dataset import CHUNK, Index, chunks
from curate.index.documents import INCOMPLETE, UNREADABLE, ShownLabel
from curate.labels.log import DUPLICATE_LABELS, UNKNOWN_CLASS, Entry, LabelLog, now, user_name

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


def show(index: Index, log: LabelLog, ids: Iterable[str], classes: Collection[str]) -> list[str]:
    """Write the log's state of these images to the index, after capturing edits of the App.

    Somebody may edit an image at any moment: one that changed since it was read is read again. Returns the ids of the
    images whose edits were captured.
    """
    captured: list[str] = []
    for chunk in chunks(ids, CHUNK):
        waiting = chunk
        for _ in range(ATTEMPTS):
            shown = list(index.shown(waiting))
            captured += _append_edits(shown, log, classes)
            waiting = index.write_states(log.states([image.id for image in shown]), shown)
            if not waiting:
                break
        else:
            raise CurateError(f"{len(waiting)} images keep changing in the App; run this again when nobody edits them")
    return captured


def _append_edits(shown: Iterable[ShownLabel], log: LabelLog, classes: Collection[str]) -> list[str]:
    """Append the edits among these images to the log, except those that a killed command has appended already."""
    edited = [image for image in shown if image.edited]
    if not edited:
        return []
    # Images whose state in the log has changed since the index was written.
    moved = {image.id for image in edited if log.state(image.id).label.digest != image.digest}
    histories = log.histories(moved)
    edited = [
        image for image in edited if image.id not in moved or not _is_logged(image, histories[image.id], log, classes)
    ]
    for image in edited:
        label = label_from_edit(image.label, log.state(image.id).label, classes, (image.width, image.height))
        log.append(Entry(image.id, label, "app", user_name(), now()))
    log.flush()
    return [image.id for image in edited]


def _is_logged(image: ShownLabel, history: Sequence[Entry], log: LabelLog, classes: Collection[str]) -> bool:
    """Return True if the newest entry of a person is this very edit: a command was killed between log and index.

    Taken for a new edit of the label that holds now, an edit that decided a disputed image would dispute it again.
    """
    by_people = [entry for entry in history if entry.origin != "import"]
    if not by_people or by_people[-1].origin != "app":
        return False
    before = by_people[-2].label if len(by_people) > 1 else log.import_state(image.id).label
    return label_from_edit(image.label, before, classes, (image.width, image.height)) == by_people[-1].label


def label_from_edit(
    edited: Label, before: Label, classes: Collection[str], size: tuple[int, int] | None = None
) -> Label:
    """Return the label that an edit means: drawing, deleting or confirming regions labels the image.

    Args:
        edited: The label as the App shows it after the edit.
        before: The label before the edit.
        classes: The project's classes.
        size: Width and height of the image; boxes are clipped to them.
    """
    status = edited.status if edited.status in STATUSES else before.status  # a mistyped status decides nothing
    label, outside = with_tight_boxes(replace(edited, status=status), size)
    unknown = sorted(label.present - set(classes))
    if unknown:
        return replace(label, status="disputed", reason=f"{UNKNOWN_CLASS}: {', '.join(unknown)}")
    if outside:
        return replace(label, status="disputed", reason=OUTSIDE)
    if label.status == "skipped":
        return label
    if label.status == "disputed":
        return _disputed_edit(label, before)
    if label.status in ("unlabelled", "queued") and not label.present:
        return Label()
    return replace(label, status="labelled", reason=None)


def _disputed_edit(label: Label, before: Label) -> Label:
    """Keep a dispute where a person marked it, noted a reason or left a region incomplete; else they decided it."""
    reason = label.reason or MARKED
    if before.status != "disputed" or INCOMPLETE in reason or UNREADABLE in reason:
        return replace(label, reason=reason)
    if replace(label, status="disputed", reason=None).digest != replace(before, reason=None).digest:
        return replace(label, status="labelled", reason=None)
    noted = before.reason == DUPLICATE_LABELS and not reason.startswith(DUPLICATE_LABELS)
    return replace(label, reason=f"{DUPLICATE_LABELS}: {reason}" if noted else reason)


def with_tight_boxes(label: Label, size: tuple[int, int] | None = None) -> tuple[Label, bool]:
    """Return the label with tight boxes inside the image, and True if a region lay wholly outside.

    In the App a person may stretch a mask, rub it out, or draw over the edge.
    """
    from curate.masks import shapes  # its kernels take half a second to load

    defects, outside = [], False
    for defect in label.defects:
        try:
            inside = shapes.tight(defect, size)
        except LabelProblem:
            inside, outside = defect, True
        defects += [inside] if inside else []
    return replace(label, defects=tuple(defects)), outside
