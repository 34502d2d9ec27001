# SPDX-License-Identifier: Apache-2.0
"""What F32, F16, F64 and the integer types share: the code is the number itself, no parameters."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, ByteArray
from lilliput.formats.number_format import BlockFormat, Encoded, Parameters


class PlainNumber(BlockFormat):
    """Rows of plain little-endian numbers. `codes` are the numbers, in `dtype`; there is nothing to fit."""

    dtype: ClassVar[np.dtype[np.generic]]

    def unpack_blocks(self, blocks: ByteArray) -> Encoded:
        """Reinterpret the bytes."""
        return Encoded(blocks.view(self.dtype), {})

    def pack_blocks(self, encoded: Encoded) -> ByteArray:
        """Reinterpret the numbers."""
        return np.ascontiguousarray(encoded.codes, dtype=self.dtype).view(np.uint8)

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """The numbers in float32."""
        xp = array_namespace(codes)
        return xp.astype(codes, xp.float32)
