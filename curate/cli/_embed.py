"""`embed`: vectors of images and their tiles, which selection and search work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.catalogue import BUILT_IN
from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    bars,
    device_named,
    emit,
    near,
    open_project,
    plugins_json,
    rows,
    say,
    warn,
)
from curate.errors import CurateError
from curate.units import rate

if TYPE_CHECKING:
    from curate.vectors.run import EmbedReport

SHOWN = 5  # failed images that are printed; --json has them all


def register(app: typer.Typer) -> None:
    app.command()(embed)


def embed(
    project: ProjectOption = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", "-e", help="Which one; see --list \\[default: that of the newest vectors, else dense]."
        ),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="An option of the encoder, as key=value.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: here or on the cluster of RAY_ADDRESS.")] = "local",
    batch: Annotated[int, typer.Option(min=1, help="Images to a batch; each is safe on disk at once.")] = 128,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode \\[default: one a core, if it pays].")
    ] = None,
    device: DeviceOption = "auto",
    listing: Annotated[bool, typer.Option("--list", help="List the encoders with their options.")] = False,
    json: JsonOption = False,
) -> None:
    """Compute the vectors that select and duplicates work on, of images and tiles. Safe to repeat, safe to kill."""
    if listing:
        _list(json)
        return
    from curate.ops import embed as embedding

    opened = open_project(project)
    engine = _engine(engine)
    with bars() as step:
        report = embedding.run(
            opened,
            encoder,
            set_ or [],
            device_named(device),
            engine=engine,
            batch=batch,
            workers=workers,
            progress=step,
        )
    if json:
        emit(report.to_json())
        return
    _show(report)
    say(f"curate status --project {opened.name}", "next:")


def _engine(name: str) -> Any:
    if name not in ("local", "ray"):
        raise CurateError(f"--engine '{name}' does not exist; allowed: local, ray")
    return name


def _list(json: bool) -> None:
    from curate.embed import CATALOGUE

    plugins = CATALOGUE.listing()
    entries: dict[str, dict[str, Any]] = {
        plugin.name: {
            "summary": plugin.summary,
            "options": {key: p.default for key, p in plugin.options.items()},
        }
        for plugin in plugins
        if not plugin.problem
    }
    if json:
        emit({"encoders": entries} | plugins_json(plugins))
        return
    origins = {plugin.name: "" if plugin.origin == BUILT_IN else f" (from {plugin.origin})" for plugin in plugins}
    rows((name, entry["summary"] + origins[name], _defaults(entry["options"])) for name, entry in entries.items())
    for plugin in plugins:
        if plugin.problem:
            warn(plugin.problem)


def _defaults(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={'' if value is None else value}" for key, value in options.items())


def _show(report: EmbedReport) -> None:
    from pathlib import Path

    speed = f", {rate(report.embedded / report.seconds, 'images')}" if report.embedded and report.seconds else ""
    say(f"embedded {report.embedded} / kept {report.kept} / failed {len(report.failed)} / missing {report.missing}")
    if report.embedded:
        windows = f"{report.windows} windows (images and tiles) in {report.seconds:.1f} s{speed}"
        say(f"{windows}, in {near(Path(report.table))}")
    for reason in list(report.failed.values())[:SHOWN]:
        warn(f"skipped {reason}")
    if len(report.failed) > SHOWN:
        warn(f"and {len(report.failed) - SHOWN} more: --json lists them all")
    if not report.embedded and not report.failed:
        say("nothing to do: every image has its vectors")
