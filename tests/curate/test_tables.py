"""Lance tables: what was appended is read back in any order, in whatever state a killed writer left the folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from curate import tables
from curate.errors import CurateError
from curate.tables import Table
from tests.fakes import REPOSITORY

COLUMNS = {"margin": "float32", "probability": "float16[3]"}


def rows(begin: int, end: int) -> dict[str, object]:
    numbers = np.arange(begin, end)
    return {
        "id": [f"{n:064x}" for n in numbers],
        "margin": numbers / 7,
        "probability": np.stack([numbers, numbers + 1, numbers + 2], axis=1) % 50,
    }


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made = Table.create(tmp_path / "scores" / "head-abc.lance", COLUMNS, {"classes": '["crack", "hole"]'})
    for begin in range(0, 50, 10):
        made.append(rows(begin, begin + 10))
    return made


def test_metadata_and_columns_survive(table: Table) -> None:
    again = Table(table.path)
    assert again.metadata == {"classes": '["crack", "hole"]'}
    assert again.columns == {"id": "string", "margin": "float", "probability": "float16[3]"}
    assert len(again) == 50
    assert list(again.ids()) == rows(0, 50)["id"]


@pytest.mark.parametrize("count", [3, 50])
def test_read_is_in_the_order_of_ids(table: Table, count: int) -> None:
    """Few rows are taken one by one, many by a scan: both must give the same."""
    order = np.random.default_rng(0).permutation(50)[:count]
    found = table.read([f"{n:064x}" for n in order], ["margin", "probability"])
    assert np.allclose(found["margin"], order / 7)
    assert (found["probability"][:, 0] == order % 50).all()
    assert found["probability"].dtype == np.float16


@pytest.mark.parametrize("repeats", [1, 30])
def test_an_id_may_be_asked_for_twice(table: Table, repeats: int) -> None:
    wanted = [f"{n:064x}" for n in (7, 3, 7)] * repeats
    assert np.allclose(table.read(wanted, ["margin"])["margin"], np.array([1, 3 / 7, 1] * repeats))
    assert table.read([], ["margin"])["margin"].shape == (0,)


def test_the_last_row_of_an_id_counts(table: Table) -> None:
    table.append({"id": [f"{5:064x}"], "margin": [99.0], "probability": [[1, 2, 3]]})
    assert table.read([f"{5:064x}"], ["margin"])["margin"] == 99
    every = [f"{n:064x}" for n in range(50)]
    assert table.read(every, ["margin"])["margin"][5] == 99
    assert len(table.ids()) == 50


def test_missing_ids_are_counted(table: Table) -> None:
    with pytest.raises(CurateError, match="2 of 3 images are not in"):
        table.read([f"{1:064x}", "a", "b"], ["margin"])


def test_chunks_stream_everything_once(table: Table) -> None:
    chunks = list(table.chunks(["id", "margin"], 7))
    assert all(len(chunk["id"]) <= 7 for chunk in chunks)
    assert np.allclose(np.concatenate([chunk["margin"] for chunk in chunks]), np.arange(50) / 7)


def test_an_append_that_does_not_fit_leaves_nothing(table: Table) -> None:
    with pytest.raises(ValueError, match="wanted"):
        table.append({"id": ["a"], "margin": [1.0]})
    with pytest.raises(ValueError, match="wanted"):
        table.append({"id": ["a"], "margin": [1.0], "probability": [[1, 2]]})
    assert len(Table(table.path)) == 50


def test_many_small_appends_are_merged(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "t-1.lance", {"margin": "float32"})
    for n in range(tables.SMALL + 10):
        table.append({"id": [str(n)], "margin": [n]})
    assert len(table._data.get_fragments()) < tables.SMALL
    table.finish()
    again = Table(table.path)
    assert len(again._data.get_fragments()) <= tables.FEW
    assert list(again.ids()) == [str(n) for n in range(tables.SMALL + 10)]


def test_latest_is_the_one_written_last(tmp_path: Path) -> None:
    assert tables.latest(tmp_path) is None
    first, second = (Table.create(tmp_path / f"{name}.lance", {"margin": "float32"}) for name in ("a-1", "a-b-2"))
    assert tables.latest(tmp_path) is None  # they were begun, and hold nothing yet
    for age, table in enumerate((first, second), start=1):
        table.append({"id": ["a"], "margin": [1]})
        os.utime(table.path, (age, age))
    assert tables.latest(tmp_path).path == second.path  # type: ignore[union-attr]
    first.append({"id": ["x"], "margin": [1]})
    assert tables.latest(tmp_path).path == first.path  # type: ignore[union-attr]
    assert tables.latest(tmp_path, "a-b").path == second.path  # type: ignore[union-attr]
    assert tables.latest(tmp_path, "c") is None
    second.finish(newest=True)
    assert tables.latest(tmp_path).path == second.path  # type: ignore[union-attr]


@pytest.mark.parametrize("parent", [".", "p" * 100 + "/" + "q" * 100])
def test_what_a_kill_left_of_a_new_table_is_no_table(tmp_path: Path, parent: str) -> None:
    tmp_path = tmp_path / parent
    path = tmp_path / "a-1.lance"
    (path / "data").mkdir(parents=True)
    assert not Table.exists(path)
    assert tables.latest(tmp_path) is None
    with pytest.raises(CurateError, match="no table at"):
        Table(path)
    assert len(Table.create(path, {"margin": "float32"})) == 0


WRITER = """
import sys
from curate.tables import Table
table = Table.create(sys.argv[1], {"pair": "int32"})
for n in range(100_000):
    table.append({"id": [f"{n}a", f"{n}b"], "pair": [n, n]})
"""


@pytest.mark.slow
def test_kill_9_leaves_whole_appends(tmp_path: Path) -> None:
    path = tmp_path / "t-1.lance"
    for delay in (0.3, 1.0):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=REPOSITORY)
        while not Table.exists(path) or len(Table(path)) < 20:
            time.sleep(0.05)
            assert writer.poll() is None
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        table = Table(path)
        pairs = np.concatenate([chunk["pair"] for chunk in table.chunks(["pair"])])
        assert (pairs == np.arange(len(pairs)) // 2).all()
        assert len(pairs) % 2 == 0
        table.append({"id": ["x", "y"], "pair": [len(pairs) // 2] * 2})
        assert len(Table(path)) == len(pairs) + 2
        path = tmp_path / "t-2.lance"
