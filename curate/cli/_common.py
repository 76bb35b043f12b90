"""What all commands share: options, the JSON contract, progress and tables. Standard output is for results only."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from curate.project import Project

console = Console()
log = Console(stderr=True)

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
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def open_project(wanted: str | None, overrides: Mapping[str, Any] | None = None) -> Project:
    from curate import project

    return project.load(project.find(wanted), overrides)


def emit(value: Mapping[str, Any]) -> None:
    """The one JSON object of `--json`."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def say(text: str = "") -> None:
    console.print(text, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    log.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def table(title: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        made.add_row(*(str(value) for value in row))
    console.print(made)


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress function (stage, done now, total) that draws one bar a stage on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=log) as progress:
        stages: dict[str, Any] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = progress.add_task(stage, total=total or None, rate="")
            progress.advance(stages[stage], done)
            speed = progress.tasks[stages[stage]].speed
            progress.update(stages[stage], rate=f"{speed:.0f}/s" if speed else "")

        yield step


def confirm(question: str, yes: bool) -> None:
    if not yes and not typer.confirm(question, err=True):
        raise typer.Abort
