"""Reading in other processes gives what reading here gives, in the same order."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from curate import formats, workers
from curate.errors import CurateError
from curate.index import reading
from curate.index.file_ledger import MISSING, OK, QUARANTINED
from curate.index.intake import SourceRules
from curate.project import LimitsConfig
from tests import fakes


@pytest.fixture
def jobs(tmp_path: Path) -> list[reading.Job]:
    root = tmp_path / "data"
    for number in range(40):
        fakes.save_image(root / "images" / f"{number:02d}.png", 32, 24, seed=number)
        if number % 3:
            fakes.save_mask(root / "masks" / "crack" / f"{number:02d}.png", [(number % 9, 2, 9, 5)], (32, 24))
    (root / "images" / "bad.jpg").write_text("no image")
    fakes.save_mask(root / "masks" / "crack" / "gone.png", size=(32, 24))
    records = list(formats.read("mask_folder", root, None, True, {}))
    return [[(record, None)] for record in records]


@pytest.fixture
def examine(tmp_path: Path) -> reading.Examine:
    rules = SourceRules(tmp_path / "data", LimitsConfig(), {}, frozenset({"crack"}))
    return partial(reading.examine_records, source="s", rules=rules, rules_digest=rules.digest)


def test_other_processes_read_the_same(jobs: list[reading.Job], examine: reading.Examine) -> None:
    here = [examine(job) for job in jobs]
    with workers.pool(2) as pool:
        there = list(reading._run_in_pool(pool, examine, iter(jobs)))
    assert there == here
    outcomes = {outcome.row.outcome for outcomes in here for outcome in outcomes}
    assert outcomes == {OK, QUARANTINED, MISSING}


def test_processes_start_only_where_much_is_left(
    jobs: list[reading.Job], examine: reading.Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    real = workers.pool
    monkeypatch.setattr(workers, "pool", lambda: started.append(1) or real(1))
    expected = [examine(job) for job in jobs]
    assert list(reading.run_jobs(examine, iter(jobs), len(jobs))) == expected
    assert not started
    monkeypatch.setattr(reading, "FEW", 3)
    monkeypatch.setattr(reading, "WORTH", 0.0)
    assert list(reading.run_jobs(examine, iter(jobs), len(jobs))) == expected
    assert started == [1]


def dies(job: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_one_clear_line(jobs: list[reading.Job]) -> None:
    with workers.pool(1) as pool, pytest.raises(CurateError, match="a reading process died"):
        # As many jobs as the pool takes: beyond that this process would help, and die itself.
        list(reading._run_in_pool(pool, dies, iter(jobs[: reading.IN_FLIGHT])))
