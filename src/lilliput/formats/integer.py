# SPDX-License-Identifier: Apache-2.0
"""Integers of 2 to 8 bits around zero, one scale a region: int4_g128, int8_channel, int3_tensor.

layout   "codes": rows of little-endian bit strings; "scale": fp16 for groups, float32 for channel, tensor and blocks,
         and for groups named …_f32
value    scale * (code - 2^(bits - 1))
range    -2^(bits - 1) … 2^(bits - 1) - 1 scales; the scale may be negative, so the larger side can take the longer end
bits     bits + 16 / group, + 32 / columns for a channel: int4_g128 has 4.125
readers  the grid of GPTQ, AWQ (symmetric), compressed-tensors, Q4_0 (int4_g32); only the packing differs
"""

from __future__ import annotations

import numpy as np

from lilliput.arrays import Array
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Parameters
from lilliput.formats.region_search import clipping_fractions, outermost_level, outermost_peak, search_region_scale
from lilliput.formats.regions import Region
from lilliput.formats.scale_search import to_half
from lilliput.formats.scoped_number import ScaledLevels, StoredParameter


class SymmetricInteger(ScaledLevels):
    """Integers around zero."""

    def __init__(self, bits: int, region: Region, *, has_wide_scales: bool = False) -> None:
        """`bits` 2..8.  has_wide_scales: float32 for groups, as GGML of 2023 has them."""
        half = 1 << (bits - 1)
        grid = Levels.integers(-half, half - 1)
        name = f"int{bits}_{region.name}{'_f32' if has_wide_scales else ''}"
        super().__init__(name, region, bits, grid, clipping_fractions(bits, region))
        if has_wide_scales:
            self.parameters = {"scale": StoredParameter(np.dtype("<f4"))}

    @property
    def has_half_scales(self) -> bool:
        """Whether scales are fp16."""
        return self.parameters["scale"].dtype == np.float16

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Search each region's scale; see `region_search`."""
        return self._stored(search_region_scale(weight, importance, self.region, self.grid, self.fractions))

    def widest_parameters(self, weight: Array) -> Parameters:
        """The largest magnitude of each region at the outermost level."""
        return self._stored(outermost_peak(weight, self.region, self.grid) / outermost_level(self.grid))

    def _stored(self, scale: Array) -> Parameters:
        return {"scale": to_half(scale) if self.has_half_scales else scale}
