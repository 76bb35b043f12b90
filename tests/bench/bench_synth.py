"""The generators against their bare networks: `python -m tests.bench.bench_synth [--device cpu]`.

Painting: whole windows from `generate` (loading the weights included) against so many forwards of the same network,
on the same batch. Learning: the median step of `fit` (draw, noise, loss, clip, optimiser, running mean; without the
looks at held-out groups, which come twelve times a run and are given beside) against a bare forward, backward and
optimiser step. By turns; on a CPU one thread and its own seconds, so that other programs hardly count. Medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from synth.synthesisers import diffusion, gan
from tests.bench._measure import Method, print_table
from tests.synth.windows import CLASSES, examples, scene

STEPS = 15  # of the sampler


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def spent(method: Method, device: str) -> float:
    begun = clock(device)
    method()
    return clock(device) - begun


def inputs(config: dict[str, Any], count: int, side: int, device: str) -> tuple[Any, Any, Any]:
    import torch

    pixels = torch.randn(count, 2 * config["channels"] + 1, side, side, device=device)
    times = torch.randint(0, diffusion.TIMES, (count,), device=device)
    return pixels.to(memory_format=torch.channels_last), times, torch.zeros_like(times)


def painting(folder: Path, config: dict[str, Any], side: int, count: int, device: str, repetitions: int) -> list[str]:
    """Both halves of guidance are one forward of two rows a window."""
    import torch

    from synth.synthesisers import _parts

    net = diffusion._network(config).to(device, memory_format=torch.channels_last).eval()
    together = 1 if device == "cpu" else count
    pixels, times, classes = inputs(config, 2 * together, side, device)
    scenes = [scene("hole", number, side=side) for number in range(count)]

    def bare() -> None:
        with torch.inference_mode(), _parts.half(device):
            for _ in range(STEPS * count // together):
                net(pixels, times, class_labels=classes)

    ours, theirs = [], []
    for _ in range(repetitions + 1):
        ours.append(spent(lambda: diffusion.generate(scenes, folder, device=device, steps=STEPS), device))
        theirs.append(spent(bare, device))
    a, b = (statistics.median(one[1:]) for one in (ours, theirs))
    return [f"diffusion {config['size']}: windows/s", f"{count / a:.2f}", f"{count / b:.2f}", f"{a / b:.3f}"]


def learning(
    folder: Path, config: dict[str, Any], side: int, steps: int, device: str, batch: int
) -> tuple[list[str], float]:
    """The step of `fit` and the bare one by turns, within one run; and the seconds of a look with its checkpoint."""
    import torch

    net = diffusion._network(config).to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    pixels, times, classes = inputs(config, batch, side, device)

    def bare() -> None:
        from synth.synthesisers import _parts

        with _parts.half(device):
            loss = net(pixels, times, class_labels=classes).sample.float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    ours: list[float] = []
    theirs: list[float] = []
    since = 0.0

    def turn(stage: str, done: int, total: int) -> None:
        nonlocal since
        ours.append(clock(device) - since)
        theirs.append(spent(bare, device))
        since = clock(device)

    some = examples(each=20, side=side)
    since = clock(device)
    diffusion.fit(
        some, CLASSES, folder, progress=turn, device=device, seed=0, size=config["size"], steps=steps, batch=batch
    )
    # A step that follows a look holds the look's time: there are fewer than half of these.
    a, b = statistics.median(ours[2:]), statistics.median(theirs[2:])
    look = statistics.median(sorted(ours[2:])[-10:]) - a
    return [f"diffusion {config['size']}: steps/s of {batch}", f"{1 / a:.2f}", f"{1 / b:.2f}", f"{a / b:.3f}"], look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    size = "cpu" if given.device == "cpu" else "gpu"
    side, count = (64, 4) if size == "cpu" else (128, 64)
    config = {"size": size, "channels": 1, "classes": list(CLASSES)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row, look = learning(folder / "d", config, side, given.steps, given.device, diffusion.SIZES[size].batch)
        rows = [row, painting(folder / "d", config, side, count, given.device, given.repetitions)]
        gan.fit(examples(), CLASSES, folder / "g", progress=lambda *_: None, device=given.device, seed=0, steps=4)
        scenes = [scene("hole", number, side=side) for number in range(16)]
        paint: Callable[[], Any] = lambda: gan.generate(scenes, folder / "g", device=given.device)  # noqa: E731
        seconds = np.median([spent(paint, given.device) for _ in range(given.repetitions + 1)][1:])
        print_table(["", "ours", "bare", "time over bare"], [*rows, ["gan: windows/s", f"{16 / seconds:.0f}", "", ""]])
        print(f"a look at held-out groups with its checkpoint: {look:.2f} s, twelve times a run")


if __name__ == "__main__":
    main()
