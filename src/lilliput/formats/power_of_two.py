# SPDX-License-Identifier: Apache-2.0
"""Powers of two of 2 to 8 bits under one scale a region: pot4_g128, pot5_channel.

layout   "codes": rows of little-endian bit strings, sign << (bits - 1) | m; "scale": fp16 for groups, else float32
value    scale * ±2^(m - last), last = 2^(bits - 1) - 1; 0 for m = 0 (its negative is decoded, never chosen)
range    -1 … 1 scales, relative steps of a factor of two: pot3 has 0, 1/4, 1/2 and 1
bits     bits + 16 / group: pot4_g128 has 4.125
readers  none yet; a product of a weight is a shift (INQ, arXiv 1702.03044; LogNet, arXiv 1603.01025)
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats.pattern_levels import PatternLevels
from lilliput.formats.region_search import clipping_fractions
from lilliput.formats.regions import Region
from lilliput.formats.scoped_number import ScaledLevels


def power_table(bits: int) -> FloatArray:
    """float32 [2^bits] of every code; powers below float32's smallest are 0."""
    codes = np.arange(1 << bits)
    magnitude_code = codes & ((1 << (bits - 1)) - 1)
    last = (1 << (bits - 1)) - 1
    magnitude = np.where(magnitude_code == 0, 0.0, np.exp2(np.float64(magnitude_code) - last))
    return np.where(codes >> (bits - 1), -magnitude, magnitude).astype(np.float32)


class PowerOfTwo(ScaledLevels):
    """Zero and signed powers of two."""

    def __init__(self, bits: int, region: Region) -> None:
        """`bits` 2..8."""
        # Steps double towards the ends, so that much clipping never pays: as with 4 bits at most.
        fractions = clipping_fractions(min(max(bits, 4), 5), region) if bits > 2 else clipping_fractions(2, region)
        super().__init__(f"pot{bits}_{region.name}", region, bits, PatternLevels(power_table(bits)), fractions)
