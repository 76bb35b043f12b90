"""`curate backup` and `curate restore`: config, labels, splits, rounds, models' manifests and the index in one file.

Images are not copied; the archive refers to them by content id and by `source:path`. Every member has its checksum,
and nothing is put in place before all checksums are verified.

An archive is untrusted. Only members that its manifest names and that `backup` would write are unpacked, as plain files
of bounded size; the folders outside the project that it names are shown, and used only where the user agrees.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import socket
import sqlite3
import tarfile
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import tomlkit
from pydantic import BaseModel, Field

from curate import __version__, files, state
from curate.errors import CurateError, unknown
from curate.index import app_edits, database, synthetic
from curate.index.dataset import CHUNK, Index, chunks
from curate.index.file_ledger import OK
from curate.labels.log import LabelLog
from curate.paths import escapes, printable
from curate.project import FILE, SYNTHETIC, Project, load, projects_folder
from curate.state import SCHEMA, check

MANIFEST = "manifest.json"
INDEX = "index"
KEPT = (
    *("labels/*.jsonl", "splits/*.jsonl", "folds/*.json", "rounds/**/*"),
    *("models/*.json", "models/*/*.json", "evaluations/*/*/*.json", "labelstudio/desk.json"),
    *("*.json", "*.csv", "files.sqlite"),
)

# Bounds of the unpacked size. A project of 10,000 small images takes 14 MB, compressed to a tenth.
MEMBERS = 500_000
MANIFEST_BYTES = 1 << 26
HEADER_BYTES = 1 << 20  # of one member
ALWAYS = 1 << 26  # bytes that any archive may unpack to
RATIO = 100  # times its own size that any archive may unpack to; --trust removes both bounds
CLASSES = ("_cls", "cls", "ftype", "subfield", "embedded_doc_type")  # keys whose value FiftyOne imports as a class
MEDIA = ("mask_path", "map_path")  # fields of labels that name a file, which the App shows
CONTENT_ID = re.compile(r"[0-9a-f]{64}")


class BackupManifest(BaseModel):
    """Manifest of an archive. It is untrusted: the project's name may hold only letters, digits, `.`, `_` and `-`."""

    project: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    made: str
    tool: str
    schema_version: int
    samples: int
    roots: dict[str, str]
    labels: dict[str, str] = {}
    files: dict[str, str]


def backup(project: Project, file: Path) -> dict[str, Any]:
    """Write a project's archive beside `file`, then move it into place; return its counts."""
    if file.exists():
        raise CurateError(f"{file} exists already; give a new name, so that no older backup is lost")
    scratch = project.work / f".backup.{os.getpid()}.part"
    with files.writer_lock(project.work, "curate backup"), files.explain_full_disk(scratch), _cleared(scratch):
        _remove_left_over(project.work, file)
        index = Index(project)
        with app_edits.opened_log(index):
            pass
        index.dataset.export(
            export_dir=str(scratch / INDEX), dataset_type=index.fo.types.FiftyOneDataset, export_media=False
        )
        members = dict(_members(project, scratch))
        manifest = _manifest(project, index.count(), members)
        with files.written_aside(file) as aside:
            _pack(aside, members, manifest, scratch)
    return {"file": str(file), "samples": manifest.samples, "files": len(members), "bytes": file.stat().st_size}


def _remove_left_over(work: Path, file: Path) -> None:
    """Remove left-overs of killed backups: scratch folders, and parts of this archive that no process writes now."""
    for path in work.glob(".backup.*.part"):
        if path.name != f".backup.{os.getpid()}.part":
            files.remove(path)
    for path in file.parent.glob(".*.part"):
        if re.fullmatch(rf"\.{re.escape(file.name)}\.\d+\.part", path.name) and path.is_file():
            with path.open("rb") as handle, contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)


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
    for path in synthetic.files_of_batches(project):
        yield f"work/{path.relative_to(project.work).as_posix()}", path
    for path in sorted((scratch / INDEX).rglob("*")):
        if path.is_file():
            yield path.relative_to(scratch).as_posix(), path


def _manifest(project: Project, samples: int, members: Mapping[str, Path]) -> BackupManifest:
    return BackupManifest(
        project=project.name,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        tool=__version__,
        schema_version=SCHEMA,
        samples=samples,
        roots={source.name: str(project.root(source)) for source in project.config.sources},
        labels={source.name: str(project.labels(source)) for source in project.config.sources if source.labels},
        files={name: _checksum(path) for name, path in members.items()},
    )


def _pack(target: Path, members: Mapping[str, Path], manifest: BackupManifest, scratch: Path) -> None:
    files.write_json(scratch / MANIFEST, manifest.model_dump())
    with target.open("wb") as handle, tarfile.open(fileobj=handle, mode="w:gz", compresslevel=3) as tar:
        fcntl.flock(
            handle, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # while it is written, so that another backup does not remove it
        for name, path in {MANIFEST: scratch / MANIFEST, **members}.items():
            tar.add(path, name, recursive=False)


def _checksum(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- restore --------------------------------------------------------------------------------------------------------

Ask = Callable[[Sequence[str]], bool]


class SourceFolder(NamedTuple):
    """A folder that the archive's config names: its source, `images` or `labels`, its path, whether --data set it."""

    source: str
    what: str
    path: Path
    given: bool

    def __str__(self) -> str:
        return f"{self.source}: {self.what} in {self.path}"


def restore(
    file: Path, to: Path | None, data: Mapping[str, str], force: bool, trust: bool = False, ask: Ask | None = None
) -> dict[str, Any]:
    """Unpack aside, verify every checksum, load the index, and only then put the project in place.

    Args:
        file: the archive.
        to: the project's folder; by default one with the archive's name in the projects folder.
        data: source -> folder of its images on this machine.
        force: move the state of an existing project aside.
        trust: accept the folders that the archive names, and any size, without asking.
        ask: called with the folders and files outside the project that the archive names; returns the user's consent.

    Returns:
        The project's folder, the number of images, the names under which old state was kept, and unreachable sources.
    """
    if not file.is_file():
        raise CurateError(f"no archive at {file}")
    manifest = _read_manifest(file)
    folder = (to or projects_folder(Path.cwd()) / manifest.project).resolve()
    aside = folder.with_name(f".{folder.name}.restoring.part")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(aside, folder))
        if folder.exists():
            _may_replace(folder, force)
            stack.enter_context(files.writer_lock(folder / "work", "curate restore"))
        stack.enter_context(files.explain_full_disk(aside))
        _unpack(file, aside, manifest, trust)
        folders = _point_to(file, aside, folder, data, manifest)
        _check_state(file, aside, manifest.files)
        project = Project(folder, load(aside).config)
        with _loaded_index(file, aside, folder, manifest.samples) as (fo, dataset):
            named = [str(place) for place in folders if not (place.given or place.path.is_relative_to(folder))]
            named += _settle(file, dataset, project) + _shared(fo, project)
            if named and not trust and not (ask and ask(named)):
                raise CurateError(
                    f"{file} names what lies outside the project ({_some(named)}); nothing was changed. If that is "
                    "right, restore with --trust; if images lie elsewhere, with --data SOURCE=FOLDER"
                )
            count = int(dataset.count("id"))
            _give_name(fo, dataset, project.dataset_name)
        state.record(Project(aside, project.config), dataset=project.dataset_name, folder=str(folder))
        files.remove(aside / INDEX)
        set_aside = _put_in_place(aside, folder)
    away = [place.source for place in folders if place.what == "images" and not place.path.is_dir()]
    return {"project": str(folder), "samples": count, "set_aside": set_aside, "unreachable": away}


def _shared(fo: Any, project: Project) -> list[str]:
    """Other resources outside the project that the config names."""
    named = []
    if project.config.labelstudio.images == "url":
        named.append(f"Label Studio: images at {project.config.labelstudio.url}")
    if project.config.dataset and fo.dataset_exists(project.config.dataset):
        named.append(f"the dataset '{project.config.dataset}' of the database, which is set aside")
    return named


def _some(named: Sequence[str]) -> str:
    return "; ".join(named[:5]) + (f"; and {len(named) - 5} more" if len(named) > 5 else "")


@contextlib.contextmanager
def _alone(aside: Path, folder: Path) -> Iterator[None]:
    """Make the empty folder in which a restore unpacks. It is locked, so that there is one restore at a time."""
    busy = f"another restore to {folder} is under way or has just ended. Wait for it to end, then look at {folder}"
    aside.mkdir(parents=True, exist_ok=True)
    handle = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (aside.is_dir() and os.path.samestat(os.fstat(handle), aside.stat())):
            raise files.ProjectBusy(busy)
        _empty(aside)
        try:
            yield
        finally:
            if aside.is_dir():
                files.remove(aside)
    except BlockingIOError:
        raise files.ProjectBusy(busy) from None
    finally:
        os.close(handle)


def _empty(aside: Path) -> None:
    """Remove left-overs of a killed restore, including its database server."""
    database.end_left(aside / "work" / "db")
    for path in aside.iterdir():
        files.remove(path)


def _may_replace(folder: Path, force: bool) -> None:
    if not force:
        raise CurateError(f"{folder} exists; give another folder with --to, or --force to set its state aside first")
    if database.running(folder / "work" / "db"):
        raise CurateError(f"{folder} is in use by another command (curate app?). End it, then restore again")


def _put_in_place(aside: Path, folder: Path) -> list[str]:
    """Move the project into place; return the names under which the old config and work folder are kept.

    The config is moved away first and into place last: after a kill in between the folder is no project, so that no
    command works on it.
    """
    if not folder.exists():
        os.replace(aside, folder)
        return []
    kept = []
    for name in (FILE, "work"):
        if (folder / name).exists():
            kept.append(_free(f"{name}.before", [path.name for path in folder.iterdir()]))
            os.replace(folder / name, folder / kept[-1])
    for name in ("work", FILE):
        os.replace(aside / name, folder / name)
    return [str(folder / name) for name in kept]


def _free(name: str, taken: Collection[str]) -> str:
    """The name with the current time, or with a later one where that is taken."""
    moment = int(time.time())
    while f"{name}-{moment}" in taken:
        moment += 1
    return f"{name}-{moment}"


# --- unpacking: the archive is untrusted --------------------------------------------------------------------------


class _Metered:
    """A stream of the archive's unpacked bytes that raises where more are read than allowed."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self.allowed = stream, HEADER_BYTES

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self.allowed -= len(block)
        if self.allowed < 0:
            raise ValueError("a member's header is longer than a header can be")
        return block


@contextlib.contextmanager
def _opened(file: Path, what: str) -> Iterator[tuple[tarfile.TarFile, _Metered]]:
    """Open the archive as a stream; every error becomes one line that contains `what`."""
    try:
        with gzip.open(file) as packed:
            metered = _Metered(packed)
            with tarfile.open(fileobj=metered, mode="r|") as tar:  # type: ignore[call-overload]
                yield tar, metered
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError, OverflowError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CurateError(f"{file} {what}: {printable(why)}") from None


def _read_manifest(file: Path) -> BackupManifest:
    with _opened(file, "cannot be read as a backup") as (tar, metered):
        member = tar.next()
        if member is None or member.name != MANIFEST or not _is_plain_file(member) or member.size > MANIFEST_BYTES:
            raise ValueError("it is no archive of curate backup")
        metered.allowed += member.size
        handle = tar.extractfile(member)
        manifest = BackupManifest.model_validate_json(handle.read() if handle else b"")
        if len(manifest.files) > MEMBERS:
            raise ValueError(f"its manifest names {len(manifest.files):,} files; allowed: {MEMBERS:,}")
        for name in manifest.files:
            if escapes(name) or name != os.path.normpath(name) or name != printable(name):
                raise ValueError(f"its manifest names '{printable(name)}', which is no file of a backup")
    check(manifest.schema_version, str(file))
    return manifest


def _is_plain_file(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse() and member.size >= 0


def _unpack(file: Path, aside: Path, manifest: BackupManifest, trust: bool) -> None:
    """Write the members that the manifest names, as plain files, each with its checksum."""
    left = max(ALWAYS, RATIO * file.stat().st_size)
    waiting = dict(manifest.files)
    with _opened(file, "is damaged") as (tar, metered):
        tar.next()  # the manifest
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all in memory
            if member.name not in waiting or not _is_plain_file(member):
                raise ValueError(f"its member {member.name} is no file that its manifest names")
            left -= member.size
            if left < 0 and not trust:
                raise ValueError(
                    f"it unpacks to more than {RATIO} times its size, and more than {ALWAYS >> 20} MB. If you made it "
                    "yourself, restore with --trust"
                )
            metered.allowed = member.size + HEADER_BYTES
            if _written(tar.extractfile(member), aside / member.name) != waiting.pop(member.name):
                raise ValueError(f"{member.name} does not have the checksum that it was stored with")
            metered.allowed = HEADER_BYTES
        if waiting:
            raise ValueError(f"{next(iter(waiting))} is missing")


def _written(content: IO[bytes] | None, path: Path) -> str:
    """Write the file; return its checksum."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"a folder of {path.name} is a file as well") from None
    digest = hashlib.sha256()
    with files.explain_full_disk(path), path.open("xb") as handle:
        while block := content.read(1 << 20) if content else b"":
            digest.update(block)
            handle.write(block)
    return digest.hexdigest()


def _config(file: Path, aside: Path) -> Any:
    try:
        return load(aside).config
    except CurateError as error:
        raise CurateError(f"{file}: {str(error).replace(f'{aside}/', '')}") from None


def _point_to(
    file: Path, aside: Path, folder: Path, data: Mapping[str, str], manifest: BackupManifest
) -> list[SourceFolder]:
    """Write the folders of this machine into the config; return all folders that it names."""
    project = Project(folder, _config(file, aside))
    sources = [source.name for source in project.config.sources]
    for name in data:
        if name not in sources:
            raise unknown("source", name, sources)
    document: Any = tomlkit.parse((aside / FILE).read_text(encoding="utf-8"))
    folders = []
    for source, entry in zip(project.config.sources, document["sources"], strict=True):
        for what, key, configured, stored in (
            ("images", "data", project.root(source), manifest.roots),
            ("labels", "labels", project.labels(source), manifest.labels),
        ):
            if configured is None:
                continue
            given = data.get(source.name) if key == "data" else None
            path = (
                Path(given)
                if given
                else configured
                if configured.exists()
                else Path(stored.get(source.name) or configured)
            )
            path = Path(os.path.abspath(path))
            if path != configured:
                entry[key] = str(path)
            folders.append(SourceFolder(source.name, what, path.resolve(), bool(given)))
    files.write_text(aside / FILE, tomlkit.dumps(document))
    return folders


def _check_state(file: Path, aside: Path, members: Iterable[str]) -> None:
    """Check that the state is readable, holds only files of a backup, and has only paths inside in its file table."""
    project = load(aside)
    try:
        state.require(project)
        LabelLog(project.work / "labels").close()
        unexpected = set(members) - {name for name, _ in _members(project, aside)}
    except CurateError as error:
        raise CurateError(f"{file} is damaged: {str(error).replace(f'{aside}/', '').split('; restore')[0]}") from None
    if unexpected:
        raise CurateError(f"{file} is damaged: it holds {min(unexpected)}, which no backup holds")
    table = project.work / "files.sqlite"
    if not table.is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{table.as_uri()}?mode=ro", uri=True)) as db:
            unexpected = db.execute("select name from sqlite_master where type not in ('table', 'index')").fetchone()
            rows = db.execute("select reference from files where outcome = ?", (OK,)) if unexpected is None else ()
            wrong = next(
                (name for (name,) in rows if escapes(str(name).partition(":")[2])), unexpected and unexpected[0]
            )
    except sqlite3.Error as error:
        raise CurateError(f"{file} is damaged: work/files.sqlite: {error}") from None
    if wrong is not None:
        raise CurateError(f"{file} is damaged: work/files.sqlite holds '{printable(str(wrong))}'")


# --- the index ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _loaded_index(file: Path, aside: Path, folder: Path, samples: int) -> Iterator[tuple[Any, Any]]:
    """FiftyOne and the archive's dataset, loaded under a temporary name; removed where the block raises."""
    _check_classes(file, aside / INDEX)
    fo = database.connect(aside / "work")
    name = f"{folder.name}-{uuid.uuid5(uuid.NAMESPACE_URL, f'file://{socket.gethostname()}{folder}').hex}"
    try:
        _remove_killed(fo, name)
        dataset = _imported(fo, file, aside / INDEX, name)
        count = int(dataset.count("id"))
        if count != samples:
            raise CurateError(f"{file} should hold {samples} images, {count} were read; nothing was changed")
        yield fo, dataset
    except BaseException:
        with contextlib.suppress(Exception):  # the database itself may be lost
            fo.delete_dataset(name)
        raise
    finally:
        database.leave(aside / "work" / "db")


def _remove_killed(fo: Any, name: str) -> None:
    """Remove what a killed restore has loaded, and the saved views of datasets that FiftyOne has removed since."""
    if fo.dataset_exists(name):
        fo.delete_dataset(name)
    db = fo.core.odm.get_db_conn()
    owners = {view["_id"]: view.get("_dataset_id") for view in db.views.find({}, {"_dataset_id": 1})}
    known = set(db.datasets.distinct("_id"))  # after the views, or those of a dataset made meanwhile would go
    # A view that names no dataset is one of an earlier FiftyOne, and somebody's.
    gone = [id for id, owner in owners.items() if owner is not None and owner not in known]
    db.views.delete_many({"_id": {"$in": gone}})


def _imported(fo: Any, file: Path, folder: Path, name: str) -> Any:
    from pymongo.errors import ConnectionFailure

    try:
        return fo.Dataset.from_dir(folder, fo.types.FiftyOneDataset, name=name)
    except ConnectionFailure:
        raise
    except Exception as error:  # FiftyOne does not validate its input
        if isinstance(error, OSError) and error.errno in files.FULL:
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0].replace(f"{folder.parent}/", "")[:200]
        raise CurateError(
            f"{file} is damaged: its index cannot be read ({printable(why)}); nothing was changed"
        ) from None


def _check_classes(file: Path, folder: Path) -> None:
    """Refuse classes other than FiftyOne's: it imports those that fields, saved views and runs name."""
    for path in sorted(folder.rglob("*.json")):
        if path.name == "samples.json":
            continue
        try:
            names = list(_classes_in(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, RecursionError) as error:
            raise CurateError(f"{file} is damaged: {INDEX}/{path.name} is no JSON ({type(error).__name__})") from None
        for name in names:
            if not name.startswith("fiftyone.") or name == "fiftyone.core.stages.Mongo":
                raise CurateError(
                    f"{file} is damaged: {INDEX}/{path.name} names '{name}', which is no class of an index"
                )


def _classes_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in CLASSES and isinstance(inner, str) and "." in inner:
                yield inner
            yield from _classes_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _classes_in(inner)
    elif isinstance(value, str) and "_cls" in value:  # a saved view's stages are JSON in a string
        with contextlib.suppress(ValueError):
            yield from _classes_in(json.loads(value))


def _settle(file: Path, dataset: Any, project: Project) -> list[str]:
    """Set the path of every image to its file on this machine; return the other files that the samples name."""
    images = dataset._sample_collection
    known = {SYNTHETIC, *(source.name for source in project.config.sources)}
    outside: list[str] = []
    for chunk in chunks(images.find(), CHUNK):
        places = {}
        for document in chunk:
            id, paths = document.get("content_id"), document.get("paths")
            if id is None:  # added by hand, not by curate
                outside.append(f"an image at {document.get('filepath')}")
            elif not (isinstance(id, str) and CONTENT_ID.fullmatch(id) and isinstance(paths, list) and paths):
                raise CurateError(f"{file} is damaged: its index holds an image without a content id and paths")
            else:
                places[str(document["_id"])] = next(iter([_place(file, project, known, path) for path in paths]))
            outside += (f"a mask at {path}" for path in _media_in(document))
        dataset.set_values("filepath", places, key_field="id")
    return outside


def _place(file: Path, project: Project, known: Collection[str], reference: Any) -> str:
    if not isinstance(reference, str) or ":" not in reference:
        raise CurateError(f"{file} is damaged: its index holds an image at '{reference}'")
    source, _, path = reference.partition(":")
    try:
        if source in known:
            return str(project.locate(reference))
    except CurateError as error:
        raise CurateError(f"{file} is damaged: its index holds an image at '{printable(reference)}': {error}") from None
    if escapes(f"{source}/{path}"):
        raise CurateError(f"{file} is damaged: its index holds an image at '{printable(reference)}'")
    return str(project.folder / source / path)  # of a source that is no longer in the config: no file is there


def _media_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in MEDIA and isinstance(inner, str):
                yield inner
            elif isinstance(inner, dict | list):
                yield from _media_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _media_in(inner)


def _give_name(fo: Any, dataset: Any, name: str) -> None:
    """Give the dataset its name, and another one to what bears it now, in one command that no kill divides."""
    from pymongo import UpdateOne

    names = [(dataset, name)]
    if fo.dataset_exists(name):  # a shared server with this project's dataset: keep it
        names.insert(0, (fo.load_dataset(name), _free(f"{name}-before", fo.list_datasets())))
    changes = [(one._doc.id, {"name": new, "slug": fo.core.utils.to_slug(new)}) for one, new in names]
    fo.core.odm.get_db_conn().datasets.bulk_write(
        [UpdateOne({"_id": id}, {"$set": change | {"persistent": True}}) for id, change in changes]
    )
    for one, new in names:  # what FiftyOne remembers in this process
        one._instances.pop(one.name, None)
        one._doc.reload()
        one._instances[new] = one
