"""A generator and a critic learn against each other to paint defects of a class into good steel; painting is fast.

The generator is told mask, class and the steel around at every scale (as in SPADE), the critic looks at patches near
the mask. Made for few examples: real and painted windows are shown to the critic changed alike, classes are told apart
only after the first third of the run, and what is kept is the running mean of the weights that did best on held-out
groups.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synth.nouns import Examples, Pixels, Scene
from synth.synthesisers import _parts as parts
from synth.synthesisers._parts import ExampleTensors, Progress

STEP = 1
WINDOW = 64
LAZY = 8  # the critic's gradient is held down every so many steps
SMOOTH = 1.0  # how much
PHASE = 0.3, 0.5  # of the run: from when, and by when, classes are told apart


def fit(
    examples: Examples,
    classes: Sequence[str],
    folder: Path,
    *,
    progress: Progress,
    device: str,
    seed: int,
    steps: int = 2000,
    minutes: float | None = None,
    batch: int = 8,
    rate: float = 1e-3,
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
        steps: the number of steps.
        minutes: end by the clock, so that two runs differ.
        batch: examples a step.
        rate: the learning rate.
        patience: looks at held-out groups without an improvement before it stops; there are 12 looks.

    Returns:
        What a person should know of it: seconds, steps, losses. It goes into the manifest.
    """
    from synth.synthesisers._spade import STRIDE

    if done := parts.finished(folder):
        return done
    parts.at_least(steps=(steps, 1), batch=(batch, 1), patience=(patience, 1), rate=(rate, 1e-8))
    parts.check_examples(examples, classes, STRIDE)
    learn, held = parts.split(examples, seed)
    learning, judging = parts.deck(learn, classes), parts.deck(held, classes) if held else None
    config = {"channels": examples[0].pixels.shape[2], "classes": list(classes)}

    painter, critic, ema, optimisers, accelerator = _trainable(config, device, seed, rate)
    parameters = list(painter.parameters())
    run = parts.resumed(folder, accelerator, ema)
    progress("gan", run.step, steps)
    begun, look = time.perf_counter() - run.seconds, max(1, steps // 12)
    while (share := run.share(steps, minutes)) < 1 and run.waited < patience:
        random = np.random.default_rng([seed, run.step])
        phase = float(np.interp(share, PHASE, (0, 1)))
        with parts.memory(batch):
            real, fake, hints, told = _pair(painter, learning, batch, random, phase, device)
            judge = _critic_loss(critic, _changed(real, hints, random), _changed(fake.detach(), hints, random), told)
            if run.step % LAZY == 0:
                judge = judge + LAZY * SMOOTH * _steepness(critic, real, hints, told)
            _step(accelerator, optimisers[1], judge)
            loss = -_score(critic, *_changed(fake, hints, random), told)
            _step(accelerator, optimisers[0], loss)
        parts.check_finite(value := float(loss.detach()), run.step, rate)
        ema.step(parameters)
        run.step, run.seconds = run.step + 1, time.perf_counter() - begun
        progress("gan", 1, steps)
        if run.step % look == 0 or run.share(steps, minutes) >= 1:
            with parts.averaged(ema, parameters):
                if run.judged(value, _judged(painter, judging, device)):
                    parts.save_weights(folder, painter.state_dict(), config)
            if phase < 1:  # until then no look can tell
                run.best, run.waited = None, 0
            parts.keep(folder, run, accelerator, ema)
    return parts.finish(folder, run.report(held_examples=len(held), examples=len(learn)))


def generate(scenes: Sequence[Scene], folder: Path, *, device: str, batch: int = 64) -> list[Pixels]:
    """Paint the scenes. A scene's `strength` mixes the painted defect with its own steel.

    Args:
        scenes: grounds with the masks to fill, and donors.
        folder: what `fit` wrote.
        device: `cpu` or `cuda`.
        batch: scenes at a time.

    Returns:
        A window for each scene; away from the mask its pixels are the ground's.
    """
    import torch

    from synth.synthesisers._spade import STRIDE, Generator

    parts.at_least(batch=(batch, 1))
    tensors, config = parts.weights(folder)
    parts.check_scenes(scenes, config["classes"], config["channels"], STRIDE)
    painter = Generator(config["channels"], len(config["classes"])).to(device).eval()
    painter.load_state_dict(tensors)
    painted: dict[int, Pixels] = {}
    for rows in parts.parts(scenes, device, batch, lambda scene: scene.ground.shape):
        some = [scenes[row] for row in rows]
        with parts.memory(len(rows)), torch.inference_mode():
            grounds, hints, numbers = (tensor.to(device) for tensor in parts.scenes_as_tensors(some, config["classes"]))
            chance = parts.noise(some, *_chance(grounds)).to(device)
            windows = painter(chance, hints, grounds, _told(numbers, len(config["classes"]), 1.0))
            strength = torch.tensor([window.strength for window in some], device=device)[:, None, None, None]
            windows = grounds + strength * (windows - grounds)
        painted |= {row: parts.pixels_of(window, scenes[row]) for row, window in zip(rows, windows, strict=True)}
    return [painted[row] for row in range(len(scenes))]


# --- learning ---------------------------------------------------------------------------------------------------------


def _trainable(config: dict[str, Any], device: str, seed: int, rate: float) -> tuple[Any, Any, Any, Any, Any]:
    import torch
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from synth.synthesisers._spade import Discriminator, Generator

    torch.manual_seed(seed)
    nets = [kind(config["channels"], len(config["classes"])).to(device) for kind in (Generator, Discriminator)]
    ema = EMAModel(nets[0].parameters(), decay=0.995, use_ema_warmup=True, power=0.75, foreach=True)
    adams = [torch.optim.Adam(net.parameters(), rate, betas=(0.0, 0.99)) for net in nets]
    accelerator = Accelerator(device_placement=False)
    painter, critic, *optimisers = accelerator.prepare(*nets, *adams)
    return painter, critic, ema, optimisers, accelerator


def _told(numbers: Any, classes: int, phase: float) -> Any:
    """Share of each class: all equal in phase 0 (a clean window's null class too), the true one in phase 1."""
    from torch.nn.functional import one_hot

    return phase * one_hot(numbers, classes + 1)[:, :classes].float() + (1 - phase) / classes


def _chance(grounds: Any) -> tuple[int, int, int]:
    from synth.synthesisers._spade import CHANCE, STRIDE

    return CHANCE, grounds.shape[2] // STRIDE, grounds.shape[3] // STRIDE


def _pair(
    painter: Any, deck: ExampleTensors, count: int, random: np.random.Generator, phase: float, device: str
) -> tuple[Any, Any, Any, Any]:
    """Real windows, and painted ones with the same masks and classes: half of them on clean steel, if there is any."""
    import torch

    pixels, hints, numbers = parts.draw(deck, count, random, clean=0.0)
    other = torch.from_numpy(random.random(count) < 0.5)[:, None, None, None]
    grounds = torch.where(other, parts.draw_clean(deck, count, random), pixels) if deck.clean.any() else pixels
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    chance = torch.randn(count, *_chance(pixels), generator=generator)
    told = _told(numbers, deck.null, phase)
    chance, hints, grounds, told = (tensor.to(device) for tensor in (chance, hints, grounds, told))
    return pixels.to(device), painter(chance, hints, grounds, told), hints, told


def _changed(pixels: Any, hints: Any, random: np.random.Generator) -> tuple[Any, Any]:
    """The same kinds of change for real and painted: brightness, contrast, a shift, a hole. Gradients pass."""
    import torch

    count, _, height, width = pixels.shape
    gain, shift = (pixels.new_tensor(random.uniform(-1, 1, (count, 1, 1, 1))) for _ in range(2))
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * (1 + 0.3 * gain) + mean + 0.2 * shift
    both = torch.cat([pixels, hints], 1)
    down, right = (int(random.integers(-length // 8, length // 8 + 1)) for length in (height, width))
    both = both.roll((down, right), (2, 3))
    top, left = int(random.integers(height)), int(random.integers(width))
    hole = torch.ones_like(both[:, :1])
    hole[:, :, top : top + height // 4, left : left + width // 4] = 0
    return both[:, :-1] * hole, both[:, -1:]


def _score(critic: Any, pixels: Any, hints: Any, told: Any) -> Any:
    logits, counts = critic(pixels, hints, told)
    return (logits * counts).sum() / len(pixels)


def _critic_loss(critic: Any, real: tuple[Any, Any], fake: tuple[Any, Any], told: Any) -> Any:
    """Hinge: patches that are told right by far cost nothing."""
    loss = 0.0
    for (pixels, hints), sign in ((real, -1), (fake, 1)):
        logits, counts = critic(pixels, hints, told)
        loss = loss + ((1 + sign * logits).relu() * counts).sum() / len(pixels)
    return loss


def _steepness(critic: Any, real: Any, hints: Any, told: Any) -> Any:
    """R1: half the squared gradient on real windows."""
    import torch

    real = real.clone().requires_grad_()
    score = _score(critic, real, hints, told) * len(real)
    return torch.autograd.grad(score, real, create_graph=True)[0].square().sum((1, 2, 3)).mean() / 2


def _step(accelerator: Any, optimiser: Any, loss: Any) -> None:
    optimiser.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    optimiser.step()


def _judged(painter: Any, deck: ExampleTensors | None, device: str) -> float | None:
    """Distance in looks of painted defects from held-out ones with the same mask, class and background."""
    import torch

    if deck is None:
        return None
    pixels, hints = deck.pixels.float() / 127.5 - 1, deck.hints
    chance = torch.randn(len(deck), *_chance(pixels), generator=torch.Generator().manual_seed(0))
    told = _told(torch.from_numpy(deck.classes), deck.null, 1.0)
    with torch.inference_mode():
        painted = painter(*(tensor.to(device) for tensor in (chance, hints, pixels, told))).cpu()
    masks = (hints[:, 0] == 1).numpy()
    looks, real_looks = (
        [parts.look(*row) for row in zip(_windows(some), masks, strict=True)] for some in (painted, pixels)
    )
    return float(np.abs(np.subtract(looks, real_looks)).mean())


def _windows(pixels: Any) -> Any:
    return pixels.permute(0, 2, 3, 1).numpy()
