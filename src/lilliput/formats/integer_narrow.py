# SPDX-License-Identifier: Apache-2.0
"""Integers of 2 to 8 bits that reach as far on both sides of zero: int8_channel_narrow, int4_g128_narrow.

layout   "codes": rows of little-endian bit strings; "scale": fp16 for groups, float32 for channel and tensor
value    scale * (code - (2^(bits - 1) - 1))
range    -(2^(bits - 1) - 1) … 2^(bits - 1) - 1 scales: -7 … 7 of 4 bits, -127 … 127 of 8; one code is never written
bits     bits + 16 / group, + 32 / columns for a channel, as without _narrow
readers  the grid of TensorRT, whose scales are positive: with as many levels on both sides a negative scale can be
         turned, without loss. Where scales may be negative, int<bits>_<region> has one level more
"""

from __future__ import annotations

from lilliput.formats.levels import Levels
from lilliput.formats.region_search import clipping_fractions
from lilliput.formats.regions import Region
from lilliput.formats.scoped_number import ScaledLevels


class NarrowInteger(ScaledLevels):
    """Integers around zero, as many below as above."""

    def __init__(self, bits: int, region: Region) -> None:
        """`bits` 2..8."""
        last = (1 << (bits - 1)) - 1
        grid = Levels.integers(-last, last)
        super().__init__(f"int{bits}_{region.name}_narrow", region, bits, grid, clipping_fractions(bits, region))
