"""`curate gc`: what later results have superseded. Labels, splits, pushed rounds and the database never are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from curate import files, tables
from curate.errors import CurateError
from curate.project import Project


class Superseded(NamedTuple):
    path: Path
    bytes: int
    why: str


def find(project: Project) -> list[Superseded]:
    """Everything that can go, with the reason; the caller lists it before anything is removed."""
    found = [*_parts(project.work), *_tables(project.work), *_rounds(project.work)]
    found += [*_models(project.work), *_of_models(project.work)]
    return [Superseded(path, _size(path), why) for path, why in found]


def remove(found: Sequence[Superseded]) -> None:
    for item in found:
        files.remove(item.path)


def _parts(work: Path) -> Iterator[tuple[Path, str]]:
    """What a killed command left beside its target."""
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
            *older, newest = sorted(paths, key=lambda p: p.stat().st_mtime)
            for path in older:
                if tables.size(path) <= tables.size(newest):  # one that was just begun supersedes nothing
                    yield path, f"superseded {folder}"


def _rounds(work: Path) -> Iterator[tuple[Path, str]]:
    """Rounds that nobody has worked on (`pushed`, `touched` in their round.json), save the newest."""
    folders = sorted(p for p in (work / "rounds").glob("*") if p.is_dir() and not p.name.startswith("."))
    for path in folders[:-1]:
        manifest = path / "round.json"
        if manifest.is_file() and not any(_read(manifest).get(name) for name in ("pushed", "touched")):
            yield path, "superseded round: never pushed"


def _models(work: Path) -> Iterator[tuple[Path, str]]:
    """Models that no alias and no round names, save the newest."""
    folders = (p for p in (work / "models").glob("*") if p.is_dir() and not p.name.startswith("."))
    models = sorted(folders, key=lambda p: p.stat().st_mtime)
    named = _mentioned(work)
    for path in models[:-1]:
        if path.name not in named:
            yield path, "superseded model: no alias or round names it"


def _of_models(work: Path) -> Iterator[tuple[Path, str]]:
    """What was made of models that are gone."""
    for made in ("evaluations", "robustness", "explanations", "exports"):
        for path in sorted((work / made).glob("[!.]*")):
            if path.is_dir() and not (work / "models" / path.name).is_dir():
                yield path, f"{made} of a model that is gone"


def _mentioned(work: Path) -> set[str]:
    """Every text in the registry and in the rounds' manifests, and every part of those that are paths."""
    names: set[str] = set()
    for file in [*(work / "models").glob("*.json"), *(work / "rounds").glob("*/*.json")]:
        names |= {part for text in _texts(_read(file)) for part in (text, *text.split("/"))}
    return names


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise CurateError(f"{file} is damaged: what it names cannot be told; restore it (curate restore)") from None


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
