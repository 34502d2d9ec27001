# SPDX-License-Identifier: Apache-2.0
"""Ternary weights, five to a byte, one scale a region: ternary_g128, ternary_channel, ternary_tensor.

layout   "codes": uint8 [rows, ceil(columns / 5)]: byte i = sum over k of code(5 i + k) * 3^k, below 243;
         "scale": fp16 for groups, else float32
value    scale * (code - 1)
range    -1, 0 and 1 scales
bits     1.6 + 16 / group: ternary_g128 has 1.725; a row that 5 does not divide ends in a part of a byte
readers  none; TQ1_0 and TQ2_0 are GGUF's (groups of 256), BitNet's weights have one scale a tensor
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import Array, ByteArray
from lilliput.formats.levels import Levels
from lilliput.formats.region_search import clipping_fractions
from lilliput.formats.regions import Region
from lilliput.formats.scoped_number import ScaledLevels

PER_BYTE = 5
_PLACES = 3 ** np.arange(PER_BYTE, dtype=np.int32)


class Ternary(ScaledLevels):
    """-1, 0 and 1 under a scale."""

    def __init__(self, region: Region) -> None:
        """One scale per `region`."""
        super().__init__(f"ternary_{region.name}", region, 2, Levels.integers(-1, 1), clipping_fractions(2, region))

    def row_bytes(self, columns: int) -> int:
        """Five codes a byte."""
        return -(-columns // PER_BYTE)

    def pack_codes(self, codes: Array) -> ByteArray:
        """See the layout above; missing codes of the last byte are 0."""
        rows, columns = codes.shape
        padded = np.zeros((rows, columns + -columns % PER_BYTE), dtype=np.int32)
        padded[:, :columns] = codes
        packed: ByteArray = (padded.reshape(rows, -1, PER_BYTE) * _PLACES).sum(axis=2).astype(np.uint8)
        return packed

    def unpack_codes(self, packed: ByteArray, columns: int) -> Array:
        """The inverse of `pack_codes`."""
        codes = packed[:, :, None] // _PLACES.astype(np.uint8) % np.uint8(3)
        return codes.reshape(len(packed), -1)[:, :columns]
