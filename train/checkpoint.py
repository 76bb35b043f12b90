"""Tensors and a JSON state in one safetensors file: loading it runs no code, and it is written in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.files import written_aside

Tensors = dict[str, Any]


def save(file: Path, tensors: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and a JSON object beside them, in one step."""
    from safetensors.torch import save as to_bytes

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = to_bytes(plain, {"state": json.dumps(state or {})})
    with written_aside(file) as aside:
        aside.write_bytes(content)


def load(file: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read the tensors and the JSON state. Raises CurateError where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            state = json.loads((opened.metadata() or {}).get("state", "{}"))
            if not isinstance(state, dict):
                raise ValueError("its state is not a JSON object")
            return {name: opened.get_tensor(name) for name in opened.keys()}, state  # noqa: SIM118 - no mapping
    except (SafetensorError, ValueError, RecursionError) as error:
        raise damaged_error(file, error) from None


def damaged_error(file: Path, reason: object) -> CurateError:
    """Return the error for a file that cannot be used; the reason is cut to one short line."""
    words = " ".join(str(reason).split())[:200]
    return CurateError(f"{file} is damaged ({words}); remove its folder and train again")


def load_into(module: Any, file: Path) -> None:
    """Load the weights of a file into a network. Raises CurateError where they do not fit."""
    tensors, _ = load(file)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise damaged_error(file, f"its weights do not fit the network: {error}") from None


def add_prefix(prefix: str, tensors: Mapping[str, Any]) -> Tensors:
    """Return the tensors with `prefix.` before each name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Any]) -> Tensors:
    """Return the tensors whose names begin with `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def optimiser_state(optimiser: Any) -> tuple[Tensors, list[dict[str, Any]]]:
    """Return an optimiser's state as named tensors, and its parameter groups as plain values."""
    content = optimiser.state_dict()
    tensors = {f"{row}.{name}": value for row, state in content["state"].items() for name, value in state.items()}
    return tensors, content["param_groups"]


def restore_optimiser(optimiser: Any, tensors: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    """Load what `optimiser_state` returned."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        row, _, name = key.partition(".")
        state.setdefault(int(row), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})
