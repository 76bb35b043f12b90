"""The `curate` command. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import io
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command_name

from curate import __version__, files, packages
from curate.cli import (
    _audit,
    _embed,
    _evaluate,
    _export_model,
    _index,
    _keep,
    _look,
    _loop,
    _people,
    _queue,
    _robust,
    _run,
    _select,
    _simulate,
    _start,
    _synth,
    _train,
    _tune,
)
from curate.errors import CurateError
from curate.paths import printable

# `curate --help` lists the commands by what a person is doing; the first panel is the first day, in its order.
PANELS = {
    "First day, in this order": ("init", "index", "status", "embed", "select"),
    "Set up": ("demo", "doctor", "formats", "classes"),
    "Look": ("app", "anomaly", "duplicates", "resolve"),
    "Choose": ("simulate", "audit", "stop-check"),
    "Label": ("labelstudio", "push", "pull", "watch", "annotators", "loop"),
    "Learn": ("train", "predict", "evaluate", "compare", "models", "tune", "explain", "robustness"),
    "Use": ("export-model", "run"),
    "Synthesise": ("synth",),
    "Keep": ("export", "backup", "restore", "gc"),
}
OTHER = "Other"
_PANEL_OF = {command: panel for panel, commands in PANELS.items() for command in commands}


class _ByPanel(TyperGroup):
    """Lists the commands in the panels' order; one that no panel names comes last."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = list(_PANEL_OF)
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))


app = typer.Typer(
    name="curate",
    cls=_ByPanel,
    help="Find, label and balance the rarest surface defects.",
    epilog="`curate status` says what to run next; `curate COMMAND --help` shows a command's options. "
    "Every command that works on a project takes --project NAME|PATH. "
    "Exit codes: 0 done, 1 a clear error, 2 wrong usage, 130 ended by Ctrl-C.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"curate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


_groups = (
    _start,
    _index,
    _embed,
    _select,
    _audit,
    _queue,
    _people,
    _train,
    _tune,
    _evaluate,
    _robust,
    _simulate,
    _synth,
    _export_model,
    _run,
    _loop,
    _look,
    _keep,
)
for _group in _groups:
    _group.register(app)
for _command in app.registered_commands:
    _name = _command.name or get_command_name(getattr(_command.callback, "__name__", ""))
    _command.rich_help_panel = _PANEL_OF.get(_name, OTHER)
for _group_of_commands in app.registered_groups:
    _group_of_commands.rich_help_panel = _PANEL_OF.get(str(_group_of_commands.name), OTHER)


def _ended(number: int, frame: FrameType | None) -> None:
    """Ended from outside: leave in order, so that locks, parts and the database are put away."""
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line: a user's error is one line and exit code 1; anything else is a bug with a traceback."""
    signal.signal(signal.SIGTERM, _ended)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a class name must not end a command on a Latin-1 terminal
    _refuse_broken(sys.argv[1:])
    try:
        packages.check()
        app()
    except Exception as error:
        if isinstance(error, SystemError) and isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            sys.exit(130)  # Ctrl-C inside compiled code
        line = _explained(error)
        if line is None:
            raise
        _leave(line, 1)


def _leave(line: str, code: int) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _refuse_broken(arguments: Sequence[str]) -> None:
    """Bytes that are no UTF-8 could be written neither to a config nor to the database."""
    for text in arguments:
        if printable(text) != text:
            _leave(f"argument '{printable(text)}' is not valid UTF-8; rename the file, or write it as UTF-8", 2)


def _explained(error: Exception) -> str | None:
    if isinstance(error, CurateError):
        return str(error)
    if _lost_database(error):
        if database := sys.modules.get("curate.index.database"):
            database.skip_cleanup()
        remedy = "Run the command again: it completes what is left. If that fails, see: curate doctor"
        return f"lost the database ({textwrap.shorten(str(error), 100) or type(error).__name__}). {remedy}"
    if isinstance(error, OSError) and error.errno in files.DENIED and error.filename:
        return files.denied_message(error, Path(os.fsdecode(error.filename)))
    if isinstance(error, OSError) and error.errno is not None:  # those without a number come from libraries
        return ": ".join(str(part) for part in (error.strerror, error.filename) if part)
    return None


def _lost_database(error: Exception) -> bool:
    """Tell a lost connection from a refused operation (a bug). `--help` must not wait for pymongo: no import here."""
    known = sys.modules.get("pymongo.errors")
    lost = (known.ConnectionFailure, known.CursorNotFound) if known else ()
    return isinstance(error, (ConnectionError, *lost))
