"""`loop`: one turn of the wheel, or all of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    bars,
    device_named,
    emit,
    open_project,
    say,
    warn,
)

if TYPE_CHECKING:
    from curate.ops.loop import LoopRequest, StepResult
    from curate.project import Project
    from labeling.client import Studio


def register(app: typer.Typer) -> None:
    app.command()(loop)


def loop(
    project: ProjectOption = None,
    budget: Annotated[
        str | None, typer.Option(help=r"Of each round: images, or people's time (4h) \[default: the project's].")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help=r"To train with \[default: the task's].")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A key of the recipe (repeatable).")] = None,
    device: DeviceOption = "auto",
    train: Annotated[bool, typer.Option("--train/--no-train", help="Train and predict between rounds.")] = True,
    go_on: Annotated[bool, typer.Option("--go-on", help="Another round even if stop-check says stop.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the annotators and go on, turn by turn, until there is a reason.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, help="With --wait: seconds between two looks at the server.")] = 30,
    json: JsonOption = False,
) -> None:
    """Run the next round: index, embed, pull, train, predict, evaluate, stop-check, select, push.

    A step with nothing new to do is passed over. Ends where people are not done yet, or stop-check says stop. With
    --json, one object for each turn.
    """
    from curate.ops.loop import LoopRequest, waiting_round
    from labeling import client

    opened = open_project(project)
    studio = client.connect(opened)  # before hours of training
    request = LoopRequest(budget, recipe, tuple(set_ or ()), device_named(device), train, go_on)
    while True:
        ends = _turn(opened, studio, request, json)
        if not wait or (ends and waiting_round(opened) is None):
            return
        _wait(opened, studio, every)


def _turn(project: Project, studio: Studio, request: LoopRequest, json: bool) -> str | None:
    from curate.ops.loop import LoopTurn

    with bars() as step:
        turn = LoopTurn(project, studio, request, step)
        for done in turn.run():
            _tell(done, json)
    ends = turn.done[-1].ends
    if json:
        emit({"steps": [done.to_json() for done in turn.done], "ended": ends})
    elif ends:
        say(ends, "ends here:", "bold yellow")
    return ends


def _tell(done: StepResult, json: bool) -> None:
    if not json:
        say(done.told, f"{done.step}:", "green" if done.did else "dim")


def _wait(project: Project, studio: Studio, every: float) -> None:
    from curate.files import ProjectBusy
    from curate.ops import pull
    from curate.ops.loop import waiting_round
    from labeling.client import Unanswered, Unreachable

    while waiting := waiting_round(project):
        time.sleep(every)
        try:
            pull.run(project, studio, command="loop: pull")
        except (Unreachable, Unanswered, ProjectBusy) as error:
            warn(f"{error}; {waiting.told}")
