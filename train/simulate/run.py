"""`curate simulate`: would this strategy have beaten random on the user's own labelled data?

The labels are hidden and bought back, round by round (`train/simulate/one_run.py`). Each run is cached in
`work/simulations/plays`, so that a killed simulation continues and a further strategy adds only its own runs; the
result is in `work/simulations/<key>/`: simulation.json, curves.parquet, report.html.
"""

from __future__ import annotations

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
from train.simulate.from_index import from_project
from train.simulate.html_report import page
from train.simulate.one_run import Curve, LearnerFactory, RunSettings, prepare
from train.simulate.oracle_dataset import OracleDataset, fingerprint
from train.simulate.summary import BASELINE, summary

STEP = 1  # raise it when the same curves give another result than before
RESULT, CURVES, REPORT = "simulation.json", "curves.parquet", "report.html"
LEARNERS = {"probe": "", "classifier": "classification", "segmenter": "segmentation"}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SimulateRequest:
    """Options of `curate simulate`. `setting`: what the runs of all strategies, seeds and folds have in common."""

    strategies: tuple[str, ...] = ("portfolio", BASELINE)
    setting: RunSettings = field(default_factory=RunSettings)
    seeds: int = 6
    jobs: int = 1
    encoder: str | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True)
class SimulateResult:
    """A finished simulation; `fresh` is false where it had been finished before."""

    folder: Path
    result: dict[str, Any]
    fresh: bool

    def to_json(self) -> dict[str, Any]:
        return {"key": self.folder.name, "folder": str(self.folder), "fresh": self.fresh} | self.result


def run(
    project: Project, request: SimulateRequest, progress: Progress = lambda stage, done, total: None
) -> SimulateResult:
    """Simulate the runs that are not cached yet, and write the result.

    Args:
        project: the project whose labelled images are used.
        request: strategies, setting, seeds and jobs.
        progress: called with stage, runs done and runs in all.

    Returns:
        The result, with its folder.
    """
    oracle, notes = from_project(project, request.encoder)
    settings = settings_of(oracle, request)
    home = project.work / "simulations"
    factory_for, jobs, mark = _learner_factories(project, oracle, request)
    about = [
        fingerprint(oracle),
        [asdict(setting) for setting in settings],
        grid.code_digest(),
        request.overrides,
        STEP,
    ]
    key, kept = key_of([*about, mark] if mark else about), home / "plays" / mark
    with files.writer_lock(home, "curate simulate"):
        if result := _read_complete(home / key):
            return SimulateResult(home / key, result, fresh=False)
        runs = [(oracle, setting) for setting in settings]
        curves = grid.run_all(runs, kept, jobs, grid.no_pickers, factory_for, progress)
        result = summary(curves, next(setting.label for setting in settings if setting.strategy == BASELINE))
        files.remove(kept / "worlds")  # copies of vectors and labels, which are made again when needed
        result = _write(home / key, oracle, curves, result | {"notes": [*notes, *result["notes"]]})
    return SimulateResult(home / key, result, fresh=True)


# --- settings -------------------------------------------------------------------------------------------------------


def settings_of(oracle: OracleDataset, request: SimulateRequest) -> list[RunSettings]:
    """Return a setting for each strategy and seed, with folds in turn; raises CurateError where one is impossible."""
    names = list(dict.fromkeys((*request.strategies, BASELINE)))
    for name in names:
        CATALOGUE.load(name)
    _check(oracle, request)
    base = replace(request.setting, learner=_learner_name(request))
    repeats = [replace(base, seed=seed, fold=seed % base.folds) for seed in range(request.seeds)]
    for setting in repeats:
        prepare(oracle, setting)
    return [replace(setting, strategy=name) for name in names for setting in repeats]


def _check(oracle: OracleDataset, request: SimulateRequest) -> None:
    groups, rare = len(set(oracle.groups.tolist())), request.setting.rare
    if request.setting.learner not in LEARNERS:
        raise unknown("learner", request.setting.learner, LEARNERS)
    if request.overrides and request.setting.learner == "probe":
        raise CurateError(
            "--set changes a recipe, and the learner probe has none; add --learner classifier or --learner segmenter"
        )
    if not 2 <= request.setting.folds <= groups:
        raise CurateError(f"{request.setting.folds} folds of {groups} groups; allowed: 2 to the number of groups")
    if rare is not None and len(set(oracle.groups[oracle.present[:, oracle.number(rare)]].tolist())) < 2:
        raise CurateError(f"class {rare} is in one group only: nothing would be left to find. Label more of it")


def _learner_name(request: SimulateRequest) -> str:
    """Return the learner's name with its recipe's overrides: another recipe is another learner."""
    return " ".join([request.setting.learner, *request.overrides])


def _learner_factories(
    project: Project, oracle: OracleDataset, request: SimulateRequest
) -> tuple[grid.LearnerFactoryFor, int, str]:
    """Return the learner factories, the number of parallel runs (networks: one), and a cache key.

    The key covers what a network depends on and the oracle dataset lacks: outlines, recipe and first weights.
    """
    task = LEARNERS[request.setting.learner]
    if not task:
        return grid.probe_for_all, request.jobs, ""
    from curate.devices import device_of
    from train.fit import pretrained
    from train.fit import run as training
    from train.simulate.networks import NetworkLearner

    items = tuple(Index(project).items(list(oracle.ids)))
    network_recipe = recipe.load(recipe.DEFAULTS[task], request.overrides)
    learner = NetworkLearner(items, network_recipe, project.config.limits.max_pixels, device_of(request.device))

    def teachers(setting: RunSettings) -> LearnerFactory:
        return learner

    outlines = [(item.id, item.label.digest) for item in items]
    mark = key_of(
        [outlines, network_recipe.model_dump(mode="json"), pretrained.mark_of(network_recipe.model), training.STEP]
    )
    return teachers, 1, mark


# --- results --------------------------------------------------------------------------------------------------------


def _read_complete(folder: Path) -> dict[str, Any] | None:
    """Read a result without failed runs; failed runs are tried again."""
    if not (folder / RESULT).is_file():
        return None
    result: dict[str, Any] = files.read_json(folder / RESULT)
    return None if any(row.get("failed") for section in result["sections"] for row in section["rows"]) else result


def _write(folder: Path, oracle: OracleDataset, curves: Sequence[Curve], result: dict[str, Any]) -> dict[str, Any]:
    """Write the folder, its result last: a folder with a result is complete."""
    about = f"{len(oracle)} labelled images of {len(set(oracle.groups.tolist()))} groups, {label_log.now()}"
    plain: dict[str, Any] = grid.without_nan(result | {"about": about, "images": len(oracle)})
    with files.written_aside(folder) as aside:
        aside.mkdir()
        table(curves, aside / CURVES)
        files.write_text(aside / REPORT, page(f"{oracle.name}: labels hidden and bought back", f"{about}.", result))
        files.write_json(aside / RESULT, plain)
        files.remove(folder)
    return plain


def table(curves: Sequence[Curve], file: Path) -> None:
    """Write one row a value: setting, point, metric, class (empty: over all), value."""
    import pyarrow as pa
    from pyarrow import parquet

    write: Any = parquet.write_table
    write(pa.Table.from_pylist([row for curve in curves for row in _rows(curve)]), file)


def _rows(curve: Curve) -> list[dict[str, Any]]:
    settings = {name: value for name, value in asdict(curve.setting).items() if name not in ("options", "wanted")}
    rows = []
    for point in curve.points:
        here = {
            "world": curve.world,
            **settings,
            "round": point.round,
            "labels": point.labels,
            "minutes": point.minutes,
        }
        values = {("", name): getattr(point, name) for name in ("seconds", "macro_f1", "map")}
        values |= {(name, key): value for name, metrics in point.by_class.items() for key, value in metrics.items()}
        rows += [here | {"class": name, "metric": key, "value": float(value)} for (name, key), value in values.items()]
    return rows
