"""`curate doctor`: check what is installed and configured, and name remedies."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from curate import catalogue, mongod, pretrained, project, workers
from curate.errors import CurateError
from curate.index import app_plugins, database

State = Literal["ok", "absent", "missing"]


class DoctorCheck(NamedTuple):
    """Result of one check: `absent` parts are optional, `missing` ones are needed."""

    what: str
    state: State
    found: str
    remedy: str = ""


def run(wanted: str | None) -> list[DoctorCheck]:
    """Run all checks, for the project of this name, path or the current folder."""
    folder = _folder(wanted)
    checks: tuple[Callable[[], DoctorCheck], ...] = (
        lambda: _project(wanted, folder),
        lambda: _database(folder),
        lambda: _disk(folder),
        _gpu,
        label_studio,
        _ray,
        _weights,
        _browser,
        _plugins,
        _app_plugins,
    )
    return [check() for check in checks]


def _plugins() -> DoctorCheck:
    """Strategies, formats and so on that other packages add."""
    found = catalogue.added()
    problems = [problem for _, point in found if (problem := catalogue.problem_of(point))]
    if problems:
        return DoctorCheck("plug-ins", "absent", "; ".join(problems), "curate works without them")
    each = (f"{group.removeprefix('curate.')} {p.name} ({catalogue.origin_of(p)})" for group, p in found)
    return DoctorCheck("plug-ins", "ok", ", ".join(each) or "none of other packages")


def _folder(wanted: str | None) -> Path | None:
    try:
        return project.find(wanted)
    except CurateError:
        return None


def _project(wanted: str | None, folder: Path | None) -> DoctorCheck:
    try:
        loaded = project.load(project.find(wanted))
        return DoctorCheck(
            "project", "ok", f"{loaded.name}: {len(loaded.config.sources)} sources, {len(loaded.class_names)} classes"
        )
    except CurateError as error:
        state: State = "missing" if wanted or folder else "absent"
        return DoctorCheck("project", state, str(error), "curate demo, or: curate init NAME --format FORMAT --data DIR")


def _database(folder: Path | None) -> DoctorCheck:
    uri = os.environ.get(database.URI)
    if uri:
        return _server(uri)
    try:
        binary = mongod.binary()
    except CurateError as error:
        return DoctorCheck("database", "missing", "no mongod, no URI", str(error))
    server = database.running(folder / "work" / "db") if folder else None
    state = f"running, pid {server['pid']}" if server else "starts with the first command"
    return DoctorCheck("database", "ok", f"embedded, {state} ({binary})")


def _server(uri: str) -> DoctorCheck:
    import pymongo
    from pymongo.errors import PyMongoError

    shown = database.printable_uri(uri)  # never a password
    try:
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=3000) as client:
            version = client.server_info()["version"]
        return DoctorCheck("database", "ok", f"MongoDB {version} at {shown}")
    except (PyMongoError, ValueError) as error:  # ValueError: the text is no URI
        text = type(error).__name__
        return DoctorCheck(
            "database", "missing", f"no answer from {shown} ({text})", f"correct or unset {database.URI}"
        )


def _disk(folder: Path | None) -> DoctorCheck:
    place = folder or Path.cwd()
    free = shutil.disk_usage(place).free / 1e9
    remedy = "" if free > 5 else "free some space, or move the project: vectors, models and database need room"
    return DoctorCheck("disk", "ok" if free > 1 else "missing", f"{free:.0f} GB free at {place}", remedy)


def _gpu() -> DoctorCheck:
    if importlib.util.find_spec("torch") is None:
        return DoctorCheck("GPU", "missing", "torch is not installed", "make setup")
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return DoctorCheck(
            "GPU", "ok", f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        )
    found = f"none; torch {torch.__version__} uses {workers.cores()} CPU cores"
    return DoctorCheck("GPU", "absent", found, "not needed; with one, training is faster")


def label_studio() -> DoctorCheck:
    """Check that there is a Label Studio to talk to."""
    url = os.environ.get("LABEL_STUDIO_URL")
    if url:
        if os.environ.get("LABEL_STUDIO_API_KEY"):
            return DoctorCheck("Label Studio", "ok", f"{url}, token set")
        return DoctorCheck("Label Studio", "missing", f"{url}, but no token", "set LABEL_STUDIO_API_KEY")
    if importlib.util.find_spec("label_studio"):
        return DoctorCheck("Label Studio", "ok", "server installed here")
    return DoctorCheck(
        "Label Studio", "absent", "no server here, no LABEL_STUDIO_URL", "pip install 'steel-curate[labelstudio]'"
    )


def _ray() -> DoctorCheck:
    address = os.environ.get("RAY_ADDRESS")
    if importlib.util.find_spec("ray"):
        return DoctorCheck("Ray", "ok", f"installed{f', cluster at {address}' if address else ', this machine only'}")
    return DoctorCheck("Ray", "absent", "not installed; the local engine needs none", "pip install 'steel-curate[ray]'")


def _weights() -> DoctorCheck:
    """The weights that curate brings are read whole: a damaged file is found here, and not in the first training."""
    downloaded = sorted(_weight_files(), key=str)
    try:
        found = [pretrained.file_of(pretrained.DEFAULT), *downloaded[:3]]
    except CurateError as error:
        return DoctorCheck("weights", "missing", *str(error).rsplit(". ", 1))
    return DoctorCheck("weights", "ok", ", ".join(map(str, found)))


def _weight_files() -> Iterator[Path]:
    home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    yield from home.glob("hub/checkpoints/*.pth")
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    yield from hub.glob("hub/models--*")
    real = Path(os.environ.get("CURATE_REAL_DATA", "../shared/data"))
    yield from real.glob("weights/*.pth")


def _browser() -> DoctorCheck:
    for name in ("chromium", "chromium-browser", "google-chrome", "firefox"):
        path = shutil.which(name)
        if path:
            return DoctorCheck("browser", "ok", path)
    return DoctorCheck(
        "browser", "absent", "none on this machine", "curate app --remote, and open it from another machine"
    )


def _app_plugins() -> DoctorCheck:
    """The App only logs a plug-in that fails to load: its buttons are just not there."""
    failed = app_plugins.faults()
    if not failed:
        return DoctorCheck("App plug-ins", "ok", "all load")
    named = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    ours = app_plugins.NAME in failed
    remedy = (
        "mend them, or: fiftyone plugins disable NAME" if not ours else "pip install --force-reinstall steel-curate"
    )
    return DoctorCheck("App plug-ins", "missing" if ours else "absent", f"do not load: {named}", remedy)
