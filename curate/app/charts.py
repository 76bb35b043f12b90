"""The panel's charts, as Plotly's data and layout. Grey texts and a clear ground are readable on light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Chart = tuple[list[dict[str, Any]], dict[str, Any]]

CONFIG = {"displayModeBar": False, "responsive": True}
GREY = "#8a9099"
OTHER = "#b07aa1"
SLOTS = {"rare": "#e15759", "uncertain": "#f28e2b", "explore": "#4e79a7", "audit": "#9aa0a6", "pinned": "#edc948"}
RESULTS = {
    "found": "#e15759",
    "clean": "#59a14f",
    "disputed": "#edc948",
    "skipped": "#9c755f",
    "waiting": "#9aa0a6",
}
MODELS = ("#4e79a7", "#f28e2b")


def _layout(title: str, **more: Any) -> dict[str, Any]:
    axis = {"gridcolor": "rgba(138,144,153,0.25)", "zerolinecolor": "rgba(138,144,153,0.5)", "automargin": True}
    layout: dict[str, Any] = {
        "title": {"text": title, "font": {"size": 14, "color": GREY}, "x": 0.02, "y": 0.97, "yanchor": "top"},
        "font": {"color": GREY, "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 50, "r": 15, "t": 70, "b": 40},
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "font": {"size": 11},
            "traceorder": "normal",
        },
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "autosize": True,
        "showlegend": True,
    }
    if more.get("showlegend") is False:
        layout["margin"]["t"] = 40
    for name, value in more.items():
        layout[name] = {**layout[name], **value} if isinstance(value, dict) and name in layout else value
    return layout


def round_bars(rounds: Sequence[Mapping[str, Any]], what: str, title: str, colors: Mapping[str, str]) -> Chart:
    """Stacked bars of the rounds: picks by slot, or by what became of them."""
    names = [round_["name"] for round_ in rounds]
    present = {key for round_ in rounds for key in round_[what]}
    keys = [key for key in colors if key in present] + sorted(present - colors.keys())
    data = [
        {
            "type": "bar",
            "name": key,
            "x": names,
            "y": [round_[what].get(key, 0) for round_ in rounds],
            "marker": {"color": colors.get(key, OTHER)},
            "hovertemplate": "%{x}: %{y} " + key + "<extra></extra>",
        }
        for key in keys
    ]
    whole = {"tickformat": "d", "title": {"text": "images"}}
    return data, _layout(title, barmode="stack", bargap=0.5, xaxis={"type": "category"}, yaxis=whole)


def class_bars(classes: Sequence[Mapping[str, Any]]) -> Chart:
    """The groups known of each class, the scarcest at the top."""
    ordered = sorted(classes, key=lambda entry: -int(entry["groups"]))
    texts = [f"{entry['groups']} groups, {entry['images']} images" for entry in ordered]
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": [entry["name"] for entry in ordered],
        "x": [entry["groups"] for entry in ordered],
        "text": [str(entry["groups"]) for entry in ordered],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": texts,
        "hoverinfo": "y+text",
        "marker": {"color": [entry["color"] or GREY for entry in ordered]},
        "name": "groups",
    }
    title = "Groups known of each class"
    return [bar], _layout(title, xaxis={"tickformat": "d"}, yaxis={"type": "category"}, showlegend=False)


def discovery(curve: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> Chart:
    """How many groups of each class were known after each round."""
    colors = {entry["name"]: entry["color"] for entry in classes}
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": curve["steps"],
            "y": counts,
            "line": {"color": colors.get(name) or GREY},
        }
        for name, counts in curve["groups"].items()
    ]
    axes: dict[str, Any] = {"xaxis": {"type": "category"}, "yaxis": {"rangemode": "tozero", "tickformat": "d"}}
    return data, _layout("Groups known after each round", **axes)


def prevalence(classes: Sequence[Mapping[str, Any]]) -> Chart:
    """The share of images that show each class, with its interval, by the audit."""
    known = [entry for entry in classes if entry["prevalence"]][::-1]
    values = [entry["prevalence"] for entry in known]
    points = {
        "type": "scatter",
        "mode": "markers",
        "y": [entry["name"] for entry in known],
        "x": [value for value, _, _ in values],
        "error_x": _errors(values),
        "marker": {"size": 9, "color": MODELS[0]},
        "name": "prevalence",
    }
    axis = {"tickformat": ".1%", "rangemode": "tozero"}
    title = "Prevalence, with 95 % intervals (audit picks alone)"
    return [points], _layout(title, xaxis=axis, yaxis={"type": "category"}, showlegend=False)


def models(tested: Mapping[str, Mapping[str, Any]], metric: str) -> Chart:
    """A metric of each class and stratum, of one model beside the other, with intervals."""
    data = []
    for color, (name, values) in zip(MODELS, tested.items(), strict=False):
        known = {key: by_name[metric] for key, by_name in values["classes"].items() if by_name.get(metric)}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": list(known),
                "y": [value for value, _, _ in known.values()],
                "error_y": _errors(list(known.values())),
                "marker": {"size": 9, "color": color},
            }
        )
    return data, _layout(
        f"{metric.capitalize()} on test, with 95 % intervals",
        xaxis={"type": "category"},
        yaxis={"range": [-0.03, 1.05], "tickformat": ".0%"},
        scattermode="group",
    )


def _errors(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in values],
        "arrayminus": [value - low for value, low, _ in values],
        "thickness": 1.5,
    }
