"""Metrics of a model: pure functions of arrays, each metric in every draw of the bootstrap.

`EvaluatedImages` holds labels and predictions of n images; `compute` computes all metrics of them.
Segmentation is evaluated by pixel, by region and by image, with the highest probability of each class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from train.decisions import decide
from train.evaluate.intervals import BootstrapDraws, BootstrapMetric, Floats, mean, ratio

CLEAN = "clean"
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}  # pixels, as in COCO
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
BINS = 128  # of a pixel's probability, evenly spaced in its logit
LOGIT = 11.0
RELIABILITY = 15  # bins of a probability for the calibration error
TINY = 1e-6
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
MetricsByName = dict[str, BootstrapMetric]


@dataclass(frozen=True)
class PixelCounts:
    """Pixel counts of a segmenter on n images.

    `counts` (n, C, 3): found, false and missed pixels; `histogram` (n, C, 2, BINS): probabilities of defect-free and of
    defective pixels; `largest` (n, C, thresholds): pixels of the largest region above each threshold.
    """

    counts: Ints
    histogram: Ints
    largest: Ints


@dataclass(frozen=True)
class RegionMatches:
    """Regions of all images, with `row` the image's and `kind` the class's number.

    Labelled regions have `area` in pixels and whether a prediction found them (`hit`); predicted ones a confidence
    (`score`) and whether they are right at each of `IOUS`.
    """

    row: Ints
    kind: Ints
    area: Floats
    hit: Bools
    predicted_row: Ints
    predicted_kind: Ints
    score: Floats
    right: Bools

    def take(self, rows: Ints) -> RegionMatches:
        """Return the regions of these images, which are numbered anew."""
        places = {int(row): place for place, row in enumerate(rows)}
        labelled, predicted = (
            np.array([row in places for row in of], bool) for of in (self.row.tolist(), self.predicted_row.tolist())
        )
        new = [
            np.array([places[row] for row in of[kept].tolist()], np.int64)
            for of, kept in ((self.row, labelled), (self.predicted_row, predicted))
        ]
        return RegionMatches(
            new[0],
            self.kind[labelled],
            self.area[labelled],
            self.hit[labelled],
            new[1],
            self.predicted_kind[predicted],
            self.score[predicted],
            self.right[predicted],
        )


@dataclass(frozen=True)
class EvaluatedImages:
    """Labels and predictions of n images. `present`, `p` and `decided` are (n, C): label, probability, decision.

    `single`: the model chooses one class for an image, or `clean`.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    present: Bools
    p: Floats
    decided: Bools
    single: bool = False
    pixels: PixelCounts | None = None
    regions: RegionMatches | None = None

    @property
    def clean(self) -> Bools:
        return np.asarray(~self.present.any(axis=1))

    def take(self, rows: Ints) -> EvaluatedImages:
        """Return these images alone, in this order."""
        pixels, regions = self.pixels, self.regions
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            present=self.present[rows],
            p=self.p[rows],
            decided=self.decided[rows],
            pixels=pixels and PixelCounts(*(values[rows] for values in vars(pixels).values())),
            regions=regions and regions.take(rows),
        )

    def draws(self, seed: int = 0) -> BootstrapDraws:
        return BootstrapDraws.of(self.groups, seed=seed)


# --- all metrics ----------------------------------------------------------------------------------------------------


def compute(evaluated: EvaluatedImages, draws: BootstrapDraws) -> tuple[MetricsByName, dict[str, MetricsByName]]:
    """Compute every metric.

    Args:
        evaluated: labels and predictions.
        draws: bootstrap draws of the images' groups.

    Returns:
        The metrics over all classes, and those of each class.
    """
    by_class = {name: _class_metrics(evaluated, place, draws) for place, name in enumerate(evaluated.classes)}
    return _overall_metrics(evaluated, by_class, draws), by_class


def _class_metrics(evaluated: EvaluatedImages, place: int, draws: BootstrapDraws) -> MetricsByName:
    truth, decided, p = evaluated.present[:, place], evaluated.decided[:, place], evaluated.p[:, place]
    metrics = decision_metrics(truth, decided, draws) | dict(
        zip(("auroc", "ap"), ranking_metrics(p, truth, draws), strict=True)
    )
    metrics["ece"] = ece(p, truth, draws)
    if evaluated.pixels is not None:
        metrics |= _pixel_metrics(evaluated.pixels, place, truth, draws)
    if evaluated.regions is not None:
        metrics |= _region_metrics(evaluated.regions, place, len(truth), draws)
    return metrics


def decision_metrics(truth: Bools, decided: Bools, draws: BootstrapDraws) -> MetricsByName:
    """Return the metrics of one class's decisions. `false_alarms`: share of images without the class that get it."""
    return {
        "precision": draws.share(truth & decided, decided),
        "recall": draws.share(truth & decided, truth),
        "f1": _with_support(draws.share(2.0 * (truth & decided), truth.astype(float) + decided), truth, draws),
        "false_alarms": draws.share(~truth & decided, ~truth),
    }


def _with_support(metric: BootstrapMetric, truth: Bools, draws: BootstrapDraws) -> BootstrapMetric:
    """Return the metric with its support; NaN without images of the class."""
    values = metric.values if truth.any() else np.full_like(metric.values, np.nan)
    return BootstrapMetric(values, int(truth.sum()), draws.groups_of(truth))


def _pixel_metrics(pixels: PixelCounts, place: int, truth: Bools, draws: BootstrapDraws) -> MetricsByName:
    found, false, missed = pixels.counts[:, place].T
    dice = image_dice(pixels.counts)[:, place]
    histogram = draws.sums(pixels.histogram[:, place])
    return {
        "iou": _with_support(draws.share(found, found + false + missed), truth, draws),
        "dice": draws.share(np.where(truth, dice, 0.0), truth),
        "pixel_ap": _with_support(BootstrapMetric(histogram_ap(histogram), 0, 0), truth, draws),
    }


def image_dice(counts: Ints) -> Floats:
    """Return each image's and class's Dice; 1 where nothing is labelled and nothing predicted, as on Kaggle."""
    found, false, missed = np.moveaxis(counts, -1, 0)
    total = 2 * found + false + missed
    return np.where(total > 0, ratio(2 * found, total), 1.0)


def _region_metrics(regions: RegionMatches, place: int, images: int, draws: BootstrapDraws) -> MetricsByName:
    labelled_here = regions.kind == place
    metrics: MetricsByName = {"region_recall": _region_recall(regions, labelled_here, images, draws)}
    for name in SIZES:
        metrics[f"region_recall_{name}"] = _region_recall(
            regions, labelled_here & in_size_range(regions.area, name), images, draws
        )
    predicted_here = regions.predicted_kind == place
    labelled = np.bincount(regions.row[labelled_here], minlength=images)
    by_iou = box_ap(
        regions.score[predicted_here],
        regions.right[predicted_here],
        regions.predicted_row[predicted_here],
        labelled,
        draws,
    )
    n, groups = int(labelled.sum()), draws.groups_of(labelled > 0)
    metrics["box_ap50"] = BootstrapMetric(by_iou[:, 0], n, groups)
    metrics["box_ap"] = BootstrapMetric(by_iou.mean(axis=1), n, groups)
    return metrics


def in_size_range(area: Floats, name: str) -> Bools:
    low, high = SIZES[name]
    return np.asarray((area >= low) & (area < high))


def _region_recall(regions: RegionMatches, chosen: Bools, images: int, draws: BootstrapDraws) -> BootstrapMetric:
    hits = np.bincount(regions.row[chosen & regions.hit], minlength=images)
    return draws.share(hits, np.bincount(regions.row[chosen], minlength=images))


def _overall_metrics(
    evaluated: EvaluatedImages, by_class: dict[str, MetricsByName], draws: BootstrapDraws
) -> MetricsByName:
    def averaged(name: str) -> BootstrapMetric:
        return mean([metrics[name] for metrics in by_class.values()])

    metrics = overall_decision_metrics(evaluated, evaluated.decided, draws)
    metrics |= {name: averaged(name) for name in ("auroc", "ap")}
    metrics["ece"] = top_ece(evaluated, draws) if evaluated.single else averaged("ece")
    if evaluated.pixels is not None:
        metrics |= {name: averaged(name) for name in ("iou", "pixel_ap")}
        metrics |= _dice_metrics(evaluated, evaluated.pixels.counts, draws)
    if evaluated.regions is not None:
        everything = np.ones(len(evaluated.regions.row), bool)
        metrics["region_recall"] = _region_recall(evaluated.regions, everything, len(evaluated.ids), draws)
        metrics |= {"box_map50": averaged("box_ap50"), "box_map": averaged("box_ap")}
    return metrics


def overall_decision_metrics(evaluated: EvaluatedImages, decided: Bools, draws: BootstrapDraws) -> MetricsByName:
    """Return the metrics of the decisions on all classes; exact match: every class of an image is right."""
    truth = evaluated.present
    by_class = [decision_metrics(truth[:, c], decided[:, c], draws)["f1"] for c in range(truth.shape[1])]
    shown = np.asarray(truth.any(axis=1))
    hits, total = 2.0 * (truth & decided).sum(1), 1.0 * truth.sum(1) + decided.sum(1)
    right = (truth == decided).all(axis=1)
    return {
        "macro_f1": mean(by_class),
        "micro_f1": _with_support(draws.share(hits, total), shown, draws),
        "accuracy" if evaluated.single else "exact_match": draws.share(right, np.ones(len(right))),
        "clean_false_alarms": draws.share(evaluated.clean & decided.any(1), evaluated.clean),
    }


def _dice_metrics(evaluated: EvaluatedImages, counts: Ints, draws: BootstrapDraws) -> MetricsByName:
    """Return the mean Dice over labelled pairs of image and class, and over all pairs (Kaggle's metric)."""
    dice, truth = image_dice(counts), evaluated.present
    return {
        "dice": draws.share(np.where(truth, dice, 0.0).sum(1), truth.sum(1)),
        "kaggle_dice": draws.share(dice.mean(1), np.ones(len(dice))),
    }


# --- baselines ------------------------------------------------------------------------------------------------------


def majority_baseline(evaluated: EvaluatedImages, draws: BootstrapDraws) -> tuple[list[str], MetricsByName]:
    """Return the most frequent classes (none: clean), and the metrics of always predicting them."""
    decided = np.zeros_like(evaluated.present)
    if evaluated.single:
        counts = [*evaluated.present.sum(axis=0), evaluated.clean.sum()]
        if (most := int(np.argmax(counts))) < len(evaluated.classes):
            decided[:, most] = True
    else:
        decided[:] = evaluated.present.mean(axis=0) > 0.5
    names = [name for name, yes in zip(evaluated.classes, decided[0], strict=True) if yes] if len(decided) else []
    return names, overall_decision_metrics(evaluated, decided, draws)


def empty_submission(evaluated: EvaluatedImages, draws: BootstrapDraws) -> MetricsByName:
    """Return Kaggle's mean Dice of predicting no defect anywhere."""
    return {"kaggle_dice": draws.share((~evaluated.present).mean(axis=1), np.ones(len(evaluated.ids)))}


def confusion(evaluated: EvaluatedImages) -> tuple[list[str], list[str], Ints]:
    """Return the names of rows (labels) and columns (predictions), and the counts.

    Where an image may show several classes, a class that was found counts as right; one that was missed counts for each
    class that was predicted wrongly, or for `nothing`.
    """
    truth = np.column_stack([evaluated.present, evaluated.clean])
    predicted = np.column_stack([evaluated.decided, ~evaluated.decided.any(axis=1)])
    wrong = predicted & ~truth
    wrong[:, -1] = predicted[:, -1]
    table = (truth & ~predicted).astype(np.int64).T @ wrong.astype(np.int64)
    np.fill_diagonal(table, (truth & predicted).sum(axis=0))
    return [*evaluated.classes, CLEAN], [*evaluated.classes, "nothing"], table


# --- rankings -------------------------------------------------------------------------------------------------------


def ranking_metrics(p: Floats, truth: Bools, draws: BootstrapDraws) -> tuple[BootstrapMetric, BootstrapMetric]:
    """Return AUROC and average precision; NaN without images of both kinds."""
    order = np.argsort(-p, kind="stable")
    auroc, ap = _ranking_kernel(p[order], truth[order], draws.group[order], draws.weights)
    n, groups = int(truth.sum()), draws.groups_of(truth)
    fewest = min(groups, draws.groups_of(~truth)) if len(truth) else 0
    return BootstrapMetric(auroc, n, fewest), BootstrapMetric(ap, n, groups)


@njit(cache=True, nogil=True)  # type: ignore[misc]
def _ranking_kernel(p, truth, group, weights):  # type: ignore[no-untyped-def]
    draws, n = len(weights), len(p)
    auroc, ap = np.full(draws, np.nan), np.full(draws, np.nan)
    for draw in range(draws):
        right = wrong = area = precision = 0.0
        first = 0
        while first < n:
            last, hits, misses = first, 0.0, 0.0
            while last < n and p[last] == p[first]:  # equal scores are one step
                weight = weights[draw, group[last]]
                if truth[last]:
                    hits += weight
                else:
                    misses += weight
                last += 1
            area += misses * (right + hits / 2)
            right += hits
            wrong += misses
            if hits > 0:
                precision += hits * right / (right + wrong)
            first = last
        if right > 0:
            ap[draw] = precision / right
            if wrong > 0:
                auroc[draw] = area / (right * wrong)
    return auroc, ap


def pr_curve(p: Floats, truth: Bools, most: int = 200) -> list[tuple[float, float, float]]:
    """Return (recall, precision, threshold) from the most confident image on, thinned out to at most `most` points."""
    order = np.argsort(-p, kind="stable")
    scores, hits = p[order], np.cumsum(truth[order])
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, int)
    if not len(ends) or not hits[-1]:
        return []
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).astype(int))]
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    return [(float(r), float(q), float(t)) for r, q, t in zip(recall, precision, scores[ends], strict=True)]


def roc_curve(p: Floats, truth: Bools, most: int = 200) -> list[tuple[float, float, float]]:
    """Return (false-alarm rate, recall, threshold) from the most confident image on, thinned out to `most` points."""
    order = np.argsort(-p, kind="stable")
    scores, hits, alarms = p[order], np.cumsum(truth[order]), np.cumsum(~truth[order])
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, int)
    if not len(ends) or not hits[-1] or not alarms[-1]:
        return []
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).astype(int))]
    rows = zip(alarms[ends] / alarms[-1], hits[ends] / hits[-1], scores[ends], strict=True)
    return [(float(x), float(y), float(t)) for x, y, t in rows]


def _levels() -> NDArray[np.uint8]:
    """Return the bin of every probability in steps of 1 / 65536."""
    p = (np.arange(65536) + 0.5) / 65536
    places = (np.log(p / (1 - p)) + LOGIT) / (2 * LOGIT) * BINS
    return np.clip(places, 0, BINS - 1).astype(np.uint8)


_LEVELS = _levels()


def histogram(p: NDArray[np.float32], mask: NDArray[np.uint8]) -> Ints:
    """Return the (2, BINS) histogram of one class's map: over defect-free pixels, and over defective ones."""
    level = _LEVELS[(np.clip(p, 0, 1) * 65535).astype(np.uint16)]
    everything = np.bincount(level.ravel(), minlength=BINS)
    defective = np.bincount(level[mask > 0], minlength=BINS)
    return np.stack([everything - defective, defective])


def histogram_ap(counts: Floats) -> Floats:
    """Return the average precision of histograms (..., 2, BINS)."""
    wrong, right = (np.cumsum(counts[..., row, ::-1], axis=-1) for row in (0, 1))
    steps = counts[..., 1, ::-1] * np.nan_to_num(ratio(right, right + wrong))
    return ratio(steps.sum(axis=-1), right[..., -1])


def histogram_curve(counts: Ints) -> list[tuple[float, float, float]]:
    """Return (recall, precision, threshold) of a histogram (2, BINS)."""
    wrong, right = (np.cumsum(counts[row, ::-1]) for row in (0, 1))
    edges = 1 / (1 + np.exp(LOGIT - 2 * LOGIT * np.arange(BINS)[::-1] / BINS))
    shown = (right + wrong > 0) & (right[-1] > 0)
    rows = zip(right[shown] / max(right[-1], 1), ratio(right, right + wrong)[shown], edges[shown], strict=True)
    return [(float(r), float(q), float(t)) for r, q, t in rows]


# --- boxes ----------------------------------------------------------------------------------------------------------


def match_boxes(predicted: Floats, score: Floats, labelled: Floats) -> Bools:
    """Match one image's predicted boxes (x, y, w, h) of a class with its labelled ones, as COCO does.

    Returns (boxes, IOUS) booleans: the most confident box is matched first, with the free labelled box of highest IoU.
    """
    right = np.zeros((len(predicted), len(IOUS)), bool)
    overlap = box_iou(predicted, labelled)
    for column, least in enumerate(IOUS):
        free = np.ones(len(labelled), bool)
        for row in np.argsort(-score, kind="stable"):
            fitting = np.flatnonzero(free & (overlap[row] >= min(least, 1 - 1e-10)))
            if len(fitting):
                best = fitting[overlap[row, fitting] == overlap[row, fitting].max()][-1]
                free[best], right[row, column] = False, True
    return right


def box_iou(a: Floats, b: Floats) -> Floats:
    """Return the IoU of all pairs of boxes (x, y, w, h) as (len(a), len(b))."""
    a, b = a.reshape(-1, 1, 4), b.reshape(1, -1, 4)
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.prod(np.maximum(sides, 0), axis=-1)
    return ratio(both, np.prod(a[..., 2:], -1) + np.prod(b[..., 2:], -1) - both)


def box_ap(score: Floats, right: Bools, row: Ints, labelled: Ints, draws: BootstrapDraws) -> Floats:
    """Return (draws, IOUS): COCO's average precision, interpolated at 101 recalls."""
    order = np.argsort(-score, kind="stable")
    total = draws.sums(labelled)
    return np.asarray(_box_ap_kernel(right[order], draws.group[row[order]], draws.weights, total, RECALLS))


@njit(cache=True, nogil=True)  # type: ignore[misc]
def _box_ap_kernel(right, group, weights, total, recalls):  # type: ignore[no-untyped-def]
    draws, (n, levels) = len(weights), right.shape
    ap = np.full((draws, levels), np.nan)
    recall, precision = np.zeros(n), np.zeros(n)
    for draw in range(draws):
        if total[draw] <= 0:
            continue
        for level in range(levels):
            hits = seen = 0.0
            for i in range(n):
                weight = weights[draw, group[i]]
                seen += weight
                if right[i, level]:
                    hits += weight
                recall[i] = hits / total[draw]
                precision[i] = hits / seen if seen > 0 else 0.0
            for i in range(n - 2, -1, -1):
                precision[i] = max(precision[i], precision[i + 1])
            area, i = 0.0, 0
            for wanted in recalls:
                while i < n and recall[i] < wanted:
                    i += 1
                area += precision[i] if i < n else 0.0
            ap[draw, level] = area / len(recalls)
    return ap


# --- calibration ----------------------------------------------------------------------------------------------------


def ece(p: Floats, truth: Bools, draws: BootstrapDraws) -> BootstrapMetric:
    """Expected calibration error: how far, on average, a probability is from the share that it stands for."""
    place = np.minimum((p * RELIABILITY).astype(int), RELIABILITY - 1)
    inside = np.eye(RELIABILITY)[place]
    sums = draws.sums(np.stack([inside * p[:, None], inside * truth[:, None], inside], axis=-1))
    total = sums[..., 2].sum(axis=-1)
    return BootstrapMetric(ratio(np.abs(sums[..., 0] - sums[..., 1]).sum(-1), total), len(p), draws.weights.shape[1])


def outcomes(evaluated: EvaluatedImages, p: Floats) -> tuple[Floats, Bools]:
    """Return probabilities and truths of all outcomes of a single-class model: its classes and clean."""
    rest = np.clip(1 - p.sum(axis=1), 0, 1)
    return np.column_stack([p, rest]), np.column_stack([evaluated.present, evaluated.clean])


def top_ece(evaluated: EvaluatedImages, draws: BootstrapDraws, p: Floats | None = None) -> BootstrapMetric:
    """Return the calibration error of the chosen outcome alone."""
    every, truth = outcomes(evaluated, evaluated.p if p is None else p)
    best = every.argmax(axis=1)
    rows = np.arange(len(best))
    return ece(every[rows, best], truth[rows, best], draws)


def reliability(p: Floats, truth: Bools) -> list[tuple[float, float, int]]:
    """Return (mean probability, share that is true, count) of each bin of probability that is not empty."""
    place = np.minimum((p * RELIABILITY).astype(int), RELIABILITY - 1)
    bins = [place == number for number in range(RELIABILITY)]
    return [
        (float(p[inside].mean()), float(truth[inside].mean()), int(inside.sum())) for inside in bins if inside.any()
    ]


def apply_temperature(p: Floats, temperature: float, single: bool) -> Floats:
    """Return the probabilities that the network's logits, divided by the temperature, would give."""
    clipped = np.clip(p, TINY, 1 - TINY)
    if single:
        every = np.column_stack([clipped, np.clip(1 - p.sum(axis=1), TINY, 1)]) ** (1 / temperature)
        return np.asarray(every[:, :-1] / every.sum(axis=1, keepdims=True))
    odds = (clipped / (1 - clipped)) ** (1 / temperature)
    return np.asarray(odds / (1 + odds))


def fit_temperature(evaluated: EvaluatedImages) -> float | None:
    """Fit the temperature of maximum likelihood (Guo et al. 2017); None without images of both kinds."""
    from scipy.optimize import minimize_scalar

    if not len(evaluated.ids) or not evaluated.present.any() or evaluated.present.all():
        return None

    def negative_log_likelihood(log: float) -> float:
        p = apply_temperature(evaluated.p, math.exp(log), evaluated.single)
        if evaluated.single:
            every, truth = outcomes(evaluated, p)
            return float(-np.log(np.clip(every[truth], TINY, 1)).mean())
        right = np.where(evaluated.present, p, 1 - p)
        return float(-np.log(np.clip(right, TINY, 1)).mean())

    return float(math.exp(minimize_scalar(negative_log_likelihood, bounds=(-3, 3), method="bounded").x))


# --- operating points -----------------------------------------------------------------------------------------------

THRESHOLDS = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99])
AREAS = 2 ** np.arange(17)
DEFAULT = 0.5  # threshold of what is not fitted
LEVELS = 512  # thresholds of a classifier that are tried


@dataclass(frozen=True)
class OperatingPoint:
    """A rule for one class: its probability reaches the threshold; with a segmenter, a region above the threshold has
    `min_area` pixels. `reached`: val's recall reaches the target; without a target it has the best F1 on val."""

    target: float | None
    threshold: float
    min_area: int | None
    reached: bool

    def decide(self, evaluated: EvaluatedImages, place: int) -> Bools:
        if self.min_area is None and evaluated.single:
            outcomes_p, _ = outcomes(evaluated, evaluated.p)
            thresholds = np.where(np.arange(outcomes_p.shape[1]) == place, self.threshold, DEFAULT)
            return decide(outcomes_p, thresholds.tolist(), single=True)[:, place]
        if self.min_area is None:
            return np.asarray(evaluated.p[:, place] >= self.threshold)
        assert evaluated.pixels is not None
        level = int(np.argmin(np.abs(THRESHOLDS - self.threshold)))
        return np.asarray(evaluated.pixels.largest[:, place, level] >= self.min_area)


def fit_operating_point(evaluated: EvaluatedImages, place: int, target: float) -> OperatingPoint:
    """Fit the point that reaches the target recall with the fewest false alarms, else the one that comes closest."""
    truth = evaluated.present[:, place]
    needed = math.ceil(target * truth.sum() - 1e-9)
    if evaluated.pixels is None:
        return OperatingPoint(target, float(np.sort(_needed(evaluated, place)[truth])[::-1][needed - 1]), None, True)
    largest = evaluated.pixels.largest[:, place]
    yes = largest[:, :, None] >= AREAS  # (n, thresholds, areas)
    hits, alarms = yes[truth].sum(axis=0), yes[~truth].sum(axis=0)
    enough = min(needed, int(hits.max()))
    price = np.where(hits >= enough, alarms, np.inf)
    cheapest = np.argwhere(price == price.min())
    row, column = max(cheapest.tolist(), key=lambda at: (hits[at[0], at[1]], at))
    return OperatingPoint(target, float(THRESHOLDS[row]), int(AREAS[column]), bool(hits[row, column] >= needed))


def _needed(evaluated: EvaluatedImages, place: int) -> Floats:
    """Return the highest threshold at which a classifier decides on the class, of each image; of a single choice at
    most the default one, from which on it is the most likely outcome."""
    p = evaluated.p[:, place]
    if not evaluated.single:
        return p
    rest = np.delete(outcomes(evaluated, evaluated.p)[0], place, axis=1).max(axis=1)
    return np.asarray(np.minimum(DEFAULT, np.nextafter(p * DEFAULT / np.maximum(rest, TINY), 0)))


def fit_best_f1(evaluated: EvaluatedImages, place: int) -> OperatingPoint:
    """Fit the point of the best F1 over images. A segmenter's found image counts as much as its Dice, so that masks
    count as well. Of equal points the one nearest to the default threshold is taken, with the smallest area."""
    truth = evaluated.present[:, place]
    areas = None if evaluated.pixels is None else AREAS
    levels: Floats = _between(evaluated.p[:, place]) if evaluated.pixels is None else THRESHOLDS
    if evaluated.pixels is None:
        decided: Bools = (evaluated.p[:, place, None] >= levels)[:, :, None]
        worth: Floats = np.ones((len(truth), len(levels)))
    else:
        decided = evaluated.pixels.largest[:, place][:, :, None] >= AREAS
        worth = _dice_above(evaluated.pixels.histogram[:, place], levels)
    credit = (worth[:, :, None] * (decided & truth[:, None, None])).sum(axis=0)
    f1 = 2 * credit / (truth.sum() + decided.sum(axis=0))
    best = np.argwhere(f1 >= f1.max() - 1e-9)
    row, column = min(best.tolist(), key=lambda at: (abs(_logit(levels[at[0]]) - _logit(DEFAULT)), at[1]))
    return OperatingPoint(None, float(levels[row]), None if areas is None else int(areas[column]), True)


def _between(p: Floats) -> Floats:
    """Return thresholds between the probabilities, `LEVELS` at most."""
    known = np.unique(p)
    middles = (known[1:] + known[:-1]) / 2 if len(known) > 1 else np.array([DEFAULT])
    return np.asarray(middles[np.unique(np.linspace(0, len(middles) - 1, LEVELS).astype(int))])


def _logit(p: float) -> float:
    clipped = min(max(float(p), TINY), 1 - TINY)
    return math.log(clipped / (1 - clipped))


def _dice_above(histogram: Ints, thresholds: Floats) -> Floats:
    """Return the Dice (n, thresholds) of one class's pixels above each threshold, from histograms (n, 2, BINS)."""
    first = [math.ceil((_logit(t) + LOGIT) / (2 * LOGIT) * BINS) for t in thresholds]
    above = np.pad(np.cumsum(histogram[..., ::-1], axis=-1)[..., ::-1], [(0, 0), (0, 0), (0, 1)])[..., first]
    total = above.sum(axis=1) + histogram[:, 1].sum(axis=-1)[:, None]
    return np.nan_to_num(ratio(2 * above[:, 1], total))


def largest_regions(p: NDArray[np.float32]) -> list[int]:
    """Return the pixels of the largest region of a map above each of `THRESHOLDS`."""
    import cv2

    rows, columns = (np.flatnonzero((p > THRESHOLDS[0]).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return [0] * len(THRESHOLDS)
    part = p[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, areas = float(part.max()), []
    for threshold in THRESHOLDS:
        if threshold >= top:
            areas.append(0)
            continue
        stats = cv2.connectedComponentsWithStats((part > threshold).view(np.uint8), connectivity=8)[2]
        areas.append(int(stats[1:, cv2.CC_STAT_AREA].max()))
    return areas


def support(evaluated: EvaluatedImages, draws: BootstrapDraws, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the numbers of images and groups that show each class."""
    shown = {name: evaluated.present[:, place] for place, name in enumerate(names)} | {CLEAN: evaluated.clean}
    return {name: {"images": int(yes.sum()), "groups": draws.groups_of(yes)} for name, yes in shown.items()}
