"""Tasks: what is sent of an image, and what of it is on the server already.

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


def held(desk: LabelStudioProject, batch: str | None = None) -> Iterator[ServerTask]:
    """The tasks of a batch, or all, oldest first."""
    only = [equal("data.batch", batch)] if batch is not None else []
    for one in listed(desk, only, "task_only", "id,data,overlap"):
        if batch is None or one["data"].get("batch") == batch:  # a filter that the server misreads gives everything
            yield ServerTask(int(one["id"]), one["data"], one["overlap"])


def unfinished(desk: LabelStudioProject) -> Iterator[ServerTask]:
    """The tasks of all batches that wait for somebody."""
    for one in listed(desk, [_number("total_annotations", 0)], "task_only", "id,data"):
        yield ServerTask(int(one["id"]), one["data"])


def count(desk: LabelStudioProject, batch: str) -> int:
    """How many tasks of a batch there are, doubles too."""
    return int(_page(desk, [equal("data.batch", batch)], "task_only", "id", 1)["total"])


def untouched(desk: LabelStudioProject, ids: Iterable[int]) -> set[int]:
    """Return the tasks that nobody has annotated, skipped or begun."""
    found: set[int] = set()
    for chunk in chunks(ids, LOOKED_UP):
        filters = [among(chunk)]
        for one in listed(desk, filters, "all", FIELDS):
            worked_on = one["total_annotations"] or one["cancelled_annotations"] or one["draft_exists"]
            found |= set() if worked_on else {int(one["id"])}
    return found & set(ids)


def delete(desk: LabelStudioProject, ids: Sequence[int]) -> set[int]:
    """Delete those that are untouched; the server looks once more while it does so. What it deleted."""
    gone: set[int] = set()
    for chunk in chunks(sorted(untouched(desk, list(ids))), LOOKED_UP):
        unworked = [_number("total_annotations", 0), _number("cancelled_annotations", 0), _drafts(False)]
        _act(desk, "delete_tasks", [among(chunk), *unworked])
        gone |= set(chunk) - {one.id for one in _still(desk, chunk)}
    return gone


def drop_suggestions(desk: LabelStudioProject, ids: Sequence[int]) -> None:
    for chunk in chunks(ids, LOOKED_UP):
        _act(desk, "delete_tasks_predictions", [among(chunk)])


def changed(desk: LabelStudioProject, since: str) -> bool:
    """True if any task was touched after that moment."""
    return int(_page(desk, [after("updated_at", since)], "task_only", "id", 1)["total"]) > 0


def newest(desk: LabelStudioProject) -> str | None:
    """When a task was last touched, by the server's clock."""
    found = _page(desk, [], "task_only", "id,updated_at", 1, "-tasks:updated_at")["tasks"]
    return str(found[0]["updated_at"]) if found else None


def drafts(desk: LabelStudioProject) -> int:
    """How many tasks somebody has begun and not submitted."""
    answer = _page(desk, [_drafts(True)], "task_only", "id", 1)
    return int(answer["total"])


def _still(desk: LabelStudioProject, ids: Sequence[int]) -> Iterator[ServerTask]:
    wanted = set(ids)
    for one in listed(desk, [among(ids)], "task_only", "id,data"):
        if int(one["id"]) in wanted:
            yield ServerTask(int(one["id"]), one["data"])


# --- the server's filters ---------------------------------------------------------------------------------------------


def listed(
    desk: LabelStudioProject, filters: Sequence[Mapping[str, Any]], fields: str, include: str, page: int = PAGE
) -> Iterator[dict[str, Any]]:
    """Tasks by rising id. Each page asks for what comes after the last id: tasks may come and go meanwhile."""
    last = 0
    while True:
        found = _page(desk, [*filters, _number("id", last, "greater")], fields, include, page)["tasks"]
        new = [one for one in found if int(one["id"]) > last]
        yield from new
        if len(found) < page or not new:
            return
        last = int(new[-1]["id"])


def _page(
    desk: LabelStudioProject,
    filters: Sequence[Mapping[str, Any]],
    fields: str,
    include: str,
    size: int,
    order: str = "tasks:id",
) -> Mapping[str, Any]:
    query = {"filters": {"conjunction": "and", "items": [*filters]}, "ordering": [order]}
    asked = {"project": desk.id, "fields": fields, "include": include, "page_size": size, "query": json.dumps(query)}
    answer: Mapping[str, Any] = desk.studio.get("/api/tasks", **asked)
    return answer


def _act(desk: LabelStudioProject, action: str, filters: Sequence[Mapping[str, Any]]) -> None:
    chosen = {"all": True, "excluded": []}
    query = {"filters": {"conjunction": "and", "items": [*filters]}, "selectedItems": chosen}
    desk.studio.post(f"/api/dm/actions?id={action}&project={desk.id}", query)


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
