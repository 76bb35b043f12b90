"""`synth`: make more of what is scarce, check it, try whether it helps, and let in what does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    bars,
    colored,
    device_named,
    emit,
    near,
    open_project,
    rows,
    say,
    warn,
)
from curate.errors import CurateError
from curate.units import duration

if TYPE_CHECKING:
    from curate.project import Project
    from synth.plan import SynthesisPlan

_synth = typer.Typer(help="Make more of scarce defects, with exact masks, and let in what a trial finds to help.")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The batch's key; its first characters will do.")]
NameArgument = Annotated[
    str, typer.Argument(metavar="SYNTHESISER", help="paste, poisson, diffusion, gan or sd-inpaint.")
]
ClassesOption = Annotated[
    list[str] | None,
    typer.Option("--class", help=r"A class; give it several times for several \[default: all that have masks]."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="An option of the synthesiser, as key=value.")]
WindowOption = Annotated[
    int | None,
    typer.Option(help=r"Side in pixels of what is painted \[default: 128, of what learns 64]."),
]


def register(app: typer.Typer) -> None:
    app.add_typer(_synth, name="synth")


@_synth.command("plan")
def plan(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Show which classes are scarce, how many defects to make, from how many real ones, and what stands in the way."""
    from synth import plan as planning

    opened = open_project(project)
    with bars() as step:
        result = planning.plan(opened, step)
    emit(result.to_json()) if json else _planned(result, opened)


def _planned(result: SynthesisPlan, project: Project) -> None:
    for note in result.notes:
        warn(note)
    judged = f"; recall and IoU: {result.evaluation}" if result.evaluation else "; recall and IoU are not known"
    say(f"{result.grounds} clean images of {result.ground_groups} groups to put defects on{judged}", "train:")
    table: list[tuple[object, ...]] = [("  class", "images", "groups", "defects", "used", "recall", "IoU", "make", "")]
    for line in result.lines:
        figures = ("-" if value is None else f"{value:.2f}" for value in (line.recall, line.iou))
        cells = (line.images, line.groups, line.defects, line.donors, *figures, line.make, line.verdict)
        table.append((colored(line.name, project.colors.get(line.name)), *cells))
    rows(table, right={1, 2, 3, 4, 5, 6, 7})
    if result.command:
        say(f"{result.command} --project {project.name}", "next:")


@_synth.command("fit")
def fit(
    synthesiser: NameArgument,
    project: ProjectOption = None,
    window: WindowOption = None,
    set: SetOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another network.")] = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Let a synthesiser learn from the defects and the clean steel of the train split. Resumes what a kill left."""
    from synth import generate as making

    opened = open_project(project)
    options = making.options_of(making.FIT, synthesiser, set or [])
    with bars() as step:
        result = making.fit(opened, synthesiser, options, device_named(device), step, window=window, seed=seed)
    if json:
        emit({"fitted": result.key, "fresh": result.fresh, "folder": str(result.folder)} | result.manifest)
        return
    if not result.fresh:
        say("nothing to do: it has learnt from this train split already")
    say(f"{near(result.folder)} ({result.manifest['seconds']} s)", f"fitted {result.key}", "green")


@_synth.command("generate")
def generate(
    synthesiser: NameArgument,
    project: ProjectOption = None,
    classes: ClassesOption = None,
    count: Annotated[int | None, typer.Option(help="Images of each class.")] = None,
    ratio: Annotated[float | None, typer.Option(help=r"Images for each real defect \[default: 1].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other images.")] = 0,
    window: WindowOption = None,
    area: Annotated[float | None, typer.Option(help=r"Pixels of a defect \[default: as in train].")] = None,
    aspect: Annotated[float | None, typer.Option(help=r"Width to height of a defect \[default: as in train].")] = None,
    place: Annotated[
        str | None, typer.Option(help=r"Where on the steel, as ACROSS,DOWN from 0 to 1 \[default: as in train].")
    ] = None,
    severity: Annotated[str | None, typer.Option(help="Only of real defects of this severity.")] = None,
    strength: Annotated[float, typer.Option(help="How far from good steel: above 0, up to 1.")] = 1.0,
    fitted: Annotated[str | None, typer.Option(help=r"Which fitted one \[default: the newest].")] = None,
    set: SetOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Make images with masks of scarce classes on clean images of the train split. Resumes what a kill left."""
    from synth import generate as making

    opened = open_project(project)
    options = making.options_of(making.MAKE, synthesiser, set or [])
    spot = _place(place)
    request = making.GenerateRequest(
        tuple(classes or ()), count, ratio, seed, window, area, aspect, spot, severity, strength
    )
    with bars() as step:
        result = making.generate(opened, synthesiser, request, options, device_named(device), step, fitted=fitted)
    about = result.manifest
    if json:
        hidden = {"blocked", "groups"}
        emit(
            {"fresh": result.fresh, "folder": str(result.folder)} | {k: v for k, v in about.items() if k not in hidden}
        )
        return
    for note in about["notes"]:
        warn(note)
    if not result.fresh:
        say("nothing to do: these images are made already")
    shown = ", ".join(f"{name} {number}" for name, number in about["counts"].items())
    for name, counts in about.get("donors", {}).items():
        say(f"{counts['used']} of {counts['there']} real defects used", f"{name}:")
    say(f"{about['images']} images ({shown}) in {near(result.folder)}", f"batch {result.key[:8]}", "green")
    say(f"curate synth check {result.key[:8]} --project {opened.name}", "next:")


def _place(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        across, down = (float(part) for part in text.split(","))
    except ValueError:
        across = down = -1.0
    if not (0 <= across <= 1 and 0 <= down <= 1):
        raise CurateError(f"--place '{text}' is not ACROSS,DOWN with both from 0 to 1, for example 0.5,0.9")
    return across, down


@_synth.command("check")
def check(
    key: KeyArgument,
    project: ProjectOption = None,
    without: Annotated[list[str] | None, typer.Option(help="A gate to leave out; may stand several times.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help=r"What looks at the defects (see curate embed) \[default: texture].")
    ] = None,
    model: Annotated[str | None, typer.Option(help=r"The segmenter \[default: the newest one].")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Hold every image of a batch against the real defects of train; what fails says why. Draws a contact sheet."""
    from synth import check as checking

    opened = open_project(project)
    wanted: dict[str, Any] = {"model": model, "without": tuple(without or ())} | (
        {"encoder": encoder} if encoder else {}
    )
    with bars() as step:
        report = checking.check(opened, key, device=device_named(device), progress=step, **wanted)
    result = report.to_json()
    if json:
        emit(result)
        return
    for note in result["notes"]:
        warn(note)
    for gate, number in result["refused"].items():
        say(f"{number} images", f"refused by {gate}:", "yellow")
    rows([tuple(row) for row in report.table], right={2, 3, 4, 5, 6, 7})
    say(f"{result['passed']} of {result['images']} images passed", f"batch {result['key'][:8]}", "green")
    for what, file in result["files"].items():
        say(file, f"{what}:")


@_synth.command("trial")
def trial(
    project: ProjectOption = None,
    stage: Annotated[str, typer.Option(help="screen: every arm once; full: the best ones, at all budgets.")] = "screen",
    arm: Annotated[list[str] | None, typer.Option(help=r"An arm; several times for several \[default: all].")] = None,
    classes: ClassesOption = None,
    budget: Annotated[list[int] | None, typer.Option(help="Real defects a class; several times for several.")] = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Synthetic ones for each real one; likewise.")] = None,
    seeds: Annotated[int | None, typer.Option(help=r"Trainings of each arm \[default: screen 3, full 5].")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each training.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the crops in pixels.")] = None,
    window: Annotated[int | None, typer.Option(help=r"Side of what is painted \[default: as the crops].")] = None,
    folds: Annotated[int | None, typer.Option(help="Grouped folds.")] = None,
    tested: Annotated[
        int | None, typer.Option(help=r"So many of them are tested \[default: screen 1, full all].")
    ] = None,
    cleans: Annotated[int | None, typer.Option(help="Clean images that each fold is tested on, at most.")] = None,
    scale: Annotated[
        float | None, typer.Option(help="Shrink all images first, for a CPU: 0.5 is half as wide.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="What all arms are trained by (see curate train).")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="Override a value of the recipe, as key=value.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of a synthesiser, as NAME.KEY=VALUE: diffusion.minutes=5.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many trainings, and for how long.")] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Test whether synthetic defects help: paired trainings with and without them, on the same real images. Slow."""
    from synth.trial import design
    from synth.trial import run as trials

    opened = open_project(project)
    lists = {"arms": arm, "classes": classes, "budgets": budget, "ratios": ratio}
    given: dict[str, Any] = {name: tuple(values) for name, values in lists.items() if values}
    numbers: dict[str, Any] = {
        "seeds": seeds,
        "steps": steps,
        "size": size,
        "folds": folds,
        "tested": tested,
        "cleans": cleans,
        "scale": scale,
    }
    numbers |= {
        "window": window,
        "recipe": recipe,
        "overrides": tuple(set or ()),
        "options": design.options_of(option or []),
    }
    given |= {name: value for name, value in numbers.items() if value is not None}
    request = design.TrialRequest(stage=stage, device=device_named(device), dry_run=dry_run, **given)
    with bars() as step:
        report = trials.run(opened, request, step)
    if json:
        emit(report.to_json())
        return
    for note in report.notes:
        warn(note)
    say(f"{report.trainings} trainings, {report.done} done before, about {duration(60 * report.minutes)} to go", stage)
    if report.lines:
        rows(report.table)
    for name, words in report.verdicts.items():
        say(words if isinstance(words, str) else str(words), f"{name}:")
    for what, file in report.files.items():
        say(file, f"{what}:")


@_synth.command("accept")
def accept(
    key: KeyArgument,
    project: ProjectOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Without a positive trial, or a check by all gates; that is recorded.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Let a checked batch into the train split: only classes that a trial found helped, only images that passed."""
    from synth import accept as entering

    opened = open_project(project)
    result = entering.accept(opened, key, force)
    if json:
        emit(result.to_json())
        return
    for name, number in result.left.items():
        warn(f"{number} images of {name} stay out: the trial found no help in them")
    if result.already:
        say(f"{result.already} images were in before")
    say(f"{result.entered} images into train, tag and view {result.tag}", f"batch {result.key[:8]}", "green")
    say(f"curate train --project {opened.name}", "next:")


@_synth.command("drop")
def drop(
    key: KeyArgument,
    project: ProjectOption = None,
    with_files: Annotated[bool, typer.Option("--files", help="Remove the batch's folder, too.")] = False,
    json: JsonOption = False,
) -> None:
    """Take a batch out of the index again, with its tag and view."""
    from synth import accept as entering

    result = entering.drop(open_project(project), key, with_files)
    emit(result.to_json()) if json else say(f"{result.dropped} images taken out", f"batch {result.key[:8]}", "green")
