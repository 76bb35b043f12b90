"""`curate export-model`: a model for other machines in `work/exports/<key>/`: model.onnx, model.int8.onnx, export.json.

A segmenter in two stages has gate.onnx and gate.int8.onnx beside them. Both engines must pass a check on val: ONNX
gives the probabilities of torch, and INT8 costs the rarest class no more recall and Dice than `max_drop`. Everything is
measured on the CPU, in one run.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curate import files
from curate.data import Item
from curate.errors import CurateError, LabelProblem, unknown
from curate.hashing import key_of
from curate.index.dataset import Index
from curate.project import Project
from train import store
from train.architectures import two_stage
from train.data import dataset
from train.data.dataset import TrainingData
from train.data.pixels import OVERLAP, SIDE, STRIDE, Pixels, read, with_channels
from train.evaluate import metrics
from train.evaluate.per_image import ModelEvaluator, Row
from train.export import onnx_int8
from train.export.onnx_int8 import TOLERANCE, Run, Shape
from train.predict import stages
from train.predict.predictor import Floats, Predictor, flips_of, load_predictor
from train.recipe import SCALES
from train.store import StoredModel

ONNX, INT8, SIDECAR = "model.onnx", "model.int8.onnx", "export.json"
GATE = {ONNX: "gate.onnx", INT8: "gate.int8.onnx"}  # beside a segmenter in two stages
ENGINES = ("torch", "onnx", "int8")
MAX_DROP, CALIBRATION = 0.005, 64
TIMED = 20  # images that are timed
ROUNDING = 1e-9  # 1 - 0.995 is a little more than 0.005
STEP = 2  # raise it when the same model gives other files than before
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportRequest:
    """An export as the user asks for it.

    Args:
        model: key or alias; without one the current model.
        max_drop: the most recall or Dice that INT8 may cost the rarest class.
        calibration: the number of images of train on which activations are calibrated.
        activations: int8, uint8, or auto: the type that this kind of processor runs fast.
        force: write the files even where the gate refuses.
    """

    model: str | None = None
    max_drop: float = MAX_DROP
    calibration: int = CALIBRATION
    activations: str = onnx_int8.AUTO
    force: bool = False


@dataclass
class ExportResult:
    """The result of an export; `refusal`: why nothing was written; `fresh` is false where it was there already."""

    folder: Path
    about: dict[str, Any]
    fresh: bool = True
    refusal: str | None = None

    def to_json(self) -> dict[str, Any]:
        state = {"fresh": self.fresh, "blessed": self.refusal is None, "refusal": self.refusal}
        return state | {"folder": str(self.folder) if self.refusal is None else None} | self.about


class _Refused(Exception):
    def __init__(self, sidecar: dict[str, Any], reason: str) -> None:
        super().__init__(reason)
        self.sidecar, self.reason = sidecar, reason


def home(project: Project) -> Path:
    """Return the folder of all exports of the project."""
    return project.work / "exports"


def run(project: Project, request: ExportRequest, progress: Progress = lambda stage, done, total: None) -> ExportResult:
    """Export a model, or find that it is exported already. Where the gate refuses, an earlier export stays."""
    _check(request)
    request = replace(request, activations=onnx_int8.activation_type(request.activations, platform.machine()))
    model = store.find(project, request.model)
    onnx_int8.check_installed()
    data = dataset.collect(Index(project), model.manifest["task"])
    folder = home(project) / model.key
    with files.writer_lock(home(project), "curate export-model"):
        job = _prepare_job(project, model, data, request)
        existing = _existing(folder, job)
        if existing is not None:
            return ExportResult(
                folder, existing, fresh=False, refusal=None if request.force else _refusal(existing, job)
            )
        try:
            with files.written_aside(folder) as aside:
                sidecar = _write_files(job, aside, progress)
                files.remove(folder)  # the new one is complete: a kill leaves the old one, the new one, or parts for gc
        except _Refused as refused:
            return ExportResult(folder, refused.sidecar, refusal=refused.reason)
    return ExportResult(folder, sidecar)


def _check(request: ExportRequest) -> None:
    if not 0 <= request.max_drop < 1:
        raise CurateError(f"--max-drop {request.max_drop:g} must be at least 0 and below 1, for example {MAX_DROP}")
    kinds = (onnx_int8.AUTO, *onnx_int8.ACTIVATIONS)
    if request.activations not in kinds:
        raise unknown("type of activations", request.activations, kinds)
    if request.calibration < 1:
        raise CurateError(f"--calibration {request.calibration} must be at least 1, for example {CALIBRATION}")


# --- the job -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportJob:
    """A model, the images of val that check it and those that calibrate it; `rarest`: the class with fewest images."""

    evaluator: ModelEvaluator
    model: StoredModel
    val: tuple[Item, ...]
    calibration: tuple[Item, ...]
    labelled: Mapping[str, int]
    request: ExportRequest
    mark: str
    notes: list[str] = field(default_factory=list)

    @property
    def predictor(self) -> Predictor:
        return self.evaluator.predictor

    @property
    def rarest(self) -> str:
        return min(self.predictor.classes, key=lambda name: self.labelled[name])

    @property
    def in_val(self) -> int:
        return sum(self.rarest in item.label.present for item in self.val)


def _prepare_job(project: Project, model: StoredModel, data: TrainingData, request: ExportRequest) -> ExportJob:
    if not data.val:
        raise CurateError(
            "no labelled image in val: the exported model cannot be checked. Label audit picks (curate "
            f"select), index a labelled source, or see splits.ratio in {project.file}"
        )
    predictor = load_predictor(project, model.key, "cpu")  # compared on the CPU: a GPU computes in half precision
    evaluator = ModelEvaluator(predictor, predictor.classes, project.config.limits.max_pixels)
    labelled = Counter(name for item in (*data.train, *data.val) for name in item.label.present)
    versions = [version(name) for name in ("torch", *onnx_int8.NEEDED)]
    asked = [request.calibration, request.activations]
    mark = key_of([model.key, data.digest, *asked, onnx_int8.OPSET, versions, STEP, *model.versions])
    calibration = calibration_items(data.train, predictor.classes, request.calibration)
    job = ExportJob(evaluator, model, data.val, tuple(calibration), labelled, request, mark)
    if not job.in_val and not request.force:
        raise CurateError(f"{_blind_gate(job)}. Label some of it for val, or export without the gate: --force")
    return job


def _blind_gate(job: ExportJob) -> str:
    return f"no labelled image of val shows {job.rarest}, the rarest class: the gate cannot measure what INT8 costs it"


def calibration_items(items: Sequence[Item], classes: Sequence[str], count: int) -> list[Item]:
    """Choose real images of train, each class and clean ones in turn; the same ones every time."""
    real = [item for item in items if item.split == "train" and item.source != "synthetic"]
    real = sorted(real, key=lambda item: hashlib.blake2b(item.id.encode()).digest())
    piles = [[item for item in real if name in item.label.present] for name in classes]
    piles.append([item for item in real if not item.label.present.intersection(classes)])
    in_turn = {item.id: item for round in zip_longest(*piles) for item in round if item is not None}
    return list(in_turn.values())[:count]


def _existing(folder: Path, job: ExportJob) -> dict[str, Any] | None:
    """Return the existing export's sidecar if its inputs are the same; it may have been forced, or had another gate."""
    try:
        sidecar: dict[str, Any] = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all((folder / name).is_file() for name in files_of(job.predictor))
    same = whole and sidecar.get("mark") == job.mark
    return sidecar if same else None


# --- an engine in place of torch ------------------------------------------------------------------------------------


class Stages(NamedTuple):
    """The two networks of a model in two stages, each from bytes to probabilities."""

    gate: Run
    segment: Run


class EngineModel(Predictor):
    """The model in another engine: `module` goes from bytes to probabilities, or its two stages do; tiling, cropping
    and thresholds are the same."""

    def _map(self, network: Any, pixels: Pixels, flips: bool) -> Floats:
        axes = flips_of(flips, (2,), (1,))
        probabilities = [np.flip(network(np.flip(pixels[None], flip)), [axis + 1 for axis in flip])[0] for flip in axes]
        return np.asarray(np.mean(probabilities, axis=0), np.float32)

    def _outputs(self, view: Pixels) -> tuple[Floats, float | None]:
        flips = flips_of(self.recipe.predict.flips, (2,), (1,))
        return np.asarray(
            np.mean([self.module(np.flip(view[None], flip))[0] for flip in flips], axis=0), np.float32
        ), None


def in_stages(predictor: Predictor) -> bool:
    """Return whether the model is two networks, of which the first decides what the second sees."""
    return two_stage.flag_of(predictor.recipe.model) is not None


def files_of(predictor: Predictor) -> list[str]:
    """Return the names of an export's ONNX files."""
    return [ONNX, INT8, *(GATE.values() if in_stages(predictor) else ())]


def with_engine(predictor: Predictor, run: Run | Stages) -> EngineModel:
    """Return the predictor with another engine in place of torch."""
    return EngineModel(**{**vars(predictor), "module": run})


def inputs_of(predictor: Predictor, image: Pixels) -> list[Pixels]:
    """Return the network's inputs for an image: its tiles, or all of it in the recipe's size."""
    inputs: list[Pixels] = []
    outputs = len(predictor.classes) + 1

    def listen(batch: Pixels) -> Floats:
        inputs.append(np.array(batch))
        segments = predictor.recipe.task == "segmentation"
        return np.zeros((1, len(predictor.classes), *batch.shape[1:3]) if segments else (1, outputs), np.float32)

    def flag_all(batch: Pixels) -> Floats:
        return np.ones((1, len(predictor.classes), *(side // two_stage.CELL for side in batch.shape[1:3])), np.float32)

    engine = Stages(flag_all, listen) if in_stages(predictor) else listen
    with_engine(predictor, engine).predict_image(image)
    return inputs


# --- writing --------------------------------------------------------------------------------------------------------


def _write_files(job: ExportJob, folder: Path, progress: Progress) -> dict[str, Any]:
    import torch

    folder.mkdir()
    predictor, threads = job.predictor, torch.get_num_threads()
    shape, val = _usual_shape(job)
    runs: dict[str, Run | Stages]
    if in_stages(predictor):
        any_size, runs = True, _write_stages(job, folder, shape, threads, progress)
    else:
        module = onnx_int8.end_to_end(predictor.module, predictor.recipe, predictor.single)
        any_size = onnx_int8.write(module, folder / ONNX, shape, _name(job), predictor.recipe.native)
        if not any_size:
            _note_fixed_size(job, shape, len(val))
        batches = calibration_batches(job, shape, any_size, progress)
        onnx_int8.quantise(folder / ONNX, folder / INT8, batches, job.request.activations)
        runs = {"torch": onnx_int8.torch_runner(module)}
        runs |= {name: onnx_int8.onnx_runner(folder / file, threads) for name, file in (("onnx", ONNX), ("int8", INT8))}
    evaluation = _evaluate(job, job.val if any_size else val, runs, progress)
    sidecar = _sidecar(job, shape, any_size) | evaluation | {"speed": _time(job, val, runs) | {"threads": threads}}
    reason = _refusal(sidecar, job)
    sidecar["gate"] |= {"passed": reason is None, "forced": reason is not None and job.request.force}
    if reason is not None and not job.request.force:
        raise _Refused(sidecar, reason)
    sidecar["files"] = {name: (folder / name).stat().st_size for name in files_of(predictor)}
    files.write_json(folder / SIDECAR, sidecar)
    return sidecar


def _write_stages(
    job: ExportJob, folder: Path, shape: Shape, threads: int, progress: Progress
) -> dict[str, Run | Stages]:
    """Write gate and segmenter as files of their own, and return each engine's pair. Crops are of any size."""
    predictor, name = job.predictor, _name(job)
    parts: dict[str, Any] = {"gate": predictor.module.gate, "segment": predictor.module.segment}
    wholes = {part: onnx_int8.end_to_end(module, predictor.recipe, False) for part, module in parts.items()}
    of = {"gate": GATE, "segment": {ONNX: ONNX, INT8: INT8}}
    batches = list(calibration_batches(job, shape, True, progress))
    for part, whole in wholes.items():
        if not onnx_int8.write(whole, folder / of[part][ONNX], shape, name, True, two_stage.CELL):
            raise CurateError(
                f"a stage of {name} cannot be written as ONNX for crops of any size. Train another encoder for "
                "deployment, or with --set model.options.crops=0.0"
            )
        onnx_int8.quantise(folder / of[part][ONNX], folder / of[part][INT8], batches, job.request.activations)
    runs: dict[str, Run | Stages] = {"torch": Stages(*(onnx_int8.torch_runner(whole) for whole in wholes.values()))}
    return runs | {
        engine: Stages(*(onnx_int8.onnx_runner(folder / of[part][file], threads) for part in wholes))
        for engine, file in (("onnx", ONNX), ("int8", INT8))
    }


def _name(job: ExportJob) -> str:
    config = job.predictor.recipe.model
    return f"model {job.model.key} ({config.architecture}{' with encoder ' + config.encoder if config.encoder else ''})"


def _usual_shape(job: ExportJob) -> tuple[Shape, list[Item]]:
    """Return the most frequent input shape on val, and the images with it."""
    by_size = {size: _tile_shape(job, *size) for size in {(item.height, item.width) for item in job.val}}
    shapes = [by_size[item.height, item.width] for item in job.val]
    usual = Counter(shapes).most_common(1)[0][0]
    return usual, [item for item, shape in zip(job.val, shapes, strict=True) if shape == usual]


def _tile_shape(job: ExportJob, height: int, width: int) -> Shape:
    """Return the shape of the tiles of an image of this size."""
    channels = job.predictor.recipe.input.channels
    batch = inputs_of(job.predictor, np.zeros((height, width, channels), np.uint8))[0]
    return batch.shape[1], batch.shape[2], channels


def _note_fixed_size(job: ExportJob, shape: Shape, fitting: int) -> None:
    if not job.predictor.recipe.native:
        return
    job.notes.append(
        f"{job.predictor.recipe.model.architecture} cannot be exported for images of any size: the files take only "
        f"{shape[0]}x{shape[1]} pixels"
    )
    if fitting < len(job.val):
        job.notes.append(f"{len(job.val) - fitting} of {len(job.val)} images of val have another size: left out")


def calibration_batches(job: ExportJob, shape: Shape, any_size: bool, progress: Progress) -> Iterator[Pixels]:
    """Yield the network's inputs for the calibration images, read one after the other."""
    for item in job.calibration:
        progress("calibrate", 1, len(job.calibration))
        try:
            pixels = read(item.id, item.path, job.evaluator.max_pixels)
        except LabelProblem as problem:
            job.notes.append(f"{item.path} is not used for calibration: {problem}")
            continue
        image = with_channels(pixels, job.predictor.recipe.input.channels)
        yield from (batch for batch in inputs_of(job.predictor, image) if any_size or batch.shape[1:] == shape)


# --- evaluation -----------------------------------------------------------------------------------------------------


def _evaluate(
    job: ExportJob, items: Sequence[Item], runs: Mapping[str, Run | Stages], progress: Progress
) -> dict[str, Any]:
    """Evaluate each engine on val, and measure how far ONNX differs from torch."""
    predictors = {name: with_engine(job.predictor, runs[name]) for name in ENGINES[1:]}
    evaluators = {"torch": job.evaluator}
    evaluators |= {
        name: ModelEvaluator(engine, job.evaluator.classes, job.evaluator.max_pixels)
        for name, engine in predictors.items()
    }
    rows: dict[str, list[Row]] = {name: [] for name in ENGINES}
    evaluated: list[Item] = []
    difference = {"largest_difference": 0.0, "pixels_differ": 0}
    for item in items:
        progress("evaluate", 1, len(items))
        try:
            outputs = {name: evaluator.predict(item) for name, evaluator in evaluators.items()}
        except LabelProblem as problem:
            job.notes.append(f"{item.path} is not evaluated: {problem}")
            continue
        evaluated.append(item)
        _update_difference(job, outputs, difference)
        for name, evaluator in evaluators.items():
            rows[name].append(evaluator.row(item, *outputs[name]))
    if not evaluated:
        raise CurateError(f"no image of val could be evaluated; the first: {job.notes[-1]}")
    check = difference | {
        "images": len(evaluated),
        "decisions_differ": _differing_decisions(rows["torch"], rows["onnx"]),
    }
    _check_agreement(job, check)
    accuracy = {name: _accuracy(job, evaluated, rows[name]) for name in ENGINES}
    return {
        "check": check,
        "accuracy": accuracy,
        "gate": _gate(job, accuracy, _differing_decisions(rows["torch"], rows["int8"])),
    }


def _update_difference(job: ExportJob, outputs: Mapping[str, Any], worst: dict[str, Any]) -> None:
    (expected, prediction), (actual, other_prediction) = outputs["torch"], outputs["onnx"]
    if expected is None:
        expected, actual = prediction.probability, other_prediction.probability
    else:
        limits = [job.predictor.decision(name).threshold for name in job.predictor.classes]
        thresholds = np.array(limits, np.float32)[:, None, None]
        worst["pixels_differ"] += int(((expected > thresholds) != (actual > thresholds)).sum())
    worst["largest_difference"] = max(worst["largest_difference"], float(np.abs(expected - actual).max()))


def _differing_decisions(expected: Sequence[Row], actual: Sequence[Row]) -> int:
    """Count pairs of image and class in which the engines decide differently."""
    return sum(int((a["decided"] != b["decided"]).sum()) for a, b in zip(expected, actual, strict=True))


def _check_agreement(job: ExportJob, check: Mapping[str, Any]) -> None:
    if check["largest_difference"] > TOLERANCE or (check["decisions_differ"] and not job.request.force):
        raise CurateError(
            f"{_name(job)} predicts otherwise as ONNX than in torch: probabilities differ by up to "
            f"{check['largest_difference']:.2g} (allowed: {TOLERANCE:g}), {check['decisions_differ']} decisions on "
            f"{check['images']} images of val. Nothing was written; train another architecture for deployment"
        )


def _accuracy(job: ExportJob, items: Sequence[Item], rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Return recall and Dice of each class; of a classifier, Dice over images, which is F1."""
    accuracy: dict[str, dict[str, float | None]] = {}
    for place, name in enumerate(job.evaluator.classes):
        truth = np.array([name in item.label.present for item in items])
        decided = np.array([row["decided"][place] for row in rows], bool)
        if not truth.any():
            accuracy[name] = {"recall": None, "dice": None}
            continue
        if "counts" in rows[0]:
            counts = np.array(
                [row["counts"].reshape(-1, 3)[place] for row, yes in zip(rows, truth, strict=True) if yes]
            )
        else:
            counts = np.array([[(truth & decided).sum(), (~truth & decided).sum(), (truth & ~decided).sum()]])
        accuracy[name] = {"recall": float(decided[truth].mean()), "dice": float(metrics.image_dice(counts).mean())}
    return accuracy


def _gate(job: ExportJob, accuracy: Mapping[str, Mapping[str, Any]], changed: int) -> dict[str, Any]:
    """Return what INT8 costs the rarest class; None where val does not show it."""
    before, after = accuracy["torch"][job.rarest], accuracy["int8"][job.rarest]
    drop = {name: None if before[name] is None else before[name] - after[name] for name in before}
    details = {"class": job.rarest, "labelled": job.labelled[job.rarest], "in_val": job.in_val}
    return details | {"max_drop": job.request.max_drop, "drop": drop, "decisions_differ": changed}


def _refusal(sidecar: Mapping[str, Any], job: ExportJob) -> str | None:
    """Return why the gate refuses the export; None where it passes."""
    drop = sidecar["gate"]["drop"]
    if None in drop.values():
        return _blind_gate(job)
    past = {name: value for name, value in drop.items() if value > job.request.max_drop + ROUNDING}
    if not past:
        return None
    lost = " and ".join(f"{value:.3f} of its {name.replace('dice', 'Dice')}" for name, value in past.items())
    return (
        f"INT8 costs {job.rarest}, the rarest class ({job.in_val} images of val), {lost}: more than --max-drop "
        f"{job.request.max_drop:g}. Calibrate on more images (--calibration), allow more, or export anyway: --force"
    )


def _time(job: ExportJob, items: Sequence[Item], runs: Mapping[str, Run | Stages]) -> dict[str, Any]:
    """Return median milliseconds per image; engines take turns, so that a busy moment of the machine affects all."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for place, item in enumerate([items[0], *items[:TIMED]]):
        try:
            pixels = read(item.id, item.path, job.evaluator.max_pixels)
        except LabelProblem:
            continue
        image = with_channels(pixels, job.predictor.recipe.input.channels)
        batches = inputs_of(job.predictor, image)
        for name, run in runs.items():
            started = time.perf_counter()
            if isinstance(run, Stages):
                with_engine(job.predictor, run).probabilities(image)
            else:
                for batch in batches:
                    run(batch)
            if place:  # the first one warms up
                spent[name].append(1000 * (time.perf_counter() - started))
    return {
        "ms": {name: round(statistics.median(times), 3) for name, times in spent.items()},
        "images": len(spent["torch"]),
    }


# --- the sidecar ----------------------------------------------------------------------------------------------------


def _sidecar(job: ExportJob, shape: Shape, any_size: bool) -> dict[str, Any]:
    """Return the content of export.json: all that is needed to run the files."""
    manifest = job.model.manifest
    decisions = {name: job.predictor.decision(name) for name in job.predictor.classes}
    names = ("task", "classes", "outputs", "single", "recipe")
    return {name: manifest[name] for name in names} | {
        "key": job.model.key,
        "mark": job.mark,
        "input": _input(job, shape, any_size),
        "output": _output(job),
        "tiling": _tiling(job),
        "stages": _stages(job),
        "thresholds": {name: decision.threshold for name, decision in decisions.items()},
        "min_areas": {name: decision.min_area for name, decision in decisions.items()},
        "opset": onnx_int8.OPSET,
        "calibration": {"method": "MinMax", "images": [item.id for item in job.calibration]},
        "quantisation": {"format": "QDQ", "weights": "int8, per channel", "activations": job.request.activations},
        "versions": {name: version(name) for name in ("torch", *onnx_int8.NEEDED)},
        "notes": job.notes,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _input(job: ExportJob, shape: Shape, any_size: bool) -> dict[str, Any]:
    config, native = job.predictor.recipe.input, job.predictor.recipe.native
    mean, std = SCALES[config.scale]
    sides = ["a multiple of 32", "a multiple of 32"] if any_size else list(shape[:2])
    resize = "none; mirror the right and lower border up to the size" if native else "area to shrink, else linear"
    return {
        "name": onnx_int8.IMAGE,
        "type": "uint8",
        "layout": "NHWC",
        "shape": ["any", *sides, config.channels],
        "colour": "RGB" if config.channels == 3 else "grey",
        "resize": resize,
        "normalisation": {"inside": True, "mean": mean, "std": std},
    }


def _tiling(job: ExportJob) -> dict[str, Any] | None:
    """Return how a large image is cut into tiles: a segmenter's fade into each other where they overlap, a
    classifier's worst one (of a single choice the one least likely `clean`) speaks for the image."""
    if not job.predictor.recipe.native:
        return None
    return {"side": SIDE, "most_pixels": job.predictor.tile, "overlap": OVERLAP, "multiple_of": STRIDE}


def _stages(job: ExportJob) -> dict[str, Any] | None:
    """Return how the gate's file decides what the other one sees (`train/predict/stages.py`)."""
    if not in_stages(job.predictor):
        return None
    flag = two_stage.flag_of(job.predictor.recipe.model)
    cells = {"cell": two_stage.CELL, "margin": stages.MARGIN, "whole": stages.WHOLE, "clean": stages.CLEAN}
    return {"gate": GATE[ONNX], "gate_int8": GATE[INT8], "flag": flag} | cells


def _output(job: ExportJob) -> dict[str, Any]:
    segments = job.predictor.recipe.task == "segmentation"
    how = "softmax" if job.predictor.single and not segments else "sigmoid"
    layout = "NCHW" if segments else "NC"
    return {"name": onnx_int8.PROBABILITY, "type": "float32", "layout": layout, "inside": how}
