"""An evaluation as one self-contained page: tables, plots drawn here as SVG, and the worst mistakes as pictures."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from curate.data import Defect, Item
from curate.errors import LabelProblem
from curate.index.predictions import Prediction
from curate.masks import shapes
from train.data.pixels import read, with_channels
from train.evaluate import per_image
from train.evaluate.intervals import FEW
from train.store import StoredModel

CSS = Path(__file__).with_suffix(".css")
SHOTS = 12
POOR = 0.5  # Dice below which an outline is a mistake, too
SIDE = 520  # pixels of a thumbnail's longer side
STRIP = 2.0  # width over height from which on pictures get wider places
TRUTH, SAID = "#19c37d", "#ff3d81"
PLAIN = "#2563eb"
TITLES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "accuracy": "accuracy",
    "exact_match": "all classes right",
    "auroc": "AUROC",
    "ap": "average precision",
    "clean_false_alarms": "false alarms on clean",
    "iou": "IoU",
    "dice": "Dice, defective only",
    "kaggle_dice": "Kaggle mean Dice",
    "pixel_ap": "pixel AP",
    "region_recall": "regions found",
    "box_map50": "box mAP50",
    "box_map": "box mAP",
    "ece": "calibration error",
}
BY_CLASS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "false_alarms": "false alarms",
    "ap": "AP",
    "auroc": "AUROC",
}
BY_PIXELS = {"iou": "IoU", "dice": "Dice", "pixel_ap": "pixel AP", "box_ap50": "box AP50", "box_ap": "box AP"}
BY_SIZE = {
    "region_recall": "all",
    "region_recall_small": "small",
    "region_recall_medium": "medium",
    "region_recall_large": "large",
}
ON_IMAGES = (
    "Recall: of the images that show a class, the share that is found. False alarms: of all others, the share that "
)
ON_IMAGES += "is said to show it."
ON_PIXELS = (
    "IoU and pixel AP over all pixels together; Dice is the mean of the images that show the class. A box is the one "
)
ON_PIXELS += "around a connected region, its confidence the region's mean probability."
Figures = Mapping[str, Any]


class MistakePicture(NamedTuple):
    """A picture of a mistake: a data URI, its sides' ratio, and what to say below it."""

    image: str
    aspect: float
    title: str
    words: str


def page(
    found: Figures,
    manifest: Mapping[str, Any],
    model: StoredModel,
    shots: Sequence[MistakePicture],
    colors: Mapping[str, str],
) -> str:
    title = f"{manifest['project']}: {manifest['split']} by model {manifest['model'][:12]}"
    body = [
        _head(title, found, manifest, model),
        _notes(manifest["notes"]),
        _cards(found),
        _by_class(found, colors, BY_CLASS, "Images, by class", ON_IMAGES),
        _by_class(found, colors, BY_PIXELS, "Pixels and boxes, by class", ON_PIXELS),
        _by_size(found, colors),
        _operating(found),
        _confusion(found),
        *_pairs(
            _bars(found, colors),
            _reliability(found),
            _curves(found, "pr", "Images: precision against recall", colors),
            _curves(found, "pixel_pr", "Pixels: precision against recall", colors),
            _training(model),
        ),
        _shots(shots),
    ]
    style = CSS.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )


# --- text and tables ------------------------------------------------------------------------------------------------


def _head(title: str, found: Figures, made: Mapping[str, Any], model: StoredModel) -> str:
    recipe = model.manifest["recipe"]["model"]
    network = " ".join(part for part in (recipe["architecture"], recipe.get("encoder", "")) if part)
    clean = found["support"]["clean"]["images"]
    text = (
        f"{escape(network)}, {escape(made['task'])}, trained on {model.manifest['data']['train']} images. Judged on "
        f"{found['images']} labelled images of {found['groups']} groups ({clean} of them clean) as production brings "
        f"them. Beside each figure its 95 % interval, from {made['draws']} draws of whole groups."
    )
    return (
        f"<header><h1>{escape(title)}</h1><p>{text}<br>Model <code>{made['model']}</code>, {made['made']}.</p></header>"
    )


def _notes(notes: Sequence[str]) -> str:
    return f'<div class="notes">{"".join(f"<p>{escape(note)}</p>" for note in notes)}</div>' if notes else ""


def _cards(found: Figures) -> str:
    baselines = {"majority": f"always {', '.join(found['baselines']['majority']['said'])}"}
    baselines["empty_submission"] = "finding nothing"
    cards = []
    for name, title in TITLES.items():
        if name not in found["overall"]:
            continue
        beside = [
            f'<span class="base">{escape(words)}: {number(found["baselines"][base].get(name))}</span>'
            for base, words in baselines.items()
            if found["baselines"].get(base, {}).get(name)
        ]
        one = found["overall"][name]
        interval = f"<span>{_between(one)}</span>"
        cards.append(f'<div class="card"><span>{title}</span><b>{number(one)}</b>{interval}{"".join(beside)}</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def number(one: Figures | None) -> str:
    return "–" if one is None or one["value"] is None else f"{one['value']:.3f}"


def _between(one: Figures) -> str:
    if one["value"] is None:
        return "nothing to measure"
    if one["silent"]:
        return "too few to say"
    return f"{one['low']:.3f} to {one['high']:.3f}"


def _cell(one: Figures | None) -> str:
    if one is None or one["value"] is None:
        return '<td class="dim">–</td>'
    few = ' class="few"' if one["few"] else ""
    return f"<td>{number(one)}<small{few}>{_between(one)}</small></td>"


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{escape(one)}</th>" for one in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _section(title: str, about: str, content: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="about">{about}</p>{content}</section>' if content else ""


def _two(left: str, right: str) -> str:
    if left and right:
        return f'<div class="two">{left}{right}</div>'
    return left or right


def _pairs(*sections: str) -> list[str]:
    """Those that are not empty, two in a row."""
    shown = [one for one in sections if one]
    return [_two(*[*shown[at : at + 2], ""][:2]) for at in range(0, len(shown), 2)]


def _named(name: str, colors: Mapping[str, str]) -> str:
    return f'<span class="dot" style="background:{escape(colors.get(name, PLAIN))}"></span>{escape(name)}'


def _by_class(found: Figures, colors: Mapping[str, str], named: Mapping[str, str], title: str, about: str) -> str:
    first: Figures = next(iter(found["classes"].values()), {})
    columns = {name: words for name, words in named.items() if name in first}
    rows = []
    for name, one in found["classes"].items():
        shown = found["support"][name]
        few = ' class="few"' if shown["groups"] < FEW else ""
        groups = f"{shown['groups']} group{'s' if shown['groups'] != 1 else ''}"
        support = f"<td>{shown['images']}<small{few}>{groups}</small></td>"
        rows.append(f"<tr><td>{_named(name, colors)}</td>{support}{''.join(_cell(one[key]) for key in columns)}</tr>")
    return _section(title, about, _table(["class", "images", *columns.values()], rows) if columns else "")


def _by_size(found: Figures, colors: Mapping[str, str]) -> str:
    classes = {name: one for name, one in found["classes"].items() if "region_recall" in one}
    rows = []
    for name, one in classes.items():
        cells = "".join(_cell(one[key]).replace("</td>", f"<small>of {one[key]['n']}</small></td>") for key in BY_SIZE)
        rows.append(f"<tr><td>{_named(name, colors)}</td>{cells}</tr>")
    about = (
        f"A labelled region is found where a prediction of its class covers {per_image.FOUND:.0%} of it or more. "
        "Small: below 32² pixels; large: from 96² on."
    )
    return _section("Regions found, by size", about, _table(["class", *BY_SIZE.values()], rows) if classes else "")


def _operating(found: Figures) -> str:
    rows = []
    for name, one in found["operating"].items():
        area = "" if one["min_area"] is None else f"<small>from {one['min_area']} px on</small>"
        reached = "" if one["reached"] else "<small class=few>val does not reach it</small>"
        cells = [one["val"]["recall"], one["val"]["false_alarms"], one["split"]["recall"], one["split"]["false_alarms"]]
        before = (
            f"<td>{number(one['before']['recall'])}<small>{number(one['before']['false_alarms'])} alarms</small></td>"
        )
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{one['target']:g}{reached}</td><td>{one['threshold']:.3f}{area}</td>"
            f"{''.join(_cell(cell) for cell in cells)}{before}</tr>"
        )
    head = [
        "class",
        "target recall",
        "threshold",
        "val: recall",
        "val: alarms",
        "here: recall",
        "here: alarms",
        "before",
    ]
    about = "Thresholds fitted on val alone; what of the promise holds here, and its price in false alarms."
    return _section("Operating points", about, _table(head, rows) if rows else "")


def _confusion(found: Figures) -> str:
    table = found["confusion"]
    rows = []
    for name, counts in zip(table["truth"], table["counts"], strict=True):
        total = max(sum(counts), 1)
        cells = "".join(_heat(count, count / total) for count in counts)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    about = "Rows: what is there. Columns: what the model says."
    content = _table(["", *table["said"]], rows).replace("<table>", '<table class="heat">')
    return _section("What is taken for what", about, content)


def _heat(count: int, share: float) -> str:
    """Shaded by its share of the row."""
    style = f"background:color-mix(in srgb, var(--mark) {share * 70:.0f}%, transparent)"
    return f'<td style="{style}"{"" if count else " class=dim"}>{count}</td>'


# --- plots ----------------------------------------------------------------------------------------------------------

WIDE, HIGH, LEFT, BOTTOM, TOP = 520, 330, 56, 40, 10
Line = tuple[str, str, Sequence[tuple[float, float]], str]  # name, colour, points, more attributes


Dot = tuple[float, float, float, str, str]  # x, y, radius, colour, what it says


def _plot(
    lines: Sequence[Line],
    across: str,
    up: str,
    xs: tuple[float, float],
    ys: tuple[float, float],
    dots: Sequence[Dot] = (),
) -> str:
    """Lines over axes; all is placed by viewBox, so that it fits any width."""

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - xs[0]) / ((xs[1] - xs[0]) or 1) * (WIDE - LEFT - 12)
        return right, HIGH - BOTTOM - (y - ys[0]) / ((ys[1] - ys[0]) or 1) * (HIGH - BOTTOM - TOP)

    parts = [_axes(xs, ys, place, across, up)]
    for name, color, points, more in lines:
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        attributes = f'fill="none" stroke="{escape(color)}" stroke-width="2" stroke-linejoin="round" {more}'
        parts.append(f'<polyline points="{drawn}" {attributes}><title>{escape(name)}</title></polyline>')
    for x, y, radius, color, words in dots:
        right, down = place(x, y)
        circle = f'<circle cx="{right:.1f}" cy="{down:.1f}" r="{radius:.1f}" fill="{escape(color)}">'
        parts.append(f"{circle}<title>{escape(words)}</title></circle>")
    return f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img">{"".join(parts)}</svg>'


def _axes(xs: tuple[float, float], ys: tuple[float, float], place: Any, across: str, up: str) -> str:
    parts = []
    for value in np.linspace(*ys, 5):
        x, y = place(xs[0], value)
        parts.append(f'<path class="axis" d="M{LEFT},{y:.1f}H{WIDE - 12}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    whole = np.unique(np.linspace(*xs, 6).round()) if xs[1] > 1 else np.linspace(*xs, 5)
    for value in whole:
        x, y = place(float(value), ys[0])
        parts.append(f'<text x="{x:.1f}" y="{HIGH - BOTTOM + 18}" text-anchor="middle">{value:.3g}</text>')
    middle = (LEFT + WIDE - 12) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HIGH - 4}" text-anchor="middle">{escape(across)}</text>')
    turned = f'transform="rotate(-90 12 {(HIGH - BOTTOM) / 2:.0f})"'
    parts.append(f'<text x="12" y="{(HIGH - BOTTOM) / 2:.0f}" text-anchor="middle" {turned}>{escape(up)}</text>')
    return "".join(parts)


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    shown = "".join(
        f'<span><span class="dot" style="background:{escape(c)}"></span>{escape(name)}</span>' for name, c in entries
    )
    return f'<div class="legend">{shown}</div>'


def _curves(found: Figures, which: str, title: str, colors: Mapping[str, str]) -> str:
    curves = {name: points for name, points in found["curves"].get(which, {}).items() if points}
    if not curves:
        return ""
    lines: list[Line] = []
    for name, points in curves.items():
        # From the first point on, and from there at its height back to recall 0.
        drawn = [(0.0, points[0][1]), *((recall, precision) for recall, precision, _ in points)]
        lines.append((name, colors.get(name, PLAIN), drawn, ""))
    key = "ap" if which == "pr" else "pixel_ap"
    entries = [(f"{name}: AP {number(found['classes'][name][key])}", color) for name, color, _, _ in lines]
    about = "Up and to the right is better; the end of a curve is where everything is said to be defective."
    return _section(title, about, _plot(lines, "recall", "precision", (0, 1), (0, 1)) + _legend(entries))


def _reliability(found: Figures) -> str:
    calibration = found["calibration"]
    lines: list[Line] = [("honest", "#9aa6b5", [(0, 0), (1, 1)], 'stroke-dasharray="4 5"')]
    lines.append(("as it is", PLAIN, [(p, share) for p, share, _ in calibration["reliability"]], ""))
    words = f"Calibration error {number(found['overall']['ece'])} ({_between(found['overall']['ece'])})"
    if calibration["temperature"] is not None:
        after = [(p, share) for p, share, _ in calibration["reliability_after"]]
        lines.append(("with temperature", "#e07b00", after, ""))
        words += f"; with temperature {calibration['temperature']:.2f}, fitted on {calibration['fitted_on']} images of "
        words += f"val, {number(calibration['ece_after'])}"
    about = f"{words}. On the dashed line, 80 % means that 8 of 10 are right; a larger dot stands for more images."
    most = max(n for _, _, n in calibration["reliability"])
    dots = [(p, y, 2 + 5 * (n / most) ** 0.5, PLAIN, f"{n} at {p:.2f}") for p, y, n in calibration["reliability"]]
    plot = _plot(lines, "what the model says", "what is true", (0, 1), (0, 1), dots)
    return _section("How honest probabilities are", about, plot + _legend((name, c) for name, c, _, _ in lines[1:]))


def _training(model: StoredModel) -> str:
    history = model.manifest["history"]
    if not history:
        return ""
    lines: list[Line] = []
    for name, title, color in (("train_loss", "train", PLAIN), ("val_loss", "val", "#e07b00")):
        points = [(row["epoch"] + 1.0, row[name]) for row in history if name in row]
        if points:
            lines.append((title, color, points if len(points) > 1 else points * 2, ""))
    top = max(y for _, _, points, _ in lines for _, y in points)
    best = model.manifest["best"]["epoch"] + 1
    lines.append(("best", "#9aa6b5", [(best, 0), (best, top * 1.05)], 'stroke-dasharray="4 5"'))
    plot = _plot(lines, "epoch", "loss", (1, max(2, history[-1]["epoch"] + 1)), (0, top * 1.05))
    about = f"The weights are those after epoch {best} (dashed)."
    return _section("Training", about, plot + _legend((name, c) for name, c, _, _ in lines[:-1]))


def _bars(found: Figures, colors: Mapping[str, str]) -> str:
    """Recall and, of a segmenter, Dice by class, each with its interval."""
    names = [("recall", "recall"), ("f1", "F1")] + ([("dice", "Dice")] if "dice" in found["overall"] else [])
    parts, y = [], 22
    for value in (0, 0.25, 0.5, 0.75, 1):
        x = _across(value)
        parts.append(f'<text x="{x:.0f}" y="12" text-anchor="middle">{value:g}</text>')
    for name, one in found["classes"].items():
        for line in textwrap.wrap(name, 60) or [name]:
            parts.append(f'<text x="0" y="{y + 14}" style="fill:var(--ink);font-weight:600">{escape(line)}</text>')
            y += 18
        for key, title in names:
            parts.append(_bar(y, title, one[key], colors.get(name, PLAIN)))
            y += 18
        y += 12
    grid = "".join(f'<path class="axis" d="M{_across(v):.0f},18V{y - 8}"/>' for v in (0, 0.25, 0.5, 0.75, 1))
    about = "The thin line is the 95 % interval: where two overlap widely, the order of classes may be chance."
    return _section("Classes beside each other", about, f'<svg viewBox="0 0 {WIDE} {y}">{grid}{"".join(parts)}</svg>')


def _across(value: float) -> float:
    return 176 + value * (WIDE - 176 - 20)


def _bar(y: int, title: str, one: Figures, color: str) -> str:
    text = f'<text x="168" y="{y + 13}" text-anchor="end">{title}</text>'
    if one["value"] is None:
        return text + f'<text x="{_across(0) + 6:.0f}" y="{y + 13}">nothing to measure</text>'
    left, value, low, high = (_across(v) for v in (0, one["value"], one["low"], one["high"]))
    place = f'x="{left:.1f}" y="{y + 3}" width="{value - left:.1f}" height="12" rx="2"'
    bar = f'<rect {place} fill="{escape(color)}" opacity=".8"/>'
    path = f"M{low:.1f},{y + 9}H{high:.1f}M{low:.1f},{y + 5}v8M{high:.1f},{y + 5}v8"
    line = f'<path d="{path}" stroke="var(--ink)" fill="none"/>'
    words = f"{title} {number(one)} ({_between(one)})"
    return f"<g><title>{words}</title>{text}{bar}{line}</g>"


# --- pictures -------------------------------------------------------------------------------------------------------


def _shots(shots: Sequence[MistakePicture]) -> str:
    if not shots:
        return _section("Worst mistakes", "", "<p>None: every decision on every image is right.</p>")
    wide = " wide" if np.median([one.aspect for one in shots]) >= STRIP else ""
    figures = "".join(
        f'<figure><img src="{one.image}" alt="{escape(one.title)}"><figcaption>{escape(one.title)}'
        f'<span class="dim">{escape(one.words)}</span></figcaption></figure>'
        for one in shots
    )
    about = "The surest first. " + _legend([("what is labelled", TRUTH), ("what the model says", SAID)])
    return _section("Worst mistakes", about, f'<div class="shots{wide}">{figures}</div>')


def worst(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The images to show: the surest mistakes, then the regions that fit worst."""
    wrong = sorted(
        (id for id, row in rows.items() if row["eval_confidence"]), key=lambda id: -rows[id]["eval_confidence"]
    )
    poor = sorted(
        (id for id, row in rows.items() if row["eval_dice"] is not None), key=lambda id: rows[id]["eval_dice"]
    )
    return list(dict.fromkeys([*wrong, *(id for id in poor if rows[id]["eval_dice"] < POOR)]))[:SHOTS]


def thumbnails(
    items: Sequence[Item],
    predictions: Mapping[str, Prediction],
    rows: Mapping[str, Mapping[str, Any]],
    max_pixels: int,
) -> list[MistakePicture]:
    """A picture of each image that can be read, with what is labelled and what is predicted."""
    shots = []
    for item in items:
        try:
            pixels = read(item.id, item.path, max_pixels)
        except LabelProblem:
            continue
        shots.append(_shot(pixels, item, [defect for defect, _ in predictions[item.id].defects], rows[item.id]))
    return shots


def _shot(pixels: NDArray[np.uint8], item: Item, found: Sequence[Defect], row: Mapping[str, Any]) -> MistakePicture:
    scale = min(2.0, SIDE / max(item.width, item.height))
    wide, high = max(1, round(item.width * scale)), max(1, round(item.height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = np.ascontiguousarray(cv2.resize(with_channels(pixels, 3), (wide, high), interpolation=how))
    for defects, color in ((item.label.defects, TRUTH), (found, SAID)):
        for defect in defects:
            _outline(image, defect, item, color)
    parts = [f"missed {', '.join(row['eval_missed'])}" if row["eval_missed"] else ""]
    parts += [f"false alarm: {', '.join(row['eval_false_alarm'])}" if row["eval_false_alarm"] else ""]
    parts += [f"Dice {row['eval_dice']:.2f}" if row["eval_dice"] is not None else ""]
    parts += [f"sure to {row['eval_confidence']:.0%}" if row["eval_confidence"] else ""]
    title = "; ".join(part for part in parts if part)
    return MistakePicture(_uri(image), item.width / item.height, title, item.path.name)


def _outline(image: NDArray[np.uint8], defect: Defect, item: Item, color: str) -> None:
    mask = shapes.mask_of(defect, item.width, item.height)
    small = cv2.resize(mask, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA if mask.any() else 0)
    contours, _ = cv2.findContours((small > 0).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rgb = tuple(int(color[at : at + 2], 16) for at in (1, 3, 5))
    cv2.drawContours(image, contours, -1, rgb, 1, cv2.LINE_AA)


def _uri(image: NDArray[np.uint8]) -> str:
    _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(coded.tobytes()).decode()
