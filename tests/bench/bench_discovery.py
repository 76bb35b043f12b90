"""What selection discovers on real tiles: `python -m tests.bench.bench_discovery [--encoder texture] [--seeds 4]`.

Two tables. *Cold*: magnetic tiles cut down to `--keep` groups a defect class, rounds of ten from no label; classes seen
after 20, 40 and 60 labels, and the labels until all five are seen (a run that does not get there counts with the labels
it has spent, plus a round). *Five exemplars*: `--rare` (`Break` is the protocol's dev class), rounds of 1 %, mean group
recall over five rounds, and that of the last. Vectors are those of the proof (`out/proof/`).
"""

from __future__ import annotations

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import argparse
from dataclasses import replace

import numpy as np

from tests.bench._measure import print_table
from tests.bench.proof.ask import pickers
from tests.bench.proof.worlds import oracle_dataset
from train.simulate.one_run import RunSettings, simulate
from train.simulate.oracle_dataset import OracleDataset

COLD, WARM = "random,maxherding,portfolio,anomaly", "probe_one_a_group,rare,window_probe,portfolio"
ROUND, ROUNDS = 10, 12


def cut_down(oracle: OracleDataset, keep: int, seed: int) -> OracleDataset:
    """Keep so many groups of each class; the others leave the pool."""
    rng, gone = np.random.default_rng([seed, 77]), np.zeros(len(oracle), bool)
    for shown in oracle.present.T:
        gone |= np.isin(oracle.groups, rng.permutation(np.unique(oracle.groups[shown]))[keep:])
    return replace(oracle, spare=oracle.spare | gone)


def cold(oracle: OracleDataset, name: str, keep: int, seeds: int) -> list[str]:
    seen, spent = [], []
    for seed in range(seeds):
        setting = RunSettings(strategy=name, rounds=ROUNDS, budget=str(ROUND), seed=seed)
        points = simulate(cut_down(oracle, keep, seed), setting, pickers(setting)).points
        counts = [sum(scores["groups"] > 0 for scores in point.by_class.values()) for point in points]
        seen.append([counts[labels // ROUND] for labels in (20, 40, 60)])
        reached = [point.labels for point, count in zip(points, counts, strict=True) if count == len(oracle.classes)]
        spent.append(reached[0] if reached else points[-1].labels + ROUND)
    return [name, *(f"{value:.1f}" for value in np.mean(seen, axis=0)), f"{np.mean(spent):.0f}"]


def from_exemplars(oracle: OracleDataset, name: str, rare: str, seeds: int) -> list[str]:
    recall = []
    for seed in range(seeds):
        setting = RunSettings(strategy=name, start="exemplars", rare=rare, budget="1%", wanted=(rare,), seed=seed)
        points = simulate(oracle, setting, pickers(setting)).points[1:]
        recall.append([point.by_class[rare]["group_recall"] for point in points])
    return [name, f"{np.mean(recall):.3f}", f"{np.mean(recall, axis=0)[-1]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", choices=("texture", "mobilenet"), default="texture")
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rare", default="Break")
    parser.add_argument("--cold", default=COLD)
    parser.add_argument("--warm", default=WARM)
    given = parser.parse_args()
    oracle = oracle_dataset("magnetic_tile", given.encoder)
    if given.cold:
        rows = [cold(oracle, name, given.keep, given.seeds) for name in given.cold.split(",")]
        print_table(["cold start, classes seen after", "20", "40", "60", "labels to all"], rows)
    if given.warm:
        rows = [from_exemplars(oracle, name, given.rare, given.seeds) for name in given.warm.split(",")]
        print_table([f"five exemplars of {given.rare}", "mean recall", "last"], rows)


if __name__ == "__main__":
    main()
