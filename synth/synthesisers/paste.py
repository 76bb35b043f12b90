"""Real defects, cut out, warped and pasted: brightness and contrast as around their new place, feathered edge.

The baseline that others must beat. Nothing is learnt, and nothing is made up: what a donor shows, the result shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from synth.nouns import Examples, Mask, Pixels, Scene
from synth.synthesisers._parts import Progress, composite

STEP = 1
LEARNS = False
AROUND = 12  # pixels around the mask that are compared
LEAST, MOST = 0.5, 2.0  # times the donor's contrast: as much as the light differs, within bounds


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
    """Paste each scene's donor in the light of its ground.

    Args:
        scenes: grounds with the masks to fill, and donors.
        folder: what `fit` wrote.
        device: `cpu` or `cuda`.

    Returns:
        A window for each scene; away from the mask its pixels are the ground's.
    """
    return [composite(scene.ground, matched(scene), scene.mask) for scene in scenes]


def matched(scene: Scene) -> Pixels:
    """The donor's pixels in the light of the ground, compared around the mask; out of its reach the ground."""
    rim = _rim(scene.mask, scene.reach)
    ground, donor = scene.ground.astype(np.float32), scene.donor.astype(np.float32)
    if rim.any():
        level, own = ground[rim].mean(axis=0), donor[rim].mean(axis=0)
        gain = np.clip((level + 1) / (own + 1), LEAST, MOST)
        donor = (donor - own) * gain + level
    donor = ground + scene.strength * (donor - ground)
    pasted = np.where((scene.mask | scene.reach)[..., None], donor, ground)
    return np.asarray(np.rint(pasted).clip(0, 255), np.uint8)


def _rim(mask: Mask, reach: Mask) -> Mask:
    """Good steel around the defect that both know; a little away from it, since masks are drawn tightly."""
    inner, outer = (
        cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) for by in (2, AROUND)
    )
    return np.asarray((outer > inner) & reach)
