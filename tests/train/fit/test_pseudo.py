"""Pseudo-labels: who may lend one, what makes it sure, how many a batch may hold, and that they are written nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.data import Defect, Label, make_defect
from curate.errors import CurateError
from curate.index import predictions
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.masks.shapes import defect_from_mask
from curate.project import Project
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture
from tests.train.conftest import CLASSES, TINY, data, drawn, tiny
from train import store
from train.data import dataset, sampling
from train.data.dataset import TrainingData
from train.evaluate import run as evaluating
from train.fit import loop, pseudo
from train.fit import run as training
from train.fit.run import TrainRequest
from train.predict import run as predicting
from train.predict.predictor import load_predictor
from train.recipe import Pseudo

SETS = [*TINY, "epochs=1", "batch=9"]


def share_of(part: Iterable[int], first_guest: int) -> Fraction:
    rows = list(part)
    return Fraction(sum(row >= first_guest for row in rows), len(rows))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 90), st.integers(0, 40), st.integers(9, 40), st.sampled_from([0.12, 0.1, 0.05, 0.01]))
def test_no_batch_holds_more_than_its_share(train: int, pseudo_count: int, size: int, share: float) -> None:
    rows = np.random.default_rng(train).permutation(train)
    batches = sampling.mix_batches(rows, train + np.arange(pseudo_count), size, share)
    assert all(share_of(part, train) <= Fraction(str(share)) for part in batches)
    assert all(len(part) <= size for part in batches)
    flat = [row for part in batches for row in part]
    assert [row for row in flat if row < train] == rows.tolist()  # every image of train, in the order that was drawn
    assert len({row for row in flat if row >= train}) == sum(row >= train for row in flat)


def test_a_full_batch_takes_all_that_it_may() -> None:
    batches = sampling.mix_batches(np.arange(44), np.arange(100, 200), 25, 0.12)
    assert [sum(row >= 100 for row in part) for part in batches] == [3, 3]  # 12 % of 25, though not in floats
    assert sampling.mix_batches(np.arange(7), np.arange(0), 4, 0.12) == [[0, 1, 2, 3], [4, 5, 6]]


def test_unread_images_take_their_guests_with_them() -> None:
    pixels, target = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2), np.uint8)
    examples: list[dataset.Arrays | dataset.Problem] = [(name, pixels, target) for name in "abcdefgh"]
    limit = frozenset("h"), 0.12
    for missing, left in ((0, "abcdefg"), (1, "bcdefg")):
        ids, images, _, problems = dataset.collate([*examples[missing:], *[("x", "broken")] * missing], limit)
        assert ids == list(left)  # one guest beside seven, or six, is more than 12 %
        assert (len(images), len(problems)) == (len(left), missing)
    more = [*examples, *((name, pixels, target) for name in "ij")]
    assert "h" in dataset.collate(more, limit)[0]


# --- what is sure ---------------------------------------------------------------------------------------------------

CRACK = make_defect("crack", (2, 2, 9, 5))
HOLE = make_defect("hole", (20, 20, 8, 8))
WANTED = Pseudo(model="x", threshold=0.95, thresholds={"hole": 0.8})


def label_of(
    p: tuple[float, float], *regions: tuple[Defect, float], single: bool = False, task: str = ""
) -> Label | None:
    training_data = TrainingData(task or "segmentation", CLASSES, (), (), single, clean=True)
    return pseudo.pseudo_label(np.array(p), Prediction(regions), training_data, WANTED)


def test_every_class_must_be_decided() -> None:
    assert label_of((0.96, 0.01), (CRACK, 0.97)) == Label("labelled", (CRACK,))
    assert label_of((0.96, 0.85), (CRACK, 0.97), (HOLE, 0.85)) == Label("labelled", (CRACK, HOLE))
    assert label_of((0.01, 0.01)) == Label("labelled")
    assert label_of((0.94, 0.01), (CRACK, 0.94)) is None
    assert label_of((0.96, 0.5), (CRACK, 0.97)) is None
    assert label_of((0.06, 0.01)) is None  # nor is it sure that there is none
    assert label_of((0.96, 0.01)) is None  # it is there, and nobody knows where
    assert label_of((0.96, 0.01), (CRACK, 0.97), (CRACK, 0.6)) is None  # one of its regions is in doubt
    assert label_of((0.01, 0.01), (CRACK, 0.97)) is None


def test_whole_images_are_decided_by_class() -> None:
    assert label_of((0.96, 0.85), task="classification") == Label("labelled", classes=("crack", "hole"))
    assert label_of((0.96, 0.85), task="classification", single=True) is None
    assert label_of((0.01, 0.01), task="classification", single=True) == Label("labelled")
    training_data = TrainingData("classification", CLASSES, (), (), single=True, clean=False)
    assert pseudo.pseudo_label(np.array([0.01, 0.01]), Prediction(), training_data, WANTED) is None


# --- a project ------------------------------------------------------------------------------------------------------


def train_teacher(project: Project, sure: float = 0.97) -> tuple[str, list[str]]:
    """A model that says the truth of the unlabelled images, as sure as this; its key, and their ids."""
    key = training.run(project, TrainRequest(recipe="unet-resnet", overrides=SETS, device="cpu")).model.key
    index, predictor = Index(project), load_predictor(project, key, "cpu")
    table = predicting.table_of(project, predictor)
    ids = sorted(id for id, status in index.rows("status") if status == "unlabelled")
    masks = {item.id: drawn(int(item.path.stem))[1] for item in index.items(ids)}
    regions = {id: [defect_from_mask(name, mask) for name, mask in masks[id].items()] for id in ids}
    predicted = {id: Prediction(tuple((item, sure) for item in regions[id] if item)) for id in ids}
    predictions.store(index, predictor.by, predicted)
    p = np.array([[sure if name in masks[id] else 1 - sure for name in CLASSES] for id in ids])
    other = {name: np.zeros((len(ids), *shape)) for name, shape in (("class_entropy", (2,)), ("defect_pixels", (2,)))}
    table.append({"id": ids, "probability": p, "uncertainty": np.zeros(len(ids)), **other})
    return key, ids


def prepared_data(project: Project, *sets: str) -> TrainingData:
    request = TrainRequest(recipe="unet-resnet", overrides=[*SETS, "pseudo.model=candidate", *sets], device="cpu")
    return training.prepare(project, request)[1]


def test_who_lends(works: Project) -> None:
    key, ids = train_teacher(works)
    index = Index(works)
    items = prepared_data(works).pseudo
    assert [item.id for item in items] == ids
    assert all(item.split == "train" for item in items)
    for item in items:
        assert item.label.present == set(drawn(int(item.path.stem))[1])
    judges = {split: group for _, split, group in index.rows("split", "group") if split in ("val", "test")}
    labelled = next(
        id for id, status, split in index.rows("status", "split") if (status, split) == ("labelled", "train")
    )
    index.set({"group": {ids[0]: judges["val"], ids[1]: judges["test"], ids[2]: "coil", ids[3]: "coil"}})
    index.set({"status": {ids[2]: "queued", labelled: "disputed"}, "missing": {ids[4]: True}})
    assert [item.id for item in prepared_data(works).pseudo] == [ids[5]]
    disputed = next(group for id, group in index.rows("group") if id == labelled)
    index.set({"group": {ids[5]: disputed}})
    nobody = prepared_data(works)
    assert nobody.pseudo == ()
    assert f"model {key} is sure of no unlabelled image" in nobody.notes[-1]


@pytest.mark.exhaustive
def test_what_cannot_be_is_one_line(works: Project) -> None:
    with pytest.raises(CurateError, match="no trained model yet"):
        prepared_data(works)
    training.run(works, TrainRequest(recipe="unet-resnet", overrides=SETS, device="cpu"))
    with pytest.raises(CurateError, match=r"has predicted nothing yet\. Run: curate predict"):
        prepared_data(works)
    with pytest.raises(CurateError, match=r"batch 8 has no room for pseudo-labels at a share of 0.12: --set batch=9"):
        prepared_data(works, "batch=8")
    with pytest.raises(CurateError, match=r"pseudo.share: Input should be less than or equal to 0.12 \(it is 0.2\)"):
        prepared_data(works, "pseudo.share=0.2")
    with pytest.raises(CurateError, match=r"pseudo.thresholds names scratch; the classes are: crack, hole"):
        prepared_data(works, 'pseudo.thresholds={"scratch": 0.9}')
    small = ["model.encoder=resnet18", "model.weights=none", "input.height=64", "input.width=64", "epochs=1"]
    training.run(works, TrainRequest(recipe="mobilenetv2-fast", overrides=small, device="cpu"))
    with pytest.raises(CurateError, match="is a classifier"):
        prepared_data(works)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def test_they_teach_and_are_written_nowhere(run: Run, works: Project, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    teacher, ids = train_teacher(works)
    index, log = Index(works), contents(works.work / "labels")
    before = sorted(index.rows("status", "split", "label_digest"))
    batches: list[list[list[int]]] = []
    original = loop._epoch_batches
    monkeypatch.setattr(loop, "_epoch_batches", lambda *given: batches.append(original(*given)) or batches[-1])
    arguments = ["train", "--recipe", "unet-resnet", "--device", "cpu", "--project", works.folder, "--json"]
    arguments += [part for text in SETS for part in ("--set", text)]
    assert ok(run(*arguments))["model"] == teacher
    result = ok(run(*arguments, "--pseudo", "candidate"))
    assert result["fresh"]
    assert any(f"{len(ids)} unlabelled images are trained on" in note for note in result["notes"])
    manifest = store.find(works, result["model"]).manifest
    expected = {item.id: item.label.digest for item in prepared_data(works, f"pseudo.model={teacher}").pseudo}
    assert manifest["pseudo"] == {"model": teacher, "labels": expected}
    assert manifest["recipe"]["pseudo"]["model"] == teacher
    assert not set(ids) & {*manifest["images"]["train"], *manifest["images"]["val"]}
    count = manifest["data"]["train"]
    assert any(share_of(part, count) > 0 for epoch in batches for part in epoch)
    assert all(share_of(part, count) <= Fraction(12, 100) for epoch in batches for part in epoch)
    assert sorted(index.rows("status", "split", "label_digest")) == before
    assert contents(works.work / "labels") == log
    assert not ok(run(*arguments, "--pseudo", teacher))["fresh"]
    assert "unknown model 'gone'" in failed(run(*arguments, "--pseudo", "gone"))
    later = list(index.items(ids[:1]))  # labelled one day, and drawn into test: the model knows it all the same
    assert evaluating._leak_notes(index, store.find(works, teacher), later, evaluating.EvaluateRequest()) == []
    with pytest.raises(CurateError, match="was trained on 1 of 1 images of test"):
        evaluating._leak_notes(index, store.find(works, result["model"]), later, evaluating.EvaluateRequest())


def test_each_process_has_room_for_one() -> None:
    sets = tiny("batch=16", "pseudo.model=candidate")
    pseudo.check_batch(sets)
    with pytest.raises(CurateError, match=r"batch 16 in 2 processes has no room .* --set batch=18"):
        pseudo.check_batch(sets, 2)
    pseudo.check_batch(tiny("batch=18", "pseudo.model=candidate"), 2)
    with pytest.raises(CurateError, match="--set batch=10000000"):
        pseudo.check_batch(tiny("batch=16", "pseudo.model=candidate", "pseudo.share=1e-7"))


def test_the_key_follows_them(tmp_path: Path) -> None:
    plain = data(tmp_path, 8, 2)
    resolved = tiny("batch=9")
    with_guests = replace(plain, train=plain.train[:6], pseudo=plain.train[6:])
    other = replace(with_guests, pseudo=(replace(plain.train[6], label=Label("labelled")), plain.train[7]))
    keys = {
        training.model_key(resolved, variant)
        for variant in (replace(plain, train=plain.train[:6]), with_guests, other, plain)
    }
    assert len(keys) == 4
    taught = resolved.model_copy(update={"pseudo": Pseudo(model="a" * 24)})
    assert training.model_key(taught, with_guests) not in keys
    assert training.model_key(resolved.model_copy(update={"compile": True}), plain) in keys
