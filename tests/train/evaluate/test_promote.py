"""Who may take production's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curate.admin import setup
from curate.errors import CurateError
from curate.project import Project, PromotionConfig
from tests.train.conftest import TINY
from tests.train.evaluate.test_compare import of, with_decisions
from tests.train.evaluate.test_metrics import drawn
from train import store
from train.evaluate import promote
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


def metrics(recall: float = 0.8, alarms: float | None = 0.1, ece: float = 0.05, f1: float = 0.7) -> dict[str, Any]:
    """The metrics of an evaluation, as far as the gate reads them."""

    def entry(value: float | None, silent: bool = False) -> dict[str, Any]:
        return {"value": value, "low": 0.0, "high": 1.0, "silent": silent}

    overall = {"clean_false_alarms": entry(alarms), "ece": entry(ece), "macro_f1": entry(f1)}
    classes = {"crack": {"recall": entry(recall)}, "hole": {"recall": entry(0.0, silent=True)}}
    return {
        "overall": overall,
        "classes": classes,
        "baselines": {"majority": {"said": ["crack"], "macro_f1": entry(0.3)}},
    }


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"recall": 0.2}, "it finds 20% (0% to 100%) of crack; promotion.min_recall is 0.25"),
        (
            {"alarms": 1.0},
            "it raises a false alarm on 100% (0% to 100%) of the clean images; promotion.",
        ),
        ({"alarms": None}, None),
        ({"ece": 0.3}, "its probabilities are off by 0.30 on average; promotion.max_calibration_error is 0.25"),
    ],
)
def test_every_floor_is_named_that_a_model_misses(values: dict[str, Any], reason: str | None) -> None:
    reasons = promote.below_floors(metrics(**values), PromotionConfig())
    assert [reason in found for found in reasons] == [True] if reason else not reasons


def test_a_first_model_must_beat_the_majority() -> None:
    assert not promote.below_baselines(metrics())
    assert promote.below_baselines(metrics(f1=0.3)) == ["its macro F1, 0.30, is no better than always saying crack"]


def test_blind_spots_of_test_are_warnings() -> None:
    few, clean = promote.blind_spots(metrics(alarms=None))
    assert "groups of test show hole" in few
    assert clean == "test has no clean image: how many false alarms it raises is not known"


def test_more_false_alarms_and_less_of_any_class_are_objections() -> None:
    truth = drawn(300)
    good, noisy, blind = (with_decisions(truth, *rates) for rates in ((0.8, 0.1), (0.8, 0.6), (0.3, 0.1)))
    assert promote.worse(of(good, good), metrics()) == []
    assert any("more false alarms" in reason for reason in promote.worse(of(good, noisy), metrics()))
    found = [reason for reason in promote.worse(of(good, blind), metrics()) if "it finds less of" in reason]
    assert len(found) == len(truth.classes), "the rarest and every other"
    assert promote.worse(of(blind, good), metrics()) == []


@pytest.mark.train
@pytest.mark.mongo
def test_a_model_that_learnt_nothing_needs_force_with_its_reason_kept(works: Project) -> None:
    requests = [
        training.TrainRequest(recipe="unet-resnet", overrides=(*TINY, "epochs=1", f"seed={n}")) for n in range(2)
    ]
    first, second = (training.run(works, request).model.key for request in requests)
    with pytest.raises(CurateError, match=r"is not promoted: .*no better than always saying .*--force --why"):
        promote.run(works, first)
    assert store.alias(works, store.PRODUCTION) is None
    with pytest.raises(CurateError, match="--why goes with --force"):
        promote.run(works, first, why="no reason")
    assert "no better than" in str(promote.run(works, first, force=True, why="a trial of the line").forced)
    kept = json.loads((store.models_folder(works) / "production.json").read_text())["forced"][first]
    assert kept["why"] == "a trial of the line"
    assert promote.run(works, first).notes == ["it is production's model already"]
    _forget(works, [id for id, split in _splits(works).items() if split == "test"])
    with pytest.raises(CurateError, match=r"is not promoted: it cannot be evaluated on test .*--force"):
        promote.run(works, second)
    assert "cannot be evaluated" in str(promote.run(works, second, force=True).forced)
    assert store.alias(works, store.PRODUCTION) == second
    assert "cannot be evaluated" in (store.models_folder(works) / "production.json").read_text()


def test_rollback_returns_to_the_last_model_that_passed(tmp_path: Path) -> None:
    project = setup.write(tmp_path / "plant", [{"name": "line", "format": "images", "data": tmp_path}], ("crack",))
    for key in ("good", "forced", "newest"):
        folder = store.models_folder(project) / key
        folder.mkdir(parents=True)
        for name in (store.MANIFEST, store.WEIGHTS):
            (folder / name).write_text("{}")
        store.set_alias(project, store.PRODUCTION, key, overruled="worse" if key == "forced" else None)
    assert store.rollback(project) == "good"
    with pytest.raises(CurateError, match="no earlier model"):
        store.rollback(project)
    old = {"model": "newest", "before": ["forced"], "forced": "it finds less"}  # of an older curate
    (store.models_folder(project) / "production.json").write_text(json.dumps(old))
    assert store.rollback(project) == "forced"


def _splits(project: Project) -> dict[str, str]:
    from curate.index.dataset import Index

    return dict(Index(project).rows("split"))


def _forget(project: Project, ids: list[str]) -> None:
    """These images are labelled no longer."""
    from curate.index.dataset import Index

    Index(project).set({"status": dict.fromkeys(ids, "skipped")})
