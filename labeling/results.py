"""Conversion between our labels and Label Studio's results, both ways and bit-exact.

What comes in is untrusted: a region that cannot be read makes the label disputed, with the reason; the rest is kept.
Regions are recognised by what they hold, not by the name of their tag, so that projects which others made can be read,
too. Results for the whole image (`ABOUT_IMAGES`) that mean nothing here are ignored. Anything else, such as a key
point, may be a defect: to ignore it would make the image clean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from curate.data import Box, Defect, Label, Polygon
from curate.errors import LabelProblem
from curate.index.predictions import Prediction
from curate.masks import shapes
from labeling import brush

Result = dict[str, Any]
Size = tuple[int, int]  # width, height

IMAGE, BRUSH, BOX, SEVERITY = "image", "brush", "box", "severity"
HINT, HINT_TEXT = "unusual-here", "unusual here"  # the tag of a region that tells where to look, and its text
VERDICT, PRESENT, WHY = "verdict", "present", "why"
CLEAN, UNSURE = "clean", "not sure"
UNREADABLE, CONTRADICTORY, SKIPPED = "unreadable-region", "clean-but-with-defects", "skipped"
UNDECIDED = "neither-clean-nor-a-defect"
CLEAN_WORDS = frozenset({"clean", "ok", "good", "no defect", "no defects", "defect-free", "none", "normal"})
ABOUT_IMAGES = frozenset(
    {"choices", "textarea", "rating", "number", "datetime", "taxonomy", "pairwise", "ranker", "relation"}
)
SHAPE = ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "rle")
CORNERS = 360  # of the polygon that stands for an ellipse: within a pixel's hundredth up to a radius of 250 pixels
FAR = 1e6  # per cent of the image; further out, sums lose precision


# --- out --------------------------------------------------------------------------------------------------------------


def of_label(label: Label, size: Size) -> list[Result]:
    """The label as results that `label_in` reads back to the same label."""
    results = [*_regions(((defect, None) for defect in label.defects), size)]
    results += [_choices(PRESENT, sorted(set(label.classes)))] if label.classes else []
    if label.status == "skipped":
        return [*results, _choices(VERDICT, [UNSURE]), *_why(label.reason)]
    return results if results or label.status != "labelled" else [_choices(VERDICT, [CLEAN])]


def of_prediction(prediction: Prediction, size: Size) -> list[Result]:
    """Convert a model's prediction to results. An empty one gives none: only a person may say "clean"."""
    names = sorted({name for name, _ in prediction.classes})
    return [*_regions(prediction.defects, size), *([_choices(PRESENT, names)] if names else [])]


def hint(box: Sequence[float], size: Size) -> Result:
    """The region that says "unusual here". It has no class, and is no part of any label: see `label_in`."""
    x, y, w, h = box
    region = {"id": "unusual", "from_name": HINT, "to_name": IMAGE, "type": "rectanglelabels", "readonly": True}
    region |= {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    across, down = 100 / size[0], 100 / size[1]
    value = {"x": x * across, "y": y * down, "width": w * across, "height": h * down, "rotation": 0}
    return region | {"value": value | {"rectanglelabels": [HINT_TEXT]}}


def is_hint(result: Any) -> bool:
    """True for our "unusual here" alone: a tag of that name in somebody's own project may hold defects."""
    ours = isinstance(result, Mapping) and result.get("from_name") == HINT
    return ours and [*_labels(_value(result))] == [HINT_TEXT]


def _regions(defects: Iterable[tuple[Defect, float | None]], size: Size) -> Iterator[Result]:
    for number, (defect, sure) in enumerate(defects):
        text = f"{number}:{defect.label}:{defect.box}"
        id = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=5).hexdigest()
        region = {"id": id, "to_name": IMAGE, "original_width": size[0], "original_height": size[1]}
        region |= {"image_rotation": 0, "score": round(sure, 4)} if sure is not None else {"image_rotation": 0}
        value = _painted(defect, size) if defect.rle is not None else _rectangle(defect, size)
        kind, name = ("brushlabels", BRUSH) if defect.rle is not None else ("rectanglelabels", BOX)
        yield region | {"from_name": name, "type": kind, "value": value | {kind: [defect.label]}}
        if defect.severity:
            degree = {"from_name": SEVERITY, "type": "choices", "value": value | {"choices": [defect.severity]}}
            yield region | degree


def _painted(defect: Defect, size: Size) -> Result:
    return {"format": "rle", "rle": brush.encode(shapes.mask_of(defect, *size))}


def _rectangle(defect: Defect, size: Size) -> Result:
    x, y, w, h = defect.box
    across, down = 100 / size[0], 100 / size[1]
    return {"x": x * across, "y": y * down, "width": w * across, "height": h * down, "rotation": 0}


def _choices(name: str, values: Sequence[str]) -> Result:
    return {"from_name": name, "to_name": IMAGE, "type": "choices", "value": {"choices": list(values)}}


def _why(reason: str | None) -> list[Result]:
    reasons = [part for part in (reason or "").split(", ") if part not in ("", UNSURE, SKIPPED)]
    return [_choices(WHY, reasons)] if reasons else []


# --- in ---------------------------------------------------------------------------------------------------------------


def label_in(
    results: Sequence[Mapping[str, Any]],
    size: Size,
    cancelled: bool = False,
    names: Mapping[str, str] | None = None,
    classes: Iterable[str] = (),
) -> Label:
    """The label that an annotation means. Without any result the image is clean.

    A hint ("unusual here") is no defect, nor does it make the image clean: who leaves nothing but the hint has decided
    nothing, and the image is disputed.

    `names`: what a class of theirs is called here. `classes`: those that a choice of any name may state.
    """
    names = names or {}
    objects, faults = _identified(results)
    parts = _by_region(objects)
    faults += [f"a result of type '{_text(result.get('type'))[:40]}'" for result in objects if _unread(result, parts)]
    defects, unreadable = _defects(_without_hints(parts), size, names)
    faults += unreadable
    choices = list(_image_choices(objects, parts))
    present = {names.get(value, value) for name, value in choices if _states(name, names.get(value, value), classes)}
    whys = sorted({value for name, value in choices if name == WHY})
    label = Label("labelled", tuple(defects), tuple(sorted(present)))
    if cancelled or any(name == VERDICT and value == UNSURE for name, value in choices):
        return replace(label, status="skipped", reason=", ".join(whys) or (SKIPPED if cancelled else UNSURE))
    if faults:
        return replace(label, status="disputed", reason=" ".join(f"{UNREADABLE}: {faults[0]}".split()))
    if label.present and any(_says_clean(name, value, label.present) for name, value in choices):
        return replace(label, status="disputed", reason=CONTRADICTORY)
    if any(map(is_hint, objects)) and not label.present and not any(_says_clean(*choice, ()) for choice in choices):
        return replace(label, status="disputed", reason=UNDECIDED)
    return label


def _identified(results: Any) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Results with an id added where one lacks it, and a fault where a result is no object."""
    if not isinstance(results, list | tuple):
        return [], ["the results are no list"]
    objects = [result for result in results if isinstance(result, Mapping)]
    numbered = [
        result if _text(result.get("id")) else {**result, "id": f"#{number}"} for number, result in enumerate(objects)
    ]
    return numbered, ["a result is no object"] * (len(objects) < len(results))


def _text(value: Any) -> str:
    """A text or number as a text that a database takes; anything else is none."""
    text = str(value) if isinstance(value, str | int | float) else ""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _by_region(objects: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group results by region. One region is several results with one id: its shape, its labels, its severity."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for result in objects:
        parts.setdefault(_text(result["id"]), []).append(result)
    return {id: group for id, group in parts.items() if any(_kind(_value(part)) for part in group)}


def _without_hints(parts: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Regions without hints; one that a person has given a class stays with that class."""
    hints = {id for id, region in parts.items() if any(map(is_hint, region))}
    rest = {id: [part for part in region if not is_hint(part)] for id, region in parts.items()}
    return {
        id: region for id, region in rest.items() if id not in hints or any(any(_labels(_value(p))) for p in region)
    }


def _unread(result: Mapping[str, Any], parts: Mapping[str, Any]) -> bool:
    """True if the result may hold more than what is read of it."""
    if result.get("type") == "choices":
        chosen = _value(result).get("choices")
        return not isinstance(chosen, list) or not all(map(_text, chosen))
    return _text(result["id"]) not in parts and _text(result.get("type")) not in ABOUT_IMAGES


def _value(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value")
    return value if isinstance(value, Mapping) else {}


def _kind(value: Mapping[str, Any]) -> str | None:
    if "rle" in value:
        return "brush"
    if "points" in value:
        return "polygon"
    if "radiusX" in value:
        return "ellipse"
    return "box" if "width" in value and "height" in value else None


def _defects(
    parts: Mapping[str, Sequence[Mapping[str, Any]]], size: Size, names: Mapping[str, str]
) -> tuple[list[Defect], list[str]]:
    defects: list[Defect] = []
    faults: list[str] = []
    for region in parts.values():
        try:
            defects += _region(region, size, names)
        except (LabelProblem, TypeError, ValueError, OverflowError, KeyError) as error:
            faults.append(str(error) or type(error).__name__)
    return defects, faults


def _region(region: Sequence[Mapping[str, Any]], size: Size, names: Mapping[str, str]) -> Iterator[Defect]:
    shape, *others = (part for part in region if _kind(_value(part)))
    if any(_outline(part) != _outline(shape) for part in others):
        raise LabelProblem("two regions under one id")
    labels = sorted({_text(name) for part in region for name in _labels(_value(part))})
    if not all(labels) or not labels:
        raise LabelProblem("a region without a class")
    degrees = [_text(value) for part in region for value in _list(_value(part).get("choices"))]
    for name in labels:
        defect = _shape(shape, names.get(name, name), size)
        if defect is not None:  # a stroke that was rubbed out again leaves nothing
            yield replace(defect, severity=degrees[0] if degrees else None)


def _outline(result: Mapping[str, Any]) -> list[Any]:
    return [_value(result).get(name) for name in SHAPE]


def _labels(value: Mapping[str, Any]) -> Iterator[Any]:
    for name, entry in value.items():
        if name.endswith("labels"):
            yield from _list(entry)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _shape(result: Mapping[str, Any], name: str, size: Size) -> Defect | None:
    width, height = size
    value = _value(result)
    drawn_on = (result.get("original_width", width), result.get("original_height", height))
    if drawn_on != size:
        theirs = "x".join(_text(side) or "?" for side in drawn_on)
        raise LabelProblem(f"drawn on an image of {theirs}, but this one is {width}x{height}")
    kind = _kind(value)
    if kind == "brush":
        return shapes.defect_from_mask(name, brush.decode(value["rle"], height, width))
    if kind == "box" and not value.get("rotation"):
        return shapes.defect_from_box(name, _box(value, size), width, height, clip=True)
    corners = tuple((x * width / 100, y * height / 100) for x, y in _corners(kind, value, size))
    if kind == "box":
        return shapes.defect_from_box(name, _around(corners), width, height, clip=True)
    outline = Polygon((corners,))
    defect = shapes.defect_from_mask(name, shapes.polygon_mask(outline, width, height))
    if defect is None:
        raise shapes.no_pixel(name, outline, width, height)
    return defect


def _box(value: Mapping[str, Any], size: Size) -> Box:
    x, y, w, h = (_number(value.get(name)) for name in ("x", "y", "width", "height"))
    across, down = size[0] / 100, size[1] / 100
    return Box(x * across, y * down, w * across, h * down)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= FAR:
        raise LabelProblem("a shape whose places are no numbers, or far outside the image")
    return float(value)


def _around(corners: Sequence[tuple[float, float]]) -> Box:
    """Box that encloses a rotated rectangle."""
    (left, top), (right, bottom) = np.min(corners, axis=0), np.max(corners, axis=0)
    return Box(left, top, right - left, bottom - top)


def _corners(kind: str | None, value: Mapping[str, Any], size: Size) -> list[tuple[float, float]]:
    """In per cent of the image, as Label Studio counts; it turns shapes in pixels, about the corner of a rectangle."""
    if kind == "polygon":
        return [(_number(x), _number(y)) for x, y in value["points"]]
    x, y, turn = _number(value.get("x")), _number(value.get("y")), math.radians(_number(value.get("rotation") or 0))
    if kind == "ellipse":
        angles = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False)
        wide, high = _number(value["radiusX"]), _number(value.get("radiusY"))
        sides = [(wide * math.cos(a), high * math.sin(a)) for a in angles]
    else:
        w, h = _number(value["width"]), _number(value["height"])
        sides = [(0.0, 0.0), (w, 0.0), (w, h), (0.0, h)]
    ratio = size[1] / size[0]
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x + dx * cos - dy * ratio * sin, y + dx / ratio * sin + dy * cos) for dx, dy in sides]


# --- choices for the whole image --------------------------------------------------------------------------------------


def _image_choices(results: Sequence[Mapping[str, Any]], parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(tag, value) of every choice that belongs to no region."""
    for result in results:
        if _text(result["id"]) not in parts and result.get("type") == "choices":
            for value in _list(_value(result).get("choices")):
                yield _text(result.get("from_name")), _text(value)


def _states(name: str, value: str, classes: Iterable[str]) -> bool:
    return name == PRESENT or (name not in (VERDICT, WHY) and value in set(classes))


def _says_clean(name: str, value: str, present: Iterable[str]) -> bool:
    """True if the choice says that there is no defect; a class may itself be called "clean"."""
    if name == VERDICT:
        return value == CLEAN
    return name not in (PRESENT, WHY) and value not in present and value.casefold() in CLEAN_WORDS
