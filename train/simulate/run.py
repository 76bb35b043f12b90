"""`curate simulate`: would this strategy have beaten random on the user's own labelled data?

The labels are hidden and bought back, round by round (`train/simulate/one_run.py`). Each play is cached in
`work/simulations/plays`, so that a killed run goes on where it was and further strategies cost only themselves; the
result lies in `work/simulations/<key>/`: simulation.json, curves.parquet, report.html.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import CurateError, unknown
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.labels import log as label_log
from curate.project import Project
from curate.strategies import CATALOGUE
from train import recipe
from train.simulate import grid
from train.simulate.from_index import of_project
from train.simulate.html_report import page
from train.simulate.one_run import Curve, RunSettings, Teacher, prepared
from train.simulate.oracle_dataset import OracleDataset, fingerprint
from train.simulate.summary import YARDSTICK, summary

STEP = 1  # raise it when the same curves make another page than before
RESULT, CURVES, REPORT = "simulation.json", "curves.parquet", "report.html"
LEARNERS = {"probe": "", "classifier": "classification", "segmenter": "segmentation"}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SimulateRequest:
    """What the user asks for. `setting`: all that strategies, seeds and folds have in common."""

    strategies: tuple[str, ...] = ("portfolio", YARDSTICK)
    setting: RunSettings = field(default_factory=RunSettings)
    seeds: int = 6
    jobs: int = 1
    encoder: str | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True)
class SimulateResult:
    """What came of it; `fresh` is false where nothing had to be played."""

    folder: Path
    found: dict[str, Any]
    fresh: bool

    def to_json(self) -> dict[str, Any]:
        return {"key": self.folder.name, "folder": str(self.folder), "fresh": self.fresh} | self.found


def run(
    project: Project, wish: SimulateRequest, progress: Progress = lambda stage, done, total: None
) -> SimulateResult:
    """Play what has not been played yet, and write the result."""
    world, notes = of_project(project, wish.encoder)
    settings = settings_of(world, wish)
    home = project.work / "simulations"
    teachers, jobs, mark = _teachers(project, world, wish)
    about = [fingerprint(world), [asdict(one) for one in settings], grid.code(), wish.overrides, STEP]
    key, kept = key_of([*about, mark] if mark else about), home / "plays" / mark
    with files.writer_lock(home, "curate simulate"):
        if found := _stored(home / key):
            return SimulateResult(home / key, found, fresh=False)
        plays = [(world, one) for one in settings]
        curves = grid.play_all(plays, kept, jobs, grid.ours, teachers, progress)
        found = summary(curves, next(one.label for one in settings if one.strategy == YARDSTICK))
        found = _write(home / key, world, curves, found | {"notes": [*notes, *found["notes"]]})
        files.remove(kept / "worlds")  # a copy of vectors and labels, made again when it is needed
    return SimulateResult(home / key, found, fresh=True)


# --- what is played -------------------------------------------------------------------------------------------------


def settings_of(world: OracleDataset, wish: SimulateRequest) -> list[RunSettings]:
    """A play a strategy and seed; seeds take turns with the folds. Raises CurateError where one cannot be played."""
    names = list(dict.fromkeys((*wish.strategies, YARDSTICK)))
    for name in names:
        CATALOGUE.load(name)
    _check(world, wish)
    base = replace(wish.setting, learner=_mark(wish))
    every = [replace(base, seed=seed, fold=seed % base.folds) for seed in range(wish.seeds)]
    for one in every:
        prepared(world, one)
    return [replace(one, strategy=name) for name in names for one in every]


def _check(world: OracleDataset, wish: SimulateRequest) -> None:
    groups, rare = len(set(world.groups.tolist())), wish.setting.rare
    if wish.setting.learner not in LEARNERS:
        raise unknown("learner", wish.setting.learner, LEARNERS)
    if wish.overrides and wish.setting.learner == "probe":
        raise CurateError(
            "--set changes a recipe, and the learner probe has none; give --learner classifier or segmenter"
        )
    if not 2 <= wish.setting.folds <= groups:
        raise CurateError(f"{wish.setting.folds} folds of {groups} groups; allowed: 2 to the number of groups")
    if rare is not None and len(set(world.groups[world.present[:, world.number(rare)]].tolist())) < 2:
        raise CurateError(f"class {rare} comes from one group alone: nothing would be left to find. Label more of it")


def _mark(wish: SimulateRequest) -> str:
    """Another recipe is another learner."""
    return " ".join([wish.setting.learner, *wish.overrides])


def _teachers(project: Project, world: OracleDataset, wish: SimulateRequest) -> tuple[grid.Teachers, int, str]:
    """And how many play at a time: networks use all cores, or the GPU. Last, a key of all that a network depends on
    beside the world, which knows nothing of outlines, recipes and first weights."""
    task = LEARNERS[wish.setting.learner]
    if not task:
        return grid.linear, wish.jobs, ""
    from curate.devices import device_of
    from train.fit import pretrained
    from train.fit import run as training
    from train.simulate.networks import NetworkLearner

    items = tuple(Index(project).items(list(world.ids)))
    known = recipe.load(recipe.DEFAULTS[task], wish.overrides)
    made = NetworkLearner(items, known, project.config.limits.max_pixels, device_of(wish.device))

    def teachers(setting: RunSettings) -> Teacher:
        return made

    outlines = [(one.id, one.label.digest) for one in items]
    mark = key_of([outlines, known.model_dump(mode="json"), pretrained.mark_of(known.model), training.STEP])
    return teachers, 1, mark


# --- what is written ------------------------------------------------------------------------------------------------


def _stored(folder: Path) -> dict[str, Any] | None:
    """A result of which no play failed: those that did are tried again."""
    if not (folder / RESULT).is_file():
        return None
    found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return None if any(row.get("failed") for one in found["sections"] for row in one["rows"]) else found


def _write(folder: Path, world: OracleDataset, curves: Sequence[Curve], found: dict[str, Any]) -> dict[str, Any]:
    """The result comes last: a folder with it is whole."""
    about = f"{len(world)} labelled images of {len(set(world.groups.tolist()))} groups, {label_log.now()}"
    plain: dict[str, Any] = grid.plain(found | {"about": about, "images": len(world)})
    with files.written_aside(folder) as aside:
        aside.mkdir()
        table(curves, aside / CURVES)
        files.write_text(aside / REPORT, page(f"{world.name}: labels hidden and bought back", f"{about}.", found))
        files.write_json(aside / RESULT, plain)
        files.remove(folder)
    return plain


def table(curves: Sequence[Curve], file: Path) -> None:
    """One line a figure: setting, point, metric, class (empty: of all), value."""
    import pyarrow as pa
    from pyarrow import parquet

    write: Any = parquet.write_table
    write(pa.Table.from_pylist([row for curve in curves for row in _rows(curve)]), file)


def _rows(curve: Curve) -> list[dict[str, Any]]:
    asked = {name: value for name, value in asdict(curve.setting).items() if name not in ("options", "wanted")}
    found = []
    for point in curve.points:
        here = {"world": curve.world, **asked, "round": point.round, "labels": point.labels, "minutes": point.minutes}
        values = {("", name): getattr(point, name) for name in ("seconds", "macro_f1", "map")}
        values |= {(name, key): value for name, one in point.by_class.items() for key, value in one.items()}
        found += [here | {"class": name, "metric": key, "value": float(one)} for (name, key), one in values.items()]
    return found
