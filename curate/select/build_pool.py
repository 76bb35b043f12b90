"""Build the `Pool` that strategies choose from, out of index, vectors and scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import tables
from curate.data import Box, Label
from curate.errors import CurateError, did_you_mean, unknown
from curate.index import rounds
from curate.index.dataset import PRESENT, Index
from curate.select.pool import WHOLE, Exemplars, Floats, Pool, Rows, Windows
from curate.select.whitening import whitening_of
from curate.vectors import store
from curate.vectors.store import Vectors

HELD_OUT = ("val", "test")
MODEL = "model"  # the encoder that is the project's own model, and the score tables that models write
IN_MEMORY = 2 << 30  # bytes of window vectors that are kept; more are read again at each pass
MOST_EXEMPLARS = 64  # of one class; first one of each group
NEEDED = ("group", "stratum", "status", "split", "source", "missing", "filepath", *PRESENT)


@dataclass(slots=True)
class PoolImage:
    """The fields of an indexed image that a selection needs."""

    group: str
    stratum: str
    status: str
    split: str | None
    source: str
    missing: bool
    path: str
    present: frozenset[str]
    near_of: str | None = None
    queued_in: str | None = None

    @property
    def ineligible_as(self) -> str | None:
        """Why it cannot be picked, in a word that images can be counted by; None: it can be picked."""
        if self.status != "unlabelled":
            return QUEUED if self.status == "queued" else self.status
        if self.missing:
            return "missing from disk"
        if self.source == "synthetic":
            return "synthetic"
        if self.split in HELD_OUT:
            return f"held out for {self.split}"
        if self.queued_in:
            return QUEUED
        return "near-duplicates" if self.near_of else None

    @property
    def ineligible(self) -> str | None:
        """Why it cannot be picked, as a sentence; None: it can be picked."""
        word = self.ineligible_as
        if word == QUEUED:
            return f"it waits in {self.queued_in}" if self.queued_in else "it waits in the annotators' queue"
        if word == f"held out for {self.split}":
            return f"its group '{self.group}' belongs to {self.split}: labelling it would leak"
        if word == "near-duplicates":
            return f"it nearly equals {str(self.near_of)[:12]} (curate duplicates)"
        return word and _INELIGIBLE.get(word, f"its status is {word}")


QUEUED = "in the annotators' queue"
_INELIGIBLE = {
    "labelled": "it is labelled",
    "skipped": "people skipped it",
    "disputed": "it is disputed: decide first (curate resolve, or the App)",
    "missing from disk": "its file is missing",
    "synthetic": "it is synthetic",
}


@dataclass
class BuiltPool:
    """A pool, the images of the index that it was built from, and notes for the user."""

    pool: Pool
    images: dict[str, PoolImage]
    vectors: Vectors
    scores: str | None
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(
    index: Index, encoder: str | None, exemplars: str | None, classes: Sequence[str], windows: bool = True
) -> BuiltPool:
    """Build the pool of a project.

    Args:
        index: the project's index.
        encoder: the vectors to use; None: the newest.
        exemplars: a saved view, a tag or content ids; None: windows of labelled images of the scarce classes.
        classes: the classes that the user asks for; empty: all.
        windows: take the windows that show the defects as exemplars, not the images as a whole, which is quicker.

    Raises:
        CurateError: an unknown class, or no vectors yet; the message names the command to run.
    """
    _check_classes(index, classes)
    vectors, images = store.open_latest(index.project.work, encoder), index_images(index)
    with_vectors = set(vectors.ids())
    ids = sorted(id for id, image in images.items() if id in with_vectors and image.source != "synthetic")
    if not ids:
        raise CurateError(f"none of the index's images has a vector. {vectors.remedy}")
    matrix = vectors.whole(ids)
    finite = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    broken = sorted(set(ids) - {ids[row] for row in finite})
    ids, matrix = [ids[row] for row in finite], matrix[finite]
    names = tuple(index.project.active_classes)
    scores, table = _scores(index, ids, names)
    pool = _pool(ids, matrix, images, names, tuple(classes), scores, index.project.retired_classes)
    pool = replace(pool, windows=_Windows(vectors, pool))
    notes = _notes(images, with_vectors, broken, vectors)
    if stale := _other_model(index.project.work, vectors):
        notes.append(f"the vectors are those of model {vectors.key}, the current one is {stale}. {vectors.remedy}")
    if not names:
        notes.append("no classes yet: annotators would have nothing to mark. Before push: curate classes add NAME")
    found = _exemplars(index, pool, vectors, exemplars, notes) if windows or exemplars else whole_exemplars(pool)
    pool = replace(pool, exemplars=found)
    return BuiltPool(pool, images, vectors, table, broken, notes)


def _check_classes(index: Index, classes: Sequence[str]) -> None:
    for name in classes:
        if name not in index.project.active_classes:
            raise unknown("class", name, index.project.active_classes)


def index_images(index: Index) -> dict[str, PoolImage]:
    copies = dict(index.rows("near_of"))
    pushed = (round_ for round_ in rounds.every(index.project.work) if round_.pushed)
    queued = {
        row["id"]: round_.name for round_ in pushed for row in round_.picks() if row["id"] not in round_.withdrawn
    }
    images = {
        id: PoolImage(
            group or id,
            stratum or "",
            status or "unlabelled",
            split,
            source,
            bool(missing),
            path,
            frozenset(regions or ()) | frozenset(whole or ()),
            copies.get(id),
            queued.get(id),
        )
        for id, group, stratum, status, split, source, missing, path, regions, whole in index.rows(*NEEDED)
    }
    for image in images.values():  # where the better copy is gone, this one stands for it
        if image.near_of and (image.near_of not in images or images[image.near_of].missing):
            image.near_of = None
    return images


def _notes(images: dict[str, PoolImage], with_vectors: set[str], broken: list[str], vectors: Vectors) -> list[str]:
    notes = []
    if lacking := sum(id not in with_vectors and image.ineligible is None for id, image in images.items()):
        notes.append(f"{lacking} images have no {vectors.name} vectors yet and cannot be picked. {vectors.remedy}")
    if broken:
        shown = ", ".join(id[:12] for id in broken[:5])
        notes.append(f"{len(broken)} images have vectors that are no numbers and were left out: {shown}")
    return notes


def _other_model(work: Path, vectors: Vectors) -> str | None:
    """The key of the current model where the vectors are those of another one; None for other encoders."""
    current = model_named(work, "production") or model_named(work, "candidate")
    return current if vectors.name == MODEL and current != vectors.key else None


def model_named(work: Path, alias: str) -> str | None:
    """The key of the model that an alias of `train` names; None where there is none, or its file is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads((work / "models" / f"{alias}.json").read_text(encoding="utf-8"))["model"])
    return None


def _is_retired(image: PoolImage, retired: frozenset[str]) -> bool:
    """Return True where an image shows retired classes alone: no strategy may learn from it that it is clean."""
    return bool(image.present) and image.present <= retired


def _pool(
    ids: list[str],
    matrix: Floats,
    images: dict[str, PoolImage],
    classes: tuple[str, ...],
    wanted: tuple[str, ...],
    scores: dict[str, Floats],
    retired: frozenset[str],
) -> Pool:
    rows = [images[id] for id in ids]
    groups, _ = _coded([image.group for image in rows])
    strata, stratum_names = _coded([image.stratum for image in rows])
    labelled = np.array([image.status == "labelled" for image in rows])
    return Pool(
        ids=tuple(ids),
        vectors=matrix,
        candidates=np.array([image.ineligible is None for image in rows]),
        labelled=labelled,
        held_out=labelled & np.array([image.split in HELD_OUT or _is_retired(image, retired) for image in rows]),
        present=np.array([[name in row.present for name in classes] for row in rows]).reshape(len(rows), len(classes)),
        classes=classes,
        groups=groups,
        strata=strata,
        stratum_names=stratum_names,
        scores=scores,
        wanted=wanted,
    )


def _coded(names: list[str]) -> tuple[Rows, tuple[str, ...]]:
    """Number the names in sorted order; return each one's number, and the names."""
    distinct, numbers = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    return numbers.astype(np.int64), tuple(distinct.tolist())


# --- windows --------------------------------------------------------------------------------------------------------


class _Windows:
    """Stream the windows of a pool's images: whole images first, then tiles; kept in memory where they fit."""

    def __init__(self, vectors: Vectors, pool: Pool) -> None:
        self.source, self.ids, self.vectors = vectors, pool.ids, pool.vectors
        self.row_of = {id: row for row, id in enumerate(pool.ids)}
        self.kept: list[Windows] | None = None

    def __call__(self) -> Iterator[Windows]:
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[Windows] = []
        size = 0
        for part in self._read():
            size += part.vectors.nbytes
            if size <= IN_MEMORY:
                kept.append(part)
            yield part
        if size <= IN_MEMORY:
            self.kept = kept

    def _read(self) -> Iterator[Windows]:
        step = 65536
        for start in range(0, len(self.ids), step):
            rows = np.arange(start, min(start + step, len(self.ids)))
            yield Windows(rows, np.full(len(rows), WHOLE, np.int16), self.vectors[rows])
        for tiles in self.source.tiles(self.ids):
            values = tiles.vectors.astype(np.float32)
            fine = np.isfinite(values).all(axis=1)
            owners = np.array([self.row_of[id] for id in tiles.ids], np.int64)
            yield Windows(owners[fine], tiles.tile[fine], values[fine])


# --- scores ---------------------------------------------------------------------------------------------------------


def _scores(index: Index, ids: list[str], classes: tuple[str, ...]) -> tuple[dict[str, Floats], str | None]:
    """The columns of the newest model's score table in the pool's order; NaN where an image has none."""
    table = tables.latest(index.project.work / "scores", MODEL)
    if table is None:
        return {}, None
    scored = set(table.ids())
    rows = np.array([row for row, id in enumerate(ids) if id in scored], np.int64)
    if not len(rows):
        return {}, None
    order = table.classes
    names = [name for name in table.columns if name != "id"]
    values = table.read([ids[row] for row in rows], names)
    return {name: _placed(values[name], rows, len(ids), order, classes) for name in names}, str(table.path)


def _placed(values: Any, rows: Rows, total: int, order: list[str], classes: tuple[str, ...]) -> Floats:
    values = np.asarray(values, dtype=np.float32)
    if values.ndim == 2:
        places = [order.index(name) if name in order else None for name in classes]
        columns = [values[:, place] if place is not None else np.zeros(len(values)) for place in places]
        values = np.stack(columns, axis=1).astype(np.float32)
    placed = np.full((total, *values.shape[1:]), np.nan, np.float32)
    placed[rows] = values
    return placed


# --- exemplars ------------------------------------------------------------------------------------------------------


def _exemplars(index: Index, pool: Pool, vectors: Vectors, given: str | None, notes: list[str]) -> Exemplars:
    """Windows of the images that the user gave, else of the labelled images of the scarce classes."""
    names = pool.wanted or (pool.classes if given else pool.scarce_classes())
    ids = _without_held_out(pool, _named(index, pool, given), notes) if given else labelled_exemplars(pool, names)
    if not ids:
        return pool.exemplars
    labels = {sample.id: sample.label for sample in index.shown(ids)}
    by_id = _windows_of(vectors, pool, ids)
    each = (_exemplar_windows(pool, id, labels[id], by_id[id], names, bool(given)) for id in ids)
    windows = [window for image in each for window in image]
    if not windows and given:
        raise CurateError(
            f"--exemplars '{given}': none of these images shows {' or '.join(names)}; label the defects first"
        )
    if not windows:
        return pool.exemplars
    image_ids, tile, vector, cls = zip(*windows, strict=True)
    return Exemplars(tuple(image_ids), np.array(tile, np.int16), np.stack(vector), tuple(cls), bool(given))


def _without_held_out(pool: Pool, ids: list[str], notes: list[str]) -> list[str]:
    """The ids without those of val and test, which must not be learnt from."""
    held_out = {id for id, row in zip(ids, pool.rows_of(ids).tolist(), strict=True) if pool.held_out[row]}
    if held_out:
        notes.append(f"{len(held_out)} exemplars were left out: they are of val or test, or of retired classes")
    if len(held_out) == len(ids):
        raise CurateError("all exemplars belong to val or test and must not be learnt from; give others")
    return [id for id in ids if id not in held_out]


def labelled_exemplars(pool: Pool, names: Sequence[str]) -> list[str]:
    """Labelled images of these classes: one of each group, then a second one, and so on."""
    chosen: dict[str, None] = {}
    for name in names:
        rows = np.flatnonzero(pool.shows(name))
        before = Counter[int]()
        turn = [before.update([group]) or before[group] for group in pool.groups[rows].tolist()]
        chosen |= dict.fromkeys(pool.ids[row] for row in rows[np.argsort(turn, kind="stable")][:MOST_EXEMPLARS])
    return list(chosen)


def whole_exemplars(pool: Pool) -> Exemplars:
    """Return the labelled images of the scarce classes, or of those asked for, as exemplars: no windows of them."""
    names = pool.wanted or pool.scarce_classes()
    rows = pool.rows_of(labelled_exemplars(pool, names))
    shown = [(row, name) for row in rows.tolist() for name in names if pool.present[row, pool.classes.index(name)]]
    if not shown:
        return pool.exemplars
    ids, of_class = tuple(pool.ids[row] for row, _ in shown), tuple(name for _, name in shown)
    tiles: NDArray[np.int16] = np.full(len(shown), WHOLE, np.int16)
    return Exemplars(ids, tiles, pool.vectors[[row for row, _ in shown]], of_class)


def _named(index: Index, pool: Pool, given: str) -> list[str]:
    """The images of a saved view, of a tag, or with these content ids (or the first characters of these)."""
    if given in index.dataset.list_saved_views():
        view = index.dataset.load_saved_view(given)
        samples = view.values("sample_id" if view._is_patches else "id")
        ids = index.dataset.select(samples).values("content_id")
    elif given in index.dataset.distinct("tags"):
        ids = index.dataset.match_tags(given).values("content_id")
    else:
        ids = [_by_prefix(pool, part.strip(), index) for part in given.split(",") if part.strip()]
    known = set(pool.ids)
    if lacking := [id for id in ids if id not in known]:
        raise CurateError(f"exemplar {lacking[0]} has no vector. Run: curate embed")
    if not ids:
        raise CurateError(f"--exemplars '{given}' holds no image")
    return list(dict.fromkeys(ids))


def _by_prefix(pool: Pool, prefix: str, index: Index) -> str:
    matches = [id for id in index.ids() if id.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise CurateError(f"--exemplars: '{prefix}' fits {len(matches)} images; give more of its characters")
    views, tags = index.dataset.list_saved_views(), index.dataset.distinct("tags")
    hint = did_you_mean(prefix, [*views, *tags])
    raise CurateError(
        f"--exemplars '{prefix}' is no saved view, no tag and no image of the index{hint}; "
        f"views: {', '.join(views) or 'none'}; tags: {', '.join(tags) or 'none'}"
    )


@dataclass
class _ImageWindows:
    tiles: NDArray[np.int16]
    boxes: NDArray[np.int32]
    vectors: Floats


def _windows_of(vectors: Vectors, pool: Pool, ids: Sequence[str]) -> dict[str, _ImageWindows]:
    """All windows of these images. The whole image comes last: of two that hold a defect equally, the tile is taken."""
    rows = pool.rows_of(ids)
    parts: dict[str, list[tuple[int, Any, Any]]] = {id: [] for id in ids}
    for tiles in vectors.tiles(ids):
        for id, tile, box, vector in zip(tiles.ids, tiles.tile, tiles.boxes, tiles.vectors, strict=True):
            parts[id].append((int(tile), box, vector.astype(np.float32)))
    everything = np.array([0, 0, 1 << 30, 1 << 30], np.int32)
    for id, row in zip(ids, rows.tolist(), strict=True):
        parts[id].append((WHOLE, everything, pool.vectors[row]))
    columns = {id: tuple(zip(*windows, strict=True)) for id, windows in parts.items()}
    return {
        id: _ImageWindows(np.array(tile, np.int16), np.stack(boxes), np.stack(stack))
        for id, (tile, boxes, stack) in columns.items()
    }


def _exemplar_windows(
    pool: Pool, id: str, label: Label, windows: _ImageWindows, names: Sequence[str], given: bool
) -> Iterator[tuple[str, int, Floats, str]]:
    """The windows that hold the most of each defect; for an image without regions its most unusual window."""
    regions = [(d.label, Box(*d.box)) for d in label.defects if d.label in names]
    for name, box in regions:
        best = int(np.argmax(_overlap(windows.boxes, box)))
        yield id, int(windows.tiles[best]), windows.vectors[best], name
    bare = sorted(label.present.intersection(names) - {name for name, _ in regions})
    if given and label.status != "labelled" and not regions and not bare:
        bare = [pool.wanted[0] if len(pool.wanted) == 1 else ""]
    for name in bare:
        best = int(np.argmax(whitening_of(pool).lengths(windows.vectors)))
        yield id, int(windows.tiles[best]), windows.vectors[best], name


def _overlap(boxes: NDArray[np.int32], box: Box) -> NDArray[np.float64]:
    """The share of the box's area that each window holds."""
    wide = np.minimum(boxes[:, 0] + boxes[:, 2], box.x + box.w) - np.maximum(boxes[:, 0], box.x)
    high = np.minimum(boxes[:, 1] + boxes[:, 3], box.y + box.h) - np.maximum(boxes[:, 1], box.y)
    return np.asarray(np.maximum(wide, 0) * np.maximum(high, 0) / max(box.w * box.h, 1e-9))
