"""`curate explain`: which pixels a model bases a class on (Grad-CAM, Selvaraju et al. 2017), and how much of that heat
lies on the labelled defect. Overlays go to a contact sheet in `work/explanations/<model>/<key>/` (sheet.png,
explanation.json).

The feature map is a classifier's last one, or the deepest one of a segmenter's encoder; a segmenter's target is the
mean logit of the pixels that are predicted as the class (Seg-Grad-CAM, Vinogradova et al. 2020). The maps are coarse:
one cell is 32 pixels of the network's input, or a tile of `tile-head` (16). Compare the share of heat on a mask with
the mask's share of the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.data import Item
from curate.errors import CurateError, LabelProblem
from curate.hashing import key_of
from curate.index.dataset import Index, chunks
from curate.project import Project
from train import store
from train.data.dataset import masks_of
from train.data.pixels import Pixels, normalised, padded, read, resized, up_to_stride, with_channels
from train.evaluate import intervals, mistakes
from train.evaluate import run as evaluating
from train.evaluate.intervals import BootstrapDraws, BootstrapMetric
from train.evaluate.robustness import Progress
from train.predict import run as predicting
from train.predict.predictor import Predictor, load_predictor

SHEET, REPORT = "sheet.png", "explanation.json"
SHOWN = 12  # images by default
SIDE, COLUMNS, LINE, GAP = (
    260,
    3,
    20,
    8,
)  # pixels of a picture on the sheet, cells in a row, pixels of a caption line and of a gap
WIDE = 2 * SIDE  # width of a cell: two pictures side by side, or two strips one above the other
MAX_PIXELS = 1 << 19  # a segmenter's largest input: gradients take memory
CHUNK = 256
STEP = 1
Heat = NDArray[np.float32]


@dataclass(frozen=True)
class ExplainRequest:
    """Options of `curate explain`.

    `view`: a saved view whose images are explained; without it the most confident mistakes of the model's last
    evaluation, or, without an evaluation, labelled images of test.
    """

    model: str | None = None
    view: str | None = None
    images: int = SHOWN
    device: str = "auto"


@dataclass(frozen=True)
class HeatRequest:
    """An image, the class whose heat is computed (empty: the likeliest), and the reason why it was chosen."""

    item: Item
    class_name: str
    reason: str


# --- heat -----------------------------------------------------------------------------------------------------------


def heat(predictor: Predictor, image: Pixels, name: str, inside: NDArray[np.uint8] | None = None) -> Heat:
    """Compute the heat of a class in an image.

    Args:
        predictor: the model.
        image: (H, W, C) pixels.
        name: the class.
        inside: (H, W) mask whose logits are used where a segmenter predicts no pixel of the class.

    Returns:
        (H, W) from 0 to 1: how much each pixel contributes to the class.
    """
    from pytorch_grad_cam import GradCAM

    place = predictor.classes.index(name)
    batch, target = (_segmenter_input if predictor.recipe.task == "segmentation" else _classifier_input)(
        predictor, image, place, inside
    )
    watched = _with_watched_map(predictor)
    with GradCAM(model=watched, target_layers=[watched.map]) as cam:
        cam_map = cam(input_tensor=batch, targets=[target])[0]
    predictor.module.zero_grad(set_to_none=True)
    wide, high = batch.shape[3], batch.shape[2]
    if predictor.recipe.native and image.shape[0] * image.shape[1] <= MAX_PIXELS:
        return np.asarray(cam_map[: image.shape[0], : image.shape[1]], np.float32)  # without the mirrored padding
    assert cam_map.shape == (high, wide)
    return np.asarray(cv2.resize(cam_map, image.shape[1::-1]), np.float32)


def _with_watched_map(predictor: Predictor) -> Any:
    """Wrap the network so that its deepest feature map is a module of its own, which Grad-CAM can hook."""
    from torch import nn

    class Watched(nn.Module):  # type: ignore[misc]
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module, self.map = module, nn.Identity()

        def forward(self, batch: Any) -> Any:
            features = self.module.encoder(batch)
            if not isinstance(features, list | tuple):
                return self.module.head(self.map(features))
            *before, last = features
            if hasattr(self.module, "head"):
                return self.module.head(self.map(last))
            return self.module.segmentation_head(self.module.decoder([*before, self.map(last)]))

    return Watched(predictor.module).eval()


def _classifier_input(predictor: Predictor, image: Pixels, place: int, inside: Any) -> tuple[Any, Any]:
    wanted = predictor.recipe.input
    if predictor.recipe.native:
        image, _ = _shrunk(image, None)
        image = padded(image, *(up_to_stride(side) for side in image.shape[:2]))
    else:
        image = resized(image, wanted.height, wanted.width)
    return _batch(predictor, image), lambda logits: logits[place]


def _segmenter_input(predictor: Predictor, image: Pixels, place: int, inside: Any) -> tuple[Any, Any]:
    """Return the input batch (downscaled to `MAX_PIXELS`) and the target: the mean logit over the pixels that are
    predicted as the class, else over those `inside`, else over all."""
    image, inside = _shrunk(image, inside)
    high, wide = (up_to_stride(side) for side in image.shape[:2])
    batch = _batch(predictor, padded(image, high, wide))
    threshold = predictor.decision(predictor.classes[place]).threshold
    limit = float(np.log(threshold / max(1 - threshold, 1e-7)))

    def target(logits: Any) -> Any:
        chosen = logits[place].detach() > limit
        chosen[image.shape[0] :], chosen[:, image.shape[1] :] = False, False
        if not chosen.any() and inside is not None and inside.any():
            chosen[: image.shape[0], : image.shape[1]] = chosen.new_tensor(inside.astype(bool))
        return logits[place][chosen].mean() if chosen.any() else logits[place].mean()

    return batch, target


def _shrunk(image: Pixels, inside: NDArray[np.uint8] | None) -> tuple[Pixels, NDArray[np.uint8] | None]:
    """Return the image, and the mask, with at most `MAX_PIXELS` pixels."""
    if image.shape[0] * image.shape[1] <= MAX_PIXELS:
        return image, inside
    share = (MAX_PIXELS / (image.shape[0] * image.shape[1])) ** 0.5
    sides = [max(32, int(side * share) // 32 * 32) for side in image.shape[:2]]
    return resized(image, *sides), inside if inside is None else resized(inside, *sides)[..., 0]


def _batch(predictor: Predictor, image: Pixels) -> Any:
    import torch

    batch = torch.from_numpy(np.require(image[None], requirements=["C", "W"])).to(predictor.device)
    return normalised(batch, predictor.recipe.input.scale)


# --- heat on the mask ----------------------------------------------------------------------------------------------


def heat_on_mask(heat: Heat, mask: NDArray[np.uint8]) -> dict[str, float | None]:
    """Return the `share` of the heat inside the mask, the mask's share of the image (`area`, which uniform heat would
    give), and whether the hottest pixel is inside (`peak`). `share` and `peak` are None without any heat."""
    total = float(heat.sum(dtype=np.float64))
    inside = mask.astype(bool)
    share = float(heat[inside].sum(dtype=np.float64)) / total if total > 0 else None
    peak = float(inside.flat[int(heat.argmax())]) if total > 0 else None
    return {"share": share, "area": float(inside.mean()), "peak": peak}


def class_means(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each class's means with intervals, over the images with a mask and with heat."""
    means: dict[str, Any] = {}
    for name in sorted({answer["asked"] for answer in answers}):
        own = [answer for answer in answers if answer["asked"] == name and answer.get("share") is not None]
        if own:
            draws = BootstrapDraws.of([answer["group"] for answer in own])
            means[name] = {key: _mean(draws, [answer[key] for answer in own]) for key in ("share", "area", "peak")}
    return means


def _mean(draws: BootstrapDraws, values: Sequence[float]) -> dict[str, Any]:
    metric: BootstrapMetric = draws.share(np.array(values), np.ones(len(values)))
    return intervals.estimate(metric).to_json()


# --- which images ---------------------------------------------------------------------------------------------------


def heat_requests(index: Index, model: store.StoredModel, request: ExplainRequest) -> list[HeatRequest]:
    """Choose images and classes: the classes that are wrong where there are mistakes, else the labelled ones."""
    known = list(model.manifest["classes"])
    if request.view is not None:
        ids = predicting.ids_of_view(index, request.view)
        return _label_requests(index, sorted(ids), known, request.images)
    if requests := _mistake_requests(index, model, known, request.images):
        return requests
    rows = index.rows("status", "split", "missing")
    ids = {id for id, status, split, missing in rows if (status, split) == ("labelled", "test") and not missing}
    return _label_requests(
        index, sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest()), known, request.images
    )


def _mistake_requests(index: Index, model: store.StoredModel, known: Sequence[str], count: int) -> list[HeatRequest]:
    """Return the most confident mistakes of this model's last evaluation (the index may show another model's)."""
    last = next(
        (evaluation for evaluation in evaluating.evaluations(index.project) if evaluation.model == model.key), None
    )
    here = set(index.ids())
    rows = (
        [row for row in mistakes.most_confident(last.folder / evaluating.PER_IMAGE) if row[0] in here] if last else []
    )
    items = {item.id: item for item in index.items([id for id, _, _ in rows[:count]])}
    requests = []
    for id, missed, alarms in rows[:count]:
        for why, wrong in (("missed", missed), ("false alarm", alarms)):
            requests += [HeatRequest(items[id], name, why) for name in wrong if name in known]
    return requests[:count]


def _label_requests(index: Index, ids: Sequence[str], known: Sequence[str], count: int) -> list[HeatRequest]:
    """Return a request for each class of an image; where these are too few, clean images with their likeliest class."""
    requests: list[HeatRequest] = []
    rest: list[HeatRequest] = []
    for part in chunks(ids, CHUNK):
        items = {item.id: item for item in index.items(part)}
        for item in (items[id] for id in part):
            names = sorted(item.label.present.intersection(known))
            requests += [HeatRequest(item, name, "labelled") for name in names]
            rest += [] if names else [HeatRequest(item, "", "")]
        if len(requests) >= count:
            break
    return [*requests, *rest][:count]


# --- the command ----------------------------------------------------------------------------------------------------


@dataclass
class Explanation:
    """A finished explanation; `fresh` is false where it had been finished before."""

    folder: Path
    report: dict[str, Any]
    fresh: bool

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "sheet": str(self.folder / SHEET), "fresh": self.fresh} | self.report


def run(project: Project, request: ExplainRequest, progress: Progress = lambda stage, done, total: None) -> Explanation:
    """Compute the heat of each chosen image and class, unless that is done already."""
    index, model = Index(project), store.find(project, request.model)
    requests = heat_requests(index, model, request)
    if not requests:
        where = f"view '{request.view}'" if request.view else "test"
        raise CurateError(f"no image in {where} to explain. Label some, or choose another view: --view")
    shown = [(wanted.item.id, wanted.item.label.digest, wanted.class_name, wanted.reason) for wanted in requests]
    key = key_of([shown, STEP, *model.versions])[:16]
    folder = project.work / "explanations" / model.key / key
    with files.writer_lock(project.work / "explanations", "curate explain"):
        fresh = not (folder / REPORT).is_file()
        if fresh:
            _write(folder, project, load_predictor(project, model.key, request.device), requests, request, progress)
    return Explanation(folder, files.read_json(folder / REPORT), fresh)


def _write(
    folder: Path,
    project: Project,
    predictor: Predictor,
    requests: Sequence[HeatRequest],
    request: ExplainRequest,
    progress: Progress,
) -> None:
    answers, cells, failed = [], [], dict[str, str]()
    for wanted in requests:
        try:
            pixels = read(wanted.item.id, wanted.item.path, project.config.limits.max_pixels)
        except LabelProblem as problem:
            failed[wanted.item.id] = f"{wanted.item.path}: {problem}"
            continue
        answer, heat_map, mask = explain_image(predictor, wanted, pixels)
        answers.append(answer)
        cells.append(draw_cell(pixels, heat_map, mask, answer))
        progress("explain", 1, len(requests))
    if not cells:
        raise CurateError(f"no image could be read; the first: {next(iter(failed.values()))}")
    report = {"model": predictor.key, "view": request.view, "images": answers, "classes": class_means(answers)}
    files.remove(folder)
    with files.written_aside(folder) as aside:
        aside.mkdir()
        (aside / SHEET).write_bytes(cv2.imencode(".png", sheet(cells))[1].tobytes())
        files.write_json(aside / REPORT, report | {"failed": failed, "step": STEP})


def explain_image(
    predictor: Predictor, wanted: HeatRequest, pixels: Pixels
) -> tuple[dict[str, Any], Heat, NDArray[np.uint8]]:
    """Return the answer about an image, the heat of the class, and the class's labelled mask."""
    image = with_channels(pixels, predictor.recipe.input.channels)
    prediction = predictor.predict_image(pixels)
    class_name = wanted.class_name or predictor.classes[int(np.argmax(prediction.probability))]
    drawn_on = any(defect.label == class_name for defect in wanted.item.label.defects)
    mask = masks_of(wanted.item, (class_name,))[0]
    heat_map = heat(predictor, image, class_name, mask)
    answer: dict[str, Any] = {
        "id": wanted.item.id,
        "path": str(wanted.item.path),
        "group": wanted.item.group or wanted.item.id,
    }
    answer |= {"asked": class_name, "why": wanted.reason or "likeliest"}
    answer["probability"] = round(float(prediction.probability[predictor.classes.index(class_name)]), 6)
    return answer | (heat_on_mask(heat_map, mask) if drawn_on else {}), heat_map, mask


# --- the sheet ------------------------------------------------------------------------------------------------------


def draw_cell(pixels: Pixels, heat: Heat, mask: NDArray[np.uint8], answer: dict[str, Any]) -> Pixels:
    """Draw a cell (BGR): the image with the mask's outline, the same with heat, and a caption below."""
    plain = cv2.cvtColor(with_channels(pixels, 3), cv2.COLOR_RGB2BGR)
    high, wide = plain.shape[:2]
    strip = wide > 2 * high
    share = WIDE / wide if strip else min(SIDE / wide, SIDE / high)
    size = (max(1, round(wide * share)), max(1, round(high * share)))
    plain, warm = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (plain, heat.clip(0, 1)))
    edges, _ = cv2.findContours(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), 0, cv2.CHAIN_APPROX_NONE)
    opaque = 0.65 * warm[..., None] ** 0.5
    heated = np.uint8(plain * (1 - opaque) + cv2.applyColorMap(np.uint8(255 * warm), cv2.COLORMAP_INFERNO) * opaque)
    for picture in (plain, heated):
        cv2.drawContours(picture, edges, -1, (120, 220, 0), 1)
    pair = np.vstack([plain, heated]) if strip else np.hstack([plain, heated])
    room = np.full((len(pair), WIDE, 3), 255, np.uint8)
    room[:, : pair.shape[1]] = pair
    return np.vstack([room, _caption(answer)])


def _caption(answer: dict[str, Any]) -> Pixels:
    lines = [f"{answer['asked']} ({answer['why']}), p {answer['probability']:.2f}", Path(answer["path"]).name]
    if answer.get("share") is not None:
        lines[0] += f", heat on it {100 * answer['share']:.0f} % (area {100 * answer['area']:.1f} %)"
    elif "share" in answer:
        lines[0] += ", no heat supports this class"
    strip = np.full((2 * LINE, WIDE, 3), 255, np.uint8)
    for row, text in enumerate(lines):
        plain = text.encode("ascii", "replace").decode()
        cv2.putText(
            strip, plain, (2, LINE * (row + 1) - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (40, 40, 40), 1, cv2.LINE_AA
        )
    return strip


def sheet(cells: Sequence[Pixels]) -> Pixels:
    """Arrange the cells in rows on a white page."""
    rows = [cells[at : at + COLUMNS] for at in range(0, len(cells), COLUMNS)]
    wide = GAP + min(COLUMNS, len(cells)) * (WIDE + GAP)
    page = np.full((GAP + sum(max(len(c) for c in row) + GAP for row in rows), wide, 3), 255, np.uint8)
    top = GAP
    for row in rows:
        for place, cell in enumerate(row):
            left = GAP + place * (WIDE + GAP)
            page[top : top + len(cell), left : left + WIDE] = cell
        top += max(len(cell) for cell in row) + GAP
    return page
