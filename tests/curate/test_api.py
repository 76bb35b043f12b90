"""The Python door: `curate.pick` on arrays, and a project's methods against what the command line shows."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import curate
from curate import api
from curate.errors import CurateError
from curate.index import rounds
from curate.project import Project
from curate.strategies import CATALOGUE
from tests.curate.select.test_run import embedded
from tests.fakes import REPOSITORY

HEAVY = ("torch", "fiftyone", "pandas", "numpy", "pydantic", "sklearn", "pymongo")
KINDS = ("crack", "hole", "scratch")


def cloud(rows: int = 240, seed: int = 0) -> tuple[np.ndarray, list[Any]]:
    """Three kinds of vectors, the third of them rare; every tenth row is labelled."""
    rng = np.random.default_rng(seed)
    kind = np.where(np.arange(rows) % 12 == 0, 2, np.arange(rows) // 10 % 2)
    vectors = rng.standard_normal((3, 16))[kind] + 0.3 * rng.standard_normal((rows, 16))
    return vectors, [KINDS[kind[row]] if row % 10 == 0 else None for row in range(rows)]


def test_importing_is_light_and_names_are_all_there() -> None:
    code = f"import curate, sys; print([name for name in {HEAVY} if name in sys.modules], sorted(curate.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {sorted(curate.__all__)}"
    assert curate.pick is api.pick
    assert {"open", "create", "pick", "CurateError"} <= set(dir(curate))
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        curate.fit  # noqa: B018


def test_pick_needs_neither_database_nor_network_libraries() -> None:
    code = "import curate, sys, numpy as np; rows = curate.pick(np.random.rand(40, 8), budget=5, strategy='kcenter')\n"
    code += "print(len(rows), [name for name in ('torch', 'fiftyone', 'pymongo') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5 []"


@pytest.mark.parametrize("strategy", CATALOGUE.names())
def test_every_strategy_picks_unlabelled_rows_of_arrays(strategy: str) -> None:
    vectors, labels = cloud()
    rows = curate.pick(vectors, labels, budget=9, strategy=strategy, seed=3)
    assert len(set(rows.tolist())) == 9
    assert all(labels[row] is None for row in rows)
    assert rows.tolist() == curate.pick(vectors, labels, budget=9, strategy=strategy, seed=3).tolist()


def test_the_rare_kind_is_found() -> None:
    vectors, labels = cloud()
    rows = curate.pick(vectors, labels, budget=10, classes=["scratch"], strategy="rare")
    assert sum(row % 12 == 0 for row in rows.tolist()) >= 8  # 16 of 216


@pytest.mark.parametrize("unlabelled", [None, float("nan"), -1])
def test_labels_may_be_written_in_several_ways(unlabelled: Any) -> None:
    vectors, named = cloud()
    numbers = [unlabelled if name is None else KINDS.index(name) for name in named]
    as_sets = [None if name is None else {name} for name in named]
    expected = curate.pick(vectors, named, budget=8, strategy="margin").tolist()
    assert curate.pick(vectors, np.array(numbers, object), budget=8, strategy="margin").tolist() == expected
    assert curate.pick(vectors, as_sets, budget=8, strategy="margin").tolist() == expected


def test_a_clean_row_is_labelled_and_shows_no_class() -> None:
    pool = curate.select.arrays.pool_of(np.eye(4), [(), None, ("crack", "hole"), "crack"])
    assert pool.classes == ("crack", "hole")
    assert pool.labelled.tolist() == [True, False, True, True]
    assert pool.present.tolist() == [[False, False], [False, False], [True, True], [True, False]]


def test_groups_spread_the_rows_and_near_duplicates_are_left_out() -> None:
    vectors, _ = cloud()
    groups = np.arange(240) // 30
    assert len(set(groups[curate.pick(vectors, groups=groups, budget=8, strategy="random")])) == 8
    double = np.repeat(vectors[:12], 2, axis=0)
    with pytest.warns(UserWarning, match="12 rows instead of 24"):
        assert len(curate.pick(double, budget=24, strategy="random", near=0.9999)) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(curate.pick(double, budget=24, strategy="random", near=0)) == 24


def test_the_caller_s_arrays_are_left_alone() -> None:
    vectors, labels = cloud()
    scores = np.random.default_rng(0).random((240, 3)).astype(np.float32)
    before, given = vectors.copy(), scores.copy()
    curate.pick(vectors, labels, budget=5, strategy="margin", scores={"probability": scores})
    assert np.array_equal(vectors, before)
    assert np.array_equal(scores, given)
    vectors[0], scores[0] = 1, 1  # still writeable


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "margin", "labels": None}, r"needs to know how classes look.*scores=\{'probability'"),
        ({"strategy": "rare", "labels": None}, "needs exemplars of a scarce class. Give labels of more rows"),
        ({"strategy": "margins"}, "did you mean 'margin'"),
        ({"labels": ["crack"]}, "labels hold 1 entries, vectors 240 rows"),
        ({"labels": ["crack", 1, *[None] * 238]}, "labels mix int, str"),
        ({"labels": ["crack"] * 240}, "every row is labelled"),
        ({"vectors": np.zeros(3)}, r"shape \(3,\); allowed: \(rows, dimensions\)"),
        ({"vectors": np.full((240, 2), np.nan)}, "240 rows of vectors hold NaN or infinity, the first is row 0"),
        ({"vectors": [["a"]]}, "vectors are not numbers"),
        ({"classes": ["dent"]}, "unknown class 'dent'; allowed: crack, hole, scratch"),
        (
            {"scores": {"probability": np.zeros((240, 2))}},
            r"allowed: \(240, 3\), a column for each class of the labels",
        ),
        ({"scores": {"likely": np.zeros(240)}}, "unknown score 'likely'"),
        ({"budget": 0}, "budget 0 is too small"),
        ({"options": {"depth": 2}}, "option of strategy portfolio 'depth'"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(given: dict[str, Any], message: str) -> None:
    vectors, labels = cloud()
    with pytest.raises(CurateError, match=message) as caught:
        curate.pick(**({"vectors": vectors, "labels": labels} | given))
    assert "\n" not in str(caught.value)


# --- a project --------------------------------------------------------------------------------------------------------


def test_from_a_folder_of_images_to_a_round(library: Path, tmp_path: Path, server: str) -> None:
    settings: dict[str, Any] = {"format": "mask_folder", "data": library, "group": r"(piece\d+)_"}
    project = curate.create(tmp_path / "projects" / "steel", **settings, quiet=True)
    assert "no index yet. Run: curate index" in project._repr_html_()
    assert project.index().added == 16
    assert curate.create(tmp_path / "projects" / "steel", **settings).index().added == 0
    embedded(project.config)
    chosen = project.select(budget=3, strategy="random", dry_run=True)
    assert not chosen.written
    assert not rounds.every(project.config.work)
    with pytest.raises(CurateError, match="dry_run=True and is not written"):
        project.push(chosen)
    chosen = project.select(budget=3, strategy="random", seed=1)
    assert chosen.written
    assert rounds.latest(project.config.work).picks()[0]["id"] == chosen.ids[0]
    assert list(chosen.picks["rank"]) == [1, 2, 3]
    assert list(chosen.view.values("content_id")) == chosen.ids == list(chosen.picks["id"])
    assert "round 001" in chosen.view.first().tags
    assert project.explain(chosen.ids[0])["picked"]["rank"] == 1
    project.add_class("dent", description="<b>pressed in</b>")
    assert "dent" in project.config.active_classes
    assert project.status()["by_class"]["dent"] == 0
    shown = project._repr_html_()
    assert "steel" in shown
    assert "curate push" in shown or "curate labelstudio up" in shown
    project.dataset.delete()


def test_a_round_shows_its_pictures_with_reasons(indexed: Project, library: Path) -> None:
    project = curate.open(indexed.folder, quiet=True)
    embedded(indexed)
    chosen = project.select(budget=4, strategy="random", per_stratum="equal")
    chosen.result.picks[0]["reason"] = "<script>alert(1)</script>"
    Path(chosen.result.picks[1]["path"]).unlink()
    page = chosen._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "no picture: No such file" in page
    assert "<script>" not in page
    assert "1. random" in page
    assert repr(chosen).startswith("<round 001 of 'plant': 4 images (random 4)")


def test_errors_are_those_of_the_commands(indexed: Project, tmp_path: Path) -> None:
    project = curate.open(indexed.folder, quiet=True)
    with pytest.raises(CurateError, match=r"no project at|unknown project"):
        curate.open(tmp_path / "nowhere")
    with pytest.raises(CurateError, match="Run: curate embed"):
        project.select(budget=5)
    with pytest.raises(CurateError, match="allowed: a number above 0, 'equal' or 'proportional'"):
        project.select(budget=5, per_stratum=0)
    with pytest.raises(CurateError, match="unknown encoder 'denser'"):
        project.embed("denser")
    with pytest.raises(CurateError, match=r"unknown option of encoder texture 'sizes'"):
        project.embed("texture", options={"sizes": 3})


# --- docs/api.md ------------------------------------------------------------------------------------------------------

DOCS = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_example_on_arrays_runs() -> None:
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "default_rng" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(names["rows"]) == 20


def test_the_query_for_modal_returns_rows_of_the_pool() -> None:
    """What modAL gives a query strategy: a learner with what it knows, and the pool; modAL itself is not installed."""
    (block,) = re.findall(r"```python\n(def query.*?)```", DOCS, re.DOTALL)
    names: dict[str, Any] = {"np": np, "curate": curate}
    exec(block, names)
    vectors, labels = cloud()
    known = [row for row, label in enumerate(labels) if label]
    learner = SimpleNamespace(X_training=vectors[known], y_training=np.array([labels[row] for row in known]))
    rows = names["query"](learner, np.delete(vectors, known, axis=0), 7, strategy="margin")
    assert len(set(rows.tolist())) == 7
    assert max(rows) < 240 - len(known)


def test_every_method_is_documented_with_its_parameters() -> None:
    table = DOCS.split("| method | returns |")[1].split("\n\n")[0]
    for name in [name for name in vars(api.OpenProject) if not name.startswith("_")]:
        value = vars(api.OpenProject)[name]
        if not callable(value):
            assert f"`{name}`" in table or name in ("folder", "quiet"), name
            continue
        parameters = [key for key in inspect.signature(value).parameters if key != "self"]
        assert f"{name}({', '.join(parameters)})" in table, name
        documented = (inspect.getdoc(value) or "").partition("Args:")[2]
        assert not [key for key in parameters if f"{key}:" not in documented], name


def test_names_stand_in_the_table() -> None:
    assert all(f"`curate.{name}" in DOCS for name in curate.__all__ if name != "__version__")
