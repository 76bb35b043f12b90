"""The schema version of a project's `work/`: a newer tool migrates it, an older one refuses."""

from __future__ import annotations

import json
from collections.abc import Callable

from curate import __version__, files
from curate.errors import CurateError
from curate.project import Project

SCHEMA = 1
# version -> what brings a project from that version to the next
MIGRATIONS: dict[int, Callable[[Project], None]] = {}


def check(version: int, what: str) -> None:
    if version > SCHEMA:
        raise CurateError(
            f"{what} was written by a newer curate (state schema {version}; this one, {__version__}, knows {SCHEMA}). "
            "Update curate: pip install --upgrade steel-curate"
        )


def ensure(project: Project) -> None:
    """Bring the project's state to this version, a step at a time. The caller holds the writer lock."""
    version = read(project)
    check(version, str(project.work))
    while version < SCHEMA:
        if version in MIGRATIONS:
            MIGRATIONS[version](project)
        version += 1
        _write(project, version)


def read(project: Project) -> int:
    """The project's schema; a project without any state is of today's."""
    file = project.work / "state.json"
    if not file.exists():
        _write(project, SCHEMA)
        return SCHEMA
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["schema"])
    except (ValueError, KeyError, TypeError):
        raise CurateError(f'{file} is damaged; it should hold {{"schema": {SCHEMA}}}') from None


def _write(project: Project, version: int) -> None:
    files.write_json(project.work / "state.json", {"schema": version, "tool": __version__})
