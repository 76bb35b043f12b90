"""Small steel images and data sets, drawn by script; and the way to the real ones, which are no part of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("CURATE_REAL_DATA") or REPOSITORY.parent / "shared" / "data")
HOSTILE = "../../outside-secret/passwd.jpg"
"""An image name that a label file must not be able to make anyone open."""


def real_data(name: str) -> Path:
    """The folder of a real data set, or a skip with the reason."""
    if not (REAL / name).is_dir():
        pytest.skip(f"real data '{name}' is not in {REAL} (set CURATE_REAL_DATA)")
    return REAL / name


def need_real(otherwise: str = "") -> None:
    """For what is no test: one line, where the real data is lacking."""
    if not REAL.is_dir():
        raise SystemExit(f"no real data at {REAL}: name its folder in CURATE_REAL_DATA{otherwise}")


def steel(width: int = 16, height: int = 12, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A grey rolled surface: noise with streaks along the rolling direction."""
    random = np.random.default_rng(seed)
    streaks = random.normal(0, 8, (height, 1))
    return np.clip(128 + streaks + random.normal(0, 4, (height, width)), 0, 255).astype(np.uint8)


def blob(height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A mask with ragged edges, of 0 and 1; never empty."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    top, left = height // 4, width // 4
    mask[top : 3 * top + 1, left : 3 * left + 1] = random.random((2 * top + 1, 2 * left + 1)) < 0.7
    mask[height // 2, width // 2] = 1
    return mask


def save_image(path: Path, width: int = 16, height: int = 12, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(steel(width, height, seed)).save(path)
    return path


def save_mask(
    path: Path,
    boxes: Iterable[tuple[int, int, int, int]] = ((2, 3, 4, 5),),
    size: tuple[int, int] = (16, 12),
    value: int = 255,
) -> Path:
    """A mask of (left, top, width, height) boxes; without boxes an empty one."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def save_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- one small data set a format ----------------------------------------------------------------------------------

CLEAN: frozenset[str] = frozenset()
UNLABELLED = "unlabelled"
DEPENDS = "depends"
"""No annotation: clean if the data set is fully labelled, else unlabelled."""


@dataclass
class Layout:
    """A data set on disk and what its format must make of it: per path a set of classes, UNLABELLED or DEPENDS."""

    entries: dict[str, frozenset[str] | str]
    classes: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def has(*names: str) -> frozenset[str]:
    return frozenset(names)


def voc_xml(name: str, *objects: tuple[Any, ...], extra: str = "") -> str:
    """A VOC file with (class, xmin, ymin, xmax, ymax) objects."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = (
        "<bndbox>" + "".join(f"<{s}>{v}</{s}>" for s, v in zip(sides, sides_of, strict=False)) + "</bndbox>"
        for _, *sides_of in objects
    )
    parts = "".join(f"<object><name>{o[0]}</name>{box}</object>" for o, box in zip(objects, boxes, strict=True))
    size = "<size><width>16</width><height>12</height></size>"
    return f"{extra}<annotation><filename>{name}</filename>{size}{parts}</annotation>"


def coco(images: list[Any], annotations: list[Any], names: Iterable[str] = ("crack", "hole")) -> str:
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def _severstal(root: Path) -> Layout:
    for name in ("b", "a", "free"):
        save_image(root / f"train_images/{name}.jpg")
    rows = ["b.jpg,3,1 4", "a.jpg,1,5 2", "b.jpg,4,20 3", "gone.jpg,2,1 1", f"{HOSTILE},2,1 1"]
    save_text(root / "train.csv", "\n".join(["ImageId,ClassId,EncodedPixels", *rows]) + "\n")
    entries = {"a.jpg": has("1"), "b.jpg": has("3", "4"), "free.jpg": DEPENDS, "gone.jpg": has("2"), HOSTILE: has("2")}
    entries = {f"train_images/{name}": state for name, state in entries.items()}
    return Layout(entries, ["1", "2", "3", "4"], absent=("train_images/gone.jpg", f"train_images/{HOSTILE}"))


def _voc(root: Path) -> Layout:
    for name in ("b.jpg", "line1/a.png", "empty.jpg", "none.jpg"):
        save_image(root / "JPEGImages" / name)
    save_text(root / "Annotations/a.xml", voc_xml("other.jpg", ("crack", 1, 2, 5, 6), ("hole", 0, 0, 3, 3)))
    save_text(root / "Annotations/b.xml", voc_xml("b.jpg", ("crack", 1, 2, 5, 6)))
    save_text(root / "Annotations/empty.xml", voc_xml("empty.jpg"))
    save_text(root / "Annotations/x.xml", voc_xml("gone.jpg", ("hole", 1, 2, 5, 6)))
    save_text(root / "Annotations/y.xml", voc_xml(HOSTILE, ("hole", 1, 2, 5, 6)))
    at = "JPEGImages"
    entries = {f"{at}/b.jpg": has("crack"), f"{at}/line1/a.png": has("crack", "hole"), f"{at}/empty.jpg": CLEAN}
    entries |= {f"{at}/none.jpg": DEPENDS, "gone.jpg": has("hole"), HOSTILE: has("hole")}
    return Layout(entries, ["crack", "hole"], absent=("gone.jpg", HOSTILE))


def _neu_det(root: Path) -> Layout:
    for name in ("scratches_2", "patches_1", "crazing_3"):
        save_image(root / f"IMAGES/{name}.jpg")
    save_text(root / "ANNOTATIONS/patches_1.xml", voc_xml("patches_1.jpg", ("patches", 1, 1, 16, 12)))
    save_text(root / "ANNOTATIONS/crazing_3.xml", voc_xml("crazing_3.jpg"))
    save_text(root / "ANNOTATIONS/inclusion_9.xml", voc_xml("inclusion_9.jpg", ("inclusion", 1, 1, 3, 3)))
    save_text(root / "ANNOTATIONS/h.xml", voc_xml(HOSTILE, ("inclusion", 1, 1, 3, 3)))
    entries = {"IMAGES/patches_1.jpg": has("patches"), "IMAGES/scratches_2.jpg": has("scratches")}
    entries |= {"IMAGES/crazing_3.jpg": has("crazing"), "inclusion_9.jpg": has("inclusion"), HOSTILE: has("inclusion")}
    classes = ["crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"]
    return Layout(entries, classes, absent=("inclusion_9.jpg", HOSTILE))


def _gc10(root: Path) -> Layout:
    for name in ("10/img_2.jpg", "01/img_1.jpg", "03/img_1.jpg", "05/bare.jpg", "images/none.jpg", "images/empty.jpg"):
        save_image(root / name)
    save_text(root / "lable/img_1.xml", voc_xml("img_1.jpg", ("1_chongkong", 1, 2, 5, 6), ("3", 1, 2, 5, 6)))
    save_text(root / "lable/img_2.xml", voc_xml("img_2.jpg", ("10_yaozhed", 1, 2, 5, 6), ("new_one", 1, 2, 5, 6)))
    save_text(root / "lable/empty.xml", voc_xml("empty.jpg"))
    save_text(root / "lable/h.xml", voc_xml(HOSTILE, ("8_yahen", 1, 2, 5, 6)))
    both = has("punching_hole", "crescent_gap")
    entries = {"01/img_1.jpg": both, "03/img_1.jpg": both, "10/img_2.jpg": has("waist_folding", "new_one")}
    entries |= {"05/bare.jpg": has("oil_spot"), "images/none.jpg": DEPENDS, "images/empty.jpg": CLEAN}
    first = ["punching_hole", "welding_line", "crescent_gap", "water_spot", "oil_spot"]
    classes = [*first, "silk_spot", "inclusion", "rolled_pit", "crease", "waist_folding"]
    return Layout(entries | {HOSTILE: has("rolled_pit")}, classes, absent=(HOSTILE,))


def _coco(root: Path) -> Layout:
    names = ["b.jpg", "a.jpg", "boxed.jpg", "bare.jpg", "gone.jpg", HOSTILE]
    for name in [*names[:4], "unlisted.jpg"]:
        save_image(root / name)
    images = [{"id": i, "file_name": name, "width": 16, "height": 12} for i, name in enumerate(names)]
    ring, rle = [1, 1, 5, 1, 5, 5], {"size": [12, 16], "counts": [10, 4, 178]}
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [ring], "bbox": [1, 1, 4, 4]},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": rle, "iscrowd": 1},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": {"size": [12, 16], "counts": "PPY11"}},
        {"id": 4, "image_id": 2, "category_id": 2, "segmentation": [], "bbox": [1, 2, 3, 4]},
        {"id": 5, "image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 4]},
        {"id": 6, "image_id": 5, "category_id": 2, "bbox": [1, 2, 3, 4]},
    ]
    save_text(root / "annotations/instances_train.json", coco(images, annotations))
    states = [has("crack"), has("crack", "hole"), has("hole"), DEPENDS, has("hole"), has("hole")]
    entries = dict(zip(names, states, strict=True)) | {"unlisted.jpg": DEPENDS}
    return Layout(entries, ["crack", "hole"], absent=("gone.jpg", HOSTILE))


def _yolo(root: Path) -> Layout:
    for name in ("images/train/b.jpg", "images/train/a.jpg", "images/empty.jpg", "images/none.jpg", "loose.jpg"):
        save_image(root / name)
    save_text(root / "data.yaml", "names:\n  0: crack\n  1: hole\n")
    save_text(root / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.4 0.1 0.3 0.3\n")
    save_text(root / "labels/train/b.txt", "1 0.5 0.5 0.2 0.2\r\n")
    save_text(root / "labels/train/gone.txt", "1 0.5 0.5 0.2 0.2")
    save_text(root / "labels/empty.txt", "\n")
    save_text(root / "loose.txt", "0 0.5 0.5 0.2 0.2")
    entries = {"images/train/a.jpg": has("crack", "hole"), "images/train/b.jpg": has("hole"), "loose.jpg": has("crack")}
    entries |= {"images/train/gone": has("hole"), "images/empty.jpg": CLEAN, "images/none.jpg": DEPENDS}
    return Layout(entries, ["crack", "hole"], absent=("images/train/gone",))


def _mask_folder(root: Path) -> Layout:
    for name in ("b", "a", "none"):
        save_image(root / f"images/{name}.png")
    for name in ("crack/a", "hole/a_mask", "hole/b", "crack/gone"):
        save_mask(root / f"masks/{name}.png")
    entries = {"images/a.png": has("crack", "hole"), "images/b.png": has("hole"), "images/none.png": DEPENDS}
    return Layout(entries | {"images/gone": has("crack")}, ["crack", "hole"], absent=("images/gone",))


def _magnetic_tile(root: Path) -> Layout:
    names = ("MT_Free/Imgs/exp1_num_5", "MT_Crack/Imgs/exp2_num_9", "MT_Fray/Imgs/exp1_num_20", "loose/exp1_num_30")
    for name in names:
        save_image(root / f"{name}.jpg")
    for name in (*names[:2], "MT_Break/Imgs/exp1_num_40"):
        save_mask(root / f"{name}.png")
    states = (CLEAN, has("Crack"), has("Fray"), DEPENDS)
    entries = {f"{name}.jpg": state for name, state in zip(names, states, strict=True)}
    gone = "MT_Break/Imgs/exp1_num_40.jpg"
    return Layout(entries | {gone: has("Break")}, ["Blowhole", "Break", "Crack", "Fray", "Uneven"], absent=(gone,))


def _kolektor(root: Path) -> Layout:
    for name in ("kos01/Part0.jpg", "kos01/Part1.jpg", "train/10000.png"):
        save_image(root / name)
    for name in ("kos01/Part0_label.bmp", "kos02/Part7_label.bmp", "train/10000_GT.png", "test/20000_GT.png"):
        save_mask(root / name)
    entries = {"kos01/Part0.jpg": has("defect"), "kos01/Part1.jpg": DEPENDS, "train/10000.png": has("defect")}
    absent = ("kos02/Part7.jpg", "test/20000.png")
    return Layout(entries | dict.fromkeys(absent, has("defect")), ["defect"], absent=absent)


def _class_folders(root: Path) -> Layout:
    names = ("scratch/b.jpg", "scratch/deep/a.jpg", "Clean/c.jpg", "OK/d.jpg", "unlabelled/e.jpg", "loose.jpg")
    for name in names:
        save_image(root / name)
    states = (has("scratch"), has("scratch"), CLEAN, CLEAN, UNLABELLED, DEPENDS)
    return Layout(dict(zip(names, states, strict=True)), ["scratch"])


def _images(root: Path) -> Layout:
    names = ("line1/b.jpg", "line1/a.png", "z.bmp")
    for name in names:
        save_image(root / name)
    return Layout(dict.fromkeys(names, UNLABELLED), [])


FORMAT_LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "class_folders": _class_folders,
    "coco": _coco,
    "gc10": _gc10,
    "images": _images,
    "kolektor": _kolektor,
    "magnetic_tile": _magnetic_tile,
    "mask_folder": _mask_folder,
    "neu_det": _neu_det,
    "severstal": _severstal,
    "voc": _voc,
    "yolo": _yolo,
}
