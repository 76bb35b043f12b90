"""`loop`: one turn of the wheel, or all of them. The only place that reaches over all rooms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
from curate.errors import CurateError

if TYPE_CHECKING:
    from curate.project import Project
    from labeling.client import Studio

Step = Callable[[str, int, int], None]


def register(app: typer.Typer) -> None:
    app.command()(loop)


class StepResult(NamedTuple):
    """What a step did. `ends`: why the turn ends here."""

    step: str
    told: str
    did: bool = True
    ends: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "did": self.did, "told": self.told}


@dataclass(frozen=True)
class LoopRequest:
    """What a turn is to do."""

    budget: str | None = None
    recipe: str | None = None
    settings: tuple[str, ...] = ()
    device: str = "auto"
    train: bool = True
    go_on: bool = False


@dataclass
class LoopTurn:
    """One turn, step by step: each step is done when it is asked for."""

    made: Project
    studio: Studio
    wish: LoopRequest
    step: Step
    done: list[StepResult] = field(default_factory=list)

    def run(self) -> Iterator[StepResult]:
        parts = [self.index, self.embed, self.pull]
        parts += [self.train, self.predict, self.evaluate] if self.wish.train else []
        for part in (*parts, self.stop_check, self.select, self.push):
            self.done.append(part())
            yield self.done[-1]
            if self.done[-1].ends:
                return

    def index(self) -> StepResult:
        from curate.files import writer_lock
        from curate.index import app_views, sync

        with writer_lock(self.made.work, "curate loop: index"):
            report = sync.run(self.made, self.step)
            app_views.arrange(self.made)
        self.made = open_project(str(self.made.folder))
        told = f"{report.added} new images, {report.updated} updated, {report.unchanged} as they were"
        return StepResult("index", told, report.added + report.updated > 0)

    def embed(self) -> StepResult:
        from curate.files import writer_lock
        from curate.vectors import run as embedding

        with writer_lock(self.made.work, "curate loop: embed"):
            report = embedding.run(self.made, progress=self.step)
        return StepResult("embed", f"{report.embedded} images", report.embedded > 0)

    def pull(self) -> StepResult:
        from curate.files import writer_lock
        from curate.index import app_views
        from labeling import pull, remote_project

        if remote_project.find(self.made, self.studio) is None:
            return StepResult("pull", "nothing was pushed yet", did=False)
        with writer_lock(self.made.work, "curate loop: pull"):
            report = pull.run(self.made, self.studio, progress=self.step)
            app_views.arrange(self.made)
        waiting = still_waiting(self.made)
        told = f"{report.annotations} new annotations on {report.images} images"
        ends = f"{waiting.told}: people are not done" if waiting else None
        return StepResult("pull", told, report.images > 0, ends)

    def train(self) -> StepResult:
        from curate.index.dataset import Index
        from train.fit import run as training

        if not Index(self.made).count(status="labelled", split="train"):
            return StepResult("train", "no image of the train split is labelled yet", did=False)
        wish = training.TrainRequest(None, self.wish.recipe, self.wish.settings, self.wish.device)
        found = training.run(self.made, wish, self.step)
        told = f"model {found.model.key}" + ("" if found.fresh else ": labels and recipe are as they were")
        return StepResult("train", told, found.fresh)

    def predict(self) -> StepResult:
        from curate.files import writer_lock
        from curate.index import app_views
        from train import store
        from train.predict import run as predicting

        if store.current(self.made) is None:
            return StepResult("predict", "there is no model yet", did=False)
        with writer_lock(self.made.work, "curate loop: predict"):
            report = predicting.run(self.made, store.CANDIDATE, progress=self.step, device=self.wish.device)
            app_views.arrange(self.made)
        return StepResult("predict", f"{report.predicted} images", report.predicted > 0)

    def evaluate(self) -> StepResult:
        from curate.files import writer_lock
        from curate.index import app_views
        from train import store
        from train.evaluate import run as evaluating

        if store.current(self.made) is None:
            return StepResult("evaluate", "there is no model yet", did=False)
        with writer_lock(self.made.work, "curate loop: evaluate"):
            try:
                found = evaluating.run(
                    self.made, evaluating.EvaluateRequest(store.CANDIDATE, device=self.wish.device), self.step
                )
            except CurateError as error:  # a plant that begins has no test images yet
                return StepResult("evaluate", str(error), did=False)
            app_views.arrange(self.made)
        return StepResult("evaluate", f"model {found.model} on {found.manifest['split']}: {found.folder}", found.fresh)

    def stop_check(self) -> StepResult:
        from curate.audit import run as auditing
        from curate.index import rounds

        if not any(one.pushed for one in rounds.every(self.made.work)):
            return StepResult("stop-check", "no round was labelled yet", did=False)
        facts = auditing.read(self.made)
        found = auditing.check(facts, auditing.settling(self.made, facts.known))
        told = f"{found.advice.verdict}: {'; '.join(found.advice.reasons)}"
        stops = found.advice.verdict == "stop" and not self.wish.go_on
        return StepResult("stop-check", told, ends=told if stops else None)

    def select(self) -> StepResult:
        from curate.files import writer_lock
        from curate.index import app_views
        from curate.select import run as selecting

        with writer_lock(self.made.work, "curate loop: select"):
            try:
                chosen = selecting.run(self.made, selecting.usual(self.made, self.wish.budget), self.step)
            except selecting.NothingToPick as error:
                return StepResult("select", str(error), did=False, ends=str(error))
            app_views.arrange(self.made)
        return StepResult("select", f"round {chosen.manifest['round']:03d}: {len(chosen.picks)} images", chosen.fresh)

    def push(self) -> StepResult:
        from curate.files import writer_lock
        from curate.index import app_views
        from labeling import push

        with writer_lock(self.made.work, "curate loop: push"):
            report = push.run(self.made, self.studio, push.PushRequest(), self.step)
            app_views.arrange(self.made)
        return StepResult("push", f"{report.batch}: {report.created} tasks at {report.url}", report.created > 0)


class WaitingRound(NamedTuple):
    """A round that people have not done yet."""

    name: str
    left: int
    picks: int

    @property
    def told(self) -> str:
        return f"{self.name}: {self.left} of {self.picks} images wait"


def still_waiting(made: Project) -> WaitingRound | None:
    """The newest round, while images of it wait in the queue."""
    from curate.index import rounds
    from curate.index.dataset import Index

    newest = rounds.latest(made.work)
    if newest is None or not newest.pushed:
        return None
    ids = {row["id"] for row in newest.picks()} - set(newest.withdrawn)
    left = sum(status == "queued" for id, status in Index(made).rows("status") if id in ids)
    return WaitingRound(newest.name, left, len(ids)) if left else None


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
    from labeling import client

    made = open_project(project)
    studio = client.connect(made)  # before hours of training
    wish = LoopRequest(budget, recipe, tuple(set_ or ()), device_named(device), train, go_on)
    while True:
        ends = _turn(made, studio, wish, json)
        people = still_waiting(made)
        if not wait or (ends and people is None):
            return
        _wait(made, studio, every)


def _turn(made: Project, studio: Studio, wish: LoopRequest, json: bool) -> str | None:
    with bars() as step:
        turn = LoopTurn(made, studio, wish, step)
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


def _wait(made: Project, studio: Studio, every: float) -> None:
    from curate.files import ProjectBusy, writer_lock
    from curate.index import app_views
    from labeling import pull
    from labeling.client import Unanswered, Unreachable

    while waiting := still_waiting(made):
        time.sleep(every)
        try:
            with writer_lock(made.work, "curate loop: pull"):
                if pull.run(made, studio).images:
                    app_views.arrange(made)
        except (Unreachable, Unanswered, ProjectBusy) as error:
            warn(f"{error}; {waiting.told}")
