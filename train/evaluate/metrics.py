"""Metrics of a model: pure functions of arrays, each metric in every draw of the bootstrap.

`EvaluatedImages` holds labels and predictions of n images; `measures` computes all metrics of them.
Segmentation is judged by its pixels, by its regions and, as a classifier of images, by the likeliest of each class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from train.evaluate.intervals import BootstrapDraws, BootstrapMetric, Floats, mean, ratio

CLEAN = "clean"
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}  # pixels, as COCO has them
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
BINS = 128  # of a pixel's probability, even in its logit
LOGIT = 11.0
RELIABILITY = 15  # bins of a probability, for calibration
TINY = 1e-6
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
ByName = dict[str, BootstrapMetric]


@dataclass(frozen=True)
class Pixels:
    """Of a segmenter. `counts` (n, C, 3): found, false, missed; `histogram` (n, C, 2, BINS): of defect-free and of
    defective pixels; `largest` (n, C, thresholds): pixels of the largest region above each threshold."""

    counts: Ints
    histogram: Ints
    largest: Ints


@dataclass(frozen=True)
class Regions:
    """Labelled regions (row, class, pixels, found or not) and predicted ones (row, class, confidence, right at each
    of `IOUS` or not), image by image."""

    row: Ints
    kind: Ints
    area: Floats
    hit: Bools
    found_row: Ints
    found_kind: Ints
    score: Floats
    right: Bools

    def taken(self, rows: Ints) -> Regions:
        """Those of these images, which get new numbers."""
        places = {int(row): place for place, row in enumerate(rows)}
        mine, theirs = (
            np.array([row in places for row in of], bool) for of in (self.row.tolist(), self.found_row.tolist())
        )
        new = [
            np.array([places[row] for row in of[kept].tolist()], np.int64)
            for of, kept in ((self.row, mine), (self.found_row, theirs))
        ]
        return Regions(
            new[0],
            self.kind[mine],
            self.area[mine],
            self.hit[mine],
            new[1],
            self.found_kind[theirs],
            self.score[theirs],
            self.right[theirs],
        )


@dataclass(frozen=True)
class EvaluatedImages:
    """Images, their labels and what a model says. `p` and `decided` are (n, C): a probability, and yes or no.

    `single`: a model that chooses one class an image, or `clean`.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    present: Bools
    p: Floats
    decided: Bools
    single: bool = False
    pixels: Pixels | None = None
    regions: Regions | None = None

    @property
    def clean(self) -> Bools:
        return np.asarray(~self.present.any(axis=1))

    def taken(self, rows: Ints) -> EvaluatedImages:
        """These images alone, in this order."""
        pixels, regions = self.pixels, self.regions
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            present=self.present[rows],
            p=self.p[rows],
            decided=self.decided[rows],
            pixels=pixels and Pixels(*(values[rows] for values in vars(pixels).values())),
            regions=regions and regions.taken(rows),
        )

    def draws(self, seed: int = 0) -> BootstrapDraws:
        return BootstrapDraws.of(self.groups, seed=seed)


# --- all figures ----------------------------------------------------------------------------------------------------


def measures(judged: EvaluatedImages, draws: BootstrapDraws) -> tuple[ByName, dict[str, ByName]]:
    """Every figure, overall and by class."""
    by_class = {name: _of_class(judged, place, draws) for place, name in enumerate(judged.classes)}
    return _overall(judged, by_class, draws), by_class


def _of_class(judged: EvaluatedImages, place: int, draws: BootstrapDraws) -> ByName:
    truth, decided, p = judged.present[:, place], judged.decided[:, place], judged.p[:, place]
    found = decision(truth, decided, draws) | dict(zip(("auroc", "ap"), ranked(p, truth, draws), strict=True))
    found["ece"] = ece(p, truth, draws)
    if judged.pixels is not None:
        found |= _of_pixels(judged.pixels, place, truth, draws)
    if judged.regions is not None:
        found |= _of_regions(judged.regions, place, len(truth), draws)
    return found


def decision(truth: Bools, decided: Bools, draws: BootstrapDraws) -> ByName:
    """What a yes or no is worth. `false_alarms`: the share of images without the class that are said to have it."""
    return {
        "precision": draws.share(truth & decided, decided),
        "recall": draws.share(truth & decided, truth),
        "f1": _supported(draws.share(2.0 * (truth & decided), truth.astype(float) + decided), truth, draws),
        "false_alarms": draws.share(~truth & decided, ~truth),
    }


def _supported(measure: BootstrapMetric, truth: Bools, draws: BootstrapDraws) -> BootstrapMetric:
    """A figure that is nothing without images of the class."""
    values = measure.values if truth.any() else np.full_like(measure.values, np.nan)
    return BootstrapMetric(values, int(truth.sum()), draws.groups_of(truth))


def _of_pixels(pixels: Pixels, place: int, truth: Bools, draws: BootstrapDraws) -> ByName:
    found, false, missed = pixels.counts[:, place].T
    dice = dices(pixels.counts)[:, place]
    histogram = draws.sums(pixels.histogram[:, place])
    return {
        "iou": _supported(draws.share(found, found + false + missed), truth, draws),
        "dice": draws.share(np.where(truth, dice, 0.0), truth),
        "pixel_ap": _supported(BootstrapMetric(histogram_ap(histogram), 0, 0), truth, draws),
    }


def dices(counts: Ints) -> Floats:
    """Each image's and class's Dice; where nothing was there and nothing found it is 1, as Kaggle has it."""
    found, false, missed = np.moveaxis(counts, -1, 0)
    total = 2 * found + false + missed
    return np.where(total > 0, ratio(2 * found, total), 1.0)


def _of_regions(regions: Regions, place: int, images: int, draws: BootstrapDraws) -> ByName:
    mine = regions.kind == place
    found: ByName = {"region_recall": _region_recall(regions, mine, images, draws)}
    for name in SIZES:
        found[f"region_recall_{name}"] = _region_recall(regions, mine & of_size(regions.area, name), images, draws)
    theirs = regions.found_kind == place
    labelled = np.bincount(regions.row[mine], minlength=images)
    by_iou = box_ap(regions.score[theirs], regions.right[theirs], regions.found_row[theirs], labelled, draws)
    n, groups = int(labelled.sum()), draws.groups_of(labelled > 0)
    found["box_ap50"] = BootstrapMetric(by_iou[:, 0], n, groups)
    found["box_ap"] = BootstrapMetric(by_iou.mean(axis=1), n, groups)
    return found


def of_size(area: Floats, name: str) -> Bools:
    low, high = SIZES[name]
    return np.asarray((area >= low) & (area < high))


def _region_recall(regions: Regions, chosen: Bools, images: int, draws: BootstrapDraws) -> BootstrapMetric:
    hits = np.bincount(regions.row[chosen & regions.hit], minlength=images)
    return draws.share(hits, np.bincount(regions.row[chosen], minlength=images))


def _overall(judged: EvaluatedImages, by_class: dict[str, ByName], draws: BootstrapDraws) -> ByName:
    def averaged(name: str) -> BootstrapMetric:
        return mean([found[name] for found in by_class.values()])

    found = decisions(judged, judged.decided, draws)
    found |= {name: averaged(name) for name in ("auroc", "ap")}
    found["ece"] = top_ece(judged, draws) if judged.single else averaged("ece")
    if judged.pixels is not None:
        found |= {name: averaged(name) for name in ("iou", "pixel_ap")}
        found |= _dices(judged, judged.pixels.counts, draws)
    if judged.regions is not None:
        everything = np.ones(len(judged.regions.row), bool)
        found["region_recall"] = _region_recall(judged.regions, everything, len(judged.ids), draws)
        found |= {"box_map50": averaged("box_ap50"), "box_map": averaged("box_ap")}
    return found


def decisions(judged: EvaluatedImages, decided: Bools, draws: BootstrapDraws) -> ByName:
    """Of all classes together; exact: every class of an image is right."""
    truth = judged.present
    by_class = [decision(truth[:, c], decided[:, c], draws)["f1"] for c in range(truth.shape[1])]
    shown = np.asarray(truth.any(axis=1))
    hits, total = 2.0 * (truth & decided).sum(1), 1.0 * truth.sum(1) + decided.sum(1)
    right = (truth == decided).all(axis=1)
    return {
        "macro_f1": mean(by_class),
        "micro_f1": _supported(draws.share(hits, total), shown, draws),
        "accuracy" if judged.single else "exact_match": draws.share(right, np.ones(len(right))),
        "clean_false_alarms": draws.share(judged.clean & decided.any(1), judged.clean),
    }


def _dices(judged: EvaluatedImages, counts: Ints, draws: BootstrapDraws) -> ByName:
    """Of the pairs of image and class that show something, and of all: there, saying nothing already gets far."""
    dice, truth = dices(counts), judged.present
    return {
        "dice": draws.share(np.where(truth, dice, 0.0).sum(1), truth.sum(1)),
        "kaggle_dice": draws.share(dice.mean(1), np.ones(len(dice))),
    }


# --- baselines ------------------------------------------------------------------------------------------------------


def majority(judged: EvaluatedImages, draws: BootstrapDraws) -> tuple[list[str], ByName]:
    """What always saying the most frequent thing is worth, and what that is (nothing: clean)."""
    decided = np.zeros_like(judged.present)
    if judged.single:
        counts = [*judged.present.sum(axis=0), judged.clean.sum()]
        if (most := int(np.argmax(counts))) < len(judged.classes):
            decided[:, most] = True
    else:
        decided[:] = judged.present.mean(axis=0) > 0.5
    said = [name for name, yes in zip(judged.classes, decided[0], strict=True) if yes] if len(decided) else []
    return said, decisions(judged, decided, draws)


def empty_submission(judged: EvaluatedImages, draws: BootstrapDraws) -> ByName:
    """What finding nothing anywhere is worth by Kaggle's mean Dice."""
    return {"kaggle_dice": draws.share((~judged.present).mean(axis=1), np.ones(len(judged.ids)))}


def confusion(judged: EvaluatedImages) -> tuple[list[str], list[str], Ints]:
    """Rows: what is there; columns: what is said.

    Where an image may show several classes: a class that was found counts as right, one that was missed for each class
    that was said instead, or for `nothing`.
    """
    truth = np.column_stack([judged.present, judged.clean])
    said = np.column_stack([judged.decided, ~judged.decided.any(axis=1)])
    wrong = said & ~truth
    wrong[:, -1] = said[:, -1]
    table = (truth & ~said).astype(np.int64).T @ wrong.astype(np.int64)
    np.fill_diagonal(table, (truth & said).sum(axis=0))
    return [*judged.classes, CLEAN], [*judged.classes, "nothing"], table


# --- rankings -------------------------------------------------------------------------------------------------------


def ranked(p: Floats, truth: Bools, draws: BootstrapDraws) -> tuple[BootstrapMetric, BootstrapMetric]:
    """AUROC and average precision; NaN without images of both kinds."""
    order = np.argsort(-p, kind="stable")
    auroc, ap = _ranked(p[order], truth[order], draws.group[order], draws.weights)
    n, groups = int(truth.sum()), draws.groups_of(truth)
    fewest = min(groups, draws.groups_of(~truth)) if len(truth) else 0
    return BootstrapMetric(auroc, n, fewest), BootstrapMetric(ap, n, groups)


@njit(cache=True, nogil=True)  # type: ignore[misc]
def _ranked(p, truth, group, weights):  # type: ignore[no-untyped-def]
    draws, n = len(weights), len(p)
    auroc, ap = np.full(draws, np.nan), np.full(draws, np.nan)
    for draw in range(draws):
        right = wrong = area = precision = 0.0
        first = 0
        while first < n:
            last, hits, misses = first, 0.0, 0.0
            while last < n and p[last] == p[first]:  # equals are one step
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
    """(recall, precision, threshold), from the surest image on; thinned out to so many points."""
    order = np.argsort(-p, kind="stable")
    scores, hits = p[order], np.cumsum(truth[order])
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, int)
    if not len(ends) or not hits[-1]:
        return []
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).astype(int))]
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    return [(float(r), float(q), float(t)) for r, q, t in zip(recall, precision, scores[ends], strict=True)]


def _levels() -> NDArray[np.uint8]:
    """The bin of every probability in steps of 1 / 65536."""
    p = (np.arange(65536) + 0.5) / 65536
    places = (np.log(p / (1 - p)) + LOGIT) / (2 * LOGIT) * BINS
    return np.clip(places, 0, BINS - 1).astype(np.uint8)


_LEVELS = _levels()


def histogram(p: NDArray[np.float32], mask: NDArray[np.uint8]) -> Ints:
    """(2, BINS) of one class's map: defect-free pixels, and defective ones."""
    level = _LEVELS[(np.clip(p, 0, 1) * 65535).astype(np.uint16)]
    everything = np.bincount(level.ravel(), minlength=BINS)
    defective = np.bincount(level[mask > 0], minlength=BINS)
    return np.stack([everything - defective, defective])


def histogram_ap(counts: Floats) -> Floats:
    """Average precision of (..., 2, BINS)."""
    wrong, right = (np.cumsum(counts[..., row, ::-1], axis=-1) for row in (0, 1))
    steps = counts[..., 1, ::-1] * np.nan_to_num(ratio(right, right + wrong))
    return ratio(steps.sum(axis=-1), right[..., -1])


def histogram_curve(counts: Ints) -> list[tuple[float, float, float]]:
    """(recall, precision, threshold) of (2, BINS)."""
    wrong, right = (np.cumsum(counts[row, ::-1]) for row in (0, 1))
    edges = 1 / (1 + np.exp(LOGIT - 2 * LOGIT * np.arange(BINS)[::-1] / BINS))
    shown = (right + wrong > 0) & (right[-1] > 0)
    rows = zip(right[shown] / max(right[-1], 1), ratio(right, right + wrong)[shown], edges[shown], strict=True)
    return [(float(r), float(q), float(t)) for r, q, t in rows]


# --- boxes ----------------------------------------------------------------------------------------------------------


def matched(found: Floats, score: Floats, labelled: Floats) -> Bools:
    """Which predicted boxes (x, y, w, h) of an image and class are right at each of `IOUS`, as COCO counts: the surest
    choose first, each the labelled box that it covers best and that nobody has chosen."""
    right = np.zeros((len(found), len(IOUS)), bool)
    overlap = box_iou(found, labelled)
    for column, least in enumerate(IOUS):
        free = np.ones(len(labelled), bool)
        for row in np.argsort(-score, kind="stable"):
            fitting = np.flatnonzero(free & (overlap[row] >= min(least, 1 - 1e-10)))
            if len(fitting):
                best = fitting[overlap[row, fitting] == overlap[row, fitting].max()][-1]
                free[best], right[row, column] = False, True
    return right


def box_iou(a: Floats, b: Floats) -> Floats:
    """(len(a), len(b)) of boxes (x, y, w, h)."""
    a, b = a.reshape(-1, 1, 4), b.reshape(1, -1, 4)
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = np.prod(np.maximum(sides, 0), axis=-1)
    return ratio(both, np.prod(a[..., 2:], -1) + np.prod(b[..., 2:], -1) - both)


def box_ap(score: Floats, right: Bools, row: Ints, labelled: Ints, draws: BootstrapDraws) -> Floats:
    """(draws, IOUS): COCO's average precision, interpolated at 101 recalls."""
    order = np.argsort(-score, kind="stable")
    total = draws.sums(labelled)
    return np.asarray(_box_ap(right[order], draws.group[row[order]], draws.weights, total, RECALLS))


@njit(cache=True, nogil=True)  # type: ignore[misc]
def _box_ap(right, group, weights, total, recalls):  # type: ignore[no-untyped-def]
    draws, (n, levels) = len(weights), right.shape
    found = np.full((draws, levels), np.nan)
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
            found[draw, level] = area / len(recalls)
    return found


# --- calibration ----------------------------------------------------------------------------------------------------


def ece(p: Floats, truth: Bools, draws: BootstrapDraws) -> BootstrapMetric:
    """Expected calibration error: how far, on average, a probability is from the share that it stands for."""
    place = np.minimum((p * RELIABILITY).astype(int), RELIABILITY - 1)
    inside = np.eye(RELIABILITY)[place]
    sums = draws.sums(np.stack([inside * p[:, None], inside * truth[:, None], inside], axis=-1))
    total = sums[..., 2].sum(axis=-1)
    return BootstrapMetric(ratio(np.abs(sums[..., 0] - sums[..., 1]).sum(-1), total), len(p), draws.weights.shape[1])


def outcomes(judged: EvaluatedImages, p: Floats) -> tuple[Floats, Bools]:
    """Probabilities and truths of all outcomes of a model that chooses one: its classes and clean."""
    rest = np.clip(1 - p.sum(axis=1), 0, 1)
    return np.column_stack([p, rest]), np.column_stack([judged.present, judged.clean])


def top_ece(judged: EvaluatedImages, draws: BootstrapDraws, p: Floats | None = None) -> BootstrapMetric:
    """Of the chosen outcome alone."""
    every, truth = outcomes(judged, judged.p if p is None else p)
    best = every.argmax(axis=1)
    rows = np.arange(len(best))
    return ece(every[rows, best], truth[rows, best], draws)


def reliability(p: Floats, truth: Bools) -> list[tuple[float, float, int]]:
    """For each bin of probability with images: the mean probability, the share that is true, how many."""
    place = np.minimum((p * RELIABILITY).astype(int), RELIABILITY - 1)
    bins = [place == one for one in range(RELIABILITY)]
    return [(float(p[one].mean()), float(truth[one].mean()), int(one.sum())) for one in bins if one.any()]


def tempered(p: Floats, temperature: float, single: bool) -> Floats:
    """Probabilities as if the network's outputs had been divided by the temperature."""
    sure = np.clip(p, TINY, 1 - TINY)
    if single:
        every = np.column_stack([sure, np.clip(1 - p.sum(axis=1), TINY, 1)]) ** (1 / temperature)
        return np.asarray(every[:, :-1] / every.sum(axis=1, keepdims=True))
    odds = (sure / (1 - sure)) ** (1 / temperature)
    return np.asarray(odds / (1 + odds))


def fitted_temperature(judged: EvaluatedImages) -> float | None:
    """The temperature under which the labels are likeliest (Guo et al. 2017); None without images of both kinds."""
    from scipy.optimize import minimize_scalar

    if not len(judged.ids) or not judged.present.any() or judged.present.all():
        return None

    def surprise(log: float) -> float:
        p = tempered(judged.p, math.exp(log), judged.single)
        if judged.single:
            every, truth = outcomes(judged, p)
            return float(-np.log(np.clip(every[truth], TINY, 1)).mean())
        right = np.where(judged.present, p, 1 - p)
        return float(-np.log(np.clip(right, TINY, 1)).mean())

    return float(math.exp(minimize_scalar(surprise, bounds=(-3, 3), method="bounded").x))


# --- operating points -----------------------------------------------------------------------------------------------

THRESHOLDS = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99])
AREAS = 2 ** np.arange(17)


@dataclass(frozen=True)
class OperatingPoint:
    """An image shows the class where its probability reaches the threshold; of a segmenter, where a region above the
    threshold has so many pixels. `reached`: whether val's recall got to the target."""

    target: float
    threshold: float
    min_area: int | None
    reached: bool

    def decided(self, judged: EvaluatedImages, place: int) -> Bools:
        if self.min_area is None:
            return np.asarray(judged.p[:, place] >= self.threshold)
        assert judged.pixels is not None
        level = int(np.argmin(np.abs(THRESHOLDS - self.threshold)))
        return np.asarray(judged.pixels.largest[:, place, level] >= self.min_area)


def fitted_point(judged: EvaluatedImages, place: int, target: float) -> OperatingPoint:
    """The point that reaches the target on these images at the fewest false alarms, else the one that gets nearest."""
    truth = judged.present[:, place]
    needed = math.ceil(target * truth.sum() - 1e-9)
    if judged.pixels is None:
        return OperatingPoint(target, float(np.sort(judged.p[truth, place])[::-1][needed - 1]), None, True)
    largest = judged.pixels.largest[:, place]
    yes = largest[:, :, None] >= AREAS  # (n, thresholds, areas)
    hits, alarms = yes[truth].sum(axis=0), yes[~truth].sum(axis=0)
    enough = min(needed, int(hits.max()))
    price = np.where(hits >= enough, alarms, np.inf)
    cheapest = np.argwhere(price == price.min())
    row, column = max(cheapest.tolist(), key=lambda at: (hits[at[0], at[1]], at))
    return OperatingPoint(target, float(THRESHOLDS[row]), int(AREAS[column]), bool(hits[row, column] >= needed))


def largest_regions(p: NDArray[np.float32]) -> list[int]:
    """Pixels of the largest region of a map above each of `THRESHOLDS`."""
    import cv2

    rows, columns = (np.flatnonzero((p > THRESHOLDS[0]).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return [0] * len(THRESHOLDS)
    part = p[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, found = float(part.max()), []
    for threshold in THRESHOLDS:
        if threshold >= top:
            found.append(0)
            continue
        stats = cv2.connectedComponentsWithStats((part > threshold).view(np.uint8), connectivity=8)[2]
        found.append(int(stats[1:, cv2.CC_STAT_AREA].max()))
    return found


def support(judged: EvaluatedImages, draws: BootstrapDraws, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images and groups that show each class."""
    shown = {name: judged.present[:, place] for place, name in enumerate(names)} | {CLEAN: judged.clean}
    return {name: {"images": int(yes.sum()), "groups": draws.groups_of(yes)} for name, yes in shown.items()}
