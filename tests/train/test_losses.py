"""Losses against torch's own, closed forms, brute force, and their gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from curate.errors import CurateError
from train import losses

torch.manual_seed(0)
COUNTS, TOTAL = [60.0, 25.0, 5.0], 100.0


def batch(single: bool, shape: tuple[int, ...] = (4, 3, 5, 6), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    maker = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=maker, dtype=torch.float64)
    if not single:
        return logits, (torch.rand(shape, generator=maker) < 0.3).double()
    rows = torch.randint(shape[1], (shape[0], *shape[2:]), generator=maker)
    return logits, functional.one_hot(rows, shape[1]).movedim(-1, 1).double()


def built(name: str, single: bool, **options: Any) -> losses.Term:
    return losses.build(name, options, single=single, counts=COUNTS, total=TOTAL)


def kinds() -> list[tuple[str, bool]]:
    every = itertools.product(losses.LOSSES, (True, False))
    return [(n, s) for n, s in every if n not in (losses.SIGMOID_ONLY if s else losses.SOFTMAX_ONLY)]


@pytest.mark.parametrize(("name", "single"), kinds())
@pytest.mark.parametrize("shape", [(3, 3, 2, 3), (4, 3)])
def test_gradients_are_right(name: str, single: bool, shape: tuple[int, ...]) -> None:
    logits, target = batch(single, shape)
    term = built(name, single)
    assert term(logits, target).shape == ()
    assert torch.autograd.gradcheck(lambda x: term(x, target), logits.requires_grad_())


@pytest.mark.parametrize(("name", "single"), kinds())
def test_a_better_prediction_costs_less(name: str, single: bool) -> None:
    _, target = batch(single)
    term = built(name, single)
    costs = [float(term((2 * target - 1) * strength, target)) for strength in (-2.0, 0.0, 2.0, 6.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.1 * costs[0]


@pytest.mark.parametrize("name", [name for name, single in kinds() if not single])
def test_false_alarms_on_a_class_that_is_absent_still_cost(name: str) -> None:
    """On clean steel: every class has a gradient that lowers it, and not a vanishing one."""
    logits = torch.zeros(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    built(name, False)(logits, target).backward()
    pull = logits.grad.sum((0, 2, 3))
    assert (pull > 0.01).all(), pull
    target[:, 1] = 1.0  # nor does it depend on what else is in the batch
    logits.grad = None
    built(name, False)(logits, target).backward()
    assert (logits.grad.sum((0, 2, 3))[[0, 2]] > 0.005).all()


def test_cross_entropy_and_bce_are_torch_s() -> None:
    weights = [1.0, 4.0, 0.5]
    logits, target = batch(True)
    expected = functional.cross_entropy(logits, target.argmax(1), weight=torch.tensor(weights, dtype=torch.float64))
    assert torch.isclose(losses.cross_entropy(logits, target, weights=weights), expected)
    smooth = functional.cross_entropy(logits, target.argmax(1), label_smoothing=0.1)
    assert torch.isclose(losses.cross_entropy(logits, target, smoothing=0.1), smooth)
    logits, target = batch(False)
    positive = torch.tensor(weights, dtype=torch.float64).reshape(3, 1, 1)
    expected = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=positive)
    assert torch.isclose(losses.bce(logits, target, weights=weights), expected)


def test_inverse_weights() -> None:
    logits, target = batch(True)
    expected = losses.cross_entropy(logits, target, weights=[100 / (3 * n) for n in COUNTS])
    assert torch.isclose(built("cross_entropy", True, weights="inverse")(logits, target), expected)


def test_focal_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    by_hand = -0.25 * ((1 - p) ** 2 * math.log(p) + (1 - q) ** 2 * math.log(q)) / 2
    assert math.isclose(float(losses.focal(logits, target, alpha=0.25)), by_hand)
    logits, target = batch(False)
    assert torch.isclose(losses.focal(logits, target, gamma=0.0), losses.bce(logits, target))


def test_softmax_focal_is_multi_class_and_not_one_against_the_rest() -> None:
    logits, target = batch(True, (2, 3))
    p = (logits.softmax(1) * target).sum(1)
    assert torch.isclose(losses.softmax_focal(logits, target), (-((1 - p) ** 2) * p.log()).mean())
    moved = losses.softmax_focal(logits + 7.0, target)  # a softmax does not see what all logits share
    assert torch.isclose(losses.softmax_focal(logits, target), moved)


def test_effective_weights() -> None:
    weights = losses.effective_weights([1000, 10], 0.99)
    raw = [0.01 / (1 - 0.99**1000), 0.01 / (1 - 0.99**10)]
    assert np.allclose(weights, np.array(raw) * 2 / sum(raw))
    assert np.allclose(losses.effective_weights(COUNTS, 0.0), 1.0)


@pytest.mark.parametrize("single", [True, False])
def test_logit_adjustment_trains_the_plain_logits_towards_balance(single: bool) -> None:
    """Where the data say no more than the prior, adjusted training ends at equal logits: no class is preferred."""
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0] * 60 + [1] * 25 + [2] * 15)
    target = functional.one_hot(rows, 3).double()
    term = losses.build("balanced_softmax", {}, single=single, counts=[60, 25, 15], total=100)
    term(logits.expand(100, 3), target).backward()
    assert torch.allclose(logits.grad, torch.zeros_like(logits), atol=1e-9)


def test_dice_and_tversky_by_hand() -> None:
    p = torch.tensor([[[[0.9, 0.2], [0.4, 0.1]]]], dtype=torch.float64)
    target = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]], dtype=torch.float64)
    logits = torch.logit(p)
    hit, alarm, miss = 1.3, 0.3, 0.7
    assert math.isclose(float(losses.dice(logits, target, single=False)), 1 - (2 * hit + 1) / (1.6 + 2 + 1))
    tversky = 1 - (hit + 1) / (hit + 0.2 * alarm + 0.8 * miss + 1)
    loss = losses.tversky(logits, target, single=False, alpha=0.2, beta=0.8)
    assert math.isclose(float(loss), tversky)


def test_focal_tversky_takes_its_power_class_by_class() -> None:
    logits, target = batch(False)
    by_class = [losses.tversky(logits[:, [c]], target[:, [c]], single=False) for c in range(3)]
    loss = losses.focal_tversky(logits, target, single=False, gamma=0.5)
    assert torch.isclose(loss, sum(value**0.5 for value in by_class) / 3)
    assert not torch.isclose(loss, (sum(by_class) / 3) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_of_hard_predictions_is_the_jaccard_loss(seed: int) -> None:
    maker = np.random.default_rng(seed)
    hard, target = maker.random((2, 7)) < 0.5, maker.random((2, 7)) < 0.4
    target[0, 0] = target[1, 1] = True
    logits = torch.tensor(np.where(hard, 60.0, -60.0))[None]
    loss = losses.lovasz(logits, torch.tensor(target, dtype=torch.float64)[None], single=False)
    expected = np.mean([1 - (h & t).sum() / (h | t).sum() for h, t in zip(hard, target, strict=True)])
    assert math.isclose(float(loss), expected, abs_tol=1e-9)


def test_lovasz_between_is_the_expectation_over_thresholds() -> None:
    """The Lovász extension: the Jaccard loss of the errors above a threshold, over all thresholds."""
    p = np.array([0.9, 0.7, 0.35, 0.2, 0.15])
    target = np.array([1, 0, 1, 0, 0])
    errors = np.abs(target - p)

    def jaccard(wrong: np.ndarray) -> float:
        predicted = np.where(wrong, 1 - target, target)
        return 1 - (predicted & target).sum() / max((predicted | target).sum(), 1)

    levels = (np.arange(5_000) + 0.5) / 5_000
    expected = float(np.mean([jaccard(errors > level) for level in levels]))
    logits = torch.logit(torch.tensor(p))[None, None]
    loss = losses.lovasz(logits, torch.tensor(target, dtype=torch.float64)[None, None], single=False)
    assert math.isclose(float(loss), expected, abs_tol=1e-3)


def test_sums() -> None:
    logits, target = batch(False)
    both = losses.weighted_sum([(2.0, built("bce", False)), (0.5, built("dice", False))])
    expected = 2 * losses.bce(logits, target) + 0.5 * losses.dice(logits, target, single=False)
    assert torch.isclose(both(logits, target), expected)


@pytest.mark.parametrize(
    ("name", "options", "single", "message"),
    [
        ("dise", {}, False, "did you mean 'dice'"),
        ("dice", {"smoth": 1}, False, "did you mean 'smooth'"),
        ("tversky", {"alpha": "x"}, False, "allowed: a number"),
        ("bce", {"weights": [1, 2]}, False, "2 loss weights for 3 classes"),
        ("bce", {}, True, "use 'cross_entropy'"),
        ("softmax_focal", {}, False, "use 'focal'"),
    ],
)
def test_what_does_not_fit_is_named(name: str, options: dict[str, Any], single: bool, message: str) -> None:
    with pytest.raises(CurateError, match=message):
        built(name, single, **options)
