# SPDX-License-Identifier: Apache-2.0
"""Integers of 2 to 8 bits around zero, one scale a region: int4_g128, int8_channel, int3_tensor.

layout   "codes": rows of little-endian bit strings; "scale": fp16 for groups, float32 for channel, tensor and blocks
value    scale * (code - 2^(bits - 1))
range    -2^(bits - 1) … 2^(bits - 1) - 1 scales; the scale may be negative, so the larger side can take the longer end
bits     bits + 16 / group, + 32 / columns for a channel: int4_g128 has 4.125
readers  the grid of GPTQ, AWQ (symmetric), compressed-tensors, Q4_0 (int4_g32); only the packing differs
"""

from __future__ import annotations

from lilliput.formats.levels import Levels
from lilliput.formats.region_search import clipping_fractions
from lilliput.formats.regions import Region
from lilliput.formats.scoped_number import ScaledLevels


class SymmetricInteger(ScaledLevels):
    """Integers around zero."""

    def __init__(self, bits: int, region: Region) -> None:
        """`bits` 2..8."""
        half = 1 << (bits - 1)
        grid = Levels.integers(-half, half - 1)
        super().__init__(f"int{bits}_{region.name}", region, bits, grid, clipping_fractions(bits, region))
