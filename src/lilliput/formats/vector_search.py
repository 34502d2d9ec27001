# SPDX-License-Identifier: Apache-2.0
"""Exhaustive search of a codebook of vectors, and of the scales under which its entries fit best.

An entry of 4 or 8 columns is two halves, and a half takes few patterns of levels: 81 (4 columns of 3 levels) or 64
(2 columns of 8). The errors of all patterns of both halves are tabulated; an entry's error is then one addition, so
that trying every entry costs about 4 operations for each. Nothing is pruned: the entry found is the best one.

Arrays are float32 with vectors along the last axis, columns along the first. Sums run in a fixed order, the same on
numpy, torch and in the native encoder (native/formats/encode/vector_search.h).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from lilliput.arrays import Array, FloatArray
from lilliput.formats.codebooks import codebook
from lilliput.formats.levels import rounded_between, take
from lilliput.formats.scale_search import (
    REFINEMENTS,
    TIE,
    NearestMultiple,
    nonzero,
    ordered_sum,
    reciprocal,
)

# Vectors whose tables fit a core's cache together.
LANES = 4096
# Vectors of which numpy gathers all scores faster than it goes through the entries.
FEW = 256


@dataclass(frozen=True, slots=True, eq=False)
class VectorTable:
    """A codebook prepared for the search.

    entries: [n, columns].  levels: [k], what its columns hold, ascending.
    halves: int32 [2][n], pattern of the first and of the second half of each entry: the levels' numbers as digits of a
    number to the base k, first column first.
    """

    entries: FloatArray
    levels: FloatArray
    halves: tuple[np.ndarray[tuple[int], np.dtype[np.int32]], ...]


@cache
def vector_table(name: str) -> VectorTable:
    """The prepared codebook of that name."""
    entries = codebook(name)
    levels = np.unique(entries)
    digits = np.searchsorted(levels, entries).astype(np.int32)
    half = entries.shape[1] // 2
    places = len(levels) ** np.arange(half - 1, -1, -1, dtype=np.int32)
    return VectorTable(
        entries, levels, ((digits[:, :half] @ places).astype(np.int32), (digits[:, half:] @ places).astype(np.int32))
    )


@dataclass(frozen=True, slots=True)
class Found:
    """Best entry of each vector: its number, int32 [n], and its score, float32 [n] (the error without w y^2)."""

    index: Array
    score: Array


def best_entries(y: Array, w: Array, table: VectorTable, flips: Array | None = None) -> Found:
    """Entry with the least sum of w (y - entry)^2 for each vector; the first of equals.

    y, w: [columns, n].  flips: [n], 0 or 1: whether one column must take the other sign, the one where that costs the
    least; y is not negative then. None: no column ever does.
    """
    if y.shape[1] <= LANES:
        return _best_entries(y, w, table, flips)
    xp = array_namespace(y)
    parts = [
        _best_entries(
            y[:, start : start + LANES],
            w[:, start : start + LANES],
            table,
            None if flips is None else flips[start : start + LANES],
        )
        for start in range(0, y.shape[1], LANES)
    ]
    return Found(xp.concat([part.index for part in parts]), xp.concat([part.score for part in parts]))


def _best_entries(y: Array, w: Array, table: VectorTable, flips: Array | None) -> Found:
    xp = array_namespace(y)
    levels = xp.asarray(table.levels, device=device(y))[:, None]
    sums, costs = [], []
    for column in range(y.shape[0]):
        twice = y[column] + y[column]
        weighted = w[column] * levels
        sums.append(weighted * (levels - twice))
        if flips is not None:
            costs.append(weighted * ((twice + twice) * flips))
    half = y.shape[0] // 2
    halves = [_patterns(sums[:half], xp.add), _patterns(sums[half:], xp.add)]
    cheapest = [_patterns(costs[:half], xp.minimum), _patterns(costs[half:], xp.minimum)] if costs else None
    one_by_one = is_numpy_array(y) and y.shape[1] > FEW
    return _scan_numpy(halves, cheapest, table) if one_by_one else _scan(halves, cheapest, table)


def _patterns(columns: Sequence[Array], join: Callable[[Array, Array], Array]) -> Array:
    """[k, n] terms of 2 or 4 columns -> [k^2 or k^4, n], joined pairwise, first column slowest."""
    if len(columns) == 1:
        return columns[0]
    middle = len(columns) // 2
    first, second = _patterns(columns[:middle], join), _patterns(columns[middle:], join)
    xp = array_namespace(first)
    return xp.reshape(join(first[:, None, :], second[None, :, :]), (-1, first.shape[1]))


def _scan_numpy(halves: Sequence[Array], cheapest: Sequence[Array] | None, table: VectorTable) -> Found:
    """Entry by entry, in place: several times faster than gathering all scores."""
    n = halves[0].shape[1]
    best, index = np.full(n, np.inf, dtype=np.float32), np.zeros(n, dtype=np.int32)
    score, extra, is_better = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, bool)
    for entry, (a, b) in enumerate(zip(table.halves[0].tolist(), table.halves[1].tolist(), strict=True)):
        np.add(halves[0][a], halves[1][b], out=score)
        if cheapest is not None:
            np.minimum(cheapest[0][a], cheapest[1][b], out=extra)
            np.add(score, extra, out=score)
        np.less(score, best, out=is_better)
        np.copyto(best, score, where=is_better)
        np.copyto(index, entry, where=is_better)
    return Found(index, best)


def _scan(halves: Sequence[Array], cheapest: Sequence[Array] | None, table: VectorTable) -> Found:
    xp = array_namespace(halves[0])
    first, second = (xp.asarray(half, device=device(halves[0])) for half in table.halves)
    score = xp.take(halves[0], first, axis=0) + xp.take(halves[1], second, axis=0)
    if cheapest is not None:
        score = score + xp.minimum(xp.take(cheapest[0], first, axis=0), xp.take(cheapest[1], second, axis=0))
    return Found(xp.astype(xp.argmin(score, axis=0), xp.int32), xp.min(score, axis=0))


@dataclass(frozen=True, slots=True)
class Rounded:
    """Vectors rounded to codes: int32 [n], and the levels these stand for, float32 [columns, n]."""

    codes: Array
    levels: Array


def round_signed(y: Array, w: Array, table: VectorTable, index_bits: int, is_even: bool) -> Rounded:
    """Entries with signs, of one or two codebook vectors under one sign mask.

    is_even: the number of minus signs must be even; 7 bits of the mask are stored. Codes: indices, then the mask.
    """
    xp = array_namespace(y)
    is_negative = y < 0.0
    magnitude = xp.abs(y)
    odd = xp.astype(xp.sum(xp.astype(is_negative, xp.int32), axis=0) % 2, xp.float32) if is_even else None
    width = table.entries.shape[1]
    if width == y.shape[0]:
        indices = [best_entries(magnitude, w, table, odd).index]
    elif odd is None:
        indices = [best_entries(part, weights, table).index for part, weights in _halved(magnitude, w)]
    else:
        indices = _pair_with_one_flip(magnitude, w, table, odd)
    level = xp.concat([take(table.entries, index).T for index in indices], axis=0)
    if odd is not None:
        is_negative = is_negative ^ _cheapest_flip((w * level) * magnitude, odd)
    places = xp.asarray(1 << np.arange(y.shape[0], dtype=np.int32), device=device(y))[:, None]
    mask = xp.sum(xp.where(is_negative, places, 0), axis=0)
    codes = xp.astype(mask & 127 if is_even else mask, xp.int32) << (index_bits * len(indices))
    for number, index in enumerate(indices):
        codes = codes | (index << (index_bits * number))
    return Rounded(codes, xp.where(is_negative, -level, level))


def _halved(y: Array, w: Array) -> list[tuple[Array, Array]]:
    half = y.shape[0] // 2
    return [(y[:half], w[:half]), (y[half:], w[half:])]


def _pair_with_one_flip(magnitude: Array, w: Array, table: VectorTable, odd: Array) -> list[Array]:
    """Two entries; where the number of minus signs is odd, one column of either changes its sign."""
    xp = array_namespace(magnitude)
    plain = [best_entries(y, weights, table) for y, weights in _halved(magnitude, w)]
    flipped = [best_entries(y, weights, table, odd) for y, weights in _halved(magnitude, w)]
    is_first = flipped[0].score + plain[1].score <= plain[0].score + flipped[1].score
    return [
        xp.where(is_first, flipped[0].index, plain[0].index),
        xp.where(is_first, plain[1].index, flipped[1].index),
    ]


def _cheapest_flip(costs: Array, odd: Array) -> Array:
    """Boolean [columns, n]: the first column of least cost, where `odd` is not 0."""
    xp = array_namespace(costs)
    is_least = costs == xp.min(costs, axis=0)
    is_first = xp.cumulative_sum(xp.astype(is_least, xp.int32), axis=0) == 1
    return is_least & is_first & (odd != 0.0)


def round_shifted(y: Array, w: Array, table: VectorTable, shift: Array) -> tuple[Rounded, Array]:
    """Entries plus a shift [n]; also their scores [n], comparable between shifts."""
    found = best_entries(y - shift, w, table)
    # The term that best_entries leaves out differs between shifts: w ((y - shift)^2 - y^2).
    left_out = ordered_sum(w * (shift * (shift - (y + y))))
    return Rounded(found.index, take(table.entries, found.index).T + shift), found.score + left_out


# Rounds groups of weights in units of their scale: y, w [group, n] -> levels [group, n].
RoundGroups = Callable[[Array, Array], Array]


@dataclass(frozen=True, slots=True)
class VectorFit:
    """Best unrounded scale per group, and the weighted sum of squared levels there, each float32 [n]."""

    scale: Array
    curvature: Array


def search_positive_scale(x: Array, w: Array, roundings: Sequence[RoundGroups], anchors: Sequence[float]) -> VectorFit:
    """Choose positive scales for value = scale * level.

    anchors: levels that the largest magnitude of the group is tried at.  roundings: ways to round that may not mix
    within a group.
    """
    xp = array_namespace(x)
    peak = nonzero(xp.max(xp.abs(x), axis=0))
    best = xp.full_like(peak, -1.0)
    scale = curvature = xp.zeros_like(peak)
    for step in range(len(anchors) + REFINEMENTS):
        inverse = anchors[step] / peak if step < len(anchors) else reciprocal(scale)
        for rounding in roundings:
            level = rounding(x * inverse, w)
            weighted = w * level
            along, across = ordered_sum(weighted * x), ordered_sum(weighted * level)
            candidate = along / xp.where(across > 0.0, across, 1.0)
            gain = along * candidate
            is_better = (gain > best + xp.abs(best) * TIE) & (candidate >= 0.0)
            best = xp.where(is_better, gain, best)
            scale = xp.where(is_better, candidate, scale)
            curvature = xp.where(is_better, across, curvature)
    return VectorFit(scale, curvature)


def nearest_odd_halves(last_code: int) -> NearestMultiple:
    """The numbers code + 1/2, code 0..last_code."""
    return lambda values: rounded_between(values - 0.5, 0.0, float(last_code)) + 0.5
