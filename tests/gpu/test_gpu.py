"""The GPU script from end to end on drawn images, on this machine's CPU; its figures mean nothing here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from curate.data import Item, Label
from curate.hashing import sha256_of
from curate.masks import shapes
from tests import fakes
from tests.gpu import pack, run

SPLITS = ("train", "train", "val", "test")


def drawn(folder: Path, kinds: tuple[str | None, ...], with_pixels: bool) -> list[Item]:
    items = []
    for number in range(8 * len(kinds)):
        path = folder / f"{number}.png"
        fakes.save_image(path, 96, 64, seed=number)
        kind = kinds[number % len(kinds)]
        mask = np.zeros((64, 96), np.uint8)
        mask[10:30, 10:40] = 1
        defect = shapes.defect_from_mask(kind, mask) if kind and with_pixels else None
        defects = (defect,) if defect else ()
        label = Label("labelled", defects, (kind,) if kind and not with_pixels else ())
        split = SPLITS[number // len(kinds) % len(SPLITS)]
        items.append(Item(sha256_of(path), path, 96, 64, label, split, f"piece{number}"))
    return items


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    for name, kinds, with_pixels in (("tile", ("crack", None), True), ("neu", ("scale", "patch"), False)):
        pack.write_items(drawn(tmp_path / name, kinds, with_pixels), tmp_path / "pack" / name)
    return tmp_path / "pack"


def test_items_travel_whole(packed: Path, tmp_path: Path) -> None:
    there = pack.read_items(packed / "tile", tmp_path / "unpacked")
    assert [item.label for item in there] == [item.label for item in drawn(tmp_path / "tile", ("crack", None), True)]
    assert all(sha256_of(item.path) == item.id for item in there)


def test_every_case_is_measured_once(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "--data", str(packed), "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
    monkeypatch.setattr("tests.gpu.cases.REPETITIONS", 3)
    monkeypatch.setattr("sys.argv", [*words, "--tiny", "--device", "cpu"])
    assert run.main() == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    cases = ("embeddings", "predictions", "segmenter", "classifier", "synthesis", "k_center")
    assert all(results[case]["done"] for case in cases)
    for case in ("embeddings", "predictions", "segmenter", "classifier"):
        assert results[case]["images_s"] > 0
        assert results[case]["bare_images_s"] > 0
    assert results["segmenter"]["test_images"] == 4
    assert 0 <= results["segmenter"]["clean_alarmed"] <= 1
    assert results["synthesis"]["gan_steps_s"] > 0

    monkeypatch.setattr("tests.gpu.cases.CASES", dict.fromkeys(cases, lambda setting: pytest.fail("done before")))
    assert run.main() == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()).keys() == results.keys()
