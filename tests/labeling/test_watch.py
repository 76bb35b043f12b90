"""Watching a real server, by polling and by a webhook; and the annotators' report over what came."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError

import pytest

from curate.files import writer_lock
from curate.project import Project
from labeling import annotators, pull, results, watch
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import labels, ls_project_of, pushed, task_of, unlabelled
from tests.labeling.test_push_pull import SIZE, drawn

PATIENCE = 60.0


class Watched:
    """A watch in a thread of its own, and what it told."""

    def __init__(self) -> None:
        self.reports: list[pull.PullReport] = []
        self.warnings: list[str] = []
        self.told, self.ended, self.wake = threading.Event(), threading.Event(), threading.Event()

    def tell(self, report: pull.PullReport) -> None:
        self.reports.append(report)
        self.told.set()

    def next(self) -> pull.PullReport:
        assert self.told.wait(PATIENCE), self.warnings
        self.told.clear()
        return self.reports[-1]


@contextmanager
def watching(project: Project, studio: Studio, every: float) -> Iterator[Watched]:
    seen = Watched()
    arguments = (project, studio, every, seen.tell, seen.warnings.append, seen.wake, seen.ended.is_set)
    thread = threading.Thread(target=watch.run, args=arguments)
    thread.start()
    try:
        yield seen
    finally:
        seen.ended.set()
        seen.wake.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_what_is_submitted_is_pulled_soon_even_after_a_busy_spell(indexed: Project, studio: Studio) -> None:
    first, second = ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    with watching(indexed, studio, 0.5) as seen:
        assert seen.next().annotations == 0
        ls_helpers.annotate(studio, task_of(indexed, studio, first), results.of_label(drawn(), SIZE))
        assert seen.next().annotations == 1
        with writer_lock(indexed.work, "another command"):
            ls_helpers.annotate(studio, task_of(indexed, studio, second), results.of_label(drawn("hole"), SIZE))
            while not seen.warnings:
                threading.Event().wait(0.1)
        assert seen.next().annotations == 1
    assert "another command" in seen.warnings[0]
    assert labels(indexed)[second].digest == drawn("hole").digest


def test_a_webhook_wakes_it_and_only_label_studio_may(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:1]
    pushed(indexed, studio, ids)
    ls_project = ls_project_of(indexed, studio)
    with watching(indexed, studio, 3600) as seen, watch.webhook(ls_project, "127.0.0.1", 0, seen.wake) as url:
        seen.next()
        with pytest.raises(HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(url, b"{}", {watch.HEADER: "wrong"}), timeout=10)
        assert len(studio.get("/api/webhooks/", project=ls_project.id)) == 1
        ls_helpers.annotate(studio, task_of(indexed, studio, ids[0]), results.of_label(drawn(), SIZE))
        assert seen.next().annotations == 1, "an hour before the next poll"
    assert not studio.get("/api/webhooks/", project=ls_project.id), "it is taken back"


def test_the_report_counts_what_stands_and_names_who(indexed: Project, studio: Studio) -> None:
    one, two, three = ids = unlabelled(indexed)[:3]
    pushed(indexed, studio, ids)
    anna, ben = ls_helpers.annotator(studio, "anna"), ls_helpers.annotator(studio, "ben")
    gone = ls_helpers.annotate(anna, task_of(indexed, studio, three), results.of_label(drawn(), SIZE), lead_time=100)
    changed = ls_helpers.annotate(ben, task_of(indexed, studio, one), results.of_label(drawn("hole"), SIZE))
    pull.run(indexed, studio)
    ls_helpers.withdraw(anna, gone["id"])
    ls_helpers.change(ben, changed["id"], results.of_label(drawn(), SIZE), lead_time=20)
    for id in (one, two):
        ls_helpers.annotate(anna, task_of(indexed, studio, id), results.of_label(drawn(), SIZE), lead_time=10)
    pull.run(indexed, studio)
    found = annotators.report(annotators.logged(indexed), indexed.active_classes)
    assert (found["images"], found["images_with_several"]) == (2, 1)
    assert found["annotators"][anna.me.email]["lead_time_median"] == 10
    assert found["annotators"][ben.me.email]["images"] == 1
    assert found["classes"]["crack"]["dice"] == 1.0
    assert annotators.logged(indexed, 2) == []
