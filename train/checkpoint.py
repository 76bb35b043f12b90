"""Tensors as safetensors with one JSON beside them, in one file: nothing in it is ever run, and it is written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.files import written_aside

Tensors = dict[str, Any]


def save(file: Path, tensors: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
    from safetensors.torch import save as to_bytes

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = to_bytes(plain, {"state": json.dumps(state or {})})
    with written_aside(file) as aside:
        aside.write_bytes(content)


def load(file: Path) -> tuple[Tensors, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            state = json.loads((opened.metadata() or {}).get("state", "{}"))
            if not isinstance(state, dict):
                raise ValueError("its state is no JSON object")
            return {name: opened.get_tensor(name) for name in opened.keys()}, state  # noqa: SIM118 - no mapping
    except (SafetensorError, ValueError, RecursionError) as error:
        raise damaged(file, error) from None


def damaged(file: Path, reason: object) -> CurateError:
    words = " ".join(str(reason).split())[:200]
    return CurateError(f"{file} is damaged ({words}); remove its folder and train again")


def fill(module: Any, file: Path) -> None:
    """Give a network the weights of a file. Raises CurateError where these are not its own."""
    tensors, _ = load(file)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise damaged(file, f"its weights do not fit the network: {error}") from None


def packed(prefix: str, tensors: Mapping[str, Any]) -> Tensors:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def unpacked(prefix: str, tensors: Mapping[str, Any]) -> Tensors:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def optimiser_state(optimiser: Any) -> tuple[Tensors, list[dict[str, Any]]]:
    """An optimiser's state as named tensors, and its groups as plain values."""
    found = optimiser.state_dict()
    tensors = {f"{row}.{name}": value for row, state in found["state"].items() for name, value in state.items()}
    return tensors, found["param_groups"]


def restore_optimiser(optimiser: Any, tensors: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        row, _, name = key.partition(".")
        state.setdefault(int(row), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})
