"""Push and pull against the real server: what is sent, what comes back, and that nothing is lost or doubled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curate.data import Label, make_defect
from curate.errors import CurateError
from curate.index import predictions, sync
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.labels.log import lead_times
from curate.masks import shapes
from curate.project import Project, load
from labeling import pull, push, remote_project, results, tasks
from labeling.client import Studio
from tests import fakes
from tests.conftest import LINE, Make
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import history, labelled, labels, ls_project_of, pushed, round_of, task_of, unlabelled

SIZE = (32, 24)


def drawn(name: str = "crack", seed: int = 1) -> Label:
    mask = shapes.defect_from_mask(name, fakes.blob(24, 32, seed))
    assert mask is not None
    return Label("labelled", (mask,))


def test_a_round_becomes_tasks_in_its_order_and_each_image_is_queued(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:6][::-1]
    round_of(indexed, ids, ["rare", "audit", "rare", "rare", "audit", "rare"])
    report = push.run(indexed, studio, push.PushRequest())
    assert (report.created, report.existing, report.updated, report.refused) == (6, 0, 0, [])
    held = list(tasks.held(ls_project_of(indexed, studio)))
    assert [one.data["content_id"] for one in held] == ids, "sequential sampling follows the ids of tasks"
    assert [one.data["order"] for one in held] == sorted(one.data["order"] for one in held)
    assert [one.data["title"] for one in held] == [f"round 001, {rank} of 6" for rank in range(1, 7)]
    shown = labels(indexed)
    assert {shown[id].status for id in ids} == {"queued"}
    again = push.run(indexed, studio, push.PushRequest())
    assert (again.created, again.existing, again.updated) == (0, 6, 0)
    views = {one["data"]["title"] for one in studio.get("/api/dm/views/", project=ls_project_of(indexed, studio).id)}
    assert views == {"round 001"}


def test_an_audit_pick_looks_like_every_other(indexed: Project, studio: Studio) -> None:
    """Neither its task nor a tab tells it apart; only without audit picks is anybody told why an image was picked."""
    first, second, audit, other = unlabelled(indexed)[:4]
    round_of(indexed, [first, audit], ["rare", "audit"])
    push.run(indexed, studio, push.PushRequest())
    ls_project = ls_project_of(indexed, studio)
    told = {(one.data["slot"], one.data["reason"], one.data["score"]) for one in tasks.held(ls_project)}
    assert told == {("", "", None)}
    studio.post(
        "/api/dm/views/", {"project": ls_project.id, "data": {"title": "round 001 audit"}}
    )  # of an earlier version
    push.run(indexed, studio, push.PushRequest())
    round_of(indexed, [second, other], number=2)
    push.run(indexed, studio, push.PushRequest())
    told = {(one.data["title"], one.data["slot"]) for one in tasks.held(ls_project, "round 002")}
    assert told == {(f"round 002, {rank} of 2: like crack {rank}", "rare") for rank in (1, 2)}
    views = {one["data"]["title"] for one in studio.get("/api/dm/views/", project=ls_project.id)}
    assert views == {"round 001", "round 002"}


def test_without_classes_there_is_nothing_to_choose(make: Make, line: Path, studio: Studio) -> None:
    project = make([LINE | {"data": line}], [])
    sync.run(project)
    round_of(project, unlabelled(project)[:1])
    with pytest.raises(CurateError, match=r"'plant' has no classes.*Run: curate classes add NAME"):
        push.run(project, studio, push.PushRequest())
    assert remote_project.find(project, studio) is None, "nothing was made"


def test_what_is_submitted_is_what_the_index_shows(indexed: Project, studio: Studio) -> None:
    first, second, third, fourth = ids = unlabelled(indexed)[:4]
    pushed(indexed, studio, ids)
    box = make_defect("hole", (1.25, 2, 3.5, 4))
    both = Label("labelled", (*drawn().defects, box), ("hole",))
    ls_helpers.annotate(studio, task_of(indexed, studio, first), results.of_label(both, SIZE), lead_time=12.5)
    ls_helpers.annotate(studio, task_of(indexed, studio, second), results.of_label(Label("labelled"), SIZE))
    unsure = results.of_label(Label("skipped", reason="blurred, too dark"), SIZE)
    ls_helpers.annotate(studio, task_of(indexed, studio, third), unsure)
    ls_helpers.annotate(studio, task_of(indexed, studio, fourth), [], cancelled=True)
    report = pull.run(indexed, studio)
    assert (report.annotations, report.images, report.labelled, report.skipped) == (4, 4, 2, 2)
    shown = labels(indexed)
    assert shown[first].digest == both.digest
    assert shown[second].clean
    assert shown[third] == Label("skipped", reason="blurred, too dark")
    assert shown[fourth] == Label("skipped", reason="skipped")
    assert [seconds for seconds, _ in lead_times(indexed.work / "labels")].count(12.5) == 1
    sample = Index(indexed).dataset.match({"content_id": first}).first()
    assert (sample.label_origin, sample.labelled_by, sample.lead_time) == ("label-studio", studio.me.email, 12.5)
    assert sample.annotation_origin == "manual"
    assert sample.label_config == ls_project_of(indexed, studio).config
    before = [path.stat().st_size for path in (indexed.work / "labels").glob("*.jsonl")]
    for full in (False, True):
        assert pull.run(indexed, studio, full=full).annotations == 0
    assert [path.stat().st_size for path in (indexed.work / "labels").glob("*.jsonl")] == before


def test_changed_and_deleted_annotations_follow(indexed: Project, studio: Studio) -> None:
    first, second = unlabelled(indexed)[:2]
    pushed(indexed, studio, [first, second])
    made = [
        ls_helpers.annotate(studio, task_of(indexed, studio, id), results.of_label(drawn(), SIZE))
        for id in (first, second)
    ]
    pull.run(indexed, studio)
    ls_helpers.change(studio, made[0]["id"], results.of_label(drawn("hole", 2), SIZE))
    ls_helpers.withdraw(studio, made[1]["id"])
    report = pull.run(indexed, studio)
    assert (report.annotations, report.deleted) == (1, 1)
    shown = labels(indexed)
    assert shown[first].digest == drawn("hole", 2).digest
    assert shown[second] == Label("queued"), "it is open again"
    assert [one.label.digest for one in history(indexed, second)] == [drawn().digest, Label().digest], "nothing is lost"


@pytest.mark.exhaustive
def test_deleting_every_annotation_of_a_review_brings_back_what_was_there(indexed: Project, studio: Studio) -> None:
    id = labelled(indexed)[0]
    before = labels(indexed)[id]
    _reviewed(indexed, studio, [id])
    made = ls_helpers.annotate(studio, task_of(indexed, studio, id), results.of_label(drawn("hole", 5), SIZE))
    pull.run(indexed, studio)
    assert labels(indexed)[id].digest == drawn("hole", 5).digest
    (name,) = before.present
    expected = {"redrawn": ["hole"]} if name == "hole" else {"added": ["hole"], "removed": [name]}
    assert history(indexed, id)[-1].extra["changed"] == expected
    ls_helpers.withdraw(studio, made["id"])
    pull.run(indexed, studio)
    assert labels(indexed)[id].digest == before.digest


def _reviewed(project: Project, studio: Studio, ids: list[str], name: str = "suspects") -> push.PushReport:
    index = Index(project)
    index.dataset.save_view(name, index.dataset.select_by("content_id", ids, ordered=True), overwrite=True)
    return push.run(project, studio, push.PushRequest(view=name))


@pytest.mark.exhaustive
def test_a_review_carries_the_label_of_today_and_is_not_asked_twice(indexed: Project, studio: Studio) -> None:
    ids = labelled(indexed)[:2]
    before = labels(indexed)
    report = _reviewed(indexed, studio, ids)
    assert report.created == 2
    held = {one.data["content_id"]: one for one in tasks.held(ls_project_of(indexed, studio))}
    for id in ids:
        (suggestion,) = ls_helpers.task(studio, held[id].id)["predictions"]
        assert results.label_in(suggestion["result"], SIZE).digest == before[id].digest
        parent = {"parent_prediction": suggestion["id"]}
        ls_helpers.annotate(studio, held[id].id, suggestion["result"], **parent)
    pull.run(indexed, studio)
    after = labels(indexed)
    assert {id: after[id].digest for id in ids} == {id: before[id].digest for id in ids}
    assert history(indexed, ids[0])[-1].extra["origin"] == "prediction"
    assert history(indexed, ids[0])[-1].extra["changed"] == {}
    assert _reviewed(indexed, studio, ids).existing == 2, "confirmed as it is: nothing is left to ask"


def test_an_edit_in_the_app_is_never_overwritten(indexed: Project, studio: Studio) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    index = Index(indexed)
    sample = index.dataset.match({"content_id": id}).first()
    sample.defects = index.fo.Detections(detections=[index.fo.Detection(label="hole", bounding_box=[0, 0, 0.5, 0.5])])
    sample.save()
    ls_helpers.annotate(studio, task_of(indexed, studio, id), results.of_label(drawn(), SIZE))
    report = pull.run(indexed, studio)
    assert (report.captured, report.edited_in_app, report.disputed) == (1, 1, 1)
    shown = labels(indexed)[id]
    assert (shown.status, shown.reason, shown.present) == ("disputed", "edited-in-app", {"hole"})
    sample = Index(indexed).dataset.match({"content_id": id}).first()
    assert [other.version for other in sample.other_defects.detections] == [f"label-studio: {studio.me.email}"]
    index.dataset.save_view("both", index.dataset.select_by("content_id", [id]))
    push.run(indexed, studio, push.PushRequest(view="both"))
    (task,) = (one for one in tasks.held(ls_project_of(indexed, studio)) if one.data["slot"] == push.REVIEW)
    said = [results.label_in(one["result"], SIZE).present for one in ls_helpers.task(studio, task.id)["predictions"]]
    assert sorted(map(sorted, said)) == [["crack"], ["hole"]], "both masks are there to choose from"
    ls_helpers.annotate(studio, task.id, results.of_label(drawn(), SIZE))
    pull.run(indexed, studio)
    assert labels(indexed)[id].digest == drawn().digest


def test_two_annotators_are_both_kept_and_settled(indexed: Project, studio: Studio) -> None:
    same, other = unlabelled(indexed)[:2]
    pushed(indexed, studio, [same, other])
    anna, ben = ls_helpers.annotator(studio, "anna"), ls_helpers.annotator(studio, "ben")
    for who, seed in ((anna, 1), (ben, 2)):
        ls_helpers.annotate(who, task_of(indexed, studio, same), results.of_label(drawn(), SIZE))
        ls_helpers.annotate(
            who, task_of(indexed, studio, other), results.of_label(drawn(("crack", "hole")[seed - 1], seed), SIZE)
        )
    report = pull.run(indexed, studio)
    assert (report.annotations, report.disputed) == (4, 1)
    shown = labels(indexed)
    assert shown[same].digest == drawn().digest
    assert shown[other].status == "disputed"
    assert [one.who for one in history(indexed, same)] == [anna.me.email, ben.me.email, "consensus"]
    sample = Index(indexed).dataset.match({"content_id": other}).first()
    assert {one.version for one in sample.other_defects.detections} == {
        f"label-studio: {anna.me.email}",
        f"label-studio: {ben.me.email}",
    }
    assert pull.run(indexed, studio, full=True).annotations == 0


def test_withdrawing_takes_back_what_nobody_touched(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:4]
    pushed(indexed, studio, ids)
    ls_helpers.annotate(studio, task_of(indexed, studio, ids[0]), results.of_label(drawn(), SIZE))
    studio.post(f"/api/tasks/{task_of(indexed, studio, ids[1])}/drafts", {"result": [], "lead_time": 1})
    found = push.withdraw(indexed, studio, push.PushRequest())
    assert (found["withdrawn"], found["kept"]) == (2, 2)
    pull.run(indexed, studio)
    shown = labels(indexed)
    assert [shown[id].status for id in ids] == ["labelled", "queued", "unlabelled", "unlabelled"]
    assert push.run(indexed, studio, push.PushRequest()).created == 2, "it may be pushed again"


@pytest.mark.exhaustive
def test_doubles_are_removed_but_never_an_annotated_one(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:3]
    pushed(indexed, studio, ids)
    ls_project = ls_project_of(indexed, studio)
    held = list(tasks.held(ls_project))
    ls_helpers.import_tasks(studio, ls_project.id, [{"data": dict(one.data)} for one in held[:2] for _ in range(2)])
    doubled = [one for one in tasks.held(ls_project) if one.key == held[1].key]
    ls_helpers.annotate(studio, doubled[-1].id, results.of_label(drawn(), SIZE))
    report = push.run(indexed, studio, push.PushRequest())
    assert (report.created, report.doubles) == (0, 4)
    left = {one.key: one.id for one in tasks.held(ls_project)}
    assert len(left) == 3
    assert left[held[0].key] == held[0].id
    assert left[held[1].key] == doubled[-1].id
    pull.run(indexed, studio)
    assert labels(indexed)[ids[1]].digest == drawn().digest


def test_a_deleted_project_loses_no_label_and_is_made_again(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:3]
    pushed(indexed, studio, ids)
    ls_helpers.annotate(studio, task_of(indexed, studio, ids[0]), results.of_label(drawn(), SIZE))
    pull.run(indexed, studio)
    old = ls_project_of(indexed, studio).id
    studio.ask("DELETE", f"/api/projects/{old}/")
    report = push.run(indexed, studio, push.PushRequest())
    assert (report.created, report.labelled) == (2, 1)
    assert pull.run(indexed, studio).annotations == 0
    assert labels(indexed)[ids[0]].digest == drawn().digest


def test_a_lost_state_file_doubles_nothing(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    ls_helpers.annotate(studio, task_of(indexed, studio, ids[0]), results.of_label(drawn(), SIZE))
    pull.run(indexed, studio)
    number = ls_project_of(indexed, studio).id
    (indexed.work / "labelstudio" / "desk.json").unlink()
    assert ls_project_of(indexed, studio).id == number
    assert pull.run(indexed, studio).annotations == 0
    assert push.run(indexed, studio, push.PushRequest()).created == 0


@pytest.mark.exhaustive
def test_a_share_of_the_round_is_given_to_several_people(indexed: Project, studio: Studio) -> None:
    project = load(indexed.folder, {"labelstudio": {"overlap": 0.5, "annotators": 3}})
    ids = unlabelled(project)
    pushed(project, studio, ids)
    wanted = {one["id"]: one["overlap"] for one in _listed(project, studio)}
    assert set(wanted.values()) == {1, 3}
    shared = next(id for id, overlap in wanted.items() if overlap == 3)
    for name in ("anna", "ben", "carl"):
        assert not ls_helpers.task(studio, shared)["is_labeled"]
        ls_helpers.annotate(ls_helpers.annotator(studio, name), shared, results.of_label(drawn(), SIZE))
    assert ls_helpers.task(studio, shared)["is_labeled"]


def _listed(project: Project, studio: Studio) -> list[dict[str, Any]]:
    return [ls_helpers.task(studio, one.id) for one in tasks.held(ls_project_of(project, studio))]


def test_a_suggestion_that_cannot_be_right_is_not_sent_but_its_image_is(indexed: Project, studio: Studio) -> None:
    good, strange, over = ids = unlabelled(indexed)[:3]
    (mask,) = drawn().defects
    said = {good: mask, strange: replace(mask, label="rust"), over: make_defect("hole", (30, 20, 9, 9))}
    predictions.store(Index(indexed), "m1", {id: Prediction(((defect, 0.9),)) for id, defect in said.items()})
    report = pushed(indexed, studio, ids)
    assert report.created == 3
    assert [one["id"] for one in report.dropped] == [strange]
    first, second, third = _listed(indexed, studio)
    assert [len(one["predictions"]) for one in (first, second, third)] == [1, 0, 1]
    (cut,) = results.label_in(third["predictions"][0]["result"], SIZE).defects
    assert cut.box == (30, 20, SIZE[0] - 30, SIZE[1] - 20)
    assert report.to_json()["refused"] == 0


def test_new_suggestions_reach_only_tasks_that_nobody_began(indexed: Project, studio: Studio) -> None:
    first, second = ids = unlabelled(indexed)[:2]
    index = Index(indexed)
    predictions.store(index, "m1", {id: Prediction(tuple((d, 0.5) for d in drawn().defects)) for id in ids})
    pushed(indexed, studio, ids)
    ls_helpers.annotate(studio, task_of(indexed, studio, first), results.of_label(drawn(), SIZE))
    predictions.store(index, "m2", {id: Prediction(tuple((d, 0.7) for d in drawn("hole", 4).defects)) for id in ids})
    assert push.run(indexed, studio, push.PushRequest()).updated == 1
    old, new = _listed(indexed, studio)
    assert results.label_in(old["predictions"][0]["result"], SIZE).present == {"crack"}
    (suggestion,) = new["predictions"]
    assert (results.label_in(suggestion["result"], SIZE).present, suggestion["score"]) == ({"hole"}, 0.7)
    assert (new["data"]["suggested_by"], new["id"]) == ("m2", task_of(indexed, studio, second))
    assert push.run(indexed, studio, push.PushRequest()).updated == 0
