"""Figures: against scikit-learn, pycocotools, scipy and brute force; and the bootstrap against images taken again."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sk

from train.evaluate import metrics
from train.evaluate.intervals import BootstrapDraws
from train.evaluate.metrics import EvaluatedImages, PixelCounts, RegionMatches

NAMES = ("crack", "hole", "scale")


def drawn(n: int = 60, seed: int = 0, single: bool = False, classes: int = 3) -> EvaluatedImages:
    """A model that knows something."""
    random = np.random.default_rng(seed)
    if single:
        truth = random.integers(classes + 1, size=n)  # the last one: clean
        logits = random.normal(size=(n, classes + 1)) + 1.5 * np.eye(classes + 1)[truth]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        present, p, best = np.eye(classes + 1, dtype=bool)[truth][:, :-1], p[:, :-1], p.argmax(axis=1)
        decided = np.eye(classes + 1, dtype=bool)[best][:, :-1]
    else:
        present = random.random((n, classes)) < 0.3
        p = np.round(1 / (1 + np.exp(-(random.normal(size=(n, classes)) + 2 * present - 1))), 2)  # with equals
        decided = p > 0.5
    ids = tuple(f"{row:03d}" for row in range(n))
    groups = tuple(f"coil{random.integers(n // 3)}" for _ in range(n))
    return EvaluatedImages(NAMES[:classes], ids, groups, present, p, decided, single)


def values(
    evaluated: EvaluatedImages, draws: BootstrapDraws | None = None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    overall, by_class = metrics.compute(evaluated, draws or evaluated.draws())
    first = {name: float(metric.values[0]) for name, metric in overall.items()}
    return first, {
        key: {name: float(metric.values[0]) for name, metric in by_name.items()} for key, by_name in by_class.items()
    }


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_decisions_and_rankings_are_scikit_learn_s(single: bool, seed: int) -> None:
    evaluated = drawn(single=single, seed=seed)
    overall, by_class = values(evaluated)
    truth, decided = evaluated.present, evaluated.decided
    for place, name in enumerate(evaluated.classes):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            truth[:, place], decided[:, place], average="binary"
        )
        ours = by_class[name]
        assert np.allclose([ours["precision"], ours["recall"], ours["f1"]], [precision, recall, f1])
        assert np.isclose(ours["auroc"], sk.roc_auc_score(truth[:, place], evaluated.p[:, place]))
        assert np.isclose(ours["ap"], sk.average_precision_score(truth[:, place], evaluated.p[:, place]))
    assert np.isclose(overall["macro_f1"], sk.f1_score(truth, decided, average="macro"))
    assert np.isclose(overall["micro_f1"], sk.f1_score(truth, decided, average="micro"))
    assert np.isclose(overall["accuracy" if single else "exact_match"], sk.accuracy_score(truth, decided))
    assert np.isclose(overall["auroc"], sk.roc_auc_score(truth, evaluated.p, average="macro"))
    assert np.isclose(overall["ap"], sk.average_precision_score(truth, evaluated.p, average="macro"))


def test_each_draw_is_the_figure_of_the_images_it_took() -> None:
    """Metrics from bootstrap sums equal those of the drawn images measured anew."""
    evaluated = with_regions(with_pixels(drawn(40, seed=5), seed=5), seed=5)
    draws = BootstrapDraws.of(evaluated.groups, draws=12, seed=1)
    overall, by_class = metrics.compute(evaluated, draws)
    for draw in (3, 11):
        rows = np.repeat(np.arange(40), draws.weights[draw][draws.group].astype(int))
        again, classes = values(repeated(evaluated, rows))
        for name, metric in overall.items():
            assert np.isclose(metric.values[draw], again[name], equal_nan=True), name
        for key, by_name in by_class.items():
            for name, metric in by_name.items():
                assert np.isclose(metric.values[draw], classes[key][name], equal_nan=True), (key, name)


def repeated(evaluated: EvaluatedImages, rows: np.ndarray[Any, Any]) -> EvaluatedImages:
    """The images, some of them several times."""
    parts = [evaluated.take(np.array([row])) for row in rows]
    regions = [part.regions for part in parts]
    numbers = {name: [vars(values)[name] for values in regions] for name in vars(regions[0])}
    for name in ("row", "predicted_row"):
        numbers[name] = [number + place for place, number in enumerate(numbers[name])]
    return EvaluatedImages(
        evaluated.classes,
        tuple(f"{place}" for place in range(len(rows))),
        tuple(f"{place}" for place in range(len(rows))),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("present", "p", "decided")),
        pixels=evaluated.take(rows).pixels,
        regions=RegionMatches(**{name: np.concatenate(values) for name, values in numbers.items()}),
    )


def test_equals_are_one_step() -> None:
    truth = np.array([1, 0, 1, 0, 1], bool)
    auroc, ap = metrics.ranking_metrics(np.full(5, 0.3), truth, BootstrapDraws.of(list("abcde")))
    assert auroc.values[0] == 0.5
    assert np.isclose(ap.values[0], 0.6)


def test_a_class_that_nothing_shows_is_nothing() -> None:
    evaluated = drawn()
    present = evaluated.present.copy()
    present[:, 0] = False
    overall, by_class = values(EvaluatedImages(**{**vars(evaluated), "present": present}))
    crack = by_class["crack"]
    assert all(math.isnan(crack[name]) for name in ("recall", "f1", "ap", "auroc"))
    assert np.isclose(overall["macro_f1"], np.mean([by_class[name]["f1"] for name in NAMES[1:]]))
    assert crack["precision"] == 0


# --- pixels ---------------------------------------------------------------------------------------------------------


def with_pixels(evaluated: EvaluatedImages, seed: int = 0, size: int = 24) -> EvaluatedImages:
    maps = [map_of(evaluated.present[row], seed * 1000 + row, size) for row in range(len(evaluated.ids))]
    counts, histogram, largest = [], [], []
    for p, truth in maps:
        decided = p > 0.5
        counts.append([[(t & s).sum(), (~t & s).sum(), (t & ~s).sum()] for t, s in zip(truth, decided, strict=True)])
        pairs = list(zip(p, truth.astype(np.uint8), strict=True))
        histogram.append([metrics.histogram(pair, mask) for pair, mask in pairs])
        largest.append([metrics.largest_regions(plane) for plane in p])
    pixels = PixelCounts(*(np.array(values, np.int64) for values in (counts, histogram, largest)))
    return EvaluatedImages(**{**vars(evaluated), "pixels": pixels})


def map_of(shows: np.ndarray[Any, Any], seed: int, size: int = 24) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A smooth map of each class, which is higher where a square defect is."""
    random = np.random.default_rng(seed)
    truth = np.zeros((len(shows), size, size), bool)
    noise = ndimage.gaussian_filter(random.normal(size=truth.shape), (0, 2, 2)) * 8
    for place in np.flatnonzero(shows):
        top, left = random.integers(size - 9, size=2)
        truth[place, top : top + 8, left : left + 8] = True
    return (1 / (1 + np.exp(-(noise + 5 * truth - 3)))).astype(np.float32), truth


def test_pixels_are_those_of_brute_force() -> None:
    evaluated = with_pixels(drawn(30))
    maps = [map_of(evaluated.present[row], row) for row in range(30)]
    overall, by_class = values(evaluated)
    every: list[float] = []
    dices: list[float] = []
    for place, name in enumerate(evaluated.classes):
        p, truth = (np.stack([plane[which][place] for plane in maps]) for which in (0, 1))
        decided = p > 0.5
        assert np.isclose(by_class[name]["iou"], sk.jaccard_score(truth.ravel(), decided.ravel()))
        dice = [sk.f1_score(t.ravel(), s.ravel(), zero_division=1.0) for t, s in zip(truth, decided, strict=True)]
        shown = evaluated.present[:, place]
        assert np.isclose(by_class[name]["dice"], np.array(dice)[shown].mean())
        every += dice
        dices += np.array(dice)[shown].tolist()
        exact = sk.average_precision_score(truth.ravel(), p.ravel())
        assert np.isclose(by_class[name]["pixel_ap"], exact, atol=0.01)  # 128 bins
    assert np.isclose(overall["kaggle_dice"], np.mean(every))
    assert np.isclose(overall["dice"], np.mean(dices))


def test_an_empty_submission_gets_the_share_of_empty_pairs() -> None:
    evaluated = with_pixels(drawn(30))
    metric = metrics.empty_submission(evaluated, evaluated.draws())["kaggle_dice"]
    silent = EvaluatedImages(
        **{
            **vars(evaluated),
            "pixels": PixelCounts(*(np.zeros_like(values) for values in vars(evaluated.pixels).values())),
        }
    )
    missed = evaluated.present[..., None] * np.array([0, 0, 64])
    counts = PixelCounts(missed, silent.pixels.histogram, silent.pixels.largest)
    overall, _ = metrics.compute(EvaluatedImages(**{**vars(evaluated), "pixels": counts}), evaluated.draws())
    assert np.allclose(metric.values, overall["kaggle_dice"].values)
    assert np.isclose(metric.values[0], 1 - evaluated.present.mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_region_is_scipy_s(seed: int) -> None:
    p, _ = map_of(np.array([True]), seed, 40)
    for threshold, area in zip(metrics.THRESHOLDS, metrics.largest_regions(p[0]), strict=True):
        labels, _ = ndimage.label(p[0] > threshold, np.ones((3, 3)))
        assert area == max(np.bincount(labels.ravel(), minlength=2)[1:], default=0), threshold


def test_histograms_count_every_pixel_once() -> None:
    p = np.array([[0, 1, 0.5, np.float32(1e-7), 0.999999]], np.float32)
    histogram = metrics.histogram(p, np.array([[0, 1, 0, 1, 0]], np.uint8))
    assert histogram.sum(axis=1).tolist() == [3, 2]
    assert histogram[0, 0] == histogram[1, 0] == 1  # 0, and what is nearly 0
    assert histogram[1, -1] == histogram[0, -2:].sum() == 1


# --- boxes ----------------------------------------------------------------------------------------------------------


def boxes(random: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    return np.column_stack([random.integers(0, 30, (count, 2)), random.integers(3, 18, (count, 2))]).astype(float)


def scene(seed: int, images: int) -> list[tuple[int, int, Any, Any, Any]]:
    """(image, class, labelled boxes, found boxes near them and elsewhere, confidences)."""
    random = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        for kind in range(3):
            labelled = boxes(random, int(random.integers(0, 4)))
            near = labelled + random.integers(-2, 3, labelled.shape)
            near[:, 2:] = np.maximum(near[:, 2:], 1)
            predicted = np.concatenate(
                [near[random.random(len(near)) < 0.8], boxes(random, int(random.integers(0, 2)))]
            )
            rows.append((image, kind, labelled, predicted, random.permutation(100)[: len(predicted)] / 100))
    return rows


def with_regions(evaluated: EvaluatedImages, seed: int = 0) -> EvaluatedImages:
    labelled, predicted = [], []
    for image, kind, truth, predicted_boxes, score in scene(seed, len(evaluated.ids)):
        right = metrics.match_boxes(predicted_boxes, score, truth)
        labelled += [(image, kind, w * h, kind != 1) for _, _, w, h in truth]
        predicted += [(image, kind, sure, *row) for sure, row in zip(score, right, strict=True)]
    row, of, area, hit = np.array(labelled, float).T
    predicted_table = np.array(predicted, float)
    ints = [column.astype(np.int64) for column in (row, of, predicted_table[:, 0], predicted_table[:, 1])]
    regions = RegionMatches(
        ints[0], ints[1], area, hit > 0, ints[2], ints[3], predicted_table[:, 2], predicted_table[:, 3:] > 0
    )
    return EvaluatedImages(**{**vars(evaluated), "regions": regions})


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_judged_as_coco_does(seed: int) -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    rows = scene(seed, 30)
    truth, predictions = [], []
    for image, kind, labelled, predicted, score in rows:
        for box in labelled:
            truth.append({"image_id": image + 1, "category_id": kind + 1, "bbox": box.tolist(), "iscrowd": 0})
            truth[-1] |= {"id": len(truth), "area": float(box[2] * box[3])}
        for box, sure in zip(predicted, score, strict=True):
            predictions.append(
                {"image_id": image + 1, "category_id": kind + 1, "bbox": box.tolist(), "score": float(sure)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = pycocotools.COCO()
        images = [{"id": image + 1, "width": 64, "height": 64} for image in range(30)]
        names = [{"id": kind + 1, "name": NAMES[kind]} for kind in range(3)]
        coco.dataset = {"images": images, "annotations": truth, "categories": names}
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(predictions), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    overall, by_class = values(with_regions(drawn(30, seed), seed))
    assert np.isclose(overall["box_map"], judge.stats[0])
    assert np.isclose(overall["box_map50"], judge.stats[1])
    for kind, name in enumerate(NAMES):
        precision = judge.eval["precision"][:, :, kind, 0, -1]
        assert np.isclose(by_class[name]["box_ap50"], precision[0].mean())
        assert np.isclose(by_class[name]["box_ap"], precision.mean())


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_no_labelled_box_is_chosen_twice(seed: int) -> None:
    random = np.random.default_rng(seed)
    predicted, labelled = boxes(random, int(random.integers(0, 9))), boxes(random, int(random.integers(0, 5)))
    right = metrics.match_boxes(predicted, random.random(len(predicted)), labelled)
    assert (right.sum(axis=0) <= len(labelled)).all()


def test_regions_by_size() -> None:
    kinds = np.array([0, 0, 1, 1])
    area = np.array([1023.0, 1024, 9215, 9216])
    hit, nobody = np.array([True, False, True, True]), np.zeros((0, 10), bool)
    regions = RegionMatches(kinds, kinds * 0, area, hit, kinds[:0], kinds[:0], area[:0], nobody)
    evaluated = EvaluatedImages(
        ("crack",), ("a", "b"), ("a", "b"), np.ones((2, 1), bool), np.ones((2, 1)), np.ones((2, 1), bool)
    )
    _, by_name = values(EvaluatedImages(**{**vars(evaluated), "regions": regions}))
    sizes = [by_name["crack"][f"region_recall{size}"] for size in ("", "_small", "_medium", "_large")]
    assert sizes == [0.75, 1.0, 0.5, 1.0]


# --- baselines, confusion -------------------------------------------------------------------------------------------


def test_the_majority_s_baseline() -> None:
    evaluated = drawn(50, single=True)
    names, by_name = metrics.majority_baseline(evaluated, evaluated.draws())
    counts = [*evaluated.present.sum(axis=0), evaluated.clean.sum()]
    assert by_name["accuracy"].values[0] == max(counts) / 50
    assert names == [[*NAMES, ""][int(np.argmax(counts))]] or not names
    plain = drawn(50)
    names, by_name = metrics.majority_baseline(plain, plain.draws())
    assert names == []  # each class is rare
    assert np.isclose(by_name["exact_match"].values[0], plain.clean.mean())
    assert by_name["macro_f1"].values[0] == 0


def test_confusion_is_scikit_learn_s() -> None:
    evaluated = drawn(50, single=True)
    truth, predicted = (
        np.column_stack([table, ~table.any(axis=1)]).argmax(axis=1) for table in (evaluated.present, evaluated.decided)
    )
    _, _, table = metrics.confusion(evaluated)
    assert (table == sk.confusion_matrix(truth, predicted, labels=range(4))).all()


def test_confusion_of_several_classes() -> None:
    present = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    decided = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    evaluated = EvaluatedImages(NAMES, tuple("abcd"), tuple("abcd"), present, decided.astype(float), decided)
    _, columns, table = metrics.confusion(evaluated)
    assert columns == [*NAMES, "nothing"]
    # a: the hole is missed, and nothing else is said instead; b: the crack is taken for scale; d: a false alarm
    assert table.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


# --- calibration, operating points ----------------------------------------------------------------------------------


def test_ece_by_hand() -> None:
    p = np.array([0.05, 0.05, 0.95, 0.95])
    truth = np.array([0, 0, 1, 0], bool)
    assert np.isclose(metrics.ece(p, truth, BootstrapDraws.of(list("abcd"))).values[0], (0.05 * 2 + 0.45 * 2) / 4)
    assert np.allclose(metrics.reliability(p, truth), [(0.05, 0, 2), (0.95, 0.5, 2)])
    assert metrics.ece(np.array([1.0]), np.array([True]), BootstrapDraws.of(["a"])).values[0] == 0


@pytest.mark.parametrize("single", [False, True])
def test_the_temperature_is_found_again(single: bool) -> None:
    """Labels drawn from honest probabilities, which are then made three times too sure."""
    random = np.random.default_rng(0)
    n = 4000
    if single:
        logits = random.normal(size=(n, 4)) * 1.5
        honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        truth = np.array([random.choice(4, p=row) for row in honest])
        present, p = np.eye(4, dtype=bool)[truth][:, :3], honest[:, :3]
    else:
        p = 1 / (1 + np.exp(-random.normal(size=(n, 3)) * 1.5))
        present = random.random((n, 3)) < p
    evaluated = EvaluatedImages(
        NAMES, tuple(map(str, range(n))), tuple(map(str, range(n))), present, p, p > 0.5, single
    )
    sure = EvaluatedImages(**{**vars(evaluated), "p": metrics.apply_temperature(p, 1 / 3, single)})
    assert np.isclose(metrics.fit_temperature(sure), 3, rtol=0.1)
    assert np.isclose(metrics.fit_temperature(evaluated), 1, rtol=0.1)
    kept = (sure.p > 1e-5).all(axis=1) & (sure.p.sum(axis=1) < 1 - 1e-5 if single else (sure.p < 1 - 1e-5).all(axis=1))
    assert kept.mean() > 0.5
    assert np.allclose(metrics.apply_temperature(sure.p, 3, single)[kept], p[kept], atol=1e-3)
    cooled = metrics.apply_temperature(sure.p, 3, single)[kept]
    assert (cooled.argmax(axis=1) == sure.p[kept].argmax(axis=1)).all()


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_a_classifier_s_point_reaches_its_target_and_no_higher_threshold_does(target: float) -> None:
    evaluated = drawn(80, seed=2)
    point = metrics.fit_operating_point(evaluated, 0, target)
    truth, p = evaluated.present[:, 0], evaluated.p[:, 0]
    assert (p[truth] >= point.threshold).mean() >= target
    higher = np.unique(p[p > point.threshold])
    assert not len(higher) or (p[truth] >= higher[0]).mean() < target


@pytest.mark.parametrize("target", [0.6, 1.0])
def test_a_segmenter_s_point_is_the_cheapest_of_all(target: float) -> None:
    evaluated = with_pixels(drawn(40, seed=3), seed=3)
    point = metrics.fit_operating_point(evaluated, 1, target)
    truth = evaluated.present[:, 1]
    decided = point.decide(evaluated, 1)
    assert point.reached
    assert decided[truth].mean() >= target
    prices = []
    for row in range(len(metrics.THRESHOLDS)):
        for area in metrics.AREAS:
            yes = evaluated.pixels.largest[:, 1, row] >= area
            if yes[truth].mean() >= target:
                prices.append(yes[~truth].sum())
    assert decided[~truth].sum() == min(prices)


def test_a_point_that_cannot_be_reached_says_so() -> None:
    evaluated = with_pixels(drawn(20, seed=4))
    blind = PixelCounts(evaluated.pixels.counts, evaluated.pixels.histogram, np.zeros_like(evaluated.pixels.largest))
    point = metrics.fit_operating_point(EvaluatedImages(**{**vars(evaluated), "pixels": blind}), 0, 0.9)
    assert not point.reached


def test_curves_end_where_the_averages_say() -> None:
    evaluated = drawn(60)
    curve = metrics.pr_curve(evaluated.p[:, 0], evaluated.present[:, 0])
    precision, recall, thresholds = sk.precision_recall_curve(evaluated.present[:, 0], evaluated.p[:, 0])
    expected = {round(t, 6): (r, q) for r, q, t in zip(recall, precision, thresholds, strict=False)}
    for r, q, t in curve:
        assert np.allclose(expected[round(t, 6)], (r, q))
    assert curve[-1][0] == 1
    assert metrics.pr_curve(np.zeros(0), np.zeros(0, bool)) == []
