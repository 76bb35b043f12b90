"""A small diffusion network paints the defect into the good steel around it, in the shape of the mask.

Trained from nothing on the project's own defects: noise in the mask becomes a defect of the asked class, step by
step, with the steel around given (inpainting as in Palette). `size` is `cpu` (for windows of 64 px: 0.6 M parameters,
about ten minutes on one core) or `gpu` (for `--window 128`: 22 M, bfloat16). It stops when the loss on defects of
held-out groups no longer falls: from there on it would learn its examples by heart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synth.nouns import Examples, Pixels, Scene
from synth.synthesisers import _parts as parts
from synth.synthesisers._parts import ExampleTensors, Progress

STEP = 1
WINDOW = 64
TIMES = 1000  # of the noise schedule
DROPPED = 0.1  # share of the classes that the network is not told
OUTSIDE = 0.05  # weight of the loss where the ground is given


@dataclass(frozen=True)
class Size:
    """A network and how it is best trained."""

    widths: tuple[int, ...]
    layers: int
    attention: int  # so many of the lowest levels have it
    norm_groups: int
    steps: int
    batch: int
    rate: float

    @property
    def stride(self) -> int:
        return int(2 ** (len(self.widths) - 1))


SIZES = {
    "cpu": Size((16, 32, 64), 1, 0, 8, steps=1200, batch=16, rate=2e-3),
    "gpu": Size((64, 128, 192, 256), 2, 2, 32, steps=6000, batch=64, rate=3e-4),
}


def fit(
    examples: Examples,
    classes: Sequence[str],
    folder: Path,
    *,
    progress: Progress,
    device: str,
    seed: int,
    size: Literal["cpu", "gpu"] = "cpu",
    steps: int | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    rate: float | None = None,
    patience: int = 4,
) -> dict[str, Any]:
    """Learn from the examples.

    Args:
        examples: windows of the train split, with their masks.
        classes: the names of the classes.
        folder: where it keeps what `generate` needs, and its progress; a second call goes on there.
        progress: called with the stage and the steps done.
        device: `cpu` or `cuda`.
        seed: of all chance.
        size: of the network: `cpu` or `gpu`.
        steps: the number of steps.
        minutes: end by the clock, so that two runs differ.
        batch: examples a step.
        rate: the learning rate.
        patience: looks at held-out groups without an improvement before it stops; there are 12 looks.

    Returns:
        What a person should know of it: seconds, steps, losses. It goes into the manifest.
    """
    if done := parts.finished(folder):
        return done
    chosen = SIZES[size]
    steps, batch, rate = steps or chosen.steps, batch or chosen.batch, rate or chosen.rate
    parts.at_least(steps=(steps, 1), batch=(batch, 1), patience=(patience, 1), rate=(rate, 1e-8))
    parts.check_examples(examples, classes, chosen.stride)
    learn, held = parts.split(examples, seed)
    learning, judging = parts.deck(learn, classes), parts.deck(held, classes) if held else None
    config = {"size": size, "channels": examples[0].pixels.shape[2], "classes": list(classes)}

    net, ema, optimiser, accelerator = _trainable(config, device, seed, rate)
    parameters = list(net.parameters())
    run = parts.resumed(folder, accelerator, ema)
    progress("diffusion", run.step, steps)
    begun, look = time.perf_counter() - run.seconds, max(1, steps // 12)
    while (share := run.share(steps, minutes)) < 1 and run.waited < patience:
        for group in optimiser.param_groups:
            group["lr"] = rate * parts.warm_then_cosine(share)
        with parts.memory(batch):
            loss = _loss(net, _drawn(learning, batch, np.random.default_rng([seed, run.step]), device)).mean()
            accelerator.backward(loss)
        parts.check_finite(value := float(loss.detach()), run.step, rate)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        ema.step(parameters)
        run.step, run.seconds = run.step + 1, time.perf_counter() - begun
        progress("diffusion", 1, steps)
        if run.step % look == 0 or run.share(steps, minutes) >= 1:
            with parts.averaged(ema, parameters):
                if run.judged(value, _judged(net, judging, batch, device)):
                    parts.save_weights(folder, net.state_dict(), config)
            parts.keep(folder, run, accelerator, ema)
    return parts.finish(folder, run.report(held_examples=len(held), examples=len(learn)))


def generate(
    scenes: Sequence[Scene], folder: Path, *, device: str, steps: int = 15, guidance: float = 1.5, batch: int = 64
) -> list[Pixels]:
    """Paint the scenes. A `strength` below 1 starts from good steel.

    Args:
        scenes: grounds with the masks to fill, and donors.
        folder: what `fit` wrote.
        device: `cpu` or `cuda`.
        steps: denoising steps.
        guidance: above 1 makes the class plainer, 1 takes half the time.
        batch: scenes at a time.

    Returns:
        A window for each scene; away from the mask its pixels are the ground's.
    """
    import torch

    parts.at_least(steps=(steps, 1), batch=(batch, 1), guidance=(guidance, 0))
    tensors, config = parts.weights(folder)
    parts.check_scenes(scenes, config["classes"], config["channels"], SIZES[config["size"]].stride)
    net = _network(config).to(device, memory_format=torch.channels_last).eval()
    net.load_state_dict(tensors)
    painted: dict[int, Pixels] = {}
    for rows in parts.parts(scenes, device, batch, lambda scene: (scene.ground.shape, _begin(scene, steps))):
        some = [scenes[row] for row in rows]
        with parts.memory(len(rows)), torch.inference_mode():
            windows = _sampled(net, some, config, device, steps, guidance)
        painted |= {row: parts.pixels_of(window, scenes[row]) for row, window in zip(rows, windows, strict=True)}
    return [painted[row] for row in range(len(scenes))]


# --- the network ------------------------------------------------------------------------------------------------------


def _network(config: dict[str, Any]) -> Any:
    """It sees the noisy window, the hint, and the ground where that is given; it is told time and class."""
    from diffusers import UNet2DModel

    size, channels = SIZES[config["size"]], config["channels"]
    plain, attending = len(size.widths) - size.attention, size.attention
    return UNet2DModel(
        in_channels=2 * channels + 1,
        out_channels=channels,
        layers_per_block=size.layers,
        block_out_channels=size.widths,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attending,
        up_block_types=("AttnUpBlock2D",) * attending + ("UpBlock2D",) * plain,
        norm_num_groups=size.norm_groups,
        attention_head_dim=16,
        num_class_embeds=len(config["classes"]) + 1,  # the last: no class is told
    )


def _trainable(config: dict[str, Any], device: str, seed: int, rate: float) -> tuple[Any, Any, Any, Any]:
    import torch
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    net = _network(config).to(device, memory_format=torch.channels_last).train()
    ema = EMAModel(net.parameters(), decay=0.995, use_ema_warmup=True, power=0.75, foreach=True)
    accelerator = Accelerator(device_placement=False)
    net, optimiser = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-3))
    return net, ema, optimiser, accelerator


def _schedule() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(TIMES, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def _told(net: Any, noisy: Any, hints: Any, grounds: Any, times: Any, classes: Any) -> Any:
    """The network's velocity."""
    import torch

    seen = torch.cat([noisy, hints, grounds * (hints == 0)], 1).contiguous(memory_format=torch.channels_last)
    with parts.half(noisy.device.type):
        return net(seen, times, class_labels=classes).sample.float()


# --- learning ---------------------------------------------------------------------------------------------------------


def _drawn(deck: ExampleTensors, count: int, random: np.random.Generator, device: str) -> tuple[Any, ...]:
    """A batch with its noise and times; some of its classes are kept back."""
    import torch

    pixels, hints, classes = parts.draw(deck, count, random)
    classes[torch.from_numpy(random.random(count) < DROPPED)] = deck.null
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    noise = torch.randn(pixels.shape, generator=generator)
    # Spread evenly over the schedule, so that one batch's loss is like the next one's.
    times = ((torch.arange(count) + torch.rand(count, generator=generator)) * TIMES / count).long().clamp(max=TIMES - 1)
    return tuple(tensor.to(device) for tensor in (pixels, hints, classes, noise, times))


def _loss(net: Any, drawn: tuple[Any, ...]) -> Any:
    """Error of the velocity in and near the mask, for each window: a small defect weighs as much as a large one."""
    pixels, hints, classes, noise, times = drawn
    schedule = _schedule()
    velocity = _told(net, schedule.add_noise(pixels, noise, times), hints, pixels, times, classes)
    weight = (hints > 0) + OUTSIDE
    error = (velocity - schedule.get_velocity(pixels, noise, times)) ** 2 * weight
    return error.mean(1, keepdim=True).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def _judged(net: Any, deck: ExampleTensors | None, batch: int, device: str) -> float | None:
    """The loss on held-out groups, of every defect at the same eight times with the same noise at every look."""
    import torch

    if deck is None:
        return None
    losses = []
    with torch.inference_mode(), parts.memory(batch):
        for row in range(len(deck)):
            pixels, hints = (
                (deck.pixels[row : row + 1].float() / 127.5 - 1).expand(8, -1, -1, -1),
                deck.hints[[row] * 8],
            )
            generator = torch.Generator().manual_seed(row)
            noise = torch.randn(pixels.shape, generator=generator)
            times = torch.arange(8) * TIMES // 8 + TIMES // 16
            drawn = (pixels, hints, torch.from_numpy(deck.classes[[row] * 8]), noise, times)
            losses.append(_loss(net, tuple(tensor.to(device) for tensor in drawn)).mean())
    return float(torch.stack(losses).mean())


# --- painting ---------------------------------------------------------------------------------------------------------


def _begin(scene: Scene, steps: int) -> int:
    """The first of the sampler's steps: a weak defect starts late, from steel with little noise."""
    return min(steps - 1, round(steps * (1 - scene.strength)))


def _sampled(
    net: Any, scenes: Sequence[Scene], config: dict[str, Any], device: str, steps: int, guidance: float
) -> Any:
    import torch
    from diffusers import DPMSolverMultistepScheduler

    grounds, hints, classes = (tensor.to(device) for tensor in parts.scenes_as_tensors(scenes, config["classes"]))
    noise = parts.noise(scenes, *grounds.shape[1:]).to(device)
    solver = DPMSolverMultistepScheduler.from_config(_schedule().config, timestep_spacing="trailing")
    solver.set_timesteps(steps, device=device)
    begin = _begin(scenes[0], steps)
    solver.set_begin_index(begin)
    times = solver.timesteps[begin:]
    noisy = solver.add_noise(grounds, noise, times[:1].expand(len(scenes))) if begin else noise
    led = guidance != 1
    told = torch.cat([classes, torch.full_like(classes, len(config["classes"]))]) if led else classes
    hints, grounds = (tensor.repeat(1 + led, 1, 1, 1) for tensor in (hints, grounds))
    for moment in times:
        velocity = _told(net, noisy.repeat(1 + led, 1, 1, 1), hints, grounds, moment, told)
        if led:
            own, general = velocity.chunk(2)
            velocity = general + guidance * (own - general)
        noisy = solver.step(velocity, moment, noisy).prev_sample
    return noisy
