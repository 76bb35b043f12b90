"""`curate train`, `models decide`: a model, and the decisions that it makes for each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from curate.errors import CurateError
from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project

if TYPE_CHECKING:
    from train.evaluate.decide import DecideResult
    from train.fit.run import TrainRequest, TrainResult


def run(
    project: Project,
    request: TrainRequest,
    progress: Progress = no_progress,
    log: Callable[[str], None] = lambda line: None,
    targets: Mapping[str, float] | None = None,
) -> TrainResult:
    """Train as `train.fit.run.run` does, then fit the model's decisions on val, unless that is done.

    Args:
        project: the project with its labels.
        request: what to train.
        progress: called with stage, steps done now and steps in all.
        log: gets a line about each epoch.
        targets: the recall that the decisions should reach, by class; others get their best F1.
    """
    from train import store
    from train.fit import run as training

    result = training.run(project, request, progress, log)
    manifest = result.model.manifest
    if not manifest["recipe"]["predict"].get("fit", True) and not targets:
        return result
    if "decisions" in manifest and not targets:
        return result
    try:
        decided = decide(project, result.model.key, targets or {}, request.device, progress)
    except CurateError as error:
        if targets:
            raise
        result.notes.append(f"it decides as the recipe says, because its decisions cannot be fitted: {error}")
        return result
    result.notes.extend(decided.notes)
    result.model = store.find(project, result.model.key)
    return result


def decide(
    project: Project, model: str | None, targets: Mapping[str, float], device: str, progress: Progress = no_progress
) -> DecideResult:
    """Fit the decisions of a model anew on val."""
    from train.evaluate import decide as fitting

    with writing(project, "models decide", views=False):
        return fitting.run(project, model, targets, device, progress)
