"""One file an architecture: `build(config, channels, outputs, *, …options) -> module`; the file's name is its name.
It tells classes, unless it says `TASK = "segmentation"`.

A module gives logits, and its `encoder` feature maps, of which the last one is what an image is known by. All names of
segmentation_models_pytorch (Unet, FPN, ...) are architectures, too: see `_smp`.
"""

from __future__ import annotations

from typing import Any

from curate.catalogue import Catalogue
from curate.errors import CurateError, unknown
from train.recipe import Model

CATALOGUE = Catalogue(__name__, "architecture", "build")


def build(task: str, config: Model, channels: int, outputs: int) -> Any:
    """The network with random weights."""
    from train.architectures import _smp

    name = config.architecture.replace("-", "_")
    if name in CATALOGUE.names():
        own = getattr(CATALOGUE.load(name), "TASK", "classification")
        if task != own:
            does = "tells classes, no pixels" if own == "classification" else "finds pixels"
            raise CurateError(f"architecture '{name}' {does}; use it with task {own}")
        CATALOGUE.check(name, config.options)
        try:
            return CATALOGUE.call(name)(config, channels, outputs, **config.options)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).partition("\n")[0][:160]
            raise CurateError(
                f"architecture '{name}' with options {config.options} cannot be built: {reason}"
            ) from None
    if config.architecture.lower() not in _smp.names():
        raise unknown("architecture", config.architecture, [*_smp.names(), *CATALOGUE.names()])
    if task != "segmentation":
        raise CurateError(f"architecture '{name}' finds pixels; use 'encoder_head' with task classification")
    return _smp.segmenter(config, channels, outputs)
