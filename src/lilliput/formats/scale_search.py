# SPDX-License-Identifier: Apache-2.0
"""Searches for the scale (and minimum) of a group: the arithmetic behind every `fit`.

Each search tries a list of candidate scales, rounds the group to codes under each, solves least squares for the scale
that suits those codes, and keeps the candidate whose weighted squared error is smallest. Then it repeats from there.

Groups lie along the last axis: x, w are float32 [group, n]. Arithmetic is float32 and in a fixed order, so that the
native encoder (native/formats/encode) gives the same codes; no result depends on thread count or library.
Idea: ggml's make_qx_quants and make_qkx3_quants. Ours tries both signs of a symmetric scale, reaches further to both
sides, and refines: see benchmarks/encoders.py for what that gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.levels import Levels, rounded_between

# A group whose largest magnitude is below this is zero in every format: the smallest fp16 scale is 6e-8.
TINY = 1e-12
# Beyond every format's range (Q6_K reaches 2.7e8); keeps sums of squares finite.
HUGE = 1e9
LARGEST_HALF = 65504.0
LARGEST_FLOAT = 3e38
# Gains this close are rounding noise: a lone outlier fits -4, -3, -2 and -1 scales alike, and the finest, tried first,
# leaves the block's other groups the finest steps.
TIE = 5e-7
# Rounds of least squares and rounding from the best candidate on.
REFINEMENTS = 2


@dataclass(frozen=True, slots=True)
class ScaleFit:
    """Best unrounded scale per group, and the weighted sum of squared levels there, each float32 [n].

    The error of a nearby scale s is about constant + curvature * (s - scale)^2.
    """

    scale: Array
    curvature: Array


@dataclass(frozen=True, slots=True)
class LineFit:
    """Best unrounded value = scale * code - minimum per group, each float32 [n].

    curvature: of the error in `scale` when the minimum follows.  mean_code: weighted mean of the codes.
    weight_sum: curvature of the error in `minimum`.
    """

    scale: Array
    minimum: Array
    curvature: Array
    mean_code: Array
    weight_sum: Array


def grouped(array: Array, group: int) -> Array:
    """[rows, columns] -> contiguous [group, rows * columns / group]."""
    xp = array_namespace(array)
    flat = xp.reshape(xp.astype(array, xp.float32), (-1, group))
    return xp.stack([flat[:, column] for column in range(group)])


def bounded(weight: Array) -> Array:
    """Weight clipped to ±HUGE."""
    return array_namespace(weight).clip(weight, -HUGE, HUGE)


def grouped_importance(importance: Array | None, weight: Array, group: int) -> Array:
    """Importance in the shape of `grouped(weight)`; ones for None."""
    xp = array_namespace(weight)
    if importance is None:
        return xp.ones_like(grouped(weight, group))
    return grouped(xp.broadcast_to(importance, weight.shape), group)


def ordered_sum(terms: Array) -> Array:
    """Sum [4 k, n] over the first axis: four interleaved running sums, then (0 + 2) + (1 + 3)."""
    total = terms[0:4]
    for start in range(4, terms.shape[0], 4):
        total = total + terms[start : start + 4]
    return (total[0] + total[2]) + (total[1] + total[3])


def to_half(values: Array) -> Array:
    """Round to fp16, saturating."""
    xp = array_namespace(values)
    return xp.astype(xp.clip(values, -LARGEST_HALF, LARGEST_HALF), xp.float16)


def half_rounded(values: Array) -> Array:
    """Round to fp16, as float32."""
    xp = array_namespace(values)
    return xp.astype(to_half(values), xp.float32)


def reciprocal(values: Array) -> Array:
    """1 / v; 0 for a v that is zero or too small to matter."""
    xp = array_namespace(values)
    usable = xp.abs(values) >= TINY
    return xp.where(usable, 1.0 / xp.where(usable, values, 1.0), 0.0)


def peak_of(x: Array) -> Array:
    """The value of largest magnitude along the first axis, with its sign."""
    xp = array_namespace(x)
    high, low = xp.max(x, axis=0), xp.min(x, axis=0)
    return xp.where(high >= -low, high, low)


def nonzero(values: Array) -> Array:
    """The values, but 1 where they are too small to matter."""
    xp = array_namespace(values)
    return xp.where(xp.abs(values) >= TINY, values, 1.0)


def search_scale(x: Array, w: Array, levels: Levels, anchors: Sequence[float]) -> ScaleFit:
    """Choose signed scales for value = scale * level.

    anchors: levels that the largest magnitude of the group is tried at, finest scale first; beyond `levels`' ends it
    is clipped.
    """
    xp = array_namespace(x)
    peak = nonzero(peak_of(x))
    best = xp.full_like(peak, -1.0)
    scale = curvature = xp.zeros_like(peak)
    for step in range(len(anchors) + REFINEMENTS):
        inverse = anchors[step] / peak if step < len(anchors) else reciprocal(scale)
        level = levels.nearest_level(x * inverse)
        weighted = w * level
        along, across = ordered_sum(weighted * x), ordered_sum(weighted * level)
        candidate = along / xp.where(across > 0.0, across, 1.0)
        gain = along * candidate
        is_better = gain > best + xp.abs(best) * TIE
        best = xp.where(is_better, gain, best)
        scale = xp.where(is_better, candidate, scale)
        curvature = xp.where(is_better, across, curvature)
    return ScaleFit(scale, curvature)


def scale_error(x: Array, w: Array, levels: Levels, scale: Array) -> Array:
    """Weighted squared error [n] of rounding each group under `scale`."""
    residual = x - scale * levels.nearest_level(x * reciprocal(scale))
    return ordered_sum((w * residual) * residual)


@dataclass(frozen=True, slots=True)
class LineCandidate:
    """One start of `search_line`: codes = round((x - low') * last_code * stretch / range').

    low_cut, high_cut: parts of the range cut off below and above.
    """

    stretch: float
    low_cut: float = 0.0
    high_cut: float = 0.0

    def codes(self, last_code: int) -> float:
        """How many codes the whole range of a group would span."""
        return last_code * self.stretch / (1.0 - self.low_cut - self.high_cut)


def search_line(
    x: Array, w: Array, last_code: int, candidates: Sequence[LineCandidate], *, minimum_is_positive: bool
) -> LineFit:
    """Choose scale and minimum for value = scale * code - minimum, codes 0..last_code.

    minimum_is_positive: the format can only subtract, so that 0 is always in range.
    """
    xp = array_namespace(x)
    low, high = xp.min(x, axis=0), xp.max(x, axis=0)
    if minimum_is_positive:
        low = xp.where(low < 0.0, low, 0.0)
    width = nonzero(high - low)
    weight_sum = ordered_sum(w)
    per_weight = 1.0 / xp.where(weight_sum > 0.0, weight_sum, 1.0)
    mean = ordered_sum(w * x) * per_weight
    weighted_deviation = w * (x - mean)
    best = xp.full_like(low, -LARGEST_FLOAT)
    scale = minimum = curvature = mean_code = xp.zeros_like(low)
    for step in range(len(candidates) + REFINEMENTS):
        if step < len(candidates):
            start = candidates[step]
            origin = low + start.low_cut * width
            inverse = start.codes(last_code) / width
        else:
            origin, inverse = -minimum, reciprocal(scale)
        code = rounded_between((x - origin) * inverse, 0.0, float(last_code))
        weighted = w * code
        sum_code, sum_square = ordered_sum(weighted), ordered_sum(weighted * code)
        covariance = ordered_sum(weighted_deviation * code)
        this_mean = sum_code * per_weight
        variance = sum_square - this_mean * sum_code
        has_slope = variance > 1e-6 * sum_square
        this_scale = xp.where(has_slope, covariance / xp.where(has_slope, variance, 1.0), 0.0)
        gain = this_scale * covariance
        this_minimum = this_scale * this_mean - mean
        if minimum_is_positive:
            through_zero = covariance + mean * sum_code
            zero_scale = through_zero / xp.where(sum_square > 0.0, sum_square, 1.0)
            is_clamped = this_minimum < 0.0
            gain = xp.where(is_clamped, zero_scale * through_zero - weight_sum * mean * mean, gain)
            this_scale = xp.where(is_clamped, zero_scale, this_scale)
            this_minimum = xp.where(is_clamped, 0.0, this_minimum)
        is_better = (gain > best + xp.abs(best) * TIE) & (this_scale >= 0.0)
        best = xp.where(is_better, gain, best)
        scale = xp.where(is_better, this_scale, scale)
        minimum = xp.where(is_better, this_minimum, minimum)
        curvature = xp.where(is_better, xp.where(variance > 0.0, variance, 0.0), curvature)
        mean_code = xp.where(is_better, this_mean, mean_code)
    return LineFit(scale, minimum, curvature, mean_code, weight_sum)


def line_error(x: Array, w: Array, last_code: int, scale: Array, minimum: Array) -> Array:
    """Weighted squared error [n] of rounding each group under `scale` and `minimum`."""
    code = rounded_between((x + minimum) * reciprocal(scale), 0.0, float(last_code))
    residual = x - (scale * code - minimum)
    return ordered_sum((w * residual) * residual)


# Rounds values, in units of a scale, to the multiples of it that a format has.
NearestMultiple = Callable[[Array], Array]


def nearest_integers(lowest: int, highest: int) -> NearestMultiple:
    """The whole numbers from lowest to highest."""
    return lambda values: rounded_between(values, float(lowest), float(highest))


def search_outer_scale(
    values: Array, curvature: Array, peak: Array, anchors: Sequence[float], nearest_multiple: NearestMultiple
) -> Array:
    """Choose the fp16 number whose multiples suit the groups' own scales.

    values, curvature: [groups, n].  peak: [n], the value that is tried at each of `anchors`, multiples of the scale.
    Returns float32 [n], rounded to fp16.
    """
    xp = array_namespace(values)
    best = xp.full_like(peak, float("inf"))
    outer = xp.zeros_like(peak)
    for anchor in anchors:
        candidate = half_rounded(peak / anchor)
        for _ in range(2):
            multiple = nearest_multiple(values * reciprocal(candidate))
            residual = candidate * multiple - values
            error = ordered_sum((curvature * residual) * residual)
            is_better = error < best
            best = xp.where(is_better, error, best)
            outer = xp.where(is_better, candidate, outer)
            weighted = curvature * multiple
            across = ordered_sum(weighted * multiple)
            candidate = half_rounded(ordered_sum(weighted * values) / xp.where(across > 0.0, across, 1.0))
    return outer


def steps(first: float, last: float, count: int) -> tuple[float, ...]:
    """`count` evenly spaced numbers from first to last, rounded to 1e-6."""
    return tuple(round(first + (last - first) * index / (count - 1), 6) for index in range(count))


def two_sided_anchors(lowest: float, highest: float, fractions: Sequence[float]) -> tuple[float, ...]:
    """Levels around both ends, outermost first: the largest magnitude may take either, by the sign of the scale."""
    return tuple(round(end * fraction, 6) for fraction in sorted(fractions, reverse=True) for end in (lowest, highest))


def finest_first(candidates: Sequence[LineCandidate]) -> tuple[LineCandidate, ...]:
    """Candidates by falling number of codes over the range of a group."""
    return tuple(sorted(candidates, key=lambda candidate: candidate.codes(1), reverse=True))


def row_mean_square(weight: Array) -> Array:
    """Mean of weight^2 over each row [rows, columns] -> float32 [rows]; columns a multiple of 32 for a fixed order.

    32 interleaved running sums over the columns, then `ordered_sum` of those.
    """
    xp = array_namespace(weight)
    rows, columns = weight.shape
    lanes = 32 if columns % 32 == 0 else 1
    weight = bounded(weight)
    blocks = xp.reshape(weight * weight, (rows, -1, lanes))
    total = blocks[:, 0]
    for index in range(1, blocks.shape[1]):
        total = total + blocks[:, index]
    sums = ordered_sum(total.T) if lanes > 1 else total[:, 0]
    return sums / columns
