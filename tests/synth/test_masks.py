"""The mask bank and placement, on drawn steel whose defects are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from curate.data import Defect, Item, Label
from curate.errors import CurateError
from synth import masks
from synth.nouns import MaskBank, Scene, extent_of
from synth.synthesisers import paste, poisson
from synth.synthesisers._parts import FEATHER
from tests.synth.conftest import CLASSES, drawn, items

SIZE = 48


@pytest.fixture(scope="module")
def steel(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return items(tmp_path_factory.mktemp("steel"))


@pytest.fixture(scope="module")
def bank(steel: list[Item]) -> MaskBank:
    return masks.bank_of(steel, [], CLASSES, 10**6)


@pytest.fixture(scope="module")
def scenes(bank: MaskBank) -> list[Scene]:
    return [masks.scene(bank, name, SIZE, seed)[0] for name in CLASSES for seed in range(8)]


# --- the bank ---------------------------------------------------------------------------------------------------------


def test_the_bank_holds_every_defect_with_its_margin_and_every_clean_image(bank: MaskBank, steel: list[Item]) -> None:
    assert len(bank.of("crack")) == len(bank.of("hole")) == 4
    assert {ground.id for ground in bank.grounds} == {item.id for item in steel if item.label.clean}
    for donor in bank.donors:
        view = int(donor.item.path.stem[-1])
        pixels, name, mask = drawn(int(donor.item.path.stem[5:7]), view)
        left, top = donor.corner
        high, wide = donor.mask.shape
        assert donor.name == name
        assert np.array_equal(donor.mask, mask[top : top + high, left : left + wide])
        assert np.array_equal(donor.pixels[..., 0], pixels[top : top + high, left : left + wide])
        margin = max(masks.LEAST_MARGIN, max(donor.extent) // 2)
        assert min(wide - donor.extent[0], high - donor.extent[1]) >= margin  # on one side at the very least


def test_blocked_images_are_refused_by_id_and_by_group(steel: list[Item]) -> None:
    for hidden in (replace(steel[0], group="other"), replace(steel[0], id="f" * 64)):
        with pytest.raises(CurateError, match="in val or test, by id or group"):
            masks.bank_of(steel, [hidden], CLASSES, 10**6)
    bank = masks.bank_of(steel[2:], steel[:2], CLASSES, 10**6)
    assert bank.blocked_ids == {item.id for item in steel[:2]}
    assert not {donor.group for donor in bank.donors} & bank.blocked_groups


def test_synthetic_images_boxes_and_unreadable_files_are_no_donors(steel: list[Item], tmp_path: Path) -> None:
    boxed = replace(steel[0], label=Label("labelled", (Defect("crack", (2.0, 2.0, 9.0, 9.0)),)))
    synthetic = replace(steel[1], source="synthetic")
    gone = replace(steel[2], path=tmp_path / "gone.png")
    bank = masks.bank_of([boxed, synthetic, gone, *steel[4:]], [], CLASSES, 10**6)
    assert {donor.item.id for donor in bank.donors}.isdisjoint({item.id for item in steel[:3]})
    assert len(bank.notes) == 1
    assert "gone.png: cannot be read" in bank.notes[0]
    with pytest.raises(CurateError, match="class 'crack' has no defect with a mask"):
        masks.scene(masks.bank_of([boxed, *steel[4:8]], [], ("crack",), 10**6), "crack", SIZE, 0)


def test_the_digest_depends_on_images_and_labels_alone(steel: list[Item], bank: MaskBank) -> None:
    assert masks.bank_of(steel[::-1], [], CLASSES, 10**6).digest == bank.digest
    assert masks.bank_of(steel[1:], [], CLASSES, 10**6).digest != bank.digest
    assert (
        masks.bank_of([replace(steel[0], label=Label("labelled")), *steel[1:]], [], CLASSES, 10**6).digest
        != bank.digest
    )


def test_disconnected_parts_are_separate_defects(steel: list[Item]) -> None:
    clean = next(item for item in steel if item.label.clean)
    mask = np.zeros((80, 96), np.uint8)
    mask[10:14, 10:20] = mask[10:14, 23:30] = 1  # near enough to be one
    mask[50:54, 60:70] = 1
    mask[70, 90] = 1  # a slip of the pen
    result = masks.shapes.defect_from_mask("crack", mask)
    assert result is not None
    item = replace(clean, label=Label("labelled", (result,)))
    donors = masks.donors_of(item, masks.pixels_of(item, 10**6))
    assert [donor.area for donor in donors] == [68, 40]


@pytest.mark.parametrize("dark", [0, 3])
def test_the_black_rim_is_no_steel(dark: int) -> None:
    pixels = np.full((60, 100, 1), 120, np.uint8)
    pixels[:, :30] = dark
    pixels[20:24, 60:64] = 0  # a black defect on steel is steel
    region = masks.region_of(pixels)
    assert region[:, 35:].all()
    assert not region[:, :25].any()
    assert masks.region_of(pixels[:, 40:]).all()


# --- scenes -----------------------------------------------------------------------------------------------------------


def test_a_scene_depends_on_its_seed_alone(bank: MaskBank) -> None:
    first, site = masks.scene(bank, "crack", SIZE, 7)
    masks.scene(bank, "hole", SIZE, 8)
    again, same = masks.scene(bank, "crack", SIZE, 7)
    other, _ = masks.scene(bank, "crack", SIZE, 8)
    assert site == same
    for name in ("ground", "mask", "donor", "reach"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize("name", CLASSES)
def test_a_scene_is_a_window_of_a_clean_image_and_holds_its_mask(bank: MaskBank, name: str) -> None:
    for seed in range(8):
        scene, site = masks.scene(bank, name, SIZE, seed)
        left, top, width, height = site.window
        ground = masks.pixels_of(site.ground.item, 10**6)
        assert np.array_equal(scene.ground, ground[top : top + height, left : left + width])
        assert scene.mask.shape == (height, width) == (SIZE, SIZE)
        assert site.area == scene.mask.sum() > 0
        assert site.donor.name == scene.name == name
        assert max(extent_of(scene.mask)) <= SIZE - 2 * masks.RIM
        assert scene.reach[scene.mask].mean() > 0.9


def test_sizes_stay_about_those_of_train_and_vary(bank: MaskBank) -> None:
    areas = {name: [masks.scene(bank, name, 64, seed)[1].area for seed in range(24)] for name in CLASSES}
    for name, area in areas.items():
        real = [donor.area for donor in bank.of(name)]
        assert min(real) * masks.SMALLER * 0.8 <= min(area)
        assert max(area) <= max(real) * masks.LARGER * 1.2
        assert len(set(area)) > 6


def test_explicit_settings_are_kept(bank: MaskBank) -> None:
    for seed in range(4):
        scene, site = masks.scene(bank, "hole", 64, seed, area=200, aspect=2.0, place=(0.0, 1.0), strength=0.5)
        wide, high = extent_of(scene.mask)
        assert site.area == pytest.approx(200, rel=0.15)
        assert wide / high == pytest.approx(2.0, rel=0.3)
        columns, rows = np.flatnonzero(scene.mask.any(axis=0)), np.flatnonzero(scene.mask.any(axis=1))
        assert site.window[0] + columns[0] == 0  # the left end of the steel
        assert site.window[1] + rows[-1] == site.ground.item.height - 1
        assert scene.strength == 0.5


def test_severity_chooses_donors(steel: list[Item]) -> None:
    first = steel[0].label.defects[0]
    hard = replace(steel[0], label=Label("labelled", (replace(first, severity="high"),)))
    bank = masks.bank_of([hard, *steel[1:]], [], CLASSES, 10**6)
    result = [masks.scene(bank, "crack", SIZE, seed, severity="high")[1] for seed in range(3)]
    assert {window.donor.item.id for window in result} == {hard.id}
    assert {window.severity for window in result} == {"high"}
    with pytest.raises(CurateError, match="no defect 'crack' of train has severity 'low'; known: high"):
        masks.scene(bank, "crack", SIZE, 0, severity="low")


def test_defects_avoid_the_black_rim(tmp_path: Path, steel: list[Item]) -> None:
    from PIL import Image

    from tests.synth.conftest import item_of

    pixels, _, mask = drawn(2, 0)
    pixels[:, :40] = 0
    path = tmp_path / "strip.png"
    Image.fromarray(pixels).save(path)
    strip = item_of(path, "", mask, "strip")
    bank = masks.bank_of([*(item for item in steel if not item.label.clean), strip], [], CLASSES, 10**6)
    for seed in range(6):
        scene, site = masks.scene(bank, "hole", SIZE, seed)
        assert site.window[0] + np.flatnonzero(scene.mask.any(axis=0))[0] >= 38


def test_a_thin_line_does_not_fall_apart_when_it_shrinks(steel: list[Item]) -> None:
    clean = next(item for item in steel if item.label.clean)
    line = np.zeros((80, 96), np.uint8)
    cv2.line(line, (5, 5), (25, 72), 1, 1)
    result = masks.shapes.defect_from_mask("crack", line)
    assert result is not None
    item = replace(clean, label=Label("labelled", (result,)), id=clean.id)
    (donor,) = masks.donors_of(item, masks.pixels_of(item, 10**6))
    straight = masks.Warp(0.5, 1.0, 0.0, np.zeros((4, 4, 2), np.float32))
    mask = masks.warped(donor, straight)[1]
    assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2  # the line, and what is not
    assert extent_of(mask)[1] == pytest.approx(34, abs=2)


def test_an_unchanged_warp_is_the_donor_itself(bank: MaskBank) -> None:
    donor = bank.donors[0]
    pixels, mask, reach = masks.warped(donor, masks.Warp(1.0, 1.0, 0.0, np.zeros((4, 4, 2), np.float32)))
    assert np.array_equal(pixels, donor.pixels)
    assert np.array_equal(mask, donor.mask)
    assert reach.all()


@pytest.mark.parametrize(
    ("name", "size", "hand", "words"),
    [
        ("rust", SIZE, {}, "unknown class 'rust'; allowed: crack, hole"),
        ("crack", 90, {}, "smaller than the window of 90x90 pixels .the largest is 96x80."),
        ("crack", 24, {}, "the smallest 'crack' is 19 pixels long, a window of 24 holds 8: --window 29 or more"),
        ("crack", SIZE, {"aspect": 0.0}, "an aspect of 0 does not exist; allowed: 1/50 to 50"),
        ("crack", SIZE, {"area": 5000}, "an area of 5000 pixels does not fit: allowed 4 to 1024 in 48x48"),
    ],
)
def test_impossible_settings_are_one_line(
    bank: MaskBank, name: str, size: int, hand: dict[str, float], words: str
) -> None:
    with pytest.raises(CurateError, match=words) as caught:
        masks.scene(bank, name, size, 0, **hand)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_clean_images_nothing_can_be_generated(steel: list[Item]) -> None:
    bank = masks.bank_of([item for item in steel if not item.label.clean], [], CLASSES, 10**6)
    with pytest.raises(CurateError, match="no clean labelled image in the train split"):
        masks.scene(bank, "crack", SIZE, 0)


# --- examples ---------------------------------------------------------------------------------------------------------


def test_examples_are_windows_of_train_with_their_masks(bank: MaskBank) -> None:
    result = masks.examples(bank, SIZE, np.random.default_rng(0), 40)
    assert len(result) == 40
    assert {window.name for window in result} == {*CLASSES, ""}
    for window in result:
        assert window.pixels.shape == (SIZE, SIZE, 1)
        assert window.mask.any() == bool(window.name)
        if window.name:  # drawn: cracks are bright, holes are dark
            inside, outside = window.pixels[window.mask].mean(), window.pixels[~window.mask].mean()
            assert (inside > outside + 40) if window.name == "crack" else (inside < outside - 40)
    again = masks.examples(bank, SIZE, np.random.default_rng(0), 40)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(result, again, strict=True))


def test_examples_of_windows_larger_than_any_image_are_refused(bank: MaskBank) -> None:
    with pytest.raises(CurateError, match="choose a smaller size"):
        masks.examples(bank, 200, np.random.default_rng(0), 4)


# --- what is copied ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [paste, poisson])
def test_pixels_far_from_the_mask_are_those_of_the_background(module: object, scenes: list[Scene]) -> None:
    result = module.generate(scenes, Path(), device="cpu")  # type: ignore[attr-defined]
    for scene, window in zip(scenes, result, strict=True):
        away = cv2.distanceTransform((~scene.mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        assert window.dtype == np.uint8
        assert window.shape == scene.ground.shape
        assert np.array_equal(window[away >= FEATHER], scene.ground[away >= FEATHER])
        change = window[scene.mask].astype(int).mean() - scene.ground[scene.mask].astype(int).mean()
        assert (change > 25) if scene.name == "crack" else (change < -25)


@pytest.mark.parametrize("module", [paste, poisson])
def test_a_scene_is_filled_the_same_alone_and_in_a_batch(module: object, scenes: list[Scene]) -> None:
    together = module.generate(scenes, Path(), device="cpu")  # type: ignore[attr-defined]
    (alone,) = module.generate(scenes[3:4], Path(), device="cpu")  # type: ignore[attr-defined]
    assert np.array_equal(alone, together[3])


def test_a_pasted_defect_takes_the_brightness_of_its_place(scenes: list[Scene]) -> None:
    scene = scenes[0]
    bright = replace(scene, ground=np.clip(scene.ground.astype(int) + 60, 0, 255).astype(np.uint8))
    dim, lit = (paste.generate([source], Path(), device="cpu")[0] for source in (scene, bright))
    assert lit[scene.mask].mean() > dim[scene.mask].mean() + 30


def test_strength_fades_the_pasted_defect(scenes: list[Scene]) -> None:
    scene = scenes[0]
    full, faint = (paste.generate([replace(scene, strength=by)], Path(), device="cpu")[0] for by in (1.0, 0.4))
    changes = [np.abs(source.astype(int) - scene.ground)[scene.mask].mean() for source in (full, faint)]
    assert changes[1] == pytest.approx(0.4 * changes[0], rel=0.2)


def test_a_colour_image_stays_one(scenes: list[Scene]) -> None:
    scene = scenes[0]
    tint = np.array([1.0, 0.9, 0.8])
    three = replace(scene, ground=(scene.ground * tint).astype(np.uint8), donor=(scene.donor * tint).astype(np.uint8))
    for module in (paste, poisson):
        (result,) = module.generate([three], Path(), device="cpu")
        assert result.shape == (SIZE, SIZE, 3)
        assert not np.array_equal(result[..., 0], result[..., 2])
