"""A simulation as one self-contained page: the verdict, curves with bands, and a table a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from train.evaluate.html_report import CSS, Line, _legend, _pairs, _plot, _section, _table

COLORS = ("#2563eb", "#e07b00", "#12805c", "#c02650", "#7c3aed", "#0891b2", "#b45309", "#be185d", "#4d7c0f", "#475569")
BASE = "#9aa6b5"  # the yardstick's
LONG = 12  # rows from which on lines alone are drawn, without bands
Row = Mapping[str, Any]


def page(title: str, about: str, found: Row) -> str:
    sections = [_setting(one, found["yardstick"]) for one in found["sections"]]
    body = [_head(title, about), _verdict(found), _overall(found), *sections, _how(found)]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    style = CSS.read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{style}</style></head>\n'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(title: str, about: str) -> str:
    return f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"


def _verdict(found: Row) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in found["verdict"])
    return _section(f"Does it beat {escape(found['yardstick'])}?", "", lines)


def _overall(found: Row) -> str:
    if len(found["sections"]) < 2:
        return ""
    head = ["strategy", "settings", "gap closed", "pieces found", "labels to 95 %, of random's", "rank: recall"]
    head += ["rank: macro F1", "better", "worse"]
    rows = []
    for row in found["overall"]:
        cells = [row["settings"], _share(row["gap_closed"]), _share(row["group_recall"]), _times(row["labels_ratio"])]
        cells += [_fixed(row["rank_group_recall"], 1), _fixed(row["rank_macro_f1"], 1), row["better"], row["worse"]]
        rows.append(_cells(row["strategy"], cells))
    return _section("All settings", "Means within each data set first, then over data sets.", _table(head, rows))


# --- one setting ----------------------------------------------------------------------------------------------------


def named(section: Row) -> str:
    """`NEU-DET 30:1, 5 exemplars of crazing, 5 rounds of 2%`, or `NEU-DET, 2 images a class, for crazing, ...`."""
    asked = section["setting"]
    tail = f" {asked['imbalance']:g}:1" if asked["imbalance"] > 1 else ""
    start = {"none": "from nothing", "exemplars": f"{asked['exemplars']} exemplars"}.get(asked["start"])
    start = start or f"{asked['start']} images a class"
    rare = asked["rare"] and (f" of {asked['rare']}" if asked["start"] == "exemplars" else f", for {asked['rare']}")
    return f"{section['world']}{tail}, {start}{rare or ''}, {asked['rounds']} rounds of {asked['budget']}"


def _setting(section: Row, yardstick: str) -> str:
    rows = [row for row in section["rows"] if row["plays"]]
    colors = _colors([row["strategy"] for row in rows], yardstick)
    rare = section["setting"]["rare"]
    plots = [
        _curves(rows, colors, "group_recall", f"Pieces with {rare or 'each class (mean)'}: share found", "share found"),
        _curves(rows, colors, "macro_f1", "What the learner is worth", "macro F1 on the test"),
        _curves(rows, colors, "image_recall", f"Images with {rare or 'each class (mean)'}: share found", "share found"),
        _curves(rows, colors, "seconds", "Time to choose a round", "seconds"),
    ]
    table = _section(named(section), _about(section, rows), _figures(section, colors, yardstick))
    return table + "".join(_pairs(*plots))


def _about(section: Row, rows: Sequence[Row]) -> str:
    full = [row["full"] for row in rows if _known(row["full"])]
    best = f" A learner with all labels reaches a macro F1 of {full[0]:.3f}." if full else ""
    plays = f"{max(row['plays'] for row in rows)} plays a row" if rows else "nothing was played"
    return escape(f"{plays}; learner: {section['setting']['learner']}.{best}")


def _colors(names: Sequence[str], yardstick: str) -> dict[str, str]:
    others = [name for name in names if name != yardstick]
    return {yardstick: BASE} | {name: COLORS[place % len(COLORS)] for place, name in enumerate(others)}


def _curves(rows: Sequence[Row], colors: Mapping[str, str], metric: str, title: str, up: str) -> str:
    lines: list[Line] = []
    known = [row for row in rows if all(_known(value) for value in row["lines"][metric]["mean"])]
    if not known:
        return ""
    first = 1 if metric == "seconds" else 0  # nothing was chosen at the start
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
    plot = _plot(lines, "labels", up, (left, right), (0, top or 1))
    return _section(escape(title), "", plot + _legend((row["strategy"], colors[row["strategy"]]) for row in known))


def _least(values: Sequence[float], least: float) -> list[float]:
    return [max(value, least) for value in values]


def _figures(section: Row, colors: Mapping[str, str], yardstick: str) -> str:
    judged = any(_known(row.get("full", math.nan)) for row in section["rows"])
    head = ["strategy", f"against {yardstick}", "pieces found", "gap closed", "images found"]
    head += ["macro F1", "labels to 90\u00a0%", "labels to 95\u00a0%"] if judged else []
    head += ["seconds a round", "minutes of labelling"]
    return _table(head, [_line(section, row, judged, colors, yardstick) for row in section["rows"]])


def _line(section: Row, row: Row, judged: bool, colors: Mapping[str, str], yardstick: str) -> str:
    if not row["plays"]:
        return _cells(row["strategy"], [row["failed"] or "not played"])
    cells = [
        _against(section, row, yardstick),
        _share(row["group_recall"]),
        _share(row.get("gap_closed", math.nan)),
        _images(row),
    ]
    if judged:
        cells += [_judged(row), *(_needed(row, share) for share in (90, 95))]
    cells += [_fixed(row["seconds"], 2), _fixed(row["minutes"], 0)]
    name = row["strategy"] + (f" ({row['failed']})" if row["failed"] else "")
    return _cells(name, cells, colors.get(row["strategy"]))


def _images(row: Row) -> str:
    by_round = " · ".join(f"{value:.3g}" for value in row["found"]["images"][1:])
    return f"<span>{_share(row['image_recall'])}</span><small>{by_round}</small>"


def _judged(row: Row) -> str:
    """At the end; below it the mean over all labels, and how much more that is than the yardstick's."""
    one = row.get("against", {}).get("macro_f1")
    more = f", {one['mean']:+.3f}, p {one['p']:.2g}" if one and _known(one["mean"]) else ""
    return f"<span>{_fixed(row['macro_f1'])}</span><small>mean {_fixed(row['area']['macro_f1'])}{more}</small>"


def _cells(name: str, values: Sequence[object], color: str | None = None) -> str:
    dot = f'<span class="dot" style="background:{color}"></span>' if color else ""
    cells = "".join(f"<td>{value if str(value).startswith('<') else escape(str(value))}</td>" for value in values)
    return f"<tr><td>{dot}{escape(name)}</td>{cells}</tr>"


def _needed(row: Row, share: int) -> str:
    value, reached = row[f"labels_{share}"], f"{row[f'reached_{share}']} of {row['plays']} plays"
    if math.isnan(value):
        return "–"
    words = f"{value:.0f}" if math.isfinite(value) else "not reached"
    return f"<span>{words}</span><small>{reached}</small>"


def _against(section: Row, row: Row, yardstick: str) -> str:
    one = row.get("against", {}).get(section["main"])
    if one is None or row["strategy"] == yardstick or not _known(one["mean"]):
        return "–"
    span = f"{one['mean']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f}, p {one['p']:.2g})"
    return f"<span>{escape(one['says'])}</span><small>{escape(span)}</small>"


def _share(value: float) -> str:
    return f"{value:.0%}" if _known(value) else "–"


def _fixed(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if _known(value) else "–"


def _times(value: float) -> str:
    return f"{value:.2f} x" if _known(value) and math.isfinite(value) else "not reached" if _known(value) else "–"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _how(found: Row) -> str:
    look, region = found["seconds"]["look"], found["seconds"]["region"]
    lines = [
        "Labels are hidden, and shown for what a strategy picks, round by round; everybody has the same vectors, "
        "learner, exemplars, test and budget. Labels of audit picks count like any others; exemplars do not.",
        "A piece is a group: coil, strip or tile; ten pictures of one piece count once. The exemplars' own groups are "
        "in neither pool nor test. Gap closed: (found - random's) / (1 - random's).",
        "The test keeps whole groups apart, at the prior of the pool. Labels to 95 %: where the mean curve first "
        "reaches 95 % of what the learner reaches with all labels of the pool.",
        "Bands: 95 % by Student's t over plays; of times, median and quartiles.",
        "Differences are paired by seed and fold; their intervals draw seeds "
        "and groups again, p is by sign flips (over groups for recall, over plays for macro F1). Better or worse is "
        "said where the interval leaves out zero and p is below 0.05.",
        f"Simulated time: {look:g} s to look at an image, {region:g} s for each defect on it.",
    ]
    notes = [f"<p>{escape(line)}</p>" for line in (*lines, *found["notes"])]
    return _section("How it was measured", "", "".join(notes))
