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

    opened = open_project(project)
    request = EvaluateRequest(model, split, {}, allow_leak, device_named(device))
    if leave_out is not None:
        _leave_out(opened, request, leave_out, json)
        return
    with bars() as step:
        result = shaken.run(opened, request, step)
    emit(result.to_json()) if json else _shaken(result, opened)


def _leave_out(project: Project, request: Any, by: str, json: bool) -> None:
    from train.evaluate import leave_out as leaving

    task = leaving.make_task(project, request, by)
    warn(leaving.cost(task))
    with bars() as step:
        result = leaving.run(task, step)
    emit(result.to_json()) if json else _left(result)


def _head(result: Robustness) -> None:
    for note in result.manifest["notes"]:
        warn(note)
    if not result.fresh:
        say("nothing to do: this model is tested on these labels already")


def _shaken(result: Robustness, project: Project) -> None:
    _head(result)
    values, manifest = result.metrics, result.manifest
    say(
        f"on {values['images']} images of {values['groups']} groups in {manifest['split']}",
        f"model {manifest['model']}",
        "green",
    )
    clean, score = values["clean"]["all"], values["score"]
    say(f"{score} of all classes {_number(clean['score'])} ({_between(clean['score'])}) on the images as they are")
    table: list[tuple[object, ...]] = [(f"  {score} at severity", *range(1, 6), "lost at worst", "clean, flagged")]
    for name, levels in values["changes"].items():
        lost, alarms = values["worst_of"][name]["all"]["score"]["drop"], levels[-1]["all"]["clean_false_alarms"]
        scores = [_number(level["all"]["score"]) for level in levels]
        table.append((name, *scores, f"{_number(lost)} ({_between(lost)})", _number(alarms)))
    rows(table, right={1, 2, 3, 4, 5, 7})
    for name, limit in values["limits"].items():
        lost = f"it costs {_number(limit['drop'])} {score} ({_between(limit['drop'])}), {limit['limit']:g} is allowed"
        verdict = {True: "passed", False: "failed", None: "not known"}[limit["passed"]]
        say(lost, f"{name}: {verdict}:", "green" if limit["passed"] else "yellow")
    say()
    head = ("  class", f"{score} clean", "worst", "where", "lost", "recall clean", "worst", "lost")
    by_class: list[tuple[object, ...]] = [head]
    for name in manifest["classes"]:
        metric, before = values["worst"][name], values["clean"][name]
        cells = (
            _number(before["score"]),
            _number(metric["score"]["worst"]),
            _where(metric["score"]),
            _lost(metric["score"]),
        )
        recalls = (_number(before["recall"]), _number(metric["recall"]["worst"]), _lost(metric["recall"]))
        by_class.append((colored(name, project.colors.get(name)), *cells, *recalls))
    rows(by_class, right={1, 2, 5, 6})
    say(f"{near(result.folder)}", "kept in:")


def _left(result: Robustness) -> None:
    _head(result)
    values, score = result.metrics, result.metrics["score"]
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
    for value, metrics in [*values["values"].items(), ("all", values["all"])]:
        cells: list[str] = []
        for name in ("score", "recall"):
            figure = metrics["classes"]["all"][name]
            cells += [_number(figure["with"]), _number(figure["without"])]
            cells.append(f"{_number(figure['drop'])} ({_between(figure['drop'])})")
        table.append((value, metrics["images"], metrics.get("left_out", ""), *cells))
    rows(table, right={1, 2, 3, 4, 6, 7})
    say(f"{near(result.folder)}", "kept in:")


def _lost(metric: Mapping[str, Any]) -> str:
    return f"{_number(metric['drop'])} ({_between(metric['drop'])})"


def _where(metric: Mapping[str, Any]) -> str:
    return f"{metric['change']} {metric['severity']}" if "change" in metric else ""


def _number(metric: Mapping[str, Any]) -> str:
    return "-" if metric["value"] is None else f"{metric['value']:.3f}"


def _between(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return "nothing to measure"
    return "too few to say" if metric["silent"] else f"{metric['low']:.3f} to {metric['high']:.3f}"


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

    opened = open_project(project)
    request = explaining.ExplainRequest(model, view, images, device_named(device))
    with bars() as step:
        result = explaining.run(opened, request, step)
    emit(result.to_json()) if json else _explained(result, opened)


def _explained(result: Explanation, project: Project) -> None:
    for reason in result.report["failed"].values():
        warn(f"skipped {reason}")
    if not result.fresh:
        say("nothing to do: these images are explained already")
    table: list[tuple[object, ...]] = [("  class", "images", "heat on the defect", "its area", "peak on it")]
    for name, values in result.report["classes"].items():
        share, area, peak = (values[key] for key in ("share", "area", "peak"))
        cells = (share["n"], f"{_number(share)} ({_between(share)})", _number(area), _number(peak))
        table.append((colored(name, project.colors.get(name)), *cells))
    if len(table) > 1:
        rows(table, right={1})
    else:
        say(_unmeasured(result.report["images"]))
    say(f"{near(result.folder / 'sheet.png')}", "overlays:")


def _unmeasured(images: list[dict[str, Any]]) -> str:
    """Reason why it is not known how much of the heat lies on the defect."""
    placed = sum("share" in image for image in images)
    if placed:
        return (
            f"{placed} of {len(images)} images say where the class in question is, but nothing there speaks for it in "
            "the model's eyes: no heat to measure"
        )
    return (
        f"none of these {len(images)} labels shows a region of the class in question, so how much of the heat lies on "
        "the defect cannot be measured"
    )
