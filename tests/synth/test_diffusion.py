"""The diffusion synthesiser on drawn windows: cracks are bright, holes dark, which is learnt in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from synth.nouns import TrainingWindow
from synth.synthesisers import _parts, diffusion
from tests.synth.windows import CLASSES, examples, scene, shape, window

QUICK: dict[str, Any] = {"device": "cpu", "seed": 0, "batch": 4}


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def silent(stage: str, done: int, total: int) -> None:
    pass


def fit(folder: Path, some: list[TrainingWindow] | None = None, **options: Any) -> dict[str, Any]:
    return diffusion.fit(some or examples(), CLASSES, folder, **{"progress": silent, **QUICK, **options})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusion")
    fit(folder, steps=8, batch=8, rate=3e-3)
    return folder


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusion")
    fit(folder, steps=60, batch=8, rate=3e-3)
    return folder


def generate(folder: Path, *scenes: Any, **options: Any) -> list[np.ndarray]:
    return diffusion.generate(scenes, folder, **{"device": "cpu", "steps": 6, **options})


# --- what it paints ---------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_classes_get_their_own_look(learnt: Path) -> None:
    scenes = [scene(name, number) for number in range(3) for name in CLASSES]
    for painted, source in zip(generate(learnt, *scenes), scenes, strict=True):
        change = painted[source.mask].mean() - source.ground[source.mask].mean()
        assert change > 30 if source.name == "crack" else change < -30


def test_pixels_away_from_the_mask_stay_as_they_were(fitted: Path) -> None:
    single = scene("hole", 0)
    painted = generate(fitted, single)[0]
    ys, xs = np.nonzero(single.mask)
    y, x = np.mgrid[:32, :32]
    away = np.sqrt(((y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2).min(-1)) >= _parts.FEATHER
    assert painted.shape == single.ground.shape
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted[away], single.ground[away])
    assert (painted[single.mask] != single.ground[single.mask]).mean() > 0.9


def test_a_scene_s_bits_do_not_depend_on_its_batch(fitted: Path) -> None:
    scenes = [scene("crack", 0), scene("hole", 1, strength=0.5), scene("crack", 2)]
    together = generate(fitted, *scenes)
    turned = generate(fitted, *reversed(scenes))
    for number, source in enumerate(scenes):
        np.testing.assert_array_equal(together[number], generate(fitted, source)[0])
        np.testing.assert_array_equal(together[number], turned[-1 - number])
    other = generate(fitted, replace(scenes[0], seed=99))[0]
    assert (other != together[0]).any()


@pytest.mark.exhaustive
def test_a_weak_defect_stays_nearer_to_the_steel(learnt: Path) -> None:
    def change(strength: float) -> float:
        single = scene("hole", 0, strength=strength)
        return float(
            abs(generate(learnt, single, steps=10)[0][single.mask].astype(float) - single.ground[single.mask]).mean()
        )

    assert change(0.15) < 0.7 * change(1.0)


@pytest.mark.exhaustive
def test_guidance_makes_the_class_more_distinct(learnt: Path) -> None:
    single = scene("hole", 0)
    none, plain, led = (generate(learnt, single, guidance=value)[0][single.mask].mean() for value in (0.0, 1.0, 3.0))
    assert led < plain - 2 < none - 12


# --- how it learns ----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_killed_fit_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "JUDGED", 1)  # looks are most of so short a fit
    some, calls = examples(), iter(range(100))

    def killing(stage: str, done: int, total: int) -> None:
        if next(calls) == 6:  # the first call tells where the run begins
            raise Killed

    whole = fit(tmp_path / "whole", some, steps=24)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", some, steps=24, progress=killing)
    assert [file.name for file in (tmp_path / "cut").glob("state-*")] == ["state-00000004"]
    with pytest.raises(CurateError, match="no fitted"):
        _parts.weights(tmp_path / "nothing")
    begins: list[int] = []
    cut = fit(tmp_path / "cut", some, steps=24, progress=lambda stage, done, total: begins.append(done))
    assert begins == [4] + [1] * 20
    assert cut["history"] == whole["history"]
    left, right = ((tmp_path / folder / _parts.WEIGHTS).read_bytes() for folder in ("whole", "cut"))
    assert left == right
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == [_parts.FITTED, _parts.WEIGHTS]


def test_a_finished_fit_is_not_repeated(fitted: Path) -> None:
    def never(stage: str, done: int, total: int) -> None:
        raise AssertionError(stage)

    assert fit(fitted, steps=8, progress=never)["steps"] == 8


@pytest.mark.exhaustive
def test_fitting_stops_when_held_out_groups_get_worse(tmp_path: Path) -> None:
    """The held-out windows are noise: the better the network knows steel, the worse it does there."""
    random, some = np.random.default_rng(0), examples()
    held = {window.group for window in _parts.split(some, 0)[1]}
    some = [
        replace(window, pixels=random.choice(np.array([0, 255], np.uint8), window.pixels.shape))
        if window.group in held
        else window
        for window in some
    ]
    result = fit(tmp_path, some, steps=120, batch=8, patience=2)
    losses = [entry["held_loss"] for entry in result["history"]]
    assert result["steps"] < 120
    assert losses.index(min(losses)) == len(losses) - 3
    assert result["held_loss"] == min(losses)


def test_fitting_stops_at_its_time_limit(tmp_path: Path) -> None:
    result = fit(tmp_path, steps=10_000, minutes=1e-4)
    assert result["steps"] == 1
    assert len(generate(tmp_path, scene("hole", 0), steps=2)) == 1


def test_colour(tmp_path: Path) -> None:
    fit(tmp_path, examples(each=4, channels=3), steps=1)
    single = scene("crack", 0, channels=3)
    assert generate(tmp_path, single, steps=2)[0].shape == (32, 32, 3)
    with pytest.raises(CurateError, match="1 channels, the network learnt 3"):
        generate(tmp_path, scene("crack", 0))


def test_the_large_network_has_its_documented_size() -> None:
    net = diffusion._network({"size": "gpu", "channels": 1, "classes": ["a", "b"]})
    assert sum(weights.numel() for weights in net.parameters()) / 1e6 == pytest.approx(22, abs=1)
    attending = ["Attn" in type(block).__name__ for block in net.down_blocks]
    assert attending == [False, False, True, True]


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_whole_groups_are_held_out_and_a_fifth_of_each_class_at_most() -> None:
    some = [*examples(each=20), *(window("hole", number) for number in range(6))]  # pieces 0..2 show cracks and holes
    for seed in range(20):
        learn, held = _parts.split(some, seed)
        assert not {window.group for window in learn} & {window.group for window in held}
        assert held
        assert all(window.name for window in held)
        for name in CLASSES:
            groups = {window.group for window in some if window.name == name}
            assert len(groups & {window.group for window in held}) <= len(groups) / 5
    assert not _parts.split(examples(each=8), 0)[1]  # four groups a class are too few


def test_every_class_is_drawn_as_often_and_clean_steel_borrows_masks() -> None:
    some = [*(window("crack", number) for number in range(30)), window("hole", 50), window("", 60)]
    deck = _parts.deck(some, CLASSES)
    pixels, hints, classes = _parts.draw(deck, 4000, np.random.default_rng(0))
    shares = np.bincount(classes.numpy(), minlength=3) / 4000
    np.testing.assert_allclose(shares, [0.45, 0.45, 0.1], atol=0.04)
    assert (hints.amax((1, 2, 3)) == 1).all()
    assert float(pixels.min()) >= -1
    assert float(pixels.max()) <= 1
    assert set(hints.unique().tolist()) == {0.0, 0.5, 1.0}


def test_the_seam_falls_from_the_mask_to_the_feather() -> None:
    mask = np.zeros((1, 9), bool)
    assert not _parts.nearness(mask).any()
    mask[0, 0] = True
    np.testing.assert_allclose(_parts.nearness(mask)[0, :6], [1, 0.75, 0.5, 0.25, 0, 0])
    ground = np.full((1, 9, 1), 100, np.uint8)
    mixed = _parts.composite(ground, np.full((1, 9, 1), 200, np.uint8), mask)
    assert mixed[0, :6, 0].tolist() == [200, 175, 150, 125, 100, 100]


# --- what a user can do wrong -----------------------------------------------------------------------------------------


def test_out_of_memory_names_the_batch_to_try() -> None:
    import torch

    with pytest.raises(CurateError, match="--set batch=8"), _parts.memory(16):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="other"), _parts.memory(16):
        raise RuntimeError("some other trouble")


def test_data_that_cannot_be_fitted_is_an_error(tmp_path: Path) -> None:
    uneven = TrainingWindow(np.zeros((30, 30, 1), np.uint8), shape("hole", 0, 30), "hole", "g")
    for some, reason in (
        ([window("", 1)], "no example shows a defect"),
        ([uneven], "30x30 px; this network takes multiples of 4"),
        ([replace(uneven, name="dent")], "unknown class 'dent'"),
        ([uneven, window("hole", 1)], "2 shapes|multiples of 4"),
    ):
        with pytest.raises(CurateError, match=reason):
            fit(tmp_path, some)
    with pytest.raises(CurateError, match="'patience' is 0; allowed: 1 or more"):
        fit(tmp_path, patience=0)
    with pytest.raises(CurateError, match="--set rate="):
        fit(tmp_path, steps=24, rate=1e30)


def test_windows_that_cannot_be_painted_are_an_error(fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="unknown class 'dent'"):
        generate(fitted, scene("dent", 0))
    with pytest.raises(CurateError, match=r"no fitted synthesiser. Run: curate synth fit"):
        generate(tmp_path, scene("hole", 0))
