"""Stable Diffusion's inpainting network from a local folder, taught the project's defects by a small adapter (LoRA).

Give the folder: `--set path=/...` (a diffusers pipeline with safetensors; nothing is ever downloaded). Of eight
paintings of a scene the one is taken that looks most like a real defect of train drawn for it: in contrast to the steel
around, roughness and edges. Mind the licence of the weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from synth.nouns import Examples, Mask, Pixels, Scene
from synth.synthesisers import _parts as parts
from synth.synthesisers._parts import Progress

STEP = 1
WINDOW = 128
PAD = 24  # pixels of steel around the mask that the network sees
OUTSIDE = 0.05  # weight of the loss where the ground is given
DROPPED = 0.1  # share of the prompts that the network is not told
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
SEEN = 9  # channels of an inpainting network: noisy latents, mask, latents of the ground


def fit(
    examples: Examples,
    classes: Sequence[str],
    folder: Path,
    *,
    progress: Progress,
    device: str,
    seed: int,
    path: str = "",
    steps: int = 600,
    minutes: float | None = None,
    batch: int = 4,
    rate: float = 1e-4,
    rank: int = 8,
    patience: int = 4,
) -> dict[str, Any]:
    """Learn an adapter from the examples.

    Args:
        examples: windows of the train split, with their masks.
        classes: the names of the classes.
        folder: where it keeps what `generate` needs, and its progress; a second call goes on there.
        progress: called with the stage and the steps done.
        device: `cpu` or `cuda`.
        seed: of all chance.
        path: the folder of a Stable-Diffusion inpainting pipeline.
        steps: the number of steps.
        minutes: end by the clock, so that two runs differ.
        batch: examples a step.
        rate: the learning rate.
        rank: of the adapter.
        patience: looks at held-out groups without an improvement before it stops; there are 12 looks.

    Returns:
        What a person should know of it: seconds, steps, losses. It goes into the manifest.
    """
    if done := parts.finished(folder):
        return done
    parts.at_least(steps=(steps, 1), batch=(batch, 1), patience=(patience, 1), rank=(rank, 1), rate=(rate, 1e-8))
    parts.check_examples(examples, classes, 1)
    learn, held = parts.split([window for window in examples if window.name], seed)
    config = {"path": path, "rank": rank, "classes": list(classes), "channels": examples[0].pixels.shape[2]}
    pipeline = _pipeline(path, device)
    told = _told_prompts(pipeline, classes)

    lora, ema, optimiser, accelerator = _trainable(pipeline, config, seed, rate)
    parameters = list(lora)
    run = parts.resumed(folder, accelerator, ema)
    progress("sd-inpaint", run.step, steps)
    begun, look = time.perf_counter() - run.seconds, max(1, steps // 12)
    while (share := run.share(steps, minutes)) < 1 and run.waited < patience:
        random = np.random.default_rng([seed, run.step])
        for group in optimiser.param_groups:
            group["lr"] = rate * parts.warm_then_cosine(share)
        some = [learn[row] for row in parts.balanced([window.name for window in learn], batch, random)]
        with parts.memory(batch):
            loss = _loss(pipeline, some, told, random)
            accelerator.backward(loss)
        parts.check_finite(value := float(loss.detach()), run.step, rate)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        ema.step(parameters)
        run.step, run.seconds = run.step + 1, time.perf_counter() - begun
        progress("sd-inpaint", 1, steps)
        if run.step % look == 0 or run.share(steps, minutes) >= 1:
            with parts.averaged(ema, parameters):
                if run.judged(value, _judged(pipeline, held, told, batch)):
                    parts.save_weights(folder, _adapter(pipeline) | _looks(learn), config)
            parts.keep(folder, run, accelerator, ema)
    return parts.finish(folder, run.report(held_examples=len(held), examples=len(learn)))


def generate(
    scenes: Sequence[Scene],
    folder: Path,
    *,
    device: str,
    steps: int = 30,
    guidance: float = 5.0,
    best_of: int = 8,
) -> list[Pixels]:
    """Paint the scenes. A scene's `strength` below 1 starts from its own steel.

    Args:
        scenes: grounds with the masks to fill, and donors.
        folder: what `fit` wrote.
        device: `cpu` or `cuda`.
        steps: denoising steps.
        guidance: above 1 makes the class plainer.
        best_of: paintings of each scene, of which the one that fits best is kept.

    Returns:
        A window for each scene; away from the mask its pixels are the ground's.
    """
    from peft import set_peft_model_state_dict

    parts.at_least(steps=(steps, 1), best_of=(best_of, 1), guidance=(guidance, 0))
    tensors, config = parts.weights(folder)
    parts.check_scenes(scenes, config["classes"], config["channels"], 1)
    pipeline = _pipeline(config["path"], device)
    _adapt(pipeline, config["rank"])
    looks = {name[5:]: tensors.pop(name).numpy() for name in list(tensors) if name.startswith("look.")}
    set_peft_model_state_dict(pipeline.unet, tensors)
    pipeline.unet.to(device)
    return [_best(scene, _painted(pipeline, scene, steps, guidance, best_of), looks[scene.name]) for scene in scenes]


# --- the pipeline -----------------------------------------------------------------------------------------------------


def _pipeline(path: str, device: str) -> Any:
    """Read from disk alone, and from tensors alone. Raises CurateError where it is no inpainting pipeline."""
    from diffusers import StableDiffusionInpaintPipeline

    if not path:
        raise CurateError("sd-inpaint needs the folder of an inpainting pipeline. Give it: --set path=/...")
    wanted = "a folder that diffusers' StableDiffusionInpaintPipeline.save_pretrained wrote, with safetensors"
    if not (Path(path) / "model_index.json").is_file():
        raise CurateError(f"{path} is no pipeline: it has no model_index.json; wanted: {wanted}")
    try:
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(
            path, local_files_only=True, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )
    except Exception as error:  # many parts of two libraries read it, and each fails in its own way
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0][:160]
        raise CurateError(f"{path} is no pipeline that can be read ({reason}); wanted: {wanted}") from None
    if pipeline.unet.config.in_channels != SEEN:
        raise CurateError(
            f"{path} cannot inpaint: its network sees {pipeline.unet.config.in_channels} channels, not {SEEN}"
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.requires_grad_(False)
    return pipeline.to(device)


def _adapt(pipeline: Any, rank: int) -> None:
    from peft import LoraConfig

    pipeline.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))


def _adapter(pipeline: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(pipeline.unet))


def _trainable(pipeline: Any, config: dict[str, Any], seed: int, rate: float) -> tuple[Any, Any, Any, Any]:
    """The adapter's weights alone: a state holds some MB, not the whole network."""
    import torch
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    _adapt(pipeline, config["rank"])
    lora = torch.nn.ParameterList([weights for weights in pipeline.unet.parameters() if weights.requires_grad])
    ema = EMAModel(lora.parameters(), decay=0.995, use_ema_warmup=True, power=0.75, foreach=True)
    accelerator = Accelerator(device_placement=False)
    lora, optimiser = accelerator.prepare(lora, torch.optim.AdamW(lora.parameters(), rate, weight_decay=1e-2))
    return lora, ema, optimiser, accelerator


def _prompt(name: str) -> str:
    return f"close-up photo of a steel surface with a {name} defect"


def _told_prompts(pipeline: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Text embeddings of each class's prompt, and of the empty one."""
    prompts = {name: _prompt(name) for name in classes} | {"": ""}
    device = pipeline.unet.device
    return {name: pipeline.encode_prompt(text, device, 1, False)[0].detach() for name, text in prompts.items()}


# --- learning ---------------------------------------------------------------------------------------------------------


def _loss(pipeline: Any, some: Examples, told: dict[str, Any], random: np.random.Generator) -> Any:
    """The error of the noise (or velocity) in latents, most of it in and near the mask."""
    import torch
    from diffusers import DDPMScheduler

    unet, schedule = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    latents, grounds, near = _latents(pipeline, some, random)
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    times = torch.randint(schedule.config.num_train_timesteps, (len(some),), generator=generator).to(latents.device)
    names = ["" if random.random() < DROPPED else window.name for window in some]
    seen = torch.cat([schedule.add_noise(latents, noise, times), near, grounds], 1)
    with parts.half(latents.device.type):
        output = unet(seen, times, torch.cat([told[name] for name in names])).sample.float()
    velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(latents, noise, times) if velocity else noise
    weight = near + OUTSIDE
    return (((output - target) ** 2 * weight).mean(1).sum((1, 2)) / weight.mean(1).sum((1, 2))).mean()


def _latents(pipeline: Any, some: Examples, random: np.random.Generator) -> tuple[Any, Any, Any]:
    """Latents of windows and of their backgrounds, and the mask to paint in; cut as the pipeline cuts its scenes."""
    import torch
    from torch.nn.functional import interpolate

    cut = [_cut(pipeline, window.pixels, window.mask, random) for window in some]
    pixels, near = (torch.stack([pair[part] for pair in cut]).to(pipeline.unet.device) for part in (0, 1))
    with torch.no_grad(), parts.half(pixels.device.type):
        both = pipeline.vae.encode(torch.cat([pixels, pixels * (near == 0)])).latent_dist.mode().float()
    latents, grounds = (both * pipeline.vae.config.scaling_factor).chunk(2)
    return latents, grounds, interpolate(near, latents.shape[2:])


def _cut(pipeline: Any, pixels: Pixels, mask: Mask, random: np.random.Generator) -> tuple[Any, Any]:
    """The part around the mask, as large as the network wants it, flipped at random; and where it may paint."""
    import torch
    from torch.nn.functional import interpolate

    near, side = parts.nearness(mask) > 0, _side(pipeline)
    left, top, right, bottom = pipeline.mask_processor.get_crop_region(_image(near), side, side, pad=PAD)
    stacked = np.concatenate([pixels / 127.5 - 1, near[..., None]], 2)[top:bottom, left:right]
    flips = [axis for axis in (0, 1) if random.random() < 0.5]
    tensor = torch.from_numpy(np.flip(stacked, flips).copy()).float().permute(2, 0, 1)[None]
    resized = interpolate(tensor, (side, side), mode="bilinear")[0]
    return resized[:-1].expand(3, -1, -1), (resized[-1:] > 0.5).float()


def _side(pipeline: Any) -> int:
    return int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor)


def _judged(pipeline: Any, held: Examples, told: dict[str, Any], batch: int) -> float | None:
    """The loss on held-out groups, with the same noise and times at every look."""
    import torch

    if not held:
        return None
    losses = []
    with torch.no_grad(), parts.memory(batch):
        for at in range(0, len(held), batch):
            some = held[at : at + batch]
            losses += [float(_loss(pipeline, some, told, np.random.default_rng(at))) * len(some)]
    return sum(losses) / len(held)


# --- painting ---------------------------------------------------------------------------------------------------------


def _painted(pipeline: Any, scene: Scene, steps: int, guidance: float, count: int) -> list[Pixels]:
    """So many windows of one scene, each with noise of its own."""
    import torch

    near = parts.nearness(scene.mask) > 0
    seeds = np.random.default_rng(scene.seed).integers(2**62, size=count).tolist()
    with torch.inference_mode(), parts.half(pipeline.unet.device.type), parts.memory(count, "best_of"):
        result = pipeline(
            prompt=_prompt(scene.name),
            image=_image(scene.ground).convert("RGB"),
            mask_image=_image(near),
            height=_side(pipeline),
            width=_side(pipeline),
            padding_mask_crop=PAD,
            strength=max(scene.strength, 1 / steps),
            num_inference_steps=steps,
            guidance_scale=guidance,
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
    mode = "RGB" if scene.ground.shape[2] == 3 else "L"
    windows = [np.asarray(image.convert(mode)).reshape(scene.ground.shape) for image in result.images]
    return [parts.composite(scene.ground, window, scene.mask) for window in windows]


def _image(values: NDArray[Any]) -> Any:
    from PIL import Image

    return Image.fromarray(np.uint8(values * 255) if values.dtype == bool else np.squeeze(values))


def _best(scene: Scene, windows: Sequence[Pixels], real: NDArray[np.float32]) -> Pixels:
    """The window nearest in looks to a real one drawn by the scene's seed: always the likeliest would be always the
    same."""
    wanted = real[np.random.default_rng(scene.seed).integers(len(real))]
    spread = real.std(axis=0) + 1e-6
    far = [float((((parts.look(window, scene.mask) - wanted) / spread) ** 2).sum()) for window in windows]
    return windows[int(np.argmin(far))]


def _looks(learn: Examples) -> dict[str, Any]:
    """Looks of the real defects of train, class by class."""
    import torch

    by_class: dict[str, list[NDArray[np.float32]]] = {}
    for window in learn:
        by_class.setdefault(f"look.{window.name}", []).append(parts.look(window.pixels, window.mask))
    return {name: torch.from_numpy(np.stack(looks)) for name, looks in by_class.items()}
