"""How good a model is on each stratum (a line, a camera, a plant), and where one falls behind the others.

A mean over all strata hides the line on which a new lamp blinds the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.evaluate import intervals
from train.evaluate.intervals import FEW, BootstrapDraws, BootstrapMetric
from train.evaluate.metrics import Bools, EvaluatedImages

NONE = "(none)"  # images without a stratum
SHOWN = 50  # the largest strata


def by_stratum(evaluated: EvaluatedImages, strata: Sequence[str | None], draws: BootstrapDraws) -> dict[str, Any]:
    """Return recall and false alarms of each stratum as JSON values; nothing where there is only one.

    Args:
        evaluated: labels and decisions.
        strata: each image's stratum.
        draws: bootstrap draws of the images' groups.

    Returns:
        By stratum, the largest first: `images`, `groups`, `recall` (the share of images with a defect of which one is
        found, of its class), `false_alarms` (on clean images), and `behind`: those of the two in which it is clearly
        worse than all other strata together.
    """
    names = np.array([name or NONE for name in strata])
    known, counts = np.unique(names, return_counts=True)
    if len(known) < 2:
        return {}
    largest = known[np.argsort(-counts, kind="stable")][:SHOWN].tolist()
    return {name: _stratum(evaluated, names == name, draws) for name in largest}


def _stratum(evaluated: EvaluatedImages, inside: Bools, draws: BootstrapDraws) -> dict[str, Any]:
    found = (evaluated.present & evaluated.decided).any(axis=1)
    wrong = evaluated.decided.any(axis=1)
    clean, parts = evaluated.clean, (inside, ~inside)
    recall, others = (draws.share(found & ~clean & rows, ~clean & rows) for rows in parts)
    alarms, elsewhere = (draws.share(wrong & clean & rows, clean & rows) for rows in parts)
    behind = ["recall"] * _is_worse(others, recall) + ["false_alarms"] * _is_worse(alarms, elsewhere)
    return {
        "images": int(inside.sum()),
        "groups": draws.groups_of(inside),
        "recall": intervals.estimate(recall).to_json(),
        "false_alarms": intervals.estimate(alarms).to_json(),
        "behind": behind,
        "elsewhere": {name: _value(metric) for name, metric in (("recall", others), ("false_alarms", elsewhere))},
    }


def _is_worse(higher: BootstrapMetric, lower: BootstrapMetric) -> bool:
    """Return True where the first is clearly higher than the second, from enough groups of both."""
    if min(higher.groups, lower.groups) < FEW:
        return False
    least = min(higher.n, lower.n), min(higher.groups, lower.groups)
    return bool(intervals.difference(BootstrapMetric(higher.values - lower.values, *least)).low > 0)


def _value(metric: BootstrapMetric) -> float | None:
    value = float(metric.values[0])
    return round(value, 6) if np.isfinite(value) else None


def warnings(strata: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each stratum that falls behind."""
    interval = "({low:.0%} to {high:.0%}), elsewhere {rest:.0%}"
    words = {
        "recall": f"finds fewer defects: {{value:.0%}} of the images that show one {interval}",
        "false_alarms": f"has more false alarms: {{value:.0%}} of the clean images {interval}",
    }
    return [
        f"on {name} it {words[key].format(**values[key], rest=values['elsewhere'][key])}"
        for name, values in strata.items()
        for key in values["behind"]
    ]
