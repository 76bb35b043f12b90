"""Who may use a project's database, and what is said where it cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pymongo
import pytest

from curate import mongod
from curate.admin import setup
from curate.errors import CurateError
from curate.index import database
from tests import fakes, forked
from tests.curate.index.test_browser import free_port
from tests.fakes import REPOSITORY

Done = subprocess.CompletedProcess[str]


def python(code: str, *arguments: object, **variables: str) -> Done:
    environment = {name: value for name, value in os.environ.items() if name != database.URI} | variables
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def curate(*arguments: object, **variables: str) -> Done:
    return python(forked.CURATE, *arguments, **variables)


def warm(code: str, *arguments: object, **variables: str) -> Done:
    """The same in a forked process, in which FiftyOne is imported already. The test needs the fixture `server`."""
    return forked.start(code, *arguments, env=os.environ | variables).completed(timeout=300)


def small(folder: Path) -> Path:
    """A project with three production images and two labelled ones."""
    for number in range(3):
        fakes.save_image(folder / "line" / f"{number}.png", 16, 16, seed=number)
    for number, name in enumerate(("crack", "hole")):
        fakes.save_image(folder / "library" / name / f"{number}.png", 16, 16, seed=9 + number)
    sources = [
        {"name": "line", "format": "images", "kind": "production", "data": folder / "line"},
        {"name": "library", "format": "class_folders", "data": folder / "library"},
    ]
    return setup.write(folder / "plant", sources, ["crack", "hole"]).folder


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """A project's database, its folder's name as the test wants it, and the URI of its server."""
    folder = tmp_path / getattr(request, "param", "db")
    yield folder, database.start(folder)
    database.leave(folder)


# --- the embedded server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "served", ["db", "übung 1", "100%?+@:;", "with,comma", "deep/" + 9 * "0123456789"], indirect=True
)
def test_only_the_owner_reaches_the_database_and_nobody_over_the_network(served: tuple[Path, str]) -> None:
    folder, uri = served
    server = database.running(folder)
    assert server is not None
    with pymongo.MongoClient(uri, serverSelectionTimeoutMS=20_000) as client:
        client.plant.images.insert_one({"label": "secret"})
    listening = [c for c in psutil.Process(server["pid"]).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening == []
    where = Path(server["socket"])
    assert [path.stat().st_mode & 0o077 for path in (folder, where, where.parent)] == [0, 0, 0]
    database.leave(folder)
    assert not where.exists()
    assert where.parent == folder or not where.parent.exists()


def test_the_server_of_an_older_curate_is_used_until_it_ends(tmp_path: Path) -> None:
    port = free_port()
    command = [mongod.binary(), "--dbpath", tmp_path, "--bind_ip", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*map(str, command), "--nounixsocket"], stdout=subprocess.DEVNULL)
    with pymongo.MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=60_000) as client:
        client.admin.command("ping")
    (tmp_path / "server.json").write_text(json.dumps({"pid": process.pid, "port": port}))
    assert database.start(tmp_path) == f"mongodb://127.0.0.1:{port}"
    database.leave(tmp_path)
    assert process.wait(timeout=60) == 0
    assert database.running(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', '{"pid": "x", "socket": 3}', "\0", '{"pid": [1]}'])
def test_a_damaged_note_of_the_server_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    assert database.running(tmp_path) is None


def test_another_user_is_reported_whose_database_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(The tests may run as root, who may do all: the refusal is played.)"""

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(
        CurateError, match=r"db: Operation not permitted.*Only its owner can use.*set FIFTYONE_DATABASE_URI"
    ):
        database.start(tmp_path / "db")


OPEN = """
import os, sys
from pathlib import Path
from curate.errors import CurateError
from curate.index import sync
from curate.index.dataset import Index
from curate.project import load
sync.run(load(Path(sys.argv[1])))
first = Index(load(Path(sys.argv[1])))
assert "FIFTYONE_DATABASE_URI" not in os.environ
try:
    Index(load(Path(sys.argv[2])))
except CurateError as error:
    print(error)
assert first.count() == 5 and Index(load(Path(sys.argv[1]))).count() == 5
"""


def test_a_second_project_in_one_process_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    first, second = small(tmp_path / "one"), small(tmp_path / "other")
    found = python(OPEN, first, second, FIFTYONE_DATABASE_DIR=str(tmp_path / "elsewhere"))
    assert found.returncode == 0, found.stderr
    where = f"the index of this project lies in {first / 'work' / 'db'}"
    assert f"FIFTYONE_DATABASE_DIR has no effect: {where}" in found.stderr
    assert found.stdout.startswith("this Python process is already connected to another database (/")
    assert f"{second / 'work'} needs /" in found.stdout
    assert "a Python process of its own" in found.stdout
    assert found.stdout.count("\n") == 1


# --- a shared server ------------------------------------------------------------------------------------------------


class Shared:
    """A MongoDB server as a plant would run it: on a port, with users if it has any."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options, self.port = folder, options, free_port()
        folder.mkdir()
        self.begin()

    def begin(self) -> None:
        command = [str(mongod.binary()), "--dbpath", str(self.folder), "--port", str(self.port), "--nounixsocket"]
        command += ["--bind_ip", "127.0.0.1", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def address(self, user: str = "", options: str = "") -> Mapping[str, str]:
        return {database.URI: f"mongodb://{user}127.0.0.1:{self.port}/?{options}"}

    def client(self) -> Any:
        return pymongo.MongoClient("127.0.0.1", self.port, serverSelectionTimeoutMS=60_000)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


def test_a_shared_server_with_users(tmp_path: Path, server: str) -> None:
    project, shared = small(tmp_path / "one"), Shared(tmp_path / "mongo", "--auth")
    try:
        with shared.client() as client:
            client.admin.command("createUser", "curator", pwd="top:secret/1", roles=["root"])
        right = shared.address("curator:top%3Asecret%2F1@")
        indexed = warm(forked.CURATE, "index", "--project", project, "--json", **right)
        assert json.loads(indexed.stdout)["added"] == 5, indexed.stderr
        status = warm(forked.CURATE, "status", "--project", project, "--json", **right)
        assert json.loads(status.stdout)["samples"] == 5, status.stderr
        assert not (project / "work" / "db").exists()
        wrong = curate("status", "--project", project, **shared.address("curator:wr0ng-secret@"))
        nobody = warm(forked.CURATE, "status", "--project", project, **shared.address())
    finally:
        shared.end()
    where = f"error: FiftyOne cannot use the database at 127.0.0.1:{shared.port}/"
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == f"{where}: Authentication failed. Correct FIFTYONE_DATABASE_URI, or run: curate doctor\n"
    assert (nobody.returncode, nobody.stderr.count("\n")) == (1, 1)
    assert nobody.stderr.startswith(where)
    assert "requires authentication" in nobody.stderr
    for done in (indexed, status, wrong):
        assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("uri", ["mongodb://u:topsecret@h:1x", "mongodb://u:top/secret@h", "http://u:topsecret@h"])
def test_a_broken_uri_is_refused_without_its_password(uri: str, tmp_path: Path) -> None:
    assert "secret" not in database.printable_uri(uri)
    assert "secret" not in database._without_password(f"cannot parse '{uri}' nor {uri.partition('//')[2]}", uri)


KILL = """
import os, signal, sys
from pymongo import monitoring

class Lost(monitoring.CommandListener):
    # The server dies right before the index writes its first label.
    def started(self, event):
        if event.command_name == "insert" and str(event.command["insert"]).startswith("samples."):
            os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
    def succeeded(self, event): pass
    def failed(self, event): pass

monitoring.register(Lost())
from curate.cli import main
main()
"""


def test_a_server_that_is_lost_in_the_middle_of_index(tmp_path: Path, server: str) -> None:
    project, shared = small(tmp_path / "one"), Shared(tmp_path / "mongo")
    try:
        with shared.client() as client:
            client.admin.command("ping")
        quick = shared.address(options="serverSelectionTimeoutMS=3000")
        lost = warm(KILL, "index", "--project", project, **quick, SERVER=str(shared.process.pid))
        shared.process.wait(timeout=60)
        assert lost.returncode == 1, lost.stderr
        assert lost.stderr.splitlines()[-1].startswith("error: lost the database (")
        shared.begin()
        again = warm(forked.CURATE, "index", "--project", project, "--json", **shared.address())
        assert again.returncode == 0, again.stderr
        status = json.loads(warm(forked.CURATE, "status", "--project", project, "--json", **shared.address()).stdout)
    finally:
        shared.end()
    assert status["samples"] == 5
    assert status["by_status"] == {"labelled": 2, "unlabelled": 3}


@pytest.mark.parametrize("end", ['database.leave(Path(sys.argv[1]) / "db")', "cli._explained(ConnectionError())"])
def test_without_a_database_no_process_waits_for_it_at_the_end(tmp_path: Path, end: str) -> None:
    """FiftyOne looks for datasets to delete as the process ends; without a server that takes it half a minute."""
    code = f"""
import atexit, sys
from pathlib import Path
from curate import cli
from curate.index import database
fo = database.connect(Path(sys.argv[1]))
{end}
left = atexit._ncallbacks()
atexit.unregister(fo.core.odm.database._delete_non_persistent_datasets_if_allowed)
print(left - atexit._ncallbacks())
"""
    environment = {name: value for name, value in os.environ.items() if name != database.URI}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert ended.stdout.strip() == "0", ended.stderr


SLOWLY = """
import sys
from pathlib import Path
from curate.index import database
database.NOTE_AND_BECOME = "sleep 1; " + database.NOTE_AND_BECOME
print("starting", flush=True)
database.start(Path(sys.argv[1]))
"""


def servers_on(folder: Path) -> list[int]:
    """The processes that are, or are about to become, MongoDB on this folder."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize("then", ["start", "end_left"])
def test_a_server_whose_starter_was_killed_before_the_note_is_found(tmp_path: Path, then: str) -> None:
    folder = tmp_path / "db"
    with subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        while not servers_on(folder):
            pass
        starter.kill()
    assert not (folder / "server.json").exists(), "it was killed before the note"
    if then == "end_left":
        database.end_left(folder)
        assert not servers_on(folder)
        return
    database.start(folder)
    noted = json.loads((folder / "server.json").read_text())["pid"]
    assert [pid for pid in servers_on(folder) if "mongod" in psutil.Process(pid).name()] == [noted]
    database.leave(folder)
    assert not servers_on(folder)
