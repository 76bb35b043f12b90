"""One real Label Studio for the session, in a folder of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from curate.hashing import sha256_of
from labeling import client, images, server
from labeling.client import Studio
from labeling.server import RunningServer
from tests.labeling.studio import projects


def started_before(folder: Path, like: Path) -> Path:
    """Make a server's folder with a database whose migrations are done, and its credentials: the first start, which
    does them, takes a minute of a core."""
    folder.mkdir(parents=True)
    for name in ("label_studio.sqlite3", "credentials.json"):
        shutil.copy(like / name, folder)
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The folder of a server that was started once and ended; all test processes share it, and so do later runs, for as
    long as the same Label Studio is installed and `labeling/server.py` is the same."""
    if not server.installed():
        pytest.skip("Label Studio is not installed: pip install 'steel-curate[labelstudio]'")
    home = tmp_path_factory.getbasetemp()
    home = (home.parent if "PYTEST_XDIST_WORKER" in os.environ else home) / "labelstudio-template"
    if cache := getattr(pytestconfig, "cache", None):
        home = cache.mkdir(f"labelstudio-{version('label-studio')}-{sha256_of(Path(server.__file__))[:16]}")
    home.mkdir(exist_ok=True)
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "made").exists():
            for left in ("server", "files"):  # of a run that was cut off
                shutil.rmtree(home / left, ignore_errors=True)
            old = os.umask(0)  # the worst case: files are as open as they are made
            try:
                server.launch(home / "server", home / "files", server.any_port())
            finally:
                os.umask(old)
            server.stop(home / "server")
            (home / "made").touch()
    return home / "server"


@pytest.fixture(scope="session")
def studio_server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[RunningServer]:
    """A server whose document root is empty: `push` copies there what a test pushes."""
    home = tmp_path_factory.mktemp("labelstudio")
    started_before(home / "server", template)
    served = server.launch(home / "server", home / "files", server.any_port())
    yield served
    server.stop(served.folder)


@pytest.fixture
def studio(studio_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """The connection that all commands use in this test; its Label Studio projects are removed afterwards."""
    token = server.read_credentials(studio_server.folder).token
    monkeypatch.setenv(images.ROOT, str(studio_server.files))
    monkeypatch.setenv(client.URL, studio_server.url)
    monkeypatch.setenv(client.KEY, token)
    opened = client.open_studio(studio_server.url, token)
    before = set(projects(opened))
    yield opened
    for number in set(projects(opened)) - before:
        opened.ask("DELETE", f"/api/projects/{number}/")
