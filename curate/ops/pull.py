"""`curate pull`: fetch what annotators did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project

if TYPE_CHECKING:
    from labeling.client import Studio
    from labeling.pull import PullReport


def run(
    project: Project, studio: Studio, full: bool = False, progress: Progress = no_progress, command: str = "pull"
) -> PullReport:
    """Fetch what changed since the last pull, or with `full` everything."""
    from labeling import pull

    with writing(project, command):
        return pull.run(project, studio, full, progress)


def adopt(
    project: Project, studio: Studio, number: int, names: Mapping[str, str], progress: Progress = no_progress
) -> PullReport:
    """Fetch from a Label Studio project that somebody else made; `names` maps its classes to ours."""
    from labeling import adopt

    with writing(project, "pull"):
        return adopt.run(project, studio, number, dict(names), progress)


def rebuild(project: Project) -> dict[str, int]:
    """Show every label anew from the label log."""
    from labeling import pull

    with writing(project, "pull"):
        return pull.rebuild(project)
