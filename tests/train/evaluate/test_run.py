"""From trained models to figures, mistakes in the index and a verdict: on drawn steel, against what is counted anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

import curate
from curate import cli
from curate.admin import setup
from curate.data import Item
from curate.errors import CurateError
from curate.index import app_edits, app_views, database, evaluation_runs, sync
from curate.index.dataset import Index
from curate.ops import evaluate as operation
from curate.project import Project, load
from curate.select import uncertainty
from curate.tables import Table
from labeling import push
from tests.train.conftest import CLASSES, LIBRARY, TINY, drawn
from train import store
from train.data import dataset, pixels
from train.evaluate import compare, efficiency, robustness
from train.evaluate import per_image as judging
from train.evaluate import run as evaluating
from train.evaluate.run import EvaluateRequest, Evaluation
from train.fit import run as training
from train.predict import run as predicting
from train.predict.predictor import load_predictor

QUICK = [*TINY, "augmentation.brightness=0", "augmentation.contrast=0", "optimiser.lr=3e-3", "steps=8"]
WHOLE = ["input.height=64", "input.width=64", "epochs=1", "steps=4"]
CPU = EvaluateRequest(device="cpu")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Project]:
    """60 pieces in two views each; every eleventh label is wrong. Two segmenters and a classifier."""
    folder = tmp_path_factory.mktemp("evaluating")
    root = folder / "steel"
    for directory in (root / "images", *(root / "masks" / name for name in CLASSES)):
        directory.mkdir(parents=True)
    for number in range(120):
        image, masks = drawn(number)
        file = root / "images" / f"{number // 2:03d}_{number % 2}.png"
        Image.fromarray(image).save(file)
        for name, mask in ({} if number % 11 == 0 else masks).items():
            Image.fromarray(255 * mask).save(root / "masks" / name / file.name)
    project = setup.write(folder / "plant", [LIBRARY | {"data": root, "group": r"(\d+)_"}], CLASSES)
    sync.run(project)
    training.run(project, training.TrainRequest(recipe="simple-cnn", overrides=WHOLE, device="cpu"))
    for epochs in (1, 4):
        training.run(
            project, training.TrainRequest(recipe="unet-resnet", overrides=(*QUICK, f"epochs={epochs}"), device="cpu")
        )
    yield project
    fo = database.connect(folder)
    fo.delete_dataset(project.dataset_name)


def models(project: Project) -> dict[str, str]:
    """The better segmenter, the worse one, the classifier."""
    by_epochs = {
        len(model.manifest["history"]): model.key
        for model in store.all_models(project)
        if model.manifest["task"] == "segmentation"
    }
    whole = next(model.key for model in store.all_models(project) if model.manifest["task"] == "classification")
    return {"good": by_epochs[4], "poor": by_epochs[1], "whole": whole}


@pytest.fixture(scope="module")
def evaluation(plant: Project) -> Evaluation:
    return evaluating.run(plant, EvaluateRequest(models(plant)["good"], targets={"crack": 0.9}, device="cpu"))


def items(project: Project, split: str = "test") -> list[Item]:
    index = Index(project)
    return sorted(index.items([id for id, where in index.rows("split") if where == split]), key=lambda item: item.id)


def test_figures_are_those_that_are_counted_anew(plant: Project, evaluation: Evaluation) -> None:
    predictor = load_predictor(plant, evaluation.model, "cpu")
    counts, shown, decided_rows = np.zeros((2, 3)), [], []
    for item in items(plant):
        seen = predictor.predict_image(pixels.read(item.id, item.path, 10**9))
        truth = dataset.masks_of(item, CLASSES).astype(bool)
        mine = np.zeros_like(truth)
        for defect, _ in seen.defects:
            mine[CLASSES.index(defect.label)] |= dataset.masks_of(
                Item(item.id, item.path, 64, 64, type(item.label)("labelled", (defect,))), [defect.label]
            )[0].astype(bool)
        for c in range(2):
            counts[c] += [(truth[c] & mine[c]).sum(), (~truth[c] & mine[c]).sum(), (truth[c] & ~mine[c]).sum()]
        shown.append([name in item.label.present for name in CLASSES])
        decided_rows.append([any(defect.label == name for defect, _ in seen.defects) for name in CLASSES])
    truth, decided = np.array(shown), np.array(decided_rows)
    for c, name in enumerate(CLASSES):
        ours = evaluation.metrics["classes"][name]
        assert np.isclose(ours["iou"]["value"], counts[c, 0] / counts[c].sum(), atol=1e-6)
        assert np.isclose(ours["recall"]["value"], decided[truth[:, c], c].mean(), atol=1e-6)
        assert np.isclose(ours["false_alarms"]["value"], decided[~truth[:, c], c].mean(), atol=1e-6)
        assert ours["recall"]["n"] == evaluation.metrics["support"][name]["images"] == truth[:, c].sum()
    assert evaluation.metrics["images"] == len(truth)
    assert np.isclose(
        evaluation.metrics["overall"]["exact_match"]["value"], (truth == decided).all(axis=1).mean(), atol=1e-6
    )


def test_every_figure_lies_in_its_interval(plant: Project, evaluation: Evaluation) -> None:
    def walk(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from walk(inner)

    every = list(walk(evaluation.to_json()))
    assert len(every) > 60
    for estimate in every:
        assert {"n", "groups", "few", "silent"} <= estimate.keys()
        assert estimate["value"] is None or 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    json.dumps(evaluation.to_json(), allow_nan=False)


def test_everything_is_kept(plant: Project, evaluation: Evaluation) -> None:
    assert sorted(file.name for file in evaluation.folder.iterdir()) == [
        *("figures.json", "manifest.json", "per_image.parquet", "report.html")
    ]
    assert evaluation.folder.parent == plant.work / "evaluations" / evaluation.model
    rows = pyarrow.parquet.read_table(evaluation.folder / "per_image.parquet").to_pylist()
    assert [row["id"] for row in rows] == [item.id for item in items(plant)]
    for row, item in zip(rows, items(plant), strict=True):
        assert set(row["present"]) == item.label.present
        assert row["missed"] == [name for name in CLASSES if name in row["present"] and name not in row["decided"]]
        assert (row["confidence"] is None) == (row["present"] == row["decided"])


def test_an_operating_point_is_fitted_on_val_alone(plant: Project, evaluation: Evaluation) -> None:
    point = evaluation.metrics["operating"]["crack"]
    assert point["reached"] == (point["val"]["recall"]["value"] >= 0.9)
    assert evaluation.manifest["targets"] == {"crack": 0.9}
    table = judging.open_table(plant, store.find(plant, evaluation.model), CLASSES)
    largest = {}
    for split in ("val", "test"):
        of = items(plant, split)
        values = table.read([item.id for item in of], ["largest"])["largest"].reshape(len(of), 2, -1)
        level = int(np.argmin(np.abs(np.array(evaluating.metrics.THRESHOLDS) - point["threshold"])))
        truth = np.array(["crack" in item.label.present for item in of])
        largest[split] = (values[:, 0, level] >= point["min_area"])[truth].mean()
    assert np.isclose(point["val"]["recall"]["value"], largest["val"], atol=1e-6)
    assert np.isclose(point["split"]["recall"]["value"], largest["test"], atol=1e-6)


def test_the_same_model_and_labels_are_done_already(plant: Project, evaluation: Evaluation) -> None:
    before = {file: file.stat().st_mtime_ns for file in evaluation.folder.iterdir()}
    again = evaluating.run(plant, EvaluateRequest(evaluation.model, targets={"crack": 0.9}, device="cpu"))
    assert not again.fresh
    assert again.metrics == evaluation.metrics
    assert {file: file.stat().st_mtime_ns for file in evaluation.folder.iterdir()} == before
    asked = evaluating.run(plant, EvaluateRequest(evaluation.model, targets={"crack": 0.5}, device="cpu"))
    assert asked.fresh
    assert asked.metrics["overall"] == evaluation.metrics["overall"]  # nothing was looked at anew


def test_a_corrected_label_costs_one_image(plant: Project, evaluation: Evaluation) -> None:
    table = judging.open_table(plant, store.find(plant, evaluation.model), CLASSES)
    before = len(table)
    index = Index(plant)
    id = next(item.id for item in items(plant) if item.label.defects)
    sample = index.dataset.one(index.fo.ViewField("content_id") == id)
    kept = sample["defects"].copy()
    sample["defects"] = index.fo.Detections()
    sample.save()
    corrected = evaluating.run(plant, EvaluateRequest(evaluation.model, device="cpu"))
    assert corrected.fresh
    assert corrected.metrics["support"]["clean"]["images"] == evaluation.metrics["support"]["clean"]["images"] + 1
    assert len(Table(table.path)) == before + 1
    sample["defects"] = kept
    sample.save()
    assert (
        evaluating.run(plant, EvaluateRequest(evaluation.model, targets={"crack": 0.9}, device="cpu")).metrics
        == evaluation.metrics
    )
    assert len(Table(table.path)) == before + 2


def test_killed_in_the_middle_it_resumes(plant: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    key = models(plant)["poor"]
    monkeypatch.setattr(judging, "CHUNK", 8)
    looked: list[str] = []
    look = judging.ModelEvaluator.predict

    def counting(self: judging.ModelEvaluator, item: Item) -> Any:
        looked.append(item.id)
        return look(self, item)

    def killed(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(judging.ModelEvaluator, "predict", counting)
    with pytest.raises(KeyboardInterrupt):
        evaluating.run(plant, EvaluateRequest(key, device="cpu"), killed)
    assert not list((plant.work / "evaluations" / key).glob("test-*"))
    first = len(looked)
    done = evaluating.run(plant, EvaluateRequest(key, device="cpu"))
    assert done.fresh
    total = len(items(plant)) + len(items(plant, "val"))
    assert 8 <= first < total
    assert len(looked) - first == total - 8


# --- mistakes in the index ------------------------------------------------------------------------------------------


def test_the_app_shows_the_mistakes(plant: Project) -> None:
    keys = models(plant)
    evaluating.run(plant, EvaluateRequest(keys["poor"], device="cpu"))
    evaluation = evaluating.run(plant, EvaluateRequest(keys["good"], device="cpu"))
    app_views.arrange(plant)
    index = Index(plant)
    rows = pyarrow.parquet.read_table(evaluation.folder / "per_image.parquet").to_pylist()
    fields = {id: values for id, *values in index.rows(*app_views.MISTAKES, *app_views.CHANGED)}
    before = {row["id"]: row for row in pyarrow.parquet.read_table(per_image(plant, keys["poor"])).to_pylist()}
    for row in rows:
        missed, alarm, sure, _, dice, _, fixed, broken = fields[row["id"]]
        assert (missed or []) == row["missed"]
        assert (alarm or []) == row["false_alarm"]
        assert (sure, dice or 0) == (row["confidence"], row["dice"] or 0)
        wrong_before = {*before[row["id"]]["missed"], *before[row["id"]]["false_alarm"]}
        assert set(fixed or []) == wrong_before - {*row["missed"], *row["false_alarm"]}
        assert set(broken or []) == {*row["missed"], *row["false_alarm"]} - wrong_before
    elsewhere = {id for id, split in index.rows("split") if split != "test"}
    assert not any(fields[id][0] or fields[id][2] for id in elsewhere)
    scores_group = next(group for group in index.dataset.app_config.sidebar_groups if group.name == "scores")
    assert {"eval_missed", "eval_false_alarm", "mistakenness"} <= set(scores_group.paths)
    views = set(index.dataset.list_saved_views())
    assert {app_views.CONFIDENT, "label suspects"} <= views
    assert index.dataset.get_run_info("evaluation_test").config.model == evaluation.model
    surest = index.dataset.load_saved_view(app_views.CONFIDENT).values("eval_confidence")
    assert surest == sorted(surest, reverse=True)
    assert len(surest) <= 20
    assert app_views.first_view(index) == app_views.CONFIDENT


def per_image(project: Project, key: str) -> Path:
    return next((project.work / "evaluations" / key).glob("test-*")) / "per_image.parquet"


def test_label_suspects_are_wrong_labels_and_can_be_pushed(plant: Project, evaluation: Evaluation) -> None:
    evaluating.run(plant, EvaluateRequest(evaluation.model, targets={"crack": 0.9}, device="cpu"))
    predicting.run(plant, evaluation.model, everything=True, device="cpu")
    evaluating.run(plant, EvaluateRequest(evaluation.model, targets={"crack": 0.9}, device="cpu"))
    app_views.arrange(plant)
    index = Index(plant)
    view = index.dataset.load_saved_view("label suspects")
    shown = dict(zip(view.values("content_id"), view.values("mistakenness"), strict=True))
    assert set(view.values("split")) == {"train", "val", "test"}  # train's, too, after predict --all
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    table = Table(plant.work / "scores" / f"model-{evaluation.model}.lance")
    labels = {item.id: item.label.present for split in ("train", "val", "test") for item in items(plant, split)}
    for id, value in shown.items():
        p = table.read([id], ["probability"])["probability"]
        expected = uncertainty.mistakenness(p, [[name in labels[id] for name in CLASSES]])[0][0]
        assert np.isclose(value, expected, atol=0.01)
    wrong = {id for id, path in index.rows("filepath") if _number(path) % 11 == 0 and _number(path) % 4 != 3}
    best = set(list(shown)[: len(wrong)])
    assert len(best & wrong) / len(wrong) > 3 * len(wrong) / len(labels)  # far better than chance
    assert {row["id"] for row in push._review(index, "label suspects").rows} == set(shown)


def _number(path: str) -> int:
    piece, view = Path(path).stem.split("_")
    return 2 * int(piece) + int(view)


def test_predictions_of_the_split_are_shown(plant: Project, evaluation: Evaluation) -> None:
    evaluating.run(plant, EvaluateRequest(models(plant)["whole"], device="cpu"))
    index = Index(plant)
    by = dict(index.rows("predicted_by"))
    assert all(by[item.id] == f"model-{models(plant)['whole']}" for item in items(plant))


# --- a classifier, val, comparing -----------------------------------------------------------------------------------


def test_a_classifier(plant: Project) -> None:
    done = evaluating.run(plant, EvaluateRequest(models(plant)["whole"], device="cpu"))
    assert "iou" not in done.metrics["classes"]["crack"]
    assert done.metrics["baselines"]["majority"]["exact_match"]["value"] > 0
    predictor = load_predictor(plant, done.model, "cpu")
    of = items(plant)
    p = [predictor.predict_image(pixels.read(item.id, item.path, 10**9)).probability for item in of]
    rows = pyarrow.parquet.read_table(done.folder / "per_image.parquet").to_pylist()
    assert np.allclose([row["p"] for row in rows], p, atol=1e-5)


@pytest.mark.parametrize(("name", "regions"), [("good", True), ("whole", False)])
def test_the_app_s_model_evaluation_has_it_and_nothing_counts_as_an_edit(
    plant: Project, name: str, regions: bool
) -> None:
    done = evaluating.run(plant, EvaluateRequest(models(plant)[name], device="cpu"))
    before = {item.id: item.label.digest for item in Index(plant).items()}
    assert operation.show(plant, done)
    assert not operation.show(plant, done), "it is stored already"
    index = Index(plant)
    assert index.edited() == []
    with app_edits.opened_log(index) as (_, captured):
        assert captured == []
    assert {item.id: item.label.digest for item in index.items()} == before
    rows = evaluating.per_image_rows(done.folder)
    run = evaluation_runs.run_name(done.model, "test")
    results = index.dataset.load_evaluation_results(run)
    if regions:
        drawn = sum(len(item.label.defects) for item in items(plant))
        tp, fn = (
            sum(index.dataset.values(f"{run}_{key}")[row] or 0 for row in range(len(before))) for key in ("tp", "fn")
        )
        assert tp + fn == drawn
        assert tp > 0
        assert 0 < results.mAP() <= 1
    else:
        right = sum(set(row["present"]) == set(row["decided"]) for row in rows)
        assert results.metrics()["accuracy"] == pytest.approx(right / len(rows))
    app_views.arrange(plant)
    groups = {group.name: group.paths for group in Index(plant).dataset.app_config.sidebar_groups}
    assert groups["evaluations"]
    assert not set(groups["evaluations"]) & set(groups["scores"])


def test_val_metrics_are_noted_as_too_good(plant: Project, evaluation: Evaluation) -> None:
    done = evaluating.run(plant, EvaluateRequest(evaluation.model, "val", device="cpu"))
    assert done.metrics["images"] == len(items(plant, "val"))
    assert any("too good" in note for note in done.manifest["notes"])
    assert done.folder.name.startswith("val-")


def test_few_groups_are_pointed_out(plant: Project, evaluation: Evaluation) -> None:
    few = [name for name in CLASSES if evaluation.metrics["support"][name]["groups"] < 10]
    assert few
    notes = [note for note in evaluation.manifest["notes"] if "fewer than 10 groups" in note]
    assert few[0] in notes[0]
    assert notes[0].endswith("curate evaluate --folds 5")
    assert all(evaluation.metrics["classes"][name]["recall"]["few"] for name in few)


def test_comparing_two_models(plant: Project, evaluation: Evaluation) -> None:
    keys = models(plant)
    there = compare.run(plant, keys["poor"], keys["good"], CPU)
    back = compare.run(plant, keys["good"], keys["poor"], CPU)
    assert there.images == evaluation.metrics["images"]
    assert there.fixed == back.broken
    for name, difference in there.overall.items():
        other = back.overall[name]
        assert np.isclose(difference.value, -other.value, equal_nan=True), name
        assert np.allclose([difference.low, difference.high], [-other.high, -other.low], equal_nan=True), name
    mine, poor = (evaluating.run(plant, EvaluateRequest(keys[name], device="cpu")).metrics for name in ("good", "poor"))
    expected = mine["classes"]["crack"]["dice"]["value"] - poor["classes"]["crack"]["dice"]["value"]
    assert np.isclose(there.classes["crack"]["dice"].value, expected, atol=1e-5)
    with pytest.raises(CurateError, match="are the same model"):
        compare.run(plant, keys["good"], keys["good"][:10], CPU)


def test_what_models_reach_and_cost(plant: Project, evaluation: Evaluation) -> None:
    keys = models(plant)
    table = efficiency.run(plant, [keys["good"], keys["poor"]], CPU)
    good, poor = table.rows
    assert (good.model, poor.model) == (keys["good"], keys["poor"])
    assert (table.images, table.timed) == (evaluation.metrics["images"], min(efficiency.TIMED, table.images - 2))
    for name in ("macro_f1", "clean_false_alarms", "dice"):
        assert good.metrics[name]["value"] == pytest.approx(evaluation.metrics["overall"][name]["value"], abs=1e-6), (
            name
        )
    assert good.metrics["dice"]["value"] > poor.metrics["dice"]["value"]
    assert good.parameters > 10_000
    assert good.megabytes == pytest.approx(4e-6 * good.parameters, rel=0.2)  # weights in single precision
    assert 0 < good.p50_ms <= good.p95_ms
    assert (good.worst_drop, good.worst) == (None, None)
    folder = robustness.folder_of(evaluating.make_plan(Index(plant), EvaluateRequest(keys["good"])))
    folder.mkdir(parents=True)
    worst = {"all": {"score": {"change": "blur", "severity": 5, "drop": {"value": 0.25}}}}
    (folder / robustness.METRICS_FILE).write_text(json.dumps({"worst": worst}))
    (folder / robustness.MANIFEST).write_text("{}")
    again = efficiency.run(plant, [keys["good"]], CPU).rows[0]
    assert (again.worst_drop, again.worst) == (0.25, "blur 5")
    shutil.rmtree(folder)
    with pytest.raises(CurateError, match="are the same model"):
        efficiency.run(plant, [keys["good"], keys["poor"], keys["good"]], CPU)


# --- what can go wrong ----------------------------------------------------------------------------------------------


def test_no_model(make: Callable[..., Project], library: Path) -> None:
    project = make([{"name": "library", "format": "mask_folder", "fully_labelled": True, "data": library}])
    sync.run(project)
    with pytest.raises(CurateError, match="no trained model yet"):
        evaluating.run(project, CPU)


def test_train_is_no_test(plant: Project) -> None:
    with pytest.raises(CurateError, match=r"unknown split 'train'.*allowed: test, val.*memorised train"):
        evaluating.run(plant, EvaluateRequest(split="train"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"dent": 0.9}, "unknown class 'dent'"),
        ({"crack": 1.5}, "target recall 1.5 of crack"),
        ({"crack": 0.0}, "recall 0 "),
    ],
)
def test_targets_that_cannot_be(plant: Project, targets: dict[str, float], message: str) -> None:
    with pytest.raises(CurateError, match=message):
        evaluating.run(plant, EvaluateRequest(targets=targets, device="cpu"))


@pytest.fixture
def changed(plant: Project, evaluation: Evaluation) -> Iterator[Callable[..., str]]:
    """Changes the good model's manifest, for one test; returns its key."""
    file = store.find(plant, evaluation.model).folder / store.MANIFEST
    before = file.read_text()

    def change(**values: Any) -> str:
        file.write_text(json.dumps(json.loads(before) | values))
        return evaluation.model

    yield change
    file.write_text(before)


def test_a_model_that_has_learnt_the_test_is_refused(plant: Project, changed: Callable[..., str]) -> None:
    mine, others = items(plant), items(plant, "train")
    key = changed(images={"train": [item.id for item in others[:5]], "val": []})
    evaluating.run(plant, EvaluateRequest(key, device="cpu"))
    key = changed(images={"train": [others[0].id, mine[0].id], "val": [mine[-1].id]})
    with pytest.raises(CurateError, match=r"was trained on .* images of test.*--allow-leak") as error:
        evaluating.run(plant, EvaluateRequest(key, device="cpu"))
    assert mine[0].path.name in str(error.value)
    notes = evaluating.make_plan(Index(plant), EvaluateRequest(key, allow_leak=True)).notes
    assert any("too good" in note for note in notes)
    assert any("1 images of test were in val" in note for note in notes)
    groups = [item for item in mine if item.group == mine[0].group]
    assert any(f"trained on {len(groups)} of" in note for note in notes)  # the other view of the same piece, too


def test_a_model_of_other_classes_is_refused(plant: Project, changed: Callable[..., str]) -> None:
    key = changed(classes=["crack", "dent"], outputs=["crack", "dent"])
    with pytest.raises(CurateError, match=r"knows dent, which this project does not look for.*curate train"):
        evaluating.run(plant, EvaluateRequest(key, device="cpu"))


def test_a_class_that_the_model_does_not_know_is_missed(plant: Project, evaluation: Evaluation) -> None:
    classes = [{"name": name} for name in ("scale", *CLASSES)]
    more = load(plant.folder, {"classes": classes})
    done = evaluating.run(more, EvaluateRequest(evaluation.model, device="cpu"))
    assert any("no labelled image of test shows scale" in note for note in done.manifest["notes"])
    assert done.metrics["classes"]["scale"]["recall"]["value"] is None
    assert done.metrics["classes"]["crack"] == evaluation.metrics["classes"]["crack"]
    assert done.metrics["overall"]["macro_f1"]["value"] == evaluation.metrics["overall"]["macro_f1"]["value"]


def test_nothing_labelled_in_the_split(plant: Project, evaluation: Evaluation) -> None:
    index = Index(plant)
    test = [item.id for item in items(plant)]
    index.set({"status": dict.fromkeys(test, "unlabelled")})
    with pytest.raises(CurateError, match="no labelled image in test"):
        evaluating.run(plant, EvaluateRequest(evaluation.model, device="cpu"))
    index.set({"status": dict.fromkeys(test, "labelled")})


def test_a_file_that_is_gone_is_counted_and_named(plant: Project, evaluation: Evaluation) -> None:
    victim = items(plant)[0]
    content = victim.path.read_bytes()
    table = Path(judging.open_table(plant, store.find(plant, models(plant)["whole"]), CLASSES).path)
    table.rename(table.with_name("aside"))
    victim.path.write_bytes(b"no image")
    done = evaluating.run(plant, EvaluateRequest(models(plant)["whole"], targets={"hole": 0.5}, device="cpu"))
    victim.path.write_bytes(content)
    assert done.metrics["images"] == len(items(plant)) - 1
    assert any("could not be read" in note and victim.path.name in note for note in done.manifest["notes"])


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_commands(plant: Project, evaluation: Evaluation) -> None:
    run = CliRunner()
    arguments = ["-p", str(plant.folder), "--device", "cpu"]
    shown = run.invoke(
        cli.app, ["evaluate", *arguments, "--model", evaluation.model, "--target-recall", "crack=0.9", "--json"]
    )
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout)
    assert value["model"] == evaluation.model
    assert value["fresh"] is False
    assert value["classes"]["crack"]["recall"]["low"] <= value["classes"]["crack"]["recall"]["value"]
    plain = run.invoke(cli.app, ["evaluate", *arguments, "--model", evaluation.model, "--target-recall", "crack=0.9"])
    assert "nothing to do" in plain.output
    assert "macro F1" in plain.output
    keys = models(plant)
    both = run.invoke(cli.app, ["compare", keys["poor"], keys["good"], *arguments, "--json"])
    assert json.loads(both.stdout)["b"] == keys["good"]
    words = run.invoke(cli.app, ["compare", keys["poor"], keys["good"], *arguments])
    assert "B is right on" in words.output
    costs = run.invoke(cli.app, ["compare", keys["good"], "--efficiency", *arguments, "--json"])
    assert json.loads(costs.stdout)["rows"][0]["model"] == keys["good"]
    shown = run.invoke(cli.app, ["compare", keys["poor"], keys["good"], "--efficiency", *arguments])
    assert "ms p50" in shown.output
    assert "curate robustness" in shown.output
    one = run.invoke(cli.app, ["compare", keys["good"], *arguments])
    assert "1 models; allowed: two, or with --efficiency any number" in str(one.exception)
    for wrong in ("crack", "=0.9", "crack=much"):
        refused = run.invoke(cli.app, ["evaluate", *arguments, "--target-recall", wrong])
        assert isinstance(refused.exception, CurateError)
        assert "is not CLASS=RECALL" in str(refused.exception)


def test_python_gets_the_same_model_and_metrics_as_tables(plant: Project, evaluation: Evaluation) -> None:
    """Last: it fits the classifier's decisions, which other tests leave alone."""
    project = curate.open(plant.folder, quiet=True)
    settings = dict(setting.split("=") for setting in WHOLE)
    model = project.train("simple-cnn", settings={key: int(value) for key, value in settings.items()}, device="cpu")
    assert not model.fresh
    assert model.model.key == models(plant)["whole"]
    again = project.evaluate(evaluation.model, target_recall={"crack": 0.9}, device="cpu")
    assert again.metrics == evaluation.metrics
    assert list(again.table.index) == list(CLASSES)
    for name in CLASSES:
        recall = evaluation.metrics["classes"][name]["recall"]
        columns = ["images", "recall", "recall_low", "recall_high"]
        expected = [evaluation.metrics["support"][name]["images"], recall["value"], recall["low"], recall["high"]]
        assert again.table.loc[name, columns].tolist() == expected
    assert again.overall.loc["macro_f1", "value"] == evaluation.metrics["overall"]["macro_f1"]["value"]
    assert again.report.is_file()
    assert f"model {evaluation.model} on" in again._repr_html_()
    assert project.evaluate(model, device="cpu").model == model.model.key
    assert project.predict(model, device="cpu").model == model.model.key
