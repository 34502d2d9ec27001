# SPDX-License-Identifier: Apache-2.0
"""BF16: the upper half of a 32-bit IEEE float.

layout   2 bytes, little endian: 1 sign, 8 exponent, 7 fraction bits
value    the number
range    float32's, with 8 significant bits
bits     16 per weight
readers  llama.cpp, gguf-py, transformers
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.number_format import Parameters
from lilliput.formats.plain_number import PlainNumber


class BF16(PlainNumber):
    """The upper half of a 32-bit float; codes are int16 with those bits."""

    name = "bf16"
    block_bytes = 2
    # Signed, because torch can neither shift nor compare its unsigned 16-bit integers.
    dtype = np.dtype("<i2")

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """The bits, with 16 zero bits below them."""
        xp = array_namespace(codes)
        return (xp.astype(codes, xp.int32) << 16).view(xp.float32)

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Round to nearest even; NaN stays NaN (quiet)."""
        xp = array_namespace(target)
        bits = xp.astype(target, xp.float32, copy=True).view(xp.int32)
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        # Adding just under half a step, plus the lowest kept bit, carries exactly when rounding to even asks for it.
        rounded = (bits >> 16) + (((bits & 0xFFFF) + ((bits >> 16) & 1) + 0x7FFF) >> 16)
        return xp.astype(xp.where(is_nan, (bits >> 16) | 0x40, rounded), xp.int16)
