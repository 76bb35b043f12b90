"""Rounds: the chosen images, when, how and why, in `work/rounds/NNN/` (picks.parquet, round.json) and in the index.

The folder is the truth and is moved into place last; the dataset's fields, tags and view are copies that can be written
again. A round may be replaced until it is pushed.
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
from curate.data import AUDIT, AUDIT_EXTRA
from curate.errors import CurateError, unknown
from curate.index.dataset import Index

PREDICTED = "predicted.parquet"
CLASS = "class "  # prefix of a class's column: the class may be called `id`
FIELDS = ("round", "slot", "pick_rank", "pick_score", "pick_reason")
MANIFEST, PICKS = "round.json", "picks.parquet"
NEWER = ("urn", "extra")  # columns that the picks of earlier versions lack


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
        """True if people have it in their queue."""
        return bool(self.manifest.get("pushed"))

    @property
    def touched(self) -> bool:
        """True if people have worked on it, in their queue or in the App."""
        return self.pushed or bool(self.manifest.get("touched"))

    @property
    def withdrawn(self) -> list[str]:
        """Images that were taken back from the queue before anybody worked on them."""
        return list(self.manifest.get("withdrawn", ()))

    def picks(self) -> list[dict[str, Any]]:
        """Return the picks as rows, in the order in which people should see them."""
        rows: list[dict[str, Any]] = _load(self.folder / PICKS, _schema()).to_pylist()
        if not all(row["id"] for row in rows):
            raise _damaged(self.folder / PICKS)
        return rows

    def predicted(self) -> tuple[list[str], NDArray[np.float32], list[str]]:
        """Return the predictions of every image when the round was chosen: ids, probabilities (n, classes), classes."""
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


def class_column(name: str) -> str:
    """Return the name of a class's column in a round's stored predictions."""
    return CLASS + name


def every(work: Path) -> list[Round]:
    """Return all rounds, the oldest first."""
    folders = [folder for folder in (work / "rounds").glob("[0-9]*") if folder.name.isdigit()]
    return [Round(f, _manifest(f)) for f in sorted(folders, key=lambda f: int(f.name)) if (f / MANIFEST).is_file()]


def latest(work: Path) -> Round | None:
    """Return the newest round, or None."""
    return every(work)[-1] if every(work) else None


def find(work: Path, number: int | None) -> Round:
    """Return the round with this number, or the newest one for None. Raises CurateError if there is none."""
    known = {round_.number: round_ for round_ in every(work)}
    if not known:
        raise CurateError("no round yet. Run: curate select")
    if number is not None and number not in known:
        raise unknown("round", str(number), map(str, known))
    return known[max(known) if number is None else number]


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not all(isinstance(id, str) for id in values.get("withdrawn", ())):
            raise ValueError
        return values | {"round": int(values["round"])}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError):
        raise _damaged(folder / MANIFEST) from None


def _damaged(file: Path) -> CurateError:
    return CurateError(f"{file} is damaged or missing; restore it (curate restore), or remove {file.parent}")


def mark(round_: Round, **values: Any) -> Round:
    """Set values in the round's manifest; returns the new round."""
    manifest = round_.manifest | values
    files.write_json(round_.folder / MANIFEST, manifest)
    return Round(round_.folder, manifest)


def write(
    work: Path,
    manifest: dict[str, Any],
    picks: Sequence[dict[str, Any]],
    predicted: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None,
) -> Round:
    """Write a new round, whole or not at all, in place of one that is not pushed.

    Args:
        work: The project's `work` folder.
        manifest: The round's facts; `round` is its number.
        picks: The chosen images, as rows.
        predicted: The predictions of all images: ids, and a column of probabilities a class.
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


def columns() -> list[str]:
    """Return the names of the picks' columns."""
    return list(_schema().names)


def _schema() -> Any:
    """Return the columns of the picks."""
    import pyarrow as pa

    texts = {name: pa.string() for name in ("id", "path", "slot", "reason", "like", "group", "stratum", "urn")}
    numbers = {"rank": pa.int32(), "tile": pa.int16()}
    reals = {name: pa.float64() for name in ("score", "propensity", "seconds")}
    return pa.schema({**texts, **numbers, **reals, "predicted": pa.list_(pa.string()), "extra": pa.bool_()})


def _load(file: Path, schema: Any = None) -> Any:
    """Return the table in this file; with a schema, only its columns, which must all be there."""
    import pyarrow as pa
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    try:
        table = parquet.read_table(file)
        for name in NEWER if schema else ():
            if name not in table.column_names:
                table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
        return table.select(schema.names).cast(schema) if schema else table
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
    """Make the index's fields and tags equal to the rounds; returns the number of images that changed.

    With `only`, just these images: those that are new in a rebuilt index.
    """
    if only is not None and not only:
        return 0
    wanted = {row["id"]: (round_, row) for round_ in every(index.project.work) for row in round_.picks()}
    shown = _shown(index)
    outdated = {id for id in wanted.keys() | shown.keys() if shown.get(id) != _fields(wanted.get(id))}
    outdated = {id for id in outdated if only is None or id in only}
    if not outdated:
        return 0
    fo = index.fo
    kinds = (fo.IntField, fo.StringField, fo.IntField, fo.FloatField, fo.StringField)
    index.declare(**dict(zip(FIELDS, kinds, strict=True)))
    _tag(index, outdated)  # before the fields, which tell the next run what is left to do
    values = {id: _fields(wanted.get(id)) or (None,) * len(FIELDS) for id in outdated}
    index.set({name: {id: value[place] for id, value in values.items()} for place, name in enumerate(FIELDS)})
    return len(outdated)


def _shown(index: Index) -> dict[str, tuple[Any, ...]]:
    if index.dataset.get_field("round") is None:
        return {}
    shown = {id: tuple(values) for id, *values in index.rows(*FIELDS)}
    return {id: values for id, values in shown.items() if any(value is not None for value in values)}


def _fields(pick: tuple[Round, dict[str, Any]] | None) -> tuple[Any, ...] | None:
    if pick is None:
        return None
    round_, row = pick
    return (round_.number, row["slot"], row["rank"], row["score"], row["reason"])


def _tag(index: Index, outdated: set[str]) -> None:
    """Tag each pick of each round `round 003`, and `audit` if it may fill val and test, even if it was picked again."""
    by_tag: dict[str, set[str]] = {}
    for round_ in every(index.project.work):
        for row in round_.picks():
            tags = [round_.name, *([AUDIT_EXTRA if row["extra"] else AUDIT] if row["slot"] == AUDIT else [])]
            for tag in tags if row["id"] in outdated else ():
                by_tag.setdefault(tag, set()).add(row["id"])
    for tag in {AUDIT, AUDIT_EXTRA, *(tag for tag in index.dataset.distinct("tags") if _is_round_tag(tag))}:
        index.tag(tag, sorted(outdated.difference(by_tag.get(tag, ()))), on=False)
    for tag, ids in sorted(by_tag.items()):
        index.tag(tag, sorted(ids))


def _is_round_tag(tag: str) -> bool:
    return tag.startswith("round ") and tag.removeprefix("round ").isdigit()


def names(index: Index) -> Iterator[str]:
    """Yield the tags of the rounds that the index shows, for its saved views."""
    yield from sorted(tag for tag in index.dataset.distinct("tags") if _is_round_tag(tag))
