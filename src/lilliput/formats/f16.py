# SPDX-License-Identifier: Apache-2.0
"""F16: 16-bit IEEE floats.

layout   2 bytes, little endian: 1 sign, 5 exponent, 10 fraction bits
value    the number
range    ±65504, smallest step 6.0e-8; larger magnitudes round to infinity (`count_overflows` finds them)
bits     16 per weight
readers  every tool
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, FloatArray
from lilliput.formats.number_format import Parameters
from lilliput.formats.plain_number import PlainNumber

# Halfway between the largest finite number, 65504, and the next step, 65536: from here on rounding gives infinity.
FIRST_OVERFLOW = np.float32(65520)


class F16(PlainNumber):
    """16-bit IEEE floats."""

    name = "f16"
    block_bytes = 2
    dtype = np.dtype("<f2")

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Round to nearest even; beyond the range infinite, which the caller looks for beforehand."""
        xp = array_namespace(target)
        with np.errstate(over="ignore"):
            return xp.astype(target, xp.float16)


def count_overflows(weight: FloatArray) -> int:
    """How many finite numbers of `weight` would become infinite in F16."""
    return int(np.count_nonzero(np.isfinite(weight) & (np.abs(weight) >= FIRST_OVERFLOW)))
