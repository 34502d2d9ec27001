# SPDX-License-Identifier: Apache-2.0
"""Inputs as integers of 2 to 8 bits: the meaning that native/kernels/isa/integer_input.cpp computes, bit for bit.

symmetric   scale = max |x| / (2^(bits - 1) - 1), code = round(x / scale) + 2^(bits - 1), 1 … 2^bits - 1
otherwise   scale = (max(x, 0) - min(x, 0)) / (2^bits - 1), zero_point = round(-min / scale), code 0 … 2^bits - 1
value       scale * (code - zero_point)

Maxima are taken per token, or per token and group; static ones have one scale, found beforehand. `x / scale` is
x * (1 / scale) in float32, rounding is half to even. A token that holds an infinity or a NaN has the scale NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from lilliput.arrays import Array
from lilliput.errors import CalibrationError, FormatError

# Below this the inverse is not finite; such a range counts as zero.
SMALLEST_SCALE = 2.0**-120


@dataclass(frozen=True, slots=True)
class FixedScale:
    """What calibration found for one layer. scale: float32 > 0.  zero_point: the code of 0."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class InputCodes:
    """codes: int32 [tokens, columns].  scale: float32, zero_point: int32, both [tokens, groups]."""

    codes: Array
    scale: Array
    zero_point: Array

    def values(self) -> Array:
        """float32 [tokens, columns]."""
        xp = array_namespace(self.codes)
        repeat = self.codes.shape[1] // self.scale.shape[1]
        level = self.codes - xp.repeat(self.zero_point, repeat, axis=1)
        values: Array = xp.astype(level, xp.float32) * xp.repeat(self.scale, repeat, axis=1)
        return values


@dataclass(frozen=True, slots=True)
class IntegerInputs:
    """Integers of `bits`. group: columns that share a scale, None for all of a token's."""

    bits: int
    group: int | None
    is_symmetric: bool
    is_static: bool

    @property
    def name(self) -> str:
        """As recipes spell it."""
        region = "static" if self.is_static else f"g{self.group}" if self.group else "token"
        return f"int{self.bits}_{region}{'' if self.is_symmetric else '_asym'}"

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 1 << (self.bits - 1)

    @property
    def highest(self) -> int:
        """The largest code; the smallest is 1 of symmetric ones and 0 of others."""
        return (1 << self.bits) - 1

    @property
    def steps(self) -> int:
        """Steps from zero to the end of a symmetric range, from end to end of others."""
        return self.middle - 1 if self.is_symmetric else self.highest

    def groups(self, columns: int) -> int:
        """Scales of a token. Raises FormatError where the columns do not divide into groups."""
        if self.group is None:
            return 1
        if columns % self.group:
            raise FormatError(
                f"{self.name}: {columns} columns do not divide into groups of {self.group}; use a smaller group or "
                f"int{self.bits}_token"
            )
        return columns // self.group

    def quantize(self, x: Array, fixed: FixedScale | None = None) -> InputCodes:
        """Float32 [tokens, columns] -> codes. `fixed` for static ones. Raises CalibrationError without."""
        xp = array_namespace(x)
        tokens, columns = x.shape
        grouped = xp.reshape(x, (tokens, self.groups(columns), -1))
        is_finite = xp.all(xp.isfinite(grouped), axis=2)
        # What is not finite takes no part: its token's scale says so.
        grouped = xp.where(is_finite[:, :, None], grouped, xp.zeros_like(grouped))
        scale, inverse, zero_point = self._lines(grouped, fixed)
        lowest = 1.0 if self.is_symmetric else 0.0
        codes = xp.round(grouped * inverse[:, :, None]) + zero_point[:, :, None]
        codes = xp.astype(xp.clip(codes, lowest, float(self.highest)), xp.int32)
        scale = xp.where(is_finite, scale, xp.full_like(scale, float("nan")))
        return InputCodes(xp.reshape(codes, (tokens, columns)), scale, xp.astype(zero_point, xp.int32))

    def _lines(self, grouped: Array, fixed: FixedScale | None) -> tuple[Array, Array, Array]:
        """Scale, inverse and zero point [tokens, groups], all float32."""
        xp = array_namespace(grouped)
        low, high = xp.min(grouped, axis=2), xp.max(grouped, axis=2)
        low, high = xp.where(low < 0, low, xp.zeros_like(low)), xp.where(high > 0, high, xp.zeros_like(high))
        if self.is_static:
            if fixed is None:
                raise CalibrationError(f"{self.name}: static inputs need ranges; give calibration data")
            scale = xp.full_like(low, np.float32(fixed.scale).item())
        else:
            width = xp.where(high > -low, high, -low) if self.is_symmetric else high - low
            # A division of two arrays: dividing by a Python number may become a product with its inverse.
            scale = width / xp.full_like(width, float(self.steps))
        counts = scale > SMALLEST_SCALE
        ones = xp.ones_like(scale)
        inverse = xp.where(counts, ones / xp.where(counts, scale, ones), xp.zeros_like(scale))
        scale = xp.where(counts, scale, xp.zeros_like(scale))
        if self.is_static and fixed is not None:
            return scale, inverse, xp.full_like(scale, float(fixed.zero_point))
        if self.is_symmetric:
            return scale, inverse, xp.full_like(scale, float(self.middle))
        return scale, inverse, xp.round(-low * inverse)

    def fixed_scale(self, low: float, high: float) -> FixedScale:
        """The static scale and zero point whose codes just reach low <= 0 <= high."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.is_symmetric:
            return FixedScale(max(_float32(max(-low, high) / self.steps), SMALLEST_SCALE * 2), self.middle)
        scale = max(_float32((high - low) / self.steps), SMALLEST_SCALE * 2)
        return FixedScale(scale, int(np.clip(np.rint(-low / scale), 0, self.highest)))


def _float32(value: float) -> float:
    return float(np.float32(value))
