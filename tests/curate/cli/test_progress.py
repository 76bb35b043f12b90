"""Progress where no terminal shows bars, and how speeds and times are written."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from curate import workers
from curate.cli import _common
from curate.units import duration, rate


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    result = io.StringIO()
    monkeypatch.setattr(_common, "log", Console(file=result, width=200))
    return result


def test_a_log_file_gets_a_line_for_each_stage_and_now_and_then(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(_common.time, "monotonic", lambda: now[0])
    with _common.bars() as step:
        for _ in range(10):
            now[0] += 4.0
            step("train", 1, 10)
            if now[0] == 16.0:
                assert written.getvalue() == "train: 4 of 10, 4.0 s each, about 24 s left\n"
        step("count", 7, 0)
    assert written.getvalue().splitlines() == [
        "train: 4 of 10, 4.0 s each, about 24 s left",
        "train: 8 of 10, 4.0 s each, about 8 s left",
        "train: 10 of 10, 4.0 s each",
        "count: 7",
    ]


def test_a_stage_that_begins_anew_counts_anew(written: io.StringIO) -> None:
    with _common.bars() as step:
        for total in (2, 3):
            for _ in range(total):
                step("judge", 1, total)
    assert [line.partition(",")[0] for line in written.getvalue().splitlines()] == ["judge: 2 of 2", "judge: 3 of 3"]


def test_what_an_interrupted_stage_reached_is_reported(written: io.StringIO) -> None:
    def interrupted() -> None:
        with _common.bars() as step:
            step("embed [x]", 3, 9)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert written.getvalue() == "embed [x]: 3 of 9\n"


@pytest.mark.parametrize(
    ("speed", "shown"), [(0.3125, "3.2 s each"), (0.99, "1.0 s each"), (2.4, "2.4 images/s"), (37.6, "38 images/s")]
)
def test_slow_rates_are_seconds_each(speed: float, shown: str) -> None:
    assert rate(speed, "images") == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(3.2, "3 s"), (59.4, "59 s"), (59.9, "1 min"), (180, "3 min"), (5400, "1.5 h")]
)
def test_times_are_said_as_people_do(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_cores_are_those_that_the_machine_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from pathlib import Path

    group = Path(str(tmp_path))
    monkeypatch.setattr(workers, "CGROUP", group)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert workers.cores() == 6
    (group / "cpu.max").write_text("250000 100000\n")
    assert workers.cores() == 2
    (group / "cpu.max").write_text("max 100000\n")
    assert workers.cores() == 6
    (group / "cpu.max").unlink()
    (group / "cpu").mkdir()
    (group / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (group / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert workers.cores() == 1
