"""`curate index`: make the index equal to what is on disk and in the label log.

Order, so that a kill at any moment is harmless: labels go to the log first (durable), then samples to the index, then
rows to the ledger. Whatever a killed run left out, the next one finds missing and does; what it did, it finds done.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from curate import edits, files, formats, intake, paths, splits, state
from curate.data import UNLABELLED, Label, Record, Reject
from curate.documents import NewSample
from curate.errors import CurateError, LabelProblem
from curate.index import Card, Index, chunks
from curate.intake import Picture, Rules
from curate.labels import DUPLICATE_LABELS, Book, Entry, now
from curate.ledger import MISSING, OK, QUARANTINED, Ledger, Row
from curate.project import Project, SourceConfig
from curate.splits import Decisions

BATCH = 256
Progress = Callable[[str, int, int], None]


@dataclass
class Report:
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
) -> Report:
    """Bring the index up to date. The caller holds the project's writer lock."""
    state.ensure(project)
    check_folders(project)
    index = Index(project, create=True)
    book = Book(project.work / "labels")
    with Ledger(project.work / "files.sqlite") as table:
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
        if labels and not labels.exists():
            raise CurateError(f"source '{source.name}': no label file at {labels}. Correct labels in {project.file}")


def rules_of(project: Project, source: SourceConfig) -> Rules:
    module = formats.load(source.format)
    return Rules(
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record; without `picture` and `label` there is nothing to add or to log."""

    row: Row
    picture: Picture | None = None
    label: Label | None = None


class _Run:
    """One run's state; its methods are the steps, in order."""

    def __init__(self, project: Project, index: Index, book: Book, table: Ledger, progress: Progress) -> None:
        self.project, self.index, self.book, self.table, self.progress = project, index, book, table, progress
        self.report = Report()
        self.cards: dict[str, Card] = {}
        self.fresh: set[str] = set()
        self.reasons: dict[str, dict[str, None]] = {}
        self.decisions = Decisions(project.work / "splits")

    def run(self, reread: bool, rebuild: bool) -> Report:
        self.report.app_edits = len(edits.capture(self.index, self.book, self.project.class_names))
        self.cards = self.index.cards()
        if reread:
            self.table.forget()
        self.table.begin()
        for source in self.project.config.sources:
            self._take(source)
        self._retract()
        changed = self._reconcile(rebuild) | self._place()
        self._split()
        self._count(changed)
        write_lists(self.project, self.table)
        return self.report

    # --- files to samples ---

    def _take(self, source: SourceConfig) -> None:
        rules = rules_of(self.project, source)
        found = formats.read(
            source.format, rules.root, self.project.labels(source), source.fully_labelled, source.options
        )
        total = sum(1 for _ in paths.walk(rules.root))
        for batch in chunks(self._examined(found, source, rules), BATCH):
            self._write(batch, source)
            self.progress(source.name, len(batch), total)

    def _examined(self, found: Iterable[Record | Reject], source: SourceConfig, rules: Rules) -> Iterator[Outcome]:
        """Each record with its outcome, in order; files are read in parallel, a bounded number ahead."""
        mark = rules.mark
        pending: deque[Future[Outcome]] = deque()
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
            try:
                for record in found:
                    pending.append(pool.submit(self._outcome, record, source, rules, mark, self._known(record, source)))
                    if len(pending) >= 2 * BATCH:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _known(self, record: Record | Reject, source: SourceConfig) -> Row | None:
        return self.table.find(f"{source.name}:{record.path}") if isinstance(record, Record) else None

    def _outcome(
        self, record: Record | Reject, source: SourceConfig, rules: Rules, mark: str, known: Row | None
    ) -> Outcome:
        reference = f"{source.name}:{record.path}"
        where: dict[str, Any] = {"label_file": record.label_file, "line": record.line}
        if isinstance(record, Reject):
            return Outcome(Row(reference, "", QUARANTINED, problem=record.reason, **where))
        print_ = intake.fingerprint(record, rules, mark)
        if print_ is None:
            return Outcome(Row(reference, "", MISSING, problem="named by the labels, not on disk", **where))
        if known and known.fingerprint == print_ and (known.outcome == QUARANTINED or known.id in self.cards):
            return Outcome(known)
        return self._examine(reference, print_, record, rules, where)

    def _examine(self, reference: str, print_: str, record: Record, rules: Rules, where: dict[str, Any]) -> Outcome:
        id = None
        try:
            picture = intake.picture_of(record, rules)
            id = picture.id
            label = intake.label_of(record, rules, picture.width, picture.height)
        except LabelProblem as problem:
            return Outcome(Row(reference, print_, QUARANTINED, id, problem=str(problem), **where))
        except OSError as error:
            return Outcome(Row(reference, print_, QUARANTINED, problem=f"cannot be read: {error.strerror}", **where))
        group = record.group or intake.group_of(record.path, rules)
        stratum = record.stratum or intake.stratum_of(record.path, rules)
        named = f"{reference.partition(':')[0]}/{group}" if group else None
        row = Row(reference, print_, OK, id, named, stratum, note=picture.note, **where)
        return Outcome(row, picture, label)

    def _write(self, batch: list[Outcome], source: SourceConfig) -> None:
        seen = [(one.row, one.picture, one.label) for one in batch if one.picture and one.label]
        for row, picture, label in seen:
            self._log(row, picture.id, label, source)
        self.book.flush()
        new: dict[str, NewSample] = {}
        for row, picture, _ in seen:
            if picture.id not in self.cards and picture.id not in new:
                new[picture.id] = self._new_sample(row, picture, source)
        self.index.add(list(new.values()))
        for sample in new.values():
            card = Card(sample.key, sample.group, None, "", source.kind, sample.stratum, False, (sample.reference,))
            self.cards[sample.id] = card
            self.fresh.add(sample.id)
        self.table.save(self._with_all_reasons(one.row) for one in batch)

    def _with_all_reasons(self, row: Row) -> Row:
        """A label file can give several reasons against one image, a row each."""
        if row.outcome != QUARANTINED:
            return row
        reasons = self.reasons.setdefault(row.reference, {})
        reasons[row.problem or ""] = None
        return row._replace(problem="; ".join(reasons))

    def _log(self, row: Row, id: str, label: Label, source: SourceConfig) -> None:
        extra = {name: value for name, value in (("label_file", row.label_file), ("line", row.line)) if value}
        changed = self.book.imported(Entry(id, label, "import", source.format, now(), row.reference, extra))
        self.report.kept += changed and self.book.person_decided(id)

    def _new_sample(self, row: Row, picture: Picture, source: SourceConfig) -> NewSample:
        return NewSample(
            picture=picture,
            path=self.project.locate(row.reference),
            reference=row.reference,
            source=source.kind,
            format=source.format,
            group=row.group or picture.id,
            stratum=row.stratum,
            state=self.book.state(picture.id),
            key=self.book.key(picture.id),
        )

    # --- the index follows the log and the ledger ---

    def _retract(self) -> None:
        """A copy that was deleted, moved or replaced no longer speaks for an image that other files still show."""
        for id, references, _, _ in self.table.images():
            for path in sorted(self.book.import_paths(id).difference(references)):
                self.book.append(Entry(id, UNLABELLED, "import", "gone", now(), path))
        self.book.flush()

    def _reconcile(self, rebuild: bool) -> set[str]:
        """Show every state that differs from what the index shows; with `rebuild` every state there is."""
        stale = [id for id, card in self.cards.items() if rebuild or card.key != self.book.key(id)]
        self.index.show(self.book, stale)
        return set(stale)

    def _place(self) -> set[str]:
        """Paths, groups and strata as the ledger has them; copies in two groups make one group of them."""
        decisions = self.decisions
        images = list(self.table.images())
        joins = [(groups[0], other) for _, _, groups, _ in images for other in groups[1:]]
        self.report.leaks = [asdict(leak) for leak in decisions.join(joins)]
        changes: dict[str, dict[str, Any]] = {name: {} for name in _PLACE_FIELDS}
        here = {row.id for row in self.table.seen(QUARANTINED) if row.id}
        for id, references, groups, stratum in images:
            here.add(id)
            group = decisions.group(groups[0] if groups else id)
            self._compare(id, references, group, stratum, changes)
        for id, card in self.cards.items():
            if id not in here and not card.missing:
                changes["missing"][id] = True
        self.index.set(changes)
        return {id for by_id in changes.values() for id in by_id}

    def _compare(
        self, id: str, references: list[str], group: str, stratum: str | None, changes: dict[str, dict[str, Any]]
    ) -> None:
        card = self.cards[id]
        if card.references != tuple(references):
            changes["paths"][id] = references
            changes["filepath"][id] = str(self.project.locate(references[0]))
        if card.group != group:
            changes["group"][id] = card.group = group
        if card.stratum != stratum:
            changes["stratum"][id] = stratum
        if card.missing:
            changes["missing"][id] = False

    # --- splits ---

    def _split(self) -> None:
        config, members = self.project.config.splits, self.index.members()
        self.decisions.assign(splits.due(list(members.values()), self.decisions, config.shares, config.seed))
        wanted = {id: self.decisions.split(card.group) for id, card in self.cards.items()}
        self.index.set({"split": {id: wanted[id] for id, card in self.cards.items() if wanted[id] != card.split}})
        labelled = (m for m in members.values() if m.source == "public" and m.status == "labelled")
        self.report.few_groups = splits.few_groups(splits.gathered(labelled))

    # --- the report ---

    def _count(self, changed: set[str]) -> None:
        report, table = self.report, self.table
        here = {id for id, _, _, _ in table.images()}
        report.added = len(self.fresh)
        report.updated = len((changed & here) - self.fresh)
        report.unchanged = len(here - self.fresh - changed)
        report.quarantined = len(table.seen(QUARANTINED))
        report.missing = len(table.seen(MISSING)) + len(table.gone())
        report.duplicates = table.duplicates()
        report.conflicts = self.index.count(status="disputed", status_reason=DUPLICATE_LABELS)
        report.notes = table.notes()


_PLACE_FIELDS = ("paths", "filepath", "group", "stratum", "missing")


def write_lists(project: Project, table: Ledger) -> None:
    """`work/quarantine.csv` and `work/missing.csv`: every file that is not in the index, and why."""
    quarantined = [(row.reference, row.problem, row.label_file, row.line) for row in table.seen(QUARANTINED)]
    missing = [(row.reference, row.problem, row.label_file, row.line) for row in table.seen(MISSING)]
    missing += [(reference, "indexed before, no longer on disk", None, None) for reference in table.gone()]
    for name, rows in (("quarantine.csv", quarantined), ("missing.csv", missing)):
        text = io.StringIO()
        csv.writer(text).writerows([("file", "reason", "label_file", "line"), *rows])
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
