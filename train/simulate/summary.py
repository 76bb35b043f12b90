"""Curves as one JSON object: a section a setting, a row a strategy, all of it together, and a verdict in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from train.simulate import curve_stats
from train.simulate.one_run import LOOK, REGION, Curve

YARDSTICK = "random"
SURE = 0.05
FEWEST = 6  # differences below which no pattern of signs can be rarer than one in twenty
LINES = ("group_recall", "image_recall", "macro_f1", "map", "seconds")
BETTER, WORSE, UNCLEAR, FEW = "better", "worse", "no clear difference", "too few plays to say"
APART = ("strategy", "options", "rules", "seed", "fold")  # what a section's rows and their plays differ in


def summary(curves: Sequence[Curve], yardstick: str = YARDSTICK) -> dict[str, Any]:
    """All that the page and `--json` show. The yardstick is the row that the others are held against."""
    sections = [_section(group, yardstick) for group in _sections(curves)]
    overall = _overall(sections, yardstick)
    return {
        "yardstick": yardstick,
        "seconds": {"look": LOOK, "region": REGION},
        "sections": sections,
        "overall": overall,
        "verdict": _verdict(sections, overall, yardstick),
        "notes": _notes(curves),
    }


def _sections(curves: Sequence[Curve]) -> list[list[Curve]]:
    found: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        asked = {name: value for name, value in asdict(curve.setting).items() if name not in APART}
        found[str((curve.world, sorted(asked.items())))].append(curve)
    return list(found.values())


def _notes(curves: Sequence[Curve]) -> list[str]:
    """What happened in many plays is said once."""
    said: dict[str, set[str]] = defaultdict(set)
    for curve in curves:
        for note in curve.notes:
            said[note].add(curve.setting.label)
    return [f"{', '.join(sorted(labels))}: {note}" for note, labels in said.items()]


# --- one setting ----------------------------------------------------------------------------------------------------


def _section(curves: Sequence[Curve], yardstick: str) -> dict[str, Any]:
    by: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        by[curve.setting.label].append(curve)
    setting, played = curves[0].setting, {name: [one for one in all_ if not one.failed] for name, all_ in by.items()}
    base = played.get(yardstick, [])
    rows = [_row(name, played[name], base) | {"failed": _failed(all_)} for name, all_ in by.items()]
    asked = {name: value for name, value in asdict(setting).items() if name not in APART}
    return {"world": curves[0].world, "setting": asked, "main": _main(curves), "rows": rows}


def _failed(curves: Sequence[Curve]) -> str | None:
    reasons = [one.failed for one in curves if one.failed]
    return f"{len(reasons)} of {len(curves)} plays: {reasons[0]}" if reasons else None


def _main(curves: Sequence[Curve]) -> str:
    """What decides: recall of the class that is looked for; without one what the learner is worth."""
    judged = any(one.full for one in curves)
    return "macro_f1" if curves[0].setting.rare is None and judged else "group_recall"


def _row(name: str, curves: Sequence[Curve], base: Sequence[Curve]) -> dict[str, Any]:
    if not curves:
        return {"strategy": name, "plays": 0}
    row: dict[str, Any] = {"strategy": name, "plays": len(curves)}
    for metric in ("group_recall", "image_recall", "macro_f1", "map", "f1", "ap"):
        row[metric] = _mean(curves, metric)
    row["area"] = {
        metric: _over([curve_stats.area(one, metric) for one in curves]) for metric in ("group_recall", "macro_f1")
    }
    for share in (90, 95):
        row[f"labels_{share}"] = curve_stats.mean_labels_to(curves, share / 100)
        row[f"reached_{share}"] = sum(math.isfinite(curve_stats.labels_to(one, share / 100)) for one in curves)
    row |= {"full": _over([curve_stats.full(one, "macro_f1") for one in curves]), "minutes": _mean(curves, "minutes")}
    row["labels"] = curve_stats.mean_line(curves, "labels")
    row["found"] = {key: curve_stats.mean_line(curves, key) for key in ("images", "groups")}
    row["lines"] = {metric: _band(curves, metric) for metric in LINES}
    row["seconds"] = float(
        np.median([value for one in curves for value in curve_stats.line(one, "seconds")[1:] or [0.0]])
    )
    return row | (_held_against(curves, base) if base else {})


def _mean(curves: Sequence[Curve], metric: str) -> float:
    return _over([curve_stats.value(one, metric) for one in curves])


def _over(values: Sequence[float]) -> float:
    known = [one for one in values if not math.isnan(one)]
    return float(np.mean(known)) if known else math.nan


def _band(curves: Sequence[Curve], metric: str) -> dict[str, list[float]]:
    """The mean at each point, and its 95 % interval by Student's t over plays; of times, which lie askew, quartiles."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    middle = curve_stats.mean_line(curves, metric)
    lines = [curve_stats.line(one, metric) for one in curves]
    table = np.array([one + one[-1:] * (len(middle) - len(one)) for one in lines])
    if metric == "seconds":
        low, middle, high = np.quantile(table, [0.25, 0.5, 0.75], axis=0).tolist()
        return {"mean": middle, "low": low, "high": high}
    if len(table) < 2:
        return {"mean": middle, "low": middle, "high": middle}
    half = stdtrit(len(table) - 1, 0.975) * table.std(axis=0, ddof=1) / len(table) ** 0.5
    return {"mean": middle, "low": (np.array(middle) - half).tolist(), "high": (np.array(middle) + half).tolist()}


def _held_against(curves: Sequence[Curve], base: Sequence[Curve]) -> dict[str, Any]:
    ends = {"group_recall": curve_stats.against(curves, base, "group_recall")}
    areas = {"macro_f1": curve_stats.against(curves, base, "macro_f1", by_area=True)}
    told = {metric: one | {"says": _says(one)} for metric, one in (ends | areas).items()}
    ours, theirs = (curve_stats.mean_labels_to(some, 0.95) for some in (curves, base))
    return {
        "against": told,
        "gap_closed": curve_stats.gap_closed(_mean(curves, "group_recall"), _mean(base, "group_recall")),
        "labels_ratio": ours / theirs if math.isfinite(theirs) and theirs > 0 else math.nan,
    }


def _says(one: dict[str, Any]) -> str:
    if one["p"] < SURE and one["low"] > 0:
        return BETTER
    if one["p"] < SURE and one["high"] < 0:
        return WORSE
    return FEW if one["units"] < FEWEST else UNCLEAR


# --- all settings ---------------------------------------------------------------------------------------------------


def _overall(sections: Sequence[dict[str, Any]], yardstick: str) -> list[dict[str, Any]]:
    """Means within each world first, then over worlds; ranks over settings, of those that played all."""
    names = list(dict.fromkeys(row["strategy"] for one in sections for row in one["rows"]))
    complete = [name for name in names if all(_of(one, name)["plays"] for one in sections)]
    ranked = {key: _ranked(sections, complete, key) for key in ("group_recall", "macro_f1")}
    rows = []
    for name in names:
        mine = [_of(one, name) for one in sections]
        counts = [
            row["against"][one["main"]]["says"] for one, row in zip(sections, mine, strict=True) if "against" in row
        ]
        rows.append(
            {
                "strategy": name,
                "settings": sum(bool(row["plays"]) for row in mine),
                "gap_closed": _by_world(sections, mine, "gap_closed"),
                "group_recall": _by_world(sections, mine, "group_recall"),
                "labels_ratio": _by_world(sections, mine, "labels_ratio"),
                "better": counts.count(BETTER),
                "worse": counts.count(WORSE),
                **{f"rank_{key}": by.get(name, math.nan) for key, by in ranked.items()},
            }
        )
    return rows


def _of(section: dict[str, Any], name: str) -> dict[str, Any]:
    return next((row for row in section["rows"] if row["strategy"] == name), {"strategy": name, "plays": 0})


def _ranked(sections: Sequence[dict[str, Any]], names: Sequence[str], key: str) -> dict[str, float]:
    """By recall at the end, by the area under macro-F1."""
    rows = [[_of(one, name) for name in names] for one in sections]
    table = [[float(row[key] if key == "group_recall" else row["area"][key]) for row in line] for line in rows]
    known = [line for line in table if any(math.isfinite(value) for value in line)]
    return dict(zip(names, curve_stats.ranks(known), strict=True)) if known and names else {}


def _by_world(sections: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], key: str) -> float:
    by: dict[str, list[float]] = defaultdict(list)
    for section, row in zip(sections, rows, strict=True):
        by[section["world"]].append(row.get(key, math.nan))
    return _over([_over(values) for values in by.values()])


# --- in words -------------------------------------------------------------------------------------------------------


def _verdict(sections: Sequence[dict[str, Any]], overall: Sequence[dict[str, Any]], yardstick: str) -> list[str]:
    if len(sections) == 1:
        rows = [row for row in sections[0]["rows"] if "against" in row and row["strategy"] != yardstick]
        return [_told(sections[0], row, yardstick) for row in rows]
    lines = []
    for row in overall:
        if row["strategy"] != yardstick and row["settings"]:
            text = f"{row['strategy']}: better than {yardstick} in {row['better']} of {row['settings']} settings, "
            text += f"worse in {row['worse']}"
            lines.append(text + (f"; closes {row['gap_closed']:.0%} of the gap" if _known(row["gap_closed"]) else ""))
    return lines


def _told(section: dict[str, Any], row: dict[str, Any], yardstick: str) -> str:
    """`portfolio: better. It finds .80 of the pieces with crack, random .41 (+.39, .22 to .55; p 0.01).`"""
    main, rare = section["main"], section["setting"]["rare"]
    one, base = row["against"][main], _of(section, yardstick)
    if main == "group_recall":
        ours, theirs = row[main], base[main]
        what = f"finds {ours:.0%} of the pieces with {rare or 'each class'}, {yardstick} {theirs:.0%}"
    else:
        ours, theirs = row["area"][main], base["area"][main]
        what = f"has a mean macro F1 of {ours:.3f} over its labels, {yardstick} {theirs:.3f}"
    text = f"{row['strategy']}: {one['says']}. It {what} ({one['mean']:+.2f}, {one['low']:+.2f} to {one['high']:+.2f}, "
    text += f"p {one['p']:.2g})"
    return text + _needs(row, base, yardstick)


def _needs(row: dict[str, Any], base: dict[str, Any], yardstick: str) -> str:
    both = [(one["labels_95"], one["labels"][-1]) for one in (row, base)]
    if not any(math.isfinite(needed) for needed, _ in both):
        return ""
    ours, theirs = (f"{needed:.0f}" if math.isfinite(needed) else f"more than {spent:.0f}" for needed, spent in both)
    return f"; labels to 95 % of the full-data macro F1: {ours}, {yardstick} {theirs}"


def _known(value: float) -> bool:
    return not math.isnan(value)
