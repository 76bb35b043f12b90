"""One real Label Studio for the session, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labeling import client, images, server
from labeling.client import Studio
from labeling.server import RunningServer
from tests.labeling.studio import projects


@pytest.fixture(scope="session")
def studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose document root is empty: `push` copies there what a test pushes."""
    if not server.installed():
        pytest.skip("Label Studio is not installed: pip install 'steel-curate[labelstudio]'")
    home = tmp_path_factory.mktemp("labelstudio")
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
