"""A disk that is full while a model is saved: one line, the last good checkpoint stays, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from curate.errors import CurateError
from curate.project import Project, ProjectConfig, SourceConfig
from tests.train.conftest import data
from tests.train.fit.test_loop import CNN, Interrupted, fit_settings, network
from train import recipe, store
from train.fit import loop

torch.set_num_threads(1)
folder = Path(sys.argv[1])
made = recipe.load("simple-cnn", [*CNN, "epochs=3", "patience=9"])
of = data(folder, 8, 4, "classification")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]


def limited(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def files(where):
    return {one.name: one.read_bytes() for one in where.rglob("*") if one.is_file()}


def fitted(where, progress=lambda stage, done, total: None):
    rows = loop.fit(network(made, of), fit_settings(made, of, where), progress).history
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def pulled(stage, done, total):
    if stage == "epoch 2":
        raise Interrupted


def said(action):
    limited(1000)
    try:
        action()
    except CurateError as error:
        return str(error)
    finally:
        limited(hard)


whole, parts = folder / "whole", folder / "parts"
expected = fitted(whole)
try:
    fitted(parts, pulled)
except Interrupted:
    pass
before = files(parts)
found = {"checkpoint": said(lambda: fitted(parts)), "kept": files(parts) == before, "names": sorted(before)}
found["resumed"] = fitted(parts) == expected and files(parts)[loop.BEST] == files(whole)[loop.BEST]
project = Project(folder, ProjectConfig(sources=(SourceConfig(format="voc", data=Path()),)))
training = store.training_folder(project, "key")
training.mkdir(parents=True)
(training / loop.BEST).write_bytes((whole / loop.BEST).read_bytes())
found["model"] = said(lambda: store.finish(project, "key", training / loop.BEST, {}))
home = store.models_folder(project)
found["left"] = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
found["finished"] = store.finish(project, "key", training / loop.BEST, {}).key
print(json.dumps(found))
"""


@pytest.mark.exhaustive
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    house = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    ended = subprocess.run(command, cwd=house, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    for name, file in (("checkpoint", tmp_path / "parts"), ("model", tmp_path / "work" / "models" / "key")):
        assert result[name].startswith(f"{file}"), result[name]
        assert "cannot be written: File too large. What was there before is kept. Make room" in result[name]
        assert "\n" not in result[name]
    assert result["names"] == ["best.safetensors", "last.ckpt"]
    assert result["kept"]
    assert result["resumed"]
    assert result["left"] == [".key.training", ".key.training/best.safetensors"]
    assert result["finished"] == "key"
