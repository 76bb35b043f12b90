"""`train`, `predict`, `models`: from labels to a model, and its predictions on every image."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    TargetOption,
    bars,
    decision_text,
    device_named,
    emit,
    near,
    open_project,
    rows,
    say,
    targets_of,
    tell,
    warn,
)
from curate.errors import CurateError
from curate.units import duration, rate

if TYPE_CHECKING:
    from train.fit.run import TrainResult
    from train.predict.run import PredictReport

TESTED = ("macro_f1", "clean_false_alarms")
SHOWN = 5  # failed images that are printed; --json has them all

_models = typer.Typer(
    help="List the trained models, choose the one in use, or fit anew from which probability on it decides.",
    invoke_without_command=True,
)


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(predict)
    app.add_typer(_models, name="models")


def train(
    project: ProjectOption = None,
    task: Annotated[
        str | None, typer.Option(help=r"segmentation or classification \[default: what the labels allow].")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help=r"A recipe's name (see --list) or TOML file \[default: the task's].")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A key of the recipe, as optimiser.lr=1e-3 (repeatable).")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help=r"What to start from: hub, package, none, or a file \[default: the recipe's].")
    ] = None,
    allow_double_prior: Annotated[
        bool, typer.Option("--allow-double-prior", help="Let both sampler and loss favour rare classes.")
    ] = False,
    pseudo: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Learn, too, from what this model is sure of: key or alias.")
    ] = None,
    target_recall: TargetOption = None,
    device: DeviceOption = "auto",
    processes: Annotated[int, typer.Option(min=1, help="Train in so many processes, each with a GPU of its own.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images \\[default: none on a CPU].")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    json: JsonOption = False,
) -> None:
    """Train a model on the labelled images. Safe to repeat; killed, it goes on where it was."""
    if listing:
        _list(json)
        return
    from curate.ops import train as operation
    from train import processes as team
    from train.fit import run as training

    overrides = [*(set_ or []), *([f"model.weights={weights}"] if weights else [])]
    overrides += ["allow_double_prior=true"] if allow_double_prior else []
    overrides += [f'pseudo.model="{pseudo}"'] if pseudo else []  # quoted: a key may look like a number
    opened = open_project(project)
    request = training.TrainRequest(task, recipe, tuple(overrides), device_named(device), workers)
    if processes > 1 and not team.is_launched():
        raise typer.Exit(team.launch(processes, sys.argv[1:], device))
    with bars() as step:
        result = operation.run(opened, request, step, tell, targets_of(target_recall or []))
    emit(result.to_json()) if json else _trained(result, opened.name)


def _list(json: bool) -> None:
    from train import recipe

    recipes = {name: recipe.load(name) for name in recipe.names()}
    if json:
        emit({"recipes": {name: entry.model_dump(mode="json") for name, entry in recipes.items()}})
        return
    rows((name, entry.task, entry.summary) for name, entry in recipes.items())


def _trained(result: TrainResult, project: str) -> None:
    for note in result.notes:
        warn(note)
    manifest = result.model.manifest
    if not result.fresh:
        say("nothing to do: this recipe is trained on these labels already")
    best, data = manifest["best"], manifest["data"]
    say(
        f"{manifest['recipe']['model']['architecture']} on {data['train']} images, val {data['val']}",
        result.model.key,
        "green",
    )
    losses = f"loss {best['train_loss']:.4f}" + (f", val {best['val_loss']:.4f}" if "val_loss" in best else "")
    epochs = f"epoch {best['epoch'] + 1} of {len(manifest['history'])}"
    say(f"best after {epochs}: {losses} ({duration(manifest['seconds'])})")
    if "f1" in best:
        measure = "Dice of all pixels" if manifest["task"] == "segmentation" else "F1"
        rows(
            [
                ("class", f"{measure} on val", "images in train"),
                *((name, _percent(value), data["by_class"].get(name, "")) for name, value in best["f1"].items()),
            ],
            right={1, 2},
        )
    _decisions(manifest.get("decisions") or {})
    say(f"curate predict --project {project}", "next:")


def _decisions(fitted: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of fitted decisions, with what they do on val."""
    if not fitted:
        return
    head = ("class", "decided from", "aim", "found in val", "false alarms in val")
    rows([head, *((name, *_decision_cells(entry)) for name, entry in fitted.items())], right={3, 4})


def _decision_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    val = entry["val"]
    aim = f"recall {entry['target']:g}" if entry["target"] else "best F1"
    counts = f"{val['found']} of {val['images']}", f"{val['false_alarms']} of {val['without']}"
    return (decision_text(entry), aim, *counts)


def _percent(value: float | None) -> str:
    return "none in val" if value is None else f"{value:.3f}"


def predict(
    project: ProjectOption = None,
    model: Annotated[
        str | None, typer.Option(help=r"A model's key, candidate or production \[default: production, else candidate].")
    ] = None,
    view: Annotated[str | None, typer.Option(help="Only the images of this saved view.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Labelled images, too.")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: here or on the cluster of RAY_ADDRESS.")] = "local",
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Run the model on the images that it has not seen yet: scores for select, regions for people and the App."""
    from curate.ops import predict as predicting

    if view is not None and everything:
        raise CurateError("--view and --all contradict each other; give one")
    opened = open_project(project)
    with bars() as step:
        report = predicting.run(
            opened, model, view, step, everything=everything, device=device_named(device), engine=engine
        )
    emit(report.to_json()) if json else _predicted(report)


def _predicted(report: PredictReport) -> None:
    from pathlib import Path

    speed = f", {rate(report.predicted / report.seconds, 'images')}" if report.predicted and report.seconds else ""
    counts = (
        f"predicted {report.predicted} / kept {report.kept} / failed {len(report.failed)} / missing {report.missing}"
    )
    say(f"{counts}{speed}, by model {report.model}")
    if report.predicted:
        say(f"{report.with_defects} of them show something; scores in {near(Path(report.table))}")
    for reason in list(report.failed.values())[:SHOWN]:
        warn(f"skipped {reason}")
    if len(report.failed) > SHOWN:
        warn(f"and {len(report.failed) - SHOWN} more: --json lists them all")
    if not report.predicted and not report.failed:
        say("nothing to do: this model has seen every image (--all: labelled ones, too)")


@_models.callback()
def models(context: typer.Context, project: ProjectOption = None, json: JsonOption = False) -> None:
    """Without a word more, `list`."""
    if context.invoked_subcommand is None:
        models_list(project, json)
    elif project or json:
        raise typer.BadParameter(f"write options behind the command: curate models {context.invoked_subcommand} ...")


@_models.command("list")
def models_list(project: ProjectOption = None, json: JsonOption = False) -> None:
    """All trained models, the newest first; candidate and production are marked."""
    from train import store

    opened = open_project(project)
    aliases = {name: store.alias(opened, name) for name in (store.CANDIDATE, store.PRODUCTION)}
    tested = {model.key: store.metrics_on_test(opened, model.key, TESTED) for model in store.all_models(opened)}
    models = [_summary(model, aliases, tested[model.key]) for model in store.all_models(opened)]
    if json:
        emit({"models": models, "current": store.current(opened), **aliases})
        return
    if not models:
        say(store.NONE_YET)
        return
    head = ("model", "made", "task", "architecture", "train", "val loss", "macro F1", "false alarms", "")
    rows([head, *(_row(model) for model in models)], right={4, 5, 6, 7})
    if any(model["test"] for model in models):
        say("macro F1, and false alarms on clean images: on test, as last evaluated")


def _summary(model: Any, aliases: dict[str, str | None], tested: dict[str, float | None] | None) -> dict[str, Any]:
    manifest = model.manifest
    names = ("made", "task", "classes", "data", "best", "seconds")
    about = {"model": model.key, "aliases": [name for name, key in aliases.items() if key == model.key]}
    about |= {name: manifest[name] for name in names} | {"architecture": manifest["recipe"]["model"]["architecture"]}
    return about | {"decisions": manifest.get("decisions") or {}, "test": tested}


def _row(summary: dict[str, Any]) -> tuple[object, ...]:
    loss = summary["best"].get("val_loss")
    shown = "" if loss is None else f"{loss:.4f}"
    marks = ", ".join(summary["aliases"])
    return (
        summary["model"],
        summary["made"],
        summary["task"],
        summary["architecture"],
        summary["data"]["train"],
        shown,
        *(_percent_of(summary["test"], name) for name in TESTED),
        marks,
    )


def _percent_of(tested: Mapping[str, float | None] | None, name: str) -> str:
    value = tested and tested[name]
    return "" if value is None else f"{value:.3f}"


@_models.command("decide")
def models_decide(
    model: Annotated[str | None, typer.Argument(help=r"A model's key \[default: production, else candidate].")] = None,
    target_recall: TargetOption = None,
    project: ProjectOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Fit anew from which probability and area on a model finds each class, on val: best F1, or a recall to reach.

    predict, suggestions, evaluate and export-model follow; what the model predicted before is predicted anew.
    """
    from curate.ops import train as operation

    opened = open_project(project)
    with bars() as step:
        result = operation.decide(opened, model, targets_of(target_recall or []), device_named(device), step)
    if json:
        emit(result.to_json())
        return
    for note in result.notes:
        warn(note)
    if result.fitted == result.before:
        say("nothing to do: these are its decisions already")
    _decisions(result.fitted)
    say(f"curate predict --project {opened.name} --model {result.model}", "next:")


@_models.command("promote")
def models_promote(
    model: Annotated[str | None, typer.Argument(help=r"A model's key \[default: the candidate].")] = None,
    project: ProjectOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if the gate refuses it; what it objects to is kept.")
    ] = False,
    why: Annotated[str | None, typer.Option(help="With --force: why, for those who ask later.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Make a model production's, if it passes the gate on test.

    Every model must reach the floors of [promotion] in project.toml: recall of each class, false alarms on clean
    images, calibration. The first must be better than always naming the majority; a later one must find no less of the
    rarest class than production's model, and be clearly worse in nothing else.
    """
    from curate.ops import evaluate

    opened = open_project(project)
    with bars() as step:
        result = evaluate.promote(opened, model, force, device_named(device), step, why)
    if json:
        emit({"production": result.key, "forced": result.forced, "notes": result.notes, "warnings": result.warnings})
        return
    for warning in result.warnings:
        warn(warning)
    for note in result.notes:
        say(note)
    if result.forced:
        warn(f"promoted although {result.forced}")
    say(f"is model {result.key}", "production", "green")


@_models.command("rollback")
def models_rollback(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Go back to the model that was production's before."""
    from train import store

    key = store.rollback(open_project(project))
    emit({"production": key}) if json else say(f"is model {key} again", "production", "green")
