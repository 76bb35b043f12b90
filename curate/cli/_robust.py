"""`robustness`, `explain`: what a model loses when the light changes, and where it looks."""

from __future__ import annotations

from collections.abc import Mapping
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
from curate.cli._evaluate import LeakOption, SplitOption

if TYPE_CHECKING:
    from curate.project import Project
    from train.evaluate.explain import Explanation
    from train.evaluate.robustness import Robustness

ModelOption = Annotated[
    str | None, typer.Option(help=r"A model's key, candidate or production \[default: production, else candidate].")
]


def register(app: typer.Typer) -> None:
    app.command()(robustness)
    app.command()(explain)


def robustness(
    project: ProjectOption = None,
    model: ModelOption = None,
    split: SplitOption = "test",
    leave_out: Annotated[
        str | None,
        typer.Option(help="Train anew without each exposure (or stratum), and judge by its images. Takes long."),
    ] = None,
    allow_leak: LeakOption = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Measure what a model loses to exposure, glare, blur, noise and haze, or on an exposure that it has never seen."""
    from train.evaluate import robustness as shaken
    from train.evaluate.run import EvaluateRequest

    made = open_project(project)
    wish = EvaluateRequest(model, split, {}, allow_leak, device_named(device))
    if leave_out is not None:
        _leave_out(made, wish, leave_out, json)
        return
    with bars() as step:
        found = shaken.run(made, wish, step)
    emit(found.to_json()) if json else _shaken(found, made)


def _leave_out(made: Project, wish: Any, by: str, json: bool) -> None:
    from train.evaluate import leave_out as leaving

    task = leaving.prepared(made, wish, by)
    warn(leaving.cost(task))
    with bars() as step:
        found = leaving.run(task, step)
    emit(found.to_json()) if json else _left(found)


def _head(found: Robustness) -> None:
    for note in found.manifest["notes"]:
        warn(note)
    if not found.fresh:
        say("nothing to do: this model is tested on these labels already")


def _shaken(found: Robustness, project: Project) -> None:
    _head(found)
    values, made = found.figures, found.manifest
    say(
        f"on {values['images']} images of {values['groups']} groups in {made['split']}",
        f"model {made['model']}",
        "green",
    )
    clean, score = values["clean"]["all"], values["score"]
    say(f"{score} of all classes {_number(clean['score'])} ({_between(clean['score'])}) on the images as they are")
    table: list[tuple[object, ...]] = [(f"  {score} at severity", *range(1, 6), "lost at worst", "clean, flagged")]
    for name, levels in values["changes"].items():
        lost, alarms = values["worst_of"][name]["all"]["score"]["drop"], levels[-1]["all"]["clean_false_alarms"]
        scores = [_number(one["all"]["score"]) for one in levels]
        table.append((name, *scores, f"{_number(lost)} ({_between(lost)})", _number(alarms)))
    rows(table, right={1, 2, 3, 4, 5, 7})
    say()
    head = ("  class", f"{score} clean", "worst", "where", "lost", "recall clean", "worst", "lost")
    by_class: list[tuple[object, ...]] = [head]
    for name in made["classes"]:
        one, before = values["worst"][name], values["clean"][name]
        cells = (_number(before["score"]), _number(one["score"]["worst"]), _where(one["score"]), _lost(one["score"]))
        recalls = (_number(before["recall"]), _number(one["recall"]["worst"]), _lost(one["recall"]))
        by_class.append((colored(name, project.colors.get(name)), *cells, *recalls))
    rows(by_class, right={1, 2, 5, 6})
    say(f"{near(found.folder)}", "kept in:")


def _left(found: Robustness) -> None:
    _head(found)
    values, score = found.figures, found.figures["score"]
    by = values["by"]
    head = (
        f"  without {by}",
        "images",
        "left out",
        f"{score} with",
        "without",
        "lost",
        "recall with",
        "without",
        "lost",
    )
    table: list[tuple[object, ...]] = [head]
    for value, one in [*values["values"].items(), ("all", values["all"])]:
        cells: list[str] = []
        for name in ("score", "recall"):
            figure = one["classes"]["all"][name]
            cells += [_number(figure["with"]), _number(figure["without"])]
            cells.append(f"{_number(figure['drop'])} ({_between(figure['drop'])})")
        table.append((value, one["images"], one.get("left_out", ""), *cells))
    rows(table, right={1, 2, 3, 4, 6, 7})
    say(f"{near(found.folder)}", "kept in:")


def _lost(one: Mapping[str, Any]) -> str:
    return f"{_number(one['drop'])} ({_between(one['drop'])})"


def _where(one: Mapping[str, Any]) -> str:
    return f"{one['change']} {one['severity']}" if "change" in one else ""


def _number(one: Mapping[str, Any]) -> str:
    return "-" if one["value"] is None else f"{one['value']:.3f}"


def _between(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "nothing to measure"
    return "too few to say" if one["silent"] else f"{one['low']:.3f} to {one['high']:.3f}"


def explain(
    project: ProjectOption = None,
    model: ModelOption = None,
    view: Annotated[
        str | None,
        typer.Option(help=r"Images of this saved view \[default: the surest mistakes, without an evaluation test]."),
    ] = None,
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="How many.")] = 12,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Show where a model looks (Grad-CAM): overlays on a sheet, and the share of the heat on the labelled defect."""
    from train.evaluate import explain as explaining

    made = open_project(project)
    wish = explaining.ExplainRequest(model, view, images, device_named(device))
    with bars() as step:
        found = explaining.run(made, wish, step)
    emit(found.to_json()) if json else _explained(found, made)


def _explained(found: Explanation, project: Project) -> None:
    for reason in found.report["failed"].values():
        warn(f"skipped {reason}")
    if not found.fresh:
        say("nothing to do: these images are explained already")
    table: list[tuple[object, ...]] = [("  class", "images", "heat on the defect", "its area", "peak on it")]
    for name, one in found.report["classes"].items():
        share, area, peak = (one[key] for key in ("share", "area", "peak"))
        cells = (share["n"], f"{_number(share)} ({_between(share)})", _number(area), _number(peak))
        table.append((colored(name, project.colors.get(name)), *cells))
    if len(table) > 1:
        rows(table, right={1})
    else:
        say(_unmeasured(found.report["images"]))
    say(f"{near(found.folder / 'sheet.png')}", "overlays:")


def _unmeasured(images: list[dict[str, Any]]) -> str:
    """Reason why it is not known how much of the heat lies on the defect."""
    placed = sum("share" in one for one in images)
    if placed:
        return (
            f"{placed} of {len(images)} images say where the class in question is, but nothing there speaks for it in "
            "the model's eyes: no heat to measure"
        )
    return (
        f"none of these {len(images)} labels shows a region of the class in question, so how much of the heat lies on "
        "the defect cannot be measured"
    )
