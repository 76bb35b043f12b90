"""`curate predict`: scores and regions of the images that a model has not seen yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project

if TYPE_CHECKING:
    from train.predict.run import PredictReport


def run(
    project: Project,
    model: str | None = None,
    view: str | None = None,
    progress: Progress = no_progress,
    *,
    command: str = "predict",
    **options: Any,
) -> PredictReport:
    """Predict as `train.predict.run.run` does, with the same options."""
    from train.predict import run as predicting

    with writing(project, command):
        return predicting.run(project, model, view, progress, **options)
