# SPDX-License-Identifier: Apache-2.0
"""Fixed point Qm.n: a sign, m integer bits, n fraction bits, no parameters: fixed0.15, fixed2.5.

layout   "codes": rows of little-endian bit strings of 1 + m + n bits, 2 to 16
value    (code - 2^(m + n)) / 2^n
range    -2^m … 2^m - 2^-n, the same for every tensor; weights beyond it become its ends
bits     1 + m + n
readers  none yet; digital signal processors. Where the range should follow the weights: int8_channel_pow2
"""

from __future__ import annotations

from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.levels import rounded_between
from lilliput.formats.number_format import Parameters
from lilliput.formats.regions import TENSOR
from lilliput.formats.scale_search import bounded
from lilliput.formats.scoped_number import ScopedNumber

LARGEST_BITS = 16


class FixedPoint(ScopedNumber):
    """Numbers with the binary point at one fixed place."""

    def __init__(self, integer_bits: int, fraction_bits: int) -> None:
        """Beside the sign."""
        super().__init__(f"fixed{integer_bits}.{fraction_bits}", TENSOR, 1 + integer_bits + fraction_bits, {})
        self._step = 2.0**-fraction_bits
        self._half = float(1 << (integer_bits + fraction_bits))

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives (code - half) * step, exactly."""
        xp = array_namespace(codes)
        return (xp.astype(codes, xp.float32) - self._half) * self._step

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest number, half to even; the range's ends beyond it."""
        xp = array_namespace(target)
        level = rounded_between(bounded(target) / self._step, -self._half, self._half - 1.0)
        return xp.astype(level + self._half, xp.uint8 if self.code_bits <= 8 else xp.uint16)
