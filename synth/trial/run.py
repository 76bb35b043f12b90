"""`curate synth trial`: does a synthesiser help? The paired experiment on grouped folds of the train split.

    report = run(project, Wish(stage="screen"), progress)

Val and test of the project take no part at all. In every fold the bank, the generator and the gates, with their
segmenter, are made anew from what the arm may learn from. Each training is cached in `work/synth/trials/runs/`; a
killed trial goes on with the next one.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.data import Item
from curate.errors import LabelProblem
from curate.hashing import key_of
from curate.project import Project
from synth import check, generate, masks
from synth.generate import SyntheticBatch
from synth.nouns import MaskBank
from synth.trial import arms, chart, verdict
from synth.trial import batches as lots
from synth.trial.arms import BALANCED, BLENDS, Arm, TrialRun
from synth.trial.batches import BatchOrder, GateModels, SyntheticItem
from synth.trial.design import Progress, TrialDesign, TrialRequest, planned, real_of, recipe_of
from synth.trial.verdict import ArmResult
from train import checkpoint
from train.data.dataset import LoadPlan, TrainingData
from train.evaluate import metrics, per_image
from train.evaluate.metrics import EvaluatedImages, PixelCounts
from train.fit import loop
from train.fit import run as training
from train.predict.predictor import Predictor

STEP = 1  # raise it when the same run comes to another end
SEEDS = 5  # at least, for a verdict that counts
VERDICT = "verdict.json"
OVER = 3  # times as many images are made as an arm needs, for the gates to choose from


@dataclass
class TrialReport:
    """Design and results of a trial; without `lines` it was a dry run."""

    stage: str
    trainings: int
    done: int
    fits: int
    seconds_each: float
    classes: list[str]
    lines: list[ArmResult] = field(default_factory=list)
    gated: list[dict[str, Any]] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def minutes(self) -> float:
        """Estimated minutes that are left; the fitting of generators comes on top."""
        return (self.trainings - self.done) * self.seconds_each / 60

    @property
    def table(self) -> list[list[str]]:
        return verdict.text(self.lines, self.classes)

    def to_json(self) -> dict[str, Any]:
        shown = {"lines": [line.to_json() for line in self.lines], "minutes": round(self.minutes, 1)}
        return vars(self) | shown


def run(project: Project, request: TrialRequest, progress: Progress = lambda stage, done, total: None) -> TrialReport:
    """Train what is not trained yet, and judge; with `dry_run` only say what it would take."""
    plot = planned(project, request, progress)
    todo = [run for run in plot.runs if not file_of(plot, run).is_file()]
    report = _outline(plot, todo)
    if request.dry_run:
        return report
    with files.writer_lock(plot.home, "curate synth trial"):
        for _, alike in groupby(plot.runs, key=lambda run: (run.fold, run.budget)):
            _train_all(plot, list(alike), len(todo), progress)
        for run in plot.runs:  # a kill at the end of a run leaves its folder, that of the gates' segmenter as well
            for done in (run, _base(run)):
                files.remove(training_folder(plot, done))
        _judge_all(plot, report)
        _write(project, plot, report)
    return report


# --- what it would take -------------------------------------------------------------------------------------------


def _outline(plot: TrialDesign, todo: Sequence[TrialRun]) -> TrialReport:
    fits = {(run.fold, run.budget, run.arm.name) for run in todo if run.arm.synthetic and run.arm.name not in BLENDS}
    done = len(plot.runs) - len(todo)
    notes = [*plot.notes, *_short(plot)]
    return TrialReport(
        plot.request.stage, len(plot.runs), done, len(fits), _seconds(plot), list(plot.classes), notes=notes
    )


def _short(plot: TrialDesign) -> Iterator[str]:
    """Notes on budgets that ask for more defects than there are."""
    for fold, budget in sorted({(run.fold, run.budget) for run in plot.runs}):
        counts = arms.defects(real_of(plot, fold, budget), plot.classes)
        short = [f"{name} {count}" for name, count in counts.items() if count < budget]
        if short:
            yield f"fold {fold + 1}, budget {budget}: there are only {', '.join(short)}"


def _seconds(plot: TrialDesign) -> float:
    """Seconds of one training: the median of those that are there, else estimated from some steps."""
    known = [float(np.load(file, allow_pickle=False)["seconds"]) for file in sorted((plot.home / "runs").glob("*.npz"))]
    return statistics.median(known) if known else probed(plot)


def probed(plot: TrialDesign) -> float:
    import torch

    model, _ = training.network_of(plot.base, _data(plot, plot.parts[0].train[:1]))
    model.to(plot.device, memory_format=torch.channels_last).train()
    model.encoder.requires_grad_(plot.base.parts[0].train == "all")
    side, optimiser, took = plot.base.input, torch.optim.SGD(model.parameters(), lr=0.0), []
    for _ in range(4):
        begun = time.perf_counter()
        batch = torch.zeros(plot.base.batch, side.channels, side.height, side.width, device=plot.device)
        model(batch.to(memory_format=torch.channels_last)).mean().backward()
        optimiser.step()
        took.append(time.perf_counter() - begun)
    return statistics.median(took) * plot.request.steps * 1.3  # reading, and looking at the test images


# --- what one run learns from ---------------------------------------------------------------------------------------


def bank_of(plot: TrialDesign, fold: int, budget: int) -> MaskBank:
    """Make the mask bank of this part's own images; one of the test part, or of val or test, would raise."""
    blocked = (*plot.parts[fold].test, *plot.blocked)
    return masks.bank_of(real_of(plot, fold, budget), blocked, plot.classes, plot.max_pixels)


def order_of(plot: TrialDesign, run: TrialRun) -> BatchOrder:
    """The same lot for every ratio and seed, and for the gates."""
    most = max(other.arm.ratio for other in plot.runs if other.arm.name == run.arm.name)
    real = arms.defects(real_of(plot, run.fold, run.budget), plot.classes)
    counts = {name: math.ceil(most * count) * OVER for name, count in real.items()}
    options = tuple(sorted(plot.request.options.get(run.arm.name, {}).items()))
    return BatchOrder(run.arm.name, counts, plot.request.window or plot.request.size, 0, options, plot.device)


def _synthetic(
    plot: TrialDesign, run: TrialRun, bank: MaskBank, progress: Progress
) -> tuple[list[Item], dict[str, int], list[int]]:
    """The arm's synthetic images, what the gates refused, where it has any, and how many of each class were made."""
    order, real = order_of(plot, run), arms.defects(real_of(plot, run.fold, run.budget), plot.classes)
    lot = lots.made(plot.home, bank, order, progress)
    each = [sum(image.name == name for image in lot) for name in plot.classes]
    if not run.arm.gated:
        return [image.item for image in chosen(lot, real, run.arm.ratio)], {}, each
    base = _base(run)
    judge = GateModels(plot.encoder, key_of_run(plot, base), lambda: segmenter(plot, base))
    rows = lots.judged(plot.home, bank, order, judge, progress)
    passed = {row["id"] for row in rows if not row["reasons"]}
    about = {"made": len(rows), "passed": len(passed)} | check.by_gate(row["reasons"] for row in rows)
    kept = [image for image in lot if image.item.id in passed]
    return [image.item for image in chosen(kept, real, run.arm.ratio)], about, each


def chosen(lot: Sequence[SyntheticItem], real: Mapping[str, int], ratio: float) -> list[SyntheticItem]:
    """The first images of each class, as many as the ratio says."""
    return [image for name, count in real.items() for image in _first(lot, name, round(ratio * count))]


def _first(lot: Sequence[SyntheticItem], name: str, count: int) -> list[SyntheticItem]:
    return [image for image in lot if image.name == name][:count]


# --- one training ---------------------------------------------------------------------------------------------------


def key_of_run(plot: TrialDesign, run: TrialRun) -> str:
    """Key of a run: a hash of all that it follows from, known before anything is made."""
    part = plot.parts[run.fold]
    shown = [
        sorted((item.id, item.label.digest) for item in of) for of in (real_of(plot, run.fold, run.budget), part.test)
    ]
    values = recipe_of(plot.base, run.arm, run.seed).values_for_key({"summary": True, "model": {"weights"}})
    versions: list[Any] = [lots.mark(order_of(plot, run)), plot.encoder.key] if run.arm.synthetic else []
    versions += [check.STEP] if run.arm.gated else []
    return key_of(
        [STEP, shown, plot.classes, arms.to_json(run.arm), values, plot.weights, plot.request.steps, versions]
    )


def file_of(plot: TrialDesign, run: TrialRun) -> Path:
    return plot.home / "runs" / f"{key_of_run(plot, run)}.npz"


def _train_all(plot: TrialDesign, alike: Sequence[TrialRun], todo: int, progress: Progress) -> None:
    """The runs of one fold and budget, which share a bank."""
    missing = [run for run in alike if not file_of(plot, run).is_file()]
    if not missing:
        return
    bank = bank_of(plot, missing[0].fold, missing[0].budget)
    for run in missing:
        _train(plot, run, bank, progress)
        progress("trial", 1, todo)


def _train(plot: TrialDesign, run: TrialRun, bank: MaskBank, progress: Progress) -> None:
    begun = time.perf_counter()
    real = real_of(plot, run.fold, run.budget)
    synthetic, refused, lot = _synthetic(plot, run, bank, progress) if run.arm.synthetic else ([], {}, [])
    begun = begun if not synthetic else time.perf_counter()  # lots are made once, they say nothing of a training
    predictor = trained(plot, run, [*real, *synthetic])
    rows = judged(predictor, plot.parts[run.fold].test, plot.classes, plot.max_pixels)
    counts = [sum(name in item.label.present for item in synthetic) for name in plot.classes]
    about = {"made": np.array(counts), "refused": np.array(json.dumps(refused)), "lot": np.array(lot)}
    about["seconds"] = np.array(time.perf_counter() - begun)
    target = file_of(plot, run)
    with files.written_aside(target) as aside, aside.open("wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **rows, **about)
    if run == _base(run):
        checkpoint.save(segmenter_file(plot, run), predictor.module.state_dict())
    files.remove(training_folder(plot, run))


def trained(plot: TrialDesign, run: TrialRun, items: Sequence[Item]) -> Predictor:
    """The network after all steps: no val tells when to stop, so no arm can profit from it."""
    recipe = recipe_of(plot.base, run.arm, run.seed)
    chances = arms.repeats(run.arm, items, plot.classes)
    data = _data(plot, arms.drawn(items, chances, plot.request.steps * recipe.batch, run.seed))
    model, start = training.network_of(recipe, data)
    folder = training_folder(plot, run)
    plan = LoadPlan(
        data.task, data.classes, False, True, recipe.input, recipe.augmentation, recipe.seed, plot.max_pixels
    )
    loop.fit(model, loop.FitSettings(recipe, data, plan, start.frozen, folder, plot.device))
    checkpoint.load_into(model, folder / loop.BEST)  # a run that was killed at its end trains no more
    return Predictor(key_of_run(plot, run), plot.classes, recipe, False, model.eval(), plot.device)


def training_folder(plot: TrialDesign, run: TrialRun) -> Path:
    """Working folder of a run; it outlives a kill."""
    return plot.home / f".{key_of_run(plot, run)}.training"


def _data(plot: TrialDesign, items: Sequence[Item]) -> TrainingData:
    return TrainingData("segmentation", plot.classes, tuple(items), (), single=False, clean=True)


def _base(run: TrialRun) -> TrialRun:
    return replace(run, arm=Arm(BALANCED), seed=0)


def segmenter_file(plot: TrialDesign, base: TrialRun) -> Path:
    return plot.home / "segmenters" / f"{key_of_run(plot, base)}.safetensors"


def segmenter(plot: TrialDesign, base: TrialRun) -> Predictor:
    """The balanced real arm's first network: the gates of this fold and budget know what it knows, and no more."""
    file = segmenter_file(plot, base)
    if not file.is_file():
        checkpoint.save(file, trained(plot, base, real_of(plot, base.fold, base.budget)).module.state_dict())
        files.remove(training_folder(plot, base))
    recipe = recipe_of(plot.base, base.arm, base.seed)
    model, _ = training.network_of(recipe, _data(plot, plot.parts[base.fold].train[:1]))
    checkpoint.load_into(model, file)
    return Predictor(key_of_run(plot, base), plot.classes, recipe, False, model.eval().to(plot.device), plot.device)


# --- what it came to ------------------------------------------------------------------------------------------------


def judged(
    predictor: Predictor, items: Sequence[Item], classes: Sequence[str], max_pixels: int
) -> dict[str, NDArray[Any]]:
    """Each test image once: what figures need of it."""
    judge = per_image.ModelEvaluator(predictor, tuple(classes), max_pixels)
    rows, seen = [], []
    for item in items:
        try:
            rows.append(judge.row(item, *judge.predict(item)))
            seen.append(item)
        except LabelProblem:
            continue  # unreadable for every arm alike
    return {
        "ids": np.array([item.id for item in seen]),
        "groups": np.array([item.group or item.id for item in seen]),
        "present": np.array([[name in item.label.present for name in classes] for item in seen], bool),
        **{name: np.stack([row[name] for row in rows]) for name in ("p", "decided", "counts", "histogram")},
    }


def read(file: Path, classes: Sequence[str]) -> EvaluatedImages:
    with np.load(file, allow_pickle=False) as of:
        count, n = len(classes), len(of["ids"])
        shape = (n, count, len(metrics.THRESHOLDS))
        pixels = PixelCounts(
            of["counts"].reshape(n, count, 3).astype(np.int64),
            of["histogram"].reshape(n, count, 2, metrics.BINS).astype(np.int64),
            np.zeros(shape, np.int64),
        )
        ids, groups = (tuple(of[name].tolist()) for name in ("ids", "groups"))
        p, decided = of["p"].astype(np.float64), of["decided"].astype(bool)
        return EvaluatedImages(tuple(classes), ids, groups, of["present"], p, decided, False, pixels)


def _judge_all(plot: TrialDesign, report: TrialReport) -> None:
    report.lines = verdict.table(answers(plot))
    report.verdicts = {
        _name(line): "; ".join(verdict.words(line).values()) for line in report.lines if line.differences
    }
    report.done = report.trainings
    report.notes += list(unmade(plot))
    report.gated = [gated(plot, run) for run in plot.runs if run.arm.gated and not run.seed]


def answers(plot: TrialDesign) -> dict[tuple[int, Arm], list[EvaluatedImages]]:
    """Predictions of every arm on the test images, by budget: folds pooled, seeds side by side."""
    predictions: dict[tuple[int, Arm], list[EvaluatedImages]] = {}
    for (budget, arm, _), alike in _by_seed(plot.runs):
        folds = [read(file_of(plot, run), plot.classes) for run in alike]
        predictions.setdefault((budget, arm), []).append(verdict.pooled(folds))
    return predictions


def unmade(plot: TrialDesign) -> Iterator[str]:
    """Notes on arms that learnt from too few images: windows had no place for more, or gates refused them."""
    for run in plot.runs:
        if run.arm.synthetic and not run.seed:
            asked, real = order_of(plot, run).counts, arms.defects(real_of(plot, run.fold, run.budget), plot.classes)
            wanted = {name: round(run.arm.ratio * count) for name, count in real.items()}
            with np.load(file_of(plot, run), allow_pickle=False) as of:
                rows = zip(plot.classes, of["made"].tolist(), of["lot"].tolist(), strict=True)
                short = [
                    f"{name} {used} of {wanted[name]} (asked for {asked[name]}, made {count})"
                    for name, used, count in rows
                    if used < wanted[name]
                ]
            if short:
                yield f"{run.arm}, {run.budget} real, fold {run.fold + 1}: too few synthetic {', '.join(short)}"


def _name(line: ArmResult) -> str:
    return f"{line.arm}, {line.budget} real"


def gated(plot: TrialDesign, run: TrialRun) -> dict[str, Any]:
    """Counts of an arm's synthetic images in a fold: those learnt from, by class, and those refused, by gate."""
    with np.load(file_of(plot, run), allow_pickle=False) as of:
        left = dict(zip(plot.classes, of["made"].tolist(), strict=True))
        about = {"arm": str(run.arm), "fold": run.fold, "budget": run.budget, "used": left}
        return about | {"gates": json.loads(str(of["refused"]))}


def _by_seed(runs: Sequence[TrialRun]) -> Iterator[tuple[tuple[int, Arm, int], list[TrialRun]]]:
    def key(run: TrialRun) -> tuple[int, Arm, int]:
        return run.budget, run.arm, run.seed

    for known, alike in groupby(sorted(runs, key=key), key=key):
        yield known, sorted(alike)


def _write(project: Project, plot: TrialDesign, report: TrialReport) -> None:
    """The report, the plot, and a verdict beside every batch that the trial speaks of."""
    png = plot.home / f"{report.stage}.png"
    chart.write(png, report.lines, plot.classes, f"{report.stage}: IoU against {BALANCED}")
    report.files = {"report": str(plot.home / f"{report.stage}.json"), "plot": str(png)}
    for batch in generate.every(project):
        if result := _verdict(plot, report, batch):
            report.batches[batch.key] = result
            _spoken(batch.folder / VERDICT, result)
    files.write_json(plot.home / f"{report.stage}.json", report.to_json() | {"best": verdict.best(report.lines)})


def _verdict(plot: TrialDesign, report: TrialReport, batch: SyntheticBatch) -> dict[str, Any] | None:
    """Verdict on a batch, from the gated arm of its synthesiser whose ratio and budget are closest to the batch's."""
    counts = {name: count for name, count in batch.manifest["counts"].items() if plot.real.get(name)}
    if not counts:
        return None
    ratio = sum(counts.values()) / sum(plot.real[name] for name in counts)
    budget = statistics.median(plot.real[name] for name in counts)
    line = verdict.nearest(report.lines, batch.manifest["synthesiser"], ratio, budget)
    if line is None:
        return None
    firm, better, words = conclusive(plot), verdict.positive(line.differences), verdict.words(line)
    about = {"stage": report.stage, "conclusive": firm, "budget": line.budget, **arms.to_json(line.arm)}
    return about | {"positive": {name: firm and yes for name, yes in better.items()}, "words": words}


def conclusive(plot: TrialDesign) -> bool:
    """True where a verdict may let a batch into training: a full trial, with all folds and seeds."""
    seeds, folds = (len({getattr(run, name) for run in plot.runs}) for name in ("seed", "fold"))
    return plot.request.stage == "full" and seeds >= SEEDS and folds == plot.request.folds


def _spoken(file: Path, result: dict[str, Any]) -> None:
    """A screening never takes the place of a full trial's verdict."""
    try:
        firm = bool(json.loads(file.read_text(encoding="utf-8"))["conclusive"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged
        firm = False
    if result["conclusive"] or not firm:
        files.write_json(file, result)
