"""Under which address annotators' browsers find an image: local files, an upload, or an object store.

Only references that the index holds get here, and each is judged again: nothing outside its data root is ever served.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from curate.errors import CurateError, LabelProblem
from curate.project import Project
from labeling import client, server
from labeling.client import Studio

ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"  # the server's own variable; for us, that of an external one

Address = Callable[[str, str], str]  # content id, `source:path` -> URL


def addresser(project: Project, studio: Studio, desk: int) -> Address:
    """Gives each image its address, in the way that project.toml asks for; `desk` is the project on the server."""
    wanted = project.config.labelstudio.images
    if wanted == "url":
        return _signed(project)
    return _uploaded(project, studio, desk) if wanted == "upload" else _local(project, studio, desk)


def _checked(project: Project, reference: str) -> Path:
    """The file behind the reference; a LabelProblem says why it is not shown to anybody."""
    path = project.locate(reference)
    if not path.is_file():
        raise LabelProblem(f"'{reference}' is not on disk")
    return path


# --- local files ------------------------------------------------------------------------------------------------------


def _local(project: Project, studio: Studio, desk: int) -> Address:
    folder, prefix = _served_folder(project)
    server.link_sources(project, folder)
    _store(project, studio, desk, folder)

    def address(id: str, reference: str) -> str:
        _checked(project, reference)
        source, _, path = reference.partition(":")
        return f"/data/local-files/?d={quote(prefix + source)}/{quote(path)}"

    return address


def _served_folder(project: Project) -> tuple[Path, str]:
    """Where the links to our sources lie, and what stands before them in an address."""
    if not client.external():
        return server.files_of(project), ""
    root = os.environ.get(ROOT)
    if root and Path(root).is_dir():
        return Path(root) / project.dataset_name, f"{project.dataset_name}/"
    what = f"{ROOT} names no folder here" if root else f"{ROOT} is not set"
    raise CurateError(
        f"{what}, so the server of {client.URL} cannot be given local files: set it to the server's own, or write "
        'images = "upload" or "url" under [labelstudio] in project.toml'
    )


def _store(project: Project, studio: Studio, desk: int, folder: Path) -> None:
    """Label Studio serves only what lies below a storage of the project; a source that is one stays one."""
    known = {one["path"] for one in studio.get("/api/storages/localfiles", project=desk)}
    for source in project.config.sources:
        path = str(folder / source.name)
        if path not in known:
            about = {"project": desk, "path": path, "title": source.name, "use_blob_urls": True}
            studio.post("/api/storages/localfiles", about)


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


def _uploaded(project: Project, studio: Studio, desk: int) -> Address:
    """Each file goes to the server once, under its content id: an upload that was cut off is found again."""
    known = {_id_of(one["file"]): one["file"] for one in _uploads(studio, desk)}

    def address(id: str, reference: str) -> str:
        if id not in known:
            path = _checked(project, reference)
            known[id] = _upload(studio, desk, id + path.suffix.lower(), path)
        return f"/data/{quote(known[id])}"

    return address


def _uploads(studio: Studio, desk: int) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = studio.get(f"/api/projects/{desk}/file-uploads", all="true")
    return found


def _id_of(file: str) -> str:
    """Label Studio writes `upload/<project>/<8 letters>-<our name>`."""
    return PurePosixPath(file).stem.partition("-")[2]


def _upload(studio: Studio, desk: int, name: str, path: Path) -> str:
    with path.open("rb") as handle:
        sent = studio.ask(
            "POST", f"/api/projects/{desk}/import", params={"commit_to_project": "false"}, files={name: (name, handle)}
        )
    number = sent["file_upload_ids"][0]
    return str(studio.get(f"/api/import/file-upload/{number}")["file"])
