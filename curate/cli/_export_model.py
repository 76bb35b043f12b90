"""`export-model`: a trained model as files that run without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import JsonOption, ProjectOption, bars, colored, emit, near, open_project, rows, say, warn
from curate.errors import CurateError

if TYPE_CHECKING:
    from curate.project import Project
    from train.export.run import ExportResult

WORTH = 0.67  # of ONNX's time
NAMES = {"torch": "torch", "onnx": "ONNX", "int8": "ONNX INT8"}


def register(app: typer.Typer) -> None:
    app.command("export-model")(export_model)


def export_model(
    project: ProjectOption = None,
    model: Annotated[
        str | None, typer.Option(help=r"A model's key, candidate or production \[default: production, else candidate].")
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="What INT8 may cost the rarest class, of its recall and of its Dice.")
    ] = 0.005,
    calibration: Annotated[int, typer.Option(help="Images of train that INT8 is calibrated on.")] = 64,
    activations: Annotated[
        str,
        typer.Option(
            help="What INT8 has between layers: int8 (S8S8, for ARM), uint8 (much faster on x86), or auto: what is "
            "fast on this machine."
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Write it whatever it costs; export.json says so.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a model as ONNX and as INT8 ONNX, checked on val: what that costs in accuracy, and gains in speed."""
    from train.export import run as exporting

    opened = open_project(project)
    with bars() as step:
        result = exporting.run(opened, exporting.ExportRequest(model, max_drop, calibration, activations, force), step)
    emit(result.to_json()) if json else _exported(result, opened)
    if result.refusal:
        raise CurateError(f"{result.refusal}. {'Nothing was written' if result.fresh else 'What is there was forced'}")


def _exported(result: ExportResult, project: Project) -> None:
    about = result.about
    for note in about["notes"]:
        warn(note)
    if not result.fresh and not result.refusal:
        say("nothing to do: this model is exported already")
    _engines(about)
    _by_class(about, project)
    check = about["check"]
    say(
        f"probabilities differ by {check['largest_difference']:.1e} at most, {check['decisions_differ']} decisions on "
        f"{check['images']} images of val",
        "ONNX and torch:",
    )
    if result.refusal is None:
        _passed(about)
        say(near(result.folder), f"model {about['key']}:", "green")


def _engines(about: Mapping[str, Any]) -> None:
    speed, sizes = about["speed"], about.get("files", {})
    head = ("engine", "ms an image", "speed", "MB")
    files = {"onnx": "model.onnx", "int8": "model.int8.onnx"}
    table: list[tuple[str, ...]] = [head]
    for name in NAMES:
        ms = speed["ms"][name]
        size = sizes.get(files.get(name, ""))
        table.append(
            (NAMES[name], f"{ms:.1f}", f"{speed['ms']['torch'] / ms:.2f}x", f"{size / 1e6:.1f}" if size else "")
        )
    rows(table, right={1, 2, 3})
    say(f"median of {speed['images']} images on the CPU, {speed['threads']} threads each")
    if about["quantisation"]["activations"] == "int8" and speed["ms"]["int8"] > WORTH * speed["ms"]["onnx"]:
        warn("INT8 gains little here: on x86 processors use --activations uint8; small networks gain little anywhere")


def _by_class(about: Mapping[str, Any], project: Project) -> None:
    measure = "Dice" if about["task"] == "segmentation" else "F1"
    head = ("  class", *(f"{name} {NAMES[engine]}" for name in ("recall", measure) for engine in ("torch", "int8")))
    table: list[tuple[object, ...]] = [head]
    for name, before in about["accuracy"]["torch"].items():
        after = about["accuracy"]["int8"][name]
        cells = (_number(values[key]) for key in ("recall", "dice") for values in (before, after))
        table.append((colored(name, project.colors.get(name)), *cells))
    rows(table, right={1, 2, 3, 4})


def _number(value: float | None) -> str:
    return "none in val" if value is None else f"{value:.3f}"


def _passed(about: Mapping[str, Any]) -> None:
    gate = about["gate"]
    who = f"{gate['class']}, the rarest class ({gate['labelled']} labelled images, {gate['in_val']} in val)"
    if gate["drop"]["recall"] is None:
        text = f"cannot judge {who}"
    else:
        measure = "Dice" if about["task"] == "segmentation" else "F1"
        text = f"{who} loses {gate['drop']['recall']:.4f} recall, {gate['drop']['dice']:.4f} {measure}"
        text += f"; allowed: {gate['max_drop']:g}"
    warn(f"gate, overruled by --force: {text}") if gate["forced"] else say(text, "gate:")
