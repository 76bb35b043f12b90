"""A network as an ONNX file, with all that surrounds it inside, and that file quantised to INT8.

`image` is bytes (N, H, W, channels) as they are read; `probability` is what the model makes of them. Nothing of
normalisation or sigmoid is left to whoever runs the file.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from train.data.pixels import STRIDE, Pixels, normalised
from train.recipe import Recipe

IMAGE, PROBABILITY = "image", "probability"
OPSET = 18
# With both signed (S8S8) a file runs well on ARM; x86 multiplies unsigned with signed, so that ONNX Runtime there keeps
# about half of such a network in floats. On x86 without VNNI, in turn, unsigned ones may overflow: the gate shows it.
ACTIVATIONS = {"int8": "QInt8", "uint8": "QUInt8"}
AUTO = "auto"
X86 = ("x86_64", "amd64", "i386", "i686", "x86")
NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-3  # between torch and ONNX Runtime; what is usual is a hundredth of it
Run = Callable[[Pixels], NDArray[np.float32]]
Shape = tuple[int, int, int]  # height, width, channels


def fast(activations: str, machine: str) -> str:
    """What is asked for; `auto` is the kind that such a machine multiplies fast."""
    if activations != AUTO:
        return activations
    return "uint8" if machine.lower() in X86 else "int8"


def check_installed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CurateError(
            f"export-model needs {', '.join(NEEDED)}; missing: {', '.join(missing)}. Install them: "
            "pip install 'steel-curate[export]'"
        )


def whole(module: Any, recipe: Recipe, single: bool) -> Any:
    """The network from bytes to probabilities."""
    from torch import nn

    scale, segments = recipe.input.scale, recipe.task == "segmentation"

    class Whole(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, image: Any) -> Any:
            logits = self.network(normalised(image, scale))
            return logits.softmax(1) if single and not segments else logits.sigmoid()

    return Whole().eval()


def by_torch(module: Any) -> Run:
    import torch

    def run(batch: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(batch))).numpy(), np.float32)

    return run


def by_onnx(file: Path, threads: int) -> Run:
    """ONNX Runtime on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what goes wrong is raised; it need not be printed, too
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(batch: Pixels) -> NDArray[np.float32]:
        return np.asarray(session.run([PROBABILITY], {IMAGE: np.ascontiguousarray(batch)})[0], np.float32)

    return run


# --- as ONNX --------------------------------------------------------------------------------------------------------


def write(module: Any, file: Path, shape: Shape, name: str, any_size: bool) -> bool:
    """Write the file; true where it takes images of any size (multiples of 32), else of `shape` alone.

    Some architectures (PSPNet) freeze the example's size into the graph without a word: hence the trial at others.
    """
    if any_size and _tried(module, file, (max(shape[0], 2 * STRIDE), max(shape[1], 2 * STRIDE), shape[2])):
        return True
    try:
        _export(module, file, shape, any_size=False)
    except RuntimeError as error:
        raise CurateError(
            f"{name} cannot be written as ONNX: {_reason(error)}. Train another architecture or encoder for "
            "deployment (curate train --list)"
        ) from None
    return False


def _tried(module: Any, file: Path, shape: Shape) -> bool:
    try:
        _export(module, file, shape, any_size=True)
        mine, theirs = by_torch(module), by_onnx(file, 1)
        return all(np.abs(mine(one) - theirs(one)).max() <= TOLERANCE for one in _trials(shape))
    except Exception:  # of many kinds; the fixed size is tried next, and its error is told
        return False


def _trials(shape: Shape) -> Iterator[Pixels]:
    """Noise of other sizes and another number of images."""
    random = np.random.default_rng(0)
    for count, high, wide in ((1, shape[0], shape[1]), (3, 3 * STRIDE, 5 * STRIDE), (1, 7 * STRIDE, 2 * STRIDE)):
        yield random.integers(0, 256, (count, high, wide, shape[2]), np.uint8)


def _export(module: Any, file: Path, shape: Shape, any_size: bool) -> None:
    import torch
    from torch.export import Dim

    sizes = {1: STRIDE * Dim("h"), 2: STRIDE * Dim("w")} if any_size else {}
    with _quiet():
        torch.onnx.export(
            module,
            (torch.zeros((2, *shape), dtype=torch.uint8),),  # two images: one would be taken for the only number
            str(file),
            input_names=[IMAGE],
            output_names=[PROBABILITY],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"image": {0: Dim("n")} | sizes},
            external_data=False,
            verbose=False,
        )


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its users at length what its makers should know."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- as INT8 --------------------------------------------------------------------------------------------------------


def quantise(source: Path, target: Path, batches: Iterable[Pixels], activations: str) -> None:
    """Write `source` with int8 weights (a scale a channel) and 8-bit activations, as wide as `batches` make them.

    The last sigmoid or softmax stays as it is: thresholds want finer steps than 8 bits have.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name(f".{target.name}")
    with _quiet():
        _unhinder(source, prepared)
        quant_pre_process(str(prepared), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(target),
            _reader(batches),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=getattr(quantization.QuantType, ACTIVATIONS[activations]),
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            per_channel=True,
            nodes_to_exclude=_last(prepared),
        )
    prepared.unlink()


def _unhinder(source: Path, target: Path) -> None:
    """Ask for the size of a map behind its batch norm, not before: else the norm is not folded into the convolution."""
    import onnx

    model = onnx.load(str(source))
    behind = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in behind:
            node.input[0] = behind[node.input[0]]
    onnx.save(model, str(target))


def _reader(batches: Iterable[Pixels]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    coming = iter(batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(coming, None)
            return None if batch is None else {IMAGE: np.ascontiguousarray(batch)}

    return Reader()


def _last(file: Path) -> list[str]:
    """The name of the node that gives the probabilities."""
    import onnx

    return [node.name for node in onnx.load(str(file)).graph.node if PROBABILITY in node.output]
