"""Agreement of several annotators on one image, pixel by pixel, and the one label that follows.

A plain box counts as a filled one. A class that somebody names for the whole image without a region is shown, but its
pixels are unknown: it takes part in the vote on whether the class is there, not in the one on where. A label that is
not `labelled` (skipped, disputed) says nothing of either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from curate.data import Box, Defect, Label
from curate.masks.shapes import Mask, crop_of, defect_from_box, defect_from_mask, mask_of
from labeling.annotations import Size

DISAGREE = "annotators-disagree"
LEAST = 0.5  # mean Dice of those who show a class; below it their common pixels are the smaller part of what they drew
SAME_BOX = 0.5  # IoU from which two people's boxes mean the same defect, as detection benchmarks have it

Edges = tuple[float, float, float, float]
Value = TypeVar("Value", bound=Hashable)


def majority(values: Sequence[Value]) -> Value | None:
    """Return the value that more than half of them share, if there is one."""
    value, count = Counter(values).most_common(1)[0] if values else (None, 0)
    return value if 2 * count > len(values) else None


# --- pixels -----------------------------------------------------------------------------------------------------------


class CroppedMask(NamedTuple):
    """Pixels as a crop (0 and 1) and where in the image it lies; much less to count than the whole image."""

    left: int
    top: int
    mask: Mask

    @property
    def right(self) -> int:
        return self.left + self.mask.shape[1]

    @property
    def bottom(self) -> int:
        return self.top + self.mask.shape[0]


Areas = Mapping[str, CroppedMask | None]


class Overlap(NamedTuple):
    """Pixel counts of one class in two labels, of which at least one has some."""

    shared: int
    first: int
    second: int

    @property
    def iou(self) -> float:
        return self.shared / (self.first + self.second - self.shared)

    @property
    def dice(self) -> float:
        return 2 * self.shared / (self.first + self.second)


def pixel_agreement(first: Label, second: Label, size: Size) -> dict[str, Overlap]:
    """IoU and Dice of each class that either of two labels draws; none of a class whose pixels one does not know."""
    if not first.status == second.status == "labelled":
        return {}
    return overlaps(areas(first, size), areas(second, size))


def areas(label: Label, size: Size) -> dict[str, CroppedMask | None]:
    """The pixels of each class that a label shows; None where it names the class for the whole image only."""
    if label.status != "labelled":
        return {}
    drawn: dict[str, list[CroppedMask]] = {}
    for defect in label.defects:
        drawn.setdefault(defect.label, []).append(_area(defect, size))
    return {name: _united(drawn[name]) if name in drawn else None for name in sorted(label.present)}


def overlaps(first: Areas, second: Areas) -> dict[str, Overlap]:
    """Overlaps of two labels given as areas, for callers that compare each label with several others."""
    by_class = {}
    for name in sorted({*first, *second}):
        if None not in (sides := [side[name] for side in (first, second) if name in side]):
            shared = _shared(*sides) if len(sides) == 2 else 0  # type: ignore[arg-type]
            by_class[name] = Overlap(shared, _count(first.get(name)), _count(second.get(name)))
    return by_class


def _area(defect: Defect, size: Size) -> CroppedMask:
    x, y, w, h = defect.box
    if (crop := crop_of(defect)) is not None:
        return CroppedMask(int(x), int(y), crop)
    # A box's columns do not depend on its rows: two strips tell what a whole image would.
    columns = np.flatnonzero(mask_of(replace(defect, box=(x, 0.0, w, 1.0)), size[0], 1))
    rows = np.flatnonzero(mask_of(replace(defect, box=(0.0, y, 1.0, h)), 1, size[1]))
    return CroppedMask(int(columns[0]), int(rows[0]), np.ones((len(rows), len(columns)), np.uint8))


def _united(parts: Sequence[CroppedMask]) -> CroppedMask:
    if len(parts) == 1:
        return parts[0]
    left, top, counts = _counted(parts)
    return CroppedMask(left, top, (counts > 0).view(np.uint8))


def _counted(parts: Sequence[CroppedMask]) -> tuple[int, int, NDArray[np.uint16]]:
    """How many of the areas hold each pixel of the box around them all: its left, its top, the counts."""
    left, top = min(a.left for a in parts), min(a.top for a in parts)
    counts = np.zeros((max(a.bottom for a in parts) - top, max(a.right for a in parts) - left), np.uint16)
    for a in parts:
        counts[a.top - top : a.bottom - top, a.left - left : a.right - left] += a.mask
    return left, top, counts


def _count(area: CroppedMask | None) -> int:
    return 0 if area is None else int(np.count_nonzero(area.mask))


def _shared(first: CroppedMask, second: CroppedMask) -> int:
    left, right = max(first.left, second.left), min(first.right, second.right)
    top, bottom = max(first.top, second.top), min(first.bottom, second.bottom)
    if left >= right or top >= bottom:
        return 0
    a, b = (s.mask[top - s.top : bottom - s.top, left - s.left : right - s.left] for s in (first, second))
    return int(np.count_nonzero(a & b))


# --- consensus --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Consensus:
    """The label that follows from several.

    `agreement`: mean over the classes that anyone shows of the mean pairwise Dice, where a pair of which one does not
    show the class scores 0; None for one person alone. `disputed`: the reason why somebody has to decide.
    """

    label: Label
    agreement: float | None
    disputed: str | None = None


@dataclass(frozen=True, slots=True)
class _AnnotatedPixels:
    """A label with its pixels."""

    label: Label
    areas: Areas


def consensus(labels: Sequence[Label], size: Size, least: float = LEAST) -> Consensus:
    """Merge labels by majority: of the image, of each class and of each pixel; the order of labels does not matter.

    A pixel stays where more than half paint it, so two people keep what they share: whoever missed it or overshot is
    overruled only by a third. Where all who show a class used plain boxes, the result is boxes. One label, or equal
    ones, come back as they are.

    The label is disputed where there is no majority for labelled or skipped, where as many show a class as do not,
    where those who show a class do not agree on its place (mean Dice below `least`, or no pixel with a majority), and
    where most see a defect but no class has a majority.
    """
    if not labels:
        raise ValueError("a consensus needs at least one label")
    if (label := _unanimous(labels)) is not None:
        return Consensus(label, 1.0 if len(labels) > 1 else None)
    votes = [_AnnotatedPixels(label, areas(label, size)) for label in labels]
    status, agreement = majority([label.status for label in labels]), _mean_agreement(votes)
    if status == "skipped":
        return Consensus(Label("skipped", reason=_reasons(labels)), agreement)
    merged, doubtful = _merged([vote for vote in votes if vote.label.status == "labelled"], size, least)
    doubtful |= set() if status == "labelled" else {label.status for label in labels} - {"labelled"}
    if not doubtful:
        return Consensus(merged, agreement)
    reason = f"{DISAGREE}: {', '.join(sorted(doubtful))}"
    return Consensus(replace(merged, status="disputed", reason=reason), agreement, reason)


def _unanimous(labels: Sequence[Label]) -> Label | None:
    """The label that all of them are; equal ones may still list their regions in another order."""
    return min(labels, key=repr) if len({label.digest for label in labels}) == 1 else None


def _reasons(labels: Sequence[Label]) -> str | None:
    return "; ".join(sorted({label.reason for label in labels if label.status == "skipped" and label.reason})) or None


def _mean_agreement(votes: Sequence[_AnnotatedPixels]) -> float:
    pairs = list(combinations(votes, 2))
    names = sorted({name for vote in votes for name in vote.areas})
    if not names:
        return fmean(a.label.status == b.label.status for a, b in pairs)
    return fmean(fmean(_match(a, b, name) for a, b in pairs if name in a.areas or name in b.areas) for name in names)


def _match(first: _AnnotatedPixels, second: _AnnotatedPixels, name: str) -> float:
    """Dice of a class; where pixels are unknown, whether both show it."""
    if name not in first.areas or name not in second.areas:
        return 0.0
    a, b = first.areas[name], second.areas[name]
    return 1.0 if a is None or b is None else Overlap(_shared(a, b), _count(a), _count(b)).dice


def _merged(votes: Sequence[_AnnotatedPixels], size: Size, least: float) -> tuple[Label, set[str]]:
    """The majority's label, and the classes on which there is none."""
    if (label := _unanimous([vote.label for vote in votes])) is not None:
        return label, set()
    names = sorted({name for vote in votes for name in vote.areas})
    defects, whole, doubtful = [], [], set()
    for name in names:
        regions = _regions(name, votes, size)
        defects += regions
        if _holds_for_image(name, votes, bool(regions)):
            whole.append(name)
        if _doubtful(name, votes, least, merged=bool(regions) or name in whole):
            doubtful.add(name)
    if not defects and not whole and 2 * sum(vote.label.clean for vote in votes) <= len(votes):
        doubtful |= set(names)
    return Label("labelled", tuple(sorted(defects, key=lambda d: (d.label, d.box))), tuple(whole)), doubtful


def _holds_for_image(name: str, votes: Sequence[_AnnotatedPixels], drawn: bool) -> bool:
    """True if the class holds for the whole image: most say so, or most show it and its pixels stay unknown."""
    named = sum(name in vote.label.classes for vote in votes)
    shown = sum(name in vote.areas for vote in votes)
    return 2 * named > len(votes) or (2 * shown > len(votes) and named > 0 and not drawn)


def _doubtful(name: str, votes: Sequence[_AnnotatedPixels], least: float, merged: bool) -> bool:
    showing = [vote for vote in votes if name in vote.areas]
    if 2 * len(showing) <= len(votes):
        return 2 * len(showing) == len(votes)
    return not merged or fmean([_match(a, b, name) for a, b in combinations(showing, 2)] or [1.0]) < least


def _regions(name: str, votes: Sequence[_AnnotatedPixels], size: Size) -> list[Defect]:
    """The class's regions by majority of those who know its pixels: who does not show it knows that there are none."""
    own = [(who, d) for who, vote in enumerate(votes) for d in vote.label.defects if d.label == name]
    painted = [area for vote in votes if (area := vote.areas.get(name)) is not None]
    knowing = len(painted) + sum(name not in vote.areas for vote in votes)
    if not own:
        return []
    if all(defect.rle is None for _, defect in own):
        return _common_boxes(name, own, knowing, size)
    return _common_pixels(name, own, painted, knowing, size)


Owned = Sequence[tuple[int, Defect]]


def _severity(regions: Owned) -> str | None:
    """Each person has one vote for each degree that they gave: many small regions do not outvote a large one."""
    return majority([degree for _, degree in sorted({(who, d.severity or "") for who, d in regions})]) or None


def _common_pixels(name: str, own: Owned, painted: Sequence[CroppedMask], knowing: int, size: Size) -> list[Defect]:
    import cv2

    left, top, counts = _counted(painted)
    kept = (2 * counts.astype(np.int64) > knowing).view(np.uint8)
    total, numbers, stats, _ = cv2.connectedComponentsWithStats(kept, connectivity=8)
    drawn = [(who, d, _area(d, size)) for who, d in own] if any(d.severity for _, d in own) else []
    defects = []
    for number in range(1, total):
        x, y, w, h = (int(value) for value in stats[number, :4])
        crop = (numbers[y : y + h, x : x + w] == number).view(np.uint8)
        area = CroppedMask(left + x, top + y, crop)
        touching = [(who, d) for who, d, other in drawn if _shared(area, other)]
        defects.append(_placed(name, area, _severity(touching)))
    return defects


def _placed(name: str, area: CroppedMask, severity: str | None) -> Defect:
    defect = defect_from_mask(name, area.mask)
    assert defect is not None
    x, y, w, h = defect.box
    return replace(defect, box=(x + area.left, y + area.top, w, h), severity=severity)


def _common_boxes(name: str, own: Owned, knowing: int, size: Size) -> list[Defect]:
    """The median box of each group that a majority holds."""
    holders: dict[Edges, frozenset[int]] = {}
    for who, defect in own:
        holders[_edges(defect)] = holders.get(_edges(defect), frozenset()) | {who}
    defects = []
    for group in _grouped(holders):
        if 2 * sum(len(holders[box]) for box in group) > knowing:
            left, top, right, bottom = np.median([box for box in group for _ in holders[box]], axis=0).tolist()
            middle = defect_from_box(name, Box(left, top, right - left, bottom - top), *size, clip=True)
            severity = _severity([(who, d) for who, d in own if _edges(d) in group])
            defects.append(replace(middle, severity=severity))
    return defects


def _edges(defect: Defect) -> Edges:
    x, y, w, h = defect.box
    return (x, y, x + w, y + h)


def _grouped(holders: Mapping[Edges, frozenset[int]]) -> list[list[Edges]]:
    """Group boxes that mean one defect: the most similar first, never two of one person."""
    ious = [(_box_iou(a, b), a, b) for a, b in combinations(sorted(holders), 2)]
    group_of = {box: [box] for box in sorted(holders)}
    for _, a, b in sorted((pair for pair in ious if pair[0] >= SAME_BOX), key=lambda pair: (-pair[0], *pair[1:])):
        first, second = group_of[a], group_of[b]
        people = [{who for box in group for who in holders[box]} for group in (first, second)]
        if first is not second and not people[0] & people[1]:
            first += second
            group_of |= dict.fromkeys(second, first)
    return list({id(group): group for group in group_of.values()}.values())


def _box_iou(a: Edges, b: Edges) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, wide) * max(0.0, high)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
