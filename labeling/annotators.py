"""How far people agree beyond chance, how fast each works, and who deserves a second look.

A measure that is undefined is None, never 1.0: where all rate every image alike, nothing distinguishes agreement
from habit. References: Cohen 1960, Fleiss 1971, Krippendorff 2011 (Computing Krippendorff's Alpha-Reliability).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import combinations, groupby
from statistics import fmean, median, variance
from typing import Any, NamedTuple

import numpy as np

from curate.data import Label
from curate.index.dataset import Index
from curate.labels.log import LabelLog
from curate.project import Project
from labeling.agreement import areas, overlaps
from labeling.annotations import ORIGIN, Annotation, newest
from labeling.consensus import LoggedAnnotations

IDLE = 900.0  # seconds on one image; beyond, the tab was left open, and a night would hide a year of work
ENOUGH = 10  # images or comparisons below which nobody is suspected of anything
KEPT = 0.9  # a good model may earn this share; with HASTE it says that nobody looked
HASTE = 0.25  # of the time for a change: looking is the larger part of a small correction, so less was hardly a look
FAR = 0.2  # careful people's mean agreement differs by less than this on the same images
SIGMAS = 2.0  # and the gap has to be larger than chance makes it

Pair = tuple[str, str]
Units = Sequence[Sequence[Hashable]]

# --- agreement beyond chance ------------------------------------------------------------------------------------------


class AgreementScore(NamedTuple):
    """A measure, and the number of images it rests on."""

    value: float | None
    images: int


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> AgreementScore:
    """Cohen's kappa of two people's ratings of the same images, in the same order."""
    n = len(first)
    if n != len(second):
        raise ValueError(f"both must have rated the same images, not {n} and {len(second)}")
    same = sum(a == b for a, b in zip(first, second, strict=True))
    ours, theirs = Counter(first), Counter(second)
    chance = sum(count * theirs[value] for value, count in ours.items())  # n * n times the expected share
    return AgreementScore((n * same - chance) / (n * n - chance) if n * n > chance else None, n)


def fleiss_kappa(units: Units) -> AgreementScore:
    """Fleiss' kappa of each image's ratings; only images with the most frequent number of them (two or more) count."""
    sizes = Counter(len(ratings) for ratings in units if len(ratings) > 1)
    if not sizes:
        return AgreementScore(None, 0)
    m = max(sizes, key=lambda size: (sizes[size], size))
    used = [Counter(ratings) for ratings in units if len(ratings) == m]
    n, totals = len(used), sum(used, Counter[Hashable]())
    observed = sum(c * (c - 1) for counts in used for c in counts.values()) / (n * m * (m - 1))
    chance = sum(total**2 for total in totals.values()) / (n * m) ** 2
    return AgreementScore((observed - chance) / (1 - chance) if len(totals) > 1 else None, n)


def krippendorff_alpha(units: Units) -> AgreementScore:
    """Krippendorff's nominal alpha of each image's ratings, any number of them; a single one does not count."""
    used = [Counter(ratings) for ratings in units if len(ratings) > 1]
    totals = sum(used, Counter[Hashable]())
    n = totals.total()
    differing = sum((c.total() ** 2 - sum(k * k for k in c.values())) / (c.total() - 1) for c in used)
    expected = n * n - sum(total**2 for total in totals.values())
    return AgreementScore(1 - (n - 1) * differing / expected if expected else None, len(used))


# --- ratings of the same image ----------------------------------------------------------------------------------------


class _Pixels(NamedTuple):
    """Two people's pixels of one class in one image."""

    who: Pair
    name: str
    iou: float
    dice: float


ImageAnnotations = Sequence[Annotation]  # of one image, by person


def verdict(label: Label) -> str:
    """`clean`, the classes shown, or why there are none: what an image comes down to. Quoted names cannot collide."""
    if label.status != "labelled":
        return label.status
    return "+".join(repr(name) for name in sorted(label.present)) or "clean"


def _compared(annotations: ImageAnnotations, classes: Iterable[str]) -> Iterator[_Pixels]:
    drawn = [
        (annotation.who, areas(annotation.label, annotation.size))
        for annotation in annotations
        if annotation.label.status == "labelled"
    ]
    for (a, ours), (b, theirs) in combinations(drawn, 2) if len(drawn) > 1 else ():
        for name, overlap in overlaps(ours, theirs).items():
            if name in classes:
                yield _Pixels((a, b), name, overlap.iou, overlap.dice)


def _presence(images: Sequence[ImageAnnotations], name: str) -> list[list[bool]]:
    return [[name in w.label.present for w in annotations if w.label.status == "labelled"] for annotations in images]


def _labels_by_pair(images: Sequence[ImageAnnotations]) -> dict[Pair, list[tuple[Label, Label]]]:
    by_pair: dict[Pair, list[tuple[Label, Label]]] = {}
    for image in images:
        for a, b in combinations(image, 2):
            by_pair.setdefault((a.who, b.who), []).append((a.label, b.label))
    return dict(sorted(by_pair.items()))


# --- the report -------------------------------------------------------------------------------------------------------


def logged(project: Project, number: int | None = None) -> list[Annotation]:
    """Return the annotations of the log, of one round or all, without those that were changed or deleted later."""
    sizes = {id: (width, height) for id, width, height in Index(project).rows("width", "height")}
    with closing(LabelLog(project.work / "labels", project.class_names)) as log:
        standing = {uid for stamps in LoggedAnnotations.of(log).settled.values() for uid in stamps}
        entries = (entry for entry in log.entries() if entry.origin == ORIGIN and "updated" in entry.extra)
        last = {entry.extra["annotation"]: entry for entry in entries}
    kept = [entry for uid, entry in last.items() if uid in standing and entry.id in sizes]
    return [
        Annotation.from_entry(entry, sizes[entry.id]) for entry in kept if number in (None, entry.extra.get("round"))
    ]


def report(annotations: Sequence[Annotation], classes: Sequence[str]) -> dict[str, Any]:
    """How far the annotators agree on these classes, how each works, and warnings for a person to read; ready for JSON.

    Of several annotations of one person on one image the newest counts.
    """
    latest = newest(annotations)
    images = [list(group) for _, group in groupby(latest, key=lambda annotation: annotation.id)]
    pixels = [row for shown in images for row in _compared(shown, set(classes))]
    pairs = _labels_by_pair(images)
    return {
        "images": len(images),
        "images_with_several": sum(len(shown) > 1 for shown in images),
        "verdict": _keyed("alpha", krippendorff_alpha([[verdict(w.label) for w in shown] for shown in images])),
        "classes": {name: _class(name, images, pairs, pixels) for name in classes},
        "pairs": [_pair(who, labels, pixels) for who, labels in pairs.items()],
        "annotators": {who: _person(who, latest, pixels) for who in sorted({annotation.who for annotation in latest})},
        "warnings": [*_lonely(latest, pairs), *_stamping(latest), *_outliers(latest, pairs, pixels)],
    }


def _keyed(name: str, score: AgreementScore) -> dict[str, Any]:
    return {name: score.value, f"{name}_images": score.images}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _class(
    name: str,
    images: Sequence[ImageAnnotations],
    pairs: Mapping[Pair, Sequence[tuple[Label, Label]]],
    pixels: Sequence[_Pixels],
) -> dict[str, Any]:
    own, presence = [row for row in pixels if row.name == name], _presence(images, name)
    kappas = [_pair_kappa(name, labels) for labels in pairs.values()]
    defined = [kappa for kappa in kappas if kappa.value is not None]
    return {
        "iou": _mean(row.iou for row in own),
        "dice": _mean(row.dice for row in own),
        "comparisons": len(own),
        "shown_by_anyone": sum(any(ratings) for ratings in presence),
        **_keyed("alpha", krippendorff_alpha(presence)),
        **_keyed("fleiss", fleiss_kappa(presence)),
        "cohen": _mean(kappa.value for kappa in defined),
        "cohen_pairs": len(defined),
        "cohen_comparisons": sum(kappa.images for kappa in defined),
    }


def _pair_kappa(name: str, labels: Sequence[tuple[Label, Label]]) -> AgreementScore:
    both = [(a, b) for a, b in labels if a.status == b.status == "labelled"]
    return cohen_kappa([name in a.present for a, _ in both], [name in b.present for _, b in both])


def _pair(who: Pair, labels: Sequence[tuple[Label, Label]], pixels: Sequence[_Pixels]) -> dict[str, Any]:
    kappa = cohen_kappa([verdict(a) for a, _ in labels], [verdict(b) for _, b in labels])
    return {
        "annotators": list(who),
        "images": len(labels),
        "kappa": kappa.value,
        "same_verdict": fmean(verdict(a) == verdict(b) for a, b in labels),
        "dice": _mean(row.dice for row in pixels if row.who == who),
        "comparisons": sum(row.who == who for row in pixels),
    }


def _person(who: str, annotations: Sequence[Annotation], pixels: Sequence[_Pixels]) -> dict[str, Any]:
    own = [annotation for annotation in annotations if annotation.who == who]
    times = _times(own)
    kept, changed = _with_origin(own, "prediction"), _with_origin(own, "changed")
    worked = sum(min(time, IDLE) for time in times) / 3600
    return {
        "images": len(own),
        "skipped": fmean(annotation.label.status == "skipped" for annotation in own),
        "images_per_hour": len(times) / worked if worked else None,
        "lead_time_median": median(times) if times else None,
        "lead_time_p90": float(np.quantile(times, 0.9)) if times else None,
        "preannotated": len(kept) + len(changed),
        "kept": len(kept) / (len(kept) + len(changed)) if kept or changed else None,
        "kept_lead_time_median": median(_times(kept)) if _times(kept) else None,
        "dice": _mean(row.dice for row in pixels if who in row.who),
        "comparisons": sum(who in row.who for row in pixels),
    }


def _times(annotations: Iterable[Annotation]) -> list[float]:
    return [t for annotation in annotations if (t := annotation.lead_time) is not None and math.isfinite(t) and t >= 0]


def _with_origin(annotations: Iterable[Annotation], origin: str) -> list[Annotation]:
    """Whoever skips an image neither keeps nor changes what was proposed for it."""
    return [
        annotation for annotation in annotations if annotation.origin == origin and annotation.label.status != "skipped"
    ]


# --- warnings ---------------------------------------------------------------------------------------------------------


def _lonely(annotations: Sequence[Annotation], pairs: Mapping[Pair, Any]) -> Iterator[str]:
    if len({annotation.who for annotation in annotations}) > 1 and not pairs:
        yield "no image was annotated by two people, so their agreement is unknown: give them some images in common"


def _stamping(annotations: Sequence[Annotation]) -> Iterator[str]:
    """People who keep nearly all that is proposed and hardly look at it.

    Whoever never changed anything has no time of their own to compare with; then the others' changes have to do.
    """
    for who in sorted({annotation.who for annotation in annotations}):
        own = [annotation for annotation in annotations if annotation.who == who]
        kept, changed = _with_origin(own, "prediction"), _with_origin(own, "changed")
        looked, usual = _times(kept), _times(changed) or _times(_with_origin(annotations, "changed"))
        enough = len(kept) + len(changed) >= ENOUGH and looked and usual
        if enough and len(kept) >= KEPT * (len(kept) + len(changed)) and median(looked) < HASTE * median(usual):
            yield (
                f"{who} kept {len(kept)} of {len(kept) + len(changed)} pre-annotations unchanged after a median of"
                f" {median(looked):.1f} s, where a change takes {'them' if _times(changed) else 'others'}"
                f" {median(usual):.1f} s: they may be confirming without looking"
            )


def _outliers(
    annotations: Sequence[Annotation], pairs: Mapping[Pair, Sequence[tuple[Label, Label]]], pixels: Sequence[_Pixels]
) -> Iterator[str]:
    """People far from all others, by where they draw or by what they see. Of two nobody can say who is wrong."""
    drawn = [(row.who, row.dice) for row in pixels]
    seen = [(who, float(verdict(a) == verdict(b))) for who, labels in pairs.items() for a, b in labels]
    for who in sorted({annotation.who for annotation in annotations}):
        for rows, measure in ((drawn, "mean Dice"), (seen, "share of equal verdicts")):
            own = [value for pair, value in rows if who in pair]
            rest = [value for pair, value in rows if who not in pair]
            if min(len(own), len(rest)) >= ENOUGH and fmean(rest) - fmean(own) > max(FAR, SIGMAS * _error(own, rest)):
                yield (
                    f"{who} agrees with the others far less than they do among themselves: {measure}"
                    f" {fmean(own):.2f} against {fmean(rest):.2f}, over {len(own)} comparisons"
                )


def _error(own: Sequence[float], rest: Sequence[float]) -> float:
    return math.sqrt(variance(own) / len(own) + variance(rest) / len(rest))
