"""`curate anomaly`: measure how unusual each image is."""

from __future__ import annotations

from curate.index import sync
from curate.index.dataset import Index
from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project
from curate.select import anomaly_table
from curate.select.anomaly_table import AnomalyReport


def run(project: Project, encoder: str | None = None, progress: Progress = no_progress) -> AnomalyReport:
    """Score all images, after capturing edits of the App, whose labels count."""
    with writing(project, "anomaly"):
        index = Index(project)
        sync.capture_app_edits(index)
        return anomaly_table.run(index, encoder, progress)
