"""Oracle datasets for `train.simulate` from the sets' arrays, and the finite matrix of settings to run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.select.pool import WHOLE, Windows
from tests.bench.proof import sets
from train.simulate.one_run import RunSettings
from train.simulate.oracle_dataset import OracleDataset

EXEMPLARS, ROUNDS, LONG = 5, {"exemplars": 5, "none": 8}, 20  # LONG: the rounds of random, to see when it gets there
SHARE = {
    ("plant", "exemplars"): "0.5%", ("plant", "none"): "1%",
    ("magnetic_tile", "exemplars"): "2%", ("magnetic_tile", "none"): "3%",
    ("neu_det", "exemplars"): "2%", ("neu_det", "none"): "3%",
}  # fmt: skip
SEEDS = {"plant": 2, "magnetic_tile": 5, "neu_det": 3}
RATIOS = (10.0, 30.0)
PLANT_RARE = "edge_crack"
DEV = {("plant", PLANT_RARE), ("magnetic_tile", "Break"), ("neu_det", "crazing")}
MAIN = {"plant": "texture", "magnetic_tile": "mobilenet", "neu_det": "mobilenet"}
SECOND = {"magnetic_tile": "texture", "neu_det": "texture"}

BASELINES = ("random", "foreground_random", "nearest", "probe", "probe_one_a_group")
OURS = ("portfolio", "rare", "maxherding", "typiclust", "kcenter", "margin", "entropy", "badge", "class_stratified")
PEERS = (
    "lightly.diversity", "modal.uncertainty", "modal.margin", "modal.entropy", "baal.bald", "baal.entropy",
    "fiftyone.uniqueness", "cleanlab.activelab", "skactiveml.coreset", "skactiveml.probcover",
    "skactiveml.typiclust", "skactiveml.badge",
)  # fmt: skip
SLOW = {"skactiveml.typiclust", "skactiveml.badge"}  # some seconds a batch: their first seed alone is run
SHORT = (*BASELINES, "portfolio", "rare", "maxherding")  # of the second table
NEED_EXEMPLARS = {"nearest", "rare"}


class Case(NamedTuple):
    """A setting without strategy, seed and rules."""

    data: str
    rare: str
    ratio: float
    start: str

    @property
    def dev(self) -> bool:
        return (self.data, self.rare) in DEV

    @property
    def name(self) -> str:
        tail = f" {self.ratio:g}:1" if self.ratio > 1 else ""
        return f"{self.data} {self.rare}{tail}, {self.start}"


@lru_cache(maxsize=2)
def oracle_dataset(data: str, vectors: str) -> OracleDataset:
    images = sets.load(data, vectors)
    mine = images.tiles != WHOLE
    windows = Windows(images.rows[mine], images.tiles[mine], images.vectors[mine])
    return OracleDataset(
        name=f"{data} {vectors}",
        ids=tuple(images.ids.tolist()),
        vectors=images.whole,
        classes=tuple(images.classes.tolist()),
        present=images.present,
        groups=images.groups,
        spare=images.library,
        windows=windows,
        marks=_marks(images.best, windows),
    )


def _marks(best: NDArray[np.int16], windows: Windows) -> NDArray[np.int64]:
    """Return row, class and window index of the tile that contains most of each defect."""
    place = {key: number for number, key in enumerate(zip(windows.rows.tolist(), windows.tiles.tolist(), strict=True))}
    rows, classes = np.nonzero(best > WHOLE)
    return np.array([(r, c, place[r, int(best[r, c])]) for r, c in zip(rows, classes, strict=True)], np.int64).reshape(
        -1, 3
    )


def cases() -> Iterator[Case]:
    """Yield all cases, those of dev first."""
    yield from sorted(_cases(), key=lambda case: not case.dev)


def _cases() -> Iterator[Case]:
    yield from (Case("plant", PLANT_RARE, 1.0, start) for start in ("exemplars", "none"))
    yield from (Case("magnetic_tile", rare, 1.0, "exemplars") for rare in sets.classes("magnetic_tile"))
    yield Case("magnetic_tile", "Fray", 1.0, "none")  # the scarcest; recall is kept of every class
    for ratio in RATIOS:
        for start in ("exemplars", "none"):
            yield from (Case("neu_det", rare, ratio, start) for rare in sets.classes("neu_det"))


def strategies(case: Case) -> tuple[str, ...]:
    names = (*BASELINES, *OURS, *PEERS)
    return tuple(name for name in names if case.start == "exemplars" or name not in NEED_EXEMPLARS)


def settings(case: Case, names: tuple[str, ...] = ()) -> Iterator[RunSettings]:
    """Yield every strategy and seed with the shared rules, and without them where there are groups to spread over."""
    for name in names or strategies(case):
        for seed in range(1 if name in SLOW else SEEDS[case.data]):
            yield from _layers(case, RunSettings(strategy=name, seed=seed, **_shared(case, name, seed)))


def _layers(case: Case, setting: RunSettings) -> Iterator[RunSettings]:
    if setting.strategy != "probe":
        yield setting
    grouped = case.data == "magnetic_tile" or setting.strategy in {"probe", "random"}
    if grouped and setting.strategy != "probe_one_a_group":
        yield replace(setting, rules=False)


def _shared(case: Case, name: str, seed: int) -> dict[str, Any]:
    rounds = LONG if (name, case.start) == ("random", "none") else ROUNDS[case.start]
    share = SHARE[case.data, case.start]
    shared = {"start": case.start, "rare": case.rare, "rounds": rounds, "budget": share, "imbalance": case.ratio}
    if case.start == "exemplars":
        return shared | {"exemplars": EXEMPLARS, "wanted": (case.rare,)}
    return shared | {"fold": seed % 5}
