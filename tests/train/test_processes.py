"""Training in two real processes (gloo, CPU): together they do what one does alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curate.errors import CurateError
from curate.project import Project
from tests.train import members
from tests.train.conftest import data
from tests.train.fit.test_loop import CNN, fit_settings, network
from train import checkpoint, processes, store
from train.data import sampling
from train.fit import loop
from train.fit import run as training
from train.processes import ProcessGroup

ENV = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained together."""
    shared_folder = tmp_path_factory.mktemp("together")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
    command = [*launcher, "--nproc-per-node=2", "-m", "tests.train.members", str(shared_folder)]
    done = subprocess.run(command, cwd=HOUSE, env=ENV, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return shared_folder


def ends(folder: Path, name: str) -> list[dict[str, Any]]:
    return [load_file(folder / f"rank{rank}" / f"{name}.safetensors") for rank in (0, 1)]


def results(folder: Path, what: str) -> list[Any]:
    return [json.loads((folder / f"rank{rank}" / "said.json").read_text())[what] for rank in (0, 1)]


@pytest.mark.exhaustive
def test_shards_are_the_single_draw(folder: Path) -> None:
    """Step by step: what two processes see in one is what one process sees in it."""
    first, second = results(folder, "rows")
    for epoch in (0, 1):
        order = sampling.draw(np.ones(8), epoch, members.plain().seed)
        for step, (a, b) in enumerate(zip(first[epoch], second[epoch], strict=True)):
            assert (len(a), len(b)) == (2, 2)
            assert sorted([*a, *b]) == sorted(order[4 * step : 4 * step + 4].tolist())


def test_together_they_end_where_one_does_alone(folder: Path, tmp_path: Path) -> None:
    first, second = ends(folder, "whole")
    assert all(torch.equal(first[name], second[name]) for name in first)
    resolved, training_data = members.plain(), data(tmp_path, 8, 2, "classification")
    model = network(resolved, training_data)
    before = {name: value.clone() for name, value in model.named_parameters()}
    fitted = loop.fit(model, fit_settings(resolved, training_data, tmp_path / "alone"))
    for name, value in model.named_parameters():
        assert torch.allclose(first[name], value, atol=1e-5), name
    assert any((value - before[name]).abs().max() > 1e-3 for name, value in model.named_parameters())
    _, state = checkpoint.load(folder / "whole" / loop.LAST)
    rows = zip(state["fitted"]["history"], fitted.history, strict=True)
    assert all(
        np.isclose(row[key], expected[key], rtol=1e-4) for row, expected in rows for key in ("train_loss", "val_loss")
    )


def test_interrupted_is_uninterrupted(folder: Path) -> None:
    for whole, parts in zip(ends(folder, "whole"), ends(folder, "parts"), strict=True):
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_batch_that_one_cannot_read_stops_nobody(folder: Path, tmp_path: Path) -> None:
    """Two images a step, one a process: where one is broken the other goes on, and both end alike."""
    first, second = ends(folder, "normed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    skipped = results(folder, "skipped")
    assert list(skipped[0]) == [data(tmp_path, 3).train[2].id]
    assert skipped[0].keys() == skipped[1].keys()


def test_rank_0_reports_the_error(folder: Path) -> None:
    main, other = results(folder, "told")
    assert "the loss is nan in epoch 2, step 1, on the images" in main
    assert other == "exit 1"


def test_a_batch_is_shared_evenly() -> None:
    assert ProcessGroup(1, 4).local_batch(32) == 8
    with pytest.raises(CurateError, match=r"batch 7 cannot be divided among 2 processes. Try: --set batch=8"):
        ProcessGroup(0, 2).local_batch(7)
    if not torch.cuda.is_available():
        with pytest.raises(CurateError, match=r"--processes 2, but there are 0 GPUs.*--device cpu"):
            processes.launch(2, [], "cuda")


@pytest.mark.exhaustive
def test_the_command_goes_on_in_two_processes(works: Project) -> None:
    """Two processes resume a run of one: one JSON object, one model, one candidate."""
    sets = [*CNN[:-1], "batch=4", "epochs=4", "patience=99"]

    def pulled(line: str) -> None:
        if line.startswith("epoch 3 "):
            raise members.Interrupted

    request = training.TrainRequest(recipe="simple-cnn", overrides=sets, device="cpu")
    with pytest.raises(members.Interrupted):
        training.run(works, request, log=pulled)
    command = [sys.executable, "-m", "curate", "train", "--json", "--recipe", "simple-cnn", "--device", "cpu"]
    command += [
        "--processes",
        "2",
        "--project",
        str(works.folder),
        *(part for text in sets for part in ("--set", text)),
    ]
    done = subprocess.run(command, cwd=HOUSE, env=ENV | os.environ, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["fresh"], result["epochs"]) == (True, 4)
    model = store.find(works, store.CANDIDATE)
    assert (model.key, model.manifest["processes"]) == (result["model"], 2)
    assert not list(store.models_folder(works).glob(".*.training"))
    assert "epoch 4" in done.stderr
    assert "epoch 1" not in done.stderr
