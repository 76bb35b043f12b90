"""The nouns of synthesis: real defects and steel (`Donor`, `Ground`, `MaskBank`), a `Scene`, a `SyntheticImage`.

A synthesiser paints one window of a good image. The mask that it is asked to fill *is* the label of the result, so
pixels away from that mask stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.data import Item

Pixels = NDArray[np.uint8]  # (H, W, C): C is 1 (grey) or 3
Mask = NDArray[np.bool_]  # (H, W)

FEATHER = 4  # pixels around the mask over which what was made fades into the good image


def extent_of(mask: Mask) -> tuple[int, int]:
    """Width and height of what a mask holds; it is not empty."""
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    return int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1


@dataclass(frozen=True)
class Donor:
    """A real defect of the train split: its pixels with a margin around, and its mask in them.

    `corner` (left, top) is where that crop lies in the image; `place` (across, down, 0 to 1) where the defect's middle
    lies in the image's steel.
    """

    key: str  # content id and a number: of which image, which of its defects
    name: str
    group: str
    pixels: Pixels
    mask: Mask
    item: Item
    corner: tuple[int, int]
    place: tuple[float, float]
    severity: str | None = None

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def extent(self) -> tuple[int, int]:
        """Width and height of the defect itself."""
        return extent_of(self.mask)


@dataclass(frozen=True)
class Ground:
    """A clean image of the train split; `masks.region_of` its pixels tells where steel is."""

    id: str
    group: str
    item: Item


@dataclass(frozen=True)
class MaskBank:
    """All that synthesis may see of a project: nothing of val or test is in it. `blocked` are their ids and groups."""

    classes: tuple[str, ...]
    donors: tuple[Donor, ...]
    grounds: tuple[Ground, ...]
    channels: int
    digest: str
    max_pixels: int
    blocked_ids: frozenset[str] = frozenset()
    blocked_groups: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def of(self, name: str) -> tuple[Donor, ...]:
        return tuple(donor for donor in self.donors if donor.name == name)


@dataclass(frozen=True)
class Scene:
    """A window of a good image and the mask that a defect is to fill.

    `donor` are the pixels of a real defect, warped with its mask to the same place (real ones only within
    `reach`): what pasting copies, and what nothing else needs. `strength` in (0, 1]: how far from the good steel.
    """

    ground: Pixels
    mask: Mask
    name: str
    seed: int
    donor: Pixels
    reach: Mask
    strength: float = 1.0


@dataclass(frozen=True)
class Site:
    """Position of a scene, and its parent images."""

    ground: Ground
    donor: Donor
    window: tuple[int, int, int, int]  # left, top, width, height
    area: int
    severity: str | None = None


@dataclass(frozen=True)
class TrainingWindow:
    """Training example of a network: a window around a real defect, or of clean steel (empty mask, `name` is '')."""

    pixels: Pixels
    mask: Mask
    name: str
    group: str


@dataclass(frozen=True)
class SyntheticImage:
    """One row of `manifest.parquet`: a synthetic image and its parents."""

    id: str
    file: str
    mask_file: str
    name: str
    ground: str
    ground_group: str
    donor: str
    donor_group: str
    seed: int
    synthesiser: str
    window: tuple[int, int, int, int]  # left, top, width, height
    area: int
    severity: str | None = None


Examples = Sequence[TrainingWindow]


@dataclass(frozen=True)
class CandidateImage:
    """A synthetic image as gates see it; `told`: pixels of its mask, as the manifest has it."""

    id: str
    name: str
    pixels: Pixels
    mask: Mask
    window: tuple[int, int, int, int]
    told: int
