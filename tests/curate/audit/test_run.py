"""Estimates from audit picks: by hand, over several rounds, against a known truth; and the advice from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.audit import estimates
from curate.audit import run as auditing
from curate.audit.run import AuditFacts, AuditRound, ImageHistory
from curate.data import Label
from curate.errors import CurateError
from curate.index import app_edits, rounds, sync
from curate.index.dataset import Index
from curate.labels.log import Entry, LabelLog, Writer
from curate.project import Project
from tests import fakes
from tests.conftest import Make
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - `run` is a fixture

CLASSES = ("crack", "hole")
FIRST, SECOND, LATER = "2090-01-01T00:00:00Z", "2090-02-01T00:00:00Z", "2090-03-01T00:00:00Z"
DAY = "2090-01-02T00:00:00Z"  # after the first round


def row(id: str, chance: float | None, slot: str = "audit", stratum: str = "", **more: Any) -> dict[str, Any]:
    entry = {"id": id, "path": f"{id}.png", "slot": slot, "score": 1.0, "reason": "", "propensity": chance}
    return entry | {"group": id, "stratum": stratum, "rank": 1, "seconds": 1.0, "predicted": None} | more


def manifest(number: int, at: str, strata: Mapping[str, int], by: str | None = None) -> dict[str, Any]:
    return {"round": number, "made_at": at, "strata": dict(strata), "predicted_by": by, "pushed": at}


def labelled(*names: str, at: str = DAY) -> ImageHistory:
    return ImageHistory("labelled", frozenset(names), "", at)


def simple(picks: int, hits: int, population: int = 10_000) -> AuditFacts:
    """One round, all of it labelled: so many audit picks, so many of them with a crack."""
    rows = [row(f"p{i}", picks / population) for i in range(picks)]
    known = {f"p{i}": labelled(*(["crack"] if i < hits else [])) for i in range(picks)}
    return AuditFacts([AuditRound(manifest(1, FIRST, {"": population}), rows)], known)


def of(report: auditing.AuditReport, name: str | None) -> auditing.ClassEstimates:
    return next(estimate for estimate in report.estimates if estimate.name == name)


# --- by hand ----------------------------------------------------------------------------------------------------------


def two_strata() -> AuditFacts:
    """A: 4 of 40 images drawn, B: 5 of 10. The chance differs, so a plain mean of the picks would be wrong."""
    rows = [row(f"a{i}", 0.1, stratum="A", predicted=["crack"] if i < 1 else []) for i in range(4)]
    rows += [row(f"b{i}", 0.5, stratum="B", predicted=["crack"] if i in (0, 4) else []) for i in range(5)]
    known = {"a0": labelled("crack"), "b0": labelled("crack"), "b1": labelled("crack", "hole")}
    known = {pick["id"]: known.get(pick["id"], labelled()) for pick in rows}
    return AuditFacts([AuditRound(manifest(1, FIRST, {"A": 40, "B": 10}, "model"), rows)], known)


def test_figures_by_hand() -> None:
    report = auditing.survey(two_strata(), CLASSES)
    crack, hole, whole = of(report, "crack"), of(report, "hole"), of(report, None)
    assert (crack.shown, hole.shown, whole.shown) == (3, 1, 3)
    assert crack.prevalence.estimate == pytest.approx((40 * 1 / 4 + 10 * 2 / 5) / 50)
    assert hole.prevalence.estimate == pytest.approx(10 * 1 / 5 / 50)
    assert whole.prevalence.estimate == crack.prevalence.estimate
    assert crack.recall is not None
    assert crack.false_alarms is not None
    assert crack.recall.estimate == pytest.approx((10 + 2) / (10 + 2 + 2))
    assert crack.false_alarms.estimate == pytest.approx(2 / (30 + 6))
    assert hole.recall is not None
    assert hole.recall.estimate == 0
    assert (report.population, report.drawn, report.labelled, report.left_out) == (50, 9, 9, {})


def test_one_round_is_as_the_plain_estimate() -> None:
    draw = two_strata().draws[0]
    y = [1, 0, 0, 0, 1, 1, 0, 0, 0]
    pi, strata = [r["propensity"] for r in draw.picks], [r["stratum"] for r in draw.picks]
    expected = estimates.prevalence(y, pi, strata, {"A": 40, "B": 10}, 0.9)
    report = of(auditing.survey(two_strata(), CLASSES, confidence=0.9), "crack").prevalence
    assert report == pytest.approx(expected)


def test_a_round_without_predictions_has_no_recall() -> None:
    report = of(auditing.survey(simple(50, 10), CLASSES), "crack")
    assert report.recall is None
    assert report.false_alarms is None


def test_a_class_that_the_predictions_do_not_know_has_no_recall() -> None:
    facts = two_strata()
    draw = AuditRound(facts.draws[0].manifest, facts.draws[0].picks, frozenset({"crack"}))
    report = auditing.survey(AuditFacts([draw], facts.images), CLASSES)
    assert of(report, "hole").recall is None
    assert of(report, "crack").recall is not None


def test_active_picks_do_not_count_as_a_sample_but_as_what_is_known() -> None:
    facts = simple(100, 1, 1000)
    rows = [*facts.draws[0].picks, *(row(f"active{i}", None, "rare") for i in range(50))]
    known = {**facts.images, **{f"active{i}": labelled("crack") for i in range(50)}}
    report = auditing.survey(AuditFacts([AuditRound(facts.draws[0].manifest, rows)], known), CLASSES)
    share = of(report, "crack").prevalence
    assert report.labelled == 100
    assert share.estimate == pytest.approx(51 / 1000)  # so many are known: the audit's 1 % cannot be
    assert share.low == pytest.approx(51 / 1000)


def test_picks_without_a_label_are_left_out_and_told() -> None:
    facts = simple(20, 4)
    states = {"p16": "waiting", "p17": "waiting", "p18": "skipped", "p19": "disputed"}
    known = {id: image._replace(status=states.get(id, image.status)) for id, image in facts.images.items()}
    del known["p15"]
    report = auditing.survey(AuditFacts(facts.draws, known), CLASSES)
    assert report.left_out == {"waiting": 2, "skipped": 1, "disputed": 1, "gone": 1}
    assert of(report, "crack").prevalence.estimate == pytest.approx(4 / 15)
    (note,) = report.notes
    assert note.startswith("5 of 20 audit picks are left out (2 not labelled yet, ")
    assert "more than 10 %" in note
    few = AuditFacts(facts.draws, {**facts.images, "p19": ImageHistory("skipped")})
    assert auditing.survey(few, CLASSES).notes == ["1 of 20 audit picks are left out (1 skipped)"]


def test_a_stratum_without_a_labelled_pick_is_reported_and_widens_the_interval() -> None:
    facts = two_strata()
    known = {id: image if id[0] == "a" else ImageHistory("waiting") for id, image in facts.images.items()}
    report = auditing.survey(AuditFacts(facts.draws, known), CLASSES)
    assert any("B (10)" in note for note in report.notes)
    assert of(report, None).prevalence.high - of(auditing.survey(facts, CLASSES), None).prevalence.high > 0.1


def test_all_takes_rounds_drawn_at_random_as_a_whole_and_no_leftovers() -> None:
    plain = AuditRound(
        manifest(1, FIRST, {"A": 30, "B": 20}), [row(f"r{i}", 0.2, "random", "AB"[i % 2]) for i in range(10)]
    )
    spare = [row(f"s{i}", 0.5, "spare") for i in range(5)]
    mixed = AuditRound(manifest(2, SECOND, {"": 50}), [row("x", None, "rare"), *spare])
    known = {pick["id"]: labelled() for draw in (plain, mixed) for pick in draw.picks}
    facts = AuditFacts([plain, mixed], {**known, "r0": labelled("crack")})
    report = auditing.survey(facts, CLASSES, every=True)
    assert report.rounds == [1]
    assert of(report, "crack").prevalence.estimate == pytest.approx(0.1)
    with pytest.raises(CurateError, match=r"no round has audit picks.*--all"):
        auditing.survey(facts, CLASSES)


def test_shelves_of_unlike_chance_are_urns_of_their_own() -> None:
    rows = [row(f"c{i}", 0.5, "foreground_random") for i in range(10)]
    rows += [row(f"n{i}", 0.1, "foreground_random") for i in range(8)]
    known = {pick["id"]: labelled(*(["crack"] if pick["id"][0] == "c" else [])) for pick in rows}
    report = auditing.survey(AuditFacts([AuditRound(manifest(1, FIRST, {"": 100}), rows)], known), CLASSES, every=True)
    assert of(report, "crack").prevalence.estimate == pytest.approx(20 / 100)
    assert report.population == 100


def urns() -> AuditFacts:
    """A stratum of 100 images: 3 of its most suspicious ten were drawn and 7 of the others; B was drawn evenly."""
    tenth = [row(f"t{i}", 0.3, stratum="A", urn="A: its most suspicious tenth", extra=i > 0) for i in range(3)]
    others = [row(f"o{i}", 7 / 90, stratum="A", urn="A: the others", extra=False) for i in range(7)]
    even = [row(f"b{i}", 0.1, stratum="B", urn=None, extra=None) for i in range(2)]
    known = {pick["id"]: labelled() for pick in (*tenth, *others, *even)}
    known |= {id: labelled("crack") for id in ("t0", "t1", "o0")}
    return AuditFacts([AuditRound(manifest(1, FIRST, {"A": 100, "B": 20, "C": 5}), [*tenth, *others, *even])], known)


def test_urns_count_with_the_chances_that_their_images_had() -> None:
    facts = urns()
    report = auditing.survey(facts, CLASSES)
    assert report.population == 125
    share = of(report, "crack").prevalence
    assert share.estimate == pytest.approx((10 * 2 / 3 + 90 * 1 / 7) / 120)
    assert any("images of C (5)" in note for note in report.notes)
    for id in ("t0", "t1", "t2"):
        facts.images[id] = ImageHistory("waiting")  # type: ignore[index]
    assert any("A: its most suspicious tenth (10)" in note for note in auditing.survey(facts, CLASSES).notes)


def test_what_no_audit_has_seen_is_judged_by_picks_of_the_natural_mix() -> None:
    result = auditing.check(urns())
    assert result.unseen is not None
    assert result.unseen.n == 10  # t1 and t2 are left out
    assert result.unseen.estimate == pytest.approx(2 / 10)


# --- several rounds ---------------------------------------------------------------------------------------------------


def two_rounds(size_of_second: int = 900) -> AuditFacts:
    """1000 images; round 1: 50 audit and 50 active picks, all labelled; round 2 audits what was left."""
    first = [*(row(f"p{i}", 0.05) for i in range(50)), *(row(f"q{i}", None, "rare") for i in range(50))]
    second = [row(f"z{i}", 60 / size_of_second) for i in range(60)]
    known = {pick["id"]: labelled("crack") if pick["id"][0] == "q" else labelled() for pick in first}
    known |= {pick["id"]: labelled(at=LATER) for pick in second}
    known |= {id: labelled("crack", at=known[id].at) for id in ("p0", "p1", "p2", "p3", "z0", "z1")}
    draws = [
        AuditRound(manifest(1, FIRST, {"": 1000}), first),
        AuditRound(manifest(2, SECOND, {"": size_of_second}), second),
    ]
    return AuditFacts(draws, known)


def test_rounds_of_one_population_are_combined() -> None:
    facts = two_rounds()
    report = auditing.survey(facts, CLASSES)
    y1, y2 = [1] * 4 + [0] * 46, [1] * 2 + [0] * 58
    parts = [
        estimates.AuditDraw(y1, [0.05] * 50, {"": 1000}, [""] * 50),
        estimates.AuditDraw(y2, [60 / 900] * 60, {"": 900}, [""] * 60, labelled=100, defective=54),
    ]
    assert report.prevalence_rounds == [1, 2]
    assert of(report, "crack").prevalence == pytest.approx(estimates.combined(parts, labelled=160, defective=56))
    assert report.notes == []


def test_images_out_of_reach_widen_the_interval() -> None:
    report, whole = auditing.survey(two_rounds(880), CLASSES), auditing.survey(two_rounds(), CLASSES)
    assert report.prevalence_rounds == [1, 2]
    assert any("20 images (2.0 %) could not be drawn by a later audit" in note for note in report.notes)
    assert of(report, "crack").prevalence.high > of(whole, "crack").prevalence.high


@pytest.mark.parametrize("size", [500, 5000])
def test_another_population_leaves_the_newest_audit_alone(size: int) -> None:
    report = auditing.survey(two_rounds(size), CLASSES)
    assert (report.rounds, report.prevalence_rounds, report.population) == ([1, 2], [2], size)
    assert of(report, "crack").prevalence.estimate == pytest.approx(2 / 60)
    assert any(note.startswith("round 001: drawn from another population") for note in report.notes)


def test_images_that_came_between_two_rounds_are_another_population() -> None:
    facts = two_rounds()
    report = auditing.survey(AuditFacts(facts.draws, facts.images, ["2090-01-05T00:00:00Z"]), CLASSES)
    assert report.prevalence_rounds == [2]
    before = auditing.survey(AuditFacts(facts.draws, facts.images, ["2089-01-05T00:00:00Z", LATER]), CLASSES)
    assert before.prevalence_rounds == [1, 2]


def test_what_was_labelled_of_a_round_s_population() -> None:
    draws = two_rounds().draws
    cases = {
        "seen in the App": (ImageHistory("labelled", frozenset(), "", DAY), 1),
        "labelled before": (ImageHistory("labelled", frozenset(), "", "2089-01-01T00:00:00Z"), 0),
        "came labelled": (ImageHistory("labelled", frozenset(), "", DAY, imported=True), 0),
        "came later": (ImageHistory("labelled", frozenset(), DAY, DAY), 0),
        "skipped": (ImageHistory("skipped", frozenset(), "", DAY), 0),
        "not in the log yet": (ImageHistory("labelled"), 1),
        "z5": (ImageHistory("labelled", frozenset(), "", LATER, imported=True), 1),  # picked later: it was there
    }
    for id, (known, count) in cases.items():
        assert len(auditing.samples(AuditFacts(draws, {id: known, "p0": labelled()}))[0].since) == 1 + count, id


def test_picks_labelled_after_the_next_draw_waited_in_the_queue_meanwhile() -> None:
    """They were not in the second population, and are known today: nothing is out of reach."""
    facts = two_rounds()
    late = {id: facts.images[id]._replace(at=LATER) for id in ("p0", "p9", "q0", "q1")}
    report = AuditFacts(facts.draws, {**facts.images, **late})
    assert len(auditing.samples(report)[1].since) == 60
    assert auditing.survey(report, CLASSES) == auditing.survey(facts, CLASSES)


def test_errors_pool_rounds_and_keep_their_chances_apart() -> None:
    facts = two_strata()
    more = [row(f"c{i}", 0.2, stratum="A", predicted=["crack"] * (i % 2)) for i in range(8)]
    known = {**facts.images, **{f"c{i}": labelled("crack", at=LATER) for i in range(8)}}
    draws = [*facts.draws, AuditRound(manifest(2, SECOND, {"A": 40}, "model"), more)]
    report = auditing.survey(AuditFacts(draws, known), CLASSES)
    recall = of(report, "crack").recall
    assert recall is not None
    assert recall.estimate == pytest.approx((12 + 4 * 5) / (14 + 8 * 5))
    assert any("pooled over round 001, round 002" in note for note in report.notes)


# --- against a known truth --------------------------------------------------------------------------------------------


def simulated(rng: np.random.Generator) -> tuple[AuditFacts, float, float]:
    """Two strata of unlike prevalence and a model that finds half of the defects; its favourites are picked as well."""
    stratum = np.repeat(["A", "B"], [1500, 500])
    y = rng.random(2000) < np.where(stratum == "A", 0.05, 0.2)
    flagged = np.where(y, rng.random(2000) < 0.6, rng.random(2000) < 0.03)
    audit = np.concatenate(
        [rng.choice(np.flatnonzero(stratum == s), n, replace=False) for s, n in (("A", 90), ("B", 90))]
    )
    active = np.setdiff1d(np.flatnonzero(flagged), audit)[:100]
    chance = {"A": 90 / 1500, "B": 90 / 500}
    stated = [["crack"] if flag else [] for flag in flagged]
    rows = [row(str(i), chance[stratum[i]], stratum=str(stratum[i]), predicted=stated[i]) for i in audit]
    rows += [row(str(i), None, "rare", str(stratum[i]), predicted=stated[i]) for i in active]
    known = {str(i): labelled(*(["crack"] if y[i] else [])) for i in (*audit, *active)}
    facts = AuditFacts([AuditRound(manifest(1, FIRST, {"A": 1500, "B": 500}, "model"), rows)], known)
    return facts, float(y.mean()), float(flagged[y].mean())


@pytest.mark.slow
def test_the_intervals_cover_the_truth_and_the_share_among_all_picks_does_not() -> None:
    rng, runs = np.random.default_rng(5), 150
    covered, naive = np.zeros(2), 0
    for _ in range(runs):
        facts, share, recall = simulated(rng)
        crack = of(auditing.survey(facts, CLASSES, ["crack"]), "crack")
        assert crack.recall is not None
        covered += [
            low <= true <= high for true, (_, low, high, *_) in ((share, crack.prevalence), (recall, crack.recall))
        ]
        hits, n = sum(bool(image.present) for image in facts.images.values()), len(facts.images)
        plain = estimates.prevalence([1] * hits + [0] * (n - hits), [n / 2000] * n)
        naive += plain.low <= share <= plain.high
    assert (covered >= 0.93 * runs).all(), covered
    assert naive == 0


@pytest.mark.slow
def test_several_rounds_cover_the_truth_too() -> None:
    """The second round audits what the first one left: poorer in defects, since the model took many."""
    rng, runs, covered, estimated = np.random.default_rng(6), 150, 0, []
    for _ in range(runs):
        y = rng.random(1000) < 0.1
        likely = rng.permutation(np.flatnonzero(y))[:30]
        first = rng.choice(1000, 60, replace=False)
        left = np.setdiff1d(np.arange(1000), np.concatenate([first, likely]))
        second = rng.choice(left, 60, replace=False)
        active = [row(str(i), None, "rare") for i in np.setdiff1d(likely, first)]
        draws = [
            AuditRound(manifest(1, FIRST, {"": 1000}), [*(row(str(i), 0.06) for i in first), *active]),
            AuditRound(manifest(2, SECOND, {"": len(left)}), [row(str(i), 60 / len(left)) for i in second]),
        ]
        days = dict.fromkeys((*first, *likely), DAY) | dict.fromkeys(second, LATER)
        known = {str(i): labelled(*(["crack"] if y[i] else []), at=at) for i, at in days.items()}
        report = auditing.survey(AuditFacts(draws, known), CLASSES)
        assert report.prevalence_rounds == [1, 2]
        share = of(report, None).prevalence
        covered += share.low <= y.mean() <= share.high
        estimated.append(share.estimate - y.mean())
    assert covered >= 0.93 * runs
    assert abs(np.mean(estimated)) < 0.005


# --- stop-check -------------------------------------------------------------------------------------------------------

STEADY = (0.992, 0.995, 0.999)


@pytest.mark.parametrize(
    ("facts", "kappas", "verdict", "stated"),
    [
        (simple(400, 0), STEADY, "stop", "at most"),
        (simple(400, 60), STEADY, "go on", "at least"),
        (simple(400, 0), (0.7, 0.8, 0.9), "go on", "still change"),
        (simple(40, 0), STEADY, "too little data", "it takes about 299 audit picks"),
        (simple(400, 0), (), "too little data", "It takes 3 comparisons"),
        (
            AuditFacts([AuditRound(manifest(1, FIRST, {"": 9}), [row("a", 0.5)])], {}),
            STEADY,
            "too little data",
            "No audit pick",
        ),
        (
            AuditFacts([AuditRound(manifest(1, FIRST, {"": 9}), [row("a", None, "rare")])], {}),
            STEADY,
            "too little data",
            "299",
        ),
    ],
)
def test_clear_cut_advice(facts: AuditFacts, kappas: Sequence[float], verdict: str, stated: str) -> None:
    report = auditing.check(facts, kappas)
    assert report.advice.verdict == verdict
    assert any(stated in reason for reason in report.advice.reasons), report.advice.reasons
    assert json.dumps(report.to_json(), allow_nan=False)


def test_what_was_labelled_since_the_draw_is_no_longer_left() -> None:
    """Active picks have found all 40 defects that the audit estimates: almost none remain."""
    facts = simple(400, 8, 2000)
    rows = [*facts.draws[0].picks, *(row(f"q{i}", None, "rare") for i in range(32))]
    known = {**facts.images, **{f"q{i}": labelled("crack") for i in range(32)}}
    before, after = (
        auditing.check(facts),
        auditing.check(AuditFacts([AuditRound(facts.draws[0].manifest, rows)], known)),
    )
    assert before.missed is not None
    assert after.missed is not None
    assert before.missed.estimate == pytest.approx(32)
    assert after.missed.estimate == pytest.approx(0)
    assert (before.remaining, after.remaining) == (1600, 1568)


def test_a_round_that_people_have_just_begun_does_not_hide_the_last_one() -> None:
    facts = two_rounds()
    known = {id: image for id, image in facts.images.items() if id[0] != "z" or id in ("z7", "z8")}
    assert auditing.check(facts).round == 2
    assert auditing.check(AuditFacts(facts.draws, known)).round == 1


def predicted(work: Path, number: int, values: Any, names: Sequence[str] = CLASSES) -> None:
    columns: dict[str, Any] = {name: np.asarray(values, np.float32)[:, place] for place, name in enumerate(names)}
    ids = {"id": [f"i{row}" for row in range(len(values))]}
    rounds.write(
        work, manifest(number, f"2090-01-{number:02d}T00:00:00Z", {}, "model"), [row("i0", 0.5)], ids | columns
    )


def test_predictions_settle_by_the_class_that_moves_most(plant: Project) -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((500, 2))
    values[:100, 0] = values[90:100, 1] = 0.9
    predicted(plant.work, 1, values)
    predicted(plant.work, 2, values)  # nothing was learnt in between: no sign of rest
    moved = np.abs(values - rng.random((500, 2)) * 0.01)
    moved[90:93, 1] = 0.1
    predicted(plant.work, 3, moved)
    (kappa,) = auditing.settling(plant, {})
    assert 0.7 < kappa < 0.9
    done = {f"i{row}": labelled() for row in range(90, 93)}  # now labelled: whoever learnt from them must not be asked
    assert auditing.settling(plant, done) == [1.0]


def test_a_renamed_class_is_followed(plant: Project) -> None:
    predicted(plant.work, 1, [[0.9, 0.1]] * 10, ("scratch", "hole"))
    predicted(plant.work, 3, [[0.1, 0.8]] * 10, ("hole", "crack"))
    with Writer(LabelLog(plant.work / "labels").segments) as log:
        log.append({"event": "rename", "names": {"scratch": "crack"}, "who": "ann", "at": "2090-01-02T00:00:00Z"})
    assert auditing.settling(plant, {}) == [1.0]


# --- with an index ----------------------------------------------------------------------------------------------------


@pytest.fixture
def audited(make: Make, tmp_path: Path) -> Project:
    """Thirty production images of one line, and round 1: twenty audit picks and five of a model's choice."""
    for number in range(30):
        fakes.save_image(tmp_path / "mill" / f"{number:02d}.png", 8, 8, seed=number)
    project = make([{"name": "mill", "format": "images", "kind": "production", "data": tmp_path / "mill"}])
    sync.run(project)
    ids = names(project)
    rows = [row(id, 20 / 30, predicted=["crack"] if i < 3 else []) for i, id in enumerate(ids[:20])]
    rows += [row(id, None, "rare", predicted=["crack"]) for id in ids[20:25]]
    rounds.write(project.work, manifest(1, FIRST, {"": 30}, "probe"), rows)
    rounds.show(Index(project))
    return project


def names(project: Project) -> list[str]:
    """Content ids in the order of the file names."""
    return [id for id, path in sorted(Index(project).rows("filepath"), key=lambda pair: str(pair[1]))]


def label(project: Project, labels: Mapping[str, Label], at: str = DAY) -> None:
    index = Index(project)
    log = LabelLog(project.work / "labels")
    for id, label in labels.items():
        log.append(Entry(id, label, "app", "ann", at))
    log.flush()
    app_edits.show(index, log, list(labels), project.class_names)
    log.close()


def answer(project: Project, cracks: int = 6) -> None:
    ids = names(project)[:20]
    label(project, {id: Label("labelled", (), ("crack",) if i < cracks else ()) for i, id in enumerate(ids)})


def test_labels_come_from_the_index(run: Run, audited: Project) -> None:  # noqa: F811
    answer(audited)
    report = ok(run("audit", "-p", audited.folder, "--json"))
    keys = {"confidence", "rounds", "prevalence_rounds", "population", "drawn", "labelled", "left_out", "predicted_by"}
    assert report.keys() == keys | {"any", "classes", "notes"}
    assert list(report["classes"]) == ["crack", "hole"]
    crack = report["classes"]["crack"]
    assert crack["shown"] == 6
    assert crack["prevalence"]["estimate"] == pytest.approx(6 / 20)
    assert crack["recall"]["estimate"] == pytest.approx(3 / 6)
    assert crack["false_alarms"]["estimate"] == 0
    assert crack["recall"].keys() == {"estimate", "low", "high", "n", "effective_n"}
    hole = report["classes"]["hole"]["recall"]
    assert (hole["estimate"], hole["low"], hole["high"], hole["n"]) == (None, 0, 1, 0)
    only = ok(run("audit", "-p", audited.folder, "--json", "--class", "hole", "--confidence", "0.8"))
    assert (list(only["classes"]), only["any"], only["confidence"]) == (["hole"], None, 0.8)


def test_edits_in_the_app_count_before_they_are_in_the_log(run: Run, audited: Project) -> None:  # noqa: F811
    answer(audited, cracks=1)
    index = Index(audited)
    for id, status, name in zip(
        names(audited), ["labelled", "unlabelled", "skipped"], ["hole", "hole", None], strict=False
    ):
        sample = index.dataset.one(index.fo.ViewField("content_id") == id)
        sample["status"] = status
        drawn = [index.fo.Classification(label=name)] if name else []
        sample["classes"] = index.fo.Classifications(classifications=drawn)
        sample.save()
    report = ok(run("audit", "-p", audited.folder, "--json"))
    assert (report["classes"]["crack"]["shown"], report["classes"]["hole"]["shown"]) == (0, 2)
    assert (report["labelled"], report["left_out"]) == (19, {"skipped": 1})


def test_a_table_for_people_says_no_more_than_it_knows(run: Run, audited: Project) -> None:  # noqa: F811
    answer(audited)
    label(audited, {id: Label("labelled", (), ("crack", "hole")) for id in names(audited)[:2]})
    code, out, err = run("audit", "-p", audited.folder)
    assert code == 0, err
    lines = {line.strip("■ ").split("  ")[0]: line for line in out.splitlines() if line}
    assert "30 % (" in lines["crack"]
    assert "50 % (" in lines["crack"]
    assert "too few to say (2 of 20 audit picks show it)" in lines["hole"]
    assert "any defect" in lines
    assert "share of the 30 images that could be picked in round 001" in out
    assert "nan" not in out


def test_a_class_that_was_renamed_keeps_its_recall(audited: Project) -> None:
    answer(audited)
    facts = auditing.read(audited)
    log = LabelLog(audited.work / "labels")
    log.rename({"crack": "split"}, "ann", "rename")
    log.close()
    assert {name for pick in facts.draws[0].picks for name in pick["predicted"]} == {"crack"}
    # That rename is of today, and the round of 2090: it keeps its names. An older round follows.
    old = rounds.find(audited.work, 1)
    (old.folder / rounds.MANIFEST).write_text(json.dumps(old.manifest | {"made_at": "2000-01-01T00:00:00Z"}))
    assert {name for pick in auditing.read(audited).draws[0].picks for name in pick["predicted"]} == {"split"}


def test_a_later_correction_does_not_change_when_an_image_was_labelled(audited: Project) -> None:
    answer(audited)
    label(audited, {id: Label("labelled", (), ("hole",)) for id in names(audited)[:3]}, LATER)
    facts = auditing.read(audited)
    assert {image.at for image in facts.images.values() if image.status == "labelled"} == {DAY}
    assert sum(image.present == {"hole"} for image in facts.images.values()) == 3


def test_nothing_labelled_says_how_many_wait(run: Run, audited: Project) -> None:  # noqa: F811
    line = failed(run("audit", "-p", audited.folder))
    assert "no audit pick is labelled: 20 not labelled yet" in line
    assert "curate app --view 'round 001'" in line
    report = ok(run("stop-check", "-p", audited.folder, "--json"))
    assert (report["verdict"], report["round"], report["picks"], report["missed"]) == ("too little data", None, 0, None)
    assert "round 001 has 20 audit picks: 20 not labelled yet" in report["notes"]


def test_stop_check_of_a_project(run: Run, audited: Project) -> None:  # noqa: F811
    answer(audited, cracks=14)
    report = ok(run("stop-check", "-p", audited.folder, "--json", "--acceptable", "0.05"))
    assert (report["verdict"], report["round"], report["picks"], report["remaining"]) == ("go on", 1, 20, 10)
    assert report["picks_needed"] == 59
    assert report["unseen"]["estimate"] == pytest.approx(14 / 20)
    code, out, _ = run("stop-check", "-p", audited.folder)
    assert code == 0
    assert out.startswith("go on (by the audit of round 001)")
    assert "20 audit picks show that at least" in out


@pytest.mark.parametrize("command", ["audit", "stop-check"])
def test_without_a_round(run: Run, indexed: Project, command: str) -> None:  # noqa: F811
    assert "no round yet. Run: curate select" in failed(run(command, "-p", indexed.folder))


def test_wrong_input(run: Run, audited: Project) -> None:  # noqa: F811
    assert "unknown class 'crak' (did you mean 'crack'?)" in failed(
        run("audit", "-p", audited.folder, "--class", "crak")
    )
    assert run("audit", "-p", audited.folder, "--confidence", "95")[0] == 2
    assert run("stop-check", "-p", audited.folder, "--acceptable", "0")[0] == 2
