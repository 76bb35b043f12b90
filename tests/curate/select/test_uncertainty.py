"""Uncertainty scores against independent references and drawn maps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.select import uncertainty

Array = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def softmax(shape: tuple[int, ...], seed: int = 0, spread: float = 3) -> Array:
    logits = spread * np.random.default_rng(seed).normal(size=shape)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    result: Array = (e / e.sum(-1, keepdims=True)).astype(np.float32)
    return result


def entropy(values: Any, axis: int) -> npt.NDArray[np.float64]:
    """SciPy's, whose import takes a second."""
    import scipy.stats  # type: ignore[import-untyped]

    return np.asarray(scipy.stats.entropy(values, axis=axis))


def sigmoids(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def bernoulli(p: npt.ArrayLike) -> npt.NDArray[np.float64]:
    p = np.asarray(p, dtype=np.float64)
    return entropy([p, 1 - p], axis=0)


# --- classification ---------------------------------------------------------------------------------------------------


def test_scores_of_softmax_match_a_loop_over_rows() -> None:
    p = softmax((50, 5))
    rows = [sorted(map(float, row)) for row in p]
    np.testing.assert_allclose(uncertainty.least_confidence(p), [1 - r[-1] for r in rows], atol=1e-6)
    np.testing.assert_allclose(uncertainty.margin(p), [1 - (r[-1] - r[-2]) for r in rows], atol=1e-6)
    reference = entropy(p.astype(np.float64), axis=1)
    np.testing.assert_allclose(uncertainty.entropy(p), reference, rtol=1e-5)
    np.testing.assert_allclose(uncertainty.entropy(p, normalise=True), reference / np.log(5), rtol=1e-5)


def test_scores_of_sigmoids_match_scipy() -> None:
    p = sigmoids((50, 4))
    np.testing.assert_allclose(uncertainty.class_entropy(p), bernoulli(p), rtol=1e-5)
    np.testing.assert_allclose(uncertainty.predictive_entropy_multilabel(p), bernoulli(p).sum(1), rtol=1e-5)
    np.testing.assert_allclose(uncertainty.predictive_entropy_multilabel(p, mean=True), bernoulli(p).mean(1), rtol=1e-5)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 9999), st.sampled_from([0.1, 3.0, 300.0]))
def test_ranges_types_and_order_of_classes(classes: int, seed: int, spread: float) -> None:
    p = softmax((9, classes), seed, spread)
    shuffled = p[:, np.random.default_rng(seed).permutation(classes)]
    tops = {uncertainty.least_confidence: 1.0, uncertainty.margin: 1.0, uncertainty.entropy: float(np.log(classes))}
    tops[uncertainty.predictive_entropy_multilabel] = classes * float(np.log(2))
    for score, top in tops.items():
        values = score(p)
        assert values.dtype == np.float32
        assert values.shape == (9,)
        assert (values >= -1e-5).all()
        assert (values <= top + 1e-5).all()
        np.testing.assert_allclose(score(shuffled), values, atol=1e-5)


def test_certain_uniform_and_unknown_predictions() -> None:
    p = np.array([[1, 0, 0], [1 / 3] * 3, [np.nan, 0, 1]], np.float32)
    for score in (uncertainty.least_confidence, uncertainty.entropy, uncertainty.margin):
        low, high, unknown = score(p)
        assert low == 0
        assert high > 0.6
        assert np.isnan(unknown)
    assert uncertainty.entropy(p, normalise=True)[1] == pytest.approx(1)
    assert np.isnan(uncertainty.predictive_entropy_multilabel(p)).tolist() == [False, False, True]


def test_empty_input_and_a_single_class() -> None:
    for score in (
        uncertainty.entropy,
        uncertainty.margin,
        uncertainty.least_confidence,
        uncertainty.predictive_entropy_multilabel,
    ):
        assert score(np.zeros((0, 4), np.float32)).shape == (0,)
    p = np.ones((2, 1))
    assert uncertainty.margin(p).tolist() == uncertainty.entropy(p, normalise=True).tolist() == [0, 0]


# --- mistakenness -----------------------------------------------------------------------------------------------------


def test_mistakenness_rises_with_the_mass_against_the_label() -> None:
    p = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    image, by_class = uncertainty.mistakenness(p, np.zeros((101, 1)))
    assert (np.diff(by_class[:, 0]) > 0).all()
    assert by_class[[0, 50, 100], 0].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)
    np.testing.assert_array_equal(image, by_class[:, 0])
    np.testing.assert_allclose(uncertainty.mistakenness(1 - p, np.ones((101, 1)))[0], image, atol=1e-6)


def test_mistakenness_of_an_image_is_its_worst_class_and_finds_planted_errors() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((400, 3)) < 0.1
    p = np.clip(np.where(truth, 0.85, 0.1) + rng.normal(0, 0.1, truth.shape), 0, 1)
    given_labels, wrong = truth.copy(), rng.choice(400, 20, replace=False)
    given_labels[wrong, 1] ^= True
    image, by_class = uncertainty.mistakenness(p, given_labels)
    assert by_class.shape == (400, 3)
    assert set(np.argsort(-image)[:20]) == set(wrong)
    assert np.isnan(uncertainty.mistakenness([[np.nan, 0.2]], [[0, 1]])[0]).all()


# --- ensembles --------------------------------------------------------------------------------------------------------


def test_bald_matches_its_definition() -> None:
    samples = softmax((7, 30, 4))
    mean = samples.astype(np.float64).mean(0)
    total, each = entropy(mean, axis=1), entropy(samples.astype(np.float64), axis=2).mean(0)
    np.testing.assert_allclose(uncertainty.bald(samples), total - each, atol=1e-6)
    np.testing.assert_allclose(uncertainty.predictive_entropy(samples), total, atol=1e-6)
    assert uncertainty.mutual_information is uncertainty.bald


def test_multilabel_bald_matches_its_definition() -> None:
    samples = sigmoids((7, 30, 4))
    reference = bernoulli(samples.astype(np.float64).mean(0)) - bernoulli(samples).mean(0)
    np.testing.assert_allclose(uncertainty.class_bald(samples), reference, atol=1e-6)
    np.testing.assert_allclose(uncertainty.bald_multilabel(samples), reference.sum(1), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 9999))
def test_bald_is_zero_when_the_passes_agree_and_at_most_the_entropy(passes: int, seed: int) -> None:
    same = np.repeat(softmax((1, 5, 3), seed), passes, axis=0)
    assert uncertainty.bald(same).max() < 1e-9
    assert uncertainty.bald_multilabel(same).max() < 1e-9
    samples = softmax((passes, 5, 3), seed)
    assert (uncertainty.bald(samples) >= 0).all()
    assert (uncertainty.bald(samples) <= uncertainty.predictive_entropy(samples) + 1e-6).all()
    np.testing.assert_allclose(uncertainty.bald(samples[::-1]), uncertainty.bald(samples), atol=1e-6)


def test_bald_is_largest_where_sure_passes_contradict_each_other() -> None:
    samples = np.array([[[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]])
    assert uncertainty.bald(samples).tolist() == pytest.approx([np.log(2), 0])
    with pytest.raises(ValueError, match="no stochastic pass"):
        uncertainty.bald([])


# --- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 999))
def test_tile_means_cover_every_pixel_once(height: int, width: int, tile: int, seed: int) -> None:
    values = sigmoids((height, width), seed)
    means = uncertainty.tile_means(values, tile)
    rows, columns = (np.array_split(np.arange(n), -(-n // tile)) for n in values.shape)
    # array_split puts the longer tiles first, tile_means spreads them: compare what does not depend on it.
    assert means.shape == (len(rows), len(columns))
    if height % len(rows) == width % len(columns) == 0:
        reference = [[values[np.ix_(r, c)].mean(dtype=np.float64) for c in columns] for r in rows]
        np.testing.assert_allclose(means, reference, rtol=1e-5)
    ones = uncertainty.tile_means(np.ones_like(values), tile)
    np.testing.assert_allclose(ones, 1)
    assert means.min() >= values.min() - 1e-6
    assert means.max() <= values.max() + 1e-6


def test_ragged_tiles_are_averaged_over_their_own_pixels() -> None:
    values = np.arange(7 * 5, dtype=np.float32).reshape(7, 5)
    rows, columns = [0, 3, 7], [0, 2, 5]
    reference = [[values[a:b, c:d].mean() for c, d in ((0, 2), (2, 5))] for a, b in ((0, 3), (3, 7))]
    np.testing.assert_allclose(uncertainty.tile_means(values, 4), reference)
    assert [*uncertainty._starts(7, 4), 7] == rows
    assert [*uncertainty._starts(5, 4), 5] == columns


def test_top_tiles_find_a_small_spot_on_any_size_of_image() -> None:
    small, large = np.zeros((128, 128)), np.zeros((256, 1600))
    for image in (small, large):
        image[70:80, 70:80] = 1
    assert uncertainty.top_tiles(small) == uncertainty.top_tiles(large) == pytest.approx(100 / 64**2 / 3)
    assert uncertainty.top_tiles(np.full((3, 3), 0.25), m=9) == 0.25  # fewer tiles than m


# --- maps -------------------------------------------------------------------------------------------------------------


def drawn(radius: float, inside: float, softness: float, shape: tuple[int, int] = (256, 512)) -> Array:
    """A round region of probability `inside` whose outline fades over about `softness` pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(y - shape[0] / 2, x - shape[1] / 2) - radius
    result: Array = (0.001 + (inside - 0.001) / (1 + np.exp(distance / max(softness / 4, 1e-3)))).astype(np.float32)
    return result


def test_the_rim_of_a_large_sure_defect_does_not_outrank_a_small_doubtful_one() -> None:
    large, small = drawn(100, 0.999, 4), drawn(5, 0.6, 2)
    doubt = {name: uncertainty.class_entropy(p) for name, p in (("large", large), ("small", small))}
    # What a plain sum would do: the large one has more doubt, all of it in its rim.
    assert doubt["large"].sum() > doubt["small"].sum()
    assert uncertainty.top_tiles(doubt["large"], 3, 16) > uncertainty.top_tiles(doubt["small"], 3, 16)
    assert 3 * uncertainty.boundary_free(doubt["large"], large) < uncertainty.boundary_free(doubt["small"], small)


@pytest.mark.parametrize("radius", [10, 20, 40, 80, 120])
def test_sure_defects_score_low_at_any_size(radius: int) -> None:
    sure, doubtful = drawn(radius, 0.999, 3), drawn(5, 0.6, 2)
    small = uncertainty.boundary_free(uncertainty.class_entropy(doubtful), doubtful)
    assert uncertainty.boundary_free(uncertainty.class_entropy(sure), sure) < small / 3


def test_a_large_sure_defect_does_not_hide_a_small_doubtful_one_beside_it() -> None:
    both, alone = drawn(60, 0.999, 3), np.full((256, 512), 0.001, np.float32)
    for image in (both, alone):
        image[20:30, 20:30] = 0.6
    with_large = uncertainty.boundary_free(uncertainty.class_entropy(both), both)
    assert with_large == pytest.approx(uncertainty.boundary_free(uncertainty.class_entropy(alone), alone), rel=0.2)


def test_the_rim_follows_the_outline_of_sure_regions_only() -> None:
    p = np.zeros((40, 40))
    p[10:30, 10:30] = 1
    band = uncertainty.rim(p, 2)
    expected = np.zeros((40, 40), bool)
    expected[8:32, 8:32] = True
    expected[12:28, 12:28] = False
    np.testing.assert_array_equal(band, expected)
    assert not uncertainty.rim(p * 0.8, 2).any()
    assert not uncertainty.rim(np.ones((9, 9)), 2).any()  # the edge of the image is no outline
    assert not uncertainty.rim(np.zeros((9, 9)), 2).any()


def test_each_class_loses_its_own_rims() -> None:
    p = np.zeros((2, 64, 64), np.float32)
    p[0, 4:60, 4:60] = 1
    p[1, 28:36, 28:36] = 0.6  # a doubtful class inside of a sure one: the union has no outline there
    both = uncertainty.boundary_free(uncertainty.class_entropy(p), p)
    assert both == pytest.approx(uncertainty.boundary_free(uncertainty.class_entropy(p[1]), p[1]))
    assert both > 0


def test_summarise_agrees_with_the_single_scores() -> None:
    p = sigmoids((3, 70, 150)) ** 4
    summary = uncertainty.summarise(p)
    total = bernoulli(p).sum(0)
    assert summary["entropy"] == pytest.approx(total.mean(), rel=1e-5)
    assert summary["top_tiles"] == pytest.approx(uncertainty.top_tiles(total), rel=1e-5)
    assert summary["boundary_free"] == pytest.approx(uncertainty.boundary_free(bernoulli(p), p), rel=1e-5)
    assert summary["margin"] == pytest.approx(uncertainty.top_tiles((1 - np.abs(2 * p - 1)).max(0)), rel=1e-5)
    assert summary["foreground"] == pytest.approx((p >= 0.5).any(0).mean())
    np.testing.assert_allclose(summary["class_tile_entropy"], uncertainty.class_tile_entropy(p), rtol=1e-6)
    np.testing.assert_allclose(summary["expected_defect_pixels"], p.sum((1, 2), dtype=float), rtol=1e-6)
    np.testing.assert_allclose(summary["probability"], [uncertainty.tile_means(q, 16).max() for q in p], rtol=1e-6)


def test_one_pixel_that_is_nan_reaches_every_score_of_the_image() -> None:
    p = sigmoids((2, 70, 90))
    p[1, 30, 30] = np.nan
    for name, value in uncertainty.summarise(p).items():
        assert np.isnan(np.atleast_1d(value)[-1]), name
    inside = np.ones((1, 30, 30), np.float32)
    inside[:, :, 15:] = 0
    inside[0, 15, 14] = np.nan  # under the rim
    assert np.isnan(uncertainty.boundary_free(uncertainty.class_entropy(inside), inside))


@pytest.mark.slow
def test_tensors_are_welcome() -> None:
    torch = pytest.importorskip("torch")
    p = sigmoids((2, 30, 40))
    tensor = torch.tensor(p, requires_grad=True)
    np.testing.assert_array_equal(uncertainty.class_tile_entropy(tensor), uncertainty.class_tile_entropy(p))
    half = uncertainty.summarise(tensor.to(torch.bfloat16))
    assert half["entropy"] == pytest.approx(uncertainty.summarise(p)["entropy"], rel=0.01)


# --- passes -----------------------------------------------------------------------------------------------------------


def test_a_summary_of_passes_equals_the_scores_of_all_maps_at_once() -> None:
    samples = sigmoids((5, 2, 70, 90))
    summary = uncertainty.UncertaintySummary()
    for sample in samples:
        summary.add(sample)
    flat = samples.reshape(5, 2, -1).transpose(0, 2, 1)
    reference = uncertainty.class_bald(flat).T.reshape(2, 70, 90)
    np.testing.assert_allclose(summary.bald(), reference, atol=1e-6)
    values = summary.scores()
    assert values["bald"] == pytest.approx(reference.sum(0).mean(), rel=1e-4)
    assert values["bald_top_tiles"] == pytest.approx(uncertainty.top_tiles(reference.sum(0)), rel=1e-4)
    np.testing.assert_allclose(values["class_tile_bald"], [uncertainty.top_tiles(m) for m in reference], rtol=1e-4)
    assert values["entropy"] == pytest.approx(uncertainty.summarise(samples.mean(0))["entropy"], rel=1e-5)


def test_a_summary_keeps_two_maps_however_many_passes_there_are() -> None:
    summary = uncertainty.UncertaintySummary()
    for seed in range(9):
        summary.add(sigmoids((2, 8, 8), seed))
    held = sum(v.size for v in vars(summary).values() if isinstance(v, np.ndarray))
    assert held == 2 * 2 * 8 * 8
    assert summary.passes == 9


def test_passes_that_agree_have_no_bald_and_no_pass_is_an_error() -> None:
    summary = uncertainty.UncertaintySummary()
    with pytest.raises(ValueError, match="no stochastic pass"):
        summary.scores()
    for _ in range(3):
        summary.add(sigmoids((2, 8, 8)))
    values = summary.scores()
    assert max(values["bald"], values["bald_top_tiles"], values["bald_boundary_free"]) < 1e-9
