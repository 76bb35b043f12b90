"""What Label Studio sends: annotations that are damaged as JSON, and what several annotators' words come to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from tests import fakes
from tests.fuzz import mutate
from tests.fuzz.kinds import CLEANED, OK, REJECTED, WRONG, Fault, Target
from tests.fuzz.streams import kernels, plain_brush

SIZE = (16, 12)
CLASSES = ("crack", "hole")
NOWHERE = Path("/outside")
_bases: list[list[dict[str, Any]]] = []


def prepare() -> None:
    from labeling import brush
    from labeling import results as wire  # noqa: F401

    kernels()
    if _bases:
        return
    shape = {"original_width": 16, "original_height": 12, "image_rotation": 0, "to_name": "image"}
    painted = brush.encode(fakes.blob())
    values: list[tuple[str, dict[str, Any]]] = [
        ("brushlabels", {"format": "rle", "rle": painted}),
        ("polygonlabels", {"points": [[10, 10], [60, 10], [60, 70]], "closed": True}),
        ("rectanglelabels", {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}),
        ("rectanglelabels", {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 30}),
        ("ellipselabels", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 5}),
        ("keypointlabels", {"x": 50, "y": 50, "width": 1}),
    ]
    regions = [
        shape | {"id": f"r{n}", "from_name": kind[:3], "type": kind, "value": value | {kind: [CLASSES[n % 2]]}}
        for n, (kind, value) in enumerate(values)
    ]
    clean = {"id": "c", "from_name": "verdict", "to_name": "image", "type": "choices", "value": {"choices": ["clean"]}}
    present = clean | {"id": "p", "from_name": "present", "value": {"choices": ["crack"]}}
    why = clean | {"id": "w", "from_name": "why", "value": {"choices": ["glare"]}}
    note = clean | {"id": "n", "from_name": "note", "type": "textarea", "value": {"text": ["look here"]}}
    degree = regions[0] | {"from_name": "severity", "type": "choices", "value": {"choices": ["high"], "rle": painted}}
    _bases.extend([*([one] for one in regions), regions[:5], [regions[0], degree], [clean], [present, note], [why], []])


def _results(random: Random) -> Any:
    if random.random() < 0.15:
        return random.choice(_bases)
    found = mutate.value(random, {"result": random.choice(_bases)}, NOWHERE).get("result")
    return json.loads(json.dumps(found))  # what JSON cannot say does not come from a server


def make(random: Random, root: Path) -> dict[str, Any]:
    names = random.choice(({}, {"crack": "hole"}, {"old": "crack"}))
    return {"results": [_results(random) for _ in range(random.choice((1, 1, 2, 3)))], "names": names}


def check(case: dict[str, Any], root: Path) -> str:
    from curate.data import Label
    from labeling import agreement
    from labeling import results as wire

    labels = []
    for results in case["results"]:
        label = wire.label_in(results, SIZE, False, case["names"], CLASSES)
        if Label.from_json(json.loads(json.dumps(label.to_json(), allow_nan=False))).digest != label.digest:
            raise Fault(WRONG, "label changes on its way through the log")
        json.dumps(label.to_json(), ensure_ascii=False).encode()
        if "\n" in (label.reason or ""):
            raise Fault(WRONG, f"a reason of more than one line: {label.reason!r}")
        if label.clean and (shown := [one for one in _listed(results) if _is_region(one)]):
            raise Fault(CLEANED, f"{len(shown)} regions, such as {str(shown[0])[:150]}")
        if label.status == "labelled" and not label.reason:
            again = wire.label_in(wire.of_label(label, SIZE), SIZE, False, {}, CLASSES)
            if again.digest != label.digest:
                raise Fault(WRONG, "a label changes when it is sent and fetched")
        labels.append(label)
    agreement.consensus(labels, SIZE)
    return OK if all(label.status == "labelled" for label in labels) else REJECTED


def _listed(results: Any) -> list[dict[str, Any]]:
    return [one for one in results if isinstance(one, dict)] if isinstance(results, list) else []


def _is_region(result: dict[str, Any]) -> bool:
    """A person who looks at it would see something drawn, or would say that this cannot be read."""
    value = result.get("value")
    if not isinstance(value, dict):
        return False
    if "rle" in value:
        try:
            return any(alpha > 127 for alpha in plain_brush(value["rle"])[3::4])
        except (ValueError, TypeError):
            return True  # cut off, or no stream
    drawn = ("points", "radiusX", "keypointlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels")
    return any(name in value for name in drawn)


def make_numbers(random: Random, root: Path) -> dict[str, Any]:
    """Shapes with wild numbers and nothing else wrong."""

    def wild() -> Any:
        if random.random() < 0.3:
            return random.choice(
                (0, -0.0, 100, 1e6, -1e6, 1e30, 1e-320, 50, 99.999999, 1e6 + 1, math.nan, math.inf, 10**400)
            )
        return random.uniform(-20, 120)

    kind = random.choice(("polygonlabels", "rectanglelabels", "ellipselabels"))
    value: dict[str, Any] = {"x": wild(), "y": wild(), "rotation": random.choice((0, 0, wild()))}
    if kind == "polygonlabels":
        value = {"points": [[wild(), wild()] for _ in range(random.choice((0, 1, 2, 3, 3, 4, 5, 200)))]}
    elif kind == "rectanglelabels":
        value |= {"width": wild(), "height": wild()}
    else:
        value |= {"radiusX": wild(), "radiusY": wild()}
    result = {"id": "r", "from_name": "x", "to_name": "image", "type": kind, "value": value | {kind: ["crack"]}}
    return {"results": [[result]], "names": {}}


TARGETS = [Target("studio", make, check, prepare, 2.0), Target("studio_numbers", make_numbers, check, prepare)]
