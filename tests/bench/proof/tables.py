"""What the plays say, as RESULTS.md and a short table for README. Rows in, text out."""

from __future__ import annotations

import math
import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from statistics import fmean
from typing import Any

from curate.files import write_text
from tests.bench.proof.sets import REPOSITORY, SETS
from tests.bench.proof.worlds import BASELINES, PEERS, ROUNDS, SEEDS, SLOW, cases, settings
from train.simulate.curve_stats import crossing, gap_closed, ranks, sign_flip

Row = Mapping[str, Any]
Place = tuple[str, str, float, str]
Found = dict[str, dict[Place, dict[int, Row]]]  # strategy -> setting -> seed -> row
OURS, YARDSTICK, STRONG = "portfolio", "random (plain)", "probe_one_a_group"
CHANCE = 0.05
RESULTS = REPOSITORY / "tests" / "bench" / "proof" / "RESULTS.md"
START, END = "<!-- proof: made by make proof -->", "<!-- proof: end -->"


def write(rows: Sequence[Row]) -> None:
    write_text(RESULTS, results(rows))
    readme = REPOSITORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    if START in text and END in text:
        between = f"{START}\n{short(gathered(rows, 'main'))}\n{END}"
        write_text(readme, re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: between, text, flags=re.S))


def results(rows: Sequence[Row]) -> str:
    found, second = gathered(rows, "main"), gathered(rows, "second")
    parts = ["# Results of the proof", "", _head(rows), "", "## The bar", "", *bar(found)]
    parts += ["", "## From five exemplars", "", *exemplars(found)]
    parts += ["", "## From a cold start", "", *cold(found)]
    parts += ["", "## Setting by setting", "", *every(found)]
    parts += ["", "## Texture vectors, from five exemplars", "", *exemplars(second)]
    return "\n".join([*parts, "", "## What did not play", "", *failures(rows)]) + "\n"


def _head(rows: Sequence[Row]) -> str:
    planned = sum(1 for case in cases() for _ in settings(case))
    played = [row for row in rows if row["table"] == "main"]
    could_not = sum("failed" in row for row in played)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scikit-learn", "steel-curate"))
    lacking = "" if len(played) >= planned else "**Incomplete**: what is lacking was not played yet. "
    sets = ", ".join(sorted({row["data"] for row in played})) or "none"
    return (
        f"{lacking}Made by `make proof` on {date.today()}; {versions}; {platform.machine()}, {os.cpu_count()} cores. "
        f"{len(played):,} of {planned:,} runs of the main table, of which a peer could not play {could_not} (see the "
        f"end); data sets: {sets}; PROTOCOL.md tells what they are. "
        "A dash: not played, or nothing to measure. `*`: not with every setting and seed of the protocol."
    )


def gathered(rows: Iterable[Row], table: str) -> Found:
    found: Found = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["table"] == table and "failed" not in row:
            place = (row["data"], row["rare"], row["ratio"], row["start"])
            found[row["strategy"]][place][row["seed"]] = row
    return found


# --- from exemplars -------------------------------------------------------------------------------------------------


def last(row: Row, metric: str = "group_recall") -> float:
    value = row[metric][-1]
    return math.nan if value is None else float(value)


def recall(found: Found, name: str, place: Place, metric: str = "group_recall") -> float:
    return mean([last(row, metric) for row in found[name].get(place, {}).values()])


def mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def places(found: Found, start: str, data: str = "") -> list[Place]:
    """Those that the yardstick played."""
    name = YARDSTICK if start == "exemplars" else "random"
    return [place for place in found[name] if place[3] == start and place[0] in (data or place[0],)]


def gap(found: Found, name: str, place: Place) -> float:
    """Of the gap that random leaves, at the same seeds."""
    ours, randoms = found[name].get(place, {}), found[YARDSTICK].get(place, {})
    seeds = ours.keys() & randoms.keys()
    both = (mean(last(side[seed]) for seed in seeds) for side in (ours, randoms))
    return gap_closed(*both)


def of_set(found: Found, name: str, data: str) -> float:
    return mean(gap(found, name, place) for place in places(found, "exemplars", data))


def of_all(found: Found, name: str, held: bool = False) -> float:
    """Within each data set first; NaN where one of them is lacking. `held`: without the settings of dev."""
    sets = [data for data in SETS if places(found, "exemplars", data) and not (held and data == "plant")]
    means = []
    for data in sets:
        here = [place for place in places(found, "exemplars", data) if not (held and dev(found, place))]
        means.append(mean(gap(found, name, place) for place in here))
    return fmean(means) if means and all(math.isfinite(one) for one in means) else math.nan


def dev(found: Found, place: Place) -> bool:
    return any(row["dev"] for side in found.values() for row in side.get(place, {}).values())


def complete(found: Found, name: str, data: str) -> bool:
    """Whether every setting of the protocol was played with every seed."""
    seeds = 1 if name.removesuffix(" (plain)") in SLOW else SEEDS[data]
    planned = (case[:4] for case in cases() if case.data == data and case.start == "exemplars")
    return all(len(found[name].get(place, {})) >= seeds for place in planned)


def chance(found: Found, name: str, other: str, data: str, start: str = "exemplars") -> tuple[float, float]:
    """The mean paired difference of a data set's settings and seeds, and what chance alone would explain."""
    pairs = [
        last(row) - last(found[other][place][seed])
        for place, seeds in found[name].items()
        if place[0] == data and place[3] == start
        for seed, row in seeds.items()
        if seed in found[other].get(place, {})
    ]
    return mean(pairs), sign_flip(pairs) if pairs else math.nan


def exemplars(found: Found) -> list[str]:
    sets = [data for data in SETS if places(found, "exemplars", data)]
    head = ["strategy", *(f"{d}: pieces" for d in sets), *(f"{d}: images" for d in sets), *(f"{d}: gap" for d in sets)]
    names = [name for name in found if any(place[3] == "exemplars" for place in found[name])]
    names.sort(key=lambda name: -_low(mean(of_set(found, name, data) for data in sets)))
    return table([*head, "gap, mean", "s a round"], [_exemplar_row(found, name, sets) for name in names])


def _exemplar_row(found: Found, name: str, sets: Sequence[str]) -> list[str]:
    cells = [
        shown(mean(recall(found, name, place, metric) for place in places(found, "exemplars", data)))
        for metric in ("group_recall", "image_recall")
        for data in sets
    ]
    star = {data: "" if complete(found, name, data) else "*" for data in sets}
    gaps = [shown(of_set(found, name, data)) + star[data] for data in sets]
    every_one = [one for place in found[name] if place[3] == "exemplars" for one in found[name][place].values()]
    return [_bold(name), *cells, *gaps, shown(of_all(found, name)), shown(mean(row["seconds"] for row in every_one))]


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _low(value: float) -> float:
    return value if math.isfinite(value) else -9.0


# --- from a cold start ----------------------------------------------------------------------------------------------


def labels_to(found: Found, name: str, place: Place, share: float) -> tuple[float, bool]:
    """Labels at which the mean curve gets to that share of the full-data macro-F1, and whether it does at all."""
    rows = list(found[name].get(place, {}).values())
    if not rows:
        return math.nan, False
    lines = {
        key: [mean(row[key][i] for row in rows) for i in range(len(rows[0][key]))] for key in ("labels", "macro_f1")
    }
    reached = crossing(lines["labels"], lines["macro_f1"], share * mean(row["full"] for row in rows))
    return (reached, True) if math.isfinite(reached) else (lines["labels"][-1], False)


def ratio(found: Found, name: str, other: str, share: float = 0.95) -> tuple[float, bool]:
    """The geometric mean over settings of labels needed, against another's; and whether this one always got there."""
    parts, exact = [], True
    for place in places(found, "none"):
        (ours, there), (theirs, _) = (labels_to(found, who, place, share) for who in (name, other))
        if math.isfinite(ours / theirs if theirs else math.nan):
            parts.append(math.log(ours / theirs))
            exact &= there
    return (math.exp(fmean(parts)), exact) if parts else (math.nan, False)


def height(found: Found, name: str, place: Place) -> float:
    """The mean of macro-F1 over the first rounds."""
    return mean(mean(row["macro_f1"][: ROUNDS["none"] + 1]) for row in found[name].get(place, {}).values())


def cold(found: Found) -> list[str]:
    here = places(found, "none")
    names = [name for name in found if any(place[3] == "none" for place in found[name])]
    names.sort(key=lambda name: -_low(mean(height(found, name, place) for place in here)))
    lines = []
    for name in names:
        needed = [ratio(found, name, "random", share) for share in (0.90, 0.95)]
        means = [mean(height(found, name, p) for p in here if p[0] == data) for data in SETS]
        lines.append(
            [_bold(name), *map(shown, means), *(("" if exact else "≥ ") + shown(value) for value, exact in needed)]
        )
    head = [f"{data}: macro-F1, mean of eight rounds" for data in SETS]
    return table(["strategy", *head, "labels to 90 %, of random's", "labels to 95 %, of random's"], lines)


# --- ranks, chance, the bar -----------------------------------------------------------------------------------------


def mean_ranks(found: Found, start: str) -> dict[str, float]:
    """Of those that have the layer on and played every setting with every seed."""
    here, score = places(found, start), recall if start == "exemplars" else height
    names = [name for name in _everywhere(found, start) if "(plain)" not in name]
    if not names or not here:
        return {}
    return dict(zip(names, ranks([[score(found, name, place) for name in names] for place in here]), strict=True))


def _everywhere(found: Found, start: str) -> list[str]:
    """Who played every setting, with every seed: others' means are of other settings."""
    here = places(found, start)
    slow = {name for name in found if name.removesuffix(" (plain)") in SLOW}
    return [name for name in found if name not in slow and all(found[name].get(place) for place in here)]


def is_peer(name: str) -> bool:
    return name.removesuffix(" (plain)") in PEERS


def worse_than_random(found: Found) -> list[str]:
    """Where the portfolio is significantly below random: rare class from exemplars, every class from a cold start."""
    lines = []
    for data in SETS:
        difference, p = chance(found, OURS, YARDSTICK, data)
        if difference < 0 and p < CHANCE:
            lines.append(f"{data}, from exemplars: {difference:+.3f} (p {p:.3f})")
        for name, values in _by_class(found, data).items():
            p = sign_flip(values)
            if mean(values) < 0 and p < CHANCE:
                lines.append(f"{data}, cold start, {name}: {mean(values):+.3f} (p {p:.3f})")
    return lines


def _by_class(found: Found, data: str) -> dict[str, list[float]]:
    """Recall of every class after eight rounds less random's, at each setting and seed."""
    parts: dict[str, list[float]] = defaultdict(list)
    for place in places(found, "none", data):
        for seed, row in found[OURS].get(place, {}).items():
            other = found["random"][place].get(seed)
            for name, value in row["at_eight"].items():
                if other and value is not None and other["at_eight"][name] is not None:
                    parts[name].append(value - other["at_eight"][name])
    return parts


def best_peer(found: Found) -> str | None:
    """By the share of the gap, with the layer or without."""
    peers = [name for name in found if is_peer(name) and math.isfinite(of_all(found, name))]
    return max(peers, key=lambda name: of_all(found, name), default=None)


def bar(found: Found) -> list[str]:
    return [*_bar_of_recall(found), *_bar_of_labels(found), *_bar_of_ranks(found)]


def _bar_of_recall(found: Found) -> list[str]:
    ours, strong, peer = of_all(found, OURS), of_all(found, STRONG), best_peer(found)
    theirs = of_all(found, peer) if peer else math.nan
    compared = {data: chance(found, OURS, STRONG, data) for data in SETS}
    below = [f"{data} {less:+.3f} (p {p:.3f})" for data, (less, p) in compared.items() if less < 0 and p < CHANCE]
    held, strong_held = (shown(of_all(found, name, held=True)) for name in (OURS, STRONG))
    left = gap_closed(ours, theirs)
    return [
        _verdict("share of the gap closed from five exemplars, at least 0.85", ours, ours >= 0.85),
        _verdict(f"above {STRONG}, {shown(strong)}", ours, ours > strong),
        _nowhere(f"significantly below {STRONG}", below),
        _verdict(f"of what the best peer ({peer}, {shown(theirs)}) leaves open, at least 0.30", left, left >= 0.3),
        f"- held-out settings alone: {OURS} {held}, {STRONG} {strong_held}",
    ]


def _bar_of_labels(found: Found) -> list[str]:
    value, exact = ratio(found, OURS, "random")
    often = "" if exact else " (it does not always get there)"
    lines = [_verdict(f"labels to 95 % of the full-data macro-F1{often}, at most 0.5 of random's", value, value <= 0.5)]
    peers = {name: ratio(found, OURS, name)[0] for name in _everywhere(found, "none") if is_peer(name)}
    best = max((name for name in peers if math.isfinite(peers[name])), key=lambda name: peers[name], default="")
    value = peers.get(best, math.nan)
    return [*lines, _verdict(f"at most 0.8 of the best peer's ({best or 'none played'})", value, value <= 0.8)]


def _bar_of_ranks(found: Found) -> list[str]:
    lines = []
    for start in ("exemplars", "none"):
        rank = mean_ranks(found, start)
        first = sorted(rank, key=lambda name: rank[name])[:3]
        names = ", ".join(f"{name} {rank[name]:.1f}" for name in first)
        what = f"best mean rank of {len(rank)}, {'five exemplars' if start == 'exemplars' else 'cold start'} ({names})"
        lines.append(_verdict(what, rank.get(OURS, math.nan), first[:1] == [OURS]))
    return [*lines, _nowhere("significantly worse than random", worse_than_random(found))]


def _nowhere(what: str, where: Sequence[str]) -> str:
    return f"- {what} nowhere: **{'missed' if where else 'met'}** {'; '.join(where)}".rstrip()


def _verdict(what: str, value: float, met: bool) -> str:
    return f"- {what}: {shown(value)} **{'-' if not math.isfinite(value) else 'met' if met else 'missed'}**"


# --- more tables ----------------------------------------------------------------------------------------------------


def every(found: Found) -> list[str]:
    """Recall of each setting from exemplars; area under macro-F1 of each from a cold start."""
    names = [name for name in (*BASELINES, YARDSTICK, OURS, "rare", *PEERS) if name in found]
    lines = [
        [
            _title(found, place),
            *(shown((recall if place[3] == "exemplars" else height)(found, n, place)) for n in names),
        ]
        for start in ("exemplars", "none")
        for place in places(found, start)
    ]
    return table(["setting", *names], lines)


def _title(found: Found, place: Place) -> str:
    data, rare, ratio, start = place
    tail = f" {ratio:g}:1" if ratio > 1 else ""
    return f"{data} {rare}{tail}, {'macro-F1' if start == 'none' else 'pieces'}{' (dev)' if dev(found, place) else ''}"


def failures(rows: Sequence[Row]) -> list[str]:
    """Who could not, why, and in how many runs."""
    count: dict[str, int] = defaultdict(int)
    for row in rows:
        if "failed" in row:
            count[f"{row['data']}: {row['failed']}"] += 1
    return [f"- {what} ({number} runs)" for what, number in sorted(count.items())] or ["- everybody played"]


def short(found: Found) -> str:
    """For README."""
    peer = best_peer(found)
    names = [name for name in (YARDSTICK, *BASELINES[1:], peer, OURS) if name and name in found]
    sets = [data for data in SETS if places(found, "exemplars", data)]
    lines = []
    for name in names:
        pieces = [shown(mean(recall(found, name, p) for p in places(found, "exemplars", data))) for data in sets]
        lines.append([_bold(name), *pieces, shown(of_all(found, name))])
    head = ["from five exemplars", *(f"{data}: pieces found" for data in sets), "gap closed"]
    return "\n".join([*table(head, lines), "", *_goals(found)])


def _goals(found: Found) -> list[str]:
    """What the portfolio was to reach, the misses by name."""
    said = [line.removeprefix("- ") for line in bar(found)]
    met, missed = (sum(f"**{word}**" in line for line in said) for word in ("met", "missed"))
    lines = [f"Of the {met + missed} goals of the protocol the default meets {met}. Missed:", ""]
    return [*lines, *(f"- {line.replace(' **missed**', '')}" for line in said if "**missed**" in line)]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)]


def shown(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
