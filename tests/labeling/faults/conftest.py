"""Fixtures of the fault tests: the document root, the gate, a server that may be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labeling import client, images
from labeling.client import Studio
from labeling.server import RunningServer
from tests.labeling.faults.helpers import Gate


@pytest.fixture(autouse=True)
def _documents(studio_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(images.ROOT, str(studio_server.files))


@pytest.fixture
def gate(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The commands of this test go through it; `studio` does not."""
    made = Gate(studio.url)
    monkeypatch.setenv(client.URL, made.url)
    yield made
    made.shutdown()
    made.server_close()
