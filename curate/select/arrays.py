"""`curate.pick`: the strategies on plain arrays, without a project, a database or image files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curate.errors import CurateError, unknown
from curate.select import rules as selection
from curate.select.build_pool import whole_exemplars
from curate.select.pool import Floats, Pool, Rows
from curate.select.rules import BARE, SelectionRules
from curate.select.run import AUTO, with_cosine
from curate.strategies import CATALOGUE, DEFAULT

PER_CLASS = ("probability", "class_entropy", "defect_pixels")  # scores with a column a class
PER_ROW = ("uncertainty", "bald")
REMEDY = (
    "Give labels of more rows, or your model's scores={'probability': (rows, classes)}; where nothing is labelled yet, "
    "take strategy='maxherding' or 'portfolio'"
)


def pick(
    vectors: ArrayLike,
    labels: Sequence[Any] | NDArray[Any] | None = None,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    budget: int = 50,
    strategy: str = DEFAULT,
    seed: int = 0,
    *,
    strata: Sequence[Any] | NDArray[Any] | None = None,
    classes: Sequence[Any] = (),
    scores: Mapping[str, ArrayLike] | None = None,
    options: Mapping[str, Any] | None = None,
    near: float | None = None,
    plain: bool = False,
) -> Rows:
    """Pick the rows that are worth labelling next: arrays in, row numbers out.

    Args:
        vectors: (n, d), one embedding a row, of any length; the cosine is what counts.
        labels: of each row, or None where nothing is labelled. None, NaN or (for integers) -1: not labelled. A name or
            number: its class. Several classes: a tuple, list or set of them; an empty one: labelled, shows no class.
        groups: the physical piece of each row (coil, part, scene): one row a piece is picked before a second of any.
        budget: rows to pick; fewer come back only where no further row may be picked, with a warning.
        strategy: a strategy's name, as `curate select --list` shows them.
        seed: the same arrays and seed give the same rows.
        strata: where each row comes from (line, camera): what the audit slot of `portfolio` spreads over.
        classes: look for these classes alone; by default for the scarcest.
        scores: of your model, by name: `probability`, `class_entropy`, `defect_pixels` of shape (n, classes), the
            classes in sorted order as in scikit-learn's `classes_`, and `uncertainty`, `bald` of shape (n,).
        options: the strategy's options.
        near: the cosine from which two rows are near-duplicates, of which one is picked; 0: never. By default it
            follows from the vectors.
        plain: no rules on top of the strategy (groups, near-duplicates): for comparing strategies.

    Returns:
        Numbers of unlabelled rows, the first to label first.

    Raises:
        CurateError: an array that does not fit, an unknown name, or a strategy that lacks labels or scores.
    """
    pool = pool_of(vectors, labels, groups, strata, classes, scores)
    CATALOGUE.load(strategy)
    if not pool.candidates.any():
        raise CurateError("nothing can be picked: every row is labelled")
    rules = BARE if plain else with_cosine(SelectionRules(near=AUTO if near is None else near), pool)
    try:
        chosen = selection.choose(pool, strategy, min(budget, int(pool.candidates.sum())), seed, rules, options)
    except CurateError as error:
        text = str(error)
        if not text.startswith(f"strategy '{strategy}' needs"):
            raise
        raise CurateError(f"{re.split(r'[.:] ', text, maxsplit=1)[0]}. {REMEDY}") from None
    if len(chosen.picks) < budget:
        text = f"{len(chosen.picks)} rows instead of {budget}: "
        text += (
            "every other row is labelled or a near-duplicate" if chosen.near_duplicates else "no further row is left"
        )
        warnings.warn(text, stacklevel=2)
    return pool.rows_of([picked.id for picked in chosen.picks])


def pool_of(
    vectors: ArrayLike,
    labels: Sequence[Any] | NDArray[Any] | None = None,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    strata: Sequence[Any] | NDArray[Any] | None = None,
    classes: Sequence[Any] = (),
    scores: Mapping[str, ArrayLike] | None = None,
) -> Pool:
    """Return the arrays as a `Pool`, for calling a strategy directly; see `pick` for what each may hold."""
    matrix = _unit(vectors)
    rows = len(matrix)
    shown = [None] * rows if labels is None else [_classes_of(label) for label in _column(labels, "labels", rows)]
    known = _sorted({name for names in shown for name in names or ()})
    names = tuple(str(name) for name in known)
    wanted = tuple(str(name) for name in classes)
    for name in wanted:
        if name not in names:
            raise unknown("class", name, names, "classes names those of the labels")
    labelled = np.array([value is not None for value in shown], bool)
    present = np.zeros((rows, len(known)), bool)
    place = {name: number for number, name in enumerate(known)}
    for row, values in enumerate(shown):
        present[row, [place[name] for name in values or ()]] = True
    numbers, stratum_names = _coded(strata, "strata", rows)
    pool = Pool(
        ids=tuple(f"{row:012d}" for row in range(rows)),
        vectors=matrix,
        candidates=~labelled,
        labelled=labelled,
        present=present,
        classes=names,
        groups=np.arange(rows) if groups is None else _coded(groups, "groups", rows)[0],
        strata=numbers,
        stratum_names=stratum_names,
        scores={name: _scores(name, values, rows, names) for name, values in (scores or {}).items()},
        wanted=wanted,
    )
    return replace(pool, exemplars=whole_exemplars(pool))


def _unit(vectors: ArrayLike) -> Floats:
    """Return the vectors with length 1, as a copy; the caller's array is left alone."""
    try:
        matrix = np.array(vectors, np.float32)
    except (TypeError, ValueError):
        raise CurateError("vectors are not numbers; give an array of shape (rows, dimensions)") from None
    if matrix.ndim != 2 or not matrix.size:
        raise CurateError(f"vectors have the shape {matrix.shape}; allowed: (rows, dimensions), both above 0")
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        raise CurateError(
            f"{len(broken)} rows of vectors hold NaN or infinity, the first is row {broken[0]}; leave them out"
        )
    return np.asarray(matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12), np.float32)


def _column(values: Sequence[Any] | NDArray[Any], what: str, rows: int) -> list[Any]:
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if len(listed) != rows:
        raise CurateError(f"{what} hold {len(listed)} entries, vectors {rows} rows; give one for each row")
    return listed


def _classes_of(label: Any) -> tuple[Any, ...] | None:
    """Return the classes that a row shows; None where it is not labelled."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, Collection) and not isinstance(label, str | bytes):
        return tuple(dict.fromkeys(value.item() if isinstance(value, np.generic) else value for value in label))
    if label is None or type(label).__name__ == "NAType" or (isinstance(label, int) and label == -1):  # pandas.NA
        return None
    return None if label != label else (label,)  # NaN differs from itself


def _sorted(names: set[Any]) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:
        kinds = ", ".join(sorted({type(name).__name__ for name in names}))
        raise CurateError(f"labels mix {kinds}; give all classes as text or all as numbers") from None


def _coded(values: Sequence[Any] | NDArray[Any] | None, what: str, rows: int) -> tuple[Rows, tuple[str, ...]]:
    """Number the values in sorted order; return each row's number, and the values as text."""
    if values is None:
        return np.zeros(rows, np.int64), ("",)
    distinct, numbers = np.unique([str(value) for value in _column(values, what, rows)], return_inverse=True)
    return numbers.astype(np.int64), tuple(distinct.tolist())


def _scores(name: str, values: ArrayLike, rows: int, classes: tuple[str, ...]) -> Floats:
    if name not in (*PER_CLASS, *PER_ROW):
        raise unknown("score", name, (*PER_CLASS, *PER_ROW))
    array = np.array(values, np.float32)
    wanted = (rows, len(classes)) if name in PER_CLASS else (rows,)
    if array.shape != wanted:
        about = f", a column for each class of the labels: {', '.join(classes) or 'none'}" if name in PER_CLASS else ""
        raise CurateError(f"scores['{name}'] has the shape {array.shape}; allowed: {wanted}{about}")
    return array
