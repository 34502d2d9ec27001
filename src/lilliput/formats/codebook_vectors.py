# SPDX-License-Identifier: Apache-2.0
"""What the IQ1, IQ2 and IQ3 formats share: 4 or 8 columns at a time are an entry of a fixed codebook.

value = scale * (scale_code + 1/2) * factor * level, in blocks of 256; level = codebook entry with its signs (IQ2, IQ3)
or shifted by ±1/8 (IQ1). Codes are int32: codebook index in the low bits, signs or shift above them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray, IntArray
from lilliput.formats.codebooks import codebook, sign_table
from lilliput.formats.levels import rounded_between, take
from lilliput.formats.native_vectors import nearest_vectors
from lilliput.formats.number_format import BlockFormat, Parameters, expand
from lilliput.formats.scale_search import (
    bounded,
    grouped,
    grouped_importance,
    half_rounded,
    ordered_sum,
    reciprocal,
    search_outer_scale,
    to_half,
)
from lilliput.formats.vector_metric import nearest_entries_under_metric, nearest_signed_under_metric
from lilliput.formats.vector_search import (
    Rounded,
    RoundGroups,
    VectorFit,
    nearest_odd_halves,
    round_shifted,
    round_signed,
    search_positive_scale,
    vector_table,
)


class CodebookVectors(BlockFormat):
    """Columns in vectors; parameters "scale" fp16 per 256 and "scale_code" uint8 per group.

    anchors: levels that the search tries a group's largest magnitude at.  code_reach: how far from the nearest scale
    code the inner fit looks.  last_code: highest scale code.
    """

    block_size = 256
    group_size: ClassVar[int]
    grid: ClassVar[str]
    index_bits: ClassVar[int]
    factor: ClassVar[float]
    anchors: ClassVar[tuple[float, ...]] = ()
    last_code: ClassVar[int] = 15
    code_reach: ClassVar[int] = 2

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """See the formula of the module."""
        return expand(self.group_scale(parameters), self.group_size, columns) * self.level(codes, parameters, columns)

    def group_scale(self, parameters: Parameters) -> Array:
        """Gives scale * (scale_code + 1/2) * factor, float32 [rows, groups]."""
        xp = array_namespace(parameters["scale_code"])
        scale = expand(xp.astype(parameters["scale"], xp.float32), self.block_size // self.group_size, None)
        return (scale * (xp.astype(parameters["scale_code"], xp.float32) + 0.5)) * self.factor

    @abstractmethod
    def level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        """float32 [rows, n]: what the step multiplies."""

    @abstractmethod
    def round_units(self, y: Array, w: Array, choice: Array | None) -> Rounded:
        """Best codes of vectors y [unit, n] in units of their scale under error weights w [unit, n].

        choice: [n], which of `group_choices` each vector's group has taken.
        """

    # What a whole group chooses besides its scale: IQ1_S's shift. The parameter's name, and its two values' numbers.
    group_choice: ClassVar[str | None] = None

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Scope 0: the block's scale that suits the groups' own best scales. Scope 1: their codes under it."""
        x, w = grouped(bounded(weight), self.group_size), grouped_importance(importance, weight, self.group_size)
        found = search_positive_scale(x, w, self._roundings(), self.anchors)
        if scope == 0 or outer is None:
            return self._fit_blocks(x, w, found, weight.shape[0])
        return self._fit_groups(x, w, found, outer)

    def fitted(self, weight: Array, importance: Array | None = None) -> Parameters:
        """Both scopes from one search of the groups."""
        x, w = grouped(bounded(weight), self.group_size), grouped_importance(importance, weight, self.group_size)
        found = search_positive_scale(x, w, self._roundings(), self.anchors)
        outer = self._fit_blocks(x, w, found, weight.shape[0])
        return {**outer, **self._fit_groups(x, w, found, outer)}

    def _roundings(self) -> Sequence[RoundGroups]:
        if self.group_choice is None:
            return [lambda y, w: self._round_groups(y, w, None)]
        return [lambda y, w: self._round_groups(y, w, 0), lambda y, w: self._round_groups(y, w, 1)]

    def _round_groups(self, y: Array, w: Array, choice: int | None) -> Array:
        """Levels [group, n] nearest to y [group, n]."""
        xp = array_namespace(y)
        group, n = y.shape

        def units(array: Array) -> Array:
            apart = xp.permute_dims(xp.reshape(array, (-1, self.unit, n)), (1, 0, 2))
            return xp.reshape(apart, (self.unit, -1))

        chosen = None if choice is None else xp.full_like(units(y)[0], choice)
        level = self.round_units(units(y), units(w), chosen).levels
        return xp.reshape(xp.permute_dims(xp.reshape(level, (self.unit, -1, n)), (1, 0, 2)), (group, n))

    def _fit_blocks(self, x: Array, w: Array, found: VectorFit, rows: int) -> Parameters:
        """The block's scale from the groups' own, then once more by least squares for the codes these lead to."""
        xp = array_namespace(x)
        groups = self.block_size // self.group_size
        # The group of largest scale takes about the highest code, or one down to half of it.
        anchors = [(self.last_code + 1.0) * (1.0 - k / 48) for k in range(25)]
        scales = grouped(xp.reshape(found.scale * (1.0 / self.factor), (rows, -1)), groups)
        curvature = grouped(xp.reshape(found.curvature, (rows, -1)), groups)
        # The peak of a block of zeros stays 0: no multiple of a scale is 0 here, so that the scale must be.
        first = search_outer_scale(
            scales, curvature, xp.max(scales, axis=0), anchors, nearest_odd_halves(self.last_code)
        )
        parameters = {"scale": xp.reshape(to_half(first), (rows, -1))}
        chosen = self._search_groups(x, w, found, parameters)
        weighted = w * chosen.level
        multiple = (chosen.code + 0.5) * self.factor
        along = multiple * ordered_sum(weighted * x)
        across = (multiple * multiple) * ordered_sum(weighted * chosen.level)
        along, across = (ordered_sum(grouped(xp.reshape(sums, (rows, -1)), groups)) for sums in (along, across))
        refit = half_rounded(along / xp.where(across > 0.0, across, 1.0))
        return {"scale": xp.reshape(to_half(xp.where(refit > 0.0, refit, first)), (rows, -1))}

    def _fit_groups(self, x: Array, w: Array, found: VectorFit, outer: Parameters) -> Parameters:
        """Round the groups' scales, then compare neighbouring codes by the error after rounding the weights."""
        xp = array_namespace(x)
        chosen = self._search_groups(x, w, found, outer)
        rows = outer["scale"].shape[0]
        parameters = {"scale_code": xp.reshape(xp.astype(chosen.code, xp.uint8), (rows, -1))}
        if self.group_choice is not None:
            parameters[self.group_choice] = xp.reshape(xp.astype(chosen.choice, xp.uint8), (rows, -1))
        return parameters

    def _search_groups(self, x: Array, w: Array, found: VectorFit, outer: Parameters) -> _GroupCodes:
        xp = array_namespace(x)
        groups = self.block_size // self.group_size
        scale = xp.reshape(expand(xp.astype(outer["scale"], xp.float32), groups, None), (-1,))
        wanted = (found.scale * (1.0 / self.factor)) * reciprocal(scale) - 0.5
        nearest = rounded_between(wanted, 0.0, float(self.last_code))
        best = xp.full_like(nearest, float("inf"))
        code, choice, level = nearest, nearest * 0.0, x * 0.0
        for this_code in self._codes_to_try(nearest):
            step = (scale * (this_code + 0.5)) * self.factor
            for number, rounding in enumerate(self._roundings()):
                this_level = rounding(x * reciprocal(step), w)
                residual = x - step * this_level
                error = ordered_sum((w * residual) * residual)
                is_better = error < best
                best = xp.where(is_better, error, best)
                code = xp.where(is_better, this_code, code)
                choice = xp.where(is_better, float(number), choice)
                level = xp.where(is_better, this_level, level)
        return _GroupCodes(code, choice, level)

    def _codes_to_try(self, nearest: Array) -> Iterator[Array]:
        xp = array_namespace(nearest)
        if self.code_reach >= self.last_code:
            yield from (nearest * 0.0 + float(code) for code in range(self.last_code + 1))
            return
        for distance in sorted(range(-self.code_reach, self.code_reach + 1), key=abs):
            yield xp.clip(nearest + float(distance), 0.0, float(self.last_code))

    def widest_parameters(self, weight: Array) -> Parameters:
        """Largest magnitude of each group at the highest level, largest group scale at the highest code."""
        xp = array_namespace(weight)
        rows, groups = weight.shape[0], self.block_size // self.group_size
        peak = xp.max(xp.abs(grouped(bounded(weight), self.group_size)), axis=0)
        wanted = peak * (1.0 / (float(vector_table(self.grid).levels[-1]) * self.factor))
        scale = half_rounded(xp.max(grouped(xp.reshape(wanted, (rows, -1)), groups), axis=0) / (self.last_code + 0.5))
        code = rounded_between(wanted * reciprocal(xp.repeat(scale, groups)) - 0.5, 0.0, float(self.last_code))
        code = xp.reshape(xp.astype(code, xp.uint8), (rows, -1))
        parameters = {"scale": xp.reshape(to_half(scale), (rows, -1)), "scale_code": code}
        if self.group_choice is not None:
            parameters[self.group_choice] = xp.zeros_like(code)
        return parameters

    def weighted_codes(self, target: Array, parameters: Parameters, importance: Array | None) -> Array:
        """Codes of least squared error under importance, broadcastable to target [rows, columns]."""
        return self._round_rows(target, parameters, None, importance)

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Best entry, signs included, by the metric; under [unit, unit] as `vector_metric` says."""
        y, choice = self.in_steps(target, parameters, columns), self._choice_of_units(parameters, columns)
        native = nearest_vectors(self.name, y if choice is None else y - (0.125 - 0.25 * choice), metric)
        if native is not None:
            return array_namespace(native).reshape(native, (target.shape[0], -1))
        return self.nearest_codes_by_arrays(target, parameters, columns, metric=metric)

    def nearest_codes_by_arrays(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """The same from the array code."""
        if metric is not None and len(metric.shape) == 2:
            return self._nearest_under_metric(target, parameters, columns, metric)
        if metric is not None:
            xp = array_namespace(target)
            metric = xp.tile(metric, (target.shape[1] // self.unit,))[None, :]
        return self._round_rows(target, parameters, columns, metric)

    def _round_rows(
        self, target: Array, parameters: Parameters, columns: slice | None, importance: Array | None
    ) -> Array:
        y = self.in_steps(target, parameters, columns)
        w = grouped_importance(importance, target, self.unit)
        codes = self.round_units(y, w, self._choice_of_units(parameters, columns)).codes
        return array_namespace(codes).reshape(codes, (target.shape[0], -1))

    def in_steps(self, target: Array, parameters: Parameters, columns: slice | None) -> Array:
        """Target [rows, n] in units of its scale, as vectors [unit, rows * n / unit]."""
        inverse = expand(reciprocal(self.group_scale(parameters)), self.group_size, columns)
        return grouped(bounded(target) * inverse, self.unit)

    def _choice_of_units(self, parameters: Parameters, columns: slice | None) -> Array | None:
        if self.group_choice is None:
            return None
        xp = array_namespace(parameters["scale_code"])
        choice = expand(xp.astype(parameters[self.group_choice], xp.float32), self.group_size, columns)
        return grouped(choice, self.unit)[0]

    @abstractmethod
    def _nearest_under_metric(
        self, target: Array, parameters: Parameters, columns: slice | None, metric: Array
    ) -> Array:
        """Codes under a metric [unit, unit]."""

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """Gives (scale_code + 1/2) * factor * level, for the block's scale."""
        xp = array_namespace(codes)
        multiple = (xp.astype(parameters["scale_code"], xp.float32) + 0.5) * self.factor
        return {"scale": expand(multiple, self.group_size, columns) * self.level(codes, parameters, columns)}


class SignedVectors(CodebookVectors):
    """Unsigned codebook entries with sign bits: 8 independent ones, or 7 whose parity gives the eighth."""

    sign_bits: ClassVar[int]

    def level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        """Codebook entries times signs."""
        xp = array_namespace(codes)
        grid = codebook(self.grid)
        indices = self.unit // grid.shape[1]
        mask = (1 << self.index_bits) - 1
        entries = [take(grid, (codes >> (self.index_bits * k)) & mask) for k in range(indices)]
        magnitude = entries[0] if indices == 1 else xp.concat(entries, axis=-1)
        sign = take(sign_table(self.sign_bits), codes >> (self.index_bits * indices))
        return xp.reshape(magnitude * sign, (codes.shape[0], -1))

    def round_units(self, y: Array, w: Array, choice: Array | None) -> Rounded:
        """Entries and signs; see `round_signed`."""
        return round_signed(y, w, vector_table(self.grid), self.index_bits, self.sign_bits < self.unit)

    def _nearest_under_metric(
        self, target: Array, parameters: Parameters, columns: slice | None, metric: Array
    ) -> Array:
        y = self.in_steps(target, parameters, columns)
        codes = nearest_signed_under_metric(
            y, metric, vector_table(self.grid), self.index_bits, self.sign_bits < self.unit
        )
        return array_namespace(codes).reshape(codes, (target.shape[0], -1))


class ShiftedVectors(CodebookVectors):
    """Ternary entries, all columns of one moved by +1/8 or by -1/8; choice 1, or the code's highest bit, is minus."""

    unit = 8
    grid = "iq1"
    index_bits = 11
    factor = 2.0
    last_code = 7
    code_reach = 7

    def round_units(self, y: Array, w: Array, choice: Array | None) -> Rounded:
        """Entries under the group's shift, or under the better one."""
        xp = array_namespace(y)
        table = vector_table(self.grid)
        if choice is not None:
            return round_shifted(y, w, table, 0.125 - 0.25 * choice)[0]
        shift = xp.full_like(y[0], 0.125)
        plus, plus_score = round_shifted(y, w, table, shift)
        minus, minus_score = round_shifted(y, w, table, -shift)
        is_minus = minus_score < plus_score
        codes = xp.where(is_minus, minus.codes | (1 << self.index_bits), plus.codes)
        return Rounded(codes, xp.where(is_minus, minus.levels, plus.levels))

    def _nearest_under_metric(
        self, target: Array, parameters: Parameters, columns: slice | None, metric: Array
    ) -> Array:
        xp = array_namespace(target)
        y = self.in_steps(target, parameters, columns)
        choice = self._choice_of_units(parameters, columns)
        table = vector_table(self.grid)
        if choice is not None:
            codes = nearest_entries_under_metric(y - (0.125 - 0.25 * choice), metric, table).index
        else:
            plus = nearest_entries_under_metric(y - 0.125, metric, table)
            minus = nearest_entries_under_metric(y + 0.125, metric, table)
            is_minus = minus.score < plus.score
            codes = xp.where(is_minus, minus.index | (1 << self.index_bits), plus.index)
        return xp.reshape(codes, (target.shape[0], -1))


class _GroupCodes:
    """Chosen scale codes and choices [n] of groups, and the levels [group, n] their weights round to."""

    __slots__ = ("choice", "code", "level")

    def __init__(self, code: Array, choice: Array, level: Array) -> None:
        self.code, self.choice, self.level = code, choice, level


def read_words(data: ByteArray, dtype: str) -> IntArray:
    """Little-endian "<u2" or "<u4" words of uint8 [n, bytes] as int32."""
    return np.ascontiguousarray(data).view(dtype).astype(np.int32)


def word_bytes(words: Array, dtype: str) -> ByteArray:
    """The inverse of `read_words`: [n, k] -> uint8 [n, bytes]."""
    packed: ByteArray = np.ascontiguousarray(words.astype(dtype)).view(np.uint8)
    return packed


def mask_words(masks: Array, scale_codes: Array) -> ByteArray:
    """Four 7-bit sign masks of each group [n, 4 groups], its scale code [n, groups] on top: uint8 [n, groups, 4]."""
    groups = masks.astype(np.uint32).reshape(len(masks), -1, 4) << np.array([0, 7, 14, 21], dtype=np.uint32)
    words = np.bitwise_or.reduce(groups, axis=2) | (scale_codes.astype(np.uint32) << 28)
    return word_bytes(words, "<u4").reshape(len(masks), -1, 4)
