"""`curate embed` against the bare forward pass: `python -m tests.bench.bench_embed [--images 192] [--weights FILE]`.

For each encoder the same images four ways, in turn: the whole pipeline (read, check, decode, cut, prepare, encode,
append) in one process and in two (their start included: take many images), the pipeline without the table, and
`encode` alone on windows that were prepared before. Pipeline over bare forward says what all else costs. Then the
network in float32 and bfloat16: time, and the vectors' cosine. Medians.
Without a weights file the network has random weights: as fast, only its vectors mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curate import embed
from curate.embed._images import EncodedImage, prepare_images
from curate.vectors import run as embedding
from curate.vectors.store import Vectors
from tests import fakes
from tests.bench._measure import interleaved, print_table

LIMIT = 10**8
REAL = fakes.REPOSITORY.parent / "shared" / "data" / "weights" / "mobilenet_v2_imagenet_bnfolded.pth"


def draw(folder: Path, images: int, width: int, height: int) -> list[tuple[str, str]]:
    files = [folder / f"{n:05d}.jpg" for n in range(images)]
    for n, file in enumerate(files):
        cv2.imwrite(str(file), fakes.steel(width, height, n), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return [(hashlib.sha256(file.read_bytes()).hexdigest(), str(file)) for file in files]


def random_weights(folder: Path) -> Path:
    import torch
    from torchvision import models

    torch.save(models.mobilenet_v2(weights=None).state_dict(), folder / "random.pth")
    return folder / "random.pth"


def pipeline(encoder: Any, todo: Any, folder: Path | None, workers: int) -> int:
    """The windows embedded; with a folder they are also appended to a new table there."""
    embedding.WORTH = -1.0  # processes as asked for, at once
    found = list(embedding.outcomes(encoder, todo, LIMIT, workers=workers))
    if folder:
        made = Vectors.create(folder / os.urandom(6).hex() / f"bench-{encoder.key}.lance", encoder.key, encoder.dim)
        made.append([one.id for one in found], [one.boxes for one in found], [one.vectors for one in found])
    return sum(map(_size, found))


def _size(one: EncodedImage) -> int:
    assert one.problem is None, one.problem
    return len(one.vectors)


def compare(encoder: Any, todo: Any, folder: Path, repetitions: int) -> list[list[str]]:
    prepared = [a for one in prepare_images(encoder, todo, LIMIT) for a in one.arrays]
    seconds = interleaved(
        {
            "pipeline, one process": lambda: pipeline(encoder, todo, folder, 0),
            "pipeline, two processes": lambda: pipeline(encoder, todo, folder, 2),
            "without the table": lambda: pipeline(encoder, todo, None, 0),
            "bare encode": lambda: encoder.encode(prepared),
        },
        repetitions,
    )
    bare = seconds["bare encode"]
    rate = {name: len(todo) / value for name, value in seconds.items()}
    return [
        [f"{encoder.name}: {name}", f"{rate[name]:.0f}", f"{len(prepared) / value:.0f}", f"{value / bare:.2f}"]
        for name, value in seconds.items()
    ]


def halves(network: Any, todo: Any, repetitions: int) -> None:
    """float32 against bfloat16 on the same prepared windows."""
    prepared = [a for one in prepare_images(network, todo[:32], LIMIT) for a in one.arrays]
    full, half = replace(network, bf16=False, module=None), replace(network, bf16=True, module=None)
    seconds = interleaved(
        {"float32": lambda: full.encode(prepared), "bfloat16": lambda: half.encode(prepared)}, repetitions
    )
    cosine = (full.encode(prepared) * half.encode(prepared)).sum(axis=1)
    print_table(
        ["network on CPU", "windows/s"], [[name, f"{len(prepared) / value:.0f}"] for name, value in seconds.items()]
    )
    print(f"cosine of the two: lowest {cosine.min():.4f}, median {np.median(cosine):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--weights", type=Path, default=REAL)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        todo = draw(folder, given.images, given.width, given.height)
        real = given.weights.is_file()
        options = {"weights": str(given.weights if real else random_weights(folder)), "scale": "tf", "device": "cpu"}
        network = embed.build("torchvision_file", options)
        print(f"{given.images} images {given.width}x{given.height}, {os.cpu_count()} cores, real weights: {real}")
        table = [
            row for one in (embed.build("texture"), network) for row in compare(one, todo, folder, given.repetitions)
        ]
        print_table(["", "images/s", "windows/s", "over bare"], table)
        halves(network, todo, given.repetitions)


if __name__ == "__main__":
    main()
