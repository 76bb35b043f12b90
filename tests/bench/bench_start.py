"""How long commands take to answer: `python -m tests.bench.bench_start [--images 2000] [--repetitions 5]`.

Each command is started as a person would, `--repetitions` times in turn with the others; medians of seconds on the
clock, and of processor seconds of the command (without its database), which say more on a busy machine. The project is
the demo plant with the encoder `texture`, drawn and indexed first (minutes); `--project DIR` takes one that is there.
The database is started and stopped by every command, as where no App is open; `--running` keeps it up meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curate.index import database
from tests.bench._measure import print_table

GOALS = {
    "--help": 0.3,
    "models list": 1.5,
    "status": 1.5,
    "select --explain": 1.5,
    "init": 1.0,
    "select --dry-run": 4.0,
}


def curate(*arguments: object) -> str:
    command = [sys.executable, "-m", "curate", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def timed(arguments: list[str]) -> tuple[float, float]:
    """Seconds on the clock, and processor seconds of the command and the processes that it waited for."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    curate(*arguments)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def drawn(folder: Path, images: int) -> Path:
    project = folder / "projects" / "demo"
    curate("demo", "--folder", project, "--images", images)
    curate("index", "--project", project)
    curate("embed", "--project", project, "--encoder", "texture")
    return project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--project", type=Path)
    parser.add_argument("--running", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        project = (wanted.project or drawn(Path(scratch), wanted.images)).resolve()
        if wanted.running and database.is_embedded():
            database.start(project / "work" / "db")
        about = ["--project", str(project)]
        chosen = json.loads(curate("select", "--budget", "30", "--dry-run", "--json", *about))
        plain = next((folder for folder in sorted((project / "data").glob("*")) if folder.name == "plant"), project)
        commands = {
            "--help": ["--help"],
            "models list": ["models", "list", *about],
            "status": ["status", *about],
            "select --explain": ["select", "--explain", chosen["picks"][0]["id"], *about],
            "init": ["init", os.path.join(scratch, "new"), "--format", "images", "--data", str(plain), "--dry-run"],
            "select --dry-run": ["select", "--budget", "30", "--dry-run", *about],
        }
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(wanted.repetitions):
            for name, arguments in commands.items():
                spent[name].append(timed(arguments))
    rows = []
    for name, times in spent.items():
        wall, processor = (statistics.median(values) for values in zip(*times, strict=True))
        rows.append((name, f"{wall:.2f}", f"{processor:.2f}", f"{GOALS[name]:.1f}"))
    print_table(("curate", "s", "processor s", "goal on an idle machine, s"), rows)


if __name__ == "__main__":
    main()
