"""The proof with trained segmenters: `python -m tests.bench.proof.full`, or `make proof-full`. Hours without a GPU.

It runs `curate simulate` on projects of its own under `out/proof/full`: a run that was killed continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from curate import files
from curate.admin import setup
from curate.cli._common import bars
from curate.formats import magnetic_tile
from curate.index import sync
from curate.project import FILE, Project, load
from curate.vectors import run as embedding
from tests.bench.proof.sets import CACHE, WEIGHTS
from tests.fakes import REAL, need_real
from train.simulate import run as simulating
from train.simulate.one_run import RunSettings

STRATEGIES = ("portfolio", "random", "entropy", "maxherding")
SEEDS, ROUNDS, BUDGET = 3, 5, "4%"
# A network for a GPU or a night, whose first weights lie here: no hub is asked.
RECIPE = (
    *("model.encoder=mobilenet_v2", f"model.weights={REAL / WEIGHTS}", "input.scale=tf"),
    *("input.height=128", "input.width=128", "epochs=20"),
)
SD900 = ("In", "Pa", "Sc")
SOURCES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "magnetic_tile": (magnetic_tile.CLASSES, {"format": "magnetic_tile"}),
    "sd900": (SD900, {"format": "mask_folder", "options": {"class_from": "prefix"}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(SOURCES), help="one data set")
    parser.add_argument("--names", default=",".join(STRATEGIES), help="strategies; random is added")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe")
    asked = parser.parse_args()
    need_real()
    for name in [asked.only] if asked.only else SOURCES:
        project = project_of(name, CACHE / "full" / name)
        setting = RunSettings(start="none", rounds=asked.rounds, budget=BUDGET, learner="segmenter")
        request = simulating.SimulateRequest(
            tuple(asked.names.split(",")), setting, asked.seeds, overrides=(*RECIPE, *asked.set)
        )
        with bars() as step:
            done = simulating.run(project, request, step)
        print(f"{name}: {done.folder}")


def project_of(name: str, folder: Path) -> Project:
    """Create, index and embed the project, as far as that is not done."""
    classes, source = SOURCES[name]
    if not (folder / FILE).is_file():
        setup.write(folder, [{"name": name, "data": REAL / name, "kind": "public", **source}], classes)
    project = load(folder)
    options = {"weights": str(REAL / WEIGHTS), "scale": "tf"}
    with files.writer_lock(project.work, "proof: index"), bars() as step:
        sync.run(project, step)
        embedding.run(project, "torchvision_file", options, progress=step)
    return project


if __name__ == "__main__":
    main()
