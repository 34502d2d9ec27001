# SPDX-License-Identifier: Apache-2.0
"""Searches for the scale, and the zero point, of regions of any shape: `scale_search` for more than groups of a row.

The idea is the same: round under each of a list of candidate scales, solve least squares for the scale that suits those
codes, keep the best by weighted squared error, repeat from there. Sums are those of `regions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, FloatArray
from lilliput.formats.levels import rounded_between, take
from lilliput.formats.regions import Region
from lilliput.formats.scale_search import REFINEMENTS, TIE, bounded, nonzero, reciprocal

# float32 [256] 2^e for e = -128 … 127; below -126 the numbers are subnormal and exact.
POWERS: FloatArray = np.ldexp(np.float64(1), np.arange(-128, 128)).astype(np.float32)
# Rounds [rows, n] of weight / scale to levels; the slice tells which rows they are.
Rounding = Callable[[Array, slice], Array]


class Grid(Protocol):
    """The levels under a scale, as `Levels` and `PatternLevels` have them."""

    @property
    def first(self) -> float:
        """Lowest level."""

    @property
    def last(self) -> float:
        """Highest level."""

    def of(self, codes: Array) -> Array:
        """float32 level of each code."""

    def nearest(self, target: Array) -> Array:
        """uint8 code of the level nearest to float32 target."""

    def nearest_level(self, target: Array) -> Array:
        """float32 level nearest to float32 target."""


def clipping_fractions(bits: int, region: Region) -> tuple[float, ...]:
    """What multiples of the outermost level the largest weight of a region is tried at; above 1 it is clipped.

    Few levels over many weights gain most by clipping: in a group of 128 normal weights the best 4-bit scale clips at
    0.8 of the largest, in a row of 4096 heavy-tailed ones at a fifth.
    """
    furthest = {1: 2.0, 2: 4.0, 3: 3.0, 4: 2.2, 5: 1.8, 6: 1.5, 7: 1.3, 8: 1.25}[bits]
    if not region.is_group:
        furthest = 1 + 5 * (furthest - 1)
    count = 16 if region.is_group else 28
    nearest = 0.9
    ratio = (furthest / nearest) ** (1 / (count - 1))
    return tuple(round(nearest * ratio**index, 6) for index in range(count))


def outermost_peak(weight: Array, region: Region, grid: Grid) -> Array:
    """The largest magnitude of each region, signed where the grid reaches further to one side."""
    xp = array_namespace(weight)
    low, high = region.extremes(bounded(weight))
    if grid.first == -grid.last:
        return xp.maximum(high, -low)
    return xp.where(high >= -low, high, low)


def outermost_level(grid: Grid) -> float:
    """The level of largest magnitude, with its sign; the highest where both ends are as far."""
    return grid.first if -grid.first > grid.last else grid.last


def search_region_scale(
    weight: Array, importance: Array | None, region: Region, grid: Grid, fractions: Sequence[float]
) -> Array:
    """Choose the scale of each region for value = scale * level; float32 [region rows, region columns], unrounded.

    importance: weight of each squared error, broadcastable to `weight`.  fractions: see `clipping_fractions`.
    """
    xp = array_namespace(weight)
    weight = bounded(weight)
    peak = nonzero(outermost_peak(weight, region, grid))
    ends = [grid.last] if grid.first == -grid.last else [grid.first, grid.last]
    anchors = [end * fraction for fraction in sorted(fractions, reverse=True) for end in ends]
    best, scale = xp.full_like(peak, -1.0), xp.zeros_like(peak)
    for step in range(len(anchors) + REFINEMENTS):
        inverse = anchors[step] / peak if step < len(anchors) else reciprocal(scale)
        gain, candidate = _gain(weight, importance, region, inverse, lambda scaled, rows: grid.nearest_level(scaled))
        is_better = gain > best + xp.abs(best) * TIE
        best = xp.where(is_better, gain, best)
        scale = xp.where(is_better, candidate, scale)
    return scale


def search_region_exponent(
    weight: Array, importance: Array | None, region: Region, grid: Grid, exponents: Sequence[int]
) -> Array:
    """Choose e of each region for value = 2^e * level; float32 integers [region rows, region columns].

    exponents: tried relative to the smallest power that reaches the largest weight.
    """
    xp = array_namespace(weight)
    weight = bounded(weight)
    widest = covering_exponent(outermost_peak(weight, region, grid), grid)
    best, chosen = xp.full_like(widest, -float("inf")), widest
    for step in sorted(exponents, reverse=True):
        exponent = xp.clip(widest + float(step), -126.0, 127.0)
        scale = power_of_two(exponent)
        along, across = _sums(weight, importance, region, 1.0 / scale, lambda scaled, rows: grid.nearest_level(scaled))
        # Less than the error of all zeros by this much, at exactly this scale.
        gain = scale * (2.0 * along - scale * across)
        is_better = gain > best
        best = xp.where(is_better, gain, best)
        chosen = xp.where(is_better, exponent, chosen)
    return chosen


def power_of_two(exponent: Array) -> Array:
    """float32 2^e, exactly, for whole numbers e in -128 … 127."""
    xp = array_namespace(exponent)
    return take(POWERS, xp.astype(exponent, xp.int32) + 128)


def covering_exponent(peak: Array, grid: Grid) -> Array:
    """The smallest e, in -126 … 127, for which 2^e * the highest level reaches |peak|."""
    xp = array_namespace(peak)
    exponent = xp.ceil(xp.log2(nonzero(xp.abs(peak)) / grid.last))
    return xp.where(peak == 0, xp.zeros_like(peak), xp.clip(exponent, -126.0, 127.0))


def search_region_line(
    weight: Array, importance: Array | None, region: Region, last_code: int, fractions: Sequence[float]
) -> tuple[Array, Array]:
    """Choose scale and integer zero point of each region for value = scale * (code - zero_point), codes 0..last_code.

    Returns both float32 [region rows, region columns]; the zero point is one of the codes, so that 0 is in range.
    """
    xp = array_namespace(weight)
    weight = bounded(weight)
    low, high = region.extremes(weight)
    low, high = xp.where(low < 0.0, low, 0.0), xp.where(high > 0.0, high, 0.0)
    width = nonzero(high - low)
    # 1 over the widest scale; where the zero point would lie if it were no integer.
    widest, origin = last_code / width, -low / width * last_code
    best, scale, zero = xp.full_like(width, -1.0), xp.zeros_like(width), xp.zeros_like(width)
    tries = [(fraction, toward) for fraction in sorted(fractions, reverse=True) for toward in (xp.floor, xp.ceil)]
    for step in range(len(tries) + REFINEMENTS):
        if step < len(tries):
            inverse, this_zero = widest * tries[step][0], xp.clip(tries[step][1](origin), 0.0, float(last_code))
        else:
            inverse, this_zero = reciprocal(scale), zero
        gain, candidate = _gain(weight, importance, region, inverse, _around(region, this_zero, last_code, weight))
        is_better = (gain > best + xp.abs(best) * TIE) & (candidate >= 0.0)
        best = xp.where(is_better, gain, best)
        scale = xp.where(is_better, candidate, scale)
        zero = xp.where(is_better, this_zero, zero)
    return scale, zero


def _around(region: Region, zero_point: Array, last_code: int, weight: Array) -> Rounding:
    """Integers from -zero_point to last_code - zero_point."""
    xp = array_namespace(weight)
    spread = region.spread(zero_point, weight.shape[0], None)

    def level(scaled: Array, rows: slice) -> Array:
        zero = spread if spread.shape[0] == 1 else spread[rows]
        return xp.clip(xp.round(scaled), -zero, last_code - zero) + 0.0

    return level


def _gain(
    weight: Array, importance: Array | None, region: Region, inverse: Array, level: Rounding
) -> tuple[Array, Array]:
    """By how much the best scale for these codes lowers the error of all zeros, and that scale."""
    xp = array_namespace(weight)
    along, across = _sums(weight, importance, region, inverse, level)
    scale = along / xp.where(across > 0.0, across, 1.0)
    return along * scale, scale


def _sums(
    weight: Array, importance: Array | None, region: Region, inverse: Array, level: Rounding
) -> tuple[Array, Array]:
    """Sums of importance * level * weight and importance * level^2 over each region."""
    xp = array_namespace(weight)
    rows, columns = weight.shape
    spread = region.spread(inverse, rows, None)
    along, across = [], []
    for part in region.pieces(rows, columns):
        x = weight[part]
        levels = level(x * (spread if spread.shape[0] == 1 else spread[part]), part)
        weighted = levels if importance is None else levels * _rows_of(importance, part)
        along.append(region.sum_columns(weighted * x))
        across.append(region.sum_columns(weighted * levels))
    return region.sum_rows(xp.concat(along, axis=0)), region.sum_rows(xp.concat(across, axis=0))


def _rows_of(importance: Array, part: slice) -> Array:
    return importance[part] if importance.ndim == 2 and importance.shape[0] != 1 else importance


def rounded_code(target: Array, inverse: Array, offset: Array, last_code: int) -> Array:
    """uint8 code of target: round(target / scale) + offset, within 0..last_code."""
    xp = array_namespace(target)
    codes = xp.round(bounded(target) * inverse) + offset
    return xp.astype(rounded_between(codes, 0.0, float(last_code)), xp.uint8)
