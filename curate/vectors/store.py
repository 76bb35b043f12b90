"""The vector tables: vectors of images and of their windows, in `work/vectors/<encoder's name>-<key>.lance`.

One row a window: `id`, `tile` (-1 is the whole image), `x y w h` (its pixels) and a float16 `vector` of length 1. All
windows of an image come in one append, so that an image is in the table whole or not at all.

    vectors = open_latest(project.work)            the newest; open_latest(work, "texture"): the newest of that encoder
    vectors.name, .key, .dim, .ids()
    vectors.whole(ids)                             float32 (n, d), in the order of ids
    for tiles in vectors.tiles(ids):               streamed; tiles.ids, .tile, .boxes (k, 4), .vectors float16 (k, d)
    vectors.windows(id)                            all windows of one image as one `Tiles`, the whole image first

`tiles` leaves out the whole-image windows. A small image has only that window, and no tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import tables
from curate.errors import CurateError, unknown
from curate.tables import Table

WHOLE = -1
IS_WHOLE = f"tile = {WHOLE}"
PLACE = ("x", "y", "w", "h")
COLUMNS = ("id", "tile", *PLACE, "vector")
REMEDY = "Run: curate embed"


@dataclass(frozen=True, slots=True)
class Tiles:
    """Windows of images: their ids, numbers, boxes (x, y, w, h in pixels) and vectors, a row each."""

    ids: list[str]
    tile: NDArray[np.int16]
    boxes: NDArray[np.int32]
    vectors: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.ids)


class Vectors:
    """The vectors that one encoder, with one set of options, has computed so far."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.name = tables.name_of(table.path)
        about = table.metadata
        self.key, dim = about.get("key", ""), about.get("dim", "")
        self.dim = int(dim) if dim.isascii() and dim.isdigit() and len(dim) < 7 else 0
        if not self.dim or any(table.columns.get(name) != kind for name, kind in _columns(self.dim).items()):
            raise CurateError(f"{table.path} is not a vector table, or is damaged. Remove its folder. {REMEDY}")
        named = Path(table.path).stem.rpartition("-")[2]
        if named != self.key:
            raise CurateError(
                f"{table.path} holds vectors of another encoder: its key is {self.key}, its name says {named}. Remove "
                f"its folder, or give it its name back. {REMEDY}"
            )

    @property
    def remedy(self) -> str:
        """The command that computes missing vectors."""
        return f"Run: {self.table.metadata.get('command', 'curate embed')}"

    @classmethod
    def create(cls, path: Path, key: str, dim: int, about: Mapping[str, str] | None = None) -> Vectors:
        """Create a table; `about` is its metadata: `command` is the command that adds vectors."""
        return cls(Table.create(path, _columns(dim), {"key": key, "dim": str(dim)} | dict(about or {})))

    def append(self, ids: Sequence[str], boxes: Sequence[NDArray[np.int32]], vectors: Sequence[Any]) -> None:
        """Append images with all their windows: for each image its boxes and vectors, the whole image first."""
        if not ids:
            return
        # Whole images come first, then all tiles: so reading only whole images touches few pages.
        order = [(i, 0, 1) for i in range(len(ids))] + [(i, 1, len(boxes[i])) for i in range(len(ids))]
        places = np.concatenate([boxes[i][begin:end] for i, begin, end in order])
        rows: dict[str, Any] = {
            "id": [ids[i] for i, begin, end in order for _ in range(begin, end)],
            "tile": np.concatenate([np.arange(begin, end) + WHOLE for _, begin, end in order]),
            "vector": np.concatenate([vectors[i][begin:end] for i, begin, end in order]),
        }
        self.table.append(rows | {name: places[:, n] for n, name in enumerate(PLACE)})

    def ids(self) -> list[str]:
        """Return the ids of all images with vectors, in the order in which they were added."""
        return list(self.table.ids(IS_WHOLE))

    def whole(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of whole images, float32 (n, dim), in the order of `ids`."""
        try:
            vectors = self.table.read(ids, ["vector"], IS_WHOLE)["vector"]
        except CurateError:
            missing = len(set(ids).difference(self.ids()))
            if not missing:
                raise
            message = f"{missing} of {len(set(ids))} images have no {self.name} vectors yet"
            raise CurateError(f"{message}. {self.remedy}") from None
        return vectors.astype(np.float32).reshape(len(ids), self.dim)

    def tiles(self, ids: Sequence[str] | None = None, rows: int = 65536) -> Iterator[Tiles]:
        """Yield the tiles of these images (of all, without `ids`) in the table's order, at most `rows` at a time."""
        wanted = None if ids is None else set(ids)
        for batch in self.table.batches(COLUMNS, rows, f"tile <> {WHOLE}"):
            tiles = _tiles(batch, wanted)
            if len(tiles):
                yield tiles

    def windows(self, id: str) -> Tiles:
        """Return all windows of one image, the whole image first."""
        parts = [_tiles(batch, {id}) for batch in self.table.batches(COLUMNS, where=f"id = '{_plain(id)}'")]
        windows = _joined([part for part in parts if len(part)])
        if windows is None:
            raise CurateError(f"image {id} has no {self.name} vectors. {self.remedy}")
        return windows


def open_latest(work: Path, name: str | None = None) -> Vectors:
    """Return the newest vectors, of this encoder if one is named. Raises CurateError if there are none."""
    folder = work / "vectors"
    names = list(dict.fromkeys(tables.name_of(path) for path in tables.listed(folder) if Table.exists(path)))
    # `dense` is also `dense-tf_efficientnet_lite0`: an encoder's name, then its network's.
    longer = [known for known in names if name and known.startswith(f"{name.replace('-', '_')}-")]
    table = tables.latest(folder, longer[0] if longer and name not in names else name)
    if table is not None:
        return Vectors(table)
    if name is None or not names:
        raise CurateError(f"no vectors yet in {folder}. {REMEDY}")
    raise unknown("vectors", name, names, f"{REMEDY} --encoder NAME")


def _columns(dim: int) -> dict[str, str]:
    return {"id": "string", "tile": "int16", **dict.fromkeys(PLACE, "int32"), "vector": f"float16[{dim}]"}


def _plain(id: str) -> str:
    return id.replace("'", "''")


def _tiles(batch: Any, wanted: set[str] | None) -> Tiles:
    """Return a record batch's windows of the wanted images. Ids become strings once per image, not per row."""
    coded = batch["id"].dictionary_encode()
    names, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    if wanted is not None:
        keep = np.flatnonzero(np.fromiter((name in wanted for name in names), bool, len(names))[codes])
        if len(keep) < len(codes):
            batch, codes = batch.take(keep), codes[keep]
    values = {name: tables.numpy_of(batch[name]) for name in COLUMNS[1:]}
    boxes = np.stack([values[name] for name in PLACE], axis=1)
    return Tiles([names[code] for code in codes], values["tile"], boxes, values["vector"])


def _joined(parts: list[Tiles]) -> Tiles | None:
    if not parts:
        return None
    order = np.argsort(np.concatenate([part.tile for part in parts]), kind="stable")
    ids = [id for part in parts for id in part.ids]
    rest = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("tile", "boxes", "vectors"))
    return Tiles(ids, *rest)
