"""One file per architecture: `build(config, channels, outputs, *, …options) -> module`; the file's name is its name.
It is a classifier, unless it sets `TASK = "segmentation"`.

A module returns logits. Its `encoder` returns feature maps, of which the last one embeds the image. All names of
segmentation_models_pytorch (Unet, FPN, ...) are architectures, too: see `_smp`.
"""

from __future__ import annotations

from typing import Any

from curate.catalogue import Catalogue
from curate.errors import CurateError, unknown
from train.recipe import Model

CATALOGUE = Catalogue(__name__, "architecture", "build")


def build(task: str, config: Model, channels: int, outputs: int) -> Any:
    """Build a network with random weights.

    Args:
        task: segmentation or classification.
        config: the recipe's model.
        channels: of the input image, 1 or 3.
        outputs: the number of logits per image or pixel.

    Returns:
        A torch module, from normalised images (N, channels, H, W) to logits.
    """
    from train.architectures import _smp

    name = config.architecture.replace("-", "_")
    if name in CATALOGUE.names():
        task_of_file = getattr(CATALOGUE.load(name), "TASK", "classification")
        if task != task_of_file:
            kind = "a classifier" if task_of_file == "classification" else "a segmenter"
            raise CurateError(f"architecture '{name}' is {kind}; use it with task {task_of_file}")
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
        raise CurateError(f"architecture '{name}' is a segmenter; use 'encoder_head' with task classification")
    return _smp.segmenter(config, channels, outputs)
