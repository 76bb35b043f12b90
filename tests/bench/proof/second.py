"""The settings of the second protocol (PROTOCOL-2.md), and their oracle datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tests.bench.proof import sets, worlds
from train.simulate.one_run import EXEMPLARS, HIDDEN, NO_LABELS, RunSettings
from train.simulate.oracle_dataset import OracleDataset, with_test_fold

FAMILY = {
    "magnetic_tile": "tile", "neu_det": "strip", "sd900": "strip", "plant_dev": "plant", "plant_held": "plant",
}  # fmt: skip
PAIRS = (("crazing", "scratches"), ("inclusion", "pitted_surface"), ("patches", "rolled-in_scale"))
DEV = {
    "magnetic_tile": {"Break"}, "neu_det": {"crazing", "scratches"}, "sd900": {"scratches"},
    "plant_dev": {"edge_crack"},
}  # fmt: skip
ROUNDS = {EXEMPLARS: 5, HIDDEN: 12, NO_LABELS: 12}
LONG = 20  # rounds of 0.5 % from a cold start
FOLDS = 5


class Setting(NamedTuple):
    """A setting without strategy and draw.

    Args:
        data: the data set. start: as in `RunSettings`.
        sought: the rare classes; wanted ones from exemplars, the hidden one; empty: all classes are alike.
        ratio: images of the largest class for each of a sought class; 0: as they are.
        keep: groups that stay of every class, or of the hidden one; 0: all.
        budget: of a round.
    """

    data: str
    start: str
    sought: tuple[str, ...]
    ratio: int
    keep: int
    budget: str

    @property
    def family(self) -> str:
        return FAMILY[self.data]

    @property
    def dev(self) -> bool:
        """True where it may be tuned on."""
        if not self.sought:
            return self.data == "plant_dev" or (self.data == "magnetic_tile" and self.keep == 2)
        return set(self.sought) <= DEV.get(self.data, set())

    @property
    def rounds(self) -> int:
        return LONG if (self.start, self.budget) == (NO_LABELS, "0.5%") else ROUNDS[self.start]

    @property
    def draws(self) -> int:
        if self.data != "magnetic_tile":
            return 3
        return 10 if self.start == NO_LABELS else 5

    @property
    def name(self) -> str:
        kept = f"{self.ratio}:1" if self.ratio else f"{self.keep} groups" if self.keep else ""
        start = {EXEMPLARS: "exemplars", HIDDEN: "hidden", NO_LABELS: "cold"}[self.start]
        return " ".join(filter(None, [self.data, "+".join(self.sought), kept, start, self.budget]))


def settings() -> Iterator[Setting]:
    """Yield all settings, those of dev first."""
    yield from sorted(_settings(), key=lambda setting: not setting.dev)


def _settings() -> Iterator[Setting]:
    tile, neu, sd900 = (sets.classes(data) for data in ("magnetic_tile", "neu_det", "sd900"))
    for name in tile:
        yield Setting("magnetic_tile", EXEMPLARS, (name,), 0, 0, "0.5%")
        yield Setting("magnetic_tile", EXEMPLARS, (name,), 0, 3, "1%")
        yield Setting("magnetic_tile", HIDDEN, (name,), 0, 3, "1%")
    for keep in (2, 3):
        yield Setting("magnetic_tile", NO_LABELS, (), 0, keep, "1%")
    for name in neu:
        for start in (EXEMPLARS, NO_LABELS):
            yield Setting("neu_det", start, (name,), 30, 0, "0.5%")
            yield Setting("neu_det", start, (name,), 100, 0, "1%")
        yield Setting("neu_det", HIDDEN, (name,), 100, 0, "1%")
    for pair in PAIRS:
        yield from (Setting("neu_det", start, pair, 100, 0, "1%") for start in (EXEMPLARS, NO_LABELS))
    for name in sd900:
        yield Setting("sd900", EXEMPLARS, (name,), 30, 0, "0.5%")
        yield Setting("sd900", NO_LABELS, (name,), 100, 0, "1%")
    for data, rare in (("plant_dev", (("edge_crack",),)), ("plant_held", (("edge_crack",), ("blister",)))):
        yield from (Setting(data, start, names, 0, 0, "0.5%") for names in rare for start in (EXEMPLARS, HIDDEN))
        yield Setting(data, NO_LABELS, (), 0, 0, "0.5%")
    yield Setting("plant_held", EXEMPLARS, ("edge_crack", "blister"), 0, 0, "0.5%")


def run_settings(setting: Setting, strategy: str, draw: int) -> RunSettings:
    """Return the settings of one run on `world(setting, ...)`."""
    rare = setting.sought if setting.start != NO_LABELS else ()
    return RunSettings(
        strategy=strategy,
        start=setting.start,
        rare=rare[0] if rare else None,
        also_rare=rare[1:],
        wanted=rare if setting.start == EXEMPLARS else (),
        rounds=setting.rounds,
        budget=setting.budget,
        seed=draw,
    )


def world(setting: Setting, vectors: str, draw: int) -> OracleDataset:
    """Return the data set of one draw: with a test from a cold start, and without the groups that are one too many."""
    oracle = whole(setting.data, vectors)
    if setting.start == NO_LABELS:
        oracle = with_test_fold(oracle, FOLDS, draw % FOLDS)
    return cut_down(oracle, _targets(setting, oracle), draw)


@lru_cache(maxsize=4)
def whole(data: str, vectors: str) -> OracleDataset:
    return worlds.oracle_dataset(data, vectors)


def _targets(setting: Setting, oracle: OracleDataset) -> dict[str, int]:
    """Return the groups that stay, for each class that is cut down."""
    if setting.ratio:
        most = int(oracle.present[oracle.pooled].sum(axis=0).max())
        return dict.fromkeys(setting.sought, max(1, most // setting.ratio))
    names = setting.sought if setting.start == HIDDEN else oracle.classes
    return dict.fromkeys(names, setting.keep) if setting.keep else {}


def cut_down(oracle: OracleDataset, targets: Mapping[str, int], draw: int) -> OracleDataset:
    """Keep so many of the pool's groups of each of these classes; others that show one become spare.

    A group that shows two of the classes counts for both, so that of one class a few more may stay. Test rows stay,
    weighted to the new prior.
    """
    if not targets:
        return oracle
    rng, pooled = np.random.default_rng([draw, 11]), oracle.pooled
    shown = {name: pooled & oracle.present[:, oracle.number(name)] for name in targets}
    kept = np.zeros(0, np.int64)
    for name in sorted(targets, key=lambda name: (len(np.unique(oracle.groups[shown[name]])), name)):
        groups = np.unique(oracle.groups[shown[name]])
        others = rng.permutation(groups[~np.isin(groups, kept)])
        kept = np.union1d(kept, others[: max(0, targets[name] - int(np.isin(groups, kept).sum()))])
    gone = np.isin(oracle.groups, oracle.groups[np.any(list(shown.values()), axis=0)])
    gone &= pooled & ~np.isin(oracle.groups, kept)
    before, after = (oracle.present[rows].sum(axis=0) for rows in (pooled, pooled & ~gone))
    share = np.where(oracle.present, after / np.maximum(before, 1), 1).min(axis=1, initial=1)
    weight = np.where(oracle.test, oracle.weight * share, oracle.weight).astype(np.float32)
    return replace(oracle, spare=oracle.spare | gone, weight=weight)
