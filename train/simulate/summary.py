"""Summarise curves as one JSON object: a section a setting, a row a strategy, totals, and a verdict in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from train.simulate import curve_stats
from train.simulate.one_run import SECONDS_PER_IMAGE, SECONDS_PER_REGION, Curve

BASELINE = "random"
DISCOVERED = {"once": 1, "thrice": 3}  # in so many groups
SIGNIFICANT = 0.05
FEWEST = 6  # differences below which a sign-flip test cannot reach p < 0.05
CURVE_METRICS = ("group_recall", "image_recall", "macro_f1", "map", "seconds")
BETTER, WORSE, UNCLEAR, FEW = "better", "worse", "no clear difference", "too few runs to say"
VARIED = ("strategy", "options", "rules", "seed", "fold")  # settings that differ between the rows and runs of a section


def summary(curves: Sequence[Curve], baseline: str = BASELINE) -> dict[str, Any]:
    """Return everything that the report and `--json` show.

    Args:
        curves: the runs.
        baseline: the row that all others are compared with.

    Returns:
        Sections by setting, rows by strategy, totals over settings, a verdict and notes.
    """
    sections = [_section(group, baseline) for group in _sections(curves)]
    overall = _overall(sections, baseline)
    return {
        "yardstick": baseline,
        "seconds": {"look": SECONDS_PER_IMAGE, "region": SECONDS_PER_REGION},
        "sections": sections,
        "overall": overall,
        "verdict": _verdict(sections, overall, baseline),
        "notes": _notes(curves),
    }


def _sections(curves: Sequence[Curve]) -> list[list[Curve]]:
    sections: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        asked = {name: value for name, value in asdict(curve.setting).items() if name not in VARIED}
        sections[str((curve.world, sorted(asked.items())))].append(curve)
    return list(sections.values())


def _notes(curves: Sequence[Curve]) -> list[str]:
    """Return each note once, with the strategies whose runs gave it."""
    labels_by_note: dict[str, set[str]] = defaultdict(set)
    for curve in curves:
        for note in curve.notes:
            labels_by_note[note].add(curve.setting.label)
    return [f"{', '.join(sorted(labels))}: {note}" for note, labels in labels_by_note.items()]


# --- one setting ----------------------------------------------------------------------------------------------------


def _section(curves: Sequence[Curve], baseline: str) -> dict[str, Any]:
    by: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        by[curve.setting.label].append(curve)
    setting, played = (
        curves[0].setting,
        {name: [curve for curve in all_ if not curve.failed] for name, all_ in by.items()},
    )
    base = played.get(baseline, [])
    rows = [_row(name, played[name], base) | {"failed": _failed(all_)} for name, all_ in by.items()]
    asked = {name: value for name, value in asdict(setting).items() if name not in VARIED}
    return {"world": curves[0].world, "setting": asked, "main": _main_metric(curves), "rows": rows}


def _failed(curves: Sequence[Curve]) -> str | None:
    reasons = [curve.failed for curve in curves if curve.failed]
    return f"{len(reasons)} of {len(curves)} runs: {reasons[0]}" if reasons else None


def _main_metric(curves: Sequence[Curve]) -> str:
    """Return the main metric: recall of the rare class, or without one the learner's macro F1."""
    on_test = any(curve.full for curve in curves)
    return "macro_f1" if curves[0].setting.rare is None and on_test else "group_recall"


def _row(name: str, curves: Sequence[Curve], base: Sequence[Curve]) -> dict[str, Any]:
    if not curves:
        return {"strategy": name, "plays": 0}
    row: dict[str, Any] = {"strategy": name, "plays": len(curves)}
    for metric in ("group_recall", "image_recall", "macro_f1", "map", "f1", "ap"):
        row[metric] = _mean(curves, metric)
    row["area"] = {
        metric: _mean_known([curve_stats.area(curve, metric) for curve in curves])
        for metric in ("group_recall", "macro_f1")
    }
    for share in (90, 95):
        row[f"labels_{share}"] = curve_stats.mean_labels_to(curves, share / 100)
        row[f"reached_{share}"] = sum(math.isfinite(curve_stats.labels_to(curve, share / 100)) for curve in curves)
    row |= {
        "full": _mean_known([curve_stats.full_data_value(curve, "macro_f1") for curve in curves]),
        "minutes": _mean(curves, "minutes"),
    }
    row["labels"] = curve_stats.mean_line(curves, "labels")
    row["found"] = {key: curve_stats.mean_line(curves, key) for key in ("images", "groups")}
    row["lines"] = {metric: _band(curves, metric) for metric in CURVE_METRICS}
    row["seconds"] = float(
        np.median([value for curve in curves for value in curve_stats.line(curve, "seconds")[1:] or [0.0]])
    )
    if curve_stats.to_discover(curves[0]):
        row["discovery"] = _discovery(curves)
    return row | (_comparison(curves, base) if base else {})


def _discovery(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return the mean labels until all classes are seen; a run that does not get there counts its own and a round.

    `seen`: the mean number of classes after each round.
    """
    longest = max(len(curve.points) for curve in curves)
    seen = [curve_stats.discovered(curve) for curve in curves]
    result: dict[str, Any] = {
        "classes": max(len(curve_stats.to_discover(curve)) for curve in curves),  # a fold may hold all of a class out
        "seen": np.mean([line + line[-1:] * (longest - len(line)) for line in seen], axis=0).tolist(),
    }
    for name, groups in DISCOVERED.items():
        needed = [curve_stats.labels_to_discover(curve, groups) for curve in curves]
        # Where a run ends before, as if the next round had reached it.
        ends = [2 * curve.points[-1].labels - curve.points[-2:][0].labels for curve in curves]
        result |= {
            f"labels_{name}": float(np.mean([min(labels, end) for labels, end in zip(needed, ends, strict=True)])),
            f"reached_{name}": sum(map(math.isfinite, needed)),
        }
    return result


def _mean(curves: Sequence[Curve], metric: str) -> float:
    return _mean_known([curve_stats.value(curve, metric) for curve in curves])


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _band(curves: Sequence[Curve], metric: str) -> dict[str, list[float]]:
    """Return the mean at each point with its 95 % interval by Student's t over runs; of skewed times, the quartiles."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    middle = curve_stats.mean_line(curves, metric)
    lines = [curve_stats.line(curve, metric) for curve in curves]
    table = np.array([line + line[-1:] * (len(middle) - len(line)) for line in lines])
    if metric == "seconds":
        low, middle, high = np.quantile(table, [0.25, 0.5, 0.75], axis=0).tolist()
        return {"mean": middle, "low": low, "high": high}
    if len(table) < 2:
        return {"mean": middle, "low": middle, "high": middle}
    half = stdtrit(len(table) - 1, 0.975) * table.std(axis=0, ddof=1) / len(table) ** 0.5
    return {"mean": middle, "low": (np.array(middle) - half).tolist(), "high": (np.array(middle) + half).tolist()}


def _comparison(curves: Sequence[Curve], base: Sequence[Curve]) -> dict[str, Any]:
    ends = {"group_recall": curve_stats.paired_difference(curves, base, "group_recall")}
    areas = {"macro_f1": curve_stats.paired_difference(curves, base, "macro_f1", by_area=True)}
    differences = {
        metric: difference | {"says": _difference_verdict(difference)} for metric, difference in (ends | areas).items()
    }
    labels, baseline_labels = (curve_stats.mean_labels_to(some, 0.95) for some in (curves, base))
    return {
        "against": differences,
        "gap_closed": curve_stats.gap_closed(_mean(curves, "group_recall"), _mean(base, "group_recall")),
        "labels_ratio": labels / baseline_labels
        if math.isfinite(baseline_labels) and baseline_labels > 0
        else math.nan,
    }


def _difference_verdict(difference: dict[str, Any]) -> str:
    if difference["p"] < SIGNIFICANT and difference["low"] > 0:
        return BETTER
    if difference["p"] < SIGNIFICANT and difference["high"] < 0:
        return WORSE
    return FEW if difference["units"] < FEWEST else UNCLEAR


# --- all settings ---------------------------------------------------------------------------------------------------


def _overall(sections: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Average within each oracle dataset first, then over datasets; rank the strategies that have all settings."""
    names = list(dict.fromkeys(row["strategy"] for section in sections for row in section["rows"]))
    complete = [name for name in names if all(_row_of(section, name)["plays"] for section in sections)]
    ranked = {key: _ranked(sections, complete, key) for key in ("group_recall", "macro_f1")}
    rows = []
    for name in names:
        own_rows = [_row_of(section, name) for section in sections]
        counts = [
            row["against"][section["main"]]["says"]
            for section, row in zip(sections, own_rows, strict=True)
            if "against" in row
        ]
        rows.append(
            {
                "strategy": name,
                "settings": sum(bool(row["plays"]) for row in own_rows),
                "gap_closed": _by_world(sections, own_rows, "gap_closed"),
                "group_recall": _by_world(sections, own_rows, "group_recall"),
                "labels_ratio": _by_world(sections, own_rows, "labels_ratio"),
                "better": counts.count(BETTER),
                "worse": counts.count(WORSE),
                **{f"rank_{key}": by.get(name, math.nan) for key, by in ranked.items()},
            }
        )
    return rows


def _row_of(section: dict[str, Any], name: str) -> dict[str, Any]:
    return next((row for row in section["rows"] if row["strategy"] == name), {"strategy": name, "plays": 0})


def _ranked(sections: Sequence[dict[str, Any]], names: Sequence[str], key: str) -> dict[str, float]:
    """Rank strategies by their final recall, or by the area under macro F1."""
    rows = [[_row_of(section, name) for name in names] for section in sections]
    table = [[float(row[key] if key == "group_recall" else row["area"][key]) for row in line] for line in rows]
    known = [line for line in table if any(math.isfinite(value) for value in line)]
    return dict(zip(names, curve_stats.ranks(known), strict=True)) if known and names else {}


def _by_world(sections: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], key: str) -> float:
    by: dict[str, list[float]] = defaultdict(list)
    for section, row in zip(sections, rows, strict=True):
        by[section["world"]].append(row.get(key, math.nan))
    return _mean_known([_mean_known(values) for values in by.values()])


# --- verdict --------------------------------------------------------------------------------------------------------


def _verdict(sections: Sequence[dict[str, Any]], overall: Sequence[dict[str, Any]], baseline: str) -> list[str]:
    if len(sections) == 1:
        rows = [row for row in sections[0]["rows"] if "against" in row and row["strategy"] != baseline]
        return [_sentence(sections[0], row, baseline) for row in rows]
    lines = []
    for row in overall:
        if row["strategy"] != baseline and row["settings"]:
            text = f"{row['strategy']}: better than {baseline} in {row['better']} of {row['settings']} settings, "
            text += f"worse in {row['worse']}"
            lines.append(text + (f"; closes {row['gap_closed']:.0%} of the gap" if _known(row["gap_closed"]) else ""))
    return lines


def _sentence(section: dict[str, Any], row: dict[str, Any], baseline: str) -> str:
    """Return `portfolio: better. It finds 80% of the pieces with crack, random 41% (+0.39, +0.22 to +0.55, p 0.01)`."""
    main, rare = section["main"], section["setting"]["rare"]
    difference, base = row["against"][main], _row_of(section, baseline)
    if main == "group_recall":
        value, base_value = row[main], base[main]
        what = f"finds {value:.0%} of the pieces with {rare or 'each class'}, {baseline} {base_value:.0%}"
    else:
        value, base_value = row["area"][main], base["area"][main]
        what = f"has a mean macro F1 of {value:.3f} over its labels, {baseline} {base_value:.3f}"
    text = f"{row['strategy']}: {difference['says']}. It {what} ({difference['mean']:+.2f}, "
    text += f"{difference['low']:+.2f} to {difference['high']:+.2f}, p {difference['p']:.2g})"
    return text + _labels_needed(row, base, baseline)


def _labels_needed(row: dict[str, Any], base: dict[str, Any], baseline: str) -> str:
    both = [(entry["labels_95"], entry["labels"][-1]) for entry in (row, base)]
    if not any(math.isfinite(needed) for needed, _ in both):
        return ""
    labels, base_labels = (
        f"{needed:.0f}" if math.isfinite(needed) else f"more than {spent:.0f}" for needed, spent in both
    )
    return f"; labels to 95 % of the full-data macro F1: {labels}, {baseline} {base_labels}"


def _known(value: float) -> bool:
    return not math.isnan(value)
