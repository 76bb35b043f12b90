"""Agreement beyond chance against published tables and independent sums; the report on a small made-up set."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.data import Label, make_defect
from labeling.annotations import Annotation
from labeling.annotators import cohen_kappa, fleiss_kappa, krippendorff_alpha, report, verdict

# Fleiss 1971, table 1: how many of six psychiatrists gave each of 30 patients one of five diagnoses.
FLEISS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
# Krippendorff 2011, part C: four observers, twelve units, five values, some missing.
KRIPPENDORFF = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
RATINGS = st.lists(st.lists(st.sampled_from("abc"), max_size=5), max_size=12)
SIZE = (100, 40)
CLEAN = Label("labelled")


def unit(counts: str) -> list[int]:
    return [category for category, count in enumerate(counts) for _ in range(int(count))]


# --- kappa and alpha --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30))
def test_cohen_is_scikit_learn_s(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import cohen_kappa_score

    first, second = zip(*pairs, strict=True)
    found = cohen_kappa(first, second)
    assert found.images == len(pairs)
    if len({*first, *second}) == 1:
        assert found.value is None
    else:
        assert found.value == pytest.approx(cohen_kappa_score(first, second))


def test_cohen_needs_the_same_images() -> None:
    assert cohen_kappa([], []) == (None, 0)
    with pytest.raises(ValueError, match="not 1 and 2"):
        cohen_kappa([1], [1, 2])


def test_fleiss_of_1971() -> None:
    found = fleiss_kappa([unit(row) for row in FLEISS.split()])
    assert found.images == 30
    # Published: mean agreement .556, by chance .220, kappa .430.
    assert found.value == pytest.approx(0.430, abs=0.0005)


def test_fleiss_of_the_common_number_of_ratings_alone() -> None:
    rows = [unit(row) for row in FLEISS.split()]
    odd: list[list[int]] = [[], [1], [1, 2], [0] * 7, [4] * 7]
    assert fleiss_kappa([*odd, *rows]) == fleiss_kappa(rows)
    assert fleiss_kappa([[1], []]) == (None, 0)


def fleiss_by_pairs(units: Sequence[Sequence[str]]) -> float:
    observed = [sum(a == b for a, b in permutations(u, 2)) / (len(u) * (len(u) - 1)) for u in units]
    pooled = [value for u in units for value in u]
    chance = sum(a == b for a in pooled for b in pooled) / len(pooled) ** 2
    return (sum(observed) / len(units) - chance) / (1 - chance)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from("abc")] * 3), min_size=1, max_size=12))
def test_fleiss_by_counting_pairs(units: list[tuple[str, ...]]) -> None:
    found = fleiss_kappa(units)
    if len({value for u in units for value in u}) == 1:
        assert found == (None, len(units))
    else:
        assert found.value == pytest.approx(fleiss_by_pairs(units))


def test_krippendorff_s_own_example() -> None:
    """The paper's sums: 40 paired values, 9, 13, 10, 5 and 3 of each; 7, 10, 8, 4 and 3 of them meet their like."""
    rows = [row.split() for row in KRIPPENDORFF]
    units = [[row[n] for row in rows if row[n] != "."] for n in range(12)]
    found = krippendorff_alpha(units)
    assert found.images == 11, "the last unit has one value only"
    by_hand = ((40 - 1) * (7 + 10 + 8 + 4 + 3) - (9 * 8 + 13 * 12 + 10 * 9 + 5 * 4 + 3 * 2)) / (40 * 39 - 344)
    assert found.value == pytest.approx(by_hand)
    assert found.value == pytest.approx(0.743, abs=0.0005)


def alpha_by_pairs(units: Sequence[Sequence[str]]) -> float:
    paired = [u for u in units if len(u) > 1]
    pooled = [value for u in paired for value in u]
    observed = sum(sum(a != b for a, b in permutations(u, 2)) / (len(u) - 1) for u in paired) / len(pooled)
    expected = sum(a != b for a, b in permutations(pooled, 2)) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(RATINGS)
def test_krippendorff_by_counting_pairs(units: list[list[str]]) -> None:
    found = krippendorff_alpha(units)
    assert found.images == sum(len(u) > 1 for u in units)
    if len({value for u in units if len(u) > 1 for value in u}) < 2:
        assert found.value is None, "no variance: undefined, not perfect"
    else:
        assert found.value == pytest.approx(alpha_by_pairs(units))


# --- the report -------------------------------------------------------------------------------------------------------


def cracked(x: float = 10, classes: tuple[str, ...] = ()) -> Label:
    return Label("labelled", (make_defect("crack", (x, 5, 20, 10)),), classes)


def annotation(image: int, who: str, label: Label, lead: float | None = None, origin: str = "manual") -> Annotation:
    return Annotation(f"{image:04d}", who, label, SIZE, f"2026-05-01T10:00:{image % 60:02d}Z", lead, origin)


def table(who: str, labels: Sequence[Label]) -> list[Annotation]:
    return [annotation(n, who, label) for n, label in enumerate(labels)]


SMALL = [
    *table("ann", [cracked(10), cracked(10), CLEAN, Label("skipped"), cracked(classes=("dent",))]),
    *table("bob", [cracked(10), cracked(20), CLEAN, cracked(10)]),
    *table("eve", [cracked(60), CLEAN]),
]


def test_verdicts() -> None:
    assert verdict(CLEAN) == "clean" != verdict(Label("labelled", classes=("clean",)))
    assert verdict(cracked(classes=("a",))) == "'a'+'crack'"
    assert verdict(Label("skipped", reason="dark")) == "skipped"
    assert verdict(Label("labelled", classes=("a'+'b",))) != verdict(Label("labelled", classes=("a", "b")))


def test_the_report_counts_what_is_there() -> None:
    found = report(SMALL, ["crack", "dent"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["images"], found["images_with_several"]) == (5, 4)
    crack = found["classes"]["crack"]
    # Image 0: 1, 0, 0. Image 1: ann and bob share half of 20, eve sees nothing. Then nothing drawn, or no second word.
    assert crack["comparisons"] == 6
    assert crack["dice"] == pytest.approx((1 + 0 + 0 + 0.5 + 0 + 0) / 6)
    assert crack["iou"] == pytest.approx((1 + 0 + 0 + 1 / 3 + 0 + 0) / 6)
    assert crack["shown_by_anyone"] == 4
    presence = [[True] * 3, [True, True, False], [False, False], [True], [True]]
    assert (crack["alpha"], crack["alpha_images"]) == krippendorff_alpha(presence)
    assert (crack["fleiss"], crack["fleiss_images"]) == fleiss_kappa(presence[:2])
    # ann and bob: yes yes, yes yes, no no; eve with either: yes yes, no yes.
    assert (crack["cohen"], crack["cohen_pairs"], crack["cohen_comparisons"]) == (pytest.approx(1 / 3), 3, 7)
    dent = found["classes"]["dent"]
    assert (dent["dice"], dent["comparisons"], dent["alpha"], dent["cohen"]) == (None, 0, None, None)


@pytest.mark.slow
def test_the_report_tells_pairs_and_people_apart() -> None:
    from sklearn.metrics import cohen_kappa_score

    found = report(SMALL, ["crack", "dent"])
    assert [pair["annotators"] for pair in found["pairs"]] == [["ann", "bob"], ["ann", "eve"], ["bob", "eve"]]
    first = found["pairs"][0]
    assert (first["images"], first["comparisons"], first["dice"]) == (4, 2, 0.75)
    ann, bob = ["'crack'", "'crack'", "clean", "skipped"], ["'crack'", "'crack'", "clean", "'crack'"]
    assert first["kappa"] == pytest.approx(cohen_kappa_score(ann, bob))
    assert first["same_verdict"] == 0.75
    assert report(SMALL, ["dent"])["pairs"][0]["comparisons"] == 0, "only the classes that were asked for"
    people = found["annotators"]
    assert [people[who]["images"] for who in ("ann", "bob", "eve")] == [5, 4, 2]
    assert people["ann"]["skipped"] == 0.2
    assert people["eve"]["dice"] == 0
    assert people["ann"]["dice"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    alone = {
        key: people["ann"][key] for key in ("images_per_hour", "lead_time_median", "kept", "kept_lead_time_median")
    }
    assert set(alone.values()) == {None}, "nothing known of times and pre-annotations"
    assert found["warnings"] == []


def test_only_the_newest_word_counts() -> None:
    older = [Annotation("0000", who, Label("skipped"), SIZE, "2020-01-01T00:00:00Z", 99.0) for who in ("ann", "eve")]
    assert report([*SMALL, *older], ["crack"]) == report(SMALL, ["crack"])
    assert report([*older, *SMALL], ["crack"]) == report(SMALL, ["crack"])


def test_the_order_of_annotations_does_not_matter() -> None:
    shuffled = random.Random(3).sample(SMALL, len(SMALL))
    assert report(shuffled, ["crack", "dent"]) == report(SMALL, ["crack", "dent"])


def test_nothing_to_report() -> None:
    found = report([], ["crack"])
    assert (found["images"], found["pairs"], found["annotators"], found["warnings"]) == (0, [], {}, [])
    assert found["classes"]["crack"]["alpha"] is None


def test_times_and_kept_pre_annotations() -> None:
    annotations = [annotation(n, "ann", CLEAN, lead, "prediction") for n, lead in enumerate([10, 20, 30])]
    annotations += [
        annotation(3, "ann", cracked(), 140, "changed"),
        annotation(4, "ann", Label("skipped"), None, "prediction"),
    ]
    annotations += [annotation(5, "ann", CLEAN, float("nan")), annotation(6, "ann", CLEAN, 8 * 3600)]
    found = report(annotations, ["crack"])["annotators"]["ann"]
    assert (found["preannotated"], found["kept"], found["kept_lead_time_median"]) == (4, 0.75, 20)
    assert found["lead_time_median"] == 30
    assert found["images_per_hour"] == pytest.approx(5 / ((10 + 20 + 30 + 140 + 900) / 3600)), "a night is no work"
    assert found["lead_time_p90"] == pytest.approx(140 + 0.6 * (8 * 3600 - 140))


# --- warnings ---------------------------------------------------------------------------------------------------------


def stamper(kept: int, changed: int, lead: float, change: float) -> list[Annotation]:
    annotations = [annotation(n, "ann", CLEAN, lead, "prediction") for n in range(kept)]
    return annotations + [annotation(kept + n, "ann", cracked(), change, "changed") for n in range(changed)]


def suspects(annotations: Sequence[Annotation], text: str = "without looking") -> list[str]:
    return [line.split()[0] for line in report(annotations, ["crack"])["warnings"] if text in line]


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (stamper(19, 1, 2, 40), ["ann"]),
        (stamper(19, 1, 15, 40), []),  # looks at them
        (stamper(10, 5, 2, 40), []),  # changes a third: looks
        ([*stamper(9, 0, 2, 0), annotation(50, "bob", cracked(), 40, "changed")], []),  # too few to tell
        (stamper(20, 0, 2, 40), []),  # no change by anyone to compare with
        ([*stamper(20, 0, 2, 0), annotation(50, "bob", cracked(), 40, "changed")], ["ann"]),
        ([*stamper(20, 0, 15, 0), annotation(50, "bob", cracked(), 40, "changed")], []),
    ],
)
def test_confirming_without_looking(annotations: list[Annotation], expected: list[str]) -> None:
    assert suspects(annotations) == expected


def crowd(people: dict[str, Any], images: int = 30) -> list[Annotation]:
    return [annotation(n, who, draw(n)) for who, draw in people.items() for n in range(images)]


def test_the_outlier_is_the_one_far_from_all_others() -> None:
    near = {who: (lambda n, shift=shift: cracked(10 + shift)) for shift, who in enumerate(["ann", "bob", "cat"])}
    drifting = {**near, "eve": lambda n: cracked(25 + n % 3)}
    assert suspects(crowd(near), "mean Dice") == []
    assert suspects(crowd(drifting), "mean Dice") == ["eve"]
    said = report(crowd(drifting), ["crack"])
    among = [pair["dice"] for pair in said["pairs"] if "eve" not in pair["annotators"]]
    figures = f"{said['annotators']['eve']['dice']:.2f} against {sum(among) / 3:.2f}, over 90 comparisons"
    assert any(line.endswith(figures) for line in said["warnings"])
    assert suspects(crowd(drifting, images=3), "mean Dice") == [], "too few images to blame anyone"
    pair = {who: drifting[who] for who in ("ann", "eve")}
    assert suspects(crowd(pair), "mean Dice") == [], "of two nobody can say who is wrong"


def test_the_outlier_by_what_is_seen() -> None:
    """Image-level work has no pixels to compare."""
    said = {True: Label("labelled", classes=("crack",)), False: CLEAN}
    careful = {who: (lambda n: said[n % 2 == 0]) for who in ("ann", "bob", "cat")}
    assert suspects(crowd({**careful, "eve": lambda n: CLEAN}), "equal verdicts") == ["eve"]
    assert suspects(crowd({**careful, "eve": lambda n: said[n % 2 == 0 and n > 0]}), "equal verdicts") == []
    # 0.65 against 0.90 is a large gap, but chance alone makes such a one of ten images.
    bob, eve = (lambda n: said[n % 2 == 0 or n == 9]), (lambda n: said[(n % 2 == 0) ^ (n < 3)])
    few = crowd({"ann": careful["ann"], "bob": bob, "eve": eve}, images=10)
    many = [replace(one, id=f"{one.id} {copy}") for copy in range(10) for one in few]
    assert suspects(few, "equal verdicts") == []
    assert suspects(many, "equal verdicts") == ["eve"]


def test_people_without_an_image_in_common() -> None:
    apart = [annotation(0, "ann", CLEAN), annotation(1, "bob", CLEAN)]
    assert suspects(apart, "in common") == ["no"]
    assert suspects(apart[:1], "in common") == []
