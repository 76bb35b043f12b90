"""`init`, `demo`, `doctor`: from nothing to a project that can be indexed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from curate.catalogue import BUILT_IN, PluginInfo
from curate.cli._common import JsonOption, ProjectOption, bars, emit, plugins_json, rows, say, warn

if TYPE_CHECKING:
    from curate.admin.setup import ProjectPlan

EXAMPLES = 8  # images that show what template, stratum and group give
NONE = {
    "template": "nothing in the paths tells where images come from; give --template",
    "stratum": "quotas and the audit take all images as one stratum",
    "group": "each image is a group of its own: images of one piece may then be split between train and test",
}


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
    template: Annotated[
        str | None,
        typer.Option(help=r"How paths are built, as '{line}/{camera}/{coil}_{name}' \[images: guessed from them]."),
    ] = None,
    stratum: Annotated[
        str | None, typer.Option(help=r"What quotas are set on, of the template's fields: '{line}/{camera}'.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help=r"Pattern over the path for the physical piece: '([^/]+)_\d+\.jpg' \[images: guessed]."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a project: writes a commented project.toml. Reads the label files once, for the class names.

    With --format images it guesses template, stratum and group from folders and file names, and shows on a few images
    what they give. Give one yourself to overrule the guess; '' means none.
    """
    from curate.admin import setup
    from curate.admin.layout import Layout

    layout = Layout(template, stratum, group)
    planned = setup.plan(name, format, data, labels, fully_labelled, kind, option or [], layout)
    file, made = str(planned.folder / "project.toml"), planned.made
    if not dry_run:
        file = str(setup.make(planned).file)
    if json:
        written = not dry_run and not made
        about = {"project": planned.folder.name, "file": file, "classes": planned.classes, "written": written}
        examples = [vars(example) for example in planned.examples(EXAMPLES)]
        emit(about | {key: planned.source[key] or None for key in setup.LAYOUT} | {"examples": examples})
        return
    if made:
        say(f"{file} is there already, with just this config; nothing was changed", "done", "green")
    else:
        note = f"{file} (nothing was written: --dry-run)" if dry_run else file
        say(note, "would make" if dry_run else "made", "green")
    say(f"classes: {', '.join(planned.classes) or 'none yet'}")
    _show_layout(planned)
    say()
    if dry_run:
        say("the same without --dry-run", "next:")
        return
    if not planned.classes:
        say(f"curate classes add NAME --project {name}  (a class for each kind of defect to look for)", "next:")
    say(f"curate index --project {name}", "next:" if planned.classes else "then:")


def _show_layout(planned: ProjectPlan) -> None:
    """Template, stratum and group, and what they make of a few images, for a person to check."""
    if not planned.placed:
        return
    say()
    lines = []
    for key in ("template", "stratum", "group"):
        value = planned.source[key]
        how = "guessed" if key in planned.guessed else "as given" if value else NONE[key]
        lines.append((key, value or "none", Text(how, "dim")))
    rows(lines)
    total = len(planned.placed)
    say()
    say(f"{total:,} images, for example:" if total > EXAMPLES else f"{total:,} images:")
    shown = [(example.path, example.stratum or "-", example.group or "-") for example in planned.examples(EXAMPLES)]
    rows([("image", "stratum", "group"), *shown])
    for key in ("stratum", "group"):
        without = sum(getattr(placed, key) is None for placed in planned.placed)
        if planned.source["template" if key == "stratum" else "group"] and without:
            warn(f"{without:,} of {total:,} images do not fit and get no {key}: correct it in project.toml")


def formats(json: JsonOption = False) -> None:
    """List the label formats that can be indexed."""
    from curate.formats import CATALOGUE

    plugins = CATALOGUE.listing()
    usable = [plugin for plugin in plugins if not plugin.problem]
    if json:
        emit({"formats": {plugin.name: plugin.summary for plugin in usable}} | plugins_json(plugins))
        return
    rows((Text(plugin.name, "bold"), _format_text(plugin)) for plugin in usable)
    for plugin in plugins:
        if plugin.problem:
            warn(plugin.problem)


def _format_text(plugin: PluginInfo) -> Text:
    told = plugin.summary if plugin.origin == BUILT_IN else f"{plugin.summary} (from {plugin.origin})"
    return _with(told, "--set ", ", ".join(plugin.options))


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
    from curate.admin import setup

    with bars() as step:
        project, summary = setup.demo(folder, images, seed, lambda done: step("draw", done, images))
    if json:
        emit({"project": project.name, "file": str(project.file), "images": images, "seed": seed})
        return
    say(f"{images} images of {summary.coils} coils at {project.folder / 'data'}", "drawn", "green")
    say("images that show: " + ", ".join(f"{name} {n}" for name, n in summary.by_class.items()))
    say(f"curate index --project {project.name}", "next:")


def doctor(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Check database, disk, GPU, Label Studio, Ray, weights and App plug-ins; say what to do where one is missing."""
    from curate.admin import doctor as checks

    results = checks.run(project)
    if json:
        emit({"checks": [check._asdict() for check in results], "ok": all(c.state != "missing" for c in results)})
    else:
        colors = {"ok": "green", "absent": "yellow", "missing": "red"}
        rows((Text(c.state, colors[c.state]), Text(c.what, "bold"), _with(c.found, "-> ", c.remedy)) for c in results)
    if any(check.state == "missing" for check in results):
        raise typer.Exit(1)
