"""`curate select`: choose a round."""

from __future__ import annotations

from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project
from curate.select import run as selecting
from curate.select.run import SelectRequest, SelectResult


def run(
    project: Project,
    request: SelectRequest,
    progress: Progress = no_progress,
    *,
    dry: bool = False,
    command: str = "select",
) -> SelectResult:
    """Choose and write a round; with `dry` only choose."""
    if dry:
        return selecting.run(project, request, progress, dry=True)
    with writing(project, command):
        return selecting.run(project, request, progress)
