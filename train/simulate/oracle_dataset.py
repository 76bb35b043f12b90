"""A labelled data set as plain arrays, whose labels a simulation hides; its folds, its long tails, its way to disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.errors import CurateError, unknown
from curate.labels import splits
from curate.select.pool import Floats, Mask, Rows, Windows

TAILS = ("one", "all")
ARRAYS = ("vectors", "present", "groups", "strata", "test", "spare", "weight", "regions", "marks")
TILES = ("rows", "tiles", "vectors")
ABOUT = "world.json"


def _empty() -> Any:
    return np.zeros(0)


@dataclass(frozen=True)
class OracleDataset:
    """All rows are labelled; who plays decides what is known of that. What is left empty is filled in.

    Args:
        name: what the page calls it.
        ids: sorted, unique.
        vectors: (n, d), unit length, of whole images.
        classes: the columns of `present` (n, C); a row of False is a clean image.
        groups: (n,) the physical piece. strata: (n,) where it comes from.
        test: (n,) never offered and never learnt from; what learners are judged by. All False: judged by recall alone.
        spare: (n,) neither in the pool nor in test: what subsampling removed. Exemplars are drawn from here first.
        weight: (n,) of a test row, where the test holds more of a class than the pool's prior would bring.
        regions: (n,) defects on the image, for simulated minutes; left out: one a class.
        windows: tiles of the images (not the whole images, which are `vectors`); rows are of this world.
        marks: (m, 3) of row, class number and place in `windows`: the tile that holds most of that defect there.
        scores: of a model from elsewhere, as `Pool.scores`; the learner's own take their place from the first fit on.
    """

    name: str
    ids: tuple[str, ...]
    vectors: Floats
    classes: tuple[str, ...]
    present: Mask
    groups: Rows
    strata: Rows = field(default_factory=_empty)
    test: Mask = field(default_factory=_empty)
    spare: Mask = field(default_factory=_empty)
    weight: Floats = field(default_factory=_empty)
    regions: Rows = field(default_factory=_empty)
    windows: Windows | None = None
    marks: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    scores: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shown = self.present.sum(axis=1).astype(np.int64)
        filled = {"strata": np.zeros(len(self), np.int64), "test": np.zeros(len(self), bool), "regions": shown}
        filled |= {"spare": np.zeros(len(self), bool), "weight": np.ones(len(self), np.float32)}
        for name, values in filled.items():
            if not len(getattr(self, name)):
                object.__setattr__(self, name, values)
        if list(self.ids) != sorted(set(self.ids)):
            raise ValueError(f"the ids of world {self.name} are not sorted and unique")
        if wrong := [name for name in ARRAYS[:-1] if len(getattr(self, name)) != len(self)]:
            raise ValueError(f"{', '.join(wrong)} of world {self.name} have not {len(self)} rows")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pooled(self) -> Mask:
        """The rows that labels may be asked for."""
        return np.asarray(~self.test & ~self.spare)

    @property
    def single(self) -> bool:
        """Whether no image shows two classes."""
        return bool((self.present.sum(axis=1) <= 1).all())

    def number(self, name: str) -> int:
        if name not in self.classes:
            raise unknown("class", name, self.classes)
        return self.classes.index(name)


def folded(world: OracleDataset, folds: int, fold: int) -> OracleDataset:
    """With one of `folds` grouped folds as its test: groups are dealt out class by class, the rarest first."""
    if not 0 <= fold < folds:
        raise CurateError(f"fold {fold} of {folds} does not exist; allowed: 0 to {folds - 1}")
    dealt = splits.folds(_gathered(world), folds, 1, 0)
    mine = np.array([dealt[str(group)][0] == fold for group in world.groups.tolist()], bool)
    return replace(world, test=mine & ~world.spare)


def _gathered(world: OracleDataset) -> list[splits.Group]:
    names, rows = np.unique(world.groups, return_inverse=True)
    counts = np.zeros((len(names), len(world.classes)), np.int64)
    np.add.at(counts, rows, world.present)
    sizes = np.bincount(rows)
    shown = [{world.classes[place]: int(one[place]) for place in np.flatnonzero(one)} for one in counts]
    return [splits.Group(str(name), int(size), one) for name, size, one in zip(names, sizes, shown, strict=True)]


# --- long tails -----------------------------------------------------------------------------------------------------


def imbalanced(world: OracleDataset, ratio: float, rare: str | None, seed: int = 0, tail: str = "one") -> OracleDataset:
    """With a long tail: whole groups of `rare` (tail `one`), or of all classes exponentially with `rare` last (`all`),
    become spare, until the largest class outnumbers the rarest by `ratio`. Test rows stay, weighted to that prior.
    """
    if tail not in TAILS:
        raise unknown("tail", tail, TAILS)
    if ratio < 1 or rare is None:
        raise CurateError(f"imbalance {ratio:g} needs a class to be the rare one, and 1 or more; for example 30")
    rng, spare = np.random.default_rng([seed, 1]), world.spare.copy()
    most = int(world.present[world.pooled].sum(axis=0).max())
    for name, images in _targets(world, most, ratio, rare, tail).items():
        spare |= _removed(world, world.present[:, world.number(name)] & ~world.test & ~spare, images, rng)
    before, after = (world.present[~world.test & ~gone].sum(axis=0) for gone in (world.spare, spare))
    kept = np.where(world.present, np.divide(after, np.maximum(before, 1)), 1).min(axis=1, initial=1)
    weight = np.where(world.test, world.weight * kept, world.weight).astype(np.float32)
    return replace(world, spare=spare, weight=weight)


def _targets(world: OracleDataset, most: int, ratio: float, rare: str, tail: str) -> dict[str, float]:
    """How many images of each class may stay."""
    at = world.number(rare)
    if tail == "one":
        return {rare: most / ratio}
    order = [*world.classes[at + 1 :], *world.classes[: at + 1]]
    return {name: most * ratio ** (-place / max(1, len(order) - 1)) for place, name in enumerate(order)}


def _removed(world: OracleDataset, rows: Mask, images: float, rng: np.random.Generator) -> Mask:
    """The groups (of these rows) that must go, so that about so many images stay; one group always does."""
    names, sizes = np.unique(world.groups[rows], return_counts=True)
    order = rng.permutation(len(names))
    gone = np.cumsum(sizes[order]) > max(images, 1)
    gone[:1] = False
    return np.asarray(np.isin(world.groups, names[order[gone]]) & ~world.test)


# --- to disk and back -----------------------------------------------------------------------------------------------


def fingerprint(world: OracleDataset) -> str:
    """Changes with anything in it."""
    digest = hashlib.blake2b(json.dumps(_about(world), sort_keys=True).encode(), digest_size=12)
    for name, values in sorted(_arrays(world).items()):
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def save(world: OracleDataset, folder: Path) -> None:
    """Plain arrays in a new folder, whole or not at all."""
    with files.written_aside(folder) as aside:
        aside.mkdir()
        for name, values in _arrays(world).items():
            np.save(aside / f"{name}.npy", values, allow_pickle=False)
        files.write_json(aside / ABOUT, _about(world) | {"ids": world.ids})


def load(folder: Path) -> OracleDataset:
    """The arrays stay on disk until they are looked at: several processes share one copy."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    read = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    windows = Windows(*(read[f"tile-{name}"] for name in TILES)) if f"tile-{TILES[0]}" in read else None
    scores = {name: read[f"score-{name}"] for name in about["scores"]}
    arrays = {name: read[name] for name in ARRAYS}
    return OracleDataset(
        name=about["name"],
        ids=tuple(about["ids"]),
        classes=tuple(about["classes"]),
        windows=windows,
        scores=scores,
        **arrays,
    )


def _about(world: OracleDataset) -> dict[str, Any]:
    ids = hashlib.blake2b("\0".join(world.ids).encode(), digest_size=12).hexdigest()
    return {"name": world.name, "classes": world.classes, "scores": sorted(world.scores), "digest": ids}


def _arrays(world: OracleDataset) -> dict[str, NDArray[Any]]:
    found = {name: getattr(world, name) for name in ARRAYS}
    found |= {f"score-{name}": values for name, values in world.scores.items()}
    if world.windows is not None:
        found |= {f"tile-{name}": values for name, values in zip(TILES, world.windows, strict=True)}
    return found
