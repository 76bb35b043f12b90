"""Farthest-first selection (k-center greedy, core-set): exact, yet it computes few of the distances.

Each step picks the row farthest from all centres. A row's distance to its nearest centre only ever falls, so that its
last known value is an upper bound: a heap over these bounds brings up the farthest rows, and only those are compared
with the centres added since. Most of these centres are skipped by the triangle inequality: a centre at least twice as
far from the row's nearest centre as the row itself cannot be nearer. Of the others a distance is given up as soon as
its sum of squares exceeds the best. The picks are those of the plain method, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[Any]  # float32, or the bits of float16 as uint16, which numba can read
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Small = NDArray[np.int32]
Function = TypeVar("Function", bound=Callable[..., Any])

_PART = 384  # dimensions summed before a distance may be given up
_SKIP = 32  # entries of the table looked at together
_BLOCK = 2048  # rows, and centres, of one matrix product
_CELLS, _PROBED = 128, 3  # cells that many covered rows are sorted into, and those whose centres a row is compared with
_MANY = 200_000_000  # pairs of rows and covered rows from which on that is done
_FIRST, _EACH = 1024, 4  # rows, and rows for each pick, that are then compared with every covered row at least
_SHARED = 64  # rows that must share a covered centre before it gets a line in the table
_TINY = np.float32(1e-32)  # far above what underflow can take from a sum of squares
_LARGEST = 1e16  # squares of differences must stay well inside float32
_STEPS = 2**20  # the mean is taken of values rounded to this many steps of the largest


class Centers(NamedTuple):
    """The picks of a farthest-first search.

    Attributes:
        picks: Row numbers in the order of picking.
        radius: Distance of each pick to its nearest earlier centre; infinite for the very first one.
        computed: Number of distances that were computed, in part or in full.
    """

    picks: Ints
    radius: Floats
    computed: int


class CoverBounds(NamedTuple):
    """For each row of a table the squared distance to one of the covered rows, and which row that is."""

    covered: Ints
    bound: Floats
    which: Ints


def kcenter(
    x: NDArray[Any],
    budget: int,
    *,
    covered: Ints | None = None,
    candidates: NDArray[np.bool_] | None = None,
    bounds: list[CoverBounds] | None = None,
) -> Centers:
    """Picks rows, each the farthest from all centres before it; ties go to the lowest row.

    Without covered rows the first pick is the candidate nearest to the candidates' mean.

    Args:
        x: One vector a row, float32 or float16.
        budget: Number of rows to pick; fewer when there are fewer candidates.
        covered: Rows that are centres already.
        candidates: True for rows that may be picked; by default all. Covered rows are never picked.
        bounds: Kept from call to call on the same rows, of which the covered ones only grow; empty at first.

    Returns:
        The picks, their radii and the number of computed distances.

    Raises:
        ValueError: If a value is NaN, infinite or beyond 1e16, or if a row number does not exist.
    """
    vectors = readable(x)
    rows = _open_rows(len(x), covered, candidates)
    largest = largest_value(vectors)
    if covered is not None and min(budget, len(rows)) and len(rows) * len(covered) > _MANY:
        return _by_bounds(vectors, rows, min(budget, len(rows)), np.unique(covered), [] if bounds is None else bounds)
    search = FarthestFirstSearch(vectors, rows, min(budget, len(rows)))
    if covered is not None and len(covered):
        search.cover(vectors, np.unique(covered))
    elif search.room:
        search.begin(nearest_to(vectors, rows, mean_of(vectors, rows, largest)))
    search.run(search.room - search.count)
    return Centers(rows[search.picks], np.sqrt(search.radius), search.computed)


def _by_bounds(vectors: Vectors, rows: Ints, budget: int, covered: Ints, kept: list[CoverBounds]) -> Centers:
    """The same picks, without comparing every row with every covered one.

    The distance to any covered row bounds that to the nearest one. Only rows that are picked by their bound need be
    compared with all: where every pick's distance is exact, no other row can have been farther.
    """
    if not kept or not np.isin(kept[0].covered, covered).all() or np.isinf(kept[0].bound[rows]).any():
        kept[:] = [_bound_by_cells(vectors, rows, covered)]
    elif len(more := np.setdiff1d(covered, kept[0].covered)):
        bound = kept[0].bound[rows]
        nearest = bound.copy()
        found = more[nearest_centres(vectors, rows, vectors, more, nearest)]
        lower = nearest < bound
        kept[0].bound[rows[lower]], kept[0].which[rows[lower]] = nearest[lower], found[lower]
        kept[:] = [kept[0]._replace(covered=covered)]
    bound, which = kept[0].bound[rows], np.searchsorted(covered, kept[0].which[rows])
    exact, due = np.zeros(len(rows), np.bool_), np.argsort(-bound, kind="stable")[: max(_FIRST, _EACH * budget)]
    computed = 0
    while True:
        nearest = np.full(len(due), np.inf, np.float32)
        which[due] = nearest_centres(vectors, rows[due], vectors, covered, nearest)
        bound[due], exact[due] = nearest, True
        search = FarthestFirstSearch(vectors, rows, budget)
        search.cover_by(vectors, covered, bound.copy(), which)
        search.run(search.room)
        computed += search.computed
        if exact[search.picks].all():
            return Centers(rows[search.picks], np.sqrt(search.radius), computed)
        due = np.flatnonzero(~exact & (bound >= search.radius.min()))


def _bound_by_cells(vectors: Vectors, rows: Ints, covered: Ints) -> CoverBounds:
    """Bound by the nearest of the covered rows in the cells nearest to each row."""
    bound, which = np.full(len(vectors), np.inf, np.float32), np.zeros(len(vectors), np.int64)
    middles = _middles(vectors, covered)
    cells = _nearest_middles(vectors, covered, middles, 1)[:, 0]
    probed = _nearest_middles(vectors, rows, middles, min(_PROBED, len(middles)))
    for cell in range(len(middles)):
        mine = covered[cells == cell]
        for column in probed.T if len(mine) else ():
            asking = rows[column == cell]
            nearest = bound[asking]
            found = nearest_centres(vectors, asking, vectors, mine, nearest)
            lower = nearest < bound[asking]
            bound[asking[lower]], which[asking[lower]] = nearest[lower], mine[found[lower]]
    far = np.flatnonzero(np.isinf(bound[rows]))  # no cell that they were compared with holds a covered row
    if len(far):
        first = widen(vectors, covered[:1])[0]
        bound[rows[far]], which[rows[far]] = distances_to(vectors, rows[far], first), covered[0]
    return CoverBounds(covered, bound, which)


def _middles(vectors: Vectors, covered: Ints) -> Floats:
    """The middles of cells: some of the covered rows, each then moved to the mean of those nearest to it."""
    middles = widen(vectors, covered[:: max(1, len(covered) // _CELLS)][:_CELLS])
    cells = _nearest_middles(vectors, covered, middles, 1)[:, 0]
    for cell in np.unique(cells).tolist():
        middles[cell] = widen(vectors, covered[cells == cell]).mean(axis=0)
    return middles


def _nearest_middles(vectors: Vectors, rows: Ints, middles: Floats, count: int) -> Ints:
    """(rows, count): the nearest middles of each row, in no order."""
    half, nearest = np.einsum("ij,ij->i", middles, middles) / 2, np.empty((len(rows), count), np.int64)
    for start in range(0, len(rows), _BLOCK):
        far = half - widen(vectors, rows[start : start + _BLOCK]) @ middles.T
        nearest[start : start + _BLOCK] = np.argpartition(far, count - 1, axis=1)[:, :count]
    return nearest


def readable(x: NDArray[Any]) -> Vectors:
    """The array as the kernels read it: C-contiguous float32, or uint16 that holds the bits of float16."""
    if x.ndim != 2 or x.dtype not in (np.float32, np.float16):
        raise TypeError(f"vectors are a 2-D array of float32 or float16, not {x.ndim}-D of {x.dtype}")
    plain = np.ascontiguousarray(x)
    return plain.view(np.uint16) if x.dtype == np.float16 else plain


def _open_rows(rows: int, covered: Ints | None, candidates: NDArray[np.bool_] | None) -> Ints:
    open_rows = np.ones(rows, np.bool_) if candidates is None else np.array(candidates, np.bool_)
    if open_rows.shape != (rows,):
        raise ValueError(f"candidates has shape {open_rows.shape}, but there are {rows} rows")
    if covered is not None and len(covered):
        if np.min(covered) < 0 or np.max(covered) >= rows:
            raise ValueError(f"covered names rows from {np.min(covered)} to {np.max(covered)}; there are {rows} rows")
        open_rows[covered] = False
    return np.flatnonzero(open_rows)


def largest_value(vectors: Vectors) -> float:
    """The largest magnitude.

    Raises:
        ValueError: If a value is not finite or too large to be squared.
    """
    half = vectors.dtype == np.uint16
    bits = _largest_bits(vectors if half else vectors.view(np.uint32), 0x7FFF if half else 0x7FFFFFFF)
    largest = float(np.array(bits, np.uint16).view(np.float16) if half else np.array(bits, np.uint32).view(np.float32))
    if not largest <= _LARGEST:
        raise ValueError("vectors hold NaN, infinite or huge values (beyond 1e16); leave those rows out")
    return largest


def mean_of(vectors: Vectors, rows: Ints, largest: float) -> Floats:
    """The mean of these rows."""
    return mean_from(sum_of(vectors, rows, largest), len(rows), largest)


def sum_of(vectors: Vectors, rows: Ints, largest: float) -> Ints:
    """The sum of these rows in whole steps, so that neither order nor sharding can change its last bit."""
    total = np.zeros(vectors.shape[1], np.int64)
    if largest:
        _add_up(vectors, rows, np.float32(_STEPS / _power_above(largest)), total)
    return total


def mean_from(total: Ints, rows: int, largest: float) -> Floats:
    """The mean of `rows` vectors whose sum in steps is `total`."""
    return (total / max(rows, 1) * (_power_above(largest) / _STEPS)).astype(np.float32)


def _power_above(largest: float) -> float:
    # Never so small that the number of steps a unit overflows.
    return float(2.0 ** np.ceil(np.log2(max(largest, 1e-30))))


def nearest_to(vectors: Vectors, rows: Ints, point: Floats) -> int:
    """Position of the row nearest to a point; ties to the first."""
    return int(np.argmin(distances_to(vectors, rows, point)))


def distances_to(vectors: Vectors, rows: Ints, point: Floats) -> Floats:
    """Squared distance of each of these rows to a point."""
    distances = np.empty(len(rows), np.float32)
    _distances(vectors, rows, point, distances)
    return distances


def widen(vectors: Vectors, rows: Ints) -> Floats:
    """These rows as float32."""
    values = vectors[rows]
    return values if values.dtype == np.float32 else values.view(np.float16).astype(np.float32)


class SearchState(NamedTuple):
    """State of each open row; see `FarthestFirstSearch`."""

    best: Floats
    anchor: Small
    seen: Small


class FarthestFirstSearch:
    """A farthest-first search in progress: the state of each open row, and the centres picked so far.

    Positions count the open rows, not the rows of the table. `best` is a row's squared distance to the nearest of
    the centres before `seen`, and `anchor` that centre's line in the table, or -1 where it has none.
    """

    def __init__(self, vectors: Vectors, rows: Ints, room: int) -> None:
        self.vectors, self.rows, self.room = vectors, rows, max(room, 0)
        self.best: Floats = np.full(len(rows), np.inf, np.float32)
        self.anchor: Small = np.full(len(rows), -1, np.int32)
        self.seen = np.zeros(len(rows), np.int32)
        self.centres = np.empty((self.room, vectors.shape[1]), np.float32)
        self.fixed: Floats = np.empty((0, vectors.shape[1]), np.float32)
        self.table = np.empty((self.room, self.room), np.uint16)  # pages never written take no memory
        self.chosen = np.empty(self.room, np.int64)
        self.radii = np.empty(self.room, np.float32)
        self.count = self.computed = 0

    @property
    def picks(self) -> Ints:
        return self.chosen[: self.count]

    @property
    def radius(self) -> Floats:
        """Squared, as all distances in here."""
        return self.radii[: self.count]

    def cover(self, table: Vectors, covered: Ints) -> None:
        """Add rows of a table as centres that exist from the start."""
        self.cover_by(table, covered, self.best, nearest_centres(self.vectors, self.rows, table, covered, self.best))

    def cover_by(self, table: Vectors, covered: Ints, best: Floats, which: Ints) -> None:
        """Add rows of a table as centres, given the squared distance of each row to one of them, and which one."""
        self.best = best
        self.computed += len(self.rows)
        # A line in the table costs a distance for each pick: only centres that many rows share earn it.
        shared = np.flatnonzero(np.bincount(which, minlength=len(covered)) >= _SHARED)
        lines = np.full(len(covered), -1, np.int32)
        lines[shared] = self.room + np.arange(len(shared))
        self.anchor = lines[which]
        self.fixed = widen(table, covered[shared])
        self.table = np.empty((self.room + len(shared), self.room), np.uint16)

    def begin(self, position: int) -> None:
        """Pick the first centre."""
        self.first(widen(self.vectors, self.rows[position : position + 1])[0])
        self.chosen[0], self.radii[0], self.best[position] = position, np.inf, -1

    def first(self, centre: Floats) -> None:
        """Add the very first centre: every row has to be compared with it."""
        self.add(centre)
        _distances(self.vectors, self.rows, centre, self.best)
        self.computed += len(self.rows)
        self.anchor[:], self.seen[:] = 0, 1

    def add(self, centre: Floats) -> None:
        """Add a further centre; rows are compared with it only when they reach the top of the heap."""
        self.centres[self.count] = centre
        self.computed += _tabulate(self.centres, self.fixed, self.table, self.count)
        self.count += 1

    def run(self, picks: int) -> None:
        """Pick that many rows."""
        self._run(picks, SearchState(self.best, self.anchor, self.seen))

    def look_ahead(self, picks: int) -> tuple[Ints, SearchState]:
        """The positions that `run` would pick, and the state after it; this search keeps its own state and picks."""
        before = self.count
        ahead = SearchState(self.best.copy(), self.anchor.copy(), self.seen.copy())
        self._run(picks, ahead)
        positions, self.count = self.chosen[before : self.count].copy(), before
        return positions, ahead

    def _run(self, picks: int, state: SearchState) -> None:
        heap = np.flatnonzero(state.best >= 0).astype(np.int32)
        before, self.count = self.count, self.count + min(picks, len(heap))
        self.computed += _search(
            *(self.vectors, self.rows, *state, self.best, self.anchor, self.seen, heap),
            *(self.centres, self.fixed, self.table, before, self.count, self.chosen, self.radii),
        )


def nearest_centres(vectors: Vectors, rows: Ints, table: Vectors, covered: Ints, best: Floats) -> Ints:
    """Lower `best` to the squared distance to the nearest covered row of a table; return the number of that row.

    A matrix product finds the few centres that may be nearest; these are computed like every other distance.
    """
    which = np.zeros(len(rows), np.int64)
    middle = widen(table, covered[:_BLOCK]).mean(axis=0)  # smaller norms mean smaller rounding errors
    for first in range(0, len(covered), _BLOCK):
        centres = widen(table, covered[first : first + _BLOCK])
        moved = centres - middle
        norms = np.einsum("ij,ij->i", moved, moved)
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            points = widen(vectors, rows[block])
            shifted = points - middle
            products = shifted @ moved.T
            squares = np.einsum("ij,ij->i", shifted, shifted)
            _rescore(points, centres, products, squares, norms, best[block], which[block], first)
    return which


# --- kernels: reading ---------------------------------------------------------------------------------------------


def _kernel(function: Function) -> Function:
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def _fast_kernel(function: Function) -> Function:
    """Sums may be taken in any order, but NaN and infinity keep their meaning."""
    return cast(Function, numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})(function))


@_kernel
def _wide(value: Any, half: bool) -> np.float32:
    """A float32 as it is, or float16's bits as a float32; `half` is constant when this is compiled."""
    if not half:
        return np.float32(value)
    # Moved into float32's bits the exponent is 112 too small, which the factor corrects, for subnormals too.
    magnitude = np.uint32((np.uint32(value) & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32)
    sign = np.uint32((np.uint32(value) & np.uint32(0x8000)) << np.uint32(16))
    scaled = np.float32(magnitude * np.float32(2.0**112))
    return np.uint32(scaled.view(np.uint32) | sign).view(np.float32)


@_kernel
def _read(vectors: Vectors, row: int, point: Floats) -> None:
    half = vectors.itemsize == 2
    for column in range(point.size):
        point[column] = _wide(vectors[row, column], half)


@_kernel
def _largest_bits(bits: NDArray[Any], mask: int) -> int:
    """Without its sign a float's bits order like its magnitude, with infinity and then NaN above all others."""
    most = bits.dtype.type(0)
    kept = bits.dtype.type(mask)
    for row in range(bits.shape[0]):
        for column in range(bits.shape[1]):
            most = max(most, bits[row, column] & kept)
    return int(most)


@_kernel
def _add_up(vectors: Vectors, rows: Ints, scale: np.float32, total: Ints) -> None:
    """Add the rows' values in whole steps; 32 bits hold the sum of 1024 rows at a time."""
    half = vectors.itemsize == 2
    part = np.zeros(total.size, np.int32)
    for begin in range(0, rows.size, 1024):
        part[:] = 0
        for at in range(begin, min(begin + 1024, rows.size)):
            row = rows[at]
            for column in range(total.size):
                part[column] += np.int32(np.rint(_wide(vectors[row, column], half) * scale))
        total += part


# --- kernels: distances -------------------------------------------------------------------------------------------


@_fast_kernel
def _part(left: Floats, right: Floats, begin: Any, count: Any) -> np.float32:
    total = np.float32(0)
    for at in range(np.uint64(count)):
        difference = left[begin + at] - right[begin + at]
        total += difference * difference
    return total


@_kernel
def squared(left: Floats, right: Floats, limit: np.float32) -> np.float32:
    """The squared distance, or some value of at least the limit where it reaches the limit.

    The parts are added in one fixed order. None is negative and rounded addition never falls, so that a sum which has
    reached the limit would have ended there or above: giving up changes no comparison.
    """
    total = np.float32(0)
    begin, size = np.uint64(0), np.uint64(left.size)  # an unsigned index is never counted from the end: 20 x faster
    while begin < size and total < limit:
        count = min(np.uint64(_PART), size - begin)
        total += _part(left, right, begin, count)
        begin += count
    return total


@_kernel
def _distances(vectors: Vectors, rows: Ints, centre: Floats, distances: Floats) -> None:
    point = np.empty(centre.size, np.float32)
    for at in range(rows.size):
        _read(vectors, rows[at], point)
        distances[at] = squared(point, centre, np.float32(np.inf))


@_kernel
def _rescore(
    points: Floats,
    centres: Floats,
    products: Floats,
    squares: Floats,
    norms: Floats,
    best: Floats,
    which: Ints,
    first: int,
) -> None:
    """Compute the distances that the matrix product cannot rule out.

    Each of the sums involved is off by at most (dimensions + 8) roundings of 2**-24 of (|point| + |centre|)**2, the
    bound for any order of adding; the product's and ours make two, and a third is for the sums here. `_TINY` is for
    squares that lose bits or vanish.
    """
    share = np.float32(3 * (points.shape[1] + 8) * 2.0**-24)
    widest = np.sqrt(norms.max())
    for row in range(points.shape[0]):
        unsure = share * (np.sqrt(squares[row]) + widest) ** 2 + _TINY
        likely = np.argmin(norms - 2 * products[row])
        value = squared(points[row], centres[likely], best[row])
        if value < best[row]:
            best[row], which[row] = value, first + likely
        for at in range(norms.size):
            if at != likely and squares[row] + norms[at] - 2 * products[row, at] - unsure < best[row]:
                value = squared(points[row], centres[at], best[row])
                if value < best[row]:
                    best[row], which[row] = value, first + at


# --- kernels: the table of distances between centres ----------------------------------------------------------------


@_kernel
def _high_bits(value: np.float32) -> np.uint16:
    """The upper half of a float32: its value rounded down to 8 bits, in the same order."""
    return np.uint16(np.float32(value).view(np.uint32) >> np.uint32(16))


@_kernel
def _reach(best: np.float32, dimensions: int) -> np.uint16:
    """Centres whose entry exceeds this, in the line of a row's nearest centre, cannot be nearer to the row.

    By the triangle inequality that holds from twice the distance on, so from four times the squared one. Computed
    sums of squares are off by a share of up to g = (dimensions + 2) * 2**-24 in whatever order they are added: with
    three of them involved, a margin of 2g would do, and there are 4g. Rounding the table down only makes it prune
    less, and `_TINY` covers squares so small that they lose bits or vanish.
    """
    margin = np.float32(1 + 4 * (dimensions + 8) * 2.0**-24)
    return _high_bits(np.float32(4) * best * margin + _TINY)


@_kernel
def _tabulate(centres: Floats, fixed: Floats, table: NDArray[np.uint16], new: int) -> int:
    """Fill the column of a new centre: its distance to each earlier one, and to the covered ones that have a line."""
    endless = np.float32(np.inf)
    for line in range(new):
        table[line, new] = _high_bits(squared(centres[line], centres[new], endless))
    for line in range(fixed.shape[0]):
        table[centres.shape[0] + line, new] = _high_bits(squared(fixed[line], centres[new], endless))
    return new + fixed.shape[0]


@_kernel
def _next_within(line: NDArray[np.uint16], begin: int, end: int, reach: np.uint16) -> int:
    """The first entry from `begin` on that does not exceed the reach, or `end`."""
    while begin + _SKIP <= end:
        least = np.uint16(0xFFFF)
        for at in range(begin, begin + _SKIP):
            least = min(least, line[at])
        if least <= reach:
            break
        begin += _SKIP
    while begin < end and line[begin] > reach:
        begin += 1
    return begin


@_kernel
def _catch_up(
    point: Floats, best: np.float32, anchor: int, begin: int, end: int, centres: Floats, table: NDArray[np.uint16]
) -> tuple[np.float32, int, int]:
    """Compare a row with the centres from `begin` to `end`; return its distance, its anchor and how many it took."""
    computed = 0
    reach = _reach(best, point.size)
    at = begin
    while at < end:
        if anchor >= 0:
            at = _next_within(table[anchor], at, end, reach)
            if at == end:
                break
        computed += 1
        value = squared(point, centres[at], best)
        if value < best:
            best, anchor = value, at
            reach = _reach(best, point.size)
        at += 1
    return best, anchor, computed


# --- kernels: the search ------------------------------------------------------------------------------------------


@_kernel
def _sink(heap: Small, best: Floats, at: int, size: int) -> None:
    """Let an entry sink below all that are farther, or as far and earlier."""
    entry = heap[at]
    value = best[entry]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        lower, upper = heap[child], best[heap[child]]
        if child + 1 < size:
            other = heap[child + 1]
            if best[other] > upper or (best[other] == upper and other < lower):
                child, lower, upper = child + 1, other, best[other]
        if upper < value or (upper == value and lower > entry):
            break
        heap[at] = lower
        at = child
    heap[at] = entry


@_kernel
def _search(
    vectors: Vectors,
    rows: Ints,
    best: Floats,
    anchor: Small,
    seen: Small,
    known_best: Floats,
    known_anchor: Small,
    known_seen: Small,
    heap: Small,
    centres: Floats,
    fixed: Floats,
    table: NDArray[np.uint16],
    count: int,
    end: int,
    chosen: Ints,
    radii: Floats,
) -> int:
    """Pick until there are `end` centres; return the number of computed distances.

    Comparisons with the centres that exist at the start are also written into the `known` arrays.
    """
    start = count
    size = heap.size
    for at in range(size // 2 - 1, -1, -1):
        _sink(heap, best, at, size)
    point = np.empty(centres.shape[1], np.float32)
    computed = 0
    while count < end:
        top = heap[0]
        if seen[top] < count:
            _read(vectors, rows[top], point)
            until = start if seen[top] < start else count
            update = _catch_up(point, best[top], anchor[top], seen[top], until, centres, table)
            best[top], anchor[top], seen[top] = update[0], update[1], until
            computed += update[2]
            if until == start:
                known_best[top], known_anchor[top], known_seen[top] = best[top], anchor[top], until
        else:
            chosen[count], radii[count], best[top] = top, best[top], -1
            _read(vectors, rows[top], centres[count])
            computed += _tabulate(centres, fixed, table, count)
            count += 1
            size -= 1
            heap[0] = heap[size]
        _sink(heap, best, 0, size)
    return computed
