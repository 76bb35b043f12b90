"""`curate audit` and `curate stop-check`: what audit picks say of all images, and what that says about going on.

`read` gathers rounds and labels; all that follows is pure: `survey` for the figures, `check` for the advice. A round's
population is what could be picked when it was drawn; its audit picks stand for that, with known chances.
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

FEWEST = 5  # images below which a share says nothing
SILENT = 0.9  # nor does an interval as wide as this
BIASED = 0.1  # the share of audit picks without a label from which on the figures may be off
UNREACHED = 0.05  # the most of a population that a later audit may have been unable to draw
FEW_POSITIVES = 5  # predicted images of a class below which its kappa is mostly chance
NOT_LOGGED = "9999"  # when a label was made that is not in the log yet: after every round
OUT_OF_REACH = "(out of reach)"
LEFT_OUT = {
    "waiting": "not labelled yet",
    "skipped": "skipped",
    "disputed": "disputed",
    "gone": "no longer in the index",
}


class ImageHistory(NamedTuple):
    """An image that is labelled, or that a round picked. `at`: when it first got a label, in an import or else."""

    status: str
    present: frozenset[str] = frozenset()
    created: str = ""
    at: str = NOT_LOGGED
    imported: bool = False


@dataclass(frozen=True)
class AuditRound:
    """A round as far as it matters here. `classes`: those that its predictions know; None where nobody noted them."""

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
    """All that the figures rest on. `arrivals`: when images came into the index, but for those that came labelled."""

    draws: Sequence[AuditRound]
    known: Mapping[str, ImageHistory]
    arrivals: Collection[str] = ()


# --- what there is ----------------------------------------------------------------------------------------------------


def read(project: Project) -> AuditFacts:
    rounds.find(project.work, None)
    index, renames = Index(project), _renames(project.work)
    draws = [_draw(one, renames) for one in rounds.every(project.work)]
    picked = {row["id"] for draw in draws for row in draw.picks}
    first, classes = _first_labels(project.work), frozenset(project.class_names)
    known, arrivals, seen = {}, set(), _seen(project.work)
    fields = ("status", "source", "label_origin", "created_at", *PRESENT)
    for id, status, source, origin, created, regions, whole in index.rows(*fields):
        present, came = (
            frozenset(regions or ()) | frozenset(whole or ()),
            min(_moment(created), seen.get(id, NOT_LOGGED)),
        )
        now = _status(status, present, classes)
        if now == "labelled" or id in picked:
            at, said_by = first.get(id, (NOT_LOGGED, ""))
            known[id] = ImageHistory(now, present, came, at, said_by == "import")
        if source != "synthetic" and origin != "import":
            arrivals.add(came)
    return AuditFacts(draws, known, arrivals)


def _seen(work: Path) -> dict[str, str]:
    """The first draw that each image was there for: an index that was made anew does not know."""
    return {id: one.manifest["made_at"] for one in reversed(rounds.every(work)) for id in one.predicted()[0]}


def _status(status: str | None, present: frozenset[str], classes: frozenset[str]) -> str:
    """As it will be once the App's edits are in the log: whoever draws a region has labelled the image."""
    if status in ("skipped", "disputed"):
        return status
    if present - classes:
        return "disputed"
    return "labelled" if status == "labelled" or present else "waiting"


def _moment(created: datetime | None) -> str:
    """In the form of `labels.now`, so that the two can be compared."""
    if created is None:
        return ""
    plain = created.astimezone(UTC) if created.tzinfo else created
    return plain.strftime("%Y-%m-%dT%H:%M:%SZ")


def _first_labels(work: Path) -> dict[str, tuple[str, str]]:
    """When each image was first labelled, and by what. The index knows the last time only: a later correction would
    look as if the image had been unlabelled until then."""
    first: dict[str, tuple[str, str]] = {}
    for line in Segments(work / "labels").lines_with(b'"status":"labelled"'):
        first.setdefault(line["id"], (line["at"], line["origin"]))
    return first


def _renames(work: Path) -> list[tuple[str, dict[str, str]]]:
    lines = Segments(work / "labels").lines_with(b'"event":"rename"')
    return [(line["at"], line["names"]) for line in lines]


def _draw(one: Round, renames: Sequence[tuple[str, dict[str, str]]]) -> AuditRound:
    """A round keeps the class names of its day; labels bear those of today."""
    today = _today(one, renames)
    picks = [row | {"predicted": _renamed(row["predicted"], today)} for row in one.picks()]
    return AuditRound(one.manifest, picks, _classes(one, today))


def _today(one: Round, renames: Sequence[tuple[str, dict[str, str]]]) -> Callable[[str], str]:
    later = [names for at, names in renames if at >= str(one.manifest.get("made_at", ""))]

    def name(old: str) -> str:
        for names in later:
            old = names.get(old, old)
        return old

    return name


def _renamed(names: Iterable[str] | None, today: Callable[[str], str]) -> list[str] | None:
    return None if names is None else sorted({today(name) for name in names})


def _classes(one: Round, today: Callable[[str], str]) -> frozenset[str] | None:
    """The classes that the round's predictions knew; None where it kept none."""
    _, _, names = one.predicted()
    return frozenset(map(today, names)) or None


# --- one round's audit ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditSample:
    """One round's audit: the labelled picks, why others are left out, and what was labelled of its population since."""

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
        """The picks of which something was predicted; None where the predictions do not know the class."""
        known = self.draw.classes is None or name is None or name in self.draw.classes
        if not self.draw.manifest.get("predicted_by") or not known:
            return None
        keep = [place for place, row in enumerate(self.rows) if row.get("predicted") is not None]
        rows, present = [self.rows[i] for i in keep], [self.present[i] for i in keep]
        return AuditSample(self.draw, rows, present, self.sizes, self.left_out, self.since)


def _shows(names: Collection[str], name: str | None) -> bool:
    """Whether the class is there; with None, any defect."""
    return bool(names) if name is None else name in names


def samples(facts: AuditFacts, every: bool = False) -> list[AuditSample]:
    """The rounds with an audit, the first one first; with `every`, also those drawn at random as a whole."""
    drawn = [(draw, *_drawn(draw, every)) for draw in facts.draws]
    return [_sample(facts, draw, rows, sizes) for draw, rows, sizes in drawn if rows]


def _drawn(draw: AuditRound, every: bool) -> tuple[list[Mapping[str, Any]], dict[str, float]]:
    """The picks that stand for the population, and how many images each stratum has.

    Where a round has an audit, chances of its other picks speak of what the audit and the other slots left over.
    """
    sizes: dict[str, float] = dict(draw.manifest.get("strata") or {})
    audit = [row for row in draw.picks if row["slot"] == AUDIT and row["propensity"]]
    if audit:
        return audit, sizes or _by_chance([{**row, "chance": row["stratum"] or ""} for row in audit])
    if not every or not all(row["propensity"] for row in draw.picks):
        return [], {}
    # Images of equal chance were drawn from one urn, whatever stratum they belong to.
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
    states = [facts.known.get(row["id"], ImageHistory("gone")).status for row in rows]
    kept = [row for row, status in zip(rows, states, strict=True) if status == "labelled"]
    left_out = Counter(status for status in states if status != "labelled")
    present = [facts.known[row["id"]].present for row in kept]
    return AuditSample(draw, kept, present, sizes, left_out, list(_since(facts, draw)))


def _since(facts: AuditFacts, draw: AuditRound) -> Iterator[frozenset[str]]:
    """What those images show that were unlabelled at the draw, could be picked, and are labelled now."""
    own = {row["id"] for row in draw.picks}
    later = {row["id"] for other in facts.draws if other.number > draw.number for row in other.picks}
    earlier = {row["id"] for other in facts.draws if other.number < draw.number for row in other.picks}
    for id, one in facts.known.items():
        there = one.created <= draw.at
        # What an earlier round picked waited in the queue, or was labelled in the App and logged late; what came
        # labelled was never in a population. Where that errs, more defects seem to be left, not fewer.
        fresh = one.at >= draw.at and not one.imported and id not in earlier
        if one.status == "labelled" and (id in own or (there and (id in later or fresh))):
            yield one.present


# --- several rounds ---------------------------------------------------------------------------------------------------


def together(answered: Sequence[AuditSample], arrivals: Collection[str]) -> list[AuditSample]:
    """The newest audits that speak of one population: as many as do, at least the last one."""
    for start in range(len(answered)):
        if _fit(answered[start:], arrivals):
            return list(answered[start:])
    return []


def _fit(group: Sequence[AuditSample], arrivals: Collection[str]) -> bool:
    first, last = group[0], group[-1]
    came = any(first.draw.at < at <= last.draw.at for at in arrivals)
    missing = (_unreached(first, one) for one in group)
    return not (came and len(group) > 1) and all(0 <= n <= UNREACHED * first.population for n in missing)


def _unreached(first: AuditSample, one: AuditSample) -> float:
    """Images of the first audit's population that the other one could not draw, though nobody had labelled them:
    queued, skipped, or of a group that went to val or test."""
    return first.population - _before(first, one) - one.population


def _before(first: AuditSample, one: AuditSample) -> int:
    """How many images were labelled between the two draws."""
    return len(first.since) - len(one.since)


def prevalence(group: Sequence[AuditSample], name: str | None, confidence: float) -> Interval:
    """The share of the images, of those unlabelled when the first of these audits was drawn, that show the class."""
    first, parts = group[0], []
    for one in group:
        lost = _unreached(first, one)
        sizes = dict(one.sizes) | ({OUT_OF_REACH: lost} if lost else {})
        shown = _count(first.since, name) - _count(one.since, name)
        parts.append(estimates.AuditDraw(one.shows(name), one.pi, sizes, one.strata, _before(first, one), shown))
    return estimates.combined(parts, len(first.since), _count(first.since, name), confidence)


def _count(found: Sequence[frozenset[str]], name: str | None) -> int:
    return sum(_shows(present, name) for present in found)


def errors(answered: Sequence[AuditSample], name: str | None, confidence: float) -> tuple[Interval, Interval] | None:
    """Recall and false-alarm rate of what was predicted when the rounds were chosen, pooled; None without that."""
    parts = [part for one in answered if (part := one.predicted(name)) is not None]
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
    """What the audit says of one class, or with name None of any defect."""

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
    """`curate audit`: the figures, and what a person should know of them."""

    confidence: float
    rounds: list[int]
    prevalence_rounds: list[int]
    population: int
    drawn: int
    labelled: int
    left_out: dict[str, int]
    predicted_by: list[str]
    figures: list[ClassEstimates]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        names = ("confidence", "rounds", "prevalence_rounds", "population", "drawn", "labelled", "left_out")
        whole = [one.to_json() for one in self.figures if one.name is None]
        return {
            **{name: getattr(self, name) for name in (*names, "predicted_by")},
            "any": whole[0] if whole else None,
            "classes": {one.name: one.to_json() for one in self.figures if one.name is not None},
            "notes": self.notes,
        }


def survey(
    facts: AuditFacts, classes: Sequence[str], wanted: Sequence[str] = (), confidence: float = 0.95, every: bool = False
) -> AuditReport:
    """Unbiased figures for each class and any defect, or for the wanted classes alone."""
    for name in wanted:
        if name not in classes:
            raise unknown("class", name, classes)
    drawn = samples(facts, every)
    answered = [one for one in drawn if one.rows]
    if not answered:
        raise CurateError(_nothing(drawn, facts))
    group = together(answered, facts.arrivals)
    return AuditReport(
        confidence,
        [one.number for one in answered],
        [one.number for one in group],
        round(group[0].population),
        sum(one.drawn for one in answered),
        sum(len(one.rows) for one in answered),
        dict(sum((one.left_out for one in answered), Counter[str]())),
        sorted({str(by) for one in answered if (by := one.draw.manifest.get("predicted_by"))}),
        [_figures(answered, group, name, confidence) for name in (*(wanted or classes), *([] if wanted else [None]))],
        [*_notes(drawn), *_about_populations(answered, group), *_about_predictions(answered)],
    )


def _figures(
    answered: Sequence[AuditSample], group: Sequence[AuditSample], name: str | None, confidence: float
) -> ClassEstimates:
    shown = sum(_count(one.present, name) for one in answered)
    recall, alarms = errors(answered, name, confidence) or (None, None)
    return ClassEstimates(name, shown, prevalence(group, name, confidence), recall, alarms)


def _nothing(drawn: Sequence[AuditSample], facts: AuditFacts) -> str:
    if not drawn:
        remedy = "Run: curate select (the default strategy draws some)"
        if any(samples(facts, every=True)):
            remedy = "A round was drawn at random as a whole: curate audit --all takes its picks"
        return f"no round has audit picks. {remedy}"
    out, last = sum((one.left_out for one in drawn), Counter[str]()), f"round {drawn[-1].number:03d}"
    return f"no audit pick is labelled: {_listed(out)}. Label them: curate push, or curate app --view '{last}'"


def speaks(interval: Interval) -> bool:
    """Whether the interval says anything at all."""
    return interval.n >= FEWEST and interval.high - interval.low < SILENT


def plain(interval: Interval | None) -> dict[str, float | int | None] | None:
    """For JSON, which knows neither NaN nor infinity."""
    if interval is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in interval._asdict().items()}


# --- what a person should know ----------------------------------------------------------------------------------------


def _notes(drawn: Sequence[AuditSample]) -> list[str]:
    """Audit picks without a label, and strata without a labelled pick."""
    notes = [f"{_name(one)} has {one.drawn} audit picks: {_listed(one.left_out)}" for one in drawn if not one.rows]
    answered = [one for one in drawn if one.rows]
    out, total = sum((one.left_out for one in answered), Counter[str]()), sum(one.drawn for one in answered)
    if out:
        biased = f"; more than {100 * BIASED:g} %: if they differ from the others, the figures are biased"
        told = biased if out.total() > BIASED * total else ""
        notes.append(f"{out.total()} of {total} audit picks are left out ({_listed(out)}){told}")
    return notes + [note for one in answered for note in _about_strata(one)]


def _about_strata(one: AuditSample) -> Iterator[str]:
    seen = set(one.strata)
    unseen = {name: size for name, size in one.sizes.items() if name not in seen and size}
    if unseen:
        names = ", ".join(f"{name or '(none)'} ({size:g})" for name, size in unseen.items())
        allows = "the interval of prevalence allows for all or none of them"
        yield f"{_name(one)}: no labelled audit pick among the images of {names}; {allows}"


def _about_populations(answered: Sequence[AuditSample], group: Sequence[AuditSample]) -> Iterator[str]:
    if others := answered[: -len(group)]:
        names = ", ".join(_name(one) for one in others)
        rest = f"from {_name(group[0])} {'on' if len(group) > 1 else 'alone'}"
        yield f"{names}: drawn from another population (images came, went or were held out since); prevalence is {rest}"
    if lost := max(_unreached(group[0], one) for one in group):
        share = f"{lost:g} images ({100 * lost / group[0].population:.1f} %)"
        why = "could not be drawn by a later audit (queued, skipped, held out)"
        yield f"{share} {why}; the interval of prevalence allows for that"


def _about_predictions(answered: Sequence[AuditSample]) -> Iterator[str]:
    known = [one for one in answered if one.predicted(None) is not None]
    if len(known) > 1:
        names = ", ".join(_name(one) for one in known)
        yield f"recall and false alarms are pooled over {names}: each pick is held against its round's predictions"


def _name(one: AuditSample) -> str:
    return f"round {one.number:03d}"


def _listed(out: Counter[str]) -> str:
    return ", ".join(f"{count} {LEFT_OUT.get(state, state)}" for state, count in out.most_common())


# --- curate stop-check ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StopCheck:
    """`curate stop-check`: the advice and what it rests on."""

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
    """Whether another round is worth it, by the newest audit. `kappas` come from `settling`."""
    drawn = samples(facts)
    answered = [one for one in drawn if one.rows]
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
    """The newest audit that is at least half labelled, else the newest: one just begun would hide what was known."""
    done = [one for one in answered if 2 * len(one.rows) >= one.drawn]
    return next(reversed(done or answered), None)


def _audit(one: AuditSample) -> Audit:
    return Audit(one.shows(None), one.pi, one.strata, one.sizes, len(one.since), _count(one.since, None))


def _unseen(answered: Sequence[AuditSample], confidence: float) -> Interval:
    """How likely the next audit pick shows a class in a group (a coil, a piece) where no audit has seen it."""
    kinds = Counter(
        (name, row["group"])
        for one in answered
        for row, present in zip(one.rows, one.present, strict=True)
        for name in present
    )
    return stopping.good_turing(list(kinds.values()), sum(len(one.rows) for one in answered), confidence)


def settling(project: Project, known: Mapping[str, ImageHistory]) -> list[float]:
    """How far each round's predictions agree with those of the round before, for the last rounds; the oldest first."""
    renames, done = _renames(project.work), {id for id, one in known.items() if one.status == "labelled"}
    newest_first = [one for one in reversed(rounds.every(project.work)) if (one.folder / rounds.PREDICTED).is_file()]
    kappas = (_agreement(_columns(b, renames), _columns(a, renames), done) for a, b in pairwise(newest_first))
    return list(islice((kappa for kappa in kappas if not math.isnan(kappa)), STEADY_ROUNDS))[::-1]


Columns = tuple[list[str], dict[str, NDArray[np.float32]]]


def _columns(one: Round, renames: Sequence[tuple[str, dict[str, str]]]) -> Columns:
    """Ids, and a column of probabilities for each class of today; of classes that were merged the higher one."""
    ids, values, names = one.predicted()
    today, columns = _today(one, renames), dict[str, NDArray[np.float32]]()
    for name, column in zip(map(today, names), values.T, strict=True):
        columns[name] = np.maximum(columns.get(name, column), column)
    return ids, columns


def _agreement(before: Columns, after: Columns, done: Collection[str]) -> float:
    """The lowest kappa of a class, over images that nobody has labelled: no round may have learnt from them."""
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
        return math.nan  # nothing was learnt in between: this agreement is no sign of rest
    positive = ((old >= 0.5) | (new >= 0.5)).sum(axis=0)
    kappas = [k for k, n in zip(change.kappa_by_class, positive.tolist(), strict=True) if n >= FEW_POSITIVES]
    return min(kappas, default=change.kappa)
