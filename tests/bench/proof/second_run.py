"""Plays the second protocol (PROTOCOL-2.md) in one process and writes its table: `tests.bench.proof.run --protocol 2`.

A run is a line in `out/proof/second/VECTORS.jsonl`, written when it is done: a killed process continues. First every
setting's first draw, then the second, and so on. A change of code makes those runs anew that depend on it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from curate.errors import CurateError
from curate.files import write_text
from tests.bench.proof import rivals, second, second_tables
from tests.bench.proof.measures import row_of
from tests.bench.proof.second import Setting
from tests.bench.proof.sets import CACHE, REPOSITORY
from train.simulate.one_run import EXEMPLARS, HIDDEN, NO_LABELS, RunStart, prepare, simulate
from train.simulate.oracle_dataset import OracleDataset

STARTS = {"exemplars": EXEMPLARS, "hidden": HIDDEN, "cold": NO_LABELS}
HOME = CACHE / "second"
TABLE = "RESULTS-2.md"
Row = dict[str, Any]


class Job(NamedTuple):
    """One run that is to be played."""

    setting: Setting
    draw: int
    strategy: str

    @property
    def key(self) -> str:
        return f"{self.setting.name}|{self.draw}|{self.strategy}"


class World(NamedTuple):
    """What all strategies of one draw share: the data set, its start, and results that no strategy changes."""

    oracle: OracleDataset
    start: RunStart
    lasting: dict[str, Any]


def main(asked: argparse.Namespace) -> None:
    names = tuple(filter(None, asked.names.split(",")))
    settings = [setting for setting in second.settings() if _is_asked(setting, asked)]
    jobs, planned = list(jobs_of(settings, names, asked.seeds)), sum(1 for _ in jobs_of(settings, (), 99))
    failed = {} if asked.write else play_all(jobs, asked.vectors, asked.minutes)
    text = second_tables.results(rows_of(jobs, asked.vectors), planned, asked.vectors, failed)
    file = REPOSITORY / "tests" / "bench" / "proof" / TABLE if asked.write else HOME / f"{asked.vectors}-{TABLE}"
    write_text(file, text)
    print(f"{text}\nwritten to {file}")


def _is_asked(setting: Setting, asked: argparse.Namespace) -> bool:
    part = asked.only == "all" or (asked.only == "dev") == setting.dev
    start = not asked.start or STARTS[asked.start] == setting.start
    return part and start and asked.data in ("", setting.data, setting.family)


def jobs_of(settings: Sequence[Setting], names: Sequence[str], draws: int) -> Iterator[Job]:
    """Yield the runs: the first draw of all settings, then the second; `names`: of some strategies alone."""
    for draw in range(min(draws, max((setting.draws for setting in settings), default=0))):
        for setting in settings:
            for name in rivals.names(setting.start):
                if (not names or name in names) and draw < rivals.draws(name, setting.draws):
                    yield Job(setting, draw, name)


def rows_of(jobs: Sequence[Job], vectors: str) -> list[Row]:
    """Return the results of these runs, as far as they were played."""
    kept = rows_kept(vectors)
    return [kept[job.key] for job in jobs if job.key in kept]


def rows_kept(vectors: str) -> dict[str, Row]:
    """Return the runs that were played with the code as it is, by key; a line that was cut off is left out."""
    file, rows = HOME / f"{vectors}.jsonl", {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["code"] == rivals.code_of(row["strategy"]):
            rows[f"{row['setting']}|{row['draw']}|{row['strategy']}"] = row
    return rows


def play_all(jobs: Sequence[Job], vectors: str, minutes: float) -> dict[str, str]:
    """Play what was not played before, within the time; return the strategies that could not, with the reason."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    kept = rows_kept(vectors)
    todo = [job for job in jobs if job.key not in kept]
    print(f"{vectors}: {len(jobs):,} runs, of which {len(jobs) - len(todo):,} were played before", flush=True)
    end, failed, world, shared = time.monotonic() + 60 * minutes, dict[str, str](), None, ("", -1)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar, threadpool_limits(1):
        task = bar.add_task("playing", total=len(todo))
        for place, job in enumerate(todo):
            if time.monotonic() > end:
                print(f"out of time ({minutes:g} minutes): {len(todo) - place:,} runs are left; run it again")
                break
            bar.update(task, description=f"{job.setting.name} {job.draw} {job.strategy}")
            if world is None or shared != (job.setting.name, job.draw):
                world, shared = _world(job, vectors), (job.setting.name, job.draw)
            try:
                _keep(HOME / f"{vectors}.jsonl", play(job, world))
            except CurateError as problem:
                failed[f"{job.setting.data}: {job.strategy}"] = str(problem)
            bar.update(task, advance=1)
    return failed


def _world(job: Job, vectors: str) -> World:
    oracle = second.world(job.setting, vectors, job.draw)
    return World(oracle, prepare(oracle, second.run_settings(job.setting, "random", job.draw)), {})


def play(job: Job, world: World) -> Row:
    """Play one run and return its row."""
    setting = second.run_settings(job.setting, job.strategy, job.draw)
    # No learner with all labels: the second protocol does not measure against it.
    curve = simulate(world.oracle, setting, rivals.picker_for(setting), remember=_nothing, lasting=world.lasting)
    about = {"setting": job.setting.name, "draw": job.draw, "strategy": job.strategy, "data": job.setting.data}
    about |= {"family": job.setting.family, "start": job.setting.start, "dev": job.setting.dev}
    return about | {"sought": job.setting.sought, "code": rivals.code_of(job.strategy)} | row_of(curve, world.start)


def _nothing(key: Any, compute: Any) -> dict[str, float]:
    return {}


def _keep(file: Path, row: Row) -> None:
    """Append a line; a line that a kill has cut off is ended first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as handle:
        if handle.tell():
            handle.seek(-1, 2)
            torn = handle.read(1) != b"\n"
            handle.write(b"\n" if torn else b"")
        handle.write(json.dumps(row).encode() + b"\n")
