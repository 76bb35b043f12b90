"""Run-lengths and brush streams: read or refused, and what is read is what a plain second reading gives."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from random import Random
from typing import Any

from tests import fakes
from tests.fuzz import mutate
from tests.fuzz.kinds import OK, WRONG, Fault, Target

NOWHERE = Path("/outside")


def kernels() -> None:
    """Compile all that decodes: the first time takes a minute, and would read like a hang."""
    from curate.data import Polygon
    from curate.masks import rle, shapes
    from labeling import brush

    mask = fakes.blob()
    shapes.polygon_mask(Polygon((((1, 1), (5, 1), (5, 5)),)), 16, 12)
    for refused in (lambda: rle.kaggle_to_mask("0 1", 12, 16), lambda: rle.coco_to_mask("~", 12, 16)):
        with contextlib.suppress(rle.RleError):
            refused()
    rle.compress([1, 2])
    rle.kaggle_to_mask(rle.mask_to_kaggle(mask), 12, 16)
    rle.coco_to_mask(rle.mask_to_coco(mask), 12, 16)
    brush.decode(brush.encode(mask), 12, 16)


def _size(random: Random) -> tuple[int, int]:
    """Now and then another size than the stream was written for."""
    odd = ((0, 0), (1, 1), (16, 12), (1, 192), (192, 1), (12, 15), (-1, 4), (70_000, 70_000), (3, 10**10))
    return random.choice(odd) if random.random() < 0.1 else (12, 16)


# --- run-lengths ------------------------------------------------------------------------------------------------------


def make_rle(random: Random, root: Path) -> dict[str, Any]:
    from curate.masks import rle

    mask = fakes.blob(seed=random.randrange(1000))
    kind = random.choice(("kaggle", "counts", "coco"))
    height, width = _size(random)
    if kind == "counts":
        found = mutate.value(random, {"counts": rle.mask_to_counts(mask)}, NOWHERE).get("counts", [])
        return {"kind": kind, "value": found, "height": height, "width": width}
    text = rle.mask_to_kaggle(mask) if kind == "kaggle" else rle.mask_to_coco(mask)
    data = mutate.text(random, text.encode(), NOWHERE)
    found = data.decode(*random.choice((("utf-8", "surrogateescape"), ("latin-1", "strict"), ("utf-16", "replace"))))
    return {"kind": kind, "value": found, "height": height, "width": width}


def check_rle(case: dict[str, Any], root: Path) -> str:
    from curate.errors import LabelProblem
    from curate.masks import rle

    read = {"kaggle": rle.kaggle_to_mask, "counts": rle.counts_to_mask, "coco": rle.coco_to_mask}[case["kind"]]
    mask = read(case["value"], case["height"], case["width"])
    if mask.shape != (case["height"], case["width"]) or mask.max(initial=0) > 1:
        raise Fault(WRONG, f"mask of {mask.shape} with values up to {mask.max(initial=0)}")
    if case["kind"] == "kaggle":
        again = rle.mask_to_kaggle(mask)
        numbers = [int(part) for part in case["value"].split()]
        if sum(numbers[1::2]) != int(mask.sum(dtype="int64")):
            raise Fault(WRONG, f"{sum(numbers[1::2])} pixels were told, {mask.sum()} are there")
    elif case["kind"] == "counts":
        again = rle.mask_to_counts(mask)
        if sum(list(case["value"])[1::2]) != int(mask.sum(dtype="int64")):
            raise Fault(WRONG, f"{sum(case['value'][1::2])} pixels were told, {mask.sum()} are there")
    else:
        again = rle.mask_to_coco(mask)
    try:
        same = (read(again, case["height"], case["width"]) == mask).all()
    except LabelProblem as problem:
        raise Fault(WRONG, f"what was written cannot be read: {problem}") from None
    if not same:
        raise Fault(WRONG, "a mask changes when it is written and read")
    return OK


# --- brush streams ----------------------------------------------------------------------------------------------------


def make_brush(random: Random, root: Path) -> dict[str, Any]:
    from labeling import brush

    stream = brush.encode(fakes.blob(seed=random.randrange(1000)))
    height, width = _size(random)
    if random.random() < 0.2:
        found: Any = mutate.value(random, {"rle": copy.copy(stream)}, NOWHERE).get("rle")
    else:
        found = list(mutate.some_bytes(random, bytes(stream), 8))
    return {"value": found, "height": height, "width": width}


def check_brush(case: dict[str, Any], root: Path) -> str:
    from labeling import brush

    mask = brush.decode(case["value"], case["height"], case["width"])
    alphas = plain_brush(case["value"])[3::4]
    if [int(alpha > 127) for alpha in alphas] != mask.ravel().tolist():
        raise Fault(WRONG, "a brush stroke reads otherwise, bit for bit")
    if (brush.decode(brush.encode(mask), *mask.shape) != mask).any():
        raise Fault(WRONG, "a brush stroke changes when it is written and read")
    return OK


def plain_brush(stream: Any) -> list[int]:
    """The values of a brush stream, read bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in stream)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = take(1)
        count = take(lengths[take(2)]) + 1
        values += [take(word)] * count if repeated else [take(word) for _ in range(count)]
    return values


TARGETS = [
    Target("rle", make_rle, check_rle, kernels, 1.5),
    Target("brush", make_brush, check_brush, kernels, 1.5),
]
__all__ = ["TARGETS", "plain_brush"]
