"""Labels to Label Studio's results and back: the identity; other tools by brute force; no junk is taken for a label."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from curate.data import Defect, Label, make_defect
from curate.index.predictions import Prediction
from curate.masks import shapes
from curate.project import LabelStudioConfig
from labeling import brush
from labeling import results as ls_results
from tests import fakes

Mask = NDArray[np.uint8]
Size = tuple[int, int]
Draw = st.DrawFn
REASONS = LabelStudioConfig().skip_reasons
CLASSES = ("crack", "hole", "clean", "not sure", "Riß, längs", '<b>"&', "1")
SIZE = (40, 24)
ONE_PIXEL = brush.encode(np.ones((1, 1), np.uint8))

sizes = st.tuples(st.integers(1, 30), st.integers(1, 30))


# --- drawn labels -----------------------------------------------------------------------------------------------------


@st.composite
def boxes(draw: Draw, size: Size) -> tuple[float, float, float, float]:
    """Anywhere inside the image, to a thousandth of a pixel."""
    left, top = (draw(st.integers(0, 1000 * side - 1)) for side in size)
    right, bottom = draw(st.integers(left + 1, 1000 * size[0])), draw(st.integers(top + 1, 1000 * size[1]))
    return left / 1000, top / 1000, (right - left) / 1000, (bottom - top) / 1000


@st.composite
def defects(draw: Draw, size: Size) -> Defect:
    name, severity = draw(st.sampled_from(CLASSES)), draw(st.sampled_from((None, "light", "heavy")))
    if draw(st.booleans()):
        return make_defect(name, draw(boxes(size)), severity=severity)
    mask = draw(arrays(np.uint8, size[::-1], elements=st.integers(0, 1)))
    mask[draw(st.integers(0, size[1] - 1)), draw(st.integers(0, size[0] - 1))] = 1
    found = shapes.defect_from_mask(name, mask)
    assert found is not None
    return make_defect(found.label, found.box, found.rle, severity)


@st.composite
def labels(draw: Draw, size: Size, least: int = 0) -> Label:
    """Draw a label as a person may make one: defects that overlap, classes without a place, clean, or skipped."""
    found = tuple(draw(st.lists(defects(size), min_size=least, max_size=4)))
    whole = tuple(sorted(draw(st.sets(st.sampled_from(CLASSES), max_size=2))))
    if least or draw(st.integers(0, 3)):
        return Label("labelled", found, whole)
    reasons = draw(st.sets(st.sampled_from(REASONS)))
    return Label("skipped", found, whole, ", ".join(sorted(reasons)) or ls_results.UNSURE)


@st.composite
def cases(draw: Draw, least: int = 0) -> tuple[Size, Label]:
    size = draw(sizes)
    return size, draw(labels(size, least))


def encode_rle(pixels: NDArray[np.uint8]) -> list[int]:
    """As Label Studio encodes a stroke; importing its converter takes seconds."""
    from label_studio_sdk.converter.brush import encode_rle

    return list(encode_rle(pixels.reshape(-1)))


def sent(value: Any) -> Any:
    """As it arrives on the other side of a connection."""
    return json.loads(json.dumps(value))


# --- the identity -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(cases())
@settings(deadline=None, max_examples=300)
def test_what_goes_out_comes_back_the_same(case: tuple[Size, Label]) -> None:
    size, label = case
    results = sent(ls_results.of_label(label, size))
    assert ls_results.label_in(results, size).digest == label.digest
    assert ls_results.label_in(results[::-1], size).digest == label.digest, "the order of results means nothing"


@given(st.data(), st.tuples(st.integers(1, 30_000), st.integers(1, 30_000)))
@settings(deadline=None)
def test_a_box_survives_per_cents_on_an_image_of_any_size(data: st.DataObject, size: Size) -> None:
    label = Label("labelled", (make_defect("crack", data.draw(boxes(size))),))
    assert ls_results.label_in(sent(ls_results.of_label(label, size)), size).digest == label.digest


@pytest.mark.slow
@given(cases())
@settings(deadline=None)
def test_a_prediction_means_what_the_model_said(case: tuple[Size, Label]) -> None:
    size, label = case
    said = Prediction(tuple((one, 0.123456) for one in label.defects), tuple((one, 0.5) for one in label.classes))
    results = sent(ls_results.of_prediction(said, size))
    assert bool(results) == bool(label.present), "that a model sees nothing is no suggestion"
    assert {one["score"] for one in results if "score" in one} <= {0.1235}
    assert ls_results.label_in(results, size).digest == Label("labelled", label.defects, label.classes).digest


def test_regions_have_ids_of_their_own_and_the_same_ones_each_time() -> None:
    twice = Label("labelled", (make_defect("crack", (1, 2, 3, 4)),) * 2)
    results = ls_results.of_label(twice, SIZE)
    assert len({one["id"] for one in results}) == 2
    assert results == ls_results.of_label(twice, SIZE)


# --- what is said of the whole image ----------------------------------------------------------------------------------


def choice(name: str, *values: Any, **more: Any) -> dict[str, Any]:
    made = {"id": f"id of {name}", "from_name": name, "to_name": "image", "type": "choices"}
    return {**made, "value": {"choices": list(values)}, **more}


def box(name: str = "crack", id: str = "a", **more: Any) -> dict[str, Any]:
    value = {"x": 10, "y": 10, "width": 20, "height": 50, "rotation": 0, "rectanglelabels": [name], **more}
    size = {"original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0}
    return {"id": id, "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value, **size}


def read(*results: Any, cancelled: bool = False, names: dict[str, str] | None = None, **more: Any) -> Label:
    return ls_results.label_in(sent(list(results)), SIZE, cancelled, names, **more)


def test_verdicts() -> None:
    crack = make_defect("crack", (4, 2.4, 8, 12))
    assert read().clean
    assert read(choice("verdict", "clean")).clean
    assert read(box()) == Label("labelled", (crack,))
    assert read(box(), choice("verdict", "clean")) == Label("disputed", (crack,), reason=ls_results.CONTRADICTORY)
    assert read(box(), choice("quality", "OK")) == Label("disputed", (crack,), reason=ls_results.CONTRADICTORY)
    assert read(box(), choice("verdict", "not sure")) == Label("skipped", (crack,), reason="not sure")
    assert read(choice("verdict", "not sure"), choice("why", "glare", "blurred")).reason == "blurred, glare"
    assert read(box(), cancelled=True) == Label("skipped", (crack,), reason="skipped")
    assert read(choice("why", "glare"), cancelled=True) == Label("skipped", reason="glare")


def test_a_choice_of_any_name_may_state_a_class_of_the_project() -> None:
    assert read(choice("defect type", "crack"), classes=["crack"]) == Label("labelled", classes=("crack",))
    assert read(choice("defect type", "crack")).clean, "nobody said that this is a class"
    old = {"Riss": "crack"}
    assert read(choice("present", "Riss", "crack"), names=old) == Label("labelled", classes=("crack",))
    assert read(choice("defect type", "Riss"), names=old, classes=["crack"]).present == {"crack"}
    assert read(box("Riss"), names=old).present == {"crack"}


def test_what_means_nothing_here_is_passed_over() -> None:
    others = [
        {"id": "t", "from_name": "note", "type": "textarea", "value": {"text": ["see left edge"]}},
        {"id": "n", "from_name": "stars", "type": "rating", "value": {"rating": 4}},
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
        choice("shift", "late"),
    ]
    assert read(box(), *others) == read(box())
    assert read(*others).clean


# --- other tools ------------------------------------------------------------------------------------------------------


def shaped(kind: str, size: Size, **value: Any) -> dict[str, Any]:
    labels = {f"{kind}labels": ["crack"]}
    sides = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    return {"id": "r", "from_name": "any", "to_name": "img", "type": f"{kind}labels", "value": value | labels, **sides}


def painted(results: Sequence[dict[str, Any]], size: Size) -> Mask:
    (defect,) = ls_results.label_in(sent(list(results)), size).defects
    return shapes.mask_of(defect, *size)


def centres(size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    return x, y


def inside(corners: Sequence[tuple[float, float]], size: Size) -> NDArray[np.bool_]:
    """Pixels from whose centre a ray straight down crosses the outline an odd number of times."""
    x, y = centres(size)
    odd = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        between = (x0 <= x) != (x1 <= x)
        with np.errstate(divide="ignore", invalid="ignore"):
            odd ^= between & (y0 + (x - x0) * (y1 - y0) / (x1 - x0) > y)
    return odd


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [(40, 24), (24, 40), (160, 26)], ids=str)
def test_polygons(size: Size, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-20, 120, (int(3 + seed % 7), 2))
    expected = inside([(x * size[0] / 100, y * size[1] / 100) for x, y in points], size)
    found = painted([shaped("polygon", size, points=points.tolist(), closed=True)], size)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("turn", [0, 10, 45, 90, 137.5, 180, 270, 359, -30])
@pytest.mark.parametrize("size", [(40, 24), (24, 40), (160, 26)], ids=str)
def test_ellipses_turn_about_their_centre(size: Size, turn: float) -> None:
    """In pixels, although their radii are in per cent of two different sides; so does Label Studio's EllipseRegion."""
    result = shaped("ellipse", size, x=45.3, y=52.1, radiusX=31.7, radiusY=12.9, rotation=turn)
    x, y = centres(size)
    x, y = x - 0.453 * size[0], y - 0.521 * size[1]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    along, across = (x * cos + y * sin) / (0.317 * size[0]), (y * cos - x * sin) / (0.129 * size[1])
    distance = along**2 + across**2
    clear = np.abs(distance - 1) > 1e-3
    np.testing.assert_array_equal(painted([result], size)[clear], (distance < 1)[clear])
    assert clear.mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("turn", [15, 45, 90, 181, 300, -60])
@pytest.mark.parametrize("size", [(40, 24), (24, 40), (160, 26)], ids=str)
def test_a_turned_rectangle_is_enclosed(size: Size, turn: float) -> None:
    """About its left upper corner, in pixels: the SDK's own converter is the reference."""
    from label_studio_sdk.converter.utils import convert_annotation_to_yolo_obb

    result = shaped("rectangle", size, x=51.5, y=47.5, width=21.3, height=33.3, rotation=turn)
    value = {name: result["value"][name] for name in ("x", "y", "width", "height", "rotation")}
    named = {"original_width": size[0], "original_height": size[1], **value}
    corners = convert_annotation_to_yolo_obb(named, normalize=False)
    low = [max(0.0, min(c[axis] for c in corners)) for axis in (0, 1)]
    high = [min(float(size[axis]), max(c[axis] for c in corners)) for axis in (0, 1)]
    (defect,) = ls_results.label_in(sent([result]), size).defects
    assert defect.rle is None
    left, top, wide, tall = defect.box
    assert (left, top, left + wide, top + tall) == pytest.approx((*low, *high), abs=2e-3)
    rows, columns = np.nonzero(inside(corners, size))
    assert left <= columns.min() + 0.5
    assert columns.max() + 0.5 <= left + wide
    assert top <= rows.min() + 0.5
    assert rows.max() + 0.5 <= top + tall


def test_a_turned_view_turns_nothing() -> None:
    """Label Studio turns what is shown; early versions turned the regions along, and swapped the sides they told."""
    assert read(box() | {"image_rotation": 90}) == read(box())


def test_a_rectangle_over_the_edge_is_cut_off() -> None:
    assert read(box(x=-10, width=30)).defects == (make_defect("crack", (0, 2.4, 8, 12)),)


def test_shape_labels_and_severity_may_come_apart() -> None:
    """As `Rectangle` or `Brush` with `Labels` has it: several results of one id."""
    label = Label("labelled", (make_defect("crack", (4, 2.4, 8, 12), severity="heavy"),))
    shape, told, degree = box(), box(), box()
    del shape["value"]["rectanglelabels"], told["value"]["rectanglelabels"], degree["value"]["rectanglelabels"]
    shape |= {"type": "rectangle"}
    told |= {"from_name": "label", "type": "labels", "value": {**told["value"], "labels": ["crack"]}}
    degree |= {"from_name": "severity", "type": "choices", "value": {**degree["value"], "choices": ["heavy"]}}
    for order in ([shape, told, degree], [degree, told, shape]):
        assert read(*order) == label
    assert read(shape, told) == Label("labelled", (make_defect("crack", (4, 2.4, 8, 12)),))
    without = {**told, "value": {"labels": ["crack"]}}
    assert read(shape, without).present == {"crack"}, "labels need not repeat the shape"


def test_a_region_of_two_classes_is_a_defect_of_each() -> None:
    both = box(rectanglelabels=["hole", "crack"])
    assert [one.label for one in read(both).defects] == ["crack", "hole"]


@pytest.mark.slow
def test_a_stroke_with_soft_edges_counts_from_half_on() -> None:
    alpha = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)
    image = np.zeros((2, 3, 4), np.uint8)
    image[..., 0], image[..., 3] = 200, alpha
    result = shaped("brush", (3, 2), format="rle", rle=encode_rle(image))
    np.testing.assert_array_equal(painted([result], (3, 2)), alpha > 127)


@pytest.mark.slow
def test_a_stroke_that_was_rubbed_out_leaves_nothing() -> None:
    erased = shaped("brush", (3, 2), format="rle", rle=encode_rle(np.zeros((2, 3, 4), np.uint8)))
    assert ls_results.label_in([erased], (3, 2)).clean


# --- what cannot be read ----------------------------------------------------------------------------------------------


def without(result: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != name}


STROKE = ls_results.of_label(Label("labelled", (shapes.defect_from_mask("hole", fakes.blob(24, 40)),)), SIZE)[0]  # type: ignore[arg-type]
POLYGON = shaped("polygon", SIZE, points=[[1, 1], [50, 1], [50, 50]])
ELLIPSE = shaped("ellipse", SIZE, x=50, y=50, radiusX=9, radiusY=9)
DEEP: Any = "deep"
for _ in range(300):
    DEEP = [DEEP]
UNREADABLE: dict[str, Any] = {
    "no object": "text",
    "null": None,
    "no value": without(box(), "value"),
    "null for a value": box() | {"value": None},
    "a list for a value": box() | {"value": [1, 2]},
    "empty": {},
    "no type": {"id": "x", "value": {"labels": ["crack"]}},
    "labels without their shape": {"id": "x", "type": "labels", "value": {"labels": ["crack"]}},
    "a key point": shaped("keypoint", SIZE, x=1, y=1, width=0.5),
    "a tool of the future": shaped("hexagon", SIZE, radius=4),
    "no class": box(rectanglelabels=[]),
    "a class that is no list": box(rectanglelabels="crack"),
    "a class that is no text": box(rectanglelabels=[{"a": 1}]),
    "an empty class": box(rectanglelabels=[""]),
    "no width": box() | {"value": without(box()["value"], "width")},
    "text for a number": box(x="10"),
    "true for a number": box(x=True),
    "null for a number": box(y=None),
    "a list for a number": box(width=DEEP),
    "no number": box(x=math.nan),
    "no end": box(height=math.inf),
    "more than a float holds": box(x=10**400),
    "beyond all images": box(x=1e300),
    "no rectangle": box(width=0),
    "drawn backwards": box(width=-5),
    "outside": box(x=101),
    "turned by a word": box(rotation="left"),
    "another size": box() | {"original_width": 41},
    "a size that is no number": box() | {"original_height": DEEP},
    "sides swapped by a turn": box() | {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 90},
    "no run-lengths": shaped("brush", SIZE, format="rle", rle=None),
    "run-lengths of text": shaped("brush", SIZE, format="rle", rle="1 2 3"),
    "run-lengths cut off": STROKE | {"value": STROKE["value"] | {"rle": STROKE["value"]["rle"][:-5]}},
    "run-lengths of another image": STROKE | {"value": STROKE["value"] | {"rle": ONE_PIXEL}},
    "run-lengths with junk": STROKE | {"value": STROKE["value"] | {"rle": [*STROKE["value"]["rle"][:-1], 256]}},
    "two points": POLYGON | {"value": POLYGON["value"] | {"points": [[1, 1], [2, 2]]}},
    "points that are no pairs": POLYGON | {"value": POLYGON["value"] | {"points": [1, 2, 3]}},
    "points of text": POLYGON | {"value": POLYGON["value"] | {"points": ["11", "22", "93"]}},
    "points nowhere": POLYGON | {"value": POLYGON["value"] | {"points": [[0, 0], [1, math.nan], [1, 1]]}},
    "points far away": POLYGON | {"value": POLYGON["value"] | {"points": [[0, 0], [1e12, 0], [0, 1e12]]}},
    "a polygon outside": POLYGON | {"value": POLYGON["value"] | {"points": [[101, 1], [150, 1], [150, 50]]}},
    "a polygon without area": POLYGON | {"value": POLYGON["value"] | {"points": [[1, 1], [50, 1], [99, 1]]}},
    "a polygon thinner than a pixel": POLYGON | {"value": POLYGON["value"] | {"points": [[1, 1], [2, 1], [2, 2]]}},
    "an ellipse outside": ELLIPSE | {"value": ELLIPSE["value"] | {"x": 150}},
    "half an ellipse": ELLIPSE | {"value": without(ELLIPSE["value"], "radiusY")},
    "a choice without a value": choice("verdict") | {"value": None},
    "a choice of no text": choice("verdict", ["clean"]),
    "a deep choice": choice("verdict", DEEP),
}


@pytest.mark.parametrize("junk", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_disputed_and_the_rest_is_kept(junk: Any) -> None:
    for results in ([junk], [junk, box("hole", "other")], [box("hole", "other"), junk]):
        label = ls_results.label_in(copy.deepcopy(results), SIZE)
        assert label.status == "disputed"
        assert (label.reason or "").startswith(f"{ls_results.UNREADABLE}: ")
        assert label.present == ({"hole"} if len(results) > 1 else set())
        assert ls_results.label_in(results, SIZE, cancelled=True).status == "skipped"


@pytest.mark.parametrize("results", [None, "text", 7, {"id": "a"}, {}, True], ids=str)
def test_results_that_are_no_list_are_disputed(results: Any) -> None:
    assert ls_results.label_in(results, SIZE).status == "disputed"


def test_two_regions_under_one_id_are_not_merged() -> None:
    label = read(box(), box(x=40), box("hole", "other"))
    assert (label.status, label.reason) == ("disputed", f"{ls_results.UNREADABLE}: two regions under one id")
    assert label.present == {"hole"}


def test_no_name_breaks_the_database() -> None:
    """A text of JSON may hold half a character, which no UTF-8 has."""
    label = read(box("\ud800"), choice("present", "\udfff"), choice("note", "\ud800"))
    for name in label.present:
        assert name.encode()
    assert len(label.present) == 2
    assert (read(choice("why", "\ud800"), cancelled=True).reason or "").encode()


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in inner for found in places(one, (*path, key)))]


def with_junk(value: Any, path: Sequence[Any], new: Any) -> Any:
    """`value` with something else at this place."""
    if not path:
        return new
    made = copy.copy(value)
    made[path[0]] = with_junk(value[path[0]], path[1:], new)
    return made


@pytest.mark.slow
@given(st.data(), cases(least=1), junk)
@settings(deadline=None, max_examples=400)
def test_junk_anywhere_never_raises_and_never_makes_an_image_clean(
    data: st.DataObject, case: tuple[Size, Label], junk: Any
) -> None:
    size, label = case
    results = ls_results.of_label(Label("labelled", label.defects[:1]), size)
    results = [one for one in results if one["type"] != "choices"]
    path = data.draw(st.sampled_from([path for path in places(results) if path[1:2] != ("id",)][1:]))
    if path[-1] == "rle" or "rle" in path:
        junk = data.draw(st.one_of(st.none(), st.text(), st.just([]), st.just([1, 2]), st.just(-1)))
    found = ls_results.label_in(with_junk(results, path, junk), size, names={}, classes=CLASSES)
    assert not found.clean
    assert Label.from_json(sent(found.to_json())).digest == found.digest
    if found.status != "disputed":
        x, y, w, h = found.defects[0].box
        assert x >= 0
        assert y >= 0
        assert x + w <= size[0] + 1e-9
        assert y + h <= size[1] + 1e-9


@pytest.mark.slow
@given(junk)
@settings(deadline=None, max_examples=300)
def test_junk_alone_never_raises(junk: Any) -> None:
    for results in (junk, [junk], [{"id": "a", "type": "brushlabels", "value": junk}], [box(), {"value": junk}]):
        label = ls_results.label_in(results, SIZE, classes=CLASSES)
        assert label.status in ("labelled", "disputed", "skipped")
        json.dumps(label.to_json()).encode()


def test_a_class_named_clean_is_no_verdict_and_contradicts_one() -> None:
    spot = Label("labelled", (make_defect("clean", (1, 1, 2, 2)),))
    region = ls_results.of_label(spot, (8, 8))
    assert ls_results.label_in(region, (8, 8), classes=["clean"]).digest == spot.digest
    verdict = ls_results.of_label(Label("labelled"), (8, 8))
    assert ls_results.label_in([*region, *verdict], (8, 8), classes=["clean"]).reason == ls_results.CONTRADICTORY
