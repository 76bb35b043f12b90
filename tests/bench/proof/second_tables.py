"""The tables of the second protocol. Rows in, Markdown out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date

from tests.bench.proof import measures as m
from tests.bench.proof.measures import Measure, Row, Rows
from tests.bench.proof.rivals import is_rival
from tests.bench.proof.tables import shown, table
from train.simulate.one_run import EXEMPLARS, HIDDEN, NO_LABELS

OURS, RANDOM, STRONG = "portfolio", "random", "probe_one_a_group"
FAMILIES = ("tile", "strip", "plant")
WORST = 8  # settings that are shown as misses
ByName = dict[str, Rows]


def results(rows: Rows, planned: int, vectors: str, failed: Mapping[str, str]) -> str:
    """Return the whole page: for the settings of dev and those held out the bar, then the tables of all."""
    lacking = "" if len(rows) >= planned else f" **Incomplete**: {len(rows):,} of {planned:,} runs."
    parts = ["# Results of the second protocol", ""]
    parts += [f"{date.today()}; vectors: {vectors}; PROTOCOL-2.md tells what they are.{lacking}", ""]
    for title, mine in (("Held-out settings", [row for row in rows if not row["dev"]]),
                        ("dev settings", [row for row in rows if row["dev"]])):  # fmt: skip
        if mine:
            parts += [f"## {title}", "", *bar(mine), ""]
            parts += _tables(mine)
    parts += ["## What could not be played", ""]
    parts += [f"- {who}: {why}" for who, why in sorted(failed.items())] or ["- nothing"]
    return "\n".join(parts) + "\n"


def _tables(rows: Rows) -> list[str]:
    parts: list[str] = []
    for start, title, make in (
        (EXEMPLARS, "From five exemplars: area under group recall", exemplars),
        (NO_LABELS, "From a cold start", cold),
        (HIDDEN, "A hidden class", hidden),
    ):
        by = by_name(rows, start)
        if by:
            parts += [
                f"### {title}",
                "",
                *make(by),
                "",
                *misses(by, m.discovery if start == NO_LABELS else m.group_recall),
                "",
            ]
    return parts


def by_name(rows: Rows, start: str) -> ByName:
    by: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["start"] == start:
            by[row["strategy"]].append(row)
    return dict(by)


# --- tables ----------------------------------------------------------------------------------------------------------


def exemplars(by: ByName) -> list[str]:
    return _listed(by, m.group_recall, [], lambda rows: [])


def hidden(by: ByName) -> list[str]:
    return _listed(by, m.group_recall, ["labels until seen, of random's", "never seen"], lambda rows: _labels(rows, by))


def cold(by: ByName) -> list[str]:
    head = ["in three groups", "labels to all, of random's", "not all seen", "group recall", "macro-F1"]

    def more(rows: Rows) -> list[str]:
        areas = [m.overall(rows, measure) for measure in (m.discovery_of_three, m.group_recall, m.macro_f1)]
        return [shown(areas[0]), *_labels(rows, by), shown(areas[1]), shown(areas[2])]

    return _listed(by, m.discovery, head, more)


def _labels(rows: Rows, by: ByName) -> list[str]:
    never = m.mean(float(not m.labels_to_all(row)[1]) for row in rows)
    return [shown(m.label_ratio(rows, by.get(RANDOM, []))), shown(never)]


def _listed(by: ByName, measure: Measure, head: Sequence[str], more: object) -> list[str]:
    """Return the table of one start: areas by family, their mean, and the difference to random."""
    most = max(len(rows) for rows in by.values())
    ranks = m.mean_ranks(by, measure)
    lines = []
    for name in sorted(by, key=lambda name: -_low(m.overall(by[name], measure))):
        families, rows = m.by_family(by[name], measure), by[name]
        cells = [shown(families.get(family, math.nan)) for family in FAMILIES]
        difference = m.compare(rows, by.get(RANDOM, []), measure)
        lines.append([
            _bold(name) + ("" if len(rows) == most else "*"), *cells, shown(m.overall(rows, measure)),
            interval(difference), shown(ranks.get(name, math.nan)), *more(rows),  # type: ignore[operator]
            shown(m.mean(row["seconds"] for row in rows)),
        ])  # fmt: skip
    head = ["strategy", *FAMILIES, "mean", "less random", "rank", *head, "s a round"]
    return [*table(head, lines), "", "`*`: not with every setting and draw, so not to be compared."]


def interval(difference: m.Difference) -> str:
    if not math.isfinite(difference.low):
        return shown(difference.mean)
    return f"{difference.mean:+.2f} ({difference.low:+.2f} to {difference.high:+.2f}, p {difference.p:.3f})"


def misses(by: ByName, measure: Measure) -> list[str]:
    """Return the settings in which the portfolio lies farthest below the best of the others."""
    if OURS not in by:
        return []
    lines = []
    for setting in sorted({row["setting"] for row in by[OURS]}):
        values = {
            name: m.overall([row for row in rows if row["setting"] == setting], measure) for name, rows in by.items()
        }
        best = max(values.keys() - {OURS}, key=lambda name: _low(values[name]), default="")
        if best:
            cells = [setting, shown(values[OURS]), shown(values.get(RANDOM, math.nan)), f"{best} {shown(values[best])}"]
            lines.append((values[OURS] - values[best], cells))
    lines.sort(key=lambda line: line[0])
    head = ["where the portfolio misses most", "portfolio", "random", "best"]
    return table(head, [cells for short, cells in lines[:WORST] if short < 0])


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _low(value: float) -> float:
    return value if math.isfinite(value) else -9.0


# --- the bar ---------------------------------------------------------------------------------------------------------


def bar(rows: Rows) -> list[str]:
    lines = [*_bar_of_cold(by_name(rows, NO_LABELS)), *_bar_of_exemplars(by_name(rows, EXEMPLARS))]
    for start, title, measure in (
        (EXEMPLARS, "five exemplars", m.group_recall),
        (NO_LABELS, "cold start", m.discovery),
    ):
        ranks = m.mean_ranks(by_name(rows, start), measure)
        first = sorted(ranks, key=lambda name: ranks[name])[:3]
        if OURS in ranks:
            names = ", ".join(f"{name} {ranks[name]:.1f}" for name in first)
            lines.append(verdict(f"best mean rank of {len(ranks)}, {title} ({names})", ranks[OURS], first[0] == OURS))
    return lines or ["- nothing of the bar was played"]


def _bar_of_cold(by: ByName) -> list[str]:
    ours, randoms = by.get(OURS, []), by.get(RANDOM, [])
    if not ours or not randoms:
        return []
    value = m.label_ratio(ours, randoms)
    lines = [verdict("cold start, labels until all classes are seen, at most 0.60 of random's", value, value <= 0.6)]
    rivals = {name: m.label_ratio(ours, by[name]) for name in _complete(by)}
    if rivals:
        best = max(rivals, key=lambda name: rivals[name])
        lines.append(verdict(f"at most 0.80 of the best rival's ({best})", rivals[best], rivals[best] <= 0.8))
    last = max(len(row["labels"]) for row in ours)
    rounds = {place: m.compare(ours, randoms, m.seen_at(place)).verdict(m.CURVE_MARGIN) for place in range(1, last)}
    short = [f"round {place}: {what}" for place, what in rounds.items() if what in ("worse", "not shown")]
    return [*lines, f"- at no round worse than random: **{'missed' if short else 'met'}** {'; '.join(short)}".rstrip()]


def _bar_of_exemplars(by: ByName) -> list[str]:
    ours = by.get(OURS, [])
    if not ours:
        return []
    lines, rivals = [], {name: m.overall(by[name], m.group_recall) for name in _complete(by)}
    wanted = [(1.15, STRONG)] if STRONG in by else []
    if rivals:
        wanted.append((1.10, max(rivals, key=lambda name: rivals[name])))
    mine = m.overall(ours, m.group_recall)
    for factor, name in wanted:
        value = mine / theirs if (theirs := m.overall(by[name], m.group_recall)) else math.nan
        lines.append(
            verdict(f"from exemplars, group recall at least {factor:.2f} times {name}'s", value, value >= factor)
        )
        families = sorted({row["family"] for row in ours})
        found = {
            family: m.compare(
                [row for row in ours if row["family"] == family], by[name], m.group_recall
            ) for family in families
        }  # fmt: skip
        told = ", ".join(f"{family} {found[family].verdict(m.MARGIN)} {interval(found[family])}" for family in families)
        good = all(one.verdict(m.MARGIN) in ("better", "not inferior") for one in found.values())
        lines.append(f"- not inferior to {name} in every family: **{'met' if good else 'missed'}** {told}")
    return lines


def _complete(by: ByName) -> list[str]:
    """Return the rivals that have played all settings and draws of the portfolio."""
    mine = {(row["setting"], row["draw"]) for row in by.get(OURS, [])}
    return [name for name in by if is_rival(name) and mine <= {(row["setting"], row["draw"]) for row in by[name]}]


def verdict(what: str, value: float, met: bool) -> str:
    return f"- {what}: {shown(value)} **{'-' if not math.isfinite(value) else 'met' if met else 'missed'}**"
