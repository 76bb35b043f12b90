"""`curate select`: choose a round, or explain a pick."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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


def explain(project: Project, id: str, request: SelectRequest | None = None) -> dict[str, Any]:
    """Return why an image is in a round or in none; without a request by the project's settings."""
    return selecting.explain(project, request or selecting.request_of(project), id)


def explained(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield an explanation in lines, each with its lead."""
    picked = result["picked"]
    yield result["id"][:12], result["path"]
    if picked:
        place = f"round {picked['round']:03d}, number {picked['rank']}, slot {picked['slot']}"
        yield "", f"picked in {place}: {picked['reason']}"
        if result["barred"]:
            yield "", f"it would not be picked again: {result['barred']}"
    else:
        why = "others were worth more" if result["rounds"] else "no round yet"
        yield "", f"not picked: {result['barred'] or why}"
    if result.get("likely"):
        likely = ", ".join(f"{name} {value:.2f}" for name, value in result["likely"].items())
        yield f"predicted by the {result['likely_by']}:", likely
    for what in ("labelled", "exemplar"):
        if near := result.get(f"nearest_{what}"):
            yield f"nearest {what} image:", f"{near['id'][:12]}, similarity {near['similarity']:.3f}"
