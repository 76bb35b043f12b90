"""The `curate` command. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from curate import __version__
from curate.cli import _index, _keep, _look, _start
from curate.errors import CurateError

app = typer.Typer(
    name="curate",
    help="Find, label and balance the rarest surface defects.",
    epilog="Every command takes --project NAME|PATH. Exit codes: 0 done, 1 a clear error, 2 wrong usage.",
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


for _group in (_start, _index, _look, _keep):
    _group.register(app)


def _ended(number: int, frame: FrameType | None) -> None:
    """Ended from outside: leave in order, so that locks, parts and the database are put away."""
    raise SystemExit(128 + number)


def main() -> None:
    """A `CurateError` is one line for a person and exit code 1; anything else is a bug and shows its traceback."""
    signal.signal(signal.SIGTERM, _ended)
    try:
        app()
    except CurateError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
