"""Decoding and encoding in Ray actors: on this machine, or on the cluster that RAY_ADDRESS names.

An actor decodes and encodes whole batches, so that only files' names go out and only vectors come back. On a cluster
the images' paths and a network's weights must be readable from every node, and this package installed there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from curate.embed._base import Encoder
from curate.embed._images import EncodedImage, encode_images, prepare_images
from curate.errors import CurateError

BLOCKS = 2000  # more take the driver longer than they save
START = "starting Ray takes about 10 s; it pays for long runs and on clusters"


def outcomes(encoder: Encoder, todo: Any, max_pixels: int, batch: int, workers: int | None) -> Iterator[EncodedImage]:
    """Every image's `EncodedImage`, in the order of `todo`; Ray is started unless it runs, and then stopped again."""
    if not todo:
        return
    with running() as ray:
        cores = int(ray.cluster_resources().get("CPU", 1))
        yield from _stream(ray, encoder, todo, max_pixels, batch, workers or max(1, cores - 1))


@contextmanager
def running() -> Iterator[Any]:
    """Ray, started unless it runs, and then stopped again."""
    ray = _imported()
    started_here = not ray.is_initialized()
    if started_here:
        print(START, file=sys.stderr)  # noqa: T201
        _start(ray)
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


def _imported() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise CurateError("engine 'ray' needs Ray. Run: pip install 'steel-curate[ray]'") from None
    return ray


def _start(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS") or None
    # On this machine workers import modules from the same places; a cluster's nodes have their own installation.
    local: dict[str, Any] = {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": _path()}}}
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", **({} if address else local))


def _path() -> str:
    return os.pathsep.join(part for part in sys.path if part)


def _stream(ray: Any, encoder: Encoder, todo: Any, max_pixels: int, batch: int, actors: int) -> Iterator[EncodedImage]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"id": id, "path": path} for id, path in todo]
    blocks = min(-(-len(rows) // batch), BLOCKS)
    encoded = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        _Actor,
        fn_constructor_args=(encoder, max_pixels),
        batch_size=batch,
        batch_format="numpy",
        concurrency=min(actors, blocks),
        num_cpus=1,
        num_gpus=1 if getattr(encoder, "device", "cpu") == "cuda" else 0,
    )
    for row in encoded.iter_rows():
        yield _unpacked(row, encoder.dim)


class _Actor:
    """One process of the cluster, with its own copy of the encoder."""

    def __init__(self, encoder: Encoder, max_pixels: int) -> None:
        self.encoder, self.max_pixels = encoder, max_pixels

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        job = list(zip(rows["id"].tolist(), rows["path"].tolist(), strict=True))
        done = encode_images(self.encoder, prepare_images(self.encoder, job, self.max_pixels))
        return {
            "id": [image.id for image in done],
            "path": [image.path for image in done],
            "problem": [image.problem or "" for image in done],
            "boxes": [np.asarray(image.boxes, np.int32).tobytes() for image in done],
            "vectors": [np.asarray(image.vectors, np.float32).tobytes() for image in done],
        }


def _unpacked(row: dict[str, Any], dim: int) -> EncodedImage:
    boxes = np.frombuffer(row["boxes"], np.int32).reshape(-1, 4)
    vectors = np.frombuffer(row["vectors"], np.float32).reshape(-1, dim)
    return EncodedImage(row["id"], row["path"], boxes, vectors, row["problem"] or None)
