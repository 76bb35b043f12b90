"""A network as an ONNX file with its pre- and postprocessing inside, and that file quantised to INT8.

The input `image` is bytes (N, H, W, channels) as read from the file, the output is `probability`: normalisation and
sigmoid are part of the graph.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
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
# Signed weights and activations (S8S8) run well on ARM. x86 multiplies unsigned by signed, so that ONNX Runtime there
# keeps about half of an S8S8 network in floats. On x86 without VNNI unsigned ones may overflow: the gate shows it.
ACTIVATIONS = {"int8": "QInt8", "uint8": "QUInt8"}
AUTO = "auto"
X86 = ("x86_64", "amd64", "i386", "i686", "x86")
NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-3  # largest difference between torch and ONNX Runtime; a hundredth of it is usual
Run = Callable[[Pixels], NDArray[np.float32]]
Shape = tuple[int, int, int]  # height, width, channels


def activation_type(activations: str, machine: str) -> str:
    """Return the type of activations; `auto` is the one that this kind of machine multiplies fast."""
    if activations != AUTO:
        return activations
    return "uint8" if machine.lower() in X86 else "int8"


def check_installed() -> None:
    """Raise CurateError where packages for the export are missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CurateError(
            f"export-model needs {', '.join(NEEDED)}; missing: {', '.join(missing)}. Install them: "
            "pip install 'steel-curate[export]'"
        )


def end_to_end(module: Any, recipe: Recipe, single: bool) -> Any:
    """Return the network from bytes to probabilities as one module."""
    from torch import nn

    scale, segments = recipe.input.scale, recipe.task == "segmentation"

    class Whole(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = fixed_padding(module)

        def forward(self, image: Any) -> Any:
            logits = self.network(normalised(image, scale))
            return logits.softmax(1) if single and not segments else logits.sigmoid()

    return Whole().eval()


def fixed_padding(module: Any) -> Any:
    """Return a copy of the network in which TensorFlow's `same` padding, which depends on the input's size, is the one
    of sizes that the stride divides, as all of ours are. torch.export reasons about the other for hours."""
    from timm.layers import Conv2dSame
    from torch import nn

    copied = deepcopy(module)
    for name, layer in list(copied.named_modules()):
        if type(layer) is not Conv2dSame:
            continue
        (high, wide) = (
            max((kernel - 1) * dilation + 1 - stride, 0)
            for kernel, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        )
        padding = nn.ZeroPad2d((wide // 2, wide - wide // 2, high // 2, high - high // 2))
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
        )
        plain.load_state_dict(layer.state_dict())
        copied.set_submodule(name, nn.Sequential(padding, plain))
    return copied.eval()


def torch_runner(module: Any) -> Run:
    """Return a function that runs the module in torch."""
    import torch

    def run(batch: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(np.ascontiguousarray(batch))).numpy(), np.float32)

    return run


def onnx_runner(file: Path, threads: int) -> Run:
    """Return a function that runs the file in ONNX Runtime on the CPU with this many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised; they need not be logged, too
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(batch: Pixels) -> NDArray[np.float32]:
        return np.asarray(session.run([PROBABILITY], {IMAGE: np.ascontiguousarray(batch)})[0], np.float32)

    return run


# --- as ONNX --------------------------------------------------------------------------------------------------------


def write(module: Any, file: Path, shape: Shape, name: str, any_size: bool, stride: int = STRIDE) -> bool:
    """Write the ONNX file; return true where it takes any size (multiples of `stride`), else images of `shape` alone.

    Some architectures (PSPNet) silently fix the example's size in the graph: hence the test at other sizes.
    """
    least = max(shape[0], 2 * stride), max(shape[1], 2 * stride), shape[2]
    if any_size and _exports_any_size(module, file, least, stride):
        return True
    try:
        _export(module, file, shape, None)
    except RuntimeError as error:
        raise CurateError(
            f"{name} cannot be written as ONNX: {_reason(error)}. Train another architecture or encoder for "
            "deployment (curate train --list)"
        ) from None
    return False


def _exports_any_size(module: Any, file: Path, shape: Shape, stride: int) -> bool:
    try:
        _export(module, file, shape, stride)
        expected, actual = torch_runner(module), onnx_runner(file, 1)
        return all(np.abs(expected(batch) - actual(batch)).max() <= TOLERANCE for batch in _test_batches(shape, stride))
    except Exception:  # of many types; the fixed size is tried next, and its error is reported
        return False


def _test_batches(shape: Shape, stride: int) -> Iterator[Pixels]:
    """Yield noise of other sizes and other numbers of images."""
    random = np.random.default_rng(0)
    for count, high, wide in ((1, shape[0], shape[1]), (3, 3 * stride, 5 * stride), (1, 7 * stride, 2 * stride)):
        yield random.integers(0, 256, (count, high, wide, shape[2]), np.uint8)


def _export(module: Any, file: Path, shape: Shape, stride: int | None) -> None:
    """Write the file for sides that are multiples of `stride`; without one, for `shape` alone."""
    import torch
    from torch.export import Dim

    sizes = {1: stride * Dim("h"), 2: stride * Dim("w")} if stride else {}
    with _quiet():
        torch.onnx.export(
            module,
            (torch.zeros((2, *shape), dtype=torch.uint8),),  # two images: with one, the batch size would be fixed at 1
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
    """Silence the exporter's log and warnings, which are for its developers."""
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
    """Write `source` with int8 weights (one scale per channel) and 8-bit activations, calibrated on `batches`.

    The last sigmoid or softmax stays in floats: thresholds need finer steps than 8 bits.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name(f".{target.name}")
    with _quiet():
        _read_shapes_after_norms(source, prepared)
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
            nodes_to_exclude=_output_nodes(prepared),
        )
    prepared.unlink()


def _read_shapes_after_norms(source: Path, target: Path) -> None:
    """Read a map's shape after its batch norm, not before: else the norm is not folded into the convolution."""
    import onnx

    model = onnx.load(str(source))
    after_norm = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in after_norm:
            node.input[0] = after_norm[node.input[0]]
    onnx.save(model, str(target))


def _reader(batches: Iterable[Pixels]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    remaining = iter(batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(remaining, None)
            return None if batch is None else {IMAGE: np.ascontiguousarray(batch)}

    return Reader()


def _output_nodes(file: Path) -> list[str]:
    """Return the names of the nodes that output the probabilities."""
    import onnx

    return [node.name for node in onnx.load(str(file)).graph.node if PROBABILITY in node.output]
