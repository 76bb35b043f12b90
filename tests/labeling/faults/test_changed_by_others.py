"""Tokens, projects, servers and label configs that others change."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from curate.data import Label
from curate.errors import CurateError
from curate.index import classes
from curate.project import Project, load
from labeling import client, pull, push
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.faults.helpers import (
    Gate,
    answer,
    command,
    config_notes,
    drawn,
    nth,
    one_task_each,
    settings,
    through,
)
from tests.labeling.helpers import labels, ls_project_of, pushed, round_of, unlabelled


def test_a_wrong_token_is_reported_with_its_remedy_and_never_printed(
    indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "wrong0secret0token0of0forty0letters00000"
    monkeypatch.setenv(client.KEY, token)
    for arguments in (["push"], ["pull"]):
        done = command(indexed, *arguments)
        assert done.returncode == 1
        assert "401" in done.stderr
        assert client.KEY in done.stderr
        assert token not in done.stdout + done.stderr


def test_a_token_that_expires_during_a_pull_loses_nothing(indexed: Project, studio: Studio, gate: Gate) -> None:
    id = unlabelled(indexed)[0]
    reached = through(gate)
    pushed(indexed, reached, [id])
    answer(indexed, reached, id, drawn())
    gate.harm = nth(1, "401", "GET", "fields=all")
    with pytest.raises(CurateError, match=r"refuses the token \(401: out of order\): make a new one"):
        pull.run(indexed, reached)
    assert pull.run(indexed, reached).labelled == 1


def test_a_project_that_is_deleted_before_or_during_a_pull(
    indexed: Project, studio: Studio, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "PAGE", 1)
    ids = unlabelled(indexed)[:3]
    reached = through(gate)
    pushed(indexed, reached, ids)
    for id in ids:
        answer(indexed, reached, id, drawn())
    number = ls_project_of(indexed, reached).id
    gate.harm = nth(2, "", "GET", "fields=all", lambda: studio.ask("DELETE", f"/api/projects/{number}/"))
    with contextlib.suppress(CurateError):
        pull.run(indexed, reached)
    done = [id for id in ids if labels(indexed)[id].status == "labelled"]
    assert len(done) == 1, "what was read is kept"
    with pytest.raises(CurateError, match="curate push"):
        pull.run(indexed, reached)
    assert push.run(indexed, reached, push.PushRequest()).created == 2
    one_task_each(indexed, reached, [id for id in ids if id not in done])
    assert pull.run(indexed, reached).annotations == 0
    assert labels(indexed)[done[0]].digest == drawn().digest


def test_a_server_that_was_set_up_anew_does_not_lend_us_the_project_of_another(
    indexed: Project, studio: Studio
) -> None:
    """The number that we remember is somebody else's there."""
    other = ls_helpers.project(studio, "theirs", '<View><Image name="i" value="$image"/></View>')
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    ls_project = ls_project_of(indexed, studio)
    studio.ask("DELETE", f"/api/projects/{ls_project.id}/")
    replace(ls_project, id=other).save()
    push.run(indexed, studio, push.PushRequest())
    assert ls_project_of(indexed, studio).id != other
    told = studio.get(f"/api/projects/{other}/")
    assert (told["title"], "brush" in told["label_config"], told["task_number"]) == ("theirs", False, 0)


def test_how_far_we_got_on_one_server_does_not_hold_on_another(indexed: Project, studio: Studio, gate: Gate) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    ls_project_of(indexed, studio).save(cursor="2099-01-01T00:00:00Z")
    answer(indexed, studio, id, drawn())
    elsewhere = through(gate)  # another address, so another server
    push.run(indexed, elsewhere, push.PushRequest())
    assert pull.run(indexed, elsewhere).annotations == 1


def hand_made(project: Project, studio: Studio, change: Callable[[str], str]) -> None:
    number = ls_project_of(project, studio).id
    there = studio.get(f"/api/projects/{number}/")["label_config"]
    studio.ask("PATCH", f"/api/projects/{number}/", json={"label_config": change(there)})


def config_of(project: Project, studio: Studio) -> str:
    return str(studio.get(f"/api/projects/{ls_project_of(project, studio).id}/")["label_config"])


def test_a_label_config_that_was_changed_by_hand(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:2]
    ours = config_of(indexed, studio) if pushed(indexed, studio, ids) else ""
    header = '<Header value="by hand"/>'
    hand_made(indexed, studio, lambda text: re.sub(r"<View[^>]*>", lambda view: view[0] + header, text, count=1))
    report = push.run(indexed, studio, push.PushRequest())
    assert [note for note in report.notes if "changed by hand" in note and "kept; --reset-config" in note]
    assert "by hand" in config_of(indexed, studio)
    answer(indexed, studio, ids[0], drawn())
    assert pull.run(indexed, studio).labelled == 1
    hand_made(indexed, studio, lambda text: text.replace('value="hole"', 'value="Loch"'))
    with pytest.raises(CurateError, match=r"lacks the class 'hole'.* --reset-config"):
        push.run(indexed, studio, push.PushRequest())
    assert not config_notes(push.run(indexed, studio, push.PushRequest(reset_config=True)))
    assert config_of(indexed, studio) == ours


@pytest.mark.exhaustive
def test_a_config_that_existing_annotations_forbid_is_reported_and_blocks_no_push(
    indexed: Project, studio: Studio
) -> None:
    """Label Studio takes no config without a tag that annotations use."""
    project = settings(indexed, severities=["light", "deep"])
    first, second = ids = unlabelled(indexed)[:2]
    pushed(project, studio, [first])
    (defect,) = drawn().defects
    answer(project, studio, first, Label("labelled", (replace(defect, severity="deep"),)))
    pull.run(project, studio)
    round_of(project, [second], number=2)
    report = push.run(indexed, studio, push.PushRequest())
    assert report.created == 1
    assert any("severity" in note for note in config_notes(report))
    with pytest.raises(CurateError, match="severity"):
        push.run(indexed, studio, push.PushRequest(reset_config=True))
    one_task_each(indexed, studio, ids)


@pytest.mark.exhaustive
def test_a_reset_keeps_the_classes_that_annotations_use(indexed: Project, studio: Studio) -> None:
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    answer(indexed, studio, ids[0], drawn("crack"))
    classes.retire(indexed, "crack")
    push.run(load(indexed.folder), studio, push.PushRequest(reset_config=True))
    assert 'value="crack"' in config_of(indexed, studio)
    pull.run(load(indexed.folder), studio)
    assert labels(load(indexed.folder))[ids[0]].digest == drawn("crack").digest
