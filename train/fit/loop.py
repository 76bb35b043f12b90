"""The training loop. It reads from top to bottom; everything that happens in an epoch is in `fit`.

An epoch's images, crops and dropout follow from (seed, epoch) alone. So `last.ckpt` needs weights, optimiser and
counters, no state of random generators, and a run that was killed goes on to the very result it would have had.
"""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curate.data import Item
from curate.errors import CurateError
from train import checkpoint, losses
from train.data import sampling
from train.data.dataset import EpochBatches, Examples, LoadPlan, TrainingData, loader
from train.data.pixels import normalised
from train.fit import counts as metrics
from train.losses import Term
from train.processes import ALONE, ProcessGroup
from train.recipe import Phase, Recipe, Schedule

LAST, BEST = "last.ckpt", "best.safetensors"
THRESHOLD = 0.5
COMPILER = "inductor"  # of torch.compile
Progress = Callable[[str, int, int], None]


@dataclass
class FitResult:
    """What a run came to; the best weights lie in the folder. `skipped`: images that could not be read, and why."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class _State:
    """Where the run stands: what `last.ckpt` holds beside tensors."""

    phase: int = 0
    epoch: int = 0  # of this phase, that comes next
    number: int = 0  # of all epochs
    waited: int = 0
    fitted: FitResult = field(default_factory=FitResult)


@dataclass(frozen=True)
class FitSettings:
    """What a run is about, beside the network."""

    recipe: Recipe
    data: TrainingData
    plan: LoadPlan
    frozen: Sequence[str]
    folder: Path
    device: str = "cpu"
    workers: int = 0
    team: ProcessGroup = ALONE


class UnsuitableSettings(CurateError):
    """These settings do not suit the data or the machine; others may."""


def fit(
    model: Any,
    setting: FitSettings,
    progress: Progress = lambda stage, done, total: None,
    ended: Callable[[FitResult], None] = lambda fitted: None,
) -> FitResult:
    """Train, resuming from `last.ckpt` where there is one; the best weights go to `best.safetensors`.

    `ended` hears of every epoch when it is over; by raising it ends the run, which can go on later.
    """
    import torch

    recipe, data, folder, device, team = setting.recipe, setting.data, setting.folder, setting.device, setting.team
    model.to(device, memory_format=torch.channels_last)
    shadow = deepcopy(model) if recipe.ema else None
    loss_of = _loss(recipe, data)
    repeats = sampling.repeats(recipe.sampler.name, data.present(data.train), recipe.sampler.threshold)
    batches, feed = _feed([*data.train, *data.pseudo], setting, training=True)
    val_batches, val_feed = _feed(data.val, setting, training=False)
    val_batches.begin(range(len(data.val)), 0)
    autocast, scaler = _precision(recipe.amp, device)
    team.wait()  # the leader may still write what is read now
    state, stored = _resumed(folder)

    while state.phase < len(recipe.parts):
        phase = recipe.parts[state.phase]
        if state.phase and not state.epoch:  # a later phase goes on from the best of those before
            checkpoint.fill(model, folder / BEST)
        parameters = _trainable(model, phase)
        optimiser = _optimiser(recipe, phase, parameters)
        if stored:
            _restore(folder, stored, model, shadow, optimiser, scaler)
            stored = None
        network = _compiled(team.joined(model)) if recipe.compile else team.joined(model)

        while state.epoch < phase.epochs:
            begun, total, seen = time.perf_counter(), 0.0, 0.0
            batches.take(_epoch(setting, repeats, state.number), state.number, team.rank, team.world)
            torch.manual_seed(int(np.random.default_rng([recipe.seed, state.number, 2 + team.rank]).integers(2**62)))
            _train_mode(model, setting.frozen)
            optimiser.zero_grad(set_to_none=True)

            for step, (ids, images, targets, problems) in enumerate(feed):
                state.fitted.skipped |= dict(problems)
                progress(f"epoch {state.number + 1}", 1, len(batches))
                if images is None and team.alone:
                    continue
                if images is None:  # the others wait for this process's part of the step
                    images, targets = _nothing(setting)
                if len(images) == 1:
                    images, targets = images.repeat(2, 1, 1, 1), torch.cat([targets, targets])  # norms need two
                images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
                rate = _rate(recipe.schedule, phase, recipe, state.epoch + step / len(batches))
                for group in optimiser.param_groups:
                    group["lr"] = rate
                with _memory(recipe.batch), _compiling(recipe.compile), autocast:
                    logits = network(normalised(images, recipe.input.scale))
                    loss = loss_of(logits.float(), targets.float())
                    if hasattr(model, "side_cost"):  # a part that answers a question of its own
                        loss = loss + model.side_cost(targets.float())
                    loss = loss if ids else 0 * loss
                value = float(loss.detach())
                if any(team.total(not math.isfinite(value))):
                    bad = next(one for one in team.gathered((value, ids)) if not math.isfinite(one[0]))
                    team.fail(UnsuitableSettings(_diverged(bad[0], state.number, step, bad[1], folder)))
                with _memory(recipe.batch), _compiling(recipe.compile):
                    scaler.scale(loss / recipe.accumulate).backward()
                if (step + 1) % recipe.accumulate == 0 or step + 1 == len(batches):
                    scaler.unscale_(optimiser)
                    torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
                    scaler.step(optimiser)
                    scaler.update()
                    optimiser.zero_grad(set_to_none=True)
                    _follow(shadow, model, recipe.ema)
                total, seen = total + value * len(ids), seen + len(ids)

            total, seen = team.total(total, seen)
            state.fitted.skipped |= dict(ChainMap(*team.gathered(state.fitted.skipped)))
            if not seen:
                team.fail(CurateError(f"no image of train could be read; the first: {_first(state.fitted.skipped)}"))
            judged = shadow or model
            row = {"phase": state.phase, "epoch": state.number, "lr": rate, "train_loss": total / seen}
            if team.leads:
                row |= _validated(judged, val_feed, setting, loss_of, autocast, state.fitted.skipped)
                row["seconds"] = round(time.perf_counter() - begun, 2)
            row = team.shared(row)
            better = not data.val or row["val_loss"] < state.fitted.best.get("val_loss", math.inf)
            if better:
                _keep(setting, folder / BEST, judged.state_dict())
                state.fitted.best = row
            state.fitted.history.append(row)
            state.waited = 0 if better else state.waited + 1
            state.epoch, state.number = state.epoch + 1, state.number + 1
            if state.waited >= recipe.patience:
                state.epoch = phase.epochs  # early stopping ends the phase
            if state.epoch < phase.epochs:
                _save(setting, state, model, shadow, optimiser, scaler)
            ended(state.fitted)
        state.phase, state.epoch, state.waited = state.phase + 1, 0, 0
        _save(setting, state, model, shadow, optimiser, scaler)
        team.wait()  # until the best weights are on disk

    return state.fitted


# --- parts of the loop ----------------------------------------------------------------------------------------------


def _loss(recipe: Recipe, data: TrainingData) -> Term:
    """The recipe's terms, with what the data say of the classes."""
    counts, total = frequencies(data)
    made = [
        (term.share, losses.build(term.name, term.options, single=data.single, counts=counts, total=total))
        for term in recipe.loss
    ]
    return losses.summed(made)


def frequencies(data: TrainingData) -> tuple[list[float], float]:
    """How often each output is seen in train, and among how many: images, or pixels where these are classified."""
    if data.task == "classification":
        present = data.present(data.train)
        shown = [float(count) for count in present.sum(axis=0)]
        clean = float((~present.any(axis=1)).sum())
        return ([*shown, clean] if len(data.outputs) > len(shown) else shown), float(len(data.train))
    areas = dict.fromkeys(data.classes, 0.0)
    for item in data.train:
        for defect in item.label.defects:
            if defect.label in areas:
                areas[defect.label] += _area(defect)
    return list(areas.values()), float(sum(item.width * item.height for item in data.train))


def _area(defect: Any) -> float:
    from curate.masks.shapes import crop_of

    crop = crop_of(defect)
    return float(defect.box[2] * defect.box[3] if crop is None else crop.sum())


def _feed(items: Sequence[Item], setting: FitSettings, training: bool) -> tuple[EpochBatches, Any]:
    batches = EpochBatches(setting.recipe.batch)
    examples = Examples(items, setting.plan, training)
    guests = frozenset(one.id for one in setting.data.pseudo), setting.recipe.pseudo.share
    return batches, loader(examples, batches, setting.workers if items else 0, setting.device != "cpu", guests)


def _epoch(setting: FitSettings, repeats: sampling.Repeats, number: int) -> list[list[int]]:
    """This process's batches of an epoch, as rows; those with pseudo-labels come after those of train."""
    recipe, data, team = setting.recipe, setting.data, setting.team
    order = sampling.draw(repeats, number, recipe.seed, team.rank, team.world)
    guests = order[:0]
    if data.pseudo:
        once = np.ones(len(data.pseudo))
        guests = len(data.train) + sampling.draw(once, number, recipe.seed, team.rank, team.world)
    return sampling.mixed(order, guests, team.part_of(recipe.batch), recipe.pseudo.share)[: recipe.steps]


def _nothing(setting: FitSettings) -> tuple[Any, Any]:
    """Two grey images that show nothing: what stands in where none of a process's batch could be read."""
    import torch

    size, outputs = setting.recipe.input, len(setting.data.outputs)
    images = torch.full((2, size.height, size.width, size.channels), 128, dtype=torch.uint8)
    places = (size.height, size.width) if setting.data.task == "segmentation" else ()
    return images, torch.zeros(2, outputs, *places, dtype=torch.uint8)


def _compiled(network: Any) -> Any:
    """Faster after a first step that takes minutes; the model itself keeps its parameters, and their names."""
    import torch

    return torch.compile(network, backend=COMPILER)


def _precision(amp: str, device: str) -> tuple[Any, Any]:
    """Half precision on a GPU; float16 needs its gradients scaled."""
    import torch

    if device == "cpu" or amp == "off":
        return nullcontext(), torch.amp.GradScaler(device, enabled=False)
    fine = amp == "bf16" or (amp == "auto" and torch.cuda.is_bf16_supported())
    kind = torch.bfloat16 if fine else torch.float16
    return torch.autocast(device, kind), torch.amp.GradScaler(device, enabled=not fine)


def _trainable(model: Any, phase: Phase) -> list[Any]:
    """The parameters that this phase trains; the others are frozen, and with them the norms among them."""
    from torch import nn

    parameters = list(model.parameters())
    for one in parameters:
        one.requires_grad_(phase.train == "all")
    if phase.train == "head":
        own = {id(one) for one in model.encoder.parameters()}
        for one in parameters:
            one.requires_grad_(id(one) not in own)
    elif isinstance(phase.train, int):
        layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
        for layer in layers[-phase.train :]:
            layer.requires_grad_(True)
    return [one for one in parameters if one.requires_grad]


def _optimiser(recipe: Recipe, phase: Phase, parameters: Sequence[Any]) -> Any:
    """Biases and norms do not decay."""
    import torch

    config = recipe.optimiser
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = phase.lr or config.lr
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    return (torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam)(groups, lr=rate)


def _train_mode(model: Any, frozen: Sequence[str]) -> None:
    """Norms that are frozen, by their weights' file or by the phase, keep their statistics."""
    from torch import nn

    model.train()
    for name, part in model.named_modules():
        own = list(part.parameters(recurse=False))
        still = bool(own) and not any(one.requires_grad for one in own)
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (name in frozen or still):
            part.eval()


def _rate(schedule: Schedule, phase: Phase, recipe: Recipe, epochs: float) -> float:
    """The learning rate after so many epochs of a phase."""
    base = phase.lr or recipe.optimiser.lr
    if epochs < schedule.warmup:
        return base * (epochs + 1 / 64) / (schedule.warmup + 1 / 64)
    if schedule.name == "step":
        return float(base * schedule.gamma ** (epochs // schedule.every))
    if schedule.name == "constant":
        return base
    share = (epochs - schedule.warmup) / max(phase.epochs - schedule.warmup, 1e-9)
    return base * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _follow(shadow: Any, model: Any, keep: float) -> None:
    """The shadow's weights move towards the model's: an exponential mean over steps."""
    if shadow is None:
        return
    for ours, theirs in zip(shadow.state_dict().values(), model.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs.detach(), 1 - keep)
        else:
            ours.copy_(theirs)


def _validated(
    model: Any, feed: Any, setting: FitSettings, loss_of: Term, autocast: Any, skipped: dict[str, str]
) -> dict[str, Any]:
    """Loss and, a class at a time, F1 (of pixels: Dice) on val as it is; nothing where there is no val."""
    import torch

    recipe, data, device = setting.recipe, setting.data, setting.device
    if not data.val:
        return {}
    model.eval()
    total, seen, found = 0.0, 0, np.zeros((len(data.outputs), 3), np.int64)
    with torch.inference_mode(), autocast:
        for _, images, targets, problems in feed:
            skipped |= dict(problems)
            for pixels, target in _parts(images, targets, recipe.batch):
                logits = model(normalised(pixels.to(device), recipe.input.scale)).float()
                target = target.to(device)
                total += float(loss_of(logits, target.float())) * len(pixels)
                seen += len(pixels)
                found += metrics.counts(decided(logits, data.single).cpu(), target.bool().cpu())
    if not seen:
        raise CurateError(f"no image of val could be read; the first: {_first(skipped)}")
    if not math.isfinite(total):
        raise UnsuitableSettings("the loss on val is not finite. Try a lower rate: --set optimiser.lr=1e-4")
    return {"val_loss": total / seen, "f1": metrics.f1(found, data.outputs)}


def _parts(images: Any, targets: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """A batch of whole images may be many tiles."""
    for at in range(0, 0 if images is None else len(images), size):
        yield images[at : at + size], targets[at : at + size]


def decided(logits: Any, single: bool) -> Any:
    """Which classes a network says are there: the likeliest one, or every one above one half."""
    if not single:
        return logits.sigmoid() > THRESHOLD
    return logits == logits.amax(1, keepdim=True)


# --- what lies on disk ----------------------------------------------------------------------------------------------


def _keep(setting: FitSettings, file: Path, tensors: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
    if setting.team.leads:
        checkpoint.save(file, tensors, state)


def _save(setting: FitSettings, state: _State, model: Any, shadow: Any, optimiser: Any, scaler: Any) -> None:
    tensors, groups = checkpoint.optimiser_state(optimiser)
    everything = checkpoint.packed("model", model.state_dict()) | checkpoint.packed("optimiser", tensors)
    everything |= checkpoint.packed("shadow", shadow.state_dict()) if shadow else {}
    where = {"phase": state.phase, "epoch": state.epoch, "number": state.number, "waited": state.waited}
    rest = {"fitted": vars(state.fitted), "groups": groups, "scaler": scaler.state_dict()}
    _keep(setting, setting.folder / LAST, everything, where | rest)


def _resumed(folder: Path) -> tuple[_State, tuple[Mapping[str, Any], dict[str, Any]] | None]:
    """The state that a killed run left, with its tensors."""
    file = folder / LAST
    if not file.is_file():
        return _State(), None
    tensors, stored = checkpoint.load(file)
    try:
        where = {name: int(stored[name]) for name in ("phase", "epoch", "number", "waited")}
        return _State(**where, fitted=FitResult(**stored["fitted"])), (tensors, stored)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.damaged(file, f"no state of a training: {error}") from None


def _restore(
    folder: Path, stored: tuple[Mapping[str, Any], dict[str, Any]], model: Any, shadow: Any, optimiser: Any, scaler: Any
) -> None:
    tensors, state = stored
    try:
        if state["epoch"]:  # at the beginning of a phase, weights are the best so far and the optimiser is new
            model.load_state_dict(checkpoint.unpacked("model", tensors))
            checkpoint.restore_optimiser(optimiser, checkpoint.unpacked("optimiser", tensors), state["groups"])
        if shadow is not None:
            shadow.load_state_dict(checkpoint.unpacked("shadow", tensors))
        scaler.load_state_dict(state["scaler"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise checkpoint.damaged(folder / LAST, f"not of this network: {error}") from None


# --- what can go wrong ----------------------------------------------------------------------------------------------


@contextmanager
def _memory(batch: int) -> Iterator[None]:
    """Out of memory on a GPU becomes one line with the batch size to try."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError:
        half = max(1, batch // 2)
        text = f"out of GPU memory with batch {batch}. Try: --set batch={half} --set accumulate=2"
        raise UnsuitableSettings(text) from None


@contextmanager
def _compiling(wanted: bool) -> Iterator[None]:
    """The compiler's own trouble becomes one line with the way round it."""
    try:
        yield
    except Exception as error:
        if not wanted or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CurateError(
            f"torch.compile cannot compile this model here ({reason}). Try: --set compile=false"
        ) from None


def _diverged(value: float, epoch: int, step: int, ids: Sequence[str], folder: Path) -> str:
    kept = "the best weights so far are kept" if (folder / BEST).is_file() else "no epoch was finished"
    images = ", ".join(id[:12] for id in ids)
    return (
        f"the loss is {value} in epoch {epoch + 1}, step {step + 1}, on the images {images}; {kept} in {folder}. "
        "Try a lower rate: --set optimiser.lr=1e-4, or --set amp=off"
    )


def _first(skipped: Mapping[str, str]) -> str:
    return next(iter(skipped.values()), "none")
