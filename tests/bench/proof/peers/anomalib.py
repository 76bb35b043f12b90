"""anomalib 2.7.0 (Apache-2.0): PatchCore's bank and distances, over the windows' own vectors, as a ranker.

The bank holds windows of images labelled clean. While they are few it holds those of the whole pool, in two halves by
group, each ranked by the other's bank: a bank that held an image itself would call it ordinary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask, best, windows_of

ENOUGH = 20  # labelled clean images
RATIO, MOST, SAMPLE = 0.1, 2000, 20_000  # of the windows in the bank; windows that a bank is chosen from

Floats = NDArray[np.float32]


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    clean = ask.labelled[~ask.present.any(axis=1)]
    if len(clean) >= ENOUGH:
        score = _scores(ask, [(clean, np.arange(len(ask.vectors)))])
    else:
        score = _of_halves(ask.windows, ask.groups.tobytes(), len(ask.vectors))
    return best(ask, score[ask.open])


@lru_cache(maxsize=2)
def _of_halves(windows: str, groups: bytes, size: int) -> Floats:
    half = np.frombuffer(groups, np.int64) % 2 == 1
    parts = [(np.flatnonzero(half), np.flatnonzero(~half)), (np.flatnonzero(~half), np.flatnonzero(half))]
    return _of_banks(windows, parts, size)


def _scores(ask: Ask, parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Floats:
    return _of_banks(ask.windows, parts, len(ask.vectors))


def _of_banks(file: str, parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], size: int) -> Floats:
    """Return each image's farthest window; `parts`: the images of a bank, and those that it ranks."""
    rows, vectors = windows_of(file)
    score = np.full(size, -np.inf, np.float32)
    for bank, ranked in parts:
        model = _model(vectors[np.isin(rows, bank)])
        mine = np.isin(rows, ranked)
        np.maximum.at(score, rows[mine], _distances(model, vectors[mine]))
    return score


def _model(bank: Floats) -> Any:
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(0)
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False, num_neighbors=1)
    sample = np.asarray(bank[:: -(-len(bank) // SAMPLE)], np.float32)
    model.embedding_store = [torch.from_numpy(sample)]
    model.subsample_embedding(min(RATIO, MOST / len(sample)))
    return model


def _distances(model: Any, vectors: Floats) -> Floats:
    import torch

    found, _ = model.nearest_neighbors(torch.from_numpy(np.asarray(vectors, np.float32)), n_neighbors=1)
    return np.asarray(found.numpy(), np.float32)
