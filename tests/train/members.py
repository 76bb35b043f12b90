"""What each of two processes does in test_processes.py: `torchrun --nproc-per-node=2 -m tests.train.members FOLDER`.

It trains some small networks together with the other one, and writes down what it saw, and what it ended with.
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
from tests.train.fit.test_loop import CNN, network, setting
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


class Pulled(Exception):
    """The plug."""


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with processes.team("cpu") as team:
        own = folder / f"rank{team.rank}"
        own.mkdir()
        of, said = data(own, 8, 2, "classification"), {}
        seen: list[Any] = []
        watched(seen)
        fit(plain(), of, folder / "whole", team, own / "whole.safetensors")
        said["rows"] = list(seen)
        try:
            fit(plain(), of, folder / "parts", team, own / "never", steps=3)
        except Pulled:
            fit(plain(), of, folder / "parts", team, own / "parts.safetensors")
        of.train[2].path.write_bytes(b"no image")
        normed = recipe.load("simple-cnn", NORMED)
        said["skipped"] = fit(normed, of, folder / "normed", team, own / "normed.safetensors").skipped
        said["told"] = told(normed, of, folder / "nan", team)
    (own / "said.json").write_text(json.dumps(said))


def watched(seen: list[Any]) -> None:
    theirs = loop._epoch
    loop._epoch = lambda *given: seen.append(theirs(*given)) or seen[-1]  # type: ignore[assignment, func-returns-value]


def fit(
    made: Recipe, of: TrainingData, folder: Path, team: ProcessGroup, ends: Path, steps: int | None = None
) -> loop.FitResult:
    done = 0

    def step(stage: str, now: int, total: int) -> None:
        nonlocal done
        done += now
        if done == steps:
            raise Pulled

    model = network(made, of, seed=team.rank)  # the leader's weights count
    fitted = loop.fit(model, setting(made, of, folder, team=team), step)
    save_file({name: value.contiguous() for name, value in model.named_parameters()}, ends)
    return fitted


def told(made: Recipe, of: TrainingData, folder: Path, team: ProcessGroup) -> str:
    """What a process says when the second one's loss is no number."""
    model = network(made, of)

    def spoil(stage: str, now: int, total: int) -> None:
        if team.rank == 1 and stage == "epoch 2":
            torch.nn.init.constant_(model.head[3].bias, float("nan"))

    try:
        loop.fit(model, setting(made, of, folder, team=team), spoil)
    except CurateError as error:
        return str(error)
    except SystemExit as ended:
        return f"exit {ended.code}"
    return "nothing"


if __name__ == "__main__":
    main()
