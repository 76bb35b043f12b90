"""`curate embed`: compute the vectors that are missing."""

from __future__ import annotations

from typing import Any

from curate.ops._lock import writing
from curate.project import Project
from curate.vectors import run as embedding
from curate.vectors.run import EmbedReport


def run(project: Project, *given: Any, command: str = "embed", **options: Any) -> EmbedReport:
    """Embed as `curate.vectors.run.run` does, with the same arguments."""
    with writing(project, command, views=False):
        return embedding.run(project, *given, **options)
