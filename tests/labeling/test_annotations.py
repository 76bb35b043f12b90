"""Tests of the annotation: order in time, and the way into the label log and back."""

from __future__ import annotations

import json
import random

import pytest

from curate.data import Label
from curate.labels.log import Entry
from labeling.annotations import Annotation, newest

CLEAN, SIZE = Label("labelled"), (12, 10)


def annotation(who: str, updated: str, lead_time: float = 1.0) -> Annotation:
    return Annotation("a", who, CLEAN, SIZE, updated, lead_time)


def test_the_newest_of_a_person_counts_whatever_the_order_and_the_way_of_writing_times() -> None:
    times = ["2026-03-01T10:00:00.5Z", "2026-03-01T10:00:00Z", "2026-03-01T11:30:00+02:00", "", "2026-03-01T09:59:00"]
    annotations = [annotation("ann", updated, float(n)) for n, updated in enumerate(times)]
    other = annotation("bob", "2020-01-01T00:00:00Z")
    for seed in range(5):
        shuffled = random.Random(seed).sample([*annotations, other], 6)
        assert newest(shuffled) == [annotations[0], other]


def test_of_annotations_at_the_same_time_the_last_one_counts() -> None:
    first, last = (annotation("ann", "2026-03-01T10:00:00Z", seconds) for seconds in (1.0, 2.0))
    assert newest([first, last]) == [last]


WHOLE = Annotation(
    "a",
    "ann",
    CLEAN,
    SIZE,
    "2026-03-01T10:00:00.5Z",
    7.5,
    "changed",
    3,
    "0a1b",
    "c0ffee",
    "5@2026-03-01",
    "9@2026-02-28",
)


@pytest.mark.parametrize(
    "logged", [WHOLE, Annotation("a", "ann", CLEAN, SIZE, "2026-03-01T10:00:00Z", uid="1@x", task="2@y")]
)
def test_the_log_keeps_all_of_it(logged: Annotation) -> None:
    entry = logged.to_entry(changed={"added": ["crack"]})
    assert (entry.id, entry.who, entry.at, entry.extra["changed"]) == ("a", "ann", logged.at, {"added": ["crack"]})
    line = json.loads(json.dumps(entry.to_json()))
    assert Annotation.from_entry(Entry.from_json(line), SIZE) == logged


def test_an_entry_of_an_older_log_is_read() -> None:
    extra = {"annotation": "5@x", "updated": "2026-03-01T10:00:00Z"}
    old = Annotation.from_entry(Entry("a", CLEAN, "label-studio", "ann", "2026-03-01T10:00:00Z", extra=extra), SIZE)
    assert (old.origin, old.round, old.lead_time, old.uid) == ("manual", None, None, "5@x")
