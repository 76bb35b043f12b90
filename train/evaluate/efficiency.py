"""`curate compare A B ... --efficiency`: what models reach, and what they cost, a row each.

All are measured on the images of the split that every one of them can be evaluated on. An image's milliseconds are
those of `curate run`, from the bytes of its file to regions, on this machine; the models take turns image by image, so
that what else the machine does hits all alike. What other light costs is known where `curate robustness` has been run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.errors import CurateError, LabelProblem
from curate.project import Project
from train.evaluate import compare, intervals, metrics, robustness
from train.evaluate.run import EvaluateRequest, EvaluationPlan, Progress
from train.export import runner

TIMED, UNTIMED = 40, 2  # images that are timed, after some that are not: the first ones pay for what is set up


@dataclass(frozen=True)
class ModelEfficiency:
    """A model's row.

    Args:
        model: its key. architecture, encoder, size: of its recipe; `size` is height and width that it computes on.
        metrics: `macro_f1`, `clean_false_alarms` and, of a segmenter, `dice`: each an estimate as JSON.
        parameters: of the network. megabytes: of the weights file.
        p50_ms, p95_ms: for an image.
        worst_drop: the most score (F1 or Dice) that a change of light or lens cost, and `worst`, which one; None where
            `curate robustness` has not been run.
    """

    model: str
    architecture: str
    encoder: str | None
    size: tuple[int, int]
    metrics: dict[str, Any]
    parameters: int
    megabytes: float
    p50_ms: float
    p95_ms: float
    worst_drop: float | None
    worst: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Efficiency:
    """The table. `timed`: the number of images whose time was taken, on `device`."""

    split: str
    images: int
    groups: int
    timed: int
    device: str
    rows: list[ModelEfficiency]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(
    project: Project,
    names: Sequence[str],
    request: EvaluateRequest,
    progress: Progress = lambda stage, done, total: None,
) -> Efficiency:
    """Evaluate the models where that is still to do, and time them.

    Args:
        project: the project, whose writer lock the caller holds.
        names: keys, starts of keys, or aliases.
        request: split and device; its model is not used.
        progress: called with stage, images done and images in all.

    Returns:
        A row for each model, in the order of the names.
    """
    plans, evaluated, notes = compare.on_the_same_images(project, names, request, progress)
    draws = evaluated[0].draws()
    known = set(evaluated[0].ids)
    paths = [Path(item.path) for item in plans[0].items if item.id in known]
    runners = [runner.load(plan.model.key, project, device=request.device) for plan in plans]
    times = _times(runners, paths, progress)
    rows = []
    for plan, images, loaded, ms in zip(plans, evaluated, runners, times, strict=True):
        overall, _ = metrics.compute(images, draws)
        shown = ("macro_f1", "clean_false_alarms", "dice")
        estimates = {name: intervals.estimate(overall[name]).to_json() for name in shown if name in overall}
        rows.append(_row(plan, loaded, estimates, ms))
    return Efficiency(
        request.split, len(known), int(draws.weights.shape[1]), len(times[0]), runners[0].predictor.device, rows, notes
    )


def _times(runners: Sequence[runner.Runner], paths: Sequence[Path], progress: Progress) -> list[list[float]]:
    """Milliseconds by model; images at even distances over all."""
    places = np.linspace(0, len(paths) - 1, min(len(paths), TIMED + UNTIMED)).astype(int)
    contents = [files.read_bytes(paths[place]) for place in places]
    skipped = min(UNTIMED, len(contents) - 1)
    times: list[list[float]] = [[] for _ in runners]
    for number, content in enumerate(contents):
        for loaded, ms in zip(runners, times, strict=True):
            try:
                answer = loaded.answer(content)
            except LabelProblem as problem:
                raise CurateError(f"model {loaded.predictor.key} cannot be timed: {problem}") from None
            if number >= skipped:
                ms.append(answer.ms)
        progress("timing", 1, len(contents))
    return times


def _row(plan: EvaluationPlan, loaded: runner.Runner, estimates: dict[str, Any], ms: list[float]) -> ModelEfficiency:
    used, latency = loaded.predictor.recipe, runner.latency(ms)
    drop, worst = _worst(plan)
    return ModelEfficiency(
        model=plan.model.key,
        architecture=used.model.architecture,
        encoder=used.model.encoder or None,
        size=(used.input.height, used.input.width),
        metrics=estimates,
        parameters=sum(tensor.numel() for tensor in loaded.predictor.module.parameters()),
        megabytes=round(plan.model.weights.stat().st_size / 1e6, 1),
        p50_ms=latency["p50_ms"],
        p95_ms=latency["p95_ms"],
        worst_drop=drop,
        worst=worst,
    )


def _worst(plan: EvaluationPlan) -> tuple[float | None, str | None]:
    """The worst change of the robustness test of these images, with the labels and decisions of today."""
    folder = robustness.folder_of(plan)
    if not (folder / robustness.MANIFEST).is_file():
        return None, None
    worst = robustness.read_result(folder).metrics["worst"]["all"]["score"]
    return worst["drop"]["value"], f"{worst['change']} {worst['severity']}" if "change" in worst else None
