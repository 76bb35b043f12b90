"""Run by each of two processes in test_processes.py: `torchrun --nproc-per-node=2 -m tests.train.members FOLDER`.

It trains some small networks together with the other one, and writes what it saw, and what it ended with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from curate.errors import CurateError
from tests.train.conftest import data
from tests.train.fit.test_loop import CNN, fit_settings, network
from train import processes, recipe
from train.data.dataset import TrainingData
from train.fit import loop
from train.processes import ProcessGroup
from train.recipe import Recipe

PLAIN = ("model.options={}", "input.height=32", "input.width=32", "batch=4", "epochs=2", "optimiser.name=sgd")
LOSS = 'loss=[{"name": "bce"}]'
NORMED = (*CNN, "batch=2", "epochs=2")


def plain() -> Recipe:
    """Neither norms nor dropout, and a loss that is a mean over images: processes change nothing but rounding."""
    return recipe.load("cnn-4conv-6dense-fixed", [*PLAIN, LOSS, "model.weights=none", "optimiser.lr=0.05"])


class Interrupted(Exception):
    """Stands for Ctrl-C or a kill."""


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with processes.process_group("cpu") as process_group:
        rank_folder = folder / f"rank{process_group.rank}"
        rank_folder.mkdir()
        training_data, results = data(rank_folder, 8, 2, "classification"), {}
        batches: list[Any] = []
        record_batches(batches)
        fit(plain(), training_data, folder / "whole", process_group, rank_folder / "whole.safetensors")
        results["rows"] = list(batches)
        try:
            fit(plain(), training_data, folder / "parts", process_group, rank_folder / "never", steps=3)
        except Interrupted:
            fit(plain(), training_data, folder / "parts", process_group, rank_folder / "parts.safetensors")
        training_data.train[2].path.write_bytes(b"no image")
        normed = recipe.load("simple-cnn", NORMED)
        results["skipped"] = fit(
            normed, training_data, folder / "normed", process_group, rank_folder / "normed.safetensors"
        ).skipped
        results["told"] = error_message(normed, training_data, folder / "nan", process_group)
    (rank_folder / "said.json").write_text(json.dumps(results))


def record_batches(batches: list[Any]) -> None:
    original = loop._epoch_batches
    loop._epoch_batches = lambda *arguments: batches.append(original(*arguments)) or batches[-1]  # type: ignore[assignment, func-returns-value]


def fit(
    resolved: Recipe,
    training_data: TrainingData,
    folder: Path,
    process_group: ProcessGroup,
    ends: Path,
    steps: int | None = None,
) -> loop.FitResult:
    done = 0

    def step(stage: str, now: int, total: int) -> None:
        nonlocal done
        done += now
        if done == steps:
            raise Interrupted

    model = network(resolved, training_data, seed=process_group.rank)  # the weights of rank 0 count
    fitted = loop.fit(model, fit_settings(resolved, training_data, folder, process_group=process_group), step)
    save_file({name: value.contiguous() for name, value in model.named_parameters()}, ends)
    return fitted


def error_message(resolved: Recipe, training_data: TrainingData, folder: Path, process_group: ProcessGroup) -> str:
    """Return the error of a process when the loss of the second one is not a number."""
    model = network(resolved, training_data)

    def spoil(stage: str, now: int, total: int) -> None:
        if process_group.rank == 1 and stage == "epoch 2":
            torch.nn.init.constant_(model.head[3].bias, float("nan"))

    try:
        loop.fit(model, fit_settings(resolved, training_data, folder, process_group=process_group), spoil)
    except CurateError as error:
        return str(error)
    except SystemExit as ended:
        return f"exit {ended.code}"
    return "nothing"


if __name__ == "__main__":
    main()
