"""`curate models promote`: a model takes production's place unless it finds less of the rarest class than that one.

A first model is compared with nothing, and false alarms do not count: `warnings` say so where they should be known.
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

MANY = 0.5  # share of clean images with a false alarm, from which a model is no use whatever it finds
FORCE = "To promote it nevertheless: --force"


@dataclass
class Promoted:
    """The model that is production's now. `forced`: the reason that was overruled."""

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
) -> Promoted:
    """Promote, or refuse with the reason. The caller holds the writer lock."""
    key = store.find(project, wanted or CANDIDATE).key
    before = store.alias(project, PRODUCTION)
    if before in (None, key) or not store.is_done(project, str(before)):
        store.set_alias(project, PRODUCTION, key)
        notes = [] if before else ["there was no other model in production, so it was compared with none"]
        return Promoted(key, notes=notes, warnings=warnings(project, key))
    reason, notes = _objection(project, str(before), key, device, progress)
    if reason and not force:
        raise CurateError(f"model {key} is not promoted: {reason}. {FORCE}")
    store.set_alias(project, PRODUCTION, key, **({"forced": reason} if reason else {}))
    return Promoted(key, reason, notes, warnings(project, key))


def warnings(project: Project, key: str) -> list[str]:
    """What the promotion does not ask: whether the model was evaluated at all, and whether it flags clean images."""
    last = next((one for one in evaluating.every(project, "test") if one.model == key), None)
    if last is None:
        return [f"it was not evaluated on test: what it finds there is not known. Run: curate evaluate --model {key}"]
    alarms = last.figures["overall"].get("clean_false_alarms", {}).get("value")
    if alarms is None:
        return ["test has no clean image: how many false alarms it raises is not known"]
    return [f"it raises a false alarm on {alarms:.0%} of the clean images of test"] if alarms >= MANY else []


def _objection(
    project: Project, before: str, key: str, device: str, progress: Progress
) -> tuple[str | None, list[str]]:
    """What speaks against it on the test split, and what the comparison says."""
    try:
        found = compare.run(project, before, key, EvaluateRequest(split="test", device=device), progress)
    except CurateError as error:
        return f"it cannot be compared with production's model ({error})", []
    return objection(found), found.verdict


def objection(found: Comparison) -> str | None:
    """The rarest class that the test split shows must not be found less often."""
    shown = {name: one["recall"] for name, one in found.classes.items() if one["recall"].n}
    if not shown:
        return f"no image of the {found.split} split shows a defect, so nobody can say whether it finds fewer"
    rarest = min(shown, key=lambda name: (shown[name].n, name))
    recall = shown[rarest]
    if recall.value >= 0:
        return None
    interval = f"{recall.value:+.3f} ({recall.low:+.3f} to {recall.high:+.3f})"
    return f"it finds less of the rarest class '{rarest}': recall {interval} on {recall.n} images that show it"
