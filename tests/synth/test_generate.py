"""Batches: what lies in them, that they are made once, resumed, and alike for the same seed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.errors import CurateError
from curate.index.dataset import Index
from curate.masks.shapes import defect_from_mask
from curate.project import Project
from synth import generate, masks
from synth import plan as planning
from synth.generate import GenerateRequest, SyntheticBatch
from synth.synthesisers._parts import FEATHER
from tests.fakes import REPOSITORY
from tests.synth.conftest import CLASSES, items
from train.evaluate import run as evaluating

SMALL = GenerateRequest(count=3, window=48)


def content(batch: SyntheticBatch) -> dict[str, str]:
    files = batch.folder.rglob("*.png")
    return {str(file.relative_to(batch.folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_batch_holds_whole_images_exact_masks_and_their_parents(mill: Project) -> None:
    batch = generate.generate(mill, "paste", SMALL)
    rows = {id: row for id, *row in Index(mill).rows("split", "group", "status")}
    held_out = {id for id, row in rows.items() if row[0] != "train"}
    assert batch.fresh
    assert held_out
    assert batch.manifest["project"] == mill.name
    assert set(batch.manifest["blocked"]["ids"]) == held_out
    assert set(batch.manifest["blocked"]["groups"]) == {rows[id][1] for id in held_out}
    images = batch.made()
    assert [image.name for image in images] == ["crack"] * 3 + ["hole"] * 3
    grounds = {item.id: item for item in Index(mill).items(sorted({image.ground for image in images}))}
    for image in images:
        pixels, mask = generate.pixels_of(batch, image), generate.mask_of(batch, image)
        ground = np.asarray(Image.open(grounds[image.ground].path))
        assert grounds[image.ground].label.clean
        assert {rows[image.ground][0], rows[image.donor.split(":")[0]][0]} == {"train"}
        assert (image.ground_group, image.area) == (rows[image.ground][1], mask.sum())
        assert hashlib.sha256((batch.folder / image.file).read_bytes()).hexdigest() == image.id
        near = masks.cv2.distanceTransform((~mask).astype(np.uint8), masks.cv2.DIST_L2, 5) < FEATHER
        assert np.array_equal(pixels[..., 0][~near], ground[~near])
        assert not np.array_equal(pixels[..., 0][mask], ground[mask])
        left, top, width, height = image.window
        outside = mask.copy()
        outside[top : top + height, left : left + width] = False
        assert not outside.any()
    assert [image.id for image in generate.looks(batch)] == [image.id for image in images]


def test_a_batch_is_made_once_and_the_same_seed_gives_the_same_bytes(mill: Project) -> None:
    first = generate.generate(mill, "poisson", SMALL)
    again = generate.generate(mill, "poisson", SMALL)
    assert not again.fresh
    assert again == first
    before = content(first)
    generate.files.remove(first.folder)
    assert content(generate.generate(mill, "poisson", SMALL)) == before
    other = generate.generate(mill, "poisson", replace(SMALL, seed=1))
    assert other.key != first.key
    assert not set(content(other).values()) & {before[name] for name in before if name.startswith("images")}
    assert [batch.key for batch in generate.every(mill)] == [
        entry.key
        for entry in sorted(generate.every(mill), key=lambda batch: (batch.manifest["made"], batch.key), reverse=True)
    ]
    assert generate.opened(mill, first.key[:6]).key == first.key


@pytest.mark.exhaustive
def test_a_killed_run_resumes(mill: Project) -> None:
    command = ["synth", "generate", "paste", "--count", "100", "--window", "48", "--project", str(mill.folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from curate.cli import main; main()", *command],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ),
    )
    home = generate.home(mill)
    while process.poll() is None and not sum(
        len(file.read_bytes()) > 2000 for file in home.glob(".*.making/rows.jsonl")
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = home.glob(".*.making")
    assert not generate.every(mill)
    lines = (left / "rows.jsonl").read_bytes().splitlines(keepends=True)
    done = [json.loads(line)["made"]["file"] for line in lines if line.endswith(b"\n")]
    assert done
    before = {name: (left / name).stat().st_mtime_ns for name in done}
    with (left / "rows.jsonl").open("ab") as handle:
        handle.write(b'{"number": 1')  # as a kill cuts it off
    batch = generate.generate(mill, "paste", GenerateRequest(count=100, window=48))
    assert {name: (batch.folder / name).stat().st_mtime_ns for name in done} == before
    assert len(batch.made()) == batch.manifest["images"] == 200
    assert len({image.file for image in batch.made()}) == 200
    assert not list(home.glob(".*.making"))
    for image in batch.made()[::50]:
        generate.pixels_of(batch, image)


def test_the_block_list_is_renewed_and_new_labels_make_another_batch(mill: Project) -> None:
    batch = generate.generate(mill, "paste", SMALL)
    index = Index(mill)
    piece = next(group for _, split, group in index.rows("split", "group") if split == "train")
    val = next(id for id, split in index.rows("split") if split == "val")
    index.set({"group": {val: "renamed"}})
    renewed = generate.generate(mill, "paste", SMALL)
    assert renewed.key == batch.key
    assert "renamed" in renewed.manifest["blocked"]["groups"]
    index.set({"split": {id: "val" for id, group in index.rows("group") if group == piece}})
    assert generate.generate(mill, "paste", SMALL).key != batch.key


IMPOSSIBLE = [
    (GenerateRequest(("rust",)), "unknown class 'rust'; allowed: crack, hole"),
    (GenerateRequest(window=90), "every clean image of train is smaller than the window of 90x90 pixels"),
    (GenerateRequest(window=8), "a window of 8 pixels is too small; allowed: 32 or more"),
    (GenerateRequest(window=48, area=9000), "an area of 9000 pixels does not fit"),
    (GenerateRequest(count=2, ratio=2.0), "a count or a ratio, not both"),
    (GenerateRequest(count=0), "makes nothing"),
    (GenerateRequest(ratio=-1.0), "makes nothing"),
    (GenerateRequest(strength=0.0), "strength 0 does not exist"),
]


def test_an_impossible_request_is_one_line(mill: Project) -> None:
    for request, words in IMPOSSIBLE:
        with pytest.raises(CurateError, match=words) as caught:
            generate.generate(mill, "paste", request)
        assert "\n" not in str(caught.value)
    assert not list(generate.home(mill).glob(".*.making"))
    assert not generate.every(mill)


def test_an_unfitted_synthesiser_and_a_damaged_one_are_errors(mill: Project) -> None:
    with pytest.raises(CurateError, match=r"unknown synthesiser 'past'.*did you mean 'paste'"):
        generate.generate(mill, "past", SMALL)
    with pytest.raises(CurateError, match=r"diffusion is not fitted yet\. Run: curate synth fit diffusion"):
        generate.generate(mill, "diffusion", SMALL)
    with pytest.raises(CurateError, match="unknown option of synthesiser diffusion 'device'"):
        generate.options_of(generate.MAKE, "diffusion", ["device=1"])
    batch = generate.generate(mill, "paste", SMALL)
    (batch.folder / batch.made()[0].file).write_bytes(b"other")
    with pytest.raises(CurateError, match="Generate it again"):
        generate.pixels_of(batch, batch.made()[0])
    (batch.folder / "manifest.parquet").write_bytes(b"other")
    with pytest.raises(CurateError, match="is damaged"):
        batch.made()
    (batch.folder / "manifest.json").write_text("{")
    with pytest.raises(CurateError, match="is damaged"):
        generate.opened(mill, batch.key)


def test_a_network_is_fitted_once_to_train_alone_and_generates(mill: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "EXAMPLES", 24)
    options = {"steps": 2, "batch": 2}
    fitted = generate.fit(mill, "diffusion", options, "cpu", window=32)
    assert fitted.fresh
    assert not generate.fit(mill, "diffusion", options, "cpu", window=32).fresh
    held_out = {group for _, split, group in Index(mill).rows("split", "group") if split != "train"}
    index = Index(mill)
    clean = {item.group for item in index.items(list(index.ids())) if item.label.clean}
    assert not held_out & set(fitted.manifest["groups"])
    assert clean & set(fitted.manifest["groups"])  # windows of clean steel teach, too
    batch = generate.generate(mill, "diffusion", GenerateRequest(("hole",), count=1), {"steps": 1}, "cpu")
    assert batch.made()[0].window[2:] == (32, 32)
    assert batch.made()[0].synthesiser == fitted.key
    assert batch.manifest["learnt"] == fitted.manifest["groups"]
    with pytest.raises(CurateError, match=r"fitted to windows of \[32\], not 64"):
        generate.generate(mill, "diffusion", GenerateRequest(window=64))
    piece = next(group for _, split, group in index.rows("split", "group") if split == "train")
    index.set({"split": {id: "val" for id, group in index.rows("group") if group == piece}})
    with pytest.raises(CurateError, match="labels or splits of train changed since diffusion was fitted"):
        generate.generate(mill, "diffusion", GenerateRequest(window=32))


def test_every_class_name_gives_a_safe_folder_name() -> None:
    names = ["crack", "../x", "a/b", "a_b", ".", "裂纹", "rolled in"]
    folders = [generate.folder_of(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[0] == "crack"
    assert not any(set(name) & set("/\\.") for name in folders)


# --- plan -------------------------------------------------------------------------------------------------------------


def test_the_plan_names_scarce_classes_and_how_many_to_make(tmp_path: Path) -> None:
    real = items(tmp_path, 24)
    few = [image for image in real if "hole" not in image.label.present or image.group == "piece01"]
    plan = planning.planned(masks.bank_of(few, [], (*CLASSES, "rust"), 10**6), few, {}, None)
    lines = {line.name: line for line in plan.lines}
    assert [line.name for line in plan.lines] == ["rust", "hole", "crack"]
    assert (lines["crack"].defects, lines["crack"].groups, lines["crack"].make) == (12, 6, 0)
    assert (lines["hole"].images, lines["hole"].defects, lines["hole"].groups) == (2, 2, 1)
    assert lines["hole"].make == 10  # five times the real ones, the most
    assert "only 2 real defects" in lines["hole"].notes[0]
    assert "no image of train shows it" in lines["rust"].notes[0]
    assert plan.command == "curate synth generate paste --class 'hole' --ratio 5.0"


def test_a_class_that_the_last_model_misses_is_scarce_too(tmp_path: Path) -> None:
    real = items(tmp_path, 8)
    figures: dict[str, dict[str, float | None]] = {"crack": {"recall": 0.4, "iou": 0.3}, "hole": {"recall": 0.95}}
    plan = planning.planned(masks.bank_of(real, [], CLASSES, 10**6), real, figures, "model m on val")
    lines = {line.name: line for line in plan.lines}
    assert lines["crack"].scarce
    assert lines["crack"].make == 2  # half the real ones, the least
    assert not lines["hole"].scarce
    assert "only 8 clean images" in plan.notes[-1]
    assert plan.to_json()["lines"][0]["recall"] == 0.4
    assert [lines[name].verdict for name in CLASSES] == ["0.5 times the real ones", "enough"]


def test_the_plan_names_what_is_unknown(tmp_path: Path) -> None:
    real = items(tmp_path, 8)
    plan = planning.planned(masks.bank_of(real, [], CLASSES, 10**6), real, {}, None)
    assert {line.verdict for line in plan.lines} == {"enough by number; recall not known"}
    assert "Run: curate evaluate --split val" in plan.notes[-1]


def test_the_test_split_has_no_influence_on_the_plan(mill: Project) -> None:
    for split, recall in (("test", 0.1), ("val", 0.9)):
        folder = mill.work / "evaluations" / "m" / f"{split}-1"
        folder.mkdir(parents=True)
        manifest = {"model": "m", "split": split, "made": f"2026-01-0{1 + (split == 'test')}", "notes": []}
        (folder / evaluating.MANIFEST).write_text(json.dumps(manifest))
        classes = {name: {"recall": {"value": recall}, "iou": {"value": 0.5}} for name in CLASSES}
        (folder / evaluating.METRICS_FILE).write_text(json.dumps({"classes": classes}))
    plan = planning.plan(mill)
    assert plan.evaluation == "model m on val"
    assert {line.recall for line in plan.lines} == {0.9}


def test_defects_that_a_window_cannot_hold_are_named(tmp_path: Path) -> None:
    """A third of the class would else be left out without a word, and what is made be smaller than what is real."""
    large = np.zeros((80, 96), np.uint8)
    large[30:34, 4:90] = 1
    real = items(tmp_path, 8)
    crack = next(image for image in real if "crack" in image.label.present)
    label = replace(crack.label, defects=(defect_from_mask("crack", large),))
    real = [replace(image, label=label) if image.id == crack.id else image for image in real]
    bank = masks.bank_of(real, [], CLASSES, 10**6)
    about = generate.donors_of(bank, "crack", asdict(generate.GenerateRequest(window=64)))
    assert (about["used"], about["there"]) == (3, 4)
    assert "1 are too large for a window of 64 px (up to 86 px long)" in about["left_out"]
    assert "--window 71 holds all" in about["left_out"]
    assert generate.donors_of(bank, "crack", asdict(generate.GenerateRequest(window=71)))["left_out"] is None
    whole = generate.donors_of(bank, "crack", asdict(generate.GenerateRequest(window=64, severity="high")))
    assert whole == {"there": 0, "used": 0, "left_out": None}
