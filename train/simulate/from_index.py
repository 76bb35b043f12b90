"""Build an oracle dataset from a project's index and vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.data import Box, Label
from curate.errors import CurateError
from curate.index.dataset import PRESENT, Index
from curate.project import Project
from curate.select.pool import Windows
from curate.vectors import store as vectors
from curate.vectors.store import Vectors
from train.simulate.oracle_dataset import OracleDataset

MIN_IMAGES = 30  # labelled images that a simulation needs


@dataclass(frozen=True)
class _Row:
    group: str
    stratum: str
    present: frozenset[str]


def from_project(project: Project, encoder: str | None = None) -> tuple[OracleDataset, list[str]]:
    """Return the project's labelled images with their newest vectors, and notes for the user."""
    index = Index(project)
    stored, labelled = vectors.open_latest(project.work, encoder), _labelled(index)
    known = set(stored.ids())
    ids = sorted(id for id in labelled if id in known)
    if len(ids) < MIN_IMAGES:
        lacking = (
            f", {len(labelled) - len(ids)} of them without vectors ({stored.remedy})"
            if len(ids) < len(labelled)
            else ""
        )
        raise CurateError(
            f"{len(labelled)} labelled images{lacking}: a simulation hides existing labels and needs {MIN_IMAGES} "
            "images. Index a labelled source, or label more"
        )
    notes = (
        [f"{len(labelled) - len(ids)} labelled images have no vectors. {stored.remedy}"]
        if len(ids) < len(labelled)
        else []
    )
    return _oracle(index, stored, ids, [labelled[id] for id in ids]), notes


def _labelled(index: Index) -> dict[str, _Row]:
    """Return the labelled images, without synthetic ones."""
    rows = index.rows("group", "stratum", "status", "source", "missing", *PRESENT)
    return {
        id: _Row(group or id, stratum or "", frozenset(regions or ()) | frozenset(whole or ()))
        for id, group, stratum, status, source, missing, regions, whole in rows
        if status == "labelled" and source != "synthetic" and not missing
    }


def _oracle(index: Index, stored: Vectors, ids: Sequence[str], rows: Sequence[_Row]) -> OracleDataset:
    names = [name for name in index.project.active_classes if any(name in row.present for row in rows)]
    if not names:
        raise CurateError(f"none of the {len(ids)} labelled images shows a defect: there is nothing to find")
    matrix = stored.whole(ids)
    if not np.isfinite(matrix).all():
        raise CurateError(f"some vectors contain NaN or infinity; compute them again. {stored.remedy}")
    windows, boxes = _windows(stored, ids)
    labels = {sample.id: sample.label for sample in index.shown(ids)}
    return OracleDataset(
        name=index.project.name,
        ids=tuple(ids),
        vectors=matrix,
        classes=tuple(names),
        present=np.array([[name in row.present for name in names] for row in rows]),
        groups=np.unique([row.group for row in rows], return_inverse=True)[1].astype(np.int64),
        strata=np.unique([row.stratum for row in rows], return_inverse=True)[1].astype(np.int64),
        regions=np.array([max(len(labels[id].defects), len(row.present)) for id, row in zip(ids, rows, strict=True)]),
        windows=windows,
        marks=np.array(list(_marks([labels[id] for id in ids], windows, boxes, names)), np.int64).reshape(-1, 3),
    )


def _windows(stored: Vectors, ids: Sequence[str]) -> tuple[Windows | None, NDArray[np.int32]]:
    """Return all tiles of these images, sorted by image, in the precision of the store, and their boxes."""
    place, parts = {id: row for row, id in enumerate(ids)}, list(stored.tiles(ids))
    if not parts:
        return None, np.zeros((0, 4), np.int32)
    rows = np.array([place[id] for part in parts for id in part.ids], np.int64)
    tiles, boxes, values = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("tile", "boxes", "vectors")
    )
    order = np.lexsort((tiles, rows))
    order = order[np.isfinite(values[order]).all(axis=1)]
    return Windows(rows[order], tiles[order], values[order]), boxes[order]


def _marks(
    labels: Sequence[Label], windows: Windows | None, boxes: NDArray[np.int32], names: Sequence[str]
) -> Iterator[tuple[int, int, int]]:
    """Yield row, class and window of each defect: the tile with most of it, or -1 (the whole image) without one."""
    if windows is None:
        return
    for row, label in enumerate(labels):
        begin, end = np.searchsorted(windows.rows, [row, row + 1])
        for defect in label.defects:
            if defect.label in names:
                held = _overlap_areas(boxes[begin:end], Box(*defect.box))
                best = begin + int(held.argmax()) if held.max(initial=0) > 0 else -1
                yield row, names.index(defect.label), best


def _overlap_areas(boxes: NDArray[np.int32], box: Box) -> NDArray[np.float64]:
    """Return the area of the box that each tile covers."""
    wide = np.minimum(boxes[:, 0] + boxes[:, 2], box.x + box.w) - np.maximum(boxes[:, 0], box.x)
    high = np.minimum(boxes[:, 1] + boxes[:, 3], box.y + box.h) - np.maximum(boxes[:, 1], box.y)
    return np.asarray(np.maximum(wide, 0) * np.maximum(high, 0), np.float64)
