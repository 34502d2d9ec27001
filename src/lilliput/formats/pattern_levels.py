# SPDX-License-Identifier: Apache-2.0
"""Numbers whose codes are bit patterns, not ranks: small floats, sign and magnitude."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from array_api_compat import array_namespace, device

from lilliput.arrays import Array, FloatArray
from lilliput.formats.levels import Levels, take


@dataclass(frozen=True)
class PatternLevels:
    """table: float32 [codes], the number of each bit pattern; NaN and infinity are decoded and never chosen.

    Of two patterns of one number (0 and -0) the first is written.
    """

    table: FloatArray
    ranks: Levels = field(init=False)
    # float32 [ranks]: pattern of each rank, ascending by number.
    patterns: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        finite = np.flatnonzero(np.isfinite(self.table))
        # -0 is 0: adding 0.0 makes them one number.
        numbers, first = np.unique(self.table[finite] + np.float32(0), return_index=True)
        object.__setattr__(self, "ranks", Levels(numbers.astype(np.float32)))
        object.__setattr__(self, "patterns", finite[first].astype(np.float32))

    @property
    def first(self) -> float:
        """Lowest number."""
        return self.ranks.first

    @property
    def last(self) -> float:
        """Highest number."""
        return self.ranks.last

    def of(self, codes: Array) -> Array:
        """float32 number of each pattern."""
        return take(self.table, codes)

    def nearest(self, target: Array) -> Array:
        """uint8 pattern of the number nearest to float32 target."""
        xp = array_namespace(target)
        return xp.astype(take(self.patterns, self._rank(target)), xp.uint8)

    def nearest_level(self, target: Array) -> Array:
        """float32 number nearest to float32 target."""
        return take(self.ranks.table, self._rank(target))

    def _rank(self, target: Array) -> Array:
        xp = array_namespace(target)
        return xp.searchsorted(xp.asarray(self.ranks.midpoints, device=device(target)), target)


def small_float_table(exponent_bits: int, fraction_bits: int, bias: int) -> FloatArray:
    """float32 of every pattern sign | exponent | fraction, all finite, IEEE's subnormals at exponent 0."""
    codes = np.arange(1 << (1 + exponent_bits + fraction_bits))
    fraction = (codes & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    exponent = (codes >> fraction_bits) & ((1 << exponent_bits) - 1)
    magnitude = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    sign = np.where(codes >> (exponent_bits + fraction_bits), -1.0, 1.0)
    return (sign * magnitude).astype(np.float32)
