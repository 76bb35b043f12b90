"""A trial as a picture: for each class a panel, for each arm its difference from the balanced real arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate import files
from synth.trial.verdict import MAIN, ArmResult, above, below
from train.evaluate.intervals import Estimate

ROW, LEFT, WIDE, HEAD = 18, 190, 360, 44
GREY, GREEN, RED = (110, 110, 110), (30, 130, 60), (190, 40, 40)


def write(target: Path, lines: Sequence[ArmResult], classes: Sequence[str], title: str) -> None:
    with files.written_aside(target) as aside:
        drawn(lines, classes, title).save(aside, format="PNG")


def drawn(lines: Sequence[ArmResult], classes: Sequence[str], title: str) -> Any:
    """Draw one row an arm and budget, one column a class, and all classes together at the right."""
    from PIL import Image, ImageDraw

    shown = [line for line in lines if line.differences]
    places = [*classes, ""]
    image = Image.new("RGB", (LEFT + len(places) * WIDE, HEAD + ROW * max(len(shown), 1) + ROW), "white")
    pen = ImageDraw.Draw(image)
    pen.text((8, 6), title, "black")
    reach = _reach([line.differences[place][MAIN] for line in shown for place in places])
    for column, place in enumerate(places):
        left = LEFT + column * WIDE
        pen.text((left + 8, 24), f"{place or 'all classes'}  (-{reach:.2f} to +{reach:.2f})", "black")
        pen.line([(left + WIDE // 2, HEAD), (left + WIDE // 2, HEAD + ROW * len(shown))], fill=(200, 200, 200))
        for row, line in enumerate(shown):
            _bar(pen, line.differences[place][MAIN], left, HEAD + row * ROW + ROW // 2, reach)
    for row, line in enumerate(shown):
        pen.text((8, HEAD + row * ROW + 3), f"{line.budget:>3}  {line.arm}", "black")
    return image


def _reach(figures: Sequence[Estimate]) -> float:
    """Limit of the axis: the end of the longest interval, rounded up to the next twentieth."""
    ends = [abs(end) for estimate in figures for end in (estimate.low, estimate.high) if math.isfinite(end)]
    return max(0.05, math.ceil(20 * max(ends, default=0.0)) / 20)


def _bar(pen: Any, estimate: Estimate, left: int, y: int, reach: float) -> None:
    if not math.isfinite(estimate.value):
        pen.text((left + WIDE // 2 - 3, y - 6), "-", GREY)
        return
    low, value, high = (
        left + WIDE / 2 + end / reach * (WIDE / 2 - 10) for end in (estimate.low, estimate.value, estimate.high)
    )
    colour = GREEN if above(estimate) else RED if below(estimate) else GREY
    pen.line([(low, y), (high, y)], fill=colour, width=2)
    pen.ellipse([(value - 3, y - 3), (value + 3, y + 3)], fill=colour)
