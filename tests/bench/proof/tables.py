"""Tables of the runs for RESULTS.md, and a short one for README. Rows in, text out."""

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
RunsByStrategy = dict[str, dict[Place, dict[int, Row]]]  # strategy -> setting -> seed -> row
OURS, BASELINE, STRONG = "portfolio", "random (plain)", "probe_one_a_group"
CHANCE = 0.05
RESULTS = REPOSITORY / "tests" / "bench" / "proof" / "RESULTS.md"
START, END = "<!-- proof: made by make proof -->", "<!-- proof: end -->"


def write(rows: Sequence[Row]) -> None:
    write_text(RESULTS, results(rows))
    readme = REPOSITORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    if START in text and END in text:
        between = f"{START}\n{short(runs_by_strategy(rows, 'main'))}\n{END}"
        write_text(readme, re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: between, text, flags=re.S))


def results(rows: Sequence[Row]) -> str:
    runs, second = runs_by_strategy(rows, "main"), runs_by_strategy(rows, "second")
    parts = ["# Results of the proof", "", _head(rows), "", "## The bar", "", *bar(runs)]
    parts += ["", "## From five exemplars", "", *exemplars(runs)]
    parts += ["", "## From a cold start", "", *cold(runs)]
    parts += ["", "## Setting by setting", "", *every(runs)]
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


def runs_by_strategy(rows: Iterable[Row], table: str) -> RunsByStrategy:
    runs: RunsByStrategy = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["table"] == table and "failed" not in row:
            place = (row["data"], row["rare"], row["ratio"], row["start"])
            runs[row["strategy"]][place][row["seed"]] = row
    return runs


# --- from exemplars -------------------------------------------------------------------------------------------------


def last(row: Row, metric: str = "group_recall") -> float:
    value = row[metric][-1]
    return math.nan if value is None else float(value)


def recall(runs: RunsByStrategy, name: str, place: Place, metric: str = "group_recall") -> float:
    return mean([last(row, metric) for row in runs[name].get(place, {}).values()])


def mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def places(runs: RunsByStrategy, start: str, data: str = "") -> list[Place]:
    """Return the settings that the baseline has."""
    name = BASELINE if start == "exemplars" else "random"
    return [place for place in runs[name] if place[3] == start and place[0] in (data or place[0],)]


def gap(runs: RunsByStrategy, name: str, place: Place) -> float:
    """Return the share of random's gap to full recall that is closed, at the same seeds."""
    ours, randoms = runs[name].get(place, {}), runs[BASELINE].get(place, {})
    seeds = ours.keys() & randoms.keys()
    both = (mean(last(side[seed]) for seed in seeds) for side in (ours, randoms))
    return gap_closed(*both)


def of_set(runs: RunsByStrategy, name: str, data: str) -> float:
    return mean(gap(runs, name, place) for place in places(runs, "exemplars", data))


def of_all(runs: RunsByStrategy, name: str, held: bool = False) -> float:
    """Average within each data set first; NaN where one of them is missing. `held`: without the settings of dev."""
    sets = [data for data in SETS if places(runs, "exemplars", data) and not (held and data == "plant")]
    means = []
    for data in sets:
        here = [place for place in places(runs, "exemplars", data) if not (held and dev(runs, place))]
        means.append(mean(gap(runs, name, place) for place in here))
    return fmean(means) if means and all(math.isfinite(value) for value in means) else math.nan


def dev(runs: RunsByStrategy, place: Place) -> bool:
    return any(row["dev"] for side in runs.values() for row in side.get(place, {}).values())


def complete(runs: RunsByStrategy, name: str, data: str) -> bool:
    """Return True where every setting of the protocol has every seed."""
    seeds = 1 if name.removesuffix(" (plain)") in SLOW else SEEDS[data]
    planned = (case[:4] for case in cases() if case.data == data and case.start == "exemplars")
    return all(len(runs[name].get(place, {})) >= seeds for place in planned)


def chance(runs: RunsByStrategy, name: str, other: str, data: str, start: str = "exemplars") -> tuple[float, float]:
    """Return the mean paired difference over a data set's settings and seeds, and its p-value."""
    pairs = [
        last(row) - last(runs[other][place][seed])
        for place, seeds in runs[name].items()
        if place[0] == data and place[3] == start
        for seed, row in seeds.items()
        if seed in runs[other].get(place, {})
    ]
    return mean(pairs), sign_flip(pairs) if pairs else math.nan


def exemplars(runs: RunsByStrategy) -> list[str]:
    sets = [data for data in SETS if places(runs, "exemplars", data)]
    head = ["strategy", *(f"{d}: pieces" for d in sets), *(f"{d}: images" for d in sets), *(f"{d}: gap" for d in sets)]
    names = [name for name in runs if any(place[3] == "exemplars" for place in runs[name])]
    names.sort(key=lambda name: -_low(mean(of_set(runs, name, data) for data in sets)))
    return table([*head, "gap, mean", "s a round"], [_exemplar_row(runs, name, sets) for name in names])


def _exemplar_row(runs: RunsByStrategy, name: str, sets: Sequence[str]) -> list[str]:
    cells = [
        shown(mean(recall(runs, name, place, metric) for place in places(runs, "exemplars", data)))
        for metric in ("group_recall", "image_recall")
        for data in sets
    ]
    star = {data: "" if complete(runs, name, data) else "*" for data in sets}
    gaps = [shown(of_set(runs, name, data)) + star[data] for data in sets]
    every_one = [row for place in runs[name] if place[3] == "exemplars" for row in runs[name][place].values()]
    return [_bold(name), *cells, *gaps, shown(of_all(runs, name)), shown(mean(row["seconds"] for row in every_one))]


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _low(value: float) -> float:
    return value if math.isfinite(value) else -9.0


# --- from a cold start ----------------------------------------------------------------------------------------------


def labels_to(runs: RunsByStrategy, name: str, place: Place, share: float) -> tuple[float, bool]:
    """Return the labels at which the mean curve reaches that share of the full-data macro-F1, and whether it does."""
    rows = list(runs[name].get(place, {}).values())
    if not rows:
        return math.nan, False
    lines = {
        key: [mean(row[key][i] for row in rows) for i in range(len(rows[0][key]))] for key in ("labels", "macro_f1")
    }
    reached = crossing(lines["labels"], lines["macro_f1"], share * mean(row["full"] for row in rows))
    return (reached, True) if math.isfinite(reached) else (lines["labels"][-1], False)


def ratio(runs: RunsByStrategy, name: str, other: str, share: float = 0.95) -> tuple[float, bool]:
    """Return the geometric mean over settings of labels needed against another's, and whether all were reached."""
    parts, exact = [], True
    for place in places(runs, "none"):
        (ours, there), (theirs, _) = (labels_to(runs, who, place, share) for who in (name, other))
        if math.isfinite(ours / theirs if theirs else math.nan):
            parts.append(math.log(ours / theirs))
            exact &= there
    return (math.exp(fmean(parts)), exact) if parts else (math.nan, False)


def height(runs: RunsByStrategy, name: str, place: Place) -> float:
    """The mean of macro-F1 over the first rounds."""
    return mean(mean(row["macro_f1"][: ROUNDS["none"] + 1]) for row in runs[name].get(place, {}).values())


def cold(runs: RunsByStrategy) -> list[str]:
    here = places(runs, "none")
    names = [name for name in runs if any(place[3] == "none" for place in runs[name])]
    names.sort(key=lambda name: -_low(mean(height(runs, name, place) for place in here)))
    lines = []
    for name in names:
        needed = [ratio(runs, name, "random", share) for share in (0.90, 0.95)]
        means = [mean(height(runs, name, p) for p in here if p[0] == data) for data in SETS]
        lines.append(
            [_bold(name), *map(shown, means), *(("" if exact else "≥ ") + shown(value) for value, exact in needed)]
        )
    head = [f"{data}: macro-F1, mean of eight rounds" for data in SETS]
    return table(["strategy", *head, "labels to 90 %, of random's", "labels to 95 %, of random's"], lines)


# --- ranks, chance, the bar -----------------------------------------------------------------------------------------


def mean_ranks(runs: RunsByStrategy, start: str) -> dict[str, float]:
    """Return the mean ranks of the strategies that have the shared rules on and every setting with every seed."""
    here, score = places(runs, start), recall if start == "exemplars" else height
    names = [name for name in _everywhere(runs, start) if "(plain)" not in name]
    if not names or not here:
        return {}
    return dict(zip(names, ranks([[score(runs, name, place) for name in names] for place in here]), strict=True))


def _everywhere(runs: RunsByStrategy, start: str) -> list[str]:
    """Return the strategies with every setting and seed; the means of others are not comparable."""
    here = places(runs, start)
    slow = {name for name in runs if name.removesuffix(" (plain)") in SLOW}
    return [name for name in runs if name not in slow and all(runs[name].get(place) for place in here)]


def is_peer(name: str) -> bool:
    return name.removesuffix(" (plain)") in PEERS


def worse_than_random(runs: RunsByStrategy) -> list[str]:
    """Return where the portfolio is significantly below random: rare class from exemplars, all from a cold start."""
    lines = []
    for data in SETS:
        difference, p = chance(runs, OURS, BASELINE, data)
        if difference < 0 and p < CHANCE:
            lines.append(f"{data}, from exemplars: {difference:+.3f} (p {p:.3f})")
        for name, values in _by_class(runs, data).items():
            p = sign_flip(values)
            if mean(values) < 0 and p < CHANCE:
                lines.append(f"{data}, cold start, {name}: {mean(values):+.3f} (p {p:.3f})")
    return lines


def _by_class(runs: RunsByStrategy, data: str) -> dict[str, list[float]]:
    """Return each class's recall after eight rounds minus random's, by setting and seed."""
    parts: dict[str, list[float]] = defaultdict(list)
    for place in places(runs, "none", data):
        for seed, row in runs[OURS].get(place, {}).items():
            other = runs["random"][place].get(seed)
            for name, value in row["at_eight"].items():
                if other and value is not None and other["at_eight"][name] is not None:
                    parts[name].append(value - other["at_eight"][name])
    return parts


def best_peer(runs: RunsByStrategy) -> str | None:
    """Return the peer that closes the largest share of the gap, with or without the shared rules."""
    peers = [name for name in runs if is_peer(name) and math.isfinite(of_all(runs, name))]
    return max(peers, key=lambda name: of_all(runs, name), default=None)


def bar(runs: RunsByStrategy) -> list[str]:
    return [*_bar_of_recall(runs), *_bar_of_labels(runs), *_bar_of_ranks(runs)]


def _bar_of_recall(runs: RunsByStrategy) -> list[str]:
    ours, strong, peer = of_all(runs, OURS), of_all(runs, STRONG), best_peer(runs)
    theirs = of_all(runs, peer) if peer else math.nan
    compared = {data: chance(runs, OURS, STRONG, data) for data in SETS}
    below = [f"{data} {less:+.3f} (p {p:.3f})" for data, (less, p) in compared.items() if less < 0 and p < CHANCE]
    held, strong_held = (shown(of_all(runs, name, held=True)) for name in (OURS, STRONG))
    left = gap_closed(ours, theirs)
    return [
        _verdict("share of the gap closed from five exemplars, at least 0.85", ours, ours >= 0.85),
        _verdict(f"above {STRONG}, {shown(strong)}", ours, ours > strong),
        _nowhere(f"significantly below {STRONG}", below),
        _verdict(f"of what the best peer ({peer}, {shown(theirs)}) leaves open, at least 0.30", left, left >= 0.3),
        f"- held-out settings alone: {OURS} {held}, {STRONG} {strong_held}",
    ]


def _bar_of_labels(runs: RunsByStrategy) -> list[str]:
    value, exact = ratio(runs, OURS, "random")
    often = "" if exact else " (it does not always get there)"
    lines = [_verdict(f"labels to 95 % of the full-data macro-F1{often}, at most 0.5 of random's", value, value <= 0.5)]
    peers = {name: ratio(runs, OURS, name)[0] for name in _everywhere(runs, "none") if is_peer(name)}
    best = max((name for name in peers if math.isfinite(peers[name])), key=lambda name: peers[name], default="")
    value = peers.get(best, math.nan)
    return [*lines, _verdict(f"at most 0.8 of the best peer's ({best or 'none played'})", value, value <= 0.8)]


def _bar_of_ranks(runs: RunsByStrategy) -> list[str]:
    lines = []
    for start in ("exemplars", "none"):
        rank = mean_ranks(runs, start)
        first = sorted(rank, key=lambda name: rank[name])[:3]
        names = ", ".join(f"{name} {rank[name]:.1f}" for name in first)
        what = f"best mean rank of {len(rank)}, {'five exemplars' if start == 'exemplars' else 'cold start'} ({names})"
        lines.append(_verdict(what, rank.get(OURS, math.nan), first[:1] == [OURS]))
    return [*lines, _nowhere("significantly worse than random", worse_than_random(runs))]


def _nowhere(what: str, where: Sequence[str]) -> str:
    return f"- {what} nowhere: **{'missed' if where else 'met'}** {'; '.join(where)}".rstrip()


def _verdict(what: str, value: float, met: bool) -> str:
    return f"- {what}: {shown(value)} **{'-' if not math.isfinite(value) else 'met' if met else 'missed'}**"


# --- more tables ----------------------------------------------------------------------------------------------------


def every(runs: RunsByStrategy) -> list[str]:
    """Return the recall of each setting from exemplars, and the area under macro-F1 of each from a cold start."""
    names = [name for name in (*BASELINES, BASELINE, OURS, "rare", *PEERS) if name in runs]
    lines = [
        [
            _title(runs, place),
            *(shown((recall if place[3] == "exemplars" else height)(runs, n, place)) for n in names),
        ]
        for start in ("exemplars", "none")
        for place in places(runs, start)
    ]
    return table(["setting", *names], lines)


def _title(runs: RunsByStrategy, place: Place) -> str:
    data, rare, ratio, start = place
    tail = f" {ratio:g}:1" if ratio > 1 else ""
    return f"{data} {rare}{tail}, {'macro-F1' if start == 'none' else 'pieces'}{' (dev)' if dev(runs, place) else ''}"


def failures(rows: Sequence[Row]) -> list[str]:
    """Return the reasons for failed runs, and their number."""
    count: dict[str, int] = defaultdict(int)
    for row in rows:
        if "failed" in row:
            count[f"{row['data']}: {row['failed']}"] += 1
    return [f"- {what} ({number} runs)" for what, number in sorted(count.items())] or ["- everybody played"]


def short(runs: RunsByStrategy) -> str:
    """Return README's table."""
    peer = best_peer(runs)
    names = [name for name in (BASELINE, *BASELINES[1:], peer, OURS) if name and name in runs]
    sets = [data for data in SETS if places(runs, "exemplars", data)]
    lines = []
    for name in names:
        pieces = [shown(mean(recall(runs, name, p) for p in places(runs, "exemplars", data))) for data in sets]
        lines.append([_bold(name), *pieces, shown(of_all(runs, name))])
    head = ["from five exemplars", *(f"{data}: pieces found" for data in sets), "gap closed"]
    return "\n".join([*table(head, lines), "", *_goals(runs)])


def _goals(runs: RunsByStrategy) -> list[str]:
    """Return the number of the protocol's goals that the portfolio meets, and the missed ones by name."""
    goals = [line.removeprefix("- ") for line in bar(runs)]
    met, missed = (sum(f"**{word}**" in line for line in goals) for word in ("met", "missed"))
    lines = [f"Of the {met + missed} goals of the protocol the default meets {met}. Missed:", ""]
    return [*lines, *(f"- {line.replace(' **missed**', '')}" for line in goals if "**missed**" in line)]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)]


def shown(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
