"""The adversarial synthesiser on drawn windows: cracks are bright, holes dark, which is learnt in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from synth.nouns import TrainingWindow
from synth.synthesisers import _parts, gan
from tests.synth.windows import CLASSES, examples, scene, window

QUICK: dict[str, Any] = {"device": "cpu", "seed": 0, "batch": 4}


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def silent(stage: str, done: int, total: int) -> None:
    pass


def fit(folder: Path, some: list[TrainingWindow] | None = None, **options: Any) -> dict[str, Any]:
    return gan.fit(some or examples(), CLASSES, folder, **{"progress": silent, **QUICK, **options})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan")
    fit(folder, steps=8, batch=8, rate=3e-3)
    return folder


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan")
    fit(folder, steps=80, batch=8, rate=3e-3)
    return folder


def generate(folder: Path, *scenes: Any) -> list[np.ndarray]:
    return gan.generate(scenes, folder, device="cpu")


@pytest.mark.exhaustive
def test_classes_get_their_own_look(learnt: Path) -> None:
    scenes = [scene(name, number) for number in range(3) for name in CLASSES]
    for painted, source in zip(generate(learnt, *scenes), scenes, strict=True):
        change = painted[source.mask].mean() - source.ground[source.mask].mean()
        assert change > 15 if source.name == "crack" else change < -15


def test_pixels_away_from_the_mask_stay_as_they_were(fitted: Path) -> None:
    single = scene("hole", 0, strength=0.5)
    painted, strong = (generate(fitted, each)[0] for each in (single, replace(single, strength=1.0)))
    away = _parts.nearness(single.mask) == 0
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted[away], single.ground[away])
    half, whole = ((each[single.mask].astype(float) - single.ground[single.mask]) for each in (painted, strong))
    np.testing.assert_allclose(half, whole / 2, atol=1)


def test_a_scene_s_bits_do_not_depend_on_its_batch(fitted: Path) -> None:
    scenes = [scene("crack", 0), scene("hole", 1), scene("crack", 2)]
    together, turned = generate(fitted, *scenes), generate(fitted, *reversed(scenes))
    for number, source in enumerate(scenes):
        np.testing.assert_array_equal(together[number], generate(fitted, source)[0])
        np.testing.assert_array_equal(together[number], turned[-1 - number])
    assert (generate(fitted, replace(scenes[0], seed=99))[0] != together[0]).any()


def test_a_killed_fit_resumes_to_the_same_weights(tmp_path: Path) -> None:
    some, calls = examples(), iter(range(100))

    def killing(stage: str, done: int, total: int) -> None:
        if next(calls) == 12:
            raise Killed

    whole = fit(tmp_path / "whole", some, steps=24)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", some, steps=24, progress=killing)
    begins: list[int] = []
    cut = fit(tmp_path / "cut", some, steps=24, progress=lambda stage, done, total: begins.append(done))
    assert begins == [10] + [1] * 14
    assert cut["history"] == whole["history"]
    left, right = ((tmp_path / folder / _parts.WEIGHTS).read_bytes() for folder in ("whole", "cut"))
    assert left == right


def test_a_fit_that_was_killed_at_its_very_end_leaves_no_state(tmp_path: Path) -> None:
    """Killed between its record and the removal of what only going on needs."""
    _parts.finish(tmp_path, {"steps": 4})
    (tmp_path / "state-00000004").mkdir()
    assert _parts.finished(tmp_path) == {"steps": 4}
    assert [file.name for file in tmp_path.iterdir()] == [_parts.FITTED]


@pytest.mark.exhaustive
def test_fitting_stops_when_held_out_groups_get_worse(tmp_path: Path) -> None:
    """There, cracks are dark and holes bright: what is learnt of the classes is wrong."""
    held = {window.group for window in _parts.split(examples(), 0)[1]}
    some = [
        replace(window, name=CLASSES[1 - CLASSES.index(window.name)])
        if window.group in held and window.name
        else window
        for window in examples()
    ]
    result = fit(tmp_path, some, steps=120, batch=8, rate=3e-3, patience=2)
    late = [entry for entry in result["history"] if entry["step"] > 60]  # before, classes are not told apart
    losses = [entry["held_loss"] for entry in late]
    assert 60 < result["steps"] < 120
    assert result["held_loss"] == min(losses) < losses[-1]


def test_classes_are_phased_in() -> None:
    import torch

    numbers = torch.tensor([0, 1, 2])  # the last is the null class
    assert gan._told(numbers, 2, 0.0).tolist() == [[0.5, 0.5]] * 3
    assert gan._told(numbers, 2, 1.0).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_the_critic_looks_only_near_the_mask_and_gradients_pass_the_changes() -> None:
    import torch

    from synth.synthesisers._spade import Discriminator

    torch.manual_seed(0)
    critic, hints = Discriminator(1, 2), torch.zeros(1, 1, 64, 64)
    hints[:, :, 8:12, 8:12] = 1
    pixels, told = torch.zeros(1, 1, 64, 64, requires_grad=True), torch.tensor([[1.0, 0.0]])
    score = gan._score(critic, *gan._changed(pixels, hints, np.random.default_rng(1)), told)
    slope = torch.autograd.grad(score, pixels)[0]
    assert slope[:, :, :24, :24].abs().sum() > 0
    still = torch.autograd.grad(gan._score(critic, pixels, hints, told), pixels)[0]
    assert not still[:, :, 48:, 48:].any()
    steep = gan._steepness(critic, pixels.detach(), hints, told).item()
    assert steep == pytest.approx(still.square().sum().item() / 2)


def test_data_that_cannot_be_fitted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="no example shows a defect"):
        fit(tmp_path, [window("", 1)])
    with pytest.raises(CurateError, match="28x28 px; this network takes multiples of 8"):
        fit(tmp_path, [window("hole", 1, side=28)])
    with pytest.raises(CurateError, match="no fitted synthesiser"):
        generate(tmp_path, scene("hole", 0))
