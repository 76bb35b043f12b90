"""The hint "unusual here": told to annotators as a region without a class, never an annotation, never a label."""

from __future__ import annotations

from typing import Any

import pytest

from curate.data import Label, make_defect
from curate.index import predictions
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.ops import anomaly as measuring
from curate.project import Project
from labeling import config, pull, push, results, tasks
from labeling.client import Studio
from tests.curate.select.test_anomaly_table import planted
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import history, labels, ls_project_of, pushed, round_of, task_of, unlabelled

SIZE = (32, 24)
HINT = results.hint((16, 0, 16, 24), SIZE)
PLACE = {name: HINT["value"][name] for name in ("x", "y", "width", "height", "rotation")}
CRACK = make_defect("crack", (2, 3, 5, 6))


def submitted(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """The hint as the page returns it, untouched, and other results."""
    return [HINT | {"origin": "prediction"}, *more]


def test_a_hint_is_no_defect_and_no_verdict() -> None:
    alone = results.label_in(submitted(), SIZE)
    assert (alone.status, alone.reason, alone.present) == ("disputed", results.UNDECIDED, frozenset())
    clean = results.of_label(Label("labelled"), SIZE)
    assert results.label_in(submitted(*clean), SIZE) == Label("labelled")
    unsure = results.of_label(Label("skipped", reason="blurred"), SIZE)
    assert results.label_in(submitted(*unsure), SIZE) == Label("skipped", reason="blurred")
    assert results.label_in(submitted(), SIZE, cancelled=True).status == "skipped"
    drawn = results.of_label(Label("labelled", (CRACK,), ("hole",)), SIZE)
    assert results.label_in(submitted(*drawn), SIZE) == Label("labelled", (CRACK,), ("hole",))
    severe = {**HINT, "from_name": results.SEVERITY, "type": "choices"}
    severe["value"] = {**PLACE, "choices": ["major"]}
    assert results.label_in(submitted(severe), SIZE).reason == results.UNDECIDED


def test_a_hint_that_a_person_gave_a_class_is_that_person_s_box() -> None:
    named = {**HINT, "from_name": results.BOX, "value": PLACE | {"rectanglelabels": ["hole"]}}
    label = results.label_in(submitted(named), SIZE)
    assert label == Label("labelled", (make_defect("hole", (16, 0, 16, 24)),))


def test_a_region_under_the_hint_s_tag_with_another_text_is_a_defect() -> None:
    """A project that is adopted may have a tag of that name."""
    theirs = {**HINT, "value": PLACE | {"rectanglelabels": ["hole"]}}
    assert results.label_in([theirs], SIZE) == Label("labelled", (make_defect("hole", (16, 0, 16, 24)),))


def odd_project(project: Project, odd: str) -> None:
    """The second window of this image is unlike all other."""
    planted(project, odd)
    measuring.run(project)


def test_annotators_are_told_and_an_untouched_hint_becomes_no_label(indexed: Project, studio: Studio) -> None:
    odd, other = unlabelled(indexed)[:2]
    odd_project(indexed, odd)
    pushed(indexed, studio, [odd, other])
    told = ls_helpers.task(studio, task_of(indexed, studio, odd))
    (prediction,) = told["predictions"]
    (region,) = prediction["result"]
    assert (region["from_name"], region["readonly"], region["value"]) == (results.HINT, True, HINT["value"])
    assert told["data"]["suggested"] is None
    assert not ls_helpers.task(studio, task_of(indexed, studio, other))["predictions"]
    again = push.run(indexed, studio, push.PushRequest())
    assert (again.created, again.updated) == (0, 0)

    made = ls_helpers.annotate(studio, task_of(indexed, studio, odd), submitted(), parent_prediction=prediction["id"])
    report = pull.run(indexed, studio)
    assert (report.annotations, report.labelled, report.disputed) == (1, 0, 1)
    shown = labels(indexed)[odd]
    assert (shown.status, shown.reason, shown.defects) == ("disputed", results.UNDECIDED, ())
    assert not shown.clean, "who decides nothing does not call it clean"
    assert history(indexed, odd)[-1].extra["origin"] == "manual"
    assert Index(indexed).count(status="disputed") == 1

    ls_helpers.change(studio, made["id"], submitted(*results.of_label(Label("labelled", (CRACK,)), SIZE)))
    pull.run(indexed, studio)
    assert labels(indexed)[odd] == Label("labelled", (CRACK,))
    assert history(indexed, odd)[-1].extra["origin"] == "manual"
    ls_helpers.change(studio, made["id"], submitted(*results.of_label(Label("labelled"), SIZE)))
    pull.run(indexed, studio)
    assert labels(indexed)[odd].clean


@pytest.mark.exhaustive
def test_beside_a_prediction_the_hint_changes_nothing_of_what_is_kept(indexed: Project, studio: Studio) -> None:
    odd, audit = unlabelled(indexed)[:2]
    predictions.store(Index(indexed), "m1", {id: Prediction(((CRACK, 0.7),), by="m1") for id in (odd, audit)})
    odd_project(indexed, odd)
    round_of(indexed, [odd, audit], ["rare", "audit"])
    push.run(indexed, studio, push.PushRequest())
    (prediction,) = ls_helpers.task(studio, task_of(indexed, studio, odd))["predictions"]
    assert [part["from_name"] for part in prediction["result"]] == [results.HINT, results.BOX]
    assert prediction["score"] == 0.7
    kept = [part | {"origin": "prediction"} for part in prediction["result"]]
    ls_helpers.annotate(studio, task_of(indexed, studio, odd), kept, parent_prediction=prediction["id"])
    pull.run(indexed, studio)
    assert labels(indexed)[odd] == Label("labelled", (CRACK,))
    assert history(indexed, odd)[-1].extra["origin"] == "prediction"


def test_an_audit_pick_has_no_hint_and_no_suggest_leaves_it_out(indexed: Project, studio: Studio) -> None:
    odd = unlabelled(indexed)[0]
    odd_project(indexed, odd)
    round_of(indexed, [odd], ["audit"])
    push.run(indexed, studio, push.PushRequest())
    assert not ls_helpers.task(studio, task_of(indexed, studio, odd))["predictions"]
    round_of(indexed, [odd], ["rare"], number=2)
    push.run(indexed, studio, push.PushRequest(round=2, suggest=False))
    assert all(not held.data["hint"] for held in tasks.held(ls_project_of(indexed, studio)))


@pytest.mark.exhaustive
def test_a_hint_that_comes_later_is_shown_in_tasks_that_nobody_has_begun(indexed: Project, studio: Studio) -> None:
    odd, begun = unlabelled(indexed)[:2]
    pushed(indexed, studio, [odd, begun])
    ls_helpers.annotate(studio, task_of(indexed, studio, begun), results.of_label(Label("labelled"), SIZE))
    odd_project(indexed, odd)
    assert push.run(indexed, studio, push.PushRequest()).updated == 1
    (prediction,) = ls_helpers.task(studio, task_of(indexed, studio, odd))["predictions"]
    assert prediction["result"][0]["from_name"] == results.HINT
    assert push.run(indexed, studio, push.PushRequest()).updated == 0


@pytest.mark.exhaustive
def test_a_config_of_before_hints_is_brought_up_to_date_and_one_made_by_hand_gets_none(
    indexed: Project, studio: Studio
) -> None:
    odd, second = unlabelled(indexed)[:2]
    pushed(indexed, studio, [second])
    ls_project = ls_project_of(indexed, studio)
    there = studio.get(f"/api/projects/{ls_project.id}")["label_config"]
    begin = there.index('<View className="curate-hidden">')
    older = there[:begin] + there[there.index("</View>", begin) + len("</View>") :]
    assert (config.shows_hints(there), config.shows_hints(older)) == (True, False)
    odd_project(indexed, odd)
    studio.ask("PATCH", f"/api/projects/{ls_project.id}", json={"label_config": older})
    round_of(indexed, [odd], number=2)
    push.run(indexed, studio, push.PushRequest())
    task = ls_helpers.task(studio, task_of(indexed, studio, odd))
    assert (task["predictions"], task["data"]["hint"]) == ([], ""), "changed by hand: kept, and without hints"
    ls_project_of(indexed, studio).save(config=config.version(older))  # as sent by the version before
    push.run(indexed, studio, push.PushRequest())
    assert config.shows_hints(studio.get(f"/api/projects/{ls_project.id}")["label_config"])
    assert ls_helpers.task(studio, task_of(indexed, studio, odd))["predictions"]


@pytest.mark.parametrize("beside", [False, True])
def test_the_config_offers_no_annotator_the_hint(indexed: Project, beside: bool) -> None:
    from defusedxml.ElementTree import fromstring

    page = fromstring(config.build(indexed, beside=beside))
    (hidden,) = (view for view in page.iter("View") if view.get("className") == "curate-hidden")
    assert [tag.get("name") for tag in page.iter() if tag.get("name") == results.HINT] == [results.HINT]
    assert results.HINT in {tag.get("name") for tag in hidden.iter()}
    assert "curate-hidden { display: none; }" in str(page.findtext("Style"))
