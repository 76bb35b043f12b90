"""Agreement on one image: pixels against whole masks, the consensus by its properties and against brute force."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from curate.data import Defect, Label, make_defect
from curate.masks.shapes import defect_from_mask, mask_of
from labeling.agreement import CroppedMask, areas, consensus, majority, pixel_agreement

WIDE, HIGH = SIZE = (12, 9)
NAMES = ("crack", "dent")
CLEAN = Label("labelled")


def label(*defects: Defect, classes: tuple[str, ...] = ()) -> Label:
    return Label("labelled", defects, classes)


def box(x: float, y: float, w: float, h: float, name: str = "crack", severity: str | None = None) -> Defect:
    return make_defect(name, (x, y, w, h), severity=severity)


def painted(x: int, y: int, w: int, h: int, name: str = "crack", severity: str | None = None) -> Defect:
    """A filled rectangle that is a mask."""
    return replace(mask_defect(mask_of(box(x, y, w, h), *SIZE), name), severity=severity)


def mask_defect(mask: NDArray[Any], name: str = "crack") -> Defect:
    found = defect_from_mask(name, mask.astype(np.uint8))
    assert found is not None
    return found


def whole(one: Label, name: str) -> NDArray[Any]:
    """All of a class's pixels, the slow way."""
    mask = np.zeros((HIGH, WIDE), bool)
    for defect in one.defects:
        mask |= (mask_of(defect, *SIZE) > 0) & (defect.label == name)
    return mask


@st.composite
def boxes(draw: st.DrawFn) -> Defect:
    left, top = draw(st.integers(0, 1000 * WIDE - 1)), draw(st.integers(0, 1000 * HIGH - 1))
    wide, high = draw(st.integers(1, 1000 * WIDE - left)), draw(st.integers(1, 1000 * HIGH - top))
    return box(left / 1000, top / 1000, wide / 1000, high / 1000, draw(st.sampled_from(NAMES)))


FILLED = hnp.arrays(bool, (HIGH, WIDE), elements=st.booleans(), fill=st.just(False)).filter(np.any)
MASKS = st.builds(mask_defect, FILLED, st.sampled_from(NAMES))
DRAWN = st.lists(st.one_of(boxes(), MASKS), max_size=3).map(lambda found: label(*found))
PAINTED = st.lists(MASKS, max_size=3).map(lambda found: label(*found))
# Labels without regions as well, and few different places, so that people often agree.
FEW = st.sampled_from(
    [box(1, 1, 4, 4), box(1.5, 1, 4, 4), box(7, 2, 3, 3, "dent"), painted(1, 1, 4, 4), painted(2, 1, 4, 4)]
)
LABELS = st.one_of(
    st.just(CLEAN),
    st.just(Label("skipped", reason="blurred")),
    st.just(Label("disputed", reason="unknown class: x")),
    st.just(label(classes=("crack",))),
    st.lists(FEW, min_size=1, max_size=3).map(lambda found: label(*found)),
    DRAWN,
)

# --- majority ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "expected"), [("aab", "a"), ("ab", None), ("abc", None), ("", None), ("b", "b")])
def test_a_majority_is_more_than_half(values: str, expected: str | None) -> None:
    assert majority(values) == expected


# --- pixels -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(DRAWN, DRAWN)
def test_iou_and_dice_are_those_of_whole_masks(first: Label, second: Label) -> None:
    found = pixel_agreement(first, second, SIZE)
    assert found.keys() == first.present | second.present
    for name, overlap in found.items():
        a, b = whole(first, name), whole(second, name)
        assert overlap == ((a & b).sum(), a.sum(), b.sum())
        assert overlap.iou == pytest.approx((a & b).sum() / (a | b).sum())
        assert overlap.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


@settings(max_examples=200, deadline=None)
@given(DRAWN)
def test_an_area_is_a_crop_of_the_whole_mask(one: Label) -> None:
    for name, area in areas(one, SIZE).items():
        assert isinstance(area, CroppedMask)
        back = np.zeros((HIGH, WIDE), bool)
        back[area.top : area.bottom, area.left : area.right] = area.mask
        assert np.array_equal(back, whole(one, name))


def test_a_class_that_only_one_draws_scores_nothing_and_unknown_pixels_do_not_count() -> None:
    drawn, said = label(painted(1, 1, 2, 2)), label(classes=("crack",))
    assert pixel_agreement(drawn, CLEAN, SIZE)["crack"].dice == 0
    assert pixel_agreement(CLEAN, drawn, SIZE)["crack"].iou == 0
    assert pixel_agreement(CLEAN, CLEAN, SIZE) == {}
    assert pixel_agreement(drawn, said, SIZE) == {}
    assert pixel_agreement(drawn, Label("skipped"), SIZE) == {}


# --- consensus: properties --------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(LABELS, st.integers(2, 4))
def test_equal_labels_come_back_as_they_are(one: Label, people: int) -> None:
    alone, together = consensus([one], SIZE), consensus([one] * people, SIZE)
    assert alone.label == together.label == one
    assert (alone.agreement, together.agreement) == (None, 1.0)
    assert alone.disputed is together.disputed is None


def test_equal_labels_may_list_their_regions_in_another_order() -> None:
    one, other = (label(*order) for order in permutations([box(1, 1, 4, 4), painted(7, 2, 3, 3)]))
    assert consensus([one, other], SIZE).label == consensus([other, one], SIZE).label in (one, other)


@settings(max_examples=300, deadline=None)
@given(st.lists(LABELS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_annotators_does_not_matter(labels: list[Label], chance: random.Random) -> None:
    shuffled = [replace(one, defects=tuple(chance.sample(one.defects, len(one.defects)))) for one in labels]
    chance.shuffle(shuffled)
    one, other = consensus(labels, SIZE), consensus(shuffled, SIZE)
    assert one.label.digest == other.label.digest
    assert (one.agreement, one.disputed) == (other.agreement, other.disputed)


@settings(max_examples=300, deadline=None)
@given(st.lists(PAINTED, min_size=2, max_size=5))
def test_a_pixel_stays_where_more_than_half_paint_it(labels: list[Label]) -> None:
    result = consensus(labels, SIZE).label
    for name in NAMES:
        votes = np.sum([whole(one, name) for one in labels], axis=0)
        found = whole(result, name)
        assert np.array_equal(found, 2 * votes > len(labels))
        assert not (found & (votes == 0)).any()
        assert found[votes == len(labels)].all()


@settings(max_examples=200, deadline=None)
@given(st.lists(PAINTED, min_size=2, max_size=4))
def test_each_connected_region_becomes_a_defect(labels: list[Label]) -> None:
    if len({one.digest for one in labels}) == 1:
        return  # equal labels keep the regions that people made of them
    result = consensus(labels, SIZE).label
    for name in NAMES:
        numbers, count = ndimage.label(whole(result, name), np.ones((3, 3)))
        expected = sorted(mask_defect(numbers == n + 1, name) for n in range(count))
        assert sorted(d for d in result.defects if d.label == name) == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(LABELS, min_size=2, max_size=5))
def test_what_is_settled_is_what_most_say(labels: list[Label]) -> None:
    """Independent of how pixels come about: each class is there if most labelled it so, else somebody decides."""
    found = consensus(labels, SIZE)
    if len({one.digest for one in labels}) == 1:
        return
    voters = [one for one in labels if one.status == "labelled"]
    assert (found.label.status == "disputed") == (found.disputed is not None)
    assert found.label.reason == found.disputed or found.label.status == "skipped"
    assert found.agreement is not None
    assert 0 <= found.agreement <= 1
    if found.label.status == "labelled":
        assert 2 * len(voters) > len(labels)
        most = {name for name in NAMES if 2 * sum(name in one.present for one in voters) > len(voters)}
        assert found.label.present == most
        assert found.label.clean <= (2 * sum(one.clean for one in voters) > len(voters))
    if found.label.status == "skipped":
        assert 2 * sum(one.status == "skipped" for one in labels) > len(labels)


# --- consensus: cases -------------------------------------------------------------------------------------------------


def disputed(labels: Sequence[Label], least: float = 0.5) -> str | None:
    return consensus(labels, SIZE, least).disputed


def test_no_label_has_no_consensus() -> None:
    with pytest.raises(ValueError, match="at least one"):
        consensus([], SIZE)


def test_two_people_keep_what_they_share() -> None:
    found = consensus([label(painted(1, 1, 4, 4)), label(painted(2, 1, 4, 4))], SIZE)
    assert found.label == label(painted(2, 1, 3, 4))
    assert found.agreement == pytest.approx(2 * 12 / 32)
    assert found.disputed is None


def test_a_third_overrules_who_missed_it() -> None:
    """Who shows nothing does not make those disagree who do; the figure still says that one of three missed it."""
    found = consensus([label(painted(1, 1, 4, 4)), CLEAN, label(painted(1, 1, 4, 4))], SIZE)
    assert found.label == label(painted(1, 1, 4, 4))
    assert found.agreement == pytest.approx(1 / 3)
    assert consensus([label(painted(1, 1, 4, 4)), CLEAN, CLEAN], SIZE).label == CLEAN


def test_as_many_for_as_against_is_disputed() -> None:
    drawn = label(painted(1, 1, 4, 4))
    assert disputed([drawn, CLEAN]) == "annotators-disagree: crack"
    assert disputed([drawn, drawn, CLEAN, CLEAN]) == "annotators-disagree: crack"
    both = label(painted(1, 1, 4, 4), painted(7, 1, 2, 2, "dent"))
    found = consensus([drawn, both], SIZE)
    assert found.disputed == found.label.reason == "annotators-disagree: dent"
    assert found.label.defects == drawn.defects, "what they agree on is there to look at"


def test_the_same_class_in_another_place_is_disputed() -> None:
    left, right = label(painted(0, 0, 3, 3)), label(painted(8, 5, 3, 3))
    assert disputed([left, right]) == "annotators-disagree: crack"
    assert disputed([left, right], least=0) == "annotators-disagree: crack", "both see one: it cannot just vanish"
    near = label(painted(1, 0, 3, 3))
    assert disputed([left, near], least=0.7) == "annotators-disagree: crack"
    assert disputed([left, near], least=0.6) is None


def test_a_class_all_agree_on_does_not_hide_one_they_do_not() -> None:
    one = label(painted(0, 0, 3, 3), painted(5, 5, 3, 3, "dent"))
    other = label(painted(0, 0, 3, 3), painted(8, 0, 3, 3, "dent"))
    assert disputed([one, other]) == "annotators-disagree: dent"


def test_pairs_that_overlap_are_no_majority_of_four() -> None:
    parts = [(0, 2), (1, 2), (0, 1)]
    strips = [np.isin(np.arange(WIDE), part)[None] & (np.arange(HIGH)[:, None] == 4) for part in parts]
    found = consensus([CLEAN, *(label(mask_defect(strip)) for strip in strips)], SIZE)
    assert found.disputed == "annotators-disagree: crack"
    assert found.label.defects == ()


def test_most_see_something_but_nobody_the_same() -> None:
    labels = [label(painted(0, 0, 3, 3)), label(painted(0, 0, 3, 3, "dent")), CLEAN]
    assert disputed(labels) == "annotators-disagree: crack, dent"
    assert consensus([*labels, CLEAN, CLEAN], SIZE).label == CLEAN


def test_skipped_by_most_is_skipped() -> None:
    blurred, dark, drawn = Label("skipped", reason="blurred"), Label("skipped", reason="dark"), label(box(1, 1, 3, 3))
    assert consensus([dark, drawn, blurred], SIZE).label == Label("skipped", reason="blurred; dark")
    assert consensus([drawn, blurred, drawn], SIZE).label == drawn
    touching = label(painted(1, 1, 2, 2), painted(3, 1, 2, 2))
    assert consensus([touching, blurred, touching], SIZE).label == touching
    assert disputed([drawn, blurred]) == "annotators-disagree: skipped"
    assert disputed([drawn, CLEAN, blurred]) == "annotators-disagree: crack"


def test_image_level_classes_go_by_majority() -> None:
    crack, both = label(classes=("crack",)), label(classes=("crack", "dent"))
    assert consensus([crack, both, crack], SIZE).label == crack
    assert consensus([crack, CLEAN, CLEAN], SIZE).label == CLEAN
    assert disputed([crack, both]) == "annotators-disagree: dent"


def test_unknown_pixels_vote_for_the_class_alone() -> None:
    said, drawn = label(classes=("crack",)), label(painted(1, 1, 3, 3))
    assert consensus([said, drawn], SIZE).label == drawn
    assert consensus([said, drawn], SIZE).agreement == 1
    assert consensus([said, drawn, said], SIZE).label == label(painted(1, 1, 3, 3), classes=("crack",))
    # One of the two who know the pixels paints some: no majority, but two of three see a crack.
    assert consensus([said, drawn, CLEAN], SIZE).label == said


# --- consensus: boxes -------------------------------------------------------------------------------------------------


def test_boxes_stay_boxes_and_take_the_middle() -> None:
    labels = [label(box(1, 1, 4, 4)), label(box(1.5, 1, 4, 5)), label(box(2, 1.25, 4, 4))]
    assert consensus(labels, SIZE).label == label(make_defect("crack", (1.5, 1, 4, 4.25)))
    assert consensus(labels[:2], SIZE).label == label(make_defect("crack", (1.25, 1, 4, 4.5)))
    assert consensus([labels[0], labels[1], labels[0]], SIZE).label == labels[0], "each person counts, not each box"


def test_a_box_of_a_minority_goes() -> None:
    shared, own = box(1, 1, 4, 4), box(8, 5, 2, 2)
    found = consensus([label(shared, own), label(shared), label(shared)], SIZE)
    assert found.label == label(shared)
    assert found.disputed is None


def test_overlapping_boxes_of_one_person_are_two_defects() -> None:
    """Both of a person's boxes match the other's; only the most alike may, one with one."""
    ours = [box(1, 1, 4, 4), box(1, 2, 4, 4)]
    theirs = [box(1, 1, 4, 4.25), box(1, 2.25, 4, 4)]
    found = consensus([label(*ours), label(*theirs)], SIZE).label
    assert found.defects == (make_defect("crack", (1, 1, 4, 4.125)), make_defect("crack", (1, 2.125, 4, 4)))


def test_one_mask_among_boxes_makes_it_pixels() -> None:
    found = consensus([label(box(1, 1, 4, 4)), label(painted(2, 1, 4, 4))], SIZE).label
    assert found == label(painted(2, 1, 3, 4))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(boxes(), max_size=4).map(lambda found: label(*found)), min_size=2, max_size=5))
def test_boxes_lie_in_the_image_and_stay_boxes(labels: list[Label]) -> None:
    for defect in consensus(labels, SIZE).label.defects:
        x, y, w, h = defect.box
        assert defect.rle is None
        assert x >= 0
        assert y >= 0
        assert x + w <= WIDE + 1e-9
        assert y + h <= HIGH + 1e-9
        assert min(w, h) > 0


# --- consensus: severity ----------------------------------------------------------------------------------------------


def severities(labels: Sequence[Label]) -> list[str | None]:
    return [defect.severity for defect in consensus(labels, SIZE).label.defects]


@pytest.mark.parametrize("make", [painted, box])
def test_the_severity_is_the_majority_s(make: Any) -> None:
    low, high, none = (label(make(1, 1, 4, 4, severity=s), make(8, 5, 3, 3)) for s in ("low", "high", None))
    assert severities([low, high, high]) == ["high", None]
    assert severities([low, high]) == [None, None]
    assert severities([low, none]) == [None, None]
    assert severities([low, none, low]) == ["low", None]


def test_many_small_regions_do_not_outvote_a_large_one() -> None:
    crumbs = label(*(painted(x, 1, 1, 4, severity="low") for x in range(1, 5)))
    large = label(painted(1, 1, 4, 4, severity="high"))
    assert severities([crumbs, large, large]) == ["high"]
