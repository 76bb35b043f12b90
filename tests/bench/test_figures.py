"""The plans of `tests/bench/figures` are runnable, and what they add to a model's figures is right."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tests.bench.figures import results
from tests.bench.figures.plans import DATA, LOOKED_INTO, Plan, plans
from train import recipe


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("data", DATA)
def test_every_plan_is_a_recipe_that_leaves_the_prior_alone(data: str, full: bool) -> None:
    found = plans(data, [], [0])
    assert len({plan.name for plan in found}) == len(found) >= 7
    for plan in found:
        made = recipe.load(plan.recipe, plan.overrides("/weights.pth", full))
        assert made.model.weights == ("/weights.pth" if plan.start == "imagenet" else "none")
        assert not recipe.prior_corrections(made)


def test_small_plans_are_smaller_than_the_recipes_that_ship() -> None:
    for plan in plans("tile", [], [0]):
        small, whole = (recipe.load(plan.recipe, plan.overrides("w", full)) for full in (False, True))
        assert small.input.height * small.input.width < whole.input.height * whole.input.width
        assert sum(part.epochs for part in small.parts) < sum(part.epochs for part in whole.parts)


def test_seeds_and_recipes_choose_runs() -> None:
    found = plans("tile", [LOOKED_INTO.recipe], [3, 4])
    assert Plan("tile", LOOKED_INTO.recipe, LOOKED_INTO.start, 3) in found
    assert [plan.seed for plan in found] == [3, 3, 4, 4]


@pytest.mark.slow
def test_positives_leave_clean_images_out(tmp_path: Path) -> None:
    rows = {
        "group": ["a", "a", "b", "c", "d"],
        "present": [["crack"], ["crack"], ["hole"], [], []],
        "decided": [["crack"], [], ["hole"], [], ["hole"]],
    }
    texts = pa.list_(pa.string())
    table = pa.table(rows, pa.schema([("group", pa.string()), ("present", texts), ("decided", texts)]))
    parquet.write_table(table, tmp_path / "per_image.parquet")
    found = results.positives(tmp_path)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["macro_recall"]["value"] == pytest.approx((1 / 2 + 1) / 2)
    assert (found["accuracy"]["n"], found["accuracy"]["groups"]) == (3, 2)
