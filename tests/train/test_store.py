"""Models' folders that somebody else wrote, or a disk spoilt: one clear line, whatever lies in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.admin import setup
from curate.errors import CurateError
from curate.project import Project
from train import architectures, checkpoint, recipe, store
from train.fit import loop
from train.predict.predictor import trained_network
from train.store import StoredModel

KEY = "a" * 24
CNN = recipe.load("simple-cnn", ["input.height=32", "input.width=32"])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return setup.write(tmp_path / "plant", [{"name": "line", "format": "images", "data": tmp_path}], ("crack", "hole"))


@pytest.fixture
def model(project: Project) -> StoredModel:
    weights = project.folder / "w.safetensors"
    checkpoint.save(weights, architectures.build(CNN.task, CNN.model, CNN.input.channels, 2).state_dict())
    row = {"phase": 0, "epoch": 0, "train_loss": 0.5}
    manifest: dict[str, Any] = {"task": CNN.task, "classes": ["crack", "hole"], "outputs": ["crack", "hole"]}
    manifest |= {"single": False, "recipe": CNN.model_dump(mode="json"), "history": [row], "best": row, "skipped": {}}
    manifest |= {"data": {"train": 4, "val": 0, "by_class": {"crack": 2, "hole": 2}}, "seconds": 1.0}
    return store.finish(project, KEY, weights, manifest | {"images": {"train": [], "val": []}})


def error_line(act: Callable[[], object]) -> str:
    with pytest.raises(CurateError) as error:
        act()
    line = str(error.value)
    assert "\n" not in line
    return line


def test_a_sound_one_opens(project: Project, model: StoredModel) -> None:
    assert [stored.key for stored in store.all_models(project)] == [KEY]
    assert not trained_network(model).training


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a JSON object"),
        (b"\xff\xfe\x00", "not a JSON object"),
        (b"[1, 2]", "not a JSON object"),
        (b"[" * 200_000, "not a JSON object"),
        (b"{}", "key is missing"),
    ],
)
def test_a_manifest_of_junk_is_one_line(project: Project, model: StoredModel, content: bytes, why: str) -> None:
    (model.folder / store.MANIFEST).write_bytes(content)
    line = error_line(lambda: store.all_models(project))
    assert "manifest.json is damaged" in line
    assert why in line
    assert str(model.folder) in line


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"key": "../../elsewhere"}, "it belongs to model"),
        ({"classes": "crack"}, "classes is missing or of the wrong kind"),
        ({"classes": ["crack", "hole", "scale"]}, "not the first of its outputs"),
        ({"outputs": ["crack", "hole", 3]}, "a class name is not text"),
        ({"data": {"train": 4, "val": 0}}, "data.by_class"),
        ({"best": {"epoch": "1", "train_loss": 1.0}}, "best.epoch"),
    ],
)
def test_a_manifest_that_is_no_model_s_is_one_line(
    project: Project, model: StoredModel, changes: Any, why: str
) -> None:
    (model.folder / store.MANIFEST).write_text(json.dumps(model.manifest | changes))
    assert why in error_line(lambda: store.find(project))


def test_a_pipe_in_its_place_is_not_waited_for(project: Project, model: StoredModel) -> None:
    (model.folder / store.MANIFEST).unlink()
    os.mkfifo(model.folder / store.MANIFEST)
    assert "is damaged" in error_line(lambda: store.open_model(model.folder))


@pytest.mark.parametrize("alias", [b"{", b"[]", b"\xff"])
def test_an_alias_of_junk_is_one_line(project: Project, model: StoredModel, alias: bytes) -> None:
    (store.models_folder(project) / "candidate.json").write_bytes(alias)
    assert "candidate.json is damaged" in error_line(lambda: store.current(project))


def test_spoilt_weights_are_one_line(model: StoredModel) -> None:
    """Cut anywhere, or with any byte changed: the model opens, or one line says that it is damaged."""
    whole = model.weights.read_bytes()
    random = np.random.default_rng(0)
    spoilt = [whole[: int(at)] for at in random.integers(0, len(whole), 20)]
    for _ in range(60):
        place = int(random.integers(0, min(len(whole), 2000)))  # the header; other bytes are but numbers
        spoilt.append(whole[:place] + bytes([int(random.integers(256))]) + whole[place + 1 :])
    lines = []
    for content in spoilt:
        model.weights.write_bytes(content)
        try:
            trained_network(model)
        except CurateError as error:
            lines.append(str(error))
    assert len(lines) > 20
    assert all("damaged" in line and "\n" not in line for line in lines)


def test_weights_of_another_network_are_one_line(model: StoredModel) -> None:
    tensors, _ = checkpoint.load(model.weights)
    name = next(iter(tensors))
    checkpoint.save(model.folder / store.WEIGHTS, tensors | {name: torch.zeros(3)})
    line = error_line(lambda: trained_network(model))
    assert "do not fit the network" in line
    assert name in line


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architecture": "no-such"}, "architecture"),
        ({"options": {"sizes": 3}}, "option"),
        ({"architecture": "encoder-head", "encoder": "resnet18", "options": {"hidden": -5}}, "cannot be built"),
        ({"architecture": "encoder-head", "encoder": "resnet18", "options": {"hidden": "x"}}, "hidden"),
    ],
)
def test_a_recipe_that_builds_nothing_is_one_line(model: StoredModel, changes: Any, why: str) -> None:
    values = model.manifest["recipe"]
    spoilt = StoredModel(model.folder, model.manifest | {"recipe": values | {"model": values["model"] | changes}})
    assert why in error_line(lambda: trained_network(spoilt))


@pytest.mark.parametrize("state", [{}, {"phase": "x"}, {"phase": 0, "epoch": 0, "number": 0, "waited": 0, "fitted": 3}])
def test_what_no_training_left_is_one_line(tmp_path: Path, state: Any) -> None:
    checkpoint.save(tmp_path / loop.LAST, {"model.a": torch.zeros(1)}, state)
    assert "not the state of a training" in error_line(lambda: loop._load_state(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        {"model": "abc", "before": [{}]},
        {"model": "abc", "before": ["x" * 4000]},
        {"model": "abc", "before": ["../../etc"]},
        {"model": 3},
        {"model": "abc", "before": "older"},
        {"model": "abc", "before": [], "forced": ["x"]},
    ],
)
def test_an_alias_names_models_and_nothing_else(tmp_path: Path, content: dict[str, object]) -> None:
    project = setup.write(tmp_path / "plant", [{"name": "line", "format": "images", "data": tmp_path}], ("crack",))
    folder = store.models_folder(project)
    folder.mkdir(parents=True)
    (folder / "production.json").write_text(json.dumps(content))
    for call in (store.rollback, lambda opened: store.alias(opened, store.PRODUCTION)):
        with pytest.raises(CurateError, match=r"production\.json is damaged"):
            call(project)
