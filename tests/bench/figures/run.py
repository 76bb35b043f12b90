"""Results of training on real steel: `python -m tests.bench.figures.run`, or `make figures`.

Trains the recipes of `plans.py` on NEU-DET and on magnetic tiles (`../shared/data`), evaluates each once on test and
writes RESULTS.md after every run. All state is in `out/figures`; a run that was killed continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curate import files
from curate.admin import setup
from curate.cli._common import bars
from curate.formats import neu_det
from curate.index import sync
from curate.index.dataset import Index
from curate.project import FILE, Project, load
from tests.bench.figures import results
from tests.bench.figures.plans import DATA, LOOKED_INTO, NEU, NONE, TILE, Plan, plans
from tests.fakes import REAL, need_real

HOUSE = Path(__file__).resolve().parents[3]
WEIGHTS = REAL / "weights" / "mobilenet_v2_imagenet_bnfolded.pth"


# --- projects -------------------------------------------------------------------------------------------------------


def project_of(data: str, out: Path) -> Project:
    """The data set's project, made and indexed if it is not there."""
    folder = out / data
    if not (folder / FILE).is_file():
        setup.write(folder, [source_of(data, out)], classes_of(data))
    project = load(folder)
    with files.writer_lock(project.work, "figures: index"), bars() as step:
        sync.run(project, step)
    return project


def source_of(data: str, out: Path) -> dict[str, Any]:
    if data == TILE:
        return {"name": "tile", "format": "magnetic_tile", "data": REAL / "magnetic_tile", "kind": "public"}
    return {"name": "neu", "format": "class_folders", "data": sorted_by_class(out / "neu-images"), "kind": "public"}


def classes_of(data: str) -> tuple[str, ...]:
    from curate.formats import magnetic_tile

    return magnetic_tile.CLASSES if data == TILE else neu_det.CLASSES


def sorted_by_class(target: Path) -> Path:
    """NEU-DET as one folder a class: its class stands in the file name, and its boxes name others beside."""
    if not target.is_dir():
        with files.written_aside(target) as aside:
            for path in sorted((REAL / "neu_det" / "IMAGES").glob("*.jpg")):
                folder = aside / path.stem.rpartition("_")[0]
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / path.name)
    return target


# --- one run --------------------------------------------------------------------------------------------------------


def run_one(project: Project, plan: Plan, out: Path, full: bool) -> None:
    """Train and evaluate a plan, unless that is done already."""
    from train.evaluate import run as evaluating
    from train.fit import run as training

    overrides = plan.overrides(str(WEIGHTS), full)
    with bars() as step:
        trained = training.run(project, training.TrainRequest(None, plan.recipe, overrides), step)
        with files.writer_lock(project.work, "figures: evaluate"):
            found = evaluating.run(project, evaluating.EvaluateRequest(trained.model.key), step)
    about = {"plan": vars(plan), "full": full, "overrides": overrides, "positives": results.positives(found.folder)}
    about |= {"made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "machine": results.machine()}
    kept = {name: value for name, value in trained.model.manifest.items() if name != "images"}
    value = about | {"trained": kept, "evaluated": {"manifest": found.manifest, "figures": found.metrics}}
    files.write_json(file_of(out / "results", plan, full), value)


def file_of(folder: Path, plan: Plan, full: bool) -> Path:
    return folder / f"{plan.name}{'-full' if full else ''}.json"


def compare_starts(project: Project, chosen: Sequence[Plan], out: Path, full: bool) -> None:
    """Compare ImageNet's weights with random ones: the same recipe on the same images of test."""
    from train.evaluate import compare
    from train.evaluate import run as evaluating

    for plan in chosen:
        other = replace(plan, start=NONE)
        if plan == other or other not in chosen:
            continue
        keys = [json.loads(file_of(out / "results", one, full).read_text())["trained"]["key"] for one in (other, plan)]
        with files.writer_lock(project.work, "figures: compare"):
            found = compare.run(project, keys[0], keys[1], evaluating.EvaluateRequest())
        files.write_json(file_of(out / "compared", plan, full), {"plan": vars(plan)} | found.to_json())


def look_into(project: Project, plan: Plan, out: Path, full: bool) -> None:
    """Explain one model, and test its robustness to changed images and to an exposure left out of training."""
    from train.evaluate import run as evaluating
    from train.fit import run as training

    found: dict[str, Any] = {"plan": vars(plan)}
    with bars() as step:
        key = training.run(
            project, training.TrainRequest(None, plan.recipe, plan.overrides(str(WEIGHTS), full)), step
        ).model.key
        for name, look in looks(project, evaluating.EvaluateRequest(key), step).items():
            found[name] = look().to_json()
            files.write_json(file_of(out / "looks", plan, full), found)
            results.write(out)


def looks(project: Project, request: Any, step: Any) -> dict[str, Callable[[], Any]]:
    from train.evaluate import explain, leave_out, robustness

    return {
        "explain": lambda: explain.run(project, explain.ExplainRequest(request.model), step),
        "robustness": lambda: robustness.run(project, request, step),
        "leave_out": lambda: leave_out.run(leave_out.make_task(project, request, "exposure"), step),
    }


# --- all of them ----------------------------------------------------------------------------------------------------


def run_all(data: str, wanted: argparse.Namespace) -> None:
    project = project_of(data, wanted.out)
    files.write_json(wanted.out / "splits" / f"{data}.json", results.splits(Index(project)))
    chosen = plans(data, wanted.recipes, wanted.seeds)
    for plan in chosen:
        run_one(project, plan, wanted.out, wanted.full)
        results.write(wanted.out)
    compare_starts(project, chosen, wanted.out, wanted.full)
    results.write(wanted.out)
    if LOOKED_INTO in chosen:
        look_into(project, LOOKED_INTO, wanted.out, wanted.full)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DATA, help="one data set")
    parser.add_argument("--recipes", nargs="+", default=[], help="some recipes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--full", action="store_true", help="sizes and epochs as the recipes ship: wants a GPU")
    parser.add_argument("--table", action="store_true", help="train nothing: write RESULTS.md from what there is")
    parser.add_argument("--out", type=Path, default=HOUSE / "out" / "figures")
    wanted = parser.parse_args()
    wanted.out = wanted.out.resolve()
    if wanted.table:
        results.write(wanted.out)
        return 0
    need_real()
    if wanted.only:
        run_all(wanted.only, wanted)
        return 0
    command = [sys.executable, "-m", "tests.bench.figures.run", *sys.argv[1:]]
    # a process of its own for each: FiftyOne connects to one project's database
    return max(subprocess.run([*command, "--only", data], check=False).returncode for data in (NEU, TILE))


if __name__ == "__main__":
    sys.exit(main())
