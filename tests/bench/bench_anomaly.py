"""How well and how fast the anomaly score finds defects, beside anomalib's PatchCore: `make anomaly`.

Magnetic tiles (`../shared/data`): `--clean` clean images and all defective ones, the network of `--encoder dense` for
everybody. Two settings. *unlabelled*: nobody has labelled anything, the bank is the pool itself, defects and all. *half
clean*: half of the clean tiles are called clean; the other images are scored. PatchCore gets our window vectors, with a
core-set of 10 %, and in its own way the places of the maps: a random 50,000 of the bank's, with a core-set of 3 %. A
window's distance is painted over its place and averaged where windows overlap. Seconds and memory are those of fitting
and scoring, without the network, in a process of one thread for each way. Eight minutes in all.
"""

from __future__ import annotations

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import argparse
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.bench._measure import peak_bytes, print_table
from tests.fakes import REAL, REPOSITORY

CACHE, PEER = REPOSITORY / "out" / "anomaly", REPOSITORY / ".peer-anomalib"
SETTINGS = ("unlabelled", "half clean")
EVERY = 4  # of the pixels of each side count
WINDOWS, PLACES = 0.1, 0.03  # of PatchCore's bank that its core-set keeps
BANK = 50_000  # places that the core-set is drawn from
Floats = NDArray[np.float32]


class Features(NamedTuple):
    """Of all images: their windows' vectors, rows and boxes, the maps, masks (every `EVERY`th pixel) and groups."""

    vectors: Floats
    rows: NDArray[np.int64]
    tiles: NDArray[np.int16]
    boxes: NDArray[np.int32]
    maps: list[NDArray[np.float16]]
    masks: list[NDArray[np.bool_]]
    sizes: list[tuple[int, int]]
    defective: NDArray[np.bool_]
    groups: NDArray[np.int64]


class Scores(NamedTuple):
    """(n,) of each image, and a map of each."""

    images: Floats
    maps: list[Floats]


# --- features, once -------------------------------------------------------------------------------------------------


def features(clean: int) -> Features:
    """The features of the data set, from the cache where they are known."""
    file = CACHE / f"magnetic-tile-{clean}.pickle"
    if not file.is_file():
        found = _computed(clean)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(tuple(found)))
    return Features(*pickle.loads(file.read_bytes()))


def _computed(clean: int) -> Features:
    from curate import embed
    from curate.data import MaskFile
    from curate.embed._base import windows
    from curate.embed.dense import DenseEncoder
    from curate.formats import magnetic_tile

    root = REAL / "magnetic_tile"
    encoder = embed.build("dense", {"device": "cpu"})
    assert isinstance(encoder, DenseEncoder)
    network = encoder._loaded()
    records = [record for record in magnetic_tile.read(root, None, True) if hasattr(record, "regions")]
    defects = [record for record in records if record.regions or record.classes]
    groups = sorted({record.group for record in records if record not in defects})
    order = {group: place for place, group in enumerate(np.random.default_rng(0).permutation(groups))}
    free = sorted((record for record in records if record not in defects), key=lambda record: order[record.group])
    chosen = [*free[:clean], *defects]
    columns: list[tuple[Any, ...]] = []
    for row, record in enumerate(chosen):
        image = cv2.imread(str(root / record.path), cv2.IMREAD_GRAYSCALE)
        height, width = image.shape
        boxes = windows(width, height, encoder.tile, encoder.overlap)
        vectors = encoder.encode(encoder.prepare_image(image, boxes))
        sized, _ = encoder._sized(image)
        mask = np.zeros(image.shape, bool)
        for region in record.regions:
            assert isinstance(region.shape, MaskFile)
            mask |= cv2.imread(str(root / region.shape.path), cv2.IMREAD_GRAYSCALE) >= 128
        maps = np.asarray(network(sized[None])[0], np.float16)
        numbers = np.full(len(boxes), row), np.arange(-1, len(boxes) - 1, dtype=np.int16)
        columns.append((vectors, *numbers, boxes, maps, mask[::EVERY, ::EVERY], (height, width)))
    vectors, rows, tiles, boxes, maps, masks, sizes = zip(*columns, strict=True)
    _, numbered = np.unique([record.group for record in chosen], return_inverse=True)
    defective = np.arange(len(chosen)) >= len(chosen) - len(defects)
    joined = (np.concatenate(part) for part in (vectors, rows, tiles, boxes))
    return Features(*joined, list(maps), list(masks), list(sizes), defective, numbered)


def called_clean(known: Features, setting: str) -> NDArray[np.bool_]:
    """The images that people call clean: none, or those of half of the tiles that show no defect."""
    groups = np.setdiff1d(known.groups, known.groups[known.defective])
    half = np.random.default_rng(1).permutation(groups)[: len(groups) // 2]
    return np.isin(known.groups, half) & (setting == "half clean")


# --- ways -----------------------------------------------------------------------------------------------------------


def ours(known: Features, clean: NDArray[np.bool_]) -> Scores:
    from curate.select.anomaly import anomaly, distances, neighbours
    from curate.select.pool import Pool, Windows

    n = len(known.defective)
    whole = known.vectors[known.tiles == -1]
    pool = Pool(
        ids=tuple(f"{row:064x}" for row in range(n)),
        vectors=whole,
        candidates=~clean,
        labelled=clean,
        present=np.zeros((n, 1), bool),
        classes=("defect",),
        groups=known.groups,
        strata=np.zeros(n, np.int64),
    )
    pool = replace(pool, windows=lambda: iter([Windows(known.rows, known.tiles, known.vectors)]))
    found = neighbours(pool)
    order = np.lexsort((found.tiles, found.rows))
    assert np.array_equal(found.rows[order], known.rows), "all windows were searched"
    return Scores(anomaly(pool).score, painted(known, distances(pool, found)[order]))


def patchcore(keep: float) -> Any:
    sys.path.insert(0, str(PEER))
    import warnings

    warnings.simplefilter("ignore")
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=["blocks.1"], backbone="tf_efficientnet_lite0", pre_trained=False)
    model.keep = keep
    return model.eval()


def of_windows(known: Features, clean: NDArray[np.bool_]) -> Scores:
    """PatchCore with our windows as its patches."""
    import torch

    model, bank = patchcore(WINDOWS), clean if clean.any() else np.ones(len(clean), bool)
    model.embedding_store.append(torch.from_numpy(known.vectors[bank[known.rows]]))
    model.subsample_embedding(model.keep)
    far, nearest = model.nearest_neighbors(torch.from_numpy(known.vectors), 1)
    images = []
    for row in range(len(clean)):
        own = np.flatnonzero(known.rows == row)
        vectors = torch.from_numpy(known.vectors[own])
        images.append(float(model.compute_anomaly_score(far[own][None], nearest[own][None], vectors)))
    return Scores(np.array(images, np.float32), painted(known, far.numpy()))


def of_places(known: Features, clean: NDArray[np.bool_]) -> Scores:
    """PatchCore on the places of the joined maps, as in its paper, but with a random part of the bank."""
    import torch

    model, bank = patchcore(PLACES), clean if clean.any() else np.ones(len(clean), bool)
    places = [torch.from_numpy(maps.reshape(-1, maps.shape[-1]).astype(np.float32)) for maps in known.maps]
    in_bank = torch.cat([places[row] for row in np.flatnonzero(bank)])
    chosen = np.random.default_rng(0).permutation(len(in_bank))[:BANK]
    model.embedding_store.append(in_bank[chosen])
    model.subsample_embedding(model.keep)
    images, maps = [], []
    for vectors, grid, size in zip(places, known.maps, known.sizes, strict=True):
        far, nearest = model.nearest_neighbors(vectors, 1)
        images.append(float(model.compute_anomaly_score(far[None], nearest[None], vectors)))
        # The network's maps cover the image and its padding.
        padded = tuple(16 * side for side in grid.shape[:2])
        drawn = model.anomaly_map_generator(far.reshape(1, 1, *grid.shape[:2]), padded)[0, 0].numpy()
        maps.append(drawn[: size[0] : EVERY, : size[1] : EVERY])
    return Scores(np.array(images, np.float32), maps)


WAYS: dict[str, Callable[[Features, NDArray[np.bool_]], Scores]] = {
    "anomaly": ours,
    "anomalib PatchCore, our windows": of_windows,
    "anomalib PatchCore, places": of_places,
}


def painted(known: Features, far: Floats) -> list[Floats]:
    """A map of each image: the mean distance of the tiles over each pixel."""
    maps = []
    for row, mask in enumerate(known.masks):
        total, count = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
        for window in np.flatnonzero(known.rows == row):
            if known.tiles[window] >= 0 or (known.rows == row).sum() == 1:
                x, y, w, h = (-(-side // EVERY) for side in known.boxes[window].tolist())
                total[y : y + h, x : x + w] += far[window]
                count[y : y + h, x : x + w] += 1
        maps.append(total / np.maximum(count, 1))
    return maps


def measured(way: str, setting: str, clean: int) -> dict[str, float]:
    """Both AUROC, seconds and memory of a way, in a process of its own."""
    from sklearn.metrics import roc_auc_score

    known = features(clean)
    labelled = called_clean(known, setting)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts afresh, from what is held now
    before, begin = peak_bytes(), time.perf_counter()
    scores = WAYS[way](known, labelled)
    seconds, memory = time.perf_counter() - begin, peak_bytes() - before
    asked = np.flatnonzero(~labelled)
    mask = np.concatenate([known.masks[row].ravel() for row in asked])
    pixels = np.concatenate([scores.maps[row].ravel() for row in asked])
    return {
        "image": float(roc_auc_score(known.defective[asked], scores.images[asked])),
        "pixel": float(roc_auc_score(mask, pixels)),
        "seconds": seconds,
        "megabytes": memory / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=400)
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.way, given.setting, given.clean)))
        return
    known = features(given.clean)
    print(
        f"{len(known.defective)} magnetic tiles, {known.defective.sum()} defective, {len(known.rows)} windows,", end=" "
    )
    print(f"{sum(maps.shape[0] * maps.shape[1] for maps in known.maps)} places")
    for setting in SETTINGS:
        lines = []
        for way in WAYS:
            command = [sys.executable, "-m", "tests.bench.bench_anomaly", "--clean", str(given.clean), "--way", way]
            answer = subprocess.run([*command, "--setting", setting], capture_output=True, text=True, check=False)
            if answer.returncode:
                sys.exit(answer.stderr)
            found = json.loads(answer.stdout.splitlines()[-1])
            print(f"{setting}, {way}: {found}", file=sys.stderr, flush=True)  # each takes minutes
            numbers = [f"{found['image']:.3f}", f"{found['pixel']:.3f}", f"{found['seconds']:.1f}"]
            lines.append([way, *numbers, f"{found['megabytes']:.0f}"])
        print_table([setting, "image AUROC", "pixel AUROC", "seconds", "MB"], lines)


if __name__ == "__main__":
    main()
