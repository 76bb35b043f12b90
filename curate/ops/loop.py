"""`curate loop`: one turn of the wheel, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from curate.errors import CurateError
from curate.index import rounds
from curate.index.dataset import Index
from curate.ops import embed, evaluate, index, predict, pull, push, select, train
from curate.ops._lock import Progress
from curate.project import Project, load

if TYPE_CHECKING:
    from labeling.client import Studio


class StepResult(NamedTuple):
    """One step's result in words. `ends`: why the turn ends here."""

    step: str
    told: str
    did: bool = True
    ends: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "did": self.did, "told": self.told}


@dataclass(frozen=True)
class LoopRequest:
    """Settings of a turn."""

    budget: str | None = None
    recipe: str | None = None
    settings: tuple[str, ...] = ()
    device: str = "auto"
    train: bool = True
    go_on: bool = False


@dataclass
class LoopTurn:
    """One turn: each step is done when it is asked for."""

    project: Project
    studio: Studio
    request: LoopRequest
    progress: Progress
    done: list[StepResult] = field(default_factory=list)

    def run(self) -> Iterator[StepResult]:
        steps = [self.index, self.embed, self.pull]
        steps += [self.train, self.predict, self.evaluate] if self.request.train else []
        for step in (*steps, self.stop_check, self.select, self.push):
            self.done.append(step())
            yield self.done[-1]
            if self.done[-1].ends:
                return

    def index(self) -> StepResult:
        report, _ = index.run(self.project, self.progress, command="loop: index")
        self.project = load(self.project.folder)
        text = f"{report.added} new images, {report.updated} updated, {report.unchanged} as they were"
        return StepResult("index", text, report.added + report.updated > 0)

    def embed(self) -> StepResult:
        device = self.request.device
        report = embed.run(self.project, device=device, progress=self.progress, command="loop: embed")
        return StepResult("embed", f"{report.embedded} images with {report.encoder}", report.embedded > 0)

    def pull(self) -> StepResult:
        from labeling import remote_project

        if remote_project.find(self.project, self.studio) is None:
            return StepResult("pull", "nothing was pushed yet", did=False)
        report = pull.run(self.project, self.studio, progress=self.progress, command="loop: pull")
        waiting = waiting_round(self.project)
        text = f"{report.annotations} new annotations on {report.images} images"
        ends = f"{waiting.told}: people are not done" if waiting else None
        return StepResult("pull", text, report.images > 0, ends)

    def train(self) -> StepResult:
        from train.fit import run as training

        if not Index(self.project).count(status="labelled", split="train"):
            return StepResult("train", "no image of the train split is labelled yet", did=False)
        request = training.TrainRequest(None, self.request.recipe, self.request.settings, self.request.device)
        result = train.run(self.project, request, self.progress)
        text = f"model {result.model.key}" + ("" if result.fresh else ": labels and recipe are as they were")
        return StepResult("train", text, result.fresh)

    def predict(self) -> StepResult:
        from train import store

        if store.current(self.project) is None:
            return StepResult("predict", "there is no model yet", did=False)
        report = predict.run(
            self.project, store.CANDIDATE, None, self.progress, command="loop: predict", device=self.request.device
        )
        return StepResult("predict", f"{report.predicted} images", report.predicted > 0)

    def evaluate(self) -> StepResult:
        from train import store
        from train.evaluate.run import EvaluateRequest

        if store.current(self.project) is None:
            return StepResult("evaluate", "there is no model yet", did=False)
        request = EvaluateRequest(store.CANDIDATE, device=self.request.device)
        try:
            result = evaluate.run(self.project, request, self.progress, command="loop: evaluate")
        except CurateError as error:  # a project that begins has no test images yet
            return StepResult("evaluate", str(error), did=False)
        text = f"model {result.model} on {result.manifest['split']}: {result.folder}"
        return StepResult("evaluate", text, result.fresh)

    def stop_check(self) -> StepResult:
        from curate.audit import run as auditing

        if not any(past.pushed for past in rounds.every(self.project.work)):
            return StepResult("stop-check", "no round was labelled yet", did=False)
        facts = auditing.read(self.project)
        result = auditing.check(facts, auditing.settling(self.project, facts.images))
        text = f"{result.advice.verdict}: {'; '.join(result.advice.reasons)}"
        stops = result.advice.verdict == "stop" and not self.request.go_on
        return StepResult("stop-check", text, ends=text if stops else None)

    def select(self) -> StepResult:
        from curate.select import run as selecting

        request = selecting.request_of(self.project, self.request.budget)
        try:
            chosen = select.run(self.project, request, self.progress, command="loop: select")
        except selecting.NothingToPick as error:
            return StepResult("select", str(error), did=False, ends=str(error))
        return StepResult("select", f"round {chosen.manifest['round']:03d}: {len(chosen.picks)} images", chosen.fresh)

    def push(self) -> StepResult:
        from labeling.push import PushRequest

        report = push.run(self.project, self.studio, PushRequest(), self.progress, command="loop: push")
        return StepResult("push", f"{report.batch}: {report.created} tasks at {report.url}", report.created > 0)


class WaitingRound(NamedTuple):
    """A round that people have not done yet."""

    name: str
    left: int
    picks: int

    @property
    def told(self) -> str:
        return f"{self.name}: {self.left} of {self.picks} images wait"


def waiting_round(project: Project) -> WaitingRound | None:
    """Return the newest round while images of it wait in the queue."""
    newest = rounds.latest(project.work)
    if newest is None or not newest.pushed:
        return None
    ids = {row["id"] for row in newest.picks()} - set(newest.withdrawn)
    left = sum(status == "queued" for id, status in Index(project).rows("status") if id in ids)
    return WaitingRound(newest.name, left, len(ids)) if left else None
