"""Decisions are fitted on val, stored with the model, and used wherever it says what an image shows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from curate import cli
from curate.errors import CurateError
from curate.ops import train as operation
from curate.project import Project
from curate.tables import Table
from tests.train.conftest import TINY
from tests.train.evaluate.test_metrics import drawn as drawn_images
from tests.train.evaluate.test_metrics import with_pixels
from train import decisions, store
from train.decisions import Decision
from train.evaluate import decide, metrics
from train.evaluate.metrics import EvaluatedImages
from train.fit.run import TrainRequest
from train.predict import run as predicting
from train.predict.predictor import Predictor, load_predictor
from train.recipe import load

QUICK = (*TINY, "epochs=1", "steps=2", "optimiser.lr=3e-3")


def f1(truth: np.ndarray, decided: np.ndarray, worth: np.ndarray | float = 1.0) -> float:
    return float(2 * (worth * (truth & decided)).sum() / (truth.sum() + decided.sum()))


def test_no_threshold_of_a_classifier_has_a_better_f1() -> None:
    evaluated = drawn_images(80, seed=5)
    truth, p = evaluated.present[:, 0], evaluated.p[:, 0]
    point = metrics.fit_best_f1(evaluated, 0)
    assert point.min_area is None
    assert f1(truth, point.decide(evaluated, 0)) == max(f1(truth, p >= level) for level in np.unique(p))


def test_no_point_of_a_segmenter_has_a_better_f1_by_dice() -> None:
    evaluated = with_pixels(drawn_images(40, seed=6), seed=6)
    assert evaluated.pixels is not None
    truth, edges = evaluated.present[:, 1], 1 / (1 + np.exp(metrics.LOGIT * (1 - 2 * np.arange(129) / metrics.BINS)))
    scores = {}
    for row, threshold in enumerate(metrics.THRESHOLDS):
        above = evaluated.pixels.histogram[:, 1][:, :, edges[:-1] >= threshold - 1e-12].sum(-1)
        clear, defective = above.T
        size = clear + defective + evaluated.pixels.histogram[:, 1, 1].sum(-1)
        dice = np.divide(2 * defective, size, out=np.zeros(len(size)), where=size > 0)
        for area in metrics.AREAS:
            yes = evaluated.pixels.largest[:, 1, row] >= area
            scores[float(threshold), int(area)] = f1(truth, yes, dice)
    point = metrics.fit_best_f1(evaluated, 1)
    assert scores[point.threshold, point.min_area] == pytest.approx(max(scores.values()))


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_a_single_choice_reaches_its_target_by_its_own_rule(target: float) -> None:
    random = np.random.default_rng(3)
    every = random.dirichlet(np.ones(4), 300)
    truth = np.array([random.choice(4, p=row) for row in every])
    present, p = np.eye(4, dtype=bool)[truth][:, :3], every[:, :3]
    ids = tuple(map(str, range(300)))
    decided = np.eye(4, dtype=bool)[every.argmax(1)][:, :3]
    evaluated = EvaluatedImages(("a", "b", "c"), ids, ids, present, p, decided, True)
    point = metrics.fit_operating_point(evaluated, 1, target)
    assert 0 < point.threshold <= 0.5
    decided = point.decide(evaluated, 1)
    assert decided[present[:, 1]].mean() >= target
    rule = decisions.decide(every, [0.5, point.threshold, 0.5, 0.5], single=True)
    assert np.array_equal(rule[:, 1], decided)
    assert (rule.sum(axis=1) == 1).all()


def test_equal_thresholds_choose_the_most_likely_outcome() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), 50)
    assert np.array_equal(decisions.decide(p, [0.5] * 5, single=True).argmax(axis=1), p.argmax(axis=1))


def test_few_images_keep_the_recipe_s_decision() -> None:
    evaluated = drawn_images(80, seed=7)
    present = evaluated.present.copy()
    present[:, 0] = False
    present[: decide.FEWEST - 1, 0] = True
    known = evaluated.classes[:2]
    fitted = decide.fit(EvaluatedImages(**{**vars(evaluated), "present": present}), known, {})
    assert list(fitted) == [evaluated.classes[1]]


@pytest.mark.parametrize(
    "entries", [{"crack": 3}, {"crack": {}}, {"crack": {"threshold": 0}}, {"crack": {"threshold": 0.5, "min_area": 0}}]
)
def test_decisions_of_no_known_form_are_a_damaged_manifest(works: Project, entries: dict[str, object]) -> None:
    folder = store.models_folder(works) / "abc"
    folder.mkdir(parents=True)
    about = {
        "key": "abc",
        "task": "segmentation",
        "made": "",
        "single": False,
        "seconds": 1,
        "recipe": {},
        "skipped": {},
    }
    about |= {"classes": ["crack"], "outputs": ["crack"], "history": [], "data": {"train": 1, "val": 1, "by_class": {}}}
    about |= {"best": {"epoch": 0, "train_loss": 1}, "images": {"train": [], "val": []}, "decisions": entries}
    (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(CurateError, match=r"is damaged.*decisions"):
        store.open_model(folder)


@pytest.mark.train
@pytest.mark.mongo
def test_decisions_travel_from_val_to_every_prediction(works: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "FEWEST", 1)
    model = operation.run(works, TrainRequest(recipe="unet-resnet", overrides=QUICK, device="cpu")).model
    fitted = model.manifest["decisions"]
    assert fitted, "val shows a class"
    predictor = load_predictor(works, model.key)
    for name, entry in fitted.items():
        assert predictor.decision(name) == Decision(entry["threshold"], entry["min_area"])
    again = operation.run(works, TrainRequest(recipe="unet-resnet", overrides=QUICK, device="cpu"))
    assert not again.fresh
    assert again.model.manifest["decisions"] == fitted
    predicting.run(works, everything=True, device="cpu")
    table = works.work / "scores" / f"{predictor.by}.lance"
    count = len(Table(table).ids())

    name = next(iter(fitted))
    words = ["models", "decide", "--target-recall", f"{name}=1.0", "--device", "cpu", "--json"]
    result = CliRunner().invoke(cli.app, [*words, "--project", str(works.folder)], catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["before"] == fitted
    assert told["fitted"][name]["target"] == 1
    counts = told["fitted"][name]["val"]
    if told["fitted"][name] != fitted[name]:
        assert not table.exists(), "predictions by the old decisions are forgotten"
    assert counts["found"] <= counts["images"]
    report = predicting.run(works, everything=True, device="cpu")
    assert report.predicted == count
    with pytest.raises(CurateError, match="allowed: above 0, at most 1"):
        operation.decide(works, None, {name: 1.5}, "cpu")
    with pytest.raises(CurateError, match="unknown class 'rust'"):
        operation.decide(works, None, {"rust": 0.9}, "cpu")


def test_a_region_needs_the_threshold_and_the_area_of_its_class() -> None:
    recipe = load("unet-resnet", list(TINY))
    chosen = {"crack": Decision(0.8, 30)}
    predictor = Predictor("x", ("crack", "hole"), recipe, False, None, decisions=chosen)
    p = np.zeros((2, 64, 64), np.float32)
    p[:, :20, :20], p[:, 30:34, :5], p[:, 40:50, 40:50] = 0.7, 0.9, 0.9
    found = predictor.from_map(p).defects
    assert [(defect.label, defect.box) for defect, _ in found if defect.label == "crack"] == [
        ("crack", (40, 40, 10, 10))
    ]
    assert sum(defect.label == "hole" for defect, _ in found) == 3, "the recipe's decision"


def test_a_classifier_s_classes_need_their_thresholds() -> None:
    predictor = Predictor("x", ("crack", "hole"), load("simple-cnn"), False, None, decisions={"crack": Decision(0.8)})
    assert predictor._predicted_classes(np.array([0.7, 0.6], np.float32)) == (("hole", pytest.approx(0.6)),)
    assert [name for name, _ in predictor._predicted_classes(np.array([0.85, 0.4], np.float32))] == ["crack"]
