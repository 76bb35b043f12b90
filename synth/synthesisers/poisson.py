"""Real defects, cut out, warped and cloned in by their gradients (Poisson blending, the stronger gradient wins).

Like `paste`, but the steel's own texture goes on through the defect, and no step of brightness is left at its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.nouns import FEATHER, Examples, Mask, Pixels, Scene
from synth.synthesisers import paste
from synth.synthesisers._parts import Progress, composite, nearness

STEP = 1
LEARNS = False
INNER = 3  # OpenCV clones what is left of the mask when so many pixels are taken off all around
BORDER = 2 * FEATHER + 4  # mirrored around the window, since OpenCV cannot clone at an image's border


def fit(
    examples: Examples, classes: Sequence[str], folder: Path, *, progress: Progress, device: str, seed: int
) -> dict[str, Any]:
    """Learn nothing.

    Args:
        examples: windows of the train split, with their masks.
        classes: the names of the classes.
        folder: where it keeps what `generate` needs, and its progress; a second call goes on there.
        progress: called with the stage and the steps done.
        device: `cpu` or `cuda`.
        seed: of all chance.

    Returns:
        An empty dict.
    """
    return {}


def generate(scenes: Sequence[Scene], folder: Path, *, device: str) -> list[Pixels]:
    """Blend each scene's donor into its ground by Poisson's equation.

    Args:
        scenes: grounds with the masks to fill, and donors.
        folder: what `fit` wrote.
        device: `cpu` or `cuda`.

    Returns:
        A window for each scene; away from the mask its pixels are the ground's.
    """
    return [_cloned(scene) for scene in scenes]


def _cloned(scene: Scene) -> Pixels:
    near = nearness(scene.mask) > 0
    donor = paste.matched(scene)
    try:
        cloned = _seamless(donor, scene.ground, near)
    except cv2.error:  # a mask that OpenCV finds no inside of
        return composite(scene.ground, donor, scene.mask)
    return np.where(near[..., None], cloned, scene.ground)


def _seamless(donor: Pixels, ground: Pixels, near: Mask) -> Pixels:
    source, target = (_three(_framed(tensor, cv2.BORDER_REFLECT)) for tensor in (donor, ground))
    mask = _framed(near.astype(np.uint8) * 255, cv2.BORDER_CONSTANT)
    mask = np.asarray(cv2.dilate(mask, np.ones((2 * INNER + 1, 2 * INNER + 1), np.uint8)), np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    cloned = cv2.seamlessClone(source, target, mask, (x + width // 2, y + height // 2), cv2.MIXED_CLONE)
    inner = np.asarray(cloned)[BORDER:-BORDER, BORDER:-BORDER]
    return np.asarray(inner[..., : ground.shape[2]], np.uint8)


def _framed(image: NDArray[np.uint8], how: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.copyMakeBorder(image, BORDER, BORDER, BORDER, BORDER, how), np.uint8)


def _three(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (
        np.repeat(image.reshape(*image.shape[:2], -1), 3, axis=2) if image.ndim == 2 or image.shape[2] == 1 else image
    )
