"""`curate index`: make the index equal to what is on disk and in the label log.

The order makes a kill at any moment harmless: labels go to the log first (durable), then samples to the index, then
rows to the ledger. The next run finds what a killed one left out, and does it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from curate import files, formats, state, workers
from curate.data import UNLABELLED, Label, Record, Reject
from curate.errors import CurateError
from curate.index import app_edits, classes, intake, reading, rounds, synthetic
from curate.index.dataset import ImageState, Index, chunks
from curate.index.documents import NewSample
from curate.index.file_ledger import MISSING, QUARANTINED, FileRow, Ledger, LedgerImage
from curate.index.intake import ImageFacts, SourceRules
from curate.index.reading import Job, ReadOutcome, reference_of
from curate.labels import splits
from curate.labels.log import Entry, LabelLog, now
from curate.labels.splits import Decisions, Member
from curate.project import Project, SourceConfig

BATCH = 1024  # images to a write of log, index and ledger
Progress = Callable[[str, int, int], None]


@dataclass
class IndexReport:
    """Result of `curate index`. `added` to `missing` are numbers of images or files; the rest is for people."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    quarantined: int = 0
    missing: int = 0
    duplicates: int = 0
    conflicts: int = 0
    kept: int = 0
    app_edits: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    leaks: list[dict[str, str]] = field(default_factory=list)
    few_groups: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(
    project: Project,
    progress: Progress = lambda stage, done, total: None,
    *,
    reread: bool = False,
    rebuild: bool = False,
) -> IndexReport:
    """Bring the index up to date. The caller holds the project's writer lock."""
    state.ensure(project)
    check_folders(project)
    index = Index(project, create=True)
    project = index.project = classes.finish_pending(index)
    log = LabelLog(project.work / "labels", project.class_names)
    with Ledger(project.work / "files.sqlite") as ledger, workers.relaxed_collector():
        try:
            return _IndexRun(project, index, log, ledger, progress).run(reread, rebuild)
        finally:
            log.close()


def check_folders(project: Project) -> None:
    """Raise CurateError for a source without its folder: an unmounted disk is not thousands of missing images."""
    for source in project.config.sources:
        root, labels = project.root(source), project.labels(source)
        if not root.is_dir():
            raise CurateError(
                f"source '{source.name}': no folder at {root}. Mount it, or correct data in {project.file}"
            )
        if project.folder.is_relative_to(root.resolve()):
            raise CurateError(f"source '{source.name}': {root} holds the project's own folder; name the images' folder")
        if labels and not labels.exists():
            raise CurateError(f"source '{source.name}': no label file at {labels}. Correct labels in {project.file}")


def rules_of(project: Project, source: SourceConfig) -> SourceRules:
    """Return the rules by which the source's records are checked."""
    module = formats.load(source.format)
    return SourceRules(
        root=project.root(source),
        limits=project.config.limits,
        names=resolved_names(project, source),
        allowed=frozenset(project.class_names),
        empty_mask_keeps_class=getattr(module, "EMPTY_MASK_KEEPS_CLASS", False),
        template=intake.template_pattern(source.template) if source.template else None,
        stratum=source.stratum,
        group=re.compile(source.group) if source.group else None,
    )


def resolved_names(project: Project, source: SourceConfig) -> dict[str, str]:
    """Return {label in the source: class of the project}: the source's own map first, then the project's aliases."""
    aliases = project.config.aliases
    return dict(aliases) | {label: aliases.get(name, name) for label, name in source.classes.items()}


class _IndexRun:
    """The state of one run; its methods are the steps, in order."""

    def __init__(self, project: Project, index: Index, log: LabelLog, ledger: Ledger, progress: Progress) -> None:
        self.project, self.index, self.log, self.ledger, self.progress = project, index, log, ledger, progress
        self.report = IndexReport()
        self.states: dict[str, ImageState] = {}
        self.fresh: set[str] = set()
        self.reasons: dict[str, dict[str, None]] = {}
        self.decisions = Decisions(project.work / "splits")
        self.synthetic_images: dict[str, synthetic.SyntheticOrigin] = {}

    def run(self, reread: bool, rebuild: bool) -> IndexReport:
        self.report.app_edits = len(app_edits.capture(self.index, self.log, self.project.class_names))
        self.states = self.index.image_states()
        if reread:
            self.ledger.forget()
        self.ledger.begin()
        for source in self.project.config.sources:
            self._read_source(source)
        self.ledger.finish()
        images = list(self.ledger.images())
        self._retract_imports(images)
        self._restore_synthetic()
        changed = self._show_states(rebuild) | self._update_places(images)
        rounds.show(self.index, self.fresh)  # after a lost database: splits depend on the audits' picks
        self._assign_splits()
        self._fill_report(changed, {image.id for image in images})
        write_lists(self.project, self.ledger, self.index)
        return self.report

    # --- files to samples ---

    def _read_source(self, source: SourceConfig) -> None:
        rules = rules_of(self.project, source)
        records = formats.read(
            source.format, rules.root, self.project.labels(source), source.fully_labelled, source.options
        )
        total = formats.count_images(source.format, rules.root, source.options)
        for batch in chunks(self._examine(records, source.name, rules, total), BATCH):
            self._write(batch, source)
            self.progress(source.name, len(batch), total)
        seen, before = self.ledger.counted(source.name)
        if before and not seen:
            raise CurateError(
                f"source '{source.name}': none of its {before} images is at {rules.root} any more. Mount the disk; or,"
                f" if they are gone for good, take the source out of {self.project.file}"
            )

    def _examine(
        self, records: Iterable[Record | Reject], source: str, rules: SourceRules, total: int
    ) -> Iterator[ReadOutcome]:
        """Yield the outcome of each record, in order."""
        examine = partial(reading.examine_records, source=source, rules=rules, rules_digest=rules.digest)
        jobs = (self._job(part, source) for part in chunks(records, reading.JOB))
        return chain.from_iterable(reading.run_jobs(examine, jobs, total))

    def _job(self, records: list[Record | Reject], source: str) -> Job:
        """Return the records, each with its file's row in the ledger, if the index has that image."""
        references = [reference_of(source, record) for record in records]
        known = self.ledger.find(references)
        usable = {name: row for name, row in known.items() if row.outcome == QUARANTINED or row.id in self.states}
        return [(record, usable.get(reference)) for record, reference in zip(records, references, strict=True)]

    def _write(self, batch: list[ReadOutcome], source: SourceConfig) -> None:
        seen = [(out.row, out.path, out.image, out.label) for out in batch if out.path and out.image and out.label]
        for row, _, image, label in seen:
            self._log_import(row, image.id, label, source)
        self.log.flush()
        new: dict[str, NewSample] = {}
        for row, path, image, _ in seen:
            if image.id not in self.states and image.id not in new:
                new[image.id] = self._new_sample(row, path, image, source)
        self.index.add(list(new.values()))
        self._remember_new(new.values())
        self.ledger.save(self._join_reasons(outcome.row) for outcome in batch)

    def _remember_new(self, new: Iterable[NewSample]) -> None:
        for sample in new:
            self.states[sample.id] = ImageState(
                sample.state.key,
                sample.group,
                None,
                sample.state.label.status,
                sample.stratum,
                False,
                (sample.reference,),
                str(sample.path),
            )
            self.fresh.add(sample.id)

    def _join_reasons(self, row: FileRow) -> FileRow:
        """Join the reasons against one image: a label file can give several, a row each."""
        if row.outcome != QUARANTINED:
            return row
        reasons = self.reasons.setdefault(row.reference, {})
        reasons[row.problem or ""] = None
        return row._replace(problem="; ".join(reasons))

    def _log_import(self, row: FileRow, id: str, label: Label, source: SourceConfig) -> None:
        extra = {name: value for name, value in (("label_file", row.label_file), ("line", row.line)) if value}
        changed = self.log.append_import(Entry(id, label, "import", source.format, now(), row.reference, extra))
        self.report.kept += changed and self.log.person_decided(id)

    def _new_sample(self, row: FileRow, path: Path, image: ImageFacts, source: SourceConfig) -> NewSample:
        return NewSample(
            image=image,
            path=path,
            reference=row.reference,
            source=source.kind,
            format=source.format,
            group=row.group or image.id,
            stratum=row.stratum,
            state=self.log.state(image.id),
        )

    # --- the index follows the log and the ledger ---

    def _restore_synthetic(self) -> None:
        """Bring the index's synthetic images in line with the log, even after the database was lost."""
        self.synthetic_images = synthetic.accepted(self.log)
        for id in synthetic.remove_others(self.index, self.synthetic_images):
            self.states.pop(id, None)
        lost = {id: origin for id, origin in self.synthetic_images.items() if id not in self.states}
        groups = {id: image.group for id, image in self.states.items()}
        self._remember_new(synthetic.add(self.index, self.log, lost, groups))

    def _retract_imports(self, images: list[LedgerImage]) -> None:
        """Retract the labels of copies that were deleted, moved or replaced, of images that have other files."""
        for id, references, _, _ in images:
            for path in sorted(self.log.import_paths(id).difference(references)):
                self.log.append(Entry(id, UNLABELLED, "import", "gone", now(), path))
        self.log.flush()

    def _show_states(self, rebuild: bool) -> set[str]:
        """Write every label state that the index does not show yet; with `rebuild`, all of them. Returns their ids."""
        outdated = [id for id, image in self.states.items() if rebuild or image.key != self.log.key(id)]
        self.report.app_edits += len(app_edits.show(self.index, self.log, outdated, self.project.class_names))
        return set(outdated)

    def _update_places(self, images: list[LedgerImage]) -> set[str]:
        """Bring paths, groups and strata in line with the ledger; copies in two groups join them. Returns the ids."""
        decisions = self.decisions
        joins = [(groups[0], other) for _, _, groups, _ in images for other in groups[1:]]
        joins += self._renamed_groups(images)
        self.report.leaks = [asdict(leak) for leak in decisions.join(joins)]
        changes: dict[str, dict[str, Any]] = {name: {} for name in _PLACE_FIELDS}
        here = {row.id for row in self.ledger.seen(QUARANTINED) if row.id}
        for id, references, groups, stratum in images:
            here.add(id)
            group = decisions.group(groups[0] if groups else id)
            self._compare(id, references, group, stratum, changes)
        held_out = synthetic.held_out_groups(self.project, self.synthetic_images.values(), decisions)
        for id, origin in self.synthetic_images.items():  # after their backgrounds, whose groups they follow
            if id in self.states and self.project.path(origin.path).is_file():
                here.add(id)
                background = self.states.get(origin.background, self.states[id])
                group = synthetic.group_of(origin, background.group, decisions, held_out.get(origin.batch))
                self._compare(id, [origin.path], group, None, changes)
        for id, image in self.states.items():
            if id not in here and not image.missing:
                changes["missing"][id] = True
        self.index.set(changes)
        return {id for by_id in changes.values() for id in by_id}

    def _renamed_groups(self, images: list[LedgerImage]) -> Iterator[tuple[str, str]]:
        """Yield (new, old) names of groups that were renamed (a new pattern or source name): they keep their split."""
        for id, _, groups, _ in images:
            old, new = self.states[id].group, self.decisions.group(groups[0] if groups else id)
            if old != new and id not in self.fresh and self.decisions.split(old):
                yield new, old

    def _compare(
        self, id: str, references: list[str], group: str, stratum: str | None, changes: dict[str, dict[str, Any]]
    ) -> None:
        image = self.states[id]
        if image.references != tuple(references):
            changes["paths"][id] = references
        path = str(self.project.path(references[0]))
        if image.path != path:
            changes["filepath"][id] = path
        if image.group != group:
            changes["group"][id] = image.group = group
        if image.stratum != stratum:
            changes["stratum"][id] = stratum
        if image.missing:
            changes["missing"][id] = False

    # --- splits ---

    def _assign_splits(self) -> None:
        members = assign_splits(self.index, self.decisions)
        labelled = (m for m in members.values() if m.source == "public" and m.status == "labelled")
        self.report.few_groups = splits.few_groups(splits.groups_of(labelled))

    # --- the report ---

    def _fill_report(self, changed: set[str], here: set[str]) -> None:
        report, ledger = self.report, self.ledger
        report.added = len(self.fresh)
        report.updated = len((changed & here) - self.fresh)
        report.unchanged = len(here - self.fresh - changed)
        report.quarantined = len(ledger.seen(QUARANTINED))
        report.missing = len(ledger.seen(MISSING)) + self.index.count(missing=True)
        report.duplicates = ledger.duplicates()
        report.conflicts = len(self.index.conflicts())
        report.notes = ledger.notes()


def capture_app_edits(index: Index) -> None:
    """Log what curators changed in the App, and give splits to what is labelled by now.

    Comes before anything is chosen, sent or learnt: nothing of val and test may teach.
    """
    with app_edits.opened_log(index):
        pass
    assign_splits(index)


def assign_splits(index: Index, decisions: Decisions | None = None) -> dict[str, Member]:
    """Decide the splits that are due and write them to the index; returns the facts of all images by id."""
    decisions = decisions or Decisions(index.project.work / "splits")
    config, members = index.project.config.splits, index.members()
    decisions.assign(splits.due(list(members.values()), decisions, config.shares, config.seed))
    wanted = {id: decisions.split(member.group) for id, member in members.items()}
    index.set({"split": {id: wanted[id] for id, split in index.rows("split") if wanted[id] != split}})
    return members


_PLACE_FIELDS = ("paths", "filepath", "group", "stratum", "missing")


def write_lists(project: Project, ledger: Ledger, index: Index) -> None:
    """Write `work/quarantine.csv` and `work/missing.csv`: every file that is not in the index, and why."""
    quarantined = [(row.reference, row.problem, row.label_file, row.line) for row in ledger.seen(QUARANTINED)]
    missing = [(row.reference, row.problem, row.label_file, row.line) for row in ledger.seen(MISSING)]
    gone = set(ledger.gone())
    for reference in index.missing():
        reason = "no longer on disk" if reference in gone else "its file now holds another image"
        missing.append((reference, f"indexed before, {reason}", None, None))
    for name, rows in (("quarantine.csv", quarantined), ("missing.csv", missing)):
        text = io.StringIO()
        files.write_csv(text, [("file", "reason", "label_file", "line"), *rows])
        files.write_text(project.work / name, text.getvalue())


def draw_folds(project: Project, count: int, repeats: int) -> int:
    """Draw repeated grouped cross-validation folds for all labelled images; returns the number of groups."""
    index = Index(project)
    members = {id: m for id, m in index.members().items() if m.status == "labelled" and m.source != "synthetic"}
    groups = splits.groups_of(members.values())
    if len(groups) < count:
        raise CurateError(
            f"{count} folds need at least {count} labelled groups, there are {len(groups)}; use --folds 2"
        )
    drawn = splits.folds(groups, count, repeats, project.config.splits.seed)
    key = f"{count}x{repeats}-seed{project.config.splits.seed}"
    files.write_json(project.work / "folds" / f"{key}.json", drawn)
    index.set({"folds": {id: drawn[member.group] for id, member in members.items()}})
    return len(groups)
