"""Drawn windows to learn from: a bright crack or a dark hole on steel, and clean steel; and scenes to be filled."""

from __future__ import annotations

import numpy as np

from synth.nouns import Scene, TrainingWindow
from tests import fakes

CLASSES = ("crack", "hole")
SHIFT = {"crack": 80, "hole": -80}


def shape(name: str, number: int, side: int = 32) -> np.ndarray:
    """A bar or a disc, somewhere in the middle."""
    y, x = np.mgrid[:side, :side]
    cy, cx = np.random.default_rng(number).integers(side // 2 - 4, side // 2 + 4, 2)
    if name == "crack":
        return np.asarray((abs(y - cy) <= 2) & (abs(x - cx) <= 8))
    return np.asarray((y - cy) ** 2 + (x - cx) ** 2 <= 25)


def window(name: str, number: int, side: int = 32, channels: int = 1) -> TrainingWindow:
    """Return a training window of a group that has two windows."""
    pixels = fakes.steel(side, side, seed=number).astype(int)
    mask = shape(name, number, side) if name else np.zeros((side, side), bool)
    pixels[mask] += SHIFT.get(name, 0)
    stacked = np.repeat(np.clip(pixels, 0, 255).astype(np.uint8)[..., None], channels, axis=2)
    return TrainingWindow(stacked, mask, name, f"piece{number // 2}")


def examples(each: int = 10, channels: int = 1, side: int = 32) -> list[TrainingWindow]:
    numbered = [(name, 100 * at + number) for at, name in enumerate((*CLASSES, "")) for number in range(each)]
    return [window(name, number, side, channels) for name, number in numbered]


def scene(name: str, number: int, *, strength: float = 1.0, channels: int = 1, side: int = 32) -> Scene:
    ground, mask = window("", 1000 + number, side, channels).pixels, shape("hole", number, side)
    return Scene(ground, mask, name, number, np.zeros_like(ground), np.zeros_like(mask), strength)
