"""Two joined maps of a network's mid levels, for torch and for ONNX Runtime."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import pretrained
from curate.devices import weights_of
from curate.errors import CurateError, unknown

OPSET = 18
Maps = Callable[[NDArray[np.uint8]], Any]


@cache
def joined_maps() -> Any:
    """Return the class of the network, which is made only where torch is needed."""
    import torch
    from torch import nn
    from torch.nn import functional

    class JoinedMaps(nn.Module):  # type: ignore[misc]
        """From bytes (N, H, W, 1 or 3) to two maps, each averaged over 3x3 places, joined at the finer one's stride."""

        def __init__(self, features: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
            super().__init__()
            self.features = features
            self.channels = tuple(features.feature_info.channels())
            self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255)
            self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255)

        def forward(self, image: Any) -> Any:
            colour = image.permute(0, 3, 1, 2).to(self.mean.dtype).expand(-1, 3, -1, -1)
            levels = self.features((colour - self.mean) / self.std)
            fine, coarse = (functional.avg_pool2d(level, 3, 1, 1, count_include_pad=False) for level in levels)
            coarse = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
            return torch.cat((fine, coarse), 1).permute(0, 2, 3, 1)

    return JoinedMaps


def build(model: str, weights: str, fine: int, coarse: int) -> Any:
    """Return the network with its weights.

    Args:
        model: the name of a convolutional model of timm.
        weights: `package`, or a file of timm's weights.
        fine: the stride of the finer map.
        coarse: the stride of the coarser map.
    """
    import timm

    if not timm.is_model(model):
        near = timm.list_models(f"*{model.partition('_')[0]}*")[:20] or timm.list_modules()
        raise unknown("timm model", model, near)
    tensors = pretrained.state_dict_of(model) if weights == pretrained.PACKAGE else weights_of(weights)
    try:
        strides = timm.create_model(model, pretrained=False, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:100]
        raise CurateError(f"timm's {model} gives no maps ({reason}). Take a convolutional one") from None
    if not (fine < coarse and {fine, coarse} <= set(strides)):
        allowed = ", ".join(map(str, strides))
        raise CurateError(
            f"fine={fine}, coarse={coarse}: not two strides of {model}, the finer first; allowed: {allowed}"
        )
    levels = (strides.index(fine), strides.index(coarse))
    features = timm.create_model(model, pretrained=False, features_only=True, out_indices=levels)
    expected = features.state_dict()
    odd = [key for key, value in expected.items() if key not in tensors or tensors[key].shape != value.shape]
    if odd:
        raise CurateError(f"{weights} does not fit timm's {model}: it lacks, or has in another shape, {odd[0]}")
    features.load_state_dict({key: tensors[key] for key in expected})
    config = timm.get_pretrained_cfg(model)
    mean, std = (config.mean, config.std) if config else pretrained.SCALE
    return joined_maps()(features, mean, std).eval()


def torch_function(module: Any, device: str) -> Maps:
    """Return the network on this device, in channels-last memory format; on a GPU in half precision."""
    import torch

    module = module.to(device, memory_format=torch.channels_last)
    on_gpu = device != "cpu"

    def maps(images: NDArray[np.uint8]) -> Any:
        batch = torch.from_numpy(images)
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=on_gpu):
            batch = batch.pin_memory().to(device, non_blocking=True) if on_gpu else batch
            return module(batch)

    return maps


def exported(module: Any) -> bytes:
    """Return the network as an ONNX file. torch's newer exporter takes half an hour over sizes that are not fixed."""
    import torch

    file = io.BytesIO()
    axes = {"image": {0: "n", 1: "height", 2: "width", 3: "colours"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        example = torch.zeros(1, 64, 96, 3, dtype=torch.uint8)
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["maps"], "dynamic_axes": axes}
        torch.onnx.export(module, (example,), file, dynamo=False, opset_version=OPSET, **names)
    return file.getvalue()


def onnx_function(file: bytes) -> Maps:
    """Return a session of ONNX Runtime on one thread: a process for each core is faster than threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]
