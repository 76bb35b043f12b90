"""Coverage: the rows that, taken together, resemble all others most (facility location).

The greedy choice is lazy: a gain only ever shrinks, so a candidate whose old gain is below the best need not be
computed again. MaxHerding is this with an RBF kernel, ProbCover with a ball; towards exemplars it becomes PRISM's
mutual information. Beyond some twenty thousand rows every row still counts, but only a pool of rows may be picked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.greedy.neighbours import Doubles, Flags, Rows, Singles, Vectors, compiled, finite, singles, units

Floats = NDArray[np.floating]
Kernel = Callable[[Singles, Singles, Singles], None]

_EXACT = 4e8  # rows times candidates up to which every candidate is considered
_POOL = 3072  # candidates in the pool beyond that
_SHARE = 4  # candidates in the pool for every pick, where that is more
_SKETCH = 2048  # pool rows by which the worst covered rows are found
_WORST = 8192  # worst covered rows, the best of which join the pool
_ROUGH, _ROUGH_ROWS = 16, 8192  # with a pool: picks that are made by a sample of the rows, and its size
_NARROW = 0.25  # the share of kernel values above the cover from which on they are stored
_ENTRIES = 6e7  # the most that are stored: 480 MB
_NEAREST = 6  # rows near the mean of every pick's rows, in a second round
_TALL, _WIDE, _TILE = 256, 16384, 1 << 22
_BATCH = 32
_TIE = 1e-5  # gains that differ by less than this share are ties, so that rounding does not decide
_SAMPLE, _AMONG = 512, 50_000  # rows that estimate a bandwidth


class Gains(NamedTuple):
    """Picks in order, what each added to the objective, and the kernel's bandwidth (or radius; 0 for cosine)."""

    picks: Rows
    gains: Singles
    bandwidth: float


class Targeted(NamedTuple):
    """Picks in order, what each added, the exemplar that each resembles most and how much."""

    picks: Rows
    gains: Singles
    exemplar: Rows
    similarity: Singles


def coverage(
    x: Vectors,
    budget: int,
    *,
    weights: Floats | None = None,
    covered: Rows | None = None,
    candidates: Flags | None = None,
    kernel: Literal["rbf", "cosine"] = "rbf",
    bandwidth: float | None = None,
    pool: int | None = None,
) -> Gains:
    """Pick rows greedily so that the weighted sum of every row's best kernel value with a pick grows most.

    Args:
        x: (n, d).
        budget: Rows to pick; all candidates if there are fewer.
        weights: The weight of each row, at least 0; without it all are equal.
        covered: Rows already chosen; they cover, too, and are not picked.
        candidates: Which rows may be picked.
        kernel: `rbf` is MaxHerding; `cosine` counts negative cosines as 0.
        bandwidth: The RBF kernel's; without it the median distance to a near neighbour, see `median_bandwidth`.
        pool: Number of candidates to consider; without it all where that is fast enough, else several per pick.

    Returns:
        The same picks as plain greedy whenever all candidates are considered; gains within 1e-5 of the best are ties.
    """
    x = finite(x)
    if kernel == "rbf" and bandwidth is None:
        bandwidth = median_bandwidth(x, max(budget, 1))
    width = float(bandwidth or 0)
    return _cover(x, budget, _rbf(width) if kernel == "rbf" else _cosine, width, weights, covered, candidates, pool)


def prob_cover(
    x: Vectors,
    budget: int,
    radius: float,
    *,
    weights: Floats | None = None,
    covered: Rows | None = None,
    candidates: Flags | None = None,
    pool: int | None = None,
) -> Gains:
    """Pick rows greedily so that most rows lie within the Euclidean radius of a pick; see `coverage` for the rest."""
    return _cover(finite(x), budget, _ball(radius), radius, weights, covered, candidates, pool)


def median_bandwidth(x: Vectors, budget: int) -> float:
    """The median distance to a row's k-th neighbour, where k is the number of rows per pick, but from 5 to 64."""
    x = finite(x)
    few, many = singles(_strided(x, _SAMPLE)), singles(_strided(x, _AMONG))
    k = min(max(len(x) / budget, 5), 64) * len(many) / max(len(x), 1)
    k = min(max(1, round(k)), len(many) - 1)
    if k < 1:
        return 1.0
    lengths = _squares(many)
    distances = np.concatenate([_kth(few[lo : lo + 64], many, lengths, k) for lo in range(0, len(few), 64)])
    return float(np.median(distances)) or 1.0


def targeted(
    x: Vectors,
    exemplars: Vectors,
    budget: int,
    *,
    negatives: Vectors | None = None,
    eta: float = 1.0,
    penalty: float = 1.0,
    separation: float = 0.98,
    candidates: Flags | None = None,
) -> Targeted:
    """Pick rows that resemble the exemplars and, together, all of the exemplars (FLQMI, as in PRISM).

    A pick gains what it adds to every exemplar's best cosine, plus `eta` times its own best cosine with an exemplar,
    less `penalty` times its best cosine with a negative. Negative cosines count as 0.

    Args:
        x: (n, d).
        exemplars: (m, d), at least one.
        budget: Rows to pick.
        negatives: (q, d), vectors that the picks should not resemble.
        eta: The weight of a pick's own relevance.
        penalty: The weight of the negatives.
        separation: No two picks are this similar; fewer than the budget are returned when only such copies remain.
        candidates: Which rows may be picked.

    Returns:
        The picks, in order, each with its gain and its most similar exemplar.
    """
    x, wanted = finite(x), units(finite(exemplars, "exemplars"))
    if not len(wanted):
        raise ValueError("exemplars is empty; at least one row is needed")
    unwanted = None if negatives is None or not len(negatives) else units(finite(negatives, "negatives"))
    bound, own = _relevance(x, wanted, unwanted, eta, penalty)
    bound[~_allowed(len(x), candidates, None)] = -np.inf
    picks, gains = _aim(x, wanted, bound, own, budget, separation)
    similarity = np.maximum(units(x[picks]) @ wanted.T, -1)
    best = similarity.argmax(axis=1).astype(np.int64) if len(picks) else picks
    return Targeted(picks, gains, best, np.take_along_axis(similarity, best[:, None], 1)[:, 0])


# --- Kernels ------------------------------------------------------------------------------------------------------


def _rbf(bandwidth: float) -> Kernel:
    if not bandwidth > 0:
        raise ValueError(f"bandwidth {bandwidth} is not positive")
    scale = np.float32(1 / bandwidth**2)

    def kernel(tile: Singles, left: Singles, right: Singles) -> None:
        """exp(-|a - b|^2 / 2h^2) in place of the product of a and b."""
        tile -= left[:, None] / 2
        tile -= right / 2
        tile *= scale
        np.exp(np.minimum(tile, 0, out=tile), out=tile)

    return kernel


def _ball(radius: float) -> Kernel:
    if not radius >= 0:
        raise ValueError(f"radius {radius} is negative")
    limit = np.float32(radius**2 * (1 + 1e-6) + 1e-6)

    def kernel(tile: Singles, left: Singles, right: Singles) -> None:
        tile *= -2
        tile += left[:, None]
        tile += right
        np.less_equal(tile, limit, out=tile)

    return kernel


def _cosine(tile: Singles, left: Singles, right: Singles) -> None:
    tile *= _inverse(left)[:, None]
    tile *= _inverse(right)
    np.maximum(tile, 0, out=tile)


def _inverse(squares: Singles) -> Singles:
    return np.where(squares > 0, 1 / np.sqrt(np.maximum(squares, 1e-30)), 0).astype(np.float32)


def _squares(block: Singles) -> Singles:
    return np.asarray(np.einsum("ij,ij->i", block, block, dtype=np.float64), np.float32)


def _strided(x: Vectors, count: int) -> Vectors:
    """Rows spread evenly; as rows are ordered by content id, that is a fair sample."""
    return x[np.linspace(0, len(x) - 1, min(count, len(x))).astype(np.int64)]


def _kth(rows: Singles, many: Singles, lengths: Singles, k: int) -> Singles:
    squared = rows @ many.T
    squared *= -2
    squared += lengths
    squared.partition(k, axis=1)
    return np.asarray(np.sqrt(np.maximum(squared[:, k] + _squares(rows), 0)), np.float32)


# --- Lazy greedy --------------------------------------------------------------------------------------------------


class _Greedy:
    """Lazy greedy over rows to cover and options that cover them.

    At first a gain takes a product with every row. After a few picks an option can only improve the few rows that it is
    nearer to than their pick; one pass then stores these, and gains take next to no time.
    """

    def __init__(self, x: Vectors, options: Singles, kernel: Kernel, weights: Singles, cover: Singles) -> None:
        self.x, self.options, self.kernel, self.weights = x, options, kernel, weights
        self.cover = cover
        self.squares = np.concatenate([_squares(singles(x[part])) for part in _parts(len(x))])
        self.option_squares = _squares(options)
        self.bound = np.full(len(options), np.inf)
        self.useful: _Useful | None = None

    def run(self, budget: int) -> tuple[Rows, Singles]:
        """Pick places of options, lowest first among ties; return them with their gains."""
        places, gains = np.empty(budget, np.int64), np.empty(budget, np.float32)
        for step in range(budget):
            if self.useful is None and step & (step - 1) == 0:  # now and then: before picks 0, 1, 2, 4, 8, ...
                self._narrow()
            places[step] = self._settle()
            gains[step] = self.take(int(places[step]))
        return places, gains

    def take(self, place: int) -> float:
        """Let an option cover; return its gain."""
        self.bound[place] = -np.inf
        if self.useful is not None:
            return float(_take_useful(place, *self.useful, self.cover, self.weights))
        return _take(self._values(np.array([place])), self.cover, self.weights)

    def _values(self, places: Rows) -> Singles:
        """Kernel values of a few options with every row."""
        values = np.empty((len(places), len(self.x)), np.float32)
        for part in _parts(len(self.x)):
            values[:, part] = self._tile(places, part)
        return values

    def _tile(self, places: Rows | slice, part: slice, block: Singles | None = None) -> Singles:
        tile = self.options[places] @ (singles(self.x[part]) if block is None else block).T
        self.kernel(tile, self.option_squares[places], self.squares[part])
        return tile

    def _gains(self, places: Rows) -> Doubles:
        gains = np.zeros(len(places))
        if self.useful is not None:
            _useful_gains(places, *self.useful, self.cover, self.weights, gains)
            return gains
        for part in _parts(len(self.x)):
            block = singles(self.x[part])
            for first in range(0, len(places), _TALL):
                some = slice(first, first + _TALL)
                _add_gains(self._tile(places[some], part, block), self.cover[part], self.weights[part], gains[some])
        return gains

    def _settle(self) -> int:
        """Update gains, best first, until no old one can win; return the lowest place of the best."""
        bound, fresh, best = self.bound, np.zeros(len(self.bound), bool), -np.inf
        if np.isposinf(bound).any():
            unknown = np.flatnonzero(np.isposinf(bound))
            bound[unknown], fresh[unknown] = self._gains(unknown), True
            best = float(bound.max())
        while True:
            winner = int(np.argmax(fresh & (bound >= _tied(best)))) if best > -np.inf else len(bound)
            ahead = _contenders(np.where(fresh, -np.inf, bound), best, winner)
            if not len(ahead):
                return winner
            bound[ahead], fresh[ahead] = self._gains(ahead), True
            best = max(best, float(bound[ahead].max()))

    def _narrow(self) -> None:
        """Store the kernel values that may still be useful, once a sample shows that they are few."""
        sample = np.unique(np.linspace(0, len(self.options) - 1, 64).astype(np.int64))
        share = float(np.mean(self._values(sample) > self.cover))
        size = len(self.x) * len(self.options)
        if share <= min(_NARROW, _ENTRIES / size):
            self.useful = self._stored()
            left = np.flatnonzero(self.bound > -np.inf)
            self.bound[left] = self._gains(left)

    def _stored(self) -> _Useful:
        parts = _parts(len(self.x))
        begin = np.zeros((len(self.options), len(parts)), np.int64)
        end, rows, values, total = begin.copy(), [], [], 0
        for column, part in enumerate(parts):
            block = singles(self.x[part])
            for first in range(0, len(self.options), _TALL):
                some = slice(first, first + _TALL)
                tile = self._tile(some, part, block)
                counts = _count(tile, self.cover[part])
                end[some, column] = total + np.cumsum(counts)
                begin[some, column] = end[some, column] - counts
                row, value = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), np.float32)
                _write(tile, self.cover[part], part.start, row, value)
                rows.append(row)
                values.append(value)
                total += len(row)
        return _Useful(begin, end, np.concatenate(rows), np.concatenate(values))


class _Useful(NamedTuple):
    """Kernel values above a row's cover: for every option several stretches begin..end of rows and values."""

    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    rows: NDArray[np.int32]
    values: Singles


def _parts(n: int) -> list[slice]:
    return [slice(lo, min(lo + _WIDE, n)) for lo in range(0, n, _WIDE)]


def _tied(best: float) -> float:
    """The least gain that counts as equal to the best one."""
    return best - abs(best) * _TIE if best > -np.inf else best


def _contenders(stale: Doubles, best: float, winner: int) -> Rows:
    """The first few places, by old gain and then place, that may still beat the winner or tie with it from below."""
    beats = stale > best + abs(best) * _TIE if best > -np.inf else stale > -np.inf
    beats[:winner] |= (stale[:winner] >= _tied(best)) & (stale[:winner] > -np.inf)
    ahead = np.flatnonzero(beats)
    if len(ahead) <= _BATCH:
        return ahead
    least = -np.partition(-stale[ahead], _BATCH - 1)[_BATCH - 1]
    above, equal = ahead[stale[ahead] > least], ahead[stale[ahead] == least]
    return np.sort(np.concatenate((above, equal[: _BATCH - len(above)])))


def _cover(
    x: Vectors,
    budget: int,
    kernel: Kernel,
    width: float,
    weights: Floats | None,
    covered: Rows | None,
    candidates: Flags | None,
    pool: int | None,
) -> Gains:
    rows = np.flatnonzero(_allowed(len(x), candidates, covered))
    checked, budget = _weights(len(x), weights), max(0, min(budget, len(rows)))
    if not budget:
        return Gains(np.empty(0, np.int64), np.empty(0, np.float32), width)
    cover = np.zeros(len(x), np.float32)
    if covered is not None and len(covered):
        _raise(cover, x, singles(x[np.asarray(covered, np.int64)]), kernel)
    if pool is None and len(x) * len(rows) > _EXACT:
        pool = max(_POOL, _SHARE * budget)
    if pool is not None and max(pool, budget) < len(rows):
        every, rows = rows, _pooled(x, rows, max(pool, budget), kernel, checked, cover)
        places, _ = _rough_then_exact(x, singles(x[rows]), budget, kernel, checked, cover.copy())
        rows = np.union1d(_central(x, every, rows[places]), rows[places])
        places, gains = _rough_then_exact(x, singles(x[rows]), budget, kernel, checked, cover)
    else:
        places, gains = _Greedy(x, singles(x[rows]), kernel, checked, cover).run(budget)
    return Gains(rows[places], gains, width)


def _raise(cover: Singles, x: Vectors, options: Singles, kernel: Kernel) -> None:
    """Let all of the options cover at once."""
    squares = _squares(options)
    for part in _parts(len(x)):
        block = singles(x[part])
        lengths = _squares(block)
        for first in range(0, len(options), _TALL):
            tile = options[first : first + _TALL] @ block.T
            kernel(tile, squares[first : first + _TALL], lengths)
            np.maximum(cover[part], tile.max(axis=0), out=cover[part])


def _rough_then_exact(
    x: Vectors, options: Singles, budget: int, kernel: Kernel, weights: Singles, cover: Singles
) -> tuple[Rows, Singles]:
    """Make the first picks, whose gains are large, by a sample of the rows, and all others by every row."""
    some = np.linspace(0, len(x) - 1, min(_ROUGH_ROWS, len(x))).astype(np.int64)
    rough = _Greedy(x[some], options, kernel, weights[some], cover[some])
    first, _ = rough.run(min(_ROUGH, budget))
    greedy = _Greedy(x, options, kernel, weights, cover)
    gains = np.array([greedy.take(int(place)) for place in first], np.float32)
    rest, more = greedy.run(budget - len(first))
    return np.concatenate((first, rest)), np.concatenate((gains, more))


def _central(x: Vectors, rows: Rows, picks: Rows) -> Rows:
    """The rows nearest to the mean of the rows that each pick is nearest to: candidates that the pool may lack."""
    sums, counts = np.zeros((len(picks), x.shape[1])), np.zeros(len(picks))
    options = singles(x[picks])
    half = _squares(options)[:, None] / 2
    for part in _parts(len(x)):
        block = singles(x[part])
        nearest = np.argmax(options @ block.T - half, axis=0)
        _add_rows(block, nearest, sums, counts)
    means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    near: Rows = np.zeros((len(picks), 0), np.int64)
    best: Singles = np.zeros((len(picks), 0), np.float32)
    for part in _parts(len(rows)):
        block = singles(x[rows[part]])
        score = means @ block.T - _squares(block) / 2
        few = np.argpartition(-score, min(_NEAREST, len(block)) - 1, axis=1)[:, :_NEAREST]
        near = np.concatenate((near, rows[part][few]), axis=1)
        best = np.concatenate((best, np.take_along_axis(score, few, 1)), axis=1)
        few = np.argsort(-best, axis=1, kind="stable")[:, :_NEAREST]
        near, best = np.take_along_axis(near, few, 1), np.take_along_axis(best, few, 1)
    return np.unique(near)


def _pooled(x: Vectors, rows: Rows, pool: int, kernel: Kernel, weights: Singles, cover: Singles) -> Rows:
    """An even sample of the candidates, and more where it covers rows badly: these are the rare clusters."""
    even = rows[np.linspace(0, len(rows) - 1, pool - pool // 4).astype(np.int64)]
    sketch = cover.copy()
    _raise(sketch, x, singles(_strided(x[even], _SKETCH)), kernel)
    lacking = np.sort(rows[np.argsort((sketch[rows] - 1) * weights[rows], kind="stable")[:_WORST]])
    inner = _Greedy(x[lacking], singles(x[lacking]), kernel, weights[lacking], sketch[lacking])
    places, _ = inner.run(min(pool // 4, len(lacking)))
    return np.union1d(even, lacking[places])


def _allowed(n: int, candidates: Flags | None, covered: Rows | None) -> Flags:
    allowed = np.ones(n, bool) if candidates is None else np.array(candidates, bool)
    if allowed.shape != (n,):
        raise ValueError(f"candidates has shape {allowed.shape}; expected ({n},)")
    if covered is not None:
        allowed[np.asarray(covered, np.int64)] = False
    return allowed


def _weights(n: int, weights: Floats | None) -> Singles:
    if weights is None:
        return np.ones(n, np.float32)
    checked = np.asarray(weights, np.float32)
    if checked.shape != (n,) or not np.isfinite(checked).all() or (checked < 0).any():
        raise ValueError(f"weights must be {n} finite numbers, none negative")
    return checked


# --- Towards exemplars --------------------------------------------------------------------------------------------


def _relevance(
    x: Vectors, wanted: Singles, unwanted: Singles | None, eta: float, penalty: float
) -> tuple[Doubles, Doubles]:
    """Each row's gain as the first pick, and the part of it that does not depend on other picks."""
    first, own = np.empty(len(x)), np.empty(len(x))
    step = max(1, _TILE // max(len(wanted), x.shape[1], 1))
    for lo in range(0, len(x), step):
        block = units(x[lo : lo + step])
        similar = np.maximum(block @ wanted.T, 0)
        part = eta * similar.max(axis=1).astype(np.float64)
        if unwanted is not None:
            part -= penalty * _best(block, unwanted)
        own[lo : lo + step] = part
        first[lo : lo + step] = part + similar.sum(axis=1, dtype=np.float64)
    return first, own


def _best(block: Singles, others: Singles) -> Singles:
    best = np.zeros(len(block), np.float32)
    for lo in range(0, len(others), 2048):
        np.maximum(best, (block @ others[lo : lo + 2048].T).max(axis=1), out=best)
    return best


def _aim(
    x: Vectors, wanted: Singles, bound: Doubles, own: Doubles, budget: int, separation: float
) -> tuple[Rows, Singles]:
    """Lazy greedy; a row too similar to a pick is dropped as soon as its gain is computed."""
    best = np.zeros(len(wanted), np.float32)
    budget = max(0, min(budget, int(np.sum(bound > -np.inf))))
    chosen = np.empty((budget, x.shape[1]), np.float32)
    picks, gains = np.empty(budget, np.int64), np.empty(budget, np.float32)
    for step in range(budget):
        row, gain = _next(x, wanted, bound, own, best, chosen[:step], separation)
        if row < 0:
            return picks[:step], gains[:step]
        picks[step], gains[step], bound[row] = row, gain, -np.inf
        chosen[step] = units(x[row : row + 1])[0]
        np.maximum(best, wanted @ chosen[step], out=best)
    return picks, gains


def _next(
    x: Vectors, wanted: Singles, bound: Doubles, own: Doubles, best: Singles, chosen: Singles, separation: float
) -> tuple[int, float]:
    fresh: dict[int, float] = {}
    while True:
        top = max(fresh.values(), default=-np.inf)
        few = min(256, len(bound))
        ahead = np.argpartition(-bound, few - 1)[:few]
        stale = np.array([row for row in ahead if int(row) not in fresh and bound[row] >= _tied(top)], np.int64)
        stale = stale[bound[stale] > -np.inf]
        if not len(stale):
            ties = [row for row, gain in fresh.items() if gain >= _tied(top)]
            return (min(ties), top) if ties else (-1, top)
        rows = units(x[stale])
        bound[stale] = own[stale] + np.maximum(rows @ wanted.T - best, 0).sum(axis=1, dtype=np.float64)
        if len(chosen):
            bound[stale[(rows @ chosen.T).max(axis=1) >= separation]] = -np.inf
        fresh.update({int(row): float(bound[row]) for row in stale if bound[row] > -np.inf})


# --- Compiled -----------------------------------------------------------------------------------------------------


@compiled
def _gain(column: Singles, cover: Singles, weights: Singles) -> float:
    total = 0.0
    for i in range(len(column)):
        total += weights[i] * max(column[i] - cover[i], np.float32(0))
    return total


@compiled
def _add_rows(block: Singles, place: Rows, sums: Doubles, counts: Doubles) -> None:
    for i in range(len(block)):
        counts[place[i]] += 1
        for t in range(block.shape[1]):
            sums[place[i], t] += block[i, t]


@compiled
def _add_gains(tile: Singles, cover: Singles, weights: Singles, gains: Doubles) -> None:
    for row in range(len(tile)):
        gains[row] += _gain(tile[row], cover, weights)


@compiled
def _take(values: Singles, cover: Singles, weights: Singles) -> float:
    total = _gain(values[0], cover, weights)
    for i in range(len(cover)):
        cover[i] = max(cover[i], values[0, i])
    return total


@compiled
def _count(tile: Singles, cover: Singles) -> Rows:
    counts = np.zeros(len(tile), np.int64)
    for row in range(len(tile)):
        count = 0
        for i in range(len(cover)):
            count += tile[row, i] > cover[i]
        counts[row] = count
    return counts


@compiled
def _write(tile: Singles, cover: Singles, start: int, rows: NDArray[np.int32], values: Singles) -> None:
    """Store the values above the cover, skipping sixteen at a time."""
    place = 0
    for row in range(len(tile)):
        for lo in range(0, len(cover), 16):
            hi = min(lo + 16, len(cover))
            above = 0
            for i in range(lo, hi):
                above += tile[row, i] > cover[i]
            if above == 0:
                continue
            for i in range(lo, hi):
                if tile[row, i] > cover[i]:
                    rows[place], values[place] = start + i, tile[row, i]
                    place += 1


@compiled
def _useful_gains(
    places: Rows,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    rows: NDArray[np.int32],
    values: Singles,
    cover: Singles,
    weights: Singles,
    gains: Doubles,
) -> None:
    for k in range(len(places)):
        total = 0.0
        for part in range(begin.shape[1]):
            for entry in range(begin[places[k], part], end[places[k], part]):
                row = rows[entry]
                total += weights[row] * max(values[entry] - cover[row], np.float32(0))
        gains[k] = total


@compiled
def _take_useful(
    place: int,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    rows: NDArray[np.int32],
    values: Singles,
    cover: Singles,
    weights: Singles,
) -> float:
    total = 0.0
    for part in range(begin.shape[1]):
        for entry in range(begin[place, part], end[place, part]):
            row = rows[entry]
            if values[entry] > cover[row]:
                total += weights[row] * (values[entry] - cover[row])
                cover[row] = values[entry]
    return total
