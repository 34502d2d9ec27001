# SPDX-License-Identifier: Apache-2.0
"""FP4 as bitsandbytes has it: 15 numbers in groups under their largest magnitude: fp4bnb, fp4bnb_g128.

layout   "codes": rows of little-endian bit strings of 4 bits, sign | three bits without order; "scale": float32
value    scale * number(code); numbers 0 1/192 2/3 1 1/3 1/2 1/6 1/4 for codes 0 to 7, their negatives for 8 to 15
range    -1 … 1 scales
bits     4 + 32 / group: fp4bnb (groups of 64) has 4.5
readers  bitsandbytes (fp4, blocks within rows); packed there with the first code in the high bits

E2M1 over 6 but for the smallest number, which is 1/192 there and would be 1/12: NF4, of the same size, has less error.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, FloatArray
from lilliput.formats.number_format import Parameters
from lilliput.formats.pattern_levels import PatternLevels
from lilliput.formats.region_search import clipping_fractions, outermost_peak, search_region_scale
from lilliput.formats.regions import Region, group
from lilliput.formats.scoped_number import ScaledLevels, StoredParameter

DEFAULT_GROUP = 64
# In units of a twelfth.
_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)


def fp4_numbers() -> FloatArray:
    """float32 [16], by code."""
    positive = np.array(_TWELFTHS, dtype=np.float32) / np.float32(12)
    return np.concatenate([positive, -positive])


class BitsAndBytesFP4(ScaledLevels):
    """4-bit floats of bitsandbytes."""

    def __init__(self, region: Region | None = None) -> None:
        """region: a group; 64 columns by default."""
        region = region or group(DEFAULT_GROUP)
        size = "" if region.columns == DEFAULT_GROUP else f"_{region.name}"
        super().__init__(f"fp4bnb{size}", region, 4, PatternLevels(fp4_numbers()), clipping_fractions(4, region))
        self.parameters = {"scale": StoredParameter(np.dtype("<f4"))}

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Search each group's scale."""
        return {"scale": search_region_scale(weight, importance, self.region, self.grid, self.fractions)}

    def widest_parameters(self, weight: Array) -> Parameters:
        """The largest magnitude of each group."""
        return {"scale": array_namespace(weight).abs(outermost_peak(weight, self.region, self.grid))}
