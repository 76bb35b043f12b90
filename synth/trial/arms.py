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
from curate.labels.splits import Group, draw, folds
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
    found = [Arm(name) for name in names if name in BASELINES]
    made = [name for name in names if name not in BASELINES]
    return found + [Arm(name, ratio, gated) for name in made for ratio in ratios for gated in (False, True)]


def runs(of: Sequence[Arm], folds: Iterable[int], budgets: Sequence[int], seeds: int) -> list[TrialRun]:
    """List the runs: a fold's bank and generators are made once, and every arm has a seed before any has two."""
    return [
        TrialRun(fold, budget, arm, seed) for fold in folds for budget in budgets for seed in range(seeds) for arm in of
    ]


# --- folds and budgets ----------------------------------------------------------------------------------------------


def parts(items: Sequence[Item], count: int, cleans: int, seed: int = 0) -> list[FoldData]:
    """Grouped folds: each part's test images, of which at most so many are clean, and all that is in other groups."""
    fold_of = {name: fold[0] for name, fold in folds(_groups(items), count, 1, seed).items()}
    by_fold = [[one for one in items if fold_of[_group(one)] == fold] for fold in range(count)]
    return [_part(by_fold, fold, cleans, seed) for fold in range(count)]


def _part(by_fold: Sequence[Sequence[Item]], fold: int, cleans: int, seed: int) -> FoldData:
    train = [one for other, items in enumerate(by_fold) if other != fold for one in items]
    clean = _spread([one for one in by_fold[fold] if one.label.clean], seed)[:cleans]
    return FoldData(tuple(train), tuple(sorted([*clean, *_shown(by_fold[fold])], key=lambda one: one.id)))


def _groups(items: Sequence[Item]) -> list[Group]:
    found: dict[str, list[Item]] = {}
    for one in items:
        found.setdefault(_group(one), []).append(one)
    return [Group(name, len(found[name]), _counted(found[name])) for name in sorted(found)]


def _counted(items: Sequence[Item]) -> dict[str, int]:
    names = sorted({name for one in items for name in one.label.present})
    return {name: sum(name in one.label.present for one in items) for name in names}


def _group(one: Item) -> str:
    return one.group or one.id


def _shown(items: Sequence[Item]) -> list[Item]:
    return [one for one in items if one.label.present]


def _spread(items: Sequence[Item], seed: int) -> list[Item]:
    """One image of every group, in drawn order, then a second one of each."""
    met: dict[str, int] = {}
    rows = []
    for one in sorted(items, key=lambda one: draw(seed, one.id)):
        met[_group(one)] = met.get(_group(one), 0) + 1
        rows.append((met[_group(one)], draw(seed, _group(one)), one.id, one))
    return [row[-1] for row in sorted(rows)]


def budgeted(items: Sequence[Item], classes: Sequence[str], budget: int, seed: int = 0) -> list[Item]:
    """Real defects of each class up to the budget, group by group; what is clean stays. A smaller budget's images are
    among those of a larger one."""
    ordered = sorted(items, key=lambda one: (draw(seed, _group(one)), one.id))
    kept = {one.id for one in items if one.label.clean}
    for name in classes:
        found = 0
        for one in ordered:
            if found < budget and name in one.label.present:
                kept.add(one.id)
                found += _defects(one, name)
    return [one for one in items if one.id in kept]


def _defects(one: Item, name: str) -> int:
    return max(1, sum(defect.label == name for defect in one.label.defects))


def defects(items: Sequence[Item], classes: Sequence[str]) -> dict[str, int]:
    return {name: sum(_defects(one, name) for one in items if name in one.label.present) for name in classes}


# --- how often ------------------------------------------------------------------------------------------------------


def repeats(arm: Arm, items: Sequence[Item], classes: Sequence[str]) -> Repeats:
    """Weight of each image: how often it comes, relative to the others."""
    present = np.array([[name in one.label.present for name in classes] for one in items], bool)
    made = np.array([one.source == "synthetic" for one in items], bool)
    if arm.name == REAL:
        return np.ones(len(items))
    found = np.zeros(len(items))
    found[~made] = sampling.weighted(present[~made])
    return shared(found, present, made)


def shared(chances: Repeats, present: NDArray[np.bool_], made: NDArray[np.bool_]) -> Repeats:
    """Give a part of each class's chances to its synthetic images: as many as they are among all, but never more than
    `MOST`. Clean images and other classes keep theirs."""
    found, rarest = chances.copy(), _rarest(present, made)
    for place in range(present.shape[1]):
        real, synthetic = ~made & (rarest == place), made & present[:, place]
        if not real.any() or not synthetic.any():
            continue
        share = min(MOST, synthetic.sum() / (synthetic.sum() + real.sum()))
        found[synthetic] = share * chances[real].sum() / synthetic.sum()
        found[real] *= 1 - share
    return found


def _rarest(present: NDArray[np.bool_], made: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The place of each image's rarest class; -1 where it is clean."""
    counts = present[~made].sum(axis=0)
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
    figures = np.maximum.accumulate([curve[one] for one in budgets])
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
