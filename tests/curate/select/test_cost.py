"""Budgets as people write them, and what an image costs."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.select.cost import CostModel, ImageBudget, TimeBudget, effort, parse_budget

Floats = npt.NDArray[np.float64]
CLASSES = ("crack", "hole", "scale")
BASE, REGION = 12.0, np.array([25.0, 6.0, 11.0])


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("500", ImageBudget(500)),
        (" 1 ", ImageBudget(1)),
        ("4h", TimeBudget(14400)),
        ("90m", TimeBudget(5400)),
        ("45s", TimeBudget(45)),
        ("2h30m", TimeBudget(9000)),
        ("2H 30m", TimeBudget(9000)),
        ("1.5h", TimeBudget(5400)),
        ("1h1m1s", TimeBudget(3661)),
    ],
)
def test_budgets(text: str, budget: ImageBudget | TimeBudget) -> None:
    assert parse_budget(text) == budget


ODD = [
    "",
    "0",
    "0h",
    "0m0s",
    "-5",
    "-2h",
    "+5",
    "h",
    "5x",
    "5 images",
    "1e3",
    "2.5",
    "30m2h",
    "2h30",
    "nan",
    "inf",
    "٥",
]


@pytest.mark.parametrize("text", [*ODD, "1" * 5000])
def test_what_is_no_budget_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(CurateError) as error:
        parse_budget(text)
    message = str(error.value)
    assert f"'{text}'" in message
    assert "2h30m" in message
    assert "--budget 1h" in message


@given(st.integers(0, 99), st.integers(0, 999), st.integers(0, 9999))
def test_every_time_is_read_back(hours: int, minutes: int, seconds: int) -> None:
    total = 3600 * hours + 60 * minutes + seconds
    if total:
        assert parse_budget(f"{hours}h{minutes}m{seconds}s") == TimeBudget(total)


# --- the model --------------------------------------------------------------------------------------------------------


def session(
    n: int, seed: int = 0, breaks: float = 0.0, rates: tuple[float, ...] = (0.3, 0.8, 0.4)
) -> tuple[Floats, Floats]:
    """Lead times and region counts: noise grows with the time itself, and some people go for coffee."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rates, (n, 3)).astype(float)
    times = (BASE + counts @ REGION) * rng.lognormal(-0.02, 0.2, n)
    return times + (rng.random(n) < breaks) * rng.uniform(300, 5000, n), counts


def test_without_lead_times_an_image_takes_the_constant() -> None:
    for model in (CostModel.constant(CLASSES), CostModel.fit([], np.zeros((0, 3)), CLASSES)):
        assert model.seconds([[0, 0, 0], [5, 1, 0]]).tolist() == [30, 30]
        assert model.images == 0
    assert CostModel.constant(CLASSES, 12).seconds([[0, 0, 0]]).tolist() == [12]


@pytest.mark.parametrize("breaks", [0.0, 0.03, 0.08])
@pytest.mark.parametrize("seed", range(5))
def test_costs_are_recovered_in_spite_of_breaks(breaks: float, seed: int) -> None:
    model = CostModel.fit(*session(800, seed, breaks), CLASSES)
    assert model.base == pytest.approx(BASE, rel=0.15)
    assert model.per_region == pytest.approx(REGION, rel=0.15)
    assert model.images == 800


def test_plain_least_squares_would_not_do() -> None:
    times, counts = session(800, 0, 0.05)
    plain = np.linalg.lstsq(np.column_stack([np.ones(800), counts]), times, rcond=None)[0]
    assert plain[0] > 5 * BASE


def test_defects_stay_expensive_where_nearly_all_images_are_clean() -> None:
    times, counts = session(1000, 3, 0.02, (0.02, 0.02, 0.02))
    model = CostModel.fit(times, counts, CLASSES)
    assert model.base == pytest.approx(BASE, rel=0.1)
    assert model.per_region[0] == pytest.approx(REGION[0], rel=0.35)


def test_a_little_data_moves_the_model_a_little() -> None:
    model = CostModel.fit([300.0], [[0, 0, 0]], CLASSES)
    assert 30 < model.seconds([[0, 0, 0]])[0] < 100
    many = CostModel.fit([300.0] * 200, np.zeros((200, 3)), CLASSES)
    assert many.seconds([[0, 0, 0]])[0] == pytest.approx(300, rel=0.05)


def test_a_class_never_seen_costs_what_a_region_costs_on_average() -> None:
    times, counts = session(500)
    model = CostModel.fit(times - counts[:, 2] * REGION[2], counts * [1, 1, 0], CLASSES)
    assert min(model.per_region[:2]) < model.per_region[2] < max(model.per_region[:2])


def test_times_are_never_negative_and_bad_lead_times_are_left_out() -> None:
    counts = np.array([[5, 0, 0]] * 20 + [[0, 0, 0]] * 20)
    model = CostModel.fit([5.0] * 20 + [60.0] * 20, counts, CLASSES)  # more regions, less time
    assert min(model.base, *model.per_region) >= 0
    times, counts = session(100)
    bad = CostModel.fit([*times, np.nan, -5, 0, np.inf], np.vstack([counts, np.ones((4, 3))]), CLASSES)
    assert bad == CostModel.fit(times, counts, CLASSES)
    free = CostModel(CLASSES, 0, (0, 0, 0))
    assert free.seconds([[0, 0, 0]]).tolist() == [1]


def test_the_model_survives_json_and_knows_its_classes() -> None:
    model = CostModel.fit(*session(50), CLASSES)
    assert CostModel.from_json(json.loads(json.dumps(model.to_json()))) == model
    with pytest.raises(ValueError, match="3 classes"):
        model.seconds([[1, 2]])


def test_effort_counts_what_takes_longer_than_usual_and_never_rewards_what_is_quicker() -> None:
    seconds, candidates = np.array([10.0, 20.0, 20.0, 60.0, 1000.0]), np.array([True, True, True, True, False])
    assert effort(seconds, candidates).tolist() == [1, 1, 1, 3, 50]
    assert effort(seconds, np.zeros(5, bool)).min() >= 1
