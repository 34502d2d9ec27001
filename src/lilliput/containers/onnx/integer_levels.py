# SPDX-License-Identifier: Apache-2.0
"""Which number formats are integers under a scale, and their codes on a grid of 2, 4 or 8 bits: the same values.

Operators of ONNX take codes of 2, 4 and 8 bits whose zero is 2^(bits - 1), or is stored. Formats whose levels are a run
of integers fit such a grid exactly: their codes are moved, nothing is rounded. 3 bits travel as 4, 5 to 7 as 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.formats import NumberFormat
from lilliput.formats.fixed_point import FixedPoint
from lilliput.formats.integer_power_scale import PowerScaleInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import BlockFormat, Planes
from lilliput.formats.region_search import power_of_two
from lilliput.formats.scoped_number import ScaledLevels, ScopedNumber
from lilliput.formats.single_scale import SingleScale

BITS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """Where the levels of a format lie on a grid of integers.

    bits: of a stored code.  shift: stored code - our code.  has_zero_point: else the zero is 2^(bits - 1).
    group: columns that share a scale; None means a row or more.  has_half_scales: every scale is an fp16 number.
    is_balanced: as many levels below zero as above.  has_positive_scales: none is ever negative or 0.
    """

    bits: int
    shift: int
    has_zero_point: bool
    group: int | None
    has_half_scales: bool
    is_balanced: bool = False
    has_positive_scales: bool = False


@dataclass(frozen=True, slots=True)
class IntegerRows:
    """Some rows on the grid.

    codes: uint8 [rows, columns].  scale: float32 [rows, groups].  zero_point: uint8 [rows, groups] or None.
    """

    codes: ByteArray
    scale: FloatArray
    zero_point: ByteArray | None


def integer_grid(number_format: NumberFormat) -> IntegerGrid | None:
    """The grid of a format; None where its values are no integers under a scale."""
    if isinstance(number_format, ZeroPointInteger):
        region = number_format.region
        bits = next(wide for wide in BITS if wide >= number_format.code_bits)
        return IntegerGrid(bits, 0, True, region.columns, has_half_scales=_is_half(number_format))
    if isinstance(number_format, FixedPoint):
        half = 1 << (number_format.code_bits - 1)
        return _positive(_around_zero(Levels.integers(-half, half - 1), None, has_half_scales=False))
    if isinstance(number_format, PowerScaleInteger):
        return _positive(_around_zero(number_format.grid, number_format.region.columns, has_half_scales=False))
    if isinstance(number_format, ScaledLevels) and isinstance(number_format.grid, Levels):
        region = number_format.region
        return _around_zero(number_format.grid, region.columns, has_half_scales=_is_half(number_format))
    if isinstance(number_format, SingleScale):
        return _around_zero(number_format.levels, number_format.block_size, has_half_scales=True)
    return None


def integer_rows(number_format: NumberFormat, planes: Planes, columns: int, rows: int) -> IntegerRows:
    """Rows of a tensor on the grid of its format, which must have one. planes: of these rows."""
    grid = integer_grid(number_format)
    assert grid is not None, number_format.name
    encoded = number_format.unpack(planes, columns)
    codes = encoded.codes.astype(np.int16) + np.int16(grid.shift) if grid.shift else encoded.codes
    parameters = encoded.parameters
    if isinstance(number_format, FixedPoint):
        scale = np.full((1, 1), number_format.values(np.ones((1, 1)), {}) - number_format.values(np.zeros((1, 1)), {}))
    elif isinstance(number_format, PowerScaleInteger):
        scale = power_of_two(parameters["exponent"])
    else:
        scale = parameters["scale"]
    zero_point = parameters["zero_point"] if grid.has_zero_point else None
    return IntegerRows(
        np.ascontiguousarray(codes, dtype=np.uint8),
        np.ascontiguousarray(_of_rows(scale, number_format, rows), dtype=np.float32),
        None if zero_point is None else np.ascontiguousarray(_of_rows(zero_point, number_format, rows), dtype=np.uint8),
    )


def with_positive_scales(rows: IntegerRows, bits: int) -> IntegerRows:
    """The same values under scales above 0, for codes of a balanced grid; groups of zeros get the scale 1."""
    group = rows.codes.shape[1] // rows.scale.shape[1]
    sign = np.repeat(np.sign(rows.scale), group, axis=1).astype(np.int16)
    zero = 1 << (bits - 1)
    levels = (rows.codes.astype(np.int16) - zero) * sign
    scale = np.where(rows.scale == 0.0, np.float32(1.0), np.abs(rows.scale))
    return IntegerRows((levels + zero).astype(np.uint8), scale, rows.zero_point)


def row_pieces(rows: int, columns: int, number_format: NumberFormat) -> list[slice]:
    """Row ranges of bounded size that the format can be cut into."""
    together = number_format.row_step
    if together is None:
        # All rows share the parameters, which every piece keeps: `row_range` cuts such formats anywhere.
        together = 1
    step = max(1, (1 << 22) // max(columns, 1) // together) * together
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _is_half(number_format: ScopedNumber) -> bool:
    return number_format.parameters["scale"].dtype == np.dtype("<f2")


def _positive(grid: IntegerGrid | None) -> IntegerGrid | None:
    return None if grid is None else replace(grid, has_positive_scales=True)


def _around_zero(levels: Levels, group: int | None, *, has_half_scales: bool) -> IntegerGrid | None:
    """The grid of levels that are a run of integers; None for others."""
    first, last = round(levels.first), round(levels.last)
    fitting = [bits for bits in BITS if -(1 << (bits - 1)) <= first and last < 1 << (bits - 1)]
    if not levels.is_integer_run or not fitting:
        return None
    shift = first + (1 << (fitting[0] - 1))
    return IntegerGrid(fitting[0], shift, False, group, has_half_scales, is_balanced=first == -last)


def _of_rows(parameter: Array, number_format: NumberFormat, rows: int) -> Array:
    """[region rows, groups] -> [rows, groups]."""
    if isinstance(number_format, BlockFormat) or not isinstance(number_format, ScopedNumber):
        return parameter
    spread = number_format.region.of_rows(parameter, rows)
    return np.broadcast_to(spread, (rows, spread.shape[1]))
