"""The index is lost: everything is there again."""

from __future__ import annotations

from curate.index import sync
from curate.index.dataset import Index
from curate.project import Project
from labeling import pull, push
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.faults.helpers import GOOD, answer, draw_in_app, drawn
from tests.labeling.helpers import labelled, labels, pushed, task_of, unlabelled


def test_after_the_database_is_lost_everything_is_there_again(indexed: Project, studio: Studio) -> None:
    done, edited, waiting, back = ids = unlabelled(indexed)[:4]
    pushed(indexed, studio, ids)
    answer(indexed, studio, done, drawn())
    pull.run(indexed, studio)
    ls_helpers.annotate(studio, task_of(indexed, studio, waiting), GOOD)
    push.withdraw(indexed, studio, push.PushRequest())
    draw_in_app(indexed, edited, "hole")
    draw_in_app(indexed, labelled(indexed)[0], "hole")
    pull.run(indexed, studio)
    ls_helpers.withdraw(studio, ls_helpers.task(studio, task_of(indexed, studio, waiting))["annotations"][0]["id"])
    pull.run(indexed, studio)
    before = labels(indexed)
    assert (before[waiting].status, before[back].status) == ("queued", "unlabelled")
    index = Index(indexed)
    index.fo.delete_dataset(index.dataset.name)
    sync.run(indexed)
    pull.rebuild(indexed)
    assert {id: one.digest for id, one in labels(indexed).items()} == {id: one.digest for id, one in before.items()}
    assert pull.run(indexed, studio, full=True).annotations == 0
    assert {id: one.digest for id, one in labels(indexed).items()} == {id: one.digest for id, one in before.items()}
