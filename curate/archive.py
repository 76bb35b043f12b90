"""`curate backup` and `curate restore`: config, labels, splits, rounds, models' manifests and the index in one file.

Images stay where they are; the archive knows them by content id and by `source:path`. Every member carries its
checksum, and nothing is put in place before all of them hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, Field

from curate import __version__, database, edits, files, synthetic
from curate.errors import CurateError, unknown
from curate.index import CHUNK, Index, chunks
from curate.labels import Book
from curate.project import FILE, Project, home_of, load
from curate.state import SCHEMA, check

MANIFEST = "manifest.json"
INDEX = "index"
KEPT = (
    *("labels/*.jsonl", "splits/*.jsonl", "folds/*.json", "rounds/**/*"),
    *("models/*.json", "models/*/*.json", "evaluations/*/*/*.json", "labelstudio/desk.json"),
    *("*.json", "*.csv", "files.sqlite"),
)


class Manifest(BaseModel):
    """What an archive says of itself. It may come from anywhere: its project's name must be a plain one."""

    project: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    made: str
    tool: str
    schema_version: int
    samples: int
    roots: dict[str, str]
    files: dict[str, str]


def backup(project: Project, file: Path) -> dict[str, Any]:
    """Write the archive aside, then into place."""
    if file.exists():
        raise CurateError(f"{file} exists already; give a new name, so that no older backup is lost")
    scratch = project.work / f".backup.{os.getpid()}.part"
    with files.writer_lock(project.work, "curate backup"), _cleared(scratch):
        index, book = Index(project), Book(project.work / "labels")
        edits.capture(index, book, project.class_names)
        book.close()
        index.dataset.export(
            export_dir=str(scratch / INDEX), dataset_type=index.fo.types.FiftyOneDataset, export_media=False
        )
        members = dict(_members(project, scratch))
        manifest = _manifest(project, index.count(), members)
        with files.written_aside(file) as aside:
            _pack(aside, members, manifest, scratch)
    return {"file": str(file), "samples": manifest.samples, "files": len(members), "bytes": file.stat().st_size}


@contextlib.contextmanager
def _cleared(folder: Path) -> Iterator[None]:
    files.remove(folder)
    folder.mkdir()
    try:
        yield
    finally:
        files.remove(folder)


def _members(project: Project, scratch: Path) -> Iterator[tuple[str, Path]]:
    yield FILE, project.file
    for pattern in KEPT:
        for path in sorted(project.work.glob(pattern)):
            if path.is_file() and not path.is_symlink():
                yield f"work/{path.relative_to(project.work).as_posix()}", path
    for path in synthetic.kept(project):
        yield f"work/{path.relative_to(project.work).as_posix()}", path
    for path in sorted((scratch / INDEX).rglob("*")):
        if path.is_file():
            yield path.relative_to(scratch).as_posix(), path


def _manifest(project: Project, samples: int, members: Mapping[str, Path]) -> Manifest:
    return Manifest(
        project=project.name,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        tool=__version__,
        schema_version=SCHEMA,
        samples=samples,
        roots={source.name: str(project.root(source)) for source in project.config.sources},
        files={name: _checksum(path) for name, path in members.items()},
    )


def _pack(target: Path, members: Mapping[str, Path], manifest: Manifest, scratch: Path) -> None:
    files.write_json(scratch / MANIFEST, manifest.model_dump())
    with tarfile.open(target, "w:gz", compresslevel=3) as tar:
        for name, path in {MANIFEST: scratch / MANIFEST, **members}.items():
            tar.add(path, name, recursive=False)


def _checksum(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- restore --------------------------------------------------------------------------------------------------------


def restore(file: Path, to: Path | None, data: Mapping[str, str], force: bool) -> dict[str, Any]:
    """Unpack aside, check every sum, load the index, and only then put the project in place."""
    if not file.is_file():
        raise CurateError(f"no archive at {file}")
    manifest = _read_manifest(file)
    folder = (to or home_of(Path.cwd()) / manifest.project).resolve()
    with contextlib.ExitStack() as stack:
        if folder.exists():
            _may_replace(folder, force)
            stack.enter_context(files.writer_lock(folder / "work", "curate restore"))
        aside = folder.with_name(f".{folder.name}.restoring.part")
        stack.enter_context(_cleared_tree(aside))
        _unpack(file, aside, manifest)
        away = _point_to(aside / FILE, folder, data, manifest.roots)
        count = _load_index(aside, folder, manifest.samples)
        files.remove(aside / INDEX)
        set_aside = _put_in_place(aside, folder)
    return {"project": str(folder), "samples": count, "set_aside": set_aside, "unreachable": away}


@contextlib.contextmanager
def _cleared_tree(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _cleared(folder):
        yield


def _may_replace(folder: Path, force: bool) -> None:
    if not force:
        raise CurateError(f"{folder} exists; give another folder with --to, or --force to set its state aside first")
    if database.running(folder / "work" / "db"):
        raise CurateError(f"{folder} is in use by another command (curate app?). End it, then restore again")


def _put_in_place(aside: Path, folder: Path) -> list[str]:
    """What stood there before (config and work, never the data beside them) stays under another name."""
    if not folder.exists():
        os.replace(aside, folder)
        return []
    kept = []
    for name in ("work", FILE):
        if (folder / name).exists():
            kept.append(str(folder / f"{name}.before-{int(time.time())}"))
            os.replace(folder / name, kept[-1])
        os.replace(aside / name, folder / name)
    return kept


def _read_manifest(file: Path) -> Manifest:
    try:
        with tarfile.open(file, "r:gz") as tar:
            member = tar.next()
            if member is None or member.name != MANIFEST or member.size > 1 << 28:
                raise CurateError(f"{file} is no archive of curate backup")
            handle = tar.extractfile(member)
            manifest = Manifest.model_validate_json(handle.read() if handle else b"")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CurateError(f"{file} cannot be read as a backup: {why}") from None
    check(manifest.schema_version, str(file))
    return manifest


def _unpack(file: Path, aside: Path, manifest: Manifest) -> None:
    try:
        with tarfile.open(file, "r:gz") as tar:
            tar.extractall(aside, filter="data")  # refuses links and paths that lead out of the folder
    except (tarfile.TarError, OSError, EOFError) as error:
        raise CurateError(f"{file} is damaged: {error}") from None
    for name, wanted in manifest.files.items():
        path = aside / name
        if not path.is_file() or _checksum(path) != wanted:
            raise CurateError(f"{file} is damaged: {name} does not have the checksum that it was stored with")
    (aside / MANIFEST).unlink()


def _point_to(file: Path, folder: Path, data: Mapping[str, str], roots: Mapping[str, str]) -> list[str]:
    """Images may lie elsewhere on this machine; the sources whose images cannot be found are returned."""
    document: Any = tomlkit.parse(file.read_text(encoding="utf-8"))
    sources = {str(source.get("name") or source["format"]): source for source in document["sources"]}
    away = []
    for name in data:
        if name not in sources:
            raise unknown("source", name, sources)
    for name, source in sources.items():
        here = folder / str(source["data"])
        known = here if here.is_dir() else Path(roots.get(name) or here)
        wanted = Path(data.get(name, str(known))).resolve()
        if wanted != here.resolve():
            source["data"] = str(wanted)
        away += [] if wanted.is_dir() else [name]
    files.write_text(file, tomlkit.dumps(document))
    return away


def _load_index(aside: Path, folder: Path, samples: int) -> int:
    config = load(aside).config
    fo = database.connect(aside / "work")
    project = Project(folder, config)
    name = project.dataset_name
    dataset = fo.Dataset.from_dir(aside / INDEX, fo.types.FiftyOneDataset, name=f"{name}-{time.time_ns()}")
    _relocate(dataset, project)
    count = int(dataset.count("id"))
    if count != samples:
        dataset.delete()
        raise CurateError(f"the archive promises {samples} images, {count} came back; nothing was changed")
    if fo.dataset_exists(name):  # a shared server that knows this project: keep what it holds
        fo.load_dataset(name).name = f"{name}-before-{int(time.time())}"
    dataset.name, dataset.persistent = name, True
    database.leave(aside / "work" / "db")
    return count


def _relocate(dataset: Any, project: Project) -> None:
    rows = list(zip(*dataset.values(["id", "paths"]), strict=True))
    for chunk in chunks(rows, CHUNK):
        dataset.set_values("filepath", {id: str(project.locate(paths[0])) for id, paths in chunk}, key_field="id")
