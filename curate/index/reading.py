"""Files and their labels, read and judged: in this process, or in several where there is much to read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from curate import paths, workers
from curate.data import Label, Record, Reject
from curate.errors import CurateError, LabelProblem
from curate.index import intake
from curate.index.file_ledger import MISSING, OK, QUARANTINED, FileRow
from curate.index.intake import ImageFacts, SourceRules

JOB = 32  # files to a job
AHEAD = 2048  # files that may wait to be written
IN_FLIGHT = 2 * workers.cores()  # jobs that keep the other processes busy
FEW = 512  # files after which it can be told how long the rest will take
WORTH = 5.0  # seconds of reading left, above which starting processes pays


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """What became of one record; without `picture` and `label` there is nothing to add or to log."""

    row: FileRow
    path: Path | None = None
    picture: ImageFacts | None = None
    label: Label | None = None


Job = list[tuple[Record | Reject, FileRow | None]]
Examine = Callable[[Job], list[ReadOutcome]]


def examine_all(job: Job, source: str, rules: SourceRules, mark: str) -> list[ReadOutcome]:
    """What becomes of these records; touches nothing but their files, so that any process can do it."""
    return [_outcome(record, known, reference_of(source, record), rules, mark) for record, known in job]


def reference_of(source: str, record: Record | Reject) -> str:
    return f"{source}:{paths.printable(record.path)}"


def _outcome(
    record: Record | Reject, known: FileRow | None, reference: str, rules: SourceRules, mark: str
) -> ReadOutcome:
    where: dict[str, Any] = {"label_file": record.label_file, "line": record.line}
    if isinstance(record, Reject):
        return ReadOutcome(FileRow(reference, "", QUARANTINED, problem=_one_line(record.reason), **where))
    try:
        path = paths.safe_join(rules.root, record.path)
    except LabelProblem as problem:
        return ReadOutcome(FileRow(reference, "", QUARANTINED, problem=_one_line(str(problem)), **where))
    print_ = intake.fingerprint(path, record, rules, mark)
    if print_ is None:
        return ReadOutcome(FileRow(reference, "", MISSING, problem="named by the labels, not on disk", **where))
    if known and known.fingerprint == print_:
        return ReadOutcome(known)
    return _examine(FileRow(reference, print_, OK, **where), path, record, rules)


def _one_line(reason: str) -> str:
    """A reason repeats what stands in a label file, line breaks and all."""
    return " ".join(paths.printable(reason).split())


def _examine(row: FileRow, path: Path, record: Record, rules: SourceRules) -> ReadOutcome:
    """Read the file and decode its label; `row` gets what became of them."""
    id = None
    try:
        picture = intake.picture_of(path, record, rules)
        id = picture.id
        label = intake.label_of(record, rules, picture.width, picture.height)
    except LabelProblem as problem:
        return ReadOutcome(row._replace(outcome=QUARANTINED, id=id, problem=_one_line(str(problem))))
    except OSError as error:  # no fingerprint: it may be readable the next time, without a change of the file
        return ReadOutcome(
            row._replace(fingerprint="", outcome=QUARANTINED, problem=f"cannot be read: {error.strerror}")
        )
    group = record.group or intake.group_of(record.path, rules)
    stratum = record.stratum or intake.stratum_of(record.path, rules)
    named = f"{row.reference.partition(':')[0]}/{group}" if group else None
    return ReadOutcome(row._replace(id=id, group=named, stratum=stratum, note=picture.note), path, picture, label)


def examined(examine: Examine, jobs: Iterator[Job], total: int) -> Iterator[list[ReadOutcome]]:
    """The outcomes of all jobs, in order.

    Where there is much left to read, other processes help; while these start, we read on here.
    """
    done = read = 0
    spent = 0.0
    with ExitStack() as stack:
        pool: ProcessPoolExecutor | None = None
        started: Future[list[ReadOutcome]] | None = None
        for job in jobs:
            if pool and started and started.done():
                yield from _ahead(pool, examine, chain([job], jobs))
                return
            begun = time.perf_counter()
            outcomes = examine(job)
            spent += time.perf_counter() - begun
            done += len(job)
            read += sum(one.picture is not None for one in outcomes)
            if pool is None and read >= FEW and spent / done * (total - done) > WORTH:
                pool = stack.enter_context(workers.pool())
                started = pool.submit(examine, [])
            yield outcomes


def _here(examine: Examine, job: Job) -> Future[list[ReadOutcome]]:
    done: Future[list[ReadOutcome]] = Future()
    done.set_result(examine(job))
    return done


def _ahead(pool: ProcessPoolExecutor, examine: Examine, jobs: Iterator[Job]) -> Iterator[list[ReadOutcome]]:
    """A bounded number of jobs ahead; while the others are busy, we read here too."""
    pending: deque[Future[list[ReadOutcome]]] = deque()
    try:
        for job in jobs:
            busy = sum(not one.done() for one in pending) >= IN_FLIGHT
            pending.append(_here(examine, job) if busy else pool.submit(examine, job))
            if len(pending) * JOB >= AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise CurateError("a reading process died (out of memory?); what was read is kept: run it again") from None
    finally:
        pool.shutdown(cancel_futures=True)
