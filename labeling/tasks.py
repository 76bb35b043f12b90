"""Label Studio tasks: those to send, and those that the server holds already.

A task's identity is a key in its data, never its id: Label Studio gives ids of deleted tasks to new ones. The key of a
pick is its content id, that of a review holds the label under review, too: once confirmed or changed, it is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.index.dataset import chunks
from labeling.remote_project import LabelStudioProject

PAGE = 1000
LOOKED_UP = 500  # ids in one filter
FIELDS = "id,data,total_annotations,cancelled_annotations,draft_exists"


@dataclass(frozen=True)
class LabelTask:
    """One task as we want it on the server. `suggestions`: Label Studio predictions, none for an audit pick."""

    key: str
    data: dict[str, Any]
    suggestions: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"data": self.data, "predictions": list(self.suggestions)}


@dataclass(frozen=True)
class ServerTask:
    """A task that the server holds."""

    id: int
    data: Mapping[str, Any] = field(default_factory=dict)
    overlap: int = 1

    @property
    def key(self) -> str:
        return str(self.data.get("key"))


def held(ls_project: LabelStudioProject, batch: str | None = None) -> Iterator[ServerTask]:
    """The tasks of a batch, or all, oldest first."""
    only = [equal("data.batch", batch)] if batch is not None else []
    for row in listed(ls_project, only, "task_only", "id,data,overlap"):
        if batch is None or row["data"].get("batch") == batch:  # a filter that the server misreads gives everything
            yield ServerTask(int(row["id"]), row["data"], row["overlap"])


def unfinished(ls_project: LabelStudioProject) -> Iterator[ServerTask]:
    """The tasks of all batches that wait for somebody."""
    for row in listed(ls_project, [_number("total_annotations", 0)], "task_only", "id,data"):
        yield ServerTask(int(row["id"]), row["data"])


def count(ls_project: LabelStudioProject, batch: str) -> int:
    """Number of tasks of a batch, doubles included."""
    return int(_page(ls_project, [equal("data.batch", batch)], "task_only", "id", 1)["total"])


def untouched(ls_project: LabelStudioProject, ids: Iterable[int]) -> set[int]:
    """Return the tasks that nobody has annotated, skipped or begun."""
    free: set[int] = set()
    for chunk in chunks(ids, LOOKED_UP):
        filters = [among(chunk)]
        for row in listed(ls_project, filters, "all", FIELDS):
            worked_on = row["total_annotations"] or row["cancelled_annotations"] or row["draft_exists"]
            free |= set() if worked_on else {int(row["id"])}
    return free & set(ids)


def delete(ls_project: LabelStudioProject, ids: Sequence[int]) -> set[int]:
    """Delete untouched tasks (the server checks again while it deletes); return the ids of those that are gone."""
    gone: set[int] = set()
    for chunk in chunks(sorted(untouched(ls_project, list(ids))), LOOKED_UP):
        unworked = [_number("total_annotations", 0), _number("cancelled_annotations", 0), _drafts(False)]
        _act(ls_project, "delete_tasks", [among(chunk), *unworked])
        gone |= set(chunk) - {task.id for task in _still(ls_project, chunk)}
    return gone


def drop_suggestions(ls_project: LabelStudioProject, ids: Sequence[int]) -> None:
    for chunk in chunks(ids, LOOKED_UP):
        _act(ls_project, "delete_tasks_predictions", [among(chunk)])


def changed(ls_project: LabelStudioProject, since: str) -> bool:
    """True if any task was touched after that moment."""
    return int(_page(ls_project, [after("updated_at", since)], "task_only", "id", 1)["total"]) > 0


def newest(ls_project: LabelStudioProject) -> str | None:
    """Time of the newest change to any task, by the server's clock."""
    rows = _page(ls_project, [], "task_only", "id,updated_at", 1, "-tasks:updated_at")["tasks"]
    return str(rows[0]["updated_at"]) if rows else None


def drafts(ls_project: LabelStudioProject) -> int:
    """Number of tasks that somebody has begun and not submitted."""
    answer = _page(ls_project, [_drafts(True)], "task_only", "id", 1)
    return int(answer["total"])


def _still(ls_project: LabelStudioProject, ids: Sequence[int]) -> Iterator[ServerTask]:
    wanted = set(ids)
    for row in listed(ls_project, [among(ids)], "task_only", "id,data"):
        if int(row["id"]) in wanted:
            yield ServerTask(int(row["id"]), row["data"])


# --- the server's filters ---------------------------------------------------------------------------------------------


def listed(
    ls_project: LabelStudioProject, filters: Sequence[Mapping[str, Any]], fields: str, include: str, page: int = PAGE
) -> Iterator[dict[str, Any]]:
    """Tasks by rising id. Each page asks for what comes after the last id: tasks may come and go meanwhile."""
    last = 0
    while True:
        rows = _page(ls_project, [*filters, _number("id", last, "greater")], fields, include, page)["tasks"]
        new = [row for row in rows if int(row["id"]) > last]
        yield from new
        if len(rows) < page or not new:
            return
        last = int(new[-1]["id"])


def _page(
    ls_project: LabelStudioProject,
    filters: Sequence[Mapping[str, Any]],
    fields: str,
    include: str,
    size: int,
    order: str = "tasks:id",
) -> Mapping[str, Any]:
    query = {"filters": {"conjunction": "and", "items": [*filters]}, "ordering": [order]}
    params = {
        "project": ls_project.id,
        "fields": fields,
        "include": include,
        "page_size": size,
        "query": json.dumps(query),
    }
    answer: Mapping[str, Any] = ls_project.studio.get("/api/tasks/", **params)
    return answer


def _act(ls_project: LabelStudioProject, action: str, filters: Sequence[Mapping[str, Any]]) -> None:
    chosen = {"all": True, "excluded": []}
    query = {"filters": {"conjunction": "and", "items": [*filters]}, "selectedItems": chosen}
    ls_project.studio.post(f"/api/dm/actions/?id={action}&project={ls_project.id}", query)


def equal(name: str, value: str) -> dict[str, Any]:
    return _filter(name, "equal", "String", value)


def after(name: str, moment: str) -> dict[str, Any]:
    return _filter(name, "greater", "Datetime", moment)


def among(ids: Sequence[int]) -> dict[str, Any]:
    return _filter("id", "in_list", "List", list(ids))


def _number(name: str, value: int, operator: str = "equal") -> dict[str, Any]:
    return _filter(name, operator, "Number", value)


def _drafts(there: bool) -> dict[str, Any]:
    return _filter("draft_exists", "equal", "Boolean", there)


def _filter(name: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{name}", "operator": operator, "type": kind, "value": value}
