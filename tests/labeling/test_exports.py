"""`curate export --format label_studio`: a real Label Studio takes it, and it reads back to the same labels."""

from __future__ import annotations

import json
from pathlib import Path

from curate.index.dataset import Index
from curate.project import Project
from labeling import results
from labeling.client import Studio
from tests.curate.cli.test_cli import Run, ok, run
from tests.labeling import studio as ls_helpers

__all__ = ["run"]


def test_a_server_imports_what_is_exported(indexed: Project, studio: Studio, tmp_path: Path, run: Run) -> None:
    to = tmp_path / "for label studio"
    report = ok(run("export", to, "--format", "label_studio", "--project", indexed.folder, "--json"))
    tasks = json.loads((to / "tasks.json").read_text())
    items = {item.id: item for item in Index(indexed).items()}
    assert len(tasks) == report["images"] == sum(item.label.status == "labelled" for item in items.values())
    number = ls_helpers.project(studio, "from an export", (to / "label_config.xml").read_text())
    for id in ls_helpers.import_tasks(studio, number, tasks):
        task = ls_helpers.task(studio, id)
        item = items[task["data"]["content_id"]]
        (annotation,) = task["annotations"]
        assert results.label_in(annotation["result"], (item.width, item.height)).digest == item.label.digest
        assert task["data"]["image"].startswith("/data/local-files/?d=images/")
        assert (to / "images" / item.path.name).is_file()
