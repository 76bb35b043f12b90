"""The data sets of the proof as plain arrays: paths, classes, groups, window vectors and where each defect lies.

Vectors cost minutes, so they are kept under `out/proof/`, a file a data set and encoder, in half precision.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from csv import DictReader
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate import embed
from curate.data import Box, MaskFile, Record
from curate.demo import plant
from curate.demo.steel import CLASSES, SHAPE
from curate.embed._base import Encoder
from curate.files import written_aside
from curate.formats import magnetic_tile, mask_folder, neu_det
from curate.hashing import sha256_of
from curate.masks import rle
from curate.masks.shapes import grey_file
from curate.select.pool import WHOLE
from curate.vectors import run as embedding
from tests.fakes import REAL, REPOSITORY

CACHE = REPOSITORY / "out" / "proof"
WEIGHTS = "weights/mobilenet_v2_imagenet_bnfolded.pth"
NOWHERE = -2  # the image does not show the class
PLANTS = {
    "plant": (20_000, 11),  # the plant of tests/curate/select/test_proof.py
    "plant_dev": (4_000, 12),  # those of the second protocol
    "plant_held": (4_000, 13),
}  # images and seed
SD900 = {"In": "inclusion", "Pa": "patches", "Sc": "scratches"}
ENCODERS = ("texture", "dense", "joined", "mobilenet")
DEFAULT = embed.DEFAULT
SETS = ("plant", "magnetic_tile", "neu_det")
LIMIT = 10**8  # pixels of an image


class Images(NamedTuple):
    """All that is known of a data set. `best`: (n, classes) the window that holds the most of the defect.

    `library`: images that a plant owns before production begins; only exemplars are taken from them.
    """

    ids: NDArray[np.str_]
    classes: NDArray[np.str_]
    present: NDArray[np.bool_]
    best: NDArray[np.int16]
    groups: NDArray[np.int64]
    library: NDArray[np.bool_]
    rows: NDArray[np.int64]
    tiles: NDArray[np.int16]
    vectors: NDArray[np.float16]

    @property
    def whole(self) -> NDArray[np.float32]:
        """One vector an image, in the order of the ids."""
        matrix = np.empty((len(self.ids), self.vectors.shape[1]), np.float32)
        mine = self.tiles == WHOLE
        matrix[self.rows[mine]] = self.vectors[mine]
        return matrix


class Seen(NamedTuple):
    """An image before it is embedded: a box a class, an empty one where only the class is known."""

    id: str
    path: Path
    group: str
    boxes: dict[str, Box | None]
    library: bool = False


def encoder(name: str) -> Encoder:
    if name in ("texture", "dense"):
        return embed.build(name, {} if name == "texture" else {"device": "cpu"})
    return embed.build("torchvision_file", {"weights": str(REAL / WEIGHTS), "scale": "tf", "device": "cpu"})


def load(name: str, vectors: str) -> Images:
    """From the cache, or made now; `joined`: texture and dense, window by window, each with half of the length."""
    if vectors == "joined":
        parts = [load(name, part) for part in ("texture", "dense")]
        return parts[0]._replace(vectors=np.hstack([part.vectors / np.float16(2**0.5) for part in parts]))
    encoder_ = encoder(vectors)
    file = CACHE / "vectors" / f"{name}-{encoder_.name}-{encoder_.key}.npz"
    if not file.is_file():
        _save(file, _embedded(name, encoder_))
    with np.load(file, allow_pickle=False) as arrays:
        return Images(*(arrays[field] for field in Images._fields))


def _save(file: Path, images: Images) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(file) as aside, aside.open("wb") as handle:
        np.savez(handle, **images._asdict())


def _embedded(name: str, encoder: Encoder) -> Images:
    with tempfile.TemporaryDirectory() as folder:
        return _images(seen(name, Path(folder)), encoder, classes(name))


def seen(name: str, folder: Path, plant_images: int = 0) -> list[Seen]:
    """Return the images of a data set; a plant is drawn into the folder, in its own size or a smaller one."""
    if name in PLANTS:
        images, seed = PLANTS[name]
        return list(_plant(folder / name, plant_images or images, seed))
    return list({"magnetic_tile": _magnetic, "neu_det": _neu, "sd900": _sd900}[name]())


def classes(name: str) -> tuple[str, ...]:
    known = {"magnetic_tile": magnetic_tile.CLASSES, "neu_det": neu_det.CLASSES, "sd900": tuple(SD900.values())}
    return known.get(name, CLASSES)


# --- what is on disk ------------------------------------------------------------------------------------------------


def _magnetic() -> Iterator[Seen]:
    root = REAL / "magnetic_tile"
    for record in _records(magnetic_tile.read(root, None, True)):
        boxes = {
            region.label: _mask_box(root, region.shape)
            for region in record.regions
            if isinstance(region.shape, MaskFile)
        }
        yield Seen(record.path, root / record.path, str(record.group), boxes)


def _mask_box(root: Path, shape: MaskFile) -> Box | None:
    y, x = np.nonzero(grey_file(root / shape.path, 1 << 24) >= shape.low)
    return Box(x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1) if len(x) else None


def _neu() -> Iterator[Seen]:
    """Every picture is a group of its own: the set does not tell which were cut from one strip."""
    root = REAL / "neu_det"
    for record in _records(neu_det.read(root, None, True)):
        own = Path(record.path).stem.rpartition("_")[0]  # the set's own class; some pictures hold boxes of a second
        boxes: dict[str, Box | None] = {own: None}
        for region in record.regions:
            if isinstance(region.shape, Box) and (
                boxes.get(region.label) is None or _area(region.shape) > _area(boxes[region.label])
            ):
                boxes[region.label] = region.shape
        yield Seen(record.path, root / record.path, record.path, boxes)


def _sd900() -> Iterator[Seen]:
    """Every picture is a group of its own, as in NEU-DET, where all of them are too."""
    root = REAL / "sd900"
    for record in _records(mask_folder.read(root, None, True, class_from="prefix")):
        boxes = {
            SD900[region.label]: _mask_box(root, region.shape)
            for region in record.regions
            if isinstance(region.shape, MaskFile)
        }
        yield Seen(record.path, root / record.path, record.path, boxes)


def _area(box: Box | None) -> float:
    return box.w * box.h if box else 0.0


def _records(outcomes: Iterable[object]) -> list[Record]:
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def _plant(folder: Path, images: int, seed: int) -> Iterator[Seen]:
    plant.draw(folder, images, seed)
    masks: dict[str, dict[str, str]] = {}
    with (folder / "truth.csv").open(newline="") as lines:
        for row in DictReader(lines):
            if row["class"]:
                masks.setdefault(row["image"], {})[row["class"]] = row["rle"]
    for coil in plant.plan(images, seed).coils:
        for view in coil.views:
            boxes = {name: _rle_box(text) for name, text in masks.get(view.path, {}).items()}
            yield Seen(view.path, folder / view.path, str(coil.index), boxes, coil.library)


def _rle_box(text: str) -> Box:
    y, x = np.nonzero(rle.kaggle_to_mask(text, *SHAPE))
    return Box(x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)


# --- vectors --------------------------------------------------------------------------------------------------------


def _images(seen: list[Seen], encoder: Encoder, classes: tuple[str, ...]) -> Images:
    """Sorted by content id, so the order of rows tells nothing of the classes; of files with the same bytes, one."""
    keyed = sorted({sha256_of(image.path): image for image in seen}.items())
    todo = [(key, str(image.path)) for key, image in keyed]
    by_id = {outcome.id: outcome for outcome in embedding.outcomes(encoder, todo, LIMIT, workers=1)}
    windows = [by_id[key] for key, _ in keyed]
    if broken := [window.problem for window in windows if window.problem]:
        raise SystemExit(f"{len(broken)} images cannot be read: {broken[0]}")
    counts = [len(window.vectors) for window in windows]
    _, groups = np.unique([image.group for _, image in keyed], return_inverse=True)
    best = [
        [_best(image.boxes, name, window.boxes) for name in classes]
        for (_, image), window in zip(keyed, windows, strict=True)
    ]
    return Images(
        ids=np.array([key for key, _ in keyed]),
        classes=np.array(classes),
        present=np.array([[name in image.boxes for name in classes] for _, image in keyed]),
        best=np.array(best, np.int16),
        groups=groups.astype(np.int64),
        library=np.array([image.library for _, image in keyed]),
        rows=np.repeat(np.arange(len(keyed)), counts),
        tiles=np.concatenate([np.arange(count) + WHOLE for count in counts]).astype(np.int16),
        vectors=np.concatenate([window.vectors for window in windows]).astype(np.float16),
    )


def _best(boxes: dict[str, Box | None], name: str, windows: NDArray[np.int32]) -> int:
    """The tile that holds the most of the defect, as a region tells; the image where there is no region."""
    if name not in boxes:
        return NOWHERE
    box = boxes[name]
    if box is None or len(windows) == 1:
        return WHOLE
    x, y, w, h = windows[1:].T
    wide = np.minimum(x + w, box.x + box.w) - np.maximum(x, box.x)
    high = np.minimum(y + h, box.y + box.h) - np.maximum(y, box.y)
    return int(np.argmax(np.maximum(wide, 0) * np.maximum(high, 0)))
