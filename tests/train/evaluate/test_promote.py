"""Who may take production's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curate.admin import setup
from curate.errors import CurateError
from curate.project import Project
from tests.train.conftest import TINY
from tests.train.evaluate.test_compare import of, with_decisions
from tests.train.evaluate.test_metrics import drawn
from train import store
from train.evaluate import promote
from train.evaluate import run as evaluating
from train.fit import run as training


def test_less_recall_of_the_rarest_class_is_an_objection_more_is_none() -> None:
    truth = drawn(300)
    weak, strong = with_decisions(truth, 0.5, 0.1), with_decisions(truth, 0.8, 0.1)
    objection = promote.objection(of(strong, weak))
    assert objection is not None
    counts = dict(zip(truth.classes, truth.present.sum(axis=0), strict=True))
    assert f"'{min(counts, key=lambda name: counts[name])}'" in objection
    assert promote.objection(of(weak, strong)) is None
    assert promote.objection(of(weak, weak)) is None


def test_the_first_is_free_and_what_cannot_be_compared_needs_force(works: Project) -> None:
    requests = [
        training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1", f"seed={n}")) for n in range(2)
    ]
    first, second = (training.run(works, request).model.key for request in requests)
    assert promote.run(works, first).notes
    assert promote.run(works, first).key == first
    result = promote.run(works, second, force=True)
    assert store.alias(works, store.PRODUCTION) == second
    assert result.notes or result.forced
    test = [id for id, split in _splits(works).items() if split == "test"]
    _forget(works, test)
    with pytest.raises(CurateError, match=r"is not promoted: it cannot be compared .*--force"):
        promote.run(works, first)
    assert store.alias(works, store.PRODUCTION) == second
    assert "cannot be compared" in str(promote.run(works, first, force=True).forced)
    assert "cannot be compared" in (store.models_folder(works) / "production.json").read_text()


@pytest.mark.parametrize(
    ("alarms", "warning"),
    [
        (0.97, "it raises a false alarm on 97% of the clean images of test"),
        (None, "test has no clean image"),
        (0.1, None),
    ],
)
def test_what_a_promotion_does_not_ask_is_reported(tmp_path: Path, alarms: float | None, warning: str | None) -> None:
    project = setup.write(tmp_path / "plant", [{"name": "line", "format": "images", "data": tmp_path}], ("crack",))
    assert "was not evaluated on test" in promote.warnings(project, "m")[0]
    folder = project.work / "evaluations" / "m" / "test-1"
    folder.mkdir(parents=True)
    about = {"model": "m", "split": "test", "made": "2026-01-01", "notes": []}
    (folder / evaluating.MANIFEST).write_text(json.dumps(about))
    (folder / evaluating.METRICS_FILE).write_text(json.dumps({"overall": {"clean_false_alarms": {"value": alarms}}}))
    warnings = promote.warnings(project, "m")
    assert [warning in line for line in warnings] == [True] if warning else not warnings


def _splits(project: Project) -> dict[str, str]:
    from curate.index.dataset import Index

    return dict(Index(project).rows("split"))


def _forget(project: Project, ids: list[str]) -> None:
    """These images are labelled no longer."""
    from curate.index.dataset import Index

    Index(project).set({"status": dict.fromkeys(ids, "skipped")})
