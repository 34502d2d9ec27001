# SPDX-License-Identifier: Apache-2.0
"""Binary weights, one scale a region: binary_g128, binary_channel, binary_tensor.

layout   "codes": uint8 [rows, ceil(columns / 8)], one bit per column, lowest bit first; "scale": fp16 for groups,
         else float32
value    scale where the bit is set, else -scale
range    -1 and 1 scales; no zero
bits     1 + 16 / group: binary_g128 has 1.125, as GGUF's Q1_0
readers  none; the numbers of XNOR-Net (arXiv 1603.05279)
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Parameters
from lilliput.formats.regions import Region
from lilliput.formats.scale_search import bounded
from lilliput.formats.scoped_number import ScaledLevels


class Binary(ScaledLevels):
    """Signs under a scale."""

    def __init__(self, region: Region) -> None:
        """One scale per `region`. Any start will do: codes are signs, least squares for their scale is exact."""
        grid = Levels(np.array([-1, 1], dtype=np.float32))
        super().__init__(f"binary_{region.name}", region, 1, grid, (1.0,))

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """The sign, under either sign of the scale."""
        xp = array_namespace(target)
        is_above = bounded(target) * self.scale(parameters, target.shape[0], columns) > 0.0
        return xp.astype(is_above, xp.uint8)
