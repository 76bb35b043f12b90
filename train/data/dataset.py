"""What a model learns from: labelled images of train and val as arrays, read in any process, in any order.

Only `labelled` images teach; disputed ones and those of test are never read, synthetic ones only in train. An image
that cannot be decoded is left out, counted and named; the epoch goes on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.data import Item
from curate.errors import CurateError, LabelProblem
from curate.index.dataset import Index
from curate.index.rounds import key_of
from curate.masks.shapes import mask_of
from train.data import sampling
from train.data.augment import Masks, Rng, augmented
from train.data.pixels import Pixels, padded, read, resized, starts, up_to_stride, with_channels
from train.recipe import Augmentation, Input, Recipe

CLEAN = "clean"  # the output beside the classes, where these exclude each other
FEW_GROUPS = 2


@dataclass(frozen=True)
class TrainingData:
    """What there is to learn from, and what a person should know of it. `single`: no image shows two classes.

    `pseudo`: images with a model's word in place of a label, beside those of train.
    """

    task: str
    classes: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    single: bool
    clean: bool
    notes: tuple[str, ...] = ()
    pseudo: tuple[Item, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.classes, CLEAN) if self.single and self.clean else self.classes

    @property
    def digest(self) -> str:
        """Changes with any image, label or split."""
        rows = sorted((one.id, one.label.digest, one.split) for one in (*self.train, *self.val))
        guests = [sorted((one.id, one.label.digest) for one in self.pseudo)] if self.pseudo else []
        return key_of([rows, self.classes, *guests])

    def present(self, items: Sequence[Item]) -> NDArray[np.bool_]:
        return np.array([[name in one.label.present for name in self.classes] for one in items], bool).reshape(
            len(items), len(self.classes)
        )


# --- which images ---------------------------------------------------------------------------------------------------


def collect(index: Index, task: str | None = None) -> TrainingData:
    """The labelled images of train and val. Raises CurateError where there is nothing to learn."""
    ids = [id for id, *row in index.rows("status", "split", "source", "missing") if _teaches(*row)]
    if not ids:
        raise CurateError("no labelled image in train. Label some first: curate select, then label; or index a source")
    items = sorted(index.items(ids), key=lambda one: one.id)
    if not any(one.split == "train" for one in items):
        raise CurateError(f"{len(items)} labelled images, none of them in train: index more, or change splits.ratio")
    task = task or _natural_task(items)
    notes: list[str] = []
    kept = _with_pixels(items, notes) if task == "segmentation" else items
    train, val = ([one for one in kept if one.split == split] for split in ("train", "val"))
    classes = _classes(index, train, notes)
    notes += _few_groups(classes, [*train, *val])
    if not val:
        notes.append("no labelled image in val: nothing tells when to stop, the last epoch counts")
    several = sum(len(one.label.present.intersection(classes)) > 1 for one in kept)
    single = task == "classification" and not several
    if task == "classification" and several:
        notes.append(
            f"{several} of {len(kept)} images show more than one class: the model says yes or no to each class "
            "(sigmoids), instead of choosing one of them (softmax)"
        )
    clean = any(not one.label.present.intersection(classes) for one in kept)
    if single and len(classes) + clean < 2:
        raise CurateError(f"every labelled image shows {classes[0]}: there is nothing to tell apart; label clean ones")
    return TrainingData(task, classes, tuple(train), tuple(val), single, clean, tuple(notes))


def _teaches(status: str | None, split: str | None, source: str | None, missing: bool | None) -> bool:
    if status != "labelled" or missing:
        return False
    return split == "train" or (split == "val" and source != "synthetic")


def _natural_task(items: Sequence[Item]) -> str:
    """Segmentation where somebody drew pixels."""
    drawn = any(defect.rle is not None for one in items for defect in one.label.defects)
    return "segmentation" if drawn else "classification"


def _with_pixels(items: Sequence[Item], notes: list[str]) -> list[Item]:
    """Those whose every class has its place: where is unknown of the others, also that the rest is clean."""
    kept = [one for one in items if not one.label.present - {defect.label for defect in one.label.defects}]
    if len(kept) < len(items):
        notes.append(f"{len(items) - len(kept)} images name a class without its place and teach no segmentation")
    boxes = sum(defect.rle is None for one in kept for defect in one.label.defects)
    if boxes:
        notes.append(f"{boxes} defects are plain boxes: all pixels of a box count as the defect")
    return kept


def _classes(index: Index, train: Sequence[Item], notes: list[str]) -> tuple[str, ...]:
    shown = Counter(name for one in train for name in one.label.present)
    known = index.project.active_classes
    absent = [name for name in known if not shown[name]]
    if len(absent) == len(known):
        raise CurateError(f"none of the {len(train)} labelled images of train shows a defect: label some that do")
    if absent:
        notes.append(f"no image of train shows {', '.join(absent)}: the model will not know it")
    return tuple(name for name in known if shown[name])


def _few_groups(classes: Sequence[str], items: Sequence[Item]) -> Iterator[str]:
    for name in classes:
        groups = {one.split: set[str]() for one in items}
        for one in items:
            if name in one.label.present:
                groups[one.split].add(one.group or one.id)
        if len(set().union(*groups.values())) < FEW_GROUPS:
            yield f"class {name} comes from one group alone: val cannot judge it"


# --- their arrays ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadPlan:
    """All that turns an item into arrays; plain values, so that any process can do it."""

    task: str
    classes: tuple[str, ...]
    single: bool
    clean: bool
    input: Input
    augmentation: Augmentation
    seed: int
    max_pixels: int


Key = tuple[int, int, int]  # row, epoch, place in the epoch
Arrays = tuple[str, Pixels, NDArray[np.uint8]]  # id, images (T, H, W, C), targets (T, ...)
Problem = tuple[str, str]  # id, reason


@dataclass
class Examples:
    """Items as arrays: a random view of each in training, all of it in tiles for validation."""

    items: Sequence[Item]
    plan: LoadPlan
    training: bool = True

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Arrays | Problem:
        item = self.items[key[0]]
        try:
            pixels = read(item.id, item.path, self.plan.max_pixels)
            if pixels.shape[:2] != (item.height, item.width):
                raise LabelProblem(f"is {pixels.shape[1]}x{pixels.shape[0]}, the index says {item.width}x{item.height}")
        except LabelProblem as problem:
            return item.id, f"{item.path}: {problem}"
        image = with_channels(pixels, self.plan.input.channels)
        seed = (self.plan.seed, *key[1:])
        views = _viewed if self.plan.task == "segmentation" else _whole
        return item.id, *views(image, item, self.plan, seed if self.training else None)


def _whole(image: Pixels, item: Item, plan: LoadPlan, seed: Sequence[int] | None) -> tuple[Pixels, NDArray[np.uint8]]:
    """The image, resized; what it shows."""
    image = resized(image, plan.input.height, plan.input.width)
    if seed is not None:
        image, _ = augmented(image, None, plan.augmentation, seed)
    present = [name in item.label.present for name in plan.classes]
    if plan.single and plan.clean:
        present.append(not any(present))
    return image[None], np.array([present], np.uint8)


def _viewed(image: Pixels, item: Item, plan: LoadPlan, seed: Sequence[int] | None) -> tuple[Pixels, NDArray[np.uint8]]:
    """A crop with its masks, or all tiles."""
    high, wide = plan.input.height, plan.input.width
    image, masks = padded(image, high, wide), masks_of(item, plan.classes)
    masks = np.stack([padded(mask, high, wide) for mask in masks])
    if seed is None:
        places = [(y, x) for y in starts(image.shape[0], high, 0) for x in starts(image.shape[1], wide, 0)]
    else:
        places = [crop_place(np.random.default_rng([*seed, 0]), masks, high, wide, plan.augmentation.defect_crops)]
    images = np.stack([image[y : y + high, x : x + wide] for y, x in places])
    targets = np.stack([masks[:, y : y + high, x : x + wide] for y, x in places])
    if seed is not None:
        changed, masks_changed = augmented(images[0], targets[0], plan.augmentation, seed)
        assert masks_changed is not None
        return changed[None], masks_changed[None]
    return images, targets


def masks_of(item: Item, classes: Sequence[str]) -> Masks:
    """(C, H, W) of 0 and 1, one a class: defects of different classes may overlap."""
    masks = np.zeros((len(classes), item.height, item.width), np.uint8)
    for defect in item.label.defects:
        if defect.label in classes:
            masks[classes.index(defect.label)] |= mask_of(defect, item.width, item.height)
    return masks


def crop_place(rng: Rng, masks: Masks, height: int, width: int, on_defect: float) -> tuple[int, int]:
    """Top and left of a crop: with this chance around a pixel of a defect (each class alike), else anywhere.

    Clean images and clean parts of others keep coming, so that false alarms stay dear.
    """
    most_y, most_x = masks.shape[1] - height, masks.shape[2] - width
    shown = np.flatnonzero(masks.any(axis=(1, 2)))
    if not len(shown) or rng.random() >= on_defect:
        return int(rng.integers(most_y + 1)), int(rng.integers(most_x + 1))
    pixels = np.flatnonzero(masks[rng.choice(shown)])
    y, x = divmod(int(rng.choice(pixels)), masks.shape[2])
    top, left = y - int(rng.integers(height)), x - int(rng.integers(width))
    return min(max(top, 0), most_y), min(max(left, 0), most_x)


def resolved_input(recipe: Recipe, items: Sequence[Item]) -> Input:
    """What the images make of the recipe's size.

    Segmentation: a crop no larger than the largest image. Classification: as many pixels as the recipe says, in the
    images' usual proportions, so that a strip is not squeezed into a square.
    """
    wanted = recipe.input
    if recipe.task == "segmentation":
        high, wide = (up_to_stride(max(getattr(one, side) for one in items)) for side in ("height", "width"))
        return wanted.model_copy(update={"height": min(high, wanted.height), "width": min(wide, wanted.width)})
    aspect = float(np.median([one.width / one.height for one in items]))
    height = math.sqrt(wanted.height * wanted.width / aspect)
    sides = (max(32, 32 * round(side / 32)) for side in (height, height * aspect))
    return wanted.model_copy(update=dict(zip(("height", "width"), sides, strict=True)))


# --- batches --------------------------------------------------------------------------------------------------------

Guests = tuple[frozenset[str], float]  # the ids that may be no more than this share of a batch
NO_GUESTS: Guests = frozenset(), 1.0


@dataclass
class EpochBatches:
    """The keys of an epoch, cut into batches. `begin` or `take` sets the epoch; a loader's processes stay."""

    size: int
    keys: list[list[Key]] = field(default_factory=list)

    def begin(self, order: Sequence[int], epoch: int) -> None:
        self.take([order[at : at + self.size] for at in range(0, len(order), self.size)], epoch)

    def take(self, parts: Sequence[Sequence[int]], epoch: int, rank: int = 0, world: int = 1) -> None:
        """These batches; of several processes each counts the places that are its own, as one alone would."""
        places = count(rank, world)
        self.keys = [[(int(row), epoch, next(places)) for row in part] for part in parts]

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def loader(examples: Examples, batches: EpochBatches, workers: int, pin: bool, guests: Guests = NO_GUESTS) -> Any:
    """torch's loader; its processes are fresh ones, since a fork would inherit the database client's threads."""
    from torch.utils.data import DataLoader

    many: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    return DataLoader(
        examples,
        batch_sampler=batches,
        collate_fn=partial(together, guests=guests),
        num_workers=workers,
        worker_init_fn=_alone,
        pin_memory=pin,
        **many,  # type: ignore[arg-type]
    )


def _alone(worker: int) -> None:
    """A loader's process keeps to one core; torch sees to its own threads."""
    cv2.setNumThreads(0)


def together(
    found: Sequence[Arrays | Problem], guests: Guests = NO_GUESTS
) -> tuple[list[str], Any, Any, list[Problem]]:
    """One batch: ids, images and targets (None where no image could be read), problems."""
    import torch

    good = _bounded([one for one in found if len(one) == 3], *guests)
    problems = [one for one in found if len(one) == 2]
    if not good:
        return [], None, None, problems
    images, targets = (torch.from_numpy(np.concatenate([one[place] for one in good])) for place in (1, 2))
    return [one[0] for one in good], images, targets, problems


def _bounded(good: list[Arrays], guests: frozenset[str], share: float) -> list[Arrays]:
    """Where images of train could not be read, fewer pseudo-labelled ones may stand beside the others."""
    if not guests:
        return good
    own = [one for one in good if one[0] not in guests]
    rest = [one for one in good if one[0] in guests]
    return own + rest[: sampling.most_beside(len(own), share)]
