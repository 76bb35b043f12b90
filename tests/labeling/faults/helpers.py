"""Helpers of the fault tests: labels, commands in processes of their own, a gate before the server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from curate.data import Label
from curate.index.dataset import Index
from curate.masks import shapes
from curate.project import Project, load
from labeling import client, push, remote_project, results, tasks
from labeling.client import Studio
from tests import fakes, forked
from tests.forked import Forked
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import history, ls_project_of, task_of

SIZE = (32, 24)


def drawn(name: str = "crack", seed: int = 1) -> Label:
    mask = shapes.defect_from_mask(name, fakes.blob(24, 32, seed))
    assert mask is not None
    return Label("labelled", (mask,))


def answer(project: Project, studio: Studio, id: str, label: Label) -> dict[str, Any]:
    """Somebody submits this label."""
    return ls_helpers.annotate(studio, task_of(project, studio, id), results.of_label(label, SIZE))


def one_task_each(project: Project, studio: Studio, ids: Sequence[str]) -> None:
    held = [one.data["content_id"] for one in tasks.held(ls_project_of(project, studio))]
    assert Counter(held) == Counter(ids)


def each_logged_once(project: Project, ids: Sequence[str]) -> None:
    """Every annotation stands in the log exactly once."""
    for id in ids:
        annotations = [entry.extra["annotation"] for entry in history(project, id) if "updated" in entry.extra]
        assert annotations, id
        assert len(annotations) == len(set(annotations)), id


def settings(project: Project, **values: Any) -> Project:
    """As after a change of [labelstudio] in project.toml."""
    return load(project.folder, {"labelstudio": values})


Harm = Callable[[str, str], str]  # method, path -> "", or what becomes of the request


class Gate(ThreadingHTTPServer):
    """Stands before the real server, and does harm to the requests that a test names.

    `lost`: done, but not answered. `cut`: neither. `late`: not answered in time, and done then. A number: that answer
    instead; `after 502`: that answer although it was done.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.harm: Harm = lambda method, path: ""
        once = httpx.Limits(max_keepalive_connections=0)  # see labeling/client.py
        self.http = httpx.Client(base_url=target, trust_env=False, timeout=120, limits=once)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed or ran out of time are what this is for."""


class _Door(BaseHTTPRequestHandler):
    server: Gate

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        harm = self.server.harm(self.command, self.path)
        if harm.isdigit():
            self._say(int(harm), b'{"detail": "out of order"}', "application/json")
        elif harm == "cut" or (told := self._forwarded(body, harm == "late")) is None or harm == "lost":
            self._hang_up()
        else:
            status = int(harm.removeprefix("after ")) if harm.startswith("after ") else told.status_code
            self._say(status, told.content, told.headers.get("content-type", "application/json"))

    def _forwarded(self, body: bytes, late: bool) -> httpx.Response | None:
        if late:
            time.sleep(client.TIMEOUT + 1)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
        try:
            return self.server.http.request(self.command, self.path, content=body, headers=kept)
        except httpx.HTTPError:
            return None

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _pass

    def _say(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


def through(gate: Gate) -> Studio:
    return client.open_studio(gate.url, os.environ[client.KEY])


def nth(number: int, harm: str, method: str, part: str, then: Callable[[], None] = lambda: None) -> Harm:
    """Harm to just the nth request of this kind; `part` ends the path or stands in its query."""
    left = [number]

    def judge(asked: str, path: str) -> str:
        if asked != method or not (path.rstrip("/").endswith(part) or part in path.partition("?")[2]):
            return ""
        left[0] -= 1
        if left[0] == 0:
            then()
            return harm
        return ""

    return judge


def environment(project: Project) -> dict[str, str]:
    return {**os.environ, "CURATE_PROJECT": str(project.folder), "NO_COLOR": "1"}


def command(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`curate` as a person runs it."""
    return ended(start(project, *arguments))


def start(project: Project, *arguments: str, code: str = forked.CURATE) -> Forked:
    return forked.start(code, *arguments, env=environment(project))


def ended(process: Forked) -> subprocess.CompletedProcess[str]:
    return process.completed(timeout=240)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def is_ours(project: Project, studio: Studio, number: int) -> bool:
    return str(studio.get(f"/api/projects/{number}/")["description"]) == remote_project._mark(project)


def draw_in_app(project: Project, id: str, name: str) -> None:
    index = Index(project)
    sample = index.dataset.match({"content_id": id}).first()
    sample.defects = index.fo.Detections(detections=[index.fo.Detection(label=name, bounding_box=[0, 0, 0.5, 0.5])])
    sample.save()


def config_notes(report: push.PushReport) -> list[str]:
    return [note for note in report.notes if "config" in note]


GOOD = results.of_label(drawn(), SIZE)
