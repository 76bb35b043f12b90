"""Training images of a trial's arms, and how often each is seen. Pure functions of items.

Arms differ in one thing each. `real` shows images as often as they are there; `balanced` shows every class, and clean,
equally often; `augmented` is balanced, with the recipe's augmentation; the name of a synthesiser is balanced, with its
images among the defects. All take as many steps, and of the defects that one sees at least half are real.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.data import Item
from curate.hashing import seeded_number
from curate.labels.splits import Group, folds
from train.data import sampling

REAL, BALANCED, AUGMENTED = "real", "balanced", "augmented"
BASELINES = (REAL, BALANCED, AUGMENTED)
BLENDS = ("paste", "poisson")  # what a generative synthesiser has to beat
MOST = 0.5  # of the defects that an arm sees may be synthetic
Repeats = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Arm:
    """`ratio`: synthetic defects for each real one; `gated`: only those that pass the gates."""

    name: str
    ratio: float = 0.0
    gated: bool = False

    @property
    def synthetic(self) -> bool:
        return self.name not in BASELINES

    def __str__(self) -> str:
        return f"{self.name} x{self.ratio:g}{' gated' if self.gated else ''}" if self.synthetic else self.name


@dataclass(frozen=True, order=True)
class TrialRun:
    """One training. `budget`: real defects of each class."""

    fold: int
    budget: int
    arm: Arm
    seed: int


@dataclass(frozen=True)
class FoldData:
    """Items of a fold that an arm may learn from, and those that it is tested on."""

    train: tuple[Item, ...]
    test: tuple[Item, ...]


def arms(names: Sequence[str], ratios: Sequence[float]) -> list[Arm]:
    """Baselines once; every synthesiser at each ratio, unfiltered and gated."""
    baselines = [Arm(name) for name in names if name in BASELINES]
    synthetic = [name for name in names if name not in BASELINES]
    return baselines + [Arm(name, ratio, gated) for name in synthetic for ratio in ratios for gated in (False, True)]


def runs(of: Sequence[Arm], folds: Iterable[int], budgets: Sequence[int], seeds: int) -> list[TrialRun]:
    """List the runs: a fold's bank and generators are made once, and every arm has a seed before any has two."""
    return [
        TrialRun(fold, budget, arm, seed) for fold in folds for budget in budgets for seed in range(seeds) for arm in of
    ]


# --- folds and budgets ----------------------------------------------------------------------------------------------


def parts(items: Sequence[Item], count: int, cleans: int, seed: int = 0) -> list[FoldData]:
    """Grouped folds: each part's test images, of which at most so many are clean, and all that is in other groups."""
    fold_of = {name: fold[0] for name, fold in folds(_groups(items), count, 1, seed).items()}
    by_fold = [[item for item in items if fold_of[_group(item)] == fold] for fold in range(count)]
    return [_part(by_fold, fold, cleans, seed) for fold in range(count)]


def _part(by_fold: Sequence[Sequence[Item]], fold: int, cleans: int, seed: int) -> FoldData:
    train = [item for other, items in enumerate(by_fold) if other != fold for item in items]
    clean = _spread([item for item in by_fold[fold] if item.label.clean], seed)[:cleans]
    return FoldData(tuple(train), tuple(sorted([*clean, *_shown(by_fold[fold])], key=lambda item: item.id)))


def _groups(items: Sequence[Item]) -> list[Group]:
    by_group: dict[str, list[Item]] = {}
    for item in items:
        by_group.setdefault(_group(item), []).append(item)
    return [Group(name, len(by_group[name]), _counted(by_group[name])) for name in sorted(by_group)]


def _counted(items: Sequence[Item]) -> dict[str, int]:
    names = sorted({name for item in items for name in item.label.present})
    return {name: sum(name in item.label.present for item in items) for name in names}


def _group(item: Item) -> str:
    return item.group or item.id


def _shown(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item.label.present]


def _spread(items: Sequence[Item], seed: int) -> list[Item]:
    """One image of every group, in drawn order, then a second one of each."""
    met: dict[str, int] = {}
    rows = []
    for item in sorted(items, key=lambda item: seeded_number(seed, item.id)):
        met[_group(item)] = met.get(_group(item), 0) + 1
        rows.append((met[_group(item)], seeded_number(seed, _group(item)), item.id, item))
    return [row[-1] for row in sorted(rows)]


def budgeted(items: Sequence[Item], classes: Sequence[str], budget: int, seed: int = 0) -> list[Item]:
    """Real defects of each class up to the budget, group by group; what is clean stays. A smaller budget's images are
    among those of a larger one."""
    ordered = sorted(items, key=lambda item: (seeded_number(seed, _group(item)), item.id))
    kept = {item.id for item in items if item.label.clean}
    for name in classes:
        count = 0
        for item in ordered:
            if count < budget and name in item.label.present:
                kept.add(item.id)
                count += _defects(item, name)
    return [item for item in items if item.id in kept]


def _defects(item: Item, name: str) -> int:
    return max(1, sum(defect.label == name for defect in item.label.defects))


def defects(items: Sequence[Item], classes: Sequence[str]) -> dict[str, int]:
    return {name: sum(_defects(item, name) for item in items if name in item.label.present) for name in classes}


# --- how often ------------------------------------------------------------------------------------------------------


def repeats(arm: Arm, items: Sequence[Item], classes: Sequence[str]) -> Repeats:
    """Weight of each image: how often it comes, relative to the others."""
    present = np.array([[name in item.label.present for name in classes] for item in items], bool)
    synthetic = np.array([item.source == "synthetic" for item in items], bool)
    if arm.name == REAL:
        return np.ones(len(items))
    chances = np.zeros(len(items))
    chances[~synthetic] = sampling.weighted(present[~synthetic])
    return shared(chances, present, synthetic)


def shared(chances: Repeats, present: NDArray[np.bool_], is_synthetic: NDArray[np.bool_]) -> Repeats:
    """Give a part of each class's chances to its synthetic images: as many as they are among all, but never more than
    `MOST`. Clean images and other classes keep theirs."""
    weights, rarest = chances.copy(), _rarest(present, is_synthetic)
    for place in range(present.shape[1]):
        real, synthetic = ~is_synthetic & (rarest == place), is_synthetic & present[:, place]
        if not real.any() or not synthetic.any():
            continue
        share = min(MOST, synthetic.sum() / (synthetic.sum() + real.sum()))
        weights[synthetic] = share * chances[real].sum() / synthetic.sum()
        weights[real] *= 1 - share
    return weights


def _rarest(present: NDArray[np.bool_], synthetic: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The place of each image's rarest class; -1 where it is clean."""
    counts = present[~synthetic].sum(axis=0)
    rank = np.where(present, counts, np.iinfo(np.int64).max)
    return np.where(present.any(axis=1), rank.argmin(axis=1), -1)


def drawn(items: Sequence[Item], chances: Repeats, count: int, seed: int) -> list[Item]:
    """So many images, each as often as its chance says: all that a training sees, in one epoch."""
    order = sampling.draw(chances * count / chances.sum(), 0, seed)
    return [items[row] for row in order[:count].tolist()]


# --- what a figure is worth in real defects -------------------------------------------------------------------------


def worth(curve: Mapping[int, float], value: float) -> tuple[float, str]:
    """Number of real defects of each class that give this metric, by the curve of real ones alone: between two of its
    points by the logarithm of their number. With `<` or `>` where it leaves the curve."""
    budgets = sorted(curve)
    figures = np.maximum.accumulate([curve[count] for count in budgets])
    if value < figures[0]:
        return float(budgets[0]), "<"
    if value > figures[-1]:
        return float(budgets[-1]), ">"
    place = min(int(np.searchsorted(figures, value, side="left")), len(budgets) - 1)
    if place == 0 or figures[place] == figures[place - 1]:
        return float(budgets[place]), ""
    step = (value - figures[place - 1]) / (figures[place] - figures[place - 1])
    low, high = np.log(budgets[place - 1]), np.log(budgets[place])
    return float(np.exp(low + step * (high - low))), ""


def to_json(arm: Arm) -> dict[str, Any]:
    return {"arm": arm.name, "ratio": arm.ratio, "gated": arm.gated}
