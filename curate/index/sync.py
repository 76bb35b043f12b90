"""`curate index`: make the index equal to what is on disk and in the label log.

Order, so that a kill at any moment is harmless: labels go to the log first (durable), then samples to the index, then
rows to the ledger. Whatever a killed run left out, the next one finds missing and does; what it did, it finds done.
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
    """What a run did. `added` to `missing` are numbers of images or files; the rest is for people."""

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
    project = index.project = classes.finish(index)
    book = LabelLog(project.work / "labels", project.class_names)
    with Ledger(project.work / "files.sqlite") as table, workers.calm_collector():
        try:
            return _Run(project, index, book, table, progress).run(reread, rebuild)
        finally:
            book.close()


def check_folders(project: Project) -> None:
    """A source whose folder is gone is a mistake (an unmounted disk?), not thousands of missing images."""
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
    """Label in the source -> class of the project: the source's own map first, then the project's aliases."""
    aliases = project.config.aliases
    return dict(aliases) | {label: aliases.get(name, name) for label, name in source.classes.items()}


class _Run:
    """One run's state; its methods are the steps, in order."""

    def __init__(self, project: Project, index: Index, book: LabelLog, table: Ledger, progress: Progress) -> None:
        self.project, self.index, self.book, self.table, self.progress = project, index, book, table, progress
        self.report = IndexReport()
        self.cards: dict[str, ImageState] = {}
        self.fresh: set[str] = set()
        self.reasons: dict[str, dict[str, None]] = {}
        self.decisions = Decisions(project.work / "splits")
        self.made: dict[str, synthetic.SyntheticOrigin] = {}

    def run(self, reread: bool, rebuild: bool) -> IndexReport:
        self.report.app_edits = len(app_edits.capture(self.index, self.book, self.project.class_names))
        self.cards = self.index.cards()
        if reread:
            self.table.forget()
        self.table.begin()
        for source in self.project.config.sources:
            self._take(source)
        self.table.finish()
        images = list(self.table.images())
        self._retract(images)
        self._synthesised()
        changed = self._reconcile(rebuild) | self._place(images)
        rounds.show(self.index, self.fresh)  # after a lost database: which images the audits drew must be known again
        self._split()
        self._count(changed, {image.id for image in images})
        write_lists(self.project, self.table, self.index)
        return self.report

    # --- files to samples ---

    def _take(self, source: SourceConfig) -> None:
        rules = rules_of(self.project, source)
        found = formats.read(
            source.format, rules.root, self.project.labels(source), source.fully_labelled, source.options
        )
        total = formats.count_images(source.format, rules.root, source.options)
        for batch in chunks(self._examined(found, source.name, rules, total), BATCH):
            self._write(batch, source)
            self.progress(source.name, len(batch), total)
        seen, before = self.table.counted(source.name)
        if before and not seen:
            raise CurateError(
                f"source '{source.name}': none of its {before} images is at {rules.root} any more. Mount the disk; or,"
                f" if they are gone for good, take the source out of {self.project.file}"
            )

    def _examined(
        self, found: Iterable[Record | Reject], source: str, rules: SourceRules, total: int
    ) -> Iterator[ReadOutcome]:
        """Each record with its outcome, in order."""
        examine = partial(reading.examine_all, source=source, rules=rules, mark=rules.mark)
        jobs = (self._job(records, source) for records in chunks(found, reading.JOB))
        return chain.from_iterable(reading.examined(examine, jobs, total))

    def _job(self, records: list[Record | Reject], source: str) -> Job:
        """The records, each with what the ledger knows of its file, if the index holds that image."""
        references = [reference_of(source, record) for record in records]
        known = self.table.find(references)
        fit = {name: row for name, row in known.items() if row.outcome == QUARANTINED or row.id in self.cards}
        return [(record, fit.get(reference)) for record, reference in zip(records, references, strict=True)]

    def _write(self, batch: list[ReadOutcome], source: SourceConfig) -> None:
        seen = [(one.row, one.path, one.picture, one.label) for one in batch if one.path and one.picture and one.label]
        for row, _, picture, label in seen:
            self._log(row, picture.id, label, source)
        self.book.flush()
        new: dict[str, NewSample] = {}
        for row, path, picture, _ in seen:
            if picture.id not in self.cards and picture.id not in new:
                new[picture.id] = self._new_sample(row, path, picture, source)
        self.index.add(list(new.values()))
        self._remember(new.values())
        self.table.save(self._with_all_reasons(one.row) for one in batch)

    def _remember(self, new: Iterable[NewSample]) -> None:
        for sample in new:
            card = ImageState(
                sample.key,
                sample.group,
                None,
                sample.state.label.status,
                sample.stratum,
                False,
                (sample.reference,),
                str(sample.path),
            )
            self.cards[sample.id] = card
            self.fresh.add(sample.id)

    def _with_all_reasons(self, row: FileRow) -> FileRow:
        """A label file can give several reasons against one image, a row each."""
        if row.outcome != QUARANTINED:
            return row
        reasons = self.reasons.setdefault(row.reference, {})
        reasons[row.problem or ""] = None
        return row._replace(problem="; ".join(reasons))

    def _log(self, row: FileRow, id: str, label: Label, source: SourceConfig) -> None:
        extra = {name: value for name, value in (("label_file", row.label_file), ("line", row.line)) if value}
        changed = self.book.imported(Entry(id, label, "import", source.format, now(), row.reference, extra))
        self.report.kept += changed and self.book.person_decided(id)

    def _new_sample(self, row: FileRow, path: Path, picture: ImageFacts, source: SourceConfig) -> NewSample:
        return NewSample(
            picture=picture,
            path=path,
            reference=row.reference,
            source=source.kind,
            format=source.format,
            group=row.group or picture.id,
            stratum=row.stratum,
            state=self.book.state(picture.id),
            key=self.book.key(picture.id),
        )

    # --- the index follows the log and the ledger ---

    def _synthesised(self) -> None:
        """Synthetic images are in the index as long as the log says so, also after the database was lost."""
        self.made = synthetic.entered(self.book)
        for id in synthetic.remove_others(self.index, self.made):
            self.cards.pop(id, None)
        lost = {id: one for id, one in self.made.items() if id not in self.cards}
        groups = {id: card.group for id, card in self.cards.items()}
        self._remember(synthetic.add(self.index, self.book, lost, groups))

    def _retract(self, images: list[LedgerImage]) -> None:
        """A copy that was deleted, moved or replaced no longer speaks for an image that other files still show."""
        for id, references, _, _ in images:
            for path in sorted(self.book.import_paths(id).difference(references)):
                self.book.append(Entry(id, UNLABELLED, "import", "gone", now(), path))
        self.book.flush()

    def _reconcile(self, rebuild: bool) -> set[str]:
        """Show every state that differs from what the index shows; with `rebuild` every state there is."""
        stale = [id for id, card in self.cards.items() if rebuild or card.key != self.book.key(id)]
        self.report.app_edits += len(app_edits.show(self.index, self.book, stale, self.project.class_names))
        return set(stale)

    def _place(self, images: list[LedgerImage]) -> set[str]:
        """Paths, groups and strata as the ledger has them; copies in two groups make one group of them."""
        decisions = self.decisions
        joins = [(groups[0], other) for _, _, groups, _ in images for other in groups[1:]]
        joins += self._renamed_groups(images)
        self.report.leaks = [asdict(leak) for leak in decisions.join(joins)]
        changes: dict[str, dict[str, Any]] = {name: {} for name in _PLACE_FIELDS}
        here = {row.id for row in self.table.seen(QUARANTINED) if row.id}
        for id, references, groups, stratum in images:
            here.add(id)
            group = decisions.group(groups[0] if groups else id)
            self._compare(id, references, group, stratum, changes)
        held = synthetic.held(self.project, self.made.values(), decisions)
        for id, one in self.made.items():  # after their grounds: where those go, they go
            if id in self.cards and self.project.path(one.path).is_file():
                here.add(id)
                ground = self.cards.get(one.ground, self.cards[id])
                group = synthetic.group_of(one, ground.group, decisions, held.get(one.batch))
                self._compare(id, [one.path], group, None, changes)
        for id, card in self.cards.items():
            if id not in here and not card.missing:
                changes["missing"][id] = True
        self.index.set(changes)
        return {id for by_id in changes.values() for id in by_id}

    def _renamed_groups(self, images: list[LedgerImage]) -> Iterator[tuple[str, str]]:
        """A piece whose group got another name (a new pattern, a new source name) keeps its frozen split."""
        for id, _, groups, _ in images:
            old, new = self.cards[id].group, self.decisions.group(groups[0] if groups else id)
            if old != new and id not in self.fresh and self.decisions.split(old):
                yield new, old

    def _compare(
        self, id: str, references: list[str], group: str, stratum: str | None, changes: dict[str, dict[str, Any]]
    ) -> None:
        card = self.cards[id]
        if card.references != tuple(references):
            changes["paths"][id] = references
        path = str(self.project.path(references[0]))
        if card.path != path:
            changes["filepath"][id] = path
        if card.group != group:
            changes["group"][id] = card.group = group
        if card.stratum != stratum:
            changes["stratum"][id] = stratum
        if card.missing:
            changes["missing"][id] = False

    # --- splits ---

    def _split(self) -> None:
        members = give_splits(self.index, self.decisions)
        labelled = (m for m in members.values() if m.source == "public" and m.status == "labelled")
        self.report.few_groups = splits.few_groups(splits.gathered(labelled))

    # --- the report ---

    def _count(self, changed: set[str], here: set[str]) -> None:
        report, table = self.report, self.table
        report.added = len(self.fresh)
        report.updated = len((changed & here) - self.fresh)
        report.unchanged = len(here - self.fresh - changed)
        report.quarantined = len(table.seen(QUARANTINED))
        report.missing = len(table.seen(MISSING)) + self.index.count(missing=True)
        report.duplicates = table.duplicates()
        report.conflicts = len(self.index.conflicts())
        report.notes = table.notes()


def capture_app_edits(index: Index) -> None:
    """Log what curators changed in the App, and give splits to what is labelled by now.

    Comes before anything is chosen, sent or learnt: nothing of val and test may teach.
    """
    with app_edits.opened_log(index):
        pass
    give_splits(index)


def give_splits(index: Index, decisions: Decisions | None = None) -> dict[str, Member]:
    """Decide the splits that are due, and show them; returns every image as the splits see it."""
    decisions = decisions or Decisions(index.project.work / "splits")
    config, members = index.project.config.splits, index.members()
    decisions.assign(splits.due(list(members.values()), decisions, config.shares, config.seed))
    wanted = {id: decisions.split(member.group) for id, member in members.items()}
    index.set({"split": {id: wanted[id] for id, split in index.rows("split") if wanted[id] != split}})
    return members


_PLACE_FIELDS = ("paths", "filepath", "group", "stratum", "missing")


def write_lists(project: Project, table: Ledger, index: Index) -> None:
    """`work/quarantine.csv` and `work/missing.csv`: every file that is not in the index, and why."""
    quarantined = [(row.reference, row.problem, row.label_file, row.line) for row in table.seen(QUARANTINED)]
    missing = [(row.reference, row.problem, row.label_file, row.line) for row in table.seen(MISSING)]
    gone = set(table.gone())
    for reference in index.missing():
        reason = "no longer on disk" if reference in gone else "its file now holds another image"
        missing.append((reference, f"indexed before, {reason}", None, None))
    for name, rows in (("quarantine.csv", quarantined), ("missing.csv", missing)):
        text = io.StringIO()
        files.write_csv(text, [("file", "reason", "label_file", "line"), *rows])
        files.write_text(project.work / name, text.getvalue())


def draw_folds(project: Project, count: int, repeats: int) -> int:
    """Repeated grouped cross-validation folds for all labelled images; the number of groups that got them."""
    index = Index(project)
    members = {id: m for id, m in index.members().items() if m.status == "labelled" and m.source != "synthetic"}
    groups = splits.gathered(members.values())
    if len(groups) < count:
        raise CurateError(
            f"{count} folds need at least {count} labelled groups, there are {len(groups)}; use --folds 2"
        )
    drawn = splits.folds(groups, count, repeats, project.config.splits.seed)
    key = f"{count}x{repeats}-seed{project.config.splits.seed}"
    files.write_json(project.work / "folds" / f"{key}.json", drawn)
    index.set({"folds": {id: drawn[member.group] for id, member in members.items()}})
    return len(groups)
