"""`curate status`: what the index holds, and what to run next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from curate import rounds, tables
from curate.data import SPLITS, STATUSES
from curate.index import Index
from curate.ledger import MISSING, QUARANTINED, Ledger
from curate.project import Project


def summarise(project: Project) -> dict[str, Any]:
    """Numbers of images, as `curate status --json` prints them."""
    index = Index(project)
    members = index.members().values()
    return {
        "project": project.name,
        "samples": index.count(),
        "by_source": _counts(member.source for member in members),
        "by_split": _counts(index.dataset.values("split"), SPLITS),
        "by_status": _counts((member.status for member in members), STATUSES),
        "by_class": _by_class(project, members),
        **_files(index),
        "conflicts": len(index.conflicts()),
        "embedded": bool(tables.listed(project.work / "vectors")),
        "round": _waiting(project),
    }


def _counts(values: Any, order: tuple[str, ...] = ()) -> dict[str, int]:
    """In the order of the noun; images without a split count as `none`."""
    counts = Counter(value or "none" for value in values)
    known = [name for name in order if name in counts]
    return {name: counts[name] for name in [*known, *sorted(counts.keys() - set(known))]}


def _by_class(project: Project, members: Any) -> dict[str, int]:
    counts = Counter(name for member in members for name in member.classes)
    clean = sum(member.status == "labelled" and not member.classes for member in members)
    names = [*project.class_names, *sorted(counts.keys() - set(project.class_names))]
    # A class may bear the name itself; it is not what we call clean.
    return {name: counts[name] for name in names} | {"(clean)" if "clean" in names else "clean": clean}


def _files(index: Index) -> dict[str, int]:
    with Ledger(index.project.work / "files.sqlite") as table:
        missing = len(table.seen(MISSING)) + index.count(missing=True)
        return {"quarantined": len(table.seen(QUARANTINED)), "missing": missing, "duplicates": table.duplicates()}


def next_step(summary: dict[str, Any], commands: Collection[str]) -> str:
    """The one command that helps most now, of those that this version has."""
    flag = f" --project {summary['project']}"
    if not summary["samples"]:
        return "curate index" + flag
    if summary["conflicts"]:
        return f"curate resolve{flag}  (copies with different labels: {summary['conflicts']})"
    if summary["by_status"].get("queued"):
        return f"curate pull{flag}  (in the annotators' queue: {summary['by_status']['queued']})"
    if "select" in commands and summary["by_status"].get("unlabelled"):
        return _towards_a_round(summary) + flag
    return "curate app" + flag


def _waiting(project: Project) -> str | None:
    """The newest round, while nobody has begun to work on it."""
    newest = rounds.latest(project.work)
    return newest.name if newest and not newest.touched else None


def _towards_a_round(summary: dict[str, Any]) -> str:
    if not summary["embedded"]:
        return "curate embed"
    if summary["round"]:
        return "curate push"
    return "curate select --budget 500"
