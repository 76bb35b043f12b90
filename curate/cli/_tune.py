"""`tune`: which settings of a recipe do best on val."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    bars,
    device_named,
    emit,
    near,
    open_project,
    rows,
    say,
    tell,
    warn,
)
from curate.cli._train import _trained

if TYPE_CHECKING:
    from train.fit.tune import Trial, TuneResult

SHOWN = 10  # trials in the table; --json has them all


def register(app: typer.Typer) -> None:
    app.command()(tune)


def tune(
    project: ProjectOption = None,
    task: Annotated[
        str | None, typer.Option(help=r"segmentation or classification \[default: what the labels allow].")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help=r"The recipe to begin with, by name or TOML file \[default: the task's].")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many trials, earlier runs' included.")] = 20,
    time: Annotated[
        str, typer.Option(help="How long this run may take: 4h, 90m, 2h30m. Run it again to go on.")
    ] = "2h",
    metric: Annotated[
        str, typer.Option(help="What decides on val: f1 (the classes' mean), f1.CLASS or val_loss.")
    ] = "f1",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A key of the recipe; what is set is not searched (repeatable).")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help=r"What to start from: hub, package, none, or a file \[default: the recipe's].")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Train the best when the trials are done.")] = False,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images \\[default: none on a CPU].")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search a recipe's learning rate, batch, freezing and schedule, judged by val; killed, it goes on where it was."""
    from curate.ops import train as operation
    from train.fit import run as training
    from train.fit import tune as tuning

    overrides = (*(set_ or []), *([f"model.weights={weights}"] if weights else []))
    request = training.TrainRequest(task, recipe, overrides, device_named(device), workers)
    search = tuning.TuneBudget(trials, tuning.seconds_of(time), metric)
    opened = open_project(project)
    try:
        with bars() as step:
            result = tuning.run(opened, request, search, step)
    except KeyboardInterrupt:
        warn("stopped; nothing is lost: the same command goes on from here")
        raise
    if not json:
        _tuned(result)
    if not (apply and result.best and not result.left):
        _hinted(result, json)
        return
    with bars() as step:
        model = operation.run(opened, result.best, step, tell)
    emit(result.to_json() | {"trained": model.to_json()}) if json else _trained(model, opened.name)


def _hinted(result: TuneResult, json: bool) -> None:
    if json:
        emit(result.to_json())
    elif result.best:
        say(shlex.join(result.command), "next:")


def _tuned(result: TuneResult) -> None:
    for note in result.notes:
        warn(note)
    if not result.fresh and not result.left:
        say(f"nothing to do: {len(result.trials)} trials are done already (--trials for more)")
    if result.left:
        warn(f"time is up with {result.left} trials left: run it again to go on, or give it more --time")
    states = [trial.state for trial in result.trials]
    counts = " / ".join(f"{states.count(name)} {name}" for name in ("done", "pruned", "unfit"))
    say(f"{counts}; study {near(result.folder)}", f"{len(result.trials)} trials", "green")
    if not result.trials:
        return
    names = list(result.trials[0].params)
    head = ("trial", f"{result.metric} on val", "epochs", *names, "")
    rows([head, *(_row(trial, names) for trial in result.ranked[:SHOWN])], right={0, 1, 2})
    if len(result.trials) > SHOWN:
        say(f"and {len(result.trials) - SHOWN} more: --json lists them all")
    if result.best:
        warn(f"val has chosen among {len(result.trials)} and flatters its choice: judge it on test, by curate evaluate")


def _row(trial: Trial, names: list[str]) -> tuple[Any, ...]:
    value = "-" if trial.state != "done" or trial.value is None else f"{trial.value:.4f}"
    about = trial.reason or (
        "the recipe as it is" if trial.number == 1 else "" if trial.state == "done" else trial.state
    )
    cells = (f"{trial.params[name]:.3g}" if name == "lr" else trial.params[name] for name in names)
    return (trial.number, value, trial.epochs, *cells, about)
