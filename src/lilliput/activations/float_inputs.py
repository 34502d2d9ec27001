# SPDX-License-Identifier: Apache-2.0
"""Inputs as floats: as they are, or rounded to 8-bit floats and computed with in float32.

value   scale * the nearest number of E4M3 (largest 448) or E5M2 (largest 57344)
scale   max |x| of the token / the largest number; static ones have one scale, found beforehand
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from array_api_compat import array_namespace

from lilliput.activations.integer_inputs import SMALLEST_SCALE, FixedScale
from lilliput.arrays import Array
from lilliput.errors import CalibrationError
from lilliput.formats.eight_bit_float import EightBitFloat
from lilliput.formats.regions import CHANNEL


@dataclass(frozen=True, slots=True)
class PlainInputs:
    """Inputs as they are."""

    is_static: bool = False

    @property
    def name(self) -> str:
        """As recipes spell it."""
        return "f32"


@dataclass(frozen=True, slots=True)
class FloatInputs:
    """8-bit floats, simulated."""

    kind: Literal["e4m3", "e5m2"]
    is_static: bool

    @property
    def name(self) -> str:
        """As recipes spell it."""
        return f"fp8_{self.kind}_{'static' if self.is_static else 'token'}"

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return 448.0 if self.kind == "e4m3" else 57344.0

    def rounded(self, x: Array, fixed: FixedScale | None = None) -> Array:
        """Float32 [tokens, columns] -> the values that 8 bits hold. Raises CalibrationError without a static scale."""
        xp = array_namespace(x)
        if self.is_static:
            if fixed is None:
                raise CalibrationError(f"{self.name}: static inputs need ranges; give calibration data")
            scale = xp.full_like(x[:, :1], np.float32(fixed.scale).item())
        else:
            scale = xp.max(xp.abs(x), axis=1, keepdims=True) / xp.full_like(x[:, :1], self.largest)
            scale = xp.where(scale > SMALLEST_SCALE, scale, xp.full_like(scale, SMALLEST_SCALE))
        grid = EightBitFloat(self.kind, CHANNEL).grid
        scaled = xp.clip(x / scale, -self.largest, self.largest)
        level = xp.astype(grid.of(grid.nearest(scaled)), xp.float32)
        # A NaN has no level, and must not become one.
        values: Array = xp.where(xp.isfinite(x), level * scale, x)
        return values

    def fixed_scale(self, low: float, high: float) -> FixedScale:
        """The static scale whose largest number just reaches low and high."""
        return FixedScale(float(np.float32(max(-low, high, SMALLEST_SCALE) / self.largest)), 0)
