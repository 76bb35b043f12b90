"""Uncertainty scores of images. Pure functions of arrays: probabilities in, float32 scores out, no state.

The higher the score, the more uncertain. Entropies are in nats. NaN in gives NaN out, without a warning. `p` of images
is (n, C); of one image's pixels it is (C, H, W), one sigmoid a defect class: defects may overlap, and there is no
channel for the background.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Values = dict[str, float | Floats]

TILE = 64  # pixels: about the side of a small defect on a strip image of 256 x 1600
SMALL_TILE = 16
WIDTH = 4  # pixels on either side of a predicted outline; people disagree by about as much
SURE = 0.9
_TINY = float(np.finfo(np.float32).tiny)


def _probabilities(p: Any) -> Floats:
    """Any array or tensor as float32, clipped to [0, 1]: sums of rounded numbers may exceed 1 slightly."""
    plain = p.detach().cpu().float() if hasattr(p, "detach") else p
    return np.clip(np.asarray(plain, dtype=np.float32), 0, 1)


def _single(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float32)


def _surprise(p: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """-p log p, and 0 at 0."""
    result: npt.NDArray[Any] = -p * np.log(np.maximum(p, _TINY))
    return result


def _bernoulli(p: npt.NDArray[Any]) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = _surprise(p) + _surprise(1 - p)
    return result


# --- classification ---------------------------------------------------------------------------------------------------


def least_confidence(p: Any) -> Floats:
    """1 - p1 (Lewis and Gale 1994). p: (n, C) softmax; returns (n,)."""
    return _single(1 - _probabilities(p).max(axis=-1))


def margin(p: Any) -> Floats:
    """1 - (p1 - p2), the two likeliest classes (Scheffer et al. 2001). p: (n, C) softmax; returns (n,)."""
    ordered = np.sort(_probabilities(p), axis=-1)
    second = ordered[..., -2] if ordered.shape[-1] > 1 else np.zeros_like(ordered[..., -1])
    return _single(1 - (ordered[..., -1] - second))


def entropy(p: Any, *, normalise: bool = False) -> Floats:
    """Shannon entropy (Settles 2009); `normalise` divides by log C. p: (n, C) softmax; returns (n,)."""
    values = _probabilities(p)
    total = _surprise(values).sum(axis=-1)
    return _single(total / np.log(max(values.shape[-1], 2)) if normalise else total)


def class_entropy(p: Any) -> Floats:
    """Each class's Bernoulli entropy. p: (n, C) independent sigmoids; returns (n, C)."""
    return _single(_bernoulli(_probabilities(p)))


def predictive_entropy_multilabel(p: Any, *, mean: bool = False) -> Floats:
    """Sum (or mean) of the classes' Bernoulli entropies. p: (n, C) independent sigmoids; returns (n,)."""
    values = class_entropy(p)
    return _single(values.mean(axis=-1) if mean else values.sum(axis=-1))


def mistakenness(p: Any, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Confidence with which a model contradicts labels (n, C) of 0 and 1; returns the worst class (n,), and all (n, C).

    FiftyOne's (1 + m s) / 2 with m = 1 where the model contradicts the label, else -1, and s its confidence. Here s is
    one minus the entropy in bits, so that an undecided model scores 1/2 from either side.
    """
    against = np.abs(_probabilities(p) - _single(labels))
    sure = 1 - _bernoulli(against) / np.log(2)
    by_class = _single((1 + np.sign(against - 0.5) * sure) / 2)
    return by_class.max(axis=-1), by_class


# --- ensembles and Monte-Carlo dropout --------------------------------------------------------------------------------


def predictive_entropy(samples: Iterable[Any]) -> Floats:
    """Entropy of the mean prediction. samples: T times (n, C) softmax; returns (n,)."""
    return _single(_surprise(_moments(samples, _surprise)[0]).sum(axis=-1))


def bald(samples: Iterable[Any]) -> Floats:
    """Mutual information of label and weights (Houlsby et al. 2011). samples: T times (n, C) softmax; returns (n,)."""
    mean, terms = _moments(samples, _surprise)
    return _single(np.maximum((_surprise(mean) - terms).sum(axis=-1), 0))


def class_bald(samples: Iterable[Any]) -> Floats:
    """BALD of each class on its own. samples: T times (n, C) independent sigmoids; returns (n, C)."""
    mean, terms = _moments(samples, _bernoulli)
    return _single(np.maximum(_bernoulli(mean) - terms, 0))


def bald_multilabel(samples: Iterable[Any]) -> Floats:
    """Sum of the classes' BALD. samples: T times (n, C) independent sigmoids; returns (n,)."""
    return _single(class_bald(samples).sum(axis=-1))


mutual_information = bald


def _moments(samples: Iterable[Any], term: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means over the passes of p and of term(p), in double precision: BALD is a small difference of large numbers."""
    total: npt.NDArray[np.float64] = np.zeros(())
    terms, count = total, 0
    for sample in samples:
        p = _probabilities(sample).astype(np.float64)
        total, terms, count = total + p, terms + term(p), count + 1
    if not count:
        raise ValueError("no stochastic pass to average")
    return total / count, terms / count


# --- segmentation: one image's map at a time --------------------------------------------------------------------------


def tile_means(values: npt.ArrayLike, tile: int = TILE) -> Floats:
    """Mean of each tile of a map (H, W): ceil(H / tile) rows of nearly equal tiles, so that none is narrow."""
    array = _single(values)
    rows, columns = (_starts(length, tile) for length in array.shape)
    sums = np.add.reduceat(array, columns, axis=1, dtype=np.float64)
    sums = np.add.reduceat(sums, rows, axis=0)
    heights, widths = (np.diff([*s, n]) for s, n in zip((rows, columns), array.shape, strict=True))
    return _single(sums / np.outer(heights, widths))


def _starts(length: int, tile: int) -> npt.NDArray[np.intp]:
    count = max(1, -(-length // tile))
    return np.arange(count) * length // count


def top_tiles(values: npt.ArrayLike, m: int = 3, tile: int = TILE) -> float:
    """Mean of the m largest tile means: a small defect counts the same on a small and on a large image."""
    means = tile_means(values, tile).ravel()
    return float(np.sort(means)[-m:].mean())


def rim(foreground: npt.ArrayLike, width: int = WIDTH) -> npt.NDArray[np.bool_]:
    """The band along the outlines of predicted regions (H, W), where every model is uncertain.

    Only near a confident core: a small uncertain region would consist of nothing but band.
    """
    p = _single(foreground)
    inside, core = p >= 0.5, p >= SURE
    return _grown(inside, width) & _grown(~inside, width) & _grown(core, 2 * width)


def _grown(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    import cv2

    side = 2 * radius + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)), dtype=np.bool_)


def boundary_free(
    uncertainty: npt.ArrayLike, foreground: npt.ArrayLike, width: int = WIDTH, m: int = 3, tile: int = SMALL_TILE
) -> float:
    """Top small tiles of an uncertainty map without the rims of confident regions, whose length would measure size.

    Both maps are (H, W), or (C, H, W): then each class loses its own rims, and the rest is summed.
    """
    maps = zip(_layers(uncertainty), _layers(foreground), strict=True)
    # A product and not np.where: NaN must stay NaN under the rim.
    kept = [values * ~rim(p, width) for values, p in maps]
    return top_tiles(np.sum(kept, axis=0), m, tile)


def _layers(values: npt.ArrayLike) -> Floats:
    array = _single(values)
    return array if array.ndim == 3 else array[None]


def class_tile_entropy(p: Any, m: int = 3, tile: int = TILE) -> Floats:
    """Top-tile Bernoulli entropy of each class. p: (C, H, W); returns (C,)."""
    return _by_class(class_entropy(p), m, tile)


def _by_class(maps: Floats, m: int = 3, tile: int = TILE) -> Floats:
    return _single([top_tiles(values, m, tile) for values in maps])


def expected_defect_pixels(p: Any) -> Floats:
    """Expected number of pixels of each class. p: (C, H, W); returns (C,)."""
    return _single(_probabilities(p).sum(axis=(1, 2), dtype=np.float64))


def summarise(p: Any) -> Values:
    """All scores of one image's map (C, H, W); the map itself is then no longer needed.

    `probability` (C,) is the likeliest small tile of each class: it stands for "this image shows the class".
    """
    values = _probabilities(p)
    by_class = _single(_bernoulli(values))
    total, foreground = by_class.sum(axis=0), values.max(axis=0)
    doubt = 1 - np.abs(2 * values - 1).min(axis=0)
    return {
        "entropy": float(total.mean(dtype=np.float64)),
        "top_tiles": top_tiles(total),
        "boundary_free": boundary_free(by_class, values),
        "margin": top_tiles(doubt),
        "foreground": float(np.where(np.isnan(foreground), foreground, foreground >= 0.5).mean()),
        "class_tile_entropy": _by_class(by_class),
        "expected_defect_pixels": expected_defect_pixels(values),
        "probability": _by_class(values, 1, SMALL_TILE),
    }


class UncertaintySummary:
    """Scores of one image from T stochastic passes, without keeping the T maps.

    BALD needs only two running sums: of p, and of its entropy.
    """

    def __init__(self) -> None:
        self.passes = 0
        self._p: npt.NDArray[np.float64] = np.zeros(())
        self._entropy: npt.NDArray[np.float64] = np.zeros(())

    def add(self, p: Any) -> None:
        """Add one pass (C, H, W)."""
        values = _probabilities(p).astype(np.float64)
        self._p = self._p + values
        self._entropy = self._entropy + _bernoulli(values)
        self.passes += 1

    def bald(self) -> Floats:
        """BALD of each class and pixel, (C, H, W)."""
        mean = self._p / self.passes
        return _single(np.maximum(_bernoulli(mean) - self._entropy / self.passes, 0))

    def scores(self) -> Values:
        """`summarise` of the mean map, and BALD in the same three ways."""
        if not self.passes:
            raise ValueError("no stochastic pass to summarise")
        mean, by_class = _single(self._p / self.passes), self.bald()
        total = by_class.sum(axis=0)
        return summarise(mean) | {
            "bald": float(total.mean(dtype=np.float64)),
            "bald_top_tiles": top_tiles(total),
            "bald_boundary_free": boundary_free(by_class, mean),
            "class_tile_bald": _by_class(by_class),
        }
