"""The score table `anomaly`: how unusual each image is, and where; for the App and for annotators.

It lies in `work/scores/anomaly-<key>.lance`, a row an image; the key hashes all that the scores follow from: vectors,
groups, strata, and what people have called clean or defective. One that is superseded is removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files, tables
from curate.hashing import short_key
from curate.index import unusual
from curate.index.dataset import Index
from curate.index.unusual import UnusualWindow
from curate.select import build_pool
from curate.select.anomaly import EVERYWHERE, anomaly, banks
from curate.select.build_pool import BuiltPool
from curate.select.pool import WHOLE, Pool
from curate.tables import Table
from curate.vectors.store import PLACE, Vectors

ANOMALY = "anomaly"  # the name of the tables
STEP = 1  # raise it when scores change
COLUMNS = {**dict.fromkeys(("score", "distance", "share"), "float32"), "tile": "int16", **dict.fromkeys(PLACE, "int32")}
SHOWN = 2000  # images in the App
LISTED = 20  # images in a report
DIGITS = 4  # of a percentage: a window among a million


@dataclass
class AnomalyReport:
    """Result of `curate anomaly`. `strata`: those that are compared within themselves; `fresh`: computed now."""

    vectors: str
    table: str
    images: int
    searched: int
    shown: int
    strata: list[str]
    fresh: bool
    unusual: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(index: Index, encoder: str | None = None, progress: Any = lambda stage, done, total: None) -> AnomalyReport:
    """Measure how unusual each image is, unless nothing has changed since. The caller holds the writer lock.

    Args:
        index: the project's index.
        encoder: whose vectors to use; None: the newest.
        progress: called with a stage, the steps done since the last call and all steps.
    """
    progress("reading vectors", 0, 1)
    built = build_pool.build(index, encoder, None, ())
    progress("reading vectors", 1, 1)
    path = path_of(index.project.work, built)
    fresh = not tables.size(path)
    if fresh:
        progress("comparing windows", 0, 1)
        anomaly(built.pool)
        progress("comparing windows", 1, 1)
    table = _written(path, built) if fresh else Table(path)
    return _report(index, built, table, fresh)


def keep(index: Index, built: BuiltPool) -> None:
    """Write and show the scores where a strategy has made the search; the caller holds the writer lock."""
    if "anomaly" not in built.pool.lasting:
        return
    path = path_of(index.project.work, built)
    _show(index, built, Table(path) if tables.size(path) else _written(path, built))


def windows(work: Path, ids: Iterable[str]) -> dict[str, UnusualWindow]:
    """Return the most unusual window of these images, as far as the table knows them."""
    table = tables.latest(work / "scores", ANOMALY)
    if table is None:
        return {}
    known = set(table.ids()).intersection(ids)
    return _windows(table, sorted(known))


# --- the table ------------------------------------------------------------------------------------------------------


def path_of(work: Path, built: BuiltPool) -> Path:
    """Return where the table of these vectors and labels lies."""
    pool = built.pool
    shows = pool.present.any(axis=1)
    digest = hashlib.sha256("".join(pool.ids).encode())
    for array in (pool.groups, banks(pool), pool.trainable & shows, pool.trainable & ~shows):
        digest.update(array.tobytes())
    key = short_key(ANOMALY, STEP, built.vectors.name, built.vectors.key, digest.hexdigest())
    return work / "scores" / f"{ANOMALY}-{key}.lance"


def _written(path: Path, built: BuiltPool) -> Table:
    pool, scores = built.pool, anomaly(built.pool)
    notes = json.dumps(list(pool.memo.get("notes", ())))
    about = {"vectors": built.vectors.name, "key": built.vectors.key, "notes": notes}
    table = Table(path) if Table.exists(path) else Table.create(path, COLUMNS, about)  # a kill may leave it empty
    places = _boxes(pool, built.vectors, scores.tile)
    values = {name: getattr(scores, name) for name in ("score", "distance", "share", "tile")}
    table.append({"id": pool.ids, **values, **{name: places[:, n] for n, name in enumerate(PLACE)}})
    for other in tables.listed(path.parent):
        if tables.name_of(other) == ANOMALY and other != path:
            files.remove(other)
    return table


def _boxes(pool: Pool, vectors: Vectors, tiles: NDArray[np.int16]) -> NDArray[np.int32]:
    """Return the place of each image's window as rows of x, y, w, h."""
    row_of, boxes = {id: row for row, id in enumerate(pool.ids)}, np.zeros((len(pool), len(PLACE)), np.int32)
    for batch in vectors.table.batches(("id", "tile", *PLACE)):
        coded = batch["id"].dictionary_encode()
        known = np.array([row_of.get(id, -1) for id in coded.dictionary.to_pylist()], np.int64)
        rows = known[coded.indices.to_numpy()]
        here = np.flatnonzero((rows >= 0) & (tables.numpy_of(batch["tile"]) == tiles[rows]))
        boxes[rows[here]] = np.stack([tables.numpy_of(batch[name])[here] for name in PLACE], axis=1)
    return boxes


# --- for people -----------------------------------------------------------------------------------------------------


def _show(index: Index, built: BuiltPool, table: Table) -> int:
    """Show the most unusual images that are not labelled."""
    ids = [built.pool.ids[row] for row in _order(built.pool, table)[:SHOWN]]
    unusual.show(index, _windows(table, ids))
    return len(ids)


def _order(pool: Pool, table: Table) -> NDArray[np.int64]:
    """The rows of images that are not labelled, the most unusual first."""
    score = table.read(pool.ids, ["score"])["score"]
    rows = np.flatnonzero(~pool.labelled & np.isfinite(score))
    return np.asarray(rows[np.argsort(-score[rows], kind="stable")])


def _windows(table: Table, ids: list[str]) -> dict[str, UnusualWindow]:
    values = table.read(ids, ["share", "tile", *PLACE])
    rows = zip(ids, values["share"].tolist(), values["tile"].tolist(), _places(values), strict=True)
    return {
        id: UnusualWindow(round(100 * share, DIGITS), None if tile == WHOLE else box) for id, share, tile, box in rows
    }


def _places(values: tables.Arrays) -> Iterator[tuple[int, int, int, int]]:
    yield from zip(*(values[name].tolist() for name in PLACE), strict=True)


def _report(index: Index, built: BuiltPool, table: Table, fresh: bool) -> AnomalyReport:
    pool = built.pool
    order = _order(pool, table)
    ids = [pool.ids[row] for row in order[:LISTED]]
    shown = _windows(table, ids)
    listed = [
        {"id": id, "path": built.images[id].path, "stratum": built.images[id].stratum, **asdict(shown[id])}
        for id in ids
    ]
    own = np.unique(banks(pool)[banks(pool) != EVERYWHERE])
    searched = int(np.isfinite(table.read(pool.ids, ["score"])["score"]).sum())
    return AnomalyReport(
        vectors=built.vectors.name,
        table=table.path,
        images=len(pool),
        searched=searched,
        shown=_show(index, built, table),
        strata=[pool.stratum_names[number] for number in own],
        fresh=fresh,
        unusual=listed,
        notes=[*built.notes, *json.loads(table.metadata["notes"])],
    )
