"""`curate explain`: where a model looks when it names a class (Grad-CAM, Selvaraju et al. 2017), and how much of that
heat lies on the labelled defect. Overlays go to a contact sheet in `work/explanations/<model>/<key>/` (sheet.png,
explanation.json).

A classifier is asked about its last feature map, a segmenter about the deepest one of its encoder, for the mean logit
of the pixels that it gives to the class (Seg-Grad-CAM, Vinogradova et al. 2020). The maps are coarse: 32 pixels of the
network's input are one cell. A share of heat on a mask says something only beside the mask's share of the picture.
"""

from __future__ import annotations

import hashlib
import json
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
SIDE, COLUMNS, LINE, GAP = 260, 3, 20, 8  # pixels of a picture on the sheet, cells in a row, caption, space between
WIDE = 2 * SIDE  # of a cell: two pictures side by side, or two strips one above the other
MOST = 1 << 19  # pixels that a segmenter is asked about at once: gradients take memory
CHUNK = 256
STEP = 1
Heat = NDArray[np.float32]


@dataclass(frozen=True)
class ExplainRequest:
    """`view`: of a saved view; else the surest mistakes of the model's last evaluation; without one labelled images of
    test."""

    model: str | None = None
    view: str | None = None
    images: int = SHOWN
    device: str = "auto"


@dataclass(frozen=True)
class HeatRequest:
    """An image, and the class whose heat is wanted."""

    item: Item
    asked: str
    why: str


# --- heat -----------------------------------------------------------------------------------------------------------


def heat(predictor: Predictor, image: Pixels, name: str, inside: NDArray[np.uint8] | None = None) -> Heat:
    """(H, W) from 0 to 1: what in the image (H, W, C) speaks for this class. `inside`: where else it finds nothing."""
    from pytorch_grad_cam import GradCAM

    place = predictor.classes.index(name)
    batch, target = (_of_segmenter if predictor.recipe.task == "segmentation" else _of_classifier)(
        predictor, image, place, inside
    )
    watched = _watched(predictor)
    with GradCAM(model=watched, target_layers=[watched.map]) as cam:
        found = cam(input_tensor=batch, targets=[target])[0]
    predictor.module.zero_grad(set_to_none=True)
    wide, high = batch.shape[3], batch.shape[2]
    if predictor.recipe.task == "segmentation" and image.shape[0] * image.shape[1] <= MOST:
        return np.asarray(found[: image.shape[0], : image.shape[1]], np.float32)  # what was mirrored on goes again
    assert found.shape == (high, wide)
    return np.asarray(cv2.resize(found, image.shape[1::-1]), np.float32)


def _watched(predictor: Predictor) -> Any:
    """The network with its deepest feature map as a module of its own, which can be watched."""
    from torch import nn

    class Watched(nn.Module):  # type: ignore[misc]
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module, self.map = module, nn.Identity()

        def forward(self, batch: Any) -> Any:
            found = self.module.encoder(batch)
            if not isinstance(found, list | tuple):
                return self.module.head(self.map(found))
            *before, last = found
            if hasattr(self.module, "head"):
                return self.module.head(self.map(last))
            return self.module.segmentation_head(self.module.decoder([*before, self.map(last)]))

    return Watched(predictor.module).eval()


def _of_classifier(predictor: Predictor, image: Pixels, place: int, inside: Any) -> tuple[Any, Any]:
    wanted = predictor.recipe.input
    return _batch(predictor, resized(image, wanted.height, wanted.width)), lambda logits: logits[place]


def _of_segmenter(predictor: Predictor, image: Pixels, place: int, inside: Any) -> tuple[Any, Any]:
    """The whole image, made smaller where it is larger than `MOST`; for the pixels that the model gives to the class,
    else those `inside`, else all."""
    if image.shape[0] * image.shape[1] > MOST:
        share = (MOST / (image.shape[0] * image.shape[1])) ** 0.5
        sides = [max(32, int(side * share) // 32 * 32) for side in image.shape[:2]]
        image, inside = resized(image, *sides), inside if inside is None else resized(inside, *sides)[..., 0]
    high, wide = (up_to_stride(side) for side in image.shape[:2])
    batch = _batch(predictor, padded(image, high, wide))
    limit = float(np.log(predictor.recipe.predict.threshold / (1 - predictor.recipe.predict.threshold)))

    def target(logits: Any) -> Any:
        chosen = logits[place].detach() > limit
        chosen[image.shape[0] :], chosen[:, image.shape[1] :] = False, False
        if not chosen.any() and inside is not None and inside.any():
            chosen[: image.shape[0], : image.shape[1]] = chosen.new_tensor(inside.astype(bool))
        return logits[place][chosen].mean() if chosen.any() else logits[place].mean()

    return batch, target


def _batch(predictor: Predictor, image: Pixels) -> Any:
    import torch

    batch = torch.from_numpy(np.require(image[None], requirements=["C", "W"])).to(predictor.device)
    return normalised(batch, predictor.recipe.input.scale)


# --- how much of it lies on the mask --------------------------------------------------------------------------------


def on_mask(found: Heat, mask: NDArray[np.uint8]) -> dict[str, float | None]:
    """`share` of the heat inside the mask (None where there is no heat at all), `area` of the picture that the mask
    has (what heat that knows nothing would give), `peak`: whether the hottest place lies inside."""
    total = float(found.sum(dtype=np.float64))
    inside = mask.astype(bool)
    share = float(found[inside].sum(dtype=np.float64)) / total if total > 0 else None
    peak = float(inside.flat[int(found.argmax())]) if total > 0 else None
    return {"share": share, "area": float(inside.mean()), "peak": peak}


def summed(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means a class, with intervals; only of images with a mask and with heat."""
    found: dict[str, Any] = {}
    for name in sorted({one["asked"] for one in answers}):
        mine = [one for one in answers if one["asked"] == name and one.get("share") is not None]
        if mine:
            draws = BootstrapDraws.of([one["group"] for one in mine])
            found[name] = {key: _mean(draws, [one[key] for one in mine]) for key in ("share", "area", "peak")}
    return found


def _mean(draws: BootstrapDraws, values: Sequence[float]) -> dict[str, Any]:
    measure: BootstrapMetric = draws.share(np.array(values), np.ones(len(values)))
    return intervals.figure(measure).to_json()


# --- which images ---------------------------------------------------------------------------------------------------


def questions(index: Index, model: store.StoredModel, wish: ExplainRequest) -> list[HeatRequest]:
    """What to ask: classes that are wrong where there are mistakes, else those that are there."""
    known = list(model.manifest["classes"])
    if wish.view is not None:
        ids = predicting.ids_of_view(index, wish.view)
        return _labelled(index, sorted(ids), known, wish.images)
    if found := _mistaken(index, model, known, wish.images):
        return found
    rows = index.rows("status", "split", "missing")
    ids = {id for id, status, split, missing in rows if (status, split) == ("labelled", "test") and not missing}
    return _labelled(index, sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest()), known, wish.images)


def _mistaken(index: Index, model: store.StoredModel, known: Sequence[str], count: int) -> list[HeatRequest]:
    """The surest mistakes of this model's last evaluation: the index may show another's."""
    last = next((one for one in evaluating.every(index.project) if one.model == model.key), None)
    here = set(index.ids())
    rows = [row for row in mistakes.surest(last.folder / evaluating.PER_IMAGE) if row[0] in here] if last else []
    items = {one.id: one for one in index.items([id for id, _, _ in rows[:count]])}
    found = []
    for id, missed, alarms in rows[:count]:
        for why, wrong in (("missed", missed), ("false alarm", alarms)):
            found += [HeatRequest(items[id], name, why) for name in wrong if name in known]
    return found[:count]


def _labelled(index: Index, ids: Sequence[str], known: Sequence[str], count: int) -> list[HeatRequest]:
    """One question for each class of an image; where these are too few, images that show none, about the likeliest."""
    found: list[HeatRequest] = []
    rest: list[HeatRequest] = []
    for part in chunks(ids, CHUNK):
        items = {one.id: one for one in index.items(part)}
        for item in (items[id] for id in part):
            names = sorted(item.label.present.intersection(known))
            found += [HeatRequest(item, name, "labelled") for name in names]
            rest += [] if names else [HeatRequest(item, "", "")]
        if len(found) >= count:
            break
    return [*found, *rest][:count]


# --- the command ----------------------------------------------------------------------------------------------------


@dataclass
class Explanation:
    """What came of it; `fresh` is false where it was there already."""

    folder: Path
    report: dict[str, Any]
    fresh: bool

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "sheet": str(self.folder / SHEET), "fresh": self.fresh} | self.report


def run(project: Project, wish: ExplainRequest, progress: Progress = lambda stage, done, total: None) -> Explanation:
    """Ask about each image, or find that it is done."""
    index, model = Index(project), store.find(project, wish.model)
    asked = questions(index, model, wish)
    if not asked:
        where = f"view '{wish.view}'" if wish.view else "test"
        raise CurateError(f"no image in {where} to explain. Label some, or name another view: --view")
    key = key_of([[(one.item.id, one.item.label.digest, one.asked, one.why) for one in asked], STEP])[:16]
    folder = project.work / "explanations" / model.key / key
    with files.writer_lock(project.work / "explanations", "curate explain"):
        fresh = not (folder / REPORT).is_file()
        if fresh:
            _write(folder, project, load_predictor(project, model.key, wish.device), asked, wish, progress)
    return Explanation(folder, json.loads((folder / REPORT).read_text(encoding="utf-8")), fresh)


def _write(
    folder: Path,
    project: Project,
    predictor: Predictor,
    asked: Sequence[HeatRequest],
    wish: ExplainRequest,
    progress: Progress,
) -> None:
    answers, cells, failed = [], [], dict[str, str]()
    for one in asked:
        try:
            pixels = read(one.item.id, one.item.path, project.config.limits.max_pixels)
        except LabelProblem as problem:
            failed[one.item.id] = f"{one.item.path}: {problem}"
            continue
        answer, found, mask = explained(predictor, one, pixels)
        answers.append(answer)
        cells.append(drawn(pixels, found, mask, answer))
        progress("explain", 1, len(asked))
    if not cells:
        raise CurateError(f"no image could be read; the first: {next(iter(failed.values()))}")
    report = {"model": predictor.key, "view": wish.view, "images": answers, "classes": summed(answers)}
    files.remove(folder)
    with files.written_aside(folder) as aside:
        aside.mkdir()
        cv2.imwrite(str(aside / SHEET), sheet(cells))
        files.write_json(aside / REPORT, report | {"failed": failed, "step": STEP})


def explained(predictor: Predictor, one: HeatRequest, pixels: Pixels) -> tuple[dict[str, Any], Heat, NDArray[np.uint8]]:
    """What is said of an image, the heat for the class, and where the class is."""
    image = with_channels(pixels, predictor.recipe.input.channels)
    seen = predictor.predict_image(pixels)
    asked = one.asked or predictor.classes[int(np.argmax(seen.probability))]
    drawn_on = any(defect.label == asked for defect in one.item.label.defects)
    mask = masks_of(one.item, (asked,))[0]
    found = heat(predictor, image, asked, mask)
    answer: dict[str, Any] = {"id": one.item.id, "path": str(one.item.path), "group": one.item.group or one.item.id}
    answer |= {"asked": asked, "why": one.why or "likeliest"}
    answer["probability"] = round(float(seen.probability[predictor.classes.index(asked)]), 6)
    return answer | (on_mask(found, mask) if drawn_on else {}), found, mask


# --- the sheet ------------------------------------------------------------------------------------------------------


def drawn(pixels: Pixels, found: Heat, mask: NDArray[np.uint8], answer: dict[str, Any]) -> Pixels:
    """A cell: the picture with the mask's outline, the same with heat; beneath, what was asked. BGR."""
    plain = cv2.cvtColor(with_channels(pixels, 3), cv2.COLOR_RGB2BGR)
    high, wide = plain.shape[:2]
    strip = wide > 2 * high
    share = WIDE / wide if strip else min(SIDE / wide, SIDE / high)
    size = (max(1, round(wide * share)), max(1, round(high * share)))
    plain, warm = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (plain, found.clip(0, 1)))
    edges, _ = cv2.findContours(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), 0, cv2.CHAIN_APPROX_NONE)
    opaque = 0.65 * warm[..., None] ** 0.5
    heated = np.uint8(plain * (1 - opaque) + cv2.applyColorMap(np.uint8(255 * warm), cv2.COLORMAP_INFERNO) * opaque)
    for one in (plain, heated):
        cv2.drawContours(one, edges, -1, (120, 220, 0), 1)
    pair = np.vstack([plain, heated]) if strip else np.hstack([plain, heated])
    room = np.full((len(pair), WIDE, 3), 255, np.uint8)
    room[:, : pair.shape[1]] = pair
    return np.vstack([room, _caption(answer)])


def _caption(answer: dict[str, Any]) -> Pixels:
    lines = [f"{answer['asked']} ({answer['why']}), p {answer['probability']:.2f}", Path(answer["path"]).name]
    if answer.get("share") is not None:
        lines[0] += f", heat on it {100 * answer['share']:.0f} % (area {100 * answer['area']:.1f} %)"
    elif "share" in answer:
        lines[0] += ", no heat: nothing speaks for it"
    strip = np.full((2 * LINE, WIDE, 3), 255, np.uint8)
    for row, text in enumerate(lines):
        plain = text.encode("ascii", "replace").decode()
        cv2.putText(
            strip, plain, (2, LINE * (row + 1) - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (40, 40, 40), 1, cv2.LINE_AA
        )
    return strip


def sheet(cells: Sequence[Pixels]) -> Pixels:
    """The cells in rows, on white."""
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
