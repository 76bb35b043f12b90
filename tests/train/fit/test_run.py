"""`curate train`, `predict` and `models` as people and scripts meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from curate.index.dataset import Index
from curate.project import Project
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture
from tests.train.conftest import SMALL
from tests.train.fit.test_loop import CNN
from train import recipe, store
from train.fit import loop
from train.fit import run as training

SETS = [part for text in (*SMALL, "input.height=64", "input.width=64") for part in ("--set", text)]
TRAIN = ("train", "--weights", "none", "--device", "cpu", *SETS, "--project")


def test_train_predict_models(run: Run, works: Project) -> None:  # noqa: F811
    folder = works.folder
    assert "no trained model" in failed(run("predict", "--project", folder))
    first = run(*TRAIN, folder, "--set", "epochs=2", "--json")
    result = ok(first)
    lines = [line for line in first[2].splitlines() if line.startswith("epoch ")]  # a log file, not a terminal
    assert [line.partition(":")[0] for line in lines] == ["epoch 1 of at most 2", "epoch 2 of at most 2"]
    assert all("val loss" in line and "mean Dice" in line for line in lines)
    key = result["model"]
    assert (result["task"], result["classes"], result["fresh"], result["epochs"]) == (
        "segmentation",
        ["crack", "hole"],
        True,
        2,
    )
    manifest = json.loads((works.work / "models" / key / "manifest.json").read_text())
    assert manifest["recipe"]["model"]["encoder"] == "resnet18"
    assert set(manifest["best"]["f1"]) == {"crack", "hole"}
    leftover = store.training_folder(works, key)
    leftover.mkdir()  # a kill after the model was stored, before its training folder was removed
    again = ok(run(*TRAIN, folder, "--set", "epochs=2", "--json"))
    assert (again["model"], again["fresh"]) == (key, False)
    assert not leftover.exists()
    code, out, err = run(*TRAIN, folder, "--set", "epochs=2")
    assert code == 0, err
    assert "nothing to do" in out
    assert "next: curate predict" in out
    report = ok(run("predict", "--project", folder, "--json"))
    assert (report["model"], report["predicted"], report["kept"]) == (key, 6, 0)
    assert "nothing to do" in run("predict", "--project", folder)[1]
    assert ok(run("predict", "--all", "--project", folder, "--json"))["predicted"] == 24
    listed = ok(run("models", "--project", folder, "--json"))
    assert listed == ok(run("models", "list", "--project", folder, "--json"))
    assert run("models", "--project", folder, "promote")[0] == 2
    assert (listed["current"], listed["candidate"], listed["production"]) == (key, key, None)
    assert "is not promoted" in failed(run("models", "promote", "--project", folder))
    forced = ok(run("models", "promote", "--project", folder, "--force", "--why", "a test", "--json"))
    assert forced["production"] == key
    assert "candidate, production" in run("models", "list", "--project", folder)[1]
    assert "no earlier model" in failed(run("models", "rollback", "--project", folder))


def test_what_is_wrong_is_one_line(run: Run, works: Project, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    folder = works.folder
    for arguments, message in (
        (["--recipe", "unet"], "unknown recipe 'unet'"),
        (["--task", "detection"], "derived from segmentation"),
        (["--task", "segmentation", "--recipe", "simple-cnn"], "recipe 'simple-cnn' is for classification"),
        (["--set", "sampler.name=weighted", "--set", "loss.0.name=class_balanced"], "--allow-double-prior"),
        (["--device", "tpu"], "allowed: auto, cpu, cuda"),
        (["--weights", "gone.pth"], "no weights file at gone.pth"),
    ):
        assert message in failed(run("train", "--project", folder, *arguments)), arguments
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(works.folder))
    line = failed(run("train", "--project", folder, "--device", "cpu"))
    assert "weights of resnet34 cannot be downloaded" in line
    assert "--weights none" in line
    assert not store.all_models(works)  # nothing was trained from random weights instead


def test_a_head_on_random_features_is_reported() -> None:
    named = recipe.load("mobilenetv2-two-phase", ["model.weights=none"])
    assert "phase 1 trains only 'head'" in next(training._phases_on_random_features(named))
    for changes in (["model.weights=some.pth"], ["model.weights=none", "phases=[]"]):
        assert not list(training._phases_on_random_features(recipe.load("mobilenetv2-two-phase", changes))), changes


def test_a_line_says_how_an_epoch_went_and_how_long_the_rest_takes() -> None:
    resolved = recipe.load("mobilenetv2-two-phase", ["phases.0.epochs=2", "phases.1.epochs=4"])
    rows = [{"phase": 0, "epoch": n, "train_loss": 0.5, "seconds": 30.0} for n in range(2)]
    assert (
        training.epoch_line(resolved, rows, rows[-1]) == "epoch 2 of at most 6: loss 0.5000 (30 s; at most 2 min left)"
    )
    f1 = {"crack": 0.5, "hole": 0.7, "clean": None}
    rows.append({"phase": 1, "epoch": 2, "train_loss": 0.4, "val_loss": 0.3, "f1": f1, "seconds": 60.0})
    expected = (
        "epoch 3 of at most 6: loss 0.4000, val loss 0.3000, mean F1 0.600, the best so far (1 min; at most 3 min left)"
    )
    assert training.epoch_line(resolved, rows, rows[-1]) == expected
    assert training.epoch_line(resolved, [*rows, *rows[2:] * 3], rows[-1]).endswith("(1 min)")


def test_an_app_edit_teaches(run: Run, works: Project) -> None:  # noqa: F811
    """An edit in the App is in the label log before training begins: it gives another model."""
    first = ok(run(*TRAIN, works.folder, "--set", "epochs=1", "--json"))
    index = Index(works)
    sample = index.dataset.match(index.fo.ViewField("split") == "train").match_tags("x", bool=False).first()
    sample["status"] = "skipped"
    sample.save()
    del sample
    second = ok(run(*TRAIN, works.folder, "--set", "epochs=1", "--json"))
    assert second["model"] != first["model"]
    assert second["data"]["train"] == first["data"]["train"] - 1


@pytest.mark.exhaustive
def test_a_killed_run_is_resumed(works: Project) -> None:
    """`kill -9` in the middle: the next run goes on at the epoch that was reached, and the folder is swept."""
    command = [sys.executable, "-c", "from curate.cli import main; main()", "train", "--json"]
    command += ["--project", str(works.folder), "--recipe", "simple-cnn", "--device", "cpu"]
    command += [part for text in (*CNN, "epochs=15", "patience=99") for part in ("--set", text)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    home, deadline = works.work / "models", time.monotonic() + 120
    while not list(home.glob(f".*.training/{loop.LAST}")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not store.all_models(works)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    result = json.loads(done.stdout)
    assert (result["fresh"], result["epochs"]) == (True, 15)
    assert not list(home.glob(".*.training"))
