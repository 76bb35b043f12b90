"""Addresses under which annotators' browsers find an image: local files, an upload, or an object store.

Only references that the index holds get here, and each is judged again: nothing outside its data root is ever served.
What is copied or uploaded must hash to its content id: neither a link nor a replaced file shows other bytes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

from curate import files
from curate.errors import CurateError, LabelProblem
from curate.index.dataset import Index
from curate.paths import IMAGE_SUFFIXES
from curate.project import Project
from labeling import client, remote_project, server, tasks
from labeling.client import Studio
from labeling.remote_project import LabelStudioProject

ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"  # the server's own variable; for us, that of an external one
MEDIA = "media"  # the folder below the document root that holds the copies, and the one that Label Studio serves
LOCAL = "/data/local-files/?d="
KEPT_DAYS = 30  # for which a copy stays that waits for nobody: people open finished tasks again
PART = 1 << 20  # bytes read at a time
NO_PROGRESS: Callable[[str, int, int], None] = lambda stage, done, total: None  # noqa: E731

Address = Callable[[str, str], str]  # content id, `source:path` -> URL


def addresser(index: Index, ls_project: LabelStudioProject, progress: Any = NO_PROGRESS) -> Address:
    """Gives each image its address, in the way that project.toml asks for."""
    wanted = index.project.config.labelstudio.images
    if wanted == "url":
        return _signed(index.project)
    return (
        _uploaded(index.project, ls_project.studio, ls_project.id)
        if wanted == "upload"
        else _local(index, ls_project, progress)
    )


def _checked(project: Project, reference: str) -> Path:
    """The file behind the reference; a LabelProblem says why it is not shown to anybody."""
    path = project.locate(reference)
    if not path.is_file():
        raise LabelProblem(f"'{reference}' is not on disk")
    return path


def _check_bytes(id: str, reference: str, digest: str) -> None:
    if digest != id:
        raise LabelProblem(f"'{reference}' changed since it was indexed. Run: curate index")


# --- local files ------------------------------------------------------------------------------------------------------


def _local(index: Index, ls_project: LabelStudioProject, progress: Any) -> Address:
    """Label Studio serves one folder of ours: copies of just the images that were pushed, named by their content ids.

    Copies, because Label Studio follows links, and because a file that is overwritten in place changes its hard links.
    """
    root, prefix = _document_root(index.project)
    server.remove_links(root)
    folder = root / MEDIA
    folder.mkdir(parents=True, exist_ok=True)

    def address(id: str, reference: str) -> str:
        return f"{LOCAL}{quote(f'{prefix}{MEDIA}/{_copied(index.project, folder, id, reference)}')}"

    storages = ls_project.studio.get("/api/storages/localfiles/", project=ls_project.id)
    if str(folder) not in {storage["path"] for storage in storages}:
        about = {"project": ls_project.id, "path": str(folder), "title": MEDIA, "use_blob_urls": True}
        ls_project.studio.post("/api/storages/localfiles/", about)
    if old := _superseded(storages, folder):
        _move(index, ls_project, address, progress)
        for number in old:
            ls_project.studio.ask("DELETE", f"/api/storages/localfiles/{number}")
    return address


def _document_root(project: Project) -> tuple[Path, str]:
    """Where the copies of our images lie, and what stands before them in an address."""
    if not client.external():
        return server.files_of(project), ""
    root = os.environ.get(ROOT)
    if root and Path(root).is_dir():
        return Path(root) / project.dataset_name, f"{project.dataset_name}/"
    problem = f"{ROOT} names no folder here" if root else f"{ROOT} is not set"
    raise CurateError(
        f"{problem}, so the server of {client.URL} cannot be given local files: set it to the server's own, or write "
        'images = "upload" or "url" under [labelstudio] in project.toml'
    )


def _copied(project: Project, folder: Path, id: str, reference: str) -> str:
    """The name of the copy, made unless it is there; it gets its name once its bytes are those of the index."""
    suffix = PurePosixPath(reference).suffix.lower()
    suffix = suffix if suffix in IMAGE_SUFFIXES else ".jpg"  # of any image type: browsers look at the bytes
    copy = folder / f"{id}{suffix}"
    if copy.is_file() and not copy.is_symlink():
        os.utime(copy)
        return copy.name
    path = _checked(project, reference)
    with files.written_aside(copy) as aside:
        with path.open("rb") as source, aside.open("wb") as target:
            digest = hashlib.sha256()
            while part := source.read(PART):
                digest.update(part)
                target.write(part)
        _check_bytes(id, reference, digest.hexdigest())
    return copy.name


def _superseded(storages: list[Mapping[str, Any]], folder: Path) -> list[int]:
    """The storages of earlier versions, each a link to a whole source beside `folder`."""
    return [
        storage["id"]
        for storage in storages
        if Path(storage["path"]).parent == folder.parent and storage["path"] != str(folder)
    ]


def renew(project: Project, studio: Studio, progress: Any = NO_PROGRESS) -> None:
    """Give tasks that an earlier version pushed addresses that still work. Each push does so, too."""
    if project.config.labelstudio.images != "local" or (ls_project := remote_project.find(project, studio)) is None:
        return
    if _superseded(studio.get("/api/storages/localfiles/", project=ls_project.id), _document_root(project)[0] / MEDIA):
        _local(Index(project), ls_project, progress)


def _move(index: Index, ls_project: LabelStudioProject, address: Address, progress: Any) -> None:
    """New addresses for all tasks, the finished ones too; annotations and suggestions stay as they are."""
    references = {id: paths[0] for id, paths in index.rows("paths") if paths}
    for task in list(tasks.held(ls_project)):
        progress("moving images", 1, 0)
        id, image = str(task.data.get("content_id")), str(task.data.get("image"))
        if image.startswith(LOCAL) and id in references:
            try:
                new = address(id, references[id])
            except LabelProblem:
                continue  # its file is gone: the old address leads nowhere either
            if new != image:
                ls_project.studio.ask("PATCH", f"/api/tasks/{task.id}/", json={"data": {**task.data, "image": new}})


def sweep(index: Index, ls_project: LabelStudioProject) -> None:
    """Remove copies of images that have waited for nobody for a while; a push of theirs makes them anew."""
    if index.project.config.labelstudio.images != "local":
        return
    folder, oldest = _document_root(index.project)[0] / MEDIA, time.time() - KEPT_DAYS * 86400
    old = [path for path in folder.glob("[!.]*") if path.stat().st_mtime < oldest]
    waiting = {str(task.data.get("content_id")) for task in tasks.unfinished(ls_project)} if old else set()
    for path in old:
        if path.stem not in waiting:
            path.unlink()


# --- an object store --------------------------------------------------------------------------------------------------


def _signed(project: Project) -> Address:
    config = project.config.labelstudio
    seconds = config.signed_hours * 3600

    def address(id: str, reference: str) -> str:
        source, _, path = reference.partition(":")
        project.locate(reference)
        url = str(config.url)
        if url.startswith(("http://", "https://")):
            return url.replace("{source}", quote(source)).replace("{path}", quote(path))
        return _sign(url.replace("{source}", source).replace("{path}", path), seconds)

    return address


def _sign(url: str, seconds: int) -> str:
    """An address that works without a login for some time; the store's keys come from its own environment."""
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(url)
        return str(store.sign(path, expiration=seconds))
    except ImportError as error:
        raise CurateError(f"'{url}' needs a package that is not installed: {error}") from None
    except NotImplementedError:
        scheme = url.partition(":")[0]
        raise CurateError(
            f"stores of kind '{scheme}' sign no addresses; use s3://, gs:// or az://, or https://"
        ) from None


# --- uploads ----------------------------------------------------------------------------------------------------------


def _uploaded(project: Project, studio: Studio, project_id: int) -> Address:
    """Each file goes to the server once, under its content id: an upload that was cut off is found again."""
    known = {_id_of(upload["file"]): upload["file"] for upload in _uploads(studio, project_id)}

    def address(id: str, reference: str) -> str:
        if id not in known:
            with _checked(project, reference).open("rb") as handle:
                _check_bytes(id, reference, hashlib.file_digest(handle, "sha256").hexdigest())
                handle.seek(0)
                known[id] = _upload(studio, project_id, id + PurePosixPath(reference).suffix.lower(), handle)
        return f"/data/{quote(known[id])}"

    return address


def _uploads(studio: Studio, project_id: int) -> list[Mapping[str, Any]]:
    uploads: list[Mapping[str, Any]] = studio.get(f"/api/projects/{project_id}/file-uploads", all="true")
    return uploads


def _id_of(file: str) -> str:
    """Label Studio writes `upload/<project>/<8 letters>-<our name>`."""
    return PurePosixPath(file).stem.partition("-")[2]


def _upload(studio: Studio, project_id: int, name: str, handle: IO[bytes]) -> str:
    sent = studio.ask(
        "POST",
        f"/api/projects/{project_id}/import",
        params={"commit_to_project": "false"},
        files={name: (name, handle)},
    )
    number = sent["file_upload_ids"][0]
    return str(studio.get(f"/api/import/file-upload/{number}")["file"])
