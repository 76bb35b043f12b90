"""Requests that the App's server allows and refuses. (Real requests to a real App: test_browser.py.)"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from curate.errors import CurateError
from curate.index import app_server, app_views
from curate.index.dataset import Index
from curate.project import Project
from tests import fakes

KNOWN = "/data/known.png"


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the App"})


def ask(guard: app_server.Guard, path: str, query: str = "", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    given = {"host": "localhost:5151"} | headers
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "http_version": "1.1"}
    scope |= {"headers": [(name.encode(), value.encode()) for name, value in given.items()], "scheme": "http"}
    scope |= {"server": ("127.0.0.1", 5151), "client": ("127.0.0.1", 9), "root_path": ""}
    asyncio.run(guard(scope, receive, send))
    found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found


def guard(address: str = "127.0.0.1", token: str = "") -> app_server.Guard:
    return app_server.Guard(inner, address, 5151, token, lambda path: path == KNOWN)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(host, 200) for host in ("localhost", "LOCALHOST:99", "127.0.0.1:5151", "[::1]:5151")],
        *[(host, 421) for host in ("evil.example", "localhost.evil.example:5151", "10.1.2.3", "", "[::1", "a@b:c")],
    ],
)
def test_only_names_of_this_machine_are_answered(host: str, status: int) -> None:
    assert ask(guard(), "/", host=host)[0] == status
    assert ask(guard(), "/media", f"filepath={KNOWN}", host=host)[0] == status


def test_pages_of_other_sites_are_refused() -> None:
    assert ask(guard(), "/graphql", origin="http://localhost:5151")[0] == 200
    for origin in ("http://evil.example", "http://localhost:8080", "null", "http://127.0.0.1:5151"):
        assert ask(guard(), "/graphql", origin=origin)[0] == 403


@pytest.mark.parametrize("query", ["", "filepath=", "filepath=/etc/passwd", f"filepath={KNOWN}&filepath=/etc/passwd"])
def test_only_files_that_the_dataset_knows_are_sent(query: str) -> None:
    assert ask(guard(), "/media", f"filepath={KNOWN}")[0] == 200
    assert ask(guard(), "/media", query)[0] == 403
    assert ask(guard(), "/dataset/1/sample/2/commit-mask")[0] == 403


def test_beyond_the_loopback_address_a_token_is_asked_for_and_kept_in_a_cookie() -> None:
    shut = guard("0.0.0.0", "s3cret")
    assert ask(shut, "/")[0] == 401
    assert ask(shut, "/media", f"filepath={KNOWN}")[0] == 401
    assert ask(shut, "/", "token=wrong")[0] == 401
    status, headers = ask(shut, "/datasets/plant", "token=s3cret&view=clean", host="10.1.2.3:5151")
    assert (status, headers["location"]) == (303, "/datasets/plant?view=clean")
    assert "httponly" in headers["set-cookie"].lower()
    cookie = headers["set-cookie"].partition(";")[0]
    assert ask(shut, "/datasets/plant", cookie=cookie, host="10.1.2.3:5151")[0] == 200
    assert ask(shut, "/datasets/plant", cookie=cookie, host="evil.example")[0] == 421
    assert ask(shut, "/", authorization="Basic Y3VyYXRlOnMzY3JldA==")[0] == 200  # curate:s3cret


def test_a_file_is_known_if_the_dataset_names_it_and_it_is_an_image(indexed: Project, tmp_path: Path) -> None:
    index = Index(indexed)
    samples, home = index._samples(), index._dataset_document()
    image = index.dataset.first().filepath
    assert app_server.is_known(image, home, samples)
    assert not app_server.is_known(f"{image}/../{Path(image).name}", home, samples)
    secret = fakes.save_text(tmp_path / "secret.png", "root:x:0:0")
    mask = fakes.save_mask(tmp_path / "mask.png")
    assert not app_server.is_known(str(mask), home, samples)
    sample = index.dataset.first()
    sample["segments"] = index.fo.Segmentation(mask_path=str(mask))
    sample["defects"] = index.fo.Detections(detections=[index.fo.Detection(label="crack", mask_path=str(secret))])
    sample.save()
    home = index._dataset_document()
    assert app_server.is_known(str(mask), home, samples)
    assert not app_server.is_known(str(secret), home, samples)
    sample.filepath = str(secret)
    sample.save()
    assert not app_server.is_known(str(secret), home, samples)


# --- a FiftyOne that starts a server of its own ---------------------------------------------------------------------


@pytest.fixture
def open_server() -> Iterator[str]:
    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Open)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_cannot_be_restricted_is_named(open_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    app_views._check_restricted(open_server, "")
    assert "sends any file of this machine to anybody who reaches it" in capsys.readouterr().err
    with pytest.raises(CurateError, match="Leave out --address"):
        app_views._check_restricted(open_server, "token")
