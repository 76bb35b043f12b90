"""`curate synth ...` from end to end, as people and scripts call it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pyarrow
import pyarrow.parquet
import pytest

from curate import cli
from curate.project import Project
from synth import generate
from synth.trial import design
from synth.trial import run as trial

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mill: Project) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["curate", "synth", *map(str, arguments), "--project", str(mill.folder)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_from_the_plan_to_train_and_out_again(run: Run, mill: Project) -> None:
    code, out, _ = run("plan", "--json")
    assert code == 0
    assert {line["name"]: line["groups"] for line in json.loads(out)["lines"]}.keys() == {"crack", "hole"}
    code, out, err = run("generate", "paste", "--class", "hole", "--count", 2, "--window", 48, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["fresh"], result["images"], result["counts"]) == (True, 2, {"hole": 2})
    key = result["key"][:8]
    assert (
        json.loads(run("generate", "paste", "--class", "hole", "--count", 2, "--window", 48, "--json")[1])["key"]
        == result["key"]
    )
    code, out, err = run("accept", key)
    assert (code, out) == (1, "")
    assert f"not checked yet. Run: curate synth check {key}" in err
    batch = generate.opened(mill, key)
    rows = [{"id": image.id, "passed": True} for image in batch.made()]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"without": ""})
    pyarrow.parquet.write_table(table, batch.folder / "checked.parquet")
    code, out, err = run("accept", key, "--force", "--json")
    assert code == 0, err
    assert (json.loads(out)["entered"], json.loads(out)["tag"]) == (2, f"synthetic-{key}")
    assert json.loads(run("drop", key, "--files", "--json")[1]) == {"key": result["key"], "dropped": 2, "files": True}
    assert not generate.every(mill)


def test_output_without_json_is_readable_text(run: Run) -> None:
    code, out, err = run("plan")
    assert code == 0
    assert "clean images of" in out
    assert "label more as clean" in err
    code, out, _ = run("generate", "poisson", "--count", 1, "--window", 48, "--place", "0.5,0.5")
    assert code == 0
    assert "2 images (crack 1, hole 1)" in out
    assert "curate synth check" in out
    assert "nothing to do" in run("generate", "poisson", "--count", 1, "--window", 48, "--place", "0.5,0.5")[1]


MISTAKES: list[tuple[tuple[object, ...], str]] = [
    (("generate", "past"), "unknown synthesiser 'past' (did you mean 'paste'?)"),
    (("generate", "paste", "--set", "x=1"), "unknown option of synthesiser paste 'x'"),
    (("generate", "paste", "--place", "2,0"), "--place '2,0' is not ACROSS,DOWN"),
    (("generate", "paste", "--class", "rust"), "unknown class 'rust'; allowed: crack, hole"),
    (("generate", "paste", "--fitted", "paste-1"), "paste learns nothing, so there is no 'paste-1' to choose"),
    (("generate", "paste", "--window", 90), "smaller than the window of 90x90 pixels"),
    (("check", "nokey"), "unknown batch 'nokey'"),
    (("accept", "nokey"), "unknown batch 'nokey'"),
    (("drop", "nokey"), "unknown batch 'nokey'"),
    (("fit", "paste", "--device", "gpu"), "device 'gpu' does not exist"),
]


def test_user_errors_are_one_line(run: Run) -> None:
    for words, line in MISTAKES:
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert line in err.strip().splitlines()[-1]


def test_every_option_of_a_trial_reaches_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[design.TrialRequest] = []

    def noted(project: Project, request: design.TrialRequest, *_: object) -> trial.TrialReport:
        given.append(request)
        return trial.TrialReport(request.stage, 0, 0, 0, 0.0, [])

    monkeypatch.setattr(trial, "run", noted)
    words = "--stage full --arm balanced --arm paste --class hole --budget 5 --ratio 0.5 --seeds 2 --steps 7 --size 32"
    more = "--window 48 --folds 3 --tested 2 --cleans 9 --scale 0.5 --recipe r --set a=1 --dry-run --device cpu"
    code, _, err = run("trial", *words.split(), *more.split(), "--option", "diffusion.steps=3")
    assert code == 0, err
    assert given == [
        design.TrialRequest(
            "full", ("balanced", "paste"), ("hole",), (5,), (0.5,), 2, 3, 2, "r", ("a=1",), 7, 32, 48, 0.5, 9,
            options={"diffusion": {"steps": 3}}, device="cpu", dry_run=True,
        )
    ]  # fmt: skip
