"""Exact nearest neighbours and near-duplicates by cosine, in blocks: no n x n matrix, whatever n is.

A matrix product finds the candidates; the similarity of each is then computed again as a dot product in a fixed order,
because a BLAS rounds equal rows differently in different places of a tile. So equal rows get equal similarities, and a
tie goes to the lowest row on every machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[Any]
Singles = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
Progress = Callable[[int, int], None]
Function = TypeVar("Function", bound=Callable[..., Any])

_TALL, _WIDE = 1024, 4096  # a tile of a product: 16 MB, which stays in the cache
_GATHER = 1 << 22  # values gathered at once to be computed again
_DOUBT = 4e-6  # the largest error of a single-precision product of unit rows
_SKETCH = 64  # leading dimensions that may rule out a pair
_WORTH = 0.004  # the share of pairs that may pass the sketch while it still saves time


def nearest(
    queries: Vectors, x: Vectors, k: int, *, skip_self: bool = False, device: str | None = None
) -> tuple[Singles, Rows]:
    """Find the k most similar rows of x for every query.

    Args:
        queries: (q, d).
        x: (n, d).
        k: At most n neighbours are found, or n - 1 with `skip_self`.
        skip_self: Query i is row i of x and is not its own neighbour.
        device: A torch device; without it a GPU is used where there is one.

    Returns:
        Cosine similarities, descending, and rows; both (q, k).
    """
    queries, x = finite(queries, "queries"), finite(x, "x")
    k = max(0, min(k, len(x) - skip_self))
    if not k or not len(queries):
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    wanted = min(len(x), k + 4 + k // 8 + skip_self)
    device = device or gpu()
    own = np.arange(len(queries)) if skip_self else np.full(len(queries), -1)
    shortlist = (_shortlist(queries, x, wanted, own, np.arange(len(x))) if device is None
             else _torch_shortlist(queries, x, wanted, skip_self, device))  # fmt: skip
    return _measured(queries, x, k, skip_self, shortlist)


def best_match(queries: Vectors, x: Vectors) -> tuple[Singles, Rows]:
    """Find the most similar row of x, which must not be empty, and its similarity for every query."""
    if not len(x):
        raise ValueError("x is empty: nothing can match")
    similarity, rows = nearest(queries, x, 1)
    return similarity[:, 0], rows[:, 0]


def nearest_of_others(queries: Vectors, query_groups: Rows, x: Vectors, groups: Rows, k: int) -> tuple[Singles, Rows]:
    """Find the k most similar rows of x that belong to another group than the query.

    Args:
        queries: (q, d).
        query_groups: (q,).
        x: (n, d).
        groups: (n,).
        k: Neighbours of each query.

    Returns:
        Cosines, descending, and rows; both (q, k). Where a query has fewer than k such rows: -inf, and row -1.
    """
    queries, x = finite(queries, "queries"), finite(x, "x")
    return _exact(queries, x, _shortlist(queries, x, k, query_groups, groups)[1])


def pairs_above(
    x: Vectors, threshold: float, y: Vectors | None = None, *, progress: Progress | None = None
) -> tuple[Rows, Rows, Singles]:
    """Find all pairs of rows at least as similar as the threshold.

    Where the data allow it, most pairs are ruled out by a few leading dimensions and an upper bound on the others; no
    pair is lost by it.

    Args:
        x: (n, d).
        threshold: A cosine.
        y: (m, d); without it pairs are sought within x, with i < j.
        progress: Called with the number of blocks done and of all blocks.

    Returns:
        Rows i of x, rows j of y (or x) and cosines, ordered by i, then j.
    """
    x = finite(x, "x")
    other = x if y is None else finite(y, "y")
    left, right = _sketched(x, other, threshold)
    parts = [_no_pairs()]
    blocks = list(_block_pairs(len(x), len(other), y is None))
    for done, (top, start) in enumerate(blocks, 1):
        i, j = _hits(left, right, top, start, threshold - _DOUBT, y is None)
        parts.append(_confirmed(x, other, i, j, threshold))
        if progress is not None:
            progress(done, len(blocks))
    i, j, similarity = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((j, i))
    return i[order], j[order], similarity[order]


# --- Reading ------------------------------------------------------------------------------------------------------


def finite(x: Vectors, name: str = "x") -> Vectors:
    """Check that the vectors are a finite (n, d) array; return them as float16 or float32."""
    x = np.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"{name} has {x.ndim} dimensions; vectors come as (rows, dimensions)")
    if x.dtype not in (np.float16, np.float32):
        x = x.astype(np.float32)
    for lo in range(0, len(x), 16384):
        block = x[lo : lo + 16384]
        if not np.isfinite(block).all():
            row = lo + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise ValueError(f"{name} holds NaN or infinity in row {row}")
    return x


def singles(x: Vectors) -> Singles:
    """Rows in single precision, contiguous; copied only where needed."""
    return np.ascontiguousarray(x, dtype=np.float32)


def units(x: Vectors) -> Singles:
    """Rows in single precision with length 1; a row of zeros stays zero."""
    block = singles(x)
    norms = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
    return block * np.where(norms > 0, 1 / np.maximum(norms, 1e-30), 0)[:, None].astype(np.float32)


def gpu() -> str | None:
    """The name of a usable GPU; torch, slow to import, is loaded only where a driver is installed."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        import torch
    except ImportError:
        return None
    return "cuda" if torch.cuda.is_available() else None


# --- Nearest ------------------------------------------------------------------------------------------------------


def _shortlist(queries: Vectors, x: Vectors, wanted: int, query_groups: Rows, groups: Rows) -> tuple[Singles, Rows]:
    """The rows of other groups with the largest products, unsorted; -inf and -1 where there are fewer."""
    values = np.full((len(queries), wanted), -np.inf, np.float32)
    rows = np.full((len(queries), wanted), -1, np.int64)
    tile = np.empty(_TALL * _WIDE, np.float32)
    for top in range(0, len(queries), _TALL):
        block = units(queries[top : top + _TALL])
        for start in range(0, len(x), _WIDE):
            columns = units(x[start : start + _WIDE])
            out = tile[: len(block) * len(columns)].reshape(len(block), len(columns))
            np.matmul(block, columns.T, out=out)
            part = slice(top, top + _TALL)
            _keep_largest(out, query_groups[part], groups[start : start + _WIDE], start, values[part], rows[part])
    return values, rows


def _torch_shortlist(queries: Vectors, x: Vectors, wanted: int, skip_self: bool, device: str) -> tuple[Singles, Rows]:
    import torch

    values, rows = [], []
    for top in range(0, len(queries), 8192):
        block = torch.from_numpy(units(queries[top : top + 8192])).to(device)
        best = torch.full((len(block), 0), 0.0, device=device)
        best_rows = torch.full((len(block), 0), 0, dtype=torch.int64, device=device)
        for start in range(0, len(x), 65536):
            product = block @ torch.from_numpy(units(x[start : start + 65536])).to(device).T
            if skip_self and -len(block) < top - start < product.shape[1]:
                product.diagonal(top - start).fill_(-torch.inf)
            part, place = product.topk(min(wanted, product.shape[1]))
            best, best_rows = torch.cat((best, part), 1), torch.cat((best_rows, place + start), 1)
            best, place = best.topk(min(wanted, best.shape[1]))
            best_rows = best_rows.gather(1, place)
        values.append(best.cpu().numpy())
        rows.append(best_rows.cpu().numpy())
    return np.concatenate(values), np.concatenate(rows)


def _measured(
    queries: Vectors, x: Vectors, k: int, skip_self: bool, shortlist: tuple[Singles, Rows]
) -> tuple[Singles, Rows]:
    """The k best of each shortlist by fixed-order products; all rows are compared where a tie may be cut off."""
    values, rows = shortlist
    similarity, index = _exact(queries, x, np.where(np.isfinite(values), rows, -1))
    similarity, index = np.ascontiguousarray(similarity[:, :k]), np.ascontiguousarray(index[:, :k])
    if rows.shape[1] < len(x) - skip_self:
        doubtful = np.flatnonzero(values.min(axis=1) >= similarity[:, -1] - _DOUBT)
        for query in doubtful:
            similarity[query], index[query] = _scan(queries, x, int(query), k, skip_self)
    return similarity, index


def _exact(queries: Vectors, x: Vectors, rows: Rows) -> tuple[Singles, Rows]:
    """Fixed-order products with these rows, and the rows, sorted: the best first, of equal ones the lower row."""
    similarity, index = np.empty(rows.shape, np.float32), np.empty_like(rows)
    step = max(1, _GATHER // max(1, rows.shape[1] * x.shape[1]))
    for lo in range(0, len(queries) if len(x) else 0, step):
        part = slice(lo, lo + step)
        exact = _dots(singles(queries[part]), singles(x[np.maximum(rows[part], 0)]))
        exact[rows[part] < 0] = -np.inf
        order = np.lexsort((rows[part], -exact), axis=1)
        similarity[part], index[part] = np.take_along_axis(exact, order, 1), np.take_along_axis(rows[part], order, 1)
    return (similarity, index) if len(x) else (np.full(rows.shape, -np.inf, np.float32), rows)


def _scan(queries: Vectors, x: Vectors, query: int, k: int, skip_self: bool) -> tuple[Singles, Rows]:
    """The k best rows for one query by fixed-order products with every row."""
    vector = singles(queries[query : query + 1])
    parts = [_dots(vector, singles(x[lo : lo + _WIDE])[None])[0] for lo in range(0, len(x), _WIDE)]
    exact = np.concatenate(parts)
    if skip_self:
        exact[query] = -np.inf
    order = np.argsort(-exact, kind="stable")[:k]
    return exact[order], order


# --- Pairs --------------------------------------------------------------------------------------------------------


class _Side:
    """Vectors, and their sketches where a basis is given."""

    def __init__(self, x: Vectors, basis: Singles | None) -> None:
        self.x, self.basis = x, basis
        self.sketch = None if basis is None else np.concatenate(
            [_sketch(units(x[lo : lo + _WIDE]), basis) for lo in range(0, len(x), _WIDE)]
        )  # fmt: skip


def _sketch(rows: Singles, basis: Singles) -> Singles:
    """Coordinates in the basis, and last the length outside it: a product of sketches is an upper bound of a cosine."""
    inside = rows @ basis
    left = np.maximum(1 - np.einsum("ij,ij->i", inside, inside, dtype=np.float64), 0)
    return np.concatenate((inside, np.sqrt(left + 1e-6).astype(np.float32)[:, None]), axis=1)


def _sketched(x: Vectors, y: Vectors, threshold: float) -> tuple[_Side, _Side]:
    """Both sides, with sketches if few enough pairs of a sample pass them."""
    basis = _basis(x, y, threshold)
    left = _Side(x, basis)
    return left, left if y is x else _Side(y, basis)


def _basis(x: Vectors, y: Vectors, threshold: float) -> Singles | None:
    if x.shape[1] <= 2 * _SKETCH or len(x) * len(y) < 1 << 24:
        return None
    sample = units(np.concatenate((x[:: max(1, len(x) // 2048)], y[:: max(1, len(y) // 2048)])))
    basis = np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, :_SKETCH]
    basis = np.ascontiguousarray(basis, np.float32)
    sketch = _sketch(sample, basis)
    passing = float(np.mean(sketch @ sketch.T >= threshold - _DOUBT))
    return basis if passing - 1 / len(sample) < _WORTH else None


def _block_pairs(n: int, m: int, within: bool) -> Iterator[tuple[int, int]]:
    for start in range(0, m, _WIDE):
        for top in range(0, n, _TALL):
            if not within or top < start + _WIDE:
                yield top, start


def _hits(left: _Side, right: _Side, top: int, start: int, least: float, within: bool) -> tuple[Rows, Rows]:
    """Pairs of a tile whose product, or its bound, reaches the least value."""
    if left.sketch is None or right.sketch is None:
        product = units(left.x[top : top + _TALL]) @ units(right.x[start : start + _WIDE]).T
    else:
        product = left.sketch[top : top + _TALL] @ right.sketch[start : start + _WIDE].T
    room = 4096
    while True:
        i, j = np.empty(room, np.int64), np.empty(room, np.int64)
        count = _collect(product, least, top, start, within, i, j)
        if count <= room:
            return i[:count], j[:count]
        room = count


def _confirmed(x: Vectors, y: Vectors, i: Rows, j: Rows, threshold: float) -> tuple[Rows, Rows, Singles]:
    step = max(1, _GATHER // max(1, x.shape[1]))
    parts = [
        _dots(singles(x[i[lo : lo + step]]), singles(y[j[lo : lo + step]])[:, None])[:, 0]
        for lo in range(0, len(i), step)
    ]
    similarity = np.concatenate(parts) if parts else np.empty(0, np.float32)
    fine = similarity >= np.float32(threshold)
    return i[fine], j[fine], similarity[fine]


def _no_pairs() -> tuple[Rows, Rows, Singles]:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


# --- Kernels ------------------------------------------------------------------------------------------------------


def compiled(function: Function) -> Function:
    """Compile and cache a function; sums may be reordered, but for given shapes always in the same way."""
    return cast(Function, numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})(function))


@compiled
def _keep_largest(tile: Singles, query_groups: Rows, groups: Rows, start: int, values: Singles, rows: Rows) -> None:
    """Merge a tile into one min-heap for each of its rows, skipping sixteen values at a time, and its own group."""
    height, width = tile.shape
    for i in range(height):
        heap, place = values[i], rows[i]
        low, own = heap[0], query_groups[i]
        for begin in range(0, width, 16):
            end = min(begin + 16, width)
            above = 0
            for j in range(begin, end):
                above += tile[i, j] > low
            if above == 0:
                continue
            for j in range(begin, end):
                if tile[i, j] > low and groups[j] != own:
                    _replace_root(heap, place, tile[i, j], start + j)
                    low = heap[0]


@compiled
def _replace_root(heap: Singles, place: Rows, value: float, row: int) -> None:
    size, hole = len(heap), 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[hole], place[hole] = heap[child], place[child]
        hole = child
    heap[hole], place[hole] = value, row


@compiled
def _dots(queries: Singles, rows: Singles) -> Singles:
    """Cosines of each query with its own rows, in double precision and always in the same order."""
    size, count, width = rows.shape
    cosines = np.empty((size, count), np.float32)
    for i in range(size):
        for j in range(count):
            product, left, right = 0.0, 0.0, 0.0
            for t in range(width):
                a, b = np.float64(queries[i, t]), np.float64(rows[i, j, t])
                product += a * b
                left += a * a
                right += b * b
            scale = np.sqrt(left) * np.sqrt(right)
            cosines[i, j] = min(1.0, max(-1.0, product / scale)) if scale > 0 else 0.0
    return cosines


@compiled
def _collect(product: Singles, least: float, top: int, start: int, within: bool, i: Rows, j: Rows) -> int:
    """Write the pairs that reach the least value while there is room; return how many there are."""
    count = 0
    height, width = product.shape
    for a in range(height):
        for begin in range(0, width, 16):
            end = min(begin + 16, width)
            above = 0
            for b in range(begin, end):
                above += product[a, b] >= least
            if above == 0:
                continue
            for b in range(begin, end):
                if product[a, b] >= least and (not within or top + a < start + b):
                    if count < len(i):
                        i[count], j[count] = top + a, start + b
                    count += 1
    return count
