# SPDX-License-Identifier: Apache-2.0
"""FP8: 8-bit floats under one scale a region: fp8_e4m3_channel, fp8_e5m2_tensor, fp8_e4m3_block128.

layout   "codes": uint8 [rows, columns], the float's bits (OCP 8-bit floating point): sign | exponent | fraction;
         "scale": fp16 for groups, else float32
value    scale * e4m3(code) or scale * e5m2(code)
range    E4M3 -448 … 448, E5M2 -57344 … 57344, both with subnormals; codes of NaN and infinity are decoded, never chosen
bits     8 + 16 / group, + 32 / columns for a channel, + 32 / 16384 for block128
readers  the numbers of vLLM and compressed-tensors (tensor, channel) and of DeepSeek's block128; names of arrays differ
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from lilliput.arrays import FloatArray
from lilliput.formats.pattern_levels import PatternLevels, small_float_table
from lilliput.formats.regions import Region
from lilliput.formats.scoped_number import ScaledLevels

# Steps grow with the number, so that a scale matters little: where in an octave the largest weights fall, and no more.
FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)


def e4m3_table() -> FloatArray:
    """float32 [256]: no infinity; all ones is NaN."""
    table = small_float_table(4, 3, 7)
    table[[0x7F, 0xFF]] = np.nan
    return table


def e5m2_table() -> FloatArray:
    """float32 [256]: the highest exponent is infinity and NaN, as in IEEE formats."""
    table = small_float_table(5, 2, 15)
    table[[0x7C, 0xFC]] = np.inf, -np.inf
    table[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return table


class EightBitFloat(ScaledLevels):
    """8-bit floats under a scale."""

    def __init__(self, kind: Literal["e4m3", "e5m2"], region: Region) -> None:
        """E4M3 has the finer steps, E5M2 the wider range."""
        grid = PatternLevels(e4m3_table() if kind == "e4m3" else e5m2_table())
        super().__init__(f"fp8_{kind}_{region.name}", region, 8, grid, FRACTIONS)
