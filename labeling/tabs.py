"""Tabs of Label Studio's Data Manager: each batch in its order, audit picks among the others."""

from __future__ import annotations

from typing import Any

from curate.data import AUDIT
from labeling import tasks
from labeling.remote_project import LabelStudioProject

# What serves us and not the people who label: of a task's data, and of what the server tells by itself.
OURS: tuple[str, ...] = (
    "base",
    "suggested",
    "suggested_by",
    "hint",
    "key",
    "order",
    "content_id",
    "title",
    "batch",
    "rank",
    "round",
    "slot",
)
THEIRS: tuple[str, ...] = (
    "inner_id",
    "completed_at",
    "annotations_results",
    "annotations_ids",
    "total_predictions",
    "predictions_score",
)
THEIRS += ("predictions_model_versions", "predictions_results", "file_upload", "storage_filename", "created_at")
THEIRS += ("updated_at", "updated_by", "avg_lead_time", "draft_exists")
HIDDEN = (*(f"tasks:data.{name}" for name in OURS), *(f"tasks:{name}" for name in THEIRS))
BESIDE = ("tasks:id", "tasks:annotators", "tasks:cancelled_annotations", "tasks:data.score", "tasks:data.stratum")


def show(ls_project: LabelStudioProject, batch: str) -> None:
    """Make the tab of this batch, unless it is there. Earlier versions showed its audit picks in a tab of their own."""
    there = ls_project.studio.get("/api/dm/views/", project=ls_project.id)
    if batch not in {view["data"].get("title") for view in there}:
        tab = _tab(batch, [tasks.equal("data.batch", batch)])
        ls_project.studio.post("/api/dm/views/", {"project": ls_project.id, "data": tab})
    for view in there:
        if view["data"].get("title") == f"{batch} {AUDIT}":
            ls_project.studio.ask("DELETE", f"/api/dm/views/{view['id']}/")


def _tab(title: str, filters: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "filters": {"conjunction": "and", "items": filters},
        "ordering": ["tasks:data.order"],
        "hiddenColumns": {"explore": [*HIDDEN], "labeling": [*HIDDEN, *BESIDE]},
        "gridWidth": 4,
    }
