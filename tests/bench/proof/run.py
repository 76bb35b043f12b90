"""Runs the protocol and writes the results: `python -m tests.bench.proof.run` (see `make proof`).

Everything is cached: vectors, oracle datasets and curves under `out/proof/`; a run that was killed continues.
`--settings dev` runs the settings that strategies may be tuned on, `--names` some strategies, `--write` writes what
exists. `--protocol 2` plays the second protocol, in one process, for at most `--minutes`.
"""

from __future__ import annotations

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from curate import files
from tests.bench.proof import second_run, tables
from tests.bench.proof.ask import pickers
from tests.bench.proof.sets import CACHE, DEFAULT
from tests.bench.proof.sets import ENCODERS as ENCODER_NAMES
from tests.bench.proof.worlds import MAIN, SECOND, SHORT, Case, cases, oracle_dataset, settings
from tests.fakes import need_real
from train.simulate import grid
from train.simulate.one_run import Curve, RunSettings

Row = dict[str, Any]
ENCODERS = {"main": MAIN, "second": SECOND}
ROWS = CACHE / "rows.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", type=int, choices=(1, 2), default=1)
    parser.add_argument("--only", "--settings", dest="only", choices=("dev", "held", "all"), default="all")
    parser.add_argument("--table", choices=("main", "second", "both"), default="both")
    parser.add_argument("--data", default="", help="one data set")
    parser.add_argument("--start", default="", help="exemplars or none; of the second protocol exemplars, hidden, cold")
    parser.add_argument("--names", default="", help="strategies, with commas between")
    parser.add_argument("--seeds", "--draws", dest="seeds", type=int, default=99, help="at most so many")
    parser.add_argument("--minutes", type=float, default=1e9, help="of the second protocol, at most so many")
    parser.add_argument("--vectors", choices=ENCODER_NAMES, default=DEFAULT, help="of the second protocol")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="run nothing, write RESULTS.md and README's table")
    asked = parser.parse_args()
    if not asked.write and not asked.data.startswith("plant"):
        need_real(", or use --data plant")
    if asked.protocol == 2:
        second_run.main(asked)
        return
    if not asked.write:
        for table in ("main", "second"):
            if asked.table in (table, "both"):
                _run_table(table, asked)
    tables.write(list(_kept().values()))


def _run_table(table: str, asked: argparse.Namespace) -> None:
    """Run one data set after the other, so that its processes, and the peers', start once."""
    names = tuple(filter(None, asked.names.split(","))) or (SHORT if table == "second" else ())
    wanted = [case for case in cases() if _is_asked(case, table, asked)]
    for data in dict.fromkeys(case.data for case in wanted):
        runs = [
            (case, setting)
            for case in wanted
            if case.data == data
            for setting in settings(case, names)
            if setting.seed < asked.seeds
        ]
        _keep(_rows(table, runs, _run_settings(data, table, [setting for _, setting in runs], asked.jobs)))


def _is_asked(case: Case, table: str, asked: argparse.Namespace) -> bool:
    if case.data not in ENCODERS[table] or (table == "second" and case.start != "exemplars"):
        return False
    part = asked.only == "all" or (asked.only == "dev") == case.dev
    return part and asked.data in ("", case.data) and asked.start in ("", case.start)


def _run_settings(data: str, table: str, wanted: Sequence[RunSettings], jobs: int) -> list[Curve]:
    from rich.progress import Progress

    here = oracle_dataset(data, ENCODERS[table][data])
    with Progress() as bar:
        task = bar.add_task(f"{data} ({ENCODERS[table][data]})", total=len(wanted))
        return grid.run_all(
            [(here, setting) for setting in wanted],
            CACHE / "simulations",
            jobs,
            pickers,
            progress=lambda stage, done, total: bar.update(task, advance=done, total=total),
        )


def _rows(table: str, runs: Sequence[tuple[Case, RunSettings]], curves: Sequence[Curve]) -> Iterator[Row]:
    for (case, setting), curve in zip(runs, curves, strict=True):
        row: Row = {"table": table, **case._asdict(), "dev": case.dev, "strategy": setting.label, "seed": setting.seed}
        yield (
            row
            | ({"failed": curve.failed} if curve.failed else _metrics(curve, case.rare))
            | {"code": grid.code_digest()}
        )


def _metrics(curve: Curve, rare: str) -> Row:
    points = curve.points
    return {
        "labels": [point.labels for point in points],
        "macro_f1": [_plain(point.macro_f1) for point in points],
        "group_recall": [_plain(point.by_class[rare]["group_recall"]) for point in points],
        "image_recall": [_plain(point.by_class[rare]["image_recall"]) for point in points],
        "by_class": {name: _plain(scores["group_recall"]) for name, scores in points[-1].by_class.items()},
        "at_eight": {name: _plain(scores["group_recall"]) for name, scores in points[:9][-1].by_class.items()},
        "full": _plain(curve.full.get("macro_f1", float("nan"))),
        "seconds": sum(point.seconds for point in points) / max(1, len(points) - 1),
        "notes": list(curve.notes),
    }


def _plain(value: float) -> float | None:
    return None if value != value else value


def _kept() -> dict[str, Row]:
    """Return the rows that were computed with the current code."""
    known = json.loads(ROWS.read_text()) if ROWS.is_file() else {}
    return {key: row for key, row in known.items() if row["code"] == grid.code_digest()}


def _keep(rows: Iterator[Row]) -> None:
    names = ("table", "data", "rare", "ratio", "start", "strategy", "seed")
    files.write_json(ROWS, _kept() | {"|".join(str(row[name]) for name in names): row for row in rows})


if __name__ == "__main__":
    main()
