"""Reads and checks files and their labels: in this process, or in several where there is much to read."""

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
IN_FLIGHT = 2 * workers.cores()  # jobs that keep the pool busy
FEW = 512  # files after which the time for the rest can be estimated
WORTH = 5.0  # seconds of reading left, above which starting processes pays


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """The outcome of one record; without `image` and `label` there is nothing to add or to log."""

    row: FileRow
    path: Path | None = None
    image: ImageFacts | None = None
    label: Label | None = None


Job = list[tuple[Record | Reject, FileRow | None]]
Examine = Callable[[Job], list[ReadOutcome]]


def examine_records(job: Job, source: str, rules: SourceRules, rules_digest: str) -> list[ReadOutcome]:
    """Examine these records; reads nothing but their files, so that any process can do it."""
    return [_examine_record(record, row, reference_of(source, record), rules, rules_digest) for record, row in job]


def reference_of(source: str, record: Record | Reject) -> str:
    """Return the record's `source:path`."""
    return f"{source}:{paths.printable(record.path)}"


def _examine_record(
    record: Record | Reject, row: FileRow | None, reference: str, rules: SourceRules, rules_digest: str
) -> ReadOutcome:
    where: dict[str, Any] = {"label_file": record.label_file, "line": record.line}
    if isinstance(record, Reject):
        return ReadOutcome(FileRow(reference, "", QUARANTINED, problem=_one_line(record.reason), **where))
    try:
        path = paths.safe_join(rules.root, record.path)
    except LabelProblem as problem:
        return ReadOutcome(FileRow(reference, "", QUARANTINED, problem=_one_line(str(problem)), **where))
    fingerprint = intake.fingerprint(path, record, rules, rules_digest)
    if fingerprint is None:
        return ReadOutcome(FileRow(reference, "", MISSING, problem="named by the labels, not on disk", **where))
    if row and row.fingerprint == fingerprint:
        return ReadOutcome(row)
    return _examine_file(FileRow(reference, fingerprint, OK, **where), path, record, rules)


def _one_line(reason: str) -> str:
    """Return a reason without the line breaks that it may quote from a label file."""
    return " ".join(paths.printable(reason).split())


def _examine_file(row: FileRow, path: Path, record: Record, rules: SourceRules) -> ReadOutcome:
    """Read the file and decode its label; the outcome goes into the row."""
    id = None
    try:
        image = intake.image_facts(path, record, rules)
        id = image.id
        label = intake.label_of(record, rules, image.width, image.height)
    except LabelProblem as problem:
        return ReadOutcome(row._replace(outcome=QUARANTINED, id=id, problem=_one_line(str(problem))))
    except OSError as error:  # no fingerprint: next time it may be readable, unchanged
        return ReadOutcome(
            row._replace(fingerprint="", outcome=QUARANTINED, problem=f"cannot be read: {error.strerror}")
        )
    group = record.group or intake.group_of(record.path, rules)
    stratum = record.stratum or intake.stratum_of(record.path, rules)
    named = f"{row.reference.partition(':')[0]}/{group}" if group else None
    return ReadOutcome(row._replace(id=id, group=named, stratum=stratum, note=image.note), path, image, label)


def run_jobs(examine: Examine, jobs: Iterator[Job], total: int) -> Iterator[list[ReadOutcome]]:
    """Yield the outcomes of all jobs, in order.

    Where much is left to read, a pool of processes helps; while it starts, this process goes on reading.
    """
    done = read = 0
    spent = 0.0
    with ExitStack() as stack:
        pool: ProcessPoolExecutor | None = None
        started: Future[list[ReadOutcome]] | None = None
        for job in jobs:
            if pool and started and started.done():
                yield from _run_in_pool(pool, examine, chain([job], jobs))
                return
            start = time.perf_counter()
            outcomes = examine(job)
            spent += time.perf_counter() - start
            done += len(job)
            read += sum(outcome.image is not None for outcome in outcomes)
            if pool is None and read >= FEW and spent / done * (total - done) > WORTH:
                pool = stack.enter_context(workers.pool())
                started = pool.submit(examine, [])
            yield outcomes


def _run_here(examine: Examine, job: Job) -> Future[list[ReadOutcome]]:
    done: Future[list[ReadOutcome]] = Future()
    done.set_result(examine(job))
    return done


def _run_in_pool(pool: ProcessPoolExecutor, examine: Examine, jobs: Iterator[Job]) -> Iterator[list[ReadOutcome]]:
    """Run a bounded number of jobs ahead; while the pool is busy, this process reads too."""
    pending: deque[Future[list[ReadOutcome]]] = deque()
    try:
        for job in jobs:
            busy = sum(not future.done() for future in pending) >= IN_FLIGHT
            pending.append(_run_here(examine, job) if busy else pool.submit(examine, job))
            if len(pending) * JOB >= AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise CurateError("a reading process died (out of memory?); what was read is kept: run it again") from None
    finally:
        pool.shutdown(cancel_futures=True)
