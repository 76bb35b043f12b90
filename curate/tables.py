"""Append-only Lance tables, with one or several rows an image: a folder `<name>-<key>.lance`, or a URL.

`Table(path)` opens, `Table.create(path, columns, metadata)` makes one; the first column is always `id`. Columns are
named with their type: `{"margin": "float32", "probability": "float16[5]"}` (a fixed-size list). `append` takes one
array a column and is all or nothing: a `kill -9` at any moment leaves the table as it was before or after. Metadata
are texts, fixed when the table is created (such as class names as JSON).

    table.ids()                               every id, once, in the order they came
    table.read(ids, ["margin"])               {"margin": array in the order of ids}; the last row of an id counts
    table.chunks(["id", "margin"], 65536)     the whole table as dicts of arrays, streamed
    latest(work / "scores", "head")           the newest table of a name (of any name), or None

`where` is a filter in Lance's SQL, such as `tile = -1`. One process appends at a time (the project's writer lock);
readers need no lock, and see the table as it was when they opened it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.errors import CurateError

SMALL = 64  # fragments, above which an append merges those that are small
FEW = 8  # fragments that a finished table may have
FULL = 1 << 18  # rows of a fragment that is merged no more
KEEP = timedelta(hours=1)  # replaced files stay this long for readers that opened them
Arrays = dict[str, NDArray[Any]]


class NoTable(CurateError):
    """There is no table, or only the rest of one whose creation was killed."""


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what Lance and Arrow raise over damaged files into one line; a panic of Lance is not even an Exception."""
    try:
        yield
    except CurateError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if "was not found: Not found" in reason:
            raise NoTable(f"no table at {path}") from None
        raise CurateError(
            f"table {path} cannot be read ({reason[:160]}). If it is damaged, remove its folder and run the command "
            "that made it again (curate embed, curate predict)"
        ) from None


class Table:
    """An open table. `columns` are its columns with their types, `metadata` its texts."""

    def __init__(self, path: str | Path) -> None:
        import lance

        self.path = str(path)
        with _reading(self.path):
            self._data = lance.dataset(self.path)
            self.columns = {field.name: _type_name(field.type) for field in self._data.schema}
            self.metadata = {key.decode(): text.decode() for key, text in (self._data.schema.metadata or {}).items()}

    @classmethod
    def create(cls, path: str | Path, columns: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> Table:
        """Create a table without rows; its `id` column need not be named."""
        import lance
        import pyarrow as pa

        fields = [(name, _type(kind)) for name, kind in ({"id": "string"} | dict(columns)).items()]
        schema = pa.schema(fields, metadata=dict(metadata or {}))
        with files.explain_full_disk(Path(path)):
            if "://" not in str(path):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            lance.write_dataset(schema.empty_table(), str(path), schema=schema)
        return cls(path)

    @classmethod
    def exists(cls, path: str | Path) -> bool:
        """Return True if there is a table, and not only the rest of one whose creation was killed."""
        with suppress(NoTable):
            return bool(cls(path))
        return False

    @property
    def classes(self) -> list[str]:
        """The class names of a model's table, in the order of its columns' entries; empty where it names none."""
        try:
            names = json.loads(self.metadata.get("classes", "[]"))
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CurateError(f"table {self.path} is damaged: its classes are not a list of names. Remove its folder")
        return names

    def __len__(self) -> int:
        with _reading(self.path):
            return int(self._data.count_rows())

    def __bool__(self) -> bool:
        return True

    # --- writing ---

    def append(self, columns: Mapping[str, Any]) -> None:
        """Append rows, given as one array a column, all of the same length; all rows or none."""
        import lance
        import pyarrow as pa

        schema = self._data.schema
        if set(columns) != set(schema.names):
            raise ValueError(f"columns {sorted(columns)} given, {sorted(schema.names)} wanted")
        rows = pa.table([_arrow(columns[field.name], field.type) for field in schema], schema=schema)
        if rows.num_rows:
            with files.explain_full_disk(Path(self.path)):
                self._data = lance.write_dataset(rows, self._data, mode="append", max_rows_per_file=FULL)
                self._tidy()
            self.touch()

    def _tidy(self) -> None:
        """Merge small fragments now and then: many small appends would make every read slow."""
        if len(self._data.get_fragments()) % SMALL == 0:
            self.compact()

    def compact(self) -> None:
        """Merge small fragments; the rows stay in their order."""
        self._data.optimize.compact_files(target_rows_per_fragment=FULL)
        self._data.cleanup_old_versions(older_than=KEEP)

    def finish(self, newest: bool = True) -> None:
        """Merge fragments after the last append and, with `newest`, make this the newest table of its folder."""
        if len(self._data.get_fragments()) > FEW:
            self.compact()
        if newest and "://" not in self.path and listed(Path(self.path).parent)[:1] != [Path(self.path)]:
            self.touch()

    def touch(self) -> None:
        """Make this the newest table of its folder: a folder's own time does not change with the files deep in it."""
        if "://" not in self.path:
            others = [path.stat().st_mtime_ns for path in listed(Path(self.path).parent)]
            now = max(time.time_ns(), *others) + 1  # the file system's own clock ticks too slowly to tell two apart
            os.utime(self.path, ns=(now, now))

    # --- reading ---

    def ids(self, where: str | None = None) -> NDArray[Any]:
        with _reading(self.path):
            ids = self._data.to_table(columns=["id"], filter=where)["id"]
            return np.asarray(ids.unique().to_numpy(zero_copy_only=False), dtype=object)

    def read(self, ids: Sequence[str], columns: Sequence[str], where: str | None = None) -> Arrays:
        """Return these columns in the order of `ids`. Raises CurateError where the table does not have them all."""
        with _reading(self.path):
            return self._read(ids, columns, where)

    def _read(self, ids: Sequence[str], columns: Sequence[str], where: str | None) -> Arrays:
        import pyarrow as pa

        wanted = pa.array(ids, pa.string()).dictionary_encode()
        slots, offsets = self._slots(wanted.dictionary, where)
        rows = np.full(len(wanted.dictionary), -1)
        rows[slots[slots >= 0]] = offsets[slots >= 0]
        if missing := int((rows < 0).sum()):
            raise CurateError(f"{missing} of {len(rows)} images are not in {self.path}")
        order = wanted.indices.to_numpy()
        if len(rows) < len(slots) / 4:
            taken = self._data.take(rows, columns=list(columns))
            return {name: numpy_of(taken[name])[order] for name in columns}
        unique = self._gather(slots, len(rows), columns, where)
        plain = np.array_equal(order, np.arange(len(rows)))
        return unique if plain else {name: values[order] for name, values in unique.items()}

    def _slots(self, wanted: Any, where: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for every row its place among the wanted ids (-1: none), and its number in the table."""
        import pyarrow.compute

        compute: Any = pyarrow.compute  # its functions are created at import; a type checker sees none
        known = self._data.to_table(columns=["id", "_rowoffset"], filter=where)
        slots = compute.fill_null(compute.index_in(known["id"], value_set=wanted), -1)
        return np.asarray(slots, np.int64), np.asarray(known["_rowoffset"], np.int64)

    def _gather(self, slots: NDArray[np.int64], size: int, columns: Sequence[str], where: str | None) -> Arrays:
        gathered: Arrays = {}
        begin = 0
        for chunk in self.chunks(columns, where=where):
            for name, values in chunk.items():
                if name not in gathered:
                    gathered[name] = np.empty((size, *values.shape[1:]), values.dtype)
                here = slots[begin : begin + len(values)]
                gathered[name][here[here >= 0]] = values[here >= 0]
            begin += len(values)
        return gathered or {name: np.empty(0) for name in columns}

    def chunks(self, columns: Sequence[str], rows: int = 65536, where: str | None = None) -> Iterator[Arrays]:
        """Yield the table as arrays of at most `rows` rows, in the order in which they were appended."""
        for batch in self.batches(columns, rows, where):
            if batch.num_rows:
                with _reading(self.path):
                    arrays = {name: numpy_of(batch[name]) for name in columns}
                yield arrays

    def batches(self, columns: Sequence[str], rows: int = 65536, where: str | None = None) -> Iterator[Any]:
        """Yield the table as pyarrow's record batches."""
        with _reading(self.path):
            batches = iter(self._data.to_batches(columns=list(columns), batch_size=rows, filter=where))
        while True:
            with _reading(self.path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


# --- the tables of a folder -----------------------------------------------------------------------------------------


def name_of(path: str | Path) -> str:
    """Return `head` for `work/scores/head-1f0c.lance`."""
    stem = Path(path).stem
    return stem.rpartition("-")[0] or stem


def listed(folder: Path) -> list[Path]:
    """Return all tables of a folder, the newest first."""
    return sorted(folder.glob("*.lance"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def latest(folder: Path, name: str | None = None) -> Table | None:
    """Return the table that was written last, of this name if one is given; a damaged one raises CurateError."""
    for path in listed(folder):
        if name in (None, name_of(path)) and Table.exists(path) and len(table := Table(path)):
            return table
    return None


def size(path: Path) -> int:
    """Return the number of rows; 0 also where there is no table, or a damaged one."""
    try:
        return len(Table(path))
    except CurateError:
        return 0


# --- types ----------------------------------------------------------------------------------------------------------


def _type(kind: str) -> Any:
    import pyarrow as pa

    match = re.fullmatch(r"(\w+)\[(\d+)\]", kind)
    if match:
        return pa.list_(_type(match[1]), int(match[2]))
    return pa.type_for_alias(kind)


def _type_name(kind: Any) -> str:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        return f"{_type_name(kind.value_type)}[{kind.list_size}]"
    return "float16" if pa.types.is_float16(kind) else str(kind)


def _arrow(values: Any, kind: Any) -> Any:
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(kind):
        plain = values if pa.types.is_string(kind) else np.asarray(values, kind.to_pandas_dtype())
        return pa.array(plain, kind)
    flat = np.ascontiguousarray(values, kind.value_type.to_pandas_dtype())
    if flat.ndim != 2 or flat.shape[1] != kind.list_size:
        raise ValueError(f"array of shape {flat.shape} given, (rows, {kind.list_size}) wanted")
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), kind.list_size)


def numpy_of(column: Any) -> NDArray[Any]:
    """Return an arrow column as an array; fixed-size lists become its second axis."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(-1, column.type.list_size)
    return np.asarray(column.to_numpy(zero_copy_only=False))
