"""Tabs of Label Studio's Data Manager: a batch in its order, and its audit picks alone."""

from __future__ import annotations

from typing import Any

from curate.data import AUDIT
from labeling import tasks
from labeling.desk import Desk

# What serves us and not the people who label: of a task's data, and of what the server tells by itself.
OURS: tuple[str, ...] = (
    "base",
    "suggested",
    "suggested_by",
    "key",
    "order",
    "content_id",
    "title",
    "batch",
    "rank",
    "round",
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
AUDIT_HIDDEN = ("tasks:data.reason", "tasks:data.score")
BESIDE = ("tasks:id", "tasks:annotators", "tasks:cancelled_annotations", "tasks:data.score", "tasks:data.stratum")


def show(desk: Desk, batch: str, with_audit: bool) -> None:
    """Make the tabs of this batch, unless they are there."""
    known = {view["data"].get("title") for view in desk.studio.get("/api/dm/views", project=desk.id)}
    wanted = [(batch, [tasks.equal("data.batch", batch)], HIDDEN)]
    if with_audit:
        both = [tasks.equal("data.batch", batch), tasks.equal("data.slot", AUDIT)]
        wanted.append((f"{batch} {AUDIT}", both, HIDDEN + AUDIT_HIDDEN))
    for title, filters, hidden in wanted:
        if title not in known:
            desk.studio.post("/api/dm/views", {"project": desk.id, "data": _tab(title, filters, hidden)})


def _tab(title: str, filters: list[dict[str, Any]], hidden: tuple[str, ...]) -> dict[str, Any]:
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "filters": {"conjunction": "and", "items": filters},
        "ordering": ["tasks:data.order"],
        "hiddenColumns": {"explore": [*hidden], "labeling": [*hidden, *BESIDE]},
        "gridWidth": 4,
    }
