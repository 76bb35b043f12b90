"""Pickers of the second protocol: nobody starts at random where another starts with coverage."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from curate.errors import CurateError
from curate.select.pool import Pool
from curate.strategies import CATALOGUE
from tests.bench.proof.ask import ask_peer, pickers
from tests.bench.proof.sets import REPOSITORY
from tests.bench.proof.worlds import PEERS as FIRST_PEERS
from tests.bench.proof.worlds import SLOW
from train.simulate.one_run import EXEMPLARS, NotYet, Picker, RunSettings

THEN = "portfolio_then_"
BASELINES = ("random", "foreground_random", "nearest", "probe", "probe_one_a_group")
OURS = ("portfolio", "rare", "window_probe", "anomaly", "class_stratified")
LITERATURE = (
    *("maxherding", "typiclust", "kcenter", "margin", "entropy", "badge", "bald"),
    *("galaxy", "direct", "herding_uncertainty"),
)
SCORES = ("margin", "entropy", "badge", "bald", "class_stratified", "direct", "galaxy", "herding_uncertainty")
PEERS = (*FIRST_PEERS, "submodlib.flqmi", "submodlib.flcg", "anomalib.patchcore")
FALLBACK = {EXEMPLARS: "nearest"}  # of a strategy that cannot choose yet; elsewhere coverage
COVERAGE = "maxherding"


def names(start: str) -> tuple[str, ...]:
    """Return who plays from this start."""
    if start == EXEMPLARS:
        return (*(name for name in BASELINES if name != "probe"), *OURS, *LITERATURE, *PEERS)
    cold = tuple(name for name in BASELINES if name not in ("nearest", "probe_one_a_group"))
    return (*cold, *OURS, *LITERATURE, *(THEN + name for name in SCORES), *PEERS)


def is_rival(name: str) -> bool:
    """Return True for what others have invented: not for baselines, and not for the portfolio and its parts."""
    own = name.removeprefix(THEN)
    return own in LITERATURE or own in PEERS


def draws(name: str, most: int) -> int:
    """Return how many draws a strategy plays; those that take seconds a batch play the first alone."""
    return 1 if name in SLOW else most


def picker_for(setting: RunSettings) -> Picker:
    """Return the strategy of a run: after a first round of the portfolio, and with coverage until it can choose."""
    name = setting.strategy.removeprefix(THEN)
    first = CATALOGUE.call("portfolio") if name != setting.strategy else None
    instead = CATALOGUE.call(FALLBACK.get(setting.start, COVERAGE))
    own = pickers(setting) or _peer_or_strategy(name)
    waits = (NotYet,) if name in PEERS else (CurateError,)

    def pick(pool: Pool, budget: int, rng: np.random.Generator) -> object:
        if first and pool.turn == 1:
            return first(pool, budget, rng)
        try:
            return own(pool, budget, rng)
        except waits as reason:
            pool.note(str(reason))
            return instead(pool, budget, rng)

    return pick  # type: ignore[return-value]


def _peer_or_strategy(name: str) -> Picker:
    if name in PEERS:
        return lambda pool, budget, rng: ask_peer(name, pool, budget, rng)
    picker: Picker = CATALOGUE.call(name)
    return picker


# --- what a result depends on ---------------------------------------------------------------------------------------

ENGINE = ("train.simulate.one_run", "train.simulate.learners", "tests.bench.proof.rivals", "tests.bench.proof.second")


@cache
def code_of(strategy: str) -> str:
    """Return a hash of the code that a strategy's results depend on: its own file, the engine, and all they import."""
    name = strategy.removeprefix(THEN)
    used = {COVERAGE, *FALLBACK.values()} | ({"portfolio"} if strategy.startswith(THEN) else set())
    if name in CATALOGUE.names():
        used.add(name)
    modules = [*ENGINE, *(f"curate.strategies.{part}" for part in sorted(used))]
    if "." in name:
        modules.append(f"tests.bench.proof.peers.{name.partition('.')[0]}")
    digest = hashlib.blake2b(digest_size=8)
    for file in _closure(tuple(modules)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _closure(modules: tuple[str, ...]) -> list[Path]:
    """Return the files of these modules and of all modules of the repository that they import."""
    found: set[Path] = set()
    todo = [file for module in modules if (file := _file(module))]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _imported(file)
    return sorted(found)


@cache
def _imported(file: Path) -> list[Path]:
    return [path for name in _names(file) if (path := _file(name))]


def _names(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    place = REPOSITORY / module.replace(".", "/")
    found = (place.with_suffix(".py"), place / "__init__.py")
    return next(
        (path for path in found if module.split(".")[0] in ("curate", "train", "tests") and path.is_file()), None
    )
