"""The schema version of a project's `work/`: a newer tool migrates it, an older one refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from curate import __version__, files
from curate.errors import CurateError
from curate.project import Project

SCHEMA = 1
# version -> the function that brings a project from that version to the next
MIGRATIONS: dict[int, Callable[[Project], None]] = {}


def check(version: int, what: str) -> None:
    """Raise CurateError if `what`, a folder or a backup, has a newer schema than this tool knows."""
    if version > SCHEMA:
        raise CurateError(
            f"{what} was written by a newer curate (state schema {version}; this one, {__version__}, knows {SCHEMA}). "
            "Update curate: pip install --upgrade steel-curate"
        )


def ensure(project: Project) -> None:
    """Bring the project's state to this version, a step at a time. The caller holds the writer lock."""
    require(project)
    version = int(recorded(project).get("schema", SCHEMA))
    while version < SCHEMA:
        if version in MIGRATIONS:
            MIGRATIONS[version](project)
        version += 1
        record(project, schema=version)
    if not recorded(project):
        record(project, schema=SCHEMA)


def require(project: Project) -> None:
    """Raise CurateError if a newer tool wrote the project's state; every command calls this."""
    check(int(recorded(project).get("schema", SCHEMA)), str(project.work))


def recorded(project: Project) -> dict[str, Any]:
    """Return the recorded schema, tool, dataset and folder; empty before the first command."""
    file = project.work / "state.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return {**values, "schema": int(values["schema"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise CurateError(f'{file} is damaged; it should hold {{"schema": {SCHEMA}}}') from None


def record(project: Project, **values: Any) -> None:
    """Add these values to the project's recorded state."""
    before = recorded(project)
    after = {"schema": SCHEMA} | before | {"tool": __version__} | values
    if after != before:
        files.write_json(project.work / "state.json", after)
