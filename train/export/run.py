"""`curate export-model`: a model for other machines in `work/exports/<key>/`: model.onnx, model.int8.onnx, export.json.

Both files are run on val before they are worth anything: model.onnx must say what torch says, and model.int8.onnx may
cost the rarest class no more recall and Dice than `max_drop`. Everything is measured on the CPU, in one run.
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
from typing import Any

import numpy as np

from curate import files
from curate.data import Item
from curate.errors import CurateError, LabelProblem, unknown
from curate.index.dataset import Index
from curate.index.rounds import key_of
from curate.project import Project
from curate.select import uncertainty
from train import store
from train.data import dataset
from train.data.dataset import TrainingData
from train.data.pixels import Pixels, read, resized, with_channels
from train.evaluate import metrics
from train.evaluate.per_image import ModelEvaluator, Row
from train.export import onnx_int8
from train.export.onnx_int8 import TOLERANCE, Run, Shape
from train.predict.predictor import Floats, ImagePrediction, Predictor, load_predictor
from train.recipe import SCALES
from train.store import StoredModel

ONNX, INT8, SIDECAR = "model.onnx", "model.int8.onnx", "export.json"
ENGINES = ("torch", "onnx", "int8")
MAX_DROP, CALIBRATION = 0.005, 64
TIMED = 20  # images
ROUNDING = 1e-9  # 1 - 0.995 is a little more than 0.005
STEP = 1  # raise it when the same model gives other files than before
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportRequest:
    """What the user asks for. `calibration`: images of train that tell how wide activations are; `activations`: `auto`
    is what this kind of processor runs fast."""

    model: str | None = None
    max_drop: float = MAX_DROP
    calibration: int = CALIBRATION
    activations: str = onnx_int8.AUTO
    force: bool = False


@dataclass
class Export:
    """What came of it; `refusal` says why nothing was written, `fresh` is false where it was there already."""

    folder: Path
    about: dict[str, Any]
    fresh: bool = True
    refusal: str | None = None

    def to_json(self) -> dict[str, Any]:
        state = {"fresh": self.fresh, "blessed": self.refusal is None, "refusal": self.refusal}
        return state | {"folder": str(self.folder) if self.refusal is None else None} | self.about


class _Refused(Exception):
    def __init__(self, about: dict[str, Any], why: str) -> None:
        super().__init__(why)
        self.about, self.why = about, why


def home(project: Project) -> Path:
    return project.work / "exports"


def run(project: Project, wish: ExportRequest, progress: Progress = lambda stage, done, total: None) -> Export:
    """Export, or find that it is done. Where the gate refuses, an earlier export stays as it is."""
    _check(wish)
    wish = replace(wish, activations=onnx_int8.fast(wish.activations, platform.machine()))
    model = store.find(project, wish.model)
    onnx_int8.check_installed()
    data = dataset.collect(Index(project), model.manifest["task"])
    folder = home(project) / model.key
    with files.writer_lock(home(project), "curate export-model"):
        job = _job(project, model, data, wish)
        known = _known(folder, job)
        if known is not None:
            return Export(folder, known, fresh=False, refusal=None if wish.force else _why(known, job))
        try:
            with files.written_aside(folder) as aside:
                about = _made(job, aside, progress)
                files.remove(folder)  # written whole already: a kill leaves the one or the other, or its parts
        except _Refused as refused:
            return Export(folder, refused.about, refusal=refused.why)
    return Export(folder, about)


def _check(wish: ExportRequest) -> None:
    if not 0 <= wish.max_drop < 1:
        raise CurateError(f"--max-drop {wish.max_drop:g} must be at least 0 and below 1, for example {MAX_DROP}")
    kinds = (onnx_int8.AUTO, *onnx_int8.ACTIVATIONS)
    if wish.activations not in kinds:
        raise unknown("type of activations", wish.activations, kinds)
    if wish.calibration < 1:
        raise CurateError(f"--calibration {wish.calibration} must be at least 1, for example {CALIBRATION}")


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportJob:
    """A model, the images that it is tried on and those that calibrate it; `rarest` has the fewest labelled ones."""

    judge: ModelEvaluator
    model: StoredModel
    val: tuple[Item, ...]
    calibration: tuple[Item, ...]
    labelled: Mapping[str, int]
    wish: ExportRequest
    mark: str
    notes: list[str] = field(default_factory=list)

    @property
    def predictor(self) -> Predictor:
        return self.judge.predictor

    @property
    def rarest(self) -> str:
        return min(self.predictor.classes, key=lambda name: self.labelled[name])

    @property
    def in_val(self) -> int:
        return sum(self.rarest in one.label.present for one in self.val)


def _job(project: Project, model: StoredModel, data: TrainingData, wish: ExportRequest) -> ExportJob:
    if not data.val:
        raise CurateError(
            "no labelled image in val: nothing shows what the exported model is worth. Label audit picks (curate "
            f"select), index a labelled source, or see splits.ratio in {project.file}"
        )
    predictor = load_predictor(project, model.key, "cpu")  # a GPU's half precision is no measure for a CPU's file
    judge = ModelEvaluator(predictor, predictor.classes, project.config.limits.max_pixels)
    labelled = Counter(name for one in (*data.train, *data.val) for name in one.label.present)
    versions = [version(name) for name in ("torch", *onnx_int8.NEEDED)]
    mark = key_of([model.key, data.digest, wish.calibration, wish.activations, onnx_int8.OPSET, versions, STEP])
    calibration = chosen(data.train, predictor.classes, wish.calibration)
    job = ExportJob(judge, model, data.val, tuple(calibration), labelled, wish, mark)
    if not job.in_val and not wish.force:
        raise CurateError(f"{_blind(job)}. Label some of it for val, or accept that: --force")
    return job


def _blind(job: ExportJob) -> str:
    return f"no labelled image of val shows {job.rarest}, the rarest class: the gate cannot judge what INT8 costs it"


def chosen(items: Sequence[Item], classes: Sequence[str], count: int) -> list[Item]:
    """Of the real images of train, each class and clean ones in turn; the same ones every time."""
    real = [one for one in items if one.split == "train" and one.source != "synthetic"]
    real = sorted(real, key=lambda one: hashlib.blake2b(one.id.encode()).digest())
    piles = [[one for one in real if name in one.label.present] for name in classes]
    piles.append([one for one in real if not one.label.present.intersection(classes)])
    in_turn = {one.id: one for round in zip_longest(*piles) for one in round if one is not None}
    return list(in_turn.values())[:count]


def _known(folder: Path, job: ExportJob) -> dict[str, Any] | None:
    """The export that is there, if it was made of the same; it may have been forced, or the gate been wider."""
    try:
        about: dict[str, Any] = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all((folder / name).is_file() for name in (ONNX, INT8))
    same = whole and about.get("mark") == job.mark
    return about if same else None


# --- an engine in place of torch ------------------------------------------------------------------------------------


class EngineModel(Predictor):
    """The model as another engine runs it: `module` goes from bytes to probabilities, all around it is the same."""

    def _tile(self, tile: Pixels) -> Floats:
        axes: tuple[tuple[int, ...], ...] = ((), (2,), (1,)) if self.recipe.predict.flips else ((),)
        found = [np.flip(self.module(np.flip(tile[None], flip)), [axis + 1 for axis in flip])[0] for flip in axes]
        return np.asarray(np.mean(found, axis=0), np.float32)

    def _whole(self, image: Pixels) -> ImagePrediction:
        wanted = self.recipe.input
        p = self.module(resized(image, wanted.height, wanted.width)[None])[0]
        by_class = p[: len(self.classes)]
        unsure = uncertainty.entropy(p[None]) if self.single else uncertainty.predictive_entropy_multilabel(p[None])
        return ImagePrediction(by_class, (), uncertainty.class_entropy(by_class), float(unsure[0]), self._named(p))


def answering(predictor: Predictor, run: Run) -> EngineModel:
    return EngineModel(**{**vars(predictor), "module": run})


def inputs_of(predictor: Predictor, image: Pixels) -> list[Pixels]:
    """What the network is asked about an image: its tiles, or all of it in the recipe's size."""
    seen: list[Pixels] = []
    outputs = len(predictor.classes) + 1

    def listen(batch: Pixels) -> Floats:
        seen.append(np.array(batch))
        segments = predictor.recipe.task == "segmentation"
        return np.zeros((1, len(predictor.classes), *batch.shape[1:3]) if segments else (1, outputs), np.float32)

    answering(predictor, listen).predict_image(image)
    return seen


# --- making ---------------------------------------------------------------------------------------------------------


def _made(job: ExportJob, folder: Path, progress: Progress) -> dict[str, Any]:
    import torch

    folder.mkdir()
    predictor, threads = job.predictor, torch.get_num_threads()
    module = onnx_int8.whole(predictor.module, predictor.recipe, predictor.single)
    shape, val = _shape(job)
    any_size = onnx_int8.write(module, folder / ONNX, shape, _name(job), predictor.recipe.task == "segmentation")
    if not any_size:
        _fixed(job, shape, len(val))
    batches = calibration_batches(job, shape, any_size, progress)
    onnx_int8.quantise(folder / ONNX, folder / INT8, batches, job.wish.activations)
    runs = {"torch": onnx_int8.by_torch(module)}
    runs |= {name: onnx_int8.by_onnx(folder / file, threads) for name, file in (("onnx", ONNX), ("int8", INT8))}
    judged = _judged(job, job.val if any_size else val, runs, progress)
    about = _about(job, shape, any_size) | judged | {"speed": _timed(job, val, runs) | {"threads": threads}}
    why = _why(about, job)
    about["gate"] |= {"passed": why is None, "forced": why is not None and job.wish.force}
    if why is not None and not job.wish.force:
        raise _Refused(about, why)
    about["files"] = {name: (folder / name).stat().st_size for name in (ONNX, INT8)}
    files.write_json(folder / SIDECAR, about)
    return about


def _name(job: ExportJob) -> str:
    made = job.predictor.recipe.model
    return f"model {job.model.key} ({made.architecture}{' with encoder ' + made.encoder if made.encoder else ''})"


def _shape(job: ExportJob) -> tuple[Shape, list[Item]]:
    """What the network is asked most often, and the images of val that ask it."""
    by_size = {size: _asked(job, *size) for size in {(one.height, one.width) for one in job.val}}
    shapes = [by_size[one.height, one.width] for one in job.val]
    usual = Counter(shapes).most_common(1)[0][0]
    return usual, [one for one, shape in zip(job.val, shapes, strict=True) if shape == usual]


def _asked(job: ExportJob, height: int, width: int) -> Shape:
    """The shape of the tiles of such an image."""
    channels = job.predictor.recipe.input.channels
    batch = inputs_of(job.predictor, np.zeros((height, width, channels), np.uint8))[0]
    return batch.shape[1], batch.shape[2], channels


def _fixed(job: ExportJob, shape: Shape, fitting: int) -> None:
    if job.predictor.recipe.task != "segmentation":
        return
    job.notes.append(
        f"{job.predictor.recipe.model.architecture} cannot be written for images of any size: the files take "
        f"{shape[0]}x{shape[1]} pixels alone"
    )
    if fitting < len(job.val):
        job.notes.append(f"{len(job.val) - fitting} of {len(job.val)} images of val have another size: left out")


def calibration_batches(job: ExportJob, shape: Shape, any_size: bool, progress: Progress) -> Iterator[Pixels]:
    """All that the network is asked about the calibration images, as it is read."""
    for item in job.calibration:
        progress("calibrate", 1, len(job.calibration))
        try:
            pixels = read(item.id, item.path, job.judge.max_pixels)
        except LabelProblem as problem:
            job.notes.append(f"{item.path} does not calibrate: {problem}")
            continue
        image = with_channels(pixels, job.predictor.recipe.input.channels)
        yield from (one for one in inputs_of(job.predictor, image) if any_size or one.shape[1:] == shape)


# --- judging --------------------------------------------------------------------------------------------------------


def _judged(job: ExportJob, items: Sequence[Item], runs: Mapping[str, Run], progress: Progress) -> dict[str, Any]:
    """What each engine is worth on val, and how far ONNX strays from torch."""
    predictors = {name: answering(job.predictor, runs[name]) for name in ENGINES[1:]}
    judges = {"torch": job.judge}
    judges |= {name: ModelEvaluator(one, job.judge.classes, job.judge.max_pixels) for name, one in predictors.items()}
    rows: dict[str, list[Row]] = {name: [] for name in ENGINES}
    good: list[Item] = []
    apart = {"largest_difference": 0.0, "pixels_differ": 0}
    for item in items:
        progress("judge", 1, len(items))
        try:
            found = {name: judge.look(item) for name, judge in judges.items()}
        except LabelProblem as problem:
            job.notes.append(f"{item.path} is not judged: {problem}")
            continue
        good.append(item)
        _apart(job, found, apart)
        for name, judge in judges.items():
            rows[name].append(judge.row(item, *found[name]))
    if not good:
        raise CurateError(f"no image of val could be judged; the first: {job.notes[-1]}")
    check = apart | {"images": len(good), "decisions_differ": _changed(rows["torch"], rows["onnx"])}
    _agree(job, check)
    accuracy = {name: _accuracy(job, good, rows[name]) for name in ENGINES}
    return {"check": check, "accuracy": accuracy, "gate": _gate(job, accuracy, _changed(rows["torch"], rows["int8"]))}


def _apart(job: ExportJob, found: Mapping[str, Any], worst: dict[str, Any]) -> None:
    (mine, seen), (theirs, also) = found["torch"], found["onnx"]
    if mine is None:
        mine, theirs = seen.probability, also.probability
    else:
        threshold = job.predictor.recipe.predict.threshold
        worst["pixels_differ"] += int(((mine > threshold) != (theirs > threshold)).sum())
    worst["largest_difference"] = max(worst["largest_difference"], float(np.abs(mine - theirs).max()))


def _changed(mine: Sequence[Row], theirs: Sequence[Row]) -> int:
    """Pairs of image and class of which the engines say different things."""
    return sum(int((a["decided"] != b["decided"]).sum()) for a, b in zip(mine, theirs, strict=True))


def _agree(job: ExportJob, check: Mapping[str, Any]) -> None:
    if check["largest_difference"] > TOLERANCE or (check["decisions_differ"] and not job.wish.force):
        raise CurateError(
            f"{_name(job)} says other things as ONNX than in torch: probabilities differ by up to "
            f"{check['largest_difference']:.2g} (allowed: {TOLERANCE:g}), {check['decisions_differ']} decisions on "
            f"{check['images']} images of val. Nothing was written; train another architecture for deployment"
        )


def _accuracy(job: ExportJob, items: Sequence[Item], rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Recall and Dice of each class; a classifier's Dice is that of its images, F1."""
    found: dict[str, dict[str, float | None]] = {}
    for place, name in enumerate(job.judge.classes):
        truth = np.array([name in one.label.present for one in items])
        decided = np.array([row["decided"][place] for row in rows], bool)
        if not truth.any():
            found[name] = {"recall": None, "dice": None}
            continue
        if "counts" in rows[0]:
            counts = np.array(
                [row["counts"].reshape(-1, 3)[place] for row, yes in zip(rows, truth, strict=True) if yes]
            )
        else:
            counts = np.array([[(truth & decided).sum(), (~truth & decided).sum(), (truth & ~decided).sum()]])
        found[name] = {"recall": float(decided[truth].mean()), "dice": float(metrics.dices(counts).mean())}
    return found


def _gate(job: ExportJob, accuracy: Mapping[str, Mapping[str, Any]], changed: int) -> dict[str, Any]:
    """What INT8 takes from the rarest class; None where val does not show it."""
    before, after = accuracy["torch"][job.rarest], accuracy["int8"][job.rarest]
    drop = {name: None if before[name] is None else before[name] - after[name] for name in before}
    about = {"class": job.rarest, "labelled": job.labelled[job.rarest], "in_val": job.in_val}
    return about | {"max_drop": job.wish.max_drop, "drop": drop, "decisions_differ": changed}


def _why(about: Mapping[str, Any], job: ExportJob) -> str | None:
    """Why the gate would not let it pass."""
    drop = about["gate"]["drop"]
    if None in drop.values():
        return _blind(job)
    past = {name: value for name, value in drop.items() if value > job.wish.max_drop + ROUNDING}
    if not past:
        return None
    lost = " and ".join(f"{value:.3f} of its {name.replace('dice', 'Dice')}" for name, value in past.items())
    return (
        f"INT8 costs {job.rarest}, the rarest class ({job.in_val} images of val), {lost}: more than --max-drop "
        f"{job.wish.max_drop:g}. Calibrate on more images (--calibration), allow more, or take it as it is: --force"
    )


def _timed(job: ExportJob, items: Sequence[Item], runs: Mapping[str, Run]) -> dict[str, Any]:
    """Median milliseconds an image, the engines in turn, so that a busy moment of the machine hits all alike."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for place, item in enumerate([items[0], *items[:TIMED]]):
        try:
            pixels = read(item.id, item.path, job.judge.max_pixels)
        except LabelProblem:
            continue
        batches = inputs_of(job.predictor, with_channels(pixels, job.predictor.recipe.input.channels))
        for name, run in runs.items():
            begun = time.perf_counter()
            for batch in batches:
                run(batch)
            if place:  # the first one warms up
                spent[name].append(1000 * (time.perf_counter() - begun))
    return {
        "ms": {name: round(statistics.median(one), 3) for name, one in spent.items()},
        "images": len(spent["torch"]),
    }


# --- the sidecar ----------------------------------------------------------------------------------------------------


def _about(job: ExportJob, shape: Shape, any_size: bool) -> dict[str, Any]:
    """All that somebody needs who has the files alone."""
    made, recipe = job.model.manifest, job.predictor.recipe
    names = ("task", "classes", "outputs", "single", "recipe")
    return {name: made[name] for name in names} | {
        "key": job.model.key,
        "mark": job.mark,
        "input": _input(job, shape, any_size),
        "output": _output(job),
        "thresholds": dict.fromkeys(job.predictor.classes, recipe.predict.threshold),
        "min_area": recipe.predict.min_area,
        "opset": onnx_int8.OPSET,
        "calibration": {"method": "MinMax", "images": [one.id for one in job.calibration]},
        "quantisation": {"format": "QDQ", "weights": "int8, per channel", "activations": job.wish.activations},
        "versions": {name: version(name) for name in ("torch", *onnx_int8.NEEDED)},
        "notes": job.notes,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _input(job: ExportJob, shape: Shape, any_size: bool) -> dict[str, Any]:
    wanted, segments = job.predictor.recipe.input, job.predictor.recipe.task == "segmentation"
    mean, std = SCALES[wanted.scale]
    sides = ["a multiple of 32", "a multiple of 32"] if any_size else list(shape[:2])
    resize = "none; mirror the right and lower border up to the size" if segments else "area to shrink, else linear"
    return {
        "name": onnx_int8.IMAGE,
        "type": "uint8",
        "layout": "NHWC",
        "shape": ["any", *sides, wanted.channels],
        "colour": "RGB" if wanted.channels == 3 else "grey",
        "resize": resize,
        "normalisation": {"inside": True, "mean": mean, "std": std},
    }


def _output(job: ExportJob) -> dict[str, Any]:
    segments = job.predictor.recipe.task == "segmentation"
    how = "softmax" if job.predictor.single and not segments else "sigmoid"
    layout = "NCHW" if segments else "NC"
    return {"name": onnx_int8.PROBABILITY, "type": "float32", "layout": layout, "inside": how}
