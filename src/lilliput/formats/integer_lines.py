# SPDX-License-Identifier: Apache-2.0
"""Which number formats are integers under scales, and what their integers are: any whose values are lines per group.

value = scale * (level - zero_point), levels and zero points whole numbers that fit int8 once shifted alike. That holds
for the integer families (with zero points and power-of-two scales too), ternary and binary numbers, Q8_0, Q6_K, Q5_0,
Q4_0, Q3_K, IQ4_NL, MXFP4 and their like; not for formats with minimums, wide floats and palettes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lilliput.arrays import Array, FloatArray
from lilliput.formats.number_format import NumberFormat, Parameters

LOWEST, HIGHEST = -128, 127
# Rows whose largest sums with 8-bit inputs fit int32, see native/engine/integer_matrix.cpp.
MOST_COLUMNS = 1 << 15


@dataclass(frozen=True, slots=True)
class IntegerLines:
    """scale: float32 [rows, groups].  zero_point: int32 [rows, groups], None for zeros.

    levels: int8 [256], the integer of each code.
    """

    scale: FloatArray
    zero_point: NDArray[np.int32] | None
    levels: NDArray[np.int8]


@cache
def has_integer_form(number_format: NumberFormat) -> bool:
    """Whether matrices of this format have `integer_lines`."""
    columns = number_format.block_size
    if number_format.unit != 1 or not number_format.scopes:
        return False
    specs = number_format.stored_planes(1, columns)
    blank = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    encoded = number_format.unpack(blank, columns)
    return integer_lines(number_format, encoded.parameters, 1, columns) is not None


def integer_lines(number_format: NumberFormat, parameters: Parameters, rows: int, columns: int) -> IntegerLines | None:
    """The integers of a format under these parameters (numpy); None where there are none."""
    lines = number_format.group_lines(parameters, rows)
    if lines is None or lines.offset is not None:
        return None
    numbers = np.asarray(lines.levels.numbers)
    # The kernel takes sixteen columns at a time; only a row's end may be ragged.
    is_cut_apart = lines.group is not None and lines.group < columns and lines.group % 16 != 0
    if is_cut_apart or not np.array_equal(numbers, np.rint(numbers)):
        return None
    shift = _shift(numbers)
    if shift is None:
        return None
    levels = np.zeros(256, np.int16)
    levels[lines.levels.codes] = numbers.astype(np.int16) - shift
    scale = np.broadcast_to(np.asarray(lines.scale, np.float32), (rows, lines.scale.shape[1]))
    return IntegerLines(scale.copy(), _zero_points(lines.zero_point, shift, scale.shape), levels.astype(np.int8))


def _shift(numbers: Array) -> int | None:
    """What is subtracted from each level so that all fit int8: 0, or the middle of unsigned codes."""
    low, high = int(numbers.min()), int(numbers.max())
    if low >= LOWEST and high <= HIGHEST:
        return 0
    return -LOWEST if low >= 0 and high <= HIGHEST - LOWEST else None


def _zero_points(stored: Array | None, shift: int, shape: tuple[int, ...]) -> NDArray[np.int32] | None:
    if stored is None and shift == 0:
        return None
    points = np.zeros(shape, np.int32) if stored is None else np.broadcast_to(np.asarray(stored, np.int32), shape)
    shifted: NDArray[np.int32] = (points - shift).astype(np.int32)
    return shifted
