"""`curate duplicates`: find pictures that are nearly the same."""

from __future__ import annotations

from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project
from curate.vectors import duplicates
from curate.vectors.duplicates import DuplicatesReport


def run(
    project: Project,
    near: float | None = None,
    encoder: str | None = None,
    join: bool = False,
    progress: Progress = no_progress,
) -> DuplicatesReport:
    """Search, and with `join` make each cluster one group."""
    with writing(project, "duplicates"):
        return duplicates.run(project, near, encoder, join, progress)
