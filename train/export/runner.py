"""`curate run`: a stored or exported model on images that are in no index, as on a line.

    runner = load("work/exports/<key>")            the folder of `curate export-model`: ONNX Runtime, without torch
    runner = load("production", project)           a stored model, in torch
    for result in apply(runner, files): ...

Pre- and postprocessing are those of `curate predict`: the same `Predictor`, tiles, thresholds and areas.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from curate import files
from curate.errors import CurateError, LabelProblem
from curate.masks import shapes
from curate.masks.decode import pixels_of
from curate.paths import IMAGE_SUFFIXES, printable, walk
from curate.project import PALETTE, LimitsConfig, Project
from curate.workers import cores
from train import decisions, recipe
from train.architectures import two_stage
from train.data.pixels import Pixels, with_channels
from train.export import onnx_int8
from train.export.run import GATE, INT8, ONNX, SIDECAR, EngineModel, Stages
from train.predict.predictor import ImagePrediction, Predictor, load_predictor

LARGEST = 1 << 24  # bytes of export.json
FIELDS = {"key": str, "task": str, "classes": list, "outputs": list, "single": bool, "recipe": dict, "thresholds": dict}


@dataclass(frozen=True)
class Runner:
    """A model that is ready; `engine`: torch, or the exported file that it runs."""

    predictor: Predictor
    engine: str
    max_pixels: int = LimitsConfig().max_pixels

    def answer(self, content: bytes) -> Answer:
        """Predict the image in these bytes. Raises LabelProblem where they are none, or none for this model."""
        begun = time.perf_counter()
        pixels = pixels_of(content, self.max_pixels)
        try:
            prediction = self.predictor.predict_image(pixels)
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "onnxruntime":
                raise
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise LabelProblem(f"the exported file takes no image of {size} pixels: see input in {SIDECAR}") from None
        return Answer(pixels, prediction, 1000 * (time.perf_counter() - begun))


class Answer(NamedTuple):
    """An image, its prediction, and the milliseconds that decoding and predicting took."""

    pixels: Pixels
    prediction: ImagePrediction
    ms: float

    def to_json(self) -> dict[str, Any]:
        defects = [
            defect.to_json() | {"confidence": round(confidence, 4), "area": int(_area(defect))}
            for defect, confidence in self.prediction.defects
        ]
        classes = [{"label": name, "confidence": round(value, 4)} for name, value in self.prediction.classes]
        height, width = self.pixels.shape[:2]
        about: dict[str, Any] = {"width": width, "height": height, "ms": round(self.ms, 2)}
        return about | ({"classes": classes} if not self.prediction.defects and classes else {}) | {"defects": defects}


def _area(defect: Any) -> float:
    crop = shapes.crop_of(defect)
    return float(defect.box[2] * defect.box[3]) if crop is None else float(crop.sum())


# --- the model ------------------------------------------------------------------------------------------------------


def load(name: str, project: Project | None = None, int8: bool = False, device: str = "auto") -> Runner:
    """Load a model.

    Args:
        name: the folder of an export, its export.json or one of its .onnx files; else a model's key or alias.
        project: the project of a key or alias.
        int8: the quantised file of an export.
        device: of a stored model; an export runs on the CPU.
    """
    path = Path(name).expanduser()
    if path.exists():
        folder = path if path.is_dir() else path.parent
        file = folder / (INT8 if int8 or path.name == INT8 else ONNX)
        return Runner(_exported(folder, file), file.name)
    if "/" in name or path.suffix == ".onnx":
        raise CurateError(f"nothing at {path}. Give the folder of an export (curate export-model), or a model's key")
    if project is None:
        raise CurateError(f"'{name}' is no file; for a stored model, name its project: --project NAME")
    if int8:
        raise CurateError(f"--int8 goes with an export: curate run {project.work / 'exports' / '<key>'} --int8 ...")
    return Runner(load_predictor(project, name, device), "torch", project.config.limits.max_pixels)


def _exported(folder: Path, file: Path) -> Predictor:
    if find_spec("onnxruntime") is None:
        raise CurateError("an exported model needs onnxruntime. Install it: pip install onnxruntime")
    about = _sidecar(folder / SIDECAR)
    areas = about.get("min_areas") or dict.fromkeys(about["classes"], about.get("min_area"))  # one, in older exports
    try:
        entries = {name: {"threshold": about["thresholds"][name], "min_area": areas[name]} for name in about["classes"]}
        chosen = decisions.from_manifest(entries)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / SIDECAR, f"thresholds or areas: {error}") from None
    resolved = recipe.validate(about["recipe"], f"{folder / SIDECAR}: ")
    run: Any = _loaded(file)
    if two_stage.flag_of(resolved.model) is not None:
        run = Stages(_loaded(folder / GATE[file.name]), run)
    return EngineModel(about["key"], tuple(about["classes"]), resolved, about["single"], run, decisions=chosen)


def _loaded(file: Path) -> onnx_int8.Run:
    if not file.is_file():
        raise CurateError(f"{file} is missing: export again (curate export-model), or leave out --int8")
    try:
        return onnx_int8.onnx_runner(file, cores())
    except Exception as error:
        raise CurateError(f"{file} cannot be loaded: {' '.join(str(error).split())[:200]}") from None


def _sidecar(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(files.read_bytes(file, LARGEST))
    except FileNotFoundError:
        raise CurateError(f"no {file.name} in {file.parent}: give the folder that curate export-model wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from None
    known = about if isinstance(about, dict) else {}
    wrong = [name for name, kind in FIELDS.items() if not isinstance(known.get(name), kind)]
    if wrong or not all(isinstance(name, str) for name in known["classes"]):
        raise _damaged(file, f"{', '.join(wrong) or 'classes'} is missing or of the wrong kind")
    return known


def _damaged(file: Path, why: str) -> CurateError:
    return CurateError(
        f"{file} is damaged ({printable(' '.join(why.split()))[:120]}). Export again: curate export-model"
    )


# --- images ---------------------------------------------------------------------------------------------------------


def images_of(path: Path) -> Iterator[Path]:
    """Yield the images in a folder, or the file itself."""
    if path.is_dir():
        yield from (path / found for found in walk(path, IMAGE_SUFFIXES))
    else:
        yield path


def apply(runner: Runner, paths: Iterable[Path]) -> Iterator[tuple[Path, Answer | LabelProblem]]:
    """Yield the answer, or what is wrong with the file, of each image; the next one is read meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for path in paths:
            behind, ahead = ahead, (path, reader.submit(_content, path))
            if behind:
                yield behind[0], _answer(runner, behind[1].result())
        if ahead:
            yield ahead[0], _answer(runner, ahead[1].result())


def _content(path: Path) -> bytes | LabelProblem:
    try:
        return files.read_bytes(path)
    except OSError as error:
        return LabelProblem(f"cannot be read: {error.strerror}")


def _answer(runner: Runner, content: bytes | LabelProblem) -> Answer | LabelProblem:
    if isinstance(content, LabelProblem):
        return content
    try:
        return runner.answer(content)
    except LabelProblem as problem:
        return problem


def overlay(answer: Answer, classes: Iterable[str]) -> bytes:
    """Return the image as a PNG, its defects outlined in their class's colour with name and confidence."""
    palette = [tuple(int(color[at : at + 2], 16) for at in (1, 3, 5)) for color in PALETTE]
    colors = {name: palette[number % len(palette)] for number, name in enumerate(classes)}
    image = np.ascontiguousarray(with_channels(answer.pixels, 3))
    height, width = image.shape[:2]
    for defect, confidence in answer.prediction.defects:
        rgb = colors[defect.label]
        contours, _ = cv2.findContours(
            shapes.mask_of(defect, width, height), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(image, contours, -1, rgb, 1, cv2.LINE_AA)
        _write(image, f"{defect.label} {confidence:.2f}", (int(defect.box[0]), int(defect.box[1]) - 4), rgb)
    for line, (name, confidence) in enumerate(answer.prediction.classes):
        _write(image, f"{name} {confidence:.2f}", (4, 14 + 14 * line), colors[name])
    return bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())


def _write(image: Pixels, text: str, place: tuple[int, int], color: tuple[int, ...]) -> None:
    text = text.encode("ascii", "replace").decode()  # OpenCV's letters
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
    x = max(0, min(place[0], image.shape[1] - wide))
    at = x, max(high, min(place[1], image.shape[0] - 2))
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, 1, cv2.LINE_AA)


def latency(ms: list[float]) -> Mapping[str, float]:
    """Return the median and the 95th percentile of milliseconds an image."""
    middle, high = np.percentile(ms, (50, 95)) if ms else (float("nan"), float("nan"))
    return {"p50_ms": round(float(middle), 2), "p95_ms": round(float(high), 2)}
