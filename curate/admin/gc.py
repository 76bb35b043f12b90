"""`curate gc`: removal of superseded results. Labels, splits, pushed rounds and the database are never removed.

Nor is anything in a folder that a running command has locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from curate import files, tables
from curate.errors import CurateError
from curate.project import Project

# Results of models, in folders named after the models' keys.
OF_MODELS = ("evaluations", "robustness", "explanations", "exports")
FINISHED = ("manifest.json", "report.json", "result-*.json")  # a finished result has one of these
ABOUT = ("targets", "view")  # keys of the manifest by which results of one name differ


class Superseded(NamedTuple):
    path: Path
    bytes: int
    why: str


def find(project: Project) -> list[Superseded]:
    """Everything that can be removed, with the reason; the caller lists it first."""
    work = project.work
    models = dict(_models(work))
    rest = (
        _trainings(work),
        _of_removed_models(work, models),
        _results(work),
        _trials(work),
        _synthesis(work),
        _oracle_datasets(work),
    )
    reasons = dict(_parts(work)) | dict(_tables(work)) | dict(_rounds(work)) | models
    reasons |= {path: why for part in rest for path, why in part}
    whole = {path: why for path, why in reasons.items() if not reasons.keys() & set(path.parents)}
    return [Superseded(path, _size(path), why) for path, why in whole.items() if not _is_busy(work, path)]


def remove(project: Project, superseded: Sequence[Superseded]) -> list[Superseded]:
    """Remove superseded results; return those removed, without any that a command works on by now."""
    gone = [item for item in superseded if not _is_busy(project.work, item.path)]
    for item in gone:
        files.remove(item.path)
    return gone


def _parts(work: Path) -> Iterator[tuple[Path, str]]:
    """Files and folders that a killed command left beside its target."""
    for path in sorted(work.rglob(".*.part")):
        if "db" not in path.relative_to(work).parts[:1]:
            yield path, "left by a killed command"


def _tables(work: Path) -> Iterator[tuple[Path, str]]:
    """Vectors and scores: `<name>-<key>.lance`; for each name the newest stays."""
    for folder in ("vectors", "scores"):
        by_name: dict[str, list[Path]] = {}
        for path in (work / folder).glob("*.lance"):
            by_name.setdefault(path.stem.rpartition("-")[0] or path.stem, []).append(path)
        for paths in by_name.values():
            *older, newest = sorted(paths, key=lambda p: p.stat().st_mtime_ns)
            for path in older:
                if tables.size(path) <= tables.size(newest):  # a newer one that is incomplete supersedes nothing
                    yield path, f"superseded {folder}"


def _rounds(work: Path) -> Iterator[tuple[Path, str]]:
    """Rounds that were neither pushed nor touched (see their round.json), except the newest."""
    folders = sorted(p for p in (work / "rounds").glob("*") if p.is_dir() and not p.name.startswith("."))
    for path in folders[:-1]:
        manifest = path / "round.json"
        if manifest.is_file() and not any(_read(manifest).get(name) for name in ("pushed", "touched")):
            yield path, "superseded round: never pushed"


def _models(work: Path) -> Iterator[tuple[Path, str]]:
    """Models that no alias and no round names, except the newest."""
    folders = (p for p in (work / "models").glob("*") if p.is_dir() and not p.name.startswith("."))
    models = sorted(folders, key=lambda p: p.stat().st_mtime_ns)
    named = _mentioned(work)
    for path in models[:-1]:
        if path.name not in named:
            yield path, "superseded model: no alias or round names it"


def _trainings(work: Path) -> Iterator[tuple[Path, str]]:
    """Unfinished trainings older than the newest finished model; a later one may still be resumed."""
    finished = [path.stat().st_mtime_ns for path in (work / "models").glob("[!.]*") if path.is_dir()]
    for path in sorted((work / "models").glob(".*.training")):
        if path.stat().st_mtime_ns < max(finished, default=0) <= time.time_ns():  # else the clock was set back
            yield path, "training that was given up: another was finished since"


def _of_removed_models(work: Path, removed: Collection[Path]) -> Iterator[tuple[Path, str]]:
    """Results of models that are removed, or are being removed now."""
    for kind in OF_MODELS:
        for path in sorted((work / kind).glob("[!.]*")):
            model = work / "models" / path.name
            if path.is_dir() and (model in removed or not model.is_dir()):
                yield path, f"{kind} of a model that is gone"


def _results(work: Path) -> Iterator[tuple[Path, str]]:
    """A model's results of one kind that are older than the newest finished one."""
    by_kind: dict[object, list[Path]] = {}
    for path in (path for kind in OF_MODELS for path in (work / kind).glob("[!.]*/[!.]*")):
        if path.is_dir() and path.suffix != ".lance":
            by_kind.setdefault(_kind(path), []).append(path)
    for paths in by_kind.values():
        finished = [path for path in paths if _is_finished(path)]
        newest = max((path.stat().st_mtime_ns for path in finished), default=0)
        for path in sorted(paths):
            if path.stat().st_mtime_ns < newest:
                yield path, f"superseded {path.relative_to(work).parts[0]}"
        for path in (left for result in finished for left in sorted(result.glob(".*.training"))):
            yield path, "left by a killed command"


def _kind(folder: Path) -> object:
    """Kind of a result: its name (`test-<key>`, `folds-5-<key>`) without the key, and its manifest's subject."""
    about = []
    for file in (folder / name for name in FINISHED[:2] if (folder / name).is_file()):
        with contextlib.suppress(CurateError):  # a damaged one is of its own kind, and is kept
            about = [json.dumps(_read(file).get(name), sort_keys=True) for name in ABOUT]
    return (folder.parent, folder.name.rpartition("-")[0], *about)


def _is_finished(folder: Path) -> bool:
    return any(True for name in FINISHED for _ in folder.glob(name))


def _trials(work: Path) -> Iterator[tuple[Path, str]]:
    """Unfinished trials of all searches but the newest; the searches' results are small and are kept."""
    folders = (path for path in (work / "tune").glob("[!.]*") if path.is_dir())
    studies = sorted(folders, key=lambda path: path.stat().st_mtime_ns)
    for study in studies[:-1]:
        for path in sorted(study.glob(".*.training")):
            yield path, "trial that was given up: another search was begun since"


def _synthesis(work: Path) -> Iterator[tuple[Path, str]]:
    """Unfinished batches and synthesisers, older than the newest finished one."""
    for home, what in ((work / "synth", "batch"), (work / "synth" / "models", "synthesiser")):
        finished = [path.stat().st_mtime_ns for path in home.glob("[!.]*") if (path / "manifest.json").is_file()]
        for path in (*sorted(home.glob(".*.making")), *sorted(home.glob(".*.fitting"))):
            if path.stat().st_mtime_ns < max(finished, default=0) <= time.time_ns():
                yield path, f"{what} that was given up: another was finished since"


def _oracle_datasets(work: Path) -> Iterator[tuple[Path, str]]:
    """Oracle datasets (copies of vectors and labels) of killed simulations; the runs' results are kept."""
    for path in sorted((work / "simulations" / "plays").glob("**/worlds")):
        yield path, "left by a killed simulation"


def _is_busy(work: Path, path: Path) -> bool:
    """True where a command holds the lock of a folder above the path."""
    folders = [folder for folder in path.parents if work in folder.parents]
    return any(_is_locked(folder / ".lock") for folder in folders)


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with lock.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _mentioned(work: Path) -> set[str]:
    """All strings in the registry and in the rounds' manifests, and all parts of those that are paths."""
    names: set[str] = set()
    for file in [*(work / "models").glob("*.json"), *(work / "rounds").glob("*/*.json")]:
        names |= {part for text in _texts(_read(file)) for part in (text, *text.split("/"))}
    return names


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise CurateError(
            f"{file} is damaged, so the results that it names are unknown; restore it (curate restore)"
        ) from None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
