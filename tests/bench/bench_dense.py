"""The dense encoder against the same network window by window: `python -m tests.bench.bench_dense [--images 24]`.

Drawn strips of 256x1600 pixels in grey. Each way runs the whole of `curate embed` but for the table (read, check,
decode, compute), in a process for each core, in turn; medians. Window by window each of a strip's windows is resized to
192 pixels (`--encoder pretrained`). Then the cosine of what the two runtimes give.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from curate import embed
from curate.embed._images import prepare_images
from tests.bench._measure import interleaved, print_table
from tests.bench.bench_embed import LIMIT, draw, pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    onnx = embed.build("dense", {"device": "cpu", "runtime": "onnx"})
    torch = embed.build("dense", {"device": "cpu", "runtime": "torch"})
    windows = embed.build("pretrained", {"device": "cpu"})
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        todo = draw(Path(name), given.images, given.width, given.height)
        few = todo[: max(2, given.images // 6)]
        ways = {
            "dense, ONNX Runtime, a process a core": (onnx, todo, cores),
            "dense, ONNX Runtime, one process": (onnx, todo, 0),
            "dense, torch": (torch, todo, 0),
            "window by window, torch": (windows, few, 0),
        }
        print(f"{given.images} images {given.width}x{given.height}, {cores} cores")
        for encoder, files, _ in ways.values():
            pipeline(encoder, files[:1], None, 0)  # what is loaded and compiled once
        seconds = interleaved(
            {way: lambda run=run: pipeline(run[0], run[1], None, run[2]) for way, run in ways.items()},
            given.repetitions,
        )
        rate = {way: len(ways[way][1]) / value for way, value in seconds.items()}
        slowest = rate["window by window, torch"]
        print_table(["", "images/s", "times"], [[way, f"{r:.1f}", f"{r / slowest:.1f}"] for way, r in rate.items()])
        both = [
            encoder.encode([a for one in prepare_images(encoder, few, LIMIT) for a in one.arrays])
            for encoder in (onnx, torch)
        ]
        print(f"cosine of the runtimes: lowest {np.sum(both[0] * both[1], axis=1).min():.6f}")


if __name__ == "__main__":
    main()
