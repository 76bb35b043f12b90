"""Annotations that nobody foresaw: unknown classes, damaged regions, tasks of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from curate.index import classes
from curate.project import Project, load
from labeling import pull, push, results, tasks
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.faults.helpers import GOOD, SIZE, answer, drawn, each_logged_once
from tests.labeling.helpers import history, labels, ls_project_of, pushed, round_of, task_of, unlabelled


def test_a_label_that_the_project_does_not_know(indexed: Project, studio: Studio) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    answer(indexed, studio, id, drawn("rust"))
    report = pull.run(indexed, studio)
    assert (report.labelled, report.disputed) == (0, 1)
    assert (labels(indexed)[id].status, labels(indexed)[id].reason) == ("disputed", "unknown-class: rust")
    classes.add(indexed, "rust")
    known = load(indexed.folder)
    pull.run(known, studio, full=True)
    assert labels(known)[id].digest == drawn("rust").digest
    each_logged_once(known, [id])


@pytest.mark.exhaustive
def test_classes_that_are_renamed_on_the_way(indexed: Project, studio: Studio) -> None:
    before, between = ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    answer(indexed, studio, between, drawn("crack", 2))
    pull.run(indexed, studio)
    answer(indexed, studio, before, drawn("crack"))
    classes.rename(indexed, "crack", "fissure")
    project = load(indexed.folder)
    assert pull.run(project, studio, full=True).annotations == 1
    assert pull.run(project, studio, full=True).annotations == 0
    shown = labels(project)
    assert [shown[id].digest for id in ids] == [drawn("fissure").digest, drawn("fissure", 2).digest]
    each_logged_once(project, ids)
    classes.add(project, "crack")  # another thing, under the old name
    again = load(indexed.folder)
    assert pull.run(again, studio, full=True).annotations == 0
    push.run(again, studio, push.PushRequest())
    (old,) = ls_helpers.task(studio, task_of(again, studio, before))["annotations"]
    ls_helpers.change(studio, old["id"], results.of_label(drawn("crack", 5), SIZE))
    pull.run(again, studio)
    assert labels(again)[before].digest == drawn("crack", 5).digest


def brush_of(rle: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": 32,
        "original_height": 24,
        "value": {"format": "rle", "rle": rle, "brushlabels": ["crack"], **more},
    }


def _deep(levels: int) -> Any:
    found: Any = "x"
    for _ in range(levels):
        found = [found]
    return found


BOX = {"id": "b", "type": "rectanglelabels", "from_name": "box", "to_name": "image"}


def box_of(*places: Any) -> dict[str, Any]:
    return BOX | {
        "value": dict(zip(("x", "y", "width", "height"), places, strict=True)) | {"rectanglelabels": ["hole"]}
    }


STORED = {  # the server takes all of it
    "another image's mask": [brush_of(results.of_label(drawn(), SIZE)[0]["value"]["rle"]) | {"original_width": 64}],
    "a mask of another size": [brush_of([0, 0, 0, 64, *GOOD[0]["value"]["rle"][4:]])],
    "cut off": [brush_of(GOOD[0]["value"]["rle"][:20])],
    "empty": [brush_of([])],
    "no list": [brush_of("AAAA")],
    "no bytes": [brush_of([300, -1, "x", None])],
    "no class": [brush_of(GOOD[0]["value"]["rle"], brushlabels=[])],
    "class is an object": [brush_of(GOOD[0]["value"]["rle"], brushlabels=[{"a": 1}])],
    "texts for numbers": [box_of("1", "2", "3", [])],
    "null for numbers": [box_of(None, 1, 2, 2)],
    "huge": [box_of(1e300, 1, 1e308, 2)],
    "outside": [box_of(200, 1, 2, 2)],
    "deep": [BOX | {"value": {"x": _deep(400), "y": 1, "width": 2, "height": 2, "rectanglelabels": _deep(400)}}],
    "deep and twice": [BOX | {"value": {"points": _deep(300), "polygonlabels": ["hole"]}}] * 2,
    "a key point": [BOX | {"type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["hole"]}}],
    "a stub of a polygon": [BOX | {"value": {"points": [[1, 1]], "polygonlabels": ["hole"]}}],
    "NUL": [brush_of(GOOD[0]["value"]["rle"], brushlabels=["\0"])],
}


BENT: dict[str, Any] = {  # Label Studio 1.23 refuses to store it; other versions, imports and storages may not
    "null": None,
    "an object": {},
    "a text": "",
    "a list of null": [None],
    "no value": [{"id": "c", "type": "brushlabels", "from_name": "brush", "to_name": "image"}],
    "a list of texts": ["crack"],
    "not a number": [box_of(float("nan"), 1, 2, 2)],
}


def test_annotations_that_mean_nothing_are_disputed_and_cost_no_other_task(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = unlabelled(indexed)
    odd, fine = ids[:-2], ids[-2:]
    pushed(indexed, studio, ids)
    numbers = {id: task_of(indexed, studio, id) for id in ids}
    for id in fine:
        ls_helpers.annotate(studio, numbers[id], GOOD)
    made = {id: ls_helpers.annotate(studio, numbers[id], GOOD)["id"] for id in odd}
    pull.run(indexed, studio)
    results_stored = [*STORED.items()]
    for start in range(0, len(results_stored), len(odd)):
        part = dict(zip(odd, results_stored[start : start + len(odd)], strict=False))
        for id, (_, result) in part.items():
            ls_helpers.change(studio, made[id], result)
        pull.run(indexed, studio)
        shown = labels(indexed)
        for id, (name, _) in part.items():
            assert shown[id].status == "disputed", name
            assert (shown[id].reason or "").startswith(("unreadable-region", "unknown-class")), name
        assert all(shown[id].digest == drawn().digest for id in fine)


def test_results_of_no_known_form_are_disputed(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake in one place: what the server sent is bent before we read it."""
    ids = unlabelled(indexed)[: len(BENT) + 1]
    pushed(indexed, studio, ids)
    suggestion = ls_helpers.task(studio, task_of(indexed, studio, ids[0]))["id"]
    for id in ids:
        answer(indexed, studio, id, drawn())
    real, bent = tasks.listed, dict(zip(ids, BENT.items(), strict=False))

    def listed(*arguments: Any, **more: Any) -> Iterator[dict[str, Any]]:
        for task in real(*arguments, **more):
            for one in task.get("annotations", ()):
                if task["data"]["content_id"] in bent:
                    one["result"] = bent[task["data"]["content_id"]][1]
                    one["parent_prediction"] = suggestion
            yield task

    monkeypatch.setattr(tasks, "listed", listed)
    pull.run(indexed, studio)
    shown = labels(indexed)
    assert {name: shown[id].status for id, (name, _) in bent.items()} == dict.fromkeys(BENT, "disputed")
    assert shown[ids[-1]].digest == drawn().digest


@pytest.mark.exhaustive
def test_tasks_that_others_put_into_our_project(indexed: Project, studio: Studio) -> None:
    id, other = unlabelled(indexed)[:2]
    pushed(indexed, studio, [id])
    number = ls_project_of(indexed, studio).id
    strange: list[Any] = [None, 5, ["x"], {"a": [1]}, "nobody", "", True]
    data = [{"image": "/a.png", "content_id": one, "batch": "round 001"} for one in strange] + [{"image": "/b.png"}]
    for task in ls_helpers.import_tasks(studio, number, [{"data": one} for one in data]):
        ls_helpers.annotate(studio, task, GOOD)
    (theirs,) = ls_helpers.import_tasks(
        studio, number, [{"data": {"image": "/c.png", "content_id": other, "base": [1]}}]
    )
    ls_helpers.annotate(studio, theirs, results.of_label(drawn("hole", 2), SIZE))
    report = pull.run(indexed, studio)
    assert (report.strangers, report.annotations) == (len(data), 1)
    assert labels(indexed)[other].digest == drawn("hole", 2).digest
    assert push.run(indexed, studio, push.PushRequest()).existing == 1
    assert push.withdraw(indexed, studio, push.PushRequest())["withdrawn"] == 1
    assert labels(indexed)[id].status == "unlabelled"


@pytest.mark.exhaustive
def test_ids_that_are_used_again_are_no_old_acquaintances(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    old = {id: (task_of(indexed, studio, id), answer(indexed, studio, id, drawn())["id"]) for id in ids}
    pull.run(indexed, studio)
    for number, _ in old.values():
        studio.ask("DELETE", f"/api/tasks/{number}/")
    assert pull.run(indexed, studio, full=True).annotations == 0
    assert {labels(indexed)[id].digest for id in ids} == {drawn().digest}, "with its task a label does not go"
    new = unlabelled(indexed)[0]
    round_of(indexed, [new], number=2)
    push.run(indexed, studio, push.PushRequest())
    made = answer(indexed, studio, new, drawn("hole", 4))
    again = {task_of(indexed, studio, new), made["id"]} & {number for pair in old.values() for number in pair}
    pull.run(indexed, studio)
    assert labels(indexed)[new].digest == drawn("hole", 4).digest, f"ids used again: {again}"
    assert {labels(indexed)[id].digest for id in ids} == {drawn().digest}


@pytest.mark.exhaustive
def test_one_of_two_annotators_takes_theirs_back_and_one_is_edited_by_another(indexed: Project, studio: Studio) -> None:
    shared, edited = ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    anna, ben = ls_helpers.annotator(studio, "anna"), ls_helpers.annotator(studio, "ben")
    first = answer(indexed, anna, shared, drawn())
    answer(indexed, ben, shared, drawn("hole", 5))
    theirs = answer(indexed, anna, edited, drawn())
    pull.run(indexed, studio)
    assert labels(indexed)[shared].status == "disputed"
    ls_helpers.withdraw(studio, first["id"])
    ls_helpers.change(ben, theirs["id"], results.of_label(drawn("hole", 6), SIZE))
    report = pull.run(indexed, studio)
    assert (report.annotations, report.deleted) == (1, 1)
    assert labels(indexed)[shared].digest == drawn("hole", 5).digest
    assert labels(indexed)[edited].digest == drawn("hole", 6).digest
    assert [one.label.digest for one in history(indexed, edited)] == [drawn().digest, drawn("hole", 6).digest]
