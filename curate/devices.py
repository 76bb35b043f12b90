"""The device that networks compute on, and weights files read safely: shared by encoders and training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate import workers
from curate.errors import CurateError

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # CUDA, CUDA under Windows, ROCm


def device_of(wanted: str) -> str:
    """Return the device to compute on: `cuda` or `cpu`. On a CPU, limit torch's threads to this process's
    cores, and let its memory be used again."""
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise CurateError("device 'cuda' is not available here; allowed: auto, cpu")
    if wanted != "cpu" and has_gpu:
        return "cuda"
    torch.set_num_threads(min(torch.get_num_threads(), workers.cores()))
    workers.reuse_freed_memory()
    return "cpu"


def may_have_gpu() -> bool:
    """Return False where the system has no driver of a GPU, so that torch, which takes seconds, need not be asked."""
    return sys.platform != "linux" or any(Path(file).exists() for file in DRIVERS)


def weights_file(path: str) -> Path:
    """Return the file that a path of a user names. Raises CurateError where there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise CurateError(f"no weights file at {file}. Give a local one: --set weights=PATH")
    return file


def weights_of(path: str) -> dict[str, Any]:
    """Read the tensors of a weights file without running code from it (no unrestricted pickle)."""
    import pickle

    import torch

    file = weights_file(path)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(str(file)))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise CurateError(f"{file} is not a file of plain weights: {reason}") from None
    return _state_dict(content, file)


def _state_dict(content: Any, file: Path) -> dict[str, Any]:
    """Return the state dict inside a checkpoint that may hold more."""
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise CurateError(f"{file} holds no state dict")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
