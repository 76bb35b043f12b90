"""`curate embed`: computes the missing vectors of every image and its windows.

    report = run(project, "texture", {"tile": 96}, progress=step)      by name and options
    report = run(project, encoder, engine="ray")                       or an encoder object
    for outcome in outcomes(encoder, [(id, path), ...], limit): ...    without a project: the vectors of each image

A batch is one append, so that a run can be killed at any moment and the next one goes on. Images that cannot be read,
or whose vectors are not finite, are skipped and reported with the reason; the next run tries them again. With
`engine="ray"` the same functions run in Ray's actors, here or on the cluster of RAY_ADDRESS; the driver appends.
"""

from __future__ import annotations

import json
import shlex
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
FEW = 32  # images after which the time for the rest can be estimated
Progress = Callable[[str, int, int], None]
Engine = Literal["local", "ray"]


@dataclass
class EmbedReport:
    """Result of `curate embed`: images `embedded` now, `kept` from before, `failed` with reason, `missing` on disk."""

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
    encoder: str | Encoder,
    options: Mapping[str, Any] | None = None,
    *,
    engine: Engine = "local",
    batch: int = BATCH,
    workers: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> EmbedReport:
    """Embed the images that have no vectors yet. The caller holds the project's writer lock.

    Args:
        project: The project.
        encoder: The encoder's name, or an encoder.
        options: The encoder's options, if it is given by name.
        engine: "local" runs processes on this machine, "ray" actors of Ray.
        batch: Images to an append.
        workers: Processes or actors; None chooses.
        progress: Called with a stage, the images done and the total.
    """
    start = time.perf_counter()
    chosen = embed.build(encoder, options) if isinstance(encoder, str) else encoder
    vectors = table_of(project, chosen, _command(encoder, options))
    images, missing = _images(project)
    known = set(vectors.ids())
    todo = [(id, path) for id, path in images.items() if id not in known]
    report = EmbedReport(vectors.name, vectors.key, vectors.table.path, kept=len(images) - len(todo), missing=missing)
    limit = project.config.limits.max_pixels
    encoded = outcomes(chosen, todo, limit, engine=engine, batch=batch, workers=workers)
    for part in chunks(encoded, batch):
        _write(part, vectors, report)
        progress(f"embed {chosen.name}", len(part), len(todo))
    vectors.table.finish(newest=True)
    report.seconds = round(time.perf_counter() - start, 3)
    return report


def table_of(project: Project, encoder: Encoder, command: str) -> Vectors:
    """Return the encoder's table in this project; creates it if there is none."""
    path = project.work / "vectors" / f"{encoder.name}-{encoder.key}.lance"
    if tables.Table.exists(path):
        return Vectors(tables.Table(path))
    return Vectors.create(path, encoder.key, encoder.dim, {"command": command})


def _command(encoder: str | Encoder, options: Mapping[str, Any] | None) -> str:
    name = encoder if isinstance(encoder, str) else encoder.name.partition("-")[0]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (options or {}).items()}
    given = (shlex.quote(f"{key}={text}") for key, text in texts.items())
    return " ".join([f"curate embed --encoder {name}", *(f"--set {one}" for one in given)])


def _images(project: Project) -> tuple[dict[str, str], int]:
    """Return the files of images on disk by content id, and the number of images that are missing."""
    rows = list(zip(*Index(project).dataset.values(["content_id", "filepath", "missing"]), strict=True))
    present = {id: path for id, path, missing in rows if id and not missing}
    return present, sum(1 for id, _, _ in rows if id) - len(present)


def _write(part: list[EncodedImage], vectors: Vectors, report: EmbedReport) -> None:
    good = [image for image in part if image.problem is None]
    vectors.append([image.id for image in good], [image.boxes for image in good], [image.vectors for image in good])
    report.embedded += len(good)
    report.windows += sum(len(image.boxes) for image in good)
    report.failed |= {image.id: f"{image.path}: {image.problem}" for image in part if image.problem is not None}


def outcomes(
    encoder: Encoder,
    todo: ImageFiles,
    max_pixels: int,
    *,
    engine: Engine = "local",
    batch: int = BATCH,
    workers: int | None = None,
) -> Iterator[EncodedImage]:
    """Yield every image's vectors or problem, in the order of `todo`."""
    if engine == "ray":
        yield from _ray.outcomes(encoder, todo, max_pixels, batch, workers)
        return
    if engine != "local":
        raise unknown("engine", engine, ("local", "ray"))
    for part in chunks(_prepared(encoder, todo, max_pixels, workers), batch):
        yield from encode_images(encoder, part)


# --- here, or in several processes where there is much to decode -----------------------------------------------------


def _prepared(encoder: Encoder, todo: ImageFiles, max_pixels: int, count: int | None) -> Iterator[PreparedImage]:
    """Yield every image ready to be encoded, in order; starts processes once they pay."""
    prepare = partial(prepare_images, encoder, max_pixels=max_pixels)
    jobs = chunks(todo, JOB)
    done, spent = 0, 0.0
    with ExitStack() as stack:
        for job in jobs:
            if count != 0 and done >= FEW and spent / done * (len(todo) - done) > WORTH:
                pool = stack.enter_context(workers.pool(count))
                yield from _run_in_pool(pool, prepare, chain([job], jobs), 2 * (count or workers.cores()))
                return
            start = time.perf_counter()
            prepared = prepare(job)
            # The first job also loads libraries and compiles: its time says nothing about the rest.
            spent, done = (spent + time.perf_counter() - start, done + len(job)) if done else (0.0, len(job))
            yield from prepared


def _run_in_pool(
    pool: ProcessPoolExecutor,
    prepare: Callable[[ImageFiles], list[PreparedImage]],
    jobs: Iterable[ImageFiles],
    limit: int,
) -> Iterator[PreparedImage]:
    """Run a bounded number of jobs ahead: prepared windows are large."""
    pending: deque[Future[list[PreparedImage]]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(prepare, job))
            if len(pending) > limit:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise CurateError(
            "a decoding process died: out of memory, or the calling script lacks 'if __name__ == \"__main__\":'. What "
            "was embedded is kept: run it again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
