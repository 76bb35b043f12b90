"""One file an encoder: its name is the file's name, its help the docstring, its options the keyword-only parameters.

An encoder turns windows of images into vectors: see `curate.embed._base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curate.catalogue import Catalogue

if TYPE_CHECKING:
    from curate.embed._base import Encoder

DEFAULT = "dense"  # docs/encoders.md tells why
CATALOGUE = Catalogue(__name__, "encoder", "build")
names, options, summary = CATALOGUE.names, CATALOGUE.options, CATALOGUE.summary


def plain(name: str) -> str:
    """The encoder's file name: `torchvision-file` is accepted for `torchvision_file`."""
    return name.replace("-", "_")


def build(name: str, given: Mapping[str, Any] | None = None, **handed: Any) -> Encoder:
    """Build an encoder.

    Args:
        name: the encoder's name; `-` may stand for `_`.
        given: its options.
        handed: further arguments that are no options and only the caller can give (see `model`).

    Returns:
        The encoder.

    Raises:
        CurateError: an unknown name or option, or a value that is not allowed.
    """
    CATALOGUE.load(plain(name))
    CATALOGUE.check(plain(name), dict(given or {}))
    encoder: Encoder = CATALOGUE.call(plain(name))(**dict(given or {}), **handed)
    return encoder
