"""`curate synth accept` and `drop`: a batch into the index and out again.

A batch is checked against the index as it is at that moment: nothing that is in val or test today, by id or group, may
be a parent of the batch, and the batch's block-list must hold all of val and test. The label log records what came in
and what went, and whether it was forced.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curate import files
from curate.data import Label
from curate.errors import CurateError, unknown
from curate.index import app_edits, app_views, synthetic
from curate.index.dataset import Index
from curate.index.synthetic import SyntheticOrigin
from curate.labels.log import LabelLog
from curate.labels.splits import Decisions
from curate.masks.shapes import defect_from_mask
from curate.project import Project
from synth import generate, masks
from synth.check import CHECKED, WITHOUT
from synth.generate import SyntheticBatch
from synth.nouns import SyntheticImage

VERDICT, ACCEPTED = "verdict.json", "accepted.json"


@dataclass
class AcceptResult:
    """Counts of images of an accepted batch. `left`: by class, images that stay out for want of a positive verdict."""

    key: str
    tag: str
    entered: int = 0
    already: int = 0
    refused: int = 0
    left: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    forced: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def accept(project: Project, key: str, forced: bool = False) -> AcceptResult:
    """Let a checked batch into training, as far as a trial has found that it helps; `forced` asks no trial, and takes
    what was checked by some gates only."""
    batch = generate.opened(project, key)
    return enter(project, batch, forced, verdict_of(batch))


def verdict_of(batch: SyntheticBatch) -> dict[str, bool]:
    """Verdict of a full trial by class: True where such images help. Empty where there was no full trial."""
    file = batch.folder / VERDICT
    if not file.is_file():
        return {}
    try:
        verdict = json.loads(file.read_text(encoding="utf-8"))
        by_class = verdict["positive"] if verdict["conclusive"] else {}
        return {str(name): bool(value) for name, value in by_class.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CurateError(f"{file} is damaged. Run the trial again: curate synth trial") from None


def enter(project: Project, batch: SyntheticBatch, forced: bool, verdict: Mapping[str, bool]) -> AcceptResult:
    """Log first, then the index: what a kill leaves out, `curate index` or the same command completes."""
    _same_project(project, batch)
    images, (passed, without) = batch.made(), checked_of(batch)
    if without and not forced:
        raise CurateError(
            f"batch {batch.key} was checked without {without.replace(' ', ', ')}, which counts for nothing here."
            f" Run: curate synth check {batch.key[:8]}; or --force"
        )
    for name in {image.name for image in images} - set(project.active_classes):
        raise unknown("class", name, project.active_classes, f"Batch {batch.key} is of other classes")
    chosen = _chosen(batch, [image for image in images if image.id in passed], forced, verdict)
    with files.writer_lock(project.work, "curate synth accept"), closing(_book(project)) as label_log:
        index = Index(project)
        _refuse_leaks(index, batch, images)
        before = synthetic.accepted(label_log)
        new = [image for image in chosen if image.id not in before]
        labels = {image.id: _label(batch, image) for image in new}  # all are read before any is logged
        wanted = {image.id: _placing(batch, image) for image in chosen}
        for id, label in labels.items():
            synthetic.log(label_log, id, wanted[id], label, forced)
        label_log.flush()
        _show(index, label_log, {id: origin for id, origin in wanted.items() if before.get(id, origin) == origin})
        if chosen:
            classes = sorted({image.name for image in chosen})
            about = {"forced": forced, "verdict": dict(verdict), "classes": classes, "without": without.split()}
            files.write_json(batch.folder / ACCEPTED, about)
        app_views.arrange(project)
    counts = Counter(image.name for image in chosen)
    left = Counter(image.name for image in images if image.id in passed)
    left.subtract(counts)
    return AcceptResult(
        batch.key,
        synthetic.tag_of(batch.key),
        len(labels),
        len(chosen) - len(labels),
        len(images) - len(passed),
        {name: count for name, count in left.items() if count},
        dict(counts),
        forced,
    )


def _book(project: Project) -> LabelLog:
    return LabelLog(project.work / "labels", project.class_names)


def checked_of(batch: SyntheticBatch) -> tuple[set[str], str]:
    """The images that went through the gates, and which of these were left out."""
    import pyarrow.parquet

    file, parquet = batch.folder / CHECKED, pyarrow.parquet
    if not file.is_file():
        raise CurateError(f"batch {batch.key} is not checked yet. Run: curate synth check {batch.key[:8]}")
    try:
        table = parquet.read_table(file, columns=["id", "passed"])  # type: ignore[no-untyped-call]
        without = (table.schema.metadata or {})[WITHOUT.encode()].decode()
    except (OSError, ValueError, KeyError) as error:
        raise CurateError(f"{file} is damaged ({error}). Run: curate synth check {batch.key[:8]}") from None
    return {row["id"] for row in table.to_pylist() if row["passed"]}, without


def _chosen(
    batch: SyntheticBatch, images: Sequence[SyntheticImage], forced: bool, verdict: Mapping[str, bool]
) -> list[SyntheticImage]:
    if not images:
        raise CurateError(f"no image of batch {batch.key} passed its check; see why: {batch.folder / CHECKED}")
    chosen = [image for image in images if forced or verdict.get(image.name)]
    if chosen:
        return chosen
    names = ", ".join(sorted({image.name for image in images}))
    if not verdict:
        raise CurateError(
            f"no full trial has said yet whether {names} of batch {batch.key} help."
            " Run: curate synth trial --stage full; or --force"
        )
    raise CurateError(
        f"the trial found no help in synthetic {names} (batch {batch.key}); --force lets them in all the same"
    )


# --- leaks ----------------------------------------------------------------------------------------------------------


def _same_project(project: Project, batch: SyntheticBatch) -> None:
    other = batch.manifest.get("project")
    if other != project.name:
        raise CurateError(
            f"batch {batch.key} was made for project '{other}', this is '{project.name}': generate one here"
        )


def _refuse_leaks(index: Index, batch: SyntheticBatch, images: Sequence[SyntheticImage]) -> None:
    """Raise where a parent of the batch is in val or test as they are now."""
    ids, groups = masks.blocked(index)
    known = batch.manifest.get("blocked", {})
    fresh = (ids - set(known.get("ids", ()))) | (groups - set(known.get("groups", ())))
    parents = {image.ground for image in images} | {image.donor.partition(":")[0] for image in images}
    of_groups = {group for image in images for group in (image.ground_group, image.donor_group)}
    leaked = (parents & ids) | ((of_groups | set(batch.manifest.get("groups", ()))) & groups)
    if leaked:
        raise CurateError(
            f"batch {batch.key} was made from {len(leaked)} images or groups that are in val or test now"
            f" (first: {sorted(leaked)[0]}): it would leak. Generate another one: curate synth generate"
        )
    if fresh:
        raise CurateError(
            f"batch {batch.key} does not have {len(fresh)} ids and groups of today's val and test on its block-list."
            " Run the same curate synth generate again: it renews the list, if nothing leaked"
        )
    strange = sorted(parents - set(index.ids()))
    if strange:
        raise CurateError(f"batch {batch.key} was made from images that this index does not know (first: {strange[0]})")


# --- the index ------------------------------------------------------------------------------------------------------


def _label(batch: SyntheticBatch, image: SyntheticImage) -> Label:
    """The mask that was asked for is the label; the image must still be the one that was made."""
    _, mask = generate.both_of(batch, image)
    defect = defect_from_mask(image.name, mask.astype("uint8"))
    if defect is None or int(mask.sum()) != image.area:
        raise CurateError(f"{batch.folder / image.mask_file} is not the mask that was made. {batch.again}")
    return Label("labelled", (replace(defect, severity=image.severity),))


def _placing(batch: SyntheticBatch, image: SyntheticImage) -> SyntheticOrigin:
    return SyntheticOrigin(batch.key, image.ground, synthetic.reference(batch.key, image.file), image.donor_group)


def _show(index: Index, label_log: LabelLog, wanted: Mapping[str, SyntheticOrigin]) -> None:
    there, groups = set(index.ids()), {id: group or id for id, group in index.rows("group")}
    synthetic.add(index, label_log, {id: origin for id, origin in wanted.items() if id not in there}, groups)
    decisions = Decisions(index.project.work / "splits")
    shown = ((id, split, decisions.split(group or id) or "train") for id, group, split in index.rows("group", "split"))
    index.set({"split": {id: right for id, split, right in shown if id in wanted and split != right}})


@dataclass
class DropResult:
    """Result of a drop: images taken out of the index; `files`: True where the batch's folder was removed, too."""

    key: str
    dropped: int
    files: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def drop(project: Project, key: str, with_files: bool = False) -> DropResult:
    """Take a batch out of the index, its tag and view with it; its folder stays unless `with_files`."""
    with files.writer_lock(project.work, "curate synth drop"), closing(_book(project)) as label_log:
        index = Index(project)
        placings = synthetic.accepted(label_log)
        whole = _whole_key(
            key, {origin.batch for origin in placings.values()} | {other.key for other in generate.every(project)}
        )
        app_edits.capture(index, label_log, project.class_names)  # the log keeps what somebody drew, whatever goes
        mine = {id: origin for id, origin in placings.items() if origin.batch == whole}
        for id, origin in mine.items():
            synthetic.log(label_log, id, origin, None)
        label_log.flush()
        synthetic.remove_others(index, {id: origin for id, origin in placings.items() if id not in mine})
        app_views.arrange(project)
        if with_files:
            _remove(generate.home(project) / whole)
        else:
            (generate.home(project) / whole / ACCEPTED).unlink(missing_ok=True)
    return DropResult(whole, len(mine), with_files)


def _remove(folder: Path) -> None:
    """Under another name first: what a kill leaves must not pass for a batch. `curate gc` removes the rest."""
    aside = folder.with_name(f".{folder.name}.part")
    files.remove(aside)
    if folder.is_dir():
        folder.rename(aside)
        files.remove(aside)


def _whole_key(key: str, known: Collection[str]) -> str:
    matches = [whole for whole in known if key and whole.startswith(key)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise CurateError(
            f"'{key}' fits {len(matches)} batches: {', '.join(sorted(matches))}; give more of its characters"
        )
    raise unknown("batch", key, known, "Make one: curate synth generate")
