"""Many plays: each cached by its key, resumable after a kill, several at a time."""

from __future__ import annotations

import hashlib
import json
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
from train.simulate.one_run import Curve, CurvePoint, Picker, RunSettings, Teacher, play
from train.simulate.oracle_dataset import OracleDataset, fingerprint, load, save

CODE = (
    *("curate/greedy", "curate/strategies", "curate/select/cost.py", "curate/vectors/nearest.py"),
    *(f"curate/select/{name}.py" for name in ("pool", "build_pool", "linear_probe", "uncertainty", "rules")),
    *(f"train/simulate/{name}.py" for name in ("test_scores", "learners", "one_run", "oracle_dataset")),
)
Progress = Callable[[str, int, int], None]
Pickers = Callable[[RunSettings], Picker | None]
"""Which picker plays a setting; None: ours. A function of a module (processes find it by its name)."""
Teachers = Callable[[RunSettings], Teacher]


def ours(setting: RunSettings) -> None:
    """No peers."""


def linear(setting: RunSettings) -> Teacher:
    return probe


@dataclass(frozen=True)
class _RunJob:
    """All that a process needs to know."""

    world: Path
    setting: RunSettings
    target: Path
    pickers: Pickers
    teachers: Teachers


def play_all(
    plays: Sequence[tuple[OracleDataset, RunSettings]],
    folder: Path,
    jobs: int = 1,
    pickers: Pickers = ours,
    teachers: Teachers = linear,
    progress: Progress = lambda stage, done, total: None,
) -> list[Curve]:
    """A curve for each, in order; those that lie in `folder` already are read, a change of code makes them anew.

    A picker's CurateError ends its own curve alone (`failed`), and is tried again next time. Killed, it goes on.
    """
    homes = {id(world): _home(world, folder) for world, _ in plays}
    made = [_RunJob(homes[id(world)], setting, folder, pickers, teachers) for world, setting in plays]
    places = {_file(one): one for one in made}
    todo = [one for file, one in places.items() if not file.is_file()]
    progress("playing", len(places) - len(todo), len(places))
    failed = _parallel(todo, jobs, progress, len(places)) if jobs > 1 else _serial(todo, progress, len(places))
    return [failed.get(_file(one)) or _read(_file(one), one.setting) for one in made]


def _home(world: OracleDataset, folder: Path) -> Path:
    home = folder / "worlds" / fingerprint(world)
    if not home.is_dir():
        save(world, home)
    return home


def _file(one: _RunJob) -> Path:
    asked = asdict(one.setting) | {"options": dict(one.setting.options)}
    return one.target / "curves" / f"{key_of([one.world.name, asked, code()])}.json"


@cache
def code() -> str:
    """Of all that a curve depends on: a strategy that was changed is played again."""
    house, digest = Path(__file__).resolve().parents[2], hashlib.blake2b(digest_size=12)
    for place in CODE:
        for file in sorted((house / place).rglob("*.py")) if (house / place).is_dir() else [house / place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _serial(todo: Sequence[_RunJob], progress: Progress, total: int) -> dict[Path, Curve]:
    found = {}
    for one in todo:
        found[_file(one)] = _played(one)
        progress("playing", 1, total)
    return found


def _parallel(todo: Sequence[_RunJob], jobs: int, progress: Progress, total: int) -> dict[Path, Curve]:
    found = {}
    with workers.pool(min(jobs, max(1, len(todo)))) as pool:
        futures = {pool.submit(_played, one): _file(one) for one in todo}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                progress("playing", 1, total)
        except BrokenProcessPool:
            raise CurateError(
                "a process of the simulation was killed, perhaps for its memory. Run it again with fewer --jobs: what "
                "was played is kept"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _played(one: _RunJob) -> Curve:
    """One curve; one thread, since sums depend on how they are split."""
    import sklearn.linear_model  # noqa: F401 - its import must not count as the time of who first needs it
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def remember(key: Any, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        file = one.target / "full" / f"{key_of([one.world.name, code(), key])}.json"
        if not file.is_file():
            files.write_json(file, plain(compute()))
        return {name: _number(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}

    try:
        with threadpool_limits(1):
            curve = play(_opened(one.world), one.setting, one.pickers(one.setting), one.teachers(one.setting), remember)
    except CurateError as error:
        return Curve(_opened(one.world).name, one.setting, (), {}, failed=str(error))
    about = asdict(curve) | {"setting": asdict(one.setting) | {"options": dict(one.setting.options)}}
    files.write_json(_file(one), plain(about))
    return curve


@lru_cache(maxsize=2)
def _opened(folder: Path) -> OracleDataset:
    return load(folder)


def _read(file: Path, setting: RunSettings) -> Curve:
    known = json.loads(file.read_text(encoding="utf-8"))
    points = tuple(CurvePoint(**{name: _numbers(value) for name, value in one.items()}) for one in known["points"])
    return Curve(known["world"], setting, points, _numbers(known["full"]), known["pieces"], tuple(known["notes"]))


def plain(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    return {name: _numbers(one) for name, one in value.items()} if isinstance(value, Mapping) else _number(value)


def _number(value: Any) -> Any:
    return math.nan if value is None else value
