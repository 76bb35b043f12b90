"""Save all documents of a MongoDB to files and load them again, as lines on stdin ask for it: "save FILE"."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pymongo
from bson import raw_bson


def save(db: Any, file: Path) -> None:
    found = {}
    for name in sorted(db.list_collection_names(filter={"type": "collection"})):
        codec = db.codec_options.with_options(document_class=raw_bson.RawBSONDocument)
        rows = [bytes(one.raw) for one in db.get_collection(name, codec_options=codec).find()]
        found[name] = (rows, dict(sorted(db[name].index_information().items())))
    file.write_bytes(pickle.dumps(found))


def drop(db: Any, _: Path) -> None:
    for name in db.list_collection_names():
        db.drop_collection(name)


def load(db: Any, file: Path) -> None:
    drop(db, file)
    for name, (rows, indexes) in pickle.loads(file.read_bytes()).items():
        db.create_collection(name)
        for about in indexes.values():
            if about["key"] != [("_id", 1)]:
                kind = {option: about[option] for option in ("unique", "sparse") if option in about}
                db[name].create_index(about["key"], **kind)
        if rows:
            db[name].insert_many([raw_bson.RawBSONDocument(row) for row in rows])


def main() -> None:
    db = pymongo.MongoClient(sys.argv[1])["fiftyone"]
    for line in sys.stdin:
        what, _, file = line.rstrip("\n").partition(" ")
        {"save": save, "load": load, "drop": drop}[what](db, Path(file))
        print("done", flush=True)


if __name__ == "__main__":
    main()
