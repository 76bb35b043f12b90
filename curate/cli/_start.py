"""`init`, `demo`, `doctor`: from nothing to a project that can be indexed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from curate.cli._common import JsonOption, ProjectOption, bars, emit, rows, say


def register(app: typer.Typer) -> None:
    for command in (init, demo, doctor, formats):
        app.command()(command)


def init(
    name: Annotated[str, typer.Argument(help="The project's name: a folder below projects/, or a path.")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="How images and labels lie there; curate formats lists them.")
    ],
    data: Annotated[Path, typer.Option("--data", "-d", help="The folder with the images.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label file or folder \\[default: where the format has it].")
    ] = None,
    fully_labelled: Annotated[
        bool, typer.Option("--fully-labelled", help="An image without any label is clean, not unlabelled.")
    ] = False,
    kind: Annotated[str | None, typer.Option(help="public or production \\[default: by the format].")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the format, as key=value (repeatable).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a project: writes a commented project.toml. Reads the label files once, for the class names."""
    from curate import setup

    made = setup.init(name, format, data, labels, fully_labelled, kind, option or [])
    if json:
        emit({"project": made.name, "file": str(made.file), "classes": made.class_names})
        return
    say(str(made.file), "made", "green")
    say(f"classes: {', '.join(made.class_names) or 'none yet'}")
    say(f"curate index --project {name}", "next:")


def formats(json: JsonOption = False) -> None:
    """List the label formats that can be indexed."""
    from curate import formats as known

    lines = {name: known.summary(name) for name in known.names()}
    if json:
        emit({"formats": lines})
        return
    rows((Text(name, "bold"), _with(line, "--set ", ", ".join(known.options(name)))) for name, line in lines.items())


def _with(text: str, mark: str, more: str) -> Text:
    """The text, and below it in grey what else there is to say."""
    return Text.assemble(text, (f"\n{mark}{more}" if more else "", "dim"))


def demo(
    images: Annotated[int, typer.Option(min=60, help="How many strips to draw.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed draws the same plant.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where \\[default: projects/demo].", show_default=False)] = None,
    json: JsonOption = False,
) -> None:
    """Draw a demo plant (steel strips, six defect kinds, two of them rare) and make its project."""
    from curate import setup

    with bars() as step:
        made, summary = setup.demo(folder, images, seed, lambda done: step("draw", done, images))
    if json:
        emit({"project": made.name, "file": str(made.file), "images": images, "seed": seed})
        return
    say(f"{images} images of {summary.coils} coils at {made.folder / 'data'}", "drawn", "green")
    say("images that show: " + ", ".join(f"{name} {n}" for name, n in summary.by_class.items()))


def doctor(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Check database, disk, GPU, Label Studio, Ray and weights; say what to do where something is missing."""
    from curate import doctor as checks

    found = checks.run(project)
    if json:
        emit({"checks": [check._asdict() for check in found], "ok": all(c.state != "missing" for c in found)})
    else:
        colors = {"ok": "green", "absent": "yellow", "missing": "red"}
        rows((Text(c.state, colors[c.state]), Text(c.what, "bold"), _with(c.found, "-> ", c.remedy)) for c in found)
    if any(check.state == "missing" for check in found):
        raise typer.Exit(1)
