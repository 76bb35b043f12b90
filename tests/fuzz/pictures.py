"""Damaged image files against the three places that decode them: the index, masks, networks and encoders."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests import fakes
from tests.fuzz import mutate
from tests.fuzz.kinds import OK, WRONG, Fault, Target
from tests.fuzz.streams import kernels

MANY = 200_000_000  # the default of limits.max_pixels
FEW = 4_000_000
_bases: list[bytes] = []


def prepare() -> None:
    """One small file of every kind and flavour that Pillow writes."""
    import numpy as np
    from PIL import Image

    from curate.index import intake  # noqa: F401

    kernels()
    if _bases:
        return
    grey = Image.fromarray(fakes.steel(33, 17))
    deep = Image.fromarray(fakes.steel(33, 17).astype(np.uint16) * 257)
    plain: list[tuple[Any, str, dict[str, Any]]] = [
        *((grey.convert(mode), "PNG", {}) for mode in ("1", "L", "P", "LA", "RGB", "RGBA")),
        (deep, "PNG", {}),
        (grey, "PNG", {"save_all": True, "append_images": [grey.rotate(9)]}),
        *((grey.convert(mode), "JPEG", {}) for mode in ("L", "RGB", "CMYK")),
        (grey, "JPEG", {"progressive": True, "exif": Image.Exif().tobytes()}),
        (grey, "MPO", {"save_all": True, "append_images": [grey]}),
        *((grey.convert(mode), "BMP", {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(
            (grey, "TIFF", {"compression": how})
            for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        *((grey.convert(mode), "TIFF", {}) for mode in ("1", "P", "RGB", "RGBA", "CMYK", "I", "F")),
        (deep, "TIFF", {}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (grey, "TIFF", {"save_all": True, "append_images": [grey], "big_tiff": True}),
        (grey, "WEBP", {}),
        (grey.convert("RGBA"), "WEBP", {"lossless": True}),
        (grey, "WEBP", {"save_all": True, "append_images": [grey.rotate(9)]}),
        (grey, "GIF", {}),
        (grey, "PPM", {}),
        (grey.convert("RGB"), "ICO", {}),
    ]
    for image, kind, options in plain:
        data = io.BytesIO()
        image.save(data, kind, **options)
        _bases.append(data.getvalue())


def make(random: Random, root: Path) -> dict[str, Any]:
    content = random.choice(_bases)
    if random.random() < 0.1:  # the head of one kind on the body of another
        content = content[: random.randrange(100)] + random.choice(_bases)[random.randrange(100) :]
    content = mutate.some_bytes(random, content, 150)
    (root / "a.png").write_bytes(content)
    verify, most = random.choice(("tail", "decode")), MANY if random.random() < 0.02 else FEW
    return {"content": content, "verify": verify, "max_pixels": most}


def check(case: dict[str, Any], root: Path, *, reader: str) -> str:
    return READERS[reader](case, root)


def _intake(case: dict[str, Any], root: Path) -> str:
    from curate.data import Record
    from curate.index.intake import SourceRules, image_facts
    from curate.project import LimitsConfig

    limits = LimitsConfig(max_pixels=case["max_pixels"], verify=case["verify"])
    found = image_facts(root / "a.png", Record("a.png"), SourceRules(root, limits, {}, frozenset()))
    if found.width < 1 or found.height < 1 or not 1 <= found.channels <= 4:
        raise Fault(WRONG, f"an image of {found.width}x{found.height} with {found.channels} channels")
    return OK


def _mask(case: dict[str, Any], root: Path) -> str:
    """As the mask of an image of 33 x 17 pixels, and as the mask of a region that was drawn in the App."""
    from curate.data import MaskFile, Region
    from curate.errors import CurateError
    from curate.masks import shapes

    with contextlib.suppress(CurateError, OSError):  # what its callers take for "cannot be read"
        shapes.grey_file(root / "a.png", 33 * 17)
    shapes.defect_of(Region("crack", MaskFile("a.png")), 33, 17, root, True)
    return OK


def _pixels(case: dict[str, Any], root: Path) -> str:
    from curate.masks.decode import pixels_of

    found = pixels_of(case["content"], case["max_pixels"])
    if found.dtype != "uint8" or found.ndim not in (2, 3) or (found.ndim == 3 and found.shape[2] != 3):
        raise Fault(WRONG, f"pixels of {found.dtype} {found.shape}")
    return OK


READERS = {"image_intake": _intake, "image_mask": _mask, "image_pixels": _pixels}
TARGETS = [Target(name, make, partial(check, reader=name), prepare) for name in READERS]
