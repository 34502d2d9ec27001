# SPDX-License-Identifier: Apache-2.0
"""Integers of 2 to 8 bits with a scale and an integer zero point a region: int4_g128_asym, int8_channel_asym.

layout   "codes": rows of little-endian bit strings; "scale": fp16 for groups, else float32; "zero_point": uint8
value    scale * (code - zero_point)
range    0 … 2^bits - 1 codes; the zero point is one of them, so that 0 is a value
bits     bits + 24 / group: int4_g128_asym has 4.1875
readers  the grid of GPTQ and AWQ (asymmetric), compressed-tensors and ONNX's MatMulNBits; only the packing differs
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.formats.group_lines import GroupLines, WrittenLevels
from lilliput.formats.levels import Levels
from lilliput.formats.number_format import Parameters
from lilliput.formats.region_search import clipping_fractions, rounded_code, search_region_line
from lilliput.formats.regions import Region
from lilliput.formats.scale_search import bounded, nonzero, reciprocal
from lilliput.formats.scoped_number import ScopedNumber, StoredParameter, scale_dtype, stored_scale


class ZeroPointInteger(ScopedNumber):
    """Integers under a scale and a zero point."""

    def __init__(self, bits: int, region: Region) -> None:
        """`bits` 2..8."""
        parameters = {"scale": StoredParameter(scale_dtype(region)), "zero_point": StoredParameter(np.dtype("u1"))}
        super().__init__(f"int{bits}_{region.name}_asym", region, bits, parameters)
        self.last_code = (1 << bits) - 1
        self.fractions = clipping_fractions(bits, region)

    def values(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Array:
        """Gives scale * (code - zero_point)."""
        return self._spread("scale", parameters, codes, columns) * self._level(codes, parameters, columns)

    def group_lines(self, parameters: Parameters, rows: int) -> GroupLines | None:
        """Scales and zero points."""
        xp = array_namespace(parameters["scale"])
        scale, zero_point = (
            self.region.of_rows(xp.astype(parameters[name], xp.float32), rows) for name in ("scale", "zero_point")
        )
        levels = WrittenLevels.of(Levels.integers(0, self.last_code))
        return GroupLines(levels, self.region.columns, scale, reciprocal(scale), zero_point=zero_point)

    def fit(
        self, weight: Array, importance: Array | None, *, scope: int = 0, outer: Parameters | None = None
    ) -> Parameters:
        """Search scale and zero point together; see `search_region_line`."""
        scale, zero_point = search_region_line(weight, importance, self.region, self.last_code, self.fractions)
        return self._stored(scale, zero_point)

    def widest_parameters(self, weight: Array) -> Parameters:
        """Minimum and maximum of each region, and zero between them, just within the codes."""
        xp = array_namespace(weight)
        low, high = self.region.extremes(bounded(weight))
        low, high = xp.where(low < 0.0, low, 0.0), xp.where(high > 0.0, high, 0.0)
        width = high - low
        return self._stored(width / self.last_code, xp.round(-low / nonzero(width) * self.last_code))

    def stored_line(self, scale: Array, minimum: Array) -> Parameters:
        """Parameters nearest to value = scale * code + minimum, float32 [region rows, region columns]."""
        xp = array_namespace(scale)
        return self._stored(scale, xp.clip(xp.round(-minimum * reciprocal(scale)), 0.0, float(self.last_code)))

    def nearest_codes(
        self, target: Array, parameters: Parameters, columns: slice | None = None, *, metric: Array | None = None
    ) -> Array:
        """Nearest code."""
        inverse = reciprocal(self._spread("scale", parameters, target, columns))
        return rounded_code(target, inverse, self._spread("zero_point", parameters, target, columns), self.last_code)

    def linear_terms(self, codes: Array, parameters: Parameters, columns: slice | None = None) -> Mapping[str, Array]:
        """The distance of each code from the zero point, which stays as it is."""
        return {"scale": self._level(codes, parameters, columns)}

    def _level(self, codes: Array, parameters: Parameters, columns: slice | None) -> Array:
        xp = array_namespace(codes)
        return xp.astype(codes, xp.float32) - self._spread("zero_point", parameters, codes, columns)

    def _spread(self, name: str, parameters: Parameters, matrix: Array, columns: slice | None) -> Array:
        xp = array_namespace(parameters[name])
        return self.region.spread(xp.astype(parameters[name], xp.float32), matrix.shape[0], columns)

    def _stored(self, scale: Array, zero_point: Array) -> Parameters:
        xp = array_namespace(scale)
        return {"scale": stored_scale(scale, self.region), "zero_point": xp.astype(zero_point, xp.uint8)}
