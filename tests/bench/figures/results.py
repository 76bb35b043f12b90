"""RESULTS.md from what the runs left: tables with intervals, what was published beside them, and nothing by hand."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate.index.dataset import Index
from tests.bench.figures.plans import DATA, Plan, plans
from train.evaluate import intervals
from train.evaluate.intervals import BootstrapDraws, clopper_pearson

FILE = Path(__file__).parent / "RESULTS.md"
TITLES = {"neu": "NEU-DET, six classes", "tile": "Magnetic tile, by tiles"}
Json = dict[str, Any]


# --- metrics that a run adds ----------------------------------------------------------------------------------------


def positives(folder: Path) -> Json:
    """Return accuracy and mean class recall over the images with a defect alone."""
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    rows = parquet.read_table(folder / "per_image.parquet", columns=["group", "present", "decided"]).to_pylist()
    draws = BootstrapDraws.of([row["group"] for row in rows])
    names = sorted({name for row in rows for name in row["present"]})
    shown = np.array([bool(row["present"]) for row in rows])
    right = np.array([set(row["present"]) == set(row["decided"]) for row in rows])
    there, said = (np.array([[name in row[key] for name in names] for row in rows]) for key in ("present", "decided"))
    recalls = [draws.share(there[:, c] & said[:, c], there[:, c]) for c in range(len(names))]
    measures = {"accuracy": draws.share(shown & right, shown), "macro_recall": intervals.mean(recalls)}
    return {name: intervals.estimate(one).to_json() for name, one in measures.items()}


def splits(index: Index) -> Json:
    """Images and groups of each class, a split at a time."""
    images: dict[str, Counter[str]] = {}
    groups: dict[str, dict[str, set[str]]] = {}
    for item in index.items([id for id, status in index.rows("status") if status == "labelled"]):
        for name in item.label.present or {"clean"}:
            images.setdefault(str(item.split), Counter())[name] += 1
            groups.setdefault(str(item.split), {}).setdefault(name, set()).add(item.group or item.id)
    return {split: {name: [n, len(groups[split][name])] for name, n in by.items()} for split, by in images.items()}


def machine() -> str:
    import torch

    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "").partition(": ")[2]
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used"
    return f"{cpu or platform.machine()}, {threads}, {device}"


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


# --- the page -------------------------------------------------------------------------------------------------------


def write(out: Path, target: Path = FILE) -> None:
    """All that is finished, in the order of the runs."""
    runs = sorted(_read(out / "results"), key=lambda one: str(one["trained"]["made"]))
    if not runs:
        raise SystemExit(f"no run is finished in {out}: python -m tests.bench.figures.run")
    parts = [_head(runs), *_missing(runs)]
    for data, title in TITLES.items():
        mine = [one for one in runs if one["plan"]["data"] == data]
        if mine:
            parts.append(_data_set(title, mine, _read(out / "splits", data)))
            parts += _compared(_read(out / "compared", f"{data}-*"))
    parts += [_published(), *(_looks(one) for one in _read(out / "looks"))]
    parts.append(_commands(runs))
    files.write_text(target, "\n\n".join(parts) + "\n")


def _read(folder: Path, stem: str = "*") -> list[Json]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"{stem}.json"))]


def _head(runs: Sequence[Json]) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in runs[-1]["trained"]["versions"].items())
    machines = "; ".join(sorted({one["machine"] for one in runs}))
    return (
        "# Figures of training on real steel\n\n"
        "Written by `python -m tests.bench.figures.run` (`make figures`); PROTOCOL.md says how, and what was fixed\n"
        "beforehand. **Small inputs and few epochs on one CPU core: floors, not what the recipes can do.**\n\n"
        f"{runs[0]['made']} to {runs[-1]['made']}. {machines}. {versions}. Intervals: 95 %, over groups; "
        "of the test images alone, not of other seeds."
    )


def _missing(runs: Sequence[Json]) -> list[str]:
    """Return the planned runs that are not finished."""
    done = {Plan(**one["plan"]) for one in runs}
    rest = [one.name for data in DATA for one in plans(data, [], [0]) if one not in done]
    return [f"**Not run yet**: {', '.join(rest)}."] if rest else []


def _data_set(title: str, runs: Sequence[Json], found: Sequence[Json]) -> str:
    notes = dict.fromkeys(note for one in runs for note in one["evaluated"]["manifest"]["notes"])
    parts = [f"## {title}", *(_split_table(one) for one in found), *(f"Of test: {note}" for note in notes)]
    classified = [one for one in runs if one["trained"]["task"] == "classification"]
    segmented = [one for one in runs if one["trained"]["task"] == "segmentation"]
    if classified:
        parts += [_overall(classified), _by_class(classified, "recall", "Recall of each class on test")]
        parts.append(_by_class(classified, "precision", "Precision of each class on test"))
    if segmented:
        parts += [_segmented(segmented), _by_class(segmented, "dice", "Positive-only Dice of each class on test")]
        parts.append(_by_class(segmented, "recall", "Recall of each class on test, of images"))
    return "\n\n".join(parts)


def _split_table(found: Json) -> str:
    names = sorted({name for by in found.values() for name in by})
    rows = [[split, *(_count(found[split].get(name)) for name in names)] for split in ("train", "val", "test")]
    return "Images (groups) of each split:\n\n" + table(["", *names], rows)


def _count(pair: Sequence[int] | None) -> str:
    return "0" if pair is None else f"{pair[0]} ({pair[1]})"


def _overall(runs: Sequence[Json]) -> str:
    head = ["recipe", "start", "seed", "input", "epochs (best)", "train s", "macro-F1 on val", "accuracy", "macro-F1"]
    head += ["images with a defect: right", "mean recall of classes", "clean images flagged"] if _clean(runs[0]) else []
    rows = [[*_about(one), *_classified(one)] for one in runs]
    base = runs[0]["evaluated"]["figures"]["baselines"]["majority"]
    always = [interval(base[name]) for name in ("accuracy", "macro_f1")]
    rows.append([f"always {', '.join(base['said'])}", *[""] * 6, *always, *[""] * (len(head) - 9)])
    return table(head, rows)


def _clean(one: Json) -> bool:
    return bool(one["evaluated"]["figures"]["support"]["clean"]["images"])


def _about(one: Json) -> list[str]:
    trained, plan = one["trained"], one["plan"]
    size = trained["recipe"]["input"]
    epochs = f"{len(trained['history'])} ({trained['best']['epoch'] + 1})"
    seconds = f"{trained['seconds']:.0f}"
    return [_name(one), plan["start"], str(plan["seed"]), f"{size['width']}x{size['height']}", epochs, seconds]


def _name(one: Json) -> str:
    sampler = one["trained"]["recipe"]["sampler"]["name"]
    marks = [
        one["plan"]["recipe"],
        *(["as it ships"] if one["full"] else []),
        *([sampler] if sampler != "natural" else []),
    ]
    return ", ".join(marks)


def _classified(one: Json) -> list[str]:
    found, more = one["evaluated"]["figures"]["overall"], one["positives"]
    figures = [found["accuracy"], found["macro_f1"]]
    figures += [more["accuracy"], more["macro_recall"], found["clean_false_alarms"]] if _clean(one) else []
    val = [value for value in one["trained"]["best"]["f1"].values() if value is not None]
    return [f"{sum(val) / len(val):.3f}", *map(interval, figures)]


def _segmented(runs: Sequence[Json]) -> str:
    head = ["recipe", "start", "seed", "crop", "epochs (best)", "train s", "positive-only Dice", "Kaggle's mean Dice"]
    head += ["empty submission", "regions found", "clean images flagged"]
    rows = []
    for one in runs:
        found = one["evaluated"]["figures"]
        names = ("dice", "kaggle_dice")
        empty = found["baselines"]["empty_submission"]["kaggle_dice"]
        cells = [*(found["overall"][name] for name in names), empty]
        cells += [found["overall"][name] for name in ("region_recall", "clean_false_alarms")]
        rows.append([*_about(one), *map(interval, cells)])
    return table(head, rows)


def _by_class(runs: Sequence[Json], figure: str, title: str) -> str:
    names = list(runs[0]["evaluated"]["figures"]["classes"])
    support = runs[0]["evaluated"]["figures"]["support"]
    head = ["", *(f"{name} (n {support[name]['images']}, groups {support[name]['groups']})" for name in names)]
    rows = []
    for one in runs:
        found, label = one["evaluated"]["figures"]["classes"], f"{_name(one)}, {one['plan']['start']}"
        rows.append([label, *(interval(found[name][figure]) for name in names)])
    return f"{title}:\n\n" + table(head, rows)


def _compared(found: Sequence[Json]) -> list[str]:
    head = ["recipe", "seed", "accuracy", "macro-F1", "images put right", "images got wrong"]
    rows = []
    for one in found:
        cells = [interval(one["overall"][name]) for name in ("accuracy", "macro_f1")]
        rows.append([one["plan"]["recipe"], str(one["plan"]["seed"]), *cells, str(one["fixed"]), str(one["broken"])])
    title = "ImageNet's weights less random ones, on the same images of test (`curate compare`):\n\n"
    return [title + table(head, rows)] if rows else []


def interval(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "-"
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


# --- beside it ------------------------------------------------------------------------------------------------------


def _published() -> str:
    """Return the section on intervals of published results, by Clopper and Pearson."""
    cases = [(27, 27), (26, 27), (270, 270), (269, 270), (256, 270)]
    rows = [
        [f"{hits} of {n}", f"{hits / n:.4f}", *(f"{bound:.4f}" for bound in clopper_pearson(hits / n, n))]
        for hits, n in cases
    ]
    return (
        "## What was published, and what an interval says of it\n\n"
        "NEU-DET: 95 % (MobileNetV2 in two phases), 99.75 % (ShuffleDefectNet, on 27 test images). No share of 27 is\n"
        "0.9975: 26 of 27 are 0.963. Exact 95 % intervals:\n\n"
        + table(["right", "share", "from", "to"], rows)
        + "\n\nSo 27 images without a mistake do not rule out a model that is wrong once in eight; 270 narrow that to\n"
        "about one in seventy."
    )


def _looks(one: Json) -> str:
    plan = one["plan"]
    title = f"## Light, exposure and heat: {plan['recipe']} on tiles, from {plan['start']}"
    parts = {"explain": _heat, "robustness": _shaken, "leave_out": _left}
    return "\n\n".join([title, *(part(one[name]) for name, part in parts.items() if name in one)])


def _shaken(found: Json) -> str:
    score = found["score"]
    head = [f"macro-{score} at severity", *map(str, range(1, 6)), "lost at worst", "clean images flagged at 5"]
    clean = found["clean"]["all"]
    rows = [["as it is", interval(clean["score"]), *[""] * 5, interval(clean["clean_false_alarms"])]]
    for name, levels in found["changes"].items():
        cells = [f"{level['all']['score']['value']:.3f}" for level in levels]
        drop = found["worst_of"][name]["all"]["score"]["drop"]
        rows.append([name, *cells, interval(drop), interval(levels[-1]["all"]["clean_false_alarms"])])
    return f"{found['images']} images of {found['groups']} tiles (`curate robustness`):\n\n" + table(head, rows)


def _left(found: Json) -> str:
    score = found["score"]
    head = ["exposure left out", "images judged", "images unlearnt", f"macro-{score} with", "without", "lost"]
    head += ["mean recall with", "without", "lost"]
    rows = []
    for value, one in [*found["values"].items(), ("all", found["all"])]:
        row = [value, str(one["images"]), str(one.get("left_out", ""))]
        for name in ("score", "recall"):
            figures = one["classes"]["all"][name]
            row += [interval(figures[key]) for key in ("with", "without", "drop")]
        rows.append(row)
    return "Trained anew without each exposure (`curate robustness --leave-out exposure`):\n\n" + table(head, rows)


def _heat(found: Json) -> str:
    rows = [
        [name, str(one["share"]["n"]), *(interval(one[key]) for key in ("share", "area", "peak"))]
        for name, one in found["classes"].items()
    ]
    asked = Counter(one["why"] for one in found["images"])
    what = ", ".join(f"{n} {why}" for why, n in asked.items())
    head = ["class", "images", "heat on the defect", "its share of the image", "hottest place on it"]
    return f"Grad-CAM (`curate explain`; {what}), of images whose class has a mask:\n\n" + table(head, rows)


def _commands(runs: Sequence[Json]) -> str:
    lines = [f"curate train --project out/figures/{one['plan']['data']} {_flags(one)}" for one in runs]
    return "## The same by hand\n\n```sh\n" + "\n".join(lines) + "\n```\n\nthen `curate evaluate` after each."


def _flags(one: Json) -> str:
    settings = [text for text in one["overrides"] if not text.startswith("model.weights=")]
    start = "none" if one["plan"]["start"] == "none" else "../shared/data/weights/mobilenet_v2_imagenet_bnfolded.pth"
    return " ".join([f"--recipe {one['plan']['recipe']} --weights {start}", *(f"--set {text}" for text in settings)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_table(head, rows))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
