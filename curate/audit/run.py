"""`curate audit` and `curate stop-check`: estimates about all images from audit picks, and advice on going on.

`read` gathers rounds and labels; the rest is pure: `survey` gives the estimates, `check` the advice. A round's
population is the images that could be picked when it was drawn; its audit picks represent these, with known
probabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.audit import estimates, stopping
from curate.audit.estimates import Floats, Interval
from curate.audit.stopping import ACCEPTABLE, STEADY_ROUNDS, Advice, Audit
from curate.data import AUDIT
from curate.errors import CurateError, unknown
from curate.index import rounds
from curate.index.dataset import PRESENT, Index
from curate.index.rounds import Round
from curate.labels.log import Segments
from curate.project import Project

FEWEST = 5  # images below which a share is not meaningful
SILENT = 0.9  # width from which on an interval is not meaningful
BIASED = 0.1  # the share of audit picks without a label from which on estimates may be biased
UNREACHED = 0.05  # the most of a population that a later audit may have been unable to draw
FEW_POSITIVES = 5  # predicted images of a class below which its kappa is mostly chance
NOT_LOGGED = "9999"  # the time of a label that is not in the log yet: after every round
OUT_OF_REACH = "(out of reach)"
LEFT_OUT = {
    "waiting": "not labelled yet",
    "skipped": "skipped",
    "disputed": "disputed",
    "gone": "no longer in the index",
}


class ImageHistory(NamedTuple):
    """An image that is labelled, or that a round picked. `at`: the time of its first label."""

    status: str
    present: frozenset[str] = frozenset()
    created: str = ""
    at: str = NOT_LOGGED
    imported: bool = False


@dataclass(frozen=True)
class AuditRound:
    """A round's manifest and picks. `classes`: those that its predictions know; None where none were stored."""

    manifest: Mapping[str, Any]
    picks: Sequence[Mapping[str, Any]]
    classes: frozenset[str] | None = None

    @property
    def number(self) -> int:
        return int(self.manifest["round"])

    @property
    def at(self) -> str:
        return str(self.manifest.get("made_at", ""))


@dataclass(frozen=True)
class AuditFacts:
    """The input of all estimates. `arrivals`: the times at which unlabelled images came into the index."""

    draws: Sequence[AuditRound]
    images: Mapping[str, ImageHistory]
    arrivals: Collection[str] = ()


# --- rounds and labels ------------------------------------------------------------------------------------------------


def read(project: Project) -> AuditFacts:
    """Read a project's rounds and labels."""
    rounds.find(project.work, None)
    index, renames = Index(project), _renames(project.work)
    draws = [_draw(round_, renames) for round_ in rounds.every(project.work)]
    picked = {row["id"] for draw in draws for row in draw.picks}
    first, classes = _first_labels(project.work), frozenset(project.class_names)
    images, arrivals, first_seen = {}, set(), _seen(project.work)
    fields = ("status", "source", "label_origin", "created_at", *PRESENT)
    for id, status, source, origin, created, regions, whole in index.rows(*fields):
        present, created_at = (
            frozenset(regions or ()) | frozenset(whole or ()),
            min(_moment(created), first_seen.get(id, NOT_LOGGED)),
        )
        now = _status(status, present, classes)
        if now == "labelled" or id in picked:
            at, label_origin = first.get(id, (NOT_LOGGED, ""))
            images[id] = ImageHistory(now, present, created_at, at, label_origin == "import")
        if source != "synthetic" and origin != "import":
            arrivals.add(created_at)
    return AuditFacts(draws, images, arrivals)


def _seen(work: Path) -> dict[str, str]:
    """The time of the first round that each image was there for: a rebuilt index does not know it."""
    return {id: round_.manifest["made_at"] for round_ in reversed(rounds.every(work)) for id in round_.predicted()[0]}


def _status(status: str | None, present: frozenset[str], classes: frozenset[str]) -> str:
    """The status that the image will have once the App's edits are logged: one with a region is labelled."""
    if status in ("skipped", "disputed"):
        return status
    if present - classes:
        return "disputed"
    return "labelled" if status == "labelled" or present else "waiting"


def _moment(created: datetime | None) -> str:
    """The time in the form of `labels.log.now`, so that the two can be compared."""
    if created is None:
        return ""
    plain = created.astimezone(UTC) if created.tzinfo else created
    return plain.strftime("%Y-%m-%dT%H:%M:%SZ")


def _first_labels(work: Path) -> dict[str, tuple[str, str]]:
    """Time and origin of each image's first label, from the log: the index knows only the last correction."""
    first: dict[str, tuple[str, str]] = {}
    for line in Segments(work / "labels").lines_with(b'"status":"labelled"'):
        first.setdefault(line["id"], (line["at"], line["origin"]))
    return first


def _renames(work: Path) -> list[tuple[str, dict[str, str]]]:
    lines = Segments(work / "labels").lines_with(b'"event":"rename"')
    return [(line["at"], line["names"]) for line in lines]


def _draw(round_: Round, renames: Sequence[tuple[str, dict[str, str]]]) -> AuditRound:
    """A round with the class names of today in place of those of its day."""
    today = _today(round_, renames)
    picks = [row | {"predicted": _renamed(row["predicted"], today)} for row in round_.picks()]
    return AuditRound(round_.manifest, picks, _classes(round_, today))


def _today(round_: Round, renames: Sequence[tuple[str, dict[str, str]]]) -> Callable[[str], str]:
    later = [names for at, names in renames if at >= str(round_.manifest.get("made_at", ""))]

    def name(old: str) -> str:
        for names in later:
            old = names.get(old, old)
        return old

    return name


def _renamed(names: Iterable[str] | None, today: Callable[[str], str]) -> list[str] | None:
    return None if names is None else sorted({today(name) for name in names})


def _classes(round_: Round, today: Callable[[str], str]) -> frozenset[str] | None:
    """The classes that the round's predictions know; None where it stored none."""
    _, _, names = round_.predicted()
    return frozenset(map(today, names)) or None


# --- one round's audit ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditSample:
    """One round's audit: its labelled picks, why others are left out, and the labels of its population since."""

    draw: AuditRound
    rows: Sequence[Mapping[str, Any]]
    present: Sequence[frozenset[str]]
    sizes: Mapping[str, float]
    left_out: Counter[str]
    since: Sequence[frozenset[str]]

    @property
    def number(self) -> int:
        return self.draw.number

    @property
    def drawn(self) -> int:
        return len(self.rows) + self.left_out.total()

    @property
    def population(self) -> float:
        return float(sum(self.sizes.values()))

    @property
    def pi(self) -> Floats:
        return np.array([row["propensity"] for row in self.rows], np.float64)

    @property
    def strata(self) -> list[str]:
        return [str(row["stratum"] or "") for row in self.rows]

    def shows(self, name: str | None) -> Floats:
        return np.array([_shows(present, name) for present in self.present], np.float64)

    def flagged(self, name: str | None) -> Floats:
        return np.array([_shows(row["predicted"], name) for row in self.rows], np.float64)

    def predicted(self, name: str | None) -> AuditSample | None:
        """The picks with a prediction; None where the predictions do not know the class."""
        known = self.draw.classes is None or name is None or name in self.draw.classes
        if not self.draw.manifest.get("predicted_by") or not known:
            return None
        keep = [place for place, row in enumerate(self.rows) if row.get("predicted") is not None]
        rows, present = [self.rows[i] for i in keep], [self.present[i] for i in keep]
        return AuditSample(self.draw, rows, present, self.sizes, self.left_out, self.since)


def _shows(names: Collection[str], name: str | None) -> bool:
    """True where the class is among the names; with None, any class."""
    return bool(names) if name is None else name in names


def samples(facts: AuditFacts, every: bool = False) -> list[AuditSample]:
    """The rounds with an audit, oldest first; with `every`, also those drawn at random as a whole."""
    drawn = [(draw, *_drawn(draw, every)) for draw in facts.draws]
    return [_sample(facts, draw, rows, sizes) for draw, rows, sizes in drawn if rows]


def _drawn(draw: AuditRound, every: bool) -> tuple[list[Mapping[str, Any]], dict[str, float]]:
    """The picks that represent the population, and the number of images in each stratum.

    Where a round has an audit, the propensities of its other picks refer to the images that its slots left over.
    """
    sizes: dict[str, float] = dict(draw.manifest.get("strata") or {})
    audit = [row for row in draw.picks if row["slot"] == AUDIT and row["propensity"]]
    if any(row.get("urn") for row in audit):
        rows = [{**row, "chance": row.get("urn") or row["stratum"] or ""} for row in audit]
        unseen = {name: sizes[name] for name in sizes.keys() - {row["stratum"] or "" for row in audit}}
        return [{**row, "stratum": row["chance"]} for row in rows], _by_chance(rows) | unseen
    if audit:
        return audit, sizes or _by_chance([{**row, "chance": row["stratum"] or ""} for row in audit])
    if not every or not all(row["propensity"] for row in draw.picks):
        return [], {}
    # Images of equal propensity form one stratum of the draw, whatever stratum they belong to.
    rows = [{**row, "chance": f"chance {row['propensity']:.9g}"} for row in draw.picks]
    urns = _by_chance(rows)
    never = sum(sizes.values()) - sum(urns.values())
    return [{**row, "stratum": row["chance"]} for row in rows], urns | ({"never drawn": never} if never > 0 else {})


def _by_chance(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for row in rows:
        totals[row["chance"]] = totals.get(row["chance"], 0.0) + 1 / row["propensity"]
    return {name: float(round(total)) for name, total in totals.items()}


def _sample(
    facts: AuditFacts, draw: AuditRound, rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float]
) -> AuditSample:
    states = [facts.images.get(row["id"], ImageHistory("gone")).status for row in rows]
    kept = [row for row, status in zip(rows, states, strict=True) if status == "labelled"]
    left_out = Counter(status for status in states if status != "labelled")
    present = [facts.images[row["id"]].present for row in kept]
    return AuditSample(draw, kept, present, sizes, left_out, list(_since(facts, draw)))


def _since(facts: AuditFacts, draw: AuditRound) -> Iterator[frozenset[str]]:
    """Classes of each image that was unlabelled at the draw, could be picked, and is labelled now."""
    own = {row["id"] for row in draw.picks}
    later = {row["id"] for other in facts.draws if other.number > draw.number for row in other.picks}
    earlier = {row["id"] for other in facts.draws if other.number < draw.number for row in other.picks}
    for id, image in facts.images.items():
        there = image.created <= draw.at
        # An image of an earlier round was queued, or was labelled in the App and logged late; one that was imported
        # with a label was never in a population. Where that is wrong, more defects seem to be left, not fewer.
        fresh = image.at >= draw.at and not image.imported and id not in earlier
        if image.status == "labelled" and (id in own or (there and (id in later or fresh))):
            yield image.present


# --- several rounds ---------------------------------------------------------------------------------------------------


def together(answered: Sequence[AuditSample], arrivals: Collection[str]) -> list[AuditSample]:
    """The newest audits that are about one population: as many as possible, at least the last one."""
    for start in range(len(answered)):
        if _fit(answered[start:], arrivals):
            return list(answered[start:])
    return []


def _fit(group: Sequence[AuditSample], arrivals: Collection[str]) -> bool:
    first, last = group[0], group[-1]
    has_arrivals = any(first.draw.at < at <= last.draw.at for at in arrivals)
    missing = (_unreached(first, sample) for sample in group)
    return not (has_arrivals and len(group) > 1) and all(0 <= n <= UNREACHED * first.population for n in missing)


def _unreached(first: AuditSample, other: AuditSample) -> float:
    """Number of unlabelled images of the first audit's population that the other one could not draw: queued, skipped,
    or of a group that went to val or test."""
    return first.population - _before(first, other) - other.population


def _before(first: AuditSample, other: AuditSample) -> int:
    """Number of images that were labelled between the two draws."""
    return len(first.since) - len(other.since)


def prevalence(group: Sequence[AuditSample], name: str | None, confidence: float) -> Interval:
    """The share of images that show the class, among those unlabelled when the first of these audits was drawn."""
    first, parts = group[0], []
    for sample in group:
        lost = _unreached(first, sample)
        sizes = dict(sample.sizes) | ({OUT_OF_REACH: lost} if lost else {})
        shown = _count(first.since, name) - _count(sample.since, name)
        parts.append(
            estimates.AuditDraw(sample.shows(name), sample.pi, sizes, sample.strata, _before(first, sample), shown)
        )
    return estimates.combined(parts, len(first.since), _count(first.since, name), confidence)


def _count(images: Sequence[frozenset[str]], name: str | None) -> int:
    return sum(_shows(present, name) for present in images)


def errors(answered: Sequence[AuditSample], name: str | None, confidence: float) -> tuple[Interval, Interval] | None:
    """Recall and false-alarm rate of the rounds' own predictions, pooled; None without predictions."""
    parts = [part for sample in answered if (part := sample.predicted(name)) is not None]
    if not parts:
        return None
    shows, flagged = (np.concatenate([getattr(p, what)(name) for p in parts]) for what in ("shows", "flagged"))
    pi = np.concatenate([p.pi for p in parts])
    strata = [f"{p.number}/{stratum}" for p in parts for stratum in p.strata]
    sizes = {f"{p.number}/{stratum}": size for p in parts for stratum, size in p.sizes.items()}
    recall = estimates.ratio(flagged, shows, pi, strata, sizes, confidence)
    return recall, estimates.ratio(flagged, 1 - shows, pi, strata, sizes, confidence)


# --- curate audit -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassEstimates:
    """The estimates for one class, or with name None for any defect."""

    name: str | None
    shown: int
    prevalence: Interval
    recall: Interval | None
    false_alarms: Interval | None

    def to_json(self) -> dict[str, Any]:
        pairs = {name: getattr(self, name) for name in ("prevalence", "recall", "false_alarms")}
        return {"shown": self.shown} | {name: plain(interval) for name, interval in pairs.items()}


@dataclass(frozen=True)
class AuditReport:
    """`curate audit`: the estimates, and notes for the user."""

    confidence: float
    rounds: list[int]
    prevalence_rounds: list[int]
    population: int
    drawn: int
    labelled: int
    left_out: dict[str, int]
    predicted_by: list[str]
    estimates: list[ClassEstimates]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        names = ("confidence", "rounds", "prevalence_rounds", "population", "drawn", "labelled", "left_out")
        whole = [estimate.to_json() for estimate in self.estimates if estimate.name is None]
        return {
            **{name: getattr(self, name) for name in (*names, "predicted_by")},
            "any": whole[0] if whole else None,
            "classes": {estimate.name: estimate.to_json() for estimate in self.estimates if estimate.name is not None},
            "notes": self.notes,
        }


def survey(
    facts: AuditFacts, classes: Sequence[str], wanted: Sequence[str] = (), confidence: float = 0.95, every: bool = False
) -> AuditReport:
    """Estimate prevalence, recall and false alarms for each class and any defect, or for the wanted classes alone."""
    for name in wanted:
        if name not in classes:
            raise unknown("class", name, classes)
    drawn = samples(facts, every)
    answered = [sample for sample in drawn if sample.rows]
    if not answered:
        raise CurateError(_nothing(drawn, facts))
    group = together(answered, facts.arrivals)
    return AuditReport(
        confidence,
        [sample.number for sample in answered],
        [sample.number for sample in group],
        round(group[0].population),
        sum(sample.drawn for sample in answered),
        sum(len(sample.rows) for sample in answered),
        dict(sum((sample.left_out for sample in answered), Counter[str]())),
        sorted({str(by) for sample in answered if (by := sample.draw.manifest.get("predicted_by"))}),
        [
            _class_estimates(answered, group, name, confidence)
            for name in (*(wanted or classes), *([] if wanted else [None]))
        ],
        [*_notes(drawn), *_about_populations(answered, group), *_about_predictions(answered)],
    )


def _class_estimates(
    answered: Sequence[AuditSample], group: Sequence[AuditSample], name: str | None, confidence: float
) -> ClassEstimates:
    shown = sum(_count(sample.present, name) for sample in answered)
    recall, alarms = errors(answered, name, confidence) or (None, None)
    return ClassEstimates(name, shown, prevalence(group, name, confidence), recall, alarms)


def _nothing(drawn: Sequence[AuditSample], facts: AuditFacts) -> str:
    if not drawn:
        remedy = "Run: curate select (the default strategy draws some)"
        if any(samples(facts, every=True)):
            remedy = "A round was drawn at random as a whole: curate audit --all takes its picks"
        return f"no round has audit picks. {remedy}"
    left_out, last = sum((sample.left_out for sample in drawn), Counter[str]()), f"round {drawn[-1].number:03d}"
    return f"no audit pick is labelled: {_listed(left_out)}. Label them: curate push, or curate app --view '{last}'"


def is_meaningful(interval: Interval) -> bool:
    """True where an interval is based on enough picks and is narrow enough to be read."""
    return interval.n >= FEWEST and interval.high - interval.low < SILENT


def plain(interval: Interval | None) -> dict[str, float | int | None] | None:
    """The interval for JSON, which has neither NaN nor infinity."""
    if interval is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in interval._asdict().items()}


# --- notes for the user ----------------------------------------------------------------------------------------


def _notes(drawn: Sequence[AuditSample]) -> list[str]:
    """Notes about audit picks without a label, and strata without a labelled pick."""
    notes = [
        f"{_name(sample)} has {sample.drawn} audit picks: {_listed(sample.left_out)}"
        for sample in drawn
        if not sample.rows
    ]
    answered = [sample for sample in drawn if sample.rows]
    left_out, total = (
        sum((sample.left_out for sample in answered), Counter[str]()),
        sum(sample.drawn for sample in answered),
    )
    if left_out:
        biased = f"; more than {100 * BIASED:g} %: if they differ from the others, the estimates are biased"
        warning = biased if left_out.total() > BIASED * total else ""
        notes.append(f"{left_out.total()} of {total} audit picks are left out ({_listed(left_out)}){warning}")
    return notes + [note for sample in answered for note in _about_strata(sample)]


def _about_strata(sample: AuditSample) -> Iterator[str]:
    seen = set(sample.strata)
    unseen = {name: size for name, size in sample.sizes.items() if name not in seen and size}
    if unseen:
        names = ", ".join(f"{name or '(none)'} ({size:g})" for name, size in unseen.items())
        allows = "the interval of prevalence allows for all or none of them"
        yield f"{_name(sample)}: no labelled audit pick among the images of {names}; {allows}"


def _about_populations(answered: Sequence[AuditSample], group: Sequence[AuditSample]) -> Iterator[str]:
    if others := answered[: -len(group)]:
        names = ", ".join(_name(sample) for sample in others)
        rest = f"from {_name(group[0])} {'on' if len(group) > 1 else 'alone'}"
        yield f"{names}: drawn from another population (images came, went or were held out since); prevalence is {rest}"
    if lost := max(_unreached(group[0], sample) for sample in group):
        share = f"{lost:g} images ({100 * lost / group[0].population:.1f} %)"
        why = "could not be drawn by a later audit (queued, skipped, held out)"
        yield f"{share} {why}; the interval of prevalence allows for that"


def _about_predictions(answered: Sequence[AuditSample]) -> Iterator[str]:
    known = [sample for sample in answered if sample.predicted(None) is not None]
    if len(known) > 1:
        names = ", ".join(_name(sample) for sample in known)
        yield f"recall and false alarms are pooled over {names}: each pick is compared with its round's predictions"


def _name(sample: AuditSample) -> str:
    return f"round {sample.number:03d}"


def _listed(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {LEFT_OUT.get(state, state)}" for state, count in left_out.most_common())


# --- curate stop-check ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StopCheck:
    """`curate stop-check`: the advice and its basis."""

    advice: Advice
    round: int | None
    picks: int
    picks_needed: int
    acceptable: float
    confidence: float
    kappas: list[float]
    remaining: int | None
    missed: Interval | None
    unseen: Interval | None
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        names = ("round", "picks", "picks_needed", "acceptable", "confidence", "kappas", "remaining", "notes")
        intervals = {"missed": plain(self.missed), "unseen": plain(self.unseen)}
        return self.advice.to_json() | {name: getattr(self, name) for name in names} | intervals


def check(
    facts: AuditFacts, kappas: Sequence[float] = (), acceptable: float = ACCEPTABLE, confidence: float = 0.95
) -> StopCheck:
    """Advise whether another round is worth it, by the newest audit. `kappas` come from `settling`."""
    drawn = samples(facts)
    answered = [sample for sample in drawn if sample.rows]
    newest, unseen = _newest(answered), _unseen(answered, confidence)
    audit = _audit(newest) if newest else Audit()
    advice = stopping.advice(audit, kappas, unseen, acceptable=acceptable, confidence=confidence)
    return StopCheck(
        advice,
        newest.number if newest else None,
        audit.picks,
        stopping.picks_needed(acceptable, confidence),
        acceptable,
        confidence,
        list(kappas),
        round(audit.remaining) if newest else None,
        audit.missed(confidence) if newest else None,
        unseen,
        _notes(drawn) if drawn else ["no round has audit picks; the default strategy draws some: curate select"],
    )


def _newest(answered: Sequence[AuditSample]) -> AuditSample | None:
    """The newest audit that is at least half labelled, else the newest: one just begun holds too little."""
    done = [sample for sample in answered if 2 * len(sample.rows) >= sample.drawn]
    return next(reversed(done or answered), None)


def _audit(sample: AuditSample) -> Audit:
    return Audit(
        sample.shows(None), sample.pi, sample.strata, sample.sizes, len(sample.since), _count(sample.since, None)
    )


def _unseen(answered: Sequence[AuditSample], confidence: float) -> Interval:
    """Probability that an image drawn at random shows a class in a group (a coil, a piece) where no audit has seen it.

    Picks beyond their urn's even share are left out: those that stay are as common as their like in the population.
    """
    drawn = [
        (row["group"], present)
        for sample in answered
        for row, present in zip(sample.rows, sample.present, strict=True)
        if not row.get("extra")
    ]
    kinds = Counter((name, group) for group, present in drawn for name in present)
    return stopping.good_turing(list(kinds.values()), len(drawn), confidence)


def settling(project: Project, images: Mapping[str, ImageHistory]) -> list[float]:
    """Agreement (kappa) of the predictions of the last rounds, each with the round before; oldest first."""
    renames, done = _renames(project.work), {id for id, image in images.items() if image.status == "labelled"}
    newest_first = [
        round_ for round_ in reversed(rounds.every(project.work)) if (round_.folder / rounds.PREDICTED).is_file()
    ]
    kappas = (_agreement(_columns(b, renames), _columns(a, renames), done) for a, b in pairwise(newest_first))
    return list(islice((kappa for kappa in kappas if not math.isnan(kappa)), STEADY_ROUNDS))[::-1]


Columns = tuple[list[str], dict[str, NDArray[np.float32]]]


def _columns(round_: Round, renames: Sequence[tuple[str, dict[str, str]]]) -> Columns:
    """Ids, and a column of probabilities for each class of today; for merged classes the higher one."""
    ids, values, names = round_.predicted()
    today, columns = _today(round_, renames), dict[str, NDArray[np.float32]]()
    for name, column in zip(map(today, names), values.T, strict=True):
        columns[name] = np.maximum(columns.get(name, column), column)
    return ids, columns


def _agreement(before: Columns, after: Columns, done: Collection[str]) -> float:
    """The lowest kappa of a class, over images without a label: no round can have learnt from them."""
    place = {id: row for row, id in enumerate(before[0])}
    pairs = [(place[id], row) for row, id in enumerate(after[0]) if id in place and id not in done]
    names = sorted(before[1].keys() & after[1].keys())
    if not pairs or not names:
        return math.nan
    rows = np.array(pairs).T
    old, new = (np.stack([part[1][n][r] for n in names], axis=1) for part, r in zip((before, after), rows, strict=True))
    return _lowest(old, new)


def _lowest(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
    change = stopping.prediction_change(old, new)
    if not change.mean_absolute:
        return math.nan  # the same model: this agreement does not show that predictions have settled
    positive = ((old >= 0.5) | (new >= 0.5)).sum(axis=0)
    kappas = [k for k, n in zip(change.kappa_by_class, positive.tolist(), strict=True) if n >= FEW_POSITIVES]
    return min(kappas, default=change.kappa)
