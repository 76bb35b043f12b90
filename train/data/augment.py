"""Image augmentation: albumentations (2.0.8, MIT) and three changes of light of our own.

`augmented` is a pure function of its arguments: the same seed gives the same image in any process.
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
    """Return the image (H, W, C) and its masks (C, H, W) under the same random changes; `seed` decides them."""
    rng = np.random.default_rng([*seed, 1])
    changes = _pipeline(config, image.shape[0] == image.shape[1])
    if changes is not None:
        changes.set_random_seed(int(rng.integers(2**31)))
        inputs = {"image": image} if masks is None or not len(masks) else {"image": image, "masks": list(masks)}
        outputs = changes(**inputs)
        image = outputs["image"].reshape(*outputs["image"].shape[:2], -1)
        masks = np.stack(outputs["masks"]) if "masks" in outputs else masks
    for name, change in LIGHT_CHANGES.items():
        if rng.random() < getattr(config, name):
            image = change(image, rng)
    return image, masks


@lru_cache(maxsize=8)
def _pipeline(config: Augmentation, square: bool) -> Any:
    """Return the albumentations pipeline, built once per process; None where nothing is to be changed."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks for updates over the network when imported
    import albumentations as A

    candidates: list[tuple[float, Callable[[float], Any]]] = [
        (config.flip_horizontal, lambda p: A.HorizontalFlip(p=p)),
        (config.flip_vertical, lambda p: A.VerticalFlip(p=p)),
        (config.rotate90, lambda p: _quarter_turns(A, p, square)),
        (float(bool(config.rotate or config.shift or config.zoom)), lambda p: _affine(A, config, p)),
        (config.clahe, lambda p: A.CLAHE(p=p)),
        (float(bool(config.brightness)), lambda p: _brightness(A, config, p)),
        (0.5 * bool(config.contrast), lambda p: A.RandomBrightnessContrast(0, config.contrast, p=p)),
        (config.blur, lambda p: A.GaussianBlur(sigma_limit=(0.5, 2.0), p=p)),
        (config.noise, lambda p: A.GaussNoise(std_range=(0.01, 0.05), per_channel=False, p=p)),
    ]
    transforms = [make(chance) for chance, make in candidates if chance]
    return A.Compose(transforms) if transforms else None


def _quarter_turns(A: Any, p: float, square: bool) -> Any:
    """Quarter turns; by 0 or 180 degrees only where the image is not square, since a batch has one shape."""
    if square:
        return A.RandomRotate90(p=p)
    return A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=p / 2)  # two flips are half a turn


def _affine(A: Any, config: Augmentation, p: float) -> Any:
    return A.Affine(
        rotate=(-config.rotate, config.rotate),
        translate_percent=(-config.shift, config.shift),
        scale=(1 - config.zoom, 1 + config.zoom),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


def _brightness(A: Any, config: Augmentation, p: float) -> Any:
    """A brightness factor, as light acts: 0.4 gives 0.6 to 1.4. albumentations' own brightness adds a constant."""
    return A.MultiplicativeNoise(multiplier=(1 - config.brightness, 1 + config.brightness), p=p)


# --- light ----------------------------------------------------------------------------------------------------------


def glare(image: Pixels, rng: Rng) -> Pixels:
    """Add a reflection of random strength."""
    return add_glare(image, rng.uniform(60, 160), rng)


def add_glare(image: Pixels, light: float, rng: Rng) -> Pixels:
    """Add a reflection of `light` grey levels, with soft edges, at a random place."""
    height, width = image.shape[:2]
    y, x = np.ogrid[:height, :width]
    center, spread = rng.random(2) * (height, width), rng.uniform(0.1, 0.35, 2) * (height, width)
    spot = np.exp(-(((y - center[0]) / spread[0]) ** 2 + ((x - center[1]) / spread[1]) ** 2))
    return to_uint8(image + light * spot[..., None])


def low_light(image: Pixels, rng: Rng) -> Pixels:
    """Darken the image and add the noise of a higher camera gain."""
    dark = image * rng.uniform(0.3, 0.7)
    return to_uint8(dark + rng.normal(0, rng.uniform(2, 8), image.shape[:2])[..., None])


def haze(image: Pixels, rng: Rng) -> Pixels:
    """Add haze of random strength."""
    return add_haze(image, rng.uniform(0.2, 0.6), rng)


def add_haze(image: Pixels, share: float, rng: Rng) -> Pixels:
    """Add steam or scale dust: contrast fades towards a bright grey, unevenly, by up to `share`."""
    height, width = image.shape[:2]
    coarse = rng.random((4, 4)).astype(np.float32)
    veil = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
    return to_uint8(image * (1 - share * veil) + 190 * share * veil)


LIGHT_CHANGES = {"glare": glare, "low_light": low_light, "haze": haze}


def to_uint8(values: NDArray[Any]) -> Pixels:
    """Round and clip to 0..255."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
