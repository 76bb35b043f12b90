"""Shared by all commands: options, the JSON contract, progress and tables. Standard output is for results only."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curate.catalogue import BUILT_IN, PluginInfo
from curate.errors import CurateError
from curate.units import duration, rate

if TYPE_CHECKING:
    from curate.project import Project

# On a terminal, tables fold at its width; in a pipe or a file a line stays a line.
console = Console(width=None if sys.stdout.isatty() else 10_000)
log = Console(stderr=True)
DEVICES = ("auto", "cpu", "cuda")

ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project",
        "-p",
        metavar="NAME|PATH",
        help="The project \\[default: CURATE_PROJECT, else the one you stand in, else the only one].",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object; all else goes to stderr.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target-recall",
        metavar="CLASS=RECALL",
        help="The recall that a class's threshold should reach on val, as crack=0.99 (repeatable).",
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def targets_of(texts: Sequence[str]) -> dict[str, float]:
    """Parse the values of --target-recall."""
    targets = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            targets[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise CurateError(f"--target-recall '{text}' is not CLASS=RECALL, for example crack=0.99")
    return targets


def decision_text(entry: Mapping[str, Any]) -> str:
    """Return a fitted decision in words: `0.35 and 32 px`."""
    area = "" if entry["min_area"] is None else f" and {entry['min_area']} px"
    return f"{entry['threshold']:.3g}{area}"


def open_project(wanted: str | None, overrides: Mapping[str, Any] | None = None) -> Project:
    from curate import project

    return project.load(project.find(wanted), overrides)


def device_named(name: str) -> str:
    if name not in DEVICES:
        raise CurateError(f"device '{name}' does not exist; allowed: {', '.join(DEVICES)}")
    return name


def emit(value: Mapping[str, Any]) -> None:
    """Print the one JSON object of `--json` at once: a script may wait for it while the command goes on."""
    plain = str(sys.stdout.encoding).lower() not in ("utf-8", "utf8")
    sys.stdout.write(json.dumps(value, ensure_ascii=plain) + "\n")
    sys.stdout.flush()


# What is printed holds names that users gave; in plain strings Rich would read `[x]` and `:x:` as markup. Hence `Text`.


def say(text: str = "", lead: str = "", style: str = "bold") -> None:
    """Print one line; its first words may have a style."""
    console.print(Text.assemble((lead, style), " " if lead else "", text), soft_wrap=True)


def warn(text: str) -> None:
    log.print(Text(text, "yellow"), soft_wrap=True)


def rows(cells: Iterable[Sequence[object]], right: Collection[int] = ()) -> None:
    """Print aligned columns without a frame; those in `right` hold numbers."""
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for row in cells:
        while len(table.columns) < len(row):
            table.add_column(justify="right" if len(table.columns) in right else "left", overflow="fold")
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console.print(table)


def colored(name: str, color: str | None) -> Text:
    """A class's name behind a block of its colour."""
    return Text.assemble(("■ ", color) if color else "  ", name)


def near(path: Path) -> str:
    """The path as a person standing here writes it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def tell(text: str) -> None:
    """Print one line of progress on stderr, above the bars where there are some."""
    log.print(Text(text), soft_wrap=True)


Step = Callable[[str, int, int], None]
# Seconds between two lines of a stage, where no terminal shows bars.
EVERY = float(os.environ.get("CURATE_PROGRESS_EVERY") or 15)


@contextlib.contextmanager
def bars() -> Iterator[Step]:
    """Yield a progress function (stage, done now, total): a bar a stage on stderr; in a file, a line now and then."""
    with _bars() if log.is_terminal else _lines() as step:
        yield step


@contextlib.contextmanager
def _bars() -> Iterator[Step]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stage, speed = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[rate]}"))
    columns = (stage, BarColumn(), MofNCompleteColumn(), speed)
    with Progress(*columns, TimeRemainingColumn(), console=log) as progress:
        stages: dict[str, Any] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = progress.add_task(stage, total=total or None, rate="")
            if progress.tasks[stages[stage]].finished and done:  # the same work on other images
                progress.reset(stages[stage], total=total or None)
            progress.advance(stages[stage], done)
            speed = progress.tasks[stages[stage]].speed
            progress.update(stages[stage], rate=rate(speed) if speed else "")

        yield step


@contextlib.contextmanager
def _lines() -> Iterator[Step]:
    """A line for each stage when it is complete, every `EVERY` seconds before, and for what was left undone."""
    stages: dict[str, _Stage] = {}
    last = time.monotonic()

    def step(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        known = stages.get(stage)
        if known is None or (0 < known.total <= known.done and done):  # new, or the same work on other images
            known = stages[stage] = _Stage(total, done, now)
        known.done += done
        complete = known.done >= known.total > 0
        known.told = complete or now - last >= EVERY
        if known.told:
            last = now
            tell(f"{stage}: {known.line(now)}")

    try:
        yield step
    finally:
        for stage, known in stages.items():
            if not known.told:
                tell(f"{stage}: {known.count}")


@dataclass
class _Stage:
    """Progress of one stage. `first`: what the first call reported, which says nothing about the speed."""

    total: int
    first: int
    begun: float
    done: int = 0
    told: bool = False

    @property
    def count(self) -> str:
        return f"{self.done} of {self.total}" if self.total else str(self.done)

    def line(self, now: float) -> str:
        timed = self.done - self.first
        if timed <= 0 or now <= self.begun:
            return self.count
        speed = timed / (now - self.begun)
        left = (self.total - self.done) / speed
        return f"{self.count}, {rate(speed)}" + (f", about {duration(left)} left" if left > 0 else "")


def list_plugins(plugins: Sequence[PluginInfo]) -> None:
    """Print a line a plug-in with its options, and where it comes from if it is not built in; then the broken ones."""
    rows(
        (Text(plugin.name, "bold"), _with_origin(plugin), _option_names(plugin))
        for plugin in plugins
        if not plugin.problem
    )
    for plugin in plugins:
        if plugin.problem:
            warn(plugin.problem)


def plugins_json(plugins: Sequence[PluginInfo]) -> dict[str, Any]:
    """Return where each usable plug-in comes from, and the problems of the others, for `--json`."""
    problems = [plugin.problem for plugin in plugins if plugin.problem]
    return {"from": {plugin.name: plugin.origin for plugin in plugins if not plugin.problem}, "problems": problems}


def _with_origin(plugin: PluginInfo) -> Text:
    own = plugin.origin == BUILT_IN
    return Text.assemble(plugin.summary, "" if own else (f" (from {plugin.origin})", "dim"))


def _option_names(plugin: PluginInfo) -> str:
    return ", ".join(plugin.options)


def confirm(question: str, yes: bool) -> None:
    if not yes and not typer.confirm(question, err=True):
        raise typer.Abort
