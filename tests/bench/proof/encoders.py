"""Which encoder should be the default: `python -m tests.bench.proof.encoders [--encoders texture,dense] [--draws 5]`.

Plays the dev settings of the second protocol (PROTOCOL-2.md) on the vectors of each encoder: discovery from a cold
start and recall from five exemplars, by the default strategy and by simple ones that only better vectors help. Then
images a CPU second, through the whole of `curate embed` but for the table, in one process. Resumable; prints Markdown.
"""

from __future__ import annotations

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from curate.demo import plant
from curate.embed._base import Encoder
from curate.hashing import sha256_of
from tests.bench.bench_embed import pipeline
from tests.bench.proof import measures as m
from tests.bench.proof import second, second_run, sets
from tests.bench.proof.measures import Row, Rows
from tests.bench.proof.second_tables import interval
from tests.bench.proof.tables import shown, table
from tests.fakes import need_real
from train.simulate.one_run import EXEMPLARS, NO_LABELS

COLD, WARM = ("random", "anomaly", "portfolio"), ("probe_one_a_group", "window_probe", "portfolio")
TIMED = 40  # images of each data set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default=",".join(sets.ENCODERS))
    parser.add_argument("--data", default="magnetic_tile,neu_det,sd900,plant_dev", help="data sets, commas between")
    parser.add_argument("--draws", type=int, default=99, help="at most so many")
    parser.add_argument("--minutes", type=float, default=1e9, help="at most so many for playing")
    parser.add_argument("--untimed", action="store_true", help="measure no seconds")
    asked = parser.parse_args()
    need_real()
    names, data = asked.encoders.split(","), asked.data.split(",")
    chosen = [setting for setting in second.settings() if setting.dev and setting.data in data]
    cold = list(second_run.jobs_of([setting for setting in chosen if setting.start == NO_LABELS], COLD, asked.draws))
    warm = list(second_run.jobs_of([setting for setting in chosen if setting.start == EXEMPLARS], WARM, asked.draws))
    for name in names:
        second_run.play_all([*cold, *warm], name, asked.minutes / len(names))
    seconds = {} if asked.untimed else rates(names, data)
    found = {name: (second_run.rows_of(cold, name), second_run.rows_of(warm, name)) for name in names}
    both = set.intersection(*({row["setting"] for rows in pair for row in rows} for pair in found.values()))
    for family in dict.fromkeys(setting.family for setting in chosen):
        print("\n".join(["", f"{family}:", "", *compared(found, lambda row, name=family: row["family"] == name)]))
    print(
        "\n".join(["", "all that every encoder has played:", "", *compared(found, lambda row: row["setting"] in both)])
    )
    if seconds:
        print("\n".join(["", *table(["images a CPU second", *data], seconds.values())]))


def compared(found: dict[str, tuple[Rows, Rows]], part: Callable[[Row], bool]) -> list[str]:
    """Return the table of a part of the settings."""
    first = next(iter(found))
    lines = []
    for name in found:
        cold, warm = (list(filter(part, rows)) for rows in found[name])
        other_cold, other_warm = (list(filter(part, rows)) for rows in found[first])
        ours, randoms = _by(cold, "portfolio"), _by(cold, "random")
        cells = [shown(m.overall(_by(cold, who), m.discovery)) for who in COLD[1:]]
        cells.append(shown(m.label_ratio(ours, randoms)))
        cells.append(interval(m.compare(ours, _by(other_cold, "portfolio"), m.discovery)))
        cells += [shown(m.overall(_by(warm, who), m.group_recall)) for who in WARM]
        cells.append(interval(m.compare(_by(warm, "portfolio"), _by(other_warm, "portfolio"), m.group_recall)))
        lines.append([name, *cells])
    head = [*(f"discovery, {who}" for who in COLD[1:]), "labels to all, of random's", f"portfolio less {first}'s"]
    head += [*(f"recall, {who}" for who in WARM), f"portfolio less {first}'s"]
    return table(["vectors", *head], lines)


def _by(rows: Rows, strategy: str) -> Rows:
    return [row for row in rows if row["strategy"] == strategy]


def rates(names: Sequence[str], data: Sequence[str]) -> dict[str, list[str]]:
    """Return images a CPU second of each encoder on a sample of each data set; `joined` takes the time of both."""
    with TemporaryDirectory() as folder:
        files = {name: _sample(name, Path(folder)) for name in data}
        spent: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(part for each in names for part in _parts(each)):
            encoder = sets.encoder(name)
            spent[name] = {one: _seconds(encoder, files[one]) for one in data}
    return {
        name: [name, *(f"{len(files[one]) / math.fsum(spent[part][one] for part in _parts(name)):.1f}" for one in data)]
        for name in names
    }


def _parts(name: str) -> tuple[str, ...]:
    return ("texture", "dense") if name == "joined" else (name,)


def _seconds(encoder: Encoder, files: list[tuple[str, str]]) -> float:
    """CPU seconds of all threads: beside other work they mean more than those on the clock."""
    pipeline(encoder, files[:1], None, 0)  # what is loaded and compiled once
    begin = time.process_time()
    pipeline(encoder, files, None, 0)
    return time.process_time() - begin


def _sample(data: str, folder: Path) -> list[tuple[str, str]]:
    seen = sets.seen(data, folder, max(TIMED, plant.FEWEST))
    return [(sha256_of(image.path), str(image.path)) for image in seen[:: max(1, len(seen) // TIMED)][:TIMED]]


if __name__ == "__main__":
    main()
