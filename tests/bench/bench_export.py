"""Speed of exported models without torch: `python -m tests.bench.bench_export`.

The default networks (random weights: their time does not depend on them) as torch, ONNX Runtime and INT8 run them, on
one thread, in turn. `int8` is S8S8, as ARM likes it; `uint8` activations are what x86 multiplies fast.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.bench._measure import interleaved, print_table
from train import architectures, recipe
from train.export import onnx_int8

CASES = {"unet-resnet": (256, 1600, 3), "mobilenetv2-fast": (224, 224, 3)}
OUTPUTS = 4


def seconds(name: str, folder: Path, repetitions: int) -> dict[str, float]:
    """Median seconds an image, by engine."""
    import torch

    torch.manual_seed(0)
    shape, wanted = CASES[name], recipe.load(name, ["model.weights=none"])
    network = architectures.build(wanted.task, wanted.model, shape[2], OUTPUTS).eval()
    module = onnx_int8.end_to_end(network.to(memory_format=torch.channels_last), wanted, single=False)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (1, *shape), np.uint8) for _ in range(3)]
    source = folder / "model.onnx"
    onnx_int8.write(module, source, shape, name, wanted.task == "segmentation")
    runs = {"torch": onnx_int8.torch_runner(module), "onnx": onnx_int8.onnx_runner(source, 1)}
    for activations in onnx_int8.ACTIVATIONS:
        target = folder / f"{activations}.onnx"
        onnx_int8.quantise(source, target, images, activations)
        runs[activations] = onnx_int8.onnx_runner(target, 1)
    return interleaved({name: lambda run=run: run(images[0]) for name, run in runs.items()}, repetitions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    wanted = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    onnx_int8.check_installed()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (high, wide, _) in CASES.items():
            spent = seconds(name, Path(folder), wanted.repetitions)
            cells = (f"{1000 * one:.1f} ms ({spent['torch'] / one:.1f}x)" for one in spent.values())
            rows.append([f"{name}, {wide}x{high}", *cells])
    print_table(["an image, one thread", "torch", "ONNX Runtime", "INT8, S8S8", "INT8, U8S8"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
