# SPDX-License-Identifier: Apache-2.0
"""Integers whose scale is a power of two, fixed point with the binary point chosen per region: int8_channel_pow2.

layout   "codes": rows of little-endian bit strings; "exponent": int8
value    2^exponent * (code - 2^(bits - 1))
range    -2^(bits - 1) … 2^(bits - 1) - 1 times 2^-126 … 2^127; a multiplication is a shift
bits     bits + 8 / group: int8_g32_pow2 has 8.25
readers  none yet; integer-only hardware and microcontroller kernels use this grid (MXINT8 is int8_g32_pow2's)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.errors import FormatError
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Parameters
from lilliput.formats.region_search import covering_exponent, power_of_two, search_region_exponent
from lilliput.formats.regions import Region
from lilliput.formats.scale_search import bounded
from lilliput.formats.scoped_number import ScopedNumber, StoredParameter

# Clipping by up to 2^-4 of the largest weight pays for rows with lone outliers; 2^1 never does, but costs nothing.
EXPONENTS = (-4, -3, -2, -1, 0, 1)


class PowerScaleInteger(ScopedNumber):
    """Integers under a power of two."""

    def __init__(self, bits: int, region: Region) -> None:
        """`bits` 2..8."""
        super().__init__(
            f"int{bits}_{region.name}_pow2", region, bits, {"exponent": StoredParameter(np.dtype(np.int8))}
        )
        half = 1 << (bits - 1)
        self.grid = Levels.integers(-half, half - 1)

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives 2^exponent * level(code)."""
        return self._power(parameters, codes.shape[0], columns) * self.grid.of(codes)

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Powers of two; their inverses are exact."""
        scale = self.region.of_rows(power_of_two(parameters["exponent"]), rows)
        return GroupLines(WrittenLevels.of(self.grid), self.region.columns, scale, 1.0 / scale)

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """The exponent of least error among a few."""
        xp = array_namespace(weight)
        exponent = search_region_exponent(weight, importance, self.region, self.grid, EXPONENTS)
        return {"exponent": xp.astype(exponent, xp.int8)}

    def widest_parameters(self, weight: Array) -> Parameters:
        """The smallest power under which the largest weight is not clipped."""
        xp = array_namespace(weight)
        low, high = self.region.extremes(bounded(weight))
        exponent = covering_exponent(xp.maximum(high, -low), self.grid)
        return {"exponent": xp.astype(exponent, xp.int8)}

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest level."""
        return self.grid.nearest(bounded(target) / self._power(parameters, target.shape[0], columns))

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """None: the one parameter is an exponent."""
        raise FormatError(f"{self.name}: its one parameter is an exponent, in which its values are not linear")

    def _power(self, parameters: Parameters, rows: int, columns: slice | None) -> Array:
        return self.region.spread(power_of_two(parameters["exponent"]), rows, columns)
