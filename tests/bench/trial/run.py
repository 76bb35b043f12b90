"""Does synthesis help on magnetic tiles? Plays PROTOCOL.md: `python -m tests.bench.trial.run`, or `make trial`.

Hours of a core; all state lies in `out/trial`, so a killed run goes on where it was. Writes RESULTS.md, with what a
person saw (SEEN.md) at its end. `--write` trains nothing, and sets down those seeds of which every training is there.
"""

from __future__ import annotations

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import argparse
from dataclasses import replace
from pathlib import Path

from curate import files
from curate.admin import setup
from curate.cli._common import bars
from curate.formats import magnetic_tile
from curate.index import sync
from curate.project import FILE, Project, load
from synth.trial import design
from synth.trial import run as trial
from synth.trial.arms import BALANCED
from synth.trial.design import TrialDesign, TrialRequest
from synth.trial.run import TrialReport
from tests.bench.trial import results
from tests.fakes import REAL, REPOSITORY, need_real

WEIGHTS = REAL / "weights" / "mobilenet_v2_imagenet_bnfolded.pth"
SYNTHETIC = ("paste", "poisson", "diffusion", "gan")
CLASSES = ("Blowhole", "Break", "Crack", "Fray")
SCREEN = TrialRequest(
    arms=design.ARMS,
    classes=CLASSES,
    budgets=(10,),
    ratios=(1.0,),
    seeds=3,
    folds=2,
    tested=1,
    scale=0.5,
    overrides=(f"model.weights={WEIGHTS}", "input.scale=tf"),
    device="cpu",
)
FULL = replace(SCREEN, stage="full", seeds=5, tested=2)
CURVE = replace(SCREEN, arms=(BALANCED,), budgets=(5, 20), seeds=5, tested=2)
BUDGETS = replace(SCREEN, budgets=(5, 20), tested=2)
RATIOS = replace(SCREEN, arms=(BALANCED, *SYNTHETIC), ratios=(0.5, 2.0))
AGAIN = replace(SCREEN, arms=(BALANCED, *SYNTHETIC), budgets=(20,), seeds=5, tested=2)
SECOND_LOOK = "With twenty, a second look"
MORE = {"With other budgets": BUDGETS, "At other ratios": RATIOS, SECOND_LOOK: AGAIN}


def project_of(folder: Path) -> Project:
    """Magnetic tile, all of it train: the trial's folds are its val and test."""
    if not (folder / FILE).is_file():
        source = {"name": "tile", "format": "magnetic_tile", "data": REAL / "magnetic_tile", "kind": "public"}
        setup.write(folder, [source], magnetic_tile.CLASSES)
        text = (folder / FILE).read_text(encoding="utf-8").replace("# [splits]", '[splits]\nratio = "100/0/0"')
        files.write_text(folder / FILE, text)
    project = load(folder)
    with files.writer_lock(project.work, "trial: index"), bars() as step:
        sync.run(project, step)
    return project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=REPOSITORY / "out" / "trial", help="the project's folder")
    parser.add_argument("--write", action="store_true", help="train nothing, write RESULTS.md")
    asked = parser.parse_args()
    need_real()
    project = project_of(asked.home)
    if not asked.write:
        for wish in (CURVE, BUDGETS, RATIOS, AGAIN, SCREEN, FULL):  # the trial's own files speak of the last of a stage
            played(project, wish)
    screen, full, curve = (whole(project, wish) for wish in (SCREEN, FULL, CURVE))
    more = {title: whole(project, wish) for title, wish in MORE.items()}
    more["With twenty, the new seeds alone"] = unseen(more[SECOND_LOOK])
    results.write(screen, full, curve, more)


def played(project: Project, wish: TrialRequest) -> TrialReport:
    with bars() as step:
        return trial.run(project, wish, step)


def whole(project: Project, wish: TrialRequest) -> TrialDesign:
    """With those seeds alone of which every arm is trained in every fold."""
    plot = design.planned(project, wish)
    lacking = {one.seed for one in plot.runs if not trial.file_of(plot, one).is_file()}
    return replace(plot, runs=tuple(one for one in plot.runs if one.seed not in lacking))


def unseen(plot: TrialDesign) -> TrialDesign:
    """The seeds that the first look did not have."""
    return replace(plot, runs=tuple(one for one in plot.runs if one.seed >= (SCREEN.seeds or 0)))


if __name__ == "__main__":
    main()
