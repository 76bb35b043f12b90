"""The frame of every operation that changes the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from curate.files import writer_lock
from curate.index import app_views
from curate.project import Project

Progress = Callable[[str, int, int], None]  # stage, done now, total


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


@contextmanager
def writing(project: Project, command: str, views: bool = True) -> Iterator[None]:
    """Hold the project's writer lock; afterwards bring the App's colours, sidebar and saved views up to date."""
    with writer_lock(project.work, f"curate {command}"):
        yield
        if views:
            app_views.arrange(project)
