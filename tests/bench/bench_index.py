"""`curate index` against FiftyOne's own `from_dir` on one drawn COCO folder: `python -m tests.bench.bench_index`.

Each timed run is a process of its own on an empty database, the two sides in turn so that a busy moment of the machine
hits both; medians. Imports and the start of MongoDB are outside every time. Both sides must end with the same samples,
detections and mask pixels. Ours reads, checks and hashes every file meanwhile; `from_dir` opens none.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLASSES = ("scratches", "patches", "inclusion", "edge_crack")
SPEED_GOAL = 2.0
FLAT_FACTOR, FLAT_ROOM = 1.3, 20.0  # growth at all images <= factor * growth at a quarter of them + room in MB
OURS, THEIRS = "curate index", "from_dir"
AGAIN, METADATA = "curate index again, unchanged", "from_dir + compute_metadata"
Result = dict[str, float]


# --- the data -------------------------------------------------------------------------------------------------------


def draw(folder: Path, images: int, width: int, height: int) -> None:
    """`data/` with grey JPEGs, no two alike, and `labels.json`: two thirds of them show one to three masks."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    wide = random.normal(128, 12, (32, height, 1)) + random.normal(0, 6, (32, height, 2 * width))
    surfaces = np.clip(wide, 0, 255).astype(np.uint8)
    listed, annotations = [], []
    (folder / "data").mkdir(parents=True)
    for number in range(images):
        shift = number // len(surfaces) % width
        image = surfaces[number % len(surfaces), :, shift : shift + width] + np.uint8(number // (32 * width))
        name = f"{number:06d}.jpg"
        masks = [_mask(random, width, height) for _ in range(random.integers(1, 4) if number % 3 else 0)]
        for mask in masks:
            image = np.where(mask, image // 2, image)
            annotations.append(_annotation(mask, number, len(annotations) + 1, int(random.integers(len(CLASSES)))))
        cv2.imwrite(str(folder / "data" / name), image)
        listed.append({"id": number, "file_name": name, "width": width, "height": height})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content), encoding="utf-8")


def _mask(random: Any, width: int, height: int) -> Any:
    import cv2
    import numpy as np

    mask = np.zeros((height, width), np.uint8)
    centre = (int(random.integers(width)), int(random.integers(height)))
    axes = (int(random.integers(3, 50)), int(random.integers(3, 25)))
    cv2.ellipse(mask, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
    return mask


def _annotation(mask: Any, image: int, number: int, category: int) -> dict[str, Any]:
    """Run-lengths, which both sides must read to the same pixels; polygons leave room for opinions on borders."""
    import numpy as np
    from pycocotools import mask as coco

    runs = coco.encode(np.asfortranarray(mask))
    segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
    box = coco.toBbox(runs).tolist()
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "segmentation": segmentation}


# --- one timed process ----------------------------------------------------------------------------------------------


def measure(side: str, data: Path, work: Path) -> Result:
    return (_ours if side == OURS else _theirs)(data, work)


def _ours(data: Path, work: Path) -> Result:
    from curate.admin import setup
    from curate.index import database, sync

    source = {"name": "drawn", "format": "coco", "data": data / "data", "labels": data / "labels.json"}
    project = setup.write(work / "project", [source | {"fully_labelled": True}], CLASSES)
    fo = database.connect(project.work)
    before = _resident()
    begin = time.perf_counter()
    first = sync.run(project)
    result = {OURS: time.perf_counter() - begin, "growth": _peak() - before}
    begin = time.perf_counter()
    second = sync.run(project)
    result[AGAIN] = time.perf_counter() - begin
    assert first.added == second.unchanged, (first, second)
    assert first.quarantined == 0, first
    return result | _content(fo.load_dataset(project.dataset_name))


def _theirs(data: Path, work: Path) -> Result:
    from curate.index import database

    fo = database.connect(work / "project" / "work")
    import fiftyone.utils.coco  # noqa: F401 - what from_dir would import while it is timed

    before = _resident()
    begin = time.perf_counter()
    dataset = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(data / "data"),
        labels_path=str(data / "labels.json"),
        label_types="segmentations",
        label_field="defects",
        include_id=False,
        name="theirs",
        persistent=True,
    )
    result = {THEIRS: time.perf_counter() - begin, "growth": _peak() - before}
    dataset.compute_metadata(overwrite=True)  # else it stays at width and height; ours holds all of it
    return result | {METADATA: time.perf_counter() - begin} | _content(dataset)


def _content(dataset: Any) -> Result:
    """Return the content on which both sides must agree."""
    masks = dataset.values("defects.detections.mask", unwind=True)
    detections = dataset.count("defects.detections")
    complete = dataset.match({"metadata.width": {"$gt": 0}}).count("id")
    pixels = sum(int(mask.sum()) for mask in masks if mask is not None)
    return {"samples": complete, "detections": detections, "pixels": pixels}


def _peak() -> float:
    """The most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _resident() -> float:
    """The memory that this process holds now, in MB."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return _peak()
    return pages * resource.getpagesize() / 2**20


# --- all of them ----------------------------------------------------------------------------------------------------


def run_apart(side: str, data: Path, base: Path) -> Result:
    """`measure` in a fresh process, on an empty database that is gone afterwards."""
    from curate.index import database

    work = Path(tempfile.mkdtemp(prefix="run-", dir=base))
    command = [sys.executable, "-m", "tests.bench.bench_index", "--side", side]
    command += ["--data", str(data), "--work", str(work)]
    environment = {name: value for name, value in os.environ.items() if name != database.URI}
    child = subprocess.Popen(command, env=environment)
    try:
        if child.wait():
            raise SystemExit(f"'{side}' failed with code {child.returncode}: nothing was compared")
        return dict(json.loads((work / "result.json").read_text(encoding="utf-8")))
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        database.stop(work / "project" / "work" / "db")
        shutil.rmtree(work, ignore_errors=True)


def agree(results: list[Result], images: int) -> None:
    """Fails unless every run of both sides ended with the same content."""
    contents = {tuple(int(result[name]) for name in ("samples", "detections", "pixels")) for result in results}
    if len(contents) != 1 or next(iter(contents))[0] != images:
        raise SystemExit(f"the sides differ in (samples, detections, mask pixels): {sorted(contents)}, {images} drawn")


def speed_table(runs: dict[str, list[Result]], images: int) -> bool:
    print(f"{'':<32}{'seconds':>9}{'(from to)':>16}{'img/s':>9}{'ours is':>10}{'goal':>8}")
    seconds = {name: [run[name] for run in runs[side]] for name, side in _ROWS}
    ours = statistics.median(seconds[OURS])
    for name, spent in seconds.items():
        middle, spread = statistics.median(spent), f"({min(spent):.1f} {max(spent):.1f})"
        line = f"  {name:<30}{middle:>9.2f}{spread:>16}{images / middle:>9,.0f}"
        line += f"{middle / ours:>9.1f}x" if name in (THEIRS, METADATA) else ""
        print(line + (_verdict(f"{SPEED_GOAL:.1f}x", middle / ours >= SPEED_GOAL) if name == THEIRS else ""))
    return statistics.median(seconds[THEIRS]) / ours >= SPEED_GOAL


_ROWS = ((OURS, OURS), (AGAIN, OURS), (THEIRS, THEIRS), (METADATA, THEIRS))


def memory_table(growth: dict[str, tuple[float, float]], few: int, many: int) -> bool:
    """Peak memory above what the process held before the run, MongoDB's own not counted."""
    print(f"{'peak memory growth, MB':<32}{f'{few:,}':>9}{f'{many:,}':>16}{'per 1,000 more':>19}{'goal':>8}")
    for side, (small, large) in growth.items():
        line = f"  {side:<30}{small:>9.0f}{large:>16.0f}{(large - small) / (many - few) * 1000:>19.1f}"
        print(line + (_verdict(f"<={_most(small):.0f}", large <= _most(small)) if side == OURS else ""))
    small, large = growth[OURS]
    return large <= _most(small)


def _most(small: float) -> float:
    return FLAT_FACTOR * small + FLAT_ROOM


def _verdict(goal: str, met: bool) -> str:
    return f"{goal:>8}  {'met' if met else 'NOT MET'}"


def compare(base: Path, images: int, repetitions: int, width: int, height: int) -> bool:
    few = max(1, images // 4)
    for name, count in (("warm", 32), ("few", few), ("many", images)):
        draw(base / name, count, width, height)
    for side in (OURS, THEIRS):
        run_apart(side, base / "warm", base)  # compiled code and file caches
    runs: dict[str, list[Result]] = {OURS: [], THEIRS: []}
    for _ in range(repetitions):
        for side, results in runs.items():
            results.append(run_apart(side, base / "many", base))
    agree(runs[OURS] + runs[THEIRS], images)
    small = {side: run_apart(side, base / "few", base) for side in runs}
    agree(list(small.values()), few)
    first = runs[OURS][0]
    print(f"{images:,} drawn images of {width}x{height}, {first['detections']:,} masks with {first['pixels']:,} pixels")
    met = speed_table(runs, images)
    growth = {side: (small[side]["growth"], max(r["growth"] for r in results)) for side, results in runs.items()}
    return memory_table(growth, few, images) and met


def main() -> int:
    """Prints the tables; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--size", default="256x128", help="width x height of the drawn images")
    for name in ("--side", "--data", "--work"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # the processes that are timed
    given = parser.parse_args()
    if given.side:
        result = measure(given.side, Path(given.data), Path(given.work))
        (Path(given.work) / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    width, height = map(int, given.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="bench-index-") as base:
        try:
            return 0 if compare(Path(base), given.images, given.repetitions, width, height) else 1
        except KeyboardInterrupt:
            print("stopped; all is cleaned up")
            return 130


if __name__ == "__main__":
    raise SystemExit(main())
