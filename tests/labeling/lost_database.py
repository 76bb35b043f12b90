"""Push and pull while their MongoDB is killed, run by `faults.test_kills` in a process of its own.

A process talks to one database, and that of the test session must live. Ends with 0 if nothing was lost or doubled.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pymongo
import pytest
from pymongo.errors import ConnectionFailure

from curate.cli import _explained
from curate.index import sync
from curate.project import Project, load
from labeling import client, pull, push, results, tasks
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import history, labels, ls_project_of, round_of, task_of, unlabelled
from tests.labeling.mongod import Mongod
from tests.labeling.test_push_pull import SIZE, drawn

PUSH = ("labeling.push._label_tasks", "labeling.push._store", "labeling.push._mark")
PULL = ("labeling.pull.settle_all", "curate.index.app_edits.show", "curate.index.sync.assign_splits")


def losing(mongod: Mongod, place: str, act: Callable[[], Any]) -> None:
    """The act, for which the database is killed when it first gets to this place."""
    module, _, name = place.rpartition(".")
    real = getattr(sys.modules[module], name)

    def deadly(*arguments: Any, **more: Any) -> Any:
        mongod.kill()
        return real(*arguments, **more)

    with mock.patch(place, deadly), pytest.raises(ConnectionFailure) as caught:
        act()
    assert str(_explained(caught.value)).startswith("lost the database")
    mongod.start()


def one_task_each(project: Project, ids: Sequence[str]) -> None:
    held = [one.data["content_id"] for one in tasks.held(ls_project_of(project, client.connect(project)))]
    assert Counter(held) == Counter(ids), held


def main(project: Project, mongod: Mongod) -> None:
    sync.run(project)
    studio = client.connect(project)
    ids, sent = unlabelled(project)[: 2 * len(PUSH)], list[str]()
    for number, place in enumerate(PUSH, start=1):
        part = ids[2 * number - 2 : 2 * number]
        round_of(project, part, number=number)
        losing(mongod, place, lambda: push.run(project, studio, push.PushRequest()))
        report = push.run(project, studio, push.PushRequest())
        sent += part
        assert report.created + report.existing == 2, (place, report)
        one_task_each(project, sent)
        assert {labels(project)[id].status for id in part} == {"queued"}, place
    for seed, place in enumerate(PULL):
        part = ids[2 * seed : 2 * seed + 2]
        for id in part:
            ls_helpers.annotate(studio, task_of(project, studio, id), results.of_label(drawn("hole", seed), SIZE))
        losing(mongod, place, lambda: pull.run(project, studio))
        pull.run(project, studio)
        for id in part:
            assert labels(project)[id].digest == drawn("hole", seed).digest, place
            assert sum("updated" in entry.extra for entry in history(project, id)) == 1, place
    one_task_each(project, ids)
    assert pull.run(project, studio, full=True).annotations == 0


if __name__ == "__main__":
    made = Mongod(Path(sys.argv[2]))
    os.environ["FIFTYONE_DATABASE_URI"] = made.uri
    pymongo.MongoClient(made.uri).admin.command("ping")
    try:
        main(load(Path(sys.argv[1])), made)
    finally:
        made.kill()
