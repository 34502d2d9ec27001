# SPDX-License-Identifier: Apache-2.0
"""FP4: 4-bit floats (E2M1) under one float scale a region: fp4_g32, fp4_channel.

layout   "codes": rows of little-endian bit strings of 4 bits, sign | exponent | fraction; "scale": fp16 for groups,
         else float32
value    scale * e2m1(code); e2m1 = 0 0.5 1 1.5 2 3 4 6 and their negatives
range    -6 … 6 scales
bits     4 + 16 / group: fp4_g32 has 4.5
readers  none; MXFP4 and NVFP4 are the same numbers under 8-bit scales, which hardware knows
"""

from __future__ import annotations

from lilliput.formats.pattern_levels import PatternLevels, small_float_table
from lilliput.formats.region_search import clipping_fractions
from lilliput.formats.regions import Region
from lilliput.formats.scoped_number import ScaledLevels


class ScaledFourBitFloat(ScaledLevels):
    """4-bit floats under a float scale."""

    def __init__(self, region: Region) -> None:
        """One scale per `region`."""
        grid = PatternLevels(small_float_table(2, 1, 1))
        super().__init__(f"fp4_{region.name}", region, 4, grid, clipping_fractions(4, region))
