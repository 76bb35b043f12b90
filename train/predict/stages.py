"""A segmenter in two stages, as `predict` and an exported file play it: the gate looks at all of a tile, and only the
places that it flags are cropped and sent to the segmenter. Arrays in, arrays out; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from train.architectures.two_stage import CELL
from train.data.pixels import Pixels, padded

MARGIN = 1  # cells around a flagged one that are cropped with it: a defect's other end, and what surrounds it
WHOLE = 0.75  # a tile of which this much would be cropped is sent in one piece
CLEAN = 0.005  # below it is what is said of a place that is not flagged: no threshold is as low
Floats = NDArray[np.float32]
Network = Callable[[Pixels], Floats]


def probabilities(tile: Pixels, flag: float, gate: Network, segmenter: Network) -> Floats:
    """Return the probability map (C, H, W) of a tile (H, W, channels).

    Args:
        tile: the pixels.
        flag: the gate's probability of any class from which a cell is flagged.
        gate: from pixels, whose sides are multiples of `CELL`, to the classes' probabilities by cell.
        segmenter: from such pixels to the classes' probabilities by pixel.

    Returns:
        In crops, the segmenter's probability times the gate's for the tile, as in training; elsewhere the gate's for
        the cell, scaled down below `CLEAN`.
    """
    height, width = tile.shape[:2]
    canvas = padded(tile, *(-(-side // CELL) * CELL for side in (height, width)))
    cells = gate(canvas)
    p = np.repeat(np.repeat(cells * np.float32(CLEAN), CELL, axis=1), CELL, axis=2)
    for y, x, high, wide in crops(cells.max(axis=0) >= flag):
        top, left, bottom, right = (CELL * place for place in (y, x, y + high, x + wide))
        inside = segmenter(np.ascontiguousarray(canvas[top:bottom, left:right]))
        p[:, top:bottom, left:right] = inside * cells.max(axis=(1, 2))[:, None, None]
    return p[:, :height, :width]


def crops(flagged: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the crops (y, x, height, width) around the flagged cells, in cells; no two overlap."""
    wanted = flagged.astype(np.uint8)
    if wanted.any():
        wanted = cv2.dilate(wanted, np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8))
    while True:
        count, _, stats, _ = cv2.connectedComponentsWithStats(wanted, connectivity=8)
        boxes = [(int(y), int(x), int(high), int(wide)) for x, y, wide, high, _ in stats[1:count]]
        filled = np.zeros_like(wanted)
        for y, x, high, wide in boxes:
            filled[y : y + high, x : x + wide] = 1
        if filled.mean() >= WHOLE:
            yield 0, 0, wanted.shape[0], wanted.shape[1]
            return
        if (filled == wanted).all():  # boxes that met have been joined
            break
        wanted = filled
    yield from boxes
