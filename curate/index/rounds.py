"""Rounds: what was chosen, when, how and why, in `work/rounds/NNN/` (picks.parquet, round.json) and in the index.

The folder is the truth and is moved into place last; the fields, tag and view in the FiftyOne dataset are shown from
it and can be shown again. A round that is not pushed yet may be replaced, a pushed one never.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.data import AUDIT
from curate.errors import CurateError, unknown
from curate.index.dataset import Index

PREDICTED = "predicted.parquet"
CLASS = "class "  # before a class's name, which may be `id`
FIELDS = ("round", "slot", "pick_rank", "pick_score", "pick_reason")
MANIFEST, PICKS = "round.json", "picks.parquet"


@dataclass(frozen=True)
class Round:
    """A finished round. `picks` are plain rows, in the order in which people should see them."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def number(self) -> int:
        return int(self.manifest["round"])

    @property
    def name(self) -> str:
        return f"round {self.number:03d}"

    @property
    def pushed(self) -> bool:
        """Whether people have it in their queue."""
        return bool(self.manifest.get("pushed"))

    @property
    def touched(self) -> bool:
        """Whether people have worked on it, in their queue or in the App."""
        return self.pushed or bool(self.manifest.get("touched"))

    @property
    def withdrawn(self) -> list[str]:
        """Images that were taken back from the queue before anybody worked on them."""
        return list(self.manifest.get("withdrawn", ()))

    def picks(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = _load(self.folder / PICKS, _schema()).to_pylist()
        if not all(row["id"] for row in rows):
            raise _damaged(self.folder / PICKS)
        return rows

    def predicted(self) -> tuple[list[str], NDArray[np.float32], list[str]]:
        """What was predicted of every image when the round was chosen: ids, probabilities and their classes."""
        if not (self.folder / PREDICTED).is_file():
            return [], np.zeros((0, 0), np.float32), []
        table = _load(self.folder / PREDICTED)
        names = [name for name in table.column_names if name != "id"]
        try:
            ids = table["id"].to_pylist()
            values = np.array([table[name].to_numpy() for name in names], np.float32)
        except (KeyError, TypeError, ValueError):
            raise _damaged(self.folder / PREDICTED) from None
        return ids, values.reshape(len(names), len(ids)).T, [name.removeprefix(CLASS) for name in names]


def column(name: str) -> str:
    """The column of a class in what a round keeps of its predictions."""
    return CLASS + name


def every(work: Path) -> list[Round]:
    """All rounds, the first one first."""
    folders = [folder for folder in (work / "rounds").glob("[0-9]*") if folder.name.isdigit()]
    return [Round(f, _manifest(f)) for f in sorted(folders, key=lambda f: int(f.name)) if (f / MANIFEST).is_file()]


def latest(work: Path) -> Round | None:
    return every(work)[-1] if every(work) else None


def find(work: Path, number: int | None) -> Round:
    """The round with this number, else the newest one."""
    known = {one.number: one for one in every(work)}
    if not known:
        raise CurateError("no round yet. Run: curate select")
    if number is not None and number not in known:
        raise unknown("round", str(number), map(str, known))
    return known[max(known) if number is None else number]


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not all(isinstance(id, str) for id in found.get("withdrawn", ())):
            raise ValueError
        return found | {"round": int(found["round"])}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError):
        raise _damaged(folder / MANIFEST) from None


def _damaged(file: Path) -> CurateError:
    return CurateError(f"{file} is damaged or missing; restore it (curate restore), or remove {file.parent}")


def mark(one: Round, **values: Any) -> Round:
    """Note in the manifest what became of the round."""
    manifest = one.manifest | values
    files.write_json(one.folder / MANIFEST, manifest)
    return Round(one.folder, manifest)


def write(
    work: Path,
    manifest: dict[str, Any],
    picks: Sequence[dict[str, Any]],
    predicted: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
) -> Round:
    """A new round, whole or not at all; it takes the place of one that is not pushed.

    `predicted`: the ids, and a column of probabilities a class.
    """
    import pyarrow as pa

    target = work / "rounds" / f"{manifest['round']:03d}"
    if target.exists() and Round(target, _manifest(target)).touched:
        raise CurateError(f"round {manifest['round']:03d} is never replaced: people work on it")
    with files.written_aside(target) as aside:
        aside.mkdir()
        _write_picks(aside / PICKS, picks)
        if predicted:
            _store(aside / PREDICTED, pa.table(dict(predicted)))
        files.write_json(aside / MANIFEST, manifest)
        files.remove(target)
    return Round(target, manifest)


def _write_picks(file: Path, picks: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa

    _store(file, pa.Table.from_pylist(list(picks), schema=_schema()))


def _schema() -> Any:
    """The columns of the picks."""
    import pyarrow as pa

    texts = {name: pa.string() for name in ("id", "path", "slot", "reason", "like", "group", "stratum")}
    numbers = {"rank": pa.int32(), "tile": pa.int16()}
    reals = {name: pa.float64() for name in ("score", "propensity", "seconds")}
    return pa.schema({**texts, **numbers, **reals, "predicted": pa.list_(pa.string())})


def _load(file: Path, schema: Any = None) -> Any:
    """The table in this file; with a schema, just its columns, all of which must be there."""
    import pyarrow as pa
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    try:
        found = parquet.read_table(file)
        return found.select(schema.names).cast(schema) if schema else found
    except (OSError, pa.ArrowException, KeyError, ValueError, MemoryError):
        raise _damaged(file) from None


def _store(file: Path, table: Any) -> None:
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    parquet.write_table(table, file, compression="zstd")
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


# --- in the index ---------------------------------------------------------------------------------------------------


def show(index: Index, only: set[str] | None = None) -> int:
    """Make the index's fields and tags equal to the rounds; the number of images that were not so yet.

    With `only`, just these images: those that are new in the index after it was lost.
    """
    if only is not None and not only:
        return 0
    wanted = {row["id"]: (one, row) for one in every(index.project.work) for row in one.picks()}
    shown = _shown(index)
    stale = {id for id in wanted.keys() | shown.keys() if shown.get(id) != _fields(wanted.get(id))}
    stale = {id for id in stale if only is None or id in only}
    if not stale:
        return 0
    fo = index.fo
    index.declare(round=fo.IntField, slot=fo.StringField, pick_rank=fo.IntField)
    index.declare(pick_score=fo.FloatField, pick_reason=fo.StringField)
    values = {id: _fields(wanted.get(id)) or (None,) * len(FIELDS) for id in stale}
    index.set({name: {id: value[place] for id, value in values.items()} for place, name in enumerate(FIELDS)})
    _tag(index, stale)
    return len(stale)


def _shown(index: Index) -> dict[str, tuple[Any, ...]]:
    if index.dataset.get_field("round") is None:
        return {}
    return {id: tuple(values) for id, *values in index.rows(*FIELDS) if values[0] is not None}


def _fields(found: tuple[Round, dict[str, Any]] | None) -> tuple[Any, ...] | None:
    if found is None:
        return None
    one, row = found
    return (one.number, row["slot"], row["rank"], row["score"], row["reason"])


def _tag(index: Index, stale: set[str]) -> None:
    """`round 003` on each pick of each round; `audit` on those that may fill val and test, whatever came later."""
    by_tag: dict[str, set[str]] = {}
    for one in every(index.project.work):
        for row in one.picks():
            tags = [one.name, AUDIT] if row["slot"] == AUDIT else [one.name]
            for tag in tags if row["id"] in stale else ():
                by_tag.setdefault(tag, set()).add(row["id"])
    for tag in {AUDIT, *(tag for tag in index.dataset.distinct("tags") if _ours(tag))}:
        index.tag(tag, sorted(stale.difference(by_tag.get(tag, ()))), on=False)
    for tag, ids in sorted(by_tag.items()):
        index.tag(tag, sorted(ids))


def _ours(tag: str) -> bool:
    return tag.startswith("round ") and tag.removeprefix("round ").isdigit()


def names(index: Index) -> Iterator[str]:
    """The rounds that the index shows, for its saved views."""
    yield from sorted(tag for tag in index.dataset.distinct("tags") if _ours(tag))
