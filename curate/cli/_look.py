"""`app`, `anomaly`, `export`: see the data, and take it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli._common import JsonOption, ProjectOption, bars, emit, open_project, rows, say, warn

if TYPE_CHECKING:
    from curate.index.app_views import ServedApp
    from curate.project import Project
    from curate.select.anomaly_table import AnomalyReport


def register(app: typer.Typer) -> None:
    app.command(name="app")(browse)
    app.command()(anomaly)
    app.command()(export)


def browse(
    project: ProjectOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the App.")] = 5151,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    remote: Annotated[bool, typer.Option("--remote", help="Open no browser here; print how to reach it.")] = False,
    view: Annotated[str | None, typer.Option(help="Open on this saved view, for example 'conflicts'.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object when the App is up, then wait.")] = False,
) -> None:
    """Open the FiftyOne App on the project's images. Ctrl-C ends it."""
    import socket

    from curate.index import app_views as app
    from curate.ops import desk

    opened = open_project(project)
    with bars() as step:
        desk.prepare(opened, step)

    def ready(served: ServedApp) -> None:
        if json:
            emit(served._asdict())
            return
        say(f"FiftyOne App on {served.url}  (Ctrl-C ends it)")
        if served.view is not None:
            say(f"it opens on the view '{served.view}': {served.shown} of {served.images} images")
            say("to see all, clear the view bar (the x at its end), or choose another view to the left of it")
        if "?token=" in served.url:
            warn("others can reach this address: the token in the link is their key, and nothing is encrypted")
        if remote and address in ("127.0.0.1", "localhost"):
            say(f"from another machine: ssh -N -L {port}:127.0.0.1:{port} USER@{socket.gethostname()}")

    app.launch(opened, port=port, address=address, remote=remote, view=view, ready=ready)


def anomaly(
    project: ProjectOption = None,
    encoder: Annotated[str | None, typer.Option(help="Whose vectors to use \\[default: the newest].")] = None,
    json: JsonOption = False,
) -> None:
    """Measure how unusual each image is, and where: for the App, for annotators, before anything has a name.

    The distance of each window to windows of other groups; no label is needed. Clean images count as ordinary, what
    people call a defect does not. `curate select` does the same where its strategy needs it.
    """
    from curate.ops import anomaly as measuring

    opened = open_project(project)
    with bars() as step:
        report = measuring.run(opened, encoder, step)
    emit(report.to_json()) if json else _most_unusual(opened, report)


def _most_unusual(project: Project, report: AnomalyReport) -> None:
    from curate.index import unusual

    for note in report.notes:
        warn(note)
    within = f"within {', '.join(report.strata)}" if report.strata else "with all others"
    say(f"{report.searched:,} of {report.images:,} images compared {within} ({report.vectors} vectors)")
    if not report.fresh:
        say("nothing has changed since: vectors, groups and labels are as they were")
    rows(
        [
            (f"{entry['percent']:g} %", f"at {entry['box'][:2]}" if entry["box"] else "whole image", entry["path"])
            for entry in report.unusual
        ]
    )
    if report.unusual:
        say(f"curate app --view '{unusual.VIEW}' --project {project.name}", "look:")


def export(
    to: Annotated[Path, typer.Argument(help="The folder to make; it must not exist yet.")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="coco, voc, yolo, kaggle, masks, class_folders or label_studio.")
    ],
    project: ProjectOption = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train, val or test.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Only regions of this class (repeatable).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the labelled images' labels: COCO, VOC, YOLO, Kaggle CSV, PNG masks, class folders or Label Studio.

    Never a half-written folder.
    """
    from dataclasses import replace

    from curate import exports

    opened = open_project(project)
    catalogue = replace(exports.CATALOGUE, also=("labeling.exports",))
    with bars() as step:
        report = exports.export(opened, format, to, split, classes, step, catalogue)
    counts = f"{report['images']} images, {report['regions']} {report['counted']}"
    listed = f", {report['image_classes']} image-level classes (image_classes.csv)" if report["image_classes"] else ""
    emit(report) if json else say(f"{counts}{listed} to {to}", "wrote", "green")
