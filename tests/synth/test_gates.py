"""Gates and batch figures against loops, closed forms and pictures whose answer is plain to see."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synth import gates
from synth.gates import ValueRange


def disc(size: int = 40, radius: float = 8.0, stretch: float = 1.0) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return (y / stretch) ** 2 + x**2 <= radius**2


# --- gates ------------------------------------------------------------------------------------------------------------


def test_each_gate_refuses_its_own_fault_and_gives_the_numbers() -> None:
    near = np.array([0.01, 0.2, 0.9])
    spans = [ValueRange(0.05, 0.5)] * 3
    assert [bool(value) for value in gates.new(near, spans)] == [True, False, False]
    assert [bool(value) for value in gates.likely(near, spans)] == [False, False, True]
    assert gates.new(near, spans)[0].startswith("0.010 from a real defect")
    assert gates.agreed(np.array([0.59, 0.6])) == ["IoU 0.59, at least 0.6 is needed", ""]
    assert gates.usual(np.array([3.0, 5, 90]), [ValueRange(4, 80)] * 3) == [
        "3 is outside 4 to 80",
        "",
        "90 is outside 4 to 80",
    ]
    assert gates.on_steel(np.array([1.0, 0.5])) == ["", "only 50% of the mask lie on steel"]


def test_a_mask_that_differs_from_the_manifest_is_refused() -> None:
    result = gates.sound(np.array([0.0, 9, 9, 9]), np.array([0.0, 9, 8, 9]), np.array([0.0, 0, 0, 2]))
    assert result[0] == "the mask is empty"
    assert result[1] == ""
    assert result[2] == "the mask has 9 pixels, the manifest says 8"
    assert result[3] == "2 pixels of the mask lie outside the window"


def test_unknown_values_refuse_nothing() -> None:
    value = np.array([0.3])
    assert gates.new(value, [gates.UNKNOWN]) == gates.likely(value, [gates.UNKNOWN]) == [""]
    assert gates.usual(value, [gates.span(np.array([math.nan]))]) == [""]


def test_reasons_are_grouped_by_image() -> None:
    assert gates.gathered(["a", "", ""], ["b", "", "c"]) == [("a", "b"), (), ("c",)]


# --- what is usual ----------------------------------------------------------------------------------------------------


def test_the_copy_threshold_comes_from_pairs_of_different_groups() -> None:
    random = np.random.default_rng(0)
    features, groups = random.normal(size=(12, 5)), [str(row // 3) for row in range(12)]
    features[1] = features[0] + 1e-6  # exposures of one piece: no matter how alike
    pairs = {(i, j): float(np.linalg.norm(features[i] - features[j])) for i in range(12) for j in range(12)}
    cross = {pair: apart for pair, apart in pairs.items() if groups[pair[0]] != groups[pair[1]]}
    nearest = [min(apart for (i, _), apart in cross.items() if i == row) for row in range(12)]
    result = gates.nearness(features, groups)
    assert result.low == pytest.approx(min(cross.values()))
    assert result.high == pytest.approx(np.quantile(nearest, gates.FAR))
    assert all(math.isnan(value) for value in gates.nearness(features, ["one"] * 12))


# --- figures of one defect --------------------------------------------------------------------------------------------


def test_elongation_does_not_change_when_turned() -> None:
    long = disc(60, 6, stretch=4)
    assert gates.elongation(disc()) == pytest.approx(1, abs=0.03)
    assert gates.elongation(long) == pytest.approx(4, rel=0.1)
    assert gates.elongation(long.T) == pytest.approx(gates.elongation(long))
    assert math.isnan(gates.elongation(np.zeros((5, 5), bool)))


def test_a_line_one_pixel_wide_is_as_long_as_it_is() -> None:
    line = np.zeros((9, 40), bool)
    line[4, 3:33] = True
    assert gates.elongation(line) == pytest.approx(30, rel=0.01)


def test_a_hard_seam_is_steeper_than_a_soft_one() -> None:
    import cv2

    mask = disc()
    hard = np.where(mask, 200, 100).astype(np.uint8)
    soft = cv2.GaussianBlur(hard, (0, 0), 4)
    flat = np.full_like(hard, 100)
    assert gates.seam(hard, mask) > 2 * gates.seam(soft, mask) > gates.seam(flat, mask) == 0
    assert gates.seam(np.stack([hard] * 3, axis=2), mask) == pytest.approx(gates.seam(hard, mask), rel=1e-4)
    assert math.isnan(gates.seam(flat, np.zeros_like(mask)))


def test_a_ramp_has_its_own_slope() -> None:
    ramp = np.tile(np.arange(0, 120, 3, dtype=np.uint8), (40, 1))
    assert gates.seam(ramp, disc()) == pytest.approx(3)


def test_iou() -> None:
    a, b = disc(radius=8), disc(radius=4)
    assert gates.iou(a, a) == 1
    assert gates.iou(a, b) == pytest.approx(b.sum() / a.sum())
    assert gates.iou(a & False, a & False) == 0


# --- figures of a batch -----------------------------------------------------------------------------------------------


def test_kernel_distance_is_the_sum_over_pairs() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(6, 4)), random.normal(1, 2, size=(5, 4))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((np.dot(x, y) / 4 + 1) ** 3)

    mine = sum(kernel(a[i], a[j]) for i in range(6) for j in range(6) if i != j) / 30
    theirs = sum(kernel(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    cross = sum(kernel(x, y) for x in a for y in b) / 30
    assert gates.kernel_distance(a, b) == pytest.approx(mine + theirs - 2 * cross)
    assert math.isnan(gates.kernel_distance(a[:1], b))


def test_kernel_distance_is_near_zero_within_a_distribution_and_not_between_two() -> None:
    random = np.random.default_rng(2)
    same = [gates.kernel_distance(*random.normal(size=(2, 60, 8))) for _ in range(30)]
    other = gates.kernel_distance(random.normal(size=(60, 8)), random.normal(1, 1, size=(60, 8)))
    assert abs(np.mean(same)) < np.std(same)  # unbiased: the square may be below zero
    assert other > max(same)


def test_precision_recall_density_coverage_by_hand() -> None:
    random = np.random.default_rng(3)
    real, synthetic, k = random.normal(size=(14, 3)), random.normal(0.5, 1, size=(11, 3)), 3

    def reach(points: np.ndarray, i: int) -> float:
        return float(sorted(np.linalg.norm(points[i] - value) for value in points)[k])

    def inside(center: np.ndarray, i: int, point: np.ndarray) -> bool:
        return bool(np.linalg.norm(center[i] - point) < reach(center, i))

    result = gates.prdc(real, synthetic, k)
    hits = np.array([[inside(real, i, value) for value in synthetic] for i in range(14)])
    covered = np.array([[inside(synthetic, j, value) for j in range(11)] for value in real])
    assert result["precision"] == pytest.approx(hits.any(axis=0).mean())
    assert result["recall"] == pytest.approx(covered.any(axis=1).mean())
    assert result["density"] == pytest.approx(hits.sum() / (k * 11))
    assert result["coverage"] == pytest.approx(hits.any(axis=1).mean())


def test_prdc_of_equal_distributions_of_disjoint_ones_and_of_too_few_samples() -> None:
    points = np.random.default_rng(4).normal(size=(20, 3))
    same, strange = gates.prdc(points, points), gates.prdc(points, points + 100)
    assert [same[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert same["density"] == pytest.approx(1)  # k neighbours inside each ball: itself, and k - 1 others
    assert set(strange.values()) == {0}
    assert all(math.isnan(value) for value in gates.prdc(points, points[:1]).values())
    assert gates.plain({"a": math.nan, "b": {"c": 1.5}}) == {"a": None, "b": {"c": 1.5}}
