"""Pickers for peers (in their own processes, with a time limit), baselines and strategies."""

from __future__ import annotations

import atexit
import hashlib
import os
import select
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from curate.select import linear_probe
from curate.select.pool import Floats, Picks, Pool, Rows
from curate.strategies import CATALOGUE
from tests.bench.proof import sets
from tests.bench.proof.worlds import PEERS
from train.simulate.one_run import NotYet, Picker, RunSettings

PATIENCE = 60.0  # seconds that a peer has for one batch
IMPORTS = 240.0  # more seconds for the first batch of a peer, which imports its library
AHEAD = 3  # times the missing picks, where groups are: what the shared layer puts back must not cost another batch
MEMBERS = 5
HERE = {"fiftyone"}  # peers that the product depends on
NEED_LABELS = {"skactiveml.badge", "modal", "baal", "cleanlab"}
NEED_EXEMPLARS = {"submodlib.flqmi"}
NEED_WINDOWS = {"anomalib.patchcore"}
_GIVEN_UP: dict[tuple[str, int], str] = {}  # a peer that failed with so many images is not asked again


def pickers(setting: RunSettings) -> Picker | None:
    """Return the picker of a peer or baseline; None for our strategies. `NotYet` lets `nearest` or random choose."""
    name = setting.strategy
    if name in PEERS:
        return lambda pool, budget, rng: ask_peer(name, pool, budget, rng)
    if name.startswith("probe"):
        return rare_probe if setting.start == "exemplars" else _every_class
    return None


def _every_class(pool: Pool, budget: int, rng: np.random.Generator) -> Picks:
    if not linear_probe.has_classes(pool):
        raise NotYet("no class can be told apart yet")
    picks: Picks = CATALOGUE.call("probe")(pool, budget, rng)
    return picks


# --- the strongest simple baseline ----------------------------------------------------------------------------------


def rare_probe(pool: Pool, budget: int, rng: np.random.Generator) -> Rows:
    """Pick the top of a class-balanced logistic regression on the vectors, wanted classes against the rest."""
    value = pool.once("rare probe", lambda: _ranked(pool))
    rows = pool.open
    return np.asarray(rows[np.lexsort((rows, -value[rows]))][:budget], np.int64)


def _ranked(pool: Pool) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression

    wanted = np.any([pool.shows(name) for name in pool.wanted or pool.classes], axis=0)
    others = pool.trainable & ~wanted
    if others.sum() < linear_probe.FEWEST:  # before anything was refused, all that is unlabelled stands for the rest
        others = ~pool.labelled
    rows = np.flatnonzero(wanted | others)
    model = LogisticRegression(C=PROBE_STRENGTH, class_weight="balanced", max_iter=1000)
    model.fit(pool.vectors[rows], wanted[rows])
    return np.asarray(pool.vectors @ model.coef_[0], np.float64)


PROBE_STRENGTH = 10.0


# --- peers ----------------------------------------------------------------------------------------------------------


def ask_peer(name: str, pool: Pool, budget: int, rng: np.random.Generator) -> Rows:
    """Return the peer's next open rows; a new batch is requested when the last one is used up."""
    if {name, name.partition(".")[0]} & NEED_LABELS and not (pool.scores or linear_probe.has_classes(pool)):
        raise NotYet("no class can be told apart yet")
    if name in NEED_EXEMPLARS and not len(pool.exemplars):
        raise NotYet("there is no exemplar yet")
    order: list[int] = pool.once(f"order of {name}", list)
    left = [row for row in order if pool.candidates[row]]
    if not left:
        ahead = AHEAD if len(np.unique(pool.groups[pool.open])) < len(pool.open) else 1
        order[:] = left = _asked(name, pool, ahead * budget, int(rng.integers(2**31))).tolist()
    return np.array(left, np.int64)


def _asked(name: str, pool: Pool, count: int, seed: int) -> Rows:
    folder = _folder()
    labelled = np.flatnonzero(pool.trainable)
    known = bool(pool.scores) or linear_probe.has_classes(pool)
    likely = _outcomes(_likely(pool)) if known else np.zeros((0, 1 + len(pool.classes)), np.float32)
    members = (
        np.stack([_outcomes(probabilities) for probabilities in _committee(pool, seed)])
        if name.startswith("baal")
        else likely[None]
    )
    fields = {
        "world": np.array(str(_kept(pool))), "open": pool.open, "labelled": labelled,
        "present": pool.present[labelled], "outcome": likely, "members": members, "count": count, "seed": seed,
        "groups": pool.groups,
    }  # fmt: skip
    if name in NEED_EXEMPLARS:
        fields["near"] = _near(pool)
    if name in NEED_WINDOWS:
        fields["windows"] = np.array(str(_kept_windows(pool)))
    np.savez(folder / "ask.npz", **fields)  # type: ignore[arg-type]
    return _answered(name, folder / "ask.npz", len(pool))


def _likely(pool: Pool) -> Floats:
    likely = pool.scores["probability"] if "probability" in pool.scores else linear_probe.probabilities(pool)
    return np.nan_to_num(np.asarray(likely, np.float32), nan=0.0)


def _committee(pool: Pool, seed: int) -> Floats:
    return np.nan_to_num(linear_probe.ensemble(pool, MEMBERS, np.random.default_rng(seed)), nan=0.0)


def _outcomes(likely: Floats) -> Floats:
    """Convert to exclusive outcomes, which peers need: clean, or one class, in proportion."""
    total = likely.sum(axis=1, keepdims=True)
    alone = bool((total <= 1 + 1e-3).all())  # a softmax whose rest is clean; else classes may meet on an image
    clean = np.maximum(1 - total, 0) if alone else np.prod(1 - likely, axis=1, keepdims=True)
    shares = likely / np.maximum(total, 1e-9)
    outcomes = np.hstack([clean, (1 - clean) * shares])
    return np.asarray(outcomes / np.maximum(outcomes.sum(axis=1, keepdims=True), 1e-9), np.float32)


def _kept(pool: Pool) -> Path:
    """Write the pool's vectors to a file, once for all peers."""
    key = pool.once("vectors' key", lambda: hashlib.sha256(pool.vectors.tobytes()).hexdigest()[:16])
    file = _folder() / f"{key}.npy"
    if not file.is_file():
        for old in _folder().glob("*.npy"):
            old.unlink()
        np.save(file, pool.vectors)
    return file


def _near(pool: Pool) -> Floats:
    """(n, exemplars): the similarity of each image's best window to each exemplar."""
    near = np.full((len(pool), len(pool.exemplars)), -1, np.float32)
    for part in pool.all_windows():
        np.maximum.at(near, part.rows, np.asarray(part.vectors, np.float32) @ pool.exemplars.vectors.T)
    return near


def _kept_windows(pool: Pool) -> Path:
    """Write the pool's windows to a file; the last one is removed."""
    file = _folder() / f"windows-{_kept(pool).stem}.npz"
    if not file.is_file():
        for old in _folder().glob("windows-*.npz"):
            old.unlink()
        parts = list(pool.all_windows())
        vectors = np.concatenate([part.vectors for part in parts]).astype(np.float16)
        np.savez(file, rows=np.concatenate([part.rows for part in parts]), vectors=vectors)
    return file


@lru_cache(maxsize=1)
def _folder() -> Path:
    kept = tempfile.TemporaryDirectory(prefix="proof-")
    atexit.register(kept.cleanup)
    return Path(kept.name)


# --- their processes ------------------------------------------------------------------------------------------------

_RUNNING: dict[str, subprocess.Popen[bytes]] = {}
_IMPORTED: set[str] = set()  # peers that have answered: their library is loaded


def python_of(name: str) -> Path:
    return sets.REPOSITORY / (".venv" if name.partition(".")[0] in HERE else ".venv-peers") / "bin" / "python"


def _answered(name: str, file: Path, size: int) -> Rows:
    if (name, size) in _GIVEN_UP:
        raise CurateError(_GIVEN_UP[name, size])
    process = _process(python_of(name))
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{name} {file}\n".encode())
    process.stdin.flush()
    patience = PATIENCE + (0 if name in _IMPORTED else IMPORTS)
    if not select.select([process.stdout], [], [], patience)[0]:
        _stop(python_of(name))
        word, rest = "no", f"out of time ({patience:g} s a batch of {size:,} images)"
    else:
        word, _, rest = _line(process.stdout).partition(" ")
    _IMPORTED.add(name)
    if word != "ok":
        _GIVEN_UP[name, size] = f"{name}: {rest or 'its process died'}"
        raise CurateError(_GIVEN_UP[name, size])
    with np.load(rest, allow_pickle=False) as answer:
        return np.asarray(answer["rows"], np.int64)


def _line(stream: IO[bytes]) -> str:
    return stream.readline().decode().strip()


def _process(python: Path) -> subprocess.Popen[bytes]:
    known = _RUNNING.get(str(python))
    if known and known.poll() is None:
        return known
    if not python.is_file():
        raise CurateError(f"{python} is not there: make proof installs it")
    environment = os.environ | {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    command = [str(python), "-m", "tests.bench.proof.peers.serve"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=sets.REPOSITORY, env=environment, bufsize=0, **streams)  # type: ignore[call-overload]
    _RUNNING[str(python)] = process
    atexit.register(_stop, python)
    return process


def _stop(python: Path) -> None:
    process = _RUNNING.pop(str(python), None)
    if process:
        process.kill()
        process.wait()
