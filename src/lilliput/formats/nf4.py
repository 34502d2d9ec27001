# SPDX-License-Identifier: Apache-2.0
"""NF4: 16 quantiles of the normal distribution in groups under their largest magnitude: nf4, nf4_f16, nf4_g128.

layout   "codes": rows of little-endian bit strings of 4 bits, the level's rank; "scale": float32, or fp16 (…_f16)
value    scale * level(code); 16 levels from -1 to 1, one of them 0, closer together near 0
range    -1 … 1 scales
bits     4 + 32 / group, or 4 + 16 / group: nf4 (groups of 64) has 4.5, nf4_f16 4.25
readers  the numbers of bitsandbytes (nf4, blocks within rows); packed there with the first code in the high bits
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array, FloatArray
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Parameters
from lilliput.formats.region_search import clipping_fractions, outermost_peak, search_region_scale
from lilliput.formats.regions import Region, group
from lilliput.formats.scale_search import to_half
from lilliput.formats.scoped_number import ScaledLevels, StoredParameter

DEFAULT_GROUP = 64
# As QLoRA prints them (appendix E), which bitsandbytes' kernels hold to the last bit: 7 quantiles below zero, zero, 8
# above, over the largest.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def nf4_levels() -> FloatArray:
    """float32 [16], ascending."""
    return np.array(LEVELS, dtype=np.float32)


class NF4(ScaledLevels):
    """Quantiles of the normal distribution."""

    def __init__(self, region: Region | None = None, *, has_half_scales: bool = False) -> None:
        """region: a group; 64 columns by default.  has_half_scales: fp16 instead of float32."""
        region = region or group(DEFAULT_GROUP)
        size = "" if region.columns == DEFAULT_GROUP else f"_{region.name}"
        fractions = clipping_fractions(4, region)
        super().__init__(f"nf4{size}{'_f16' if has_half_scales else ''}", region, 4, Levels(nf4_levels()), fractions)
        self._has_half_scales = has_half_scales
        self.parameters = {"scale": StoredParameter(np.dtype("<f2" if has_half_scales else "<f4"))}

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Search each group's scale, of either sign: the levels reach closer to zero on one side."""
        return self._stored(search_region_scale(weight, importance, self.region, self.grid, self.fractions))

    def widest_parameters(self, weight: Array) -> Parameters:
        """The largest magnitude of each group, as QLoRA has it."""
        return self._stored(array_namespace(weight).abs(outermost_peak(weight, self.region, self.grid)))

    def _stored(self, scale: Array) -> Parameters:
        return {"scale": to_half(scale) if self._has_half_scales else scale}
