"""What a project holds, as a flat mapping from a place to a text, without times, pids and database ids.

Labels come from the log's entries, the index from MongoDB's own documents, tables row by row, JSON leaf by leaf; of
every other file its checksum. Two dumps of the same work are equal, whatever was killed on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TIMES = {"at", "made", "made_at", "took", "created_at", "last_modified_at", "labelled_at", "last_loaded_at", "since"}
TIMES |= {"seconds", "seconds_taken", "entered_at", "began", "modified"}
IDS = {"_id", "_dataset_id", "_uuid", "change"}
LEFT = re.compile(r"^\..*\.(part|training|making|fitting|drawing|old)$|\.tmp$")
PASSED = {".lock", ".start", ".clients", "server.json", "mongod.log", "credentials.json", ".DS_Store"}
SAFE_COPY = re.compile(r"\.before-\d+$|-before-(\d+|N)$")  # a restore keeps what it found, also its own half work
OBJECT_ID = re.compile(r"\b[0-9a-f]{24}\b")
Flat = dict[str, str]


def dump(home: Path) -> Flat:
    """All projects below `home` with their datasets, and what else lies there (images, exports, archives)."""
    return _index() | files(home)


def differences(have: Flat, *wanted: Flat) -> list[str]:
    """The places where `have` is like none of `wanted`."""
    places = sorted(have.keys() | set().union(*wanted))
    return [one for one in places if all(have.get(one) != other.get(one) for other in wanted)]


# --- files ----------------------------------------------------------------------------------------------------------


def files(home: Path) -> Flat:
    found: Flat = {}
    for folder, folders, names in os.walk(home):
        here = Path(folder)
        place = here.relative_to(home)
        for name in sorted(folders):
            if LEFT.search(name) and not _swept(place, name):
                found[f"left over: {place / re.sub(r'[0-9]{2,}', 'N', name)}"] = "folder"
        tables = [name for name in folders if name.endswith(".lance")]
        for name in tables:
            found |= _table(here / name, f"{place / name}")
        kept = [n for n in folders if n not in tables and n not in ("db", "labels", "splits") and not LEFT.search(n)]
        for name in set(folders) & {"labels", "splits"}:
            if here.name == "work":
                found |= _log(here / name, str(place / name))
            else:
                kept.append(name)
        folders[:] = sorted(name for name in kept if not SAFE_COPY.search(name))
        for name in sorted(name for name in names if not SAFE_COPY.search(name)):
            if LEFT.search(name) and not _swept(place, name):
                found[f"left over: {place / re.sub(r'[0-9]{2,}', 'N', name)}"] = "file"
            elif name not in PASSED and not LEFT.search(name):
                found |= _file(here / name, str(place / name))
    return found


def _swept(place: Path, name: str) -> bool:
    """Parts in a project's `work/` are what `curate gc` takes away."""
    return "work" in place.parts and name.endswith(".part")


def _file(path: Path, place: str) -> Flat:
    if path.is_symlink():
        return {place: f"link to {os.readlink(path)}"}
    try:
        if path.suffix == ".json":
            return dict(_leaves(json.loads(path.read_text(encoding="utf-8")), place))
        if path.suffix == ".parquet":
            return _parquet(path, place)
        if path.suffix == ".sqlite":
            return _ledger(path, place)
        if path.suffix == ".gz":
            return {place: "archive"}
    except (ValueError, OSError) as error:
        return {place: f"damaged: {type(error).__name__}"}
    return {place: hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()}


def _leaves(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            if name not in TIMES:
                yield from _leaves(inner, f"{place}#{name}")
    elif isinstance(value, list) and value and len(value) < 50:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}#{number}")
    elif value is not None:  # null says as much as a name that is not there
        yield place, json.dumps(value, sort_keys=True)


def _parquet(path: Path, place: str) -> Flat:
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    rows = [json.dumps(row, sort_keys=True, default=str) for row in parquet.read_table(path).to_pylist()]
    return {place: _digest(rows)}


def _ledger(path: Path, place: str) -> Flat:
    """Rows without the number of the run that saw them."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        names = [row[1] for row in db.execute("pragma table_info(files)")]
        if not names:
            return _study(db, place)
        kept = ", ".join(name for name in names if name not in ("run", "place"))
        newest = "(select coalesce(max(run), 0) from files)"
        rows = sorted(map(str, db.execute(f"select {kept}, run = {newest} from files")))
    return {place: _digest(rows)}


def _study(db: sqlite3.Connection, place: str) -> Flat:
    """What Optuna's finished trials tried and reached; one that a kill ended is tried again as another trial."""
    rows = db.execute(
        "select t.state, v.value, p.param_name, p.param_value from trials t join trial_params p using (trial_id)"
        " left join trial_values v using (trial_id) where t.state in ('COMPLETE', 'PRUNED')"
    )
    return {place: _digest(sorted(map(str, rows)))}


def _table(path: Path, place: str) -> Flat:
    """The rows, each once: what was appended twice counts by its last row, as it does for readers."""
    from curate import tables

    if not tables.Table.exists(path):
        return {f"left over: {place}": "no table"}
    table = tables.Table(path)
    names = list(table.columns)
    counted = Counter(
        _digest([str(np.asarray(chunk[name][row]).tolist()) for name in names])
        for chunk in table.chunks(names)
        for row in range(len(chunk["id"]))
    )
    doubled = sum(count - 1 for count in counted.values())
    return {place: _digest(sorted(counted)), f"{place} doubled rows": str(doubled)}


def _log(folder: Path, place: str) -> Flat:
    """What was said of each image (or group, or class), in order; how it lies in segments does not matter."""
    said: dict[str, list[str]] = {}
    for file in sorted(folder.glob("[0-9]*.jsonl")):
        for raw in file.read_bytes().splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                continue
            line = _plain(json.loads(raw))
            about = line.get("id") or line.get("group") or line.get("event") or "?"
            said.setdefault(str(about), []).append(json.dumps(line, sort_keys=True))
    return {f"{place}: {about} ({number})": text for about, lines in said.items() for number, text in enumerate(lines)}


# --- the index ------------------------------------------------------------------------------------------------------


def _index() -> Flat:
    """Datasets of this server with their samples, views and indexes, as MongoDB holds them."""
    import fiftyone as fo

    db = fo.core.odm.get_db_conn()
    found: Flat = {}
    views = {one["_id"]: one for one in db.views.find()}
    for dataset in db.datasets.find():
        name = re.sub(r"[0-9]{10,}", "N", dataset["name"])
        if SAFE_COPY.search(name):
            for reference in dataset.get("saved_views", ()):
                views.pop(getattr(reference, "id", reference), None)
            continue
        found[f"dataset {name}"] = "there"
        fields = [field["name"] for field in dataset.get("sample_fields", ())]
        found |= {f"dataset {name} field {field}": str(fields.count(field)) for field in fields}
        for reference in dataset.get("saved_views", ()):
            view = views.pop(getattr(reference, "id", reference), None)
            shown = json.dumps(_plain(view), sort_keys=True, default=str) if view else "dangling"
            shown = OBJECT_ID.sub("ID", shown)
            found[f"dataset {name} view {view['name'] if view else reference}"] = shown
        samples = db[dataset["sample_collection_name"]]
        found[f"dataset {name} indexes"] = str(sorted(one for one in samples.index_information()))
        for sample in samples.find():
            about = sample.get("content_id") or str(sample["filepath"])
            for field, value in sample.items():
                if field not in TIMES | IDS and value is not None:
                    place = f"dataset {name} sample {about}#{field}"
                    found[place] = json.dumps(_plain(value), sort_keys=True, default=str)
    found |= {f"left over: view {one['name']}": "in no dataset" for one in views.values()}
    known = {dataset["sample_collection_name"] for dataset in db.datasets.find()}
    for name in db.list_collection_names():
        if name.startswith("samples.") and name not in known and not name.startswith(tuple(f"{k}." for k in known)):
            found[f"left over: collection {name.split('.')[0]}"] = "in no dataset"
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if name not in TIMES | IDS}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return _digest([value.hex()])
    if isinstance(value, str) and value.startswith("{"):
        try:
            return _plain(json.loads(value))
        except ValueError:
            return value
    return value


def _digest(texts: list[str]) -> str:
    return f"{len(texts)} {hashlib.blake2b(chr(10).join(texts).encode(), digest_size=8).hexdigest()}"
