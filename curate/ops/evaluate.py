"""`curate evaluate`, `compare`, `models promote`: how good a model is, and whether it becomes production's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from curate.index import evaluation_runs
from curate.index.dataset import Index
from curate.index.evaluation_runs import EvaluatedImage
from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project

if TYPE_CHECKING:
    from train.evaluate.compare import Comparison
    from train.evaluate.efficiency import Efficiency
    from train.evaluate.promote import PromoteResult
    from train.evaluate.run import EvaluateRequest, Evaluation


def run(
    project: Project, request: EvaluateRequest, progress: Progress = no_progress, command: str = "evaluate"
) -> Evaluation:
    """Evaluate a model; show its mistakes in the App, and the evaluation in the panel Model Evaluation."""
    from train.evaluate import run as evaluating

    with writing(project, command):
        evaluation = evaluating.run(project, request, progress)
        show(project, evaluation)
        return evaluation


def show(project: Project, evaluation: Evaluation) -> bool:
    """Store an evaluation as FiftyOne's; the caller holds the writer lock. Returns True if it was stored now."""
    from train.evaluate import run as evaluating

    images = {
        row["id"]: EvaluatedImage(tuple(row["present"]), tuple(row["decided"]), max(row["p"], default=0.0))
        for row in evaluating.per_image_rows(evaluation.folder)
    }
    about = evaluation.manifest
    by_region = about["task"] == "segmentation"
    return evaluation_runs.store(
        Index(project), evaluation.model, about["split"], evaluation.folder.name, images, by_region
    )


def compare(project: Project, a: str, b: str, request: EvaluateRequest, progress: Progress = no_progress) -> Comparison:
    """Evaluate two models on the same images."""
    from train.evaluate import compare

    with writing(project, "compare", views=False):
        return compare.run(project, a, b, request, progress)


def efficiency(
    project: Project, names: Sequence[str], request: EvaluateRequest, progress: Progress = no_progress
) -> Efficiency:
    """Evaluate models on the same images, and time them."""
    from train.evaluate import efficiency

    with writing(project, "compare", views=False):
        return efficiency.run(project, names, request, progress)


def promote(
    project: Project,
    model: str | None,
    force: bool,
    device: str,
    progress: Progress = no_progress,
    why: str | None = None,
) -> PromoteResult:
    """Make a model production's, if it passes the gate."""
    from train.evaluate import promote

    with writing(project, "models promote", views=False):
        return promote.run(project, model, force, device, progress, why)
