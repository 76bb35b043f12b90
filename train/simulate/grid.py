"""Many runs: each cached by its key, resumable after a kill, several at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from curate import files, workers
from curate.errors import CurateError
from curate.hashing import key_of
from train.simulate.learners import probe
from train.simulate.one_run import Curve, CurvePoint, LearnerFactory, Picker, RunSettings, simulate
from train.simulate.oracle_dataset import OracleDataset, fingerprint, load, save

CODE = (
    *("curate/greedy", "curate/strategies", "curate/select/cost.py", "curate/vectors/nearest.py"),
    *(
        f"curate/select/{name}.py"
        for name in (
            *("pool", "build_pool", "linear_probe", "window_probe"),
            *("uncertainty", "rules", "whitening", "anomaly"),
        )
    ),
    *(f"train/simulate/{name}.py" for name in ("test_scores", "learners", "one_run", "oracle_dataset")),
)
Progress = Callable[[str, int, int], None]
PickerFor = Callable[[RunSettings], Picker | None]
"""Returns the picker for a setting, or None for our own strategies; a module's function, so that it can be pickled."""
LearnerFactoryFor = Callable[[RunSettings], LearnerFactory]


def no_pickers(setting: RunSettings) -> None:
    """Use our own strategies alone."""


def probe_for_all(setting: RunSettings) -> LearnerFactory:
    return probe


@dataclass(frozen=True)
class _RunJob:
    """A run, as it is sent to a worker process."""

    oracle_folder: Path
    setting: RunSettings
    target: Path
    picker_for: PickerFor
    factory_for: LearnerFactoryFor


def run_all(
    runs: Sequence[tuple[OracleDataset, RunSettings]],
    folder: Path,
    jobs: int = 1,
    picker_for: PickerFor = no_pickers,
    factory_for: LearnerFactoryFor = probe_for_all,
    progress: Progress = lambda stage, done, total: None,
) -> list[Curve]:
    """Simulate the runs that `folder` does not hold yet; a change of code makes all of them anew.

    Args:
        runs: oracle datasets and settings.
        folder: the cache, from which an earlier call, also a killed one, continues.
        jobs: number of processes.
        picker_for: returns the picker of a setting.
        factory_for: returns the learner factory of a setting.
        progress: called with stage, runs done and runs in all.

    Returns:
        A curve for each run, in order. A picker's CurateError ends its own curve alone (`failed`); such runs are tried
        again in the next call.
    """
    oracle_folders = {id(oracle): _oracle_folder(oracle, folder) for oracle, _ in runs}
    run_jobs = [
        _RunJob(oracle_folders[id(oracle)], setting, folder, picker_for, factory_for) for oracle, setting in runs
    ]
    job_of = {_curve_file(job): job for job in run_jobs}
    todo = [job for file, job in job_of.items() if not file.is_file()]
    progress("simulate", len(job_of) - len(todo), len(job_of))
    fresh = _parallel(todo, jobs, progress, len(job_of)) if jobs > 1 else _serial(todo, progress, len(job_of))
    return [fresh.get(_curve_file(job)) or _read_curve(_curve_file(job), job.setting) for job in run_jobs]


def _oracle_folder(oracle: OracleDataset, folder: Path) -> Path:
    home = folder / "worlds" / fingerprint(oracle)
    if not home.is_dir():
        save(oracle, home)
    return home


def _curve_file(job: _RunJob) -> Path:
    settings = asdict(job.setting) | {"options": dict(job.setting.options)}
    return job.target / "curves" / f"{key_of([job.oracle_folder.name, settings, code_digest()])}.json"


@cache
def code_digest() -> str:
    """Return a hash of the code that a curve depends on: after a change of it, runs are simulated again."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.blake2b(digest_size=12)
    for place in CODE:
        for file in sorted((root / place).rglob("*.py")) if (root / place).is_dir() else [root / place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _serial(todo: Sequence[_RunJob], progress: Progress, total: int) -> dict[Path, Curve]:
    curves = {}
    for job in todo:
        curves[_curve_file(job)] = _run_job(job)
        progress("simulate", 1, total)
    return curves


def _parallel(todo: Sequence[_RunJob], jobs: int, progress: Progress, total: int) -> dict[Path, Curve]:
    curves = {}
    with workers.pool(min(jobs, max(1, len(todo)))) as pool:
        futures = {pool.submit(_run_job, job): _curve_file(job) for job in todo}
        try:
            for future in as_completed(futures):
                curves[futures[future]] = future.result()
                progress("simulate", 1, total)
        except BrokenProcessPool:
            raise CurateError(
                "a process of the simulation was killed, perhaps for lack of memory. Run it again with fewer --jobs: "
                "finished runs are kept"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return curves


def _run_job(job: _RunJob) -> Curve:
    """Simulate one run, with one thread: floating-point sums depend on how threads split them."""
    import sklearn.linear_model  # noqa: F401 - imported now, so that no strategy's time includes it
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def remember(key: Any, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        file = job.target / "full" / f"{key_of([job.oracle_folder.name, code_digest(), key])}.json"
        if not file.is_file():
            files.write_json(file, without_nan(compute()))
        return {name: _number(value) for name, value in files.read_json(file).items()}

    try:
        with threadpool_limits(1):
            curve = simulate(
                _load_oracle(job.oracle_folder),
                job.setting,
                job.picker_for(job.setting),
                job.factory_for(job.setting),
                remember,
            )
    except CurateError as error:
        return Curve(_load_oracle(job.oracle_folder).name, job.setting, (), {}, failed=str(error))
    about = asdict(curve) | {"setting": asdict(job.setting) | {"options": dict(job.setting.options)}}
    files.write_json(_curve_file(job), without_nan(about))
    return curve


@lru_cache(maxsize=2)
def _load_oracle(folder: Path) -> OracleDataset:
    return load(folder)


def _read_curve(file: Path, setting: RunSettings) -> Curve:
    known = files.read_json(file)
    points = tuple(CurvePoint(**{name: _with_nan(value) for name, value in point.items()}) for point in known["points"])
    return Curve(known["world"], setting, points, _with_nan(known["full"]), known["pieces"], tuple(known["notes"]))


def without_nan(value: Any) -> Any:
    """Return the value with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    return {name: _with_nan(item) for name, item in value.items()} if isinstance(value, Mapping) else _number(value)


def _number(value: Any) -> Any:
    return math.nan if value is None else value
