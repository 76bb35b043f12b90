"""`curate push`: send a round to Label Studio, or take it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project

if TYPE_CHECKING:
    from labeling.client import Studio
    from labeling.push import PushReport, PushRequest


def run(
    project: Project, studio: Studio, request: PushRequest, progress: Progress = no_progress, command: str = "push"
) -> PushReport:
    """Make a task of each image of the round."""
    from labeling import push

    with writing(project, command):
        return push.run(project, studio, request, progress)


def withdraw(project: Project, studio: Studio, request: PushRequest) -> dict[str, Any]:
    """Take back the tasks that nobody has touched."""
    from labeling import push

    with writing(project, "push"):
        return push.withdraw(project, studio, request)
