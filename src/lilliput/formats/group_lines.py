# SPDX-License-Identifier: Apache-2.0
"""Values as lines per group: what loops that decide one column after the other need of a format, in numbers alone.

value = scale * (level(code) - zero_point) + offset, with a scale, an offset and a zero point for each group of each
row. Computed in this order in float32 it is the value of the file, bit for bit: a format gives numbers here only where
that holds (tests/conformance/test_group_lines.py compares them all).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lilliput.arrays import Array, ByteArray, FloatArray
from lilliput.formats.levels import Levels
from lilliput.formats.pattern_levels import PatternLevels


@dataclass(frozen=True, slots=True)
class WrittenLevels:
    """Levels that encoders write, ascending.

    numbers: float32 [n], n <= 256.  codes: uint8 [n], the code of each.
    """

    numbers: FloatArray
    codes: ByteArray

    @classmethod
    def of(cls, levels: Levels | PatternLevels, written: Levels | None = None) -> WrittenLevels:
        """All levels, or the run of integers `written` among them."""
        if isinstance(levels, PatternLevels):
            return cls(levels.ranks.table, levels.patterns.astype(np.uint8))
        chosen = (written or levels).table
        return cls(chosen, np.searchsorted(levels.table, chosen).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class GroupLines:
    """The lines of some whole rows.

    scale: float32 [rows or 1, groups]; one row where all rows share it.  inverse: what a value is multiplied by to find
    its level, 0 where the scale is too small to matter.  offset, zero_point: as the scale, or None where there is none.
    group: columns of a group; None where all columns are one.
    """

    levels: WrittenLevels
    group: int | None
    scale: Array
    inverse: Array
    offset: Array | None = None
    zero_point: Array | None = None
