"""The same predictions in Ray's actors: on this machine, or on the cluster that RAY_ADDRESS names.

File names go out, predictions come back; the driver writes. On a cluster the images' paths must be readable from every
node, and this package installed there; the model itself is sent along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from train.predict.predictor import Outcome, Predictor, predict_files

BATCH = 16  # images that an actor is given at a time
BLOCKS = 2000  # more cost the driver more time than they save


def outcomes(predictor: Predictor, todo: Sequence[tuple[str, Path]], max_pixels: int) -> Iterator[Outcome]:
    """Yield the prediction for every image, in the order of `todo`. Ray is started and stopped if not running."""
    from curate.embed import _ray as shared

    if not todo:
        return
    with shared.running() as ray:
        cores = int(ray.cluster_resources().get("CPU", 1))
        yield from _stream(ray, predictor, todo, max_pixels, max(1, cores - 1))


def _stream(
    ray: Any, predictor: Predictor, todo: Sequence[tuple[str, Path]], max_pixels: int, actors: int
) -> Iterator[Outcome]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"id": id, "path": str(path)} for id, path in todo]
    blocks = min(-(-len(rows) // BATCH), BLOCKS)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        _Actor,
        fn_constructor_args=(replace(predictor, module=predictor.module.cpu()), max_pixels),
        batch_size=BATCH,
        batch_format="numpy",
        concurrency=min(actors, blocks),
        num_cpus=1,
        num_gpus=0 if predictor.device == "cpu" else 1,
    )
    for row in dataset.iter_rows():
        yield row["id"], row["seen"], row["reason"]


class _Actor:
    """A process of the cluster, with its own copy of the model."""

    def __init__(self, predictor: Predictor, max_pixels: int) -> None:
        self.predictor = replace(predictor, module=predictor.module.to(predictor.device))
        self.max_pixels = max_pixels

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        files = [(id, Path(path)) for id, path in zip(rows["id"].tolist(), rows["path"].tolist(), strict=True)]
        results = list(predict_files(self.predictor, files, self.max_pixels))
        predictions = np.empty(len(results), object)  # an array of tuples would become more columns
        for place, outcome in enumerate(results):
            predictions[place] = outcome[1]
        return {
            "id": [outcome[0] for outcome in results],
            "seen": predictions,
            "reason": [outcome[2] for outcome in results],
        }
