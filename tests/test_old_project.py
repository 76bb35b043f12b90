"""A project made by version 0.1.0 still opens: same labels, same rounds, and every strategy picks the same images.

`tests/fixtures/project-0.1.0/backup.tar.gz` was written by that version: `curate demo --images 60`, index, embed, a
round of 8, two labels in the App, one epoch of `simple-cnn`, a second round of 8, `curate backup`. `expected.json`
holds the samples as the index had them, and what `curate select --budget 6 --strategy NAME --dry-run` picked then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curate.admin import backup, status
from curate.demo import plant
from curate.index import rounds, sync
from curate.index.dataset import Index
from curate.project import Project, load
from curate.select import run as selecting
from curate.vectors import run as embedding
from train import store

FIXTURE = Path(__file__).parent / "fixtures" / "project-0.1.0"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def old(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, restored from its archive; its images are drawn again."""
    home = tmp_path_factory.mktemp("old")
    plant.draw(home / "data", 60, 0)
    roots = {name: str(home / "data" / name) for name in ("library", "plant")}
    backup.restore(FIXTURE / "backup.tar.gz", home / "demo", roots, force=False)
    project = load(home / "demo")
    yield project
    Index(project).dataset.delete()


def samples(project: Project) -> dict[str, list[Any]]:
    index = Index(project)
    names = ["content_id", "status", "status_reason", "split", "group", "stratum", "source", "tags", "label_origin"]
    rows = {row[0]: list(row[1:]) for row in zip(*index.dataset.values(names), strict=True)}
    return json.loads(json.dumps({item.id: [item.label.to_json(), *rows[item.id]] for item in index.items()}))


def test_labels_and_samples_are_the_same(old: Project) -> None:
    assert samples(old) == EXPECTED["samples"]


def test_rounds_models_and_status_can_be_read(old: Project) -> None:
    first, second = rounds.every(old.work)
    assert [len(first.picks()), len(second.picks())] == [8, 8]
    assert {str(row["id"]) for row in first.picks()} <= EXPECTED["samples"].keys()
    assert [model.key for model in store.all_models(old)] == ["cbbdb77c0acabe19d93c23f4"] == [store.current(old)]
    assert status.summarise(old)["by_status"] == {"unlabelled": 42, "labelled": 17, "disputed": 1}


def test_indexing_changes_nothing_and_every_strategy_picks_the_same(old: Project) -> None:
    report = sync.run(old)
    assert (report.added, report.updated) == (0, 0)
    assert samples(old) == EXPECTED["samples"]
    embedding.run(old, "texture", workers=0)
    for name, picks in EXPECTED["picks"].items():
        request = replace(selecting.request_of(old, "6"), strategy=name)
        chosen = selecting.run(old, request, dry=True)
        assert [[row["id"], row["slot"]] for row in chosen.picks] == picks, name
