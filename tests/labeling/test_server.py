"""A real Label Studio: started, found, killed, mended, ended; and what it serves to whom."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from curate.admin import setup
from curate.errors import CurateError
from curate.project import Project
from labeling import client, server
from labeling.client import Studio
from labeling.server import RunningServer
from tests import fakes
from tests.fakes import REPOSITORY
from tests.labeling import studio as ls_helpers
from tests.labeling.conftest import started_before

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
CHOICES = (
    '<View><Image name="image" value="$image"/><Choices name="c" toName="image"><Choice value="a"/></Choices></View>'
)


def plant(home: Path, name: str = "plant") -> Project:
    data = home / "line"
    for number in range(2):
        fakes.save_image(data / "A" / f"{number}.png", 32, 24, seed=number)
    return setup.write(home / "projects" / name, [{"name": "line", "format": "images", "data": data}], ["crack"])


def command(project: Project, *words: str) -> subprocess.Popen[str]:
    """`curate labelstudio ...` as a person runs it, in an environment that names no server."""
    environment = {k: v for k, v in os.environ.items() if k not in (client.URL, client.KEY)}
    words = ("labelstudio", *words, "--project", str(project.folder))
    line = [sys.executable, "-c", "from curate.cli import main; main()", *words]
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's job ignores Ctrl-C
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[tuple[Project, list[dict[str, Any]]]]:
    """A project whose server two commands started at the same moment, and what they said."""
    project = plant(tmp_path_factory.mktemp("own"))
    started_before(server.folder_of(project), template)
    old = os.umask(0)  # the worst case: files are as open as they are made
    try:
        both = [command(project, "up", "--json", "--port", str(server.any_port())) for _ in range(2)]
        yield project, [answer(one) for one in both]
    finally:
        os.umask(old)
        server.down(project)


def served(project: Project) -> RunningServer:
    found = server.find(project)
    assert found
    return found


# --- up ---------------------------------------------------------------------------------------------------------------


def test_two_at_once_start_one_server(own: tuple[Project, list[dict[str, Any]]]) -> None:
    _, told = own
    assert sorted(one["started"] for one in told) == [False, True]
    assert len({(one["url"], one["pid"]) for one in told}) == 1


def test_up_again_changes_nothing(own: tuple[Project, list[dict[str, Any]]]) -> None:
    project, told = own
    before = served(project)
    again = server.up(project, port=server.any_port())
    assert (again.pid, again.url, again.started) == (told[0]["pid"], told[0]["url"], False)
    assert served(project) == before


def test_all_commands_find_it(own: tuple[Project, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (client.URL, client.KEY):
        monkeypatch.delenv(name, raising=False)
    project, told = own
    assert client.connect(project).me.email == server.EMAIL
    status = client.status(project)
    expected = {"running": True, "external": False, "url": told[0]["url"], "pid": told[0]["pid"], "problem": None}
    assert expected.items() <= status.items()
    assert re.fullmatch(r"\d+\.\d+\.\d+", status["version"])


def test_status_of_a_server_elsewhere(
    own: tuple[Project, list[dict[str, Any]]], studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = own
    status = client.status(project)
    assert (status["external"], status["running"], status["url"]) == (True, True, studio.url)
    assert "pid" not in status
    monkeypatch.setenv(client.URL, f"http://127.0.0.1:{server.any_port()}")
    status = client.status(project)
    assert (status["external"], status["running"]) == (True, False)
    assert "cannot reach" in status["problem"]


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_only_its_owner_reads_what_is_secret(own: tuple[Project, list[dict[str, Any]]]) -> None:
    folder = served(own[0]).folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("credentials.json", "label-studio.log", ".env"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


@needs_proc
def test_token_and_password_are_in_no_argument_log_or_answer(own: tuple[Project, list[dict[str, Any]]]) -> None:
    project, told = own
    known = server.read_credentials(served(project).folder)
    seen = json.dumps(told) + json.dumps(client.status(project)) + served(project).log.read_text(encoding="utf-8")
    seen += (served(project).folder / "server.json").read_text(encoding="utf-8")
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            seen += process.read_bytes().decode("utf-8", "replace")
    assert "label-studio" in seen
    assert known.token not in seen
    assert known.password not in seen


@needs_proc
def test_it_sees_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", client.KEY, "SECRET_KEY", "DJANGO_SETTINGS_MODULE", "PORT", "DEBUG"):
        monkeypatch.setenv(name, "ours")
    monkeypatch.setenv("LABEL_STUDIO_HOST", "theirs")
    made = server._environment(tmp_path, tmp_path, server.Credentials("a@b.c", "p", "t"))
    assert "ours" not in made.values()
    assert made["PATH"] == os.environ["PATH"]
    # Left alone, it publishes the last commit of the repository in which its package lies, without any log-in.
    assert subprocess.run(["git", "log", "-1"], env=made, cwd=REPOSITORY, capture_output=True, check=False).returncode


# --- who gets in ------------------------------------------------------------------------------------------------------


@needs_proc
def test_only_this_machine_reaches_it(own: tuple[Project, list[dict[str, Any]]]) -> None:
    port = f"{served(own[0]).port:04X}"
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port}")}
    assert listening == {f"0100007F:{port}"}


def log_in(url: str, page: str, email: str, password: str) -> httpx.Response:
    with httpx.Client(base_url=url, trust_env=False, follow_redirects=True, timeout=60) as browser:
        hidden = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', browser.get(page).text)
        assert hidden
        form = {"csrfmiddlewaretoken": hidden[1], "email": email, "password": password}
        browser.post(page, data=form, headers={"Origin": url, "Referer": url + page})
        return browser.get("/api/current-user/whoami")


def test_a_person_logs_in_with_what_the_file_says(own: tuple[Project, list[dict[str, Any]]]) -> None:
    known = server.read_credentials(served(own[0]).folder)
    url = served(own[0]).url
    assert log_in(url, "/user/login/", known.email, known.password).json()["email"] == known.email
    assert log_in(url, "/user/login/", known.email, known.password + "x").status_code == 401
    assert log_in(url, "/user/signup/", "stranger@example.com", "a-good-password-1").status_code == 401


@pytest.mark.parametrize(
    ("host", "banned"),
    [("127.0.0.1:9", False), ("169.254.169.254", True), ("100.100.100.200", True), ("0.0.0.0", True)],
)
def test_it_calls_this_machine_but_no_metadata_service(studio: Studio, host: str, banned: bool) -> None:
    number = ls_helpers.project(studio, "imports", CHOICES)
    with pytest.raises(CurateError) as caught:
        studio.ask("POST", f"/api/projects/{number}/import", data={"url": f"http://{host}/tasks.json"})
    assert ("reserved network address" in str(caught.value)) is banned, caught.value


# --- ports and programs -----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken(own: tuple[Project, list[dict[str, Any]]], tmp_path: Path) -> None:
    port = served(own[0]).port
    with pytest.raises(CurateError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use.*--port"):
        server.launch(tmp_path / "server", tmp_path / "files", port)
    assert server._free_port("127.0.0.1", None) >= server.FIRST_PORT


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    for port in (None, 8123):
        with pytest.raises(CurateError, match=r"192\.0\.2\.1"):
            server.launch(tmp_path / "server", tmp_path / "files", port, "192.0.2.1")


@contextlib.contextmanager
def stranger() -> Iterator[tuple[int, list[str]]]:
    """Another program that answers 200 to everything: its port, and the credentials that it was sent."""
    heard: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.extend(value for name, value in self.headers.items() if name.lower() == "authorization")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"id": 1, "email": "a@b.c"}')

        def log_message(self, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield listener.server_port, heard
    finally:
        listener.shutdown()
        listener.server_close()


@needs_proc
def test_a_port_that_another_program_takes_meanwhile_gets_no_token(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = plant(tmp_path)
    folder = started_before(server.folder_of(project), template)
    with stranger() as (port, heard):
        monkeypatch.setattr(server, "_free_port", lambda host, wanted: port)
        with pytest.raises(CurateError, match=f"another program took port {port}"):
            server.up(project)
        assert (heard, alive(folder)) == ([], [])
        assert not (folder / "server.json").exists()
        state = {"pid": os.getpid(), "born": server._born(os.getpid()), "host": "127.0.0.1", "files": "x"}
        (folder / "server.json").write_text(json.dumps(state | {"port": port}))
        assert server.find(project), "this very process listens there"
        with socket.create_server(("127.0.0.1", 0)) as ours, subprocess.Popen(["sleep", "60"]) as other:
            state = {"pid": other.pid, "born": server._born(other.pid), "host": "127.0.0.1", "files": "x"}
            for taken in (port, ours.getsockname()[1]):
                (folder / "server.json").write_text(json.dumps(state | {"port": taken}))
                assert server.find(project) is None, "its process does not listen there: somebody else does"
                with pytest.raises(CurateError, match="is not running"):
                    client._from_own_server(project)
            other.kill()
    assert heard == []


@needs_proc
def test_two_projects_that_start_at_once_get_a_server_each(template: Path, tmp_path: Path) -> None:
    made = [plant(tmp_path, name) for name in ("one", "two")]
    for project in made:
        started_before(server.folder_of(project), template)
    try:
        told = [answer(one) for one in [command(project, "up", "--json") for project in made]]
        assert [one["started"] for one in told] == [True, True]
        assert len({one["url"] for one in told}) == 2
        for project, one in zip(made, told, strict=True):
            token = server.read_credentials(server.folder_of(project)).token
            assert client.open_studio(one["url"], token).me.email == server.EMAIL
    finally:
        for project in made:
            server.down(project)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CurateError, match=r"pip install 'steel-curate\[labelstudio\]'"):
        server.up(plant(tmp_path))


# --- ends, by all means -----------------------------------------------------------------------------------------------


def alive(folder: Path) -> list[int]:
    """Label Studios on that folder, whoever started them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"LABEL_STUDIO_BASE_DATA_DIR={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return [pid for pid in found if server._lives(pid)]


@needs_proc
def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path, template: Path) -> None:
    project = plant(tmp_path)
    folder = started_before(server.folder_of(project), template)
    assert any(interrupted(project, folder) for _ in range(3))
    assert alive(folder) == []
    assert not (folder / "server.json").exists()


def interrupted(project: Project, folder: Path) -> bool:
    """True if Ctrl-C met `up` while it waited for the server; on a busy machine it may come too late."""
    process = command(project, "up")
    wait_for(folder / "server.json")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    if process.returncode == 0:
        assert server.down(project)
        return False
    assert process.returncode == 130
    return True


@needs_proc
def test_a_database_that_is_none(tmp_path: Path) -> None:
    project = plant(tmp_path)
    folder = server.folder_of(project)
    folder.mkdir(parents=True)
    (folder / "label_studio.sqlite3").write_text("this is no database " * 200)
    with pytest.raises(CurateError, match=r"ended while it started: .*not a database.*label-studio\.log"):
        server.up(project, server.any_port())
    assert alive(folder) == []
    assert not server.down(project)


@needs_proc
def test_killed_and_robbed_it_comes_back(
    own: tuple[Project, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last of this module. Its data stay through kill -9, a command that is killed while it waits, and a lost file."""
    for name in (client.URL, client.KEY):
        monkeypatch.delenv(name, raising=False)
    project, _ = own
    first = served(project)
    number = ls_helpers.project(client.connect(project), "stays", CHOICES)
    os.kill(first.pid, signal.SIGKILL)
    while server._lives(first.pid):
        time.sleep(0.05)
    assert server.find(project) is None
    with pytest.raises(CurateError, match="is not running"):
        client.connect(project)
    (first.folder / "credentials.json").unlink()

    waiting = command(project, "up", "--port", str(first.port))
    while not server._state(first.folder):
        time.sleep(0.05)
    waiting.kill()
    waiting.communicate()
    found = server.up(project)
    assert (found.started, found.port) == (False, first.port)
    assert alive(found.folder) == [found.pid]
    assert ls_helpers.projects(client.connect(project)) == [number]

    (first.folder / "server.json").unlink()
    again = server.up(project)
    assert (again.started, again.pid, again.url) == (False, found.pid, found.url), "one server on a database"
    assert alive(found.folder) == [found.pid]

    assert answer(command(project, "down", "--json")) == {"stopped": True}
    assert alive(found.folder) == []
    assert answer(command(project, "down", "--json")) == {"stopped": False}
    assert answer(command(project, "status", "--json"))["running"] is False


@needs_proc
def test_a_pid_that_another_process_has_now(tmp_path: Path) -> None:
    state = {"pid": os.getpid(), "born": "1", "port": 1, "host": "127.0.0.1", "files": "x"}
    (tmp_path / "server.json").write_text(json.dumps(state))
    assert server.running(tmp_path) is None
    assert server.stop(tmp_path) is False  # and this test lives
