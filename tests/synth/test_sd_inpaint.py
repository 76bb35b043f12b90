"""The whole way through a Stable-Diffusion inpainting pipeline of random weights, so small that it fits a test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from synth.nouns import TrainingWindow
from synth.synthesisers import _parts, sd_inpaint
from tests.synth.windows import CLASSES, examples, scene, window

QUICK: dict[str, Any] = {"device": "cpu", "seed": 0, "batch": 2, "rank": 2}


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def tokenizer() -> Any:
    """Letters alone, no merges."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: row for row, word in enumerate(words)}, merges=[], model_max_length=77)


def build(folder: Path, channels: int = 9) -> Path:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=200, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    parts = {"vae": vae, "text_encoder": CLIPTextModel(text), "unet": unet, "tokenizer": tokenizer()}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionInpaintPipeline(**parts, **none, scheduler=DDIMScheduler(steps_offset=1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pipeline"))


def silent(stage: str, done: int, total: int) -> None:
    pass


def fit(folder: Path, path: Path | str, some: list[TrainingWindow] | None = None, **options: Any) -> dict[str, Any]:
    return sd_inpaint.fit(
        some or examples(), CLASSES, folder, **{"progress": silent, **QUICK, "path": str(path), **options}
    )


@pytest.fixture(scope="module")
def fitted(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    fit(folder, weights, steps=12, rate=1e-2)
    return folder


def generate(folder: Path, *scenes: Any, **options: Any) -> list[np.ndarray]:
    return sd_inpaint.generate(scenes, folder, **{"device": "cpu", "steps": 3, "best_of": 2, **options})


def test_only_the_adapter_is_kept(fitted: Path) -> None:
    tensors, config = _parts.weights(fitted)
    assert config["classes"] == list(CLASSES)
    assert {name for name in tensors if "lora" not in name} == {"look.crack", "look.hole"}
    assert any(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)  # begins at 0


def test_pixels_away_from_the_mask_stay_as_they_were(fitted: Path) -> None:
    for source in (scene("hole", 0), scene("crack", 1, strength=0.1)):
        painted = generate(fitted, source)[0]
        away = _parts.nearness(source.mask) == 0
        assert painted.shape == source.ground.shape
        assert painted.dtype == np.uint8
        np.testing.assert_array_equal(painted[away], source.ground[away])
        assert (painted[source.mask] != source.ground[source.mask]).mean() > 0.5


def test_a_scene_s_bits_do_not_depend_on_its_batch(fitted: Path) -> None:
    scenes = [scene("crack", 0), scene("hole", 1)]
    together = generate(fitted, *scenes)
    for source, painted in zip(scenes, together, strict=True):
        np.testing.assert_array_equal(painted, generate(fitted, source)[0])
    assert (generate(fitted, replace(scenes[0], seed=99))[0] != together[0]).any()


def test_the_adapter_and_the_prompt_reach_the_picture(fitted: Path, weights: Path, tmp_path: Path) -> None:
    fit(tmp_path, weights, steps=1, rate=1e-8)
    single = scene("crack", 0)
    painted = generate(fitted, single, best_of=1)[0]
    assert (generate(tmp_path, single, best_of=1)[0] != painted).any()
    assert (generate(fitted, replace(single, name="hole"), best_of=1)[0] != painted).any()


def test_a_killed_fit_resumes_to_the_same_weights(weights: Path, tmp_path: Path) -> None:
    some, calls = examples(), iter(range(100))

    def killing(stage: str, done: int, total: int) -> None:
        if next(calls) == 4:
            raise Killed

    whole = fit(tmp_path / "whole", weights, some, steps=6)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", weights, some, steps=6, progress=killing)
    state = next((tmp_path / "cut").glob("state-*"))
    assert sum(file.stat().st_size for file in state.iterdir()) < 1_000_000  # the network itself is not in it
    cut = fit(tmp_path / "cut", weights, some, steps=6)
    assert cut["history"] == whole["history"]
    left, right = ((tmp_path / folder / _parts.WEIGHTS).read_bytes() for folder in ("whole", "cut"))
    assert left == right


def test_the_painting_nearest_to_a_real_defect_is_taken() -> None:
    single = scene("hole", 0)
    levels = [np.where(single.mask[..., None], value, single.ground).astype(np.uint8) for value in (250, 40, 128)]
    real = np.stack([_parts.look(window("hole", number).pixels, window("hole", number).mask) for number in range(6)])
    assert sd_inpaint._best(single, levels, real) is levels[1]
    bright = np.stack(
        [_parts.look(window("crack", number).pixels, window("crack", number).mask) for number in range(6)]
    )
    assert sd_inpaint._best(single, levels, bright) is levels[0]


def test_training_cuts_as_the_pipeline_does(weights: Path) -> None:
    pipeline = sd_inpaint._pipeline(str(weights), "cpu")
    some = [window("hole", number) for number in range(2)]
    latents, grounds, near = sd_inpaint._latents(pipeline, some, np.random.default_rng(0))
    assert latents.shape == grounds.shape == (2, 4, 16, 16)
    assert near.shape == (2, 1, 16, 16)
    assert 0 < float(near.mean()) < 1
    assert (latents != grounds).any()


def test_a_path_without_a_pipeline_is_an_error(weights: Path, tmp_path: Path) -> None:
    def broken(name: str, content: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(content)
        return tmp_path / name

    index = json.loads((weights / "model_index.json").read_text())
    for path, reason in (
        ("", "Give it: --set path="),
        (tmp_path / "nowhere", "it has no model_index.json"),
        (broken("text", "not json"), "cannot be read|can be read"),
        (broken("empty", json.dumps(index)), "can be read"),
        (build(tmp_path / "plain", channels=4), "sees 4 channels, not 9"),
    ):
        with pytest.raises(CurateError, match=reason) as caught:
            fit(tmp_path / "fit", path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "fit").exists()
