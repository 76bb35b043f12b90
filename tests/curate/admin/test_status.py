"""`curate status`: the next step, case by case, and the facts that it is drawn from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer

from curate import cli, files
from curate.admin import status
from curate.admin.status import StatusFacts, next_steps, summarise
from curate.index import sync
from curate.index.dataset import Index
from curate.project import Project
from curate.select import run as selecting
from curate.select.run import SelectRequest
from tests.conftest import LINE, Make
from tests.curate.select.test_run import embedded

LABELLED = {"images": 100, "trainable": 70, "testable": 15}
MIXED = LABELLED | {"pickable": 40}
TRAINED = {"model": True, "pulled": True}


def steps(**facts: Any) -> list[str]:
    return [step.command.removesuffix(" --project p") for step in next_steps(StatusFacts("p", **facts))]


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({}, "curate index"),
        ({"images": 9, "conflicts": 2, "classes": 0}, "curate resolve"),
        ({"images": 9, "pickable": 9, "classes": 0}, "curate classes add NAME"),
        ({"images": 9, "queued": 4, "without_vectors": 2}, "curate pull"),
        ({"images": 9, "pickable": 9, "without_vectors": 9}, "curate embed"),
        ({"images": 9, "pickable": 9}, "curate select --budget 500"),
        ({"images": 9, "pickable": 9, "round": "round 001", "picks": 3}, "curate push"),
        ({"images": 9, "pickable": 9, "round": "round 001", "server": False}, "curate labelstudio up"),
        (LABELLED, "curate train"),
        (MIXED, "curate select --budget 500"),
        (MIXED | {"pulled": True}, "curate train"),
        (MIXED | TRAINED | {"new_labels": 5}, "curate train"),
        (MIXED | TRAINED, "curate evaluate --model candidate"),
        (MIXED | TRAINED | {"evaluated": True}, "curate models promote"),
        (MIXED | TRAINED | {"testable": 0, "unpredicted": 40}, "curate predict --model candidate"),
        (MIXED | TRAINED | {"evaluated": True, "promoted": True, "unpredicted": 4}, "curate predict --model candidate"),
        (MIXED | TRAINED | {"evaluated": True, "promoted": True}, "curate select --budget 500"),
        (LABELLED | TRAINED | {"evaluated": True, "promoted": True}, "curate app"),
        ({"images": 9}, "curate app"),
    ],
)
def test_the_next_step(facts: dict[str, Any], first: str) -> None:
    assert steps(**facts)[0] == first


@pytest.mark.parametrize(
    ("facts", "second"),
    [
        (LABELLED, "curate simulate"),
        (MIXED, "curate train"),
        (MIXED | TRAINED | {"evaluated": True}, "curate select --budget 500"),  # promote may be refused
        (MIXED | {"without_vectors": 3}, "curate select --budget 500"),  # three that may be beyond reading
    ],
)
def test_where_there_is_a_choice_a_second_step_is_reported(facts: dict[str, Any], second: str) -> None:
    assert steps(**facts)[1] == second


def test_every_step_is_a_command_that_exists() -> None:
    group: Any = typer.main.get_command(cli.app)
    options: tuple[dict[str, Any], ...] = ({}, LABELLED, MIXED, MIXED | TRAINED, LABELLED | TRAINED)
    more: tuple[dict[str, Any], ...] = ({}, {"evaluated": True}, {"queued": 1}, {"classes": 0}, {"unpredicted": 1})
    for facts in (first | second for first in options for second in more):
        for step in next_steps(StatusFacts("p", **facts)):
            words = step.command.split()[1:]
            command = group.commands[words[0]]
            command = command.commands[words[1]] if hasattr(command, "commands") else command
            known = {flag for parameter in command.params for flag in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, step.command


def first(project: Project) -> str:
    return str(summarise(project)["next"][0]["command"])


def test_the_facts_of_a_project_that_goes_on(indexed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    assert first(indexed).startswith("curate embed")
    embedded(indexed)
    assert first(indexed).startswith("curate select")
    chosen = selecting.run(indexed, SelectRequest("4"))
    assert first(indexed).startswith("curate labelstudio up")
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
    assert summarise(indexed)["next"][0] == {
        "command": "curate push --project plant",
        "why": "round 001 waits: 4 images for the annotators",
    }
    Index(indexed).set({"status": {row["id"]: "queued" for row in chosen.picks}})
    assert "4 images" in summarise(indexed)["next"][0]["why"]
    assert first(indexed).startswith("curate pull")


def test_the_facts_of_a_model(indexed: Project) -> None:
    embedded(indexed)
    models = indexed.work / "models"
    files.write_json(models / "candidate.json", {"model": "abc"})
    files.write_json(models / "abc" / "manifest.json", {"key": "abc", "made": "2000-01-01T00:00:00Z"})
    assert "labelled since the newest model was trained" in summarise(indexed)["next"][0]["why"]
    files.write_json(models / "abc" / "manifest.json", {"key": "abc", "made": "2999-01-01T00:00:00Z"})
    judged = Index(indexed).count(status="labelled", split="test") > 0
    assert first(indexed).startswith("curate evaluate" if judged else "curate predict")
    files.write_json(indexed.work / "evaluations" / "abc" / "test-1" / "manifest.json", {})
    files.write_json(models / "production.json", {"model": "abc"})
    assert first(indexed).startswith("curate predict")
    (models / "candidate.json").write_text("{")  # `curate models` tells of it; status goes on
    assert first(indexed).startswith("curate select")


def test_production_images_alone_first_need_classes(make: Make, line: Callable[..., Any]) -> None:
    project = make([LINE | {"data": line}], classes=())
    sync.run(project)
    assert first(project).startswith("curate classes add NAME")
    assert status.summarise(project)["by_class"] == {"clean": 0}


QUICK = """
import sys
from curate.cli import main
sys.argv = {arguments}
try: main()
except SystemExit as end: assert not end.code, end.code
print("loaded", [name for name in ("fiftyone", "torch", "numba", "sklearn") if name in sys.modules])
"""


def answered(project: Project, *arguments: str) -> str:
    code = QUICK.format(arguments=["curate", *arguments, "--project", str(project.folder)])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_status_answers_without_what_is_slow_to_load(indexed: Project) -> None:
    """FiftyOne, torch, numba and scikit-learn take seconds to import; the database answers without them."""
    embedded(indexed)
    told = answered(indexed, "status")
    assert "26 images" in told
    assert told.endswith("loaded []\n")
    listed = answered(indexed, "models", "list")
    assert listed.endswith("loaded []\n")


def test_an_explanation_and_a_dry_run_need_no_fiftyone(indexed: Project) -> None:
    embedded(indexed)
    chosen = selecting.run(indexed, SelectRequest("3"))
    explained = answered(indexed, "select", "--explain", chosen.picks[0]["id"])
    assert "predicted by the probe" in explained
    assert explained.endswith("loaded []\n")
    assert "fiftyone" not in answered(indexed, "select", "--budget", "3", "--dry-run").rpartition("loaded")[2]
