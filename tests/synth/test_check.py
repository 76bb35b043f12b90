"""Synthetic images through the gates: drawn ones whose fault is known, and a batch of a real project."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import cli, embed
from curate.errors import CurateError
from curate.index import sync
from curate.index.dataset import Index
from curate.project import Project
from synth import accept, check, generate, masks
from synth.check import RealReference
from synth.nouns import CandidateImage, MaskBank
from tests.conftest import Make
from tests.train.conftest import CLASSES, LIBRARY, drawn, item
from train.predict.predictor import Predictor
from train.recipe import load


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> MaskBank:
    """Eight cracks, eight holes, each an image and group of its own, and clean steel."""
    folder = tmp_path_factory.mktemp("bank")
    items = [item(folder, number) for number in range(32) if number % 4 != 2]
    return masks.bank_of(items, (), CLASSES, 1 << 20)


@pytest.fixture(scope="module")
def standard(bank: MaskBank) -> RealReference:
    return check.standard_of(bank, embed.build("texture"))


def look(number: int, name: str = "crack") -> CandidateImage:
    """A drawn defect that the bank does not hold."""
    pixels, shown = drawn(number)
    mask = shown[name].astype(bool)
    return CandidateImage(str(number), name, pixels[..., None], mask, (0, 0, 64, 64), int(mask.sum()))


def brightness() -> Predictor:
    """A segmenter that needs no training: bright is a crack, dark a hole."""
    import torch

    class Threshold(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            grey = batch.mean(1, keepdim=True)
            return torch.cat([grey - 0.25, -grey - 0.25], 1) * 20

    recipe = load("unet-resnet", ["input.scale=tf"])
    recipe = recipe.model_copy(update={"input": recipe.input.model_copy(update={"channels": 1})})
    return Predictor("bright", CLASSES, recipe, False, Threshold())


def reasons(standard: RealReference, candidate: CandidateImage, *without: str) -> set[str]:
    (row,) = check.inspected([candidate], standard, None, without).rows
    return {reason.partition(":")[0] for reason in row.reasons}


def moved(standard: RealReference, **near: float) -> RealReference:
    """The same with other bounds of likeness."""
    limits = {name: replace(of, near=of.near._replace(**near)) for name, of in standard.limits.items()}
    return replace(standard, limits=limits)


# --- one image --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_new_defect_like_the_real_ones_passes(standard: RealReference) -> None:
    fair = moved(standard, low=0.0, high=2.0)
    assert reasons(fair, look(100)) == set()
    assert reasons(fair, look(101, "hole")) == set()


def test_a_copy_is_refused_and_the_donor_itself_is_nearest(standard: RealReference) -> None:
    same = look(0)  # image 0 is in the bank
    assert "copy" in reasons(standard, same)
    (row,) = check.inspected([same], standard, None).rows
    assert row.figures["near"] == pytest.approx(0, abs=1e-3)
    assert "copy" not in reasons(standard, same, "copy")


def test_real_pairs_of_different_groups_are_no_copies(bank: MaskBank, standard: RealReference) -> None:
    for name, real in standard.features.items():
        apart = np.linalg.norm(real[:, None] - real, axis=2)[~np.eye(len(real), dtype=bool)]
        assert len(real) == len(bank.of(name)) == 8
        assert standard.limits[name].near.low == pytest.approx(apart.min(), rel=1e-3)


def test_noise_is_refused(standard: RealReference) -> None:
    plain = look(100)
    noise = np.random.default_rng(0).integers(0, 255, plain.pixels.shape, np.uint8)
    assert "nonsense" in reasons(standard, replace(plain, pixels=noise))


def test_a_mask_of_another_size_shape_or_place(standard: RealReference) -> None:
    fair, plain = moved(standard, low=0.0, high=9.0), look(101, "hole")
    y, x = np.mgrid[:64, :64]
    small = (y - 30) ** 2 + (x - 30) ** 2 < 9
    long = (abs(y - 30) < 2) & (abs(x - 30) < 25)
    assert "area" in reasons(fair, replace(plain, mask=small, told=int(small.sum())))
    assert "aspect" in reasons(fair, replace(plain, mask=long, told=int(long.sum())))
    assert reasons(fair, replace(plain, told=3)) == {"mask"}
    assert reasons(fair, replace(plain, window=(0, 0, 8, 8))) == {"mask"}
    dark = plain.pixels.copy()
    dark[:, :40] = 0  # beside the strip
    assert "region" in reasons(fair, replace(plain, pixels=dark, mask=plain.mask | (x < 12)))


def test_an_empty_mask_is_refused_and_breaks_nothing(standard: RealReference) -> None:
    empty = replace(look(100), mask=np.zeros((64, 64), bool), told=0)
    assert "mask" in reasons(standard, empty)


def test_a_hard_seam_is_refused(standard: RealReference) -> None:
    plain = look(101, "hole")
    hard = plain.pixels.copy()
    hard[plain.mask] = 0
    hard[~plain.mask] = 255
    assert "seam" in reasons(standard, replace(plain, pixels=hard))


def test_resegmentation_must_find_the_defect_where_its_label_is(standard: RealReference) -> None:
    fair, plain = moved(standard, low=0.0, high=9.0), look(100)
    shifted = replace(plain, mask=np.roll(plain.mask, 12, axis=1))
    result = check.inspected([plain, shifted], fair, brightness()).rows
    assert result[0].figures["iou"] > 0.8
    assert [row.passed for row in result] == [True, False]
    assert result[1].reasons[0].startswith("resegmentation: IoU 0.")
    with pytest.raises(CurateError, match=r"does not know class crack.*--without resegmentation"):
        check.inspected([plain], fair, replace(brightness(), classes=("hole",)))


def test_a_segmenter_is_first_tested_on_real_defects(bank: MaskBank, standard: RealReference) -> None:
    looks = [look(100), look(101, "hole")]
    report = check._report("key", check.inspected(looks, standard, None), standard, brightness(), ())
    check._add_reference(report, bank, brightness())
    assert report.classes["crack"]["resegmented_real"] > 0.8
    assert report.notes == []
    blind = replace(brightness(), classes=CLASSES[::-1])
    check._add_reference(report, bank, blind)
    assert [note.partition(":")[0] for note in report.notes] == ["crack", "hole"]
    assert "IoU 0.00 (median)" in report.notes[0]


def test_a_class_from_one_group_is_judged_by_all_of_them(bank: MaskBank) -> None:
    donors = [replace(donor, group="one") if donor.name == "crack" else donor for donor in bank.donors]
    result = check.standard_of(replace(bank, donors=tuple(donors)), embed.build("texture"))
    assert result.limits["crack"].near != result.limits["hole"].near
    assert np.isfinite(result.limits["crack"].near).all()


# --- a batch ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def works(make: Make, tmp_path: Path) -> Project:
    """40 labelled images of 64 px, ten of them clean."""
    root = tmp_path / "steel"
    for folder in (root / "images", *(root / "masks" / name for name in CLASSES)):
        folder.mkdir(parents=True)
    for number in range(40):
        pixels, shown = drawn(number)
        Image.fromarray(pixels).save(root / "images" / f"{number:02d}.png")
        for name, mask in shown.items():
            Image.fromarray(255 * mask).save(root / "masks" / name / f"{number:02d}.png")
    project = make([LIBRARY | {"data": root}], CLASSES)
    sync.run(project)
    return project


def test_a_batch_is_judged_and_shown(
    works: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = generate.generate(works, "paste", generate.GenerateRequest(count=3, window=64), device="cpu")
    with pytest.raises(CurateError, match=r"curate train --task segmentation.*--without resegmentation"):
        check.check(works, batch.key)
    with pytest.raises(CurateError, match="unknown gate 'resegment'"):
        check.check(works, batch.key, without=["resegment"])
    steps: list[tuple[str, int, int]] = []
    report = check.check(works, batch.key, without=["resegmentation"], progress=lambda *step: steps.append(step))
    table = pq.read_table(batch.folder / check.CHECKED).to_pydict()
    assert table["id"] == [image.id for image in batch.made()]
    assert sum(table["passed"]) == report.passed
    assert accept.checked_of(batch)[1] == "resegmentation"
    assert [bool(reasons) for reasons in table["reasons"]] == [not passed for passed in table["passed"]]
    assert sum(done for stage, done, _ in steps if stage == "check") == report.images == 6
    for name, row in report.classes.items():
        assert row["made"]["n"] == 3, name
        assert {"kernel_distance", "precision", "recall", "density", "coverage"} <= set(row["floor"])
    with Image.open(batch.folder / check.SHEET) as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > 2 * 96
    assert [row[1] for row in report.table[1:4]] == ["synthetic", "that passed", "real val"]
    json.dumps(report.to_json(), allow_nan=False)
    words = ["curate", "synth", "check", batch.key, "--without", "resegmentation", "--project", str(works.folder)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert f"{report.passed} of 6 images passed" in out
    assert "kernel distance" in out


def test_a_segmenter_trained_on_val_groups_is_refused(works: Project) -> None:
    index = Index(works)
    bank, splits = masks.bank(index), dict(index.rows("split"))
    train, val = ([id for id, split in splits.items() if split == wanted] for wanted in ("train", "val"))
    index.set({"group": {train[0]: dict(index.rows("group"))[val[0]]}})  # as a piece of val, found later
    about = {"key": "m", "task": "segmentation", "images": {"train": train[1:3], "val": val}}
    assert not check._leaked(index, bank, about)
    for learnt, guests in ((val[:1], []), (train[:1], []), (train[1:3], val[:1]), (train[1:3], train[:1])):
        manifest = about | {"images": {"train": learnt, "val": []}, "pseudo": {"labels": dict.fromkeys(guests, "x")}}
        manifest |= {"made": "2026-01-01", "classes": ["crack"], "outputs": ["crack"], "history": [], "single": False}
        manifest |= {"recipe": {}, "skipped": {}, "data": {"train": 1, "val": 0, "by_class": {}}, "seconds": 1}
        manifest |= {"best": {"epoch": 0, "train_loss": 0.1}}
        (works.work / "models" / "m").mkdir(parents=True, exist_ok=True)
        (works.work / "models" / "m" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CurateError, match="model m learnt from 1 images of val or test"):
            check.segmenter_of(index, bank, None, "cpu")


def test_val_has_no_influence(works: Project) -> None:
    """Other val images, the same decisions: only the floor may move."""
    batch = generate.generate(works, "paste", generate.GenerateRequest(count=2, window=64), device="cpu")
    before = check.check(works, batch.key, without=["resegmentation"])
    rows = (batch.folder / check.CHECKED).read_bytes()
    index = Index(works)
    gone = [id for id, split in index.rows("split") if split == "val"]
    assert gone
    index.set({"status": dict.fromkeys(gone, "unlabelled")})
    after = check.check(works, batch.key, without=["resegmentation"])
    assert (batch.folder / check.CHECKED).read_bytes() == rows
    assert {row["floor"]["n"] for row in after.classes.values()} == {0}
    assert sum(row["floor"]["n"] for row in before.classes.values()) > 0
