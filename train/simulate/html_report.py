"""A simulation as one self-contained HTML page: the verdict, curves with bands, and a table for each setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from train.evaluate.html_report import CSS, Line, draw_plot, html_legend, html_section, html_table, two_in_a_row
from train.simulate.summary import DISCOVERED

COLORS = ("#2563eb", "#e07b00", "#12805c", "#c02650", "#7c3aed", "#0891b2", "#b45309", "#be185d", "#4d7c0f", "#475569")
BASELINE_COLOR = "#9aa6b5"
LONG = 12  # number of rows from which on curves have no bands
Row = Mapping[str, Any]


def page(title: str, about: str, result: Row) -> str:
    sections = [_setting(section, result["yardstick"]) for section in result["sections"]]
    body = [_head(title, about), _verdict(result), _overall(result), *sections, _method(result)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    style = CSS.read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{style}</style></head>\n'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(title: str, about: str) -> str:
    return f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"


def _verdict(result: Row) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in result["verdict"])
    return html_section(f"Does it beat {escape(result['yardstick'])}?", "", lines)


def _overall(result: Row) -> str:
    if len(result["sections"]) < 2:
        return ""
    head = ["strategy", "settings", "gap closed", "pieces found", "labels to 95 %, of random's", "rank: recall"]
    head += ["rank: macro F1", "better", "worse"]
    rows = []
    for row in result["overall"]:
        cells = [row["settings"], _share(row["gap_closed"]), _share(row["group_recall"]), _times(row["labels_ratio"])]
        cells += [_fixed(row["rank_group_recall"], 1), _fixed(row["rank_macro_f1"], 1), row["better"], row["worse"]]
        rows.append(_cells(row["strategy"], cells))
    return html_section(
        "All settings", "Means within each data set first, then over data sets.", html_table(head, rows)
    )


# --- one setting ----------------------------------------------------------------------------------------------------


def section_title(section: Row) -> str:
    """`NEU-DET 30:1, 5 exemplars of crazing, 5 rounds of 2%`, or `NEU-DET, 2 images a class, for crazing, ...`."""
    setting = section["setting"]
    tail = f" {setting['imbalance']:g}:1" if setting["imbalance"] > 1 else ""
    starts = {"none": "from nothing", "exemplars": f"{setting['exemplars']} exemplars"}
    starts["hidden"] = f"{setting['exemplars']} images of each other class"
    start = starts.get(setting["start"])
    start = start or f"{setting['start']} images a class"
    rare = setting["rare"] and (
        f" of {setting['rare']}" if setting["start"] == "exemplars" else f", for {setting['rare']}"
    )
    return f"{section['world']}{tail}, {start}{rare or ''}, {setting['rounds']} rounds of {setting['budget']}"


def _setting(section: Row, baseline: str) -> str:
    rows = [row for row in section["rows"] if row["plays"]]
    colors = _colors([row["strategy"] for row in rows], baseline)
    rare = section["setting"]["rare"]
    plots = [
        _curves(rows, colors, "group_recall", f"Pieces with {rare or 'each class (mean)'}: share found", "share found"),
        _curves(rows, colors, "macro_f1", "Learner", "macro F1 on the test"),
        _curves(rows, colors, "image_recall", f"Images with {rare or 'each class (mean)'}: share found", "share found"),
        _curves(rows, colors, "seconds", "Time to choose a round", "seconds"),
    ]
    plots[:0] = [_discovery(rows, colors)] if any("discovery" in row for row in rows) else []
    table = html_section(section_title(section), _about(section, rows), _results_table(section, colors, baseline))
    return table + "".join(two_in_a_row(*plots))


def _about(section: Row, rows: Sequence[Row]) -> str:
    full = [row["full"] for row in rows if _known(row["full"])]
    best = f" A learner with all labels reaches a macro F1 of {full[0]:.3f}." if full else ""
    runs = f"{max(row['plays'] for row in rows)} runs a row" if rows else "no run"
    return escape(f"{runs}; learner: {section['setting']['learner']}.{best}")


def _colors(names: Sequence[str], baseline: str) -> dict[str, str]:
    others = [name for name in names if name != baseline]
    return {baseline: BASELINE_COLOR} | {name: COLORS[place % len(COLORS)] for place, name in enumerate(others)}


def _curves(rows: Sequence[Row], colors: Mapping[str, str], metric: str, title: str, up: str) -> str:
    lines: list[Line] = []
    known = [row for row in rows if all(_known(value) for value in row["lines"][metric]["mean"])]
    if not known:
        return ""
    first = 1 if metric == "seconds" else 0  # the start has no time: nothing is selected
    for row in known:
        xs, band = row["labels"][first:], {key: values[first:] for key, values in row["lines"][metric].items()}
        color = colors[row["strategy"]]
        if len(known) < LONG and band["low"] != band["mean"]:
            edge = [*zip(xs, _least(band["low"], 0), strict=True), *list(zip(xs, band["high"], strict=True))[::-1]]
            lines.append(("", color, edge, f'style="fill:{color};fill-opacity:.12;stroke:none"'))
        lines.append((row["strategy"], color, list(zip(xs, band["mean"], strict=True)), ""))
    right = max(x for _, _, points, _ in lines for x, _ in points)
    left = min(x for _, _, points, _ in lines for x, _ in points)
    top = max(y for _, _, points, _ in lines for _, y in points) if metric == "seconds" else 1.0
    lines = [(name, color, [(x, min(y, top)) for x, y in points], more) for name, color, points, more in lines]
    plot = draw_plot(lines, "labels", up, (left, right), (0, top or 1))
    return html_section(
        escape(title), "", plot + html_legend((row["strategy"], colors[row["strategy"]]) for row in known)
    )


def _discovery(rows: Sequence[Row], colors: Mapping[str, str]) -> str:
    lines: list[Line] = [
        (row["strategy"], colors[row["strategy"]], list(zip(row["labels"], row["discovery"]["seen"], strict=True)), "")
        for row in rows
    ]
    top, right = max(row["discovery"]["classes"] for row in rows), max(row["labels"][-1] for row in rows)
    plot = draw_plot(lines, "labels", "classes seen", (0, right), (0, top))
    legend = html_legend((row["strategy"], colors[row["strategy"]]) for row in rows)
    return html_section("Classes that nobody had seen: found so far", "", plot + legend)


def _least(values: Sequence[float], least: float) -> list[float]:
    return [max(value, least) for value in values]


def _results_table(section: Row, colors: Mapping[str, str], baseline: str) -> str:
    on_test = any(_known(row.get("full", math.nan)) for row in section["rows"])
    head = ["strategy", f"against {baseline}", "pieces found", "gap closed", "images found"]
    head += ["macro F1", "labels to 90\u00a0%", "labels to 95\u00a0%"] if on_test else []
    cold = any("discovery" in row for row in section["rows"])
    head += ["labels to see all classes"] * cold + ["minutes of labelling"]
    return html_table(head, [_line(section, row, on_test, colors, baseline) for row in section["rows"]])


def _line(section: Row, row: Row, on_test: bool, colors: Mapping[str, str], baseline: str) -> str:
    if not row["plays"]:
        return _cells(row["strategy"], [row["failed"] or "no run"])
    cells = [
        _against(section, row, baseline),
        _share(row["group_recall"]),
        _share(row.get("gap_closed", math.nan)),
        _images(row),
    ]
    if on_test:
        cells += [_test_score(row), *(_needed(row, share) for share in (90, 95))]
    cells += [_discovered(row)] if "discovery" in row else []
    cells.append(
        f"<span>{_fixed(row['minutes'], 0)}</span><small>{_fixed(row['seconds'], 2)} s to choose a round</small>"
    )
    name = row["strategy"] + (f" ({row['failed']})" if row["failed"] else "")
    return _cells(name, cells, colors.get(row["strategy"]))


def _images(row: Row) -> str:
    by_round = " · ".join(f"{value:.3g}" for value in row["found"]["images"][1:])
    return f"<span>{_share(row['image_recall'])}</span><small>{by_round}</small>"


def _test_score(row: Row) -> str:
    """Return the final macro F1; below it the mean over all labels, and its difference from the baseline's."""
    difference = row.get("against", {}).get("macro_f1")
    more = f", {difference['mean']:+.3f}, p {difference['p']:.2g}" if difference and _known(difference["mean"]) else ""
    return f"<span>{_fixed(row['macro_f1'])}</span><small>mean {_fixed(row['area']['macro_f1'])}{more}</small>"


def _cells(name: str, values: Sequence[object], color: str | None = None) -> str:
    dot = f'<span class="dot" style="background:{color}"></span>' if color else ""
    cells = "".join(f"<td>{value if str(value).startswith('<') else escape(str(value))}</td>" for value in values)
    return f"<tr><td>{dot}{escape(name)}</td>{cells}</tr>"


def _needed(row: Row, share: int) -> str:
    value, reached = row[f"labels_{share}"], f"{row[f'reached_{share}']} of {row['plays']} runs"
    if math.isnan(value):
        return "–"
    words = f"{value:.0f}" if math.isfinite(value) else "not reached"
    return f"<span>{words}</span><small>{reached}</small>"


def _discovered(row: Row) -> str:
    """Return the labels until all classes are seen; below, until each is seen in three pieces."""
    found, words = row["discovery"], []
    for name in DISCOVERED:
        labels, reached = found[f"labels_{name}"], found[f"reached_{name}"]
        words.append(f"{labels:.0f}" if reached == row["plays"] else f"&gt; {labels:.0f} ({reached} of {row['plays']})")
    return f"<span>{words[0]}</span><small>3 pieces of each: {words[1]}</small>"


def _against(section: Row, row: Row, baseline: str) -> str:
    difference = row.get("against", {}).get(section["main"])
    if difference is None or row["strategy"] == baseline or not _known(difference["mean"]):
        return "–"
    span = f"{difference['mean']:+.2f} ({difference['low']:+.2f} to {difference['high']:+.2f}, p {difference['p']:.2g})"
    return f"<span>{escape(difference['says'])}</span><small>{escape(span)}</small>"


def _share(value: float) -> str:
    return f"{value:.0%}" if _known(value) else "–"


def _fixed(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if _known(value) else "–"


def _times(value: float) -> str:
    return f"{value:.2f} x" if _known(value) and math.isfinite(value) else "not reached" if _known(value) else "–"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _method(result: Row) -> str:
    look, region = result["seconds"]["look"], result["seconds"]["region"]
    lines = [
        "Labels are hidden, and revealed for the picks of a strategy, round by round; all strategies have the same "
        "vectors, learner, exemplars, test and budget. Labels of audit picks count like any others; exemplars do not.",
        "A piece is a group: coil, strip or tile; ten images of one piece count once. The exemplars' groups are in "
        "neither pool nor test. Gap closed: (found - random's) / (1 - random's).",
        "The test holds whole groups out, at the prior of the pool. Labels to 95 %: where the mean curve first "
        "reaches 95 % of what the learner reaches with all labels of the pool.",
        "Bands: 95 % by Student's t over runs; of times, median and quartiles.",
        "Differences are paired by seed and fold; their intervals bootstrap "
        "seeds and groups, p is by sign flips (over groups for recall, over runs for macro F1). Better or worse: the "
        "interval excludes zero and p is below 0.05.",
        f"Simulated time: {look:g} s to look at an image, {region:g} s for each defect on it.",
    ]
    notes = [f"<p>{escape(line)}</p>" for line in (*lines, *result["notes"])]
    return html_section("How it was measured", "", "".join(notes))
