"""Weights that a network starts from: the hub's, a package's, a local file's, or none; and the norms that stay frozen.

In files with batch norm folded into the convolutions the norms have identity statistics. Training would replace them by
batch statistics and spoil every feature, so such norms stay in eval mode (`frozen`) as long as the model lives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate import pretrained
from curate.devices import weights_of
from curate.errors import CurateError
from curate.hashing import sha256_of
from curate.pretrained import PACKAGE
from train.recipe import Model

REMEDY = "Train with --weights none, or with a local file: --weights FILE"
SHOWN = 5  # keys that an error lists


@dataclass(frozen=True)
class Start:
    """Where the starting weights came from (`mark` changes with them), and the norms that stay in eval mode."""

    mark: str
    frozen: tuple[str, ...] = ()


def mark_of(config: Model) -> str:
    """Return a text that changes with the weights, without loading them."""
    if config.weights in ("none", "hub"):
        return config.weights
    if config.weights == PACKAGE:
        return pretrained.package_of(_packaged_model(config)).sha256
    file = Path(config.weights).expanduser()
    if not file.is_file():
        raise CurateError(f"no weights file at {file}. {REMEDY}")
    return sha256_of(file)


def load_into(module: Any, config: Model, channels: int) -> Start:
    """Load the starting weights into the module, or into its encoder alone."""
    mark = mark_of(config)
    if config.weights == "none":
        return Start(mark)
    if config.weights == "hub":
        _load_from_hub(module, config, channels)
        return Start(mark)
    if config.weights == PACKAGE:
        _load_from_package(module, config)
        return Start(mark)
    return Start(mark, _load_from_file(module, config.weights))


def _load_from_hub(module: Any, config: Model, channels: int) -> None:
    import logging

    if not config.encoder:
        raise CurateError(f"architecture '{config.architecture}' has no weights on a hub. {REMEDY}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its log of five retries would hide our one line
    try:
        pretrained = _hub_encoder(config, channels)
    except KeyError as error:
        raise CurateError(f"the hub has no such weights: {error.args[0]}. {REMEDY}") from None
    except (OSError, RuntimeError, ValueError) as error:  # whatever the client met on the network
        reason = str(error).strip().partition("\n")[0][:100]
        raise CurateError(f"the weights of {config.encoder} cannot be downloaded ({reason}). {REMEDY}") from None
    module.encoder.load_state_dict(pretrained.state_dict())


def _hub_encoder(config: Model, channels: int) -> Any:
    from segmentation_models_pytorch.encoders import get_encoder

    from train.architectures import timm_head

    if config.architecture.replace("-", "_") == "timm_head":
        return timm_head.encoder(config, channels, pretrained=True)
    weights: Any = True if config.encoder.startswith("tu-") else "imagenet"
    return get_encoder(config.encoder, in_channels=channels, weights=weights)


def _packaged_model(config: Model) -> str:
    """Return timm's name of the recipe's encoder, whose weights a package holds.

    smp's own `timm-tf_efficientnet_lite0` pads differently: the same tensors give other features there.
    """
    prefix = "" if config.architecture.replace("-", "_") == "timm_head" else "tu-"
    allowed = [prefix + name for name in pretrained.PACKAGES]
    if config.encoder not in allowed:
        raise CurateError(
            f"weights 'package' do not fit encoder '{config.encoder}' of architecture '{config.architecture}'; "
            f"allowed: {', '.join(allowed)}. Add: --set model.encoder={allowed[0]} --set input.scale=tf"
        )
    return config.encoder.removeprefix("tu-")


def _load_from_package(module: Any, config: Model) -> None:
    """Load the encoder's weights; for grey images the first layer adds up what it gives to three equal channels."""
    tensors = pretrained.state_dict_of(_packaged_model(config))
    expected = module.encoder.state_dict()
    inner = {key: tensors[key.removeprefix("model.")] for key in expected if key.removeprefix("model.") in tensors}
    for key, value in inner.items():
        if value.ndim == 4 and value.shape[1] == 3 and expected[key].shape[1] == 1:
            inner[key] = value.sum(1, keepdim=True)
    _check_shapes(f"the package's {_packaged_model(config)}", inner, expected)
    module.encoder.load_state_dict(inner)


def _load_from_file(module: Any, name: str) -> tuple[str, ...]:
    """Load a file of a whole model, or of an encoder, whose head is dropped; return the frozen norms."""
    tensors = weights_of(name)
    model_tensors = module.state_dict()
    if _same_shapes(tensors, model_tensors):
        module.load_state_dict(tensors)
        return tuple(_identity_norms(tensors, ""))
    inner = {key.removeprefix("encoder."): value for key, value in tensors.items() if not _is_head(key)}
    encoder_tensors = module.encoder.state_dict()
    _check_shapes(name, inner, encoder_tensors)
    module.encoder.load_state_dict({key: inner[key] for key in encoder_tensors})
    return tuple(_identity_norms(inner, "encoder."))


def _is_head(key: str) -> bool:
    return key.startswith(("classifier.", "fc.", "head.", "decoder.", "segmentation_head."))


def _same_shapes(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return tensors.keys() == expected.keys() and all(tensors[key].shape == expected[key].shape for key in expected)


def _check_shapes(name: str, tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    problems = [f"lacks {key}" for key in expected if key not in tensors]
    problems += [f"has no {key}" for key in tensors if key not in expected]
    shapes = ((key, tuple(tensors[key].shape), tuple(expected[key].shape)) for key in expected if key in tensors)
    problems += [
        f"{key} is {given_shape}, not {expected_shape}"
        for key, given_shape, expected_shape in shapes
        if given_shape != expected_shape
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CurateError(f"{name} does not fit the model: it {'; '.join(problems[:SHOWN])}{more}. {REMEDY}")


def _identity_norms(tensors: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield the norms whose running statistics are the identity."""
    for key, mean in tensors.items():
        if key.endswith(".running_mean") or key == "running_mean":
            name = key.removesuffix("running_mean")
            spread = tensors[f"{name}running_var"]
            if bool((mean == 0).all()) and bool(((spread - 1).abs() < 1e-3).all()):
                yield (prefix + name).removesuffix(".")
