"""The demo plant: images of hot-rolled strip, drawn by script and seed, for trying everything without real data.

`plan` decides, without drawing a pixel, which image of which coil shows which defect: quotas are exact, and rare
classes are spread over coils. `draw` paints the plan. The public library has no image of line B's bottom camera: as in
real plants, production has a stratum without labels.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curate import files
from curate.demo.steel import CLASSES, Coil, Rng, View, paint
from curate.errors import CurateError
from curate.masks.rle import mask_to_kaggle
from curate.workers import cores
from curate.workers import pool as worker_pool

RARE = ("blister", "edge_crack")
VERSION = 1
FEWEST = 60

SHARES = {
    "scratches": 0.11,
    "patches": 0.055,
    "inclusion": 0.045,
    "rolled_in_scale": 0.06,
    "blister": 0.01,
    "edge_crack": 0.003,
}
LIBRARY_SHARE = 0.15
DOUBLE_SHARE = 0.12
FAULTS_PER_2000 = {
    "truncated": 3,
    "empty": 1,
    "not_an_image": 1,
    "png_in_jpg": 2,
    "duplicates": 6,
    "conflicts": 1,
}
STRATA = (("A", "top"), ("A", "bottom"), ("B", "top"), ("B", "bottom"))
FIRST_DAY, DAYS = date(2024, 3, 4), 28
PLANT_FILES = {"library", "plant", "truth.csv", "plant.json"}

Present = list[set[str]]
Masks = dict[str, dict[str, str]]  # path -> class -> run-lengths


# --- the plan: pure, no pixels ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlantFault:
    """A deliberately broken file. Except for `png_in_jpg`, it is an extra file made from `source`."""

    kind: str
    path: str
    source: str


@dataclass(frozen=True, slots=True)
class PlantPlan:
    images: int
    seed: int
    coils: tuple[Coil, ...]
    faults: tuple[PlantFault, ...]

    @property
    def views(self) -> Iterator[View]:
        return (view for coil in self.coils for view in coil.views)


@dataclass(frozen=True)
class DemoSummary:
    """Contents of a drawn plant. `images` counts distinct valid images, without copies and broken files."""

    images: int
    seed: int
    clean: int
    library: int
    coils: int
    by_class: dict[str, int]
    coils_by_class: dict[str, int]
    truncated: tuple[str, ...]
    empty: tuple[str, ...]
    not_an_image: tuple[str, ...]
    png_in_jpg: tuple[str, ...]
    duplicates: tuple[tuple[str, str], ...]
    conflicts: tuple[tuple[str, str], ...]


def plan(images: int = 2000, seed: int = 0) -> PlantPlan:
    """Plan the coil, view, stratum and classes of every image: the same for the same arguments, with exact quotas."""
    _check(images, seed)
    rng = np.random.default_rng([seed, images])
    share = _library_images(images)
    library = _section(share, {c: _library_quota(c, images) for c in CLASSES}, rng)
    plant = _section(images - share, {c: quota(c, images) - _library_quota(c, images) for c in CLASSES}, rng)
    coils = _named(library, plant, rng)
    return PlantPlan(images, seed, coils, _faults(coils, images, rng))


def quota(label: str, images: int) -> int:
    """Number of images that show the class; at least three, so that library and plant both have it."""
    return max(3, round(SHARES[label] * images))


def _check(images: int, seed: int) -> None:
    if images < FEWEST:
        raise CurateError(f"a demo plant of {images} images cannot hold every class; ask for {FEWEST} or more")
    if seed < 0:
        raise CurateError(f"seed {seed} is negative; any whole number from 0 on is allowed")


def _library_images(images: int) -> int:
    return max(16, round(LIBRARY_SHARE * images))


def _library_quota(label: str, images: int) -> int:
    total = quota(label, images)
    return max(round(LIBRARY_SHARE * total), 2 if total >= 6 else 1)


def _section(images: int, quotas: dict[str, int], rng: Rng) -> list[Present]:
    """Coils as lists of views, each a set of classes. The rarest are placed first: they need the most room."""
    coils: list[Present] = [[set() for _ in range(size)] for size in _coil_sizes(images, rng)]
    runs = [(label, n) for label in reversed(CLASSES) for n in _run_lengths(quotas[label], label in RARE, rng)]
    double = [label not in RARE and rng.random() < DOUBLE_SHARE for label, _ in runs]
    for twice in (False, True):
        cursor = 0
        for (label, length), _ in (pair for pair in zip(runs, double, strict=True) if pair[1] is twice):
            cursor = _place(coils, label, length, twice, cursor)
        # Shuffled in between: otherwise second classes would gather on the coils filled first, the rare ones.
        coils = [coils[i] for i in rng.permutation(len(coils))]
    return coils


def _coil_sizes(images: int, rng: Rng) -> list[int]:
    sizes = []
    while images > 8:
        sizes.append(min(int(rng.integers(3, 9)), images - 3))
        images -= sizes[-1]
    return [*sizes, images]


def _run_lengths(total: int, rare: bool, rng: Rng) -> list[int]:
    """Numbers of neighbouring views that a defect spans. At least two runs where possible: splits need them."""
    longest, lengths = min(3 if rare else 5, -(-total // 2)), []
    while total > 0:
        lengths.append(min(int(rng.integers(1, longest + 1)), total))
        total -= lengths[-1]
    return lengths


def _place(coils: list[Present], label: str, length: int, double: bool, cursor: int) -> int:
    """Mark a run of views, on the next coil that has room; return where to look next."""
    for shown in (1, 0) if double else (0, 1):
        for step in range(len(coils)):
            views = coils[(cursor + step) % len(coils)]
            start = _room(views, label, length, shown)
            if start is not None:
                for view in views[start : start + length]:
                    view.add(label)
                return cursor + step + 1
    if length == 1:
        raise AssertionError(f"no room for {label}")
    return _place(coils, label, length - length // 2, double, _place(coils, label, length // 2, double, cursor))


def _room(views: Present, label: str, length: int, shown: int) -> int | None:
    """Start of the first run of views with `shown` classes each; None where the coil has the label already."""
    if any(label in view for view in views):
        return None
    fits = (i for i in range(len(views) - length + 1) if all(len(v) == shown for v in views[i : i + length]))
    return next(fits, None)


def _named(library: list[Present], plant: list[Present], rng: Rng) -> tuple[Coil, ...]:
    coils: list[Coil] = []
    for section, strata in ((library, STRATA[:3]), (plant, STRATA)):
        turns = rng.permutation(len(section)) % len(strata)
        for i, present in enumerate(section):
            day = FIRST_DAY + timedelta(days=i * DAYS // len(section))
            line, camera = strata[turns[i]]
            folder = "library/train_images" if section is library else f"plant/{line}/{camera}/{day}"
            first = coils[-1].views[-1].index + 1 if coils else 0
            edge = any("edge_crack" in view for view in present) or bool(rng.random() < 0.4)
            name = f"C{len(coils) + 1:05d}"
            views = _views(present, first, f"{folder}/{name}")
            coils.append(Coil(len(coils), name, section is library, line, camera, folder, edge, views))
    return tuple(coils)


def _views(present: Present, first: int, stem: str) -> tuple[View, ...]:
    ordered = [tuple(c for c in CLASSES if c in classes) for classes in present]
    return tuple(View(first + n, f"{stem}_{n + 1:02d}.jpg", classes) for n, classes in enumerate(ordered))


def _faults(coils: Sequence[Coil], images: int, rng: Rng) -> tuple[PlantFault, ...]:
    """Broken files and copies, named as further views of their coil. Images of rare classes are left out."""
    common = [(c, v) for c in coils for v in c.views if not set(v.classes) & set(RARE)]
    plant = [pair for pair in common if not pair[0].library]
    library = [(c, v) for c, v in common if c.library and len(v.classes) == 1]
    shuffled = iter([plant[i] for i in rng.permutation(len(plant))])
    library = [library[i] for i in rng.permutation(len(library))]
    taken = Counter({coil.name: len(coil.views) for coil in coils})
    faults = []
    for kind, per_2000 in FAULTS_PER_2000.items():
        for n in range(max(1, round(per_2000 * images / 2000))):
            coil, view = library[n % len(library)] if kind == "conflicts" else next(shuffled)
            path = view.path if kind == "png_in_jpg" else _next_path(coil, taken)
            faults.append(PlantFault(kind, path, view.path))
    return tuple(faults)


def _next_path(coil: Coil, taken: Counter[str]) -> str:
    taken[coil.name] += 1
    return f"{coil.folder}/{coil.name}_{taken[coil.name]:02d}.jpg"


def _summary(planned: PlantPlan) -> DemoSummary:
    by_kind = {k: [f for f in planned.faults if f.kind == k] for k in FAULTS_PER_2000}
    paths = {kind: tuple(fault.path for fault in faults) for kind, faults in by_kind.items()}
    pairs = {kind: tuple((fault.source, fault.path) for fault in faults) for kind, faults in by_kind.items()}
    return DemoSummary(
        images=planned.images,
        seed=planned.seed,
        clean=sum(not view.classes for view in planned.views),
        library=sum(len(coil.views) for coil in planned.coils if coil.library),
        coils=len(planned.coils),
        by_class={c: sum(c in view.classes for view in planned.views) for c in CLASSES},
        coils_by_class={c: sum(any(c in v.classes for v in coil.views) for coil in planned.coils) for c in CLASSES},
        truncated=paths["truncated"],
        empty=paths["empty"],
        not_an_image=paths["not_an_image"],
        png_in_jpg=paths["png_in_jpg"],
        duplicates=pairs["duplicates"],
        conflicts=pairs["conflicts"],
    )


# --- the folder: drawn aside, moved into place last ---------------------------------------------------------------


def draw(
    folder: Path,
    images: int = 2000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DemoSummary:
    """Draw the plant into `folder`; return at once where the same one is there already.

    Args:
        folder: created. Refused where it holds anything but a demo plant.
        images: distinct valid images, library and plant together; at least 60.
        seed: the same seed and number of images give the same bytes, with any number of workers.
        workers: processes; by default as many as there are processors, fewer for few images.
        progress: called with the number of images drawn so far.

    Returns:
        Its contents.

    Raises:
        CurateError: too few images, a negative seed, or a folder that holds other files.
    """
    folder, planned = folder.absolute(), plan(images, seed)
    files.sweep_parts(folder)
    if _is_drawn(folder, planned):
        return _summary(planned)
    _refuse_foreign(folder)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.part"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _draw_into(aside, planned, workers or max(1, min(cores(), images // 100)), progress)
        _replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _summary(planned)


def _is_drawn(folder: Path, planned: PlantPlan) -> bool:
    return _manifest(folder) == _as_manifest(planned)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "plant.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _as_manifest(planned: PlantPlan) -> dict[str, Any]:
    # Through JSON and back: tuples become the lists that a stored manifest has.
    manifest: dict[str, Any] = json.loads(json.dumps({"version": VERSION} | asdict(_summary(planned))))
    return manifest


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but an earlier plant."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CurateError(f"{folder} is a file; name a folder for the demo plant")
    names = {entry.name for entry in folder.iterdir()}
    if names and not (names <= PLANT_FILES and {"version", "seed", "images"} <= _manifest(folder).keys()):
        raise CurateError(f"{folder} holds files that are not a demo plant; name a new or an empty folder")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise CurateError(f"{folder} is the current folder and cannot be replaced; name a folder inside it")


def _replace(aside: Path, folder: Path) -> None:
    old = aside.with_suffix(".gone.part")
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _draw_into(folder: Path, planned: PlantPlan, workers: int, progress: Callable[[int], None] | None) -> None:
    for sub in sorted({coil.folder for coil in planned.coils}):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    masks: Masks = {}
    with closing(_draw_coils(folder, planned, workers)) as drawn:
        for part in drawn:
            masks.update(part)
            if progress:
                progress(len(masks))
    for fault in planned.faults:
        _spoil(folder, fault)
    _write_truth(folder / "truth.csv", planned, masks)
    _write_train(folder / "library/train.csv", planned, masks)
    (folder / "plant.json").write_text(json.dumps(_as_manifest(planned), indent=2) + "\n", encoding="utf-8")


def _draw_coils(folder: Path, planned: PlantPlan, workers: int) -> Generator[Masks, None, None]:
    as_png = frozenset(fault.path for fault in planned.faults if fault.kind == "png_in_jpg")
    task = partial(_draw_coil, folder, planned.seed, as_png)
    if workers == 1:
        yield from map(task, planned.coils)
        return
    pool = worker_pool(workers)
    try:
        yield from pool.map(task, planned.coils, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_coil(folder: Path, seed: int, as_png: frozenset[str], coil: Coil) -> Masks:
    """Write a coil's images; return the run-lengths of each."""
    cv2.setNumThreads(1)  # the processes share the cores already
    masks: Masks = {}
    for view, (pixels, view_masks) in zip(coil.views, paint(coil, seed), strict=True):
        suffix, options = (".png", []) if view.path in as_png else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 92])
        (folder / view.path).write_bytes(cv2.imencode(suffix, pixels, options)[1].tobytes())
        masks[view.path] = {label: mask_to_kaggle(mask) for label, mask in view_masks.items()}
    return masks


def _spoil(folder: Path, fault: PlantFault) -> None:
    data = (folder / fault.source).read_bytes()
    match fault.kind:
        case "truncated":
            data = data[: len(data) // 2]
        case "empty":
            data = b""
        case "not_an_image":
            data = b"Camera 3: no frame grabbed (timeout after 500 ms)\n"
    (folder / fault.path).write_bytes(data)


def _write_truth(path: Path, planned: PlantPlan, masks: Masks) -> None:
    """Write the true masks of every valid file, including copies; a clean image has one row."""
    copies = _copies(planned)
    rows: list[tuple[str, ...]] = []
    for coil in planned.coils:
        for view in coil.views:
            for name in (view.path, *copies.get(view.path, ())):
                view_masks = masks[view.path] or {"": ""}
                rows.extend((name, label, rle, coil.name) for label, rle in view_masks.items())
    _write_csv(path, ("image", "class", "rle", "group"), rows)


def _copies(planned: PlantPlan) -> dict[str, list[str]]:
    copies: dict[str, list[str]] = {}
    for fault in planned.faults:
        if fault.kind in ("duplicates", "conflicts"):
            copies.setdefault(fault.source, []).append(fault.path)
    return copies


def _write_train(path: Path, planned: PlantPlan, masks: Masks) -> None:
    """Write Kaggle's long form. The copy in a conflict has the same pixels under the next class, to be resolved."""
    rows = []
    for view in (view for coil in planned.coils if coil.library for view in coil.views):
        rows += [(Path(view.path).name, str(CLASSES.index(c) + 1), rle) for c, rle in masks[view.path].items()]
    for fault in (fault for fault in planned.faults if fault.kind == "conflicts"):
        ((label, rle),) = masks[fault.source].items()
        rows.append((Path(fault.path).name, str((CLASSES.index(label) + 1) % 4 + 1), rle))
    _write_csv(path, ("ImageId", "ClassId", "EncodedPixels"), sorted(rows))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
