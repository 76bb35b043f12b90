"""A process that answers for the peers: `python -m tests.bench.proof.peers.serve`, in `.venv-peers` or here.

A request is a line on stdin: `PEER.METHOD ASK.npz`. The answer is a line on stdout: `ok FOLDER/answer.npz`, or `no`
and the reason. Vectors, which are the same for a whole data set, are in files of their own beside the request.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask


@lru_cache(maxsize=2)
def _vectors(path: str) -> NDArray[np.float32]:
    return np.load(path, allow_pickle=False)


def answer(name: str, path: Path) -> NDArray[np.int64]:
    peer, _, method = name.partition(".")
    with np.load(path, allow_pickle=False) as found:
        fields = {field: found[field] for field in Ask._fields if field in found}
        vectors = _vectors(str(found["world"]))
    plain = {"count": int(fields["count"]), "seed": int(fields["seed"]), "windows": str(fields.get("windows", ""))}
    ask = Ask(**fields | plain | {"vectors": vectors})
    adapter = importlib.import_module(f"tests.bench.proof.peers.{peer}")
    return np.asarray(adapter.choose(ask, method), np.int64)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # peers print as they like: only answers may reach stdout
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        name, _, path = line.strip().partition(" ")
        try:
            target = Path(path).with_name("answer.npz")
            np.savez(target, rows=answer(name, Path(path)))
            print("ok", target, file=out, flush=True)
        except Exception as problem:  # whatever a peer raises is its result
            print("no", f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}", file=out, flush=True)


if __name__ == "__main__":
    main()
