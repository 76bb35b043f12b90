"""`curate index`: make the index equal to what is on disk and in the label log."""

from __future__ import annotations

from curate.index import sync
from curate.index.sync import IndexReport
from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project


def run(
    project: Project,
    progress: Progress = no_progress,
    *,
    reread: bool = False,
    rebuild: bool = False,
    folds: int | None = None,
    repeats: int = 3,
    command: str = "index",
) -> tuple[IndexReport, int]:
    """Index, and with `folds` draw cross-validation folds; the report, and the number of groups in folds."""
    with writing(project, command):
        report = sync.run(project, progress, reread=reread, rebuild=rebuild)
        return report, sync.draw_folds(project, folds, repeats) if folds else 0
