"""Run-lengths against pycocotools and the usual Python loop, on Severstal's rows: `python -m tests.bench.bench_rle`.

One thread, warm, repetitions interleaved so that a busy moment of the machine hits every method alike; medians.
"""

from __future__ import annotations

import os

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from curate.masks.rle import coco_to_mask, kaggle_to_mask, mask_to_coco, mask_to_kaggle

cv2.setNumThreads(1)
HEIGHT, WIDTH, ROWS = 256, 1600, 1429
DECODE_GOAL, ENCODE_GOAL = 6.0, 2.5
Mask = NDArray[np.uint8]
Method = Callable[[Any], Any]


def real_rows() -> list[str]:
    """Severstal's run-length texts, or none when the data are not there."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    file = Path(os.environ.get("CURATE_REAL_DATA") or default) / "severstal" / "train.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [row["EncodedPixels"] for row in csv.DictReader(lines)]


def drawn_rows() -> list[str]:
    """Texts of drawn patches and scratches of about the same size."""
    random = np.random.default_rng(0)
    return [mask_to_kaggle(_drawn(random)) for _ in range(ROWS)]


def _drawn(random: np.random.Generator) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(random.integers(1, 4)):
        centre = (int(random.integers(WIDTH)), int(random.integers(HEIGHT)))
        axes = (int(random.integers(3, 90)), int(random.integers(3, 60)))
        cv2.ellipse(mask, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
    return mask


def decode_ours(text: str) -> Mask:
    return kaggle_to_mask(text, HEIGHT, WIDTH)


def decode_coco(text: str) -> Mask:
    """With numpy's own text parser, the fastest way to the counts that needs no code of ours."""
    values = np.fromstring(text, np.int64, sep=" ")
    edges = np.empty(values.size + 2, np.int64)
    edges[0], edges[-1] = 0, HEIGHT * WIDTH
    edges[1:-1:2] = values[::2] - 1
    edges[2:-1:2] = values[::2] - 1 + values[1::2]
    counts = np.diff(edges).tolist()
    runs = coco.frPyObjects({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)
    return np.ascontiguousarray(coco.decode(runs))


def decode_loop(text: str) -> Mask:
    """As in Kaggle's notebooks, with Python's own integers, which index a little faster than numpy's."""
    values = list(map(int, text.split()))
    flat = np.zeros(HEIGHT * WIDTH, np.uint8)
    for start, length in zip(values[::2], values[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = 1
    return np.ascontiguousarray(flat.reshape(WIDTH, HEIGHT).T)


def encode_coco(mask: Mask) -> str:
    return str(coco.encode(np.asfortranarray(mask))["counts"].decode())


def rates(methods: dict[str, Method], inputs: Sequence[Any], repetitions: int) -> dict[str, float]:
    """Median images per second of each method, in turn over the same inputs."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repetition in range(repetitions + 1):
        for name, method in methods.items():
            begin = time.perf_counter()
            for value in inputs:
                method(value)
            if repetition:  # the first one warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: len(inputs) / statistics.median(spent) for name, spent in seconds.items()}


def report(title: str, speeds: dict[str, float], goals: dict[str, float]) -> bool:
    """Prints a table with the first method as ours; tells whether all goals are met."""
    ours = next(iter(speeds.values()))
    print(f"{title:<34}{'img/s':>10}{'ours is':>10}{'goal':>8}")
    for name, speed in speeds.items():
        goal = goals.get(name)
        verdict = "" if goal is None else f"{goal:>7.1f}x  {'met' if ours / speed >= goal else 'NOT MET'}"
        print(f"  {name:<32}{speed:>10,.0f}{ours / speed:>9.1f}x{verdict}")
    return all(ours / speeds[name] >= goal for name, goal in goals.items())


def check(texts: Sequence[str]) -> None:
    """All methods must agree before any is timed."""
    for text in texts[::50]:
        mask = decode_ours(text)
        assert np.array_equal(mask, decode_coco(text))
        assert np.array_equal(mask, decode_loop(text))
        assert mask_to_kaggle(mask) == text
        assert mask_to_coco(mask) == encode_coco(mask)


def bench_crops(repetitions: int) -> None:
    """Time one stored defect: a 64x64 crop encoded and decoded."""
    crops = [_crop(np.random.default_rng(seed)) for seed in range(300)]
    texts = [mask_to_coco(crop) for crop in crops]
    speeds = rates({"mask_to_coco": mask_to_coco, "pycocotools": encode_coco}, crops, repetitions)
    report("64x64 crop to COCO string", speeds, {})
    decoders: dict[str, Method] = {"coco_to_mask": lambda text: coco_to_mask(text, 64, 64), "pycocotools": decode_crop}
    report("COCO string to 64x64 crop", rates(decoders, texts, repetitions), {})


def _crop(random: np.random.Generator) -> Mask:
    mask = np.zeros((64, 64), np.uint8)
    axes = (int(random.integers(8, 32)), int(random.integers(4, 32)))
    cv2.ellipse(mask, (32, 32), axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
    return mask


def decode_crop(text: str) -> Mask:
    return np.ascontiguousarray(coco.decode({"size": [64, 64], "counts": text.encode()}))


def main() -> int:
    """Prints the tables; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    real = real_rows()
    texts = real or drawn_rows()
    print(f"{len(texts):,} {'real Severstal rows' if real else 'DRAWN masks (the real data are absent)'}, one thread")
    check(texts)
    decoders: dict[str, Method] = {"ours": decode_ours, "pycocotools": decode_coco, "Python loop": decode_loop}
    decoded = rates(decoders, texts, repetitions)
    met = report("text to row-major 256x1600 mask", decoded, {"pycocotools": DECODE_GOAL, "Python loop": DECODE_GOAL})
    masks = [decode_ours(text) for text in texts]
    encoders: dict[str, Method] = {"ours": mask_to_kaggle, "pycocotools": encode_coco, "ours, to COCO": mask_to_coco}
    met &= report("row-major mask to text", rates(encoders, masks, repetitions), {"pycocotools": ENCODE_GOAL})
    bench_crops(repetitions)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
