"""What an image may look like on another day: albumentations (2.0.8, MIT) and three changes of light of our own.

`augmented` is a pure function of its arguments: the same seed gives the same picture in any process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train.recipe import Augmentation

Pixels = NDArray[np.uint8]
Masks = NDArray[np.uint8]  # (C, H, W)
Rng = np.random.Generator


def augmented(
    image: Pixels, masks: Masks | None, config: Augmentation, seed: Sequence[int]
) -> tuple[Pixels, Masks | None]:
    """Image (H, W, C) and masks changed alike."""
    rng = np.random.default_rng([*seed, 1])
    changes = _composed(config, image.shape[0] == image.shape[1])
    if changes is not None:
        changes.set_random_seed(int(rng.integers(2**31)))
        given = {"image": image} if masks is None or not len(masks) else {"image": image, "masks": list(masks)}
        found = changes(**given)
        image = found["image"].reshape(*found["image"].shape[:2], -1)
        masks = np.stack(found["masks"]) if "masks" in found else masks
    for name, change in LIGHTS.items():
        if rng.random() < getattr(config, name):
            image = change(image, rng)
    return image, masks


@lru_cache(maxsize=8)
def _composed(config: Augmentation, square: bool) -> Any:
    """Made once a process; None where nothing is to be changed."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for news when imported
    import albumentations as A

    listed: list[tuple[float, Callable[[float], Any]]] = [
        (config.flip_horizontal, lambda p: A.HorizontalFlip(p=p)),
        (config.flip_vertical, lambda p: A.VerticalFlip(p=p)),
        (config.rotate90, lambda p: _turned(A, p, square)),
        (float(bool(config.rotate or config.shift or config.zoom)), lambda p: _moved(A, config, p)),
        (config.clahe, lambda p: A.CLAHE(p=p)),
        (float(bool(config.brightness)), lambda p: _brightened(A, config, p)),
        (0.5 * bool(config.contrast), lambda p: A.RandomBrightnessContrast(0, config.contrast, p=p)),
        (config.blur, lambda p: A.GaussianBlur(sigma_limit=(0.5, 2.0), p=p)),
        (config.noise, lambda p: A.GaussNoise(std_range=(0.01, 0.05), per_channel=False, p=p)),
    ]
    made = [make(chance) for chance, make in listed if chance]
    return A.Compose(made) if made else None


def _turned(A: Any, p: float, square: bool) -> Any:
    """Quarter turns. A picture that is not square is turned by 0 or 180 degrees alone: a batch has one shape."""
    if square:
        return A.RandomRotate90(p=p)
    return A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=p / 2)  # two flips are half a turn


def _moved(A: Any, config: Augmentation, p: float) -> Any:
    return A.Affine(
        rotate=(-config.rotate, config.rotate),
        translate_percent=(-config.shift, config.shift),
        scale=(1 - config.zoom, 1 + config.zoom),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


def _brightened(A: Any, config: Augmentation, p: float) -> Any:
    """A factor, as light is: 0.4 gives 0.6 to 1.4 times as much. albumentations' brightness adds a grey instead."""
    return A.MultiplicativeNoise(multiplier=(1 - config.brightness, 1 + config.brightness), p=p)


# --- light ----------------------------------------------------------------------------------------------------------


def glare(image: Pixels, rng: Rng) -> Pixels:
    return shone(image, rng.uniform(60, 160), rng)


def shone(image: Pixels, light: float, rng: Rng) -> Pixels:
    """A reflection so many grey levels bright, with soft edges, somewhere on the steel."""
    height, width = image.shape[:2]
    y, x = np.ogrid[:height, :width]
    center, spread = rng.random(2) * (height, width), rng.uniform(0.1, 0.35, 2) * (height, width)
    spot = np.exp(-(((y - center[0]) / spread[0]) ** 2 + ((x - center[1]) / spread[1]) ** 2))
    return clipped(image + light * spot[..., None])


def low_light(image: Pixels, rng: Rng) -> Pixels:
    """Less light, and the noise of a camera that makes up for it."""
    dark = image * rng.uniform(0.3, 0.7)
    return clipped(dark + rng.normal(0, rng.uniform(2, 8), image.shape[:2])[..., None])


def haze(image: Pixels, rng: Rng) -> Pixels:
    return veiled(image, rng.uniform(0.2, 0.6), rng)


def veiled(image: Pixels, share: float, rng: Rng) -> Pixels:
    """Steam or scale dust: contrast fades towards a bright grey, up to this share, more in some places than others."""
    height, width = image.shape[:2]
    coarse = rng.random((4, 4)).astype(np.float32)
    veil = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
    return clipped(image * (1 - share * veil) + 190 * share * veil)


LIGHTS = {"glare": glare, "low_light": low_light, "haze": haze}


def clipped(values: NDArray[Any]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
