"""Farthest-first selection against its peers: `python -m tests.bench.bench_kcenter`.

One thread, warm, repetitions interleaved, medians; peers that take long run once. The floor is a single float32 matrix
product of all rows with as many centres: what any method pays that computes every distance. Real embeddings are
MobileNetV2's of random crops of real images, kept in the temporary folder after the first run.
"""

from __future__ import annotations

import os

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON")})

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.greedy.kcenter import kcenter
from curate.greedy.sharded import Shard, kcenter_sharded, kcenter_two_round
from tests.bench._measure import interleaved, once, peak_bytes, print_table

DIMENSIONS, BUDGET, CLUSTERS, CROPS, MILLION = 384, 500, 200, 10_000, 1_000_000
QUICK = 12_000  # rows up to which peers take part in every repetition
OURS, FLOOR = "curate kcenter", "one matrix product (the floor)"
GOALS = {"scikit-learn, a pass a pick": 50.0, "lightly-mundig": 10.0, "skmatter VoronoiFPS": 4.0, FLOOR: 0.5}
Floats = NDArray[np.float32]
Peer = Callable[[Floats, int], Any]


# --- data ---------------------------------------------------------------------------------------------------------


def clustered(rows: int) -> Floats:
    """Clusters of very different size and width, drawn in place so that nothing but the table takes memory."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLUSTERS, DIMENSIONS), np.float32)
    spread = random.uniform(0.1, 0.5, CLUSTERS).astype(np.float32)
    x = np.empty((rows, DIMENSIONS), np.float32)
    for begin in range(0, rows, 10_000):
        block = x[begin : begin + 10_000]
        which = random.zipf(1.5, len(block)) % CLUSTERS
        random.standard_normal(dtype=np.float32, out=block)
        block *= spread[which][:, None]
        block += centres[which]
    return x


def structureless(rows: int) -> Floats:
    return np.random.default_rng(1).standard_normal((rows, DIMENSIONS), np.float32)


def real() -> Floats | None:
    """MobileNetV2's vectors of random crops of real surfaces, or none where data or torch are absent."""
    kept = Path(tempfile.gettempdir()) / f"curate_bench_embeddings_{CROPS}.npy"
    if kept.is_file():
        return np.asarray(np.load(kept), np.float32)
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("CURATE_REAL_DATA") or default)
    weights = folder / "weights" / "mobilenet_v2_imagenet_bnfolded.pth"
    images = sorted(path for name in ("neu_det", "magnetic_tile") for path in (folder / name).rglob("*.jpg"))
    if not weights.is_file() or not images:
        return None
    vectors = np.concatenate(list(_embedded(images, weights)))
    np.save(kept, vectors)
    return vectors


def _embedded(images: list[Path], weights: Path) -> Iterator[Floats]:
    import torch
    from torchvision.models import mobilenet_v2  # type: ignore[import-untyped]

    model = mobilenet_v2()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    random = np.random.default_rng(2)
    with torch.inference_mode():
        for _ in range(0, CROPS, 100):
            crops = np.stack([_crop(images[random.integers(len(images))], random) for _ in range(100)])
            batch = torch.from_numpy(crops / np.float32(127.5) - np.float32(1))
            yield model.features(batch[:, None].expand(-1, 3, -1, -1)).mean((2, 3)).numpy()


def _crop(image: Path, random: np.random.Generator) -> NDArray[np.uint8]:
    import cv2

    pixels = np.asarray(cv2.imread(str(image), cv2.IMREAD_GRAYSCALE))
    side = int(random.integers(64, min(pixels.shape) + 1)) if min(pixels.shape) > 64 else min(pixels.shape)
    top, left = (int(random.integers(size - side + 1)) for size in pixels.shape)
    return np.asarray(cv2.resize(pixels[top : top + side, left : left + side], (96, 96)), np.uint8)


# --- peers --------------------------------------------------------------------------------------------------------


def scikit_learn() -> Peer:
    from sklearn.metrics import pairwise_distances  # type: ignore[import-untyped]

    def pick(x: Floats, first: int) -> NDArray[np.int64]:
        picks, best = [first], pairwise_distances(x, x[first : first + 1]).ravel()
        for _ in range(BUDGET - 1):
            row = int(best.argmax())
            picks.append(row)
            best = np.minimum(best, pairwise_distances(x, x[row : row + 1]).ravel())
        return np.array(picks)

    return pick


def mundig() -> Peer:
    from lightly_mundig import Selection  # type: ignore[import-untyped]

    def pick(x: Floats, first: int) -> NDArray[np.int64]:
        selection = Selection()
        selection.add_diversifying_strategy(x, 1.0)
        return np.array(selection.run_selection([first], len(x), BUDGET))

    return pick


def voronoi() -> Peer:
    from skmatter.sample_selection import VoronoiFPS  # type: ignore[import-untyped]

    return lambda x, first: np.asarray(VoronoiFPS(initialize=first, n_to_select=BUDGET).fit(x).selected_idx_)


def scikit_activeml() -> Peer:
    from skactiveml.pool._core_set import k_greedy_center  # type: ignore[import-untyped]

    def pick(x: Floats, first: int) -> NDArray[np.int64]:
        labels = np.full(len(x), np.nan)
        labels[first] = 0
        found = k_greedy_center(x, labels, batch_size=BUDGET - 1, random_state=np.random.RandomState(0))
        return np.concatenate([[first], found[0]])

    return pick


PEERS: dict[str, Callable[[], Peer]] = {
    "scikit-learn, a pass a pick": scikit_learn,
    "lightly-mundig": mundig,
    "skmatter VoronoiFPS": voronoi,
    "scikit-activeml CoreSet": scikit_activeml,
}


def present() -> dict[str, Peer]:
    found = {}
    for name, load in PEERS.items():
        try:
            found[name] = load()
        except ImportError as missing:
            print(f"without {name}: {missing}")
    return found


# --- tables -------------------------------------------------------------------------------------------------------


def compare(title: str, x: Floats, peers: dict[str, Peer], repetitions: int) -> bool:
    """Prints one table; tells whether its goals are met."""
    found = kcenter(x, BUDGET)
    centres = x[found.picks]
    methods = {OURS: lambda: kcenter(x, BUDGET), FLOOR: lambda: x @ centres.T}
    others = {name: _from_first(pick, x, int(found.picks[0])) for name, pick in peers.items()}
    if len(x) <= QUICK:
        methods.update(others)
    seconds = interleaved(methods, repetitions)
    agrees = {}
    for name, method in others.items():
        spent, picks = once(method)
        seconds.setdefault(name, spent)
        agrees[name] = f"{np.mean(picks == found.picks):.0%}"
    share = found.computed / (len(x) * BUDGET)
    print(f"\n{title}, {len(x):,} x {x.shape[1]}, {BUDGET} picks: {share:.1%} of the distances computed")
    return _show(seconds, agrees)


def _from_first(pick: Peer, x: Floats, first: int) -> Callable[[], Any]:
    return lambda: pick(x, first)


def _show(seconds: dict[str, float], agrees: dict[str, str]) -> bool:
    ours, met, rows = seconds[OURS], True, []
    for name, spent in seconds.items():
        ratio, goal = spent / ours, GOALS.get(name)
        met &= goal is None or ratio >= goal
        verdict = "" if goal is None else f"{goal:.1f}x {'met' if ratio >= goal else 'NOT MET'}"
        rows.append([name, f"{spent:.3f}", f"{ratio:.1f}x", agrees.get(name, ""), verdict])
    print_table(["", "seconds", "ours is", "same picks", "goal"], rows)
    return met


def cold() -> None:
    """A process of its own that selects once, compiled code at hand."""
    code = "import time, numpy as np; x = np.ones((1000, 384), np.float32); begin = time.perf_counter()\n"
    code += "from curate.greedy.kcenter import kcenter; loaded = time.perf_counter(); kcenter(x, 5)\n"
    code += "print(loaded - begin, time.perf_counter() - loaded)"
    load, first = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    print(f"\ncold start: import {float(load):.2f} s, first call {float(first):.2f} s")


def parts(x: Floats) -> None:
    """The same picks from five parts, and the two-round mode."""
    which = np.random.default_rng(3).integers(5, size=len(x))
    shards = [Shard(np.flatnonzero(which == part), x[which == part]) for part in range(5)]
    alone, found = once(lambda: kcenter(x, BUDGET))
    print(f"\nfive parts of {len(x):,} clustered rows in all, in turn on this thread")
    rows = [["one table", f"{alone:.2f}", "", "100%"]]
    for batch in (32, 64, 128, 256):
        spent, picked = once(lambda: kcenter_sharded(shards, BUDGET, batch=batch))  # noqa: B023
        rows.append(
            [f"exact, batch {batch}", f"{spent:.2f}", str(picked.rounds), f"{np.mean(picked.ids == found.picks):.0%}"]
        )
    spent, picked = once(lambda: kcenter_two_round(shards, BUDGET))
    rows.append(["two rounds", f"{spent:.2f}", str(picked.rounds), f"{np.isin(picked.ids, found.picks).mean():.0%}"])
    print_table(["", "seconds", "rounds", "same picks"], rows)
    left, mine = (kcenter(x, 1, covered=rows).radius[0] for rows in (picked.ids, found.picks))
    print(f"radius of two rounds: {left / mine:.3f} of the exact one")


def million() -> None:
    """In a process of its own, so that nothing else counts as its memory."""
    command = [sys.executable, "-m", "tests.bench.bench_kcenter", "--alone"]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")


def million_alone() -> None:
    x = clustered(MILLION)
    before = peak_bytes()
    begin = time.perf_counter()
    found = kcenter(x, BUDGET)
    spent, peak = time.perf_counter() - begin, peak_bytes()
    share = found.computed / (MILLION * BUDGET)
    print(f"\n{MILLION:,} clustered rows: {spent:.2f} s (code loading included), {share:.1%} of the distances computed")
    print(
        f"peak memory {peak / x.nbytes:.3f} x the input of {x.nbytes / 1e9:.2f} GB (goal < 1.2), "
        f"of which {before / x.nbytes:.3f} x were there before"
    )


def main() -> int:
    """Prints the tables; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10000,50000,200000", help="numbers of rows, with commas")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peers-up-to", type=int, default=50_000, help="rows up to which peers take part")
    parser.add_argument("--million", action="store_true", help="one run with a million rows, in its own process")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        million_alone()
        return 0
    peers = present()
    met = True
    for rows in map(int, options.sizes.split(",")):
        invited = peers if rows <= options.peers_up_to else {}
        met &= compare("clustered", clustered(rows), invited, options.repetitions)
        met &= compare("structureless Gaussian", structureless(rows), invited, options.repetitions)
    vectors = real()
    if vectors is None:
        print("\nreal embeddings: skipped, the data are absent")
    else:
        met &= compare("real embeddings", vectors, peers, options.repetitions)
    parts(clustered(50_000))
    cold()
    if options.million:
        million()
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
