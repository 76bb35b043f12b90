"""`curate models promote`: a model becomes production's if it passes the gate on test.

    every model    the floors of `[promotion]` in project.toml: recall of each class, false alarms, calibration
    the first one  better than always naming the majority
    a later one    finds no less of the rarest class than production's model, and is not clearly worse in anything else

A refusal names each metric. `--force` overrules it; the reason, and the person's, stay in `production.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project, PromotionConfig
from train import store
from train.evaluate import compare
from train.evaluate import run as evaluating
from train.evaluate.compare import Comparison
from train.evaluate.intervals import FEW, Estimate
from train.evaluate.run import EvaluateRequest, Progress
from train.store import CANDIDATE, PRODUCTION

TELLING_ECE = 0.1  # a calibration error that is clearly larger than production's is refused from here on
FORCE = "To promote it nevertheless: --force --why '...'"


@dataclass
class PromoteResult:
    """The model that is in production now. `forced`: the objections that were overruled."""

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
    why: str | None = None,
) -> PromoteResult:
    """Promote a model, or raise CurateError with the reasons.

    Args:
        project: the project, whose writer lock the caller holds.
        wanted: the model's key or alias; without it the candidate.
        force: promote it whatever the gate says.
        device: auto, cpu or cuda.
        progress: called with stage, images done and images in all.
        why: why the gate is overruled, for those who ask later.
    """
    if why and not force:
        raise CurateError("--why goes with --force: it says why the gate is overruled")
    key = store.find(project, wanted or CANDIDATE).key
    before = store.alias(project, PRODUCTION)
    if before == key:
        return PromoteResult(key, notes=["it is production's model already"])
    if before is not None and not store.is_done(project, before):
        before = None
    objections, notes, warnings = _asked(project, before, key, device, progress)
    reason = "; ".join(objections) or None
    if reason and not force:
        raise CurateError(f"model {key} is not promoted: {reason}. {FORCE}")
    store.set_alias(project, PRODUCTION, key, overruled=reason, why=why if reason else None)
    return PromoteResult(key, reason, notes, warnings)


def _asked(
    project: Project, before: str | None, key: str, device: str, progress: Progress
) -> tuple[list[str], list[str], list[str]]:
    """Evaluate the model on test; return objections, notes and warnings."""
    request = EvaluateRequest(key, "test", device=device)
    try:
        plan = evaluating.make_plan(Index(project), request)
        evaluated = evaluating.evaluate_images(plan, device, progress)
    except CurateError as error:
        return [f"it cannot be evaluated on test ({error})"], [], []
    metrics = evaluating.summarise(evaluated.split, evaluated.val, {})
    objections, warnings = below_floors(metrics, project.config.promotion), blind_spots(metrics)
    if before is None:
        notes = ["there was no other model in production, so it was compared with the baselines"]
        return [*objections, *below_baselines(metrics)], notes, warnings
    try:
        comparison = compare.run(project, before, key, request, progress)
    except CurateError as error:
        return [*objections, f"it cannot be compared with production's model ({error})"], [], warnings
    return [*objections, *worse(comparison, metrics)], comparison.verdict, warnings


# --- objections -----------------------------------------------------------------------------------------------------


def below_floors(metrics: Mapping[str, Any], floors: PromotionConfig) -> list[str]:
    """Return the metrics that miss the project's floors; classes of which test has too few groups are not asked."""
    wrong = [
        f"it finds {_share(by_name['recall'])} of {name}; promotion.min_recall is {floors.min_recall:g}"
        for name, by_name in metrics["classes"].items()
        if _is_known(by_name["recall"]) and by_name["recall"]["value"] < floors.min_recall
    ]
    alarms, ece = metrics["overall"]["clean_false_alarms"], metrics["overall"]["ece"]
    if alarms["value"] is not None and alarms["value"] > floors.max_false_alarms:
        floor = f"promotion.max_false_alarms is {floors.max_false_alarms:g}"
        wrong.append(f"it raises a false alarm on {_share(alarms)} of the clean images; {floor}")
    if ece["value"] is not None and ece["value"] > floors.max_calibration_error:
        floor = f"promotion.max_calibration_error is {floors.max_calibration_error:g}"
        wrong.append(f"its probabilities are off by {ece['value']:.2f} on average; {floor}")
    return wrong


def below_baselines(metrics: Mapping[str, Any]) -> list[str]:
    """Return why a first model is no better than none."""
    majority = metrics["baselines"]["majority"]
    reached, baseline = (values["macro_f1"]["value"] for values in (metrics["overall"], majority))
    if reached is not None and reached <= (baseline or 0):
        return [f"its macro F1, {reached:.2f}, is no better than always saying {', '.join(majority['said'])}"]
    return []


def worse(comparison: Comparison, metrics: Mapping[str, Any]) -> list[str]:
    """Return what the model does worse than production's: less of the rarest class at all, other things clearly."""
    wrong = [found] if (found := objection(comparison)) else []
    rarest = _rarest(comparison)
    for name, by_name in comparison.classes.items():
        if name != rarest and by_name["recall"].n and by_name["recall"].high < 0:
            wrong.append(f"it finds less of {name}: recall {_difference(by_name['recall'])}")
    alarms, ece = comparison.overall.get("clean_false_alarms"), comparison.overall.get("ece")
    if alarms is not None and alarms.low > 0:
        wrong.append(f"it raises more false alarms on clean images: {_difference(alarms)}")
    if ece is not None and ece.low > 0 and (metrics["overall"]["ece"]["value"] or 0) > TELLING_ECE:
        wrong.append(f"its probabilities are less calibrated: error {_difference(ece)}")
    return wrong


def objection(comparison: Comparison) -> str | None:
    """Return an objection where the rarest class that the test split shows is found less often, else None."""
    rarest = _rarest(comparison)
    if rarest is None:
        return f"no image of the {comparison.split} split shows a defect, so its recall cannot be compared"
    recall = comparison.classes[rarest]["recall"]
    if recall.value >= 0:
        return None
    return (
        f"it finds less of the rarest class '{rarest}': recall {_difference(recall)} on {recall.n} images that show it"
    )


def _rarest(comparison: Comparison) -> str | None:
    shown = {name: values["recall"].n for name, values in comparison.classes.items() if values["recall"].n}
    return min(shown, key=lambda name: (shown[name], name), default=None)


def blind_spots(metrics: Mapping[str, Any]) -> list[str]:
    """Return what test cannot tell of the model."""
    few = [name for name, values in metrics["classes"].items() if not _is_known(values["recall"])]
    spots = [f"fewer than {FEW} groups of test show {', '.join(few)}: no recall is asked for"] if few else []
    if metrics["overall"]["clean_false_alarms"]["value"] is None:
        spots.append("test has no clean image: how many false alarms it raises is not known")
    return spots


def _is_known(recall: Mapping[str, Any]) -> bool:
    return recall["value"] is not None and not recall["silent"]


def _share(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.0%} ({metric['low']:.0%} to {metric['high']:.0%})"


def _difference(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
