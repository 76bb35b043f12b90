"""Weights that a network starts from: the hub's, a local file's, or none; and which of its norms must stay as they are.

Files with batch norm folded into the convolutions have norms whose statistics are the identity. Training would replace
these by the batches' own and spoil every feature, so such norms stay in eval mode (`frozen`), for as long as the model
lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.devices import weights_of
from curate.embed._base import sha256_of
from curate.errors import CurateError
from train.recipe import Model

REMEDY = "Train with --weights none, or with a local file: --weights FILE"
SHOWN = 5  # keys that an error lists


@dataclass(frozen=True)
class Start:
    """Where weights came from (`mark` changes with them), and the norms that must never follow a batch."""

    mark: str
    frozen: tuple[str, ...] = ()


def mark_of(config: Model) -> str:
    """Changes with the weights; known without loading them."""
    if config.weights in ("none", "hub"):
        return config.weights
    file = Path(config.weights).expanduser()
    if not file.is_file():
        raise CurateError(f"no weights file at {file}. {REMEDY}")
    return sha256_of(file)


def fill(module: Any, config: Model, channels: int) -> Start:
    """Load the weights into the module, or into its encoder."""
    mark = mark_of(config)
    if config.weights == "none":
        return Start(mark)
    if config.weights == "hub":
        _from_hub(module, config, channels)
        return Start(mark)
    return Start(mark, _from_file(module, config.weights))


def _from_hub(module: Any, config: Model, channels: int) -> None:
    import logging

    if not config.encoder:
        raise CurateError(f"architecture '{config.architecture}' has no weights on a hub. {REMEDY}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its five retries would bury our one line
    try:
        found = _hub_encoder(config, channels)
    except KeyError as error:
        raise CurateError(f"the hub has no such weights: {error.args[0]}. {REMEDY}") from None
    except (OSError, RuntimeError, ValueError) as error:  # the client wraps whatever kept it from the network
        reason = str(error).strip().partition("\n")[0][:100]
        raise CurateError(f"the weights of {config.encoder} cannot be fetched ({reason}). {REMEDY}") from None
    module.encoder.load_state_dict(found.state_dict())


def _hub_encoder(config: Model, channels: int) -> Any:
    from segmentation_models_pytorch.encoders import get_encoder

    from train.architectures import timm_head

    if config.architecture.replace("-", "_") == "timm_head":
        return timm_head.encoder(config, channels, pretrained=True)
    wanted: Any = True if config.encoder.startswith("tu-") else "imagenet"
    return get_encoder(config.encoder, in_channels=channels, weights=wanted)


def _from_file(module: Any, name: str) -> tuple[str, ...]:
    """A whole model, or an encoder with or without a head that we do not want."""
    found = weights_of(name)
    whole = module.state_dict()
    if _same_shapes(found, whole):
        module.load_state_dict(found)
        return tuple(_identity_norms(found, ""))
    inner = {key.removeprefix("encoder."): value for key, value in found.items() if not _is_head(key)}
    own = module.encoder.state_dict()
    _refuse_misfits(name, inner, own)
    module.encoder.load_state_dict({key: inner[key] for key in own})
    return tuple(_identity_norms(inner, "encoder."))


def _is_head(key: str) -> bool:
    return key.startswith(("classifier.", "fc.", "head.", "decoder.", "segmentation_head."))


def _same_shapes(found: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    return found.keys() == own.keys() and all(found[key].shape == own[key].shape for key in own)


def _refuse_misfits(name: str, found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    problems = [f"lacks {key}" for key in own if key not in found]
    problems += [f"knows no {key}" for key in found if key not in own]
    shapes = ((key, tuple(found[key].shape), tuple(own[key].shape)) for key in own if key in found)
    problems += [f"{key} is {theirs}, not {ours}" for key, theirs, ours in shapes if theirs != ours]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CurateError(f"{name} does not fit the model: it {'; '.join(problems[:SHOWN])}{more}. {REMEDY}")


def _identity_norms(found: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Norms whose running statistics do nothing."""
    for key, mean in found.items():
        if key.endswith(".running_mean") or key == "running_mean":
            name = key.removesuffix("running_mean")
            spread = found[f"{name}running_var"]
            if bool((mean == 0).all()) and bool(((spread - 1).abs() < 1e-3).all()):
                yield (prefix + name).removesuffix(".")
