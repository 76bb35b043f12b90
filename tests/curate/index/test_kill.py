"""`kill -9` at any moment: the next run completes, and the result is that of a run that nobody disturbed.

Real processes on the embedded database, as `curate index` runs for a user.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.admin import setup
from curate.index import database
from tests import forked
from tests.fakes import REPOSITORY
from tests.forked import Forked

IMAGES = 160
SHOW = """
import json, sys
from pathlib import Path
from curate.project import load
from tests.conftest import dump
print(json.dumps(dump(load(Path(sys.argv[1]))), sort_keys=True))
"""


def environment() -> dict[str, str]:
    """Without the session's database: these processes start the embedded one of their project."""
    return {name: value for name, value in os.environ.items() if name != database.URI}


def curate(project: Path, *arguments: str) -> Forked:
    return forked.start(forked.CURATE, *arguments, "--project", project, env=environment())


def index(project: Path) -> dict[str, Any]:
    process = curate(project, "index", "--json")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    report: dict[str, Any] = json.loads(output)
    return report


def shown(project: Path) -> dict[str, Any]:
    result = forked.start(SHOW, project, env=environment()).completed(timeout=120)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return {id: [value for value in row if str(project) not in str(value)] for id, row in found.items()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo plant that nobody has indexed."""
    folder = tmp_path_factory.mktemp("drawn") / "plant"
    setup.demo(folder, IMAGES, 1, lambda done: None)
    return folder


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory, server: str) -> dict[str, Any]:
    """The index of that plant after a run that nobody disturbed."""
    calm = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("calm") / "plant"))
    index(calm)
    return shown(calm)


@pytest.fixture
def plant(drawn: Path, tmp_path: Path, server: str) -> Iterator[Path]:
    """A copy to disturb."""
    project = Path(shutil.copytree(drawn, tmp_path / "plant"))
    yield project
    database.stop(project / "work" / "db")


def wait_for(path: Path, lines: int, process: Forked) -> None:
    """Until the label log has so many lines: the moment to strike, whatever the speed of the machine."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if sum(file.read_bytes().count(b"\n") for file in path.glob("*.jsonl")) >= lines:
            return
        time.sleep(0.005)


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def strike(process: Forked) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_kill_9_at_many_moments_equals_an_uninterrupted_run(plant: Path, undisturbed: dict[str, Any]) -> None:
    killed = 0
    for delay in (0.0, 0.03, 0.1, 0.25, 0.5):
        process = curate(plant, "index", "--json")
        wait_for(plant / "work" / "labels", 1, process)
        time.sleep(delay)
        killed += process.poll() is None
        strike(process)
    assert killed >= 3, "the runs ended before they could be killed"
    index(plant)
    assert shown(plant) == undisturbed
    report = index(plant)
    assert (report["added"], report["updated"]) == (0, 0)


def test_kill_9_of_the_database_loses_nothing(plant: Path, undisturbed: dict[str, Any]) -> None:
    process = curate(plant, "index", "--json")
    wait_for(plant / "work" / "labels", 20, process)
    server = database.running(plant / "work" / "db")
    assert server is not None
    os.kill(server["pid"], signal.SIGKILL)
    strike(process)
    index(plant)
    assert shown(plant) == undisturbed


def test_a_server_whose_command_was_killed_before_it_answered_is_found(tmp_path: Path, server: str) -> None:
    """The command dies right after it started MongoDB: the next one waits for that server and starts no second one."""
    code = """
import os, signal, sys
from pathlib import Path
from curate.index import database
database._wait_until_it_answers = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
database.start(Path(sys.argv[1]))
"""
    folder = tmp_path / "db"
    assert forked.start(code, folder, env=environment()).completed().returncode == -signal.SIGKILL
    wait_for_file(folder / "server.json")
    left = json.loads((folder / "server.json").read_text())["pid"]
    show = "import sys; from pathlib import Path; from curate.index import database; database.start(Path(sys.argv[1]))"
    show += "; print(database.running(Path(sys.argv[1]))['pid'])"
    second = forked.start(show, folder, env=environment()).completed(timeout=120)
    assert second.stdout.strip() == str(left), second.stderr
    assert database.running(folder) is None, "the last command out stops the server"


def test_a_dataset_without_all_its_fields_is_no_index_yet(plant: Path, undisturbed: dict[str, Any]) -> None:
    """`curate index` was killed while it declared them: readers say what to run, and that completes it."""
    code = """
import os, signal, sys
from pathlib import Path
from curate.index.dataset import Index
from curate.index import database
from curate.project import load
fo = database.connect(load(Path(sys.argv[1])).work)
fo.Dataset._merge_sample_field_schema = lambda self, fields: os.kill(os.getpid(), signal.SIGKILL)
Index(load(Path(sys.argv[1])), create=True)
"""
    assert forked.start(code, plant, env=environment()).completed().returncode == -signal.SIGKILL
    status = curate(plant, "select", "--budget", "3").completed()
    assert (status.returncode, status.stderr.count("\n")) == (1, 1), status.stderr
    assert "is not complete yet. Run: curate index" in status.stderr
    index(plant)
    assert shown(plant) == undisturbed


def test_a_torn_last_line_of_the_log_is_passed_over(plant: Path, undisturbed: dict[str, Any]) -> None:
    index(plant)
    segment = plant / "work" / "labels" / "000001.jsonl"
    (plant / "work" / "labels" / "000002.jsonl").write_bytes(segment.read_bytes().splitlines(keepends=True)[0][:50])
    assert index(plant)["unchanged"] == IMAGES
    assert shown(plant) == undisturbed


def test_two_commands_that_start_at_once_share_one_server(plant: Path) -> None:
    index(plant)
    pair = [curate(plant, "status", "--json") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert json.loads(outputs[0][0]) == json.loads(outputs[1][0])
    assert database.running(plant / "work" / "db") is None, "the last command out stops the server"


def test_a_second_writer_is_refused_and_says_who_writes(plant: Path) -> None:
    first = curate(plant, "index")
    wait_for(plant / "work" / "labels", 1, first)
    second = curate(plant, "index")
    _, errors = second.communicate(timeout=120)
    assert first.poll() is not None or second.returncode == 1
    if second.returncode == 1:
        assert f"error: 'curate index' (pid {first.pid}" in errors
    first.communicate(timeout=120)
    assert first.returncode == 0


def test_ctrl_c_leaves_nothing_half_written(plant: Path, undisturbed: dict[str, Any]) -> None:
    process = curate(plant, "index")
    wait_for(plant / "work" / "labels", 1, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    # (Python may print a note where the signal meets a destructor of a library; our own code shows none.)
    assert f'File "{REPOSITORY}/curate' not in errors
    index(plant)
    assert shown(plant) == undisturbed
