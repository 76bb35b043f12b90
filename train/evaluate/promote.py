"""`curate models promote`: promote a model to production unless it finds less of the rarest class than the current one.

A first model is compared with none, and false alarms do not count: `warnings` tells the user where that matters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from curate.errors import CurateError
from curate.project import Project
from train import store
from train.evaluate import compare
from train.evaluate import run as evaluating
from train.evaluate.compare import Comparison
from train.evaluate.run import EvaluateRequest, Progress
from train.store import CANDIDATE, PRODUCTION

MANY_FALSE_ALARMS = 0.5  # share of clean images with a false alarm from which on the user is warned
FORCE = "To promote it nevertheless: --force"


@dataclass
class PromoteResult:
    """The model that is in production now. `forced`: the objection that was overruled."""

    key: str
    forced: str | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run(
    project: Project,
    wanted: str | None = None,
    force: bool = False,
    device: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> PromoteResult:
    """Promote a model, or raise CurateError with the reason. The caller holds the writer lock."""
    key = store.find(project, wanted or CANDIDATE).key
    before = store.alias(project, PRODUCTION)
    if before in (None, key) or not store.is_done(project, str(before)):
        store.set_alias(project, PRODUCTION, key)
        notes = [] if before else ["there was no other model in production, so it was compared with none"]
        return PromoteResult(key, notes=notes, warnings=warnings(project, key))
    reason, notes = _compare_with_production(project, str(before), key, device, progress)
    if reason and not force:
        raise CurateError(f"model {key} is not promoted: {reason}. {FORCE}")
    store.set_alias(project, PRODUCTION, key, **({"forced": reason} if reason else {}))
    return PromoteResult(key, reason, notes, warnings(project, key))


def warnings(project: Project, key: str) -> list[str]:
    """Return warnings where the model was not evaluated on test, or raises many false alarms on clean images."""
    last = next((evaluation for evaluation in evaluating.evaluations(project, "test") if evaluation.model == key), None)
    if last is None:
        return [f"it was not evaluated on test: its recall there is not known. Run: curate evaluate --model {key}"]
    alarms = last.metrics["overall"].get("clean_false_alarms", {}).get("value")
    if alarms is None:
        return ["test has no clean image: how many false alarms it raises is not known"]
    return (
        [f"it raises a false alarm on {alarms:.0%} of the clean images of test"] if alarms >= MANY_FALSE_ALARMS else []
    )


def _compare_with_production(
    project: Project, before: str, key: str, device: str, progress: Progress
) -> tuple[str | None, list[str]]:
    """Compare with the production model on test; return the objection, if any, and the comparison's verdict."""
    try:
        comparison = compare.run(project, before, key, EvaluateRequest(split="test", device=device), progress)
    except CurateError as error:
        return f"it cannot be compared with production's model ({error})", []
    return objection(comparison), comparison.verdict


def objection(comparison: Comparison) -> str | None:
    """Return an objection where the rarest class that the test split shows is found less often, else None."""
    recalls = {
        name: differences["recall"] for name, differences in comparison.classes.items() if differences["recall"].n
    }
    if not recalls:
        return f"no image of the {comparison.split} split shows a defect, so its recall cannot be compared"
    rarest = min(recalls, key=lambda name: (recalls[name].n, name))
    recall = recalls[rarest]
    if recall.value >= 0:
        return None
    interval = f"{recall.value:+.3f} ({recall.low:+.3f} to {recall.high:+.3f})"
    return f"it finds less of the rarest class '{rarest}': recall {interval} on {recall.n} images that show it"
