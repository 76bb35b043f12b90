"""One file an encoder: its name is the file's name, its help the docstring, its options the keyword-only parameters.

An encoder turns windows of images into vectors: see `curate.embed._base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curate.catalogue import Catalogue

if TYPE_CHECKING:
    from curate.embed._base import Encoder

DEFAULT = "texture"
CATALOGUE = Catalogue(__name__, "encoder", "build")
names, options, summary = CATALOGUE.names, CATALOGUE.options, CATALOGUE.summary


def plain(name: str) -> str:
    """The encoder's name as its file has it: `torchvision-file` is as good as `torchvision_file`."""
    return name.replace("-", "_")


def build(name: str, given: Mapping[str, Any] | None = None, **handed: Any) -> Encoder:
    """The encoder of this name with these options; `handed` is what only the caller can give (see `model`)."""
    CATALOGUE.load(plain(name))
    CATALOGUE.check(plain(name), dict(given or {}))
    made: Encoder = CATALOGUE.call(plain(name))(**dict(given or {}), **handed)
    return made
