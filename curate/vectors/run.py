"""`curate embed`: vectors for every image and its windows, those alone that are missing.

    report = run(project, "texture", {"tile": 96}, progress=step)      by name and options
    report = run(project, made, engine="ray")                          or a made encoder
    for outcome in outcomes(encoder, [(id, path), ...], limit): ...    without a project: each image's vectors

A batch is one append: whatever a kill leaves, the next run finds and completes. Images that cannot be read, or whose
vectors are no numbers, are skipped and reported with the reason; the next run tries them again. With `engine="ray"`
the same functions run in Ray's actors, on this machine or on the cluster that RAY_ADDRESS names; the driver appends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Literal

from curate import embed, tables, workers
from curate.embed import _ray
from curate.embed._base import Encoder
from curate.embed._images import EncodedImage, ImageFiles, PreparedImage, encode_images, prepare_images
from curate.errors import CurateError, unknown
from curate.index.dataset import Index, chunks
from curate.project import Project
from curate.vectors.store import Vectors

BATCH = 128  # images to an append
JOB = 16  # images that a process decodes at a time
WORTH = 5.0  # seconds of decoding left, above which starting processes pays
FEW = 32  # images after which it can be told how long the rest will take
Progress = Callable[[str, int, int], None]
Engine = Literal["local", "ray"]


@dataclass
class EmbedReport:
    """What a run did: images `embedded` now, `kept` from before, `failed` with path and reason, `missing` on disk."""

    encoder: str
    key: str
    table: str
    embedded: int = 0
    kept: int = 0
    missing: int = 0
    windows: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(
    project: Project,
    encoder: str | Encoder = embed.DEFAULT,
    options: Mapping[str, Any] | None = None,
    *,
    engine: Engine = "local",
    batch: int = BATCH,
    workers: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> EmbedReport:
    """Embed what has no vectors yet. The caller holds the project's writer lock."""
    begun = time.perf_counter()
    made = embed.build(encoder, options) if isinstance(encoder, str) else encoder
    vectors = table_of(project, made, _command(encoder, options))
    images, missing = _images(project)
    known = set(vectors.ids())
    todo = [(id, path) for id, path in images.items() if id not in known]
    report = EmbedReport(vectors.name, vectors.key, vectors.table.path, kept=len(images) - len(todo), missing=missing)
    limit = project.config.limits.max_pixels
    found = outcomes(made, todo, limit, engine=engine, batch=batch, workers=workers)
    for part in chunks(found, batch):
        _write(part, vectors, report)
        progress(f"embed {made.name}", len(part), len(todo))
    vectors.table.finish(newest=True)
    report.seconds = round(time.perf_counter() - begun, 3)
    return report


def table_of(project: Project, encoder: Encoder, command: str = "curate embed") -> Vectors:
    """The encoder's table in this project; made if it is not there."""
    path = project.work / "vectors" / f"{encoder.name}-{encoder.key}.lance"
    if tables.Table.exists(path):
        return Vectors(tables.Table(path))
    return Vectors.create(path, encoder.key, encoder.dim, {"command": command})


def _command(encoder: str | Encoder, options: Mapping[str, Any] | None) -> str:
    name = encoder if isinstance(encoder, str) else encoder.name.partition("-")[0]
    return " ".join([f"curate embed --encoder {name}", *(f"--set {key}={v}" for key, v in (options or {}).items())])


def _images(project: Project) -> tuple[dict[str, str], int]:
    """Every image that is on disk, and how many are not."""
    rows = list(zip(*Index(project).dataset.values(["content_id", "filepath", "missing"]), strict=True))
    there = {id: path for id, path, missing in rows if id and not missing}
    return there, sum(1 for id, _, _ in rows if id) - len(there)


def _write(part: list[EncodedImage], vectors: Vectors, report: EmbedReport) -> None:
    good = [one for one in part if one.problem is None]
    vectors.append([one.id for one in good], [one.boxes for one in good], [one.vectors for one in good])
    report.embedded += len(good)
    report.windows += sum(len(one.boxes) for one in good)
    report.failed |= {one.id: f"{one.path}: {one.problem}" for one in part if one.problem is not None}


def outcomes(
    encoder: Encoder,
    todo: ImageFiles,
    max_pixels: int,
    *,
    engine: Engine = "local",
    batch: int = BATCH,
    workers: int | None = None,
) -> Iterator[EncodedImage]:
    """Every image's vectors or problem, in the order of `todo`."""
    if engine == "ray":
        yield from _ray.outcomes(encoder, todo, max_pixels, batch, workers)
        return
    if engine != "local":
        raise unknown("engine", engine, ("local", "ray"))
    for part in chunks(_prepared(encoder, todo, max_pixels, workers), batch):
        yield from encode_images(encoder, part)


# --- here, or in several processes where there is much to decode -----------------------------------------------------


def _prepared(encoder: Encoder, todo: ImageFiles, max_pixels: int, count: int | None) -> Iterator[PreparedImage]:
    """Every image ready to be encoded, in order; starts processes once it shows that they pay."""
    prepare = partial(prepare_images, encoder, max_pixels=max_pixels)
    jobs = chunks(todo, JOB)
    done, spent = 0, 0.0
    with ExitStack() as stack:
        for job in jobs:
            if count != 0 and done >= FEW and spent / done * (len(todo) - done) > WORTH:
                pool = stack.enter_context(workers.pool(count))
                yield from _ahead(pool, prepare, chain([job], jobs), 2 * (count or workers.cores()))
                return
            begun = time.perf_counter()
            found = prepare(job)
            # The first job also loads libraries and compiles: it tells nothing of the rest.
            spent, done = (spent + time.perf_counter() - begun, done + len(job)) if done else (0.0, len(job))
            yield from found


def _ahead(
    pool: ProcessPoolExecutor,
    prepare: Callable[[ImageFiles], list[PreparedImage]],
    jobs: Iterable[ImageFiles],
    most: int,
) -> Iterator[PreparedImage]:
    """A bounded number of jobs ahead: prepared windows are large."""
    pending: deque[Future[list[PreparedImage]]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(prepare, job))
            if len(pending) > most:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise CurateError("a decoding process died (out of memory?); what was embedded is kept: run it again") from None
    finally:
        pool.shutdown(cancel_futures=True)
