"""A labelled data set as arrays, whose labels a simulation hides: folds, long tails, loading and saving."""

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
    """A data set with a label for every row; a run hides the labels. Optional arrays that are left empty get defaults.

    Args:
        name: its name on the report.
        ids: sorted, unique.
        vectors: (n, d), unit length, of whole images.
        classes: the columns of `present` (n, C); a row of False is a clean image.
        groups: (n,) the physical piece. strata: (n,) its origin.
        test: (n,) evaluates the learners; never in the pool, never trained on. All False: recall is the only metric.
        spare: (n,) neither in the pool nor in test: removed by subsampling. Exemplars are drawn from these rows first.
        weight: (n,) of test rows, where the test has more of a class than the pool's prior.
        regions: (n,) number of defects on the image, for simulated minutes; default: one for each class.
        windows: tiles of the images (whole images are in `vectors`); `rows` are rows of this data set.
        marks: (m, 3) of row, class number and index in `windows` of the tile that contains most of that defect.
        scores: of an external model, as `Pool.scores`; the learner's own replace them from its first fit on.
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
            raise ValueError(f"the ids of oracle dataset {self.name} are not sorted and unique")
        if wrong := [name for name in ARRAYS[:-1] if len(getattr(self, name)) != len(self)]:
            raise ValueError(f"{', '.join(wrong)} of oracle dataset {self.name} do not have {len(self)} rows")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pooled(self) -> Mask:
        """Rows whose labels can be bought."""
        return np.asarray(~self.test & ~self.spare)

    @property
    def single(self) -> bool:
        """True where no image shows two classes."""
        return bool((self.present.sum(axis=1) <= 1).all())

    def number(self, name: str) -> int:
        if name not in self.classes:
            raise unknown("class", name, self.classes)
        return self.classes.index(name)


def with_test_fold(oracle: OracleDataset, folds: int, fold: int) -> OracleDataset:
    """Return the dataset with one of `folds` grouped folds as its test; groups are dealt by class, the rarest first."""
    if not 0 <= fold < folds:
        raise CurateError(f"fold {fold} of {folds} does not exist; allowed: 0 to {folds - 1}")
    dealt = splits.folds(_groups(oracle), folds, 1, 0)
    in_fold = np.array([dealt[str(group)][0] == fold for group in oracle.groups.tolist()], bool)
    return replace(oracle, test=in_fold & ~oracle.spare)


def _groups(oracle: OracleDataset) -> list[splits.Group]:
    names, rows = np.unique(oracle.groups, return_inverse=True)
    counts = np.zeros((len(names), len(oracle.classes)), np.int64)
    np.add.at(counts, rows, oracle.present)
    sizes = np.bincount(rows)
    shown = [{oracle.classes[place]: int(row[place]) for place in np.flatnonzero(row)} for row in counts]
    return [
        splits.Group(str(name), int(size), classes) for name, size, classes in zip(names, sizes, shown, strict=True)
    ]


# --- long tails -----------------------------------------------------------------------------------------------------


def with_long_tail(
    oracle: OracleDataset, ratio: float, rare: str | None, seed: int = 0, tail: str = "one"
) -> OracleDataset:
    """Return the dataset with a long tail: whole groups become spare until the largest class has `ratio` times the
    images of the rarest. Test rows stay, weighted to the new prior.

    Args:
        oracle: the data set.
        ratio: images of the largest class for each of the rarest.
        rare: the rarest class.
        seed: of the groups that are removed.
        tail: `one`: `rare` alone is subsampled; `all`: all classes, exponentially, with `rare` last.
    """
    if tail not in TAILS:
        raise unknown("tail", tail, TAILS)
    if ratio < 1 or rare is None:
        raise CurateError(f"imbalance {ratio:g} needs --rare CLASS, and must be 1 or more; for example 30")
    rng, spare = np.random.default_rng([seed, 1]), oracle.spare.copy()
    most = int(oracle.present[oracle.pooled].sum(axis=0).max())
    for name, images in _target_counts(oracle, most, ratio, rare, tail).items():
        spare |= _rows_to_remove(oracle, oracle.present[:, oracle.number(name)] & ~oracle.test & ~spare, images, rng)
    before, after = (oracle.present[~oracle.test & ~gone].sum(axis=0) for gone in (oracle.spare, spare))
    kept = np.where(oracle.present, np.divide(after, np.maximum(before, 1)), 1).min(axis=1, initial=1)
    weight = np.where(oracle.test, oracle.weight * kept, oracle.weight).astype(np.float32)
    return replace(oracle, spare=spare, weight=weight)


def _target_counts(oracle: OracleDataset, most: int, ratio: float, rare: str, tail: str) -> dict[str, float]:
    """Return the number of images that each class keeps."""
    at = oracle.number(rare)
    if tail == "one":
        return {rare: most / ratio}
    order = [*oracle.classes[at + 1 :], *oracle.classes[: at + 1]]
    return {name: most * ratio ** (-place / max(1, len(order) - 1)) for place, name in enumerate(order)}


def _rows_to_remove(oracle: OracleDataset, rows: Mask, images: float, rng: np.random.Generator) -> Mask:
    """Return the rows of the groups to remove so that about `images` of `rows` stay; at least one group stays."""
    names, sizes = np.unique(oracle.groups[rows], return_counts=True)
    order = rng.permutation(len(names))
    gone = np.cumsum(sizes[order]) > max(images, 1)
    gone[:1] = False
    return np.asarray(np.isin(oracle.groups, names[order[gone]]) & ~oracle.test)


# --- load and save --------------------------------------------------------------------------------------------------


def fingerprint(oracle: OracleDataset) -> str:
    """Return a hash of the whole content."""
    digest = hashlib.blake2b(json.dumps(_about(oracle), sort_keys=True).encode(), digest_size=12)
    for name, values in sorted(_arrays(oracle).items()):
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def save(oracle: OracleDataset, folder: Path) -> None:
    """Write the arrays to a new folder, all of them or none."""
    with files.written_aside(folder) as aside:
        aside.mkdir()
        for name, values in _arrays(oracle).items():
            np.save(aside / f"{name}.npy", values, allow_pickle=False)
        files.write_json(aside / ABOUT, _about(oracle) | {"ids": oracle.ids})


def load(folder: Path) -> OracleDataset:
    """Load with memory-mapped arrays, which several processes share."""
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


def _about(oracle: OracleDataset) -> dict[str, Any]:
    ids = hashlib.blake2b("\0".join(oracle.ids).encode(), digest_size=12).hexdigest()
    return {"name": oracle.name, "classes": oracle.classes, "scores": sorted(oracle.scores), "digest": ids}


def _arrays(oracle: OracleDataset) -> dict[str, NDArray[Any]]:
    arrays = {name: getattr(oracle, name) for name in ARRAYS}
    arrays |= {f"score-{name}": values for name, values in oracle.scores.items()}
    if oracle.windows is not None:
        arrays |= {f"tile-{name}": values for name, values in zip(TILES, oracle.windows, strict=True)}
    return arrays
