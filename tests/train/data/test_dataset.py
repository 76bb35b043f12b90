"""Which images are trained on; crops; images that cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curate.data import Defect, Item, Label
from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project, load
from tests.curate.select.test_run import label
from tests.train.conftest import CLASSES, data, drawn, tiny
from train.data import augment, dataset
from train.data.dataset import EpochBatches, Examples, LoadPlan, crop_position, loader
from train.recipe import Augmentation, Input

CROP = Input(height=32, width=32)


def plan(**more: object) -> LoadPlan:
    return replace(LoadPlan("segmentation", CLASSES, False, True, CROP, tiny().augmentation, 0, 10**8), **more)  # type: ignore[arg-type]


def test_only_labelled_images_of_train_and_val_teach(works: Project) -> None:
    index = Index(works)
    collected = dataset.collect(index)
    state = {id: (status, split) for id, status, split in index.rows("status", "split")}
    taken = {item.id for item in (*collected.train, *collected.val)}
    assert taken == {id for id, (status, split) in state.items() if status == "labelled" and split in ("train", "val")}
    assert (collected.task, collected.classes) == ("segmentation", CLASSES)
    assert len(state) - len(taken) > 6  # the unlabelled ones, and those of test
    before = collected.digest
    first = collected.train[0].id
    index.set({"status": {first: "disputed"}})
    again = dataset.collect(index)
    assert first not in {item.id for item in again.train}
    assert again.digest != before


def test_synthetic_images_never_judge(works: Project) -> None:
    index = Index(works)
    val = [item.id for item in dataset.collect(index).val]
    train = dataset.collect(index).train[0].id
    index.set({"source": {val[0]: "synthetic", train: "synthetic"}})
    collected = dataset.collect(index)
    assert val[0] not in {item.id for item in (*collected.val, *collected.train)}
    assert train in {item.id for item in collected.train}


def test_an_image_of_a_retired_class_is_not_clean(works: Project) -> None:
    index = Index(works)
    before = dataset.collect(index)
    only = {item.id for item in (*before.train, *before.val) if item.label.present == {CLASSES[0]}}
    assert only
    text = works.file.read_text().replace(f'name = "{CLASSES[0]}"', f'name = "{CLASSES[0]}"\nretired = true')
    works.file.write_text(text)
    collected = dataset.collect(Index(load(works.folder)))
    assert {item.id for item in (*before.train, *before.val)} - only == {
        item.id for item in (*collected.train, *collected.val)
    }
    assert f"{len(only)} images show retired classes alone" in " ".join(collected.notes)


def test_a_class_without_a_place_teaches_no_segmentation(works: Project) -> None:
    waiting = [id for id, status in Index(works).rows("status") if status == "unlabelled"]
    label(works, waiting[0], "crack")
    index = Index(works)
    index.set({"split": {waiting[0]: "train"}})
    collected = dataset.collect(index)
    assert waiting[0] not in {item.id for item in collected.train}
    assert any("without a region" in note for note in collected.notes)
    assert waiting[0] in {item.id for item in dataset.collect(index, "classification").train}


def test_nothing_to_learn(works: Project) -> None:
    index = Index(works)
    labelled = [id for id, status in index.rows("status") if status == "labelled"]
    defects = {item.id for item in index.items(labelled) if not item.label.clean}
    index.set({"status": dict.fromkeys(defects, "disputed")})
    with pytest.raises(CurateError, match=r"none of the .* shows a defect"):
        dataset.collect(index)
    index.set({"status": dict.fromkeys(labelled, "unlabelled")})
    with pytest.raises(CurateError, match="no labelled image"):
        dataset.collect(index)


def test_a_class_of_one_group_is_reported(works: Project) -> None:
    index = Index(works)
    index.set({"group": {id: "one" for (id,) in index.rows()}})
    assert any("class crack comes from one group" in note for note in dataset.collect(index).notes)


def test_masks_of_classes_may_overlap(tmp_path: Path) -> None:
    both = Label(
        "labelled", (Defect("crack", (2, 2, 8, 8)), Defect("hole", (6, 6, 8, 8)), Defect("hole", (0, 0, 2, 2)))
    )
    masks = dataset.masks_of(Item("x", tmp_path, 20, 16, both), CLASSES)
    assert masks.shape == (2, 16, 20)
    assert masks.sum(axis=(1, 2)).tolist() == [64, 64 + 4]
    assert (masks[0] & masks[1]).sum() == 16


def test_crops_find_small_defects_and_keep_clean_steel() -> None:
    masks = np.zeros((2, 256, 1600), np.uint8)
    masks[0, 200:203, 1500:1503] = 1
    masks[1, 10:200, 100:800] = 1
    rng = np.random.default_rng(0)
    shown = np.zeros(3)
    for _ in range(600):
        y, x = crop_position(rng, masks, 128, 256, on_defect=0.5)
        assert 0 <= y <= 128
        assert 0 <= x <= 1344
        present = masks[:, y : y + 128, x : x + 256].any(axis=(1, 2))
        shown += [present[0], present[1], not present.any()]
    assert shown[0] > 120  # a quarter of all, though it covers 0.002 %
    assert shown[1] > 120
    assert shown[2] > 60


def test_image_and_masks_change_alike() -> None:
    pixels, masks = drawn(2)
    both = np.stack([masks[name] for name in CLASSES])
    config = Augmentation(flip_horizontal=0.5, flip_vertical=0.5, rotate90=0.5, rotate=30, shift=0.1, zoom=0.2)
    marked = np.repeat(255 * both[0][..., None], 3, axis=2)
    turned = set()
    for seed in range(20):
        image, changed = augment.augmented(marked, both, config, [seed])
        assert changed is not None
        assert (np.abs((image[..., 0] > 127).astype(int) - changed[0]).mean()) < 0.02
        again = augment.augmented(marked, both, config, [seed])
        assert np.array_equal(image, again[0])
        turned.add(changed.tobytes())
    assert len(turned) > 15
    for name in augment.LIGHT_CHANGES:
        lit, same = augment.augmented(pixels[..., None], both, Augmentation(**{name: 1.0}), [1])
        assert lit.shape == (64, 64, 1)
        assert not np.array_equal(lit[..., 0], pixels)
        assert same is both


def test_classes_that_do_not_exclude_each_other_are_reported(works: Project) -> None:
    (note,) = (line for line in dataset.collect(Index(works), "classification").notes if "sigmoids" in line)
    assert "images show more than one class" in note
    assert not any("sigmoids" in line for line in dataset.collect(Index(works)).notes)  # each pixel has its own answer


def test_a_batch_keeps_one_shape_whatever_is_turned(tmp_path: Path) -> None:
    strips = Input(height=32, width=64)
    turned = plan(input=strips, augmentation=Augmentation(rotate90=1.0, flip_vertical=0.5))
    batches = EpochBatches(8)
    batches.begin(range(8), epoch=0)
    for task in ("segmentation", "classification"):
        feed = loader(Examples(data(tmp_path, 8).train, replace(turned, task=task)), batches, workers=0, pin=False)
        ((_, images, _, _),) = feed
        assert images.shape == (8, 32, 64, 3)


def test_a_picture_that_is_not_square_is_turned_by_half_a_turn_or_not_at_all() -> None:
    pixels = np.arange(32 * 64, dtype=np.uint8).reshape(32, 64, 1)
    results = {augment.augmented(pixels, None, Augmentation(rotate90=1.0), [seed])[0].tobytes() for seed in range(20)}
    assert results == {pixels.tobytes(), pixels[::-1, ::-1].tobytes()}


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    items = data(tmp_path, 8).train
    items[2].path.write_bytes(items[2].path.read_bytes()[:200])
    items[5].path.unlink()
    batches = EpochBatches(3)
    feed = loader(Examples(items, plan()), batches, workers=0, pin=False)
    batches.begin(range(8), epoch=0)
    epoch = list(feed)
    assert [len(ids) for ids, *_ in epoch] == [2, 2, 2]
    assert {id for *_, problems in epoch for id, _ in problems} == {items[2].id, items[5].id}
    assert all(images.shape[1:] == (32, 32, 3) and targets.shape[1:] == (2, 32, 32) for _, images, targets, _ in epoch)


@pytest.mark.exhaustive
def test_other_processes_read_the_same(tmp_path: Path) -> None:
    items = data(tmp_path, 8).train
    epochs = []
    for workers in (0, 2):
        batches = EpochBatches(4)
        feed = loader(Examples(items, plan()), batches, workers, pin=False)
        for epoch in range(2):
            batches.begin(range(8), epoch)
            epochs.append([(ids, images.numpy().tobytes()) for ids, images, *_ in feed])
    assert epochs[:2] == epochs[2:]
    assert epochs[0] != epochs[1]


def test_val_sees_all_of_an_image(tmp_path: Path) -> None:
    items = data(tmp_path, 3).train
    _, tiles, masks = Examples(items, plan(), training=False)[2, 0, 0]  # type: ignore[misc]
    assert tiles.shape == (4, 32, 32, 3)
    assert masks.sum() == sum(mask.sum() for mask in drawn(2)[1].values())
