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
    from train.fit.tune import Trial, Tuned

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
        str | None, typer.Option(help=r"What to start from: hub, none, or a file \[default: the recipe's].")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Train the best when the trials are done.")] = False,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images \\[default: none on a CPU].")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search a recipe's learning rate, batch, freezing and schedule, judged by val; killed, it goes on where it was."""
    from train.fit import run as training
    from train.fit import tune as tuning

    overrides = (*(set_ or []), *([f"model.weights={weights}"] if weights else []))
    wish = training.TrainRequest(task, recipe, overrides, device_named(device), workers)
    search = tuning.TuneBudget(trials, tuning.seconds_of(time), metric)
    made = open_project(project)
    try:
        with bars() as step:
            found = tuning.run(made, wish, search, step)
    except KeyboardInterrupt:
        warn("stopped; nothing is lost: the same command goes on from here")
        raise
    if not json:
        _tuned(found)
    if not (apply and found.best and not found.left):
        _hinted(found, json)
        return
    with bars() as step:
        model = training.run(made, found.best, step, tell)
    emit(found.to_json() | {"trained": model.to_json()}) if json else _trained(model, made.name)


def _hinted(found: Tuned, json: bool) -> None:
    if json:
        emit(found.to_json())
    elif found.best:
        say(shlex.join(found.command), "next:")


def _tuned(found: Tuned) -> None:
    for note in found.notes:
        warn(note)
    if not found.fresh and not found.left:
        say(f"nothing to do: {len(found.trials)} trials are done already (--trials for more)")
    if found.left:
        warn(f"time is up with {found.left} trials left: run it again to go on, or give it more --time")
    states = [one.state for one in found.trials]
    counts = " / ".join(f"{states.count(name)} {name}" for name in ("done", "pruned", "unfit"))
    say(f"{counts}; study {near(found.folder)}", f"{len(found.trials)} trials", "green")
    if not found.trials:
        return
    names = list(found.trials[0].params)
    head = ("trial", f"{found.metric} on val", "epochs", *names, "")
    rows([head, *(_row(one, names) for one in found.ranked[:SHOWN])], right={0, 1, 2})
    if len(found.trials) > SHOWN:
        say(f"and {len(found.trials) - SHOWN} more: --json lists them all")
    if found.best:
        warn(f"val has chosen among {len(found.trials)} and flatters its choice: judge it on test, by curate evaluate")


def _row(one: Trial, names: list[str]) -> tuple[Any, ...]:
    value = "-" if one.state != "done" or one.value is None else f"{one.value:.4f}"
    about = one.reason or ("the recipe as it is" if one.number == 1 else "" if one.state == "done" else one.state)
    cells = (f"{one.params[name]:.3g}" if name == "lr" else one.params[name] for name in names)
    return (one.number, value, one.epochs, *cells, about)
