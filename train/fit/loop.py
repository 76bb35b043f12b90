"""The training loop. Read it from top to bottom; everything that happens in an epoch is in `fit`.

An epoch's images, crops and dropout follow from (seed, epoch) alone. So `last.ckpt` needs weights, optimiser and
counters but no state of random generators, and a killed run that resumes ends with the same result.
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
from train.data.pixels import normalised, tiles
from train.fit.counts import confusion_counts, f1
from train.losses import Term
from train.processes import SINGLE_PROCESS, ProcessGroup
from train.recipe import Phase, Recipe, Schedule

LAST, BEST = "last.ckpt", "best.safetensors"
THRESHOLD = 0.5
SMOOTHED = 2  # epochs whose scores are averaged: one alone may be lucky
FALLEN = 1e-4  # a loss that is lower by less has not fallen (Keras's ReduceLROnPlateau)
EQUAL = 0.01  # scores that differ by less are equal
COMPILER = "inductor"  # the backend of torch.compile
Progress = Callable[[str, int, int], None]


@dataclass
class FitResult:
    """Epoch metrics of a run; its best weights lie in the folder. `skipped`: images that could not be read, and why."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class _State:
    """How far the run has come: the part of `last.ckpt` that is not tensors."""

    phase: int = 0
    epoch: int = 0  # of this phase, the next one
    number: int = 0  # of the next epoch, over all phases
    waited: int = 0
    fitted: FitResult = field(default_factory=FitResult)


@dataclass(frozen=True)
class FitSettings:
    """Everything that a run needs beside the network. `frozen`: norms that keep their statistics."""

    recipe: Recipe
    data: TrainingData
    plan: LoadPlan
    frozen: Sequence[str]
    folder: Path
    device: str = "cpu"
    workers: int = 0
    process_group: ProcessGroup = SINGLE_PROCESS


class UnsuitableSettings(CurateError):
    """The settings do not suit the data or the machine; others may (`curate tune` goes on to the next trial)."""


def fit(
    model: Any,
    settings: FitSettings,
    progress: Progress = lambda stage, done, total: None,
    on_epoch_end: Callable[[FitResult], None] = lambda fitted: None,
) -> FitResult:
    """Train, resuming from `last.ckpt` where there is one; the best weights go to `best.safetensors`.

    Args:
        model: the network with its starting weights.
        settings: recipe, data and folder of the run.
        progress: called after every batch.
        on_epoch_end: called after every epoch; an exception from it ends the run, which can be resumed later.

    Returns:
        The metrics of all epochs, and the best one.
    """
    import torch

    recipe, data, folder, device = settings.recipe, settings.data, settings.folder, settings.device
    ranks = settings.process_group
    model.to(device, memory_format=torch.channels_last)
    ema_model = deepcopy(model) if recipe.ema else None
    loss_of = _loss_function(recipe, data)
    repeats = sampling.repeats(recipe.sampler.name, data.present(data.train), recipe.sampler.threshold)
    batches, feed = _loader([*data.train, *data.pseudo], settings, training=True)
    val_batches, val_feed = _loader(data.val, settings, training=False)
    val_batches.take(_val_batches(settings), 0)
    autocast, scaler = _precision(recipe.amp, device)
    ranks.wait()  # rank 0 may still be writing the file that is read now
    state, stored = _load_state(folder)

    while state.phase < len(recipe.parts):
        phase = recipe.parts[state.phase]
        if state.phase and not state.epoch:  # a later phase starts from the best weights so far
            checkpoint.load_into(model, folder / BEST)
        parameters = _trainable(model, phase)
        optimiser = _optimiser(recipe, phase, parameters)
        if stored:
            _restore_tensors(folder, stored, model, ema_model, optimiser, scaler)
            stored = None
        network = _compiled(ranks.wrap(model)) if recipe.compile else ranks.wrap(model)

        while state.epoch < phase.epochs:
            started, total, seen = time.perf_counter(), 0.0, 0.0
            batches.take(_epoch_batches(settings, repeats, state.number), state.number, ranks.rank, ranks.world_size)
            torch.manual_seed(int(np.random.default_rng([recipe.seed, state.number, 2 + ranks.rank]).integers(2**62)))
            _train_mode(model, settings.frozen)
            optimiser.zero_grad(set_to_none=True)
            plateau = _plateau_factor(recipe.schedule, state.phase, state.fitted.history)

            for step, (ids, images, targets, problems) in enumerate(feed):
                state.fitted.skipped |= dict(problems)
                progress(f"epoch {state.number + 1}", 1, len(batches))
                if images is None and ranks.is_single:
                    continue
                if images is None:  # the other processes wait for this one in the step
                    images, targets = _blank_batch(settings)
                if len(images) == 1:
                    images, targets = images.repeat(2, 1, 1, 1), torch.cat([targets, targets])  # batch norms need two
                images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
                rate = plateau * _learning_rate(recipe.schedule, phase, recipe, state.epoch + step / len(batches))
                for group in optimiser.param_groups:
                    group["lr"] = rate
                with _explain_out_of_memory(recipe.batch), _explain_compile_error(recipe.compile), autocast:
                    logits = network(normalised(images, recipe.input.scale))
                    loss = loss_of(logits.float(), targets.float())
                    if hasattr(model, "side_cost"):  # a part of the network with a loss of its own
                        loss = loss + model.side_cost(targets.float())
                    loss = loss if ids else 0 * loss
                value = float(loss.detach())
                if any(ranks.total(not math.isfinite(value))):
                    bad = next(entry for entry in ranks.gather((value, ids)) if not math.isfinite(entry[0]))
                    ranks.fail(UnsuitableSettings(_divergence_message(bad[0], state.number, step, bad[1], folder)))
                with _explain_out_of_memory(recipe.batch), _explain_compile_error(recipe.compile):
                    scaler.scale(loss / recipe.accumulate).backward()
                if (step + 1) % recipe.accumulate == 0 or step + 1 == len(batches):
                    scaler.unscale_(optimiser)
                    torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
                    scaler.step(optimiser)
                    scaler.update()
                    optimiser.zero_grad(set_to_none=True)
                    _update_ema(ema_model, model, recipe.ema)
                total, seen = total + value * len(ids), seen + len(ids)

            total, seen = ranks.total(total, seen)
            state.fitted.skipped |= dict(ChainMap(*ranks.gather(state.fitted.skipped)))
            if not seen:
                ranks.fail(
                    CurateError(f"no image of train could be read; the first: {_first_reason(state.fitted.skipped)}")
                )
            evaluated = ema_model or model
            row = {"phase": state.phase, "epoch": state.number, "lr": rate, "train_loss": total / seen}
            if ranks.is_main:
                row |= _validate(evaluated, val_feed, settings, loss_of, autocast, state.fitted.skipped)
                row["seconds"] = round(time.perf_counter() - started, 2)
            row = ranks.broadcast(row)
            if data.val:
                row["val_score"] = _smoothed_score(state.fitted.history, row)
            top = max((entry.get("val_score", 0.0) for entry in state.fitted.history), default=0.0)
            better = not data.val or _is_better(row, state.fitted.best, top)
            if better:
                _save_on_main(settings, folder / BEST, evaluated.state_dict())
                state.fitted.best = row
            state.fitted.history.append(row)
            state.waited = 0 if better else state.waited + 1
            state.epoch, state.number = state.epoch + 1, state.number + 1
            if state.waited >= recipe.patience:
                state.epoch = phase.epochs  # early stopping ends the phase
            if state.epoch < phase.epochs:
                _save_state(settings, state, model, ema_model, optimiser, scaler)
            on_epoch_end(state.fitted)
        state.phase, state.epoch, state.waited = state.phase + 1, 0, 0
        _save_state(settings, state, model, ema_model, optimiser, scaler)
        ranks.wait()  # until rank 0 has written the best weights

    return state.fitted


# --- parts of the loop ----------------------------------------------------------------------------------------------


def _loss_function(recipe: Recipe, data: TrainingData) -> Term:
    """Return the recipe's loss for the class frequencies of the data."""
    counts, total = frequencies(data)
    terms = [
        (term.share, losses.build(term.name, term.options, single=data.single, counts=counts, total=total))
        for term in recipe.loss
    ]
    return losses.weighted_sum(terms)


def frequencies(data: TrainingData) -> tuple[list[float], float]:
    """Return how often each output is seen in train, and among how many: images, or pixels in segmentation."""
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


def _loader(items: Sequence[Item], settings: FitSettings, training: bool) -> tuple[EpochBatches, Any]:
    batches = EpochBatches(settings.recipe.batch)
    examples = Examples(items, settings.plan, training)
    limit = frozenset(item.id for item in settings.data.pseudo), settings.recipe.pseudo.share
    return batches, loader(examples, batches, settings.workers if items else 0, settings.device != "cpu", limit)


def _epoch_batches(settings: FitSettings, repeats: sampling.Repeats, number: int) -> list[list[int]]:
    """Return this process's batches of an epoch as rows; rows of pseudo-labelled images come after those of train."""
    recipe, data, ranks = settings.recipe, settings.data, settings.process_group
    order = sampling.draw(repeats, number, recipe.seed, ranks.rank, ranks.world_size)
    pseudo = order[:0]
    if data.pseudo:
        once = np.ones(len(data.pseudo))
        pseudo = len(data.train) + sampling.draw(once, number, recipe.seed, ranks.rank, ranks.world_size)
    return sampling.mix_batches(order, pseudo, ranks.local_batch(recipe.batch), recipe.pseudo.share)[: recipe.steps]


def _val_batches(settings: FitSettings) -> list[list[int]]:
    """Return batches of val as rows; whole images in native resolution are batched with those whose tiles are alike."""
    recipe, data = settings.recipe, settings.data
    kinds: dict[tuple[int, ...], list[int]] = {}
    for row, item in enumerate(data.val):
        whole = recipe.native and data.task == "classification"
        kinds.setdefault(tiles(item.height, item.width)[:2] if whole else (), []).append(row)
    return [kind[at : at + recipe.batch] for kind in kinds.values() for at in range(0, len(kind), recipe.batch)]


def _blank_batch(settings: FitSettings) -> tuple[Any, Any]:
    """Return two grey images without defects, for a process that could read no image of its batch."""
    import torch

    size, outputs = settings.recipe.input, len(settings.data.outputs)
    images = torch.full((2, size.height, size.width, size.channels), 128, dtype=torch.uint8)
    places = (size.height, size.width) if settings.data.task == "segmentation" else ()
    return images, torch.zeros(2, outputs, *places, dtype=torch.uint8)


def _compiled(network: Any) -> Any:
    """Compile the network: faster after a first step of minutes. The model keeps its parameters and their names."""
    import torch

    return torch.compile(network, backend=COMPILER)


def _precision(amp: str, device: str) -> tuple[Any, Any]:
    """Return autocast and gradient scaler: half precision on a GPU; float16 needs scaled gradients."""
    import torch

    if device == "cpu" or amp == "off":
        return nullcontext(), torch.amp.GradScaler(device, enabled=False)
    fine = amp == "bf16" or (amp == "auto" and torch.cuda.is_bf16_supported())
    kind = torch.bfloat16 if fine else torch.float16
    return torch.autocast(device, kind), torch.amp.GradScaler(device, enabled=not fine)


def _trainable(model: Any, phase: Phase) -> list[Any]:
    """Return the parameters that this phase trains, and freeze the others."""
    from torch import nn

    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(phase.train == "all")
    if phase.train == "head":
        encoder_ids = {id(parameter) for parameter in model.encoder.parameters()}
        for parameter in parameters:
            parameter.requires_grad_(id(parameter) not in encoder_ids)
    elif isinstance(phase.train, int):
        layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
        for layer in layers[-phase.train :]:
            layer.requires_grad_(True)
    return [parameter for parameter in parameters if parameter.requires_grad]


def _optimiser(recipe: Recipe, phase: Phase, parameters: Sequence[Any]) -> Any:
    """Return the recipe's optimiser, without weight decay on biases and norms."""
    import torch

    config = recipe.optimiser
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = phase.lr or config.lr
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    return (torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam)(groups, lr=rate)


def _train_mode(model: Any, frozen: Sequence[str]) -> None:
    """Set train mode, except for batch norms that are frozen by their weights file or by the phase."""
    from torch import nn

    model.train()
    for name, part in model.named_modules():
        parameters = list(part.parameters(recurse=False))
        is_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (name in frozen or is_frozen):
            part.eval()


def _learning_rate(schedule: Schedule, phase: Phase, recipe: Recipe, epochs: float) -> float:
    """Return the learning rate after this many epochs of a phase."""
    base = phase.lr or recipe.optimiser.lr
    if epochs < schedule.warmup:
        return base * (epochs + 1 / 64) / (schedule.warmup + 1 / 64)
    if schedule.name == "step":
        return float(base * schedule.gamma ** (epochs // schedule.every))
    if schedule.name in ("constant", "plateau"):
        return base
    share = (epochs - schedule.warmup) / max(phase.epochs - schedule.warmup, 1e-9)
    return base * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _plateau_factor(schedule: Schedule, phase: int, history: Sequence[Mapping[str, Any]]) -> float:
    """Return by how much plateaus of the loss in this phase have lowered the rate. The history alone decides, so that a
    resumed run goes on alike."""
    if schedule.name != "plateau":
        return 1.0
    lowest, waited, plateaus = math.inf, 0, 0
    for row in history:
        if row["phase"] != phase:
            continue
        loss = row.get("val_loss", row["train_loss"])
        if loss < lowest - FALLEN:
            lowest, waited = loss, 0
        else:
            waited += 1
        if waited == schedule.wait:
            plateaus, waited = plateaus + 1, 0
    return schedule.gamma**plateaus


def _update_ema(ema_model: Any, model: Any, keep: float) -> None:
    """Move the exponential moving average of the weights one step towards the model's."""
    if ema_model is None:
        return
    for average, new in zip(ema_model.state_dict().values(), model.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(new.detach(), 1 - keep)
        else:
            average.copy_(new)


def _validate(
    model: Any, feed: Any, settings: FitSettings, loss_of: Term, autocast: Any, skipped: dict[str, str]
) -> dict[str, Any]:
    """Return the loss and each class's F1 (of pixels: Dice) on val, without augmentation; empty without val."""
    import torch

    recipe, data, device = settings.recipe, settings.data, settings.device
    if not data.val:
        return {}
    model.eval()
    total, seen, counts = 0.0, 0, np.zeros((len(data.outputs), 3), np.int64)
    with torch.inference_mode(), autocast:
        for _, images, targets, problems in feed:
            skipped |= dict(problems)
            for pixels, target in _chunks(images, targets, recipe):
                logits = model(normalised(pixels.to(device), recipe.input.scale)).float()
                target = target.to(device)
                total += float(loss_of(logits, target.float())) * len(pixels)
                seen += len(pixels)
                counts += confusion_counts(decisions(logits, data.single).cpu(), target.bool().cpu())
    if not seen:
        raise CurateError(f"no image of val could be read; the first: {_first_reason(skipped)}")
    if not math.isfinite(total):
        raise UnsuitableSettings("the loss on val is not finite. Try a lower rate: --set optimiser.lr=1e-4")
    return {"val_loss": total / seen, "f1": f1(counts, data.outputs)}


def _smoothed_score(history: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> float:
    """Return the mean over classes of F1 (of a segmenter: Dice) on val, averaged over the last epochs."""
    known = [[value for value in epoch["f1"].values() if value is not None] for epoch in [*history, row][-SMOOTHED:]]
    return float(np.mean([np.mean(values) if values else 0.0 for values in known]))


def _is_better(row: Mapping[str, Any], best: Mapping[str, Any], top: float) -> bool:
    """Return whether an epoch is better than the best one: by its score, or by its loss where its score is as good as
    the highest so far, `top`. By loss alone the best epoch is one that does well on the most frequent class."""
    if not best or row["val_score"] > best["val_score"] + EQUAL:
        return True
    return bool(row["val_score"] >= top - EQUAL and row["val_loss"] < best["val_loss"])


def _chunks(images: Any, targets: Any, recipe: Recipe) -> Iterator[tuple[Any, Any]]:
    """Cut a batch of whole images into chunks of no more pixels than a batch has in training."""
    if images is None:
        return
    size = max(1, recipe.batch * recipe.input.height * recipe.input.width // (images.shape[1] * images.shape[2]))
    for at in range(0, len(images), size):
        yield images[at : at + size], targets[at : at + size]


def decisions(logits: Any, single: bool) -> Any:
    """Return the predicted classes: the most likely one where they are exclusive, else all above one half."""
    if not single:
        return logits.sigmoid() > THRESHOLD
    return logits == logits.amax(1, keepdim=True)


# --- what lies on disk ----------------------------------------------------------------------------------------------


def _save_on_main(
    settings: FitSettings, file: Path, tensors: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> None:
    if settings.process_group.is_main:
        checkpoint.save(file, tensors, state)


def _save_state(settings: FitSettings, state: _State, model: Any, ema_model: Any, optimiser: Any, scaler: Any) -> None:
    tensors, groups = checkpoint.optimiser_state(optimiser)
    everything = checkpoint.add_prefix("model", model.state_dict()) | checkpoint.add_prefix("optimiser", tensors)
    everything |= checkpoint.add_prefix("shadow", ema_model.state_dict()) if ema_model else {}
    position = {"phase": state.phase, "epoch": state.epoch, "number": state.number, "waited": state.waited}
    rest = {"fitted": vars(state.fitted), "groups": groups, "scaler": scaler.state_dict()}
    _save_on_main(settings, settings.folder / LAST, everything, position | rest)


def _load_state(folder: Path) -> tuple[_State, tuple[Mapping[str, Any], dict[str, Any]] | None]:
    """Return the state that a killed run left, with its tensors."""
    file = folder / LAST
    if not file.is_file():
        return _State(), None
    tensors, stored = checkpoint.load(file)
    try:
        position = {name: int(stored[name]) for name in ("phase", "epoch", "number", "waited")}
        return _State(**position, fitted=FitResult(**stored["fitted"])), (tensors, stored)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.damaged_error(file, f"not the state of a training: {error}") from None


def _restore_tensors(
    folder: Path,
    stored: tuple[Mapping[str, Any], dict[str, Any]],
    model: Any,
    ema_model: Any,
    optimiser: Any,
    scaler: Any,
) -> None:
    tensors, state = stored
    try:
        if state["epoch"]:  # a phase begins with the best weights and a new optimiser
            model.load_state_dict(checkpoint.strip_prefix("model", tensors))
            checkpoint.restore_optimiser(optimiser, checkpoint.strip_prefix("optimiser", tensors), state["groups"])
        if ema_model is not None:
            ema_model.load_state_dict(checkpoint.strip_prefix("shadow", tensors))
        scaler.load_state_dict(state["scaler"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise checkpoint.damaged_error(folder / LAST, f"it belongs to another network: {error}") from None


# --- what can go wrong ----------------------------------------------------------------------------------------------


@contextmanager
def _explain_out_of_memory(batch: int) -> Iterator[None]:
    """Turn running out of GPU memory into one line with a batch size to try."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError:
        half = max(1, batch // 2)
        text = f"out of GPU memory with batch {batch}. Try: --set batch={half} --set accumulate=2"
        raise UnsuitableSettings(text) from None


@contextmanager
def _explain_compile_error(is_enabled: bool) -> Iterator[None]:
    """Turn errors of the compiler into one line with the remedy."""
    try:
        yield
    except Exception as error:
        if not is_enabled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CurateError(
            f"torch.compile cannot compile this model here ({reason}). Try: --set compile=false"
        ) from None


def _divergence_message(value: float, epoch: int, step: int, ids: Sequence[str], folder: Path) -> str:
    stored = "the best weights so far are kept" if (folder / BEST).is_file() else "no epoch was finished"
    images = ", ".join(id[:12] for id in ids)
    return (
        f"the loss is {value} in epoch {epoch + 1}, step {step + 1}, on the images {images}; {stored} in {folder}. "
        "Try a lower rate: --set optimiser.lr=1e-4, or --set amp=off"
    )


def _first_reason(skipped: Mapping[str, str]) -> str:
    return next(iter(skipped.values()), "none")
