"""An evaluation as one self-contained HTML page: tables, SVG plots, and the worst mistakes as pictures."""

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
PICTURES = 12
POOR = 0.5  # Dice below which an outline is a mistake
SIDE = 520  # pixels of a thumbnail's longer side
STRIP = 2.0  # width over height from which on pictures get a wider column
TRUTH, PREDICTED = "#19c37d", "#ff3d81"
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
ON_IMAGES += "is predicted to show it."
ON_PIXELS = (
    "IoU and pixel AP over all pixels together; Dice is the mean of the images that show the class. A box is the one "
)
ON_PIXELS += "around a connected region, its confidence the region's mean probability."
Metrics = Mapping[str, Any]


class MistakePicture(NamedTuple):
    """A picture of a mistake: data URI, width over height, and the two lines of its caption."""

    image: str
    aspect: float
    title: str
    words: str


def page(
    metrics: Metrics,
    manifest: Mapping[str, Any],
    model: StoredModel,
    pictures: Sequence[MistakePicture],
    colors: Mapping[str, str],
) -> str:
    title = f"{manifest['project']}: {manifest['split']} by model {manifest['model'][:12]}"
    body = [
        _head(title, metrics, manifest, model),
        _notes(manifest["notes"]),
        _cards(metrics),
        _by_class(metrics, colors, BY_CLASS, "Images, by class", ON_IMAGES),
        _by_class(metrics, colors, BY_PIXELS, "Pixels and boxes, by class", ON_PIXELS),
        _by_size(metrics, colors),
        _by_stratum(metrics),
        _operating(metrics),
        _confusion(metrics),
        *two_in_a_row(
            _bars(metrics, colors),
            _reliability(metrics),
            _curves(metrics, "pr", "Images: precision against recall", colors),
            _curves(metrics, "pixel_pr", "Pixels: precision against recall", colors),
            _roc(metrics, colors),
            _training(model),
        ),
        _pictures(pictures),
    ]
    style = CSS.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )


# --- text and tables ------------------------------------------------------------------------------------------------


def _head(title: str, metrics: Metrics, manifest: Mapping[str, Any], model: StoredModel) -> str:
    recipe = model.manifest["recipe"]["model"]
    network = " ".join(part for part in (recipe["architecture"], recipe.get("encoder", "")) if part)
    clean = metrics["support"]["clean"]["images"]
    text = (
        f"{escape(network)}, {escape(manifest['task'])}, trained on {model.manifest['data']['train']} images. "
        f"Evaluated on {metrics['images']} labelled images of {metrics['groups']} groups ({clean} of them clean), "
        "without reweighting. Beside each metric its 95 % interval, from "
        f"{manifest['draws']} bootstrap draws of whole groups."
    )
    model_line = f"Model <code>{manifest['model']}</code>, {manifest['made']}."
    return f"<header><h1>{escape(title)}</h1><p>{text}<br>{model_line}</p></header>"


def _notes(notes: Sequence[str]) -> str:
    return f'<div class="notes">{"".join(f"<p>{escape(note)}</p>" for note in notes)}</div>' if notes else ""


def _cards(metrics: Metrics) -> str:
    baselines = {"majority": f"always {', '.join(metrics['baselines']['majority']['said'])}"}
    baselines["empty_submission"] = "finding nothing"
    cards = []
    for name, title in TITLES.items():
        if name not in metrics["overall"]:
            continue
        beside = [
            f'<span class="base">{escape(words)}: {format_value(metrics["baselines"][base].get(name))}</span>'
            for base, words in baselines.items()
            if metrics["baselines"].get(base, {}).get(name)
        ]
        estimate = metrics["overall"][name]
        interval = f"<span>{_interval_text(estimate)}</span>"
        cards.append(
            f'<div class="card"><span>{title}</span><b>{format_value(estimate)}</b>{interval}{"".join(beside)}</div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def format_value(estimate: Metrics | None) -> str:
    return "–" if estimate is None or estimate["value"] is None else f"{estimate['value']:.3f}"


def _interval_text(estimate: Metrics) -> str:
    if estimate["value"] is None:
        return "nothing to measure"
    if estimate["silent"]:
        return "too few to say"
    return f"{estimate['low']:.3f} to {estimate['high']:.3f}"


def _cell(estimate: Metrics | None) -> str:
    if estimate is None or estimate["value"] is None:
        return '<td class="dim">–</td>'
    few = ' class="few"' if estimate["few"] else ""
    return f"<td>{format_value(estimate)}<small{few}>{_interval_text(estimate)}</small></td>"


def html_table(head: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def html_section(title: str, about: str, content: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="about">{about}</p>{content}</section>' if content else ""


def _two(left: str, right: str) -> str:
    if left and right:
        return f'<div class="two">{left}{right}</div>'
    return left or right


def two_in_a_row(*sections: str) -> list[str]:
    """Return the sections that are not empty, two in a row."""
    shown = [section for section in sections if section]
    return [_two(*[*shown[at : at + 2], ""][:2]) for at in range(0, len(shown), 2)]


def _class_label(name: str, colors: Mapping[str, str]) -> str:
    return f'<span class="dot" style="background:{escape(colors.get(name, PLAIN))}"></span>{escape(name)}'


def _by_class(metrics: Metrics, colors: Mapping[str, str], named: Mapping[str, str], title: str, about: str) -> str:
    first: Metrics = next(iter(metrics["classes"].values()), {})
    columns = {name: words for name, words in named.items() if name in first}
    rows = []
    for name, estimates in metrics["classes"].items():
        counts = metrics["support"][name]
        few = ' class="few"' if counts["groups"] < FEW else ""
        groups = f"{counts['groups']} group{'s' if counts['groups'] != 1 else ''}"
        support = f"<td>{counts['images']}<small{few}>{groups}</small></td>"
        cells = "".join(_cell(estimates[key]) for key in columns)
        rows.append(f"<tr><td>{_class_label(name, colors)}</td>{support}{cells}</tr>")
    return html_section(title, about, html_table(["class", "images", *columns.values()], rows) if columns else "")


def _by_stratum(metrics: Metrics) -> str:
    rows = []
    for name, values in metrics["strata"].items():
        words = {"recall": "finds fewer", "false_alarms": "more false alarms"}
        verdict = "; ".join(words[key] for key in values["behind"])
        support = f"<td>{values['images']}<small>{values['groups']} groups</small></td>"
        cells = _cell(values["recall"]) + _cell(values["false_alarms"])
        rows.append(f"<tr><td>{escape(name)}</td>{support}{cells}<td>{verdict}</td></tr>")
    about = (
        "Recall: the share of images with a defect of which one is found, of its class. A stratum falls behind where "
        "it is clearly worse than all others together."
    )
    head = ["stratum", "images", "recall", "false alarms on clean", "falls behind"]
    return html_section("Lines, cameras, plants", about, html_table(head, rows) if rows else "")


def _by_size(metrics: Metrics, colors: Mapping[str, str]) -> str:
    classes = {name: estimates for name, estimates in metrics["classes"].items() if "region_recall" in estimates}
    rows = []
    for name, estimates in classes.items():
        cells = "".join(
            _cell(estimates[key]).replace("</td>", f"<small>of {estimates[key]['n']}</small></td>") for key in BY_SIZE
        )
        rows.append(f"<tr><td>{_class_label(name, colors)}</td>{cells}</tr>")
    about = (
        f"A labelled region is found where a prediction of its class covers {per_image.MIN_COVERED:.0%} of it or more. "
        "Small: below 32² pixels; large: from 96² on."
    )
    return html_section(
        "Regions found, by size", about, html_table(["class", *BY_SIZE.values()], rows) if classes else ""
    )


def _operating(metrics: Metrics) -> str:
    rows = []
    for name, point in metrics["operating"].items():
        area = "" if point["min_area"] is None else f"<small>from {point['min_area']} px on</small>"
        reached = "" if point["reached"] else "<small class=few>val does not reach it</small>"
        cells = [point[part][key] for part in ("val", "split") for key in ("recall", "false_alarms")]
        recall, alarms = (format_value(point["before"][key]) for key in ("recall", "false_alarms"))
        before = f"<td>{recall}<small>{alarms} alarms</small></td>"
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{point['target']:g}{reached}</td><td>{point['threshold']:.3f}{area}</td>"
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
    about = "Thresholds are fitted on val alone; 'here' is the recall reached on this split, and its false alarms."
    return html_section("Operating points", about, html_table(head, rows) if rows else "")


def _confusion(metrics: Metrics) -> str:
    table = metrics["confusion"]
    rows = []
    for name, counts in zip(table["truth"], table["counts"], strict=True):
        total = max(sum(counts), 1)
        cells = "".join(_shaded_cell(count, count / total) for count in counts)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    about = "Rows: labels. Columns: predictions."
    content = html_table(["", *table["said"]], rows).replace("<table>", '<table class="heat">')
    return html_section("Confusion matrix", about, content)


def _shaded_cell(count: int, share: float) -> str:
    """Return a cell that is shaded by its share of the row."""
    style = f"background:color-mix(in srgb, var(--mark) {share * 70:.0f}%, transparent)"
    return f'<td style="{style}"{"" if count else " class=dim"}>{count}</td>'


# --- plots ----------------------------------------------------------------------------------------------------------

WIDE, HIGH, LEFT, BOTTOM, TOP = 520, 330, 56, 40, 10
Line = tuple[str, str, Sequence[tuple[float, float]], str]  # name, colour, points, more attributes


Dot = tuple[float, float, float, str, str]  # x, y, radius, colour, tooltip


def draw_plot(
    lines: Sequence[Line],
    across: str,
    up: str,
    xs: tuple[float, float],
    ys: tuple[float, float],
    dots: Sequence[Dot] = (),
) -> str:
    """Draw lines and dots over axes, as SVG with a viewBox, so that it fits any width."""

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


def html_legend(entries: Iterable[tuple[str, str]]) -> str:
    shown = "".join(
        f'<span><span class="dot" style="background:{escape(c)}"></span>{escape(name)}</span>' for name, c in entries
    )
    return f'<div class="legend">{shown}</div>'


def _curves(metrics: Metrics, which: str, title: str, colors: Mapping[str, str]) -> str:
    curves = {name: points for name, points in metrics["curves"].get(which, {}).items() if points}
    if not curves:
        return ""
    lines: list[Line] = []
    for name, points in curves.items():
        # From the first point, extend the line at its height back to recall 0.
        drawn = [(0.0, points[0][1]), *((recall, precision) for recall, precision, _ in points)]
        lines.append((name, colors.get(name, PLAIN), drawn, ""))
    key = "ap" if which == "pr" else "pixel_ap"
    entries = [(f"{name}: AP {format_value(metrics['classes'][name][key])}", color) for name, color, _, _ in lines]
    about = "Up and to the right is better; at the end of a curve everything is predicted as defective."
    return html_section(title, about, draw_plot(lines, "recall", "precision", (0, 1), (0, 1)) + html_legend(entries))


def _roc(metrics: Metrics, colors: Mapping[str, str]) -> str:
    curves = {name: points for name, points in metrics["curves"].get("roc", {}).items() if points}
    if not curves:
        return ""
    lines: list[Line] = [("by chance", PLAIN, [(0, 0), (1, 1)], 'stroke-dasharray="4 5"')]
    for name, points in curves.items():
        drawn = [(0.0, 0.0), *((rate, recall) for rate, recall, _ in points)]
        lines.append((name, colors.get(name, PLAIN), drawn, ""))
    entries = [
        (f"{name}: AUROC {format_value(metrics['classes'][name]['auroc'])}", color) for name, color, _, _ in lines[1:]
    ]
    about = "Up and to the left is better: what share of a class is found at what share of other images flagged."
    plot = draw_plot(lines, "false alarms", "recall", (0, 1), (0, 1))
    return html_section("Images: recall against false alarms", about, plot + html_legend(entries))


def _reliability(metrics: Metrics) -> str:
    calibration = metrics["calibration"]
    lines: list[Line] = [("calibrated", "#9aa6b5", [(0, 0), (1, 1)], 'stroke-dasharray="4 5"')]
    lines.append(("uncalibrated", PLAIN, [(p, share) for p, share, _ in calibration["reliability"]], ""))
    words = f"Calibration error {format_value(metrics['overall']['ece'])} ({_interval_text(metrics['overall']['ece'])})"
    if calibration["temperature"] is not None:
        after = [(p, share) for p, share, _ in calibration["reliability_after"]]
        lines.append(("with temperature", "#e07b00", after, ""))
        words += f"; with temperature {calibration['temperature']:.2f}, fitted on {calibration['fitted_on']} images of "
        words += f"val, {format_value(calibration['ece_after'])}"
    about = f"{words}. On the dashed line, 80 % means that 8 of 10 are right; a larger dot stands for more images."
    most = max(n for _, _, n in calibration["reliability"])
    dots = [(p, y, 2 + 5 * (n / most) ** 0.5, PLAIN, f"{n} at {p:.2f}") for p, y, n in calibration["reliability"]]
    plot = draw_plot(lines, "predicted probability", "share that is true", (0, 1), (0, 1), dots)
    return html_section("Calibration", about, plot + html_legend((name, c) for name, c, _, _ in lines[1:]))


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
    plot = draw_plot(lines, "epoch", "loss", (1, max(2, history[-1]["epoch"] + 1)), (0, top * 1.05))
    about = f"The weights are those after epoch {best} (dashed)."
    return html_section("Training", about, plot + html_legend((name, c) for name, c, _, _ in lines[:-1]))


def _bars(metrics: Metrics, colors: Mapping[str, str]) -> str:
    """Draw recall, F1 and, for a segmenter, Dice by class, each with its interval."""
    names = [("recall", "recall"), ("f1", "F1")] + ([("dice", "Dice")] if "dice" in metrics["overall"] else [])
    parts, y = [], 22
    for value in (0, 0.25, 0.5, 0.75, 1):
        x = _across(value)
        parts.append(f'<text x="{x:.0f}" y="12" text-anchor="middle">{value:g}</text>')
    for name, estimates in metrics["classes"].items():
        for line in textwrap.wrap(name, 60) or [name]:
            parts.append(f'<text x="0" y="{y + 14}" style="fill:var(--ink);font-weight:600">{escape(line)}</text>')
            y += 18
        for key, title in names:
            parts.append(_bar(y, title, estimates[key], colors.get(name, PLAIN)))
            y += 18
        y += 12
    grid = "".join(f'<path class="axis" d="M{_across(v):.0f},18V{y - 8}"/>' for v in (0, 0.25, 0.5, 0.75, 1))
    about = "The thin line is the 95 % interval: where two overlap widely, the order of the classes may be chance."
    return html_section("Classes compared", about, f'<svg viewBox="0 0 {WIDE} {y}">{grid}{"".join(parts)}</svg>')


def _across(value: float) -> float:
    return 176 + value * (WIDE - 176 - 20)


def _bar(y: int, title: str, estimate: Metrics, color: str) -> str:
    text = f'<text x="168" y="{y + 13}" text-anchor="end">{title}</text>'
    if estimate["value"] is None:
        return text + f'<text x="{_across(0) + 6:.0f}" y="{y + 13}">nothing to measure</text>'
    left, value, low, high = (_across(v) for v in (0, estimate["value"], estimate["low"], estimate["high"]))
    place = f'x="{left:.1f}" y="{y + 3}" width="{value - left:.1f}" height="12" rx="2"'
    bar = f'<rect {place} fill="{escape(color)}" opacity=".8"/>'
    path = f"M{low:.1f},{y + 9}H{high:.1f}M{low:.1f},{y + 5}v8M{high:.1f},{y + 5}v8"
    line = f'<path d="{path}" stroke="var(--ink)" fill="none"/>'
    words = f"{title} {format_value(estimate)} ({_interval_text(estimate)})"
    return f"<g><title>{words}</title>{text}{bar}{line}</g>"


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures(pictures: Sequence[MistakePicture]) -> str:
    if not pictures:
        return html_section("Worst mistakes", "", "<p>None: all decisions on all images are right.</p>")
    wide = " wide" if np.median([picture.aspect for picture in pictures]) >= STRIP else ""
    figure_tags = "".join(
        f'<figure><img src="{picture.image}" alt="{escape(picture.title)}"><figcaption>{escape(picture.title)}'
        f'<span class="dim">{escape(picture.words)}</span></figcaption></figure>'
        for picture in pictures
    )
    about = "The most confident first. " + html_legend([("label", TRUTH), ("prediction", PREDICTED)])
    return html_section("Worst mistakes", about, f'<div class="shots{wide}">{figure_tags}</div>')


def worst_images(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Choose the images to show: the most confident mistakes, then the outlines with the lowest Dice."""
    wrong = sorted(
        (id for id, row in rows.items() if row["eval_confidence"]), key=lambda id: -rows[id]["eval_confidence"]
    )
    poor = sorted(
        (id for id, row in rows.items() if row["eval_dice"] is not None), key=lambda id: rows[id]["eval_dice"]
    )
    return list(dict.fromkeys([*wrong, *(id for id in poor if rows[id]["eval_dice"] < POOR)]))[:PICTURES]


def thumbnails(
    items: Sequence[Item],
    predictions: Mapping[str, Prediction],
    rows: Mapping[str, Mapping[str, Any]],
    max_pixels: int,
) -> list[MistakePicture]:
    """Draw a picture of each image that can be read, with the outlines of labels and predictions."""
    pictures = []
    for item in items:
        try:
            pixels = read(item.id, item.path, max_pixels)
        except LabelProblem:
            continue
        pictures.append(_picture(pixels, item, [defect for defect, _ in predictions[item.id].defects], rows[item.id]))
    return pictures


def _picture(
    pixels: NDArray[np.uint8], item: Item, predicted: Sequence[Defect], row: Mapping[str, Any]
) -> MistakePicture:
    scale = min(2.0, SIDE / max(item.width, item.height))
    wide, high = max(1, round(item.width * scale)), max(1, round(item.height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = np.ascontiguousarray(cv2.resize(with_channels(pixels, 3), (wide, high), interpolation=how))
    for defects, color in ((item.label.defects, TRUTH), (predicted, PREDICTED)):
        for defect in defects:
            _outline(image, defect, item, color)
    parts = [f"missed {', '.join(row['eval_missed'])}" if row["eval_missed"] else ""]
    parts += [f"false alarm: {', '.join(row['eval_false_alarm'])}" if row["eval_false_alarm"] else ""]
    parts += [f"Dice {row['eval_dice']:.2f}" if row["eval_dice"] is not None else ""]
    parts += [f"confidence {row['eval_confidence']:.0%}" if row["eval_confidence"] else ""]
    title = "; ".join(part for part in parts if part)
    return MistakePicture(_data_uri(image), item.width / item.height, title, item.path.name)


def _outline(image: NDArray[np.uint8], defect: Defect, item: Item, color: str) -> None:
    mask = shapes.mask_of(defect, item.width, item.height)
    small = cv2.resize(mask, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA if mask.any() else 0)
    contours, _ = cv2.findContours((small > 0).view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rgb = tuple(int(color[at : at + 2], 16) for at in (1, 3, 5))
    cv2.drawContours(image, contours, -1, rgb, 1, cv2.LINE_AA)


def _data_uri(image: NDArray[np.uint8]) -> str:
    _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(coded.tobytes()).decode()
