"""Shared by the synthesisers: the feathered seam, examples as tensors, and a state that outlives a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError, unknown
from curate.files import remove, write_json, written_aside
from synth.nouns import FEATHER, Examples, Mask, Pixels, Scene, TrainingWindow
from train import checkpoint

WEIGHTS, FITTED = "weights.safetensors", "fitted.json"
HELD = 0.2
JUDGED = 32  # windows at most, so that looking costs little beside learning
CLEAN = 0.1
Progress = Callable[[str, int, int], None]


# --- the seam ---------------------------------------------------------------------------------------------------------


def nearness(mask: Mask) -> NDArray[np.float32]:
    """1 in the mask, falling to 0 at `FEATHER` pixels from it."""
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray((1 - away / FEATHER).clip(0, 1), np.float32)


def composite(ground: Pixels, painted: Pixels, mask: Mask) -> Pixels:
    """`painted` in the mask, feathered into the ground around it; further away the ground, bit for bit."""
    share = nearness(mask)[..., None]
    mixed = ground + share * (painted.astype(np.float32) - ground)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def hint(mask: Mask) -> NDArray[np.float32]:
    """Input channel of the mask: 1 in the mask, one half where the network may blend, 0 on given background."""
    return np.asarray((mask.astype(np.float32) + (nearness(mask) > 0)) / 2, np.float32)


def look(pixels: NDArray[Any], mask: Mask) -> NDArray[np.float32]:
    """Describe a defect's look by three metrics: brighter than the rest of the window, uneven, with steep edges."""
    grey = pixels.astype(np.float32).mean(axis=2)
    rest = grey[~mask].mean() if not mask.all() else 0.0
    down, across = np.gradient(grey)
    return np.array([grey[mask].mean() - rest, grey[mask].std(), np.hypot(down, across)[mask].mean()], np.float32)


# --- examples as tensors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExampleTensors:
    """Examples as tensors, in bytes; `classes` are numbers, the clean ones' is the null class."""

    pixels: Any  # (N, C, H, W) uint8
    hints: Any  # (N, 1, H, W)
    classes: NDArray[np.int64]
    null: int

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def clean(self) -> NDArray[np.bool_]:
        return np.asarray(self.classes == self.null)


def deck(examples: Examples, classes: Sequence[str]) -> ExampleTensors:
    import torch

    numbers = {name: number for number, name in enumerate([*classes, ""])}
    shapes = {window.pixels.shape for window in examples}
    if len(shapes) != 1:
        raise CurateError(f"examples are of {len(shapes)} shapes; a network learns from windows of one size")
    pixels = torch.from_numpy(np.stack([window.pixels for window in examples])).permute(0, 3, 1, 2).contiguous()
    hints = torch.from_numpy(np.stack([hint(window.mask) for window in examples]))[:, None]
    rows = np.array([numbers[window.name or ""] for window in examples])
    return ExampleTensors(pixels, hints, rows, len(classes))


def split(examples: Examples, seed: int) -> tuple[list[TrainingWindow], list[TrainingWindow]]:
    """To learn from, and to stop by: whole groups, at most a fifth of each class's (so none of fewer than five)."""
    groups: dict[str, set[str]] = {}
    for window in examples:
        if window.name:
            groups.setdefault(window.name, set()).add(window.group)
    left = {name: math.floor(HELD * len(members)) for name, members in groups.items()}
    held: set[str] = set()
    for group in np.random.default_rng(seed).permutation(sorted(set().union(*groups.values()))).tolist():
        names = [name for name, members in groups.items() if group in members]
        if all(left[name] for name in names):
            held.add(group)
            left |= {name: left[name] - 1 for name in names}
    learn = [window for window in examples if window.group not in held]
    judge = [window for window in examples if window.group in held and window.name]
    return learn, judge[:: max(1, math.ceil(len(judge) / JUDGED))]


def draw(deck: ExampleTensors, count: int, random: np.random.Generator, clean: float = CLEAN) -> tuple[Any, Any, Any]:
    """Pixels in -1..1, hints and classes: every class as often as the others, flipped, a little brighter or darker.

    Clean windows borrow the hint of a defect: they show what good steel there looks like, under the null class. So
    guidance away from that class leads away from good steel.
    """
    import torch

    defects = np.flatnonzero(~deck.clean)
    rows = defects[balanced(deck.classes[defects].tolist(), count, random)]
    pixels, hints, classes = deck.pixels[rows].float() / 127.5 - 1, deck.hints[rows], deck.classes[rows]
    borrowed = np.flatnonzero((random.random(count) < clean) & deck.clean.any())
    if len(borrowed):
        pixels[borrowed] = draw_clean(deck, len(borrowed), random)
        classes[borrowed] = deck.null
    for axis in (-1, -2):
        flips = torch.from_numpy(random.random(count) < 0.5)[:, None, None, None]
        pixels, hints = (torch.where(flips, tensor.flip(axis), tensor) for tensor in (pixels, hints))
    gain, shift = (torch.from_numpy(random.uniform(-1, 1, (count, 1, 1, 1))).float() for _ in range(2))
    return (pixels * (1 + 0.1 * gain) + 0.08 * shift).clamp(-1, 1), hints, torch.from_numpy(classes)


def balanced(names: Sequence[Any], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Rows to take: every name as often as the others."""
    rows = {name: [row for row, class_name in enumerate(names) if class_name == name] for name in sorted(set(names))}
    chosen = [list(rows)[number] for number in random.integers(len(rows), size=count)]
    return np.array([rows[name][random.integers(len(rows[name]))] for name in chosen], np.int64)


def draw_clean(deck: ExampleTensors, count: int, random: np.random.Generator) -> Any:
    """Windows of good steel, in -1..1."""
    return deck.pixels[random.choice(np.flatnonzero(deck.clean), count)].float() / 127.5 - 1


def scenes_as_tensors(scenes: Sequence[Scene], classes: Sequence[str]) -> tuple[Any, Any, Any]:
    """Grounds in -1..1, hints and class numbers."""
    import torch

    grounds = torch.from_numpy(np.stack([scene.ground for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    hints = torch.from_numpy(np.stack([hint(scene.mask) for scene in scenes]))[:, None]
    return grounds, hints, torch.tensor([list(classes).index(scene.name) for scene in scenes])


def noise(scenes: Sequence[Scene], *shape: int) -> Any:
    """Return each scene's own noise, which does not depend on the rest of the batch."""
    import torch

    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(scene.seed)) for scene in scenes])


def pixels_of(painted: Any, scene: Scene) -> Pixels:
    """A network's (C, H, W) in -1..1, put into the scene's ground."""
    values = ((painted.float().clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).cpu().numpy()
    return composite(scene.ground, values, scene.mask)


def parts(scenes: Sequence[Scene], device: str, batch: int, alike: Callable[[Scene], Any]) -> Iterator[list[int]]:
    """Split scenes into batches. On a CPU each is alone: it costs no time, and the batch cannot change its bits."""
    rows: dict[Any, list[int]] = {}
    for row, scene in enumerate(scenes):
        rows.setdefault(row if device == "cpu" else alike(scene), []).append(row)
    for some in rows.values():
        yield from (some[at : at + batch] for at in range(0, len(some), batch))


# --- checks -----------------------------------------------------------------------------------------------------------


def check_examples(examples: Examples, classes: Sequence[str], stride: int) -> None:
    for name in {window.name for window in examples if window.name} - set(classes):
        raise unknown("class", name, classes)
    if not any(window.name for window in examples):
        raise CurateError("no example shows a defect; there is nothing to learn. See: curate synth plan")
    _check_window(examples[0].pixels, stride)


def check_scenes(scenes: Sequence[Scene], classes: Sequence[str], channels: int, stride: int) -> None:
    for scene in scenes:
        if scene.name not in classes:
            raise unknown("class", scene.name, classes, "The network did not learn it: fit again")
        if scene.ground.shape[2] != channels:
            raise CurateError(
                f"a window has {scene.ground.shape[2]} channels, the network learnt {channels}: fit again"
            )
        _check_window(scene.ground, stride)


def _check_window(pixels: Pixels, stride: int) -> None:
    height, width = pixels.shape[:2]
    if height % stride or width % stride:
        raise CurateError(f"a window is {width}x{height} px; this network takes multiples of {stride}")


def at_least(**given: tuple[float, float]) -> None:
    """Each of (value, least)."""
    for name, (value, least) in given.items():
        if not value >= least:
            raise CurateError(f"option '{name}' is {value}; allowed: {least} or more")


def check_finite(loss: float, step: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise CurateError(f"the loss is {loss} at step {step + 1}. Try a lower rate: --set rate={rate / 10:g}")


@contextmanager
def memory(batch: int, option: str = "batch") -> Iterator[None]:
    """Out of memory becomes one line with the batch to try."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        remedy = f"Try: --set {option}={batch // 2}" if batch > 1 else "Try a smaller window"
        raise CurateError(f"out of memory with {option} {batch}. {remedy}") from None


def half(device: str) -> Any:
    """Half precision on a GPU only: a CPU is to give the same bits every time."""
    import torch

    return torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")


# --- a run that can be killed -----------------------------------------------------------------------------------------


@dataclass
class FitState:
    """State of a fit: beside tensors, all that a killed one needs to go on."""

    step: int = 0
    seconds: float = 0.0
    waited: int = 0
    best: float | None = None  # loss on held-out groups
    history: list[dict[str, float]] = field(default_factory=list)

    def share(self, steps: int, minutes: float | None) -> float:
        """Share of the run that is over, by steps or by the clock."""
        return max(self.step / steps, self.seconds / (60 * minutes) if minutes else 0.0)

    def judged(self, loss: float, held: float | None) -> bool:
        """Record the loss on held-out groups; True where it is the best so far. Without such groups the newest is."""
        better = held is None or self.best is None or held < self.best
        self.best, self.waited = (held, 0) if better else (self.best, self.waited + 1)
        self.history.append({"step": self.step, "loss": loss} | ({} if held is None else {"held_loss": held}))
        return better

    def report(self, **more: Any) -> dict[str, Any]:
        """Summary of the fit for a person."""
        about = {"steps": self.step, "seconds": round(self.seconds, 1), "held_loss": self.best}
        return about | more | {"history": self.history}


def warm_then_cosine(share: float) -> float:
    """The learning rate as a part of its highest: up in the first twentieth of a run, then down to 2 %."""
    return min(1.0, 20 * share + 0.05) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def keep(folder: Path, run: FitState, accelerator: Any, ema: Any) -> None:
    """The newest state, whole or not at all; older ones go.

    The shadow weights are not registered with accelerate, which would read them back as a pickle that may run code.
    """
    target = folder / f"state-{run.step:08d}"
    with written_aside(target) as aside:
        accelerator.save_state(str(aside))
        checkpoint.save(aside / "ema.safetensors", _shadow(ema), {"step": ema.optimization_step})
        write_json(aside / "run.json", asdict(run))
    for old in folder.glob("state-*"):
        if old != target:
            remove(old)


def resumed(folder: Path, accelerator: Any, ema: Any) -> FitState:
    """The state that a killed fit left behind, or a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".state-*.part"):
        remove(left)
    newest = max(folder.glob("state-*"), default=None)
    if newest is None:
        return FitState()
    accelerator.load_state(str(newest))
    tensors, state = checkpoint.load(newest / "ema.safetensors")
    shadow = [tensors[name].to(weights.device) for name, weights in _shadow(ema).items()]
    ema.load_state_dict(ema.state_dict() | {"shadow_params": shadow, "optimization_step": state["step"]})
    return FitState(**json.loads((newest / "run.json").read_text(encoding="utf-8")))


def _shadow(ema: Any) -> dict[str, Any]:
    return {f"{number:05d}": weights for number, weights in enumerate(ema.shadow_params)}


@contextmanager
def averaged(ema: Any, parameters: Any) -> Iterator[None]:
    """Within the block the network has the shadow's weights."""
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the record that `finish` wrote, of a fit that is over; states that a kill left beside it are removed."""
    file = folder / FITTED
    if not file.is_file():
        return None
    _remove_states(folder)
    about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return about


def finish(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Record that the weights are final; what only going on needs is removed."""
    write_json(folder / FITTED, dict(report))
    _remove_states(folder)
    return dict(report)


def _remove_states(folder: Path) -> None:
    for old in folder.glob("state-*"):
        remove(old)


def save_weights(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    checkpoint.save(folder / WEIGHTS, tensors, config)


def weights(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the configuration that a fit wrote."""
    if not (folder / WEIGHTS).is_file():
        raise CurateError(f"{folder} holds no fitted synthesiser. Run: curate synth fit")
    return checkpoint.load(folder / WEIGHTS)
