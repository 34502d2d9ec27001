# SPDX-License-Identifier: Apache-2.0
"""F32: 32-bit IEEE floats.

layout   4 bytes, little endian
value    the number
range    single precision
bits     32 per weight
readers  every tool
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.number_format import Parameters
from lilliput.formats.plain_number import PlainNumber


class F32(PlainNumber):
    """32-bit IEEE floats."""

    name = "f32"
    block_bytes = 4
    dtype = np.dtype("<f4")

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """The target itself."""
        xp = array_namespace(target)
        return xp.astype(target, xp.float32)
