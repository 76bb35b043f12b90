"""The trial: what its arms see, what its figures say, that nothing leaks, and one small trial from end to end."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate import cli
from curate.data import Defect, Item, Label
from curate.errors import CurateError
from curate.index import sync
from curate.index.dataset import Index
from curate.project import Project
from synth import generate, masks
from synth.trial import arms, batches, design, downscale, verdict
from synth.trial import run as trial
from synth.trial.arms import Arm, TrialRun
from synth.trial.design import TrialRequest
from tests.conftest import Make
from tests.synth import conftest as steel
from tests.synth.answers import judged
from tests.train.conftest import CLASSES, LIBRARY, drawn

BALANCED = Arm("balanced")


def shown(number: int, group: str, *names: str, source: str = "public") -> Item:
    defects = tuple(Defect(name, (1.0, 1.0, 4.0, 4.0), "x") for name in names)
    return Item(f"{number:04d}", Path(), 64, 64, Label("labelled", defects), "train", group, source=source)


def plant(groups: int = 24) -> list[Item]:
    """Three views of each piece: a third of the pieces cracked, some with a hole, the others clean."""
    kinds = {0: ("crack",), 1: (), 2: ("hole",), 3: (), 4: ("crack", "hole"), 5: ()}
    return [shown(10 * g + view, f"piece{g:02d}", *kinds[g % 6]) for g in range(groups) for view in range(3)]


# --- folds and budgets ------------------------------------------------------------------------------------------------


def test_every_group_is_tested_once_and_never_trained_on_in_that_fold() -> None:
    items = plant()
    parts = arms.parts(items, 4, cleans=1000)
    assert sorted(item.id for part in parts for item in part.test) == sorted(item.id for item in items)
    for part in parts:
        assert not {item.group for item in part.train} & {item.group for item in part.test}
        assert {item.id for item in part.train} | {item.id for item in part.test} == {item.id for item in items}
        assert {"crack", "hole"} <= {name for item in part.test for name in item.label.present}


def test_clean_test_images_are_few_and_of_many_groups() -> None:
    for part in arms.parts(plant(), 2, cleans=6):
        clean = [item for item in part.test if item.label.clean]
        assert len(clean) == len({item.group for item in clean}) == 6


def test_a_budget_holds_for_every_class_and_the_smaller_is_in_the_larger() -> None:
    items = [item for item in plant() if len(item.label.present) < 2]
    small, large = (arms.budgeted(items, CLASSES, budget) for budget in (4, 9))
    assert arms.defects(small, CLASSES) == {"crack": 4, "hole": 4}
    assert arms.defects(large, CLASSES) == {"crack": 9, "hole": 9}
    assert {item.id for item in small} < {item.id for item in large}
    assert sum(item.label.clean for item in small) == sum(item.label.clean for item in items)
    for name in CLASSES:  # four defects of pieces of three views: two pieces, not four
        assert len({item.group for item in small if name in item.label.present}) == 2


def test_runs_are_the_grid_and_synthetic_arms_come_gated_and_not() -> None:
    found = arms.arms(("real", "balanced", "paste", "gan"), (0.5, 1))
    assert len(found) == 2 + 2 * 2 * 2
    assert [str(item) for item in found[:4]] == ["real", "balanced", "paste x0.5", "paste x0.5 gated"]
    assert len(set(arms.runs(found, range(4), (5, 10), 3))) == 10 * 4 * 2 * 3


# --- how often --------------------------------------------------------------------------------------------------------


def masses(items: list[Item], chances: np.ndarray) -> dict[tuple[str, str], float]:
    found: Counter[tuple[str, str]] = Counter()
    for item, chance in zip(items, chances / chances.sum(), strict=True):
        found[item.source, "+".join(sorted(item.label.present))] += float(chance)
    return dict(found)


def lot(name: str, count: int) -> list[Item]:
    return [shown(9000 + number, "clean", name, source="synthetic") for number in range(count)]


def test_real_shows_images_as_they_are_and_balanced_every_class_alike() -> None:
    items = [shown(n, str(n), "crack") for n in range(2)] + [shown(n, str(n)) for n in range(10, 40)]
    items += [shown(n, str(n), "hole") for n in range(100, 108)]
    assert arms.repeats(Arm("real"), items, CLASSES).tolist() == [1] * 40
    found = masses(items, arms.repeats(BALANCED, items, CLASSES))
    assert found == pytest.approx({("public", "crack"): 1 / 3, ("public", "hole"): 1 / 3, ("public", ""): 1 / 3})


@pytest.mark.parametrize(("count", "share"), [(2, 1 / 3), (4, 1 / 2), (8, 1 / 2)])
def test_synthetic_defects_take_their_share_of_their_class_and_at_most_half(count: int, share: float) -> None:
    real = [shown(n, str(n), "crack") for n in range(4)] + [shown(n, str(n)) for n in range(10, 40)]
    real += [shown(n, str(n), "hole") for n in range(100, 110)]
    items = [*real, *lot("crack", count)]
    found = masses(items, arms.repeats(Arm("paste", 1), items, CLASSES))
    assert found["synthetic", "crack"] == pytest.approx(share / 3)
    assert found["public", "crack"] == pytest.approx((1 - share) / 3)
    assert found["public", "hole"] == pytest.approx(1 / 3)
    assert found["public", ""] == pytest.approx(1 / 3)


def test_an_arm_without_synthetic_images_is_the_balanced_one() -> None:
    items = plant()
    nothing = arms.repeats(Arm("gan", 1, True), items, CLASSES)
    assert nothing.tolist() == arms.repeats(BALANCED, items, CLASSES).tolist()


def test_sampled_epochs_keep_shares_and_length() -> None:
    items = [shown(n, str(n), "crack") for n in range(3)] + [shown(n, str(n)) for n in range(10, 47)]
    chances = arms.repeats(BALANCED, items, CLASSES)
    found = arms.drawn(items, chances, 400, seed=1)
    counts = Counter(item.id for item in found)
    assert len(found) == 400
    assert all(
        abs(counts[item.id] - 400 * chance / chances.sum()) < 1 for item, chance in zip(items, chances, strict=True)
    )
    assert [item.id for item in found] == [item.id for item in arms.drawn(items, chances, 400, seed=1)]
    assert [item.id for item in found] != [item.id for item in arms.drawn(items, chances, 400, seed=2)]


# --- worth ------------------------------------------------------------------------------------------------------------


def test_the_worth_in_real_images_inverts_the_learning_curve() -> None:
    curve = {5: 0.2, 10: 0.4, 20: 0.5}
    assert arms.worth(curve, 0.4) == (pytest.approx(10), "")
    assert arms.worth(curve, 0.3) == (pytest.approx(math.sqrt(50)), "")
    assert arms.worth(curve, 0.1) == (5, "<")
    assert arms.worth(curve, 0.6) == (20, ">")
    assert arms.worth({5: 0.4, 10: 0.3, 20: 0.4}, 0.4) == (5, "")  # a dip is noise: fewer are as good


# --- figures and words ------------------------------------------------------------------------------------------------


def lines(
    arm: Arm, base: dict[str, float], hits: dict[str, float], groups: int = 12, **worse: Any
) -> verdict.ArmResult:
    table = verdict.table(
        {
            (10, BALANCED): [judged(base, groups, seed) for seed in range(3)],
            (10, arm): [judged(hits, groups, 10 + seed, **worse) for seed in range(3)],
        }
    )
    return next(line for line in table if line.arm == arm)


PASTE = Arm("paste", 1, True)


def test_verdicts_in_words() -> None:
    found = lines(PASTE, {"crack": 0.5, "hole": 0.5}, {"crack": 0.7, "hole": 0.5})
    apart = found.differences["crack"]["iou"]
    assert apart.value == pytest.approx(0.2, abs=0.02)
    assert 0 < apart.low < 0.2 < apart.high
    assert verdict.positive(found.differences) == {"crack": True, "hole": False}
    texts = verdict.words(found)
    assert texts["crack"].startswith("crack: helps: better IoU than balanced real defects alone (+0.")
    assert texts["crack"].endswith("and nothing is worse")
    assert texts["hole"].startswith("hole: 12 groups show no change of its IoU")


def test_harm_to_one_class_refuses_the_arm() -> None:
    found = lines(PASTE, {"crack": 0.5, "hole": 0.5}, {"crack": 0.7, "hole": 0.3})
    assert verdict.positive(found.differences) == {"crack": False, "hole": False}
    assert verdict.words(found)["hole"].startswith("hole: worse IoU than balanced real defects alone (-0.")
    assert verdict.words(found)["crack"].endswith("but worse IoU of hole and Dice of hole: no help")


def test_a_better_iou_that_costs_recall_or_false_alarms_is_no_help() -> None:
    base, better = {"crack": 0.5, "hole": 0.5}, {"crack": 0.7, "hole": 0.5}
    for worse, price in (({"missed": ("hole",)}, "recall of hole"), ({"alarms": 0.9}, "false alarms on clean images")):
        found = lines(PASTE, base, better, **worse)
        assert verdict.above(found.differences["crack"]["iou"])
        assert verdict.positive(found.differences) == {"crack": False, "hole": False}
        assert verdict.words(found)["crack"].endswith(f"but worse {price}: no help")
    assert verdict.words(lines(PASTE, base, base, missed=("hole",)))["hole"].endswith(", worse recall")


def test_few_groups_never_give_a_yes() -> None:
    found = lines(PASTE, {"crack": 0.5, "hole": 0.5}, {"crack": 0.9, "hole": 0.9}, groups=4)
    assert verdict.positive(found.differences) == {"crack": False, "hole": False}
    assert "4 groups are too few to say" in verdict.words(found)["crack"]


def test_figures_are_the_mean_over_seeds() -> None:
    seeds = [judged({"crack": share, "hole": 0.5}, seed=3) for share in (0.2, 0.4, 0.9)]
    found = verdict.averaged(seeds)["crack"]["iou"].values[0]
    alone = [verdict.averaged([seed])["crack"]["iou"].values[0] for seed in seeds]
    assert found == pytest.approx(np.mean(alone))


def test_seeds_that_disagree_widen_the_interval() -> None:
    def apart(shares: tuple[float, ...]) -> float:
        after = [judged({"crack": share, "hole": 0.5}, seed=3) for share in shares]
        before = [judged({"crack": 0.5, "hole": 0.5}, seed=3) for _ in shares]
        table = verdict.table({(10, BALANCED): before, (10, PASTE): after})
        one = next(line for line in table if line.arm == PASTE).differences["crack"]["iou"]
        return one.high - one.low

    assert apart((0.3, 0.6, 0.9)) > 5 * apart((0.6, 0.6, 0.6))


def test_more_false_alarms_on_clean_images_are_reported() -> None:
    hits = {"crack": 0.5, "hole": 0.5}
    table = verdict.table({(10, BALANCED): [judged(hits)], (10, PASTE): [judged(hits, alarms=0.9)]})
    assert verdict.words(table[1])["clean"].startswith("raises more false alarms on clean images (+0.")


def test_worth_is_reported_where_there_is_a_curve() -> None:
    hits = {5: 0.3, 10: 0.5, 20: 0.7}
    runs = {(budget, BALANCED): [judged({"crack": item, "hole": item})] for budget, item in hits.items()}
    runs[5, PASTE] = [judged({"crack": 0.5, "hole": 0.1})]
    found = next(line for line in verdict.table(runs) if line.arm == PASTE)
    middle, low, _, high = found.worth["crack"].translate(str.maketrans("", "", "<>()")).split()
    assert 9 <= float(low) <= float(middle) <= float(high) <= 11
    assert found.worth["hole"] == "<5 (<5 to <5)"
    assert f"worth {found.worth['crack']} real defects" in verdict.words(found)["crack"]


def test_folds_are_pooled_image_by_image() -> None:
    first, two = judged({"crack": 0.2, "hole": 0.2}), judged({"crack": 0.8, "hole": 0.8}, seed=1)
    both = verdict.pooled([first, replace(two, groups=tuple(f"other-{name}" for name in two.groups))])
    assert len(both.ids) == len(first.ids) + len(two.ids)
    assert both.pixels is not None
    assert first.pixels is not None
    assert (both.pixels.counts[: len(first.ids)] == first.pixels.counts).all()
    assert verdict.averaged([both])["crack"]["iou"].values[0] == pytest.approx(0.5, abs=0.05)


def test_the_verdict_of_a_batch_is_that_of_the_next_arm_not_of_the_best() -> None:
    hits = {"crack": 0.5, "hole": 0.5}
    shares = {0.5: 0.9, 1.0: 0.5, 2.0: 0.9}
    runs = {(10, BALANCED): [judged(hits)]}
    runs |= {
        (10, Arm("paste", ratio, True)): [judged({"crack": share, "hole": 0.5})] for ratio, share in shares.items()
    }
    table = verdict.table(runs)
    near = verdict.nearest(table, "paste", ratio=1.2, budget=14)
    assert near is not None
    assert near.arm.ratio == 1
    assert verdict.nearest(table, "gan", 1, 10) is None


# --- smaller ----------------------------------------------------------------------------------------------------------


def test_images_shrink_with_their_masks(tmp_path: Path) -> None:
    from tests.train.conftest import item

    items = [item(tmp_path, number) for number in range(4)]
    found = downscale.shrunk(items, 0.5, tmp_path / "home", 1 << 20, lambda *step: None)
    assert [(item.width, item.height, item.group) for item in found] == [(32, 32, item.group) for item in items]
    for before, after in zip(items, found, strict=True):
        assert after.label.present == before.label.present
        for old, new in zip(before.label.defects, after.label.defects, strict=True):
            assert np.array(new.box) == pytest.approx(np.array(old.box) / 2, abs=1)
    again = downscale.shrunk(items, 0.5, tmp_path / "home", 1 << 20, lambda *step: None)
    assert again == found


# --- lots -------------------------------------------------------------------------------------------------------------


def test_a_defect_that_fits_nowhere_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three clean images are combs of steel, too narrow for any crack."""
    monkeypatch.setattr(masks, "DRAWS", 1)
    real = [item for item in steel.items(tmp_path, 8) if item.label.present]
    clean = [item for item in steel.items(tmp_path, 12) if item.label.clean]
    narrow = [_comb(tmp_path, number) for number in range(2 * len(clean))]
    order = batches.BatchOrder("paste", {}, 48)
    found = batches._scenes(masks.bank_of([*real, *clean, *narrow], (), steel.CLASSES, 1 << 20), "crack", 6, order)
    assert len(found) == len({scene.seed for scene, _ in found}) == 6
    assert not {site.ground.id for _, site in found} & {item.id for item in narrow}
    assert batches._scenes(masks.bank_of([*real, *narrow], (), steel.CLASSES, 1 << 20), "crack", 6, order) == []


def _comb(folder: Path, number: int) -> Item:
    pixels, _, mask = steel.drawn(2, number)
    pixels[:, np.arange(steel.WIDE) % 24 < 14] = 0
    path = folder / f"comb{number}.png"
    Image.fromarray(pixels).save(path)
    return steel.item_of(path, "", mask, f"comb{number}")


# --- a whole trial ----------------------------------------------------------------------------------------------------

TINY = (
    *("model.encoder=resnet18", "model.weights=none", "batch=4", "input.scale=tf"),
    'model.options={"encoder_depth": 3, "decoder_channels": [16, 8, 8]}',
)
SMALL = TrialRequest(
    arms=("balanced", "paste"), budgets=(4,), seeds=2, folds=2, steps=6, size=64, cleans=4, device="cpu", overrides=TINY
)


@pytest.fixture
def works(make: Make, tmp_path: Path) -> Project:
    """48 labelled images of 24 pieces."""
    root = tmp_path / "steel"
    for folder in (root / "images", *(root / "masks" / name for name in CLASSES)):
        folder.mkdir(parents=True)
    for number in range(48):
        pixels, masks = drawn(number)
        file = f"piece{number // 4 * 2 + number % 2:02d}_{number:02d}.png"
        Image.fromarray(pixels).save(root / "images" / file)
        for name, mask in masks.items():
            Image.fromarray(255 * mask).save(root / "masks" / name / file)
    project = make([LIBRARY | {"data": root, "group": r"(piece\d+)_"}], CLASSES)
    sync.run(project)
    return project


def test_a_trial_from_end_to_end(
    works: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = generate.generate(works, "paste", generate.GenerateRequest(count=2, window=64), device="cpu")
    dry = trial.run(works, replace(SMALL, dry_run=True))
    assert (dry.trainings, dry.done, dry.lines) == (6, 0, [])
    assert dry.seconds_each > 0
    assert not (works.work / "synth" / "trials" / "runs").exists()

    told: list[tuple[str, int, int]] = []
    report = trial.run(works, SMALL, lambda *step: told.append(step))
    assert [step for step in told if step[0] == "trial"] == [("trial", 1, 6)] * 6
    assert [str(line.arm) for line in report.lines] == ["balanced", "paste x1", "paste x1 gated"]
    (short,) = (note for note in report.notes if note.startswith("paste x1 gated, 4 real, fold 1: too few synthetic"))
    assert "crack 0 of 4 (asked for 12, made 12)" in short  # six steps teach a segmenter nothing
    written = json.loads(Path(report.files["report"]).read_text())
    assert {row["arm"] for row in written["lines"]} == {"balanced", "paste"}
    with Image.open(report.files["plot"]) as plot:
        assert plot.format == "PNG"
    own = json.loads((batch.folder / "verdict.json").read_text())
    assert set(own["positive"]) == set(CLASSES)
    assert not any(own["positive"].values())  # a screening never opens the door
    _no_leak(works, SMALL)

    # Killed between two trainings: the rest is kept, what is made again is the same.
    runs = sorted((works.work / "synth" / "trials" / "runs").glob("*.npz"))
    lost = np.load(runs[0], allow_pickle=False)
    before = {name: lost[name] for name in lost.files if name != "seconds"}
    runs[0].unlink()
    (works.work / "synth" / "trials" / f".{runs[1].stem}.training").mkdir()  # of one that was killed at its very end
    told.clear()
    again = trial.run(works, SMALL, lambda *step: told.append(step))
    assert told == [("trial", 1, 1)]
    after = np.load(runs[0], allow_pickle=False)
    assert all((after[name] == value).all() for name, value in before.items())
    assert again.table == report.table
    assert trial.run(works, replace(SMALL, dry_run=True)).done == 6
    assert not list((works.work / "synth" / "trials").glob(".*.training"))

    # Killed when it was trained, before it was judged: the network is the trained one, not a new one.
    _as_people_call_it(works, monkeypatch, capsys)
    plot = design.planned(works, SMALL)
    run, real = TrialRun(0, 4, BALANCED, 1), design.real_of(plot, 0, 4)
    once, twice = (trial.trained(plot, run, real).module.state_dict() for _ in range(2))
    assert all((once[name] == twice[name]).all() for name in once)


def _as_people_call_it(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same trial by its command: nothing is left to train, the table and the words are shown."""
    command = "curate synth trial --arm balanced --arm paste --budget 4 --seeds 2 --folds 2 --steps 6 --cleans 4"
    words = [*command.split(), "--device", "cpu", "--project", str(project.folder)]
    monkeypatch.setattr(sys, "argv", [*words, *(part for text in TINY for part in ("--set", text))])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert "6 trainings, 6 done before, about 0 s to go" in out
    assert "paste x1 gated, 4 real:" in out


def _no_leak(project: Project, request: TrialRequest) -> None:
    """Nothing of a fold's test part, and nothing of val or test, is a parent of its synthetic images."""
    plot = design.planned(project, request)
    rows = list(Index(project).rows("split", "group"))
    barred = {(id, group) for id, split, group in rows if split in ("val", "test")}
    used = {item.id for part in plot.parts for item in (*part.train, *part.test)}
    assert barred
    assert not used & {id for id, _ in barred}
    for fold, part in enumerate(plot.parts):
        groups = {item.group for item in part.test} | {group for _, group in barred}
        bank = trial.bank_of(plot, fold, 4)
        order = trial.order_of(plot, TrialRun(fold, 4, Arm("paste", 1), 0))
        parents = {
            group for image in batches.made(plot.home, bank, order, lambda *step: None) for group in image.parents
        }
        assert parents
        assert not groups & {source.group for source in (*bank.donors, *bank.grounds)}
        assert not groups & parents
        leaking = replace(plot, parts=tuple(replace(item, train=(*item.train, item.test[0])) for item in plot.parts))
        with pytest.raises(CurateError, match="are in val or test"):
            trial.bank_of(leaking, fold, 1000)


def test_impossible_trials_are_one_line(works: Project) -> None:
    for request, words in (
        (replace(SMALL, stage="all"), "unknown stage 'all'"),
        (replace(SMALL, arms=("paste",)), "have nothing to be held against: add balanced"),
        (replace(SMALL, arms=("balanced", "pasta")), "unknown arm 'pasta'.*did you mean 'paste'"),
        (replace(SMALL, classes=("dent",)), "unknown class 'dent'"),
        (replace(SMALL, folds=1), "1 of 1 folds cannot be"),
        (replace(SMALL, folds=20), "too few groups for 20 folds"),
        (replace(SMALL, scale=0.0), "scale 0 does not exist"),
        (replace(SMALL, overrides=(*TINY, 'loss=[{"name": "class_balanced"}]')), "corrects the class prior"),
        (replace(SMALL, recipe="simple-cnn", overrides=()), "a trial needs one for segmentation"),
    ):
        with pytest.raises(CurateError, match=words):
            design.planned(works, request)


def test_a_damaged_verdict_is_rewritten_and_a_screening_keeps_a_full_one(tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    firm, screened = {"conclusive": True, "positive": {}}, {"conclusive": False, "positive": {}}
    for text in ("", "[]", "{"):
        file.write_text(text)
        trial._spoken(file, screened)
        assert json.loads(file.read_text()) == screened
    trial._spoken(file, firm)
    trial._spoken(file, screened)
    assert json.loads(file.read_text()) == firm
