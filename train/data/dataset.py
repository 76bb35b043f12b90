"""Training data: labelled images of train and val as arrays, read in any process, in any order.

Only `labelled` images are used; disputed ones and those of test are never read, synthetic ones only in train. An image
that cannot be decoded is skipped and reported with the reason; the epoch goes on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.data import Item
from curate.errors import CurateError, LabelProblem
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.masks.shapes import mask_of
from curate.project import Project
from train.data import sampling
from train.data.augment import Masks, Rng, augmented
from train.data.pixels import Pixels, padded, read, resized, starts, tiles, up_to_stride, with_channels
from train.recipe import Augmentation, Input, Recipe

CLEAN = "clean"  # an output beside the classes, where these are exclusive
FEW_GROUPS = 2
SEEN_SHARE, SEEN = 0.25, 64  # share of a region's pixels, or pixels, that a crop must hold to show its class


@dataclass(frozen=True)
class TrainingData:
    """Images with labels, and `notes` for the user. `single`: the classes are exclusive, no image shows two.

    `clean`: some images show no class. `pseudo`: pseudo-labelled images, beside those of train.
    """

    task: str
    classes: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    single: bool
    clean: bool
    notes: tuple[str, ...] = ()
    pseudo: tuple[Item, ...] = ()

    def as_wanted(self, recipe: Recipe) -> TrainingData:
        """Return the data with independent classes where the recipe wants them."""
        return replace(self, single=self.single and not recipe.independent)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the network's outputs: the classes, and `clean` where they are exclusive."""
        return (*self.classes, CLEAN) if self.single and self.clean else self.classes

    @property
    def digest(self) -> str:
        """Hash that changes with any image, label or split."""
        rows = sorted((item.id, item.label.digest, item.split) for item in (*self.train, *self.val))
        pseudo = [sorted((item.id, item.label.digest) for item in self.pseudo)] if self.pseudo else []
        return key_of([rows, self.classes, *pseudo])

    def present(self, items: Sequence[Item]) -> NDArray[np.bool_]:
        """Return which item shows which class, (images, classes)."""
        return np.array([[name in item.label.present for name in self.classes] for item in items], bool).reshape(
            len(items), len(self.classes)
        )


# --- which images ---------------------------------------------------------------------------------------------------


def collect(index: Index, task: str | None = None) -> TrainingData:
    """Return the labelled images of train and val.

    Args:
        index: the project's index.
        task: segmentation or classification; without it segmentation where any label has a mask.

    Raises CurateError where there is nothing to learn.
    """
    ids = [id for id, *row in index.rows("status", "split", "source", "missing") if _is_used(*row)]
    if not ids:
        raise CurateError("no labelled image in train. Label some first: curate select, then label; or index a source")
    notes: list[str] = []
    items = without_retired(sorted(index.items(ids), key=lambda item: item.id), index.project, notes)
    if not any(item.split == "train" for item in items):
        raise CurateError(f"{len(items)} labelled images, none of them in train: index more, or change splits.ratio")
    task = task or _natural_task(items)
    usable = _with_pixels(items, notes) if task == "segmentation" else items
    train, val = ([item for item in usable if item.split == split] for split in ("train", "val"))
    classes = _classes(index, train, notes)
    notes += _few_groups(classes, [*train, *val])
    if not val:
        notes.append("no labelled image in val: no early stopping, the last epoch is kept")
    several = sum(len(item.label.present.intersection(classes)) > 1 for item in usable)
    single = task == "classification" and not several
    if task == "classification" and several:
        notes.append(
            f"{several} of {len(usable)} images show more than one class: the model decides each class on its own "
            "(sigmoids), instead of choosing one of them (softmax)"
        )
    clean = any(not item.label.present.intersection(classes) for item in usable)
    if single and len(classes) + clean < 2:
        raise CurateError(f"every labelled image shows {classes[0]}: there is nothing to tell apart; label clean ones")
    return TrainingData(task, classes, tuple(train), tuple(val), single, clean, tuple(notes))


def _is_used(status: str | None, split: str | None, source: str | None, missing: bool | None) -> bool:
    if status != "labelled" or missing:
        return False
    return split == "train" or (split == "val" and source != "synthetic")


def without_retired(items: Sequence[Item], project: Project, notes: list[str]) -> list[Item]:
    """Return the images without those that show retired classes alone: they would count as clean."""
    kept = [item for item in items if not item.label.present or item.label.present - project.retired_classes]
    if len(kept) < len(items):
        notes.append(f"{len(items) - len(kept)} images show retired classes alone and are left out: they are not clean")
    return kept


def _natural_task(items: Sequence[Item]) -> str:
    """Return segmentation where any label has a mask."""
    drawn = any(defect.rle is not None for item in items for defect in item.label.defects)
    return "segmentation" if drawn else "classification"


def _with_pixels(items: Sequence[Item], notes: list[str]) -> list[Item]:
    """Return the images in which every class has a region; in others not even the clean pixels are known."""
    usable = [item for item in items if not item.label.present - {defect.label for defect in item.label.defects}]
    if len(usable) < len(items):
        notes.append(
            f"{len(items) - len(usable)} images name a class without a region and are not used for segmentation"
        )
    boxes = sum(defect.rle is None for item in usable for defect in item.label.defects)
    if boxes:
        notes.append(f"{boxes} defects are plain boxes: all pixels of a box count as the defect")
    return usable


def _classes(index: Index, train: Sequence[Item], notes: list[str]) -> tuple[str, ...]:
    shown = Counter(name for item in train for name in item.label.present)
    active = index.project.active_classes
    absent = [name for name in active if not shown[name]]
    if len(absent) == len(active):
        raise CurateError(f"none of the {len(train)} labelled images of train shows a defect: label some that do")
    if absent:
        notes.append(f"no image of train shows {', '.join(absent)}: the model will not know it")
    return tuple(name for name in active if shown[name])


def _few_groups(classes: Sequence[str], items: Sequence[Item]) -> Iterator[str]:
    for name in classes:
        groups = {item.split: set[str]() for item in items}
        for item in items:
            if name in item.label.present:
                groups[item.split].add(item.group or item.id)
        if len(set().union(*groups.values())) < FEW_GROUPS:
            yield f"class {name} comes from one group only: it cannot be evaluated on val"


# --- their arrays ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadPlan:
    """How an item becomes arrays; plain values, so that any process can do it."""

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
    """Items as arrays: a random view of each in training, the whole image (a segmenter's in tiles) in validation."""

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
        views = _resized_whole
        if self.plan.task == "segmentation":
            views = _crop_or_tiles
        elif self.plan.input.resolution == "native":
            views = _crop_or_whole
        return item.id, *views(image, item, self.plan, seed if self.training else None)


def _resized_whole(
    image: Pixels, item: Item, plan: LoadPlan, seed: Sequence[int] | None
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Return the resized image and which classes it shows."""
    image = resized(image, plan.input.height, plan.input.width)
    if seed is not None:
        image, _ = augmented(image, None, plan.augmentation, seed)
    return image[None], _target([name in item.label.present for name in plan.classes], plan)


def _target(present: Any, plan: LoadPlan) -> NDArray[np.uint8]:
    """Return a classifier's target (1, outputs) for an image that shows these classes."""
    clean = [not any(present)] if plan.single and plan.clean else []
    return np.array([[*present, *clean]], np.uint8)


def _crop_or_whole(
    image: Pixels, item: Item, plan: LoadPlan, seed: Sequence[int] | None
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Return a random crop and which classes it shows, or without a seed the whole image, a large one in tiles.

    A sliver of a defect at a crop's border is no sight of it. A class that the label does not locate may be anywhere: a
    crop keeps the image's word.
    """
    masks = masks_of(item, plan.classes)
    high, wide, places = tiles(image.shape[0], image.shape[1])
    if seed is not None:
        high, wide = plan.input.height, plan.input.width
    image, masks = padded(image, high, wide), np.stack([padded(mask, high, wide) for mask in masks])
    if seed is not None:
        places = [crop_position(np.random.default_rng([*seed, 0]), masks, high, wide, plan.augmentation.defect_crops)]
    images = np.stack([image[y : y + high, x : x + wide] for y, x in places])
    by_class = [
        _shown_in(mask, places, high, wide) if mask.any() else np.full(len(places), name in item.label.present)
        for name, mask in zip(plan.classes, masks, strict=True)
    ]
    if seed is not None:
        images = augmented(images[0], None, plan.augmentation, seed)[0][None]
    return images, np.concatenate([_target(row, plan) for row in np.stack(by_class, axis=1)])


def _shown_in(mask: Pixels, places: Sequence[tuple[int, int]], high: int, wide: int) -> NDArray[np.bool_]:
    """Return which views at these places show a region of the mask, or enough of it."""
    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    least = np.minimum(stats[:, cv2.CC_STAT_AREA] * SEEN_SHARE, SEEN)
    least[0] = np.inf  # what is outside
    counts = (np.bincount(regions[y : y + high, x : x + wide].ravel(), minlength=len(least)) for y, x in places)
    return np.array([bool((count >= least).any()) for count in counts])


def _crop_or_tiles(
    image: Pixels, item: Item, plan: LoadPlan, seed: Sequence[int] | None
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Return a random crop with its masks, or without a seed all tiles."""
    high, wide = plan.input.height, plan.input.width
    image, masks = padded(image, high, wide), masks_of(item, plan.classes)
    masks = np.stack([padded(mask, high, wide) for mask in masks])
    if seed is None:
        places = [(y, x) for y in starts(image.shape[0], high, 0) for x in starts(image.shape[1], wide, 0)]
    else:
        places = [crop_position(np.random.default_rng([*seed, 0]), masks, high, wide, plan.augmentation.defect_crops)]
    images = np.stack([image[y : y + high, x : x + wide] for y, x in places])
    targets = np.stack([masks[:, y : y + high, x : x + wide] for y, x in places])
    if seed is not None:
        changed, masks_changed = augmented(images[0], targets[0], plan.augmentation, seed)
        assert masks_changed is not None
        return changed[None], masks_changed[None]
    return images, targets


def masks_of(item: Item, classes: Sequence[str]) -> Masks:
    """Return one mask per class, (C, H, W) of 0 and 1; defects of different classes may overlap."""
    masks = np.zeros((len(classes), item.height, item.width), np.uint8)
    for defect in item.label.defects:
        if defect.label in classes:
            masks[classes.index(defect.label)] |= mask_of(defect, item.width, item.height)
    return masks


def crop_position(rng: Rng, masks: Masks, height: int, width: int, on_defect: float) -> tuple[int, int]:
    """Return a crop's top and left: with chance `on_defect` around a defect pixel (each class alike), else anywhere.

    Crops of clean steel stay in every epoch, so that false alarms keep their cost.
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
    """Return the recipe's input size, fitted to the images.

    In native resolution: a crop no larger than the largest image. Else as many pixels as the recipe says, in the
    images' median aspect ratio, so that a strip is not squeezed into a square.
    """
    size = recipe.input
    if recipe.native:
        high, wide = (up_to_stride(max(getattr(item, side) for item in items)) for side in ("height", "width"))
        return size.model_copy(update={"height": min(high, size.height), "width": min(wide, size.width)})
    aspect = float(np.median([item.width / item.height for item in items]))
    height = math.sqrt(size.height * size.width / aspect)
    sides = (max(32, 32 * round(side / 32)) for side in (height, height * aspect))
    return size.model_copy(update=dict(zip(("height", "width"), sides, strict=True)))


def unlocated(data: TrainingData, recipe: Recipe) -> int:
    """Count images of train that name a class without a region, of which a native classifier sees only crops."""
    if data.task != "classification" or not recipe.native:
        return 0
    large = [item for item in data.train if item.height > recipe.input.height or item.width > recipe.input.width]
    return sum(bool(item.label.present & {*data.classes} - {d.label for d in item.label.defects}) for item in large)


# --- batches --------------------------------------------------------------------------------------------------------

PseudoLimit = tuple[frozenset[str], float]  # pseudo-labelled ids, and their largest share of a batch
NO_PSEUDO: PseudoLimit = frozenset(), 1.0


@dataclass
class EpochBatches:
    """The keys of an epoch, cut into batches. `begin` or `take` sets the epoch; the loader's workers stay alive."""

    size: int
    keys: list[list[Key]] = field(default_factory=list)

    def begin(self, order: Sequence[int], epoch: int) -> None:
        """Set the epoch to these rows, cut into batches of `size`."""
        self.take([order[at : at + self.size] for at in range(0, len(order), self.size)], epoch)

    def take(self, parts: Sequence[Sequence[int]], epoch: int, rank: int = 0, world_size: int = 1) -> None:
        """Set the epoch to these batches; positions are numbered as in a single process."""
        positions = count(rank, world_size)
        self.keys = [[(int(row), epoch, next(positions)) for row in part] for part in parts]

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def loader(examples: Examples, batches: EpochBatches, workers: int, pin: bool, limit: PseudoLimit = NO_PSEUDO) -> Any:
    """Return torch's DataLoader; its workers are spawned, since a fork would inherit the database client's threads."""
    from torch.utils.data import DataLoader

    process_options: dict[str, Any] = (
        {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    )
    return DataLoader(
        examples,
        batch_sampler=batches,
        collate_fn=partial(collate, limit=limit),
        num_workers=workers,
        worker_init_fn=_use_one_thread,
        pin_memory=pin,
        **process_options,  # type: ignore[arg-type]
    )


def _use_one_thread(worker: int) -> None:
    """Keep a loader's worker to one core: OpenCV's threads off; torch limits its own."""
    cv2.setNumThreads(0)


def collate(
    examples: Sequence[Arrays | Problem], limit: PseudoLimit = NO_PSEUDO
) -> tuple[list[str], Any, Any, list[Problem]]:
    """Return one batch: ids, images and targets (None where no image could be read), problems."""
    import torch

    good = _limit_pseudo([example for example in examples if len(example) == 3], *limit)
    problems = [example for example in examples if len(example) == 2]
    if not good:
        return [], None, None, problems
    images, targets = (torch.from_numpy(np.concatenate([example[place] for example in good])) for place in (1, 2))
    return [example[0] for example in good], images, targets, problems


def _limit_pseudo(examples: list[Arrays], pseudo_ids: frozenset[str], share: float) -> list[Arrays]:
    """Drop pseudo-labelled images above their share: some images of train may not have been readable."""
    if not pseudo_ids:
        return examples
    labelled = [example for example in examples if example[0] not in pseudo_ids]
    pseudo = [example for example in examples if example[0] in pseudo_ids]
    return labelled + pseudo[: sampling.most_pseudo(len(labelled), share)]
